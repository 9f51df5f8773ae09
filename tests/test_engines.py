"""Every engine computes what `networks.network` does, reloads for real, and hands out arrays that stay as they are."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from functools import cache

import jax
import numpy as np
import pytest

from frugalrl.levers.compress import quantise
from frugalrl.levers.compress.calibrate import ranges
from frugalrl.levers.compress.engines import ACTOR_ENGINES, ENGINES, Timing, choose, engine, measure, usable
from frugalrl.levers.compress.engines.shared import needs
from frugalrl.networks import (
    Dense,
    Flatten,
    Scale,
    impala_resnet,
    minatar_cnn,
    mlp,
    nature_cnn,
    network,
    normalised,
    small_cnn,
)
from frugalrl.types import Box, Linear, Policy, Ranges

BATCH = 3
FRAMES = Box((84, 84, 4), "uint8", 0, 255)
NETS = {
    "mlp": (mlp((64, 64), 4), Box((8,))),
    "minatar": (minatar_cnn(6), Box((10, 10, 4), "bool", 0, 1)),
    "nature": (nature_cnn(6), FRAMES),
    "small": (small_cnn(6), Box((42, 42, 4), "uint8", 0, 255)),
    "impala": (impala_resnet(6), FRAMES),
    "mlp, normalised": (normalised(mlp((64, 64), 4)), Box((8,))),
    "minatar, normalised": (normalised(minatar_cnn(6)), Box((10, 10, 4), "bool", 0, 1)),
}
MODES = ("fp32", "bf16", "int8", "int8-static")


def session(name: str, net: str, mode: str, batch: int = BATCH):
    if (hint := engine(name).missing()) is not None:
        pytest.skip(hint)
    if mode not in engine(name).modes:
        pytest.skip(f"{name} has no mode {mode}")
    return engine(name).build(*NETS[net], batch, mode)


def observations(obs: Box, batch: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if obs.dtype == "bool":
        return rng.random((batch, *obs.shape)) < 0.2
    if obs.dtype == "uint8":
        return rng.integers(0, 256, (batch, *obs.shape), np.uint8)
    return rng.standard_normal((batch, *obs.shape), np.float32)


@cache
def weights(net: str, seed: int = 0) -> tuple[Linear, ...]:
    """Weights, biases too, with outputs of standard deviation 2: logits of a policy that has learned something."""
    layers, obs = NETS[net]
    rng = np.random.default_rng(seed)
    start = jax.tree.map(np.asarray, network(layers, obs).init(jax.random.key(seed)))
    gains = [1 + 0.3 * rng.standard_normal(w.shape, np.float32) if w.ndim == 1 else w for w, _ in start]
    biases = [0.1 * rng.standard_normal(b.shape, np.float32) for _, b in start]
    *body, head = map(Linear, gains, biases)
    size = np.float32(2 / reference(net, (*body, head)).std())
    return (*body, Linear(head.w * size, head.b * size))


def reference(net: str, params: tuple[Linear, ...], batch: int = BATCH) -> np.ndarray:
    layers, obs = NETS[net]
    return np.asarray(jax.vmap(network(layers, obs).apply, (None, 0))(params, observations(obs, batch)))


@cache
def calibration(net: str, seed: int = 0) -> Ranges:
    layers, obs = NETS[net]
    return jax.tree.map(np.asarray, ranges(layers, obs, weights(net, seed), observations(obs, 64, seed=7)))


def packet(net: str, mode: str, seed: int = 0) -> tuple:
    params = (*weights(net, seed), calibration(net, seed)) if mode == "int8-static" else weights(net, seed)
    return quantise.COMPRESSORS[mode]().encode(Policy(params, ())).weights


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ENGINES)
def test_fp32_agrees_with_the_network(name, net):
    s = session(name, net, "fp32")
    s.load(packet(net, "fp32"))
    got = s.run(observations(NETS[net][1], BATCH))
    assert (got.dtype, got.shape) == (np.float32, (BATCH, NETS[net][0][-1].features))
    expected = reference(net, weights(net))
    assert abs(got - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("net", ["mlp", "minatar", "mlp, normalised"])
@pytest.mark.parametrize("name", ENGINES)
def test_bf16_stays_close_to_the_network(name, net):
    s = session(name, net, "bf16")
    s.load(packet(net, "bf16"))
    got, full = s.run(observations(NETS[net][1], BATCH)), reference(net, weights(net))
    assert 0 < abs(got - full).max() < 2e-2 * full.std()
    decoded = reference(net, tuple(quantise.dequantise(layer) for layer in packet(net, "bf16")))
    # OpenVINO's products are of bf16, where the CPU has them; the others compute in float32
    assert abs(got - decoded).max() < (2e-2 if name == "openvino" else 1e-3) * full.std()


@pytest.mark.parametrize("mode", ["int8", "int8-static"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ENGINES)
def test_int8_stays_close_to_the_network(name, net, mode):
    s = session(name, net, mode)
    s.load(packet(net, mode))
    got = s.run(observations(NETS[net][1], BATCH))
    full = reference(net, weights(net))
    p, q = log_softmax(full), log_softmax(got)
    assert ((np.exp(p) * (p - q)).sum(-1) < 1e-2).all()
    decoded = reference(net, tuple(quantise.dequantise(layer) for layer in packet(net, "int8")))
    # engines that dequantise at load are exact, the others also round activations; if static all rows on one grid
    bound = 1e-3 if name in ("numpy", "xla") else 5e-2 if mode == "int8" else 1.5e-1
    assert abs(got - decoded).max() < bound * full.std()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", ["minatar", "minatar, normalised"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_load_replaces_all_of_the_last(name, net, mode):
    x = observations(NETS[net][1], BATCH)
    s, fresh = session(name, net, mode), session(name, net, mode)
    s.load(packet(net, mode, seed=0))
    first = s.run(x)
    s.load(packet(net, mode, seed=1))
    second = s.run(x)
    fresh.load(packet(net, mode, seed=1))
    np.testing.assert_array_equal(second, fresh.run(x))
    assert abs(first - second).max() > 0.1
    s.load(packet(net, mode, seed=0))
    np.testing.assert_array_equal(s.run(x), first)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ENGINES)
def test_outputs_and_weights_are_not_shared(name, mode):
    _, obs = NETS["mlp"]
    s = session(name, "mlp", mode)
    mine = jax.tree.map(np.array, packet("mlp", mode))
    s.load(mine)
    first = s.run(observations(obs, BATCH))
    kept = first.copy()
    s.run(observations(obs, BATCH, seed=1))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # the caller's own, to write to
    for layer in mine:
        for part in layer:
            part[:] = 0
    np.testing.assert_array_equal(s.run(observations(obs, BATCH)), kept)


@pytest.mark.parametrize("mode", ["int8", "int8-static"])
@pytest.mark.parametrize("net", ["mlp", "minatar", "nature", "mlp, normalised"])
@pytest.mark.parametrize("name", ENGINES)
def test_int8_rows_do_not_depend_on_each_other(name, net, mode):
    batch = 8
    s = session(name, net, mode, batch)
    s.load(packet(net, mode))
    x = observations(NETS[net][1], batch)
    first = s.run(x)
    others = observations(NETS[net][1], batch, seed=1)
    if others.dtype == np.float32:
        others *= 100  # a scale shared by the batch would give itself away
    others[0] = x[0]
    np.testing.assert_array_equal(s.run(others)[0], first[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ENGINES)
def test_packets_of_another_mode_are_refused(name, mode):
    s = session(name, "mlp", mode)
    wanted = mode.replace("-", "_")
    taken = {mode, "int8-static"} if mode == "int8" else {mode}  # ranges too many do no harm
    for other in set(MODES) - taken:
        with pytest.raises(ValueError, match=rf"{wanted}\(\)"):
            s.load(packet("mlp", other))
    for known in taken:
        s.load(packet("mlp", known))


def test_static_ranges_decide():
    """What lies outside of them is cut off there, and a narrow one is finer than a wide one."""
    obs, layers = Box((1,)), (Dense(1, relu=False), Dense(1, relu=False))  # the first is not rounded
    one, w = (Linear(np.float32([[by]]), np.zeros(1, np.float32)) for by in (1, 1.27))

    def outputs(high: float, x: list[float]) -> np.ndarray:
        s = engine("litert").build(layers, obs, len(x), "int8-static")
        within = Ranges(np.float32([-high, -high, -2 * high]), np.float32([high, high, 2 * high]))
        s.load(quantise.int8_static().encode(Policy((one, w, within), ())).weights)
        return s.run(np.float32(x)[:, None])[:, 0]

    np.testing.assert_allclose(outputs(1.0, [0.5, 1, 5, -5]), [0.635, 1.27, 1.27, -1.27], atol=0.02)
    assert len(set(outputs(1.0, [0.5, 0.55]))) == 2
    assert len(set(outputs(100.0, [0.5, 0.55]))) == 1


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_small_in_an_observation_is_seen_beside_what_is_great(name):
    """Joints beside velocities: one step of int8 for all of an observation would be 0.3 here."""
    if engine(name).missing():
        pytest.skip(engine(name).missing())
    obs, layers = Box((2,)), (Dense(32), Dense(1, relu=False))
    first = Linear(np.repeat(np.float32([[1], [0]]), 32, 1), np.zeros(32, np.float32))
    last = Linear(np.full((32, 1), 1 / 32, np.float32), np.zeros(1, np.float32))
    s = engine(name).build(layers, obs, 2, "int8")
    s.load(quantise.int8().encode(Policy((first, last), ())).weights)
    np.testing.assert_allclose(s.run(np.float32([[0.05, 40], [0.1, 40]]))[:, 0], [0.05, 0.1], rtol=0.02)


@pytest.mark.parametrize("small", [0.0, 1e-9, 1e-20])
def test_static_biases_beside_tiny_weights(small):
    """They are int32 in steps of a weight's; a layer that gives nothing but zeros must not be refused either."""
    layers, obs = (Dense(3), Dense(2, relu=False)), Box((2,))
    first = Linear(np.float32([[1, small, -1], [1, small, -1]]), np.float32([0.5, 0.7, -9]))
    weights = (first, Linear(np.eye(3, 2, dtype=np.float32), np.zeros(2, np.float32)))
    x = np.float32([[0.1, 0.2], [0.3, -0.3]])
    for within in (jax.tree.map(np.asarray, ranges(layers, obs, weights, x)), Ranges(*np.zeros((2, 3), np.float32))):
        s = engine("litert").build(layers, obs, 2, "int8-static")
        s.load(quantise.int8_static().encode(Policy((*weights, within), ())).weights)
        got = s.run(x)
        assert np.isfinite(got).all()
    s = engine("litert").build(layers, obs, 2, "int8-static")
    s.load(quantise.int8_static().encode(Policy((*weights, ranges(layers, obs, weights, x)), ())).weights)
    np.testing.assert_allclose(s.run(x), [[0.8, 0.7], [0.5, 0.7]], atol=0.02)


@pytest.mark.parametrize("name", ENGINES)
def test_wrong_use_is_refused(name):
    s = session(name, "mlp", "fp32")
    x = observations(NETS["mlp"][1], BATCH)
    with pytest.raises(RuntimeError, match="no weights yet"):
        s.run(x)
    with pytest.raises(ValueError, match=r"fp32\(\)"):
        s.load(packet("mlp", "int8"))
    s.load(packet("mlp", "fp32"))
    with pytest.raises(ValueError):
        s.run(x[:1])  # would broadcast


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_cast_is_added_and_a_factor_kept(name, dtype):
    """Bytes without a `Scale` in front, and a `Scale` of floats."""
    if (hint := engine(name).missing()) is not None:
        pytest.skip(hint)
    obs = Box((5, 4), dtype)
    layers = (*(() if dtype == "uint8" else (Scale(0.25),)), Flatten(), Dense(3, relu=False))
    x = observations(obs, 2)
    w = observations(Box((20, 3)), 1)[0]
    s = engine(name).build(layers, obs, 2, "fp32")
    s.load((Linear(w, np.zeros(3, np.float32)),))
    expected = (x * np.float32(1 if dtype == "uint8" else 0.25)).reshape(2, 20).astype(np.float32) @ w
    np.testing.assert_allclose(s.run(x), expected, rtol=1e-4, atol=1e-3)


def test_actor_engines_do_without_jax():
    """In a process of their own: engines, the quantiser, the choice and the export."""
    program = """
import sys, tempfile, pathlib
import numpy as np
from frugalrl.levers.compress import export, quantise
from frugalrl.levers.compress.engines import ENGINES, any_ranges, choose, engine, measure
from frugalrl.networks import mlp, weighted
from frugalrl.types import Box, Linear, Policy
layers, obs = mlp((16,), 2), Box((4,))
params = tuple(Linear(np.ones(s, np.float32), np.ones(s[-1], np.float32)) for _, s in weighted(layers, obs.shape))
for name in ENGINES:
    if name == "xla" or engine(name).missing():
        continue
    for mode in engine(name).modes:
        session = engine(name).build(layers, obs, 1, mode)
        session.load(quantise.COMPRESSORS[mode]().encode(Policy((*params, any_ranges(layers, obs)), ())).weights)
        assert session.run(np.ones((1, 4), np.float32)).shape == (1, 2)
choose(measure(layers, obs, 1, ("fp32", "bf16", "int8", "int8-static"), seconds=0.01), "auto")
export.export(layers, obs, params, "litert", pathlib.Path(tempfile.mkdtemp()) / "policy.tflite", "int8")
assert engine("xla").missing() is None
assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "jaxlib")]
assert "openvino_telemetry.main" not in sys.modules  # it would phone home
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_litert_weights_are_aligned_and_found():
    from frugalrl.levers.compress.engines.litert_graph import fill, template

    for mode in MODES:
        model = template(*NETS["impala"], 1, mode)
        assert bool(model.activations) == (mode == "int8-static")
        start = np.frombuffer(model.data, np.uint8).__array_interface__["data"][0]
        for slot in model.slots:
            assert (slot.w.__array_interface__["data"][0] - start) % 16 == 0
        before = bytes(model.data)
        fill(model, packet("impala", mode))
        changed = np.frombuffer(before, np.uint8) != np.frombuffer(model.data, np.uint8)
        parts = [part for slot in model.slots for part in slot if part is not None]
        parts += [part for each in model.activations for part in (*each.scales, *each.zeros)]
        assert changed.sum() <= sum(part.nbytes for part in parts)
        # nearly all of the file is weights; of a float32 that was bf16 half is zeros
        assert changed.mean() > (0.45 if mode == "bf16" else 0.9)


def test_engine_names():
    assert [engine(name).name for name in ENGINES] == list(ENGINES)
    assert "xla" not in ACTOR_ENGINES
    with pytest.raises(ValueError, match="litert"):
        engine("tflite")


def test_a_missing_package_is_named():
    assert needs("pip install it", "no_such_package")() == "pip install it"
    assert needs("pip install it", "numpy")() is None
    assert [e.name for e in usable("int8", ("litert", "numpy"))] == ["litert", "numpy"]
    assert [e.name for e in usable("int8-static", ENGINES)] == ["litert", "numpy", "xla"]
    assert usable("int4") == []


def test_measure_times_each_engine_in_each_mode():
    timings = measure(*NETS["mlp"], 2, MODES, ("litert", "numpy"), seconds=0.05)
    assert {(t.engine, t.mode) for t in timings} == {(e, m) for e in ("litert", "numpy") for m in MODES}
    assert all(0 < t.microseconds < 1e5 for t in timings)
    assert {t.engine for t in measure(*NETS["mlp"], 2, ("fp32",), seconds=0.01)} <= set(ACTOR_ENGINES)
    with pytest.raises(ValueError, match="none of the engines"):
        measure(*NETS["mlp"], 2, ("fp32",), ())


def test_choose():
    slow32, fast32 = Timing("numpy", "fp32", 20.0), Timing("litert", "fp32", 10.0)
    slow8, fast8 = Timing("numpy", "int8", 20.0), Timing("litert", "int8", 9.0)
    assert choose([slow32, fast32, slow8, fast8], "fp32") == fast32
    assert choose([slow32, fast32, slow8, fast8], "int8") == fast8
    assert choose([fast32, slow8], "int8") == slow8  # an explicit mode is obeyed, faster or not
    assert choose([slow32, fast32, fast8], "auto") == fast8
    assert choose([fast32, fast8._replace(microseconds=9.2)], "auto") == fast32  # less than a tenth
    static = Timing("litert", "int8-static", 8.0)
    assert choose([slow32, fast32, fast8, static], "auto") == static
    assert choose([slow32, slow8], "auto") == slow32
    assert choose([fast32], "auto") == fast32
    for timings, mode in (([fast32], "int8"), ([fast8], "auto")):
        with pytest.raises(ValueError):
            choose(timings, mode)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal stacks there")
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_leaves_the_signal_stack_alone(name):
    """OpenVINO leaves an unmapped one behind: the next Ctrl-C would crash the process."""

    def signal_stack() -> bytes:
        stack = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).sigaltstack(None, stack)
        return stack.raw

    before = signal_stack()
    used = session(name, "mlp", "fp32")
    for _ in range(2):
        used.load(weights("mlp"))
        used.run(observations(NETS["mlp"][1], BATCH))
        assert signal_stack() == before
    del used
    gc.collect()
    assert signal_stack() == before
