"""Plain NumPy: needs no other package and rounds nothing, so it is the reference for the other engines.

A network becomes a list of steps between buffers that are allocated once. In every mode the weights are made float32
when loaded, so it computes exactly what `Compressor.decode` stands for, at the speed of fp32. How many
threads a large product takes is up to the BLAS library, which reads OPENBLAS_NUM_THREADS when NumPy is first
imported.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ....networks import Conv, Dense, Flatten, LayerNorm, Layers, MaxPool, Relu, Residual, Scale, out_shape, weighted
from ....types import Box, Engine, Linear, Session
from .shared import input_dtype, put, same_padding, unloaded, widened, with_cast

Step = Callable[[], object]


def build(layers: Layers, obs: Box, batch: int, mode: str) -> Session:
    shapes = [shape for _, shape in weighted(layers, obs.shape)]
    weights = tuple(Linear(np.empty(s, np.float32), np.empty(s[-1], np.float32)) for s in shapes)
    x = np.empty((batch, *obs.shape), input_dtype(obs))
    steps: list[Step] = []
    y = _plan(steps, with_cast(layers, obs), iter(weights), x)
    call = unloaded

    def load(new: tuple) -> None:
        nonlocal call
        for old, layer in zip(weights, widened(new, mode), strict=True):
            np.copyto(old.w, layer.w)
            np.copyto(old.b, layer.b)
        call = run

    def run(obs: np.ndarray) -> np.ndarray:
        put(x, obs)
        for step in steps:
            step()
        return y.copy()

    return Session(load, lambda obs: call(obs))


def _plan(steps: list[Step], layers: Layers, weights: Iterator[Linear], x: np.ndarray) -> np.ndarray:
    """Appends the steps that take buffer `x` through `layers`; returns the buffer in which the result will lie."""
    for layer in layers:
        y = np.empty((len(x), *out_shape(layer, x.shape[1:])), np.float32)
        match layer:
            case Dense():
                steps.append(_affine(x, next(weights), y, layer.relu))
            case Conv():
                steps.extend(_conv(layer, x, next(weights), y))
            case LayerNorm(eps):
                steps.append(_norm(x, next(weights), y, np.float32(eps)))
            case MaxPool():
                steps.extend(_max_pool(layer, x, y))
            case Relu():
                steps.append(lambda x=x, y=y: np.maximum(x, 0, out=y))
            case Flatten():
                y = x.reshape(len(x), -1)
            case Scale(by):
                factor = np.float32(by)
                steps.append(lambda x=x, y=y, factor=factor: np.multiply(x, factor, out=y, dtype=np.float32))
            case Residual(body):
                inner = _plan(steps, body, weights, x)
                steps.append(lambda x=x, y=y, inner=inner: np.add(x, inner, out=y))
        x = y
    return x


def _affine(x: np.ndarray, weights: Linear, y: np.ndarray, relu: bool) -> Step:
    w, b = weights.w.reshape(-1, y.shape[-1]), weights.b

    def linear() -> None:
        np.dot(x, w, out=y)
        np.add(y, b, out=y)

    def rectified() -> None:
        linear()
        np.maximum(y, 0, out=y)

    return rectified if relu else linear


def _norm(x: np.ndarray, weights: Linear, y: np.ndarray, eps: np.float32) -> Step:
    square, size = np.empty_like(y), np.empty((*y.shape[:-1], 1), np.float32)

    def norm() -> None:
        np.mean(x, -1, out=size, keepdims=True)
        np.subtract(x, size, out=y)
        np.multiply(y, y, out=square)
        np.mean(square, -1, out=size, keepdims=True)
        np.sqrt(np.add(size, eps, out=size), out=size)
        np.divide(y, size, out=y)
        np.multiply(y, weights.w, out=y)
        np.add(y, weights.b, out=y)

    return norm


def _conv(layer: Conv, x: np.ndarray, weights: Linear, y: np.ndarray) -> Iterator[Step]:
    """A convolution as one matrix product over patches."""
    if layer.padding == "SAME":
        x = yield from _padded(x, layer.kernel, layer.stride, 0.0)
    windows = sliding_window_view(x, (layer.kernel, layer.kernel), (1, 2))[:, :: layer.stride, :: layer.stride]
    windows = windows.transpose(0, 1, 2, 4, 5, 3)  # as the weights: height, width, channels in
    patches = np.empty(windows.shape, np.float32)
    yield lambda: np.copyto(patches, windows)
    yield _affine(patches.reshape(y.size // y.shape[-1], -1), weights, y.reshape(-1, y.shape[-1]), layer.relu)


def _max_pool(layer: MaxPool, x: np.ndarray, y: np.ndarray) -> Iterator[Step]:
    """The maximum of shifted copies: for small windows far faster than a maximum over windows."""
    x = yield from _padded(x, layer.window, layer.stride, -np.inf)
    high, wide = (layer.stride * (n - 1) + 1 for n in y.shape[1:3])
    window = range(layer.window)
    shifted = [x[:, i : i + high : layer.stride, j : j + wide : layer.stride] for i in window for j in window]
    yield lambda: np.copyto(y, shifted[0])
    for other in shifted[1:]:
        yield lambda other=other: np.maximum(y, other, out=y)


def _padded(x: np.ndarray, window: int, stride: int, value: float) -> Generator[Step, None, np.ndarray]:
    """Yields the step that copies `x` into the middle of a larger buffer; returns that buffer."""
    (top, bottom), (left, right) = (same_padding(size, window, stride) for size in x.shape[1:3])
    larger = np.pad(np.zeros_like(x), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)
    middle = larger[:, top : top + x.shape[1], left : left + x.shape[2]]
    yield lambda: np.copyto(middle, x)
    return larger


ENGINE = Engine("numpy", ("fp32", "bf16", "int8", "int8-static"), lambda: None, build)
