"""The examples run as a newcomer would run them, and the exported files without JAX and without FrugalRL."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import frugalrl
from frugalrl import cli, policy
from frugalrl.evaluate import on_gymnasium
from frugalrl.levers.compress.card import HEADS, code
from frugalrl.levers.compress.engines import random_weights
from frugalrl.levers.compress.export import FORMATS
from frugalrl.networks import mlp
from frugalrl.training import configure
from frugalrl.types import Box, Discrete

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "play_exported.py"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
ENVS = {  # actions, how they come of the outputs, and what the environment needs
    "CartPole-v1": (4, Discrete(2), "epsilon_greedy", {"epsilon": 0.0}, 2, None),
    "LunarLander-v3": (
        8,
        Discrete(4),
        "distributional_greedy",
        {"v_min": 0.0, "v_max": 9.0, "epsilon": 0.0, "actions": [0.0] * 4},
        12,
        "Box2D",
    ),
    "Pendulum-v1": (
        3,
        Box((1,), "float32", (-2.0,), (2.0,)),
        "tanh_normal",
        {"low": [-2.0], "high": [2.0], "random": 0.0},
        2,
        None,
    ),
}


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
def test_an_exported_policy_plays_with_its_files_alone(env, format, tmp_path):
    inputs, actions, head, knobs, outputs, module = ENVS[env]
    for needed in (["onnx", "onnxruntime"] if format == "onnx" else []) + ([module] if module else []):
        pytest.importorskip(needed)
    obs, run = Box((inputs,)), tmp_path / "run"
    card = policy.Card("sac", env, obs, actions, mlp((16,), outputs), head, knobs)
    policy.write(run, card, [random_weights(card.layers, obs, np.random.default_rng(0))])
    file = run / f"mine{FORMATS[format].suffix}"
    words = ["export", run, "--format", format, "--mode", "int8", "--out", file, "--episodes", "0"]
    assert cli.main([str(word) for word in words]) == 0
    without = ("jax", "jaxlib", "frugalrl")
    for name in without:
        assert "ModuleNotFoundError" in python(tmp_path, "-c", f"import {name}", without=without).stderr
    ended = python(tmp_path, SCRIPT, f"run/{file.name}", env, without=without)
    assert ended.returncode == 0, ended.stderr
    returns = ast.literal_eval(ended.stdout.splitlines()[0].removeprefix("returns: "))
    call = FORMATS[format].open(file.read_bytes())

    def act(obs):
        if head == "tanh_normal":
            return 2 * np.tanh(call(obs)[:, :1])
        if head == "epsilon_greedy":
            return call(obs).argmax(-1)
        chances = np.exp(call(obs).reshape(-1, 4, 3))
        return (chances[..., 1:] @ [4.5, 9.0] / chances.sum(-1)).argmax(-1)

    expected = on_gymnasium(act, env, 10, seed=0, parallel=1)
    assert returns == pytest.approx(expected.returns.tolist(), rel=1e-4)
    assert f"mean return of 10 episodes: {np.mean(returns):.1f}" in ended.stdout


def test_the_python_of_a_card_has_fifteen_lines():
    box = {"low": [-1.0], "high": [None], "n": 2}
    for head in HEADS:
        for format in FORMATS:
            facts = {"head": head, "actions": box, "observations": {"dtype": "float32"}}
            text = code(facts | {"file": {"format": format, "name": "policy"}})
            assert "def act(obs):" in text
            assert 0 < len([line for line in text.splitlines() if line.strip()]) <= 15


def test_nothing_that_a_file_says_is_run():
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Call)}
    assert not called & {"exec", "eval", "compile", "__import__"}


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
    (place, extras), *_ = re.findall(r"^%pip install -q '?([^'\[]+)(?:\[(\w+)\])?'?$", first)
    project = tomllib.loads((notebook.parent / place / "pyproject.toml").read_text())["project"]
    assert project["name"] == "frugalrl"
    assert extras in ("", *project["optional-dependencies"])
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
        assert re.search(r'quiet=False|"quiet": False', "\n".join(cells(notebook)))


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "3000")
    ended = python(tmp_path, "-c", "\n".join(cells(notebook)))
    assert ended.returncode == 0, ended.stderr
    assert any((tmp_path / "runs").glob("*/report.html"))
