"""What is seen of a population while it trains, and who takes over from whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...config import Config
from ...runtime.compiled import Succession
from ...types import Agent
from . import evolution, search

Fitness = Callable[[Callable[[], Any]], np.ndarray]  # of the agents' states [runs, ...]: [runs]


class Look(NamedTuple):
    """The members at one iteration."""

    step: int
    metrics: dict[str, Any]  # name -> [runs], as rows tell them
    moves: list[evolution.Move]  # between runs


class Watch:
    """Follows a population: how fit its members are, with what hyper-parameters, and who takes over from whom.

    All of it follows from the carry at a step, so that a resumed run decides as the one that was not stopped. `count`
    runs are looked at at the steps `looks`; at those of them that are `turns`, members take over from others: each with
    the step that it was due at, which runs of other lengths have in common. `config` has the Static of these runs;
    `kind` is the agent's Hyper; `sever` ends the streams of a memory, as `evolution.successor` has it.
    """

    def __init__(
        self, config: Config, count: int, agent: Agent, kind: type, looks: set[int], turns: Mapping[int, int],
        sever: Callable[[Any], Any],
    ):  # fmt: skip
        assert config.population is not None
        self.population, self.config, self.count = config.population, config, count
        self.kind, self.looks, self.turns = kind, looks, turns if config.population.evolves else {}
        self.priors = search.priors(config.agent, self.population.search)
        fields = kind._fields  # type: ignore[attr-defined]
        self.varied = [name for name in self.priors if name in fields]
        self.shared = {name: [config.hyper[name]] * count for name in self.priors if name not in fields}
        self.become = evolution.successor(agent, kind, self.population.copy, sever)
        self.last: Look | None = None

    def look(self, fitness: Fitness, step: int, state: Callable[[], Any]) -> Look:
        """Worked out once for a step."""
        if self.last is None or self.last.step != step:
            scores, hypers = fitness(state), evolution.hypers_of(self.kind, state())
            own = {name: np.asarray(getattr(hypers, name)).reshape(self.count, -1)[:, 0] for name in self.varied}
            moves = self._moves(step, scores, own) if step in self.turns else []
            parents = {move.to: move.source % self.population.members for move in moves}
            lineage = {"parent": [parents.get(k) for k in range(self.count)]} if self.population.evolves else {}
            self.last = Look(step, {"fitness": scores, **own, **self.shared, **lineage}, moves)
        return self.last

    def _moves(self, step: int, scores: np.ndarray, own: dict[str, np.ndarray]) -> list[evolution.Move]:
        return evolution.turned(self.population, self.priors, self.config.seed, self.turns[step], scores, own)

    def metrics(self, fitness: Fitness, step: int, state: Callable[[], Any]) -> dict[str, Any]:
        """What a row tells of the members; `parent` is the member that one takes over from after it."""
        return self.look(fitness, step, state).metrics if step in self.looks else {}

    def succession(self, fitness: Fitness, step: int, state: Callable[[], Any]) -> Succession | None:
        """What happens before the segment that begins at this step."""
        if step not in self.turns:
            return None
        moves = self.look(fitness, step, state).moves
        return Succession([(move.to, move.source, move.hyper) for move in moves], self.become)
