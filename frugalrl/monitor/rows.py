"""rows.jsonl: one strict JSON object a line, one line per seed per evaluation, safe from a process that dies.

A row is a dictionary: `agent env seed member step episode_return episode_length wall_seconds` and the metrics of the
moment. `step` counts environment steps of that seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from frugalrl.errors import BadFile

from . import kinds
from .files import loads, plain, replace

Row = Mapping[str, Any]
KIND = {
    **dict.fromkeys(("seed", "member", "step", "parent", "parent_step"), kinds.whole),
    **dict.fromkeys(("episode_return", "episode_length", "wall_seconds", "fitness"), kinds.number),
    ...: kinds.plain,
}


def write(path: str | os.PathLike, rows: Iterable[Row], lasting: bool = True) -> None:
    """Append `rows`, creating the file and its folder if need be.

    All lines go to the operating system in one call, so that a process that is killed leaves them all or, at worst, one
    half line at the end, which `read` ignores and the next `write` removes. When this returns they are on the disk,
    unless they need not be `lasting`. NaN and infinity become null. Raises OSError, with the file as it was, if the
    lines cannot be written.
    """
    lines = "".join(_line(row) for row in rows).encode()
    if not lines:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path)
    with open(path, "ab", buffering=0) as file:
        before, rest = os.fstat(file.fileno()).st_size, memoryview(lines)
        try:
            while rest:  # a disk that fills up takes a part, and refuses what follows
                rest = rest[file.write(rest) :]
            if lasting:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def read(path: str | os.PathLike, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The rows of a file, without a last line that was cut short; none if there is no file.

    Raises BadFile, with the number of the line, if a line that is not the last is damaged, or a row lacks one of the
    `names`.
    """
    parsed = _parsed(Path(path))
    for missing, line in ((name, line) for row, line in parsed for name in names if name not in row):
        raise BadFile(f"{os.fspath(path)} has a row without {missing}: {line[:80]!r}")
    return [row for row, _ in parsed]


def run_of(row: Row) -> tuple[int, int | None]:
    """The seed and the member that a row is of."""
    return row.get("seed") or 0, row.get("member")


def keep_until(path: str | os.PathLike, step: int, runs: Container[tuple[int, int | None]] | None = None) -> int:
    """Drop the rows of later steps than `step` and return how many: what to do before a run resumes from a checkpoint.

    With `runs`, pairs of a seed and a member, the rows of others stay.

    The rows that stay keep their bytes; the file is replaced as a whole or not at all. Raises BadFile, and changes
    nothing, if a line is damaged.
    """
    path = Path(path)
    parsed = _parsed(path)

    def stays(row: dict[str, Any]) -> bool:
        others = runs is not None and run_of(row) not in runs  # type: ignore[operator]
        return row.get("step", 0) <= step or others

    kept = [line for row, line in parsed if stays(row)]
    if len(kept) < len(parsed):
        replace(path, "".join(f"{line}\n" for line in kept), lasting=True)
    return len(parsed) - len(kept)


def _line(row: Row) -> str:
    return json.dumps(plain(row), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def _parsed(path: Path) -> list[tuple[dict[str, Any], str]]:
    """Each row with the line it was read from."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = text.split("\n")
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append((_row(line), line))
        except ValueError as error:
            if line.strip() and number < len(lines):
                raise BadFile(f"{path}, line {number}: not a row ({error}): {line[:80]!r}") from None
    return parsed


def _row(line: str) -> dict[str, Any]:
    """Raises ValueError if the line is not one."""
    row = loads(line)
    kinds.check(row, (KIND,))
    return row


def _mend(path: Path) -> None:
    """End the file with a whole line: complete one that only lacks its newline, cut off one that was cut short."""
    if not path.exists() or not path.stat().st_size:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        try:
            _row(content[start:].decode(errors="replace"))
        except ValueError:
            file.truncate(start)
        else:
            file.write(b"\n")
