"""From nothing installed to a trained, evaluated and exported policy: how many steps and seconds, ours and the peers'?

    python -m benchmarks.first_policy [--only NAME ...] [--times N] [--out FILE] [--quick]

PPO on CartPole-v1, 100,000 steps of one seed, with each library's own defaults, then 100 greedy episodes, or what the
library itself evaluates, and the policy as an ONNX file where its users can have one. Each time in a new folder with a
new virtual environment and nothing in pip's cache or in a cache of compiled programs: what a newcomer waits for,
downloads included. A step is a command that is typed or a line of code that is written; the lines are those of the
shortest script that we know how to write from the library's documentation. `--quick` trains a tenth of the steps.

Not asked: CleanRL, whose files are there to be changed and are not installed, and Stoix, which the package index does
not have.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import fresh, rows

NAME = "first_policy"
STEPS = 100_000


class Library(NamedTuple):
    packages: tuple[str, ...]  # what pip is asked for
    commands: tuple[str, ...]  # after that; the last line that begins with "return" tells it
    script: str = ""  # first.py
    exported: str | None = "policy.onnx"  # the file that there must be at the end
    names: tuple[str, ...] = ()  # distributions whose versions are kept


SB3 = """
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
model.learn(STEPS)
print("return", evaluate_policy(model, model.get_env(), n_eval_episodes=100)[0])
class Policy(torch.nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy
    def forward(self, obs):
        return self.policy.action_net(self.policy.mlp_extractor.forward_actor(obs))
torch.onnx.export(Policy(model.policy), (torch.zeros(1, 4),), "policy.onnx", input_names=["obs"])
"""

REJAX = """
import flax.serialization
import jax
from pathlib import Path
from rejax import PPO
ppo = PPO.create(env="CartPole-v1", total_timesteps=STEPS, eval_freq=STEPS)
state, (lengths, returns) = jax.jit(ppo.train)(jax.random.PRNGKey(0))
print("return", returns[-1].mean())
Path("policy.msgpack").write_bytes(flax.serialization.to_bytes(state.actor_ts.params))
"""

RLLIB = """
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
config = PPOConfig().environment("CartPole-v1").evaluation(evaluation_duration=100)
algo = config.build_algo()
while algo.train()["num_env_steps_sampled_lifetime"] < STEPS:
    pass
print("return", algo.evaluate()["env_runners"]["episode_return_mean"])
class Policy(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, obs):
        return self.module.forward_inference({"obs": obs})["action_dist_inputs"]
torch.onnx.export(Policy(algo.get_module()), (torch.zeros(1, 4),), "policy.onnx", input_names=["obs"])
algo.stop()
"""

RUN = "runs/ppo-CartPole-v1"
LIBRARIES = {
    "FrugalRL": Library(
        (f"{rows.ROOT}[engines]",),
        (f"frugal train ppo CartPole-v1 --steps {STEPS} --seeds 1", f"frugal export {RUN} --format onnx"),
        exported=f"{RUN}/policy.onnx",
        names=("frugalrl", "jax"),
    ),
    "Stable-Baselines3": Library(
        ("torch==2.13.0", "stable-baselines3==2.9.2", "onnx", "onnxscript"), ("python first.py",), SB3,
        names=("stable-baselines3", "torch"),
    ),
    "Rejax": Library(
        ("rejax==0.1.3", "gymnax==0.0.9"), ("python first.py",), REJAX, "policy.msgpack",
        names=("rejax", "jax"),
    ),
    "RLlib": Library(
        ("torch==2.13.0", "ray[rllib]==2.60.0", "onnx", "onnxscript"), ("python first.py",), RLLIB,
        names=("ray", "torch"),
    ),
}  # fmt: skip


def lines(script: str) -> int:
    return len([line for line in script.splitlines() if line.strip()])


def tried(library: Library, folder: Path, steps: int) -> dict[str, Any]:
    """Everything once, in an empty folder. Raises RuntimeError with what a command printed if it fails."""

    run = fresh.shell(folder)
    install = [run(command) for command in (fresh.VENV, f"{fresh.PIP} {shlex.join(library.packages)}")]
    if library.script:
        (folder / "first.py").write_text(library.script.replace("STEPS", str(steps)))
    done = [run(command.replace(str(STEPS), str(steps))) for command in library.commands]
    printed = "".join(each.printed for each in done)
    found = re.findall(r"^\s*return\s+([-\d.]+)", printed, re.MULTILINE)
    if not found or (library.exported and not (folder / library.exported).exists()):
        raise RuntimeError(f"no return, or no {library.exported}:\n{printed[-3000:]}")
    query = "import sys, importlib.metadata as m; print(*[m.version(name) for name in sys.argv[1:]])"
    versions = run(f"python -c {shlex.quote(query)} {shlex.join(library.names)}").printed.split()
    return {
        "install_seconds": sum(each.wall_seconds for each in install),
        "run_seconds": sum(each.wall_seconds for each in done),
        "cpu_seconds": sum(each.cpu_seconds for each in (*install, *done)),
        "installed_bytes": fresh.size(folder / ".venv"),
        "return": float(found[-1]),
        "peer_versions": dict(zip(library.names, versions, strict=True)),
    }


def summary(name: str, times: list[dict[str, Any]]) -> rows.Row:
    library = LIBRARIES[name]
    return rows.row(
        NAME,
        library=name,
        commands=1 + len(library.commands),
        lines=lines(library.script),
        exported=None if library.exported is None else Path(library.exported).suffix,
        times=len(times),
        returns=[each["return"] for each in times],
        installed_bytes=times[-1]["installed_bytes"],
        peer_versions=times[-1]["peer_versions"],
        install_seconds=rows.spread([each["install_seconds"] for each in times]),
        run_seconds=rows.spread([each["run_seconds"] for each in times]),
        cpu_seconds=rows.spread([each["cpu_seconds"] for each in times]),
        seconds=rows.spread([each["install_seconds"] + each["run_seconds"] for each in times]),
    )


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--only", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), metavar="NAME")
    command.add_argument("--times", type=int, default=3, help="of each, in turns (default 3)")
    args = command.parse_args()
    path = rows.destination(NAME, args)
    kept = [row for row in rows.read(path) if row["library"] not in args.only]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    made: list[rows.Row] = []
    for _ in range(1 if args.quick else args.times):
        for name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(tried(LIBRARIES[name], Path(folder), STEPS // 10 if args.quick else STEPS))
            made = [summary(name, times) for name, times in found.items() if times]
            rows.write(path, kept + made)
            print(
                f"{name:18} install {found[name][-1]['install_seconds']:6.1f} s, "
                f"run {found[name][-1]['run_seconds']:6.1f} s, return {found[name][-1]['return']:g}", flush=True,
            )  # fmt: skip
    print(rows.said(path, kept + made))


if __name__ == "__main__":
    main()
