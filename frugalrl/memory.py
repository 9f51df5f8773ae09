"""Where transitions wait to be learned from: a ring of steps, sampled as windows of consecutive steps.

The walk of an observation to a gradient goes on in `agents/dqn.py`, `grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .types import Batch, Memory, Transition


class Ring(NamedTuple):
    """Steps of every stream and lane; a row is one packed transition, so a sample touches one stretch of memory."""

    rows: tuple  # an array [streams, slots, lanes, width] for each storage type
    position: jax.Array  # int32 [streams]; steps ever written, so the next slot is position % slots


class Packing(NamedTuple):
    """How a transition becomes one row of 32-bit words and one of bytes (pixels), and back, bit for bit."""

    pack: Callable[[Transition], tuple]  # transition, leaves with leading axes -> rows [leading axes, width]
    unpack: Callable[[tuple], Transition]
    widths: tuple  # ((dtype, width), ...)


def packing(example: Transition) -> Packing:
    """Packing for transitions shaped as `example` (one, without leading axes): uint8, bool, or 32 bits a value."""
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, example))
    kinds = [jnp.uint8 if leaf.dtype in (jnp.uint8, jnp.bool_) else jnp.uint32 for leaf in leaves]
    # flags ride along as words where there are no bytes anyway: one array to read instead of two
    if all(leaf.dtype != jnp.uint8 for leaf in leaves):
        kinds = [jnp.uint32] * len(leaves)
    for leaf in leaves:
        if leaf.dtype.itemsize not in (1, 4):
            raise TypeError(f"memory stores 8-bit and 32-bit values, got {leaf.dtype}; cast it before adding")
    used = [kind for kind in (jnp.uint32, jnp.uint8) if kind in kinds]

    def encode(x, kind):
        same_size = x.dtype.itemsize == jnp.dtype(kind).itemsize and x.dtype != jnp.bool_
        return jax.lax.bitcast_convert_type(x, kind) if same_size else x.astype(kind)

    def decode(x, dtype):
        same_size = x.dtype.itemsize == dtype.itemsize and dtype != jnp.bool_
        return jax.lax.bitcast_convert_type(x, dtype) if same_size else x.astype(dtype)

    def pack(transition):
        items = jax.tree.leaves(transition)
        lead = items[0].ndim - leaves[0].ndim

        def flat(x):
            return x.reshape(*x.shape[:lead], -1)

        return tuple(
            jnp.concatenate([flat(encode(x, kind)) for x, k in zip(items, kinds, strict=True) if k == kind], -1)
            for kind in used
        )

    def unpack(rows):
        starts = dict.fromkeys(used, 0)
        items = []
        for leaf, kind in zip(leaves, kinds, strict=True):
            row, start = rows[used.index(kind)], starts[kind]
            items.append(decode(row[..., start : start + leaf.size].reshape(*row.shape[:-1], *leaf.shape), leaf.dtype))
            starts[kind] = start + leaf.size
        return jax.tree.unflatten(tree, items)

    widths = tuple((kind, sum(x.size for x, k in zip(leaves, kinds, strict=True) if k == kind)) for kind in used)
    return Packing(pack, unpack, widths)


def uniform(
    example: Transition, capacity: int, batch: int, *, lanes: int, unroll: int, window: int = 1, streams: int = 1
) -> Memory:
    """A ring sampled uniformly with replacement.

    `capacity` is in steps of all lanes and streams, rounded down to whole unrolls; `unroll` is the number of steps each
    `add` brings, `window` the number of consecutive steps of one lane in a sample (n-step returns). Batch.data is
    [batch, window, ...] and Batch.index the row each window starts at. A window may cross the end of an episode (the
    loss reads the flags) but never the place where the newest step meets the oldest. Sampling takes a 32-bit random
    word modulo the number of windows: its bias is below windows / 2**32.
    """
    slots = max(capacity // (streams * lanes * unroll), 1) * unroll
    if slots < window:
        raise ValueError(
            f"a memory of {capacity} steps is too small for windows of {window} on {streams * lanes} lanes"
        )
    packed = packing(example)

    def init() -> Ring:
        shape = (streams, slots, lanes)
        return Ring(tuple(jnp.zeros((*shape, w), kind) for kind, w in packed.widths), jnp.zeros(streams, jnp.int32))

    def add(ring: Ring, items: Transition, stream: int | jax.Array = 0) -> Ring:
        at = ring.position[stream] % slots
        zero = jnp.zeros_like(at)
        start = (jnp.asarray(stream, at.dtype), at, zero, zero)
        rows = tuple(
            jax.lax.dynamic_update_slice(old, new[None], start)
            for old, new in zip(ring.rows, packed.pack(items), strict=True)
        )
        return Ring(rows, ring.position.at[stream].add(unroll))

    def sample(ring: Ring, key: jax.Array) -> Batch:
        filled = jnp.minimum(ring.position, slots)
        starts = jnp.maximum(filled - (window - 1), 0) * lanes  # windows each stream offers
        ends = jnp.cumsum(starts)
        bits = jax.random.bits(key, (batch,), jnp.uint32)
        pick = (bits % jnp.maximum(ends[-1], 1).astype(jnp.uint32)).astype(jnp.int32)
        stream = (pick[:, None] >= ends[None, :-1]).sum(-1, dtype=jnp.int32) if streams > 1 else jnp.zeros_like(pick)
        within = pick - (ends - starts)[stream] if streams > 1 else pick
        oldest = jnp.where(ring.position > slots, ring.position % slots, 0)
        first = within // lanes + (oldest[stream] if streams > 1 else oldest[0])
        slot = (first[:, None] + jnp.arange(window, dtype=jnp.int32)[None]) % slots
        lane = within % lanes
        flat = (stream[:, None] * slots + slot) * lanes + lane[:, None]
        rows = tuple(r.reshape(-1, r.shape[-1]).at[flat].get(mode="promise_in_bounds") for r in ring.rows)
        return Batch(packed.unpack(rows), jnp.ones(batch, jnp.float32), flat[:, 0])

    def update(ring: Ring, index: jax.Array, priority: jax.Array) -> Ring:
        return ring

    def cut(ring: Ring, stream: int | jax.Array) -> Ring:
        at = (ring.position[stream] - 1) % slots
        newest = packed.unpack(tuple(r[stream, at] for r in ring.rows))
        newest = newest._replace(truncated=jnp.logical_not(newest.terminated))
        written = ring.position[stream] > 0
        return ring._replace(
            rows=tuple(
                r.at[stream, at].set(jnp.where(written, new, r[stream, at]))
                for r, new in zip(ring.rows, packed.pack(newest), strict=True)
            )
        )

    return Memory(init, add, sample, update, cut)
