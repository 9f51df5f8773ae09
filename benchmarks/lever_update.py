"""What do the levers that work inside of the learner's update cost there?

    python -m benchmarks.lever_update [--rounds N] [--out FILE] [--quick]

One iteration of learning from random data, on one core: plain, with a student that is distilled (`half`), with ranges
that are kept (`int8-static`), with both, and with gradients at rounded weights (`aware`). In rounds, each in its turn;
ratios are taken within a round. Milliseconds of all cores for a step of an environment.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

from benchmarks import rows
from benchmarks.learning import iteration
from frugalrl import config, jobs
from frugalrl.ledger import acting
from frugalrl.levers.compress.aware import quantisation_aware
from frugalrl.levers.compress.modes import mode
from frugalrl.levers.compress.quantise import int8
from frugalrl.types import Agent

NAME = "lever_update"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "impala 1024x3": (
        "impala", "HalfCheetah-v5", {"hidden": (1024,) * 3, "num_envs": 4, "n_steps": 32, "optimizer": "adam"}
    ),
    "ppo 256x256": ("ppo", "LunarLander-v3", {"hidden": (256, 256)}),
    "dqn 256x256": ("dqn", "LunarLander-v3", {"hidden": (256, 256)}),
    "impala nature": ("impala", "ALE/Pong-v5", {"network": "nature"}),
}  # fmt: skip
LEVERS: dict[str, Callable[[Agent], Agent]] = {
    "none": lambda agent: agent,
    "aware": lambda agent: quantisation_aware(agent, int8(), 0),
} | {name: lambda agent, name=name: acting(agent, mode(name)) for name in ("half", "int8-static", "half+int8-static")}


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=9, metavar="N")
    args = command.parse_args()
    rounds = 1 if args.quick else args.rounds
    jobs.set_up_jax()
    path, made = rows.destination(NAME, args), []
    for case in list(CASES)[1:2] if args.quick else CASES:
        agent, env, hyper = CASES[case]
        run = {name: iteration(config.configure(agent, env, hyper=hyper), lever) for name, lever in LEVERS.items()}
        spent: dict[str, list[float]] = {name: [] for name in run}
        for _ in range(rounds):
            for name, (once, steps) in run.items():
                start, times = process_time(), 0
                while times < 3 or process_time() - start < 0.1:
                    once()
                    times += 1
                spent[name].append((process_time() - start) * 1e3 / times / steps)
        for name, each in spent.items():
            ratio = [a / b for a, b in zip(each, spent["none"], strict=True)]
            made.append(
                rows.row(
                    NAME, case=case, agent=agent, env=env, hyper=hyper, lever=name, rounds=rounds,
                    cpu_ms_per_step=rows.spread(each), times_none=rows.spread(ratio),
                )
            )  # fmt: skip
            found = made[-1]
            print(
                f"{case:14} {name:17} {found['cpu_ms_per_step']['median']:7.3f} ms a step, "
                f"{found['times_none']['median']:.3f} times", flush=True,
            )  # fmt: skip
        rows.write(path, made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
