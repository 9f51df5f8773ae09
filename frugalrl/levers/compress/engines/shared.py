"""What every engine needs: how observations and weights come in, and how to say that a package is missing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from ml_dtypes import bfloat16

from ....networks import Layers, Residual, Scale
from ....types import Box, Linear, QuantLinear, Ranges
from ..quantise import dequantise, whole

# what matrices a packet of each mode holds
_MATRICES = {
    "fp32": (Linear, np.dtype(np.float32)),
    "bf16": (Linear, np.dtype(bfloat16)),
    "int8": (QuantLinear, np.dtype(np.int8)),
    "int8-static": (QuantLinear, np.dtype(np.int8)),
}
INT8 = ("int8", "int8-static")  # of these, the modes with int8 weights


def needs(hint: str, *packages: str) -> Callable[[], str | None]:
    """An `Engine.missing`: looks for `packages` without importing them, answers `hint` if one is not installed."""
    return lambda: None if all(find_spec(package) for package in packages) else hint


def input_dtype(obs: Box) -> np.dtype:
    """The dtype of a session's input buffer: uint8 for pixels and flags, else float32."""
    return np.dtype(np.uint8 if obs.dtype in ("uint8", "bool") else np.float32)


def with_cast(layers: Layers, obs: Box) -> Layers:
    """`layers` with a `Scale` in front if the observations are not floats and nothing else makes them so."""
    if input_dtype(obs) == np.float32 or isinstance(layers[0], Scale):
        return layers
    return (Scale(1.0), *layers)


def entries(layers: Layers) -> int:
    """How many layers there are, those within a `Residual` too: entries of `Ranges` but for the first."""
    return sum(1 + (entries(layer.body) if isinstance(layer, Residual) else 0) for layer in layers)


def put(buffer: np.ndarray, obs) -> None:
    """Copies `obs` into a session's input; ValueError for another shape, which a plain copy would broadcast."""
    if obs.shape != buffer.shape:
        raise ValueError(f"this session takes observations of shape {buffer.shape}, not {obs.shape}")
    np.copyto(buffer, obs)


def received(weights: tuple, mode: str) -> tuple:
    """The weights of a packet as NumPy arrays; ValueError if they are not those of `mode`.

    Ranges come last in mode "int8-static" and are left out in the others, which have no use for them.
    """
    layers = [layer for layer in weights if not isinstance(layer, Ranges)]
    static = mode == "int8-static"

    def fits(number: int, layer: tuple) -> bool:
        dimensions = np.ndim(layer[0])
        kind, dtype = _MATRICES["fp32" if mode in INT8 and whole(number, dimensions) else mode]
        return dimensions < 2 or (isinstance(layer, kind) and layer[0].dtype == dtype)

    kind, dtype = _MATRICES[mode]
    found = all(fits(*each) for each in enumerate(layers))
    if not found or (static and not isinstance(weights[-1], Ranges)):
        what = f"a tuple of {kind.__name__} in {dtype}{', and Ranges at its end' if static else ''}"
        raise ValueError(f"a session of mode '{mode}' loads {what}: use the compressor '{mode.replace('-', '_')}()'")
    return tuple(type(part)(*map(np.asarray, part)) for part in (weights if static else layers))


def widened(weights: tuple, mode: str) -> tuple[Linear, ...]:
    """The weights of a packet of `mode` in float32: for engines that compute as in mode "fp32"."""
    return tuple(dequantise(part) for part in received(weights, mode) if not isinstance(part, Ranges))


def taken(weights: tuple, mode: str) -> tuple[Linear | QuantLinear, ...]:
    """The weights of a packet of `mode`, int8 as it is and floats in float32."""
    return received(weights, mode) if mode == "int8" else widened(weights, mode)


def unloaded(obs) -> np.ndarray:
    """What a session runs before it has any weights."""
    raise RuntimeError("this session has no weights yet: call session.load(packet.weights) before session.run(obs)")


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """How much "SAME" adds before and after an axis of `size`."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
