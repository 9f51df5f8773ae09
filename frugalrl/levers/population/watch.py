"""What is seen of a population while it trains, and who takes over from whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...config import Config
from ...runtime.compiled import Succession
from ...types import Agent
from . import evolution, search

Fitness = Callable[[Callable[[], Any]], np.ndarray]  # of the agents' states [runs, ...]: [runs]


class Look(NamedTuple):
    """The members at one iteration."""

    iteration: int
    metrics: dict[str, Any]  # name -> [runs], as rows tell them
    moves: list[evolution.Move]  # between runs


class Watch:
    """Follows a population: how fit its members are, with what hyper-parameters, and who takes over from whom.

    All of it follows from the carry of an iteration, so that a resumed run decides as the one that was not stopped.
    `count` runs are looked at in the iterations `looks`; in those of them that are `turns`, members take over from
    others. `config` has the Static of these runs; `kind` is the agent's Hyper; `sever` ends the streams of a memory, as
    `evolution.successor` has it.
    """

    def __init__(
        self, config: Config, count: int, agent: Agent, kind: type, looks: set[int], turns: set[int],
        sever: Callable[[Any], Any],
    ):  # fmt: skip
        assert config.population is not None
        self.population, self.seed, self.count = config.population, config.seed, count
        self.kind, self.looks, self.turns = kind, looks, turns if config.population.evolves else set()
        self.priors = search.priors(config.agent, self.population.search)
        fields = kind._fields  # type: ignore[attr-defined]
        self.varied = [name for name in self.priors if name in fields]
        self.shared = {name: [config.hyper[name]] * count for name in self.priors if name not in fields}
        self.become = evolution.successor(agent, kind, self.population.copy, sever)
        self.last: Look | None = None

    def look(self, fitness: Fitness, iteration: int, state: Callable[[], Any]) -> Look:
        """Worked out once for an iteration."""
        if self.last is None or self.last.iteration != iteration:
            scores, hypers = fitness(state), evolution.hypers_of(self.kind, state())
            own = {name: np.asarray(getattr(hypers, name)).reshape(self.count, -1)[:, 0] for name in self.varied}
            moves = self._moves(iteration, scores, own) if iteration in self.turns else []
            parents = {move.to: move.source % self.population.members for move in moves}
            lineage = {"parent": [parents.get(k) for k in range(self.count)]} if self.population.evolves else {}
            self.last = Look(iteration, {"fitness": scores, **own, **self.shared, **lineage}, moves)
        return self.last

    def _moves(self, iteration: int, scores: np.ndarray, own: dict[str, np.ndarray]) -> list[evolution.Move]:
        """Each seed has a population of its own, one after the other among the runs."""
        size, moves = self.population.members, []
        for first in range(0, self.count, size):
            hypers = [{name: float(values[first + m]) for name, values in own.items()} for m in range(size)]
            r = np.random.default_rng([self.seed + first // size, iteration])
            chosen = evolution.selected(scores[first : first + size], hypers, self.population, self.priors, r)
            moves += [move._replace(to=first + move.to, source=first + move.source) for move in chosen]
        return moves

    def metrics(self, fitness: Fitness, iteration: int, state: Callable[[], Any]) -> dict[str, Any]:
        """What a row tells of the members; `parent` is the member that one takes over from after it."""
        return self.look(fitness, iteration, state).metrics if iteration in self.looks else {}

    def succession(self, fitness: Fitness, iteration: int, state: Callable[[], Any]) -> Succession | None:
        """What happens before the segment that begins at this iteration."""
        if iteration not in self.turns:
            return None
        moves = self.look(fitness, iteration, state).moves
        return Succession([(move.to, move.source, move.hyper) for move in moves], self.become)
