"""What is an update worth when glibc keeps what is freed (`frugalrl.xla.keep_memory`)?

    python -m benchmarks.kept_memory [--rounds N] [--out FILE] [--quick]

One iteration of learning from random data, in a process of its own on one core: with glibc's own thresholds, which any
variable of the environment that is for it leaves alone, and with ours. In rounds, each in its turn; ratios are taken
within a round.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from time import perf_counter

from benchmarks import rows

NAME = "kept_memory"
IMPALA = {"num_envs": 4, "n_steps": 16, "optimizer": "adam"}
CASES = {
    "impala 2048x3": ("impala", "HalfCheetah-v5", IMPALA | {"hidden": (2048,) * 3}),
    "impala 1024x3": ("impala", "HalfCheetah-v5", IMPALA | {"hidden": (1024,) * 3}),
    "sac 1024x2": ("sac", "HalfCheetah-v5", {"hidden": (1024, 1024), "batch_size": 1024}),
    "dqn 512x512": ("dqn", "LunarLander-v3", {"hidden": (512, 512)}),
}
WAYS = {"glibc's own": {"GLIBC_TUNABLES": ""}, "kept": {}}


def measure(case: str) -> None:
    """Print what one process found: milliseconds of an iteration, and the most memory it had."""
    from benchmarks.learning import iteration
    from frugalrl import config, jobs

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jobs.set_up_jax()
    agent, env, hyper = CASES[case]
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
    command.add_argument("--measure", choices=CASES)
    args = command.parse_args()
    if args.measure:
        return measure(args.measure)
    made, rounds = [], 1 if args.quick else args.rounds
    for case in list(CASES)[-1:] if args.quick else CASES:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, variables in WAYS.items():
                one = [sys.executable, "-m", "benchmarks.kept_memory", "--measure", case]
                said = subprocess.run(one, env=os.environ | variables, check=True, capture_output=True, text=True)
                found[way].append(tuple(json.loads(said.stdout)))
        for way, each in found.items():
            ratio = [own[0] / ms[0] for own, ms in zip(found["glibc's own"], each, strict=True)]
            made.append(
                rows.row(
                    NAME, case=case, way=way, rounds=rounds, ms_per_iteration=rows.spread([ms for ms, _ in each]),
                    times_faster=rows.spread(ratio), peak_mib=rows.spread([peak for _, peak in each]),
                )
            )  # fmt: skip
    rows.finish(NAME, args, made, line)


def line(found: rows.Row) -> str:
    ms, ratio, peak = (found[name]["median"] for name in ("ms_per_iteration", "times_faster", "peak_mib"))
    return f"{found['case']:14} {found['way']:12} {ms:7.1f} ms, {ratio:.2f} times as fast, {peak:.0f} MiB"


if __name__ == "__main__":
    main()
