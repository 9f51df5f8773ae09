"""Rounding that a compiler cannot take back, and numbers kept as a value and what rounding left out of it.

What is kept between updates has 16 bits; the arithmetic of a step is in the registers' float32. Kahan's sum is then
nothing but a number in two parts, `split` after each step and `whole` before the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` float32 or wider with the values that `dtype` has, of the dtype it was; so is its gradient.

    `x.astype(dtype).astype(x.dtype)` is not enough: compiled, XLA may leave out both casts (its "excess precision"),
    and what a sum has lost is then found to be zero (jax issue 23007). `lax.reduce_precision` it may not leave out, but
    that makes all values below the least normal number 0; of float16 they are kept here, as by hardware.
    """
    return _rounded(x, dtype)


def _nearest(x: jax.Array, dtype: Any) -> jax.Array:
    kind = jnp.finfo(dtype)
    normal = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
    unit = float(kind.smallest_subnormal)
    if unit < 1e-30:  # bfloat16 and wider: nothing that matters is so small
        return normal
    return jnp.where(jnp.abs(x) < float(kind.smallest_normal), jnp.round(x / unit) * unit, normal)


_rounded: Any = jax.custom_vjp(_nearest, nondiff_argnums=(1,))
_rounded.defvjp(lambda x, dtype: (_nearest(x, dtype), None), lambda dtype, _, cotangent: (_nearest(cotangent, dtype),))


def wide(tree: Any) -> Any:
    """Floats as those that a step is computed in: float32, or what they are if that is wider."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype.itemsize < 4 else x, tree)


def narrow(tree: Any, dtype: Any) -> Any:
    """Floats of `dtype`, rounded for good; beyond its range they are infinite."""
    return jax.tree.map(lambda x: rounded(x, dtype).astype(dtype), tree)


class Split(NamedTuple):
    """A tree of floats in two parts: what computes, and what rounding left out of that.

    `lost` is multiplied by 2**(mantissa bits + 1). It is then about as large as its value at most, so that it cannot
    overflow, and loses nothing where the value is small. So no constant has to scale the values themselves, as in the
    published form, whose 1e4 overflows float16 from a weight of 6.55 on.
    """

    value: Any
    lost: Any


def _magnified(dtype: Any) -> float:
    return 2.0 ** (jnp.finfo(dtype).nmant + 1)


def split(tree: Any, dtype: Any) -> Split:
    """Floats in two parts of `dtype` each."""
    values = narrow(tree, dtype)
    lost = jax.tree.map(lambda x, v: (x - v.astype(x.dtype)) * _magnified(dtype), tree, values)
    return Split(values, narrow(lost, dtype))


def whole(kept: Any) -> Any:
    """The floats of a Split, or of any other tree, in the precision of a step."""
    if not isinstance(kept, Split):
        return wide(kept)
    return jax.tree.map(
        lambda v, lost: v.astype(jnp.float32) + lost.astype(jnp.float32) / _magnified(v.dtype), kept.value, kept.lost
    )


class Lost(NamedTuple):
    """The state of `kahan`."""

    lost: Any  # as in Split


def kahan() -> optax.GradientTransformation:
    """The last link of an optax chain, for weights of 16 bits: what rounding leaves out of a step goes into the next
    one (Kahan 1965; "Kahan-gradients" of Björck et al. 2021, arXiv 2102.13565).

    It needs the weights, `update(updates, state, params)`. Its updates are differences that `optax.apply_updates` adds
    without a further loss.
    """

    def init(params: Any) -> Lost:
        return Lost(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Lost]:
        if params is None:
            raise ValueError("kahan() adds to weights: call update(updates, state, params)")

        def one(step, lost, weight):
            moved = split(whole(Split(weight, lost)) + wide(step), weight.dtype)
            return moved.value.astype(jnp.float32) - weight.astype(jnp.float32), moved.lost

        both = jax.tree.map(one, updates, state.lost, params)
        steps, lost = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), both)
        return steps, Lost(lost)

    return optax.GradientTransformation(init, update)
