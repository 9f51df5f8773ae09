"""report.html: a run, or the runs of a study, on one page that needs nothing else."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from frugalrl.config import is_run as is_ours
from frugalrl.errors import UsageError, call
from frugalrl.statistics import Interval, bootstrap

from . import charts, members, page, receipt, rows, words
from .files import read_json, replace
from .kinds import number, string, whole

DEPTH = 3  # how far below a study's folder its runs may lie
# of config.json, which is shown but not used here: `config.read` looks at the rest
CONFIG = {"population": {"kind": string, "members": whole, "search": {...: string}}}
MEASURES = {  # of the compressed policy, in rows
    "kl": ("KL divergence", "KL divergence of the compressed policy from the full one: how far the actors were off."),
    "agreement": ("agreement", "Share of observations on which both policies choose the same action."),
}


class Run(NamedTuple):
    """What a run folder holds; `config` and `receipt` are empty where their file is missing."""

    folder: Path
    config: Mapping[str, Any]
    rows: list[dict[str, Any]]
    receipt: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """A run that was stopped has a receipt too."""
        return bool(self.receipt) and self.receipt.get("finished", True)


def report(folder: str | os.PathLike, price: float | None = None) -> Path:
    """Write `report.html` into a run folder, or into a folder that holds run folders, and return its path.

    A run needs none of its files: the page says what is missing. For a study each run gets its own page too, and the
    study a table of them all; what lies below and is no run with a config.json of ours is left alone, and links are not
    followed. With `price`, what an hour of the machine costs, pages tell the money. Raises UsageError if there is no
    such folder or its report.html is somebody else's, and BadFile if a file is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    if not is_ours(folder) and not page.is_ours(folder / "report.html"):
        raise UsageError(f"{folder / 'report.html'} was not written by FrugalRL: move it away first")
    runs = [] if is_ours(folder) else [load(path) for path in _runs_below(folder, DEPTH)]
    for run in runs or [load(folder)]:
        replace(run.folder / "report.html", page_of(run, price))
    if runs:
        replace(folder / "report.html", _study_page(folder, runs))
    return folder / "report.html"


def is_run(folder: Path) -> bool:
    if (folder / "study.json").is_file():
        return False  # its rows.jsonl is not that of a run; see `frugalrl.studies`
    return any((folder / name).is_file() for name in ("config.json", "rows.jsonl", "receipt.json"))


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        if is_ours(path):
            yield path
        elif depth > 1:
            yield from _runs_below(path, depth - 1)


def load(folder: Path) -> Run:
    """Raises BadFile if one of its files is damaged."""
    config = read_json(folder / "config.json", CONFIG) or {}
    return Run(folder, config, rows.read(folder / "rows.jsonl"), receipt.read(folder / "receipt.json") or {})


def known(run: Run, name: str, default: Any = None) -> Any:
    """What the run's files say of `name`, the receipt first: it tells what was, the configuration what was wanted."""
    first_row = run.rows[0] if run.rows else {}
    return next(
        (source[name] for source in (run.receipt, run.config, first_row) if source.get(name) is not None), default
    )


def returns_of(run: Run) -> Interval | None:
    """Of the receipt; of each seed's last evaluation if the run has not finished."""
    if run.receipt:
        return receipt.returns(run.receipt)
    last = [line.y[-1] for line in lines_of(run, "episode_return")]
    return bootstrap(last) if last else None


def steps_of(run: Run) -> int | None:
    return run.receipt.get("steps") or max((row.get("step") or 0 for row in run.rows), default=None)


def lines_of(run: Run, metric: str) -> list[charts.Line]:
    """The curve of each seed (and member) that has finite values of `metric`."""
    points: dict[tuple, dict[float, float]] = defaultdict(dict)
    for row in run.rows:
        if number(row.get(metric)) and row.get("step") is not None:
            points[rows.run_of(row)][row["step"]] = float(row[metric])
    return [
        charts.Line(f"seed {seed}" + ("" if member is None else f", member {member}"), *_sorted(at))
        for (seed, member), at in points.items()
    ]


def _sorted(points: Mapping[float, float]) -> tuple[list[float], list[float]]:
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def page_of(
    run: Run,
    price: float | None = None,
    now: Sequence[tuple[str, str]] | None = None,
    refresh: int | None = None,
) -> str:
    """The page of a run; with `now`, labels and texts, that of one which is being watched."""
    agent, env = known(run, "agent", "run"), known(run, "env", run.folder.resolve().name)
    return page.page(
        f"{agent} on {env}: FrugalRL",
        [
            page.header(str(agent), f"on {env}", _summary_line(run)),
            _headline(run) if now is None else page.section("Now", page.names(now)),
            *_notices(run, watched=now is not None),
            _learning(run),
            *members.sections(run.config, run.rows),
            _measured(run, "Generations", members.MEASURES),
            _measured(run, "Compressed policy", MEASURES),
            _time_split(run),
            _cost(run, price),
            _saved(run),
            _actors(run),
            _configuration(run),
            _machine(run),
            page.section("Next", page.commands(_next(run))),
            "<footer>Written by FrugalRL from config.json, rows.jsonl and receipt.json in this folder.</footer>",
        ],
        refresh,
    )


def _summary_line(run: Run) -> str:
    state = '<span class="mark good">finished</span>' if run.finished else '<span class="mark warn">not finished</span>'
    about = [
        f"{seeds_of(run)} seed{'s' if seeds_of(run) != '1' else ''}" if seeds_of(run) else "",
        f"{run.config['population'].get('members')} members" if run.config.get("population") else "",
        f"runtime {known(run, 'runtime')}" if known(run, "runtime") else "",
        str(run.receipt.get("hardware", {}).get("cpu") or ""),
    ]
    return " &middot; ".join([state, *(escape(part) for part in about if part)])


def seeds_of(run: Run) -> str:
    seeds = known(run, "seeds")
    if seeds is None and run.rows:
        seeds = len({row.get("seed") for row in run.rows})
    return "" if seeds is None else str(len(seeds) if isinstance(seeds, list) else seeds)


def _headline(run: Run) -> str:
    entries = []
    returns, steps, cost = returns_of(run), steps_of(run), run.receipt
    if returns is not None:
        entries.append(
            ("Return (IQM)" if returns.low is not None else "Return", words.number(returns.point), _spread(returns))
        )
    if steps is not None:
        entries.append(("Environment steps", words.short(steps), "of each seed"))
    wall = cost.get("wall_seconds") or max((row.get("wall_seconds") or 0 for row in run.rows), default=None)
    if wall:
        compiling = cost.get("compile_seconds")
        entries.append(
            ("Wall time", words.seconds(wall), f"{words.seconds(compiling)} of it compilation" if compiling else "")
        )
    if cost.get("env_steps_per_second") is not None:
        entries.append(("Speed", f"{words.short(cost['env_steps_per_second'])}/s", "environment steps, all seeds"))
    if cost.get("energy_joules") is not None:
        value, _, rest = words.energy(cost["energy_joules"]).partition(" (")
        method = str(cost.get("energy_method") or "").partition(":")[0]
        entries.append(("Energy", value, ", ".join(part for part in (rest.rstrip(")"), method) if part)))
    return page.tiles(entries) if entries else ""


def _spread(returns: Interval) -> str:
    if returns.low is None or returns.high is None:
        return "one run: no interval"
    return f"95 % interval {words.number(returns.low)} to {words.number(returns.high)}"


def _notices(run: Run, watched: bool) -> Iterator[str]:
    if not run.finished and not watched:
        command = call("resume", run.folder)
        yield page.notice(f"The run did not finish: <code>{escape(command)}</code> goes on from its last checkpoint.")
    lost = sum(1 for row in run.rows if row.get("episode_return") is None)
    if lost:
        yield page.notice(f"{lost} of {len(run.rows)} evaluations gave a return that is not a finite number.")


def _learning(run: Run) -> str:
    lines = lines_of(run, "episode_return")
    if not lines:
        when = "along the way" if returns_of(run) else "yet"  # a spent budget is evaluated all the same
        return page.section("Learning curve", f'<p class="soft">No evaluation {when}.</p>')
    chart = charts.learning_curve(lines, "returns", "return")
    caption = "Return of greedy evaluation episodes"
    if len(lines) > 1:
        caption += f"; thin: each of {len(lines)} runs, bold: their interquartile mean with its 95 % bootstrap interval"
    return page.section("Learning curve", page.figure(chart, f"{caption}. Point at the curve for values."))


def _measured(run: Run, title: str, measures: Mapping[str, tuple[str, str]]) -> str:
    """A figure for each of the measures that the rows have."""
    found = [(name, lines) for name in measures if (lines := lines_of(run, name))]
    figures = [
        page.figure(charts.learning_curve(lines, name, measures[name][0]), measures[name][1]) for name, lines in found
    ]
    return page.section(title, '<div class="stack">', *figures, "</div>") if figures else ""


def _time_split(run: Run) -> str:
    shares = receipt.time_shares(run.receipt)
    if not shares:
        return ""
    order = receipt.TIMES  # a part keeps its colour whatever else is there
    parts = [(order.index(name), name, seconds, share) for name, seconds, share in shares if name in order]
    chart = charts.stacked_bar([(index, name, share) for index, name, _, share in parts], "split", "time split")
    legend = page.legend(
        (index, f"{name} {receipt.percent(share)} ({words.seconds(seconds)})") for index, name, seconds, share in parts
    )
    unknown = [name for name in order if (run.receipt.get("time_split") or {}).get(name) is None]
    caption = "Summed seconds of all processes." + (f" Not measured here: {', '.join(unknown)}." if unknown else "")
    return page.section("Where the time went", page.figure(chart, caption, legend))


def _cost(run: Run, price: float | None) -> str:
    return page.section("Receipt", page.names(receipt.entries(run.receipt, price))) if run.receipt else ""


def _saved(run: Run) -> str:
    saved = receipt.savings(run.receipt)
    if not saved:
        return ""
    rows = [
        [f'{escape(s.lever)}<div class="soft">{escape(s.what)}</div>', s.shown(s.off), s.shown(s.on), s.times]
        for s in saved
    ]
    note = (
        '<p class="soft">Bytes and parameters are counted; calls were timed on this machine before training, with the '
        "fastest engine of each. 1x is nothing saved, less than 1x is lost. What the whole run would have taken "
        "without a lever is not known: train one without and compare the two.</p>"
    )
    table = page.table(("lever", "without it", "with it", "times less"), rows, numbers=range(1, 4))
    return page.section("What each lever saved", table, note)


def _actors(run: Run) -> str:
    actors = run.receipt.get("actors")
    if not actors:
        return ""
    actors = dict(actors)
    switches, measured = (actors.pop(name, None) or [] for name in ("switches", "measured"))
    shown = {
        "packet_bytes": words.size,
        "compressed_returns": lambda values: ", ".join(map(words.number, values)) or "none",
        "fallback": receipt.given_up,
        **dict.fromkeys((*receipt.ACTING, "waiting_seconds", "learner_waiting_seconds"), words.seconds),
        **dict.fromkeys(
            ("refreshes", "kl", "ratio", "ess", "agreement", "harm", "staleness", "staleness_max"), words.number
        ),
    }
    return page.section(
        "Actors",
        page.names((name, shown.get(name, text_of)(value)) for name, value in actors.items() if value is not None),
        _records("What a policy call was measured to take", measured),
        _records("What --actors auto changed while the run went on", switches),
    )


def _records(title: str, records: list[Mapping[str, Any]]) -> str:
    """Records of the same names as a table; nothing if there are none."""
    if not records:
        return ""
    head = list(records[0])
    rows = ([escape(text_of(round(x, 3) if isinstance(x, float) else x)) for x in one.values()] for one in records)
    numbers = [i for i, value in enumerate(records[0].values()) if isinstance(value, int | float)]
    return f"<h3>{escape(title)}</h3>" + page.table(head, rows, numbers)


def _configuration(run: Run) -> str:
    entries = list(flat(run.config))
    return page.section("Configuration", page.names(entries)) if entries else ""


def _machine(run: Run) -> str:
    hardware, versions = run.receipt.get("hardware") or {}, run.receipt.get("versions") or {}
    if not (hardware or versions):
        return ""
    shown = {**hardware, "memory": words.size(hardware.get("memory_bytes"))}
    shown.pop("memory_bytes", None)
    return page.section(
        "Machine and versions",
        f'<div class="pair">{page.names(flat(shown))}{page.names(flat(versions))}</div>',
    )


def _next(run: Run) -> list[str]:
    if not run.finished:
        return [call(name, run.folder) for name in ("resume", "watch", "report")]
    return [
        call("eval", run.folder),
        call("export", run.folder, "--format", "onnx"),
        call("resume", run.folder, "--steps", 2 * int(steps_of(run) or 1)),
        call("report", run.folder),
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested names joined by dots, each with its value in words."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", text_of(value)


def text_of(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(text_of(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _study_page(folder: Path, runs: list[Run]) -> str:
    name = folder.resolve().name
    finished = sum(1 for run in runs if run.finished)
    state = f"{len(runs)} runs, {finished} finished"
    return page.page(
        f"{name}: FrugalRL",
        [
            page.header(name, "", f'<span class="mark {"good" if finished == len(runs) else "warn"}">{state}</span>'),
            *_forests(folder, runs),
            page.section("Runs", _runs_table(folder, runs)),
            page.section("Next", page.commands([call("report", folder)])),
            "<footer>Written by FrugalRL from the run folders below this one.</footer>",
        ],
    )


def _forests(folder: Path, runs: list[Run]) -> Iterator[str]:
    """The runs of each environment side by side: returns of different environments have no common scale."""
    by_env: dict[str, list[tuple[str, Interval]]] = defaultdict(list)
    for run in runs:
        returns = returns_of(run)
        if returns is not None and math.isfinite(returns.point):
            by_env[str(known(run, "env", "unknown"))].append((_below(folder, run), returns))
    for i, (env, entries) in enumerate(by_env.items()):
        chart = charts.forest(entries, f"forest-{i}", f"returns on {env}")
        yield page.section(env, page.figure(chart, "Interquartile mean over seeds and its 95 % bootstrap interval."))


def _runs_table(folder: Path, runs: list[Run]) -> str:
    head = ("run", "agent", "environment", "seeds", "steps", "return", "wall time", "CPU time", "energy")
    return page.table(head, (_runs_row(folder, run) for run in runs), numbers=range(3, 9))


def _runs_row(folder: Path, run: Run) -> list[str]:
    name = _below(folder, run)
    link = f'<a href="{escape(quote(name))}/report.html">{escape(name)}</a>'
    texts = [
        known(run, "agent", ""),
        known(run, "env", ""),
        seeds_of(run),
        words.short(steps_of(run) or 0),
        words.interval(returns_of(run)),
        words.seconds(run.receipt.get("wall_seconds")) if run.finished else "not finished",
        words.seconds(run.receipt.get("cpu_seconds")) if run.finished else "",
        words.energy(run.receipt.get("energy_joules")).partition(" (")[0] if run.finished else "",
    ]
    return [link, *(escape(str(text)) for text in texts)]


def _below(folder: Path, run: Run) -> str:
    return run.folder.relative_to(folder).as_posix()
