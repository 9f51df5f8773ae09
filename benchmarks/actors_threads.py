"""Does the actors runtime gain from more actor processes, or from a learner on one XLA thread?

    python -m benchmarks.actors_threads [--steps N] [--rounds N] [--out FILE] [--quick]

DQN on LunarLander-v3 with int8 actors, short runs that take turns. The number of actor processes has no option of the
command line, so it is set in the program's place; XLA makes as many threads as NPROC says, or as there are cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import rows

NAME = "actors_threads"
CASES = [(processes, threads) for processes in (1, 2, 3) for threads in (None, 1)]  # None: as many as XLA likes
PROGRAM = """
import sys
from functools import partial
from frugalrl.runtime import actors
actors.Plan = partial(actors.Plan, actors={processes})
from frugalrl.cli import main
sys.exit(main())
"""


def run(processes: int, threads: int | None, steps: int) -> dict:
    """One run; its rate, and where its processes spent their time."""
    words = ["dqn", "LunarLander-v3", "--actors", "int8", "--steps", str(steps)]
    variables = {} if threads is None else {"NPROC": str(threads)}
    program = ("-c", PROGRAM.format(processes=processes))
    with tempfile.TemporaryDirectory() as folder:
        found = rows.train(Path(folder, "run"), words, variables=variables, program=program).receipt
    if found["actors"]["processes"] != processes:
        raise RuntimeError(f"asked for {processes} actor processes, the receipt says {found['actors']['processes']}")
    return {
        "steps_per_second": found["env_steps_per_second"],
        "learner_seconds": found["time_split"]["learner"],
        "environment_seconds": found["time_split"]["environment"],
        "learner_waiting_seconds": found["actors"]["learner_waiting_seconds"],
        "actors_waiting_seconds": found["actors"]["waiting_seconds"],
    }


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--steps", type=int, default=40_000)
    command.add_argument("--rounds", type=int, default=3)
    args = command.parse_args()
    steps, rounds = (8_000, 1) if args.quick else (args.steps, args.rounds)
    measured: dict[tuple, list[dict]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            measured[case].append(run(*case, steps))
    made = [
        rows.row(
            NAME, processes=processes, learner_threads=threads, steps=steps, rounds=rounds,
            **{key: rows.spread([each[key] for each in runs]) for key in runs[0]},
        )
        for (processes, threads), runs in measured.items()
    ]  # fmt: skip
    path = rows.destination(NAME, args)
    rows.write(path, made)
    for each in made:
        rate, threads = each["steps_per_second"]["median"], each["learner_threads"] or "all"
        print(f"  {each['processes']} actor processes, {threads!s:>3} threads for the learner {rate:10,.0f} steps/s")
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
