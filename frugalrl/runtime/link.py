"""What passes between a Learner and its actor processes: memory-mapped slabs of arrays, and the newest-packet mailbox.

There are no locks, so a process that is killed at any moment leaves nothing held. This file does not import JAX.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  NumPy then knows a dtype by the name bfloat16
import numpy as np

ALIGN = 64
OLD = 7 * 86_400.0  # seconds after which a folder counts as left behind; files in use cannot be removed on Windows


class Field(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


Fields = tuple[Field, ...]


def fields(arrays) -> Fields:
    """The shapes and dtypes of some arrays."""
    return tuple(Field(np.shape(x), np.dtype(x.dtype).name) for x in arrays)


def size(spec: Fields) -> int:
    """Bytes a slab of these fields takes."""
    return sum(-(-_bytes(f) // ALIGN) * ALIGN for f in spec)


def _bytes(field: Field) -> int:
    return int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize


def views(buffer: np.ndarray, spec: Fields) -> list[np.ndarray]:
    """Arrays of the given fields laid over a uint8 buffer, each aligned to a cache line."""
    out, at = [], 0
    for field in spec:
        out.append(buffer[at : at + _bytes(field)].view(field.dtype).reshape(field.shape))
        at += -(-_bytes(field) // ALIGN) * ALIGN
    return out


def slab(path: Path, nbytes: int) -> np.ndarray:
    """A file of `nbytes` mapped into memory and shared with every process that maps it; created if it is not there.

    Raises OSError if there is no room for it: found out at the first write, that would kill the process.
    """
    if not path.exists():
        with open(path, "wb") as f:
            f.truncate(max(nbytes, 1))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(f.fileno(), 0, max(nbytes, 1))
    return np.asarray(np.memmap(path, np.uint8, "r+"))


def shared_folder(nbytes: int) -> Path:
    """A new folder for slabs of `nbytes` together, in memory where the system offers enough; `remove` it at the end.

    Folders of processes that no longer run (killed outright) are removed first.
    """
    for base in _bases():
        for old in base.glob("frugalrl-*-*"):
            pid = old.name.split("-")[1]
            if pid.isdigit() and not _running(int(pid), old):
                remove(old)
    base = next((b for b in _bases() if shutil.disk_usage(b).free > 2 * nbytes), _bases()[-1])
    return Path(tempfile.mkdtemp(prefix=f"frugalrl-{os.getpid()}-", dir=base))


def _bases() -> list[Path]:
    """Where slabs may be, the best place first. A container often has only 64 MB of shared memory."""
    return [Path(p) for p in ("/dev/shm", tempfile.gettempdir()) if os.access(p, os.W_OK)]


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def remove_own() -> None:
    """Remove the folders of this process: for when it ends without unwinding."""
    for base in _bases():
        for folder in base.glob(f"frugalrl-{os.getpid()}-*"):
            remove(folder)


def _running(pid: int, folder: Path) -> bool:
    """Whether the process that made a folder runs; on Windows by the folder's age, for no signal there only asks."""
    try:
        if sys.platform == "win32":
            return time.time() - folder.stat().st_mtime < OLD
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        pass
    return True


class Mailbox(NamedTuple):
    """Holds the newest packet. One writer, many readers, nobody waits.

    The writer fills the half that the count does not point at, then raises the count; a reader copies the half it
    points at and tries again if the count moved meanwhile.
    """

    total: np.ndarray  # uint64 [1]; packets ever put; the newest lies in half total % 2
    halves: tuple  # two lists of arrays

    def put(self, arrays) -> None:
        count = int(self.total[0]) + 1
        for slot, value in zip(self.halves[count % 2], arrays, strict=True):
            slot[...] = value
        self.total[0] = count

    def newest(self) -> int:
        return int(self.total[0])

    def get(self) -> tuple[int, list[np.ndarray]]:
        """(count, arrays) of the newest packet; the arrays are copies."""
        while True:
            count = int(self.total[0])
            arrays = [x.copy() for x in self.halves[count % 2]]
            if int(self.total[0]) == count:
                return count, arrays


def mailbox(path: Path, spec: Fields) -> Mailbox:
    head, half = ALIGN, size(spec)
    buffer = slab(path, head + 2 * half)
    halves = tuple(views(buffer[head + i * half : head + (i + 1) * half], spec) for i in range(2))
    return Mailbox(buffer[:8].view(np.uint64), halves)
