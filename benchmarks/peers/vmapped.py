"""Trains PPO or DQN of Rejax or PureJaxRL, all seeds of a task in one compiled program, and prints one JSON line.

Run in the peers' own environment (see `setup.sh`), from the root of the project, with a `Task` as JSON whose algorithm
is `rejax ppo`, `rejax dqn`, `purejaxrl ppo` or `purejaxrl dqn`, the last two on a checkout of the pinned commit:

    JAX_PLATFORMS=cpu .venv-peers/jax/bin/python -m benchmarks.peers.vmapped CHECKOUT \\
        '{"algorithm": "rejax ppo", "env": "CartPole-v1", "steps": 100000, "seeds": 8, "options": {"num_steps": 128}}'

Neither evaluates while it trains. `wall_seconds` contains tracing and compilation, and not the imports
(`import_seconds`). `mean_return` of Rejax is that of greedy or sampled episodes as its own evaluation plays them, after
the clock has stopped; that of PureJaxRL of the last training episodes. Of PureJaxRL's imports, Brax, Navix and wandb
are left out: its classic control uses none of them. Its PPO with several seeds starts from normal weights instead of
orthogonal ones, at the same scale: LAPACK's calls of 32 seeds wait for each other's threads and the program hangs (jax
0.10.2, 2 cores). Its DQN runs unchanged but for its hidden layers, 120 and 84 units, which become as wide as the task
asks; Rejax's DQN, whose layers are always 64 wide, is given a network of that kind and of the width asked for.
"""
# pyright: reportMissingImports=false
# Rejax, Gymnax and Flax live in the peers' environment, not in ours.

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.common import Task

COMMIT = "31756b197773a52db763fdbe6d635e4b46522a73"
UNUSED = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix", "wandb")


def rejax(task: Task, algorithm: str) -> tuple[Callable, Callable]:
    """(train, evaluate): key -> result, and result -> mean returns."""
    import jax

    library = import_module("rejax")
    hidden = {"activation": "relu"} | ({"hidden_layer_sizes": tuple(task.hidden)} if algorithm == "ppo" else {})
    made = library.get_algo(algorithm).create(
        env=task.env, total_timesteps=task.steps, eval_freq=task.steps, skip_initial_evaluation=True,
        num_envs=task.num_envs, agent_kwargs=hidden, **task.options,
    )  # fmt: skip
    if algorithm == "dqn":
        made = made.replace(agent=made.agent.clone(hidden_layer_sizes=tuple(task.hidden)))
    plays = made.eval_callback
    silent = made.replace(eval_callback=lambda algo, state, key: ())

    def evaluate(result):
        return jax.jit(jax.vmap(lambda state: plays(made, state, state.rng)[1].mean()))(result[0])

    return silent.train, evaluate


def purejaxrl(task: Task, algorithm: str, checkout: Path) -> tuple[Callable, Callable]:
    """The same of PureJaxRL's `ppo.py` or `dqn.py`."""
    for name in UNUSED:
        sys.modules[name] = ModuleType(name)
    sys.modules["brax"].envs = sys.modules["brax.envs"]  # type: ignore[attr-defined]
    wrappers: Any = sys.modules["brax.envs.wrappers.training"]
    wrappers.EpisodeWrapper = wrappers.AutoResetWrapper = None
    sys.path.insert(0, str(checkout / "purejaxrl"))
    config = {"ENV_NAME": task.env, "TOTAL_TIMESTEPS": task.steps, "NUM_ENVS": task.num_envs, **task.options}
    make_train = (_ppo if algorithm == "ppo" else _dqn)(task, checkout)
    name = {"ppo": "returned_episode_returns", "dqn": "returns"}[algorithm]

    def evaluate(result):
        return result["metrics"][name][:, -1].reshape(task.seeds, -1).mean(-1)

    return make_train({"ACTIVATION": "relu", "DEBUG": False} | config), evaluate


def _ppo(task: Task, checkout: Path) -> Callable:
    if task.seeds > 1:
        initializers: Any = import_module("flax.linen.initializers")
        initializers.orthogonal = lambda scale: initializers.variance_scaling(scale**2, "fan_in", "normal")
    return import_module("ppo").make_train


def _dqn(task: Task, checkout: Path) -> Callable:
    import jax

    jax.tree_map = jax.tree.map  # type: ignore[attr-defined]  # its name until jax 0.4.25
    text = (checkout / "purejaxrl" / "dqn.py").read_text()
    for units, wanted in zip((120, 84), task.hidden, strict=True):
        text, replaced = re.subn(rf"nn\.Dense\({units}\)", f"nn.Dense({wanted})", text)
        if replaced != 1:
            raise ValueError(f"expected one layer of {units} units in dqn.py, found {replaced}")
    script = sys.modules["dqn"] = ModuleType("dqn")
    exec(compile(text, "dqn.py", "exec"), vars(script))
    return script.make_train


def train(task: Task, checkout: Path) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    import jax

    peer, _, algorithm = task.algorithm.partition(" ")
    run, evaluate = rejax(task, algorithm) if peer == "rejax" else purejaxrl(task, algorithm, checkout)
    keys = jax.random.split(jax.random.PRNGKey(task.seed), task.seeds)
    import_seconds = time.perf_counter() - imports_from
    began = time.time()
    compiled = jax.jit(jax.vmap(run)).lower(keys).compile()
    compile_seconds = time.time() - began
    result = jax.block_until_ready(compiled(keys))
    ended = time.time()
    returns = [float(x) for x in evaluate(result)]
    per_iteration = task.num_envs * int(task.options.get("num_steps") or task.options.get("NUM_STEPS") or 1)
    return {
        "peer": peer,
        "steps": task.seeds * (task.steps // per_iteration) * per_iteration,
        "updates": 0,
        "wall_seconds": ended - began,
        "compile_seconds": compile_seconds,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(returns) / len(returns),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "gymnax", "rejax", "flashbax")},
    }


if __name__ == "__main__":
    print(json.dumps(train(Task(**json.loads(sys.argv[2])), Path(sys.argv[1]).resolve())))
