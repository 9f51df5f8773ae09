"""Brax's environments: what they do is what Brax does, as a twin and as a gymnasium.Env.

Nearly all is tested on the one that compiles quickest.
"""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

import frugalrl
from frugalrl import catalog, cli, evaluate, rng
from frugalrl.envs import brax, pendulum
from frugalrl.envs.autoreset import autoreset
from frugalrl.envs.make import EnvOptions, make
from frugalrl.envs.twins import twin
from frugalrl.errors import UsageError
from frugalrl.types import Box

ENV = "brax/inverted_pendulum-spring"


@pytest.fixture(scope="module")
def brax_itself():
    """Brax's own (reset, step), compiled."""
    with brax._brax_envs() as envs, jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        env = envs.get_environment("inverted_pendulum", backend="spring")
        reset = jax.jit(env.reset).lower(rng.key(0))
        return reset.compile(), jax.jit(env.step).lower(reset.out_info, jnp.zeros(1)).compile()


def played(env: gymnasium.Env):
    """(state of the twin, key of what is to come) of an environment that is being played."""
    return env.unwrapped._state  # type: ignore[attr-defined]


# the same as Brax


@pytest.mark.long
def test_an_episode_is_braxs_own_and_the_next_begins_with_the_steps_key(brax_itself):
    (reset, step), env = brax_itself, make(ENV)
    obs, _ = env.reset(seed=3)
    drawn = int(np.random.default_rng(np.random.SeedSequence(3)).integers(2**31))
    begin, later = jax.random.split(rng.key(drawn))
    state = reset(begin)
    np.testing.assert_allclose(obs, state.obs, rtol=1e-6)
    actions, length, terminated = np.random.default_rng(0), 0, False
    while not terminated:
        action = actions.uniform(-1, 1, 1).astype(np.float32)
        now, later = jax.random.split(later)
        state = step(state, jnp.asarray(action))
        obs, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_allclose(obs, state.obs, rtol=1e-4, atol=1e-5)
        assert (reward, terminated, truncated) == (float(state.reward), bool(state.done), False)
        length += 1
    assert length > 5
    episode, _ = played(env)
    assert episode.steps == 0
    for ours, theirs in zip(episode.state, jax.tree.leaves(reset(now)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("options", "limit"), [(None, 1000), (EnvOptions(time_limit=1001), 1001)])
def test_an_episode_is_truncated_after_1000_steps_or_as_many_as_asked_for_and_not_terminated(options, limit):
    env = limited = make(ENV, options)
    while not isinstance(limited, TimeLimit):
        limited = limited.env  # type: ignore[attr-defined]
    env.reset(seed=0)
    limited._elapsed_steps = limit - 2
    episode, key = played(env)
    env.unwrapped._state = (episode._replace(steps=jnp.int32(limit - 2)), key)  # type: ignore[attr-defined]
    push = np.ones(1, np.float32)
    assert env.step(push)[2:4] == (False, False)
    last, _, *ended, _ = env.step(push)
    assert ended == [False, True]
    assert abs(last).max() > 0.1  # it moves; an episode begins within 0.01
    assert twin(ENV, options).time_limit == limit  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # it has no bounds, and the checker minds
def test_gymnasiums_checker_is_content():
    check_env(make(ENV).unwrapped, skip_render_check=True)


def test_spaces_are_braxs():
    obs, actions = catalog.spaces(ENV)
    assert obs == Box((4,), low=(-np.inf,) * 4, high=(np.inf,) * 4)
    assert actions == Box((1,), low=(-1.0,), high=(1.0,))
    assert twin(ENV).obs.shape == (4,)  # type: ignore[union-attr]


@pytest.mark.long
@pytest.mark.parametrize("env_id", brax.ids())
def test_every_environment_and_backend_takes_a_step(env_id):
    env = twin(env_id)
    assert env is not None
    state, obs = jax.jit(env.reset)(rng.key(0))
    for _ in range(3):
        state, step = jax.jit(env.step)(state, jnp.full(env.actions.shape, 0.1), rng.key(1))  # type: ignore[union-attr]
    assert obs.shape == step.obs.shape == env.obs.shape
    assert np.isfinite(step.obs).all()
    assert np.isfinite(step.reward)


# starts that are drawn when they are needed


def counted(costly: bool, draws: list[int]):
    """Pendulum-v1 with episodes of three steps; each time that it draws starts is noted."""

    def start(key):
        jax.debug.callback(lambda: draws.append(1))
        return pendulum.start(key)

    return autoreset(start, pendulum.advance, pendulum.observe, Box((3,)), Box((1,)), 3, costly)


def test_costly_starts_are_drawn_only_if_an_episode_ends_and_are_the_same():
    """Two seeds of four lanes; one lane alone is two steps ahead."""
    seen, numbers = {}, {}
    for costly in (False, True):
        draws: list[int] = []
        env, keys = counted(costly, draws), jax.random.split(rng.key(0), (2, 4))
        state, _ = jax.jit(jax.vmap(jax.vmap(env.reset)))(keys)
        state = state._replace(steps=state.steps.at[1, 2].set(2))
        step = jax.jit(jax.vmap(jax.vmap(env.step)))
        jax.effects_barrier()
        draws.clear()
        numbers[costly], seen[costly] = [], []
        for t in range(4):
            state, out = step(state, jnp.ones((2, 4, 1)), jax.random.split(rng.key(t), (2, 4)))
            jax.effects_barrier()
            numbers[costly].append(jax.device_get((state, out)))
            seen[costly].append(len(draws))
            draws.clear()
    assert seen == {False: [1] * 4, True: [1, 0, 1, 1]}
    jax.tree.map(np.testing.assert_array_equal, numbers[True], numbers[False])
    ended = [out.truncated.sum() for _, out in numbers[True]]
    assert ended == [1, 0, 7, 1]


# in the library


def test_a_loop_of_lanes_is_traced_where_promotion_is_an_error():
    """What a training program is made of; it is not compiled, which takes long."""
    env, keys = twin(ENV), jax.random.split(rng.key(0), 3)
    assert env is not None

    def loop(keys):
        state, _ = jax.vmap(env.reset)(keys)
        advance = jax.vmap(env.step, (0, None, 0))  # type: ignore[union-attr]
        return jax.lax.scan(lambda state, _: advance(state, jnp.zeros(1), keys), state, length=4)

    _, step = jax.eval_shape(loop, keys)
    assert [(x.shape, x.dtype.name) for x in step[:3]] == [
        ((4, 3, 4), "float32"),
        ((4, 3), "float32"),
        ((4, 3), "bool"),
    ]


@pytest.mark.long
def test_ppo_trains_in_one_program_and_its_policy_plays_in_gymnasium(tmp_path, capfd):
    run = frugalrl.train("ppo", ENV, steps=512, hyper={"hidden": (16,), "n_steps": 32}, out=tmp_path / "run")
    assert run.receipt["runtime"] == "compiled"
    loaded = frugalrl.load(tmp_path / "run")
    episodes = evaluate.on_gymnasium(loaded.predict, ENV, 3, parallel=3)
    assert (episodes.returns == episodes.lengths).all()  # each step brings 1
    assert (episodes.lengths > 3).all()
    assert cli.main(["eval", str(tmp_path / "run"), "--video", str(tmp_path / "episode.gif")]) == 2
    assert "draw no pictures" in capfd.readouterr().err


def test_arguments_of_braxs_class_are_environment_options():
    with pytest.raises(UsageError, match=r"cannot be made: TypeError: .*wings"):
        catalog.spaces("brax/ant-spring", EnvOptions(kwargs={"wings": 2}))
    assert not catalog.has_twin("brax/ant-spring", {"kwargs": {"healthy_reward": 2.0}})
    assert catalog.has_twin("brax/ant-spring")


def test_asking_for_a_twin_imports_neither_jax_nor_brax():
    program = (
        "import sys; from frugalrl.catalog import has_twin; assert has_twin('brax/ant') and has_twin('brax/ant-mjx');"
        "assert not has_twin('brax/swimmer') and not has_twin('brax/ant-generalized');"
        "sys.exit(bool({'jax', 'brax', 'mujoco'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.long
def test_ppo_learns_to_balance():
    assert frugalrl.train("ppo", ENV, seeds=3).returns["iqm"] > 800  # untrained: about 50; 969 when it was written
