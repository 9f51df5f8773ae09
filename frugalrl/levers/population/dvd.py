"""DvD: members of one population that share a critic, and are pulled apart by the determinant of a kernel of what they
do (Parker-Holder et al. 2020, arXiv 2002.00632).

Functions of stacked weights [members, ...], whatever trains and plays them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .joint import Rule

JITTER = 1e-3  # on the diagonal of a kernel: members that do the same have a determinant near 0, with a gradient
# The arms of the bandit, and of how many of its last generations it knows the outcome. An arm has won if the best
# member was better than in any of the generations just before.
ARMS, WINDOW, BEFORE = (0.0, 0.5), 50, 5
# Until which share of the training a weight holds; the last is for the rest. The steps of Flajolet et al. 2022 (arXiv
# 2206.08888), out of three million.
SCHEDULE = ((50 / 3000, 0.0), (300 / 3000, 0.3), (700 / 3000, 0.5), (1.0, 0.2))
SCORES = 5  # generations, about, that a member's score is a mean of


def kernel(behaviour: Any) -> Any:
    """Squared exponential of the distances of behaviours [members, n]: [members, members], length 1."""
    apart = behaviour[:, None] - behaviour[None]
    return jnp.exp(-0.5 * jnp.sum(jnp.square(apart), -1))


def log_determinant(matrix: Any) -> Any:
    """That of a symmetric matrix [n, n] plus JITTER on its diagonal, by elimination.

    Pivots are at least JITTER, so none has to be looked for; LAPACK, which JAX would call, is better left alone inside
    of programs that run beside each other.
    """
    left, total = matrix + JITTER * jnp.eye(len(matrix)), jnp.float32(0)
    for _ in range(len(matrix)):
        pivot, column = left[0, 0], left[1:, 0]
        total = total + jnp.log(pivot)
        left = left[1:, 1:] - column[:, None] * (column / pivot)[None]
    return total


def diversity(behaviour: Any) -> Any:
    """The volume that behaviours [members, n] span, from about 0 to 1 (definition 3.3)."""
    return jnp.exp(log_determinant(kernel(behaviour)))


class Memory(NamedTuple):
    """What goes from one generation to the next."""

    scores: Any  # float32 [members], a running mean of each one's fitness; NaN before the first
    trials: Any  # float32 [WINDOW, arms, 2]: of each generation, whether its arm won or lost
    highs: Any  # float32 [BEFORE], the best fitness of the generations before; the oldest first
    arm: Any  # int32


def thompson(memory: Memory, high: Any, key: Any) -> Memory:
    """The bandit after a generation whose best fitness is `high` (section 4.1; Thompson 1933).

    Whether an arm wins is a coin of unknown bias: one is drawn for each arm, from what it has shown, and the greatest
    is tried next.
    """
    known = jnp.isfinite(memory.highs).any()
    won = (high > jnp.max(memory.highs)).astype(jnp.float32)
    trial = jax.nn.one_hot(memory.arm, len(ARMS))[:, None] * jnp.stack([won, 1 - won])[None]
    trials = jnp.concatenate([memory.trials[1:], jnp.where(known, trial, 0.0)[None]])
    wins, losses = trials.sum(0).T
    arm = jnp.argmax(jax.random.beta(key, 1 + wins, 1 + losses)).astype(jnp.int32)
    return memory._replace(trials=trials, highs=jnp.append(memory.highs[1:], high), arm=arm)


def weight(novelty: str, memory: Memory, progress: Any) -> Any:
    """How much of the objective is diversity: "bandit", "schedule" or a number; `progress` is from 0 to 1."""
    if novelty == "bandit":
        return jnp.asarray(ARMS, jnp.float32)[memory.arm]
    if novelty == "schedule":
        until, weights = jnp.asarray(SCHEDULE, jnp.float32).T
        return weights[jnp.minimum(jnp.sum(progress >= until), len(SCHEDULE) - 1)]
    return jnp.float32(novelty)


def dvd(members: int, novelty: str, updates: float) -> Rule:
    """The Rule of DvD: all members follow gradients, and what is kept is the one with the best score.

    The objective of an actor is (1 - weight) times what its agent has, plus weight times the logarithm of the
    determinant (section 4.2; its authors hold the logarithm to be as good). `updates` are those of the whole training.
    """

    def begin(key, actors):
        return Memory(
            jnp.full(members, jnp.nan), jnp.zeros((WINDOW, len(ARMS), 2)), jnp.full(BEFORE, -jnp.inf), jnp.int32(0)
        ), actors

    def turn(memory: Memory, actors, fitness, key):
        scores = jnp.where(jnp.isnan(memory.scores), fitness, memory.scores + (fitness - memory.scores) / SCORES)
        return thompson(memory, jnp.max(fitness), key)._replace(scores=scores), None

    def guide(memory: Memory, version, actors, behaviour, grads):
        share = weight(novelty, memory, version.astype(jnp.float32) / updates)
        volume, apart = jax.value_and_grad(lambda x: log_determinant(kernel(behaviour(x))))(actors)
        grads = jax.tree.map(lambda g, a: (1 - share) * g - share * a, grads, apart)
        return grads, {"diversity": jnp.exp(volume), "novelty_weight": share}

    def best(memory: Memory, actors):
        first = jnp.argmax(jnp.where(jnp.isfinite(memory.scores), memory.scores, -jnp.inf))
        return jax.tree.map(lambda x: x[first], actors)

    return Rule(members, members, begin, turn, guide, best)
