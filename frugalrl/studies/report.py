"""report.html of a study: what was found, how the arms learned, what they cost, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from .. import catalog, statistics
from ..errors import BadFile, call
from ..monitor import charts, page, words
from ..monitor.files import replace
from .findings import ENOUGH, costs, returns, values
from .folder import command, read, settings
from .study import NOT, REPRODUCED, UNDECIDED, Answer, Finding, Row, Study

POINTS = 41  # of a performance profile
MOST_BITS = 16  # of the figure: beyond that nothing happens
COSTS = {  # of a row -> how the table calls and writes it
    "training_seconds": ("training time", words.seconds),
    "cpu_seconds": ("CPU time", words.seconds),
    "actor_microseconds_per_step": ("actor time, us a step", words.number),
    "energy_joules": ("energy", lambda x: words.energy(x).partition(" (")[0]),
}


class Found(NamedTuple):
    """What is there of a study: its definition, its settings, and the rows of its runs."""

    folder: Path
    study: Study
    settings: Mapping[str, Any]
    rows: Sequence[Row]

    def runs(self, task: str, arm: str) -> list[Row]:
        """The runs of an arm on a task, by seed."""
        chosen = [row for row in self.rows if (row["task"], row["arm"]) == (task, arm)]
        return sorted(chosen, key=lambda row: row["seed"])

    @property
    def tasks(self) -> list[str]:
        return list(self.settings["arguments"])

    @property
    def arms(self) -> list[str]:
        """Of all tasks together, in the order of the study."""
        there = {arm for arms in self.settings["arguments"].values() for arm in arms}
        return [arm for arm in self.study.arms if arm in there]

    @property
    def expected(self) -> int:
        """Seeds of all arms and tasks."""
        return sum(len(arms) * self.settings["seeds"][task] for task, arms in self.settings["arguments"].items())


def load(folder: Path) -> Found:
    """The study in a folder. Raises BadFile if there is none or it is damaged."""
    there = settings(folder)
    if there is None:
        raise BadFile(f"{folder} is not the folder of a study (no study.json)")
    return Found(folder, catalog.study(there["study"]), there, read(folder))


def report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a study and return its path. Raises BadFile if there is none."""
    found = load(Path(folder))
    replace(found.folder / "report.html", page.page(f"{found.study.name}: FrugalRL", _body(found)))
    return found.folder / "report.html"


def answers(found: Found) -> Iterator[tuple[Finding, str, Answer]]:
    """Each finding with the tasks that it was asked of; of all together, of how many that the study has."""
    arguments, study = found.settings["arguments"], found.study
    for finding in study.findings:
        arms, asked = {finding.ours, finding.base}, finding.tasks or {*study.tasks, *found.tasks}
        able = [task for task in found.tasks if task in asked and arms <= arguments[task].keys()]
        there = [task for task in able if all(found.runs(task, arm) for arm in arms)]
        if finding.together:  # a task whose runs are still coming makes no verdict that stood before undecided
            there = [task for task in there if all(len(found.runs(task, arm)) >= ENOUGH for arm in arms)] or there
        whole = {task for task, own in study.tasks.items() if task in asked and arms <= {*own.get("arms", study.arms)}}
        count = len(whole.union(able))
        for tasks in [there] if finding.together and able else [[task] for task in able]:
            ours, base = ([found.runs(task, arm) for task in tasks] for arm in (finding.ours, finding.base))
            ran = tasks and all(ours) and all(base)
            answer = finding.test(ours, base) if ran else Answer(UNDECIDED, "not run yet")
            every = "all tasks" if len(tasks) == count else f"{len(tasks)} of {count} tasks"
            yield finding, every if finding.together else tasks[0], answer


def claims(found: Found) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Of each numbered claim of the study: its text, the verdict, and how many of its questions have which one.

    It is reproduced where all of them are, and not where one is not.
    """
    said = [(finding.question, answer.verdict) for finding, _, answer in answers(found)] if found.study.claims else []
    for number, text in found.study.claims.items():
        verdicts = [verdict for question, verdict in said if question.startswith(f"{number}. ")]
        counts = {verdict: verdicts.count(verdict) for verdict in (REPRODUCED, NOT, UNDECIDED)}
        last = next((verdict for verdict in (NOT, UNDECIDED) if counts[verdict]), REPRODUCED if verdicts else UNDECIDED)
        yield f"{number}. {text}", last, counts


def told(found: Found) -> Iterator[str]:
    """The claims and findings as lines of text."""
    for text, verdict, counts in claims(found):
        yield f"{verdict}: {text} (of its questions {_counted(counts)})"
    for finding, task, answer in answers(found):
        note = f" ({answer.note})" if answer.note else ""
        yield f"{answer.verdict}: {finding.question} {task}, {finding.ours} / {finding.base}: {answer.found}{note}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n) or "none asked"


def _body(found: Found) -> list[str]:
    done, whole = len(found.rows), len(found.rows) == found.expected
    state = f'<span class="mark {"good" if whole else "warn"}">{done} of {found.expected} seeds finished</span>'
    scale = f"at {found.settings['scale']:g} times the steps" if found.settings["scale"] != 1 else ""
    versions = " &middot; ".join(escape(text) for text in filter(None, (scale, _machine(found.rows))))
    return [
        page.header(f"Study {found.study.name}", "", " &middot; ".join(filter(None, (state, versions)))),
        f"<p>{escape(found.study.claim)}</p>",
        *_claims(found),
        page.section("Findings", _findings(found)),
        *(_task(found, i, task) for i, task in enumerate(found.tasks)),
        _together(found),
        page.section("The same again", page.commands([command(dict(found.settings), found.folder)])),
        page.section("Each run by itself", page.commands(_commands(found))),
        page.section("Next", page.commands([call("report", found.folder)])),
        "<footer>Written by FrugalRL from study.json and rows.jsonl in this folder. Intervals are 95 % percentile "
        "bootstrap, stratified by task, and the same every time.</footer>",
    ]


def _machine(rows: Sequence[Row]) -> str:
    """The processors that the runs had."""
    return ", ".join(sorted({f"{row['hardware']['cpu']}, {row['hardware']['cores']} cores" for row in rows}))


def _claims(found: Found) -> Iterator[str]:
    if found.study.claims:
        cells = [[escape(text), _counted(counts), _mark(verdict)] for text, verdict, counts in claims(found)]
        yield page.section("Claims", page.table(("claim", "of its questions", "verdict"), cells))


def _mark(verdict: str) -> str:
    return f'<span class="mark {"good" if verdict == REPRODUCED else "warn"}">{verdict}</span>'


def _findings(found: Found) -> str:
    head = ("question", "task", "arms", "found", "verdict")
    cells = [
        [
            escape(finding.question),
            escape(task),
            escape(f"{finding.ours} / {finding.base}"),
            "".join(f'<div class="note">{escape(text)}</div>' for text in (answer.found, answer.note) if text),
            _mark(answer.verdict),
        ]
        for finding, task, answer in answers(found)
    ]
    return page.table(head, cells)


def _task(found: Found, i: int, task: str) -> str:
    runs = {arm: there for arm in found.arms if (there := found.runs(task, arm))}
    if not runs:
        return page.section(task, '<p class="soft">Not run yet.</p>')
    return page.section(
        task, '<div class="stack">', *_curves(found, i, task, runs), *_bits(found, i, task, runs),
        *_forests(i, task, runs), "</div>", _table(runs),
    )  # fmt: skip


def _curves(found: Found, i: int, task: str, runs: Mapping[str, list[Row]]) -> Iterator[str]:
    """The figures of the study, but for those of which another shows all that has been run so far."""
    known = {arm: charts.curve(lines) for arm, there in runs.items() if (lines := _lines(there))}
    known = {arm: curve for arm, curve in known.items() if curve.x}
    for n, (name, arms) in enumerate(_figures(found, known)):
        curves = [(index % page.COLOURS, arm, known[arm]) for index, arm in enumerate(arms)]
        chart = charts.compared(curves, f"curves-{i}-{n}", "return")
        caption = (
            f"{name}{': return' if name else 'Return'} of greedy episodes on {task}, interquartile mean over seeds "
            "with its 95 % bootstrap interval."
        )
        yield page.figure(chart, caption, page.legend((index, arm) for index, arm, _ in curves))


def _bits(found: Found, i: int, task: str, runs: Mapping[str, list[Row]]) -> Iterator[str]:
    """Returns against the bits that weights are rounded to: a line for each arm, and one for those of one number."""
    lines: dict[str, tuple[int, dict[int, statistics.Interval]]] = {}
    for arm, there in runs.items():
        bits = sorted({n for row in there for n, _ in row.get("rounded", ())})
        points = {n: statistics.bootstrap(returns(there, n)) for n in bits}
        known = {n: point for n, point in points.items() if np.isfinite(point.point)}
        name = f"{arm}, rounded after training" if len(bits) > 1 else "trained for so many bits"
        lines.setdefault(name, (_colour(found, arm), {}))[1].update(known)
    drawn = [
        (colour, name, charts.Curve([*points], [*points.values()]))
        for name, (colour, of) in lines.items()
        if (points := {n: of[n] for n in sorted(of) if n <= MOST_BITS})
    ]
    if drawn:
        chart = charts.compared(drawn, f"bits-{i}", "return", "bits of a weight")
        caption = (
            f"Return of greedy episodes on {task} with weights of so many bits: interquartile mean over seeds with its "
            "95 % bootstrap interval."
        )
        yield page.figure(chart, caption, page.legend((colour, name) for colour, name, _ in drawn))


def _lines(runs: Iterable[Row]) -> list[charts.Line]:
    known = [(row["seed"], [p for p in row["curve"] if p[1] is not None]) for row in runs]
    return [charts.Line(f"seed {seed}", *map(list, zip(*points, strict=True))) for seed, points in known if points]


def _forests(i: int, task: str, runs: Mapping[str, list[Row]]) -> Iterator[str]:
    """Arms side by side: what they reached, and how long that took."""
    shown = (
        (
            "final_return",
            "final return",
            "Final return: interquartile mean over seeds and its 95 % bootstrap interval.",
        ),
        ("training_seconds", "seconds of training, a seed", "Training time with compilation and without evaluation."),
        ("actor_microseconds_per_step", "actor time, microseconds a step", "What a step costs the actor processes."),
    )
    for name, across, caption in shown:
        of = values if name == "final_return" else costs
        entries = [(arm, statistics.bootstrap(of(there, name))) for arm, there in runs.items()]
        known = [(arm, interval) for arm, interval in entries if np.isfinite(interval.point)]
        if known:
            yield page.figure(charts.forest(known, f"forest-{i}-{name}", f"{across} on {task}", across), caption)


def _table(runs: Mapping[str, list[Row]]) -> str:
    head = (
        "arm",
        "seeds",
        "final return",
        "mean of the curve",
        *(name for name, _ in COSTS.values()),
        "KL",
        "acted with",
    )
    cells = []
    for arm, there in runs.items():
        of = {name: statistics.bootstrap(values(there, name)) for name in ("final_return", "area")}
        cost = [shown(statistics.iqm(costs(there, name))) for name, (_, shown) in COSTS.items()]
        kl = [kl for row in there if (kl := (row["actors"] or {}).get("kl")) is not None]
        texts = [*(words.interval(interval) for interval in of.values()), *cost]
        texts += [words.number(float(np.mean(kl))) if kl else "", _acted(there)]
        cells.append([escape(arm), " ".join(map(_link, there)), *(escape(text) for text in texts)])
    return page.table(head, cells, numbers=range(1, 8 + 1))


def _link(row: Row) -> str:
    """The seed, with the way to the report of its run."""
    return f'<a href="{escape(quote(row["folder"]))}/report.html">{row["seed"]}</a>'


def _acted(runs: Iterable[Row]) -> str:
    """Number formats and engines of the actors, and whether any was given up."""
    actors = [row["actors"] for row in runs if row["actors"]]
    said = sorted({f"{each['mode']} on {each['engine']}" for each in actors})
    given_up = sum(each["fallback"] is not None for each in actors)
    return ", ".join(said) + (f"; {given_up} runs fell back to fp32" if given_up else "")


def _together(found: Found) -> str:
    """Over tasks that arms share: the statistics of Agarwal et al. 2021, of returns from a task's worst to its best.

    A task of less than two arms with runs has nothing to compare.
    """
    ran = {task: {arm for arm in found.arms if found.runs(task, arm)} for task in found.tasks}
    tasks = [task for task in found.tasks if len(ran[task]) > 1]
    arms = [arm for arm in found.arms if all(arm in ran[task] for task in tasks)]
    if len(tasks) < 2 or len(arms) < 2:
        return ""
    scores = {arm: [_normalised(found, task, arm) for task in tasks] for arm in arms}
    first, thresholds = arms[0], np.linspace(0, 1, POINTS).tolist()
    head = ("arm", "interquartile mean", "median", "mean", f"better than {first} with probability")
    cells = [
        [
            escape(arm),
            words.interval(statistics.bootstrap(of)),
            *(words.interval(statistics.bootstrap(of, how, per_task=np.mean)) for how in (np.median, np.mean)),
            "" if arm == first else words.interval(statistics.improvement(of, scores[first])),
        ]
        for arm, of in scores.items()
    ]
    shown = [f"Tasks: {', '.join(tasks)}.", page.table(head, cells, numbers=range(1, 5))]
    for n, (name, those) in enumerate(_figures(found, arms)):
        profiles = [
            (index % page.COLOURS, arm, charts.Curve(thresholds, statistics.profile(scores[arm], thresholds)))
            for index, arm in enumerate(those)
        ]
        chart = charts.compared(profiles, f"profiles-{n}", "share of runs above", "normalised final return")
        caption = (
            f"{f'{name}: performance' if name else 'Performance'} profiles. Final returns of a task go from 0, its "
            "worst run of all arms, to 1, its best; a run without a finite return counts as the worst."
        )
        shown.append(page.figure(chart, caption, page.legend((index, arm) for index, arm, _ in profiles)))
    return page.section("All tasks", *shown)


def _figures(found: Found, there: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """The figures of the study with those of their arms that are there, but for one that another shows whole."""
    drawn: list[set[str]] = []
    for name, arms in (found.study.figures or {"": tuple(found.study.arms)}).items():
        shown = [arm for arm in arms if arm in there]
        if shown and not any({*shown} <= others for others in drawn):
            drawn.append({*shown})
            yield name, shown


def _normalised(found: Found, task: str, arm: str) -> list[float]:
    known = [row["final_return"] for row in found.rows if row["task"] == task and row["final_return"] is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    # max gives low for a NaN, which is not greater
    return [(max(low, x) - low) / ((high - low) or 1.0) for x in values(found.runs(task, arm), "final_return")]


def _commands(found: Found) -> list[str]:
    """A command for each arm and task, of its first seed that is there."""
    return [there[0]["command"] for task in found.tasks for arm in found.arms if (there := found.runs(task, arm))] or [
        "none has finished yet"
    ]


def _colour(found: Found, arm: str) -> int:
    return found.arms.index(arm) % page.COLOURS
