"""Pictures for agents with an actor and critics: convolutions that all of them see through and that the critics' loss
alone teaches, on pictures shifted at random (DrQ: Kostrikov et al. 2020, arXiv 2004.13649).

Layers and shifts are the paper's, but that the features of the dense layer behind the convolutions go on without tanh:
normalised they are bounded anyway, and no engine has such a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..networks import Conv, Dense, Flatten, LayerNorm, Layers, Scale, at_once, out_shape
from ..networks import network as build_network
from ..types import Box, Network

CONVOLUTIONS = (2, 1, 1, 1)  # strides, of 3x3 filters
LEAST = 15  # pixels of a side, of which the convolutions leave one


class Sighted(NamedTuple):
    """What the critics' loss teaches, where observations are pictures."""

    encoder: Any  # the weights of its layers
    critics: Any


class Sight(NamedTuple):
    """What stands between observations and the networks of actor and critics."""

    out: Box  # what those see
    init: Callable[[Any], Any]  # key -> weights of the encoder
    see: Callable[[Any, Any], Any]  # (weights of the encoder, obs [batch, ...]) -> what is seen [batch, ...]
    augmented: Callable[[Any, Any], Any]  # (obs [batch, ...], key) -> obs to learn from
    acting: Callable[[Network], Network]  # the actor's network -> that of observations, the encoder's layers first
    at_once: int | None = None  # observations that are seen at a time; None: all of them


def direct(obs: Box) -> Sight:
    """Observations as they are."""
    return Sight(obs, lambda key: (), lambda weights, obs: obs, lambda obs, key: obs, lambda actor: actor)


def joined(encoder: Any, critics: Any) -> Any:
    """What the critics' loss teaches: `critics`, and the weights of the encoder if there are any."""
    return Sighted(encoder, critics) if encoder else critics


def apart(learned: Any) -> Sighted:
    """What `joined` made `learned` of."""
    return learned if isinstance(learned, Sighted) else Sighted((), learned)


def convolutional(obs: Box, filters: int, shift: int) -> Sight:
    """Four convolutions of `filters` each, on pictures shifted by up to `shift` pixels. Raises ValueError for other
    observations than pictures of bytes, [height, width, channels].
    """
    if len(obs.shape) != 3 or obs.dtype != "uint8" or min(obs.shape[:2]) < LEAST:
        raise ValueError(
            f"it takes pictures of bytes that are at least {LEAST} x {LEAST}, not {obs.dtype} of shape {obs.shape}"
        )
    layers = (Scale(1 / 255), *(Conv(filters, 3, stride) for stride in CONVOLUTIONS))
    encoder = build_network(layers, obs)
    shape, some = obs.shape, at_once(encoder)
    for layer in layers:
        shape = out_shape(layer, shape)

    def see(weights, obs):
        # of the dtype that the networks behind it compute in: what is kept for the way back is then half as much
        one = lambda obs: encoder.apply(weights, obs, None).astype(weights[0].w.dtype)
        return jax.vmap(one)(obs) if some is None or len(obs) <= some else jax.lax.map(one, obs, batch_size=some)

    def augmented(obs, key):
        return jax.vmap(shifted, (0, 0, None))(obs, jax.random.split(key, obs.shape[0]), shift)

    def acting(actor: Network) -> Network:
        assert actor.layers is not None
        return build_network((*layers, *actor.layers), obs)

    return Sight(Box(shape), encoder.init, see, augmented, acting, some)


def shifted(picture: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """A picture [height, width, channels] moved by up to `most` pixels along each axis, its edges repeated (as in
    Kostrikov et al. 2020: padded on every side and cropped at random). All channels, and so the frames of a stack, move
    together.
    """
    moved = picture
    for axis, by in enumerate(jax.random.randint(key, (2,), -most, most + 1, jnp.int32)):
        size = picture.shape[axis]
        index = jnp.clip(jnp.arange(size, dtype=jnp.int32) + by, 0, size - 1)
        moved = jnp.take(moved, index, axis, mode="clip")
    return moved


def bottleneck(features: int) -> Layers:
    """What actor and critics have each of their own below their other layers: the pictures' features, normalised."""
    return (Flatten(), Dense(features, relu=False), LayerNorm())


def behind(layers: Layers, obs: Box, critics: tuple[Callable, Callable]) -> tuple[Callable, Callable]:
    """(init, apply) of an `ensemble` that sees `obs` through `layers` which its members share."""
    trunk = build_network(layers, obs)
    begin, judge = critics

    def init(key):
        key_trunk, key_critics = jax.random.split(key)
        return trunk.init(key_trunk), begin(key_critics)

    def apply(params, obs, *action):
        weights, critics = params
        return judge(critics, trunk.apply(weights, obs, None), *action)

    return init, apply
