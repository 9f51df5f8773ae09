"""How long from the start of `frugal train` to the learner's first update, cold and warm?

    python -m benchmarks.first_update [--times N] [--out FILE] [--quick]

Cold is an empty cache of compiled programs, warm the same run once more. Seconds count from the start of the process,
so Python and its imports are in. The `actors` runtime collects 5,000 steps before its first update on LunarLander-v3,
the `compiled` one 1,000 on CartPole-v1.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import rows

NAME = "first_update"
RUNS = {  # what is trained, just long enough for a first update
    "CartPole-v1": ["dqn", "CartPole-v1", "--steps", "2000"],
    "LunarLander-v3": ["dqn", "LunarLander-v3", "--actors", "int8", "--steps", "6000"],
}
TARGETS = {("CartPole-v1", "cold"): 15.0, ("CartPole-v1", "warm"): 4.0}  # seconds


def pair(words: list[str]) -> dict[str, dict[str, float]]:
    """A cold run and a warm one: seconds to the first update, of compilation, and of the whole process."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for state in ("cold", "warm"):
            done = rows.train(Path(folder, state), words, cache=Path(folder, "cache"))
            measured[state] = {
                "first_update_seconds": done.receipt["first_update_seconds"],
                "compile_seconds": done.receipt["compile_seconds"],
                "process_seconds": done.process_seconds,
            }
    return measured


def summary(env: str, state: str, runs: list[dict[str, float]]) -> rows.Row:
    numbers = {key: rows.spread([run[key] for run in runs]) for key in runs[0]}
    target = TARGETS.get((env, state))
    reached = None if target is None else numbers["first_update_seconds"]["median"] <= target
    return rows.row(NAME, env=env, state=state, times=len(runs), **numbers, target_seconds=target, reached=reached)


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--times", type=int, default=5, help="cold and warm runs of each (default 5)")
    args = command.parse_args()
    path, measured = rows.destination(NAME, args), {env: [] for env in RUNS}
    made: list[rows.Row] = []
    for _ in range(1 if args.quick else args.times):
        for env, words in RUNS.items():
            measured[env].append(pair(words))
            seconds = {state: run["first_update_seconds"] for state, run in measured[env][-1].items()}
            print(f"{env:16} cold {seconds['cold']:6.2f} s, warm {seconds['warm']:6.2f} s", flush=True)
        made = [
            summary(env, state, [pair[state] for pair in pairs])
            for env, pairs in measured.items()
            for state in ("cold", "warm")
        ]
        rows.write(path, made)
    for each in made:
        goal = "" if each["target_seconds"] is None else f" (target {each['target_seconds']:g} s)"
        print(f"  {each['env']:16} {each['state']} {each['first_update_seconds']['median']:6.2f} s{goal}")
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
