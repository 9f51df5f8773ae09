"""Runs a study: each run in a process of its own, one row for each seed that has finished, and nothing done twice.

A folder of a study holds study.json (its settings), rows.jsonl, report.html, and a run folder for each run, from which
one that was stopped goes on. A process of its own, so that a receipt counts what a run costs alone, its memory too;
only what an earlier run has compiled is not compiled again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import IO, Any, NamedTuple

import numpy as np

from .. import catalog, config, policy
from ..errors import UsageError, call
from ..monitor import receipt, rows
from ..monitor.files import replace
from ..signals import Stop
from ..statistics import area
from ..training import FINAL_EPISODES
from ..xla import module_path
from .folder import check, held, joined, place, read, settings
from .report import report
from .study import Row, Run, Study, plan, runs, words

KEPT = ("mode", "engine", "fallback", "refreshes", "packet_bytes", "kl", "agreement", "ratio", "ess")  # of its actors
POLL = 0.05  # seconds between two looks at a process


class Outcome(NamedTuple):
    """Where a study stands."""

    folder: Path
    done: int  # runs, of
    total: int
    stopped: int | None  # the signal that asked to stop, 0 for the budget
    failed: list[str]


Train = Callable[[list[str], Stop, IO], int]  # (words of `frugal`, stop, lock) -> exit code


def study(
    name: str,
    *,
    seeds: int | None = None,
    scale: float = 1.0,
    envs: tuple[str, ...] = (),
    arms: tuple[str, ...] = (),
    out: str | Path | None = None,
    budget: float | None = None,
    quiet: bool = True,
    train: Train | None = None,
) -> Outcome:
    """Run what is left of a study, in `out` (default runs/study-NAME), and write its report.

    Options are those of `frugal study`; `budget` is in minutes; `train` runs one `frugal train` or `resume`. Stops at a
    signal or a spent budget, with every run saved; the same call goes on, and one for other tasks or arms adds them. A
    run that fails is left for the next call.
    Raises UsageError for a wrong call, or a folder of other settings, before anything is written.
    """
    if budget is not None and not budget > 0:
        raise UsageError(f"--budget must be more than 0 minutes, got {budget:g}")
    made = plan(catalog.study(name), seeds, scale, envs, arms)
    folder = Path("runs", f"study-{name}") if out is None else Path(out)
    check(folder, made)
    todo, failed, stopped = list(runs(made)), [], None
    with Stop(budget) as stop, held(folder) as lock:
        check(folder, made)  # nobody else can have begun another study here since
        told = json.dumps(joined(settings(folder), made.settings()), indent=1)
        replace(folder / "study.json", told + "\n", lasting=True)
        report(folder)
        for number, run in enumerate(todo, start=1):
            if not _missing(folder, run):
                continue
            stopped = stop.asked()
            if stopped is not None:
                break
            if not quiet:
                print(f"{name}, run {number} of {len(todo)}: {_title(run)}", file=sys.stderr, flush=True)
            code = 0 if _over(folder, run) else (train or child)(_words(folder, run, stop, quiet), stop, lock)
            if _over(folder, run):
                for row in _rows(made.study, folder, run):  # each may take a while
                    rows.write(folder / "rows.jsonl", [row])
                    if _missing(folder, run) and (stopped := stop.asked()) is not None:
                        break
                report(folder)
                continue
            stopped = 0 if code == 0 else stop.asked()  # 0: it was the first to see that the budget is spent
            if stopped is not None:
                break
            failed.append(f"{_title(run)} (exit code {code})")
        done = sum(not _missing(folder, run) for run in todo)
    return Outcome(folder, done, len(todo), stopped, failed)


def child(words: list[str], stop: Stop, lock: IO) -> int:
    """`frugal WORDS` in a process of its own, which holds the lock too and is asked to stop when we are.

    Windows has neither: no lock to hold, and a process that is asked to stop there ends without saving.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "frugalrl.cli", *words],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(module_path())},
        pass_fds=() if sys.platform == "win32" else (lock.fileno(),),
    )
    asked = False
    try:
        while True:
            try:
                return process.wait(POLL)
            except subprocess.TimeoutExpired:
                if stop.signum is not None and not asked:
                    process.terminate()  # a terminal's Ctrl-C has reached it already; then this one changes nothing
                    asked = True
    finally:
        if process.poll() is None:  # we are interrupted for the second time
            process.kill()


def _words(folder: Path, run: Run, stop: Stop, quiet: bool) -> list[str]:
    """What begins a run, or goes on with it."""
    out = place(folder, run)
    if config.is_run(out):
        said = ["resume", str(out)]
    else:
        seeds = ["--seed", str(run.seeds[0]), "--seeds", str(len(run.seeds))]
        said = ["train", *words(run.arguments), *seeds, "--out", str(out)]
    if stop.deadline is not None:
        said += ["--budget", f"{max(stop.deadline - perf_counter(), 0.1) / 60:.6f}"]
    return [*said, "--quiet"] if quiet else said


def _over(folder: Path, run: Run) -> bool:
    """Whether a run has ended, well or because it diverged, which it would do again."""
    try:
        found = receipt.read(place(folder, run) / "receipt.json") or {}
    except ValueError:  # damaged: let the run itself say what to do
        return False
    return bool(found.get("diverged")) or (bool(found.get("finished")) and found.get("steps") == run.config.steps)


def _missing(folder: Path, run: Run) -> list[int]:
    """The seeds of a run that have no row."""
    there = {row["seed"] for row in read(folder) if (row["task"], row["arm"]) == (run.task, run.arm)}
    return [seed for seed in run.seeds if seed not in there]


def _rows(study: Study, folder: Path, run: Run) -> Iterator[Row]:
    """The rows of a finished run that are not there yet; seeds that trained together share its cost."""
    there, share = place(folder, run), len(run.seeds)
    found, evaluations = receipt.read(there / "receipt.json") or {}, rows.read(there / "rows.jsonl")
    diverged, precision = bool(found.get("diverged")), found.get("precision") or {}

    def told(name: str, seed: int) -> Any:
        """What a receipt says of each seed."""
        each = precision.get(name) or []
        return each[run.seeds.index(seed)] if len(each) == share else None

    actors = found["actors"] and {key: found["actors"].get(key) for key in KEPT}
    for seed in _missing(folder, run):
        curve = [(row["step"], row["episode_return"]) for row in evaluations if row["seed"] == seed]
        known = [point for point in curve if point[1] is not None]
        yield {
            "study": study.name, "task": run.task, "arm": run.arm, "seed": seed,
            "agent": run.config.agent, "env": run.config.env, "runtime": run.config.runtime,
            "steps": found["steps"], "final_return": curve[-1][1] if curve and not diverged else None,
            "area": area(*zip(*known, strict=True)) if len(known) == len(curve) > 0 and not diverged else None,
            "curve": curve, "diverged": diverged or bool(told("collapsed", seed)),
            "rounded": [] if diverged else _rounded(study, there, run, seed),
            **{name: told(name, seed) for name in ("skipped_updates", "broken_updates")},
            "folder": there.relative_to(folder).as_posix(), "seeds_together": share, **_cost(found, share),
            "actors": actors,
            "command": call("train", *words(run.arguments), "--seed", seed),
            "versions": found["versions"], "hardware": found["hardware"],
        }  # fmt: skip


def _rounded(study: Study, there: Path, run: Run, seed: int) -> list[tuple[int, float]]:
    """(bits, mean return) of the policy that a seed has left; one trained for its bits has those only."""
    if not study.bits:
        return []
    actor, k = policy.load(there), run.seeds.index(seed)
    bits = study.bits if run.config.qat is None else (run.config.qat,)
    return [(n, float(np.mean(actor.rounded(n).play(FINAL_EPISODES, seed=k).returns))) for n in bits]


def _cost(found: dict[str, Any], share: int) -> dict[str, Any]:
    """What one of `share` seeds cost: seconds of training are without evaluation, but with compilation."""
    split, acting = found["time_split"], None
    if found["actors"]:  # what a step costs them: the environment, the policy call, and taking new packets
        acting = split["environment"] + split["inference"] + found["actors"]["refresh_seconds"]
    training = found["wall_seconds"] - (found["evaluation_seconds"] or 0.0)
    each = {name: found[name] for name in ("wall_seconds", "compile_seconds", "cpu_seconds", "energy_joules")}
    return {
        **{name: None if value is None else value / share for name, value in each.items()},
        "training_seconds": training / share,
        "energy_method": found["energy_method"],
        "time_split": {part: None if value is None else value / share for part, value in split.items()},
        "actor_microseconds_per_step": None if acting is None else 1e6 * acting / found["steps"],
    }


def _title(run: Run) -> str:
    seeds = f"seed {run.seeds[0]}" if len(run.seeds) == 1 else f"seeds 0 to {run.seeds[-1]}"
    return f"{run.task}, {run.arm}, {seeds}"
