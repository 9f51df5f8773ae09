"""Compressors that change the numbers of a policy and not its shape: none (fp32) and int8.

The same code serves JAX arrays, inside a training program or out, and NumPy arrays, in a process that has no JAX;
both give the same bits.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ...types import Compressor, Linear, Packet, Policy, QuantLinear

Array = Any

_LEVELS = 127  # of each sign; -128 is left unused so that the grid is symmetric
# A channel below this counts as zeros. Far above the subnormal numbers, which XLA may flush to zero and NumPy keeps.
_NOTHING = np.float32(1e-30)


def fp32() -> Compressor:
    """The compressor that compresses nothing: a packet holds the parameters as they are."""
    return Compressor("fp32", lambda policy: Packet(*policy), lambda packet: Policy(*packet))


def int8() -> Compressor:
    """Weights in int8, biases in float32: about a quarter of the bytes.

    Symmetric, one scale per output channel, the scale its largest weight over 127, rounding to nearest even: the
    rule of Krishnamoorthi 2018 (arXiv 1806.08342). A weight is off by at most half its scale. Needs no data. Takes
    and gives a tuple of `Linear`; `knobs` are sent as they are.
    """
    return Compressor(
        "int8",
        lambda policy: Packet(tuple(quantise(weights) for weights in policy.params), policy.knobs),
        lambda packet: Policy(tuple(dequantise(weights) for weights in packet.weights), packet.knobs),
    )


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
    """One layer in float32 again; a layer that never was quantised is returned as it is."""
    if isinstance(weights, Linear):
        return weights
    with np.errstate(invalid="ignore"):
        scale = weights.scale.reshape((1,) * (weights.q.ndim - 1) + (-1,))
        return Linear(weights.q.astype(np.float32) * scale, weights.b)


def _namespace(x: Array) -> Any:
    return np if isinstance(x, np.ndarray) else sys.modules["jax"].numpy
