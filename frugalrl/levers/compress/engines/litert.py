"""LiteRT with XNNPACK kernels, on one thread: the default engine, and the fastest at int8 on a CPU.

In mode "int8" activations are quantised on the fly, each observation by itself; in mode "int8-static" by the ranges in
the packet, and they stay int8 from layer to layer. bf16 weights are made float32 when loaded. The model is written
once; every load puts the new weights into it in place and makes a new interpreter, because XNNPACK repacks the weights
when it is made.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ....networks import Layers
from ....types import Box, Engine, Session
from .shared import needs, received, unloaded

_first = threading.Lock()  # held while the process's first interpreter is made, and never given back


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

    def make() -> Any:
        made = Interpreter(model_content=model, num_threads=1)
        made.allocate_tensors()
        return made

    interpreter = _without_greeting(make) if _first.acquire(blocking=False) else make()
    x, y = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    index, dtype = x["index"], x["dtype"]
    write, invoke, read = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor

    def call(obs: np.ndarray) -> np.ndarray:
        if dtype == np.int8:  # bytes 128 lower
            obs = (obs.astype(np.uint8, casting="same_kind", copy=False) ^ np.uint8(128)).view(np.int8)
        elif obs.dtype != dtype:
            obs = obs.astype(dtype, casting="same_kind")
        write(index, obs)  # raises ValueError for another shape
        invoke()
        return read(y)

    return call


def _without_greeting(make: Callable[[], Any]) -> Any:
    """What `make` returns, without the line that the library writes to standard error when it is first used.

    The line comes from C++, so file descriptor 2 itself is led into a file for that moment; anything else that lands
    there is passed on.
    """
    try:
        error = os.dup(2)
    except OSError:  # a process without standard error
        return make()
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            return make()
        finally:
            os.dup2(error, 2)
            os.close(error)
            aside.seek(0)
            for line in aside:
                if not line.startswith(b"INFO: Created TensorFlow Lite XNNPACK delegate"):
                    os.write(2, line)


ENGINE = Engine(
    "litert", ("fp32", "bf16", "int8", "int8-static"), needs("pip install ai-edge-litert", "ai_edge_litert"), build
)
