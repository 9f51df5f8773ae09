"""MinAtar's Freeway in JAX: cross eight lanes of cars, again and again."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .game import CELLS, DOWN, FULL, NONE, SIZE, UP, Game, below, by_rows, cell

CARS, TOP = 8, 1  # one in each row from there
COLUMN = 4  # the chicken's
BOTTOM = SIZE - 1
PACE = 3  # steps between moves of the chicken
STEPS = 2500  # the game ends at the step after those
SPEEDS = 5  # a car moves at every step, or after 1 to 5 without


class State(NamedTuple):
    """All int32."""

    y: jax.Array  # of the chicken
    move_in: jax.Array
    left: jax.Array  # steps of the episode
    at: jax.Array  # [8], the cars' columns
    speed: jax.Array  # [8], steps between moves; negative for those that go to the left
    wait: jax.Array  # [8], steps until they move


def start(draws: jax.Array) -> State:
    speed = speeds(draws)
    cars = jnp.zeros(CARS, jnp.int32), speed, jnp.abs(speed)
    return State(jnp.int32(BOTTOM), jnp.int32(PACE), jnp.int32(STEPS), *cars)


def speeds(draws: jax.Array) -> jax.Array:
    steps = 1 + below(draws[:CARS], SPEEDS)
    return jnp.where(draws[CARS:] < 1 / 2, -steps, steps)


def advance(s: State, action: jax.Array, draws: jax.Array) -> tuple[State, jax.Array, jax.Array]:
    walks = ((action == UP) | (action == DOWN)) & (s.move_in == 0)
    y = jnp.where(walks, jnp.clip(s.y + jnp.where(action == UP, -1, 1), 0, BOTTOM), s.y)
    move_in = jnp.maximum(jnp.where(walks, PACE, s.move_in) - 1, 0)

    won = y == 0
    y = jnp.where(won, BOTTOM, y)
    speed = jnp.where(won, speeds(draws), s.speed)
    wait = jnp.where(won, jnp.abs(speed), s.wait)

    moves = wait == 0
    at = jnp.where(moves, (s.at + jnp.where(speed > 0, 1, SIZE - 1)) % SIZE, s.at)
    wait = jnp.where(moves, jnp.abs(speed), wait - 1)
    hit = ((s.at == COLUMN) | (at == COLUMN)) & (y == CELLS[TOP : TOP + CARS])
    y = jnp.where(hit.any(), BOTTOM, y)
    after = State(y, move_in, s.left - 1, at, speed, wait)
    return after, won.astype(jnp.int32), after.left < 0


def observe(s: State) -> jax.Array:
    car = 1 << s.at
    behind = jnp.where(s.speed > 0, car >> 1 | car << 9, car << 1 | car >> 9) & FULL
    channel = np.arange(2 + SPEEDS, dtype=np.int32)[None]
    trails = jnp.where(channel == 1 + jnp.abs(s.speed)[:, None], behind[:, None], 0)
    cars = jnp.pad(jnp.where(channel == 1, car[:, None], trails), ((TOP, SIZE - TOP - CARS), (0, 0)))
    return by_rows(jnp.where(channel == 0, cell(jnp.int32(COLUMN), s.y)[:, None], cars))


GAME = Game(start, advance, observe, channels=2 + SPEEDS, minimal=(NONE, UP, DOWN), draws=2 * CARS)
