"""MinAtar's Space Invaders in JAX: shoot the aliens before they have come down.

Boards are columns here, int32 [10], bit y for row y: bullets and aliens come down by a shift.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .game import CELLS, FIRE, FULL, LEFT, NONE, RIGHT, SIZE, Game, by_columns, walk

RELOAD = 5  # steps between the cannon's shots
MOVE, FASTEST = 12, 6  # most steps between the aliens' moves: of the first wave, and of the last ones
SHOT = 10  # steps between the aliens' shots
BOTTOM = 1 << (SIZE - 1)  # the bit of the cannon's row
WAVE = tuple(0b1111 if 2 <= x < 8 else 0 for x in range(SIZE))


class State(NamedTuple):
    """All int32."""

    x: jax.Array  # of the cannon
    bullets: jax.Array  # [10], its own
    bombs: jax.Array  # [10], theirs
    aliens: jax.Array  # [10]
    right: jax.Array  # 1 or -1: where they go
    move_every: jax.Array
    move_in: jax.Array
    shot_in: jax.Array
    reload_in: jax.Array


def start(draws: jax.Array) -> State:
    zero, empty, move = jnp.int32(0), jnp.zeros(SIZE, jnp.int32), jnp.int32(MOVE)
    wave = jnp.array(WAVE, jnp.int32)
    return State(jnp.int32(5), empty, empty, wave, jnp.int32(-1), move, move, jnp.int32(SHOT), zero)


def advance(s: State, action: jax.Array, draws: jax.Array) -> tuple[State, jax.Array, jax.Array]:
    fires = (action == FIRE) & (s.reload_in == 0)
    x = walk(s.x, action == LEFT, action == RIGHT)
    here = x == CELLS
    bullets = (s.bullets | jnp.where(fires & here, BOTTOM, 0)) >> 1
    bombs = (s.bombs << 1) & FULL
    aliens, right, landed = moved(s)
    hit = ((bombs | s.aliens | aliens) & BOTTOM != 0) & here

    shoots = s.shot_in == 0
    bombs = jnp.where(shoots, bombs | muzzle(aliens, x), bombs)
    killed = aliens & bullets
    bullets, aliens = bullets ^ killed, aliens ^ killed
    cleared = (aliens == 0).all()
    moves = s.move_in == 0
    after = State(
        x, bullets, bombs, jnp.where(cleared, jnp.array(WAVE, jnp.int32), aliens), right,
        jnp.where(cleared, jnp.maximum(s.move_every - 1, FASTEST), s.move_every),
        jnp.where(moves, jnp.minimum(number(s.aliens), s.move_every), s.move_in) - 1,
        jnp.where(shoots, SHOT, s.shot_in) - 1,
        jnp.maximum(jnp.where(fires, RELOAD, s.reload_in) - 1, 0),
    )  # fmt: skip
    return after, number(killed), hit.any() | landed


def moved(s: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Aliens and their direction, moved if it is time: aside, or down at the wall; and whether that led too far."""
    due, rightward = s.move_in == 0, s.right > 0
    turns = due & (jnp.where(rightward, s.aliens[-1], s.aliens[0]) != 0)
    lower = ((s.aliens << 1) | (s.aliens >> (SIZE - 1))) & FULL
    aside = jnp.where(rightward, jnp.roll(s.aliens, 1), jnp.roll(s.aliens, -1))
    aliens = jnp.where(turns, lower, jnp.where(due, aside, s.aliens))
    return aliens, jnp.where(turns, -s.right, s.right), turns & (s.aliens & BOTTOM != 0).any()


def muzzle(aliens: jax.Array, x: jax.Array) -> jax.Array:
    """The lowest alien of the column nearest to x; of two as near, that on the left."""
    far = 2 * jnp.abs(CELLS - x) + (x < CELLS).astype(jnp.int32)
    far = jnp.where(aliens == 0, 2 * SIZE, far)
    lowest = 1 << (31 - jax.lax.clz(jnp.maximum(aliens, 1)))
    return jnp.where((far == far.min()) & (aliens != 0), lowest, 0)


def number(board: jax.Array) -> jax.Array:
    return jax.lax.population_count(board).sum(dtype=jnp.int32)


def observe(s: State) -> jax.Array:
    cannon = jnp.where(s.x == CELLS, BOTTOM, 0)
    left, right = jnp.where(s.right < 0, s.aliens, 0), jnp.where(s.right > 0, s.aliens, 0)
    return by_columns(jnp.stack([cannon, s.aliens, left, right, s.bullets, s.bombs], -1))


GAME = Game(start, advance, observe, channels=6, minimal=(NONE, LEFT, RIGHT, FIRE), draws=0)
