"""Runs a peer in its own environment, one process per seed, and returns one row of measurements.

As a command it prints CleanRL's or Stable-Baselines3's DQN at the shared settings as JSON:

    python -m benchmarks.peers.run sb3 --steps 20000 --processes 2
    python -m benchmarks.peers.run cleanrl --steps 20000 --source CHECKOUT
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from .common import Settings, Task, arguments, parser, settings_from

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
TIME_LIMIT = 3600.0  # seconds for all processes of one row


def dqn(settings: Settings) -> Task:
    """The shared settings in Stable-Baselines3's words. Its loss (Huber) and clipping (norm 10) are its own."""
    options = {
        "learning_rate": settings.learning_rate,
        "buffer_size": settings.replay,
        "learning_starts": settings.learning_starts,
        "batch_size": settings.batch,
        "tau": 1.0,
        "gamma": settings.gamma,
        "train_freq": settings.update_every,
        "gradient_steps": 1,
        "target_update_interval": settings.target_every,
        "exploration_fraction": settings.exploration_fraction,
        "exploration_initial_eps": settings.epsilon_start,
        "exploration_final_eps": settings.epsilon_end,
    }
    return Task("DQN", settings.env, settings.steps, options, (settings.width,) * 2, seed=settings.seed)


def sb3(task: Task, processes: int = 1, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """An algorithm of Stable-Baselines3, `processes` seeds at once, counting up from the task's.

    The row is described at `row`.
    """
    tasks = [task._replace(seed=task.seed + index) for index in range(processes)]
    threads = str(task.threads)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    words = [[json.dumps(each._asdict())] for each in tasks]
    return row("sb3", "benchmarks.peers.sb3", words, variables, time_limit) | {"settings": task._asdict()}


def cleanrl(
    settings: Settings, processes: int = 1, source: str | None = None, time_limit: float = TIME_LIMIT
) -> dict[str, Any]:
    """CleanRL's `dqn_jax.py` from the checkout `source` (by default in CLEANRL_SOURCE); otherwise like `sb3`.

    JAX keeps its default thread pool.
    """
    variables = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    checkout = source or os.environ.get("CLEANRL_SOURCE")
    extra = [f"--source={Path(checkout).resolve()}"] if checkout else []
    seeds = [settings._replace(seed=settings.seed + index) for index in range(processes)]
    words = [[*arguments(each), *extra] for each in seeds]
    found = row("cleanrl", "benchmarks.peers.cleanrl_dqn", words, variables, time_limit)
    return found | {"settings": settings._asdict()}


def row(
    name: str, module: str, words: list[list[str]], variables: dict[str, str], time_limit: float = TIME_LIMIT
) -> dict[str, Any]:
    """Run `module` in the environment `name`, a process with each of `words` as its arguments, all at once.

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
    commands = [[str(python), "-m", module, *each] for each in words]
    began = time.perf_counter()
    runs = run_together(commands, os.environ | variables | {"CUDA_VISIBLE_DEVICES": ""}, time_limit)
    process_seconds = time.perf_counter() - began
    wall_seconds = max(run["ended"] for run in runs) - min(run["began"] for run in runs)
    total_steps = sum(run["steps"] for run in runs)
    return {
        "peer": runs[0]["peer"],
        "processes": len(runs),
        "steps": total_steps,
        "updates": sum(run["updates"] for run in runs),
        "wall_seconds": wall_seconds,
        "process_seconds": process_seconds,
        "import_seconds": max(run["import_seconds"] for run in runs),
        "steps_per_second": total_steps / wall_seconds,
        "mean_returns": [run["mean_return"] for run in runs],
        "environment_variables": variables,
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


def main() -> None:
    command = parser(__doc__)
    command.add_argument("peer", choices=("sb3", "cleanrl"))
    command.add_argument("--processes", type=int, default=1, help="seeds trained at once")
    command.add_argument("--threads", type=int, default=1, help="Torch threads of a Stable-Baselines3 process")
    command.add_argument("--source", help="a checkout of CleanRL; by default in CLEANRL_SOURCE")
    parsed = command.parse_args()
    settings = settings_from(parsed)
    if parsed.peer == "sb3":
        result = sb3(dqn(settings)._replace(threads=parsed.threads), parsed.processes)
    else:
        result = cleanrl(settings, parsed.processes, parsed.source)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
