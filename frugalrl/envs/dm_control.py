"""The DeepMind Control Suite (Tassa et al. 2018, arXiv 1801.00690) as Gymnasium environments `dm_control/D-T-v0`."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

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


def ids() -> list[str]:
    return [f"dm_control/{domain}-{task}-v0" for domain, tasks in TASKS.items() for task in tasks]


def register() -> None:
    """Make the tasks known to Gymnasium, unless they are already."""
    for domain, tasks in TASKS.items():
        for task in tasks:
            env_id, kwargs = f"dm_control/{domain}-{task}-v0", {"domain": domain, "task": task}
            if env_id not in gymnasium.registry:
                gymnasium.register(env_id, entry_point="frugalrl.envs.dm_control:DmControl", kwargs=kwargs)


class DmControl(gymnasium.Env):
    """Observations are float32 [n]: the suite's arrays, flattened and joined in its order.

    An episode is truncated at the suite's time limit (1000 steps of most tasks) and terminated only where the suite's
    discount is 0. Rewards are from 0 to 1 a step.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium reads it there)

    def __init__(self, domain: str, task: str, render_mode: str | None = None, width: int = 320, height: int = 240):
        # A fixed seed for what is drawn when a task is loaded (the body of lqr); `reset` seeds what episodes draw.
        self._env = suite().load(domain, task, task_kwargs={"random": 0})
        self.render_mode, self._size, self._seeded = render_mode, (height, width), False
        self.metadata = self.metadata | {"render_fps": round(1 / self._env.control_timestep())}
        actions = self._env.action_spec()
        low, high = actions.minimum.astype(np.float32), actions.maximum.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        n = sum(int(np.prod(part.shape)) for part in self._env.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (n,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._env.task.random.seed(int(self.np_random.integers(2**31)))
            self._seeded = True
        return _flat(self._env.reset().observation), {}

    def step(self, action):
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0
        return _flat(step.observation), float(step.reward or 0), terminated, step.last() and not terminated, {}

    def render(self):
        height, width = self._size
        camera = 0 if self._env.physics.model.ncam else -1  # -1 is free and looks at the middle
        return self._env.physics.render(height, width, camera_id=camera)

    def close(self):
        self._env.close()


def _flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float32)


@cache
def suite() -> Any:
    """The suite's module."""
    needed("dm_control", "dmc")
    made = _with_graphics()
    import_module("mujoco").set_mju_user_warning(mujoco_warns)  # instead of the suite's, which logs every one
    return made


def _with_graphics() -> Any:
    """The suite's module, imported so that it can draw if anything here can.

    Which OpenGL it draws with is settled when it is imported, and without a display its first choice imports well but
    cannot draw; so the first that works without one is taken, unless $MUJOCO_GL says which.
    """
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
        for name in ("egl", "osmesa", "disable"):
            os.environ["MUJOCO_GL"] = name
            try:
                return import_module("dm_control.suite")
            except (ImportError, AttributeError):  # AttributeError is what PyOpenGL raises without its library
                continue
    return import_module("dm_control.suite")
