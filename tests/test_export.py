"""An exported file, run by the format's own runtime, computes what the network does."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from frugalrl.levers.compress import export as module
from frugalrl.levers.compress.export import export
from frugalrl.levers.compress.quantise import int8
from frugalrl.networks import minatar_cnn, mlp, nature_cnn, network, normalised
from frugalrl.types import Box, Policy

NETS = {
    "mlp": (mlp((64, 64), 4), Box((8,))),
    "minatar": (minatar_cnn(6), Box((10, 10, 4), "bool", 0, 1)),
    "nature": (nature_cnn(6), Box((84, 84, 4), "uint8", 0, 255)),
    "mlp, normalised": (normalised(mlp((64, 64), 4)), Box((8,))),
    "minatar, normalised": (normalised(minatar_cnn(6)), Box((10, 10, 4), "bool", 0, 1)),
}
SUFFIX = {"onnx": "onnx", "litert": "tflite"}
NOTES = {"agent": "dqn", "env": "CartPole-v1"}


def setting(net: str, rows: int):
    layers, obs = NETS[net]
    rng = np.random.default_rng(0)
    params = network(layers, obs).init(jax.random.key(0))
    x = rng.integers(0, 2 if obs.dtype == "bool" else 256, (rows, *obs.shape), np.uint8)
    x = rng.standard_normal(x.shape, np.float32) if obs.dtype == "float32" else x
    return params, x, np.asarray(jax.vmap(network(layers, obs).apply, (None, 0))(params, x))


def run_onnx(path, x: np.ndarray) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(["outputs"], {"obs": x})
    assert session.get_modelmeta().custom_metadata_map == NOTES
    return outputs


def run_litert(path, x: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (before,), (after,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (before["name"], after["name"]) == ("obs", "outputs")

    def one(row: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(before["index"], row[None])
        interpreter.invoke()
        return interpreter.get_tensor(after["index"])

    return np.concatenate([one(row) for row in x])


RUN = {"onnx": run_onnx, "litert": run_litert}


@pytest.mark.parametrize("mode", ["fp32", "int8"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("format", RUN)
def test_the_file_computes_what_the_network_does(tmp_path, format, net, mode):
    for rows in (1, 5):
        params, x, expected = setting(net, rows)
        path = export(*NETS[net], params, format, tmp_path / f"policy.{SUFFIX[format]}", mode, NOTES)
        outputs = RUN[format](path, x)
        assert outputs.shape == expected.shape
        assert abs(outputs - expected).max() < (1e-4 if mode == "fp32" else 5e-2) * abs(expected).max()
    full = sum(w.size + b.size for w, b in params) * 4
    assert path.stat().st_size < (1.1 * full if mode == "fp32" else 0.35 * full) + 8000


def test_onnx_files_are_valid(tmp_path):
    onnx = pytest.importorskip("onnx")
    for net in NETS:
        for mode in ("fp32", "int8"):
            params, _, _ = setting(net, 1)
            onnx.checker.check_model(
                str(export(*NETS[net], params, "onnx", tmp_path / "p.onnx", mode)), full_check=True
            )


def test_litert_files_carry_notes(tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    path = export(*NETS["mlp"], setting("mlp", 1)[0], "litert", tmp_path / "p.tflite", notes=NOTES)
    model = schema.Model.GetRootAs(path.read_bytes())
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    read = {e.Name().decode(): model.Buffers(e.Buffer()).DataAsNumpy().tobytes().decode() for e in entries}
    assert read == NOTES


@pytest.mark.parametrize("format", RUN)
def test_weights_of_either_kind_are_taken(tmp_path, format):
    params, x, _ = setting("mlp", 2)
    quantised = int8().encode(Policy(params, ())).weights
    decoded = int8().decode(int8().encode(Policy(params, ()))).params

    def outputs(weights, mode: str) -> np.ndarray:
        return RUN[format](export(*NETS["mlp"], weights, format, tmp_path / "p", mode, NOTES), x)

    np.testing.assert_array_equal(outputs(quantised, "int8"), outputs(params, "int8"))
    np.testing.assert_array_equal(outputs(quantised, "fp32"), outputs(decoded, "fp32"))


def test_wrong_calls_write_nothing(tmp_path, monkeypatch):
    params, _, _ = setting("mlp", 1)
    for format, mode, says in (("torch", "fp32", "litert"), ("onnx", "int4", "int8")):
        with pytest.raises(ValueError, match=says):
            export(*NETS["mlp"], params, format, tmp_path / "p", mode)
    absent = module.engine("onnxruntime")._replace(missing=lambda: "pip install 'frugalrl[engines]'")
    monkeypatch.setattr(module, "engine", lambda name: absent)
    with pytest.raises(ValueError, match=r"frugalrl\[engines\]"):
        export(*NETS["mlp"], params, "onnx", tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    params, _, _ = setting("mlp", 1)
    path = export(*NETS["mlp"], params, "litert", tmp_path / "p.tflite")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export(*NETS["mlp"], params, "litert", path, "int8")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
