"""Rounding that a compiler cannot take back, and numbers kept as a value and what rounding left out of it.

What is kept between updates has 16 bits; the arithmetic of a step is in the registers' float32. Kahan's sum is then
nothing but a number in two parts, `split` after each step and `whole` before the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import rng


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
    return jax.tree.map(lambda x: x.astype(jnp.float32) if _short(x) else x, tree)


def _short(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4


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


class Dithered(NamedTuple):
    """A tree of floats that are rounded at random, up or down so that the mean is what was rounded."""

    value: Any
    seed: jax.Array  # uint32, of its random numbers
    times: jax.Array  # uint32, that it was rounded


def _magnified(dtype: Any) -> float:
    return 2.0 ** (jnp.finfo(dtype).nmant + 1)


def split(tree: Any, dtype: Any) -> Split:
    """Floats in two parts of `dtype` each."""
    values = narrow(tree, dtype)
    lost = jax.tree.map(lambda x, v: (x - v.astype(x.dtype)) * _magnified(dtype), tree, values)
    return Split(values, narrow(lost, dtype))


def dithered(tree: Any, dtype: Any, seed: jax.Array | None = None, times: Any = 0) -> Dithered:
    """Float32 numbers rounded to `dtype` at random. Without a `seed` one is made of the numbers themselves, so that two
    networks that begin with other weights are rounded by other chances.
    """
    leaves, kind = jax.tree.flatten(tree)
    if seed is None:
        seed = jnp.asarray(sum((jnp.sum(_bits(x), dtype=jnp.uint32) for x in leaves), jnp.uint32(0)))
    key = jax.random.fold_in(rng.key(seed), times)
    keys = jax.random.split(key, max(len(leaves), 1))
    values = [at_random(x, dtype, one) for x, one in zip(leaves, keys, strict=False)]
    return Dithered(kind.unflatten(values), seed, jnp.asarray(times, jnp.uint32))


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def at_random(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Float32 numbers as the next of `dtype` above or below, the nearer the likelier: what they are on average.

    A random number is added to the digits that go, and these are cut off; a number that `dtype` has stays what it is.
    """
    drop = 23 - jnp.finfo(dtype).nmant
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> np.uint32(32 - drop)
    cut = (_bits(x) + noise) & np.uint32(-1 << drop & 0xFFFFFFFF)
    return narrow(jax.lax.bitcast_convert_type(cut, jnp.float32), dtype)


def _is_record(x: Any) -> bool:
    return isinstance(x, Split | Dithered)


def whole(kept: Any) -> Any:
    """What is kept, in the precision of a step, be it in two parts or in one."""

    def joined(value: jax.Array, lost: jax.Array) -> jax.Array:
        return value.astype(jnp.float32) + lost.astype(jnp.float32) / _magnified(value.dtype)

    def one(x: Any) -> Any:
        return jax.tree.map(joined, x.value, x.lost) if isinstance(x, Split) else wide(value_of(x))

    return jax.tree.map(one, kept, is_leaf=_is_record)


def value_of(kept: Any) -> Any:
    """The part of what is kept that computes."""
    return jax.tree.map(lambda x: x.value if _is_record(x) else x, kept, is_leaf=_is_record)


def like(before: Any, tree: Any) -> Any:
    """`tree`, as `before` is kept."""

    def one(old: Any, new: Any) -> Any:
        match old:
            case Split(value):
                return split(new, jax.tree.leaves(value)[0].dtype)
            case Dithered(value, seed, times):
                return dithered(new, jax.tree.leaves(value)[0].dtype, seed, times + np.uint32(1))
        return narrow(new, old.dtype) if jnp.issubdtype(old.dtype, jnp.floating) else new

    return jax.tree.map(one, before, tree, is_leaf=_is_record)


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
