"""Trains PPO of Rejax or PureJaxRL, all seeds of a task in one compiled program, and prints one JSON line.

Run in the peers' own environment (see `setup.sh`), from the root of the project, with a `Task` as JSON whose algorithm
is `rejax`, or `purejaxrl CHECKOUT`:

    JAX_PLATFORMS=cpu .venv-peers/jax/bin/python -m benchmarks.peers.jax_ppo \\
        '{"algorithm": "rejax", "env": "CartPole-v1", "steps": 100000, "seeds": 8, "options": {"num_steps": 128}}'

Neither evaluates while it trains. `wall_seconds` contains tracing and compilation, and not the imports
(`import_seconds`). `mean_return` of Rejax is that of greedy or sampled episodes as its own evaluation plays them, after
the clock has stopped; that of PureJaxRL of the last training episodes. Of PureJaxRL's imports, Brax and Navix are left
out: its classic control does not use them. With several seeds its weights start normal instead of orthogonal, at the
same scale: LAPACK's calls of 32 seeds wait for each other's threads and the program hangs (jax 0.10.2, 2 cores).
"""
# pyright: reportMissingImports=false
# Rejax, Gymnax and Flax live in the peers' environment, not in ours.

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.common import Task

COMMIT = "31756b197773a52db763fdbe6d635e4b46522a73"


def rejax(task: Task) -> tuple[Callable, Callable]:
    """(train, evaluate): key -> result, and result -> mean returns."""
    import jax

    library = import_module("rejax")
    hidden = {"activation": "relu", "hidden_layer_sizes": tuple(task.hidden)}
    made = library.get_algo("ppo").create(
        env=task.env, total_timesteps=task.steps, eval_freq=task.steps, skip_initial_evaluation=True,
        num_envs=task.num_envs, agent_kwargs=hidden, **task.options,
    )  # fmt: skip
    plays = made.eval_callback
    silent = made.replace(eval_callback=lambda algo, state, key: ())

    def evaluate(result):
        return jax.jit(jax.vmap(lambda state: plays(made, state, state.rng)[1].mean()))(result[0])

    return silent.train, evaluate


def purejaxrl(task: Task) -> tuple[Callable, Callable]:
    """The same of PureJaxRL's `ppo.py`, in the checkout that the algorithm names."""
    checkout = Path(task.algorithm.partition(" ")[2], "purejaxrl")
    for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
        sys.modules[name] = ModuleType(name)
    sys.modules["brax"].envs = sys.modules["brax.envs"]  # type: ignore[attr-defined]
    wrappers: Any = sys.modules["brax.envs.wrappers.training"]
    wrappers.EpisodeWrapper = wrappers.AutoResetWrapper = None
    if task.seeds > 1:
        initializers: Any = import_module("flax.linen.initializers")
        initializers.orthogonal = lambda scale: initializers.variance_scaling(scale**2, "fan_in", "normal")
    sys.path.insert(0, str(checkout))
    script: Any = import_module("ppo")
    config = {
        "ENV_NAME": task.env, "TOTAL_TIMESTEPS": task.steps, "NUM_ENVS": task.num_envs, "ACTIVATION": "relu",
        "DEBUG": False, **task.options,
    }  # fmt: skip

    def evaluate(result):
        return result["metrics"]["returned_episode_returns"][:, -1].reshape(task.seeds, -1).mean(-1)

    return script.make_train(config), evaluate


def train(task: Task) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    import jax

    run, evaluate = (rejax if task.algorithm == "rejax" else purejaxrl)(task)
    keys = jax.random.split(jax.random.PRNGKey(task.seed), task.seeds)
    import_seconds = time.perf_counter() - imports_from
    began = time.time()
    compiled = jax.jit(jax.vmap(run)).lower(keys).compile()
    compile_seconds = time.time() - began
    result = jax.block_until_ready(compiled(keys))
    ended = time.time()
    returns = [float(x) for x in evaluate(result)]
    per_iteration = task.num_envs * int(task.options.get("num_steps", 0) or task.options["NUM_STEPS"])
    return {
        "peer": task.algorithm.partition(" ")[0],
        "steps": task.seeds * (task.steps // per_iteration) * per_iteration,
        "updates": 0,
        "wall_seconds": ended - began,
        "compile_seconds": compile_seconds,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(returns) / len(returns),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "gymnax", "rejax")},
    }


if __name__ == "__main__":
    print(json.dumps(train(Task(**json.loads(sys.argv[1])))))
