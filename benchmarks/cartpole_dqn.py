"""How many environment steps a second does DQN on CartPole-v1 reach, against Stable-Baselines3 and CleanRL?

    CLEANRL_SOURCE=CHECKOUT python -m benchmarks.cartpole_dqn [--rounds N] [--out FILE] [--quick]

All train at the settings of `peers/common.py`: the same network, batch, steps, replay, exploration, and one update for
each four environment steps. Ours is the real command with 1, 8 and 32 seeds, in a new process with an empty cache of
compiled programs. Contestants take turns in rounds; ratios are taken within a round.

Our time is `wall_seconds` of the receipt: importing JAX, compilation, training, all evaluations and checkpoints. The
time of a peer is training alone: its imports and its evaluation are not counted, its compilation is. So the ratios are
rather too small than too large. `process` rates are from the start of a process to its end, on both sides.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks import matrix_product, rows
from benchmarks.peers.common import DQN, Task
from benchmarks.peers.run import checkout, cleanrl, cleanrl_dqn, sb3, sb3_dqn

NAME = "cartpole_dqn"
OBS, ACTIONS = 4, 2  # CartPole's
SEEDS = (1, 8, 32)
TARGET_BEST, TARGET_SINGLE = 25, 40  # times Stable-Baselines3 at its best number of processes, and in one process
FORMULA = "2 B (3 P + P - P_1) for an update: forward, forward of the target network and backward to the weights are "
FORMULA += "2 B P each, backward to the activations 2 B (P - P_1); B batch, P weights of all layers, P_1 of the first"


def hyper(settings: DQN) -> list[str]:
    """The peers' settings in our own names."""
    values = {
        "hidden": f"{settings.width},{settings.width}",
        "batch_size": settings.batch,
        "buffer_size": settings.replay,
        "learning_starts": settings.learning_starts,
        "train_freq": settings.update_every,
        "gradient_steps": 1,
        "learning_rate": settings.learning_rate,
        "gamma": settings.gamma,
        "double": "false",
        "n_step": 1,
        "loss": "mse",  # as CleanRL has it; it costs the same, and Huber's does not learn at these settings
        "tau": 1.0,
        "target_update_interval": settings.target_every,
        "exploration_initial_eps": settings.epsilon_start,
        "exploration_final_eps": settings.epsilon_end,
        "exploration_fraction": settings.exploration_fraction,
    }
    return [f"{name}={value}" for name, value in values.items()]


def update_flops(settings: DQN) -> int:
    """Floating-point operations of one update, by FORMULA."""
    widths = (OBS, settings.width, settings.width, ACTIONS)
    weights = [inputs * outputs for inputs, outputs in pairwise(widths)]
    return 2 * settings.batch * (4 * sum(weights) - weights[0])


def ours(seeds: int, settings: DQN) -> dict[str, object]:
    """One cold run of `frugal train` with `seeds` seeds."""
    words = ["dqn", settings.env, "--seeds", str(seeds), "--steps", str(settings.steps), "--hyper", *hyper(settings)]
    with tempfile.TemporaryDirectory() as folder:
        done = rows.train(Path(folder, "run"), words, cache=Path(folder, "cache"))
    found, steps = done.receipt, seeds * settings.steps
    updates = seeds * (settings.steps - settings.learning_starts) // settings.update_every
    return {
        "steps_per_second": steps / found["wall_seconds"],
        "process_steps_per_second": steps / done.process_seconds,
        "training_steps_per_second": found["env_steps_per_second"],
        "gflops": update_flops(settings) * updates * found["env_steps_per_second"] / steps / 1e9,
        "wall_seconds": found["wall_seconds"],
        "compile_seconds": found["compile_seconds"],
        "evaluation_seconds": found["evaluation_seconds"],
        "first_update_seconds": found["first_update_seconds"],
        "peak_memory_bytes": found["peak_memory_bytes"],
        "returns": found["returns"]["per_seed"],
        "batching": found["batching"],
        "num_envs": done.config["hyper"]["num_envs"],
    }


def theirs(run: Callable[..., dict], task: Task, processes: int) -> dict[str, object]:
    """One run of a peer with a seed in each of `processes` processes."""
    found = run(task, processes)
    return {
        "steps_per_second": found["steps_per_second"],
        "process_steps_per_second": found["steps"] / found["process_seconds"],
        "wall_seconds": found["wall_seconds"],
        "import_seconds": found["import_seconds"],
        "returns": found["mean_returns"],
        "peer_versions": found["versions"],
    }


def contestants(settings: DQN, with_cleanrl: bool) -> dict[str, Callable[[], dict]]:
    """Name -> one measurement, in the order of a round."""
    run = {f"frugalrl x{seeds}": partial(ours, seeds, settings) for seeds in SEEDS}
    peers = {f"sb3 x{n}": partial(theirs, sb3, sb3_dqn(settings), n) for n in (1, 2)}
    order = ["frugalrl x1", "sb3 x1", "frugalrl x8", "sb3 x2", "frugalrl x32"]
    last = {"cleanrl x1": partial(theirs, cleanrl, cleanrl_dqn(settings), 1)} if with_cleanrl else {}
    return {name: (run | peers)[name] for name in order} | last


def peak_gflops(quick: bool) -> float:
    """The rate of matrix products on all cores, measured now in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        line = [sys.executable, "-m", f"benchmarks.{matrix_product.NAME}", "--out", str(file)]
        subprocess.run([*line, "--quick"] if quick else line, cwd=rows.ROOT, check=True, capture_output=True)
        measured = rows.read(file)
    most = max(each["threads"] for each in measured)
    return max(each["gflops"]["median"] for each in measured if each["threads"] == most)


def table(rounds: Sequence[dict[str, dict]], peaks: Sequence[float], settings: DQN) -> list[rows.Row]:
    """A row for each contestant, then one for each of ours with its ratios to the peers."""
    made = [_contestant(name, [each[name] for each in rounds], settings) for name in rounds[0]]
    for seeds in SEEDS:
        made.append(_ratios(f"frugalrl x{seeds}", rounds, peaks, settings))
    return made


def _contestant(name: str, runs: list[dict], settings: DQN) -> rows.Row:
    numbers = {
        key: rows.spread([run[key] for run in runs]) for key, value in runs[0].items() if isinstance(value, float)
    }
    others = {key: runs[0][key] for key in ("num_envs", "peer_versions") if key in runs[0]}
    batching = {"batching": [run["batching"]["way"] for run in runs]} if "batching" in runs[0] else {}
    return rows.row(
        NAME, kind="contestant", contestant=name, rounds=len(runs), settings=settings._asdict(), **numbers, **others,
        **batching, returns=[run["returns"] for run in runs],
    )  # fmt: skip


def _ratios(name: str, rounds: Sequence[dict[str, dict]], peaks: Sequence[float], settings: DQN) -> rows.Row:
    def against(*peers: str) -> dict[str, dict]:
        def times(key: str) -> dict[str, float]:
            return rows.spread([each[name][key] / max(each[peer][key] for peer in peers) for each in rounds])

        return {"times": times("steps_per_second"), "process_times": times("process_steps_per_second")}

    best, single = against("sb3 x1", "sb3 x2"), against("sb3 x1")
    other = {"cleanrl": against("cleanrl x1")} if "cleanrl x1" in rounds[0] else {}
    return rows.row(
        NAME,
        kind="ratios",
        contestant=name,
        rounds=len(rounds),
        sb3_best=best | {"target": TARGET_BEST, "reached": best["times"]["median"] >= TARGET_BEST},
        sb3_single=single | {"target": TARGET_SINGLE, "reached": single["times"]["median"] >= TARGET_SINGLE},
        **other,
        flops_per_update=update_flops(settings),
        flops_formula=FORMULA,
        peak_gflops=rows.spread(peaks),
        share_of_peak=rows.spread([each[name]["gflops"] / peak for each, peak in zip(rounds, peaks, strict=True)]),
    )


def show(made: list[rows.Row]) -> None:
    for each in made:
        if each["kind"] == "contestant":
            rates = [each.get(k, {}).get("median") for k in ("steps_per_second", "process_steps_per_second")]
            print(f"  {each['contestant']:14}{rates[0]:12,.0f} steps/s{rates[1]:12,.0f} from start to end of process")
        else:
            best, single = each["sb3_best"]["times"]["median"], each["sb3_single"]["times"]["median"]
            share = 100 * each["share_of_peak"]["median"]
            print(f"  {each['contestant']:14}{best:8.1f} times SB3's best (target {TARGET_BEST}),", end="")
            print(f"{single:8.1f} times one SB3 process (target {TARGET_SINGLE}), {share:.1f} % of peak GFLOP/s")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    args = command.parse_args()
    settings = DQN(steps=10_000) if args.quick else DQN()
    with_cleanrl = checkout("cleanrl") is not None
    if not with_cleanrl:
        print("without CleanRL: CLEANRL_SOURCE is not set (see benchmarks/peers/setup.sh)")
    path, rounds, peaks = rows.destination(NAME, args), [], []
    for number in range(1 if args.quick else args.rounds):
        measured = {}
        for name, run in contestants(settings, with_cleanrl).items():
            measured[name] = run()
            print(f"round {number + 1}, {name}: {measured[name]['steps_per_second']:,.0f} steps/s", flush=True)
        rounds.append(measured)
        peaks.append(peak_gflops(args.quick))
        rows.write(path, table(rounds, peaks, settings))
    made = table(rounds, peaks, settings)
    show(made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
