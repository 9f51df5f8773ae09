"""Files that are whole or absent, folders that one process writes in, and values as strict JSON can hold them."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from frugalrl.errors import BadFile, Taken, UsageError

from . import kinds

LOCK = ".lock"  # in a folder in which a process works
# of files that appear together: those that are being written, and those that count already but are not in their place
NEW, READY = "new.part", "ready.part"

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


def name_of(text: str) -> str:
    """A file's name, on every system, for an environment's id, say."""
    return "".join(c if c.isalnum() or c in "-+._=" else "-" for c in text)


def replace(path: str | os.PathLike, text: str, lasting: bool = False) -> None:
    """Write `text` to `path`, in UTF-8, so that a reader finds the old file or the new one and never a part.

    So it is after a power cut too if it is to be `lasting`; then it is on the disk when this returns.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # a path may hold bytes that are not UTF-8: as \udcff, which JSON reads back as what it was
        new.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        if lasting:
            sync(new)
        os.replace(new, path)
        if lasting:
            sync(path.parent)
    finally:
        new.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:  # Windows has no such thing for folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """A folder to write files in: they replace those of their names in `folder` when it is left, all or none.

    Whoever reads them calls `settle` first: a process that is killed may leave some of them on their way.
    """
    settle(folder)
    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in (*new.iterdir(), new):
            sync(path)
        os.rename(new, folder / READY)  # from now on they count
    finally:
        shutil.rmtree(new, ignore_errors=True)
    sync(folder)
    settle(folder)


def settle(folder: Path) -> None:
    """Put files that were written `together` into their places."""
    ready = folder / READY
    if ready.is_symlink() or not ready.is_dir():
        return
    for path in list(ready.iterdir()):
        with suppress(FileNotFoundError):  # another process does the same
            os.replace(path, folder / path.name)
    with suppress(OSError):
        ready.rmdir()


@contextmanager
def held(folder: Path, refusal: str) -> Iterator[IO]:
    """Keep other processes out of a folder, made if need be, until this one and what has inherited the file have ended.

    Raises Taken, with this refusal, if another one is there, and UsageError if the folder cannot be written. Where the
    system or the disk has no locks (flock) nobody is kept out.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except BlockingIOError:
        raise Taken(refusal) from None
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be written ({error.strerror or error}): use another folder") from None
    with file:
        try:
            yield file
        finally:
            with suppress(OSError):
                path.unlink()


def is_held(folder: Path) -> bool | None:
    """Whether a process keeps others out of a folder; None where the system or the disk has no locks to tell."""
    try:
        import fcntl

        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return None
    return False


def _locked(path: Path) -> IO:
    """The file, open and locked. Raises BlockingIOError if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return open(path, "a")
    while True:
        file = open(path, "a")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # not on this disk
            return file
        file.close()  # the one who held it has removed it since


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
