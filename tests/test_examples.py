"""The examples run as a newcomer would run them, and the exported files without JAX and without FrugalRL."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import frugalrl
from frugalrl import cli, policy
from frugalrl.evaluate import on_gymnasium
from frugalrl.levers.compress.engines import random_weights
from frugalrl.levers.compress.export import FORMATS
from frugalrl.networks import mlp
from frugalrl.training import configure
from frugalrl.types import Box, Discrete

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
ENVS = {"CartPole-v1": (4, 2, None), "LunarLander-v3": (8, 4, "Box2D")}


def python(folder: Path, *words: object, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """`python WORDS` in `folder`, where the modules `without` cannot be imported."""
    (folder / "start").mkdir(exist_ok=True)
    (folder / "start" / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n")
    path = os.pathsep.join([str(folder / "start"), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, *map(str, words)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=250, cwd=folder, env=os.environ | {"PYTHONPATH": path}
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("env", ENVS)
def test_an_exported_policy_plays_with_its_file_alone(env, format, tmp_path):
    inputs, outputs, module = ENVS[env]
    for needed in (["onnx", "onnxruntime"] if format == "onnx" else []) + ([module] if module else []):
        pytest.importorskip(needed)
    obs = Box((inputs,))
    card = policy.Card("dqn", env, obs, Discrete(outputs), mlp((16,), outputs), "epsilon_greedy", {"epsilon": 0.0})
    policy.write(tmp_path / "run", card, [random_weights(card.layers, obs, np.random.default_rng(0))])
    file = tmp_path / f"mine{FORMATS[format].suffix}"
    words = [
        "export",
        str(tmp_path / "run"),
        "--format",
        format,
        "--mode",
        "int8",
        "--out",
        str(file),
        "--episodes",
        "0",
    ]
    assert cli.main(words) == 0
    without = ("jax", "jaxlib", "frugalrl")
    for name in without:
        assert "ModuleNotFoundError" in python(tmp_path, "-c", f"import {name}", without=without).stderr
    script = EXAMPLES / "play_exported.py"
    ended = python(tmp_path, script, file.name, env, "--episodes", 3, "--seed", 5, without=without)
    assert ended.returncode == 0, ended.stderr
    returns = ast.literal_eval(ended.stdout.splitlines()[0].removeprefix("returns: "))
    call = FORMATS[format].open(file.read_bytes())
    expected = on_gymnasium(lambda obs: call(obs).argmax(-1), env, 3, seed=5, parallel=1).returns
    assert returns == pytest.approx(expected.tolist())
    assert f"mean return of 3 episodes: {np.mean(expected):.1f}" in ended.stdout


def test_the_example_refuses_actions_that_it_cannot_choose(tmp_path):
    obs = Box((3,))
    card = policy.Card("ppo", "Pendulum-v1", obs, Box((1,)), mlp((4,), 1), "normal", {"log_std": [0.0]})
    policy.write(tmp_path / "run", card, [random_weights(card.layers, obs, np.random.default_rng(0))])
    assert cli.main(["export", str(tmp_path / "run"), "--format", "litert", "--episodes", "0"]) == 0
    ended = python(tmp_path, EXAMPLES / "play_exported.py", "run/policy.tflite", "Pendulum-v1")
    assert ended.returncode == 2
    assert "see the model card, run/policy.tflite.md" in ended.stderr


def test_an_export_does_without_jax(tmp_path):
    obs = Box((4,))
    card = policy.Card("dqn", "CartPole-v1", obs, Discrete(2), mlp((4,), 2), "epsilon_greedy", {"epsilon": 0.0})
    policy.write(tmp_path / "run", card, [random_weights(card.layers, obs, np.random.default_rng(0))])
    words = ("-m", "frugalrl.cli", "export", "run", "--format", "litert", "--episodes", 2)
    ended = python(tmp_path, *words, without=("jax", "jaxlib"))
    assert (ended.returncode, ended.stdout) == (0, "run/policy.tflite\nrun/policy.tflite.md\n"), ended.stderr


@pytest.mark.long
def test_the_example_in_python_trains_and_keeps_a_policy(tmp_path):
    ended = python(tmp_path, EXAMPLES / "train_and_keep.py")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "cartpole-policy" / "policy.json").is_file()
    assert float(ended.stdout.rpartition(" ")[2]) > 300


def cells(notebook: Path) -> list[str]:
    """The code of a notebook, without the first cell, which installs."""
    found = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in found)
    first, *others = ("".join(cell["source"]) for cell in found)
    assert first.startswith("%pip install")
    return others


def test_notebooks_are_python_and_their_calls_of_train_are_right():
    assert len(NOTEBOOKS) == 2
    for notebook in NOTEBOOKS:
        tree = ast.parse("\n".join(cells(notebook)))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        trains = [call for call in calls if ast.unparse(call.func) == "frugalrl.train"]
        assert trains
        known = inspect.signature(frugalrl.train).parameters.keys() | inspect.signature(configure).parameters.keys()
        assert {keyword.arg for call in trains for keyword in call.keywords if keyword.arg} <= known


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "3000")
    ended = python(tmp_path, "-c", "\n".join(cells(notebook)))
    assert ended.returncode == 0, ended.stderr
    assert any((tmp_path / "runs").glob("*/report.html"))
