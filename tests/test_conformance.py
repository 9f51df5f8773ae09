"""The JAX environments against their Gymnasium originals, transition by transition."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp

from frugalrl.envs.autoreset import Episode
from frugalrl.envs.twins import TWINS, twin
from frugalrl.types import Discrete, Env, Step

TRANSITIONS = 10_000  # of each kind
NEAR = 1e-5  # to a threshold, where float32 may fall on the other side of it


class Case(NamedTuple):
    """What a test must know of one environment; states are Gymnasium's, float64 [n, ...]."""

    margin: Callable[[np.ndarray], np.ndarray]  # states after a step -> distance to the threshold of termination
    low: tuple[float, ...]  # where states "anywhere" are drawn from: all that can be reached, and beyond termination
    high: tuple[float, ...]
    skilled: Callable[[Any], Any]  # observation -> action; reaches what random actions do not
    idle: Callable[[Any], Any]  # observation -> action; never terminates
    sure: int  # steps of an episode before its instability has magnified round-off to something visible
    atol: tuple[float, ...]  # of one step's observation: float32 round-off
    worst: tuple[float, ...] | None = None  # the same for 1 in 100 of the states "anywhere"; None: no worse


def balance(obs):
    return (0.1 * obs[0] + 0.2 * obs[1] + obs[2] + 0.5 * obs[3] > 0).astype("int32")


def constant(action):
    return lambda obs: action


CASES = {
    "CartPole-v1": Case(
        margin=lambda s: np.minimum(abs(abs(s[:, 0]) - 2.4), abs(abs(s[:, 2]) - np.radians(12))),
        low=(-2.6, -3.0, -0.25, -4.0),
        high=(2.6, 3.0, 0.25, 4.0),
        skilled=balance,
        idle=balance,
        sure=500,
        atol=(5e-7, 1e-6, 1e-7, 1e-6),
    ),
    "Acrobot-v1": Case(
        margin=lambda s: abs(-np.cos(s[:, 0]) - np.cos(s[:, 0] + s[:, 1]) - 1),
        low=(-np.pi, -np.pi, -4 * np.pi, -9 * np.pi),
        high=(np.pi, np.pi, 4 * np.pi, 9 * np.pi),
        skilled=lambda obs: (obs[5] > 0).astype("int32") * 2,
        idle=constant(1),
        sure=200,
        atol=(5e-6, 5e-6, 5e-6, 5e-6, 2e-5, 5e-5),
        # near its top speed one step of 0.2 s turns the second link once round, and blows round-off up
        worst=(5e-5, 5e-5, 5e-5, 5e-5, 1e-3, 1e-2),
    ),
    "MountainCar-v0": Case(
        margin=lambda s: abs(s[:, 0] - 0.5),
        low=(-1.2, -0.07),
        high=(0.6, 0.07),
        skilled=lambda obs: (obs[1] >= 0).astype("int32") * 2,
        idle=constant(1),
        sure=200,
        atol=(3e-7, 3e-8),
    ),
    "Pendulum-v1": Case(
        margin=lambda s: np.full(len(s), np.inf),
        low=(-np.pi, -8.0),
        high=(np.pi, 8.0),
        skilled=lambda obs: (obs[2:] > 0).astype("float32") * 4 - 2,
        idle=constant(np.zeros(1, np.float32)),
        sure=100,
        atol=(1e-6, 1e-6, 1e-6),
    ),
}
each_env = pytest.mark.parametrize("env_id", CASES)


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


class Record(NamedTuple):
    """Transitions of a Gymnasium environment, with its state and TimeLimit's counter before each."""

    state: np.ndarray  # float64
    steps: np.ndarray
    action: np.ndarray
    next_state: np.ndarray  # float64
    next_obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def original(env_id: str, seed: int) -> gymnasium.Env:
    env = gymnasium.make(env_id, disable_env_checker=True)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    return env


def state_of(env: gymnasium.Env) -> np.ndarray:
    return np.array(env.unwrapped.state, np.float64)


def put(env: gymnasium.Env, state: np.ndarray, steps: int) -> None:
    env.unwrapped.state = state.copy()
    env.unwrapped.steps_beyond_terminated = None  # CartPole warns without
    env._elapsed_steps = steps  # TimeLimit is the outermost wrapper


def transition(env: gymnasium.Env, action: Any) -> tuple:
    state, steps = state_of(env), env._elapsed_steps
    next_obs, reward, terminated, truncated, _ = env.step(action)
    return state, steps, action, state_of(env), next_obs, reward, terminated, truncated


def record(rows: list[tuple]) -> Record:
    return Record(*(np.array(column) for column in zip(*rows, strict=True)))


@cache
def driven(env_id: str, kind: str) -> Record:
    """Transitions from whole episodes: of "random" actions, or of "skilled" ones, a tenth of them random."""
    env, rng, rows = original(env_id, seed=1), np.random.default_rng(1), []
    obs, _ = env.reset()
    while len(rows) < TRANSITIONS:
        random = kind == "random" or rng.random() < 0.1
        action = env.action_space.sample() if random else np.asarray(CASES[env_id].skilled(obs))
        rows.append(transition(env, action if action.ndim else int(action)))
        *_, obs, _, terminated, truncated = rows[-1]
        if terminated or truncated:
            obs, _ = env.reset()
    return record(rows)


@cache
def anywhere(env_id: str) -> Record:
    """Single transitions from states and times all over the place; torques go beyond their limits."""
    case, env, rng, rows = CASES[env_id], original(env_id, seed=2), np.random.default_rng(2), []
    limit = gymnasium.spec(env_id).max_episode_steps
    for _ in range(TRANSITIONS):
        state = rng.uniform(case.low, case.high).astype(np.float32)  # so that both start from the same numbers
        put(env, state.astype(float), int(rng.choice([0, limit - 2, limit - 1])))
        discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        action = env.action_space.sample() if discrete else rng.uniform(-3, 3, 1).astype(np.float32)
        rows.append(transition(env, action))
    return record(rows)


def recorded(env_id: str, kind: str) -> Record:
    return anywhere(env_id) if kind == "anywhere" else driven(env_id, kind)


def wrapped(env_id: str, state: np.ndarray) -> np.ndarray:
    """Gymnasium's Pendulum lets its angle grow; ours keeps it in [-pi, pi]."""
    if env_id != "Pendulum-v1":
        return state
    return np.stack([np.arctan2(np.sin(state[..., 0]), np.cos(state[..., 0])), state[..., 1]], -1)


def episodes(env_id: str, state: np.ndarray, steps: np.ndarray) -> Episode:
    """Our environment's state, in agreement with Gymnasium's."""
    return Episode(jnp.asarray(wrapped(env_id, state), jnp.float32), jnp.asarray(steps, jnp.int32))


def ours(env_id: str) -> Env:
    env = twin(env_id)
    assert env is not None
    return env


@cache
def many_steps(env_id: str) -> Callable:
    return jax.jit(jax.vmap(ours(env_id).step))


def replay(env_id: str, data: Record) -> tuple[Episode, Step]:
    """Our environment's answers to every recorded transition, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(3), len(data.state))
    begin = episodes(env_id, data.state, data.steps)
    return jax.tree.map(np.asarray, many_steps(env_id)(begin, jnp.asarray(data.action), keys))


def follow(env_id: str, states: np.ndarray, actions: np.ndarray) -> Step:
    """Our answers [n, time, ...] to `actions` [n, time, ...] from `states` [n, ...], never corrected in between."""
    env, key = ours(env_id), jax.random.key(4)  # one key will do: nothing after a reset is looked at

    def one(state, actions):
        return jax.lax.scan(lambda episode, action: env.step(episode, action, key), state, actions)[1]

    begin = episodes(env_id, states, np.zeros(len(states)))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(begin, jnp.asarray(actions)))


def rollout(env_id: str, policy: Callable, length: int) -> Step:
    """`length` steps of our environment under `policy`, observation -> action, as NumPy arrays."""
    env = ours(env_id)

    def one(carry, key):
        episode, obs = carry
        episode, step = env.step(episode, policy(obs), key)
        return (episode, step.obs), step

    keys = jax.random.split(jax.random.key(5), length)
    begin = env.reset(jax.random.key(6))
    return jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.scan(one, begin, keys)[1])(keys))


@each_env
def test_specs(env_id):
    env, theirs, spec = ours(env_id), original(env_id, seed=0), gymnasium.spec(env_id)
    assert env.time_limit == spec.max_episode_steps
    assert env.obs.shape == theirs.observation_space.shape
    assert env.obs.dtype == theirs.observation_space.dtype
    np.testing.assert_array_equal(np.float32(env.obs.low), theirs.observation_space.low)
    np.testing.assert_array_equal(np.float32(env.obs.high), theirs.observation_space.high)
    if isinstance(env.actions, Discrete):
        assert env.actions.n == theirs.action_space.n
        assert theirs.action_space.start == 0
    else:
        assert (env.actions.shape, env.actions.dtype) == (theirs.action_space.shape, theirs.action_space.dtype)
        assert (env.actions.low, env.actions.high) == (theirs.action_space.low, theirs.action_space.high)


@pytest.mark.parametrize("kind", ["random", "skilled", "anywhere"])
@each_env
def test_every_transition_is_the_originals(env_id, kind):
    case, data = CASES[env_id], recorded(env_id, kind)
    episode, step = replay(env_id, data)

    error = abs(step.next_obs - data.next_obs)
    if kind == "anywhere" and case.worst is not None:
        assert (error <= case.worst).all(), error.max(0)
        error = np.quantile(error, 0.99, axis=0)
    assert (error <= case.atol).all(), error.max(0)

    np.testing.assert_array_equal(step.truncated, data.truncated)
    agree = step.terminated == data.terminated
    assert (case.margin(data.next_state)[~agree] < NEAR).all()
    assert (~agree).mean() < 1e-3
    np.testing.assert_allclose(step.reward[agree], data.reward[agree], rtol=0, atol=4e-6)

    over = step.terminated | step.truncated
    np.testing.assert_array_equal(step.obs[~over], step.next_obs[~over])
    np.testing.assert_array_equal(episode.steps, np.where(over, 0, data.steps + 1))


@each_env
def test_the_transitions_cover_every_way_an_episode_ends(env_id):
    data = [recorded(env_id, kind) for kind in ("random", "skilled", "anywhere")]
    assert all(len(d.state) >= TRANSITIONS for d in data)
    whole, anywhere = data[:2], data[2]
    assert any((d.truncated & ~d.terminated).any() for d in whole)
    if env_id != "Pendulum-v1":
        assert any((d.terminated & ~d.truncated).any() for d in whole)
        assert (anywhere.terminated & anywhere.truncated).sum() > 100


@each_env
def test_a_whole_episode_drifts_no_further_than_round_off(env_id):
    data, limit = recorded(env_id, "random"), ours(env_id).time_limit
    ends = np.flatnonzero(data.terminated | data.truncated)[:16] + 1
    begins = [0, *ends[:-1]]
    windows = np.minimum(np.array(begins)[:, None] + np.arange(limit), TRANSITIONS - 1)
    step = follow(env_id, data.state[begins], data.action[windows])
    for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        np.testing.assert_array_equal(step.truncated[i, : end - begin], data.truncated[begin:end])
        sure = min(end - begin, CASES[env_id].sure)
        theirs = slice(begin, begin + sure)
        np.testing.assert_allclose(step.next_obs[i, :sure], data.next_obs[theirs], rtol=0, atol=5e-4)
        np.testing.assert_allclose(step.reward[i, :sure], data.reward[theirs], rtol=0, atol=5e-4)
        np.testing.assert_array_equal(step.terminated[i, :sure], data.terminated[theirs])


@pytest.mark.parametrize(("env_id", "angles"), [("Acrobot-v1", 2), ("Pendulum-v1", 1)])
def test_angles_stay_within_half_a_turn(env_id, angles):
    # no observation shows it, but float32 would lose digits of an angle that grows
    episode, _ = replay(env_id, recorded(env_id, "anywhere"))
    assert abs(episode.state[:, :angles]).max() <= np.pi + 1e-6


@each_env
def test_starts_are_distributed_as_the_originals(env_id):
    env, theirs, n = ours(env_id), original(env_id, seed=7), 2000
    gym_obs, gym_state = zip(*((theirs.reset()[0], state_of(theirs)) for _ in range(n)), strict=True)
    keys = jax.random.split(jax.random.key(8), n)
    last = Episode(jax.jit(env.reset)(keys[0])[0].state, jnp.int32(env.time_limit - 1))
    action = jnp.int32(0) if isinstance(env.actions, Discrete) else jnp.zeros(env.actions.shape)

    fresh, fresh_obs = jax.jit(jax.vmap(env.reset))(keys)
    again, step = jax.jit(jax.vmap(env.step, (None, None, 0)))(last, action, jax.random.split(jax.random.key(9), n))
    assert np.asarray(step.truncated).all()
    assert not np.asarray(fresh.steps).any()
    assert not np.asarray(again.steps).any()

    wanted = np.concatenate([np.array(gym_state), np.array(gym_obs)], 1)
    for state, obs in ((fresh.state, fresh_obs), (again.state, step.obs)):
        got = np.concatenate([state, obs], 1)
        for i in range(wanted.shape[1]):
            assert ks_2samp(got[:, i], wanted[:, i]).pvalue > 1e-3, i
        np.testing.assert_array_less(abs(got.min(0) - wanted.min(0)), 0.01 * np.ptp(wanted, 0) + 1e-9)
        np.testing.assert_array_less(abs(got.max(0) - wanted.max(0)), 0.01 * np.ptp(wanted, 0) + 1e-9)
        varying = np.asarray(state)[:, np.asarray(state).std(0) > 0]
        correlation = np.corrcoef(varying, rowvar=False).reshape(varying.shape[1], -1)
        assert abs(correlation - np.eye(len(correlation))).max() < 0.1


@each_env
def test_the_time_limit_starts_again_with_every_episode(env_id):
    limit = ours(env_id).time_limit
    step = rollout(env_id, CASES[env_id].idle, 3 * limit + 10)
    assert not step.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(step.truncated) + 1, [limit, 2 * limit, 3 * limit])
    cut = step.truncated
    assert (step.obs[cut] != step.next_obs[cut]).any(1).all()
    np.testing.assert_array_equal(step.obs[~cut], step.next_obs[~cut])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
def test_a_policy_needs_as_many_steps_in_both(env_id):
    env, policy, theirs = original(env_id, seed=10), CASES[env_id].skilled, []
    for _ in range(20):
        (obs, _), over, length = env.reset(), False, 0
        while not over:
            obs, _, terminated, truncated, _ = env.step(int(policy(obs)))
            over, length = terminated or truncated, length + 1
        theirs.append(length)
    step = rollout(env_id, policy, 10_000)
    lengths = np.diff(np.flatnonzero(step.terminated | step.truncated), prepend=-1)
    assert ks_2samp(lengths, theirs).pvalue > 1e-3


@each_env
def test_step_keeps_structure_and_dtypes(env_id):
    env, key = ours(env_id), jax.random.key(0)
    episode, obs = jax.eval_shape(env.reset, key)
    action = jnp.int32(0) if isinstance(env.actions, Discrete) else jnp.zeros(env.actions.shape)
    after, step = jax.eval_shape(env.step, episode, action, key)
    assert after == episode
    assert (obs.shape, obs.dtype) == (env.obs.shape, env.obs.dtype)
    assert step.obs == step.next_obs == obs
    assert [(x.shape, x.dtype) for x in step[1:4]] == [((), jnp.float32), ((), jnp.bool_), ((), jnp.bool_)]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_actions_may_have_any_integer_dtype(env_id, dtype):
    env, key = ours(env_id), jax.random.key(0)
    episode, _ = env.reset(key)
    for action in range(env.actions.n):
        expected, actual = (jax.jit(env.step)(episode, jnp.array(action, kind), key) for kind in ("int32", dtype))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_twin_is_tested():
    assert set(TWINS) == set(CASES)


def test_an_environment_without_a_twin_is_none():
    assert twin("LunarLander-v3") is None


def test_looking_for_a_twin_does_not_import_jax():
    code = "import sys; from frugalrl.envs.twins import twin; twin('LunarLander-v3'); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
