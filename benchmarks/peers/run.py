"""Runs a peer in its own environment, one process per seed, and returns one row of measurements."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from frugalrl.monitor.machine import hardware

from .common import DQN, IMPALA, PPO, Task

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
SHARED = {"rejax": "jax", "purejaxrl": "jax"}  # environments that are not of the peer's name
CHECKOUTS = ("cleanrl", "purejaxrl", "revisiting", "actorq", "fastpbrl")
TIME_LIMIT = 6 * 3600.0  # seconds for all processes of one row
JAX = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}  # of XLA's threads see `row`


def checkout(name: str) -> str | None:
    """Where a peer's source is, from the variable NAME_SOURCE; None if it is not said."""
    return os.environ.get(f"{name.upper()}_SOURCE")


def source(name: str) -> str:
    """The same as an absolute path, this folder's if it is not said."""
    return str(Path(checkout(name) or ".").resolve())


def missing(name: str) -> str | None:
    """Why a peer cannot take part; None if it can."""
    if not (ENVIRONMENTS / SHARED.get(name, name) / "bin" / "python").exists():
        return f"`bash benchmarks/peers/setup.sh {SHARED.get(name, name)}` has not been run"
    if name in CHECKOUTS and checkout(name) is None:
        return f"{name.upper()}_SOURCE is not set (see benchmarks/peers/setup.sh)"
    return None


def sb3_dqn(s: DQN) -> Task:
    """Stable-Baselines3's words. Its loss (Huber) and clipping (norm 10) are its own."""
    options = {
        "learning_rate": s.learning_rate,
        "buffer_size": s.replay,
        "learning_starts": s.learning_starts,
        "batch_size": s.batch,
        "tau": 1.0,
        "gamma": s.gamma,
        "train_freq": s.update_every,
        "gradient_steps": 1,
        "target_update_interval": s.target_every,
        "exploration_fraction": s.exploration_fraction,
        "exploration_initial_eps": s.epsilon_start,
        "exploration_final_eps": s.epsilon_end,
    }
    return Task("DQN", s.env, s.steps, options, (s.width,) * 2, seed=s.seed)


def cleanrl_dqn(s: DQN) -> Task:
    """The flags of CleanRL's `dqn_jax.py` or, with atoms, `c51_jax.py`. The loss of the first is the squared error."""
    options: dict[str, Any] = {"tau": 1.0}
    if s.atoms > 1:
        options = {"n-atoms": s.atoms, "v-min": -s.v_max, "v-max": s.v_max}
    options |= {
        "learning-rate": s.learning_rate,
        "buffer-size": s.replay,
        "gamma": s.gamma,
        "target-network-frequency": s.target_every,
        "batch-size": s.batch,
        "start-e": s.epsilon_start,
        "end-e": s.epsilon_end,
        "exploration-fraction": s.exploration_fraction,
        "learning-starts": s.learning_starts,
        "train-frequency": s.update_every,
    }
    return Task("c51_jax" if s.atoms > 1 else "dqn_jax", s.env, s.steps, options, (s.width,) * 2, seed=s.seed)


def rejax_dqn(s: DQN, seeds: int) -> Task:
    """Rejax's words. Its clipping (each gradient to 10) is its own."""
    options = {
        "learning_rate": s.learning_rate,
        "buffer_size": s.replay,
        "fill_buffer": s.learning_starts,
        "batch_size": s.batch,
        "gamma": s.gamma,
        "target_update_freq": s.target_every,
        "polyak": 0.0,
        "eps_start": s.epsilon_start,
        "eps_end": s.epsilon_end,
        "exploration_fraction": s.exploration_fraction,
        "num_epochs": 1,
        "ddqn": s.double,
    }
    return Task("rejax dqn", s.env, s.steps, options, (s.width,) * 2, num_envs=s.update_every, seed=s.seed, seeds=seeds)


def purejaxrl_dqn(s: DQN, seeds: int) -> Task:
    """The configuration of PureJaxRL's `dqn.py`."""
    options = {
        "LR": s.learning_rate,
        "BUFFER_SIZE": s.replay,
        "BUFFER_BATCH_SIZE": s.batch,
        "LEARNING_STARTS": s.learning_starts,
        "TRAINING_INTERVAL": s.update_every,
        "TARGET_UPDATE_INTERVAL": s.target_every,
        "TAU": 1.0,
        "GAMMA": s.gamma,
        "EPSILON_START": s.epsilon_start,
        "EPSILON_FINISH": s.epsilon_end,
        "EPSILON_ANNEAL_TIME": s.exploration_fraction * s.steps,
    }
    return Task(
        "purejaxrl dqn", s.env, s.steps, options, (s.width,) * 2, num_envs=s.update_every, seed=s.seed, seeds=seeds
    )


def dopamine_dqn(s: DQN) -> Task:
    """The bindings of Dopamine's DQN or, with atoms, of its Rainbow: atoms, priorities and steps, nothing else."""
    agent = "JaxRainbowAgent" if s.atoms > 1 else "JaxDQNAgent"
    options = _bindings(s, agent) | {"ReplayBuffer.max_capacity": s.replay, "ReplayBuffer.batch_size": s.batch}
    if s.prioritized:
        options |= {"PrioritizedSamplingDistribution.max_capacity": s.replay}
    return Task(agent, s.env, s.steps, options, (s.width,) * 2, seed=s.seed)


def revisiting_dqn(s: DQN) -> Task:
    """The bindings of Revisiting Rainbow's DQN or, with atoms, of its Rainbow with all of its parts."""
    agent = "JaxRainbowAgentNew" if s.atoms > 1 else "JaxDQNAgentNew"
    memory = "OutOfGraphPrioritizedReplayBuffer"
    options = _bindings(s, "JaxDQNAgent", atoms=agent)
    options |= {f"{memory}.replay_capacity": s.replay, f"{memory}.batch_size": s.batch}
    return Task(agent, s.env, s.steps, options, (s.width,) * 2, seed=s.seed)


def _bindings(s: DQN, agent: str, atoms: str | None = None) -> dict[str, Any]:
    """What Dopamine's agents and those made of them share. Their epsilon is constant: the last one of the settings."""
    bindings = {
        f"{agent}.gamma": s.gamma,
        f"{agent}.update_horizon": s.n_step,
        f"{agent}.min_replay_history": s.learning_starts,
        f"{agent}.update_period": s.update_every,
        f"{agent}.target_update_period": s.target_every,
        f"{agent}.epsilon_train": s.epsilon_end,
        "create_optimizer.learning_rate": s.learning_rate,
    }
    if s.atoms > 1:
        bindings |= {f"{atoms or agent}.num_atoms": s.atoms, f"{atoms or agent}.vmax": s.v_max}
    return bindings


def sb3_ppo(s: PPO) -> Task:
    """Stable-Baselines3's words. It does not anneal the learning rate here."""
    options = {
        "learning_rate": s.learning_rate,
        "n_steps": s.n_steps,
        "batch_size": s.num_envs * s.n_steps // s.minibatches,
        "n_epochs": s.epochs,
        "gamma": s.gamma,
        "gae_lambda": s.gae_lambda,
        "clip_range": s.clip_range,
        "ent_coef": s.ent_coef,
        "vf_coef": s.vf_coef,
        "max_grad_norm": s.max_grad_norm,
    }
    return Task("PPO", s.env, s.steps, options, num_envs=s.num_envs, seed=s.seed)


def cleanrl_ppo(s: PPO, continuous: bool) -> Task:
    """The flags of CleanRL's `ppo.py` or `ppo_continuous_action.py`. They clip the value's loss as well."""
    options = {
        "learning-rate": s.learning_rate,
        "num-envs": s.num_envs,
        "num-steps": s.n_steps,
        "num-minibatches": s.minibatches,
        "update-epochs": s.epochs,
        "gamma": s.gamma,
        "gae-lambda": s.gae_lambda,
        "clip-coef": s.clip_range,
        "ent-coef": s.ent_coef,
        "vf-coef": s.vf_coef,
        "max-grad-norm": s.max_grad_norm,
    }
    return Task("ppo_continuous_action" if continuous else "ppo", s.env, s.steps, options, seed=s.seed)


def rejax_ppo(s: PPO, seeds: int) -> Task:
    """Rejax's words. It does not anneal the learning rate, and clips the value's loss as well."""
    options = {
        "learning_rate": s.learning_rate,
        "num_steps": s.n_steps,
        "num_epochs": s.epochs,
        "num_minibatches": s.minibatches,
        "gamma": s.gamma,
        "gae_lambda": s.gae_lambda,
        "clip_eps": s.clip_range,
        "ent_coef": s.ent_coef,
        "vf_coef": s.vf_coef,
        "max_grad_norm": s.max_grad_norm,
    }
    return Task("rejax ppo", s.env, s.steps, options, num_envs=s.num_envs, seed=s.seed, seeds=seeds)


def purejaxrl_ppo(s: PPO, seeds: int) -> Task:
    """The configuration of PureJaxRL's `ppo.py`. It clips the value's loss as well."""
    options = {
        "LR": s.learning_rate,
        "ANNEAL_LR": s.anneal,
        "NUM_STEPS": s.n_steps,
        "UPDATE_EPOCHS": s.epochs,
        "NUM_MINIBATCHES": s.minibatches,
        "GAMMA": s.gamma,
        "GAE_LAMBDA": s.gae_lambda,
        "CLIP_EPS": s.clip_range,
        "ENT_COEF": s.ent_coef,
        "VF_COEF": s.vf_coef,
        "MAX_GRAD_NORM": s.max_grad_norm,
    }
    return Task("purejaxrl ppo", s.env, s.steps, options, num_envs=s.num_envs, seed=s.seed, seeds=seeds)


def sf_impala(s: IMPALA, serial: bool) -> Task:
    """Sample Factory's flags, for one process in which acting and learning take turns, or for its own processes.

    Its optimiser is Adam. Targets are PPO's: with its V-trace, version 2.1.1 fails at the first update, in a summary of
    advantages that are not there.
    """
    options = {
        "serial_mode": serial,
        "async_rl": not serial,
        "num_workers": 1 if serial else s.actors,
        "worker_num_splits": 1 if serial else 2,  # two halves of a worker's environments act in turn, its default
        "encoder_conv_architecture": "resnet_impala",
        "encoder_conv_mlp_layers": 256,
        "rollout": s.n_steps,
        "batch_size": s.num_envs * s.n_steps,
        "num_batches_per_epoch": 1,
        "num_epochs": 1,
        "learning_rate": s.learning_rate,
        "gamma": s.gamma,
        "exploration_loss_coeff": s.ent_coef,
        "value_loss_coeff": s.vf_coef,
        "max_grad_norm": s.max_grad_norm,
        "normalize_input": False,
        "normalize_returns": False,
    }
    return Task("APPO", s.env, s.steps, options, num_envs=s.num_envs, seed=s.seed, threads=s.actors)


def sb3(task: Task, processes: int = 1, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """An algorithm of Stable-Baselines3, `processes` seeds at once, counting up from the task's; described at `row`."""
    threads = str(task.threads)
    return row("sb3", ["sb3"], task, processes, {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}, time_limit)


def cleanrl(task: Task, processes: int = 1, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """A script of CleanRL, from the checkout that CLEANRL_SOURCE names; otherwise like `sb3`."""
    return row("cleanrl", ["cleanrl", source("cleanrl")], task, processes, JAX, time_limit)


def vmapped(task: Task, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Rejax, or PureJaxRL from where PUREJAXRL_SOURCE says, all seeds in one process; otherwise like `sb3`."""
    return row("jax", ["vmapped", source("purejaxrl")], task, 1, JAX, time_limit)


def dopamine(task: Task, processes: int = 1, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Dopamine; otherwise like `sb3`."""
    return row("dopamine", ["dopamine", "."], task, processes, JAX, time_limit)


def revisiting(task: Task, processes: int = 1, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Revisiting Rainbow's code, from the checkout that REVISITING_SOURCE names; otherwise like `sb3`."""
    return row("revisiting", ["dopamine", source("revisiting")], task, processes, JAX, time_limit)


def sf(task: Task, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Sample Factory; otherwise like `sb3`. Its serial mode has the task's threads, else each process has one."""
    return row("sf", ["sf"], task, 1, {"OMP_NUM_THREADS": str(task.threads)}, time_limit)


def actorq(task: Task, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """An actor of ActorQ, without a learner, from the checkout that ACTORQ_SOURCE names; otherwise like `sb3`."""
    return row("actorq", ["actorq", source("actorq")], task, 1, {"TF_CPP_MIN_LOG_LEVEL": "3"}, time_limit)


def fastpbrl(task: Task, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """Updates of a population of fastpbrl, from the checkout that FASTPBRL_SOURCE names; otherwise like `sb3`."""
    variables = {name: value for name, value in JAX.items() if name != "OMP_NUM_THREADS"}
    return row("fastpbrl", ["fastpbrl", source("fastpbrl")], task, 1, variables, time_limit)


def row(
    name: str, words: list[str], task: Task, processes: int, variables: dict[str, str], time_limit: float
) -> dict[str, Any]:
    """Run the module and arguments in `words`, then the task, in the environment `name`; one process a seed, at once.

    XLA makes as many threads in each as its share of the cores (NPROC), so that several do not wait for each other.

    In the row, `steps_per_second` is the environment steps of all processes over `wall_seconds`, the time from the
    first construction of an agent to the last end of training: imports are out, compilation is in. `process_seconds`
    is the time from the first start of a process to the last exit: imports and the greedy evaluation are in. `runs`
    has each process's own line.

    Raises FileNotFoundError without the environment, RuntimeError when a run fails, TimeoutError after `time_limit`
    seconds.
    """
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"no environment for {name}: run `bash benchmarks/peers/setup.sh {name}`")
    tasks = [task._replace(seed=task.seed + index) for index in range(processes)]
    module, *rest = words
    variables = {"NPROC": str(max(1, hardware()["cores"] // processes)), **variables}
    commands = [[str(python), "-m", f"benchmarks.peers.{module}", *rest, json.dumps(each._asdict())] for each in tasks]
    began = time.perf_counter()
    runs = run_together(commands, os.environ | variables | {"CUDA_VISIBLE_DEVICES": ""}, time_limit)
    process_seconds = time.perf_counter() - began
    wall_seconds = max(run["ended"] for run in runs) - min(run["began"] for run in runs)
    total_steps = sum(run["steps"] for run in runs)
    return {
        "peer": runs[0]["peer"],
        "processes": processes,
        "steps": total_steps,
        "updates": sum(run["updates"] for run in runs),
        "wall_seconds": wall_seconds,
        "process_seconds": process_seconds,
        "import_seconds": max(run["import_seconds"] for run in runs),
        "steps_per_second": total_steps / wall_seconds,
        "mean_returns": [run["mean_return"] for run in runs],
        "environment_variables": variables,
        "settings": task._asdict(),
        "versions": runs[0]["versions"],
        "runs": runs,
    }


def run_together(commands: list[list[str]], variables: dict[str, str], time_limit: float) -> list[dict[str, Any]]:
    """Run `commands` at the same time and parse the JSON in the last line that each prints."""
    deadline = time.monotonic() + time_limit
    processes = []
    with contextlib.ExitStack() as stack:
        for command in commands:
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, cwd=ROOT, env=variables, text=True, stdout=pipe, stderr=pipe)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)  # comes before the wait at the end of its context; no effect once it has ended
        try:
            outputs = [process.communicate(timeout=max(deadline - time.monotonic(), 0)) for process in processes]
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"a peer ran for more than {time_limit:.0f} s") from error
    for process, command, (_, errors) in zip(processes, commands, outputs, strict=True):
        if process.returncode != 0:
            raise RuntimeError(f"{command[2]} exited with {process.returncode}:\n{errors[-2000:]}")
    return [json.loads(printed.splitlines()[-1]) for printed, _ in outputs]
