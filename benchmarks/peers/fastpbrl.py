"""Times an update of fastpbrl's populations (Flajolet et al. 2022, arXiv 2206.08888) and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, on a checkout of the pinned commit,
with a `Task` as JSON, whose `steps` are updates of each member and whose algorithm is `td3` or `sac`:

    JAX_PLATFORMS=cpu .venv-peers/fastpbrl/bin/python -m benchmarks.peers.fastpbrl CHECKOUT \\
        '{"algorithm": "td3", "env": "HalfCheetah-v5", "steps": 20, "hidden": [256, 256],
          "options": {"method": "vectorised", "members": 8}}'

It is timed by its own `timing_scripts`, ten updates of random batches a call, the first two calls left out. It is of
jax 0.2 and Gym 0.18: names that JAX has dropped since are given back, and of Gym, whose environments it only asks for
their shapes, Gymnasium stands in.
"""
# pyright: reportMissingImports=false
# Haiku, RLax and TensorFlow Probability live in the peer's environment, not in ours.

from __future__ import annotations

import json
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.common import Task

COMMIT = "a5f7f1360b091b8c045f27081de8f5380930381d"
AT_ONCE = 10  # updates a call
LEFT_OUT = 2  # calls
PACKAGES = ("jax", "dm-haiku", "rlax", "optax", "numpy")


class Spaces(NamedTuple):
    """What is asked of an environment."""

    observation_space: Any
    action_space: Any

    def reset(self) -> Any:
        return self.observation_space.sample()


def today(checkout: Path) -> None:
    """The names that it needs."""
    import gymnasium
    import jax

    sys.path.insert(0, str(checkout))
    sys.modules["gym"] = gymnasium
    old: Any = jax
    for name in ("map", "leaves", "flatten", "unflatten"):
        setattr(old, f"tree_{name}", getattr(jax.tree, name))
    old.tree_multimap = old.tree_util.tree_multimap = jax.tree.map
    old.numpy.DeviceArray = jax.Array

    def spaces(name: str, rescale_action: bool = True) -> Spaces:
        env = gymnasium.make(name)
        return Spaces(env.observation_space, env.action_space)

    utils: Any = import_module("fastpbrl.utils")
    utils.make_gym_env = spaces


def measure(task: Task, checkout: Path) -> dict[str, object]:
    """Time it; `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    today(checkout)
    timing, common = (import_module(f"timing_scripts.{name}") for name in ("time_train_step_jax", "td3_sac_common"))
    import_seconds, began = time.perf_counter() - imports_from, time.time()
    vectorised, members = task.options["method"] == "vectorised", task.options["members"]
    settings = common.MeasureConfig(
        use_gpu=False, batch_size=256, num_steps_at_once=AT_ONCE, population_size=members,
        num_iterations=LEFT_OUT + max(1, task.steps // AT_ONCE),
        method=common.Method.VECTORIZED if vectorised else common.Method.SEQUENTIAL, env_name=task.env,
        use_td3=task.algorithm == "td3", hidden_layer_sizes=tuple(task.hidden),
    )  # fmt: skip
    run = timing.measure_runtimes_jax_vectorized if vectorised else timing.measure_runtimes_jax_sequential
    seconds, compile_seconds = run(settings)
    ended = time.time()
    return {
        "peer": "fastpbrl",
        "steps": task.steps * members,
        "updates": task.steps * members,
        "seconds_per_update": float(seconds),  # of all members
        "wall_seconds": ended - began,
        "compile_seconds": float(compile_seconds),
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": None,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    print(json.dumps(measure(Task(**json.loads(sys.argv[2])), Path(sys.argv[1]).resolve())))
