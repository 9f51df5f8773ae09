"""Writes a policy network to a file that runs without this library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...networks import Layers
from ...types import Box, Linear, QuantLinear
from .engines import engine
from .quantise import dequantise, quantised

Weights = tuple[Linear | QuantLinear, ...]
Call = Callable[[np.ndarray], np.ndarray]  # obs [batch, ...] -> outputs [batch, n] float32
MODES = ("fp32", "int8")


class Format(NamedTuple):
    """A kind of file."""

    title: str
    engine: str  # whose packages write and run it
    suffix: str
    write: Callable[[Layers, Box, Weights, str, dict[str, str] | None, int], bytes]
    open: Callable[[bytes], Call]  # on one thread, as a program that has only the file's own runtime runs it


def _write_onnx(layers: Layers, obs: Box, weights: Weights, mode: str, notes: dict[str, str] | None, batch: int):
    from .engines.onnx_graph import model

    return model(layers, obs, None, weights, notes=notes)


def _open_onnx(data: bytes) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32
    return lambda obs: session.run(["outputs"], {"obs": obs.astype(dtype, copy=False)})[0]


def _write_litert(layers: Layers, obs: Box, weights: Weights, mode: str, notes: dict[str, str] | None, batch: int):
    from .engines.litert_graph import fill, template

    model = template(layers, obs, batch, mode, notes)
    fill(model, weights)
    return bytes(model.data)


def _open_litert(data: bytes) -> Call:
    from .engines.litert import caller

    return caller(data)


FORMATS = {
    "onnx": Format("ONNX", "onnxruntime", ".onnx", _write_onnx, _open_onnx),
    "litert": Format("LiteRT", "litert", ".tflite", _write_litert, _open_litert),
}


def export(
    layers: Layers,
    obs: Box,
    weights: Weights,
    format: str,
    out_path: str | Path,
    mode: str = "fp32",
    notes: dict[str, str] | None = None,
) -> Path:
    """Writes the network with `weights`, a whole file or none, and returns its path; see `model`."""
    return together({Path(out_path): model(layers, obs, weights, format, mode, notes)})[0]


def model(
    layers: Layers,
    obs: Box,
    weights: Weights,
    format: str,
    mode: str = "fp32",
    notes: dict[str, str] | None = None,
    batch: int = 1,
) -> bytes:
    """The content of a file that holds the network with `weights`.

    The model's input is "obs" [batch, *obs.shape] (uint8 for pixels and flags, else float32), its output "outputs"
    [batch, n] float32: whatever the agent's head takes. "onnx" leaves the batch open and uses standard operators
    (opset 17); "litert" is a .tflite file for `batch` observations. With `mode` "int8" weights are stored in int8;
    LiteRT then computes in int8 too, ONNX engines may. `notes` (the names of agent and environment, say) go into
    the file's metadata. Raises ValueError for an unknown format or mode, or if the format's package is not
    installed.
    """
    check(format, mode)
    return FORMATS[format].write(layers, obs, in_mode(weights, mode), mode, notes, batch)


def check(format: str, mode: str) -> None:
    """Raises ValueError for what `model` cannot write here."""
    if format not in FORMATS:
        raise ValueError(f"no format is called {format!r}; there are: {', '.join(FORMATS)}")
    if mode not in MODES:
        raise ValueError(f"no mode is called {mode!r}; there are: {', '.join(MODES)}")
    hint = engine(FORMATS[format].engine).missing()
    if hint:
        raise ValueError(f"the format {format!r} needs another package: {hint}")


def in_mode(weights: Weights, mode: str) -> Weights:
    """The weights as NumPy arrays and as a file of that mode stores them."""
    arrays = tuple(type(layer)(*map(np.asarray, layer)) for layer in weights)
    if mode == "fp32":
        return tuple(Linear(*(part.astype(np.float32) for part in dequantise(layer))) for layer in arrays)
    return quantised(arrays)


def together(files: Mapping[Path, bytes]) -> list[Path]:
    """Writes all of the files or, where one cannot be written, none: what was there before stays.

    Each is written beside its place and then renamed, so that a reader never sees half a file.
    """
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    before = {path: path.read_bytes() if path.is_file() else None for path in files}
    renamed: list[Path] = []
    try:
        for path, data in files.items():
            beside[path].write_bytes(data)
        for path, new in beside.items():
            os.replace(new, path)
            renamed.append(path)
    except BaseException:
        for path in renamed:
            _put_back(path, before[path])
        raise
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)
    return list(files)


def _put_back(path: Path, data: bytes | None) -> None:
    path.unlink() if data is None else path.write_bytes(data)
