"""The folder of a study: its settings, its rows, who may write in it, and where its runs are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from ..errors import BadFile, UsageError, call
from ..monitor import files, rows
from .study import FORMAT, Plan, Row, Run

GROWS = ("envs", "arms")  # of the settings: a study may be run part by part


def check(folder: Path, made: Plan) -> None:
    """Raises UsageError if a folder holds anything but this study, perhaps of other tasks and arms."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file: use another folder")
    there = settings(folder)
    if there is None:
        if folder.is_dir() and any(path.name != files.LOCK for path in folder.iterdir()):
            raise UsageError(f"--out {folder} is not empty and holds no study: use another folder")
        return
    for name, value in made.settings().items():
        if name == "arguments":
            same, what = _agree(there[name], value), ""
        else:
            same = name in GROWS or there.get(name) == value
            what = f" ({_brief(there.get(name))} there, {_brief(value)} asked for)"
        if not same:
            raise UsageError(
                f"--out {folder} holds a study of other {name}{what}: go on with `{command(there, folder)}`, or use "
                "another folder"
            )


def _agree(there: dict[str, Any], more: dict[str, Any]) -> bool:
    """Whether two say the same of every task and arm that both have."""
    return all(
        there.get(task, {}).get(arm, asked) == asked for task, arms in more.items() for arm, asked in arms.items()
    )


def joined(there: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """The settings of a folder that holds `there`, when `more` is run in it too: tasks and arms of both."""
    if there is None:
        return more
    was, now = there["arguments"], more["arguments"]
    grown = {name: [*dict.fromkeys((*there[name], *more[name]))] for name in GROWS if there.get(name) and more[name]}
    # where one of them has no list it has them all
    tasks = {task: was.get(task, {}) | now.get(task, {}) for task in was | now}
    return more | {name: grown.get(name, []) for name in GROWS} | {"arguments": tasks}


def settings(folder: Path) -> dict[str, Any] | None:
    """study.json of a folder; None if there is none. Raises BadFile if it is damaged."""
    try:
        found = files.read_json(folder / "study.json")
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
    said = ["study", there["study"], "--seeds", str(there["seeds"])]
    said += ["--scale", f"{there['scale']!r}"] if there["scale"] != 1 else []
    said += ["--env", *there["envs"]] if there["envs"] else []
    said += ["--arms", *there["arms"]] if there.get("arms") else []
    return call(*said, "--out", folder)


def place(folder: Path, run: Run) -> Path:
    """The run folder."""
    about = run.arm if len(run.seeds) > 1 or run.config.runtime == "compiled" else f"{run.arm}-seed-{run.seeds[0]}"
    return folder / files.name_of(run.task) / files.name_of(about)


def held(folder: Path) -> AbstractContextManager[IO]:
    """Keep other processes out of a folder, until this one and what it has started have ended. Raises UsageError."""
    return files.held(folder, f"another process works on the study in {folder}: wait for it, or end it")


def _brief(value: Any) -> str:
    return " ".join(map(str, value)) or "its own" if isinstance(value, list) else str(value)
