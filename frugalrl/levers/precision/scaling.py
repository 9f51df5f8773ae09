"""Compound loss scaling: gradients are large enough for 16 bits, and stay so through the optimiser.

Björck et al. 2021 (arXiv 2102.13565). Unlike the usual loss scaling nothing is divided by the scale again: the ratio of
Adam's moments does not depend on it, and moments of unscaled gradients would not fit 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...agents.descent import untransposed
from .rounding import wide

START = 2.0**13  # scale: the published 1e4 as a power of two, by which nothing is rounded
PERIOD = 10_000  # good steps until it doubles
MOST = 2.0**24  # of the scale: gradients that are all but zero would double it for ever
MARGIN = 1.1  # that gradients and moments must stay away from the largest number


class Guard(NamedTuple):
    """What is known of the gradients so far."""

    scale: jax.Array  # float32, of the loss
    good: jax.Array  # int32, steps since the scale last changed
    skipped: jax.Array  # int32, gradients so far that were not finite, or too large for the moments


def guard(scale: float = 1.0) -> Guard:
    return Guard(jnp.float32(scale), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class Scaled(NamedTuple):
    """Gradients, and what they were multiplied by: the scale may be another when they are applied."""

    value: Any
    scale: jax.Array


def unscaled(grads: Any) -> Any:
    """Gradients, Scaled or not, as they are kept: without their scales."""
    return jax.tree.map(
        lambda x: x.value if isinstance(x, Scaled) else x, grads, is_leaf=lambda x: isinstance(x, Scaled)
    )


def value_and_grad(objective: Callable) -> Callable:
    """Like `jax.value_and_grad(objective, has_aux=True)`, of (params, scale, further arguments): gradients
    times `scale`.

    The scale is the cotangent of the loss, which itself is not scaled and so cannot overflow.
    """

    def run(params: Any, scale: jax.Array, *rest: Any) -> tuple[tuple[Any, Any], Any]:
        value, backward, aux = jax.vjp(lambda params: objective(params, *rest), params, has_aux=True)
        return (value, aux), backward(scale.astype(value.dtype))[0]

    return untransposed(run)


def fits(tree: Any, dtype: Any, factor: float = 1.0) -> jax.Array:
    """Whether all of these floats, `factor` times as large, are finite numbers of `dtype`, by a margin."""
    most = float(jnp.finfo(dtype).max) / (MARGIN * factor)
    leaves = [x for x in jax.tree.leaves(wide(tree)) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.abs(x) <= most) for x in leaves]))


def counted(state: Guard, ok: jax.Array) -> Guard:
    """After a step, or one that was skipped."""
    return state._replace(good=jnp.where(ok, state.good + 1, 0), skipped=state.skipped + (~ok).astype(jnp.int32))


def followed(state: Guard, ok: jax.Array, roomy: jax.Array) -> Guard:
    """`counted`, with the scale halved after a gradient that was not `ok`, and doubled after PERIOD good ones, if what
    is measured in it has room (`roomy`).
    """
    state = counted(state, ok)
    due = state.good > PERIOD
    grows = due & roomy & (state.scale < MOST)
    factor = jnp.where(ok, jnp.where(grows, 2.0, 1.0), 0.5)
    return Guard(state.scale * factor, jnp.where(due, 0, state.good), state.skipped)
