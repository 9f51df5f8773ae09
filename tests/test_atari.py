"""Games stepped by native code are those that `make` makes: every frame, reward and end, episode after episode."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from frugalrl import catalog, training
from frugalrl.envs import atari
from frugalrl.envs.make import EnvOptions, find, make, options_for
from frugalrl.errors import UsageError
from frugalrl.runtime.actor import vector_env

NO_NOOPS = EnvOptions(frame_stack=4, noop_max=0)
CASES: dict[str, tuple[str, EnvOptions, int]] = {  # id, options, steps
    "the protocol": ("ALE/Breakout-v5", NO_NOOPS, 400),
    "lives": ("ALE/Breakout-v5", NO_NOOPS._replace(terminal_on_life_loss=True), 150),
    "rewards of many points": ("ALE/Seaquest-v5", NO_NOOPS, 200),
    "a short time limit": ("ALE/Breakout-v5", NO_NOOPS._replace(kwargs={"max_num_frames_per_episode": 42}), 60),
    "colours": ("ALE/MsPacman-v5", NO_NOOPS._replace(grayscale=False, screen_size=42, frame_stack=2), 60),
    "one frame": ("ALE/Phoenix-v5", NO_NOOPS._replace(frame_stack=1, frame_skip=1, full_action_space=True), 100),
    "no sticky actions": ("ALE/Qbert-v5", NO_NOOPS._replace(sticky_actions=0.0, frame_skip=3), 200),
}
needs_envpool = pytest.mark.skipif(find_spec("envpool") is None, reason="EnvPool is not installed")


def single(env_id: str, options: EnvOptions, seed: int) -> tuple[Any, np.ndarray]:
    """The environment of `make`, its emulator with the seed that a native one would give it, and its first frames."""
    env = make(env_id, options, training=True)
    inner: Any = env.unwrapped
    inner.ale.setInt("random_seed", seed)
    inner.load_game()
    return env, env.reset()[0]


def assert_alike(env_id: str, options: EnvOptions, steps: int, last: bool = True) -> int:
    """Play two games both ways with the same random actions; returns how many episodes ended.

    Without `last` the last frames of the episodes may differ.
    """
    made = vector_env(env_id, 2, options)
    assert isinstance(made, atari.Vector)
    obs, _ = made.reset(seed=5)
    ones = [single(env_id, options, 5 + i) for i in range(2)]
    np.testing.assert_array_equal(obs, np.stack([first for _, first in ones]))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(steps):
        action = rng.integers(ones[0][0].action_space.n, size=2)
        obs, reward, terminated, truncated, info = made.step(action)
        for i, (env, _) in enumerate(ones):
            frame, *rest, _ = env.step(action[i])
            assert [reward[i], terminated[i], truncated[i]] == rest
            if terminated[i] or truncated[i]:
                if last:
                    np.testing.assert_array_equal(info["final_obs"][i], frame)
                frame, ends = env.reset()[0], ends + 1
            np.testing.assert_array_equal(obs[i], frame)
    return ends


@pytest.mark.parametrize("name", CASES)
def test_native_games_are_those_of_make(name):
    ends = assert_alike(*CASES[name])
    assert ends > 1 or name not in ("the protocol", "lives", "a short time limit")


@needs_envpool
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("lives", "a short time limit")])
def test_games_of_envpool_are_those_of_make(name):
    env_id, options, steps = CASES[name]
    assert_alike(env_id, options._replace(backend="envpool", noop_max=1), steps, last=False)


def test_an_episode_begins_at_a_random_frame_and_a_seed_repeats_it():
    envs = vector_env("ALE/Qbert-v5", 3, None)
    frames, again, moved = (envs.reset(seed=seed)[0] for seed in (3, 3, 4))
    assert len(np.unique(frames, axis=0)) > 1
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(frames[1:], moved[:-1])
    assert envs.reset(seed=2**31 - 2)[0].shape == frames.shape  # the seed of the last game would be too large


@pytest.mark.parametrize("changed", [{"kwargs": {"mode": 1}}, {"flatten": True}, {"backend": "python"}])
def test_what_native_code_cannot_do_is_left_to_gymnasium(changed):
    options = options_for("ALE/Pong-v5")._replace(**changed)
    made = vector_env("ALE/Pong-v5", 2, options)
    assert isinstance(made, SyncVectorEnv)
    assert made.reset(seed=0)[0].shape[0] == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"backend": "envpol"}, "there are: ale, envpool, python"),
        ({"backend": "envpool", "kwargs": {"mode": 1}}, "use backend=ale"),
        ({"backend": "envpool", "terminal_on_life_loss": True}, "use backend=ale"),
        ({"backend": "envpool", "noop_max": 0}, "use backend=ale"),
    ],
)
def test_a_backend_that_cannot_is_refused(changed, said, monkeypatch):
    monkeypatch.setattr(atari, "find_spec", lambda name: True)
    with pytest.raises(UsageError, match=said):
        vector_env("ALE/Pong-v5", 2, options_for("ALE/Pong-v5")._replace(**changed))


def test_a_backend_that_is_not_installed_is_named_by_its_extra(monkeypatch):
    monkeypatch.setattr(atari, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'frugalrl\[envpool\]'"):
        atari.check(find("ALE/Pong-v5"), options_for("ALE/Pong-v5")._replace(backend="envpool"))


def test_only_atari_has_backends():
    with pytest.raises(UsageError, match="the option backend is of ALE environments"):
        make("CartPole-v1", EnvOptions(backend="python"))


@pytest.mark.parametrize("agent", ["ppo", "dqn", "impala"])
def test_all_games_have_the_defaults_of_their_family(agent):
    steps, hyper = catalog.defaults(agent, "ALE/Breakout-v5")
    assert (steps, hyper) == catalog.defaults(agent, "ALE/Pong-v5")
    assert steps == 10_000_000
    assert hyper != catalog.hyper_fields(catalog.recipe(agent))
    assert training.configure(agent, "ALE/Pong-v5").hyper == hyper
    assert catalog.defaults(agent, "CarRacing-v3")[0] == catalog.STEPS
