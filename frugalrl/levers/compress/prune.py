"""Structured pruning: which neurons and feature maps of a network stay, and the smaller network made of them.

A unit's saliency is the length of its incoming weights times that of its outgoing ones: what it can add to the next
layer, as far as weights alone say. Whole units go, because only then an engine has less to do.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...networks import Conv, Dense, Flatten, LayerNorm, Layers, Residual, out_shape, weighted
from ...types import Box, Linear

# Widths are multiples of these, or the vector unit works on lanes that nobody uses: 16 float32 numbers fill a register
# of 512 bits. A feature map is computed for many pixels at a time, so that half a register still pays there.
LANES, MAP_LANES = 16, 8


def narrowed(layers: Layers, share: float) -> Layers:
    """`layers` with about `share` of the units of each but the last, rounded to whole vector registers.

    The last layer's outputs mean something, so they all stay. A layer of fewer units than a register stays as it is.
    """
    if share == 1:
        return layers
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, Dense | Conv))

    def one(layer: Any) -> Any:
        match layer:
            case Dense(features):
                return layer._replace(features=rounded(features * share, features, LANES))
            case Conv(features):
                return layer._replace(features=rounded(features * share, features, MAP_LANES))
            case Residual(body):
                return Residual(tuple(map(one, body)))
        return layer

    return tuple(layer if i == last else one(layer) for i, layer in enumerate(layers))


def rounded(units: float, most: int, lanes: int) -> int:
    """The multiple of `lanes` nearest to `units`, at least one and at most `most`."""
    return min(most, max(lanes, round(units / lanes) * lanes))


def as_wide_as(layers: Layers, weights: tuple[Linear, ...]) -> Layers:
    """`layers` with the widths that `weights` have."""
    units = iter(weights)

    def one(layer: Any) -> Any:
        match layer:
            case Dense() | Conv():
                return layer._replace(features=next(units).b.shape[0])
            case LayerNorm():
                next(units)
            case Residual(body):
                return Residual(tuple(map(one, body)))
        return layer

    return tuple(map(one, layers))


class Kept(NamedTuple):
    """What stays of one layer's weights: indices, int32, or None for all."""

    inputs: Any
    outputs: Any


def kept(layers: Layers, narrow: Layers, obs: Box, weights: tuple[Linear, ...]) -> tuple[Kept, ...]:
    """For each of `weights`, of `layers`, what of it stays in `narrow`: the units of greatest saliency, in their order.

    `narrow` is `layers` with smaller widths (see `narrowed`). The channels that a residual body adds to are those that
    it reads.
    """
    shapes = [shape for _, shape in weighted(layers, obs.shape)]
    found: list[Kept] = []

    def outgoing(i: int, units: int) -> Any:
        """The length of the weights that read each of `units` channels: those of the next layer that mixes channels."""
        for later in range(i + 1, len(shapes)):
            if len(shapes[later]) > 1:
                w = weights[later].w.reshape(-1, *shapes[later][-2:])  # [kernel, in, out]; a flattened image is in `in`
                return _length(w.reshape(-1, units, shapes[later][-1]), (0, 2))
        return jnp.ones(units)

    def chosen(i: int, features: int, fewer: int) -> Any:
        if fewer == features:
            return None
        w = weights[i].w
        saliency = _length(w, tuple(range(w.ndim - 1))) * outgoing(i, features)
        return jnp.sort(jax.lax.top_k(saliency, fewer)[1].astype(jnp.int32))

    def walk(layers: Layers, narrow: Layers, shape: tuple[int, ...], inputs: Any, forced: bool) -> Any:
        """Goes through layers whose inputs `inputs` stay; returns what stays of their outputs.

        With `forced` the last layer keeps what the first one reads.
        """
        entered, last = inputs, sum(1 for _ in weighted(layers, shape))
        for layer, thin in zip(layers, narrow, strict=True):
            match layer:
                case Dense(features) | Conv(features):
                    last -= 1
                    outputs = entered if forced and last == 0 else chosen(len(found), features, thin.features)
                    found.append(Kept(inputs, outputs))
                    inputs = outputs
                case LayerNorm():
                    last -= 1
                    found.append(Kept(None, inputs))
                case Flatten() if inputs is not None:
                    pixels = jnp.arange(prod(shape[:-1]), dtype=jnp.int32)[:, None]
                    inputs = (pixels * shape[-1] + inputs[None]).reshape(-1)
                case Residual(body):
                    walk(body, thin.body, shape, inputs, True)
                    last -= sum(1 for _ in weighted(body, shape))
            shape = out_shape(layer, shape)
        return inputs

    walk(layers, narrow, obs.shape, None, False)
    return tuple(found)


def _length(w: Any, over: tuple[int, ...]) -> Any:
    return jnp.sqrt(jnp.sum(w * w, over))


def sliced(weights: tuple[Linear, ...], what: tuple[Kept, ...]) -> tuple[Linear, ...]:
    """The weights that stay: of the smaller network."""

    def one(weights: Linear, inputs: Any, outputs: Any) -> Linear:
        w, b = weights
        if outputs is not None:
            w, b = jnp.take(w, outputs, -1), jnp.take(b, outputs, -1)
        return Linear(w if inputs is None else jnp.take(w, inputs, -2), b)

    return tuple(one(layer, *indices) for layer, indices in zip(weights, what, strict=True))
