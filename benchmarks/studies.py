"""What does a study find? `frugal study NAME`, with a row for each arm and for each question.

    python -m benchmarks.studies quarl [--env ENV ...] [--arms ARM ...] [--seeds N] [--scale F] [--folder DIR]
        [--minutes M] [--out FILE]

The study itself is kept in `--folder` (default runs/study-NAME), stops after `--minutes` and goes on from there; rows
go to results/study_NAME.jsonl, with the returns of every seed, intervals, costs, and the verdicts. With `--env`, what
the file has of other tasks stays there. `policy_share` is that of policy calls and packets in the work of actors and
learner.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import rows
from frugalrl.catalog import STUDIES
from frugalrl.statistics import bootstrap
from frugalrl.studies import report
from frugalrl.studies.findings import costs, policies, returns
from frugalrl.studies.running import study

NAME = "studies"
COSTS = ("training_seconds", "cpu_seconds", "actor_microseconds_per_step", "energy_joules")  # of a seed
FAILURES = ("diverged", "skipped_updates", "broken_updates")  # of each seed, where there are any
QUICK = {"seeds": 2, "scale": 0.05, "budget": 1.0}  # minutes


def told(found: report.Found) -> Iterator[rows.Row]:
    """A row for the study, for each arm of a task that has runs, and for each answer."""
    there = found.settings
    common, seeds = {"study": found.study.name, "scale": there["scale"]}, there["seeds"]
    yield rows.row(
        NAME, kind="study", **common, seeds=seeds, claim=found.study.claim, runs=len(found.rows), of=found.expected,
        envs=there["envs"], tasks=found.tasks,
    )  # fmt: skip
    for task in found.tasks:
        for arm in found.arms:
            runs = found.runs(task, arm)
            if runs:
                bits = sorted({n for row in runs for n, _ in row.get("rounded", ())})
                yield rows.row(
                    NAME, kind="arm", **common, seeds=seeds[task], task=task, arm=arm,
                    train=runs[0]["command"], steps=runs[0]["steps"],
                    final_return=_interval(returns(runs)), rounded={n: _interval(returns(runs, n)) for n in bits},
                    **{name: each for name in FAILURES if any(each := [row.get(name) for row in runs])},
                    **{name: _spread(costs(runs, name)) for name in COSTS}, policy_share=policies([runs]),
                    energy_method=runs[0]["energy_method"], accelerator=runs[0]["hardware"]["accelerator"],
                )  # fmt: skip
    for finding, task, answer in report.answers(found):
        yield rows.row(
            NAME, kind="finding", **common, seeds=seeds.get(task), question=finding.question, task=task,
            together=finding.together, ours=finding.ours, base=finding.base, **answer._asdict(),
        )  # fmt: skip
    for text, verdict, counts in report.claims(found):
        yield rows.row(NAME, kind="claim", **common, claim=text, together=True, verdict=verdict, questions=counts)


def others(kept: list[rows.Row], tasks: list[str]) -> list[rows.Row]:
    """Of the rows that a file has, those that are about none of `tasks`; what is about several together is not."""

    def about(row: rows.Row) -> list[str]:
        return row.get("tasks") or row.get("envs") or [row.get("task", "")]

    return [row for row in kept if not row.get("together") and not {*tasks, ""} & {*about(row)}]


def _spread(numbers: list[float]) -> dict[str, float] | None:
    known = [n for n in numbers if not math.isnan(n)]
    return rows.spread(known) if known else None


def _interval(scores: list[float]) -> dict:
    found = bootstrap(scores)
    return {"iqm": found.point, "low": found.low, "high": found.high, "per_seed": scores}


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("study", choices=STUDIES)
    command.add_argument("--env", nargs="+", default=[], help="only these tasks, or other environments instead")
    command.add_argument("--arms", nargs="+", default=[], help="only these arms; others can follow")
    command.add_argument("--seeds", type=int, help="default: what the study says")
    command.add_argument("--scale", type=float, default=1.0, help="times the steps")
    command.add_argument("--folder", type=Path, help="of the study; default runs/study-NAME")
    command.add_argument("--minutes", type=float, help="time box")
    args = command.parse_args()
    path = rows.destination(f"study_{args.study}", args)
    with tempfile.TemporaryDirectory() as temporary:
        size: dict[str, Any] = {"seeds": args.seeds, "scale": args.scale, "budget": args.minutes, "out": args.folder}
        if args.quick:
            size = QUICK | {"out": Path(temporary, "study")}
        given = {name: value for name, value in size.items() if value is not None}
        done = study(args.study, envs=tuple(args.env), arms=tuple(args.arms), quiet=False, **given)
        found = report.load(done.folder)
        made = others(rows.read(path), found.tasks) + list(told(found))
    rows.write(path, made)
    print(f"{done.done} of {done.total} runs are finished")
    for line in report.told(found):
        print(f"  {line}")
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
