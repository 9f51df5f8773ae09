"""What does a seed of DQN on MinAtar's Breakout cost at Revisiting Rainbow's settings, and how soon is PQN as good?

    python -m benchmarks.minatar_cost [--steps N] [--seeds N] [--dqn-seeds N] [--minutes M] [--folder DIR] [--out FILE]
        [--quick]

DQN has the paper's network (one convolution of 16 filters), batches of 32, an update for each four steps, its memory
and its exploration (Obando-Ceron and Castro 2021, arXiv 2011.14826; their seed of 10 million steps took 12 to 14 hours
on a P100); PQN has its own defaults, those of its paper for MinAtar. Each seed is a run of the real command that has
the machine to itself; DQN's come first. When `--minutes` are over the same command goes on later, from the runs in
`--folder` (default runs/minatar-cost), and rows say how many steps were made. Seconds are those of all sittings.

DQN's return is the mean of its last `LAST` evaluations, and of its seeds. A seed of PQN is as good from the first of
two evaluations in a row that reach it: one alone might be luck, and the greatest of many is. Both are evaluated as
often, and those evaluations are in both times.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from benchmarks import rows
from frugalrl.studies.rainbow import ARMS, task

NAME = "minatar_cost"
ENV = "MinAtar/Breakout-v0"
STEPS = 10_000_000  # the paper's
TARGET_MINUTES = 20.0  # for DQN's steps
EXPLORATION = 250_000  # steps over which epsilon falls
EVALUATIONS = 40  # on the way
LAST = 3  # of DQN's, which say how good it is
Point = dict[str, float]  # an evaluation: step, wall_seconds, episode_return


def dqn(steps: int) -> list[str]:
    """What the study of Rainbow trains its arm "DQN" with, for `steps` steps."""
    found = task(ENV, ["DQN"])
    hyper = found["hyper"] | ARMS["DQN"]["hyper"] | found["arms"]["DQN"]["hyper"]
    hyper["exploration_fraction"] = min(EXPLORATION / steps, 1.0)
    said = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in hyper.items()]
    return ["dqn", ENV, "--hyper", *said]


def pqn(steps: int) -> list[str]:
    return ["pqn", ENV]


AGENTS = {"dqn": dqn, "pqn": pqn}
Who = tuple[str, int]  # agent and seed


def place(folder: Path, who: Who) -> Path:
    return folder.resolve() / f"{who[0]}-seed-{who[1]}"


def run(who: Who, steps: int, minutes: float, folder: Path) -> None:
    """Begin or go on with a run, for `minutes` at most; nothing for one that is finished."""
    agent, seed = who
    box = ["--steps", str(steps), "--budget", f"{minutes:g}"]
    if (folder / "config.json").is_file():
        rows.resume(folder, box)
    else:
        said = [*AGENTS[agent](steps), "--seed", str(seed), "--evaluations", str(EVALUATIONS)]
        rows.train(folder, [*said, *box])


def measured(who: Who, folder: Path) -> rows.Row | None:
    """What a run has cost so far; None if it has not made a step."""
    if not (folder / "receipt.json").is_file():
        return None
    found, config = (json.loads((folder / name).read_text()) for name in ("receipt.json", "config.json"))
    if not found["steps"]:
        return None
    training = found["wall_seconds"] - found["compile_seconds"] - found["evaluation_seconds"]
    made, file = found["steps"], folder / "rows.jsonl"
    curve = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    points = [{name: row[name] for name in ("step", "wall_seconds", "episode_return")} for row in curve]
    goal = {"target_minutes": TARGET_MINUTES, "reached": minutes_for(found, STEPS) < TARGET_MINUTES}
    return rows.row(
        NAME, kind="run", agent=who[0], env=ENV, seed=config["seed"], seeds=1, steps=made, finished=found["finished"],
        minutes=found["wall_seconds"] / 60, steps_per_second=made / found["wall_seconds"],
        training_steps_per_second=made / training, compile_seconds=found["compile_seconds"],
        evaluation_seconds=found["evaluation_seconds"], minutes_for_all_steps=minutes_for(found, STEPS),
        last_return=points[-1]["episode_return"] if points else None, evaluations=points,
        train_return=curve[-1].get("train_return") if curve else None, hyper=config["hyper"],
        **(goal if who[0] == "dqn" else {}),
    )  # fmt: skip


def minutes_for(receipt: dict[str, Any], steps: int) -> float:
    """Minutes that `steps` steps take: those of the receipt, and the rest at its rate in training."""
    made = receipt["steps"]
    training = receipt["wall_seconds"] - receipt["compile_seconds"]
    return (receipt["wall_seconds"] + max(steps - made, 0) * training / made) / 60


def bar(runs: Sequence[Sequence[Point]]) -> float | None:
    """The mean return of the last `LAST` evaluations of all `runs`; None if one has fewer, or there is none."""
    if not runs or min(map(len, runs)) < LAST:
        return None
    return statistics.fmean(point["episode_return"] for points in runs for point in points[-LAST:])


def as_good(points: Sequence[Point], wanted: float) -> Point | None:
    """The first of two evaluations in a row that both reached a return; None if there are no such two."""
    return next((a for a, b in pairwise(points) if min(a["episode_return"], b["episode_return"]) >= wanted), None)


def compared(base: Sequence[rows.Row], others: Sequence[rows.Row]) -> rows.Row:
    """How long each seed of PQN took to DQN's return; the median counts one that has not reached it as the longest."""
    wanted = bar([each["evaluations"] for each in base])
    points = [None if wanted is None else as_good(each["evaluations"], wanted) for each in others]
    seconds = [None if point is None else point["wall_seconds"] for point in points]
    median = statistics.median(inf if each is None else each for each in seconds) if seconds else inf
    theirs = statistics.fmean(60 * each["minutes"] for each in base)
    return rows.row(
        NAME, kind="comparison", env=ENV, ours="pqn", base="dqn", return_wanted=wanted,
        base_seeds=[each["seed"] for each in base], base_finished=all(each["finished"] for each in base),
        base_seconds=theirs, base_steps=[each["steps"] for each in base], seeds=[each["seed"] for each in others],
        seconds=seconds, steps=[None if point is None else point["step"] for point in points],
        median_seconds=None if median == inf else median, reached=median < theirs,
    )  # fmt: skip


def table(folder: Path, whose: Sequence[Who]) -> list[rows.Row]:
    """The rows of the runs that there are, and of their comparison if DQN is among them."""
    made = [row for who in whose if (row := measured(who, place(folder, who)))]
    base, others = ([row for row in made if row["agent"] == agent] for agent in AGENTS)
    return [*made, compared(base, others)] if base else made


def show(made: Sequence[rows.Row]) -> None:
    for each in made:
        if each["kind"] == "run":
            print(
                f"  {each['agent']}, seed {each['seed']}: {each['steps']:,} steps in {each['minutes']:.1f} minutes, "
                f"{each['training_steps_per_second']:,.0f} steps/s in training, last return {each['last_return']}; "
                f"{STEPS:,} steps take {each['minutes_for_all_steps']:.1f} minutes"
            )
        else:
            end = "" if each["base_finished"] else f", whose {STEPS:,} steps are not done"
            when = ", ".join("not yet" if s is None else f"{s:.0f} s" for s in each["seconds"]) or "no run yet"
            print(f"  {each['ours']} to the return {each['return_wanted']} of {each['base']}{end}: {when}")
            print(f"  {each['base']} took {each['base_seconds']:.0f} s")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--steps", type=int, default=STEPS, metavar="N")
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="of PQN")
    command.add_argument("--dqn-seeds", type=int, default=1, metavar="N")
    command.add_argument("--minutes", type=float, default=90.0, help="of this sitting, all runs together")
    command.add_argument("--folder", type=Path, default=Path("runs", "minatar-cost"), help="where the runs are kept")
    args = command.parse_args()
    seeds = {"dqn": args.dqn_seeds, "pqn": args.seeds}
    whose = [(agent, seed) for agent in AGENTS for seed in range(1 if args.quick else seeds[agent])]
    path, end = rows.destination(NAME, args), time.monotonic() + 60 * args.minutes
    made: list[rows.Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.quick else args.folder
        for who in whose:
            left = (end - time.monotonic()) / 60
            if left > 0:
                run(who, 20_000 if args.quick else args.steps, left, place(folder, who))
            made = table(folder, whose)
            rows.write(path, made)
    show(made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
