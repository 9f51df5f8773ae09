"""The DeepMind Control Suite (Tassa et al. 2018, arXiv 1801.00690) as Gymnasium environments `dm_control/D-T-v0`, and
seen as pictures `dm_control_pixels/D-T-v0`.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

from ..errors import UsageError, one_line
from .make import mujoco_warns, needed

TASKS = {  # of each domain; a table, so that ids are known before the suite is imported or installed
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}
REPEATED = {  # how often an action is, in the tasks that agents are usually compared on from pictures
    "ball_in_cup-catch": 4, "cartpole-swingup": 8, "cheetah-run": 4, "finger-spin": 2, "reacher-easy": 4,
    "walker-walk": 2,
}  # fmt: skip
REPEATS = 2  # in the others
SIDE = 84  # pixels of such a picture
# Texels of a shadow map, in place of the models' 2048: with Mesa's software renderer a picture of 84 x 84 took 13 ms of
# a core instead of 23 (cheetah, walker), and differs in the edges of shadows, by 0.002 to 0.012 of 255 on average.
SHADOWS = 512
HOW_TO_DRAW = (
    "on a machine without a display it takes a system library: apt install libegl1 libgl1-mesa-dri, or the driver of a "
    "GPU"
)


def ids() -> list[str]:
    return [f"dm_control/{domain}-{task}-v0" for domain, tasks in TASKS.items() for task in tasks]


def register() -> None:
    """Make the tasks known to Gymnasium, unless they are already."""
    for domain, tasks in TASKS.items():
        for task in tasks:
            kwargs = {"domain": domain, "task": task}
            pictures = {"pixels": SIDE, "action_repeat": REPEATED.get(f"{domain}-{task}", REPEATS)}
            for space, how in (("dm_control", {}), ("dm_control_pixels", pictures)):
                env_id = f"{space}/{domain}-{task}-v0"
                if env_id not in gymnasium.registry:
                    gymnasium.register(env_id, entry_point="frugalrl.envs.dm_control:DmControl", kwargs=kwargs | how)


class DmControl(gymnasium.Env):
    """Observations are float32 [n]: the suite's arrays, flattened and joined in its order; or, with `pixels`, uint8
    [pixels, pixels, 3]: what the task's camera sees.

    An episode is truncated at the suite's time limit (1000 of its steps in most tasks) and terminated only where the
    suite's discount is 0. Each action is repeated for `action_repeat` of its steps, or until the episode ends; rewards
    are their sum, from 0 to 1 each. Raises UsageError where pictures are asked for and nothing can draw them.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium reads it there)

    def __init__(
        self, domain: str, task: str, render_mode: str | None = None, width: int = 320, height: int = 240,
        pixels: int = 0, action_repeat: int = 1,
    ):  # fmt: skip
        if not (isinstance(pixels, int) and isinstance(action_repeat, int) and pixels >= 0 and action_repeat >= 1):
            raise UsageError(
                f"pixels must be a whole number from 0, and action_repeat from 1, got {pixels} and {action_repeat}"
            )
        # A fixed seed for what is drawn when a task is loaded (the body of lqr); `reset` seeds what episodes draw.
        self._env = suite().load(domain, task, task_kwargs={"random": 0})
        self.render_mode, self._size, self._seeded = render_mode, (height, width), False
        self._pixels, self._repeat = pixels, action_repeat
        # of quadruped the first one stays behind
        self._camera = 2 if domain == "quadruped" else 0 if self._env.physics.model.ncam else -1
        fps = max(1, round(1 / self._env.control_timestep() / action_repeat))
        self.metadata = self.metadata | {"render_fps": fps}
        actions = self._env.action_spec()
        low, high = actions.minimum.astype(np.float32), actions.maximum.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        if pixels:
            self._env.physics.model.vis.quality.shadowsize = SHADOWS
            self.observation_space = gymnasium.spaces.Box(0, 255, self._picture(domain, task).shape, np.uint8)
        else:
            n = sum(int(np.prod(part.shape)) for part in self._env.observation_spec().values())
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (n,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._env.task.random.seed(int(self.np_random.integers(2**31)))
            self._seeded = True
        return self._seen(self._env.reset()), {}

    def step(self, action):
        step = self._env.step(action)
        reward = float(step.reward or 0)
        for _ in range(self._repeat - 1):
            if step.last():
                break
            step = self._env.step(action)
            reward += float(step.reward or 0)
        terminated = step.last() and step.discount == 0
        return self._seen(step), reward, terminated, step.last() and not terminated, {}

    def render(self):
        return self._drawn(*self._size)

    def close(self):
        self._env.close()

    def _seen(self, step: Any) -> np.ndarray:
        return self._drawn(self._pixels, self._pixels) if self._pixels else _flat(step.observation)

    def _drawn(self, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3]; camera -1 is free and looks at the middle."""
        return self._env.physics.render(height, width, camera_id=self._camera)

    def _picture(self, domain: str, task: str) -> np.ndarray:
        """The first one. Raises UsageError if there can be none."""
        try:
            return self._drawn(self._pixels, self._pixels)
        except Exception as error:  # OpenGL, EGL, MuJoCo and the suite each raise their own
            why = f"{domain}-{task} cannot be seen as pictures, as nothing here can draw them ({one_line(error)})"
            raise UsageError(f"{why}; {HOW_TO_DRAW}") from None


def _flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)


@cache
def suite() -> Any:
    """The suite's module. Raises UsageError if $MUJOCO_GL asks for an OpenGL that is not there."""
    needed("dm_control", "dmc")
    try:
        made = _with_graphics()
    except AttributeError as error:  # what PyOpenGL raises without its library
        asked = f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} does not work here ({one_line(error)})"
        raise UsageError(f"{asked}: leave it unset, or install what it needs") from None
    import_module("mujoco").set_mju_user_warning(mujoco_warns)  # instead of the suite's, which logs every one
    return made


def _with_graphics() -> Any:
    """The suite's module, imported so that it can draw if anything here can.

    Which OpenGL it draws with is settled when it is imported, and without a display its first choice imports well but
    cannot draw; so the first that works without one is taken, unless $MUJOCO_GL says which. Mesa's software renderer
    draws on the calling thread: its own threads take longer for small pictures, and from other actors.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
        for name in ("egl", "osmesa", "disable"):
            os.environ["MUJOCO_GL"] = name
            try:
                return import_module("dm_control.suite")
            except (ImportError, AttributeError):  # AttributeError is what PyOpenGL raises without its library
                continue
    return import_module("dm_control.suite")
