"""A replay that keeps each frame once deals the same batches as one that keeps whole stacks, bit for bit."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import rows
from small import bits

from frugalrl import catalog, cli, jobs, memory, training
from frugalrl.agents import dqn
from frugalrl.envs.make import options_for
from frugalrl.memory import by_priority, evenly, stacked, uniform
from frugalrl.policy import Card
from frugalrl.types import Memory, Transition


class Case(NamedTuple):
    stack: int = 4
    capacity: int = 96
    lanes: int = 2
    unroll: int = 4
    window: int = 1
    streams: int = 1
    frame: tuple[int, ...] = (3, 2, 1)
    dtype: str = "uint8"

    @property
    def steps(self) -> int:
        return self.capacity // (self.streams * self.lanes * self.unroll) * self.unroll


CASES = {
    "one lane, step by step": Case(capacity=40, lanes=1, unroll=1),
    "lanes": Case(),
    "windows": Case(window=3),
    "windows longer than stacks": Case(stack=2, window=5),
    "streams": Case(capacity=180, streams=3, window=2),
    "colours, stacks longer than unrolls": Case(stack=5, unroll=2, frame=(2, 2, 3)),
    "a window as long as the ring": Case(capacity=32, window=16),
    "floats": Case(stack=3, dtype="float32"),
}


class Life:
    """One stream's environments: each frame is random, and so is when episodes end, and how."""

    def __init__(self, case: Case, seed: int, ends: float):
        self.case, self.rng, self.ends, self.steps = case, np.random.default_rng(seed), ends, 0
        self.begin(np.full(case.lanes, True))

    def frames(self) -> np.ndarray:
        return self.rng.integers(0, 256, (self.case.lanes, *self.case.frame)).astype(self.case.dtype)

    def begin(self, which: np.ndarray) -> None:
        first = np.concatenate([self.frames()] * self.case.stack, -1)
        old = getattr(self, "obs", first)
        self.obs = np.where(which[:, None, None, None], first, old)

    def unroll(self) -> Transition:
        return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *[self.step() for _ in range(self.case.unroll)])

    def step(self) -> Transition:
        """`reward` counts, so that a step can be told from all others of its lane."""
        lanes, obs = self.case.lanes, self.obs
        next_obs = np.concatenate([obs[..., self.case.frame[-1] :], self.frames()], -1)
        terminated, truncated = self.rng.random((2, lanes)) < self.ends
        self.obs = next_obs
        self.begin(terminated | truncated)
        number = np.full(lanes, self.steps, np.float32)
        self.steps += 1
        lane = np.arange(lanes, dtype=np.int32)
        return Transition(obs, lane, number, terminated, truncated, next_obs, -number, lane + 7)


@cache
def made(case: Case, places: int, batch: int = 64, choice: Any = evenly) -> tuple[Memory, Memory]:
    """The plain memory and the one under test, compiled; with a first frame for so many steps."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(memory, "PLACES", places)
    obs = jnp.zeros((*case.frame[:-1], case.frame[-1] * case.stack), case.dtype)
    zero, flag = jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    how: dict[str, Any] = {"lanes": case.lanes, "unroll": case.unroll, "window": case.window, "streams": case.streams}
    how |= {"choice": choice}
    both = (
        uniform(example, case.capacity, batch, **how),
        stacked(example, case.capacity, batch, stack=case.stack, **how),
    )
    monkeypatch.undo()
    return tuple(compiled(m) for m in both)  # type: ignore[return-value]


def compiled(mem: Memory) -> Memory:
    sample = jax.jit(lambda ring, key: mem.deal(ring, key, lambda rollout: ())[1](ring, key, 0))
    jitted = {name: jax.jit(getattr(mem, name)) for name in ("add", "update", "cut")}
    return mem._replace(deal=lambda ring, key, prepare: (ring, lambda r, k, i: sample(r, k)), **jitted)


def sample(mem: Memory, ring: Any, key: int) -> Any:
    return mem.deal(ring, jax.random.key(key), lambda rollout: ())[1](ring, jax.random.key(key), 0)


@pytest.mark.parametrize("ends", [0.02, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_batches_are_those_of_whole_stacks(name, ends):
    """From the first unroll until the ring has gone round three times, with streams cut now and then."""
    case = CASES[name]
    mems = made(case, 1)  # a first frame for every step: nothing is given up
    rings = [mem.init() for mem in mems]
    lives = [Life(case, seed, ends) for seed in range(case.streams)]
    r = np.random.default_rng(1)
    for i in range(3 * case.steps // case.unroll * case.streams):
        stream = int(r.integers(case.streams))
        items = lives[stream].unroll()
        rings = [mem.add(ring, items, jnp.int32(stream)) for mem, ring in zip(mems, rings, strict=True)]
        if r.random() < 0.1:  # an actor was lost: its environments begin anew
            stream = int(r.integers(case.streams))
            rings = [mem.cut(ring, jnp.int32(stream)) for mem, ring in zip(mems, rings, strict=True)]
            lives[stream].begin(np.full(case.lanes, True))
        if i * case.unroll < case.window and i:
            continue
        if min(life.steps for life in lives) >= case.window:
            plain, ours = (sample(mem, ring, i) for mem, ring in zip(mems, rings, strict=True))
            assert bits(plain.data) == bits(ours.data), i
            assert bits(plain.weight) == bits(ours.weight)


@pytest.mark.parametrize("choice", [evenly, by_priority])
@pytest.mark.parametrize(("ends", "each"), [(0.2, 8), (1.0, 10**6)])
def test_where_episodes_are_short_fewer_steps_are_remembered_and_each_is_whole(ends, each, choice):
    """Against brute force: a step is dealt as it was, or not at all once frames of its time are gone; with priorities
    it may be dealt once more, with no weight.
    """
    case = Case(capacity=256, window=2)
    (_, mem), life = made(case, each, 512, choice), Life(case, 3, ends)
    ring, told, began, sizes = mem.init(), [], [], []
    places = max(case.steps * case.lanes // each, (case.window + case.stack + case.unroll) * case.lanes)
    over = np.full(case.lanes, True)
    for i in range(3 * case.steps // case.unroll):
        items = life.unroll()
        ring = mem.add(ring, items)
        told.append(jax.tree.map(np.asarray, items))
        for t in range(case.unroll):
            began += [i * case.unroll + t] * int(over.sum())
            over = told[-1].terminated[t] | told[-1].truncated[t]
        truth = Transition(*(np.concatenate(x) for x in zip(*told, strict=True)))
        batch = jax.tree.map(np.asarray, sample(mem, ring, i))
        gone = began[-places - 1] + case.stack if len(began) > places else 0
        oldest = max(life.steps - case.steps, gone, 0)
        lost = batch.weight == 0
        np.testing.assert_array_equal(lost, batch.data.reward[:, 0] < oldest)
        if lost.any():
            assert choice is by_priority
            ring, rid = mem.update(ring, batch.index, jnp.ones(512)), set(batch.index[lost].tolist())
            assert not rid & set(np.asarray(sample(mem, ring, -i - 1).index).tolist())
        data = jax.tree.map(lambda x, kept=~lost: x[kept], batch.data)
        when = data.reward.astype(int)
        assert (when[:, 1] == when[:, 0] + 1).all()
        for field, real in zip(data, truth, strict=True):
            np.testing.assert_array_equal(field, real[when, data.action])
        assert when.min() == oldest
        assert when.max() == life.steps - 1
        sizes.append(life.steps - oldest)
    assert max(sizes) < case.steps  # the places were what ran out


def test_members_of_a_population_do_not_see_each_other():
    case = CASES["streams"]
    (_, mem), lives = made(case, 1), [Life(case, seed, 0.2) for seed in range(3)]
    rings = [mem.add(mem.init(), life.unroll(), jnp.int32(1)) for life in lives]
    items, keys = [life.unroll() for life in lives], jax.random.split(jax.random.key(0), 3)

    def live(ring, items, key):
        ring = mem.cut(mem.add(ring, items, jnp.int32(1)), jnp.int32(1))
        return ring, mem.deal(ring, key, lambda rollout: ())[1](ring, key, 0)

    together = jax.jit(jax.vmap(live))(*(jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (rings, items)), keys)
    for i in range(3):
        assert bits(jax.tree.map(lambda x, i=i: x[i], together)) == bits(live(rings[i], items[i], keys[i]))


def bytes_of(static: dqn.Static, stack: int, **shape: int) -> int:
    """Bytes of a dqn's memory of Atari's observations, without making it."""
    obs, flag = jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8), jnp.bool_(False)
    zero, number = jnp.float32(0), jnp.int32(0)
    example = Transition(obs, number, zero, flag, flag, obs, zero, number)
    made = dqn.recipe.memory(static, example, stack=stack, **shape)
    return sum(prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(made.init)))


def test_a_million_frames_fit_in_8_gb():
    static = dqn.Static(buffer_size=1_000_000, batch_size=32)
    whole, once = (bytes_of(static, stack, lanes=4, unroll=16, streams=2) for stack in (1, 4))
    print(f"1,000,000 steps: {once / 1e9:.2f} GB, {once / 1e6:,.0f} bytes a step; as whole stacks {whole / 1e9:.2f} GB")
    assert once < 7.5e9 < 8 * 7.056e9 < whole
    assert once / 1e6 < 1.04 * 84 * 84 + 40


def test_vectors_and_single_frames_are_kept_whole():
    obs = jnp.zeros(8)
    example = Transition(obs, *(jnp.float32(0),) * 2, *(jnp.bool_(False),) * 2, obs, *(jnp.float32(0),) * 2)
    for stack, kind in ((2, memory.Ring), (1, memory.Ring)):
        made = dqn.recipe.memory(dqn.Static(), example, stack=stack, lanes=1, unroll=1, streams=1)
        assert isinstance(made.init(), kind)


@pytest.mark.parametrize(
    ("agent", "options", "kind"),
    [
        ("dqn", None, memory.Frames),
        ("dqn", {"frame_stack": 2}, memory.Frames),
        ("dqn", {"frame_stack": 1}, memory.Ring),
        ("ppo", None, memory.Rollouts),
    ],
)
def test_a_run_knows_of_how_many_frames_its_observations_are(agent, options, kind):
    obs, actions = catalog.spaces("ALE/Pong-v5", options_for("ALE/Pong-v5", options))
    recipe = catalog.recipe(agent)
    card = Card(agent, "ALE/Pong-v5", obs, actions, (), "", {}, options)
    static, shape = recipe.static, {"lanes": 4, "unroll": 16, "streams": 2}
    made = jax.eval_shape(jobs.memory_of(recipe, static, card, recipe.cadence(static), **shape).init)
    assert isinstance(made, kind)
    if isinstance(made, memory.Frames):
        assert made.frames.shape[-1] == 84 * 84


@pytest.mark.long
def test_dqn_trains_on_pixels_and_resumes(tmp_path, monkeypatch):
    for name in ("EVAL_EPISODES", "FINAL_EPISODES"):  # an episode takes seconds
        monkeypatch.setattr(training, name, 1)
    words = [
        "train",
        "dqn",
        "ALE/Pong-v5",
        "--steps",
        "3000",
        "--evaluations",
        "1",
        "--quiet",
        "--out",
        str(tmp_path / "a"),
        "--hyper",
    ]
    assert cli.main([*words, "learning_starts=500", "buffer_size=2000", "batch_size=8"]) == 0
    assert cli.main(["resume", str(tmp_path / "a"), "--steps", "4000", "--quiet"]) == 0
    assert rows(tmp_path / "a")[-1]["step"] == 4000
    assert -21 <= rows(tmp_path / "a")[-1]["episode_return"] <= 21
