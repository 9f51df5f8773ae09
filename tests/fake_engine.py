"""An engine as `numpy` is, but for one thing that it cannot do in an actor process: what $FAKE_ENGINE_FAILS names."""

from __future__ import annotations

import os

import numpy as np
from fake_env import IN_ACTOR

from frugalrl.levers.compress.engines import numpy_engine
from frugalrl.types import Box, Session


def build(layers: tuple, obs: Box, batch: int, mode: str) -> Session:
    made = numpy_engine.build(layers, obs, batch, mode)
    runs = 0

    def refuse(part: str) -> None:
        if IN_ACTOR and os.environ.get("FAKE_ENGINE_FAILS") == part:
            raise ValueError(f"no {part} today\nnor tomorrow")

    def load(weights: tuple) -> None:
        refuse("load")
        made.load(weights)

    def run(x) -> np.ndarray:
        nonlocal runs
        runs += 1
        if runs > 100:  # after the first unrolls
            refuse("run")
        return made.run(x)

    refuse("build")
    return Session(load, run)


ENGINE = numpy_engine.ENGINE._replace(name="fake", build=build)
