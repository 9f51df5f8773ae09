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
        elif name == "seeds":
            others = [(task, n) for task, n in value.items() if there[name].get(task, n) != n]
            same = not others
            what = "".join(f" ({there[name][task]} of {task} there, {n} asked for)" for task, n in others[:1])
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
    """The settings of a folder that holds `there`, when `more` is run in it too: tasks, with their seeds, and arms."""
    if there is None:
        return more
    was, now = there["arguments"], more["arguments"]
    grown = {name: [*dict.fromkeys((*there[name], *more[name]))] for name in GROWS if there.get(name) and more[name]}
    # where one of them has no list it has them all
    tasks = {task: was.get(task, {}) | now.get(task, {}) for task in was | now}
    both = {"arguments": tasks, "seeds": there["seeds"] | more["seeds"]}
    return more | {name: grown.get(name, []) for name in GROWS} | both


def settings(folder: Path) -> dict[str, Any] | None:
    """study.json of a folder; None if there is none. Raises BadFile if it is damaged."""
    try:
        found = files.read_json(folder / "study.json")
        if found is not None and (found["format"] != FORMAT or not {"study", "seeds", "arguments"} <= found.keys()):
            raise ValueError("it was written by another version")
        if found is not None:
            seeds = found["seeds"]
            if isinstance(seeds, int):  # at first a study had as many of each task
                seeds = dict.fromkeys(found["arguments"], seeds)
            if seeds.keys() != found["arguments"].keys() or not all(n >= 1 for n in seeds.values()):
                raise ValueError("its seeds are not those of its tasks")
            found |= {"seeds": seeds}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{folder / 'study.json'} is damaged or not usable here ({error}); use another folder") from None
    return found


def read(folder: Path) -> list[Row]:
    """The rows of a study. Raises BadFile if they are damaged."""
    try:
        return list(rows.read(folder / "rows.jsonl"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{folder / 'rows.jsonl'} is damaged ({error}); repair that line or remove the file") from None


def command(there: dict[str, Any], folder: Path) -> str:
    """The command line that makes a study of these settings, or goes on with it; one for each number of seeds."""
    lines, counts = [], [*dict.fromkeys(there["seeds"].values())]
    for n in counts:
        envs = there["envs"] if len(counts) == 1 else [task for task, own in there["seeds"].items() if own == n]
        said = ["study", there["study"], "--seeds", str(n)]
        said += ["--scale", f"{there['scale']!r}"] if there["scale"] != 1 else []
        said += ["--env", *envs] if envs else []
        said += ["--arms", *there["arms"]] if there.get("arms") else []
        lines.append(call(*said, "--out", folder))
    return " && ".join(lines)


def place(folder: Path, run: Run) -> Path:
    """The run folder."""
    about = run.arm if len(run.seeds) > 1 or run.config.runtime == "compiled" else f"{run.arm}-seed-{run.seeds[0]}"
    return folder / files.name_of(run.task) / files.name_of(about)


def held(folder: Path) -> AbstractContextManager[IO]:
    """Keep other processes out of a folder, until this one and what it has started have ended. Raises UsageError."""
    return files.held(folder, f"another process works on the study in {folder}: wait for it, or end it")


def _brief(value: Any) -> str:
    return " ".join(map(str, value)) or "its own" if isinstance(value, list) else str(value)
