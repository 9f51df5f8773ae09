"""What is an update worth with what the library does about glibc's memory and about XLA's transpositions?

    python -m benchmarks.update_cost [--only CASE ...] [--rounds N] [--out FILE] [--quick]

One iteration of learning from random data, in a process of its own on one core: as the library does it; without
`frugalrl.xla.keep_memory`, since any variable of the environment that is for glibc leaves its own thresholds alone; and
with JAX's own gradients instead of those of `frugalrl.agents.descent.untransposed`. In rounds, each in its turn; ratios
are taken within a round.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from time import perf_counter
from typing import Any
from unittest import mock

from benchmarks import rows

NAME = "update_cost"
IMPALA = {"num_envs": 4, "n_steps": 16, "optimizer": "adam"}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "impala 2048x3": ("impala", "HalfCheetah-v5", IMPALA | {"hidden": (2048,) * 3}),
    "impala 1024x3": ("impala", "HalfCheetah-v5", IMPALA | {"hidden": (1024,) * 3}),
    "sac 1024x2": ("sac", "HalfCheetah-v5", {"hidden": (1024, 1024), "batch_size": 1024}),
    # in `compiled`, mapped over seeds
    "dqn 512x512": ("dqn", "CartPole-v1", {"hidden": (512, 512), "batch_size": 128}),
    "sac 256x256": ("sac", "Pendulum-v1", {"hidden": (256, 256)}),
    "td3 256x256": ("td3", "Pendulum-v1", {"hidden": (256, 256)}),
    "ppo 64x64": ("ppo", "CartPole-v1", {}),
}
OURS = "ours"
WAYS = {OURS: {}, "memory given back": {"GLIBC_TUNABLES": ""}, "gradients transposed": {}}


def measure(case: str, way: str) -> None:
    """Print what one process found: milliseconds of an iteration, and the most memory it had."""
    from benchmarks.learning import iteration
    from frugalrl import config, jobs
    from frugalrl.agents import descent

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jobs.set_up_jax()
    agent, env, hyper = CASES[case]
    gradients = (lambda function: function) if way == "gradients transposed" else descent.untransposed
    with mock.patch.object(descent, "untransposed", gradients):
        once, _ = iteration(config.configure(agent, env, hyper=hyper))
    times: list[float] = []
    while sum(times) < 2 or len(times) < 5:
        start = perf_counter()
        once()
        times.append(perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([sorted(times)[len(times) // 2] * 1e3, peak]))


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=5, metavar="N")
    command.add_argument("--only", nargs="+", choices=CASES, help="measure these and keep the rows of others")
    command.add_argument("--measure", nargs=2, metavar=("CASE", "WAY"), help="for its own processes")
    args = command.parse_args()
    if args.measure:
        return measure(*args.measure)
    cases, rounds = args.only or (list(CASES)[-1:] if args.quick else list(CASES)), 1 if args.quick else args.rounds
    made = [row for row in rows.read(rows.destination(NAME, args)) if row["case"] not in cases]
    for case in cases:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, variables in WAYS.items():
                one = [sys.executable, "-m", f"benchmarks.{NAME}", "--measure", case, way]
                said = subprocess.run(one, env=os.environ | variables, check=True, capture_output=True, text=True)
                found[way].append(tuple(json.loads(said.stdout)))
        for way, each in found.items():
            ratio = [ms[0] / ours[0] for ours, ms in zip(found[OURS], each, strict=True)]
            made.append(
                rows.row(
                    NAME, case=case, way=way, rounds=rounds, ms_per_iteration=rows.spread([ms for ms, _ in each]),
                    times_ours=rows.spread(ratio), peak_mib=rows.spread([peak for _, peak in each]),
                )
            )  # fmt: skip
    rows.finish(NAME, args, made, line)


def line(found: rows.Row) -> str:
    ms, ratio, peak = (found[name]["median"] for name in ("ms_per_iteration", "times_ours", "peak_mib"))
    return f"{found['case']:14} {found['way']:20} {ms:7.1f} ms, {ratio:.2f} times ours, {peak:.0f} MiB"


if __name__ == "__main__":
    main()
