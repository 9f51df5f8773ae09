"""Do the agents learn, at their own defaults? The greedy return of each (agent, environment) against its target.

Each case is one `frugal train` with its seeds and options, kept as it ends; a case that has a row in the file already
is left out, so that the study can be stopped and taken up again. `--only ppo` or `--only CartPole-v1` picks cases,
`--again` runs those that have rows. Returns are the interquartile mean over seeds, of 100 greedy episodes each, with a
95 % bootstrap interval; a target is reached if the mean is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from . import rows

NAME = "returns"


class Case(NamedTuple):
    agent: str
    env: str
    target: float | None  # the interquartile mean asked for, if any was
    seeds: int = 5
    options: tuple[str, ...] = ()


CASES = (
    Case("ppo", "CartPole-v1", 475),
    Case("pqn", "CartPole-v1", 475),
    Case("pqn", "Acrobot-v1", None),
    Case("a2c", "CartPole-v1", None),
    Case("impala", "CartPole-v1", None),
    Case("ptr-ppo", "CartPole-v1", None),
    Case("dqn", "CartPole-v1", None),
    Case("dqn", "MountainCar-v0", None),
    Case("sac", "Pendulum-v1", -200),
    Case("td3", "Pendulum-v1", -200),
    Case("ddpg", "Pendulum-v1", None),
    Case("d4pg", "Pendulum-v1", None),
    Case("ppo", "Pendulum-v1", None),
    Case("ppo", "Pendulum-v1", None, options=("--hyper", "squash=true")),
    Case("ppo", "LunarLander-v3", 200),
    Case("a2c", "LunarLander-v3", None),
    Case("ppo", "brax/inverted_pendulum-spring", None),
    Case("ppo", "MinAtar/Breakout-v1", None, options=("--runtime", "actors")),
    Case("impala", "MinAtar/Breakout-v1", None, options=("--runtime", "actors")),
    Case("a3c", "CartPole-v1", 475),
    *(
        Case("a3c", "CartPole-v1", 475, options=("--steps", "500000", "--hyper", f"algorithm={name}"))
        for name in ("one-step-q", "one-step-sarsa", "n-step-q")
    ),
    # with and without waiting for each other, the same numbers otherwise: 2 actors of 4 environments
    Case("a3c", "CartPole-v1", None, options=("--runtime", "actors")),
    Case("a2c", "CartPole-v1", None, options=("--runtime", "actors", "--hyper", "gae_lambda=1", "max_grad_norm=10")),
)


def words(case: Case) -> list[str]:
    """What comes after `frugal train`; it tells the cases apart."""
    return [case.agent, case.env, "--seeds", str(case.seeds), *case.options]


def line(case: Case) -> str:
    return f"frugal train {' '.join(words(case))}"


def measure(case: Case, quick: bool) -> rows.Row:
    with tempfile.TemporaryDirectory() as folder:
        done = rows.train(Path(folder, "run"), [*words(case), *(("--steps", "3000") if quick else ())])
    found, returns = done.receipt, done.receipt["returns"]
    late = {name: x for name, x in (found["actors"] or {}).items() if name in ("staleness", "staleness_max")}
    reached = None if case.target is None or quick else returns["iqm"] >= case.target
    return rows.row(
        NAME, agent=case.agent, env=case.env, train=line(case), seeds=case.seeds,
        steps=found["steps"], runtime=found["runtime"], hyper=done.config["hyper"], returns=returns,
        wall_seconds=found["wall_seconds"], cpu_seconds=found["cpu_seconds"],
        env_steps_per_second=found["env_steps_per_second"], target=case.target, reached=reached, **late,
    )  # fmt: skip


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--only", nargs="*", default=[], metavar="NAME", help="agents or environments (default: all)")
    command.add_argument("--again", action="store_true", help="also the cases that have a row")
    args = command.parse_args()
    path = rows.destination(NAME, args)
    kept = {each["train"]: each for each in rows.read(path)}
    for case in CASES:
        place = line(case)
        picked = not args.only or case.agent in args.only or case.env in args.only
        if not picked or (place in kept and not args.again):
            continue
        kept[place] = made = measure(case, args.quick)
        rows.write(path, kept.values())
        found, target = made["returns"], "" if case.target is None else f" (target {case.target:g})"
        print(
            f"{case.agent:8} {case.env:16} {found['iqm']:8.1f} [{found['low']:.1f}, {found['high']:.1f}]{target} "
            f"after {made['steps']:,} steps of {case.seeds} seeds, {made['wall_seconds']:.0f} s "
            f"{' '.join(case.options)}", flush=True,
        )  # fmt: skip
    print(rows.said(path, list(kept.values())))


if __name__ == "__main__":
    main()
