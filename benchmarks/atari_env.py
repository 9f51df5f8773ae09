"""How many steps of Atari does one process make, one by one in Python, in ale-py's native code and in EnvPool?

    python -m benchmarks.atari_env [--env ID] [--num-envs N] [--rounds N] [--out FILE] [--quick]

Training environments as an actor has them, with random actions, on one core: the process is bound to it first.
Backends take turns in rounds; a ratio is taken within a round. EnvPool takes part where it is installed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from time import perf_counter
from typing import Any

BOUND = hasattr(os, "sched_setaffinity")
if BOUND:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np  # noqa: E402

from benchmarks import rows  # noqa: E402
from frugalrl.envs.atari import BACKENDS  # noqa: E402
from frugalrl.envs.make import options_for  # noqa: E402
from frugalrl.runtime.actor import vector_env  # noqa: E402

NAME = "atari_env"
PACKAGES = ("ale-py", "envpool", "gymnasium", "opencv-python-headless")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--env", default="ALE/Pong-v5", metavar="ID")
    command.add_argument("--num-envs", type=int, default=8, metavar="N")
    command.add_argument("--rounds", type=int, default=5, metavar="N")
    args = command.parse_args()
    rounds, steps = (1, 20) if args.quick else (args.rounds, 500)
    options, rng = options_for(args.env), np.random.default_rng(0)
    there = [name for name in reversed(BACKENDS) if name != "envpool" or find_spec("envpool")]
    made: dict[str, Any] = {}
    for name in there:
        made[name] = vector_env(args.env, args.num_envs, options._replace(backend=name))
        made[name].reset(seed=0)
    rates: dict[str, list[float]] = {name: [] for name in there}
    for _ in range(rounds):
        for name, envs in made.items():
            actions = rng.integers(envs.action_space.nvec[0], size=(steps, args.num_envs))
            start = perf_counter()
            for action in actions:
                envs.step(action)
            rates[name].append(steps * args.num_envs / (perf_counter() - start))
    measured = [
        rows.row(
            NAME, PACKAGES, env=args.env, num_envs=args.num_envs, backend=name, steps_per_second=rows.spread(rate),
            times_python=rows.spread([a / b for a, b in zip(rate, rates["python"], strict=True)]), rounds=rounds,
            steps_a_turn=steps * args.num_envs, threads="bound to one core" if BOUND else "one",
        )
        for name, rate in rates.items()
    ]  # fmt: skip
    rows.finish(NAME, args, measured, line)


def line(row: rows.Row) -> str:
    rate, ratio = row["steps_per_second"]["median"], row["times_python"]["median"]
    return f"  {row['backend']:10}{rate:10,.0f} steps/s{ratio:8.2f}x"


if __name__ == "__main__":
    main()
