"""int8 rounds as promised, and NumPy and JAX agree to the bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frugalrl.levers.compress.quantise import bf16, fp32, int8, int8_static, rounded
from frugalrl.types import Linear, Packet, Policy, QuantLinear, Ranges

SHAPES = [(8, 8, 4, 32), (3, 3, 16, 16), (17, 64), (64, 6)]


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


def test_what_reads_a_vector_stays_in_float32():
    dense = Policy(policy().params[2:], ())
    for compressor, more in ((int8(), ()), (int8_static(), (Ranges(np.zeros(3), np.ones(3)),))):
        packet = compressor.encode(dense._replace(params=(*dense.params, *more)))
        first, second, *_ = packet.weights
        assert (type(first), type(second)) == (Linear, QuantLinear)
        np.testing.assert_array_equal(first.w, dense.params[0].w)
    assert [type(layer) for layer in int8().encode(policy()).weights] == [QuantLinear] * 4  # of pictures


def test_int8_again_changes_no_integer():
    once = int8().encode(policy())
    twice = int8().encode(int8().decode(once))
    for a, b in zip(once.weights, twice.weights, strict=True):
        np.testing.assert_array_equal(a.q, b.q)
        np.testing.assert_allclose(a.scale, b.scale, rtol=2**-22)


@pytest.mark.parametrize("tiny", [0.0, 1e-40])  # 1e-40 is subnormal: XLA may flush it to zero, NumPy does not
def test_a_channel_of_zeros(tiny):
    w = np.ones((1, 1, 5, 3), np.float32)
    w[..., 1] = tiny
    before = Policy((Linear(w, np.zeros(3, np.float32)),), ())
    for encode in (int8().encode, jax.jit(int8().encode)):
        (small,) = encode(before).weights
        np.testing.assert_array_equal(np.asarray(small.q)[..., 1], 0)
        assert np.asarray(small.scale)[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad):
    w = np.ones((5, 3), np.float32)
    w[2, 1] = bad
    params = int8().decode(int8().encode(Policy((Linear(w, np.zeros(3, np.float32)),), ()))).params
    np.testing.assert_array_equal(np.isfinite(params[0].w).all(0), [True, False, True])


KINDS = {"int8": int8(), "int8-static": int8_static(), "bf16": bf16()} | {
    f"{bits} bits": rounded(bits) for bits in (2, 4, 7, 12, 16, 32)
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_jax_agree_to_the_bit(kind, seed):
    before, compressor = policy(seed), KINDS[kind]
    before = before._replace(params=(*before.params, Ranges(np.float32([-1, 0]), np.float32([0, 3]))))
    on_jax = jax.tree.map(jnp.asarray, before)
    expected = compressor.encode(before)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(expected))
    both = (compressor.encode, compressor.decode), (jax.jit(compressor.encode), jax.jit(compressor.decode))
    for encode, decode in both:
        packet = encode(on_jax)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(packet))
        for a, b in zip(leaves(expected), leaves(packet), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        for a, b in zip(leaves(compressor.decode(expected)), leaves(decode(packet)), strict=True):
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(a, b)


def test_24_bits_agree_to_a_step():
    """Steps as fine as float32's own show how XLA divides: a weight may fall on the next one."""
    before, compressor = policy(), rounded(24)
    for a, b in zip(leaves(compressor.encode(before)), leaves(jax.jit(compressor.encode)(before)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-22, atol=2**-22 * abs(a).max())


def test_bf16_halves_the_bytes():
    before = policy()
    packet = bf16().encode(before)
    after = bf16().decode(packet)
    for full, small, back in zip(before.params, packet.weights, after.params, strict=True):
        assert (small.w.dtype.name, small.b.dtype.name) == ("bfloat16", "float32")
        assert small.w.nbytes * 2 == full.w.nbytes
        assert (abs(back.w - full.w) <= abs(full.w) * 2**-8).all()
        np.testing.assert_array_equal(back.b, full.b)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_as_in_quarl(bits):
    """Steps of (|min| + |max|) / 2**bits, for all of a dense layer and for each channel of a convolution."""
    before = policy()
    packet = rounded(bits).encode(before)
    for full, back in zip(before.params, packet.weights, strict=True):
        for w, q in [(full.w, back.w)] if full.w.ndim == 2 else zip(full.w.T, back.w.T, strict=True):
            step = (abs(w.min()) + abs(w.max())) / 2**bits
            np.testing.assert_allclose(q / step, np.rint(q / step), atol=1e-3)
            assert abs(w - q).max() <= 0.501 * step
            assert len(np.unique(q)) <= 2**bits + 1
        np.testing.assert_array_equal(back.b, full.b)


def test_rounded_to_16_and_32_bits():
    before = policy()
    for full, half in zip(before.params, rounded(16).encode(before).weights, strict=True):
        np.testing.assert_array_equal(half.w, full.w.astype(np.float16).astype(np.float32))
    assert rounded(32).encode(before).weights is before.params
    for bits in (0, 1, 33):
        with pytest.raises(ValueError, match="2 to 32"):
            rounded(bits)


def test_static_int8_is_int8_with_ranges():
    before, ranges = policy(), Ranges(np.float32([-1, 0]), np.float32([0, 3]))
    *layers, last = int8_static().encode(before._replace(params=(*before.params, ranges))).weights
    assert last is ranges
    for a, b in zip(leaves(layers), leaves(list(int8().encode(before).weights)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="calibrated"):
        int8_static().encode(before)


def test_half_precision_parameters_are_taken():
    w = jnp.asarray(policy().params[0].w / 1e4, jnp.float16)
    (small,) = int8().encode(Policy((Linear(w, jnp.zeros(32, jnp.float16)),), ())).weights
    assert small.scale.dtype == jnp.float32
    assert small.b.dtype == jnp.float32
