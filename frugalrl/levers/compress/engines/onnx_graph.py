"""Writes a network as an ONNX model, for the engines that read those and for export.

Images come in as everywhere here, [batch, height, width, channels], and are turned to ONNX's order inside. Only
standard operators are used, but for one of ONNX Runtime's where `block` asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ....networks import (
    Conv,
    Dense,
    Flatten,
    LayerNorm,
    Layers,
    MaxPool,
    Relu,
    Residual,
    Scale,
    out_features,
    out_shape,
)
from ....types import Box, Linear, QuantLinear
from .shared import input_dtype, with_cast

_OPSET = 17
_CONTRIB = "com.microsoft"


def model(
    layers: Layers,
    obs: Box,
    batch: int | None,
    weights: tuple,
    block: int | None = None,
    notes: dict[str, str] | None = None,
) -> bytes:
    """The serialised model, from "obs" to "outputs" (float32); `batch` None leaves the batch size open.

    A `QuantLinear` is stored in int8 and cast and scaled in the graph, which engines do once, when they load it.
    With `block` dense layers use ONNX Runtime's MatMulNBits instead: it quantises the activations too, each row by
    itself, in blocks of that many. `notes` go into the model's metadata.
    """
    graph = _Graph(block)
    y = _layers(graph, with_cast(layers, obs), iter(weights), _channels_first(graph, "obs", obs.shape), obs.shape)
    graph.nodes.append(helper.make_node("Identity", [y], ["outputs"]))
    rows = "batch" if batch is None else batch
    kind = TensorProto.UINT8 if input_dtype(obs) == np.uint8 else TensorProto.FLOAT
    ends = (
        [helper.make_tensor_value_info("obs", kind, (rows, *obs.shape))],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, (rows, out_features(layers, obs.shape)))],
    )
    imports = [helper.make_opsetid("", _OPSET), *([helper.make_opsetid(_CONTRIB, 1)] if block else [])]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "policy", *ends, graph.constants),
        opset_imports=imports,
        ir_version=8,
        producer_name="frugalrl",
    )
    helper.set_model_props(proto, notes or {})
    return proto.SerializeToString()


class _Graph:
    """A model in the making. Tensors are known by name."""

    def __init__(self, block: int | None):
        self.block = block
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, data: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(data, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, layer: Linear | QuantLinear, order: Sequence[int]) -> str:
        """The float32 weights of `layer` with their axes in `order`."""
        stored = np.ascontiguousarray(layer[0].transpose(order))
        if isinstance(layer, Linear):
            return self.constant(stored)
        along = [-1 if axis == layer.q.ndim - 1 else 1 for axis in order]  # of the outputs
        cast = self.op("Cast", self.constant(stored), to=TensorProto.FLOAT)
        return self.op("Mul", cast, self.constant(layer.scale.reshape(along)))


def _layers(graph: _Graph, layers: Layers, weights: Iterator, x: str, shape: tuple[int, ...]) -> str:
    """Adds `layers` after tensor `x`, an observation's shape `shape` before any turning; returns the last tensor."""
    for layer in layers:
        x = _layer(graph, layer, weights, x, shape)
        shape = out_shape(layer, shape)
    return x


def _layer(graph: _Graph, layer, weights: Iterator, x: str, shape: tuple[int, ...]) -> str:
    match layer:
        case Dense(_, relu):
            return _relu(graph, _dense(graph, next(weights), x), relu)
        case Conv(_, kernel, stride, padding, relu):
            new = next(weights)
            inputs = x, graph.weight(new, (3, 2, 0, 1)), graph.constant(new.b)
            pad = "SAME_UPPER" if padding == "SAME" else "VALID"
            y = graph.op("Conv", *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, auto_pad=pad)
            return _relu(graph, y, relu)
        case LayerNorm(eps):
            new, image = next(weights), len(shape) == 3
            x = graph.op("Transpose", x, perm=(0, 2, 3, 1)) if image else x
            y = graph.op("LayerNormalization", x, graph.constant(new.w), graph.constant(new.b), axis=-1, epsilon=eps)
            return graph.op("Transpose", y, perm=(0, 3, 1, 2)) if image else y
        case MaxPool(window, stride):
            return graph.op("MaxPool", x, kernel_shape=[window] * 2, strides=[stride] * 2, auto_pad="SAME_UPPER")
        case Relu():
            return graph.op("Relu", x)
        case Flatten():
            return graph.op("Flatten", graph.op("Transpose", x, perm=(0, 2, 3, 1)) if len(shape) == 3 else x)
        case Scale(by):
            x = graph.op("Cast", x, to=TensorProto.FLOAT)
            return x if by == 1 else graph.op("Mul", x, graph.constant(np.array(by, np.float32)))
        case Residual(body):
            return graph.op("Add", x, _layers(graph, body, weights, x, shape))
    raise ValueError(f"ONNX cannot express {layer!r}")


def _dense(graph: _Graph, layer: Linear | QuantLinear, x: str) -> str:
    if graph.block and isinstance(layer, QuantLinear):
        return _blocks(graph, layer, x, graph.block)
    return graph.op("Gemm", x, graph.weight(layer, (0, 1)), graph.constant(layer.b))


def _blocks(graph: _Graph, layer: QuantLinear, x: str, block: int) -> str:
    """MatMulNBits: weights [out, blocks, block] in uint8 around 128, the last block filled up, a scale a block."""
    inputs, outputs = layer.q.shape
    blocks = -(-inputs // block)
    w = np.full((outputs, blocks * block), 128, np.uint8)
    w[:, :inputs] = layer.q.T.view(np.uint8) ^ 128  # two's complement with its sign bit turned is q + 128
    return graph.op(
        "MatMulNBits",
        *(x, graph.constant(w.reshape(outputs, blocks, block)), graph.constant(layer.scale.repeat(blocks)), "", ""),
        graph.constant(layer.b),
        domain=_CONTRIB,
        **{"K": inputs, "N": outputs, "bits": 8, "block_size": block, "accuracy_level": 4},  # 4: activations in int8
    )


def _relu(graph: _Graph, x: str, wanted: bool) -> str:
    return graph.op("Relu", x) if wanted else x


def _channels_first(graph: _Graph, x: str, shape: tuple[int, ...]) -> str:
    return graph.op("Transpose", x, perm=(0, 3, 1, 2)) if len(shape) == 3 else x
