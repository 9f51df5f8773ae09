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
        if population.explore == "resample":
            hyper = {name: drawn(prior, r) for name, prior in priors.items()}
        else:
            hyper = {name: perturbed(prior, hypers[source][name], r) for name, prior in priors.items()}
        moves.append(Move(int(to), source, hyper))
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
