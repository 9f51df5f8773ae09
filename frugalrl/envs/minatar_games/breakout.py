"""MinAtar's Breakout in JAX: keep the ball in play, break bricks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .game import CELLS, FULL, LEFT, NONE, RIGHT, SIZE, Game, by_rows, cell, walk

TOP, ROWS = 1, 3  # where the bricks are
WALL = 2 ** (ROWS * SIZE) - 1
FLOOR = SIZE - 1  # the paddle's row


class State(NamedTuple):
    """All int32, but for `inside`."""

    x: jax.Array  # of the ball
    y: jax.Array
    right: jax.Array  # 1 or -1: where it flies
    down: jax.Array
    last_x: jax.Array
    last_y: jax.Array
    paddle: jax.Array
    bricks: jax.Array  # a bit for each, row by row from the top one
    inside: jax.Array  # bool: the ball has struck a brick, and goes through the next


def start(draws: jax.Array) -> State:
    from_right = draws[0] >= 1 / 2
    x, y, one = jnp.where(from_right, jnp.int32(SIZE - 1), 0), jnp.int32(3), jnp.int32(1)
    return State(x, y, jnp.where(from_right, -one, one), one, x, y, jnp.int32(4), jnp.int32(WALL), jnp.bool_(False))


def advance(s: State, action: jax.Array, draws: jax.Array) -> tuple[State, jax.Array, jax.Array]:
    paddle = walk(s.paddle, action == LEFT, action == RIGHT)
    x, y = s.x + s.right, s.y + s.down
    right = jnp.where((x < 0) | (x >= SIZE), -s.right, s.right)
    x = jnp.clip(x, 0, SIZE - 1)

    ceiling, floor = y < 0, y == FLOOR
    place = SIZE * (y - TOP) + x
    brick = (y >= TOP) & (y < TOP + ROWS) & ((s.bricks >> jnp.clip(place, 0, ROWS * SIZE - 1)) & 1 != 0)
    struck = brick & ~s.inside
    bricks = jnp.where(struck, s.bricks & ~(1 << place), s.bricks)
    bricks = jnp.where(floor & (bricks == 0), WALL, bricks)

    over_paddle, beside = floor & (s.x == paddle), floor & (x == paddle)
    bounced = struck | over_paddle | beside  # back up, or down
    right = jnp.where(beside & ~over_paddle, -right, right)
    down = jnp.where(ceiling | bounced, -s.down, s.down)
    y = jnp.where(ceiling, 0, jnp.where(bounced, s.y, y))
    after = State(x, y, right, down, s.x, s.y, paddle, bricks, brick)
    return after, struck.astype(jnp.int32), floor & ~bounced


def observe(s: State) -> jax.Array:
    row = jnp.clip(CELLS - TOP, 0, ROWS - 1)
    bricks = jnp.where((row == CELLS - TOP), (s.bricks >> (SIZE * row)) & FULL, 0)
    paddle, ball, trail = cell(s.paddle, jnp.int32(FLOOR)), cell(s.x, s.y), cell(s.last_x, s.last_y)
    return by_rows(jnp.stack([paddle, ball, trail, bricks], -1))


GAME = Game(start, advance, observe, channels=4, minimal=(NONE, LEFT, RIGHT), draws=1)
