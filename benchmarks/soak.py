"""Does the memory of a run grow? What it and its actors hold, sampled while it trains for an hour.

    python -m benchmarks.soak [--minutes M] [--only CASE ...] [--out FILE] [--quick]

Each case trains for so long, with evaluations and checkpoints as always, and a replay that is full after the first
seconds. Sampled is the memory that each process has to itself, and its share of what several have (Pss, Linux only). A
row has the median of each tenth of the time, for the run and for all of its actors, and how much more the last tenth
has than the third: what is compiled, filled and begun belongs to the first ones. It has too for what share of the time
training waited for checkpoints.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks import rows

NAME = "soak"
STEPS = 100_000_000  # more than there is time for
WORDS = ("--steps", str(STEPS), "--evaluations", "1000")
CASES = {
    "actors": ["dqn", "CartPole-v1", "--runtime", "actors", "--actors", "int8", "--hyper", "buffer_size=10000"],
    "compiled": ["dqn", "CartPole-v1", "--seeds", "2", "--hyper", "buffer_size=10000"],
}
TENTHS, SETTLED = 10, 2  # the third is the first that counts


def held(pid: int) -> float:
    """MB of a process; 0 once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has just ended
            found += [int(child) for child in file.read_text().split()]
    return found


def soaked(words: list[str], minutes: float) -> rows.Row:
    """Train for so long; raises RuntimeError with what was printed if that fails."""
    samples: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "run")
        line = [sys.executable, *rows.COMMAND, "train", *words, *WORDS, "--budget", str(minutes), "--quiet"]
        process = subprocess.Popen([*line, "--out", str(out)], cwd=rows.ROOT, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        every = min(5.0, 60 * minutes / (4 * TENTHS))
        while process.poll() is None:
            samples.append((held(process.pid), sum(map(held, children(process.pid)))))
            time.sleep(every)
        printed = process.stderr.read()
        if not (out / "receipt.json").exists():
            raise RuntimeError(f"frugal train {' '.join(words)} exited with {process.returncode}:\n{printed[-2000:]}")
        made = json.loads((out / "receipt.json").read_text())
        evaluations = len((out / "rows.jsonl").read_text().splitlines())
    samples = [sample for sample in samples if sample[0]]
    tenths = [samples[k * len(samples) // TENTHS : (k + 1) * len(samples) // TENTHS] for k in range(TENTHS)]
    run, actors = ([round(statistics.median(sample[k] for sample in tenth), 1) for tenth in tenths] for k in range(2))
    return rows.row(
        NAME, minutes=minutes, steps=made["steps"], seeds=made["seeds"], evaluations=evaluations,
        refreshes=(made["actors"] or {}).get("refreshes"), samples=len(samples), faults=made["faults"],
        checkpoint_share=made["checkpoint_seconds"] / made["wall_seconds"], run_megabytes=run, actors_megabytes=actors,
        run_growth=run[-1] - run[SETTLED], actors_growth=actors[-1] - actors[SETTLED],
    )  # fmt: skip


def line(row: rows.Row) -> str:
    return (
        f"{row['case']:9} {row['steps']:,} steps in {row['minutes']:g} minutes: run {row['run_megabytes'][-1]:.0f} MB "
        f"({row['run_growth']:+.1f}), actors {row['actors_megabytes'][-1]:.0f} MB ({row['actors_growth']:+.1f}), "
        f"checkpoints {row['checkpoint_share']:.2%} of the time"
    )


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--minutes", type=float, default=60.0, help="of each case")
    command.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help="keeps the others")
    args = command.parse_args()
    path = rows.destination(NAME, args)
    kept = {each["case"]: each for each in rows.read(path)}
    for case in args.only:
        kept[case] = soaked(CASES[case], 0.5 if args.quick else args.minutes) | {"case": case}
        rows.write(path, kept.values())
    rows.finish(NAME, args, list(kept.values()), line)


if __name__ == "__main__":
    main()
