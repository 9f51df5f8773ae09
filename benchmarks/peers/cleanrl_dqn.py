"""Runs CleanRL's `cleanrl/dqn_jax.py` for one seed at the shared settings and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, on a checkout of the pinned commit:

    JAX_PLATFORMS=cpu .venv-peers/cleanrl/bin/python -m benchmarks.peers.cleanrl_dqn --source CHECKOUT --steps 20000

The script runs unchanged but for two numbers: its hidden layers, 120 and 84 units, become `--width` units each, in a
copy that is deleted afterwards. Its settings come through its own flags; its loss is its own (squared error). It has no
switch for its logging, so the TensorBoard writer it imports is an empty one here and what it prints is not shown.
`wall_seconds` runs from the first line of the script to its last, with the packages it needs already imported
(`import_seconds`); `loop_seconds` is its training loop alone, by its own clock. Both contain JAX's compilation.
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
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.peers.common import Settings, greedy_returns, parser, settings_from

COMMIT = "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"
SCRIPT_SHA256 = "c24d0dd56ec8bc29863d3d414ec743550f2d534bbb536b52f86288f144072426"
HOW_TO_GET = (
    f"git clone https://github.com/vwxyzjn/cleanrl CHECKOUT && git -C CHECKOUT checkout {COMMIT}, "
    "then pass CHECKOUT as --source or in the variable CLEANRL_SOURCE"
)


class NoWriter:
    """Takes the place of TensorBoard's SummaryWriter and writes nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def add_text(self, *_: object, **__: object) -> None: ...

    def add_scalar(self, *_: object, **__: object) -> None: ...

    def close(self) -> None: ...


def resized_script(checkout: Path, width: int) -> str:
    """The text of `dqn_jax.py` with both hidden layers `width` units wide.

    Raises FileNotFoundError without a checkout, ValueError when the file is not that of the pinned commit.
    """
    path = checkout / "cleanrl" / "dqn_jax.py"
    if not path.is_file():
        raise FileNotFoundError(f"no CleanRL at {checkout}: {HOW_TO_GET}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SCRIPT_SHA256:
        raise ValueError(f"{path} is not the file of the pinned commit: {HOW_TO_GET}")
    text = content.decode()
    for units in (120, 84):
        text, replaced = re.subn(rf"nn\.Dense\({units}\)", f"nn.Dense({width})", text)
        if replaced != 1:
            raise ValueError(f"expected one layer of {units} units in {path}, found {replaced}")
    return text


def flags(settings: Settings) -> list[str]:
    """`settings` in the script's own flags."""
    values = {
        "env-id": settings.env,
        "seed": settings.seed,
        "total-timesteps": settings.steps,
        "learning-rate": settings.learning_rate,
        "buffer-size": settings.replay,
        "gamma": settings.gamma,
        "tau": 1.0,
        "target-network-frequency": settings.target_every,
        "batch-size": settings.batch,
        "start-e": settings.epsilon_start,
        "end-e": settings.epsilon_end,
        "exploration-fraction": settings.exploration_fraction,
        "learning-starts": settings.learning_starts,
        "train-frequency": settings.update_every,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def import_packages(checkout: Path) -> dict[str, str]:
    """Import all that the script imports, with the empty writer in place; returns the versions."""
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
    writer.SummaryWriter = NoWriter  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = writer
    sys.path.insert(0, str(checkout))
    import cleanrl_utils.buffers  # noqa: F401

    modules = {"jax": jax, "flax": flax, "optax": optax, "torch": torch, "gymnasium": gymnasium}
    return {"cleanrl": COMMIT} | {name: module.__version__ for name, module in modules.items()}


def greedy_action(layers: list[tuple[np.ndarray, np.ndarray]], observation: np.ndarray) -> int:
    """The best action of an MLP with ReLU between its `layers`, pairs of a kernel [in, out] and a bias [out]."""
    hidden = observation
    for kernel, bias in layers[:-1]:
        hidden = np.maximum(hidden @ kernel + bias, 0)
    kernel, bias = layers[-1]
    return int(np.argmax(hidden @ kernel + bias))


def run_script(text: str, settings: Settings) -> tuple[dict[str, Any], str]:
    """Run the script `text` as the main program; returns its global variables and what it printed."""
    printed = io.StringIO()
    arguments_before, directory_before = sys.argv, Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "dqn_jax.py"
        path.write_text(text)
        try:
            os.chdir(scratch)
            sys.argv = [str(path), *flags(settings)]
            with contextlib.redirect_stdout(printed):
                variables = runpy.run_path(str(path), run_name="__main__")
        finally:
            sys.argv = arguments_before
            os.chdir(directory_before)
    return variables, printed.getvalue()


def train(settings: Settings, checkout: Path) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    text = resized_script(checkout, settings.width)
    imports_from = time.perf_counter()
    versions = import_packages(checkout)
    import_seconds = time.perf_counter() - imports_from
    began = time.time()
    variables, printed = run_script(text, settings)
    ended = time.time()
    state = variables["q_state"]
    parameters = state.params["params"]
    layers = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for _, layer in sorted(parameters.items())]
    if [bias.size for _, bias in layers[:-1]] != [settings.width, settings.width]:
        raise RuntimeError(f"the network that was trained is {[bias.size for _, bias in layers]}")
    returns = greedy_returns(settings.env, lambda observation: greedy_action(layers, observation))
    own_rates = re.findall(r"SPS: (\d+)", printed)
    return {
        "peer": "cleanrl dqn_jax",
        "steps": settings.steps,
        "updates": int(state.step),
        "wall_seconds": ended - began,
        "loop_seconds": ended - variables["start_time"],
        "own_steps_per_second": int(own_rates[-1]) if own_rates else None,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(returns) / len(returns),
        "versions": versions,
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--source", default=os.environ.get("CLEANRL_SOURCE"), help="a checkout of CleanRL")
    parsed = command.parse_args()
    if not parsed.source:
        command.error(f"no --source: {HOW_TO_GET}")
    print(json.dumps(train(settings_from(parsed), Path(parsed.source).resolve())))


if __name__ == "__main__":
    main()
