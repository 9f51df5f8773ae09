"""Memory gives back what it was given, bit for bit, and only windows that one environment lived through in a row."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small import bits

from frugalrl.memory import BRANCH, by_priority, evenly, packing, uniform
from frugalrl.types import Batch, Memory, Transition

UNLIKELY = 1e-3  # seeds are fixed, so a test either passes for ever or fails for ever
EXAMPLE = Transition(
    obs=jnp.zeros(2, jnp.float32),
    action=jnp.int32(0),
    reward=jnp.float32(0),
    terminated=jnp.bool_(False),
    truncated=jnp.bool_(False),
    next_obs=jnp.zeros(2, jnp.float32),
    log_prob=jnp.float32(0),
    version=jnp.int32(0),
)


class Case(NamedTuple):
    capacity: int
    lanes: int
    unroll: int
    window: int
    streams: int

    @property
    def slots(self) -> int:
        return self.capacity // (self.streams * self.lanes * self.unroll) * self.unroll


CASES = {
    "one of each": Case(10, 1, 1, 1, 1),
    "lanes": Case(36, 3, 2, 1, 1),
    "windows": Case(36, 3, 2, 5, 1),
    "streams": Case(60, 2, 3, 4, 3),
    "windows as long as the ring": Case(24, 2, 4, 12, 1),
    "capacity that is no whole number of unrolls": Case(47, 2, 3, 3, 1),
}


@cache
def memory(case: Case, batch: int = 512, choice: Any = evenly) -> Memory:
    """The memory of a case, its functions compiled once for all tests."""
    capacity, *shape = case
    how = dict(zip(("lanes", "unroll", "window", "streams"), shape, strict=True))
    mem = uniform(EXAMPLE, capacity, batch, **how, choice=choice)
    sample = jax.jit(lambda ring, key, i: mem.deal(ring, key, lambda rollout: ())[1](ring, key, i))
    compiled = {name: jax.jit(getattr(mem, name)) for name in ("add", "update", "cut")}
    return mem._replace(deal=lambda ring, key, prepare: (ring, sample), **compiled)


def sample(mem: Memory, ring: Any, key: jax.Array) -> Batch:
    return mem.deal(ring, key, lambda rollout: ())[1](ring, key, 0)


def steps(case: Case, stream: int, first: int) -> Transition:
    """An unroll whose `reward` says when, `action` which lane and `version` which stream."""
    lead = (case.unroll, case.lanes)
    when, lane = np.indices(lead)
    number = jnp.asarray(first + when, jnp.float32)
    obs = jnp.stack([number, jnp.asarray(lane, jnp.float32)], -1)
    return EXAMPLE._replace(
        obs=obs,
        action=jnp.asarray(lane, jnp.int32),
        reward=number,
        terminated=jnp.asarray((first + when + lane) % 3 == 0),
        truncated=jnp.asarray((first + when + lane) % 4 == 0),
        next_obs=obs + 1,
        log_prob=-number,
        version=jnp.full(lead, stream, jnp.int32),
    )


def fill(case: Case, unrolls: tuple[int, ...], mem=None):
    """A ring to which stream i was given unrolls[i] unrolls, in turns."""
    mem = mem or memory(case)
    ring = mem.init()
    for i in range(max(unrolls)):
        for stream, count in enumerate(unrolls):
            if i < count:
                ring = mem.add(ring, steps(case, stream, i * case.unroll), jnp.int32(stream))
    return mem, ring


def windows(case: Case, unrolls: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(stream, lane, first step) of every window of steps that a ring of `slots` still holds: the reference."""
    held = []
    for stream, count in enumerate(unrolls):
        newest = count * case.unroll
        oldest = max(newest - case.slots, 0)
        firsts = range(oldest, newest - case.window + 1)
        held += [(stream, lane, first) for first in firsts for lane in range(case.lanes)]
    return held


def sampled(batch: Batch) -> list[tuple[int, int, int]]:
    first = jax.tree.map(lambda x: np.asarray(x)[:, 0], batch.data)
    return list(zip(first.version.tolist(), first.action.tolist(), first.reward.astype(int).tolist(), strict=True))


FILLS = [(name, fill) for name, case in CASES.items() for fill in (
    [(1, 2, 0), (9, 2, 4), (0, 0, 7), (5, 4, 11)] if case.streams > 1 else [(4,), (7,), (30,)]
)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "unrolls", "choice"),
    [(*fill, evenly) for fill in FILLS] + [(*fill, by_priority) for fill in dict(FILLS).items()],  # the last of each
)
def test_samples_are_the_windows_that_are_held(name, unrolls, choice):
    """Against brute force: no window crosses the write head, none is missing, none was overwritten."""
    case = CASES[name]
    mem, ring = fill(case, unrolls, memory(case, choice=choice))
    expected, seen = windows(case, unrolls), set()
    for i in range(4):
        batch = sample(mem, ring, jax.random.key(i))
        data = jax.tree.map(np.asarray, batch.data)
        assert data.reward.shape == (512, case.window)
        in_a_row = data.reward[:, :1] + np.arange(case.window)
        np.testing.assert_array_equal(data.reward, in_a_row)
        for field in (data.action, data.version):
            np.testing.assert_array_equal(field, np.broadcast_to(field[:, :1], field.shape))
        # every other field of a step came along
        np.testing.assert_array_equal(data.obs, np.stack([data.reward, data.action.astype(np.float32)], -1))
        np.testing.assert_array_equal(data.next_obs, data.obs + 1)
        np.testing.assert_array_equal(data.log_prob, -data.reward)
        np.testing.assert_array_equal(data.terminated, (data.reward + data.action) % 3 == 0)
        np.testing.assert_array_equal(data.truncated, (data.reward + data.action) % 4 == 0)
        np.testing.assert_array_equal(batch.weight, 1)
        seen |= set(sampled(batch))
    assert seen == set(expected)


@pytest.mark.parametrize(("name", "unrolls"), [("windows", (30,)), ("streams", (9, 2, 4))])
def test_sampling_is_uniform(name, unrolls):
    case = CASES[name]
    mem, ring = fill(case, unrolls, memory(case, batch=40_000))
    expected = windows(case, unrolls)
    place = {window: i for i, window in enumerate(expected)}
    drawn = sampled(sample(mem, ring, jax.random.key(5)))
    counts = np.bincount([place[window] for window in drawn], minlength=len(expected))
    assert stats.chisquare(counts).pvalue > UNLIKELY


def test_index_names_the_row_a_window_starts_at():
    case = CASES["streams"]
    mem, ring = fill(case, (9, 2, 4))
    batch = sample(mem, ring, jax.random.key(0))
    rows = ring.rows[0].reshape(-1, ring.rows[0].shape[-1])[batch.index]
    (got,) = packing(EXAMPLE).pack(jax.tree.map(lambda x: x[:, 0], batch.data))
    np.testing.assert_array_equal(rows, got)


def test_an_empty_update_leaves_the_ring():
    mem, ring = fill(CASES["lanes"], (4,))
    assert bits(mem.update(ring, jnp.arange(3), jnp.ones(3))) == bits(ring)


def index_of(case: Case, stream: int, lane: int, first: int) -> int:
    return (stream * case.slots + first % case.slots) * case.lanes + lane


def prioritised(name: str, unrolls: tuple[int, ...], seed: int = 0):
    """A memory whose windows were all given a priority: (memory, ring, windows, priorities)."""
    case = CASES[name]
    mem, ring = fill(case, unrolls, memory(case, choice=by_priority))
    held = windows(case, unrolls)
    priority = np.random.default_rng(seed).gamma(0.5, size=len(held)).astype(np.float32) + 0.01
    ring = mem.update(ring, jnp.array([index_of(case, *w) for w in held]), jnp.asarray(priority))
    return mem, ring, held, priority


@pytest.mark.parametrize(("name", "unrolls"), [("windows", (30,)), ("streams", (9, 2, 4)), ("lanes", (4,))])
def test_windows_are_drawn_in_proportion_to_their_priorities(name, unrolls):
    mem, ring, held, priority = prioritised(name, unrolls)
    place, share = {window: i for i, window in enumerate(held)}, priority.astype(np.float64) / priority.sum(dtype=float)
    counts = np.zeros(len(held))
    for i in range(40):
        batch = sample(mem, ring, jax.random.key(i))
        drawn = [place[window] for window in sampled(batch)]
        np.testing.assert_array_equal(batch.chance, priority[drawn])
        one = np.bincount(drawn, minlength=len(held))
        counts += one
        # a stretch of places gets a draw for each of its strata, one more or less at its ends; within a branch of the
        # lowest level draws are free. In this memory windows lie in their order, from the first place on.
        if name == "lanes":
            for first in range(0, len(held), BRANCH):
                part = slice(first, first + BRANCH)
                assert abs(one[part].sum() - 512 * share[part].sum()) < 2
    assert stats.chisquare(counts, share * counts.sum()).pvalue > UNLIKELY
    assert stats.chisquare(counts).pvalue < 1e-9


def test_what_is_new_has_the_greatest_priority_that_ever_was():
    case = CASES["windows"]
    mem, ring, held, priority = prioritised("windows", (9,))
    most = max(priority.max(), 1.0)
    for i in (9, 10):
        ring = mem.add(ring, steps(case, 0, i * case.unroll), jnp.int32(0))
        ring = mem.update(ring, jnp.array([index_of(case, *held[-1])]), jnp.float32([0.02]))
    leaves = np.asarray(ring.chances.levels[0])
    newest = 11 * case.unroll
    fresh = [(0, lane, first) for first in range(held[-1][2] + 1, newest - case.window + 1) for lane in range(3)]
    assert len(fresh) == 2 * case.unroll * case.lanes
    assert all(leaves[index_of(case, *w)] == most for w in fresh)


@pytest.mark.parametrize(("name", "unrolls"), [("windows", (30,)), ("streams", (9, 2, 4))])
def test_every_level_is_the_sums_of_the_one_below(name, unrolls):
    mem, ring, held, _ = prioritised(name, unrolls)
    for i in range(10):
        batch = sample(mem, ring, jax.random.key(i))
        ring = mem.update(ring, batch.index, jnp.float32(np.random.default_rng(i).random(512)) + 0.1)
    levels = jax.device_get(ring.chances.levels)
    assert (levels[0] > 0).sum() == len(held)  # and not one more
    for below, above in pairwise(levels):
        sums = below.reshape(-1, BRANCH).sum(-1)
        np.testing.assert_allclose(above[: len(sums)], sums, rtol=1e-6)
        assert (above[len(sums) :] == 0).all()
    assert len(levels) > 1
    assert levels[-1].shape[0] <= BRANCH


def test_an_empty_memory_has_no_chances_to_give():
    mem = memory(CASES["windows"], choice=by_priority)
    ring = mem.init()
    batch = sample(mem, ring, jax.random.key(0))
    assert (np.asarray(batch.chance) == 0).all()
    assert bits(mem.update(ring, batch.index, jnp.ones(512)).chances.levels) == bits(ring.chances.levels)


ODD = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3.4e38], np.float32)


@pytest.mark.parametrize("obs", ["uint8", "bool", "float32", "int32"])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_packing_keeps_every_bit(obs, lead):
    r = np.random.default_rng(0)

    def words(shape, dtype):
        if dtype == "bool":
            return r.random(shape) < 0.5
        if dtype == "float32":
            return r.choice(ODD, shape)
        info = np.iinfo(dtype)
        return r.integers(info.min, info.max, shape, dtype, endpoint=True)

    def transition(lead):
        flag, number = words(lead, "bool"), words(lead, "float32")
        seen = words((*lead, 3, 2), obs)
        return Transition(
            seen, words(lead, "int32"), number, flag, ~flag, seen[..., ::-1], number, words(lead, "int32")
        )

    example = jax.tree.map(lambda x: jnp.zeros_like(jnp.asarray(x)), transition(()))
    packed, items = packing(example), jax.tree.map(np.asarray, transition(lead))
    rows = jax.jit(packed.pack)(items)
    assert [(r.dtype, r.shape) for r in rows] == [(kind, (*lead, width)) for kind, width in packed.widths]
    assert bits(jax.jit(packed.unpack)(rows)) == bits(items)


def test_pixels_are_stored_as_bytes():
    obs = jnp.zeros((10, 10, 4), jnp.uint8)
    widths = dict(packing(EXAMPLE._replace(obs=obs, next_obs=obs)).widths)
    assert widths == {jnp.uint32: 4, jnp.uint8: 2 * 400 + 2}
    assert dict(packing(EXAMPLE).widths) == {jnp.uint32: 2 * 2 + 4 + 2}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16"])
def test_other_sizes_are_refused_by_name(dtype):
    with pytest.raises(TypeError, match=f"got {dtype}"):
        packing(EXAMPLE._replace(obs=jnp.zeros(2, dtype)))


def test_a_memory_too_small_for_its_windows_is_refused():
    with pytest.raises(ValueError, match="10 steps is too small for windows of 6 on 2 lanes"):
        uniform(EXAMPLE, 10, 8, lanes=2, unroll=1, window=6)
    uniform(EXAMPLE, 12, 8, lanes=2, unroll=1, window=6)


def test_capacity_counts_the_steps_of_all_lanes_and_streams():
    for case in CASES.values():
        (rows,) = memory(case).init().rows
        assert rows.shape[:3] == (case.streams, case.slots, case.lanes)
        assert case.slots * case.lanes * case.streams <= case.capacity


@pytest.mark.parametrize("unrolls", [(1, 2, 0), (9, 2, 4)])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_cut_truncates_the_newest_steps_of_one_stream(stream, unrolls):
    case = CASES["streams"]
    mem, before = fill(case, unrolls)
    after = mem.cut(before, jnp.int32(stream))
    np.testing.assert_array_equal(after.position, before.position)
    unpack = packing(EXAMPLE).unpack
    expected = jax.tree.map(np.array, unpack(before.rows))
    if unrolls[stream]:
        newest = (unrolls[stream] * case.unroll - 1) % case.slots
        ended = expected.terminated[stream, newest]
        assert ended.any() != ended.all() or case.lanes == 1
        expected.truncated[stream, newest] = ~ended
    assert bits(unpack(after.rows)) == bits(expected)


def test_members_of_a_population_do_not_see_each_other():
    """add, sample and cut, compiled and mapped over three rings of different ages, against one after the other."""
    case = CASES["streams"]
    mem, fills = memory(case, batch=64), [(1, 2, 0), (9, 2, 4), (30, 0, 7)]
    rings = [fill(case, f, mem)[1] for f in fills]
    items = [steps(case, 1, 100 * i) for i in range(3)]
    keys = jax.random.split(jax.random.key(0), 3)

    def live(ring, items, key):
        ring = mem.add(ring, items, jnp.int32(1))
        return mem.cut(ring, jnp.int32(0)), sample(mem, ring, key)

    together = jax.jit(jax.vmap(live))(*(jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (rings, items)), keys)
    for i in range(3):
        alone = jax.jit(live)(rings[i], items[i], keys[i])
        assert bits(jax.tree.map(lambda x, i=i: x[i], together)) == bits(alone)
