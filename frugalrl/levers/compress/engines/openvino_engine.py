"""OpenVINO, on one thread. Worth it for large networks at large batches; every load compiles, for 10 ms and more.

In mode "int8" dense layers keep int8 weights and OpenVINO quantises their activations on the fly, each row by itself;
convolutions run in float32 with dequantised weights. In mode "bf16" all products are of bf16, where the CPU has them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from ....networks import Layers
from ....types import Box, Engine, Session
from .shared import input_dtype, needs, put, taken, unloaded


def build(layers: Layers, obs: Box, batch: int, mode: str) -> Session:
    from .onnx_graph import model

    x = np.zeros((batch, *obs.shape), input_dtype(obs))
    call = unloaded

    def load(weights: tuple) -> None:
        nonlocal call
        with signal_stack_kept():
            call = _caller(model(layers, obs, batch, taken(weights, mode)), x, "bf16" if mode == "bf16" else "f32")

    return Session(load, lambda obs: call(obs))


def _caller(model: bytes, x: np.ndarray, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs `model` from buffer `x`, which is bound to it once."""
    openvino = _openvino()
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,  # by itself it would take bf16 where the CPU has it
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    output = request.get_output_tensor()

    def call(obs: np.ndarray) -> np.ndarray:
        put(x, obs)
        request.infer()
        return output.data.copy()

    return call


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the thread its alternate signal stack back.

    Compiling a model sets one up, which is unmapped with the model and stays set: the next signal, Ctrl-C say, would
    crash the process.
    """
    if sys.platform == "win32":
        yield
        return
    sigaltstack, found = ctypes.CDLL(None).sigaltstack, ctypes.create_string_buffer(64)  # more than any stack_t
    sigaltstack(None, found)
    try:
        yield
    finally:
        sigaltstack(found, None)


def _openvino() -> Any:
    """The package without its telemetry, which reports each import over the network, from a forked process."""
    # as if it were not installed: OpenVINO then uses a stub
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino  # pyright: ignore[reportMissingImports]

    return openvino


ENGINE = Engine(
    "openvino",
    ("fp32", "bf16", "int8"),
    needs("pip install 'frugalrl[engines,openvino]'", "onnx", "openvino"),
    build,
)
