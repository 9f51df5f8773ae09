"""Writes a network as a LiteRT model (a flatbuffer), without TensorFlow, and puts new weights into it where they lie.

Built with the object API that ships with `ai_edge_litert`. In mode "int8" the weights, but for a first layer that reads
a vector (`quantise.whole`), are int8 with one scale per output and everything else is float32: LiteRT then quantises
the activations of each observation when it runs ("dynamic range"), so nothing needs calibrating and a row never depends
on the other rows of its batch.

In mode "int8-static" activations are int8 too, from the first int8 layer to the outputs, with a scale and a
zero point for each tensor that come from the packet's `Ranges` (Jacob et al. 2018, arXiv 1712.05877): products add up
in int32 and leave as int8, ReLU included. Outputs thus lie on 256 steps, which all of them share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ....networks import Conv, Dense, Flatten, LayerNorm, Layers, MaxPool, Relu, Residual, Scale, out_shape
from ....types import Box, QuantLinear, Ranges
from ..quantise import whole
from .shared import INT8, input_dtype, with_cast

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}
_OPS = schema.BuiltinOperator
# The first version of each operator that takes int8 weights, one scale per output: with float32 activations, and with
# int8 ones.
_INT8_VERSION = {_OPS.CONV_2D: 5, _OPS.FULLY_CONNECTED: 9}
_STATIC_VERSION = {_OPS.CONV_2D: 3, _OPS.FULLY_CONNECTED: 12}
_DTYPES = {code: dtype for dtype, code in _TYPES.items()}
_LEAST = -128
_STEPS = 255  # between the least and the greatest int8
_FINEST = 1 / 128  # of the step of a product's inputs is the finest of its outputs: XNNPACK refuses 1/256
_LARGEST_BIAS = 2**30  # in steps of int32: half of what there is
_STRIP, _LINE = 64, 64  # rows that are turned at a time, and bytes of a cache line


class Activation(NamedTuple):
    """Writable views of how some int8 tensors, which all hold the same values, are to be read."""

    scales: tuple[np.ndarray, ...]  # float32 [1] each
    zeros: tuple[np.ndarray, ...]  # int64 [1] each
    point: int | None  # which entry of Ranges says it; None if it is fixed, as that of pixels
    source: int | None  # which layer's weights make it, if any do


class Slot(NamedTuple):
    """Writable views of one layer's weights inside a model."""

    w: np.ndarray  # [out, in] or [out, height, width, in]; float32 or int8
    scale: np.ndarray | None  # float32 [out], for int8
    b: np.ndarray  # float32 [out]; int32 where its inputs are int8
    step: np.ndarray | None  # float32 [out], of int32 biases
    x_scale: np.ndarray | None  # float32 [1], of int8 inputs


class Template(NamedTuple):
    """A model whose weights can be replaced in place."""

    data: bytearray
    slots: tuple[Slot, ...]  # in the order of the weights
    activations: tuple[Activation, ...]  # in the order in which they are computed


def template(layers: Layers, obs: Box, batch: int, mode: str, notes: dict[str, str] | None = None) -> Template:
    """A model for `batch` observations with all weights zero; `notes` go into its metadata."""
    graph = _Graph(mode)
    x = graph.input((batch, *obs.shape), input_dtype(obs))
    y = graph.as_float(_layers(graph, with_cast(layers, obs), x, (batch, *obs.shape)))
    graph.note(notes or {})
    data = graph.pack(x, y)
    return Template(data, *_views(data, graph))


def fill(model: Template, weights: tuple) -> None:
    """Writes `weights` (NumPy arrays, of the template's mode) over those of the template."""
    layers = [layer for layer in weights if not isinstance(layer, Ranges)]
    if model.activations:
        _calibrate(model, layers, weights[-1])
    for slot, layer in zip(model.slots, layers, strict=True):
        _turned(layer[0], slot.w)
        if slot.scale is not None:
            np.copyto(slot.scale, layer.scale)
        if slot.step is None:
            np.copyto(slot.b, layer.b)
        else:
            np.copyto(slot.b, np.rint(layer.b / slot.step), casting="unsafe")


def _turned(w: np.ndarray, into: np.ndarray) -> None:
    """Copies weights with their outputs last, as ours have them, to where they come first, as LiteRT has them.

    Strip by strip, each row of a strip a cache line longer than that of `w`: rows of 1024 numbers are a power of two
    apart, where all of a column falls into the same few places of the cache, and the copy takes five times as long.
    """
    rows, columns = w.reshape(-1, w.shape[-1]), into.reshape(w.shape[-1], -1)
    strip = np.empty((_STRIP, w.shape[-1] + _LINE // w.itemsize), w.dtype)[:, : w.shape[-1]]
    for start in range(0, len(rows), _STRIP):
        part = rows[start : start + _STRIP]
        np.copyto(strip[: len(part)], part)
        np.copyto(columns[:, start : start + _STRIP], strip[: len(part)].T)


def _calibrate(model: Template, layers: list, ranges: Ranges) -> None:
    """Writes the scales and zero points that `ranges` stand for, and makes room in `layers` for their biases."""
    for each in model.activations:
        if each.point is None:
            continue
        low, high = ranges.low[each.point], ranges.high[each.point]
        scale = (high - low) / np.float32(_STEPS)
        if each.source is not None:
            slot = model.slots[each.source]
            assert slot.x_scale is not None
            assert slot.step is not None
            layer = layers[each.source] = _with_room(layers[each.source], slot.x_scale)
            np.multiply(slot.x_scale, layer.scale, out=slot.step)
            scale = max(scale, slot.step.max() * np.float32(_FINEST))
        scale = scale if scale > 0 else np.float32(1)
        zero = np.clip(np.rint(_LEAST - low / scale), _LEAST, _LEAST + _STEPS)
        for place, its_zero in zip(each.scales, each.zeros, strict=True):
            place[:], its_zero[:] = scale, zero


def _with_room(layer: QuantLinear, x_scale: np.ndarray) -> QuantLinear:
    """The layer with coarser channels where a bias would not fit into int32, and finer ones where all weights are 0.

    Those have the scale 1, which says nothing about the biases beside them.
    """
    used = np.where(layer.q.any(tuple(range(layer.q.ndim - 1))), layer.scale, np.float32(0))
    scale = np.maximum(used, abs(layer.b) / (x_scale * np.float32(_LARGEST_BIAS)))
    scale = np.maximum(scale, scale.max() * np.float32(2**-20) or np.float32(1))
    q = layer.q
    if (scale > layer.scale).any():
        q = np.rint(q * (layer.scale / scale)).astype(np.int8)
    return QuantLinear(q, scale, layer.b)


def _views(data: bytearray, graph: _Graph) -> tuple[tuple[Slot, ...], tuple[Activation, ...]]:
    """Finds the numbers by walking the flatbuffer with its schema; NumPy views of a bytearray can be written to."""
    model: Any = schema.Model.GetRootAs(data)
    tensors = model.Subgraphs(0).Tensors

    def view(tensor) -> np.ndarray:
        data = model.Buffers(tensor.Buffer()).DataAsNumpy()
        return data.view(_DTYPES[tensor.Type()]).reshape(tensor.ShapeAsNumpy())

    def scale(i: int, of: tuple[int, ...] = (schema.TensorType.INT8, schema.TensorType.INT32)) -> np.ndarray | None:
        return tensors(i).Quantization().ScaleAsNumpy() if tensors(i).Type() in of else None

    def activation(group: _Group) -> Activation:
        parts = [tensors(i).Quantization() for i in group.tensors]
        scales, zeros = (p.ScaleAsNumpy() for p in parts), (p.ZeroPointAsNumpy() for p in parts)
        return Activation(tuple(scales), tuple(zeros), group.point, group.source)

    slots = tuple(Slot(view(tensors(w)), scale(w), view(tensors(b)), scale(b), scale(x)) for x, w, b in graph.weights)
    return slots, tuple(map(activation, graph.groups))


class _Buffer(NamedTuple):
    """Stands in for the generated `BufferT`, which does not align its data to 16 bytes as the schema asks."""

    data: np.ndarray  # uint8

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.Prep(16, self.data.nbytes)
        data = builder.CreateNumpyVector(self.data)
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Group(NamedTuple):
    """Int8 tensors that hold the same values; see Activation."""

    tensors: list[int]
    point: int | None
    source: int | None


class _Graph:
    """A model in the making. Tensors are known by their index."""

    def __init__(self, mode: str):
        self.quantises, self.static = mode in INT8, mode == "int8-static"
        self.weights: list[tuple[int, int, int]] = []  # tensors (x, w, b) of each layer that has weights
        self.groups: list[_Group] = []
        self.points: dict[int, int] = {}  # of what layers make: which entry of Ranges says how far it reaches
        self.reached = 0  # the entry that the layers before this one have come to
        self._tensors: list = []
        self._operators: list = []
        self._buffers: list = [_Buffer(np.zeros(0, np.uint8))]  # by convention the first is empty
        self._codes: dict[tuple[int, int], int] = {}
        self._notes: list = []

    def tensor(
        self, shape, dtype, data: np.ndarray | None = None, scale: np.ndarray | None = None, zero: int = 0, name=""
    ) -> int:
        t: Any = schema.TensorT()
        t.shape, t.type, t.name = list(shape), _TYPES[np.dtype(dtype)], name or f"t{len(self._tensors)}"
        t.buffer = 0 if data is None else self._buffer(data)
        if scale is not None:
            t.quantization = _quantization(scale, zero)
        self._tensors.append(t)
        return len(self._tensors) - 1

    def op(
        self, code: int, inputs: list[int], shape, options: Any = None, version: int = 1, out: int | None = None
    ) -> int:
        """Adds an operator and returns its output: tensor `out`, or a new one of float32."""
        o: Any = schema.OperatorT()
        o.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        o.inputs, o.outputs = inputs, [self.tensor(shape, np.float32) if out is None else out]
        if options is not None:
            o.builtinOptions = options
            o.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(o)
        return o.outputs[0]

    def input(self, shape, dtype: np.dtype) -> int:
        """The model's input; in mode "int8-static" bytes come 128 lower, as int8: LiteRT's own way there is slow."""
        if not self.static or dtype != np.uint8:
            return self.tensor(shape, dtype, name="obs")
        x = self.quantised(shape, None)
        self._tensors[x].name = "obs"
        return x

    def linear(self, code: int, x: int, w_shape: tuple[int, ...], shape, options: Any) -> int:
        """An operator with weights: zeros, to be filled later."""
        out, plain = w_shape[0], not self.quantises or whole(len(self.weights), len(w_shape))
        if plain:
            w = self.tensor(w_shape, np.float32, np.zeros(w_shape, np.float32))
        else:
            w = self.tensor(w_shape, np.int8, np.zeros(w_shape, np.int8), np.ones(out, np.float32))
        if self.static and not plain:
            x, y = self.as_int8(x), self.quantised(shape, self.reached + 1, len(self.weights))
            b = self.tensor((out,), np.int32, np.zeros(out, np.int32), np.ones(out, np.float32))
            self.weights.append((x, w, b))
            return self.op(code, [x, w, b], shape, options, _STATIC_VERSION[code], y)
        x, b = self.as_float(x), self.tensor((out,), np.float32, np.zeros(out, np.float32))
        self.weights.append((x, w, b))
        return self.op(code, [x, w, b], shape, options, 1 if plain else _INT8_VERSION[code])

    def quantised(self, shape, point: int | None, source: int | None = None) -> int:
        """A new int8 tensor, of a group of its own."""
        x = self.tensor(shape, np.int8, scale=np.ones(1, np.float32), zero=_LEAST)
        self.groups.append(_Group([x], point, source))
        return x

    def like(self, x: int, shape) -> int:
        """A new tensor for values that `x` holds too."""
        if not self.is_int8(x):
            return self.tensor(shape, np.float32)
        (group,) = (group for group in self.groups if x in group.tensors)
        group.tensors.append(self.tensor(shape, np.int8, scale=self._tensors[x].quantization.scale, zero=_LEAST))
        return group.tensors[-1]

    def is_int8(self, x: int) -> bool:
        return self._tensors[x].type == schema.TensorType.INT8

    def as_int8(self, x: int) -> int:
        """`x`, which a layer made, quantised."""
        if self.is_int8(x):
            return x
        return self.op(_OPS.QUANTIZE, [x], (), out=self.quantised(self._tensors[x].shape, self.points[x]))

    def as_float(self, x: int) -> int:
        t = self._tensors[x]
        if t.type == schema.TensorType.FLOAT32:
            return x
        version = 2 if self.is_int8(x) else 1
        return self.op(_OPS.DEQUANTIZE, [x], t.shape, schema.DequantizeOptionsT(), version)

    def vectors(self, size: int, x: int) -> tuple[int, int]:
        """The float32 weights (gain, bias) of a normalisation of `x`, in any mode: zeros, to be filled later."""
        gain, bias = (self.tensor((size,), np.float32, np.zeros(size, np.float32)) for _ in range(2))
        self.weights.append((x, gain, bias))
        return gain, bias

    def read_as_quantised(self, x: int, scale: float) -> bool:
        """Declares that the bytes of the input `x` stand for numbers in units of `scale`; False if it is no bytes."""
        t, zeros = self._tensors[x], {schema.TensorType.UINT8: 0, schema.TensorType.INT8: _LEAST}
        bytes_in = x == 0 and t.type in zeros
        if bytes_in:
            t.quantization = _quantization(np.array([scale], np.float32), zeros[t.type])
        return bytes_in

    def note(self, notes: dict[str, str]) -> None:
        for name, text in notes.items():
            m: Any = schema.MetadataT()
            m.name, m.buffer = name, self._buffer(np.frombuffer(text.encode(), np.uint8))
            self._notes.append(m)

    def pack(self, x: int, y: int) -> bytearray:
        """The finished model, from tensor `x` to tensor `y`."""
        graph: Any = schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self._tensors, self._operators, [x], [y]
        self._tensors[y].name = "outputs"
        model: Any = schema.ModelT()
        model.version, model.description = 3, "FrugalRL policy"
        model.subgraphs, model.buffers, model.metadata = [graph], self._buffers, self._notes
        model.operatorCodes = [self._code(code, version) for code, version in self._codes]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytearray(builder.Output())

    def _buffer(self, data: np.ndarray) -> int:
        self._buffers.append(_Buffer(np.ascontiguousarray(data).reshape(-1).view(np.uint8)))
        return len(self._buffers) - 1

    def _code(self, code: int, version: int) -> Any:
        c: Any = schema.OperatorCodeT()
        c.builtinCode, c.version = code, version
        c.deprecatedBuiltinCode = min(code, 127)  # what old readers look at; none of ours is that high
        return c


def _quantization(scale: np.ndarray, zero: int = 0) -> Any:
    """With one scale for all or one for each entry of the first axis; `zero` is what stands for 0."""
    q: Any = schema.QuantizationParametersT()
    q.scale, q.zeroPoint, q.quantizedDimension = scale, np.full(len(scale), zero, np.int64), 0
    return q


def _layers(graph: _Graph, layers: Layers, x: int, shape: tuple[int, ...]) -> int:
    """Adds `layers` after tensor `x` of `shape` (with batch) and returns the last tensor."""
    graph.points[x] = graph.reached
    for layer in layers:
        after = (shape[0], *out_shape(layer, shape[1:]))
        x = _layer(graph, layer, x, shape, after)
        graph.reached += 1
        graph.points[x] = graph.reached
        shape = after
    return x


def _layer(graph: _Graph, layer, x: int, shape: tuple[int, ...], after: tuple[int, ...]) -> int:
    match layer:
        case Dense(features, relu):
            options = schema.FullyConnectedOptionsT()
            options.fusedActivationFunction = _activation(relu)
            return graph.linear(_OPS.FULLY_CONNECTED, x, (features, shape[-1]), after, options)
        case Conv(features, kernel, stride, padding, relu):
            options = schema.Conv2DOptionsT()
            options.padding = getattr(schema.Padding, padding)
            options.strideH = options.strideW = stride
            options.fusedActivationFunction = _activation(relu)
            return graph.linear(_OPS.CONV_2D, x, (features, kernel, kernel, shape[-1]), after, options)
        case LayerNorm(eps):
            return _norm(graph, eps, graph.as_float(x), after)
        case MaxPool(window, stride):
            return _pool(graph, x, after, window, stride)
        case Relu():
            if graph.is_int8(x) and len(shape) == 4:  # XNNPACK has no ReLU of int8, but one in a pool of single pixels
                return _pool(graph, x, after, 1, 1, relu=True)
            return graph.op(_OPS.RELU, [graph.as_float(x)], after)
        case Flatten():
            options = schema.ReshapeOptionsT()
            options.newShape = list(after)
            to = graph.tensor((len(after),), np.int32, np.asarray(after, np.int32))
            return graph.op(_OPS.RESHAPE, [x, to], after, options, out=graph.like(x, after))
        case Scale(by):
            return _scale(graph, by, x, after)
        case Residual(body):
            inner = _layers(graph, body, x, shape)
            if not graph.static:
                return graph.op(_OPS.ADD, [x, inner], after, schema.AddOptionsT())
            parts = [graph.as_int8(x), graph.as_int8(inner)]
            out = graph.quantised(after, graph.reached + 1)
            return graph.op(_OPS.ADD, parts, after, schema.AddOptionsT(), 2, out)
    raise ValueError(f"LiteRT cannot run {layer!r}")


def _scale(graph: _Graph, by: float, x: int, shape: tuple[int, ...]) -> int:
    """A cast and a product; for bytes both are one operator, which reads them as quantised numbers of scale `by`."""
    if graph.read_as_quantised(x, by):
        return x if graph.is_int8(x) else graph.as_float(x)
    x = graph.as_float(x)
    if by == 1:
        return x
    factor = graph.tensor((1,), np.float32, np.array([by], np.float32))
    return graph.op(_OPS.MUL, [x, factor], shape, schema.MulOptionsT())


def _pool(graph: _Graph, x: int, shape: tuple[int, ...], window: int, stride: int, relu: bool = False) -> int:
    options = schema.Pool2DOptionsT()
    options.padding = schema.Padding.SAME
    options.strideH = options.strideW = stride
    options.filterHeight = options.filterWidth = window
    options.fusedActivationFunction = _activation(relu)
    return graph.op(_OPS.MAX_POOL_2D, [x], shape, options, 2 if graph.is_int8(x) else 1, graph.like(x, shape))


def _norm(graph: _Graph, eps: float, x: int, shape: tuple[int, ...]) -> int:
    """The operators of a LayerNorm; LiteRT has none of its own."""
    thin, last = (*shape[:-1], 1), graph.tensor((1,), np.int32, np.array([len(shape) - 1], np.int32))
    keep = schema.ReducerOptionsT()
    keep.keepDims = True

    def mean(of: int) -> int:
        return graph.op(_OPS.MEAN, [of, last], thin, keep)

    gain, bias = graph.vectors(shape[-1], x)
    middle = graph.op(_OPS.SUB, [x, mean(x)], shape, schema.SubOptionsT())
    square = graph.op(_OPS.MUL, [middle, middle], shape, schema.MulOptionsT())
    least = graph.tensor((1,), np.float32, np.array([eps], np.float32))
    scale = graph.op(_OPS.RSQRT, [graph.op(_OPS.ADD, [mean(square), least], thin, schema.AddOptionsT())], thin)
    unit = graph.op(_OPS.MUL, [middle, scale], shape, schema.MulOptionsT())
    stretched = graph.op(_OPS.MUL, [unit, gain], shape, schema.MulOptionsT())
    return graph.op(_OPS.ADD, [stretched, bias], shape, schema.AddOptionsT())


def _activation(relu: bool) -> int:
    return schema.ActivationFunctionType.RELU if relu else schema.ActivationFunctionType.NONE
