"""MinAtar's games (Young and Tian 2019, arXiv 1903.03176) in JAX, by the rules of the package `minatar` (1.0.15).

`game.py` is what they share. Sticky actions and growing difficulty are on, and no episode is cut off. Importing this
loads no JAX.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...types import Env

GAMES = {  # Gymnasium's name -> the package's, and the module's here
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
OPTIONS = ("sticky_actions", "time_limit")  # of the environment, that `twin` takes
STICKY_ACTIONS = 0.1


def ids() -> list[str]:
    """`-v0` has all six actions, `-v1` only those that do something in the game."""
    return [f"MinAtar/{name}-v{version}" for name in GAMES for version in (0, 1)]


def parts(env_id: str) -> tuple[str, bool]:
    """The package's name of an id's game, and whether it has the minimal set of actions."""
    name, version = env_id.removeprefix("MinAtar/").split("-v")
    return GAMES[name], version == "1"


@cache
def twin(env_id: str, sticky_actions: float = STICKY_ACTIONS, time_limit: int | None = None) -> Env:
    """An id's game as an `Env`; observations are bool [10, 10, channels].

    `sticky_actions` is the chance that the last action is taken again; episodes are truncated after `time_limit` steps,
    if it is given.
    """
    from .game import environment

    name, minimal = parts(env_id)
    game = import_module(f".{name}", __package__).GAME
    return environment(game, minimal, sticky_actions, time_limit)
