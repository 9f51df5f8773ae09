"""Trains Stable-Baselines3's DQN for one seed at the shared settings and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project:

    OMP_NUM_THREADS=1 .venv-peers/sb3/bin/python -m benchmarks.peers.sb3_dqn --steps 20000 --seed 1

`wall_seconds` runs from the construction of the agent to the end of `learn`; the imports are in `import_seconds`, and
the greedy evaluation comes after the clock has stopped. The loss is the library's own (Huber), as are the clipping of
gradients at norm 10 and the `Monitor` round the environment.
"""
# pyright: reportMissingImports=false
# Torch and Stable-Baselines3 live in the peer's environment, not in ours.

from __future__ import annotations

import json
import time

from benchmarks.peers.common import Settings, greedy_returns, parser, settings_from


def train(settings: Settings, threads: int) -> dict[str, object]:
    """Train once on `threads` Torch threads; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    import gymnasium
    import stable_baselines3
    import torch

    import_seconds = time.perf_counter() - imports_from
    torch.set_num_threads(threads)
    began = time.time()
    agent = stable_baselines3.DQN(
        "MlpPolicy",
        settings.env,
        learning_rate=settings.learning_rate,
        buffer_size=settings.replay,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch,
        tau=1.0,
        gamma=settings.gamma,
        train_freq=settings.update_every,
        gradient_steps=1,
        target_update_interval=settings.target_every,
        exploration_fraction=settings.exploration_fraction,
        exploration_initial_eps=settings.epsilon_start,
        exploration_final_eps=settings.epsilon_end,
        policy_kwargs={"net_arch": [settings.width, settings.width], "activation_fn": torch.nn.ReLU},
        verbose=0,
        seed=settings.seed,
        device="cpu",
    )
    # The interval is in episodes; one longer than the run means that nothing is ever logged.
    agent.learn(settings.steps, log_interval=settings.steps)
    ended = time.time()
    returns = greedy_returns(settings.env, lambda observation: int(agent.predict(observation, deterministic=True)[0]))
    return {
        "peer": "stable-baselines3 DQN",
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "wall_seconds": ended - began,
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": sum(returns) / len(returns),
        "threads": threads,
        "versions": {
            "stable-baselines3": stable_baselines3.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--threads", type=int, default=1, help="Torch threads")
    parsed = command.parse_args()
    print(json.dumps(train(settings_from(parsed), parsed.threads)))


if __name__ == "__main__":
    main()
