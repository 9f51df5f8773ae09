"""Engines: what runs a policy network on NumPy arrays, and the choice between them by measuring them here.

Importing this package, or any engine but `xla`, does not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np

from ....errors import one_line
from ....networks import Layers, weighted
from ....types import Box, Engine, Linear, Policy, Ranges, Session
from .. import quantise
from .shared import entries, with_cast

_MODULES = {
    "litert": "litert",
    "numpy": "numpy_engine",
    "xla": "xla",
    "onnxruntime": "onnxruntime_engine",
    "openvino": "openvino_engine",
}
ENGINES = tuple(_MODULES)
# Those an actor process chooses from. It does not import JAX, so not xla; and openvino compiles at every load.
ACTOR_ENGINES = ("litert", "numpy", "onnxruntime")
Who = TypeVar("Who")
_ROUNDS = 5
_GAIN = 1.1  # by how much a mode must be faster than fp32 for "auto" to take it: less than that is within the noise


# Calls to which a load is reckoned. What takes long to load is loaded rarely, and an actor then acts with an old
# policy: with 32 ms a load IMPALA's actors of a 1024x1024x1024 network were 25 updates behind, and it learned nothing.
# Between two loads those actors make about 40 calls; slower learners and replay leave more.
CALLS = 50


class Timing(NamedTuple):
    """What one call takes: observations in NumPy to outputs in NumPy."""

    engine: str
    mode: str
    microseconds: float  # median
    load: float = 0.0  # microseconds of taking new weights, the first call with them included

    @property
    def cost(self) -> float:
        """Microseconds of a call and of its share of a load: what engines are chosen by."""
        return self.microseconds + self.load / CALLS


def engine(name: str) -> Engine:
    """The engine of that name, whether or not it is usable here; ValueError if there is none."""
    return import_module(module(name)).ENGINE


def module(name: str) -> str:
    """The module that holds the engine of that name as ENGINE: what another process needs to build it."""
    if name not in _MODULES:
        raise ValueError(f"no engine is called {name!r}; there are: {', '.join(ENGINES)}")
    return f"{__name__}.{_MODULES[name]}"


def usable(mode: str, among: Iterable[str] = ENGINES) -> list[Engine]:
    """The engines that run packets of `mode` and whose packages are installed."""
    return [e for e in map(engine, among) if mode in e.modes and e.missing() is None]


def measure(
    layers: Layers,
    obs: Box,
    batch: int,
    modes: Iterable[str],
    engines: Iterable[str] | None = None,
    seconds: float = 0.2,
    report: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Times a call of each usable engine in each of `modes`, on random weights and observations.

    `engines` are names; by default `ACTOR_ENGINES`. The contestants take turns in rounds, so that a busy moment of
    the machine hits all of them; `seconds` is for all together, without building them. An engine that fails is left
    out if there is a `report` to say so to. Raises ValueError if none is usable.
    """
    names = ACTOR_ENGINES if engines is None else tuple(engines)
    contestants = [(e, mode) for mode in modes for e in usable(mode, names)]
    if not contestants:
        raise ValueError(f"none of the engines {names} is usable here")
    rng = np.random.default_rng(0)
    x = random_obs(obs, batch, rng)
    policy = Policy((*random_weights(layers, obs, rng), any_ranges(layers, obs)), ())
    sessions: dict[tuple[str, str], Session] = {}
    loads: dict[tuple[str, str], float] = {}
    for e, mode in contestants:
        packet = quantise.COMPRESSORS[mode]().encode(policy).weights
        try:
            session = e.build(layers, obs, batch, mode)
            for _ in range(2):  # the first time imports, and allocates
                start = perf_counter()
                session.load(packet)
                session.run(x)
                loads[e.name, mode] = 1e6 * (perf_counter() - start)
        except Exception as error:  # native code may raise anything
            if report is None:
                raise
            report(f"{e.name} cannot run {mode} here: {one_line(error)}")
        else:
            sessions[e.name, mode] = session
    if not sessions:
        return []
    return [Timing(*who, t, loads[who]) for who, t in microseconds(sessions, x, seconds).items()]


def microseconds(sessions: Mapping[Who, Session], x: np.ndarray, seconds: float) -> dict[Who, float]:
    """The median time of a call of each session on `x`. They take turns in rounds, `seconds` in all."""
    turn = seconds / _ROUNDS / len(sessions)
    rounds = [[_median_time(session, x, turn) for session in sessions.values()] for _ in range(_ROUNDS)]
    return {who: t * 1e6 for who, t in zip(sessions, np.median(rounds, 0).tolist(), strict=True)}


def choose(timings: Iterable[Timing], mode: str) -> Timing:
    """The cheapest timing of `mode`; "auto" is the cheapest of all where that is at least a tenth cheaper than fp32.

    Raises ValueError if no timing is of that mode.
    """
    best = {}
    for timing in sorted(timings, key=lambda t: t.cost, reverse=True):
        best[timing.mode] = timing
    if mode != "auto":
        if mode not in best:
            raise ValueError(f"no engine was measured in mode {mode!r}")
        return best[mode]
    if "fp32" not in best:
        raise ValueError("mode 'auto' compares the others with fp32: measure that too")
    cheapest = min(best.values(), key=lambda t: t.cost)
    return cheapest if best["fp32"].cost >= _GAIN * cheapest.cost else best["fp32"]


def _median_time(session: Session, x: np.ndarray, seconds: float) -> float:
    """The median time of a call, repeated for `seconds` and at least once."""
    times, end = [], perf_counter() + seconds
    while not times or perf_counter() < end:
        start = perf_counter()
        session.run(x)
        times.append(perf_counter() - start)
    return float(np.median(times))


def random_weights(layers: Layers, obs: Box, rng: np.random.Generator) -> tuple[Linear, ...]:
    """Weights that keep activations near one, as trained ones do (He et al. 2015)."""

    def layer(shape: tuple[int, ...]) -> Linear:
        w = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
        return Linear(w, np.zeros(shape[-1], np.float32))

    return tuple(layer(shape) for _, shape in weighted(layers, obs.shape))


def any_ranges(layers: Layers, obs: Box) -> Ranges:
    """Ranges for activations near one: enough to time a session with."""
    ones = np.ones(1 + entries(with_cast(layers, obs)), np.float32)
    return Ranges(-4 * ones, 4 * ones)


def random_obs(obs: Box, batch: int, rng: np.random.Generator) -> np.ndarray:
    """A batch of noise with the shape and dtype of `obs`."""
    shape = (batch, *obs.shape)
    if obs.dtype == "bool":
        return rng.random(shape) < 0.5
    if obs.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)
