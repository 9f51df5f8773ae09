"""What benchmarks of a newcomer's first minutes share: a folder with nothing installed, and what commands cost."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

VENV = f"{shlex.quote(sys.executable)} -m venv .venv"
PIP = "pip install --quiet --no-cache-dir --disable-pip-version-check"


class Spent(NamedTuple):
    """What a command has cost."""

    wall_seconds: float
    cpu_seconds: float  # of it and of all that it started and waited for
    printed: str


def shell(folder: Path) -> Callable[[str], Spent]:
    """A function that runs a command in `folder`, with what is installed in its `.venv`, once that is made.

    No caches are found: neither pip's nor of compiled programs. Raises RuntimeError with what the command printed if it
    fails.
    """
    hidden = ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | {
        "PATH": os.pathsep.join([str(folder / ".venv" / "bin"), os.environ["PATH"]]),
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "JAX_PLATFORMS": "cpu",
    }

    def run(command: str) -> Spent:
        start, before = time.perf_counter(), _cpu()
        done = subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return Spent(time.perf_counter() - start, _cpu() - before, done.stdout + done.stderr)

    return run


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
