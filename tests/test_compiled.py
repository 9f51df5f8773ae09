"""The compiled run collects with fresh random numbers, learns as often as planned, and counts its episodes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ACTIONS, HYPER, OBS, bits, small_dqn

from frugalrl import checkpoint, jobs, rng, training
from frugalrl.config import configure
from frugalrl.envs.autoreset import autoreset
from frugalrl.envs.make import EnvOptions
from frugalrl.errors import BadFile
from frugalrl.memory import Ring, packing, uniform
from frugalrl.runtime import compiled
from frugalrl.runtime.compiled import Carry, Plan, Run, Way, chunks, run, ways, widths
from frugalrl.types import Box, Discrete, Env, Transition

PLAN = Plan(num_envs=3, unroll=2, updates=4, warmup=5)
LENGTH, ITERATIONS = 4, 6  # of an episode; of training
EXAMPLE = Transition(
    obs=jnp.zeros(OBS.shape),
    action=jnp.int32(0),
    reward=jnp.float32(0),
    terminated=jnp.bool_(False),
    truncated=jnp.bool_(False),
    next_obs=jnp.zeros(OBS.shape),
    log_prob=jnp.float32(0),
    version=jnp.int32(0),
)


def counting(time_limit: int = 100, worth: float = 1.0) -> Env:
    """Every step is worth 1, an episode is four steps long, and an observation is the episode's number and the step."""

    def start(key: jax.Array) -> jax.Array:
        return jnp.stack([jax.random.uniform(key), jnp.float32(0)])

    def advance(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        state = state.at[1].add(1)
        return state, jnp.float32(worth), state[1] >= LENGTH

    return autoreset(start, advance, lambda s: jnp.concatenate([s, s]), Box((4,)), Discrete(ACTIONS), time_limit)


@pytest.fixture(scope="module")
def trained() -> tuple[Transition, Carry, dict]:
    """The transitions [time, envs, ...] of a run that explores all the time, its carry and its metrics."""
    return alive(counting(), EnvOptions())


def alive(env: Env, options: EnvOptions) -> tuple[Transition, Carry, dict]:
    memory = uniform(EXAMPLE, 500, 8, lanes=3, unroll=2)
    runs: Run = run(small_dqn(), env, memory, PLAN, options)

    @jax.jit
    def live(key):
        return runs.advance(runs.init(key, HYPER._replace(exploration_final_eps=1.0)), jnp.int32(ITERATIONS))

    carry, metrics = live(rng.key(0))
    return unpacked(carry.memory), carry, jax.device_get(metrics)


def unpacked(ring: Ring) -> Transition:
    steps = int(ring.position[0])
    return jax.tree.map(lambda x: np.asarray(x)[0, :steps], packing(EXAMPLE).unpack(ring.rows))


def test_no_two_iterations_draw_the_same_numbers(trained):
    """Of actions, environments and warm-up."""
    data, _, _ = trained
    actions = data.action.reshape(PLAN.warmup + ITERATIONS, -1).tolist()
    assert len(set(map(tuple, actions[: PLAN.warmup]))) > 3  # of 5, each six coins
    assert len(set(map(tuple, actions[PLAN.warmup :]))) > 4
    starts = data.obs[..., 0][data.obs[..., 1] == 0]
    assert len(set(starts.tolist())) == len(starts) > 3


def test_transitions_follow_one_another(trained):
    """The next observation of a step is the observation of the one after it, or the last of its episode."""
    data, _, _ = trained
    np.testing.assert_array_equal(data.next_obs[..., 1], data.obs[..., 1] + 1)
    np.testing.assert_array_equal(data.next_obs[..., 0], data.obs[..., 0])
    np.testing.assert_array_equal(data.terminated, data.next_obs[..., 1] == LENGTH)
    going_on = ~data.terminated[:-1]
    np.testing.assert_array_equal(data.obs[1:][going_on], data.next_obs[:-1][going_on])
    assert (data.obs[1:][~going_on][:, 1] == 0).all()


def test_the_versions_are_of_the_policy_that_acted(trained):
    data, carry, _ = trained
    expected = [0] * PLAN.warmup + [i * PLAN.updates for i in range(ITERATIONS)]
    np.testing.assert_array_equal(data.version[:, 0], np.repeat(expected, PLAN.unroll))
    assert carry.state.version == ITERATIONS * PLAN.updates
    np.testing.assert_allclose(data.log_prob, np.log(1 / ACTIONS), rtol=1e-6)


def test_episodes_are_counted(trained):
    data, carry, metrics = trained
    assert metrics["train_return"] == metrics["train_length"] == LENGTH
    steps = (PLAN.warmup + ITERATIONS) * PLAN.unroll
    np.testing.assert_array_equal(carry.episodes.length, steps % LENGTH)
    np.testing.assert_array_equal(carry.episodes.ret, steps % LENGTH)
    assert carry.episodes.finished == 0  # all were reported
    assert data.terminated.sum() == steps // LENGTH * PLAN.num_envs


def test_what_is_learned_is_what_the_options_say_and_returns_are_counted_before():
    """Episodes are cut off after three steps, each worth 2."""
    env, options = counting(time_limit=3, worth=2.0), EnvOptions(clip_reward=True, timeout_as_terminal=True)
    data, _, metrics = alive(env, options)
    assert set(np.unique(data.reward)) == {1.0}
    np.testing.assert_array_equal(data.terminated, data.next_obs[..., 1] == 3)
    assert data.terminated.any()
    assert not data.truncated.any()
    assert metrics["train_return"] == 6


@pytest.mark.parametrize("seeds", [1, 2, 3, 7, 8, 24, 100])
@pytest.mark.parametrize("cores", [1, 2, 16])
def test_every_way_covers_every_seed_once(seeds, cores):
    for way in ways(seeds, cores):
        assert 1 <= way.threads <= cores
        assert 1 <= way.width <= seeds
        covered = [i for part in chunks(seeds, way.width) for i in range(seeds)[part]]
        assert covered == list(range(seeds))
        assert cores == 1 or way.threads == min(cores, -(-seeds // way.width))  # no core is left idle
        assert widths(seeds, way) == {len(range(seeds)[part]) for part in chunks(seeds, way.width)}
    assert Way(1, min(seeds, cores)) in ways(seeds, cores)
    assert cores > 1 or Way(seeds, 1) in ways(seeds, cores)


@pytest.mark.parametrize(("seeds", "width"), [(3, 1), (5, 3), (7, 4), (9, 3), (13, 7), (16, 8), (22, 8), (31, 8)])
def test_there_is_a_way_in_chunks_also_where_they_do_not_divide_the_seeds(seeds, width):
    assert max(ways(seeds, 2)) == Way(width, 2)


def test_what_is_measured_is_in_memory_once_more_for_each_way():
    """Of 16 seeds on two cores: what they hold, two chunks of eight, and two seeds that are alone."""
    carry, copied = {"few": jnp.zeros(16), "many": jnp.zeros((16, 100), jnp.int32)}, []
    for way in ways(16, 2):
        parts = compiled.copied(carry, way)
        copied += jax.tree.leaves(parts)
        assert sum(map(compiled.seeds_of, parts)) == way.width * 2
        held = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(carry)}
        assert held.isdisjoint(x.unsafe_buffer_pointer() for x in jax.tree.leaves(parts))
    whole = sum(x.nbytes for x in jax.tree.leaves(carry))
    assert 1 + sum(x.nbytes for x in copied) / whole == compiled.copies(16, ways(16, 2)) == 2.125
    assert compiled.copies(16, [Way(16, 1)]) == 2  # nothing is measured
    assert compiled.copies(16, [Way(16, 1, 4)]) == 1.25  # begun on the first device, and spread from there


def test_the_way_is_measured_once_on_a_machine(tmp_path, monkeypatch):
    """Otherwise a busy moment could choose another, and with it another last bit."""
    monkeypatch.setattr(jobs, "cache_folder", lambda: str(tmp_path))
    config = configure("dqn", "CartPole-v1", seeds=4)
    options = ways(4, jobs.compiled.cores())
    assert jobs.remembered_way(config, 4) is None
    for way in options:
        jobs.remember_way(config, way, 4)
        assert jobs.remembered_way(config._replace(steps=7, seed=3), 4) == way
        assert jobs.remembered_way(config, 8) is None
        assert jobs.remembered_way(config._replace(hyper=config.hyper | {"hidden": (8,)}), 4) is None
    assert jobs.agreed_way(config, options[0], 4) == options[-1]  # another run was first
    for bad in ("", "[1]", '{"width": 3, "threads": 1}', '{"width": "4", "threads": 1}'):
        (file,) = (tmp_path / "ways").iterdir()
        file.write_text(bad)
        assert jobs.remembered_way(config, 4) is None


def test_batching_is_as_before_where_the_machine_allows_it(monkeypatch):
    """The width may change the last bit of a sum, and what is remembered beside the programs is not the run's."""
    said = []
    for width, cores, found in ((None, 2, [Way(2, 2), Way(1, 2)]), (2, 1, [Way(2, 2)]), (4, 2, [Way(4, 1)])):
        monkeypatch.setattr(jobs.compiled, "cores", lambda cores=cores: cores)
        assert jobs.as_before(width, 4, [Way(2, 2), Way(1, 2)], said.append) == found
    assert jobs.as_before(1, 4, [Way(4, 1)], said.append) == [Way(1, 2)]
    assert jobs.as_before(3, 4, [Way(4, 1)], said.append) == [Way(3, 2)]  # and one that is left
    assert said == []
    assert jobs.as_before(5, 4, [Way(4, 1)], said.append) == [Way(4, 1)]
    assert jobs.as_before(2, 4, [Way(4, 1, 4)], said.append) == [Way(4, 1, 4)]
    assert [line[:33] for line in said] == ["batching: 5 runs shared a program", "batching: 2 runs shared a program"]


@pytest.mark.long
def test_a_resumed_run_is_batched_as_it_was(tmp_path, monkeypatch):
    ways = [Way(2, 1)]
    monkeypatch.setattr(jobs, "remembered_way", lambda *what: ways[-1])
    how = {"seeds": 2, "steps": 600, "hyper": {"hidden": (8,), "batch_size": 8, "learning_starts": 100}}
    first = training.train("dqn", "CartPole-v1", out=tmp_path / "run", **how)
    ways.append(Way(1, 2))
    resumed = training.resume(tmp_path / "run", steps=800)
    assert resumed is not None
    assert resumed.receipt["batching"]["way"] == first.receipt["batching"]["way"] == "vmap over 2 seeds on 1 thread"


def test_a_checkpoint_of_before_the_totals_can_be_read(tmp_path):
    """It is of the end of a segment, where they begin anew."""
    totals = compiled.Totals(jnp.zeros(2, jnp.int32), {"loss": jnp.zeros(2)})
    carry = Carry(*(jnp.full((2, i), float(i)) for i in range(1, 8)), totals)
    checkpoint.save(tmp_path, 1, carry._replace(totals=()))
    read, shapes = partial(checkpoint.restore, tmp_path, 1), jax.eval_shape(lambda: carry)
    assert bits(jobs.restored(read, shapes)) == bits(carry)
    with pytest.raises(BadFile, match="is of another run"):
        jobs.restored(read, shapes._replace(key=shapes.obs))


def test_a_run_that_holds_much_says_so_beforehand():
    said = []
    for size in (1_000, 200_000_000):
        jobs.tell_memory(said.append, {"x": jax.ShapeDtypeStruct((size,), jnp.float32)})
    assert len(said) == 1
    assert said[0].startswith("memory: 800 MB for what the run holds, ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    program = (
        "import resource; import numpy as np; from frugalrl.xla import keep_memory; keep_memory()\n"
        "def fill(): return [np.ones(4 * 2**20, np.float32) for _ in range(5)]\n"
        "fill(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): fill()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", program], env=os.environ | own, check=True, capture_output=True
            ).stdout
        )
        for own in ({}, {"GLIBC_TUNABLES": ""})
    ]
    assert faults[0] < faults[1] / 10  # new pages of 4 KiB for 400 MiB, or next to none
