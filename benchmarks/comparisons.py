"""Which of two ways learns better? Arms on one environment, seed by seed, with intervals of their difference.

    python -m benchmarks.comparisons [--only NAME ...] [--minutes M] [--out FILE] [--quick]

Each comparison has arms, ours or a peer's, and the first is the one that the others are compared with. A run that has
its row already is not made again, so a study that was stopped goes on where it was; no run begins that would not end
within `--minutes`. Returns are means of 100 greedy episodes; over seeds, interquartile means with 95 % bootstrap
intervals.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from benchmarks import rows
from benchmarks.peers import run as peers
from benchmarks.peers.common import Task
from frugalrl.statistics import Interval, bootstrap, difference

NAME = "comparisons"
EPISODES = 100
QUICK = 11_000  # steps of --quick
Found = dict[str, Any]  # final_return, wall_seconds, and what else is worth keeping of a run


class Arm(NamedTuple):
    run: Callable[[int, int], Found]  # (steps, seed) -> what it reached
    says: str  # the command, or the peer's algorithm


class Comparison(NamedTuple):
    env: str
    steps: int  # of each seed
    seeds: int
    arms: dict[str, Arm]


def ours(agent: str, env: str, *words: str) -> Arm:
    """One `frugal train` for each seed."""

    def run(steps: int, seed: int) -> Found:
        line = [agent, env, "--seed", str(seed), "--steps", str(steps), *words]
        with tempfile.TemporaryDirectory() as folder:
            done = rows.train(Path(folder, "run"), line)
        found = done.receipt
        return {
            "final_return": found["returns"]["per_seed"][0],
            "wall_seconds": found["wall_seconds"],
            "cpu_seconds": found["cpu_seconds"],
            "steps_per_second": found["env_steps_per_second"],
            "time_split": found["time_split"],
            "runtime": found["runtime"],
            "hyper": done.config["hyper"],
        }

    return Arm(run, f"frugal train {' '.join([agent, env, *words])}")


def sb3(task: Task) -> Arm:
    """Stable-Baselines3 with a process for each seed."""

    def run(steps: int, seed: int) -> Found:
        found = peers.sb3(task._replace(steps=steps, seed=seed, episodes=EPISODES if steps > QUICK else 1))
        return {
            "final_return": found["mean_returns"][0],
            "wall_seconds": found["wall_seconds"],
            "steps_per_second": found["steps_per_second"],
            "hyper": task.options,
            "peer_versions": found["versions"],
        }

    return Arm(run, f"stable-baselines3 {task.algorithm}")


CHEETAH = "HalfCheetah-v5"
# those of its zoo for MuJoCo, which are our defaults too: 256x256, Adam at 3e-4, batches of 256, one update a step
SB3_SAC = Task("SAC", CHEETAH, 0, {"learning_starts": 10_000}, (256, 256))

PONG = "ALE/Pong-v5"
# PPO's settings for Atari with twice their learning rate, which falls to 0 within this short training
PPO_PONG = "num_envs=8 n_steps=128 learning_rate=5e-4 anneal_lr=1 clip_range=0.1 ent_coef=0.01"

COMPARISONS: dict[str, Comparison] = {
    "sac-halfcheetah": Comparison(CHEETAH, 50_000, 3, {"frugalrl": ours("sac", CHEETAH), "sb3": sb3(SB3_SAC)}),
    # random play ends at about -20.7; a step is 4 frames, of 42x42 pixels to spare three quarters of the time
    "pong": Comparison(
        PONG, 1_000_000, 3, {"ppo": ours("ppo", PONG, "--env-option", "screen_size=42", "--hyper", *PPO_PONG.split())}
    ),
}


def kept(path: Path | None) -> list[rows.Row]:
    """The runs of the file."""
    return [each for each in rows.read(path) if each["kind"] == "run"]


def runs_of(found: Comparison) -> Iterator[tuple[int, str]]:
    """Seeds and arms in the order they are run; who comes first alternates."""
    for seed in range(found.seeds):
        yield from ((seed, arm) for arm in (found.arms if seed % 2 == 0 else reversed(found.arms)))


def measure(name: str, arm: str, seed: int, steps: int) -> rows.Row:
    found = COMPARISONS[name]
    made = found.arms[arm].run(steps, seed)
    return rows.row(
        NAME, kind="run", comparison=name, env=found.env, arm=arm, how=found.arms[arm].says,
        seed=seed, steps=steps, **made,
    )  # fmt: skip


def summaries(runs: Sequence[rows.Row]) -> list[rows.Row]:
    """A row for each arm that was run, with its difference to the first."""
    made = []
    for name, found in COMPARISONS.items():
        by_arm = {arm: _of(runs, name, arm) for arm in found.arms}
        first = next(iter(found.arms))
        for arm, mine in by_arm.items():
            if not mine:
                continue
            gap = {}
            if arm != first and by_arm[first]:
                gap = {"minus": first, "difference": _interval(difference(_returns(mine), _returns(by_arm[first])))}
            made.append(
                rows.row(
                    NAME, kind="summary", comparison=name, env=found.env, arm=arm, how=found.arms[arm].says,
                    seeds=len(mine), steps=mine[0]["steps"], returns=_interval(bootstrap(_returns(mine))),
                    wall_seconds=rows.spread([each["wall_seconds"] for each in mine]), **gap,
                )
            )  # fmt: skip
    return made


def _of(runs: Sequence[rows.Row], name: str, arm: str) -> list[rows.Row]:
    return [each for each in runs if (each["comparison"], each["arm"]) == (name, arm)]


def _returns(runs: Sequence[rows.Row]) -> list[float]:
    return [each["final_return"] for each in runs]


def _interval(x: Interval) -> dict[str, float | None]:
    return {"iqm": x.point, "low": x.low, "high": x.high}


def show(made: Sequence[rows.Row]) -> None:
    for each in made:
        gap = f", minus {each['minus']}: {_said(each['difference'])}" if "minus" in each else ""
        print(
            f"  {each['comparison']:20}{each['arm']:14}{_said(each['returns'])} over {each['seeds']} seeds of "
            f"{each['steps']:,} steps, {each['wall_seconds']['median']:.0f} s a seed{gap}"
        )


def _said(x: dict[str, Any]) -> str:
    return f"{x['iqm']:.1f}" + ("" if x["low"] is None else f" [{x['low']:.1f}, {x['high']:.1f}]")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--only", nargs="*", default=list(COMPARISONS), choices=COMPARISONS, metavar="NAME")
    command.add_argument("--minutes", type=float, default=float("inf"), help="time box")
    args = command.parse_args()
    path, end = rows.destination(NAME, args), monotonic() + 60 * args.minutes
    runs = kept(path)
    for name in args.only:
        study = COMPARISONS[name]
        steps, longest = (QUICK if args.quick else study.steps), 0.0
        for seed, arm in runs_of(study):
            start = monotonic()
            if any((each["seed"], each["steps"]) == (seed, steps) for each in _of(runs, name, arm)):
                continue
            if start + longest > end:
                print(f"the {args.minutes:g} minutes are over; the same command goes on from here")
                break
            made = measure(name, arm, seed, steps)
            runs = [*(kept(path) if path else runs), made]  # another process may have added to the file
            longest = max(longest, monotonic() - start)
            rows.write(path, [*runs, *summaries(runs)])
            print(
                f"{name}, {arm}, seed {seed}: return {made['final_return']:.1f}, {made['wall_seconds']:.0f} s",
                flush=True,
            )
    whole = [*runs, *summaries(runs)]
    rows.write(path, whole)
    show(whole[len(runs) :])
    print(rows.said(path, whole))


if __name__ == "__main__":
    main()
