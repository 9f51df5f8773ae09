"""Trains Sample Factory's APPO on a game of Atari for one seed and prints one JSON line.

Run in the peer's own environment (see `setup.sh`), from the root of the project, with a `Task` as JSON:

    .venv-peers/sf/bin/python -m benchmarks.peers.sf \\
        '{"algorithm": "APPO", "env": "ALE/Pong-v5", "steps": 1280, "num_envs": 32, "options": {"num_workers": 2}}'

`options` are its own flags, `num_envs` is of each worker. What is not given is the default of its Atari examples.
`wall_seconds` runs from before its processes are started to after they have ended; `updates_at` are the moments of the
learner's updates, in seconds since the epoch, each of one batch; `cpu_seconds` are those of all its processes; and
`profiles` are its own timing trees, in seconds: of the learner, the batcher, each rollout and each inference worker.
"""
# pyright: reportMissingImports=false
# Torch and Sample Factory live in the peer's environment, not in ours.

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time

from benchmarks.peers.common import Task


def atari(env_id, cfg=None, env_config=None, render_mode=None):
    """The preprocessing of Machado et al. 2018 with Gymnasium's wrappers: what our own single environments have."""
    import ale_py  # noqa: F401  # registers its games
    import gymnasium
    import numpy as np
    from gymnasium import wrappers
    from sample_factory.envs.env_wrappers import NumpyObsWrapper

    env = gymnasium.make(env_id, frameskip=1)
    env = wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)
    env = wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return NumpyObsWrapper(wrappers.FrameStack(env, 4))


def seconds(node) -> dict[str, object]:
    """A timing tree as nested dictionaries, a branch's own total as `all`; its running averages are left out."""
    found: dict[str, object] = {}
    for name, part in node.timing.items():
        if isinstance(part.self_time, int | float):
            own = float(f"{part.self_time:.4g}")
            found[name] = {"all": own} | seconds(part) if part.timing else own
    return found


def train(task: Task) -> dict[str, object]:
    """Train once; times in seconds, `began` and `ended` in seconds since the epoch."""
    imports_from = time.perf_counter()
    from importlib.metadata import version

    from sample_factory.algo.runners.runner import AlgoObserver
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import make_runner
    from sf_examples.atari.train_atari import parse_atari_args

    import_seconds = time.perf_counter() - imports_from
    updates: list[float] = []

    class Clock(AlgoObserver):
        def on_training_step(self, runner, training_iteration_since_resume) -> None:
            updates.append(time.time())

    register_env(task.env, atari)
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "env": task.env, "algo": task.algorithm, "seed": task.seed, "device": "cpu", "train_dir": folder,
            "num_envs_per_worker": task.num_envs, "train_for_env_steps": task.steps - 1,
            "summaries_use_frameskip": False,
        } | task.options  # fmt: skip
        began = time.time()
        config, runner = make_runner(parse_atari_args([f"--{name}={value}" for name, value in values.items()]))
        runner.register_observer(Clock())
        if runner.init() != 0 or runner.run() != 0:
            raise RuntimeError(f"Sample Factory ended with status {runner.status}")
        ended = time.time()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "peer": f"sample-factory {task.algorithm}",
        "steps": runner.env_steps[0],
        "updates": len(updates),
        "updates_at": updates,
        "batch_size": config.batch_size,
        "wall_seconds": ended - began,
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in used),
        "import_seconds": import_seconds,
        "began": began,
        "ended": ended,
        "mean_return": None,
        "profiles": {name: seconds(each._root_context.timing_tree_node) for name, each in runner.component_profiles},
        "versions": {
            name: version(name) for name in ("sample-factory", "torch", "gymnasium", "ale-py", "opencv-python", "numpy")
        },
    }


if __name__ == "__main__":
    print(json.dumps(train(Task(**json.loads(sys.argv[1])))))
