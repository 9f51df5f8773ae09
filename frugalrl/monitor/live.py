"""progress.json: how far a run is at this moment, between the evaluations that rows.jsonl has; gone when it ends."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .files import plain, read_json, replace
from .kinds import number

FILE = "progress.json"
SECONDS_BETWEEN = 1.0  # two versions of it
KIND = {"step": (number,), "total": (number,), "at": (number,), "steps_per_second": number, "kl": number}


class Now(NamedTuple):
    """Steps are environment steps of all seeds together."""

    step: int
    total: int
    steps_per_second: float | None
    kl: float | None  # of the compressed policy from the full one
    at: float  # seconds since the epoch

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.step) / self.steps_per_second if self.steps_per_second else None


def write(folder: Path, step: int, total: int, steps_per_second: float | None, kl: float | None) -> None:
    """A disk that is full does not end a run here."""
    now = Now(step, total, steps_per_second, kl, time.time())
    with suppress(OSError):
        replace(folder / FILE, json.dumps(plain(now._asdict())) + "\n")


def read(folder: str | os.PathLike) -> Now | None:
    """None where nothing trains, or the file is not what it should be."""
    try:
        found: dict[str, Any] = read_json(Path(folder) / FILE, KIND) or {}
        return Now(**found)
    except (OSError, ValueError, TypeError):
        return None


def remove(folder: Path) -> None:
    with suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)
