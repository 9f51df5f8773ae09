"""Where transitions wait to be learned from: a ring of steps, sampled as windows of consecutive steps, evenly or by
priority, and rollouts, dealt out to the updates of one iteration.

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
    chances: Any  # of a Choice


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


class Shape(NamedTuple):
    """Where the windows of a ring are. A window's place is that of its first step, (stream * slots + slot) * lanes +
    lane, int32."""

    slots: int  # of each lane
    steps: int  # of each lane that are remembered, slots or fewer
    lanes: int
    streams: int
    unroll: int
    window: int

    @property
    def places(self) -> int:
        return self.streams * self.slots * self.lanes

    def place(self, stream: jax.Array, time: jax.Array, lane: jax.Array) -> jax.Array:
        return (stream * self.slots + time % self.slots) * self.lanes + lane

    def window_at(self, place: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(stream, slot, lane) of a place."""
        row = place // self.lanes
        return row // self.slots, row % self.slots, place % self.lanes


class Choice(NamedTuple):
    """How windows are chosen from a ring of some Shape."""

    init: Callable[[], Any]
    add: Callable[[Any, Any, Any], Any]  # (chances, stream, steps ever written before) -> chances: of a new unroll
    # (chances, key, oldest [streams], position [streams]) -> stream, first step modulo slots, lane, chance: [batch]
    pick: Callable[..., tuple]
    update: Callable[[Any, Any, Any], Any]  # (chances, place, priority) -> chances


def evenly(shape: Shape, batch: int) -> Choice:
    """Each window is as likely as any other, drawn with replacement.

    It takes a 32-bit random word modulo the number of windows: its bias is below windows / 2**32.
    """

    def pick(chances, key, oldest, position):
        return *_windows(key, batch, oldest, position, shape.window, shape.lanes), 1.0

    return Choice(lambda: (), lambda chances, *_: chances, pick, _keep)


class Chances(NamedTuple):
    """A sum tree: the priority of each place, and above them, level by level, sums of `BRANCH` entries."""

    levels: tuple  # float32; the lowest first; 0 where no window starts
    most: jax.Array  # float32, the greatest priority ever given


BRANCH = 8  # of 8 to 256 the fastest on a CPU with 50,000 places and batches of 128: 45 us an update, a plain sum 180


def by_priority(shape: Shape, batch: int) -> Choice:
    """Windows in proportion to their priorities (Schaul et al. 2016, arXiv 1511.05952, algorithm 1).

    Draws are stratified: each falls into its own share of the sum, 1 / batch. A window's priority is the greatest that
    was ever given, 1 at first, until `update` brings its own. Every level is summed anew from the one below it, so
    that no error builds up.
    """
    sizes = [shape.places + -shape.places % BRANCH]
    while sizes[-1] > BRANCH:
        above = sizes[-1] // BRANCH
        sizes.append(above + (-above % BRANCH if above > BRANCH else 0))

    def init() -> Chances:
        return Chances(tuple(jnp.zeros(size) for size in sizes), jnp.float32(1))

    def put(chances: Chances, place: jax.Array, priority: jax.Array) -> Chances:
        levels = [chances.levels[0].at[place].set(priority)]
        for above in chances.levels[1:]:
            place = place // BRANCH
            levels.append(above.at[place].set(levels[-1].reshape(-1, BRANCH)[place].sum(-1)))
        return chances._replace(levels=tuple(levels))

    def add(chances: Chances, stream, position) -> Chances:
        """Windows end with the new steps, and those that began with steps now forgotten are gone."""
        step = jnp.arange(shape.unroll, dtype=jnp.int32)[:, None]
        lane = jnp.arange(shape.lanes, dtype=jnp.int32)[None]
        stream = jnp.asarray(stream, jnp.int32)

        def begins(first) -> jax.Array:
            return shape.place(stream, first + step, lane).reshape(-1)

        forgotten, complete = position - shape.steps, position - (shape.window - 1)
        chances = put(chances, begins(forgotten), jnp.zeros(shape.unroll * shape.lanes))
        oldest = jnp.maximum(position + shape.unroll - shape.steps, 0)
        there = jnp.repeat(complete + step[:, 0] >= oldest, shape.lanes)
        return put(chances, begins(complete), jnp.where(there, chances.most, 0.0))

    def pick(chances: Chances, key, oldest, position):
        key_share, key_within = jax.random.split(key)
        share = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key_share, (batch,))) / batch
        found = jnp.zeros(batch, jnp.int32)
        for level in reversed(chances.levels):
            if level is chances.levels[0]:  # of the share too few digits are left to tell single places
                share = jax.random.uniform(key_within, (batch,))
            sums = jnp.cumsum(level.reshape(-1, min(BRANCH, level.shape[0]))[found], -1)
            # rounding must not lead past the last entry that is not zero
            passed = jnp.minimum(share, 1 - 1e-6) * sums[:, -1]
            entry = jnp.sum(sums <= passed[:, None], -1, dtype=jnp.int32)
            before = jnp.where(entry > 0, _at(sums, jnp.maximum(entry - 1, 0)), 0.0)
            share = (passed - before) / (_at(sums, entry) - before)
            found = found * BRANCH + entry
        return *shape.window_at(found), chances.levels[0][found]

    def update(chances: Chances, place, priority) -> Chances:
        before = chances.levels[0][place]  # 0 where there is no window: in an empty memory
        chances = put(chances, place, jnp.where(before > 0, priority, 0.0))
        return chances._replace(most=jnp.maximum(chances.most, jnp.max(priority)))

    return Choice(init, add, pick, update)


def _at(rows: jax.Array, index: jax.Array) -> jax.Array:
    """The entry of each row [batch, n] at `index` [batch]."""
    return jnp.take_along_axis(rows, index[:, None], -1, mode="clip")[:, 0]


def uniform(
    example: Transition, capacity: int, batch: int, *, lanes: int, unroll: int, window: int = 1, streams: int = 1,
    choice: Callable[[Shape, int], Choice] = evenly,
) -> Memory:  # fmt: skip
    """A ring, sampled uniformly with replacement unless another `choice` is made.

    `capacity` is in steps of all lanes and streams, rounded down to whole unrolls; `unroll` is the number of steps each
    `add` brings, `window` the number of consecutive steps of one lane in a sample (n-step returns). Batch.data is
    [batch, window, ...] and Batch.index the row each window starts at. A window may cross the end of an episode (the
    loss reads the flags) but never the place where the newest step meets the oldest.
    """
    slots = _slots(capacity, lanes, unroll, window, streams)
    packed = packing(example)
    chosen = choice(Shape(slots, slots, lanes, streams, unroll, window), batch)

    def init() -> Ring:
        rows = tuple(jnp.zeros((streams, slots, lanes, w), kind) for kind, w in packed.widths)
        return Ring(rows, jnp.zeros(streams, jnp.int32), chosen.init())

    def add(ring: Ring, items: Transition, stream: int | jax.Array = 0) -> Ring:
        at = ring.position[stream] % slots
        zero = jnp.zeros_like(at)
        start = (jnp.asarray(stream, at.dtype), at, zero, zero)
        rows = tuple(
            jax.lax.dynamic_update_slice(old, new[None], start)
            for old, new in zip(ring.rows, packed.pack(items), strict=True)
        )
        chances = chosen.add(ring.chances, stream, ring.position[stream])
        return Ring(rows, ring.position.at[stream].add(unroll), chances)

    def sample(ring: Ring, key: jax.Array, number: int | jax.Array) -> Batch:
        oldest = jnp.maximum(ring.position - slots, 0)
        stream, first, lane, chance = chosen.pick(ring.chances, key, oldest, ring.position)
        slot = (first[:, None] + jnp.arange(window, dtype=jnp.int32)[None]) % slots
        flat = (stream[:, None] * slots + slot) * lanes + lane[:, None]
        rows = tuple(r.reshape(-1, r.shape[-1]).at[flat].get(mode="promise_in_bounds") for r in ring.rows)
        return Batch(packed.unpack(rows), jnp.ones(batch, jnp.float32), flat[:, 0], chance=chance)

    def update(ring: Ring, place: jax.Array, priority: jax.Array) -> Ring:
        return ring._replace(chances=chosen.update(ring.chances, place, priority))

    def cut(ring: Ring, stream: int | jax.Array) -> Ring:
        return ring._replace(rows=_cut(packed, ring.rows, stream, ring.position[stream]))

    return Memory(init, add, lambda ring, key, prepare: (ring, sample), update, cut)


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
    chances: Any  # of a Choice


PLACES = 32  # steps for each first frame that is kept


def stacked(
    example: Transition, capacity: int, batch: int, *, stack: int, lanes: int, unroll: int, window: int = 1,
    streams: int = 1, choice: Callable[[Shape, int], Choice] = evenly,
) -> Memory:  # fmt: skip
    """`uniform` for observations that are the newest `stack` frames of an episode, joined along the last axis.

    The same batches, bit for bit, from a ring that holds each frame once: `next_obs` has one more than `obs`. What is
    asked of the observations is what frame stacks are: the first of an episode is one frame repeated, the oldest come
    first, and a step that did not end leads from its `next_obs`. First frames have places of their own, one for every
    `PLACES` steps; where episodes are shorter on average, so many fewer steps are remembered. A `choice` that still
    gives one of the others gives it the weight 0, and its priority becomes 0.
    """
    steps = _slots(capacity, lanes, unroll, window, streams)
    slots = steps + -(-stack // unroll) * unroll  # the oldest steps look back on frames before them
    # and at the least as many as let a window stay where each step is an episode
    places = max(steps * lanes // PLACES, (window + stack + unroll) * lanes)
    shape = (*example.obs.shape[:-1], example.obs.shape[-1] // stack)  # of a frame
    size, packed = prod(shape), packing(example._replace(obs=(), next_obs=()))
    windows = Shape(slots, steps, lanes, streams, unroll, window)
    chosen = choice(windows, batch)

    def init() -> Frames:
        rows = tuple(jnp.zeros((streams, slots, lanes, width), kind) for kind, width in packed.widths)
        zero = jnp.zeros(streams, jnp.int32)
        return Frames(
            rows, jnp.full((streams, slots, lanes), -1, jnp.int32),
            jnp.zeros((streams, slots * lanes + places, size), example.obs.dtype),
            jnp.zeros((streams, places), jnp.int32), zero, zero, zero, chosen.init(),
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
            chosen.add(ring.chances, stream, position),
        )  # fmt: skip

    def whole(ring: Frames, stream: jax.Array, time: jax.Array) -> jax.Array:
        """Whether the frames of the steps `time`, modulo slots, are all there."""
        last = ring.position[stream] - 1
        return last - (last - time) % slots >= ring.oldest[stream]

    def sample(ring: Frames, key: jax.Array, number: int | jax.Array) -> Batch:
        oldest = jnp.maximum(jnp.maximum(ring.position - steps, ring.oldest), 0)
        stream, start, lane, chance = chosen.pick(ring.chances, key, oldest, ring.position)
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
        weight = whole(ring, stream, start).astype(jnp.float32)
        return Batch(data, weight, stream * slots * lanes + flat(time)[:, 0], chance=chance)

    def update(ring: Frames, place: jax.Array, priority: jax.Array) -> Frames:
        stream, slot, _ = windows.window_at(place)
        priority = jnp.where(whole(ring, stream, slot), priority, 0.0)
        return ring._replace(chances=chosen.update(ring.chances, place, priority))

    def cut(ring: Frames, stream: int | jax.Array) -> Frames:
        return ring._replace(rows=_cut(packed, ring.rows, stream, ring.position[stream]))

    return Memory(init, add, lambda ring, key, prepare: (ring, sample), update, cut)


def replay(static: Any, example: Transition, *, stack: int = 1, **shape: int) -> Memory:
    """The memory that a Static with `buffer_size`, `batch_size`, `n_step` and perhaps `prioritized` describes.

    `stack` is the number of frames that an observation joins; of pictures, each is kept once.
    """
    once = {"stack": stack} if stack > 1 and example.obs.ndim > 1 else {}
    made = stacked if once else uniform
    choice = by_priority if getattr(static, "prioritized", False) else evenly
    return made(example, static.buffer_size, static.batch_size, window=static.n_step, choice=choice, **once, **shape)


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
