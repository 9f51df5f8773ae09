"""Trains an algorithm of Stable-Baselines3 for one seed and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, with a `Task` as JSON:

    OMP_NUM_THREADS=1 .venv-peers/sb3/bin/python -m benchmarks.peers.sb3 \\
        '{"algorithm": "PPO", "env": "CartPole-v1", "steps": 20000, "hidden": [64, 64], "options": {"n_steps": 128}}'

`options` are the algorithm's own arguments; what is not given is the library's default. `wall_seconds` runs from the
construction of the agent to the end of `learn`; `warm_seconds` of those had passed after `warm_steps`, when it had
learned for the first time. The imports are in `import_seconds`, and the greedy evaluation comes after the clock has
stopped.
"""
# pyright: reportMissingImports=false
# Torch and Stable-Baselines3 live in the peer's environment, not in ours.

from __future__ import annotations

import json
import sys
import time

from benchmarks.peers.common import Task, clock, greedy_returns


def train(task: Task) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    import gymnasium
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    import_seconds = time.perf_counter() - imports_from
    torch.set_num_threads(task.threads)
    began = time.time()
    agent = getattr(stable_baselines3, task.algorithm)(
        "MlpPolicy",
        make_vec_env(task.env, task.num_envs, seed=task.seed),
        policy_kwargs={"net_arch": list(task.hidden), "activation_fn": torch.nn.ReLU},
        verbose=0,
        seed=task.seed,
        device="cpu",
        **task.options,
    )
    rollout = task.num_envs * int(task.options.get("n_steps", 1))
    mark, warm = clock(task, int(task.options.get("learning_starts", rollout)))

    def told(*_: object) -> bool:
        mark(agent.num_timesteps)
        return True  # go on

    # The interval is in episodes or rollouts; one longer than the run means that nothing is ever logged.
    agent.learn(task.steps, callback=told, log_interval=task.steps)
    ended = time.time()

    def act(observation):
        return agent.predict(observation, deterministic=True)[0]

    returns = greedy_returns(task.env, act, task.episodes)
    return {
        "peer": f"stable-baselines3 {task.algorithm}",
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "wall_seconds": ended - began,
        "warm_steps": warm["warm_steps"],
        "warm_seconds": warm["warm_at"] - began,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(returns) / len(returns),
        "threads": task.threads,
        "versions": {
            "stable-baselines3": stable_baselines3.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


if __name__ == "__main__":
    print(json.dumps(train(Task(**json.loads(sys.argv[1])))))
