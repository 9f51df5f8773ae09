"""What is searched: for each hyper-parameter a range or a list of values, and the values that each member begins with.

It imports no JAX, so that a command line is checked quickly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import exp, log, prod
from typing import Any, NamedTuple

import numpy as np

from ... import catalog
from ...errors import UsageError

JOINT = ("cem", "dvd")  # kinds whose members share a critic
KINDS = ("pbt", "random", "grid", *JOINT)
MOST_RUNS = 100_000  # of all seeds and members: there are lists of them before it is known what fits this machine
NOVELTY = ("bandit", "schedule")
EXPLORE = ("perturb", "resample")
COPY = ("everything", "policy")
SELECTION = ("truncation", "tournament")
# By which `perturbed` changes a value (Jaderberg et al. 2017, section 4.1.1): a share of it where its scale is
# logarithmic, else of its range.
FACTOR, SHIFT = 0.2, 0.1
POINTS = 5  # of a range, in a grid
_FORMS = "name=log:LOW:HIGH, name=uniform:LOW:HIGH or name=choice:A:B"


class Population(NamedTuple):
    """A population as config.json has it."""

    kind: str  # "pbt"; "cem" or "dvd"; or "random" or "grid": a sweep
    members: int
    search: dict[str, str]  # name -> range or values, as `prior` reads them; of those that share a critic none
    # of all but sweeps: environment steps of each member between two selections, or of a generation
    ready: int = 0
    # of PBT
    truncation: float = 0.25  # the share of members that is replaced, by as many of the best
    explore: str = "perturb"
    copy: str = "everything"
    selection: str = "truncation"  # or "tournament": from a leaderboard
    # of CEM-RL
    variance: float = 1e-3  # of each weight around the first mean
    # of DvD
    novelty: str = "bandit"  # how much diversity weighs: "bandit", "schedule" or a number

    @property
    def evolves(self) -> bool:
        return self.kind == "pbt"

    @property
    def joint(self) -> bool:
        """Whether the members share a critic and are one run, not one each."""
        return self.kind in JOINT


class Prior(NamedTuple):
    """Where a hyper-parameter may lie."""

    kind: str  # "log", "uniform" or "choice"
    values: tuple  # lowest and highest of a range, else what there is to choose from
    points: int = POINTS


def priors(agent: str, search: Mapping[str, Any]) -> dict[str, Prior]:
    """Raises UsageError for a name the agent does not have, or for what is neither a range nor a list of values."""
    return {name: prior(agent, name, what) for name, what in search.items()}


def prior(agent: str, name: str, what: Any) -> Prior:
    """`log:LOW:HIGH`, `uniform:LOW:HIGH` (and for a grid `:POINTS`) or `choice:A:B:...`.

    Values of a `choice` are as `--hyper` takes them; those without commas of their own may be separated by these. What
    shapes the program (a Static of the agent) has values, not a range.
    """
    recipe = catalog.recipe(agent)
    default = catalog.hyper_fields(recipe).get(name)
    kind, _, rest = str(what).partition(":")
    parts = rest.split(":")
    if kind == "choice" and len(parts) == 1 and not isinstance(default, tuple):
        parts = rest.split(",")

    def value(text: str) -> Any:
        return catalog.parse_hyper(agent, {name: text})[name]

    if kind == "choice" and len(parts) > 1:
        values = tuple(map(value, parts))
        if len(set(values)) < len(values):
            raise UsageError(f"--search {name}={what} has a value twice")
        return Prior(kind, values)
    value(str(default) if not isinstance(default, tuple) else default)  # type: ignore[arg-type]
    if kind not in ("log", "uniform") or len(parts) not in (2, 3):
        raise UsageError(f"--search {name}={what} is neither a range nor a list of values: write {_FORMS}")
    if name not in recipe.hyper._fields:
        raise UsageError(
            f"--search {name}={what}: {name} shapes the program, so list its values: "
            f"--search {name}=choice:{_shown(default)}:..."
        )
    low, high = value(parts[0]), value(parts[1])
    points = int(parts[2]) if len(parts) == 3 and re.fullmatch("[0-9]{1,9}", parts[2]) else POINTS * (len(parts) == 2)
    if (
        not np.isfinite([low, high]).all()
        or not low < high
        or (kind == "log" and low <= 0)
        or not 2 <= points <= MOST_RUNS
    ):
        least = "0 < LOW < HIGH" if kind == "log" else "LOW < HIGH"
        raise UsageError(
            f"--search {name}={what} must have {least}, and from 2 to {MOST_RUNS} points if they are given"
        )
    return Prior(kind, (low, high), points)


def written(what: Any) -> str:
    """A range or values as `prior` reads them; a list of Python values is a choice."""
    if isinstance(what, Sequence) and not isinstance(what, str):
        return "choice:" + ":".join(map(_shown, what))
    return str(what)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def begun(population: Population, found: Mapping[str, Prior], seed: int, first: int) -> list[dict[str, Any]]:
    """The values that each member of a seed's population begins with.

    Members of a sweep are the same for all seeds, from `first` on, so that each is trained with every seed. The first
    members of a larger population are those of a smaller one.
    """
    if population.kind == "grid":
        return grid(found)
    source = seed if population.evolves else first
    generators = (np.random.default_rng([source, member]) for member in range(population.members))
    return [{name: drawn(prior, r) for name, prior in found.items()} for r in generators]


def size(found: Mapping[str, Prior]) -> int:
    """Of a grid."""
    return prod(len(prior.values) if prior.kind == "choice" else prior.points for prior in found.values())


def grid(found: Mapping[str, Prior]) -> list[dict[str, Any]]:
    """Every combination of the values of choices and of evenly spaced points of ranges."""
    return [dict(zip(found, values, strict=True)) for values in product(*map(points, found.values()))]


def points(prior: Prior) -> list:
    if prior.kind == "choice":
        return list(prior.values)
    low, high = prior.values
    space = np.geomspace if prior.kind == "log" else np.linspace
    return [float(x) for x in space(low, high, prior.points)]


def drawn(prior: Prior, r: np.random.Generator) -> Any:
    """A value: even over a range, or over its logarithm."""
    if prior.kind == "choice":
        return prior.values[int(r.integers(len(prior.values)))]
    low, high = prior.values
    if prior.kind == "log":
        return min(max(exp(r.uniform(log(low), log(high))), low), high)
    return float(r.uniform(low, high))


def perturbed(prior: Prior, value: Any, r: np.random.Generator) -> Any:
    """A value near `value`, within the range: times 0.8 or 1.2, on a scale that is not logarithmic a tenth of the range
    up or down, and of a choice the value listed before or after.
    """
    up = bool(r.integers(2))
    if prior.kind == "choice":
        # what a member has went through float32
        at = min(range(len(prior.values)), key=lambda i: abs(prior.values[i] - value))
        return prior.values[min(max(at + (1 if up else -1), 0), len(prior.values) - 1)]
    low, high = prior.values
    if prior.kind == "log":
        moved = value * (1 + FACTOR if up else 1 - FACTOR)
    else:
        moved = value + SHIFT * (high - low) * (1 if up else -1)
    return float(min(max(moved, low), high))
