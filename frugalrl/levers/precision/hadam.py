"""hAdam: Adam that keeps the root of its second moment, which 16 bits can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .rounding import narrow, wide


class Moments(NamedTuple):
    """The state of `hadam`."""

    steps: jax.Array  # int32, so far
    m: Any  # the mean of gradients
    w: Any  # the root of the mean of their squares; the mean itself if `root` is false
    eps: jax.Array  # float32, in the units of the gradients


def hypot(a: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(a^2 + b^2) of numbers that are not negative, which neither overflows nor underflows.

    No constant in the denominator, as in the authors' code: that made the root of small gradients too small by a factor
    of six.
    """
    most, least = jnp.maximum(a, b), jnp.minimum(a, b)
    there = most > 0
    ratio = jnp.where(there, least, 0.0) / jnp.where(there, most, 1.0)
    return most * jnp.sqrt(1 + ratio * ratio)


def hadam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, root: bool = True) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) as a direction without its learning rate, with moments of the weights' dtype.

    With `root` w <- hypot(sqrt(b2) w, sqrt(1 - b2) g) is kept (Björck et al. 2021, arXiv 2102.13565), which is as large
    as the gradients are: in float16 the second moment itself is 0 for gradients below 5.5e-3 and infinite above 256.
    Without, it is Adam whose second moment is rounded to that dtype. Their code keeps (1 - b1) |g| instead, up to 3.16
    times as large as the gradients, so that w may become infinite, and the weight still for ever, where g is finite.
    `direction` comes as float32.
    """

    def init(params: Any) -> Moments:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Moments(jnp.zeros((), jnp.int32), zeros, zeros, jnp.float32(eps))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Moments]:
        steps = state.steps + 1

        def one(g, m, w):
            dtype, (g, m, w) = m.dtype, wide((g, m, w))
            m = b1 * m + (1 - b1) * g
            w = hypot(b2**0.5 * w, (1 - b2) ** 0.5 * jnp.abs(g)) if root else b2 * w + (1 - b2) * g * g
            m, w = narrow((m, w), dtype)
            t = steps.astype(g.dtype)
            unbiased = w.astype(g.dtype) / (1 - b2**t) ** (0.5 if root else 1.0)
            size = unbiased if root else jnp.sqrt(unbiased)
            return m.astype(g.dtype) / (1 - b1**t) / (size + state.eps.astype(g.dtype)), m, w

        found = jax.tree.map(one, updates, state.m, state.w)
        direction, m, w = jax.tree.transpose(jax.tree.structure(state.m), jax.tree.structure((0, 0, 0)), found)
        return direction, Moments(steps, m, w, state.eps)

    return optax.GradientTransformation(init, update)


def rescaled(state: Moments, factor: jax.Array, root: bool = True) -> Moments:
    """The state as it would be had all gradients, and eps, been `factor` times as large."""

    def times(tree: Any, factor: jax.Array) -> Any:
        return jax.tree.map(lambda y, x: (y * factor.astype(y.dtype)).astype(x.dtype), wide(tree), tree)

    square = factor if root else factor * factor
    return Moments(state.steps, times(state.m, factor), times(state.w, square), state.eps * factor)
