"""Real environments: each is stepped, and what is done to it is what was asked for."""

from __future__ import annotations

import pickle
import subprocess
import sys
from ctypes.util import find_library

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from test_actors import parts, worker

from frugalrl import catalog, cli, evaluate, policy
from frugalrl.envs import dm_control, minatar_games
from frugalrl.envs.make import EnvOptions, find, lesson, make, options_for
from frugalrl.errors import UsageError
from frugalrl.levers.compress import engines
from frugalrl.networks import minatar_cnn, nature_cnn
from frugalrl.runtime import link
from frugalrl.runtime.actor import Worker, vector_env

EVERY = [env_id for family in catalog.FAMILIES for env_id in family.ids]
ONE_OF_EACH = (
    "CartPole-v1", "BipedalWalker-v3", "HalfCheetah-v5", "MinAtar/Breakout-v1", "ALE/Breakout-v5",
    "dm_control/cheetah-run-v0",
)  # fmt: skip
SPACES = {  # shape, dtype and number of actions (or shape of them) as published
    "CarRacing-v3": ((96, 96, 3), "uint8", (3,)),
    "BipedalWalker-v3": ((24,), "float32", (4,)),
    "HalfCheetah-v5": ((17,), "float32", (6,)),
    "Humanoid-v5": ((348,), "float32", (17,)),
    "MinAtar/Breakout-v1": ((10, 10, 4), "bool", 3),
    "MinAtar/Breakout-v0": ((10, 10, 4), "bool", 6),
    "MinAtar/Seaquest-v1": ((10, 10, 10), "bool", 6),
    "MinAtar/SpaceInvaders-v1": ((10, 10, 6), "bool", 4),
    "ALE/Pong-v5": ((84, 84, 4), "uint8", 6),
    "ALE/Breakout-v5": ((84, 84, 4), "uint8", 4),
    "dm_control/cheetah-run-v0": ((17,), "float32", (6,)),
    "dm_control/humanoid-walk-v0": ((67,), "float32", (21,)),
    "dm_control/walker-stand-v0": ((24,), "float32", (6,)),
}


def play(env: gymnasium.Env, steps: int, seed: int = 7) -> list[tuple]:
    """What random actions bring, episodes following each other."""
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    seen = [(obs, 0.0, False, False)]
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append((obs, reward, terminated, truncated))
        if terminated or truncated:
            seen.append((env.reset()[0], 0.0, False, False))
    return seen


def same(one: list[tuple], other: list[tuple]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, other, strict=True)
    )


# every environment is stepped


# tests of their own: Brax, whose programs take long to compile, and pictures, which take long to draw
@pytest.mark.parametrize("env_id", [name for name in EVERY if not name.startswith(("brax/", "dm_control_pixels/"))])
def test_every_environment_plays_as_described_and_repeats_its_seed(env_id):
    described, _ = catalog.spaces(env_id)
    steps = 30 if env_id == "CarRacing-v3" else 300 if env_id in ONE_OF_EACH else 100
    env = make(env_id)
    first = play(env, steps)
    for obs, reward, terminated, truncated in first:
        assert obs.shape == described.shape
        assert obs.dtype == described.dtype or (described.dtype == "float32" and obs.dtype == np.float64)
        assert obs in env.observation_space
        assert np.isfinite(reward)
        assert {type(terminated), type(truncated)} <= {bool, np.bool_}
    if "/" in env_id:  # Box2D's world carries something over a reset, which is why evaluation makes each anew
        assert same(first, play(env, steps))
    env.close()
    other = make(env_id)
    assert same(first, play(other, steps))
    assert not same(first, play(other, steps, seed=8))
    other.close()


@pytest.mark.parametrize("env_id", SPACES)
def test_spaces_are_the_published_ones(env_id):
    shape, dtype, actions = SPACES[env_id]
    obs, space = catalog.spaces(env_id)
    assert (obs.shape, obs.dtype) == (shape, dtype)
    assert actions == (space.n if hasattr(space, "n") else space.shape)


def test_bounds_of_images_are_one_number_and_of_vectors_one_each():
    obs, actions = catalog.spaces("CarRacing-v3")
    assert (obs.low, obs.high) == (0.0, 255.0)
    assert (actions.low, actions.high) == ((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert catalog.spaces("Humanoid-v5")[1].low == (pytest.approx(-0.4),) * 17


@pytest.mark.parametrize("env_id", ONE_OF_EACH)
def test_a_vector_of_training_environments_steps_and_resets(env_id):
    envs = vector_env(env_id, 2, None)
    obs, _ = envs.reset(seed=3)
    described, _ = catalog.spaces(env_id)
    assert obs.shape == (2, *described.shape)
    for _ in range(50):
        obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert obs.shape == (2, *described.shape)
        assert reward.shape == terminated.shape == truncated.shape == (2,)
        done = terminated | truncated
        if done.any():
            assert np.stack(info["final_obs"][done]).shape == (done.sum(), *described.shape)
    envs.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MinAtar/Breakout-v1", "BipedalWalker-v3", "InvertedPendulum-v5"])
def test_an_evaluation_repeats_itself(env_id):
    """These episodes are short when nothing is done."""
    described, space = catalog.spaces(env_id)
    still = np.zeros((2, *getattr(space, "shape", ())), "float32" if hasattr(space, "shape") else "int32")

    def act(obs):
        assert obs.shape == (2, *described.shape)
        assert obs.dtype == described.dtype
        return still

    one, other = (evaluate.on_gymnasium(act, env_id, 3, parallel=2, obs_dtype=described.dtype) for _ in range(2))
    assert one.returns.tolist() == other.returns.tolist()
    assert one.lengths.tolist() == other.lengths.tolist()


def test_making_one_family_loads_no_other_and_no_jax():
    heavy = {"ale_py", "minatar", "dm_control", "mujoco", "cv2", "Box2D", "jax", "seaborn", "brax"}
    for env_id, needs in {"CartPole-v1": set(), "ALE/Pong-v5": {"ale_py", "cv2"}, "HalfCheetah-v5": {"mujoco"}}.items():
        program = (
            "import sys; from frugalrl.envs.make import make; from frugalrl.runtime import actor;"
            f"make({env_id!r}, training=True).reset(seed=0);"
            f"assert {heavy!r} & set(sys.modules) == {needs!r}, 'it loads more'"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# MinAtar


@pytest.mark.parametrize("env_id", minatar_games.ids())
def test_minatar_plays_as_the_package_does(env_id):
    """The oracle is the package's own class, given the seed that ours draws."""
    from minatar import Environment

    name, version = env_id.removeprefix("MinAtar/").split("-")
    env, theirs = make(env_id), Environment(minatar_games.GAMES[name])
    obs, _ = env.reset(seed=11)
    theirs.seed(int(np.random.default_rng(np.random.SeedSequence(11)).integers(2**31)))
    theirs.reset()
    actions = theirs.minimal_action_set() if version == "v1" else list(range(6))
    assert env.action_space.n == len(actions)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(300):
        np.testing.assert_array_equal(obs, theirs.state())
        k = int(rng.integers(len(actions)))
        obs, reward, terminated, truncated, _ = env.step(k)
        assert (reward, terminated) == theirs.act(actions[k])
        assert not truncated
        if terminated:
            obs, _ = env.reset()
            theirs.reset()


def test_minatar_never_ends_by_itself_and_evaluation_says_so(monkeypatch):
    assert evaluate.episode_cap("MinAtar/Breakout-v1") == evaluate.MAX_STEPS == 27_000
    monkeypatch.setattr(evaluate, "MAX_STEPS", 3)
    played = evaluate.on_gymnasium(lambda obs: np.zeros(2, int), "MinAtar/Asterix-v1", 2, parallel=2, obs_dtype="bool")
    assert played.lengths.tolist() == [3, 3]


@pytest.mark.parametrize(("name", "options", "steps"), [
    ("Endless", EnvOptions(), 9), ("Endless", EnvOptions(time_limit=3), 3), ("cut_off", EnvOptions(), 4),
])  # fmt: skip
def test_a_class_or_function_of_a_module_is_played_and_never_without_end(name, options, steps, monkeypatch):
    monkeypatch.setattr(evaluate, "MAX_STEPS", 9)
    act = lambda obs: np.zeros(len(obs), int)
    played = evaluate.on_gymnasium(act, f"fake_env:{name}", 2, parallel=2, options=options)
    assert played.lengths.tolist() == [steps, steps]


def test_only_environments_without_a_time_limit_are_capped():
    capped = {env_id for env_id in (*EVERY, *dm_control.ids()) if evaluate.episode_cap(env_id) is not None}
    assert capped == {*minatar_games.ids(), "dm_control/lqr-lqr_2_1-v0", "dm_control/lqr-lqr_6_2-v0"}


# dm_control


def test_dm_control_ids_are_the_suites():
    assert set(dm_control.suite().ALL_TASKS) == {(d, task) for d, tasks in dm_control.TASKS.items() for task in tasks}


def test_dm_control_is_truncated_at_its_limit_and_not_terminated():
    env = make("dm_control/cheetah-run-v0")
    env.reset(seed=0)
    for t in range(1, 1001):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (terminated, truncated) == (False, t == 1000)
        assert 0 <= reward <= 1
    assert obs.dtype == np.float32


def test_dm_control_terminates_where_the_discount_is_zero():
    env = make("dm_control/lqr-lqr_2_1-v0")
    env.reset(seed=0)
    physics = env.unwrapped._env.physics  # type: ignore[attr-defined]
    with physics.reset_context():
        physics.data.qpos[:] = physics.data.qvel[:] = 0
    _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated) == (True, False)


def test_dm_control_observations_are_the_suites_in_order():
    env = make("dm_control/reacher-easy-v0")
    obs, _ = env.reset(seed=5)
    inner = env.unwrapped._env  # type: ignore[attr-defined]
    parts_ = inner.task.get_observation(inner.physics)
    assert list(parts_) == ["position", "to_target", "velocity"]
    np.testing.assert_array_equal(obs, np.concatenate(list(parts_.values())).astype(np.float32))


# Atari


def test_atari_is_preprocessed_as_the_protocol_says():
    env = make("ALE/Breakout-v5")
    inner = env.unwrapped
    assert inner._frameskip == 1  # type: ignore[attr-defined]
    assert inner.ale.getFloat("repeat_action_probability") == 0.25  # type: ignore[attr-defined]
    assert inner.ale.getInt("max_num_frames_per_episode") == 108_000  # type: ignore[attr-defined]
    env.reset(seed=0)
    before = inner.ale.getEpisodeFrameNumber()  # type: ignore[attr-defined]
    assert 1 <= before <= 30
    env.step(0)
    assert inner.ale.getEpisodeFrameNumber() == before + 4  # type: ignore[attr-defined]


def test_atari_is_truncated_by_the_emulator():
    options = options_for("ALE/Pong-v5")._replace(kwargs={"max_num_frames_per_episode": 200}, noop_max=0)
    env = make("ALE/Pong-v5", options)
    env.reset(seed=0)
    flags = []
    while not flags or not any(flags[-1]):
        flags.append(env.step(0)[2:4])
    assert flags[-1] == (False, True)
    assert len(flags) == 50


def test_atari_options_reach_the_game():
    options = options_for("ALE/Breakout-v5")._replace(
        full_action_space=True, sticky_actions=0.0, grayscale=False, screen_size=42, frame_stack=2
    )
    env = make("ALE/Breakout-v5", options)
    assert env.action_space.n == 18  # type: ignore[attr-defined]
    assert env.observation_space.shape == (42, 42, 6)
    assert env.reset(seed=0)[0].shape == (42, 42, 6)
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_lost_life_ends_an_episode_in_training_only_and_if_asked(wanted):
    options = options_for("ALE/Breakout-v5")._replace(terminal_on_life_loss=wanted)
    lives = {}
    for training in (True, False):
        env = make("ALE/Breakout-v5", options, training=training)
        env.action_space.seed(0)
        env.reset(seed=0)
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(env.action_space.sample())
        lives[training] = info["lives"]
    assert lives == {True: 4 if wanted else 0, False: 0}


# wrappers


class Ramp(gymnasium.Env):
    """Observations count the steps, once in each of two places; rewards are minus three and five by turns."""

    observation_space = gymnasium.spaces.Box(0, 100, (2,), np.float32)
    action_space = gymnasium.spaces.Box(0.0, 4.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._obs(), {}

    def step(self, action):
        self.time, self.action = self.time + 1, action
        return self._obs(), (5.0 if self.time % 2 else -3.0), False, self.time == 6, {}

    def _obs(self):
        return np.array([self.time, 10 * self.time], np.float32)


class Picture(Ramp):
    observation_space = gymnasium.spaces.Box(0, 255, (3, 3, 2), np.uint8)

    def _obs(self):
        return np.full((3, 3, 2), (self.time, 10 + self.time), np.uint8)


class Words(Ramp):
    observation_space = gymnasium.spaces.Dict(a=Ramp.observation_space, b=Ramp.observation_space)

    def _obs(self):
        return {"a": super()._obs(), "b": super()._obs()}


for kind in (Ramp, Picture, Words):
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, disable_env_checker=True)  # type: ignore[arg-type]


def test_frames_are_stacked_the_oldest_first():
    env = make("Ramp-v0", EnvOptions(frame_stack=3))
    assert env.reset()[0].tolist() == [0] * 6
    env.step(np.zeros(1, np.float32))
    assert env.step(np.zeros(1, np.float32))[0].tolist() == [0, 0, 1, 10, 2, 20]
    assert env.observation_space.shape == (6,)
    assert env.reset()[0].tolist() == [0] * 6


def test_frames_of_pictures_are_stacked_in_the_channels():
    env = make("Picture-v0", EnvOptions(frame_stack=2))
    env.reset()
    obs = env.step(np.zeros(1, np.float32))[0]
    assert obs.shape == env.observation_space.shape == (3, 3, 4)
    assert obs.dtype == np.uint8
    assert (obs == [0, 10, 1, 11]).all()


def test_atari_frames_are_stacked_the_newest_last():
    stacked, single = make("ALE/Pong-v5"), make("ALE/Pong-v5", options_for("ALE/Pong-v5")._replace(frame_stack=1))
    frames = [single.reset(seed=1)[0][..., 0]]
    obs = stacked.reset(seed=1)[0]
    assert (obs == frames[0][..., None]).all()
    for action in (2, 3, 2, 2, 3, 3):
        frames.append(single.step(action)[0][..., 0])
        obs = stacked.step(action)[0]
    np.testing.assert_array_equal(obs, np.stack(frames[-4:], -1))
    assert not np.array_equal(obs[..., 3], obs[..., 0])


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_what_is_learned_of_steps(array):
    seen = array([5.0, -0.5, -3.0]), array([True, False, False]), array([False, True, False])

    def learned(**options):
        return [x.tolist() for x in lesson(EnvOptions(**options), *seen)]

    reward, terminated, truncated = (x.tolist() for x in seen)
    assert learned() == [reward, terminated, truncated]
    assert learned(clip_reward=True) == [[1.0, -0.5, -1.0], terminated, truncated]
    assert learned(timeout_as_terminal=True) == [reward, [True, True, False], [False] * 3]


def test_an_evaluation_does_not_clip():
    act, options = lambda obs: np.zeros((1, 1), np.float32), EnvOptions(clip_reward=True)
    assert evaluate.on_gymnasium(act, "Ramp-v0", 1, parallel=1, options=options).returns.tolist() == [6]


def test_an_actor_tells_returns_without_clipping(tmp_path):
    made = parts("fake_env:Walk-v0")
    made = made._replace(spec=made.spec._replace(env_options=EnvOptions(clip_reward=True)))
    actor, _ = worker(made, tmp_path)
    ended = actor.unroll(actor.slots[0].items)  # 8 steps: each environment ends its first episode after 5
    assert set(np.unique(actor.slots[0].items.reward)) == {1.0}
    assert [length for _, length, _ in ended] == [5, 5]
    assert all(ret >= 15 for ret, *_ in ended)


@pytest.mark.parametrize("as_terminal", [False, True])
def test_an_actor_tells_a_cut_off_from_an_end_unless_asked_not_to(as_terminal, tmp_path):
    """Walk's episodes terminate after 5 steps, or are cut off, here after 6, by turns."""
    made = parts("fake_env:Walk-v0")
    options = EnvOptions(time_limit=6, timeout_as_terminal=as_terminal)
    actor, _ = worker(made._replace(spec=made.spec._replace(env_options=options)), tmp_path)
    slot, ended = actor.slots[0].items, []
    ended += actor.unroll(slot)
    assert np.flatnonzero(slot.terminated[:, 0]).tolist() == [4]
    ended += actor.unroll(slot)  # the second episode began at the sixth step of those before
    assert np.flatnonzero(slot.terminated[:, 0]).tolist() == ([2, 7] if as_terminal else [7])
    assert np.flatnonzero(slot.truncated[:, 0]).tolist() == ([] if as_terminal else [2])
    assert [length for _, length, _ in ended] == [5, 5, 6, 6, 5, 5]
    np.testing.assert_array_equal(slot.next_obs[2, :, 1:], [[1, 6]] * 2)  # the old episode's last one


@pytest.mark.parametrize(("env_id", "steps"), [("CartPole-v1", 9), ("MountainCar-v0", 300), ("MinAtar/Freeway-v1", 30)])
def test_a_time_limit_replaces_that_of_the_environment_and_an_evaluation_has_it_too(env_id, steps):
    options = EnvOptions(time_limit=steps, timeout_as_terminal=True)
    env = make(env_id, options, training=True)
    env.reset(seed=1)
    ends = [tuple(env.step(0)[2:4]) for _ in range(steps)]
    assert ends == [(False, False)] * (steps - 1) + [(False, True)]
    assert evaluate.episode_cap(env_id, options) is None
    still, dtype = lambda obs: np.zeros(1, int), catalog.spaces(env_id)[0].dtype
    played = evaluate.on_gymnasium(still, env_id, 1, parallel=1, options=options, obs_dtype=dtype)
    assert played.lengths.tolist() == [steps]


@pytest.mark.parametrize(
    ("env_id", "layers"), [("MinAtar/Breakout-v1", minatar_cnn(3)), ("ALE/Pong-v5", nature_cnn(6))]
)
def test_an_actor_fills_its_slots_with_pictures(env_id, layers, tmp_path):
    obs, _ = catalog.spaces(env_id)
    weights = engines.random_weights(layers, obs, np.random.default_rng(0))
    arrays = [*(x for w in weights for x in w), np.array(0.1, np.float32), np.array(5, np.int32)]
    link.mailbox(tmp_path / "mailbox", link.fields(arrays)).put(arrays)
    spec = parts().spec._replace(
        env_id=env_id, obs=obs, layers=layers, kinds=("Linear",) * len(weights), packet=link.fields(arrays),
        folder=str(tmp_path), slab="slab", engine=engines.module("litert"),
    )  # fmt: skip
    worker = Worker(spec)
    slot = worker.slots[0].items
    worker.unroll(slot)
    assert slot.obs.shape == (8, 2, *obs.shape)
    assert slot.obs.dtype == obs.dtype
    assert slot.obs.any()
    assert (slot.version == 5).all()
    going_on = ~(slot.terminated | slot.truncated)[:-1]
    np.testing.assert_array_equal(slot.next_obs[:-1][going_on], slot.obs[1:][going_on])


def test_actions_are_rescaled():
    env = make("Ramp-v0", EnvOptions(rescale_actions=True))
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    env.reset()
    env.step(np.array([0.5], np.float32))
    assert env.unwrapped.action.tolist() == [3.0]  # type: ignore[attr-defined]


def test_a_dictionary_of_observations_is_refused_or_flattened():
    with pytest.raises(UsageError, match="observations of kind Dict"):
        catalog.spaces("Words-v0")
    assert catalog.spaces("Words-v0", EnvOptions(flatten=True))[0].shape == (4,)


def test_the_time_limit_of_atari_is_one_of_frames():
    with pytest.raises(UsageError, match=r"use kwargs\.max_num_frames_per_episode"):
        make("ALE/Pong-v5", EnvOptions(time_limit=100))


def test_arguments_reach_the_environment():
    assert catalog.spaces("CarRacing-v3", EnvOptions(kwargs={"continuous": False}))[1] == catalog.Discrete(5)
    env = make("MinAtar/Breakout-v1", EnvOptions(sticky_actions=0.5))
    assert env.unwrapped._game.sticky_action_prob == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("changed", [{"frame_skip": 2}, {"terminal_on_life_loss": True}, {"sticky_actions": 0.1}])
def test_an_option_that_would_do_nothing_is_refused(changed):
    with pytest.raises(UsageError, match=f"the option {next(iter(changed))} is of ALE"):
        make("CartPole-v1", EnvOptions(**changed))


def test_options_and_registrations_travel_to_another_process():
    for env_id in ONE_OF_EACH:
        options, spec = pickle.loads(pickle.dumps((options_for(env_id), find(env_id))))
        assert options == options_for(env_id)
        assert make(spec, options).observation_space == make(env_id).observation_space


# names and what is missing

SPELLINGS = {
    "MinAtar/Breakot-v1": "MinAtar/Breakout-v1",
    "minatar/breakout-v1": "MinAtar/Breakout-v1",
    "MinAtr/Breakout-v1": "MinAtar/Breakout-v1",
    "dm_control/cheetah-runn-v0": "dm_control/cheetah-run-v0",
    "dm_contrl/walker-walk-v0": "dm_control/walker-walk-v0",
    "dm_control/quadruped-wlk-v0": "dm_control/quadruped-walk-v0",
    "ALE/Pnog-v5": "ALE/Pong-v5",
    "ale/pong-v5": "ALE/Pong-v5",
    "ALE/Tenniss-v5": "ALE/Tennis-v5",
    "HalfCheeta-v5": "HalfCheetah-v5",
    "BipedalWaker-v3": "BipedalWalker-v3",
    "brax/antt": "brax/ant",
    "brax/ant-sprng": "brax/ant-spring",
    "Brax/reacher": "brax/reacher",
}


@pytest.mark.parametrize("wrong", SPELLINGS)
def test_a_misspelt_id_gets_the_nearest(wrong):
    with pytest.raises(UsageError, match=f"did you mean {SPELLINGS[wrong]}\\?$"):
        catalog.registration(wrong)


MISSING = {
    "BipedalWalker-v3": ("Box2D", "box2d"),
    "HalfCheetah-v5": ("mujoco", "mujoco"),
    "MinAtar/Freeway-v1": ("minatar", "minatar"),
    "ALE/Tennis-v5": ("ale_py", "atari"),
    "ALE/Pong-v5": ("cv2", "atari"),
    "dm_control/dog-run-v0": ("dm_control", "dmc"),
    "brax/ant-spring": ("brax", "brax"),
}


@pytest.mark.parametrize("env_id", MISSING)
def test_a_package_that_is_not_installed_is_named_by_its_extra(env_id, tmp_path):
    """In a process of its own, where the package cannot be imported."""
    module, extra = MISSING[env_id]
    program = f"import sys; sys.modules[{module!r}] = None; from frugalrl.cli import main; main()"
    words = [sys.executable, "-c", program, "train", "dqn", env_id, "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    line = f"frugal: {env_id} needs a package that is not installed: pip install 'frugalrl[{extra}]'\n"
    assert done.stderr == line
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_envs_lists_every_family(capfd, monkeypatch):
    assert cli.main(["envs"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= set(EVERY)
    assert not any("not installed" in line for line in lines)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ale_py" else True)
    assert cli.main(["envs"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "not installed" in line]
    assert all(line.startswith("ALE/") and line.endswith("pip install 'frugalrl[atari]'") for line in lines)
    assert len(lines) == sum(env_id.startswith("ALE/") for env_id in EVERY)


@pytest.mark.parametrize("name", ["episode.gif", "episode.mp4"])
def test_eval_plays_a_policy_on_pictures_and_says_that_episodes_are_capped(name, tmp_path, capfd, monkeypatch):
    if name.endswith("mp4"):
        pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(evaluate, "MAX_STEPS", 40)
    env_id, layers = "MinAtar/Freeway-v1", minatar_cnn(3)
    obs, actions = catalog.spaces(env_id)
    card = policy.Card("dqn", env_id, obs, actions, layers, "epsilon_greedy", {"epsilon": 0.0})
    policy.write(tmp_path / "policy", card, [engines.random_weights(layers, obs, np.random.default_rng(0))])
    video = tmp_path / name
    assert cli.main(["eval", str(tmp_path), "--episodes", "3", "--video", str(video)]) == 0
    first, second, *_ = capfd.readouterr().out.splitlines()
    assert first == f"{env_id} has no time limit: episodes are cut off after 40 steps"
    assert second.startswith("seed 0: mean greedy return")
    assert video.stat().st_size > 0


@pytest.mark.parametrize("env_id", ["MinAtar/Seaquest-v1", "ALE/Pong-v5", "CarRacing-v3"])
def test_pictures_of_an_episode(env_id):
    env = make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    assert frame.dtype == np.uint8
    assert frame.shape[2:] == (3,)
    assert len(np.unique(frame)) > 1
    env.close()


@pytest.mark.skipif(not find_library("EGL"), reason="needs a system library, EGL: apt install libegl1")
def test_dm_control_draws_without_a_display():
    program = (
        "from frugalrl.envs.make import make; env = make('dm_control/cheetah-run-v0', render_mode='rgb_array');"
        "env.reset(seed=0); print(env.render().shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "(240, 320, 3)\n", done.stderr


def test_mujoco_leaves_no_file_behind(tmp_path):
    """Its models' warnings would go to MUJOCO_LOG.TXT in the current folder."""
    program = "from frugalrl.envs.make import make; make('HalfCheetah-v5').reset(); make('dm_control/cheetah-run-v0')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any(tmp_path.iterdir())


def test_actions_beyond_the_bounds_count_as_those_on_them():
    """HalfCheetah-v5 charges for the square of what it is given, and simulates what is within its bounds."""
    rewards = []
    for size in (1.0, 50.0):
        env = make("HalfCheetah-v5")
        env.reset(seed=0)
        rewards.append([env.step(np.full(6, size, np.float32))[1] for _ in range(3)])
        assert env.action_space.contains(np.ones(6, np.float32))
        env.close()
    assert rewards[0] == rewards[1]
