"""Checkpoints of a whole run: learner, memory, environments and random keys, as plain bytes; nothing is unpickled.

The arrays of a run, one after the other, are cut into blocks of BLOCK bytes. A block is a file named by the SHA-256 of
what it holds, and a checkpoint, `<step>.json`, says which blocks it is made of. So what has not changed since the last
checkpoint, above all the steps that wait in a replay memory, is not written again, and whatever is not as it was
written is found out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import rng
from .errors import BadFile
from .monitor.files import sync as _sync

FORMAT = 1
KEEP = 2  # newest checkpoints
BLOCK = 1 << 20  # bytes
NAME = re.compile("[0-9a-f]{64}")  # of a block
TEXT = jax.ShapeDtypeStruct((-1,), "uint8")  # for `restore`: bytes of which only the checkpoint knows how many
SHARE = 0.02  # of the wall time, at most, that training waits for checkpoints: the next one is put off for as long


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isascii() and path.stem.isdigit())


class Manifest(NamedTuple):
    """What a checkpoint says of itself."""

    format: int
    arrays: list  # [name, dtype, shape] of each, in order
    blocks: list[str]  # SHA-256 of each, in order
    width: int | None = None  # of the first of the trees that were joined, along the first axis

    @property
    def told(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.told).encode()).hexdigest()


class Writer:
    """Writes the checkpoints of one folder: bytes while the caller waits, what makes them last beside the training."""

    def __init__(self, folder: Path, whole: int | None = None):
        """`whole` is the step of a checkpoint there that `newest` has found to be whole: its blocks are used again."""
        self.folder = folder
        self.blocks = set() if whole is None else set(_manifest(folder, whole).blocks)  # that are known to be whole
        self.pool, self.pending = ThreadPoolExecutor(1), None
        self.next = 0.0  # when the time is right for another one
        self.count, self.seconds, self.bytes = 0, 0.0, 0  # checkpoints, what the caller waited, what was written

    def due(self) -> bool:
        """Whether the last checkpoint is done, and has cost less than SHARE of the time since."""
        return perf_counter() >= self.next and (self.pending is None or self.pending.done())

    def save(self, step: int, *trees: Any) -> None:
        """Begin the checkpoint of environment step `step`; it appears whole or not at all, some time after.

        Several trees are one whose leaves are joined along the first axis. All are read before this returns. Raises
        OSError if this checkpoint, or the one before, cannot be written; all others are as they were.
        """
        self.wait()
        start, new = perf_counter(), {}
        try:
            (self.folder / "blocks").mkdir(parents=True, exist_ok=True)
            manifest = Manifest(FORMAT, _described(*trees), [], _width(trees[0]))
            for pieces in _blocks(_bytes(_host(x)) for leaf in _leaves(*trees) for x in leaf):
                name = _digest(pieces)
                manifest.blocks.append(name)
                if name not in self.blocks and name not in new:
                    new[name] = _new(self.folder, name)
                    with open(new[name], "wb") as file:
                        file.writelines(pieces)
                    self.bytes += sum(map(len, pieces))
        except OSError as error:
            raise self._failed(step, error) from error
        finally:
            self._waited(perf_counter() - start)
        self.pending = self.pool.submit(self._settle, step, manifest, new)

    def wait(self) -> None:
        """Return when nothing is being written. Raises OSError if the last checkpoint cannot be."""
        pending, self.pending = self.pending, None
        if pending is not None:
            start = perf_counter()
            try:
                pending.result()
            finally:
                self._waited(perf_counter() - start)

    def _waited(self, seconds: float) -> None:
        self.seconds += seconds
        self.next = max(self.next, perf_counter()) + seconds / SHARE

    def _settle(self, step: int, manifest: Manifest, new: dict[str, Path]) -> None:
        """Make the new blocks last, then the checkpoint, then remove what no checkpoint needs."""
        try:
            for name, path in new.items():
                _sync(path)
                os.replace(path, self.folder / "blocks" / name)
            _sync(self.folder / "blocks")
            path = _new(self.folder, str(step))
            path.write_text(json.dumps({"sha256": manifest.digest, **manifest.told}))
            _sync(path)
            os.replace(path, self.folder / f"{step}.json")
            _sync(self.folder)
            # later ones are of a run that went on from an earlier one, because they were damaged
            needed = _sweep(self.folder, [found for found in steps(self.folder) if found <= step][-KEEP:])
        except OSError as error:
            raise self._failed(step, error) from error
        self.blocks = (self.blocks | new.keys()) & needed
        self.count += 1

    def _failed(self, step: int, error: OSError) -> OSError:
        with suppress(OSError):  # make room
            _sweep(self.folder, steps(self.folder))
        return OSError(
            error.errno, f"the checkpoint {self.folder / str(step)} cannot be written: {error.strerror or error}"
        )


def save(folder: Path, step: int, tree: Any) -> None:
    """Write the checkpoint of environment step `step` and wait until it is there. Raises OSError if it cannot be."""
    writer = Writer(folder)
    writer.save(step, tree)
    writer.wait()


def newest(folder: Path, report: Callable[[str], None]) -> int | None:
    """The step of the newest checkpoint that is as it was written, None if there are none.

    Those that are damaged are passed over, and `report` is told of each. Raises BadFile if all are.
    """
    found = steps(folder)
    if not found and any(path.name.isdigit() for path in folder.glob("*")):
        raise BadFile(f"{folder} has checkpoints of a version before 0.1, which cannot be read; {_again(folder)}")
    damage: list[str] = []
    for step in reversed(found):
        try:
            manifest = _manifest(folder, step)
            for name in dict.fromkeys(manifest.blocks):
                _check(folder, step, name)
        except BadFile as error:
            damage.append(str(error))
            continue
        for what in damage:
            report(f"{what}; going on from the one before, of step {step:,}")
        return step
    if damage:
        raise BadFile(f"{damage[0]}, and so is every other one; {_again(folder)}")
    return None


def restore(folder: Path, step: int, like: Any = None) -> Any:
    """Read a checkpoint into the structure of `like`, whose leaves have shapes and dtypes, or are TEXT; without it,
    into the list of NumPy arrays that the checkpoint says it has.

    Raises BadFile if it is damaged or does not fit.
    """
    manifest = _manifest(folder, step)
    expected = manifest.arrays if like is None else _expected(like, manifest)
    if manifest.arrays != expected:
        pairs = zip(manifest.arrays, expected, strict=False)
        has, wants = next(((a, b) for a, b in pairs if a != b), (f"{len(manifest.arrays)} arrays", len(expected)))
        raise BadFile(
            f"{_named(folder, step)} is of another run (it has {has}, expected {wants}); "
            f"put config.json back as it was, or {_again(folder)}"
        )

    def read(name: str, pieces: list[memoryview]) -> None:
        try:
            with open(folder / "blocks" / name, "rb") as file:
                for piece in pieces:
                    file.readinto(piece)
        except OSError as error:
            raise _lost(folder, step, name, error.strerror) from None
        if _digest(pieces) != name:
            raise _lost(folder, step, name, "not what was written")

    arrays = _filled(expected, manifest.blocks, read)
    return arrays if like is None else _as(like, arrays)


def width(folder: Path, step: int) -> int | None:
    """The length, along the first axis, of the first of the trees that were joined; None if it is not known.

    Raises BadFile if the checkpoint is damaged.
    """
    return _manifest(folder, step).width


class Packed(NamedTuple):
    """A checkpoint that is sent instead of written."""

    arrays: list  # [name, dtype, shape] of each, in order
    blocks: list[str]  # SHA-256 of each, in order
    new: dict[str, bytes]  # of these blocks those that the receiver does not have


def packed(tree: Any, known: Container[str] = ()) -> Packed:
    """The checkpoint of a tree, for one who has the blocks `known`."""
    made = Packed(_described(tree), [], {})
    for pieces in _blocks(_bytes(_host(x)) for x in jax.tree.leaves(tree)):
        made.blocks.append(_digest(pieces))
        if made.blocks[-1] not in known:
            made.new[made.blocks[-1]] = b"".join(pieces)
    return made


def unpacked(sent: Packed, blocks: Mapping[str, bytes], like: Any = None) -> Any:
    """What was packed, as `restore` gives it; `blocks` has all that it is made of.

    Raises BadFile if a block is not what its name says, or the checkpoint does not fit.
    """

    def read(name: str, pieces: list[memoryview]) -> None:
        rest = memoryview(blocks.get(name, b""))
        if len(rest) == sum(map(len, pieces)):
            for piece in pieces:
                piece[:], rest = rest[: len(piece)], rest[len(piece) :]
        if _digest(pieces) != name:
            raise BadFile(f"a checkpoint was damaged on its way (block {name[:12]})")

    if like is not None and sent.arrays != _expected(like, sent):
        raise BadFile("a checkpoint that was sent is of another run")
    arrays = _filled(sent.arrays, sent.blocks, read)
    return arrays if like is None else _as(like, arrays)


def _filled(expected: list, blocks: list[str], read: Callable[[str, list[memoryview]], None]) -> list[np.ndarray]:
    """The arrays of a checkpoint; `read` is given the name of each block and where its bytes go."""
    arrays = [np.empty(shape, jnp.dtype(dtype)) for _, dtype, shape in expected]
    names = iter(blocks)
    for pieces in _blocks(map(_bytes, arrays)):
        read(next(names, ""), pieces)
    return arrays


def _as(like: Any, arrays: list[np.ndarray]) -> Any:
    arrays = arrays[::-1]

    def back(old: Any) -> Any:
        x = jnp.asarray(arrays.pop())
        return jax.random.wrap_key_data(x, impl=rng.THREEFRY) if _is_key(old) else x

    return jax.tree.map(back, like)


def _manifest(folder: Path, step: int) -> Manifest:
    """Raises BadFile if it is damaged or of another version of FrugalRL."""
    try:
        found = json.loads((folder / f"{step}.json").read_bytes())
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}, where this version reads {FORMAT}")
        digest = found.pop("sha256")
        manifest = Manifest(**found)
        if manifest.digest != digest:
            raise ValueError("its checksum is wrong")
        if not all(NAME.fullmatch(name) for name in manifest.blocks):
            raise ValueError("its blocks have no names")
        if manifest.width is not None and type(manifest.width) is not int:
            raise ValueError(f"its width is {manifest.width!r}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadFile(f"{_named(folder, step)} is damaged ({error})") from None
    return manifest


def _check(folder: Path, step: int, name: str) -> None:
    """Raises BadFile if a block is not as it was written."""
    try:
        with open(folder / "blocks" / name, "rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == name
    except OSError as error:
        raise _lost(folder, step, name, error.strerror) from None
    if not whole:
        raise _lost(folder, step, name, "not what was written")


def _lost(folder: Path, step: int, name: str, why: str | None) -> BadFile:
    return BadFile(f"{_named(folder, step)} is damaged ({folder / 'blocks' / name}: {why})")


def _named(folder: Path, step: int) -> str:
    return f"checkpoint {folder / str(step)}.json"


def _again(folder: Path) -> str:
    return f"remove {folder} to train again from the beginning with `frugal resume`"


def _sweep(folder: Path, kept: list[int]) -> set[str]:
    """Remove all checkpoints but those of the steps `kept`, and blocks that these do not need; returns the others."""
    blocks: set[str] = set()
    for step in kept:
        with suppress(BadFile):
            blocks.update(_manifest(folder, step).blocks)
    there = {"blocks", *(f"{step}.json" for step in kept)}
    for path in (*folder.iterdir(), *(folder / "blocks").iterdir()):
        if path.is_file() and path.name not in (blocks if path.parent.name == "blocks" else there):
            path.unlink()
    return blocks


def _width(tree: Any) -> int | None:
    shape = np.shape(next(iter(jax.tree.leaves(tree)), ()))
    return shape[0] if shape else None


def _described(*trees: Any) -> list:
    """Name, dtype and shape of each array of trees that are joined along the first axis."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trees[0])]

    def one(path: str, parts: tuple) -> list:
        plain = [jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x for x in parts]
        length, shape = sum(x.shape[0] for x in plain[1:]), plain[0].shape
        return [path, plain[0].dtype.name, [shape[0] + length, *shape[1:]] if shape else []]

    return list(map(one, paths, _leaves(*trees)))


def _expected(like: Any, found: Manifest | Packed) -> list:
    """What `like` describes, with the length of each text as it was found."""
    expected = _described(like)
    for has, wants in zip(found.arrays, expected, strict=False):
        match has:
            case [_, "uint8", [*lead, int(length)]] if (
                wants[2] == [*lead, -1] and 0 <= length <= len(found.blocks) * BLOCK
            ):
                wants[2] = [*lead, length]
    return expected


def _leaves(*trees: Any) -> Iterable[tuple]:
    return zip(*map(jax.tree.leaves, trees), strict=True)


def _host(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _bytes(array: np.ndarray) -> memoryview:
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def _blocks(arrays: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Bytes that follow each other, in blocks of BLOCK; each as the pieces it lies in."""
    block, room = [], BLOCK
    for rest in arrays:
        while rest:
            block.append(rest[:room])
            rest, room = rest[room:], room - len(block[-1])
            if not room:
                yield block
                block, room = [], BLOCK
    if block:
        yield block


def _digest(pieces: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _new(folder: Path, name: str) -> Path:
    """Where a file is written before it gets its name."""
    return folder / f"{name}.new"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
