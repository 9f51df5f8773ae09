"""ONNX Runtime, on one thread.

Mode "int8" covers dense layers only: their activations are quantised on the fly in blocks along each row
(MatMulNBits), so a row never depends on the others of its batch, as it does with ONNX Runtime's dynamic
quantisation, which has one scale for the whole batch. Convolutions run in float32 with dequantised weights:
ConvInteger is several times slower than that. bf16 weights are made float32 when loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....networks import Layers, out_features
from ....types import Box, Engine, Session
from .shared import input_dtype, needs, put, taken, unloaded

_BLOCK = 128  # of 32 to 256 about the fastest from 64 to 1024 inputs


def build(layers: Layers, obs: Box, batch: int, mode: str) -> Session:
    from .onnx_graph import model

    x = np.zeros((batch, *obs.shape), input_dtype(obs))
    y = np.zeros((batch, out_features(layers, obs.shape)), np.float32)
    call = unloaded

    def load(weights: tuple) -> None:
        nonlocal call
        block = _BLOCK if mode == "int8" else None
        call = _caller(model(layers, obs, batch, taken(weights, mode), block), x, y)

    return Session(load, lambda obs: call(obs))


def _caller(model: bytes, x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs `model` from buffer `x` to buffer `y`, which are bound to it once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("obs", "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
    binding.bind_output("outputs", "cpu", 0, y.dtype.type, y.shape, y.ctypes.data)

    def call(obs: np.ndarray) -> np.ndarray:
        put(x, obs)
        session.run_with_iobinding(binding)
        return y.copy()

    return call


ENGINE = Engine(
    "onnxruntime",
    ("fp32", "bf16", "int8"),
    needs("pip install 'frugalrl[engines]'", "onnx", "onnxruntime"),
    build,
)
