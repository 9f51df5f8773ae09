"""MinAtar's Asterix in JAX: collect treasure, keep out of the way of enemies."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .game import CELLS, DOWN, FULL, LEFT, NONE, RIGHT, SIZE, UP, Game, below, by_rows, cell, walk

TOP, BOTTOM = 1, 8  # rows with entities, one in each at most
RAMP = 100  # steps between rises of the difficulty
SPAWN, MOVE = 10, 5  # steps between spawns, and between moves, in the beginning


class State(NamedTuple):
    """The player, what is in each row, and clocks; int32 unless told otherwise."""

    x: jax.Array
    y: jax.Array
    there: jax.Array  # bool [10]: there is something in that row
    at: jax.Array  # [10]: in which column
    right: jax.Array  # bool [10]: it goes to the right
    gold: jax.Array  # bool [10]: treasure, else an enemy
    spawn_every: jax.Array
    spawn_in: jax.Array
    move_every: jax.Array
    move_in: jax.Array
    ramp_in: jax.Array
    ramps: jax.Array


def start(draws: jax.Array) -> State:
    middle, none, spawn, move = jnp.int32(5), jnp.zeros(SIZE, jnp.bool_), jnp.int32(SPAWN), jnp.int32(MOVE)
    rows = jnp.zeros(SIZE, jnp.int32)
    return State(middle, middle, none, rows, none, none, spawn, spawn, move, move, jnp.int32(RAMP), jnp.int32(0))


def advance(s: State, action: jax.Array, draws: jax.Array) -> tuple[State, jax.Array, jax.Array]:
    s = spawned(s, draws)
    x, y = walk(s.x, action == LEFT, action == RIGHT), walk(s.y, action == UP, action == DOWN, TOP, BOTTOM)
    moves = s.move_in == 0
    at = jnp.where(moves, s.at + jnp.where(s.right, 1, -1), s.at)
    met = s.there & (y == CELLS) & ((s.at == x) | (at == x))
    taken, hit = met & s.gold, met & ~s.gold
    there = s.there & ~taken & (at >= 0) & (at < SIZE)
    s = s._replace(x=x, y=y, there=there, at=at, move_in=jnp.where(moves, s.move_every, s.move_in) - 1)
    return ramped(s), taken.any().astype(jnp.int32), hit.any()


def spawned(s: State, draws: jax.Array) -> State:
    """When it is time, something new in one of the rows without anything."""
    due = s.spawn_in == 0
    free = ~s.there & (CELLS >= TOP) & (CELLS <= BOTTOM)
    rows = jnp.where(free, 1 << CELLS, 0).sum(dtype=jnp.int32)
    before = jax.lax.population_count(rows & ((1 << CELLS) - 1))
    new = due & free & (before == below(draws[2], jax.lax.population_count(rows)))
    right, gold = draws[0] < 1 / 2, draws[1] < 1 / 3
    return s._replace(
        there=s.there | new,
        at=jnp.where(new, jnp.where(right, 0, SIZE - 1), s.at),
        right=jnp.where(new, right, s.right),
        gold=jnp.where(new, gold, s.gold),
        spawn_in=jnp.where(due, s.spawn_every, s.spawn_in) - 1,
    )


def ramped(s: State) -> State:
    """The state with its difficulty, which rises until something spawns and moves at each step."""
    rising = (s.spawn_every > 1) | (s.move_every > 1)
    due = rising & (s.ramp_in < 0)
    return s._replace(
        spawn_every=jnp.where(due, jnp.maximum(s.spawn_every - 1, 1), s.spawn_every),
        move_every=jnp.where(due & (s.ramps % 2 == 1), jnp.maximum(s.move_every - 1, 1), s.move_every),
        ramp_in=jnp.where(due, RAMP, s.ramp_in - rising.astype(jnp.int32)),
        ramps=s.ramps + due.astype(jnp.int32),
    )


def observe(s: State) -> jax.Array:
    here = jnp.where(s.there, 1 << s.at, 0)
    trail = jnp.where(s.right, here >> 1, (here << 1) & FULL)
    enemies, gold = jnp.where(s.gold, 0, here), jnp.where(s.gold, here, 0)
    return by_rows(jnp.stack([cell(s.x, s.y), enemies, trail, gold], -1))


GAME = Game(start, advance, observe, channels=4, minimal=(NONE, LEFT, UP, RIGHT, DOWN), draws=3)
