"""Where transitions wait to be learned from: a ring of steps, sampled as windows of consecutive steps, and rollouts,
dealt out to the updates of one iteration.

The walk of an observation to a gradient goes on in `agents/dqn.py`, `grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .types import Batch, Cadence, Memory, Transition, Tree


class Ring(NamedTuple):
    """Steps of every stream and lane; a row is one packed transition, so a sample touches one stretch of memory."""

    rows: tuple  # an array [streams, slots, lanes, width] for each storage type
    position: jax.Array  # int32 [streams]; steps ever written, so the next slot is position % slots


class Packing(NamedTuple):
    """How a transition becomes one row of 32-bit words and one of bytes (pixels), and back, bit for bit."""

    pack: Callable[[Any], tuple]  # a record, leaves with leading axes -> rows [leading axes, width]
    unpack: Callable[[tuple], Any]
    widths: tuple  # ((dtype, width), ...)


def packing(example: Any) -> Packing:
    """Packing for records shaped as `example` (one, without leading axes): uint8, bool, or 32 bits a value."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda x: x, example))
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
    slots = _slots(capacity, lanes, unroll, window, streams)
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

    def sample(ring: Ring, key: jax.Array, number: int | jax.Array) -> Batch:
        oldest = jnp.maximum(ring.position - slots, 0)
        stream, first, lane = _windows(key, batch, oldest, ring.position, window, lanes)
        slot = (first[:, None] + jnp.arange(window, dtype=jnp.int32)[None]) % slots
        flat = (stream[:, None] * slots + slot) * lanes + lane[:, None]
        rows = tuple(r.reshape(-1, r.shape[-1]).at[flat].get(mode="promise_in_bounds") for r in ring.rows)
        return Batch(packed.unpack(rows), jnp.ones(batch, jnp.float32), flat[:, 0])

    def cut(ring: Ring, stream: int | jax.Array) -> Ring:
        return ring._replace(rows=_cut(packed, ring.rows, stream, ring.position[stream]))

    return Memory(init, add, lambda ring, key, prepare: (ring, sample), _keep, cut)


def _slots(capacity: int, lanes: int, unroll: int, window: int, streams: int) -> int:
    """Steps kept of each lane: whole unrolls. Raises ValueError if no window fits."""
    slots = max(capacity // (streams * lanes * unroll), 1) * unroll
    if slots < window:
        raise ValueError(
            f"a memory of {capacity} steps is too small for windows of {window} on {streams * lanes} lanes"
        )
    return slots


def _windows(
    key: jax.Array, batch: int, oldest: jax.Array, position: jax.Array, window: int, lanes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Stream, first step and lane, int32 [batch], of windows among the steps `oldest` to `position` of each stream."""
    starts = jnp.maximum(position - oldest - (window - 1), 0) * lanes  # windows each stream offers
    ends = jnp.cumsum(starts)
    bits = jax.random.bits(key, (batch,), jnp.uint32)
    pick = (bits % jnp.maximum(ends[-1], 1).astype(jnp.uint32)).astype(jnp.int32)
    streams = position.shape[0]
    stream = (pick[:, None] >= ends[None, :-1]).sum(-1, dtype=jnp.int32) if streams > 1 else jnp.zeros_like(pick)
    within = pick - (ends - starts)[stream] if streams > 1 else pick
    return stream, within // lanes + (oldest[stream] if streams > 1 else oldest[0]), within % lanes


def _cut(packed: Packing, rows: tuple, stream: int | jax.Array, position: jax.Array) -> tuple:
    """Rows [streams, slots, lanes, width] of transitions, the newest of a stream truncated unless they terminated."""
    at = (position - 1) % rows[0].shape[1]
    newest = packed.unpack(tuple(r[stream, at] for r in rows))
    newest = newest._replace(truncated=jnp.logical_not(newest.terminated))
    return tuple(
        r.at[stream, at].set(jnp.where(position > 0, new, r[stream, at]))
        for r, new in zip(rows, packed.pack(newest), strict=True)
    )


def _keep(memory: Tree, index: jax.Array, priority: jax.Array) -> Tree:
    return memory


class Frames(NamedTuple):
    """Steps whose observations are stacks of frames, and each frame once."""

    rows: tuple  # of all but the observations, [streams, slots, lanes, width] for each storage type
    first: jax.Array  # int32 [streams, slots, lanes]; of an episode's first step, the place of its first frame, else -1
    frames: jax.Array  # [streams, slots * lanes + places, size]; the newest of each `next_obs`, then first frames
    owner: jax.Array  # int32 [streams, places]; the step that began with that frame
    began: jax.Array  # int32 [streams]; episodes that ever began
    position: jax.Array  # int32 [streams]; steps ever written
    oldest: jax.Array  # int32 [streams]; the first step whose frames are all there


PLACES = 32  # steps for each first frame that is kept


def stacked(
    example: Transition, capacity: int, batch: int, *, stack: int, lanes: int, unroll: int, window: int = 1,
    streams: int = 1,
) -> Memory:  # fmt: skip
    """`uniform` for observations that are the newest `stack` frames of an episode, joined along the last axis.

    The same batches, bit for bit, from a ring that holds each frame once: `next_obs` has one more than `obs`. What is
    asked of the observations is what frame stacks are: the first of an episode is one frame repeated, the oldest come
    first, and a step that did not end leads from its `next_obs`. First frames have places of their own, one for every
    `PLACES` steps; where episodes are shorter on average, so many fewer steps are remembered.
    """
    steps = _slots(capacity, lanes, unroll, window, streams)
    slots = steps + -(-stack // unroll) * unroll  # the oldest steps look back on frames before them
    # and at the least as many as let a window stay where each step is an episode
    places = max(steps * lanes // PLACES, (window + stack + unroll) * lanes)
    shape = (*example.obs.shape[:-1], example.obs.shape[-1] // stack)  # of a frame
    size, packed = prod(shape), packing(example._replace(obs=(), next_obs=()))

    def init() -> Frames:
        rows = tuple(jnp.zeros((streams, slots, lanes, width), kind) for kind, width in packed.widths)
        zero = jnp.zeros(streams, jnp.int32)
        return Frames(
            rows, jnp.full((streams, slots, lanes), -1, jnp.int32),
            jnp.zeros((streams, slots * lanes + places, size), example.obs.dtype),
            jnp.zeros((streams, places), jnp.int32), zero, zero, zero,
        )  # fmt: skip

    def newest(obs: jax.Array) -> jax.Array:
        """The newest frames of observations [unroll, lanes, ...], each as a row."""
        return obs[..., -shape[-1] :].reshape(unroll * lanes, size)

    def add(ring: Frames, items: Transition, stream: int | jax.Array = 0) -> Frames:
        position, began = ring.position[stream], ring.began[stream]
        at = position % slots
        stream, zero = jnp.asarray(stream, at.dtype), jnp.zeros_like(at)
        before = packed.unpack(tuple(r[stream, (position - 1) % slots] for r in ring.rows))
        ended = jnp.concatenate([(before.terminated | before.truncated)[None], items.terminated | items.truncated])
        starts = (ended[:-1] | (position + jnp.arange(unroll, dtype=jnp.int32) == 0)[:, None]).reshape(-1)
        count = began + jnp.cumsum(starts, dtype=jnp.int32)
        place = (count - 1) % places
        nowhere = jnp.int32(slots * lanes + places)  # out of bounds: nothing is written there
        frames = jax.lax.dynamic_update_slice(ring.frames, newest(items.next_obs)[None], (stream, at * lanes, zero))
        frames = frames.at[stream, jnp.where(starts, slots * lanes + place, nowhere)].set(
            newest(items.obs), mode="drop"
        )
        time = jnp.repeat(position + jnp.arange(unroll, dtype=jnp.int32), lanes)
        owner = ring.owner.at[stream, jnp.where(starts, place, nowhere)].set(time, mode="drop")
        lost = ring.owner[stream, place[-1]] + stack  # the first step that does without the last frame overwritten
        overwrote = (count[-1] > began) & (count[-1] > places)
        rows = tuple(
            jax.lax.dynamic_update_slice(old, fresh[None], (stream, at, zero, zero))
            for old, fresh in zip(ring.rows, packed.pack(items._replace(obs=(), next_obs=())), strict=True)
        )
        first = jnp.where(starts, place, -1).reshape(1, unroll, lanes)
        return Frames(
            rows, jax.lax.dynamic_update_slice(ring.first, first, (stream, at, zero)), frames, owner,
            ring.began.at[stream].set(count[-1]), ring.position.at[stream].add(unroll),
            ring.oldest.at[stream].max(jnp.where(overwrote, lost, 0)),
        )  # fmt: skip

    def sample(ring: Frames, key: jax.Array, number: int | jax.Array) -> Batch:
        oldest = jnp.maximum(jnp.maximum(ring.position - steps, ring.oldest), 0)
        stream, start, lane = _windows(key, batch, oldest, ring.position, window, lanes)
        time = start[:, None] + jnp.arange(window, dtype=jnp.int32)[None]  # [batch, window]

        def flat(time: jax.Array) -> jax.Array:
            """Where a step [batch, ...] of the windows is, in a stream."""
            return time % slots * lanes + lane.reshape(-1, *[1] * (time.ndim - 1))

        def taken(x: jax.Array, index: jax.Array) -> jax.Array:
            """Rows of x [streams, rows, ...] at `index` [batch, ...] of each window's stream."""
            index = stream.reshape(-1, *[1] * (index.ndim - 1)) * x.shape[1] + index
            return x.reshape(-1, *x.shape[2:]).at[index].get(mode="promise_in_bounds")

        back = jnp.arange(stack, dtype=jnp.int32)[None, None]
        began = taken(ring.first.reshape(streams, -1), flat(time[..., None] - back)) >= 0  # [batch, window, stack]
        age = jnp.where(began.any(-1), jnp.argmax(began, -1).astype(jnp.int32), stack)  # steps since the episode began
        place = taken(ring.first.reshape(streams, -1), flat(time - jnp.minimum(age, stack - 1)))
        ago = jnp.arange(stack, -1, -1, dtype=jnp.int32)[None, None]  # the frames of obs and, one on, those of next_obs
        there = ago <= age[..., None]
        index = jnp.where(there, flat(time[..., None] - ago), slots * lanes + place[..., None])
        frames = taken(ring.frames, index).reshape(batch, window, stack + 1, *shape)

        def joined(frames: jax.Array) -> jax.Array:
            return jnp.moveaxis(frames, 2, -2).reshape(batch, window, *example.obs.shape)

        rows = tuple(taken(r.reshape(streams, slots * lanes, -1), flat(time)) for r in ring.rows)
        data = packed.unpack(rows)._replace(obs=joined(frames[:, :, :-1]), next_obs=joined(frames[:, :, 1:]))
        return Batch(data, jnp.ones(batch, jnp.float32), stream * slots * lanes + flat(time)[:, 0])

    def cut(ring: Frames, stream: int | jax.Array) -> Frames:
        return ring._replace(rows=_cut(packed, ring.rows, stream, ring.position[stream]))

    return Memory(init, add, lambda ring, key, prepare: (ring, sample), _keep, cut)


def replay(static: Any, example: Transition, *, stack: int = 1, **shape: int) -> Memory:
    """The memory that a Static with `buffer_size`, `batch_size` and `n_step` describes.

    `stack` is the number of frames that an observation joins; of pictures, each is kept once.
    """
    once = {"stack": stack} if stack > 1 and example.obs.ndim > 1 else {}
    made = stacked if once else uniform
    return made(example, static.buffer_size, static.batch_size, window=static.n_step, **once, **shape)


def in_turns(static: Any) -> Cadence:
    """The Cadence that a Static with `train_freq`, `gradient_steps` and `learning_starts` describes."""
    return Cadence(static.train_freq, static.gradient_steps, static.learning_starts)


class Rollouts(NamedTuple):
    """The last rollouts of every stream and lane."""

    rows: tuple  # an array [streams, slots, time, lanes, width] for each storage type
    position: jax.Array  # int32 [streams]; rollouts of each lane ever written
    newest: jax.Array  # int32, the stream that was written last
    priority: jax.Array  # float32 [streams, slots, lanes]; how likely each is replayed; 0 where there is none


def rollouts(
    example: Transition, *, lanes: int, unroll: int, streams: int = 1, epochs: int = 1, minibatches: int = 1,
    whole: bool = False, alone: bool = False, capacity: int = 0, beside: int = 0, passes: int = 0,
    priority: Callable[[Transition, Any], jax.Array] | None = None,
) -> Memory:  # fmt: skip
    """Rollouts of `unroll` steps, learned from in the iteration that brings them and, if asked for, replayed.

    The updates of an iteration are `epochs` passes over the new rollouts of all streams (of the newest stream only, if
    `alone`), each in `minibatches`; a sample is a single step, shuffled, or a `whole` rollout. Of the `capacity`
    rollouts kept, `beside` old ones are added to each new one (Espeholt et al. 2018, section 5.2.2, whose half of each
    batch is 1), or there are `passes` further passes, over as many old rollouts each as there are new ones (Liang et
    al. 2021). Which are replayed is drawn in proportion to `priority` of (rollout, extra), each [time, ...], as it was
    when they were last dealt; without it all are alike.
    """
    new = lanes * (1 if alone else streams)
    unit = 1 if whole else unroll
    slots = max(capacity // (streams * lanes), 1)
    if beside and passes:
        raise ValueError("replayed rollouts are learned from beside the new ones or in passes of their own, not both")
    if new * (1 + beside) * unit % minibatches:
        raise ValueError(
            f"{new * (1 + beside) * unit} samples cannot be dealt in {minibatches} equal minibatches; "
            "give a number that divides them"
        )
    packed = packing(example)
    replayed = new * (beside + passes)
    size = new * (1 + beside) * unit // minibatches

    def init() -> Rollouts:
        shape = (streams, slots, unroll, lanes)
        rows = tuple(jnp.zeros((*shape, width), kind) for kind, width in packed.widths)
        zero = jnp.zeros((), jnp.int32)
        return Rollouts(rows, jnp.zeros(streams, jnp.int32), zero, jnp.zeros((streams, slots, lanes)))

    def add(memory: Rollouts, items: Transition, stream: int | jax.Array = 0) -> Rollouts:
        stream = jnp.asarray(stream, jnp.int32)
        at = memory.position[stream] % slots
        zero = jnp.zeros_like(at)
        rows = tuple(
            jax.lax.dynamic_update_slice(old, fresh[None, None], (stream, at, zero, zero, zero))
            for old, fresh in zip(memory.rows, packed.pack(items), strict=True)
        )
        # a new one is as likely as the likeliest until it has been looked at (Schaul et al. 2016, algorithm 1)
        most = jnp.max(memory.priority)
        start = jnp.where(most > 0, most, 1.0)
        return Rollouts(
            rows, memory.position.at[stream].add(1), stream, memory.priority.at[stream, at].set(start)
        )  # fmt: skip

    def of_stream(memory: Rollouts, stream) -> tuple[tuple, jax.Array]:
        """The newest rollouts of a stream, rows [time, lanes, width], and their places in `priority`, flat [lanes]."""
        at = (memory.position[stream] - 1) % slots
        return tuple(r[stream, at] for r in memory.rows), (stream * slots + at) * lanes + jnp.arange(lanes)

    def old(memory: Rollouts, key) -> tuple[tuple, jax.Array]:
        """Rollouts drawn by priority, rows [time, replayed, width], and their places."""
        total = jnp.cumsum(memory.priority.reshape(-1))
        # evenly spread over the priorities within each group of `new` (Schaul et al. 2016, section 3.3)
        strata = jnp.arange(new, dtype=jnp.float32)[None] + jax.random.uniform(key, (replayed // new, new))
        share = strata.reshape(-1) / new
        place = jnp.searchsorted(total, share * total[-1], side="right")
        place = jnp.minimum(place, total.shape[0] - 1).astype(jnp.int32)
        slot, lane = place // lanes, place % lanes
        rows = (r.reshape(streams * slots, unroll, lanes, -1) for r in memory.rows)
        return tuple(jnp.moveaxis(r[slot, :, lane], 0, 1) for r in rows), place

    def deal(memory: Rollouts, key: jax.Array, prepare: Callable) -> tuple[Rollouts, Callable]:
        key_old, key_order = jax.random.split(key)
        dealt = [of_stream(memory, s) for s in ([memory.newest] if alone else range(streams))]
        if replayed:
            dealt.append(old(memory, key_old))
        rows = tuple(jnp.concatenate(r, 1) for r in zip(*(r for r, _ in dealt), strict=True))
        items = packed.unpack(rows)
        extra = jax.vmap(prepare, 1, 1)(items)
        if priority is not None:
            place = jnp.concatenate([p for _, p in dealt])
            found = jax.vmap(priority, 1)(items, extra)
            flat = memory.priority.reshape(-1).at[place].set(found)
            memory = memory._replace(priority=flat.reshape(memory.priority.shape))
        sets = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (items, extra))  # [rollouts, time, ...]
        if not whole:
            sets = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), sets)  # [samples, time of a sample, ...]
        both = packing(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), sets))
        cards, order = both.pack(sets), shuffled(key_order)

        def draw(memory: Rollouts, key: jax.Array, number: int | jax.Array) -> Batch:
            index = jax.lax.dynamic_slice_in_dim(order, jnp.asarray(number, jnp.int32) * size, size)
            data, extra = both.unpack(tuple(c.at[index].get(mode="promise_in_bounds") for c in cards))
            return Batch(data, jnp.ones(size, jnp.float32), index, extra)

        return memory, draw

    def shuffled(key: jax.Array) -> jax.Array:
        """Which sample each update takes, one update after the other, int32 [samples of all updates]."""
        first = new * (1 + beside) * unit  # samples of a pass over the new rollouts
        starts = [0] * epochs + [first + i * new * unit for i in range(passes)]
        if minibatches == 1:  # the order within a batch does not matter
            orders = jnp.broadcast_to(jnp.arange(first, dtype=jnp.int32), (len(starts), first))
        else:
            orders = jnp.argsort(jax.random.bits(key, (len(starts), first)), -1).astype(jnp.int32)
        return (orders + jnp.asarray(starts, jnp.int32)[:, None]).reshape(-1)

    return Memory(init, add, deal, lambda memory, index, priority: memory, lambda memory, stream: memory)


def in_epochs(static: Any, example: Transition, **shape: Any) -> Memory:
    """The memory that a Static with `n_epochs` and `num_minibatches` describes."""
    return rollouts(example, epochs=static.n_epochs, minibatches=static.num_minibatches, **shape)


def by_rollouts(static: Any, updates: int, waits: bool = True) -> Cadence:
    """The Cadence that a Static with `num_envs` and `n_steps` describes, with so many updates for each rollout."""
    return Cadence(static.num_envs * static.n_steps, updates, rollout=static.n_steps, waits=waits)
