"""Several runs on one page and in one table: returns, costs and configurations side by side, each beside the first."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from frugalrl.errors import UsageError, call
from frugalrl.statistics import Interval, bootstrap, difference, improvement

from . import charts, page, receipt, words
from .files import replace
from .report import Run, flat, is_run, known, lines_of, load, seeds_of, steps_of
from .streams import printable

COSTS = {  # of a receipt -> how the tables call and write it
    "wall_seconds": ("wall time", words.seconds),
    "cpu_seconds": ("CPU time", words.seconds),
    "energy_joules": ("energy", lambda x: words.energy(x).partition(" (")[0]),
    "peak_memory_bytes": ("peak memory", words.size),
}


class Side(NamedTuple):
    """One of the runs that are compared."""

    name: str
    run: Run
    scores: list[float]  # the return of each seed; NaN where it is not finite
    returns: Interval | None
    difference: Interval | None  # from the first run's returns
    improvement: Interval | None  # the probability that a seed scores more than one of the first run's


def compare(folders: Sequence[str | os.PathLike]) -> list[Side]:
    """Read the runs and hold each against the first; they have to be of one environment.

    Returns are those of the receipt, or of each seed's last evaluation where there is none yet. Raises UsageError for a
    wrong choice of folders and BadFile for a damaged one.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise UsageError("give at least two runs: frugal compare RUN RUN ...")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a run is given twice: compare it with another one")
    for path in paths:
        if not path.is_dir() or not is_run(path):
            raise UsageError(f"{path} is not a run folder: give the folder of a `frugal train`")
    runs = [load(path) for path in paths]
    envs = sorted({str(known(run, "env", "unknown")) for run in runs})
    if len(envs) > 1:
        raise UsageError(f"returns on {' and '.join(envs)} have no common scale: compare runs on one environment")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    scores = [_scores(run) for run in runs]
    return [_side(*each, scores[0] if i else []) for i, each in enumerate(zip(names, runs, scores, strict=True))]


def table(sides: Sequence[Side], price: float | None = None) -> Iterator[str]:
    """What was compared as lines of plain text: what was reached, then what it cost, then what differs."""
    yield from _aligned(*_reached(sides))
    yield ""
    yield from _aligned(*_costs(sides, price))
    differing = _differing(sides)
    if differing:
        yield ""
        yield from _aligned(("configuration", *(side.name for side in sides)), differing)
    for notice in _notices(sides):
        yield ""
        yield notice


def write(sides: Sequence[Side], path: Path, price: float | None = None) -> None:
    """The page, which needs nothing else."""
    env = str(known(sides[0].run, "env", "unknown"))
    body = [
        page.header(f"{len(sides)} runs", f"on {env}", escape(f"each beside the first, {sides[0].name}")),
        *(page.notice(escape(text)) for text in _notices(sides)),
        _returns(sides),
        _costs_section(sides, price),
        _splits(sides),
        _configurations(sides),
        page.section("Each by itself", page.commands(call("report", s.run.folder) for s in sides)),
        "<footer>Written by FrugalRL from the run folders. Intervals are 95 % percentile bootstrap over seeds, and the "
        "same every time.</footer>",
    ]
    replace(path, page.page(f"{len(sides)} runs on {env}: FrugalRL", body))


def _scores(run: Run) -> list[float]:
    found = (run.receipt.get("returns") or {}).get("per_seed")
    if found is None:
        return [line.y[-1] for line in lines_of(run, "episode_return")]
    return [math.nan if score is None else float(score) for score in found]


def _side(name: str, run: Run, scores: list[float], first: list[float]) -> Side:
    returns = bootstrap(scores) if scores else None
    if not (scores and first):
        return Side(name, run, scores, returns, None, None)
    return Side(name, run, scores, returns, difference(scores, first), improvement(scores, first))


def _notices(sides: Sequence[Side]) -> Iterator[str]:
    unfinished = [side.name for side in sides if not side.run.finished]
    if unfinished:
        yield f"Not finished: {', '.join(unfinished)}. What they reached is of their last evaluation."
    few = [side.name for side in sides if len(side.scores) < 3]
    if few:
        yield f"Fewer than three seeds: {', '.join(few)}. An interval needs more to mean much."
    for what, of in (("seeds", seeds_of), ("steps", steps_of)):
        if len({of(side.run) for side in sides}) > 1:
            yield f"The runs differ in {what}; costs are of each run as it is."
    machines = {(known(s.run, "hardware") or {}).get("cpu") for s in sides if s.run.receipt}
    if len(machines) > 1:
        yield "The runs are of different processors, and so are their seconds and joules."
    methods = sorted({str(s.run.receipt["energy_method"]) for s in sides if s.run.receipt.get("energy_method")})
    if methods:
        yield f"Energy is {'; or '.join(methods)}."


def _returns(sides: Sequence[Side]) -> str:
    figures = []
    curves = [
        (i % page.COLOURS, side.name, curve)
        for i, side in enumerate(sides)
        if (lines := lines_of(side.run, "episode_return")) and (curve := charts.curve(lines)).x
    ]
    if curves:
        caption = (
            "Return of greedy evaluation episodes: interquartile mean over seeds, and its 95 % bootstrap interval."
        )
        legend = page.legend((index, name) for index, name, _ in curves)
        figures.append(page.figure(charts.compared(curves, "curves", "return"), caption, legend))
    reached = [(side.name, side.returns) for side in sides if side.returns and math.isfinite(side.returns.point)]
    if reached:
        caption = "Final return: interquartile mean over seeds, and its 95 % bootstrap interval."
        figures.append(page.figure(charts.forest(reached, "forest", "final returns"), caption))
    head, rows = _reached(sides)
    cells = [[escape(cell) for cell in row] for row in rows]
    note = (
        '<p class="soft">A difference whose interval holds 0, and a probability whose interval holds 0.5, do not tell '
        "two runs apart.</p>"
    )
    return page.section(
        "Returns", '<div class="stack">', *figures, "</div>", page.table(head, cells, range(1, 6)), note
    )


def _reached(sides: Sequence[Side]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of what the runs reached."""
    head = ["run", "seeds", "steps", "return", f"difference from {sides[0].name}", "better with probability"]

    def cells(side: Side) -> list[str]:
        beside = (words.interval(of) if of else "" for of in (side.difference, side.improvement))
        steps = words.short(steps_of(side.run) or 0)
        return [side.name, seeds_of(side.run), steps, words.interval(side.returns), *beside]

    return head, [cells(side) for side in sides]


def _costs(sides: Sequence[Side], price: float | None) -> tuple[list[str], list[list[str]]]:
    """Head and cells of what the runs cost, each with how many times the first's it is."""
    head = ["run", *(name for name, _ in COSTS.values()), *(["money"] if price is not None else [])]
    return head, [[side.name, *_spent(side, sides[0], price)] for side in sides]


def _spent(side: Side, first: Side, price: float | None) -> Iterator[str]:
    for name, (_, shown) in COSTS.items():
        mine, theirs = side.run.receipt.get(name), first.run.receipt.get(name)
        times = f" ({words.number(mine / theirs)}x)" if mine and theirs and side is not first else ""
        yield f"{shown(mine)}{times}"
    if price is not None:
        yield words.number(receipt.money(side.run.receipt, price))


def _costs_section(sides: Sequence[Side], price: float | None) -> str:
    head, rows = _costs(sides, price)
    about = f"Money at {words.number(price)} an hour of wall time. " if price is not None else ""
    text = f'<p class="soft">{escape(about)}In brackets: times what the first run took, all seeds together.</p>'
    cells = [[escape(cell) for cell in row] for row in rows]
    return page.section("Costs", page.table(head, cells, range(1, len(head))), text)


def _splits(sides: Sequence[Side]) -> str:
    order, figures = receipt.TIMES, []
    for i, side in enumerate(sides):
        shares = [share for share in receipt.time_shares(side.run.receipt) if share[0] in order]
        if shares:
            chart = charts.stacked_bar([(order.index(n), n, share) for n, _, share in shares], f"split-{i}", side.name)
            legend = page.legend(
                (order.index(n), f"{n} {receipt.percent(share)} ({words.seconds(s)})") for n, s, share in shares
            )
            figures.append(page.figure(chart, f"{side.name}: summed seconds of all processes.", legend))
    return page.section("Where the time went", '<div class="stack">', *figures, "</div>") if figures else ""


def _differing(sides: Sequence[Side]) -> list[list[str]]:
    """What the runs' configurations have different: its name, and the value of each run."""
    # first_steps says how schedules go on after a resumption, and nothing that was chosen
    configs = [{name: x for name, x in flat(side.run.config) if name != "first_steps"} for side in sides]
    names = dict.fromkeys(name for config in configs for name in config)
    values = {name: [config.get(name, "") for config in configs] for name in names}
    return [[name, *of] for name, of in values.items() if len(set(of)) > 1]


def _configurations(sides: Sequence[Side]) -> str:
    rows = [[escape(cell) for cell in row] for row in _differing(sides)]
    told = page.table(("name", *(s.name for s in sides)), rows) if rows else '<p class="soft">The same.</p>'
    return page.section("What differs in the configuration", told)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """A table in plain text: the first column to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in ([printable(text) for text in row] for row in cells):
        right = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *right]).rstrip()
