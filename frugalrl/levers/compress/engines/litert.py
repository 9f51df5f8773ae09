"""LiteRT with XNNPACK kernels, on one thread: the default engine, and the fastest at int8 on a CPU.

In mode "int8" activations are quantised on the fly, each observation by itself. The model is written once; every
load puts the new weights into it in place and makes a new interpreter, because XNNPACK repacks the weights when it
is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....networks import Layers
from ....types import Box, Engine, Session
from .shared import needs, received, unloaded


def build(layers: Layers, obs: Box, batch: int, mode: str) -> Session:
    from .litert_graph import fill, template

    model = template(layers, obs, batch, mode)
    call = unloaded

    def load(weights: tuple) -> None:
        nonlocal call
        fill(model, received(weights, mode))
        call = caller(bytes(model.data))  # a copy: the interpreter that still runs reads the old one

    return Session(load, lambda x: call(x))


def caller(model: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs a LiteRT model with one input and one output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    x, y = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    index, dtype = x["index"], x["dtype"]
    write, invoke, read = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor

    def call(obs: np.ndarray) -> np.ndarray:
        if obs.dtype != dtype:
            obs = obs.astype(dtype, casting="same_kind")
        write(index, obs)  # raises ValueError for another shape
        invoke()
        return read(y)

    return call


ENGINE = Engine("litert", ("fp32", "int8"), needs("pip install ai-edge-litert", "ai_edge_litert"), build)
