"""MinAtar's games (Young and Tian 2019, arXiv 1903.03176) as Gymnasium environments, through the `minatar` package.

Written from the interface that its README documents. `-v0` has all six actions, `-v1` only those that do something in
the game. Sticky actions (0.1) and growing difficulty are on, as in the paper. No game has a time limit.
"""

from __future__ import annotations

import colorsys
from typing import Any

import gymnasium
import numpy as np

from .make import needed
from .minatar_games import STICKY_ACTIONS, ids, parts

PIXELS = 16  # of a rendered cell, in each direction


def register() -> None:
    """Make the games known to Gymnasium, unless they are already."""
    for env_id in set(ids()) - set(gymnasium.registry):
        game, minimal = parts(env_id)
        kwargs = {"game": game, "minimal_actions": minimal}
        gymnasium.register(env_id, entry_point="frugalrl.envs.minatar:MinAtar", kwargs=kwargs)


class MinAtar(gymnasium.Env):
    """Observations are bool [10, 10, channels]: where each kind of object is. Rewards are as the game gives them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium reads it there)

    def __init__(
        self,
        game: str,
        minimal_actions: bool = True,
        sticky_action_prob: float = STICKY_ACTIONS,
        difficulty_ramping: bool = True,
        render_mode: str | None = None,
    ):
        self._settings = (game, sticky_action_prob, difficulty_ramping)
        self._game, self.render_mode = self._new_game(), render_mode
        every = range(self._game.num_actions())
        self._actions = [int(a) for a in (self._game.minimal_action_set() if minimal_actions else every)]
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))
        self.observation_space = gymnasium.spaces.Box(0, 1, tuple(self._game.state_shape()), bool)  # type: ignore[arg-type]
        self._seeded = False

    def _new_game(self):
        return needed("minatar", "minatar").Environment(*self._settings)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._game = self._new_game()  # the package carries the last action, which may stick, over a reset
            self._game.seed(int(self.np_random.integers(2**31)))
            self._seeded = True
        self._game.reset()
        return self._observe(), {}

    def step(self, action):
        reward, ended = self._game.act(self._actions[int(action)])
        return self._observe(), float(reward), bool(ended), False, {}

    def _observe(self) -> np.ndarray:
        return np.asarray(self._game.state(), np.bool_)

    def render(self):
        """uint8 [160, 160, 3]: a colour for each channel; where two meet, that of the later one."""
        state = self._observe()
        channels = state.shape[-1]
        hues = [colorsys.hsv_to_rgb(k / channels, 0.8, 1.0) for k in range(channels)]
        colours = (255 * np.array([(0, 0, 0), *hues])).astype(np.uint8)
        top = (state * np.arange(1, channels + 1)).max(-1)
        return colours[top].repeat(PIXELS, 0).repeat(PIXELS, 1)
