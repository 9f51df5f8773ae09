"""What MinAtar's games share in JAX: a board of 10 x 10 cells, actions that may stick, and chance as plain numbers.

A row of the board is the low ten bits of an integer, bit x for column x (in Space Invaders it is a column, bit y for
row y). A step then takes tens of operations instead of hundreds, and only the observation is spread out into cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Box, Discrete, Env, Step, Tree
from ..autoreset import Episode, autoreset

SIZE = 10
CELLS = np.arange(SIZE, dtype=np.int32)  # of a row, or rows of the board
FULL = 2**SIZE - 1  # a row with all cells taken
NONE, LEFT, UP, RIGHT, DOWN, FIRE = range(6)  # actions


class Game(NamedTuple):
    """The rules of a game, as functions of what chance brings: float32 [draws], uniform in [0, 1).

    A game reads these numbers in the order in which the package draws its own, so that both can be given the same.
    """

    start: Callable[[jax.Array], Tree]  # draws -> state
    advance: Callable[[Tree, jax.Array, jax.Array], tuple[Tree, jax.Array, jax.Array]]
    # (state, int32 action of all six, draws) -> (state, int32 reward, bool terminated)
    observe: Callable[[Tree], jax.Array]  # state -> bool [10, 10, channels]
    channels: int
    minimal: tuple[int, ...]  # actions that do something
    draws: int  # as many as a step or a start may need


class State(NamedTuple):
    """The state of an `Env`: an episode, and the action that may stick, in the next one too."""

    episode: Episode
    last: jax.Array  # int32, the action taken last


def environment(game: Game, minimal: bool, sticky_actions: float, time_limit: int | None) -> Env:
    """A game as an `Env`; `minimal` leaves out actions that do nothing in it.

    At each step the last action is taken again with the chance `sticky_actions`; at the first of an episode that is, as
    in the package, the last one of the episode before.
    """
    actions = np.array(game.minimal if minimal else range(6), np.int32)

    def start(key: jax.Array) -> Tree:
        return game.start(jax.random.uniform(key, (game.draws,)))

    def advance(state: Tree, act: tuple[jax.Array, jax.Array]) -> tuple[Tree, jax.Array, jax.Array]:
        state, reward, terminated = game.advance(state, *act)
        return state, reward.astype(jnp.float32), terminated

    obs, space = Box((SIZE, SIZE, game.channels), "bool", 0.0, 1.0), Discrete(len(actions))
    # A start costs little, but where XLA fuses it and the step with the picture, it does both anew for each cell
    play = autoreset(start, advance, game.observe, obs, space, time_limit, costly=True)

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        episode, obs = play.reset(key)
        return State(episode, jnp.int32(NONE)), obs

    def step(state: State, action: jax.Array, key: jax.Array) -> tuple[State, Step]:
        key, now = jax.random.split(key)
        draws = jax.random.uniform(now, (1 + game.draws,))
        action = jnp.where(draws[0] < sticky_actions, state.last, jnp.asarray(actions)[action])
        episode, step = play.step(state.episode, (action, draws[1:]), key)
        return State(episode, action), step

    return Env(reset, step, obs, space, time_limit)


def below(draw: jax.Array, n: int | jax.Array) -> jax.Array:
    """A number uniform in [0, 1) as an int32 from 0 to n - 1."""
    return (draw * jnp.asarray(n, jnp.float32)).astype(jnp.int32)


def walk(position: jax.Array, back: jax.Array, forth: jax.Array, low: int = 0, high: int = SIZE - 1) -> jax.Array:
    """One cell back or forth, or none, between walls."""
    return jnp.clip(position + forth.astype(jnp.int32) - back.astype(jnp.int32), low, high)


def cell(x: jax.Array, y: jax.Array) -> jax.Array:
    """The rows, int32 [10], of a board with nothing but that cell."""
    return jnp.where(y == CELLS, 1 << x, 0)


def by_rows(boards: jax.Array) -> jax.Array:
    """Boards, int32 [10, channels] of rows, as bool [10, 10, channels]."""
    return (boards[:, None, :] >> CELLS[None, :, None]) & 1 != 0


def by_columns(boards: jax.Array) -> jax.Array:
    """Boards, int32 [10, channels] of columns, as bool [10, 10, channels]."""
    return (boards[None, :, :] >> CELLS[:, None, None]) & 1 != 0
