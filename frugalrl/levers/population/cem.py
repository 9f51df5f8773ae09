"""CEM-RL: weights are drawn around a mean, half of them follow a shared critic, and the better half of all moves the
mean (Pourchot and Sigaud 2019, arXiv 1810.01222).

Functions of stacked weights [members, ...], whatever trains and plays them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .joint import Rule

# `noise` goes from the first variance to this one, a twentieth of the way in each generation (section 4.2 and
# appendix A)
LAST, DECAY = 1e-5, 0.95


class Search(NamedTuple):
    """A normal distribution of weights, each independent of the others; all float32."""

    mean: Any  # the weights of one actor
    variance: Any  # the same shapes
    noise: Any  # scalar, is added to each variance


def begun(mean: Any, variance: float) -> Search:
    return Search(mean, jax.tree.map(lambda x: jnp.full_like(x, variance), mean), jnp.float32(variance))


def elites(members: int) -> int:
    return members // 2


def drawn(search: Search, members: int, key: Any) -> Any:
    """Weights [members, ...], float32. The first half of them, rounded up, is mirrored in the others (antithetic)."""
    half = (members + 1) // 2
    leaves, tree = jax.tree.flatten(search.mean)
    noises = [
        jax.random.normal(k, (half, *x.shape)) for x, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]

    def around(mean: Any, variance: Any, noise: Any) -> Any:
        both = jnp.concatenate([noise, -noise[: members - half]])
        return mean[None] + jnp.sqrt(variance)[None] * both

    return jax.tree.map(around, search.mean, search.variance, tree.unflatten(noises))


def ranked(fitness: Any) -> Any:
    """Members, int32, the best first; what is not a number is worse than any."""
    return jnp.argsort(-jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf))


def told(search: Search, weights: Any, fitness: Any) -> Search:
    """The distribution after a generation: `weights` [members, ...] were as fit as `fitness` [members] says.

    Mean and variance of the elites, weighted by rank. The squares are of the distance from the old mean, and their
    weighted mean is divided by the number of elites once more: not in the paper, but in its published code, and in that
    of Flajolet et al. 2022 (arXiv 2206.08888).
    """
    count = elites(fitness.shape[0])
    best = ranked(fitness)[:count]
    share = jnp.log((1.0 + count) / jnp.arange(1, count + 1, dtype=jnp.float32))
    share = share / jnp.sum(share)
    noise = DECAY * search.noise + (1 - DECAY) * LAST

    def moment(x: Any) -> Any:
        return jnp.tensordot(share, x, 1)

    mean = jax.tree.map(lambda x: moment(x[best]), weights)
    variance = jax.tree.map(
        lambda x, old: moment(jnp.square(x[best] - old[None])) / count + noise, weights, search.mean
    )
    return Search(mean, variance, noise)


class Memory(NamedTuple):
    """What goes from one generation to the next."""

    search: Search
    by_gradient: Any  # float32, the share of the last elites that had followed gradients


def cem(members: int, variance: float) -> Rule:
    """The Rule of CEM-RL: the first half of the members follows gradients, and what is kept is the mean."""
    learners = members // 2

    def begin(key, actors):
        search = begun(jax.tree.map(lambda x: x[0], actors), variance)
        return Memory(search, jnp.float32(jnp.nan)), drawn(search, members, key)

    def turn(memory: Memory, actors, fitness, key):
        search = told(memory.search, actors, fitness)
        followed = ranked(fitness)[: elites(members)] < learners
        return Memory(search, jnp.mean(followed.astype(jnp.float32))), drawn(search, members, key)

    def guide(memory: Memory, version, actors, behaviour, grads):
        weights = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(memory.search.variance)])
        return grads, {"sigma": jnp.mean(jnp.sqrt(weights)), "elites_by_gradient": memory.by_gradient}

    return Rule(members, learners, begin, turn, guide, lambda memory, actors: memory.search.mean)
