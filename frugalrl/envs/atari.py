"""Several Atari games stepped together by native code, for training: by ale-py's vector environment, or by EnvPool's.

Frames, rewards and ends are those of the environments that `make` makes one by one, bit for bit where the emulator's
seed is the same. What differs is at the edges: in ale-py an episode begins with 0 to `noop_max` - 1 frames without an
action, not with 1 to `noop_max`; in both the time limit counts from after these; and EnvPool plays the step that ends
an episode to its last frame, so that the last observation may be a later one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UsageError
from .make import ATARI_FRAMES, EnvOptions, namespace, own_options

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

BACKENDS = ("ale", "envpool", "python")
# of what ale-py's single environment is told: what the native ones are told as well
EXPRESSED = ("game", "obs_type", "frameskip", "repeat_action_probability", "full_action_space")
SEEDS = 2**31  # the emulator's are not negative, and int32


class Games(NamedTuple):
    """Games that step together on one thread. Frames are uint8 [games, height, width, channels]."""

    reset: Callable[[int], np.ndarray]  # seed of the first game -> frames
    # int32 actions [games] -> frames, rewards, terminated, truncated, and what to go on with: the same frames, but
    # where an episode ended the first frame of the next one
    step: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    actions: Any  # Gymnasium's space of one action


def check(spec: EnvSpec, options: EnvOptions) -> None:
    """Raises UsageError if training could not be stepped by the backend that the options ask for."""
    backend = options.backend
    if backend not in BACKENDS:
        raise UsageError(f"the option backend={backend!r} does not exist; there are: {', '.join(BACKENDS)}")
    if backend != "envpool":
        return
    if find_spec("envpool") is None:
        raise UsageError("backend=envpool needs a package that is not installed: pip install 'frugalrl[envpool]'")
    # after a lost life it goes on with the same game, and without frames that do nothing it crashes (1.2.5)
    if _told(spec, options) is None or options.terminal_on_life_loss or not options.noop_max:
        raise UsageError("EnvPool cannot do what the other options ask for: use backend=ale, or leave them out")


def vector(spec: EnvSpec, num_envs: int, options: EnvOptions) -> Vector | None:
    """The games of `spec` side by side, as `options` say; None where the backend cannot do what they ask for.

    Raises UsageError as `check` does.
    """
    check(spec, options)
    told = _told(spec, options)
    if told is None or options.backend == "python":
        return None
    games = {"ale": _ale, "envpool": _envpool}[options.backend](num_envs, options, told)
    return Vector(games, num_envs, options)


def _told(spec: EnvSpec, o: EnvOptions) -> dict[str, Any] | None:
    """What ale-py's single environment would be told, or None if it is more than a native one can be."""
    told = spec.kwargs | own_options(spec.id, o) | (o.kwargs or {})
    told = {name: value for name, value in told.items() if value is not None}
    native = namespace(spec.id) == "ALE" and not (o.flatten or o.rescale_actions) and told["frameskip"] == 1
    return told if native and not set(told) - {*EXPRESSED, "max_num_frames_per_episode"} else None


def _common(num_envs: int, o: EnvOptions, told: dict[str, Any]) -> dict[str, Any]:
    """What both backends are told; frames are stacked here."""
    return {
        "num_envs": num_envs, "num_threads": 1, "stack_num": 1, "img_height": o.screen_size, "img_width": o.screen_size,
        "noop_max": o.noop_max, "use_fire_reset": False, "episodic_life": o.terminal_on_life_loss,
        "repeat_action_probability": told.get("repeat_action_probability", 0.25),
        "full_action_space": told.get("full_action_space", False),
    }  # fmt: skip


def _frames(told: dict[str, Any]) -> int:
    return told.get("max_num_frames_per_episode", ATARI_FRAMES)


def _ale(num_envs: int, o: EnvOptions, told: dict[str, Any]) -> Games:
    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode

    env = AtariVectorEnv(
        told["game"], frameskip=o.frame_skip, maxpool=o.frame_skip > 1, grayscale=o.grayscale, reward_clipping=False,
        max_num_frames_per_episode=_frames(told), autoreset_mode=AutoresetMode.SAME_STEP,
        **_common(num_envs, o, told),
    )  # fmt: skip

    def frames(obs: np.ndarray) -> np.ndarray:
        return obs[:, 0].reshape(num_envs, o.screen_size, o.screen_size, -1)

    def reset(seed: int) -> np.ndarray:
        return frames(env.reset(seed=(seed + np.arange(num_envs)) % SEEDS)[0])

    def step(actions: np.ndarray) -> tuple[np.ndarray, ...]:
        obs, reward, terminated, truncated, info = env.step(actions)
        new, over = frames(obs), terminated | truncated
        old = np.where(over[:, None, None, None], frames(info["final_obs"]), new) if over.any() else new
        return old, reward, terminated, truncated, new

    return Games(reset, step, env.single_action_space)


def _envpool(num_envs: int, o: EnvOptions, told: dict[str, Any]) -> Games:
    import envpool  # pyright: ignore[reportMissingImports]
    from gymnasium.spaces import Discrete

    name = "".join(part.capitalize() for part in told["game"].split("_")) + "-v5"

    def make(seed: int) -> Any:
        return envpool.make(
            name, env_type="gymnasium", seed=seed % SEEDS, frame_skip=o.frame_skip, gray_scale=o.grayscale,
            reward_clip=False, max_episode_steps=-(-_frames(told) // o.frame_skip), **_common(num_envs, o, told),
        )  # fmt: skip

    made: dict[str, Any] = {}  # its seed is given when it is made

    def frames(obs: np.ndarray) -> np.ndarray:
        return np.moveaxis(obs, 1, -1)

    def reset(seed: int) -> np.ndarray:
        made["env"] = make(seed)
        return frames(made["env"].reset()[0])

    def step(actions: np.ndarray) -> tuple[np.ndarray, ...]:
        obs, reward, terminated, truncated, _ = made["env"].step(actions)
        old = new = frames(obs)
        ended = np.flatnonzero(terminated | truncated).astype(np.int32)
        if ended.size:  # at once, or it would come with the next step, whose action would do nothing
            new = old.copy()
            new[ended] = frames(made["env"].reset(ended)[0])
        return old, reward, terminated, truncated & ~terminated, new

    return Games(reset, step, Discrete(make(0).action_space.n))


class Vector:
    """Games as a vector of Gymnasium environments: frames stacked, reset in the step that ends one.

    `info` is as that of Gymnasium's vectors with wrapped environments, in as far as an actor reads it.
    """

    def __init__(self, games: Games, num_envs: int, options: EnvOptions):
        from gymnasium.vector.utils import batch_space

        self.games, self.channels = games, 1 if options.grayscale else 3
        side = options.screen_size
        self.ring = np.zeros((options.frame_stack, num_envs, side, side, self.channels), np.uint8)
        self.newest = 0  # frame of the ring
        self.action_space = batch_space(games.actions, num_envs)

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        """uint8 [num_envs, height, width, frame_stack * channels]; game i has the seed `seed` + i."""
        self.ring[:] = self.games.reset(seed)
        return self._stacked(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations, rewards, terminated, truncated and info; of games whose episode ended, `info` has the last."""
        frames, reward, terminated, truncated, first = self.games.step(np.asarray(actions, np.int32))
        self.newest = (self.newest + 1) % len(self.ring)
        self.ring[self.newest] = frames
        info, over = {}, terminated | truncated
        if over.any():
            info = {"final_obs": self._stacked()}
            self.ring[:, over] = first[over]
        return self._stacked(), reward, terminated, truncated, info

    def _stacked(self) -> np.ndarray:
        """The frames of the ring in the last axis, the oldest first."""
        size, n = len(self.ring), self.channels
        out = np.empty((*self.ring.shape[1:-1], size * n), np.uint8)
        for i in range(size):
            out[..., i * n : (i + 1) * n] = self.ring[(self.newest + 1 + i) % size]
        return out

    def close(self) -> None:
        """Nothing to do: the games end with the last reference to them."""
