"""Networks have the shapes, weights and numbers that their layers say."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frugalrl.networks import (
    NARROW,
    Conv,
    Dense,
    Flatten,
    LayerNorm,
    MaxPool,
    Relu,
    Residual,
    Scale,
    at_once,
    convolution,
    impala_resnet,
    minatar_cnn,
    mlp,
    nature_cnn,
    network,
    normalised,
    orthogonal,
    out_features,
    out_shape,
    planes_cnn,
    small_cnn,
    torso,
    weighted,
)
from frugalrl.types import Box, Linear

KEY = jax.random.key(0)
FRAMES = Box((84, 84, 4), "uint8", 0, 255)
LAYERS = {  # layer -> the shape it is given
    Dense(5): (7,),
    Dense(2, relu=False): (7,),
    Relu(): (6, 5, 3),
    LayerNorm(): (6, 5, 3),
    LayerNorm(1e-3): (7,),
    Scale(0.5): (6, 5, 3),
    Flatten(): (6, 5, 3),
    MaxPool(): (11, 10, 3),
    MaxPool(2, 1): (5, 5, 2),
    Residual((Relu(), Conv(3, 3, padding="SAME"))): (6, 5, 3),
    **{Conv(4, k, s, p): (11, 10, 3) for k in (1, 3, 4) for s in (1, 2, 3) for p in ("VALID", "SAME")},
}


def given(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    return r.integers(0, 256, shape, np.uint8) if dtype == "uint8" else r.standard_normal(shape, np.float32)


def some_weights(layers: tuple, shape: tuple[int, ...]) -> tuple[Linear, ...]:
    return tuple(
        Linear(given(s, seed=i), given(s[-1:], seed=50 + i)) for i, (_, s) in enumerate(weighted(layers, shape))
    )


def count(layers: tuple, obs: Box) -> int:
    params = jax.eval_shape(network(layers, obs).init, KEY)
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(("layer", "shape"), LAYERS.items(), ids=map(str, LAYERS))
def test_out_shape_is_what_comes_out(layer, shape):
    net = network((layer,), Box(shape))
    out = jax.eval_shape(lambda x: net.apply(net.init(KEY), x), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert out.shape == out_shape(layer, shape)


def reference_conv(layer: Conv, x: np.ndarray, weights: Linear) -> np.ndarray:
    """A convolution by its definition; "SAME" pads the odd zero at the end, as TensorFlow does."""
    high, wide, _ = out_shape(layer, x.shape)
    if layer.padding == "SAME":
        total = [max((n - 1) * layer.stride + layer.kernel - m, 0) for n, m in ((high, x.shape[0]), (wide, x.shape[1]))]
        x = np.pad(x, (*((t // 2, t - t // 2) for t in total), (0, 0)))
    y = np.empty((high, wide, layer.features))
    for i in range(high):
        for j in range(wide):
            a, b = i * layer.stride, j * layer.stride
            patch = x[a : a + layer.kernel, b : b + layer.kernel].astype(np.float64)
            y[i, j] = np.tensordot(patch, weights.w, 3) + weights.b
    return np.maximum(y, 0) if layer.relu else y


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("layer", "shape"), [(k, v) for k, v in LAYERS.items() if isinstance(k, Conv)], ids=str)
def test_a_convolution_is_one_by_its_definition(layer, shape, relu):
    layer = layer._replace(relu=relu)
    (weights,) = some_weights((layer,), shape)
    got = network((layer,), Box(shape)).apply((weights,), given(shape))
    np.testing.assert_allclose(got, reference_conv(layer, given(shape), weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "shape"), [(k, v) for k, v in LAYERS.items() if isinstance(k, LayerNorm)], ids=str)
def test_a_layer_norm_is_one_by_its_definition(layer, shape):
    """Along the last axis alone, with the variance of all n, not n - 1."""
    (weights,), x = some_weights((layer,), shape), 3 * given(shape, seed=9) + 5
    wide = x.astype(np.float64)
    unit = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + layer.eps)
    got = network((layer,), Box(shape)).apply((weights,), x)
    np.testing.assert_allclose(got, unit * weights.w + weights.b, rtol=1e-4, atol=1e-4)


def test_a_layer_norm_starts_as_the_plain_normalisation_and_takes_a_constant():
    net = network((LayerNorm(),), Box((4,)))
    params = net.init(KEY)
    np.testing.assert_array_equal(params[0], [[1] * 4, [0] * 4])
    np.testing.assert_array_equal(net.apply(params, np.full(4, 7, np.float32)), 0)  # no variance: eps keeps it finite


def test_normalised_layers_are_those_before_a_relu():
    assert normalised(minatar_cnn(6)) == (
        Scale(1.0), Conv(16, 3, relu=False), LayerNorm(), Relu(), Flatten(),
        Dense(128, relu=False), LayerNorm(), Relu(), Dense(6, relu=False, gain=1.0),
    )  # fmt: skip
    shapes = [shape for _, shape in weighted(normalised(minatar_cnn(6)), (10, 10, 4))]
    assert shapes == [(3, 3, 4, 16), (16,), (1024, 128), (128,), (128, 6)]


def test_a_max_pool_is_one_by_its_definition():
    x = -abs(given((11, 10, 3)))  # a padding of zeros would show
    padded = np.pad(x, ((1, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    expected = [[padded[i : i + 3, j : j + 3].max((0, 1)) for j in range(0, 10, 2)] for i in range(0, 11, 2)]
    np.testing.assert_array_equal(network((MaxPool(),), Box(x.shape)).apply((), x), expected)


@pytest.mark.parametrize(("shape", "window", "stride"), [((11, 10, 3), 3, 2), ((5, 6, 2), 2, 1), ((8, 8, 1), 2, 2)])
def test_the_gradient_of_a_max_pool_goes_to_the_largest(shape, window, stride):
    x, by = given(shape), given((1000,), seed=1)

    def total(pool):
        return jax.grad(lambda x: jnp.sum(pool(x).reshape(-1) * by[: pool(x).size]))(x)

    def windows(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (window, window, 1), (stride, stride, 1), "SAME")

    pool = network((MaxPool(window, stride),), Box(shape)).apply
    np.testing.assert_allclose(total(lambda x: pool((), x)), total(windows), rtol=1e-5, atol=1e-6)


def test_only_the_gradient_of_convolutions_is_taken_in_parts(monkeypatch):
    def most(layers, *shape):
        return at_once(network(layers, Box(shape, "uint8", 0, 255)))

    assert most(mlp((4096, 4096), 2), 8) is None
    sizes = [most(impala_resnet(6), 84, 84, 4), most(nature_cnn(6), 84, 84, 4), most(small_cnn(6), 42, 42, 4)]
    assert sizes == [8, 20, 86]  # 8 MB of patches of 84x84x3x3x4, 20x20x8x8x4 and 13x13x6x6x4 floats
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert most(impala_resnet(6), 84, 84, 4) is None


@pytest.mark.parametrize("features", range(1, 2 * NARROW))
def test_a_narrow_dense_layer_computes_the_same(features):
    """Up to NARROW columns the product is taken column by column; it and its gradients are a matrix product's."""
    layers = (Dense(features, relu=False),)
    params, x = some_weights(layers, (33,)), given((33,), seed=9)
    apply = network(layers, Box((33,))).apply
    np.testing.assert_allclose(apply(params, x), x @ params[0].w + params[0].b, rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda p: (apply(p, x) ** 2).sum())(params)[0]
    outer = 2 * (x @ params[0].w + params[0].b)
    np.testing.assert_allclose(slope.w, x[:, None] * outer, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope.b, outer, rtol=1e-4, atol=1e-4)


def test_weights_come_in_the_order_of_application():
    """A residual block's before those of the layer after it: layers of different sizes fit only in that order."""
    block = Residual((Conv(2, 1), Residual((Conv(3, 3, padding="SAME"), Conv(2, 2, padding="SAME")))))
    layers = (Conv(2, 2), block, Flatten(), Dense(6), Dense(4, relu=False))
    shapes = [shape for _, shape in weighted(layers, (4, 4, 1))]
    assert shapes == [(2, 2, 1, 2), (1, 1, 2, 2), (3, 3, 2, 3), (2, 2, 3, 2), (18, 6), (6, 4)]
    params = jax.eval_shape(network(layers, Box((4, 4, 1))).init, KEY)
    assert [p.w.shape for p in params] == shapes
    assert [p.b.shape for p in params] == [s[-1:] for s in shapes]
    assert out_features(layers, (4, 4, 1)) == 4

    (first, *inner, hidden, last), x = some_weights(layers, (4, 4, 1)), given((4, 4, 1))
    y = reference_conv(layers[0], x, first)
    z = reference_conv(block.body[0], y, inner[0])
    deepest = block.body[1].body
    z = z + reference_conv(deepest[1], reference_conv(deepest[0], z, inner[1]), inner[2])
    flat = np.maximum((y + z).reshape(-1) @ hidden.w + hidden.b, 0) @ last.w + last.b
    got = jax.jit(network(layers, Box((4, 4, 1))).apply)((first, *inner, hidden, last), x)
    np.testing.assert_allclose(got, flat, rtol=1e-4, atol=1e-3)


def test_known_parameter_counts():
    """Worked out by hand from the papers' figures; Nature's is the 1,687,206 of every Atari DQN with six actions."""
    assert count(mlp((64, 64), 2), Box((4,))) == (4 + 1) * 64 + (64 + 1) * 64 + (64 + 1) * 2
    assert count(minatar_cnn(6), Box((10, 10, 4))) == (9 * 4 + 1) * 16 + (8 * 8 * 16 + 1) * 128 + 129 * 6
    assert count(planes_cnn(6), Box((10, 10, 4))) == (9 * 4 + 1) * 16 + (1600 + 1) * 6
    assert count(nature_cnn(6), FRAMES) == 8_224 + 32_832 + 36_928 + 1_606_144 + 3_078 == 1_687_206
    stacks = [(9 * a + 1) * b + 4 * (9 * b + 1) * b for a, b in ((4, 16), (16, 32), (32, 32))]
    assert count(impala_resnet(6), FRAMES) == sum(stacks) + (11 * 11 * 32 + 1) * 256 + 257 * 6 == 1_090_774


@pytest.mark.parametrize("width", [1, 2])
def test_impala_is_as_deep_as_in_the_paper(width):
    """The 15 layers of Espeholt et al. 2018 are convolutions: 3 stacks of 1 + 2 x 2; two dense layers follow."""
    layers = [layer for layer, _ in weighted(impala_resnet(6, width), FRAMES.shape)]
    assert [type(layer) for layer in layers] == [Conv] * 15 + [Dense] * 2
    assert [layer.features for layer in layers[:15]] == [16 * width] * 5 + [32 * width] * 10


@pytest.mark.parametrize(
    "layers", [minatar_cnn(6), nature_cnn(6), impala_resnet(6)], ids=["minatar", "nature", "impala"]
)
def test_pixels_become_floats(layers):
    obs = FRAMES if layers[0] == Scale(1 / 255) else Box((10, 10, 4), "bool", 0, 1)
    net = network(layers, obs)
    out = jax.eval_shape(lambda x: net.apply(net.init(KEY), x), jax.ShapeDtypeStruct(obs.shape, obs.dtype))
    assert (out.shape, out.dtype) == ((6,), jnp.float32)


def test_weights_start_orthogonal_and_biases_at_zero():
    layers = (Conv(8, 3, gain=0.5), Flatten(), Dense(40), Dense(40), Dense(3, relu=False, gain=0.01))
    params = network(layers, Box((6, 6, 2))).init(KEY)
    for (layer, _), (w, b) in zip(weighted(layers, (6, 6, 2)), params, strict=True):
        assert w.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(b, 0)
        flat = np.asarray(w).reshape(-1, w.shape[-1])
        gram = flat.T @ flat if flat.shape[0] >= flat.shape[1] else flat @ flat.T
        np.testing.assert_allclose(gram, layer.gain**2 * np.eye(len(gram)), atol=1e-5 * max(layer.gain, 1) ** 2)


def test_layers_of_one_shape_start_differently():
    params = network(mlp((16, 16, 16), 16), Box((16,))).init(KEY)
    for i, a in enumerate(params):
        for b in params[i + 1 :]:
            assert (a.w != b.w).all()


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (40, 40), (3, 3, 2, 8), (5, 1), (1, 5)])
def test_orthogonal_weights_are_those_of_jaxs_initializer(shape):
    expected = jax.nn.initializers.orthogonal(1.0)(KEY, shape, jnp.float32)
    np.testing.assert_allclose(orthogonal(KEY, shape), expected, atol=2e-6)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((9, 9), 3, 1), ((84, 84), 8, 4), ((21, 20), 4, 2), ((11, 8), 3, 2)]
)
def test_a_convolution_is_xlas_own(size, kernel, stride, padding):
    """With its gradients; also where the image's end is not used, and where the kernel is no multiple of the stride."""
    x = jax.random.normal(jax.random.key(0), (*size, 3))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, 3, 5))
    dimensions = ("NHWC", "HWIO", "NHWC")

    def reference(x, w):
        return jax.lax.conv_general_dilated(x[None], w, (stride, stride), padding, dimension_numbers=dimensions)[0]

    @partial(jax.jit, static_argnums=0)
    def both(conv, x, w):
        return conv(x, w), jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w))), (0, 1))(x, w)

    got, expected = both(lambda x, w: convolution(x, w, stride, padding), x, w), both(reference, x, w)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        # sums of products that are as large as the largest of them: what is small among them is a difference
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("shape", "chosen", "points"),
    [((10, 10, 4), minatar_cnn, 8 * 8), ((42, 42, 4), small_cnn, 5 * 5), ((84, 84, 4), nature_cnn, 7 * 7)],
)
def test_the_network_of_pictures_goes_by_their_size_and_leaves_more_than_a_point_of_them(shape, chosen, points):
    layers = torso("auto", (), Box(shape, "uint8", 0, 255))
    assert layers == chosen(1)[:-1]
    filters = layers[: layers.index(Flatten())]
    height, width, _ = out_shape_of(filters, shape)
    assert height * width == points


def out_shape_of(layers, shape):
    for layer in layers:
        shape = out_shape(layer, shape)
    return shape
