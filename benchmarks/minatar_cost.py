"""What does a seed of DQN on MinAtar's Breakout cost at Revisiting Rainbow's settings, and how soon is PQN as good?

    python -m benchmarks.minatar_cost [--steps N] [--minutes M] [--folder DIR] [--out FILE] [--quick]

DQN has the paper's network (one convolution of 16 filters), batches of 32, an update for each four steps, its memory
and its exploration (Obando-Ceron and Castro 2021, arXiv 2011.14826; their seed of 10 million steps took 12 to 14 hours
on a P100); PQN has its own defaults. Each is the real command, one seed, for `--minutes` at most: what was not made by
then the same command makes later, from the runs in `--folder` (default runs/minatar-cost), and rows say how many steps
were made. PQN's seconds are those to the first evaluation that is as good as DQN's last one, of all sittings.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import rows
from frugalrl.studies.rainbow import ARMS, task

NAME = "minatar_cost"
ENV = "MinAtar/Breakout-v0"
STEPS = 10_000_000  # the paper's
TARGET_MINUTES = 20.0  # for DQN's steps
EXPLORATION = 250_000  # steps over which epsilon falls


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


def run(agent: str, steps: int, minutes: float, folder: Path) -> rows.Trained:
    """Begin or go on with a run, for `minutes` at most."""
    box = ["--steps", str(steps), "--budget", f"{minutes:g}"]
    if (folder / "receipt.json").is_file():
        return rows.resume(folder, box)
    return rows.train(folder, [*AGENTS[agent](steps), *box])


def measured(agent: str, done: rows.Trained, folder: Path) -> rows.Row:
    """What a run has cost so far."""
    found = done.receipt
    training = found["wall_seconds"] - found["compile_seconds"] - found["evaluation_seconds"]
    made = found["steps"]
    curve = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    points = [{name: row[name] for name in ("step", "wall_seconds", "episode_return")} for row in curve]
    goal = {"target_minutes": TARGET_MINUTES, "reached": minutes_for(found, STEPS) < TARGET_MINUTES}
    return rows.row(
        NAME, kind="run", agent=agent, env=ENV, seed=done.config["seed"], steps=made, finished=found["finished"],
        minutes=found["wall_seconds"] / 60, steps_per_second=made / found["wall_seconds"],
        training_steps_per_second=made / training, compile_seconds=found["compile_seconds"],
        evaluation_seconds=found["evaluation_seconds"], minutes_for_all_steps=minutes_for(found, STEPS),
        last_return=points[-1]["episode_return"] if points else None, evaluations=points,
        train_return=curve[-1].get("train_return") if curve else None, hyper=done.config["hyper"],
        **(goal if agent == "dqn" else {}),
    )  # fmt: skip


def minutes_for(receipt: dict[str, Any], steps: int) -> float:
    """Minutes that `steps` steps take: those of the receipt, and the rest at its rate in training."""
    made = receipt["steps"]
    training = receipt["wall_seconds"] - receipt["compile_seconds"]
    return (receipt["wall_seconds"] + max(steps - made, 0) * training / made) / 60


def as_good(ours: rows.Row, wanted: float) -> dict[str, Any] | None:
    """The first evaluation of a run that reached a return; None if none did."""
    return next((point for point in ours["evaluations"] if point["episode_return"] >= wanted), None)


def compared(base: rows.Row, other: rows.Row) -> rows.Row:
    wanted = base["last_return"]
    point = None if wanted is None else as_good(other, wanted)
    seconds = None if point is None else point["wall_seconds"]
    return rows.row(
        NAME, kind="comparison", env=ENV, ours=other["agent"], base=base["agent"], return_wanted=wanted,
        base_seconds=60 * base["minutes"], base_steps=base["steps"], seconds=seconds,
        steps=None if point is None else point["step"], reached=seconds is not None and seconds < 60 * base["minutes"],
    )  # fmt: skip


def show(made: list[rows.Row]) -> None:
    for each in made[:-1]:
        print(
            f"  {each['agent']}: {each['steps']:,} steps in {each['minutes']:.1f} minutes, "
            f"{each['training_steps_per_second']:,.0f} steps/s in training, last return {each['last_return']}; "
            f"{STEPS:,} steps take {each['minutes_for_all_steps']:.1f} minutes"
        )
    last = made[-1]
    when = "not reached" if last["seconds"] is None else f"{last['seconds']:.0f} s, {last['steps']:,} steps"
    print(f"  {last['ours']} to a return of {last['return_wanted']}: {when}")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--steps", type=int, default=STEPS, metavar="N")
    command.add_argument("--minutes", type=float, default=25.0, help="of each of the two, in this sitting")
    command.add_argument("--folder", type=Path, default=Path("runs", "minatar-cost"), help="where the runs are kept")
    args = command.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.quick else args.folder
        steps = 20_000 if args.quick else args.steps
        made = []
        for agent in AGENTS:
            place = (folder / agent).resolve()
            made.append(measured(agent, run(agent, steps, args.minutes, place), place))
    made.append(compared(*made))
    path = rows.destination(NAME, args)
    rows.write(path, made)
    show(made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
