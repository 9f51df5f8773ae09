"""An environment of pictures as those of dm_control's cheetah, all of them black: for benchmarks of what learns from
pictures, which need not draw any.
"""

from __future__ import annotations

import gymnasium
import numpy as np


class Blank(gymnasium.Env):
    """Observations are uint8 [84, 84, 3]; nothing ever happens."""

    observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((84, 84, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((84, 84, 3), np.uint8), 0.0, False, False, {}


gymnasium.register("Blank-v0", entry_point=Blank, disable_env_checker=True)
