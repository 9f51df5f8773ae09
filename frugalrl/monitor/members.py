"""The members of a population, as the rows of its run tell of them: which is best, who came of whom, and figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from frugalrl.statistics import bootstrap

from . import charts, page, words
from .kinds import number
from .rows import Row, run_of

TREES = 4  # most seeds whose family tree is drawn
# of members that share a critic: name in the rows -> (what it is, a caption)
MEASURES = {
    "fitness_mean": ("fitness", "Mean over the members of their training return in the last generation."),
    "sigma": ("standard deviation", "Mean over the weights: how far members are drawn around the mean."),
    "elites_by_gradient": ("share of elites", "How many of the last elites had followed gradients, of all of them."),
    "diversity": ("determinant", "Diversity of what members do in the same states: about 0 if two do the same."),
    "novelty_weight": ("weight", "How much of the actors' objective diversity was."),
}


class Generation(NamedTuple):
    """The members of one seed at one evaluation."""

    step: int
    rows: dict[int, Row]  # of each member

    def parent(self, member: int) -> int | None:
        """The member that `member` took over from after this evaluation, if it did."""
        parent = self.rows.get(member, {}).get("parent")
        return parent if parent in self.rows else None

    def origin(self, member: int) -> tuple[int, int] | None:
        """The same, and the step at which it was as it is taken over: of a leaderboard one before this evaluation."""
        row, parent = self.rows.get(member, {}), self.parent(member)
        return None if parent is None else (parent, row.get("parent_step") or self.step)


def generations(rows: Iterable[Row]) -> dict[int, list[Generation]]:
    """The evaluations of each seed, in order."""
    found: dict[int, dict[int, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        seed, member = run_of(row)
        if member is not None and row.get("step") is not None:
            found[seed][row["step"]][member] = row
    return {seed: [Generation(step, steps[step]) for step in sorted(steps)] for seed, steps in sorted(found.items())}


def best(evolves: bool, rows: Iterable[Row]) -> dict[int, int]:
    """The fittest member of each seed at its last evaluation; of a sweep the one that is fittest over all seeds.

    Fitness is the return on episodes that are for this choice only.
    """
    of_seed: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        seed, member = run_of(row)
        if member is not None:
            of_seed[seed][member] = _number(row.get("fitness"))
    if evolves:
        return {seed: max(scores, key=scores.__getitem__) for seed, scores in of_seed.items()}
    members = sorted({member for scores in of_seed.values() for member in scores})
    whole = [m for m in members if all(m in scores for scores in of_seed.values())]
    if not whole:
        return {}
    first = max(whole, key=lambda m: np.mean([scores[m] for scores in of_seed.values()]))
    return dict.fromkeys(of_seed, first)


def summary(population: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """What a receipt tells: the best member of each seed with its last hyper-parameters, and how many took over; of
    members that share a critic what the last generation was like.
    """
    last, end = {run_of(row): row for row in rows}, max((row["step"] for row in rows), default=0)
    if population.joint:
        option = {"cem": "variance", "dvd": "novelty"}[population.kind]
        names = ("fitness_best", *MEASURES)
        return {
            "kind": population.kind,
            "members": population.members,
            "ready": population.ready,
            option: getattr(population, option),
            "last": [
                {"seed": row["seed"], **{name: row[name] for name in names if name in row}}
                for row in rows
                if row["step"] == end
            ],
        }
    chosen = best(population.evolves, rows)
    return {
        "kind": population.kind,
        "members": population.members,
        "search": dict(population.search),
        "best": [
            {
                "seed": seed,
                "member": member,
                "fitness": last[seed, member].get("fitness"),
                "return": last[seed, member].get("episode_return"),
                "hyper": {name: last[seed, member].get(name) for name in population.search},
            }
            for seed, member in chosen.items()
        ],
        # nobody has gone on from the last one yet
        "replaced": sum(row.get("parent") is not None and row["step"] < end for row in rows),
    }


def ancestry(line: Sequence[Generation], member: int) -> list[int | None]:
    """Where the learner of `member` at the last evaluation was at each of them: the members it came through, None while
    it was on a leaderboard and nobody trained it.
    """
    through: list[int | None] = [member]
    since = None  # the step at which it was handed in, where that is before
    for generation in reversed(line[:-1]):
        if since is None:
            member, since = generation.origin(member) or (member, generation.step)
        through.append(member if generation.step == since else None)
        if generation.step == since:
            since = None
    return through[::-1]


def told(summary: Mapping[str, Any]) -> str:
    """A summary in words."""
    parts = [f"{summary.get('members')} members, {KINDS.get(str(summary.get('kind')), summary.get('kind'))}"]
    if summary.get("ready"):
        parts.append(f"generations of {words.number(summary['ready'])} steps of each environment")
    if summary.get("kind") == "pbt":
        parts.append(f"{words.number(summary.get('replaced'))} taken over")
    of_seeds = summary.get("best") or []
    for one in of_seeds[:1] if summary.get("kind") != "pbt" else of_seeds[:4]:
        where = f" of seed {one.get('seed')}" if len(of_seeds) > 1 and summary.get("kind") == "pbt" else ""
        values = " ".join(f"{name}={_shown(value)}" for name, value in (one.get("hyper") or {}).items())
        parts.append(f"best{where}: member {one.get('member')} with {values}")
    return "; ".join(parts)


KINDS = {
    "pbt": "population-based training", "random": "random search", "grid": "grid search",
    "cem": "CEM-RL with a shared critic", "dvd": "DvD with a shared critic",
}  # fmt: skip


def sections(config: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """The members as a table and, of a population that evolves, its schedule and its family tree."""
    population = config.get("population")
    found = generations(rows)
    if not population or not found:
        return
    evolves = population.get("kind") == "pbt"
    chosen = best(evolves, rows)
    names = list(population.get("search") or {})
    yield page.section("Members", _table(found, names, chosen, evolves))
    if not evolves:
        return
    of_seeds = list(found.items())[:TREES]
    for name in names:
        logarithmic = str(population["search"][name]).startswith("log:")
        figures = [_schedule(seed, line, name, chosen, logarithmic) for seed, line in of_seeds]
        yield page.section(f"Schedule of {name}", '<div class="stack">', *figures, "</div>")
    figures = [_tree(seed, line, chosen.get(seed)) for seed, line in of_seeds]
    yield page.section("Family tree", '<div class="stack">', *figures, "</div>")


def _table(
    found: Mapping[int, list[Generation]], names: Sequence[str], chosen: Mapping[int, int], evolves: bool
) -> str:
    """Of a sweep a row for each member over all seeds; where members of each seed differ, one for each of them."""
    lasts = {seed: line[-1].rows for seed, line in found.items()}
    together = defaultdict(list)
    for seed, last in lasts.items():
        for member, row in last.items():
            together[(seed if evolves else None, member)].append(row)
    order = sorted(together.items(), key=lambda item: -np.mean([_number(row.get("fitness")) for row in item[1]]))
    head = (*(["seed"] if evolves and len(found) > 1 else []), "member", *names, "fitness", "return")
    table = []
    for (seed, member), rows in order:
        mark = ' <span class="mark good">best</span>' if chosen.get(run_of(rows[0])[0]) == member else ""
        scores = [_number(row.get("episode_return")) for row in rows]
        cells = [
            f"{escape(str(member))}{mark}",
            *(escape(_shown(rows[0].get(name))) for name in names),
            escape(words.number(float(np.mean([_number(row.get("fitness")) for row in rows])))),
            escape(words.interval(bootstrap(scores))),
        ]
        table.append(([escape(str(seed))] if evolves and len(found) > 1 else []) + cells)
    return page.table(head, table, numbers=range(len(head) - len(names) - 2, len(head))) + (
        '<p class="soft">Fitness is the mean greedy return on episodes that only choose among members; the return is '
        "on held-out episodes.</p>"
    )


def _schedule(seed: int, line: list[Generation], name: str, chosen: Mapping[int, int], logarithmic: bool) -> str:
    def drawn(title: str, through: Sequence[int | None]) -> charts.Line:
        """Of the member that each generation is looked at through, where it has a value that can be drawn; of none
        there, what was last.
        """
        values, last = [], None
        for g, m in zip(line, through, strict=True):
            last = last if m is None else g.rows.get(m, {}).get(name)
            values.append((g.step, last))
        there = [(float(step), float(x)) for step, x in values if number(x) and (x > 0 or not logarithmic)]
        return charts.Line(title, [step for step, _ in there], [x for _, x in there])

    members = sorted({member for generation in line for member in generation.rows})
    lines = [each for m in members if (each := drawn(f"member {m}", [m] * len(line))).y]
    if not lines:
        return ""
    bold = None
    if seed in chosen:
        bold = drawn("the best member and those it came from", ancestry(line, chosen[seed]))
    chart = charts.schedule(lines, bold if bold and bold.y else None, f"schedule-{seed}-{name}", name, logarithmic)
    return page.figure(
        chart, f"Seed {seed}. Thin: each member; bold: the schedule that the best member was trained by."
    )


def _tree(seed: int, line: list[Generation], chosen: int | None) -> str:
    members = sorted({member for generation in line for member in generation.rows})
    moves = [(g.step, m, *found) for g in line[:-1] for m in members if (found := g.origin(m))]
    steps = [g.step for g in line]
    bold = [] if chosen is None else ancestry(line, chosen)
    chart = charts.family(members, steps, moves, bold, f"family-{seed}", f"family tree of seed {seed}")
    caption = (
        f"Seed {seed}. A line for each member, in the colour of the first ancestor of what it has learned; where it "
        "changes, the member took over from another, from a leaderboard as that was before. Bold: how the best member "
        "came to be."
    )
    return page.figure(chart, caption)


def _number(value: Any) -> float:
    """A score, worse than any other if there is none."""
    return float(value) if value is not None and isfinite(value) else -float("inf")


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
