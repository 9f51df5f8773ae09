"""int8 rounds as promised, and NumPy and JAX agree to the bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frugalrl.levers.compress.quantise import fp32, int8
from frugalrl.types import Linear, Packet, Policy, QuantLinear

SHAPES = [(17, 64), (64, 6), (8, 8, 4, 32), (3, 3, 16, 16)]


def policy(seed: int = 0) -> Policy:
    """Weights of very different sizes from channel to channel."""
    rng = np.random.default_rng(seed)

    def layer(shape):
        w = rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 3, shape[-1])
        return Linear(w.astype(np.float32), rng.standard_normal(shape[-1]).astype(np.float32))

    return Policy(tuple(layer(shape) for shape in SHAPES), {"epsilon": np.float32(0.05)})


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_fp32_is_the_identity():
    before = policy()
    packet = fp32().encode(before)
    assert isinstance(packet, Packet)
    assert packet.weights is before.params
    assert fp32().decode(packet) == before


def test_int8_is_off_by_at_most_half_a_scale():
    before = policy()
    packet = int8().encode(before)
    after = int8().decode(packet)
    for full, small, back in zip(before.params, packet.weights, after.params, strict=True):
        assert (small.q.dtype, small.scale.dtype, small.b.dtype) == (np.int8, np.float32, np.float32)
        assert (small.q.shape, small.scale.shape) == (full.w.shape, full.w.shape[-1:])
        assert back.w.dtype == np.float32
        assert np.all(abs(full.w - back.w) <= small.scale * 0.50001)
        assert np.all(abs(small.q).max(tuple(range(full.w.ndim - 1))) == 127)  # every channel uses its whole range
        np.testing.assert_array_equal(back.b, full.b)
    assert packet.knobs is before.knobs
    assert after.knobs is before.knobs


def test_a_normalisation_stays_in_float32():
    """Its gain is a vector: few bytes, and every output hangs on it."""
    w, b = np.float32([0.3, -2, 1e-3]), np.float32([1, 2, 3])
    before = Policy((policy().params[0], Linear(w, b), Linear(w.astype(np.float16), b.astype(np.float16))), ())
    for encode, decode in ((int8().encode, int8().decode), (jax.jit(int8().encode), jax.jit(int8().decode))):
        packet = encode(before)
        assert [type(layer) for layer in packet.weights] == [QuantLinear, Linear, Linear]
        assert {x.dtype.name for layer in packet.weights[1:] for x in layer} == {"float32"}
        for layer in (packet.weights[1], decode(packet).params[1]):
            np.testing.assert_array_equal(layer.w, w)
            np.testing.assert_array_equal(layer.b, b)


def test_int8_again_changes_no_integer():
    once = int8().encode(policy())
    twice = int8().encode(int8().decode(once))
    for a, b in zip(once.weights, twice.weights, strict=True):
        np.testing.assert_array_equal(a.q, b.q)
        np.testing.assert_allclose(a.scale, b.scale, rtol=2**-22)


@pytest.mark.parametrize("tiny", [0.0, 1e-40])  # 1e-40 is subnormal: XLA may flush it to zero, NumPy does not
def test_a_channel_of_zeros(tiny):
    w = np.ones((5, 3), np.float32)
    w[:, 1] = tiny
    before = Policy((Linear(w, np.zeros(3, np.float32)),), ())
    for encode in (int8().encode, jax.jit(int8().encode)):
        (small,) = encode(before).weights
        np.testing.assert_array_equal(np.asarray(small.q)[:, 1], 0)
        assert np.asarray(small.scale)[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad):
    w = np.ones((5, 3), np.float32)
    w[2, 1] = bad
    params = int8().decode(int8().encode(Policy((Linear(w, np.zeros(3, np.float32)),), ()))).params
    np.testing.assert_array_equal(np.isfinite(params[0].w).all(0), [True, False, True])


@pytest.mark.parametrize("seed", range(3))
def test_numpy_and_jax_agree_to_the_bit(seed):
    before = policy(seed)
    on_jax = jax.tree.map(jnp.asarray, before)
    expected = int8().encode(before)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(expected))
    for encode, decode in ((int8().encode, int8().decode), (jax.jit(int8().encode), jax.jit(int8().decode))):
        packet = encode(on_jax)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(packet))
        for a, b in zip(leaves(expected), leaves(packet), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        for a, b in zip(leaves(int8().decode(expected)), leaves(decode(packet)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_half_precision_parameters_are_taken():
    w = jnp.asarray(policy().params[0].w / 1e4, jnp.float16)
    (small,) = int8().encode(Policy((Linear(w, jnp.zeros(64, jnp.float16)),), ())).weights
    assert small.scale.dtype == jnp.float32
    assert small.b.dtype == jnp.float32
