"""MinAtar's Seaquest in JAX: shoot fish and submarines, bring divers to the surface, mind the oxygen.

The package keeps lists of what swims about. Here they are arrays, the newest last, as long as the lists can become. No
two entries of one can be alike, save bullets of enemies, which nothing tells apart; those are boards.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Tree
from .game import CELLS, DOWN, FIRE, FULL, LEFT, NONE, RIGHT, SIZE, UP, Game, below, by_rows, cell, walk

OXYGEN = 200  # steps
CREW = 6  # divers aboard at most
SPAWN, FASTEST_SPAWN = 20, 1  # steps between enemies, in the beginning and in the end
MOVE, FASTEST = 5, 2  # steps between moves of enemies
DIVER, DIVER_MOVE = 30, 5  # steps between divers, and between a diver's moves
RELOAD, ENEMY_RELOAD = 5, 10  # steps between shots
TOP, ROWS = 1, 8  # where enemies and divers swim
BULLETS = 2  # a bullet has left after 10 steps
DIVERS = 2  # a diver has left after 60
ENEMIES = 30  # one a step at most by then, and after 30 it has left
AGE = np.arange(ENEMIES, dtype=np.int32)


class Bullets(NamedTuple):
    x: jax.Array
    y: jax.Array
    right: jax.Array  # bool: flies to the right
    there: jax.Array  # bool


class Divers(NamedTuple):
    x: jax.Array
    y: jax.Array
    right: jax.Array  # bool
    there: jax.Array  # bool
    move_in: jax.Array


class Enemies(NamedTuple):
    """In one row all go the same way."""

    x: jax.Array
    y: jax.Array
    right: jax.Array  # bool
    there: jax.Array  # bool
    move_in: jax.Array
    shot_in: jax.Array  # means nothing of a fish
    sub: jax.Array  # bool: a submarine, else a fish


class State(NamedTuple):
    """Int32 unless told otherwise."""

    x: jax.Array
    y: jax.Array
    right: jax.Array  # bool: where it looks
    reload_in: jax.Array
    oxygen: jax.Array
    aboard: jax.Array  # divers; after six were brought up it is -1, as in the package
    surfaced: jax.Array  # bool
    bullets: Bullets  # [2]
    divers: Divers  # [2]
    enemies: Enemies  # [30]
    leftward: jax.Array  # [10], rows of enemies' bullets
    rightward: jax.Array
    spawn_every: jax.Array
    spawn_in: jax.Array
    diver_in: jax.Array
    move_every: jax.Array
    ramps: jax.Array


def start(draws: jax.Array) -> State:
    number, no, yes = jnp.int32, jnp.bool_(False), jnp.bool_(True)

    def numbers(n: int) -> jax.Array:
        return jnp.zeros(n, jnp.int32)

    def flags(n: int) -> jax.Array:
        return jnp.zeros(n, jnp.bool_)

    n = ENEMIES
    return State(
        number(5), number(0), no, number(0), number(OXYGEN), number(0), yes,
        Bullets(numbers(BULLETS), numbers(BULLETS), flags(BULLETS), flags(BULLETS)),
        Divers(numbers(DIVERS), numbers(DIVERS), flags(DIVERS), flags(DIVERS), numbers(DIVERS)),
        Enemies(numbers(n), numbers(n), flags(n), flags(n), numbers(n), numbers(n), flags(n)),
        numbers(SIZE), numbers(SIZE), number(SPAWN), number(SPAWN), number(DIVER), number(MOVE), number(0),
    )  # fmt: skip


def advance(s: State, action: jax.Array, draws: jax.Array) -> tuple[State, jax.Array, jax.Array]:
    s = steered(spawned(s, draws), action)
    s, shot = bullets_fly(s)
    s = divers_swim(s)
    s, rammed, met = enemies_swim(s)
    s, struck = bombs_fly(s)
    s, saved, drowned = breathed(s)
    return s, shot + rammed + saved, met | struck | drowned


def spawned(s: State, draws: jax.Array) -> State:
    """When it is time, a new enemy, unless others in its row go the other way; and a new diver."""
    enemies, divers = s.enemies, s.divers
    due, right, y = s.spawn_in == 0, draws[0] < 1 / 2, TOP + below(draws[2], ROWS)
    clash = (enemies.there & (enemies.y == y) & (enemies.right != right)).any()
    enemy = Enemies(edge(right), y, right, jnp.bool_(True), s.move_every, jnp.int32(ENEMY_RELOAD), draws[1] < 1 / 3)
    comes, right = s.diver_in == 0, draws[3] < 1 / 2
    diver = Divers(edge(right), TOP + below(draws[4], ROWS), right, jnp.bool_(True), jnp.int32(DIVER_MOVE))
    return s._replace(
        enemies=pushed(due & ~clash, enemies, enemy),
        divers=pushed(comes, divers, diver),
        spawn_in=jnp.where(due, s.spawn_every, s.spawn_in) - 1,
        diver_in=jnp.where(comes, DIVER, s.diver_in) - 1,
    )


def edge(right: jax.Array) -> jax.Array:
    """Where that begins which goes to the right, or to the left."""
    return jnp.where(right, 0, SIZE - 1)


def pushed(due: jax.Array, old: Tree, new: Tree) -> Tree:
    """Arrays with a new last entry, the first one dropped."""
    return jax.tree.map(lambda x, y: jnp.where(due, jnp.concatenate([x[1:], y[None]]), x), old, new)


def steered(s: State, action: jax.Array) -> State:
    """After the player's action."""
    fires = (action == FIRE) & (s.reload_in == 0)
    left, right = action == LEFT, action == RIGHT
    return s._replace(
        bullets=pushed(fires, s.bullets, Bullets(s.x, s.y, s.right, jnp.bool_(True))),
        x=walk(s.x, left, right),
        y=walk(s.y, action == UP, action == DOWN, 0, SIZE - 2),
        right=(s.right | right) & ~left,
        reload_in=jnp.maximum(jnp.where(fires, RELOAD, s.reload_in) - 1, 0),
    )


def bullets_fly(s: State) -> tuple[State, jax.Array]:
    """Each of the player's bullets, the newest first, takes the oldest fish of its cell, else the oldest submarine."""
    bullets, enemies = s.bullets, s.enemies
    x = bullets.x + jnp.where(bullets.right, 1, -1)
    flies = bullets.there & (x >= 0) & (x < SIZE)
    order = AGE + jnp.where(enemies.sub, ENEMIES, 0)
    there, left, reward = enemies.there, [], jnp.int32(0)
    for k in reversed(range(BULLETS)):
        here = there & flies[k] & (enemies.x == x[k]) & (enemies.y == bullets.y[k])
        first = jnp.where(here, order, 2 * ENEMIES).min()
        there &= order != first
        hit = first < 2 * ENEMIES
        left = [flies[k] & ~hit, *left]
        reward += hit.astype(jnp.int32)
    bullets = bullets._replace(x=x, there=jnp.stack(left))
    return s._replace(bullets=bullets, enemies=enemies._replace(there=there)), reward


def divers_swim(s: State) -> State:
    """Divers come aboard while there is room, the newest first; others swim on."""
    divers, moves = s.divers, s.divers.move_in == 0
    x = jnp.where(moves, divers.x + jnp.where(divers.right, 1, -1), divers.x)
    met = divers.there & (divers.y == s.y) & ((divers.x == s.x) | (x == s.x))
    newer = jnp.stack([met[1], jnp.bool_(False)]).astype(jnp.int32)
    taken = met & (s.aboard + newer < CREW)
    there = divers.there & ~taken & (x >= 0) & (x < SIZE)
    move_in = jnp.where(moves, DIVER_MOVE, divers.move_in - 1)
    return s._replace(
        divers=divers._replace(x=x, there=there, move_in=move_in), aboard=s.aboard + taken.sum(dtype=jnp.int32)
    )


def enemies_swim(s: State) -> tuple[State, jax.Array, jax.Array]:
    """The state, how many swam into a bullet, and whether one met the player.

    No two that move at once come to the same cell: of two in a row, the older is ahead by the steps between them.
    """
    enemies, bullets = s.enemies, s.bullets
    moves = enemies.there & (enemies.move_in == 0)
    x = jnp.where(moves, enemies.x + jnp.where(enemies.right, 1, -1), enemies.x)
    inside = (x >= 0) & (x < SIZE)
    beside = enemies.there & (enemies.y == s.y)
    met = beside & ((enemies.x == s.x) | (x == s.x))

    comes = moves & ~(beside & (x == s.x))
    there, reward, left = enemies.there & inside, jnp.int32(0), []
    for k in range(BULLETS):  # the older one goes first, if both are there
        into = comes & bullets.there[k] & (x == bullets.x[k]) & (enemies.y == bullets.y[k])
        hit = into.any()
        comes, there = comes & ~into, there & ~into
        left.append(bullets.there[k] & ~hit)
        reward += hit.astype(jnp.int32)

    shoots = enemies.there & enemies.sub & (enemies.shot_in == 0)  # also if it was just hit
    shot = jnp.where(shoots & inside, 1 << jnp.clip(x, 0, SIZE - 1), 0)
    both = joined(enemies.y, jnp.where(enemies.right, shot, shot << SIZE))
    s = s._replace(
        bullets=bullets._replace(there=jnp.stack(left)),
        rightward=s.rightward | (both & FULL),
        leftward=s.leftward | (both >> SIZE),
        enemies=enemies._replace(
            x=x,
            there=there,
            move_in=jnp.where(moves, s.move_every, enemies.move_in - 1),
            shot_in=jnp.where(shoots, ENEMY_RELOAD, enemies.shot_in - 1),
        ),
    )
    return s, reward, met.any()


def joined(y: jax.Array, bits: jax.Array) -> jax.Array:
    """The rows, int32 [10], of a board with `bits` [n] in the rows `y` [n]."""
    rows = jnp.where(y[:, None] == CELLS[None], bits[:, None], 0)
    return jax.lax.reduce(rows, np.int32(0), jax.lax.bitwise_or, (0,))


def bombs_fly(s: State) -> tuple[State, jax.Array]:
    """The state, and whether an enemy's bullet struck the player, before or after it moved."""
    here = cell(s.x, s.y)
    leftward, rightward = s.leftward >> 1, (s.rightward << 1) & FULL
    struck = ((s.leftward | s.rightward | leftward | rightward) & here != 0).any()
    return s._replace(leftward=leftward, rightward=rightward), struck


def breathed(s: State) -> tuple[State, jax.Array, jax.Array]:
    """The state, the reward for a full crew brought up, and whether the air is gone, or there was nobody to bring up.

    Each time that divers are brought up, enemies come more often, and every second time they move faster.
    """
    under = s.y > 0
    up = ~under & ~s.surfaced
    rises, full = up & (s.aboard != 0), s.aboard == CREW
    rising = rises & ((s.spawn_every > FASTEST_SPAWN) | (s.move_every > FASTEST))
    faster = rising & (s.ramps % 2 == 1)
    after = s._replace(
        oxygen=jnp.where(rises, OXYGEN, s.oxygen - under.astype(jnp.int32)),
        aboard=jnp.where(rises, jnp.where(full, 0, s.aboard) - 1, s.aboard),
        surfaced=~under & (s.surfaced | rises),
        spawn_every=jnp.where(rising, jnp.maximum(s.spawn_every - 1, FASTEST_SPAWN), s.spawn_every),
        move_every=jnp.where(faster, jnp.maximum(s.move_every - 1, FASTEST), s.move_every),
        ramps=s.ramps + rising.astype(jnp.int32),
    )
    reward = jnp.where(rises & full, s.oxygen * SIZE // OXYGEN, 0)
    return after, reward, (s.oxygen <= 0) | (up & ~rises)


def observe(s: State) -> jax.Array:
    front, back = cell(s.x, s.y), cell(jnp.where(s.right, s.x - 1, s.x + 1), s.y)
    bullets = joined(s.bullets.y, jnp.where(s.bullets.there, 1 << s.bullets.x, 0))
    divers, behind = trailing(s.divers)
    diver = joined(s.divers.y, divers | behind << SIZE)
    enemies, trails = trailing(s.enemies)
    # three boards in one: fish, submarines, trails
    enemy = joined(s.enemies.y, jnp.where(s.enemies.sub, enemies << SIZE, enemies) | trails << 2 * SIZE)
    floor = CELLS == SIZE - 1
    oxygen = jnp.where(floor, (1 << jnp.maximum(s.oxygen, 0) * SIZE // OXYGEN) - 1, 0)
    crew = jnp.where(floor, FULL >> 1 & ~((1 << SIZE - 1 - jnp.maximum(s.aboard, 0)) - 1), 0)
    boards = (
        front, back, bullets, enemy >> 2 * SIZE | diver >> SIZE, s.leftward | s.rightward,
        enemy & FULL, enemy >> SIZE & FULL, oxygen, crew, diver & FULL,
    )  # fmt: skip
    return by_rows(jnp.stack(boards, -1))


def trailing(swimmers: Divers | Enemies) -> tuple[jax.Array, jax.Array]:
    """Of each swimmer, the bit of its column and that of the one behind it, if there is one."""
    here = jnp.where(swimmers.there, 1 << swimmers.x, 0)
    return here, jnp.where(swimmers.right, here >> 1, here << 1 & FULL)


GAME = Game(start, advance, observe, channels=10, minimal=(NONE, LEFT, UP, RIGHT, DOWN, FIRE), draws=5)
