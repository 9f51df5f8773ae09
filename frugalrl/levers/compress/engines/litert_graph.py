"""Writes a network as a LiteRT model (a flatbuffer), without TensorFlow, and puts new weights into it where they lie.

Built with the object API that ships with `ai_edge_litert`. In mode "int8" the weights are int8 with one scale per
output and everything else is float32: LiteRT then quantises the activations of each observation when it runs
("dynamic range"), so nothing needs calibrating and a row never depends on the other rows of its batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ....networks import Conv, Dense, Flatten, LayerNorm, Layers, MaxPool, Relu, Residual, Scale, out_shape
from ....types import Box
from .shared import input_dtype, with_cast

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}
_OPS = schema.BuiltinOperator
# The first version of each operator that takes int8 weights, one scale per output, with float32 activations.
_INT8_VERSION = {_OPS.CONV_2D: 5, _OPS.FULLY_CONNECTED: 9}


class Slot(NamedTuple):
    """Writable views of one layer's weights inside a model."""

    w: np.ndarray  # [out, in] or [out, height, width, in]; float32 or int8
    scale: np.ndarray | None  # float32 [out], for int8
    b: np.ndarray  # float32 [out]


class Template(NamedTuple):
    """A model whose weights can be replaced in place."""

    data: bytearray
    slots: tuple[Slot, ...]  # in the order of the weights


def template(layers: Layers, obs: Box, batch: int, mode: str, notes: dict[str, str] | None = None) -> Template:
    """A model for `batch` observations with all weights zero; `notes` go into its metadata."""
    graph = _Graph(mode)
    x = graph.tensor((batch, *obs.shape), input_dtype(obs), name="obs")
    y = _layers(graph, with_cast(layers, obs), x, (batch, *obs.shape))
    graph.note(notes or {})
    data = graph.pack(x, y)
    return Template(data, _slots(data, graph.weights))


def fill(model: Template, weights: tuple) -> None:
    """Writes `weights` (NumPy arrays, of the template's mode) over those of the template."""
    for slot, layer in zip(model.slots, weights, strict=True):
        np.copyto(slot.w, np.moveaxis(layer[0], -1, 0))  # ours have the outputs last, LiteRT's first
        np.copyto(slot.b, layer.b)
        if slot.scale is not None:
            np.copyto(slot.scale, layer.scale)


def _slots(data: bytearray, weights: list[tuple[int, int]]) -> tuple[Slot, ...]:
    """Finds the weights by walking the flatbuffer with its schema; NumPy views of a bytearray can be written to."""
    model: Any = schema.Model.GetRootAs(data)
    tensors = model.Subgraphs(0).Tensors

    def view(tensor) -> np.ndarray:
        dtype = np.int8 if tensor.Type() == schema.TensorType.INT8 else np.float32
        return model.Buffers(tensor.Buffer()).DataAsNumpy().view(dtype).reshape(tensor.ShapeAsNumpy())

    def scale(tensor) -> np.ndarray | None:
        return tensor.Quantization().ScaleAsNumpy() if tensor.Type() == schema.TensorType.INT8 else None

    return tuple(Slot(view(tensors(w)), scale(tensors(w)), view(tensors(b))) for w, b in weights)


class _Buffer(NamedTuple):
    """Stands in for the generated `BufferT`, which does not align its data to 16 bytes as the schema asks."""

    data: np.ndarray  # uint8

    def Pack(self, builder: flatbuffers.Builder) -> int:
        builder.Prep(16, self.data.nbytes)
        data = builder.CreateNumpyVector(self.data)
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Graph:
    """A model in the making. Tensors are known by their index."""

    def __init__(self, mode: str):
        self.mode = mode
        self.weights: list[tuple[int, int]] = []  # tensors (w, b) of each layer that has any
        self._tensors: list = []
        self._operators: list = []
        self._buffers: list = [_Buffer(np.zeros(0, np.uint8))]  # by convention the first is empty
        self._codes: dict[tuple[int, int], int] = {}
        self._notes: list = []

    def tensor(self, shape, dtype, data: np.ndarray | None = None, scale: np.ndarray | None = None, name="") -> int:
        t: Any = schema.TensorT()
        t.shape, t.type, t.name = list(shape), _TYPES[np.dtype(dtype)], name or f"t{len(self._tensors)}"
        t.buffer = 0 if data is None else self._buffer(data)
        if scale is not None:
            t.quantization = _quantization(scale)
        self._tensors.append(t)
        return len(self._tensors) - 1

    def op(self, code: int, inputs: list[int], shape, options: Any = None, version: int = 1) -> int:
        """Adds an operator and returns its output, float32."""
        o: Any = schema.OperatorT()
        o.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        o.inputs, o.outputs = inputs, [self.tensor(shape, np.float32)]
        if options is not None:
            o.builtinOptions = options
            o.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(o)
        return o.outputs[0]

    def linear(self, code: int, x: int, w_shape: tuple[int, ...], shape, options: Any) -> int:
        """An operator with weights: zeros, to be filled later."""
        out = w_shape[0]
        if self.mode == "int8":
            w = self.tensor(w_shape, np.int8, np.zeros(w_shape, np.int8), np.ones(out, np.float32))
        else:
            w = self.tensor(w_shape, np.float32, np.zeros(w_shape, np.float32))
        b = self.tensor((out,), np.float32, np.zeros(out, np.float32))
        self.weights.append((w, b))
        return self.op(code, [x, w, b], shape, options, _INT8_VERSION[code] if self.mode == "int8" else 1)

    def vectors(self, size: int) -> tuple[int, int]:
        """The float32 weights (gain, bias) of a normalisation, in any mode: zeros, to be filled later."""
        gain, bias = (self.tensor((size,), np.float32, np.zeros(size, np.float32)) for _ in range(2))
        self.weights.append((gain, bias))
        return gain, bias

    def read_as_quantised(self, x: int, scale: float) -> bool:
        """Declares that the bytes of tensor `x` stand for numbers in units of `scale`; False if it is not bytes."""
        t = self._tensors[x]
        if t.type == schema.TensorType.UINT8:
            t.quantization = _quantization(np.array([scale], np.float32))
        return t.type == schema.TensorType.UINT8

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


def _quantization(scale: np.ndarray) -> Any:
    """Symmetric, with one scale for all or one for each entry of the first axis."""
    q: Any = schema.QuantizationParametersT()
    q.scale, q.zeroPoint, q.quantizedDimension = scale, np.zeros(len(scale), np.int64), 0
    return q


def _layers(graph: _Graph, layers: Layers, x: int, shape: tuple[int, ...]) -> int:
    """Adds `layers` after tensor `x` of `shape` (with batch) and returns the last tensor."""
    for layer in layers:
        after = (shape[0], *out_shape(layer, shape[1:]))
        x = _layer(graph, layer, x, shape, after)
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
            return _norm(graph, eps, x, after)
        case MaxPool(window, stride):
            options = schema.Pool2DOptionsT()
            options.padding = schema.Padding.SAME
            options.strideH = options.strideW = stride
            options.filterHeight = options.filterWidth = window
            return graph.op(_OPS.MAX_POOL_2D, [x], after, options)
        case Relu():
            return graph.op(_OPS.RELU, [x], after)
        case Flatten():
            options = schema.ReshapeOptionsT()
            options.newShape = list(after)
            to = graph.tensor((len(after),), np.int32, np.asarray(after, np.int32))
            return graph.op(_OPS.RESHAPE, [x, to], after, options)
        case Scale(by):
            return _scale(graph, by, x, after)
        case Residual(body):
            return graph.op(_OPS.ADD, [x, _layers(graph, body, x, shape)], after, schema.AddOptionsT())
    raise ValueError(f"LiteRT cannot run {layer!r}")


def _scale(graph: _Graph, by: float, x: int, shape: tuple[int, ...]) -> int:
    """A cast and a product; for bytes both are one operator, which reads them as quantised numbers of scale `by`."""
    if graph.read_as_quantised(x, by):
        return graph.op(_OPS.DEQUANTIZE, [x], shape, schema.DequantizeOptionsT())
    if by == 1:
        return x
    factor = graph.tensor((1,), np.float32, np.array([by], np.float32))
    return graph.op(_OPS.MUL, [x, factor], shape, schema.MulOptionsT())


def _norm(graph: _Graph, eps: float, x: int, shape: tuple[int, ...]) -> int:
    """The operators of a LayerNorm; LiteRT has none of its own."""
    thin, last = (*shape[:-1], 1), graph.tensor((1,), np.int32, np.array([len(shape) - 1], np.int32))
    keep = schema.ReducerOptionsT()
    keep.keepDims = True

    def mean(of: int) -> int:
        return graph.op(_OPS.MEAN, [of, last], thin, keep)

    gain, bias = graph.vectors(shape[-1])
    middle = graph.op(_OPS.SUB, [x, mean(x)], shape, schema.SubOptionsT())
    square = graph.op(_OPS.MUL, [middle, middle], shape, schema.MulOptionsT())
    least = graph.tensor((1,), np.float32, np.array([eps], np.float32))
    scale = graph.op(_OPS.RSQRT, [graph.op(_OPS.ADD, [mean(square), least], thin, schema.AddOptionsT())], thin)
    unit = graph.op(_OPS.MUL, [middle, scale], shape, schema.MulOptionsT())
    stretched = graph.op(_OPS.MUL, [unit, gain], shape, schema.MulOptionsT())
    return graph.op(_OPS.ADD, [stretched, bias], shape, schema.AddOptionsT())


def _activation(relu: bool) -> int:
    return schema.ActivationFunctionType.RELU if relu else schema.ActivationFunctionType.NONE
