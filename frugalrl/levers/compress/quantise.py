"""Compressors that change the numbers of a policy and not its shape: none (fp32), bf16, int8, any number of bits.

The same code serves JAX arrays, inside a training program or out, and NumPy arrays, in a process that has no JAX;
both give the same bits (of more than 16 bits the last may differ).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from ...types import Compressor, Linear, Packet, Policy, QuantLinear, Ranges

Array = Any

_LEVELS = 127  # of each sign; -128 is left unused so that the grid is symmetric
# A channel below this counts as zeros. Far above the subnormal numbers, which XLA may flush to zero and NumPy keeps.
_NOTHING = np.float32(1e-30)


def fp32() -> Compressor:
    """The compressor that compresses nothing: a packet holds the parameters as they are."""
    return Compressor("fp32", lambda policy: Packet(*policy), lambda packet: Policy(*packet))


def bf16() -> Compressor:
    """Weights in bfloat16, biases in float32: half the bytes, each weight to 8 binary digits (0.4 %), of any size.

    Rounding is to nearest even. Engines compute in bf16 where that is faster, else in float32.
    """
    return _compressor("bf16", partial(_each, lambda layer: _of_matrix(lambda w: _narrow(w, bfloat16), layer)))


def rounded(bits: int) -> Compressor:
    """Weights rounded to so many bits (2 to 32) and sent in float32: for studies of how few an agent needs.

    As in QuaRL (Krishnan et al. 2022, arXiv 1910.01055; `new_ptq.py` of its authors): steps of (|smallest| +
    |largest|) / 2**bits through zero, one size for a dense layer and one for each output channel of a convolution;
    16 bits are float16, 32 change nothing. A weight is off by at most half a step; biases stay. Engines run these
    packets in mode "fp32". Raises ValueError for another number of bits.
    """
    if not 2 <= bits <= 32:
        raise ValueError(f"weights can be rounded to 2 to 32 bits, not to {bits}")
    if bits == 32:
        return fp32()

    def change(w: Array) -> Array:
        if bits == 16:
            return _narrow(w, np.float16).astype(np.float32)
        xp, axes = _namespace(w), tuple(range(w.ndim - 1 if w.ndim > 2 else w.ndim))
        step = (abs(w.min(axes, keepdims=True)) + abs(w.max(axes, keepdims=True))) * np.float32(2.0**-bits)
        step = xp.where(step < _NOTHING, np.float32(1), step)
        with np.errstate(invalid="ignore"):
            return xp.rint(w / step) * step

    return _compressor(f"rounded-{bits}", partial(_each, lambda layer: _of_matrix(change, layer)))


def through(compressor: Compressor, weights: tuple) -> tuple:
    """The weights of a network after they have gone through `compressor` and back: what acts with its packets."""
    return compressor.decode(compressor.encode(Policy(weights, ()))).params


def _of_matrix(change: Callable[[Array], Array], weights: Linear) -> Linear:
    """The layer in float32, with its weights changed if they are a matrix."""
    w = weights.w.astype(np.float32)
    return Linear(change(w) if w.ndim > 1 else w, weights.b.astype(np.float32))


def _narrow(x: Array, dtype: Any) -> Array:
    """A cast to a smaller dtype. XLA may otherwise leave out one that is followed by the way back."""
    return (
        x.astype(dtype) if isinstance(x, np.ndarray) else sys.modules["jax"].lax.optimization_barrier(x.astype(dtype))
    )


def int8() -> Compressor:
    """Weights in int8, biases in float32: about a quarter of the bytes.

    A first layer that reads a vector stays in float32, see `whole`.

    Symmetric, one scale per output channel, the scale its largest weight over 127, rounding to nearest even: the
    rule of Krishnamoorthi 2018 (arXiv 1806.08342). A weight is off by at most half its scale. Needs no data. Takes
    and gives a tuple of `Linear`; `knobs` are sent as they are.
    """
    return _compressor("int8", quantised)


def int8_static() -> Compressor:
    """int8, and the ranges that let activations be int8 from layer to layer, with scales that no observation changes.

    Takes the policy of an agent that is `calibrate.calibrated`: a tuple of `Linear`, and its `Ranges` last. Those are
    sent as they are, and the engine rounds activations; what `decode` gives has rounded weights only. Raises
    ValueError for a policy without ranges.
    """
    plain = int8()

    def encode(policy: Policy) -> Packet:
        if not isinstance(policy.params[-1], Ranges):
            raise ValueError("int8-static needs a policy with ranges: that of calibrate.calibrated(agent)")
        return plain.encode(policy)

    return Compressor("int8-static", encode, plain.decode)


def _compressor(name: str, there: Callable[[tuple], tuple]) -> Compressor:
    """The Compressor that changes the weights of a network; `dequantise` is the way back for each layer."""
    return Compressor(
        name,
        lambda policy: Packet(there(policy.params), policy.knobs),
        lambda packet: Policy(_each(dequantise, packet.weights), packet.knobs),
    )


def _each(change: Callable, weights: tuple) -> tuple:
    """Each layer changed by itself; ranges stay as they are."""
    return tuple(part if isinstance(part, Ranges) else change(part) for part in weights)


COMPRESSORS = {"fp32": fp32, "bf16": bf16, "int8": int8, "int8-static": int8_static}  # by the engines' modes


def whole(number: int, dimensions: int) -> bool:
    """Whether the layer of that number stays in float32: the first, if its weights are a matrix.

    Engines round what an int8 layer reads with one step for all of an observation, and the entries of a vector may
    differ a hundredfold, joints and velocities say: the small ones would not be seen. Few products are in that layer.
    """
    return number == 0 and dimensions == 2


def quantised(weights: tuple) -> tuple:
    """The layers of a network in int8, those that are in it already as they are; see `whole`."""

    def one(number: int, part: Any) -> Any:
        if isinstance(part, Ranges | QuantLinear):
            return part
        return _of_matrix(lambda w: w, part) if whole(number, part.w.ndim) else quantise(part)

    return tuple(one(number, part) for number, part in enumerate(weights))


def quantise(weights: Linear) -> Linear | QuantLinear:
    """One layer to int8; one whose weights are no matrix, a normalisation's, stays in float32.

    A channel with a weight that is not finite gets a scale that is not: nothing hides it.
    """
    if weights.w.ndim < 2:
        return Linear(weights.w.astype(np.float32), weights.b.astype(np.float32))
    xp = _namespace(weights.w)
    w = weights.w.astype(np.float32)
    largest = abs(w).max(tuple(range(w.ndim - 1)), keepdims=True)
    # times a reciprocal, because XLA makes that of a division by a constant; and 1 for a channel of zeros
    scale = xp.where(largest < _NOTHING, np.float32(1), largest * np.float32(1 / _LEVELS))
    with np.errstate(invalid="ignore"):
        q = xp.clip(xp.rint(w / scale), -_LEVELS, _LEVELS).astype(np.int8)
    return QuantLinear(q, scale.reshape(-1), weights.b.astype(np.float32))


def dequantise(weights: Linear | QuantLinear) -> Linear:
    """One layer in float32 again; a layer that is float32 is returned as it is."""
    if isinstance(weights, Linear):
        return weights if weights.w.dtype == np.float32 else _of_matrix(lambda w: w, weights)
    with np.errstate(invalid="ignore"):
        scale = weights.scale.reshape((1,) * (weights.q.ndim - 1) + (-1,))
        return Linear(weights.q.astype(np.float32) * scale, weights.b)


def _namespace(x: Array) -> Any:
    return np if isinstance(x, np.ndarray) else sys.modules["jax"].numpy
