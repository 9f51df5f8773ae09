"""PBT: the worst members take over from the best, and explore from there (Jaderberg et al. 2017, arXiv 1711.09846).

Selection is a function of numbers on the host, so that a resumed run decides as it did; what is taken over is a
function of two members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...types import Agent
from .search import Population, Prior, drawn, perturbed

RECENT = 4  # fitnesses that the score of a pod is the mean of
PLACES = 2  # of a leaderboard, for each pod


class Move(NamedTuple):
    """Member `to` becomes a copy of member `source`, with hyper-parameters of its own."""

    to: int
    source: int
    hyper: dict[str, float]


def replaced(members: int, truncation: float) -> int:
    """How many members are replaced at a time: a share of them, at least one, at most half."""
    return max(1, min(members // 2, round(truncation * members)))


def selected(
    fitness: np.ndarray,
    hypers: Sequence[Mapping[str, float]],
    population: Population,
    priors: Mapping[str, Prior],
    r: np.random.Generator,
) -> list[Move]:
    """Truncation selection (section 4.1.1): each of the worst takes over from one of as many best, drawn evenly.

    A member whose fitness is not a number is worse than any other, and none takes over from it. What is copied is then
    changed by `population.explore`: each hyper-parameter perturbed, or drawn anew.
    """
    sound = np.isfinite(fitness)
    order = np.argsort(np.where(sound, fitness, -np.inf), kind="stable")
    count = replaced(len(order), population.truncation)
    best = [int(i) for i in order[-count:] if sound[i]]
    moves = []
    for to in order[:count]:
        if not best:
            break
        source = best[int(r.integers(len(best)))]
        moves.append(Move(int(to), source, explored(population, priors, hypers[source], r)))
    return moves


def explored(
    population: Population, priors: Mapping[str, Prior], hyper: Mapping[str, float], r: np.random.Generator
) -> dict[str, float]:
    """The hyper-parameters of a member that takes over from one with `hyper`."""
    if population.explore == "resample":
        return {name: drawn(prior, r) for name, prior in priors.items()}
    return {name: perturbed(prior, hyper[name], r) for name, prior in priors.items()}


class Entry(NamedTuple):
    """A place on a leaderboard."""

    score: float
    member: int  # whose it was
    step: int  # when it was handed in
    hyper: dict[str, float]
    carry: Any  # what can be loaded


def score(fitness: Sequence[float]) -> float:
    """Of a pod: the mean of its last four fitnesses, lower than any if one is not a number."""
    recent = float(np.mean(fitness[-RECENT:]))
    return recent if np.isfinite(recent) else -np.inf


def entered(board: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """The leaderboard after pods have handed in: the best, two places for each pod, the best first."""
    sound = [entry for entry in (*board, *new) if np.isfinite(entry.score)]
    return sorted(sound, key=lambda entry: -entry.score)[: PLACES * len(new)]


def loads(board: Sequence[Entry], scores: Sequence[float], r: np.random.Generator) -> dict[int, int]:
    """Which pods load which place of the leaderboard: each draws one, by the softmax of standardised scores, and loads
    it if it is better than its own (ElegantRL-Podracer, Liu et al. 2021, arXiv 2112.05923).
    """
    if not board:
        return {}
    have = np.array([entry.score for entry in board])
    logits = (have - have.mean()) / (have.std() + 1e-6)
    chances = np.exp(logits - logits.max())
    places = [int(r.choice(len(board), p=chances / chances.sum())) for _ in scores]
    return {pod: place for pod, place in enumerate(places) if board[place].score > scores[pod]}


def turned(
    population: Population,
    priors: Mapping[str, Prior],
    seed: int,
    turn: int,
    fitness: np.ndarray,
    hypers: Mapping[str, np.ndarray],
) -> list[Move]:
    """Who takes over from whom at a turn, among the runs of all seeds from `seed` on, each of which has a population of
    its own, one after the other; `fitness` is [runs], and so are the hyper-parameters. `turn` is the step that the turn
    was due at, which is the same wherever a run was to end.
    """
    size, moves = population.members, []
    for first in range(0, len(fitness), size):
        own = [{name: float(values[first + m]) for name, values in hypers.items()} for m in range(size)]
        r = np.random.default_rng([seed + first // size, turn])
        chosen = selected(fitness[first : first + size], own, population, priors, r)
        moves += [move._replace(to=first + move.to, source=first + move.source) for move in chosen]
    return moves


def hypers_of(kind: type, state: Any) -> Any:
    """The hyper-parameters of a state, wherever levers have put it; `kind` is the agent's Hyper."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return next(x for x in leaves if isinstance(x, kind))


def with_hyper(kind: type, state: Any, hyper: Mapping[str, Any]) -> Any:
    """The state with these hyper-parameters, and the others as they were."""

    def renewed(x: Any) -> Any:
        if not isinstance(x, kind):
            return x
        new = {name: jnp.full_like(getattr(x, name), value) for name, value in hyper.items()}
        return x._replace(**new)  # type: ignore[attr-defined]

    return jax.tree.map(renewed, state, is_leaf=lambda x: isinstance(x, kind))


def successor(
    agent: Agent, kind: type, copy: str, sever: Callable[[Any], Any] = lambda memory: memory
) -> Callable[[Any, Any, Mapping[str, Any]], Any]:
    """The function (member, the one it takes over from, hyper-parameters) -> the member from now on.

    "everything" is the learner and its memory; the environments, and the random numbers to come, stay the member's own.
    "policy" is what acts (`Agent.graft`), with critics and memory left as they were: as in the published code of
    Flajolet et al. 2022 (arXiv 2206.08888). A member with weights that are not finite takes everything all the same,
    since its critics would ruin any policy. Whatever memory it has then goes through `sever`: what comes next is of
    other environments.

    A member is the carry of a runtime, without the axis of members.
    """

    def one(own: Any, other: Any, hyper: Mapping[str, Any]) -> Any:
        state, memory = other.state, other.memory
        if copy == "policy":
            sound, kept = finite(own.state), (agent.graft(own.state, other.state), own.memory)
            state, memory = jax.tree.map(lambda a, b: jnp.where(sound, a, b), kept, (state, memory))
        return own._replace(state=with_hyper(kind, state, hyper), memory=sever(memory))

    return jax.jit(one)


def finite(tree: Any) -> Any:
    """Whether all of the numbers are."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
