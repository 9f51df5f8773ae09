"""Small files that are whole or absent, and values as strict JSON can hold them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from frugalrl.errors import BadFile

from . import kinds

DEEPEST = 64  # lists and objects in one another: files of ours have a dozen
OBJECT: kinds.Kind = {}  # of any names


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: scalars as numbers, arrays and tuples as lists, NaN and infinity as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def replace(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path`, in UTF-8, so that a reader finds the old file or the new one and never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # a path may hold bytes that are not UTF-8: as \udcff, which JSON reads back as what it was
        new.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def loads(text: str) -> Any:
    """What JSON says. Raises ValueError for other text, and for what is nested too deeply to be walked."""
    with suppress(RecursionError):
        value = json.loads(text)
        level = [value]
        for _ in range(DEEPEST):
            level = [x for one in level if isinstance(one, dict | list) for x in _inside(one)]
            if not level:
                return value
    raise ValueError("it is nested too deeply")


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def read_json(path: str | os.PathLike, kind: kinds.Kind = OBJECT) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file.

    Raises BadFile, which names the file and what is wrong with it, if it is not of that kind (see `kinds`).
    """
    try:
        found = loads(Path(path).read_text(encoding="utf-8"))
        kinds.check(found, (kind,))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BadFile(f"{os.fspath(path)} is damaged ({error}): restore it or remove it") from None
    return found
