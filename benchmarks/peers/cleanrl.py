"""Runs one of CleanRL's scripts for one seed and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, on a checkout of the pinned commit,
with a `Task` as JSON:

    JAX_PLATFORMS=cpu .venv-peers/cleanrl/bin/python -m benchmarks.peers.cleanrl CHECKOUT \\
        '{"algorithm": "ppo", "env": "CartPole-v1", "steps": 20000, "options": {"num-steps": 128}}'

A script runs unchanged but for two numbers of `dqn_jax` and `c51_jax`: their hidden layers, 120 and 84 units, become
`hidden` units each, in a copy that is deleted afterwards; those of the PPO scripts are 64 and 64 tanh units. `options`
are its own flags. It has no switch for its logging, so the TensorBoard writer it imports is an empty one here and what
it prints is not shown. `wall_seconds` runs from the first line of the script to its last, with the packages it needs
already imported (`import_seconds`); `loop_seconds` is its training loop alone, by its own clock. Both contain JAX's
compilation; `warm_seconds` had passed after `warm_steps`, when the script, having learned, next wrote to its log, as it
does at least every 100 steps. `mean_return` is that of greedy episodes for those two, and of the last training episodes
for the others.
"""
# pyright: reportMissingImports=false
# Torch, Flax and tyro live in the peer's environment, not in ours.

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.peers.common import Task, clock, greedy_returns

COMMIT = "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"
SHA256 = {
    "dqn_jax": "c24d0dd56ec8bc29863d3d414ec743550f2d534bbb536b52f86288f144072426",
    "c51_jax": "076decbdd10bb92a9b86463799ddb74e6072987bb297d668e3dd9697b2be77a5",
    "ppo": "d8dfbb7ac0b21e747b77d6e6673e566db4d6cdacc83bcebcd19cf87ad0e459ae",
    "ppo_continuous_action": "326dd8678bf9cc51abec833eb551ef2409a3804d604b689e1f0a084eca41f655",
}
VALUES = ("dqn_jax", "c51_jax")  # of actions, in networks of any width
HOW_TO_GET = (
    f"git clone https://github.com/vwxyzjn/cleanrl CHECKOUT && git -C CHECKOUT checkout {COMMIT}, "
    "then pass CHECKOUT in the variable CLEANRL_SOURCE"
)


class NoWriter:
    """Takes the place of TensorBoard's SummaryWriter and writes nothing; `mark` is told the steps so far."""

    def __init__(self, mark: Callable[[int], None], *_: object, **__: object) -> None:
        self.mark = mark

    def add_text(self, *_: object, **__: object) -> None: ...

    def add_scalar(self, tag: str, value: object, step: int) -> None:
        self.mark(step)

    def close(self) -> None: ...


def text_of(checkout: Path, task: Task) -> str:
    """The text of a script, both hidden layers of those in `VALUES` as wide as the task asks.

    Raises FileNotFoundError without a checkout, ValueError when the file is not that of the pinned commit.
    """
    path = checkout / "cleanrl" / f"{task.algorithm}.py"
    if not path.is_file():
        raise FileNotFoundError(f"no CleanRL at {checkout}: {HOW_TO_GET}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[task.algorithm]:
        raise ValueError(f"{path} is not the file of the pinned commit: {HOW_TO_GET}")
    text = content.decode()
    for units, wanted in zip((120, 84), task.hidden, strict=True):
        if task.algorithm not in VALUES:
            break
        text, replaced = re.subn(rf"nn\.Dense\({units}\)", f"nn.Dense({wanted})", text)
        if replaced != 1:
            raise ValueError(f"expected one layer of {units} units in {path}, found {replaced}")
    return text


def flags(task: Task) -> list[str]:
    """The task in the script's own flags."""
    values = {"env-id": task.env, "seed": task.seed, "total-timesteps": task.steps} | task.options
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def import_packages(checkout: Path, mark: Callable[[int], None]) -> dict[str, str]:
    """Import all that the script imports, with the empty writer in place and `clip` as it was; returns the versions."""
    import flax
    import flax.linen
    import flax.training.train_state
    import gymnasium
    import jax
    import jax.numpy
    import optax
    import torch
    import tyro  # noqa: F401

    writer = ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = partial(NoWriter, mark)  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = writer
    sys.path.insert(0, str(checkout))
    import cleanrl_utils.buffers  # noqa: F401

    clip = jax.numpy.clip  # whose bounds had other names until jax 0.7
    jax.numpy.clip = lambda x, a_min=None, a_max=None: clip(x, a_min, a_max)  # type: ignore[assignment]
    modules = {"jax": jax, "flax": flax, "optax": optax, "torch": torch, "gymnasium": gymnasium}
    return {"cleanrl": COMMIT} | {name: module.__version__ for name, module in modules.items()}


def greedy_action(layers: list[tuple[np.ndarray, np.ndarray]], atoms: np.ndarray | None, observation: Any) -> int:
    """The best action of an MLP with ReLU between its `layers`, pairs of a kernel [in, out] and a bias [out].

    With `atoms` its outputs are the logits of those returns, action by action.
    """
    hidden = observation
    for kernel, bias in layers[:-1]:
        hidden = np.maximum(hidden @ kernel + bias, 0)
    kernel, bias = layers[-1]
    outputs = hidden @ kernel + bias
    if atoms is not None:
        logits = outputs.reshape(-1, atoms.size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        outputs = weights @ atoms / weights.sum(-1)
    return int(np.argmax(outputs))


def run_script(text: str, task: Task) -> tuple[dict[str, Any], str]:
    """Run the script `text` as the main program; returns its global variables and what it printed."""
    printed = io.StringIO()
    arguments_before, directory_before = sys.argv, Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{task.algorithm}.py"
        path.write_text(text)
        try:
            os.chdir(scratch)
            sys.argv = [str(path), *flags(task)]
            with contextlib.redirect_stdout(printed):
                variables = runpy.run_path(str(path), run_name="__main__")
        finally:
            sys.argv = arguments_before
            os.chdir(directory_before)
    return variables, printed.getvalue()


def value_returns(variables: dict[str, Any], task: Task) -> list[float]:
    """Of greedy episodes. Raises RuntimeError if another network was trained than was asked for."""
    parameters = variables["q_state"].params["params"]
    layers = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for _, layer in sorted(parameters.items())]
    if [bias.size for _, bias in layers[:-1]] != list(task.hidden):
        raise RuntimeError(f"the network that was trained is {[bias.size for _, bias in layers]}")
    atoms = np.asarray(variables["q_state"].atoms) if task.algorithm == "c51_jax" else None
    return greedy_returns(task.env, partial(greedy_action, layers, atoms), task.episodes)


def train(task: Task, checkout: Path) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    text = text_of(checkout, task)
    options = task.options
    rollout = int(options.get("num-envs", 1)) * int(options.get("num-steps", 1))
    copied = int(options.get("target-network-frequency", 0))  # a copy is compiled too
    mark, warm = clock(task, int(options.get("learning-starts", rollout)) + copied)
    imports_from = time.perf_counter()
    versions = import_packages(checkout, mark)
    import_seconds = time.perf_counter() - imports_from
    began = time.time()
    variables, printed = run_script(text, task)
    ended = time.time()
    if task.algorithm in VALUES:
        returns, updates = value_returns(variables, task), int(variables["q_state"].step)
    else:
        found = re.findall(r"episodic_return=\[?(-?[\d.]+)", printed)
        returns, updates = [float(x) for x in found[-task.episodes :]], 0
    own_rates = re.findall(r"SPS: (\d+)", printed)
    return {
        "peer": f"cleanrl {task.algorithm}",
        "steps": task.steps,
        "updates": updates,
        "wall_seconds": ended - began,
        "warm_steps": warm["warm_steps"],
        "warm_seconds": warm["warm_at"] - began,
        "loop_seconds": ended - variables["start_time"],
        "own_steps_per_second": int(own_rates[-1]) if own_rates else None,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(returns) / len(returns),
        "versions": versions,
    }


if __name__ == "__main__":
    print(json.dumps(train(Task(**json.loads(sys.argv[2])), Path(sys.argv[1]).resolve())))
