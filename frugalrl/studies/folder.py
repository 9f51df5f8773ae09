"""The folder of a study: its settings, its rows, who may write in it, and where its runs are."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import BadFile, UsageError
from ..monitor import rows
from ..monitor.files import read_json
from .study import FORMAT, Plan, Row, Run

LOCK = ".lock"


def check(folder: Path, made: Plan) -> None:
    """Raises UsageError if a folder holds anything but this study with these settings."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file: use another folder")
    there = settings(folder)
    if there is None:
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise UsageError(f"--out {folder} is not empty and holds no study: use another folder")
        return
    for name, value in made.settings().items():
        if there.get(name) != value:
            what = "" if name == "arguments" else f" ({_brief(there.get(name))} there, {_brief(value)} asked for)"
            raise UsageError(
                f"--out {folder} holds a study of other {name}{what}: go on with `{command(there, folder)}`, or use "
                "another folder"
            )


def settings(folder: Path) -> dict[str, Any] | None:
    """study.json of a folder; None if there is none. Raises BadFile if it is damaged."""
    try:
        found = read_json(folder / "study.json")
        if found is not None and (found["format"] != FORMAT or not {"study", "seeds", "arguments"} <= found.keys()):
            raise ValueError("it was written by another version")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{folder / 'study.json'} is damaged or not usable here ({error}); use another folder") from None
    return found


def read(folder: Path) -> list[Row]:
    """The rows of a study. Raises BadFile if they are damaged."""
    try:
        return list(rows.read(folder / "rows.jsonl"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{folder / 'rows.jsonl'} is damaged ({error}); repair that line or remove the file") from None


def command(there: dict[str, Any], folder: Path) -> str:
    """The command line that makes a study of these settings, or goes on with it."""
    said = ["frugal", "study", there["study"], "--seeds", str(there["seeds"])]
    said += ["--scale", f"{there['scale']!r}"] if there["scale"] != 1 else []
    said += ["--env", *there["envs"]] if there["envs"] else []
    return shlex.join([*said, "--out", str(folder)])


def place(folder: Path, run: Run) -> Path:
    """The run folder."""
    about = run.arm if len(run.seeds) > 1 or run.config.runtime == "compiled" else f"{run.arm}-seed-{run.seeds[0]}"
    return folder / _plain(run.task) / _plain(about)


@contextmanager
def held(folder: Path) -> Iterator[IO]:
    """Keep other processes out of a folder, until this one and what it has started have ended. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be written ({error.strerror or error}): use another folder") from None
    with open(folder / LOCK, "a") as file:
        try:
            import fcntl
        except ImportError:  # not on this system
            pass
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process works on the study in {folder}: wait for it, or end it") from None
        yield file


def _plain(name: str) -> str:
    """A name that can be a folder's."""
    return "".join(c if c.isalnum() or c in "-+._=" else "-" for c in name)


def _brief(value: Any) -> str:
    return " ".join(map(str, value)) or "its own" if isinstance(value, list) else str(value)
