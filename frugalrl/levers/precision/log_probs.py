"""Log-probabilities of normals, squashed or not, in 16 bits: forms whose gradients stay finite, and the stock ones."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any

import jax
import jax.numpy as jnp

from ...distributions import Dist, Normal, TanhNormal
from .rounding import rounded

FAR = 250.0  # deviations from the mean: further away a density and its gradients are beyond float16
STOCK_THRESHOLD = 20.0  # above which PyTorch's softplus is linear


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + e^x): max(x, 0) + log(1 + e^-|x|), whose exponential cannot overflow.

    The published repair lowers the threshold of the stock form to 10; this one needs none.
    """
    return jnp.logaddexp(x, jnp.zeros_like(x))


def stock_softplus(x: jax.Array, dtype: Any, threshold: float = STOCK_THRESHOLD) -> jax.Array:
    """log(1 + e^x) up to a threshold and x above it, as PyTorch has it: in float16 infinite from 11.1 to the threshold.

    Its slope is e^x / (1 + e^x), there not a number.
    """
    return _stock_softplus(x, dtype, threshold)


def _stock_value(x: jax.Array, dtype: Any, threshold: float) -> jax.Array:
    power = rounded(jnp.exp(x), dtype)
    return jnp.where(x > threshold, x, rounded(jnp.log(rounded(1 + power, dtype)), dtype))


def _stock_slope(dtype: Any, threshold: float, x: jax.Array, cotangent: jax.Array) -> tuple:
    power = rounded(jnp.exp(x), dtype)
    below = rounded(cotangent * power, dtype) / rounded(1 + power, dtype)
    return (jnp.where(x > threshold, cotangent, rounded(below, dtype)),)


_stock_softplus: Any = jax.custom_vjp(_stock_value, nondiff_argnums=(1, 2))
_stock_softplus.defvjp(lambda x, dtype, threshold: (_stock_value(x, dtype, threshold), x), _stock_slope)


def normal_log_prob(u: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Of each u, by (u - mean) / std, squared after the division ("normal-fix" of Björck et al. 2021)."""
    z = (u - mean) / jnp.exp(log_std)
    return -0.5 * z * z - log_std - 0.5 * log(2 * pi)


def stock_normal_log_prob(u: jax.Array, mean: jax.Array, log_std: jax.Array, dtype: Any) -> jax.Array:
    """Of each u, by (u - mean)^2 / (2 std^2), as PyTorch has it: in float16 squares below 3e-8 are 0, those above
    65504 infinite.
    """
    gap, std = rounded(u - mean, dtype), rounded(jnp.exp(log_std), dtype)
    square, variance = rounded(gap * gap, dtype), rounded(std * std, dtype)
    return -rounded(square / rounded(2 * variance, dtype), dtype) - log_std - 0.5 * log(2 * pi)


def log_slope(u: jax.Array, plus: Callable[[jax.Array], jax.Array] = softplus) -> jax.Array:
    """The logarithm of the derivative of tanh at u (Haarnoja et al. 2018, arXiv 1801.01290, appendix C)."""
    return 2 * (log(2.0) - u - plus(-2 * u))


def sampler(dtype: Any, normal_fix: bool = True, softplus_fix: bool = True) -> Callable:
    """`TanhNormal.sample_and_log_prob` with numbers of `dtype`: (dist, noise) -> (action, log_prob), float32.

    For actions in [-1, 1]. Each function is evaluated in float32 registers, its result rounded; only the sum over
    dimensions stays float32. With `normal_fix` (u - mean) / std is the noise that u was made of: nothing is lost in a
    difference, which in float16 left it as few as three values where std is small and the mean large.
    """

    def draw(dist: TanhNormal, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std, noise = (rounded(x, dtype) for x in (dist.mean, dist.log_std, noise))
        u = rounded(mean + rounded(jnp.exp(log_std), dtype) * noise, dtype)
        if normal_fix:
            density = -0.5 * noise * noise - log_std - 0.5 * log(2 * pi)
        else:
            density = stock_normal_log_prob(u, mean, log_std, dtype)
        plus = softplus if softplus_fix else lambda x: stock_softplus(x, dtype)
        each = rounded(density, dtype) - rounded(log_slope(u, plus), dtype)
        return rounded(jnp.tanh(u), dtype), rounded(each, dtype).sum(-1)

    return draw


def density(dtype: Any, normal_fix: bool = True, softplus_fix: bool = True) -> Callable:
    """`log_prob` of an action that is given, with numbers of `dtype`: (dist, action) -> log_prob, float32.

    As in `sampler`, but for the action itself: rounded it would be another one than that which was taken. With
    `normal_fix` actions that are more than FAR deviations off count as that far, without a gradient. Other
    distributions than normals have no such forms.
    """

    def log_prob(dist: Dist, action: Any) -> Any:
        if not isinstance(dist, Normal | TanhNormal):
            return dist.log_prob(action)
        u = dist.before(action) if isinstance(dist, TanhNormal) else action
        mean, log_std = rounded(dist.mean, dtype), rounded(dist.log_std, dtype)
        if normal_fix:
            # not divided by the deviation, whose slope, (u - mean) / std^2, leaves float16 long before z does
            z = rounded(jnp.clip((u - mean) * rounded(jnp.exp(-log_std), dtype), -FAR, FAR), dtype)
            each = rounded(-0.5 * z * z - log_std - 0.5 * log(2 * pi), dtype)
        else:
            each = rounded(stock_normal_log_prob(u, mean, log_std, dtype), dtype)
        if isinstance(dist, TanhNormal):
            plus = softplus if softplus_fix else lambda x: stock_softplus(x, dtype)
            each = each - rounded(log_slope(u, plus), dtype) - dist.log_half()
        return each.sum(-1)

    return log_prob
