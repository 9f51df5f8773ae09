"""How many environment steps a second do DQN, C51 and Rainbow make on CartPole-v1, against seven other libraries?

    CLEANRL_SOURCE=CHECKOUT PUREJAXRL_SOURCE=CHECKOUT REVISITING_SOURCE=CHECKOUT python -m benchmarks.dqn_speed \\
        [--only CASE ...] [--rounds N] [--out FILE] [--quick]

And which share of the matrix products that the processor can do at most is it? In each of the `CASES` all train at the
same settings: network, batch of 128, replay, exploration, and one update for each four environment steps; those with
512x512 are the paper's of Revisiting Rainbow (Obando-Ceron and Castro 2021, arXiv 2011.14826), and its own code takes
part. Ours is the real command with 10 seeds (and with 1 and 32 where Stable-Baselines3 takes part), in a new process
with an empty cache of compiled programs. Rejax and PureJaxRL map 10 seeds in one program. Of the others, who train one
seed in a process, there are as many processes at a time as cores: 10 seeds would take several turns at the same rate.
Contestants take turns in rounds; ratios are taken within a round.

Rates are those of `contest.py`. Of those in `SHORT`, who would need too long, fewer steps are made, and what counts is
their rate without compilation, so that the ratio is again rather too small than too large. Dopamine's Rainbow has
atoms, priorities and returns of three steps ("rainbow"), the paper's all six parts ("full"), its noise drawn once for
ever. The paper's code needs Python 3.8 (`peers/setup.sh`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import matrix_product, rows
from benchmarks.contest import Found, Round, against, contestant, held, ours, show, theirs
from benchmarks.peers import run as peers
from benchmarks.peers.common import DQN
from frugalrl.doctor import cores

NAME = "dqn_speed"
OBS, ACTIONS = 4, 2  # CartPole's
SEEDS = 10
SMALL = DQN()
LARGE = DQN(
    steps=30_000, width=512, replay=50_000, learning_starts=500, learning_rate=1e-3, target_every=100,
    epsilon_start=0.01, epsilon_end=0.01,
)  # fmt: skip
C51 = {"atoms": 51, "epsilon_start": 0.01, "epsilon_end": 0.01}
RAINBOW = {**C51, "prioritized": True, "n_step": 3}
FULL = {**RAINBOW, "double": True, "dueling": True, "noisy": True}


class Case(NamedTuple):
    settings: DQN
    peers: tuple[str, ...]
    seeds: tuple[int, ...] = (SEEDS,)  # of our runs


CASES = {
    "dqn 64x64": Case(SMALL, ("sb3", "cleanrl", "dopamine", "rejax", "purejaxrl"), (1, SEEDS, 32)),
    "c51 64x64": Case(SMALL._replace(**C51), ("cleanrl",)),
    "rainbow 64x64": Case(SMALL._replace(**RAINBOW), ("dopamine",)),
    "dqn 512x512": Case(LARGE, ("dopamine", "revisiting", "rejax", "purejaxrl")),
    "c51 512x512": Case(LARGE._replace(**C51), ("cleanrl",)),
    "rainbow 512x512": Case(LARGE._replace(**RAINBOW), ("dopamine",)),
    "full 512x512": Case(LARGE._replace(**FULL), ("revisiting",)),
}
# steps of a seed of those who need too long: at the rates seen so far they take half a minute to two
SHORT = {
    ("dopamine", 64): 8_000, ("dopamine", 512): 5_000, ("revisiting", 512): 3_000, ("rejax", 512): 8_000,
    ("purejaxrl", 512): 8_000,
}  # fmt: skip
QUICK = 2_000
# times the best steps a second of the peer
TARGETS = {
    ("dqn 64x64", "sb3"): 25.0, ("dqn 64x64", "cleanrl"): 3.0, ("c51 64x64", "cleanrl"): 3.0,
    ("dqn 64x64", "dopamine"): 3.0, ("rainbow 64x64", "dopamine"): 3.0, ("dqn 64x64", "compiled"): 1.2,
    ("dqn 512x512", "revisiting"): 10.0, ("full 512x512", "revisiting"): 10.0,
}  # fmt: skip
TARGET_SHARE = 0.75  # of the peak, of the learner in training at 512x512
FORMULA = "2 B ((passes + 2) P - P_1) for an update: a forward pass of the observations and, by the target network and "
FORMULA += "with double also the online one, of those after are 2 B P each, backward to the weights too, backward to "
FORMULA += "the activations 2 B (P - P_1); B batch, P weights of all layers, P_1 of the first"


def hyper(settings: DQN) -> dict[str, Any]:
    """The settings in our own names."""
    return {
        "hidden": f"{settings.width},{settings.width}",
        "batch_size": settings.batch,
        "buffer_size": settings.replay,
        "learning_starts": settings.learning_starts,
        "train_freq": settings.update_every,
        "gradient_steps": 1,
        "learning_rate": settings.learning_rate,
        "gamma": settings.gamma,
        "double": settings.double,
        "dueling": settings.dueling,
        "noisy": settings.noisy,
        "noisy_std": 0.1,
        "prioritized": settings.prioritized,
        "prioritized_replay_alpha": 0.5,
        "prioritized_replay_beta": 0.5,
        "n_step": settings.n_step,
        "atoms": settings.atoms,
        "v_min": -settings.v_max,
        "v_max": settings.v_max,
        "loss": "mse",  # as all peers but SB3 have it; it costs the same, and Huber's does not learn at these settings
        "tau": 1.0,
        "target_update_interval": settings.target_every,
        "exploration_initial_eps": settings.epsilon_start,
        "exploration_final_eps": settings.epsilon_end,
        "exploration_fraction": settings.exploration_fraction,
    }


def update_flops(settings: DQN) -> int:
    """Floating-point operations of one update, by FORMULA."""
    outputs = (ACTIONS + settings.dueling) * settings.atoms
    weights = [before * after for before, after in pairwise((OBS, settings.width, settings.width, outputs))]
    passes = 3 if settings.double else 2
    return 2 * settings.batch * ((passes + 2) * sum(weights) - weights[0])


def gflops(settings: DQN, rate: float) -> float:
    """10^9 operations a second of the updates at so many environment steps a second, once updates are made."""
    return update_flops(settings) * rate / settings.update_every / 1e9


def mine(settings: DQN, seeds: int) -> Found:
    agent = "rainbow" if settings.prioritized else "dqn"
    found = ours(agent, settings.env, seeds, settings.steps, hyper(settings))
    learning = 1 - settings.learning_starts / settings.steps  # the share of steps that updates go with
    return found | {"gflops": learning * gflops(settings, found["training_steps_per_second"])}


def peer(name: str, settings: DQN, processes: int = 1) -> Found:
    """One run of a peer at the settings, or at fewer steps if it is slow."""
    steps = min(SHORT.get((name, settings.width), settings.steps), settings.steps)
    s = settings._replace(steps=steps)
    run: Callable[[], Found] = {
        "sb3": lambda: peers.sb3(peers.sb3_dqn(s), processes),
        "cleanrl": lambda: peers.cleanrl(peers.cleanrl_dqn(s), processes),
        "dopamine": lambda: peers.dopamine(peers.dopamine_dqn(s), processes),
        "revisiting": lambda: peers.revisiting(peers.revisiting_dqn(s), processes),
        "rejax": lambda: peers.vmapped(peers.rejax_dqn(s, SEEDS)),
        "purejaxrl": lambda: peers.vmapped(peers.purejaxrl_dqn(s, SEEDS)),
    }[name]
    found = theirs(run, short=steps < settings.steps)
    return found | {"gflops": gflops(settings, found["training_steps_per_second"])}


COMPILED = ("rejax", "purejaxrl")


def many(name: str) -> list[int]:
    """Seeds of a peer at a time: all in one program, or a process each."""
    if name in COMPILED:
        return [SEEDS]
    return sorted({1, cores()}) if name == "sb3" else [cores()]


def contestants(case: Case) -> dict[str, Callable[[], Found]]:
    """Name -> one measurement, in the order of a round."""
    made: dict[str, Callable[[], Found]] = {}
    for seeds in case.seeds:
        made[f"frugalrl x{seeds}"] = partial(mine, case.settings, seeds)
    for name in case.peers:
        if peers.missing(name) is None:
            for count in many(name):
                made[f"{name} x{count}"] = partial(peer, name, case.settings, count)
    return made


def peak_gflops(quick: bool) -> float:
    """The rate of matrix products on all cores, measured now in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        line = [sys.executable, "-m", f"benchmarks.{matrix_product.NAME}", "--out", str(file)]
        subprocess.run([*line, "--quick"] if quick else line, cwd=rows.ROOT, check=True, capture_output=True)
        measured = rows.read(file)
    most = max(each["threads"] for each in measured)
    return max(each["gflops"]["median"] for each in measured if each["threads"] == most)


def table(name: str, case: Case, rounds: Sequence[Round], peaks: Sequence[float]) -> list[rows.Row]:
    """A row for each contestant, with its share of the peak in training, then one for each of ours with its ratios."""
    s = case.settings
    cost = {"flops_per_update": update_flops(s), "flops_formula": FORMULA, "peak_gflops": rows.spread(peaks)}
    made = []
    for each in rounds[0]:
        share = [turn[each]["gflops"] / peak for turn, peak in zip(rounds, peaks, strict=True)]
        goal = {"target_share": TARGET_SHARE} if each.startswith("frugalrl") and s.width == 512 else {}
        made.append(
            contestant(
                NAME, each, rounds, case=name, settings=s._asdict(), share_of_peak=rows.spread(share), **cost, **goal
            )
        )
    return made + [_ratios(name, case, f"frugalrl x{seeds}", rounds) for seeds in case.seeds]


def _ratios(name: str, case: Case, ours: str, rounds: Sequence[Round]) -> rows.Row:
    groups = {each: (each,) for each in case.peers} | {"compiled": COMPILED}
    found = {}
    for group, members in groups.items():
        there = [f"{each} x{count}" for each in members for count in many(each)]
        found[group] = against(rounds, ours, there, TARGETS.get((name, group)))
    return rows.row(
        NAME, kind="ratios", case=name, contestant=ours, rounds=len(rounds),
        against={group: ratio for group, ratio in found.items() if ratio},
    )  # fmt: skip


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--only", nargs="*", default=list(CASES), choices=CASES, metavar="CASE")
    args = command.parse_args()
    for name in sorted({name for case in args.only for name in CASES[case].peers}):
        if reason := peers.missing(name):
            print(f"without {name}: {reason}")
    path = rows.destination(NAME, args)
    made = [each for each in rows.read(path) if each["case"] not in args.only]
    new: list[rows.Row] = []
    for name in args.only:
        case, peaks = CASES[name], []
        if args.quick:
            case = case._replace(settings=case.settings._replace(steps=QUICK, learning_starts=500), seeds=(SEEDS,))
        added: list[rows.Row] = []
        for rounds in held(name, contestants(case), 1 if args.quick else args.rounds):
            peaks.append(peak_gflops(args.quick))
            added = table(name, case, rounds, peaks)
            rows.write(path, made + new + added)
        new += added
    show(new, "case")
    print(rows.said(path, made + new))


if __name__ == "__main__":
    main()
