"""Policy and value networks, each described by its layers so that pruners, engines and exporters can read them.

The layer records import nothing; JAX is loaded only by `network`. Weights are a flat tuple of `Linear`, one for each
layer that has any, in the order in which the layers are applied (a `Residual` is entered before the layer after it).

The walk of an observation to a gradient goes on in `distributions.py`, `sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import accumulate
from math import prod, sqrt
from typing import Any, NamedTuple

from .types import Box, Linear, Network


class Dense(NamedTuple):
    features: int
    relu: bool = True
    gain: float = sqrt(2)  # of the orthogonal initialisation


class Conv(NamedTuple):
    """A square convolution over [height, width, channels]; padding is "VALID" or "SAME"."""

    features: int
    kernel: int
    stride: int = 1
    padding: str = "VALID"
    relu: bool = True
    gain: float = sqrt(2)


class LayerNorm(NamedTuple):
    """Mean 0 and variance 1 along the last axis, then a gain and a bias for each place (Ba et al. 2016).

    Of an image that is at every pixel by itself, over the channels, as in Gallici et al. 2024.
    """

    eps: float = 1e-6  # beside the variance


class MaxPool(NamedTuple):
    """A square max-pool with "SAME" padding."""

    window: int = 3
    stride: int = 2


class Relu(NamedTuple):
    pass


class Flatten(NamedTuple):
    """Row-major: [height, width, channels] to one axis, channels fastest."""


class Scale(NamedTuple):
    """Multiply by a constant, after a cast to the weights' dtype: what pixels need."""

    by: float


class Residual(NamedTuple):
    """x + body(x)."""

    body: tuple


NARROW = 4  # columns

Layer = Dense | Conv | LayerNorm | MaxPool | Relu | Flatten | Scale | Residual
Layers = tuple  # of Layer


def out_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (without batch) that `layer` makes of `shape`."""
    match layer:
        case Dense(features):
            return (features,)
        case Conv(features, kernel, stride, padding):
            side = (lambda n: (n - kernel) // stride + 1) if padding == "VALID" else (lambda n: -(-n // stride))
            return (side(shape[0]), side(shape[1]), features)
        case MaxPool(_, stride):
            return (-(-shape[0] // stride), -(-shape[1] // stride), shape[2])
        case Flatten():
            return (prod(shape),)
        case _:
            return shape


def weighted(layers: Layers, shape: tuple[int, ...]) -> Iterator[tuple[Dense | Conv | LayerNorm, tuple[int, ...]]]:
    """Each layer that has weights, with the shape of its `w`, in their order; `shape` is the observation's."""
    for layer in layers:
        match layer:
            case Dense(features):
                yield layer, (shape[0], features)
            case Conv(features, kernel):
                yield layer, (kernel, kernel, shape[-1], features)
            case LayerNorm():
                yield layer, shape[-1:]
            case Residual(body):
                yield from weighted(body, shape)
        shape = out_shape(layer, shape)


def out_features(layers: Layers, shape: tuple[int, ...]) -> int:
    for layer in layers:
        shape = out_shape(layer, shape)
    return shape[0]


def orthogonal(key, shape: tuple[int, ...]):
    """A random float32 array whose columns, or rows if those are fewer, are orthonormal over all but the last axis.

    By Gram and Schmidt, each column twice; the same matrix as `jax.nn.initializers.orthogonal` but for rounding. That
    one calls LAPACK, and a program that begins the networks of several seeds at once then hung in one of three runs on
    two cores (jax 0.10.2): the calls wait for each other's threads.
    """
    import jax
    import jax.numpy as jnp

    rows, cols = prod(shape[:-1]), shape[-1]
    drawn = jax.random.normal(key, (max(rows, cols), min(rows, cols)), jnp.float32)

    def column(i, q):
        v, earlier = q[:, i], jnp.arange(q.shape[1]) < i
        for _ in range(2):
            v = v - q @ jnp.where(earlier, v @ q, 0.0)
        return q.at[:, i].set(v / jnp.sqrt(v @ v))

    q = jax.lax.fori_loop(0, drawn.shape[1], column, drawn)
    return (q if rows >= cols else q.T).reshape(shape)


def by_xla(x, w, stride: int, padding: str):
    """`convolution` as XLA has it."""
    import jax

    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], w, (stride, stride), padding, dimension_numbers=dimensions)[0]


def convolution(x, w, stride: int, padding: str):
    """The convolution of one image [height, width, in] with w [kernel, kernel, in, out]; [height', width', out].

    On a CPU as a product of patches and weights for each row of the kernel: XLA's own loses its fast path inside of a
    loop (jax issue 12868), and every update is inside of one. `benchmarks/picture_update.py` compares them.
    """
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        return by_xla(x, w, stride, padding)
    kernel, channels = w.shape[0], x.shape[-1]
    blocks = -(-kernel // stride)  # that a kernel touches on a side, if the image is cut in blocks of stride x stride

    def edges(size: int) -> tuple[int, tuple[int, int, int]]:
        """(outputs, padding) of one side: zeros before, after (below none if the end is not used) and between."""
        outputs = -(-size // stride) if padding == "SAME" else (size - kernel) // stride + 1
        before = max((outputs - 1) * stride + kernel - size, 0) // 2 if padding == "SAME" else 0
        return outputs, (before, (outputs - 1 + blocks) * stride - before - size, 0)

    (high, rows), (wide, columns) = edges(x.shape[0]), edges(x.shape[1])
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), (rows, columns, (0, 0, 0)))
    # all that one block holds becomes its channels, so that the stride is 1
    x = x.reshape(high - 1 + blocks, stride, wide - 1 + blocks, stride, channels).swapaxes(1, 2)
    x = x.reshape(high - 1 + blocks, wide - 1 + blocks, -1)
    rest = blocks * stride - kernel
    w = jnp.pad(w, ((0, rest), (0, rest), (0, 0), (0, 0)))
    w = w.reshape(blocks, stride, blocks, stride, channels, -1).swapaxes(1, 2)
    w = w.reshape(blocks, -1, w.shape[-1])
    rows_of = [jnp.concatenate([x[i : i + high, j : j + wide] for j in range(blocks)], -1) for i in range(blocks)]
    return reduce(jnp.add, [part @ w[i] for i, part in enumerate(rows_of)])


def pooled(x, window: int, stride: int):
    """The largest of each window of an image [height, width, channels], with "SAME" padding.

    Rows, then columns, as maxima of slices, whose gradient is cheaper than that of XLA's windows.
    """
    import jax
    import jax.numpy as jnp

    for axis in (0, 1):
        size = x.shape[axis]
        outputs = -(-size // stride)
        missing = max((outputs - 1) * stride + window - size, 0)
        ends = [(0, 0, 0)] * 3
        ends[axis] = (missing // 2, missing - missing // 2, 0)
        x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), ends)
        taken = [jax.lax.slice_in_dim(x, i, i + (outputs - 1) * stride + 1, stride, axis=axis) for i in range(window)]
        x = reduce(jnp.maximum, taken)
    return x


CACHE = 8 * 2**20  # bytes of patches that are still quick to reach


def at_once(net: Network) -> int | None:
    """How many observations a gradient takes at a time; None for all of them, which is best but for convolutions on a
    CPU: patches repeat a picture, and those of a whole batch leave its cache.
    """
    import jax

    def patches(layers: Layers, shape: tuple[int, ...]) -> Iterator[int]:
        for layer in layers:
            match layer:
                case Conv(_, kernel):
                    yield prod(out_shape(layer, shape)[:2]) * kernel * kernel * shape[-1] * 4
                case Residual(body):
                    yield from patches(body, shape)
            shape = out_shape(layer, shape)

    most = max(patches(net.layers or (), net.obs.shape), default=0)
    return max(CACHE // most, 1) if most and jax.default_backend() == "cpu" else None


def network(layers: Layers, obs: Box) -> Network:
    """The network made of `layers`; `apply` takes one observation and ignores its key.

    It computes in the dtype of its weights, save for the moments of a LayerNorm, and gives float32. Weights start
    orthogonal with each layer's gain (Saxe et al. 2014), those of a LayerNorm at one, biases at zero.
    """
    import jax
    import jax.numpy as jnp

    def init(key):
        specs = list(weighted(layers, obs.shape))
        keys = jax.random.split(key, len(specs))
        return tuple(
            Linear(start(k, layer, shape), jnp.zeros(shape[-1], jnp.float32))
            for k, (layer, shape) in zip(keys, specs, strict=True)
        )

    def start(key, layer, shape):
        return jnp.ones(shape, jnp.float32) if isinstance(layer, LayerNorm) else layer.gain * orthogonal(key, shape)

    def conv(layer: Conv, x, weights: Linear):
        y = convolution(x, weights.w, layer.stride, layer.padding)
        return y + weights.b[None, None]

    def norm(layer: LayerNorm, x, weights: Linear):
        x = x.astype(jnp.float32)  # whose squares cannot overflow
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + layer.eps)
        x = x.astype(weights.w.dtype)
        lead = (1,) * (x.ndim - 1)
        return x * weights.w.reshape(*lead, -1) + weights.b.reshape(*lead, -1)

    def matvec(x, w):
        # A narrow matrix as a dot product for each column: of small networks an update then takes 0.85 times as long.
        return jnp.stack([x @ column for column in w.T]) if w.shape[1] <= NARROW else x @ w

    def walk(layers, params: Iterator[Linear], x, dtype):
        for layer in layers:
            match layer:
                case Dense(_, relu):
                    weights = next(params)
                    x = matvec(x, weights.w) + weights.b
                    x = jax.nn.relu(x) if relu else x
                case Conv():
                    x = conv(layer, x, next(params))
                    x = jax.nn.relu(x) if layer.relu else x
                case LayerNorm():
                    x = norm(layer, x, next(params))
                case MaxPool(window, stride):
                    x = pooled(x, window, stride)
                case Relu():
                    x = jax.nn.relu(x)
                case Flatten():
                    x = x.reshape(-1)
                case Scale(by):
                    x = x.astype(dtype) * by
                case Residual(body):
                    x = x + walk(body, params, x, dtype)
        return x

    def apply(params, x, key=None):
        dtype = params[0].w.dtype if params else jnp.float32
        x = x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return walk(layers, iter(params), x, dtype).astype(jnp.float32)

    return Network(init, apply, obs, layers)


class Form(NamedTuple):
    """What is learned in place of the weights of a network's layers, and how those are made of it.

    An actor runs plain layers, whatever is learned: engines, compressors and exporters know nothing of forms.
    """

    init: Callable[[Any], Any]  # key -> params
    weights: Callable[[Any, Any], tuple[Linear, ...]]  # (params, key) -> weights; key None: without noise


def plain(layers: Layers, obs: Box) -> Form:
    """The weights themselves."""
    return Form(network(layers, obs).init, lambda params, key: params)


def absorbed(weights: tuple[Linear, ...], mean, scale) -> tuple[Linear, ...]:
    """The weights that take x [n], and give what `weights` give of (x - mean) * scale; `mean` and `scale` are [n]."""
    first = weights[0]
    mean, scale = mean.astype(first.w.dtype), scale.astype(first.w.dtype)
    return (Linear(first.w * scale[:, None], first.b - (mean * scale) @ first.w), *weights[1:])


def released(weights: tuple[Linear, ...], mean, scale) -> tuple[Linear, ...]:
    """What `absorbed` made `weights` of."""
    return absorbed(weights, -mean * scale, 1 / scale)


class Inputs(NamedTuple):
    """What takes observations to what a network learns from: (x - mean) * scale, float32 [n] each."""

    mean: Any
    scale: Any


def to_unit(obs: Box, most: tuple[float, ...] = ()) -> Inputs:
    """From the bounds of a vector to -1 and 1; what has none stays what it is.

    `most` are other bounds: the size that each number is taken to have at most. Raises ValueError for pictures, and for
    `most` of another length or not above 0.
    """
    import numpy as np

    if len(obs.shape) != 1:
        raise ValueError(f"rescale_obs=true is for observations that are vectors, not of shape {obs.shape}")
    if most and (len(most) != obs.shape[0] or not all(0 < size < UNBOUNDED for size in most)):
        raise ValueError(f"obs_bounds must be {obs.shape[0]} numbers above 0, one for each of the observation")
    sides = (np.negative(most), most) if most else (obs.low, obs.high)
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), obs.shape) for bound in sides)
    bounded = (low > -UNBOUNDED) & (high < UNBOUNDED) & (low < high)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return Inputs(np.float32((low + high) / 2), np.float32(2 / (high - low)))


UNBOUNDED = 1e30  # some environments say so by the largest float


def rescaled(form: Form, inputs: Inputs) -> Form:
    """`form` for a network that is to take observations as they are, and learns as from `inputs`."""
    return Form(form.init, lambda params, key: absorbed(form.weights(params, key), *inputs))


class NoisyLinear(NamedTuple):
    """The weights of a dense layer, and how far noise moves each."""

    w: Any
    b: Any
    w_std: Any
    b_std: Any


def noisy(form: Form, std: float) -> Form:
    """Factorised noise in the weights of dense layers (Fortunato et al. 2018, arXiv 1706.10295, equations 9 to 11).

    Its size is learned, and starts at `std` / sqrt(inputs); a key draws it, for all observations of a call. Means start
    as those of `form`. Convolutions and normalisations have none, as in the paper.
    """
    import jax
    import jax.numpy as jnp

    def init(key):
        def one(layer: Linear) -> Linear | NoisyLinear:
            if layer.w.ndim != 2:
                return layer
            size = std / sqrt(layer.w.shape[0])
            return NoisyLinear(*layer, jnp.full_like(layer.w, size), jnp.full_like(layer.b, size))

        return tuple(map(one, form.init(key)))

    def shaped(key, size: int):
        """Normal noise, the square root of its size: [size]."""

        def half(key):
            drawn = jax.random.normal(key, (-(-size // 2),))
            return jnp.sign(drawn) * jnp.sqrt(jnp.abs(drawn))

        # in a loop, or XLA draws it anew for every weight that it multiplies: 450 us instead of 15 for 64x64
        return jax.lax.map(half, jax.random.split(key)).reshape(-1)[:size]

    def sides(layer: Linear | NoisyLinear) -> int:
        return sum(layer.w.shape) if isinstance(layer, NoisyLinear) else 0

    def moved(layer: Linear | NoisyLinear, noise) -> Linear:
        if isinstance(layer, Linear):
            return layer
        noise = noise.astype(layer.w.dtype)
        rows, columns = noise[: layer.w.shape[0]], noise[layer.w.shape[0] :]
        return Linear(layer.w + layer.w_std * jnp.outer(rows, columns), layer.b + layer.b_std * columns)

    def weights(params, key):
        if key is None:
            return form.weights(tuple(Linear(layer.w, layer.b) for layer in params), None)
        ends = list(accumulate(map(sides, params)))
        drawn = jnp.split(shaped(key, ends[-1]), ends[:-1])
        return form.weights(tuple(map(moved, params, drawn)), None)

    return Form(init, weights)


def frozen(form: Form) -> Form:
    """`form` with one draw of its noise for ever, the same wherever it is used: what Revisiting Rainbow's code had."""
    import jax

    return Form(form.init, lambda params, key: form.weights(params, jax.random.key(0)))


def dueling(form: Form, numbers: int = 1) -> Form:
    """A value and an advantage of each action: V + A - mean A (Wang et al. 2016, arXiv 1511.06581, equation 9).

    The last layer of `form` has outputs for one action more, the first of them V; `numbers` outputs are about one
    action. Both streams are linear in the last features, as in Dopamine's Rainbow, so that together they are one layer.
    """
    import jax.numpy as jnp

    def joined(x):
        """[..., (1 + actions) * numbers] -> [..., actions * numbers]."""
        parts = x.reshape(*x.shape[:-1], -1, numbers)
        value, advantage = parts[..., :1, :], parts[..., 1:, :]
        return (value + advantage - jnp.mean(advantage, -2, keepdims=True)).reshape(*x.shape[:-1], -1)

    def weights(params, key):
        *below, last = form.weights(params, key)
        return (*below, Linear(joined(last.w), joined(last.b)))

    return Form(form.init, weights)


COSINES = 64  # that a fraction is embedded in


def embedding(form: Form, features: int) -> Form:
    """`form` with the weights of an embedding of fractions in front of its own, for `embedded`."""
    import jax

    layer = plain((Dense(features),), Box((COSINES,)))

    def init(key):
        key_own, key_embedding = jax.random.split(key)
        return (*layer.init(key_embedding), *form.init(key_own))

    return Form(init, lambda params, key: (params[0], *form.weights(params[1:], key)))


def embedded(weights: tuple[Linear, ...], fractions) -> tuple[Linear, ...]:
    """The weights of plain layers that give, for each action, a number for each of `fractions` [n].

    A fraction becomes cosines and these, in a dense layer whose weights come first, factors of the last layer's inputs
    (Dabney et al. 2018, arXiv 1806.06923, equation 4): as its features w and the factors f only meet in products f w,
    (f * x) @ w is x @ (f * w).
    """
    import jax
    import jax.numpy as jnp

    (w, b), *below, last = weights
    angles = jnp.pi * fractions[:, None] * jnp.arange(1, COSINES + 1, dtype=jnp.float32)[None]
    factors = jax.nn.relu(jnp.cos(angles).astype(w.dtype) @ w + b[None])  # [n, features]
    each = last.w[:, :, None] * factors.T[:, None, :]
    return (*below, Linear(each.reshape(each.shape[0], -1), jnp.repeat(last.b, len(fractions))))


def normalised(layers: Layers) -> Layers:
    """`layers` with a LayerNorm between each product and its ReLU."""

    def one(layer: Layer) -> Layers:
        if isinstance(layer, Residual):
            return (Residual(normalised(layer.body)),)
        rectified = isinstance(layer, Dense | Conv) and layer.relu
        return (layer._replace(relu=False), LayerNorm(), Relu()) if rectified else (layer,)

    return tuple(part for layer in layers for part in one(layer))


def mlp(hidden: tuple[int, ...], out: int, out_gain: float = 1.0) -> Layers:
    """A multi-layer perceptron on a vector; ReLU between, none at the end."""
    return (*(Dense(width) for width in hidden), Dense(out, relu=False, gain=out_gain))


def minatar_cnn(out: int) -> Layers:
    """16 3x3 filters and 128 units on 10x10 planes (Young and Tian 2019, arXiv 1903.03176)."""
    return (Scale(1.0), Conv(16, 3), Flatten(), Dense(128), Dense(out, relu=False, gain=1.0))


def planes_cnn(out: int) -> Layers:
    """16 3x3 filters over all of the 10x10 planes, and nothing below the outputs but these 1600 features (Obando-Ceron
    and Castro 2021, arXiv 2011.14826, its code).
    """
    return (Scale(1.0), Conv(16, 3, padding="SAME"), Flatten(), Dense(out, relu=False, gain=1.0))


def nature_cnn(out: int) -> Layers:
    """The convolutional network of Mnih et al. 2015 on uint8 frames [84, 84, stack]."""
    return (
        Scale(1 / 255),
        Conv(32, 8, 4),
        Conv(64, 4, 2),
        Conv(64, 3, 1),
        Flatten(),
        Dense(512),
        Dense(out, relu=False, gain=1.0),
    )


def small_cnn(out: int) -> Layers:
    """The network of Mnih et al. 2013 with a finer first layer, for pictures of about 42x42: of those the strides of
    the Nature network leave a single point.
    """
    return (Scale(1 / 255), Conv(16, 6, 3), Conv(32, 4, 2), Flatten(), Dense(256), Dense(out, relu=False, gain=1.0))


def impala_resnet(out: int, width: int = 1) -> Layers:
    """The 15-layer residual network of Espeholt et al. 2018 (figure 3), its channels times `width`."""

    def stack(channels: int) -> Layers:
        block = Residual((Relu(), Conv(channels, 3, padding="SAME"), Conv(channels, 3, padding="SAME", relu=False)))
        return (Conv(channels, 3, padding="SAME", relu=False), MaxPool(), block, block)

    body = (layer for channels in (16, 32, 32) for layer in stack(channels * width))
    return (Scale(1 / 255), *body, Relu(), Flatten(), Dense(256), Dense(out, relu=False, gain=1.0))


def torso(name: str, hidden: tuple[int, ...], obs: Box) -> Layers:
    """The layers below the last, by name: "mlp" of `hidden`, "minatar", "planes", "small", "nature", "impala", or, by
    the shape of observations, "auto". Raises ValueError for a name that does not exist or does not fit.
    """
    pixels = {"minatar": minatar_cnn, "planes": planes_cnn, "small": small_cnn, "nature": nature_cnn}
    pixels["impala"] = impala_resnet
    if name == "auto":
        size = min(obs.shape[:2])
        name = "mlp" if len(obs.shape) == 1 else "minatar" if size < 16 else "small" if size < 64 else "nature"
    if name not in ("mlp", *pixels):
        raise ValueError(f"network={name!r} does not exist; there are: auto, mlp, {', '.join(pixels)}")
    if len(obs.shape) != (1 if name == "mlp" else 3):
        kind = "vectors" if name == "mlp" else "images [height, width, channels]"
        raise ValueError(f"network={name!r} is for observations that are {kind}, not of shape {obs.shape}")
    return tuple(Dense(width) for width in hidden) if name == "mlp" else pixels[name](1)[:-1]
