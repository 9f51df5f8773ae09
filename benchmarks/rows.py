"""What the benchmarks share: their command line, and rows of results that say how and where they were measured.

A row is a dictionary: `benchmark`, `command`, `date`, `cpu`, `cores`, `versions`, then what was measured. Rows are kept
as JSON lines, in `results/NAME.jsonl` unless told otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from frugalrl.monitor.machine import hardware
from frugalrl.monitor.machine import versions as base_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PATHS = ("--out", "--source", "--folder")  # options left out of `command`: they are places on one machine
Row = dict[str, Any]
T = TypeVar("T")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes, `doc` as its description."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="where the rows go; default benchmarks/results/NAME.jsonl"
    )
    made.add_argument("--quick", action="store_true", help="only see that it works; keeps nothing without --out")
    return made


def destination(name: str, args: argparse.Namespace) -> Path | None:
    """The file for the rows of benchmark `name`; None if they are not kept."""
    if args.out is not None:
        return args.out
    return None if args.quick else RESULTS / f"{name}.jsonl"


def row(benchmark: str, packages: Iterable[str] = (), /, **measured: Any) -> Row:
    """A row of `benchmark`; the versions of `packages` are added to those that every row has."""
    found = hardware()
    return {
        "benchmark": benchmark,
        "command": command(benchmark, sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "cpu": found["cpu"],
        "cores": found["cores"],
        "versions": versions(packages),
        **measured,
    }


def command(benchmark: str, arguments: Sequence[str]) -> str:
    """The command line that makes the same rows, without places on this machine."""
    kept, skip = [], False
    for word in arguments:
        if not skip and not word.startswith(tuple(f"{option}=" for option in PATHS)) and word not in PATHS:
            kept.append(word)
        skip = word in PATHS
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *kept])


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, of what every run depends on, and of those of `packages` that are installed."""
    found = {name: version for name, version in base_versions().items() if version is not None}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(path: Path | None, rows: Iterable[Row]) -> None:
    """Replace the file with these rows, as a whole or not at all; nothing for None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text("".join(json.dumps(each) + "\n" for each in rows))
    beside.replace(path)


def read(path: Path | None) -> list[Row]:
    """The rows of a file; none if there is no file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def renewed(old: Iterable[Row], new: Sequence[Row], name: str) -> list[Row]:
    """The `new` rows after those `old` ones that they do not replace: of what no new row has the same `name` of."""
    again = {each[name] for each in new}
    return [*(each for each in old if each[name] not in again), *new]


def said(path: Path | None, rows: Sequence[Row]) -> str:
    """The last line of a benchmark."""
    return f"{len(rows)} rows in {path}" if path else f"{len(rows)} rows, not kept (--quick without --out)"


def finish(name: str, args: argparse.Namespace, made: Sequence[Row], line: Callable[[Row], str]) -> None:
    """Keep the rows of benchmark `name`, and print a line for each and the last one."""
    path = destination(name, args)
    write(path, made)
    for each in made:
        print(line(each))
    print(said(path, made))


def boxed(todo: Iterable[T], minutes: float) -> Iterator[T]:
    """The items of `todo` one by one, until one like the longest so far would not end within `minutes`."""
    end, longest = time.monotonic() + 60 * minutes, 0.0
    for item in todo:
        start = time.monotonic()
        if start + longest > end:
            print(f"the {minutes:g} minutes are over; the same command goes on from here")
            return
        yield item
        longest = max(longest, time.monotonic() - start)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest, to four significant digits."""
    names = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.4g}") for name, value in names.items()}


class Trained(NamedTuple):
    """A finished `frugal train`."""

    receipt: dict[str, Any]
    config: dict[str, Any]
    process_seconds: float  # from before Python starts to after it has ended


COMMAND = ("-m", "frugalrl.cli")


def train(
    folder: Path,
    words: Sequence[str],
    cache: Path | None = None,
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = COMMAND,
    command: str = "train",
) -> Trained:
    """Run `frugal train`, or another `command`, with `words` in a process of its own, into `folder`, which must not be
    there.

    `cache` is where compiled programs are kept, by default where any run keeps them; `variables` are set in the
    environment of the process; `program` is what Python runs in place of `frugal`. Raises RuntimeError with what it
    printed if it fails.
    """
    places = dict(variables or {}) | ({} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)})
    return _trained(folder, [*program, command, *words, "--out", str(folder)], places)


def resume(folder: Path, words: Sequence[str] = ()) -> Trained:
    """Go on with the run in `folder` by `frugal resume`; raises as `train` does. Costs are those of all sittings."""
    return _trained(folder, [*COMMAND, "resume", str(folder), *words], {})


def _trained(folder: Path, line: Sequence[str], variables: Mapping[str, str]) -> Trained:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *line, "--quiet"], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"frugal {shlex.join(line[2:])} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    receipt, config = (json.loads((folder / name).read_text()) for name in ("receipt.json", "config.json"))
    return Trained(receipt, config, seconds)
