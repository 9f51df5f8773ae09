"""What does one policy call cost, in each engine, in each number format, whole and at half the width?

    python -m benchmarks.policy_call [--out FILE] [--quick]

From observations in NumPy to outputs in NumPy, on one core: the process is bound to it before anything with threads
is loaded. Contestants take turns in rounds. Ratios are taken within a round, against the same engine's fp32 and
against whichever engine was the fastest at fp32 in that round, so above 1 is faster; their median, lowest and
highest are kept. "half" is a network of half the hidden units and channels, with weights as random as the others': its
time is that of a distilled student, of whose quality nothing is said here; "low-rank" has a quarter of the rank in its
wide dense layers. A loop this tight finds everything in the cache: beside a real environment all engines are slower.
"""

from __future__ import annotations

import os
from time import perf_counter

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
BOUND = hasattr(os, "sched_setaffinity")
if BOUND:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["NPROC"] = "1"  # XLA's threads
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import rows  # noqa: E402
from frugalrl.levers.compress.engines import ENGINES, any_ranges, random_obs, random_weights, usable  # noqa: E402
from frugalrl.levers.compress.modes import HALF  # noqa: E402
from frugalrl.levers.compress.prune import narrowed  # noqa: E402
from frugalrl.levers.compress.quantise import COMPRESSORS  # noqa: E402
from frugalrl.networks import Dense, Layers, mlp, nature_cnn, out_shape  # noqa: E402
from frugalrl.types import Box, Policy, Session  # noqa: E402

NAME = "policy_call"
NETS = {
    "64x64": (mlp((64, 64), 4), Box((8,))),
    "256x256": (mlp((256, 256), 6), Box((17,))),
    "1024x1024x1024": (mlp((1024, 1024, 1024), 17), Box((376,))),
    "nature_cnn": (nature_cnn(6), Box((84, 84, 4), "uint8", 0, 255)),
}
BATCHES = (1, 8, 64)
SMALLER = {"half": "fp32", "half+int8": "int8", "low-rank": "fp32"}  # other networks, and their numbers
MODES = (*COMPRESSORS, *SMALLER)
PACKAGES = ("onnxruntime", "openvino")  # engines that the base install does not have


def main() -> None:
    args = rows.parser(__doc__).parse_args()
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # or small networks would pay for a hand-over of threads
    rounds, turn = (2, 0.002) if args.quick else (9, 0.015)
    made = []
    for net in NETS:
        for batch in BATCHES:
            made += measured(net, batch, rounds, turn)
            show(made, net, batch)
    path = rows.destination(NAME, args)
    rows.write(path, made)
    print(rows.said(path, made))


def measured(net: str, batch: int, rounds: int, turn: float) -> list[rows.Row]:
    """The rows of all engines and modes; each has `turn` seconds a round."""
    whole, obs = NETS[net]
    rng = np.random.default_rng(0)
    x, sessions = random_obs(obs, batch, rng), {}
    for mode in MODES:
        numbers = SMALLER.get(mode, mode)
        layers = low_rank(whole, obs) if mode == "low-rank" else narrowed(whole, HALF) if mode in SMALLER else whole
        policy = Policy((*random_weights(layers, obs, rng), any_ranges(layers, obs)), ())
        packet = COMPRESSORS[numbers]().encode(policy).weights
        for engine in usable(numbers, ENGINES):
            sessions[engine.name, mode] = session = engine.build(layers, obs, batch, numbers)
            session.load(packet)
            session.run(x)
    times = [{who: median_time(session, x, turn) for who, session in sessions.items()} for _ in range(rounds)]
    return [row(net, batch, who, times) for who in sessions]


def low_rank(layers: Layers, obs: Box) -> Layers:
    """The network with two dense layers for each wide one, as thin as a quarter of its rank: what an SVD would give."""
    shape, parts = obs.shape, []
    for layer in layers:
        if isinstance(layer, Dense) and min(shape[0], layer.features) >= 64:
            parts.append(Dense(min(shape[0], layer.features) // 4, relu=False))
        parts.append(layer)
        shape = out_shape(layer, shape)
    return tuple(parts)


def median_time(session: Session, x: np.ndarray, seconds: float) -> float:
    """Microseconds a call, the median of at least two."""
    times, end = [], perf_counter() + seconds
    while len(times) < 2 or perf_counter() < end:
        start = perf_counter()
        session.run(x)
        times.append(perf_counter() - start)
    return float(np.median(times)) * 1e6


def row(net: str, batch: int, who: tuple[str, str], times: list[dict]) -> rows.Row:
    engine, mode = who
    fp32 = [{name: t for (name, m), t in each.items() if m == "fp32"} for each in times]
    us = [each[who] for each in times]
    return rows.row(
        NAME,
        PACKAGES,
        net=net,
        inputs=NETS[net][1].shape,
        outputs=NETS[net][0][-1].features,
        batch=batch,
        engine=engine,
        mode=mode,
        us=rows.spread(us),
        times_same_engine_fp32=rows.spread([a[engine] / t for a, t in zip(fp32, us, strict=True)]),
        times_best_fp32=rows.spread([min(a.values()) / t for a, t in zip(fp32, us, strict=True)]),
        best_fp32=min(fp32[0], key=lambda name: np.median([each[name] for each in fp32])),
        rounds=len(times),
        threads="bound to one core" if BOUND else "one, as far as each engine obeys",
        xla_async_dispatch=False,
    )


def show(made: list[rows.Row], net: str, batch: int) -> None:
    print(f"\n{net}, batch {batch}".ljust(38) + "us     same engine    best fp32")
    for each in made:
        if (each["net"], each["batch"]) == (net, batch):
            ratios = f"{each['times_same_engine_fp32']['median']:12.2f}x{each['times_best_fp32']['median']:12.2f}x"
            print(f"  {each['engine']:12} {each['mode']:12}{each['us']['median']:12.1f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
