"""JAX's threefry random numbers, bit for bit, as straight-line code.

On a CPU JAX runs the rounds of threefry2x32 as a loop of many tiny kernels, which costs more than the numbers do. Here
the twenty rounds are unrolled, so that XLA makes one vectorised kernel of a call. Keys split and map as JAX's own.
"""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _hash(key, hi, lo):
    """Threefry-2x32-20 (Salmon et al. 2011) of the counters (hi, lo), uint32 of any shape, under key uint32 [2]."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = hi + keys[0], lo + keys[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x = x + y
            y = (y << np.uint32(r)) | (y >> np.uint32(32 - r))
            y = x ^ y
        x = x + keys[(i + 1) % 3]
        y = y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _counters(shape: tuple[int, ...]):
    """The high and low words of 0, 1, 2, ... in row-major order."""
    if prod(shape) >= 2**32:
        raise ValueError(f"at most 2**32 random numbers a call, got a shape of {shape}")
    low = jax.lax.iota(jnp.uint32, prod(shape)).reshape(shape)
    return jnp.zeros_like(low), low


def _seed(seed) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


# The compilers of jax 0.11 and 0.12 come to no end where a key is made of another inside of a kernel. That of jax 0.10
# does, and what it makes of the two together seemed a little faster.
_APART = jax.__version_info__ >= (0, 11)


def _whole(words) -> jax.Array:
    """The key of two words."""
    key = jnp.stack(words, -1)
    return jax.lax.optimization_barrier(key) if _APART else key


def _split(key, shape) -> jax.Array:
    return _whole(_hash(key, *_counters(shape)))


def _fold_in(key, data) -> jax.Array:
    return _whole(_hash(key, np.uint32(0), jnp.asarray(data).astype(jnp.uint32)))


def _random_bits(key, bit_width: int, shape) -> jax.Array:
    x, y = _hash(key, *_counters(shape))
    if bit_width == 64:
        return x.astype(jnp.uint64) << np.uint64(32) | y.astype(jnp.uint64)
    return (x ^ y).astype(jnp.dtype(f"uint{bit_width}"))


THREEFRY = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="threefry2x32_unrolled"
)


def key(seed: int | jax.Array) -> jax.Array:
    """A key for every random number of a run; `jax.random.key`, but faster on a CPU."""
    return jax.random.key(seed, impl=THREEFRY)
