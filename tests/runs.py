"""What the tests of whole runs share: the command line in this process and in another one, and what a run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TINY = ("--steps", "3000", "--hyper", "hidden=16", "batch_size=32", "learning_starts=500")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "frugalrl.cli", *map(str, words)]


def start(*words: object, env: dict[str, str] | None = None, **how: Any) -> subprocess.Popen:
    """`frugal WORDS` in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | (env or {}),
        **how,
    )


def finish(process: subprocess.Popen, seconds: float = 60) -> Ended:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer of `what`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = what()
        if answer:
            return answer
        time.sleep(0.005)
    raise TimeoutError


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def timeless(found: list[dict]) -> list[dict]:
    """Rows without what depends on the clock."""
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in found]


def has_rows(folder: Path, count: int) -> bool:
    file = folder / "rows.jsonl"
    return file.exists() and file.read_text().count("\n") >= count


def receipt(folder: Path) -> dict:
    return json.loads((folder / "receipt.json").read_text())


def checkpoints(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("checkpoints/*/*.json")), key=lambda path: int(path.stem))


def actors_of(pid: int) -> list[int]:
    """Process ids of the actors that the process `pid` has started and that still run."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shared_folders(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"frugalrl-{pid}-*"))


def interrupt(process: subprocess.Popen, signum: int = signal.SIGINT) -> None:
    """A signal to the whole group, as a terminal sends it."""
    os.killpg(process.pid, signum)
