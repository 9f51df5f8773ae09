"""Trains DQN or Rainbow of Dopamine, or of Revisiting Rainbow's own code, for one seed and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, with a `Task` as JSON whose algorithm
is the name of an agent's class:

    JAX_PLATFORMS=cpu .venv-peers/dopamine/bin/python -m benchmarks.peers.dopamine . \\
        '{"algorithm": "JaxDQNAgent", "env": "CartPole-v1", "steps": 5000, "options": {"JaxDQNAgent.update_period": 4}}'
    JAX_PLATFORMS=cpu .venv-peers/revisiting/bin/python -m benchmarks.peers.dopamine CHECKOUT \\
        '{"algorithm": "JaxDQNAgentNew", "env": "CartPole-v1", "steps": 5000, "options": {}}'

`options` are gin's bindings. Revisiting Rainbow (Obando-Ceron and Castro 2021) is built on Dopamine: its agents
subclass those of version 3.1.10, and have the bindings of its own CartPole-v0 beneath. It needs Python 3.8 and the
oldest jaxlib there still is for it, with names that are gone from NumPy, JAX and Flax put back. Of what Dopamine 4.1.2
imports, Atari and TensorFlow, with which it writes summaries, are left out; no checkpoints and logs are written. The
loop over steps is its `Runner`'s, episodes 500 steps at most. `wall_seconds` runs from the construction of the agent to
the last step; `warm_seconds` of those had passed after `warm_steps`, when acting and learning were compiled.
`mean_return` is that of the last training episodes.
"""
# pyright: reportMissingImports=false
# Dopamine and gin live in the peer's environment, not in ours.

from __future__ import annotations

import json
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.common import Task, clock

COMMIT = "7cd2bc6f64d08ebc2233d93210063cc64d2598a7"
MAX_EPISODE = 500  # steps
ATARI = "dopamine.discrete_domains.atari_lib"
# what the agents take from there: outputs of networks, and defaults that are given here
OUTPUTS = {"DQNNetworkType": "q_values", "RainbowNetworkType": "q_values logits probabilities"}
DEFAULTS = {"NATURE_DQN_OBSERVATION_SHAPE": (84, 84), "NATURE_DQN_STACK_SIZE": 4, "NATURE_DQN_DTYPE": None}
# modules and agents of Revisiting Rainbow, and the file with their bindings
REVISITING = {
    "JaxDQNAgentNew": ("dqn_agent_new", "dqn_cartpole.gin"),
    "JaxRainbowAgentNew": ("rainbow_agent_new", "rainbow_cartpole.gin"),
}


def dopamine(task: Task) -> Any:
    """An agent of Dopamine 4.1.2."""
    sys.modules["tensorflow"] = ModuleType("tensorflow")
    sys.modules[ATARI] = atari = ModuleType(ATARI)
    vars(atari).update(DEFAULTS | {name: namedtuple(name, fields) for name, fields in OUTPUTS.items()})
    import_module("dopamine.discrete_domains").atari_lib = atari  # type: ignore[attr-defined]
    import gin

    module = {"JaxDQNAgent": "dqn.dqn_agent", "JaxRainbowAgent": "rainbow.rainbow_agent"}[task.algorithm]
    made = import_module(f"dopamine.jax.agents.{module}")
    networks = import_module("dopamine.jax.networks")
    network = {"JaxDQNAgent": "ClassicControlDQNNetwork", "JaxRainbowAgent": "ClassicControlRainbowNetwork"}
    import_module("dopamine.jax.replay_memory.replay_buffer")
    _bind(gin, task)
    return partial(
        getattr(made, task.algorithm), observation_shape=(4, 1), observation_dtype=float, stack_size=1,
        network=partial(
            getattr(networks, network[task.algorithm]), num_layers=len(task.hidden), hidden_units=task.hidden[0]
        ),
        epsilon_fn=import_module("dopamine.jax.agents.dqn.dqn_agent").identity_epsilon, seed=task.seed,
    )  # fmt: skip


def revisiting(task: Task, checkout: Path) -> Any:
    """An agent of Revisiting Rainbow, with its own configuration for CartPole beneath the task's bindings."""
    _restore_names()
    source = checkout / "revisiting_rainbow"
    sys.path[:0] = [str(source), str(source / "Agents")]
    import gin

    module, bindings = REVISITING[task.algorithm]
    made = import_module(module)
    gin.parse_config((source / "Configs" / bindings).read_text())
    _bind(gin, task)
    gin.bind_parameter(f"{task.algorithm}.hidden_layer", len(task.hidden))
    gin.bind_parameter(f"{task.algorithm}.neurons", task.hidden[0])
    return partial(getattr(made, task.algorithm), seed=task.seed)


def _bind(gin: Any, task: Task) -> None:
    for name, value in task.options.items():
        gin.bind_parameter(name, value)


def _restore_names() -> None:
    """Names that code of 2021 uses and that NumPy 1.24, JAX 0.4.13 and Flax 0.5.3 no longer have, or elsewhere."""
    import jax
    import jax.tree_util
    import numpy

    numpy.bool = bool  # type: ignore[attr-defined]

    arrays = import_module("jax.experimental.array_serialization")
    serialization: Any = import_module("jax.experimental.array_serialization.serialization")
    sys.modules["jax.experimental.gda_serialization"] = arrays
    sys.modules["jax.experimental.gda_serialization.serialization"] = serialization
    for name in ("GlobalAsyncCheckpointManager", "GlobalAsyncCheckpointManagerBase"):
        if not hasattr(serialization, name):
            setattr(serialization, name, object)
    gone = ModuleType("jax.experimental.global_device_array")
    gone.GlobalDeviceArray = type("GlobalDeviceArray", (), {})  # type: ignore[attr-defined]
    sys.modules[gone.__name__] = gone
    jax.tree_multimap = jax.tree_util.tree_multimap = jax.tree_map  # type: ignore[attr-defined]
    flax, linen = import_module("flax"), import_module("flax.linen")
    flax.nn = sys.modules["flax.nn"] = linen  # type: ignore[attr-defined]


class Steps:
    """An environment without its time limit, whichever of the two libraries it comes from."""

    def __init__(self, library: str, name: str):
        self.env = import_module(library).make(name).unwrapped
        self.new = library == "gymnasium"

    def reset(self, seed: int | None) -> Any:
        found = self.env.reset(seed=seed)
        return found[0] if self.new else found

    def step(self, action: Any) -> tuple[Any, float, bool]:
        obs, reward, ended = self.env.step(action)[:3]
        return obs, float(reward), bool(ended)


def play(agent: Any, env: Steps, task: Task, mark: Callable[[int], None]) -> list[float]:
    """Train for the task's steps, each of which `mark` is told; returns of the episodes."""
    returns, steps = [], 0
    seed = task.seed
    while steps < task.steps:
        action, total, length = agent.begin_episode(env.reset(seed)), 0.0, 0
        seed = None
        while True:
            obs, reward, ended = env.step(int(action))
            total, length, steps = total + reward, length + 1, steps + 1
            mark(steps)
            if ended or length == MAX_EPISODE or steps == task.steps:
                break
            action = agent.step(reward, obs)
        agent.end_episode(reward, ended)
        returns.append(total)
    return returns


def train(task: Task, checkout: Path) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    theirs = task.algorithm in REVISITING
    build = revisiting(task, checkout) if theirs else dopamine(task)
    env = Steps("gym" if theirs else "gymnasium", task.env)
    import_seconds = time.perf_counter() - imports_from
    began = time.time()
    agent = build(num_actions=env.env.action_space.n)
    mark, warm = clock(task, int(agent.min_replay_history))
    returns = play(agent, env, task, mark)
    ended = time.time()
    last = returns[-task.episodes :]
    packages = ("dopamine-rl", "jax", "flax", "gym" if theirs else "gymnasium")
    return {
        "peer": f"{'revisiting_rainbow' if theirs else 'dopamine'} {task.algorithm}",
        "steps": task.steps,
        "updates": (task.steps - int(agent.min_replay_history)) // int(agent.update_period),
        "wall_seconds": ended - began,
        "warm_steps": warm["warm_steps"],
        "warm_seconds": warm["warm_at"] - began,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(last) / len(last),
        "versions": {name: metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    print(json.dumps(train(Task(**json.loads(sys.argv[2])), Path(sys.argv[1]).resolve())))
