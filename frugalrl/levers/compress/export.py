"""Writes a policy network to a file that runs without this library."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...networks import Layers
from ...types import Box, Linear, QuantLinear
from .engines import engine
from .quantise import dequantise, quantise

FORMATS = ("onnx", "litert")
MODES = ("fp32", "int8")


def export(
    layers: Layers,
    obs: Box,
    weights: tuple[Linear | QuantLinear, ...],
    format: str,
    out_path: str | Path,
    mode: str = "fp32",
    notes: dict[str, str] | None = None,
) -> Path:
    """Writes the network with `weights`, a whole file or none, and returns its path.

    The model's input is "obs" [batch, *obs.shape] (uint8 for pixels and flags, else float32), its output "outputs"
    [batch, n] float32: whatever the agent's head takes. "onnx" leaves the batch open and uses standard operators
    (opset 17); "litert" is a .tflite file for one observation. With `mode` "int8" weights are stored in int8;
    LiteRT then computes in int8 too, ONNX engines may. `notes` (the names of agent and environment, say) go into
    the file's metadata. Raises ValueError for an unknown format or mode, or if the format's package is not
    installed.
    """
    if format not in FORMATS:
        raise ValueError(f"no format is called {format!r}; there are: {', '.join(FORMATS)}")
    if mode not in MODES:
        raise ValueError(f"no mode is called {mode!r}; there are: {', '.join(MODES)}")
    hint = engine("onnxruntime" if format == "onnx" else "litert").missing()
    if hint:
        raise ValueError(f"the format {format!r} needs another package: {hint}")
    write = _onnx if format == "onnx" else _litert
    data = write(layers, obs, tuple(_as(layer, mode) for layer in weights), mode, notes)
    return _replace(Path(out_path), data)


def _as(layer: Linear | QuantLinear, mode: str) -> Linear | QuantLinear:
    """One layer as NumPy arrays, in `mode`."""
    layer = type(layer)(*map(np.asarray, layer))
    if mode == "fp32":
        return Linear(*(part.astype(np.float32) for part in dequantise(layer)))
    return layer if isinstance(layer, QuantLinear) else quantise(layer)


def _onnx(layers: Layers, obs: Box, weights: tuple, mode: str, notes: dict[str, str] | None) -> bytes:
    from .engines.onnx_graph import model

    return model(layers, obs, None, weights, notes=notes)


def _litert(layers: Layers, obs: Box, weights: tuple, mode: str, notes: dict[str, str] | None) -> bytes:
    from .engines.litert_graph import fill, template

    model = template(layers, obs, 1, mode, notes)
    fill(model, weights)
    return bytes(model.data)


def _replace(path: Path, data: bytes) -> Path:
    """Writes beside `path` and then renames, so that a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
