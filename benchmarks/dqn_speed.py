"""How many environment steps a second do DQN, C51 and Rainbow make on CartPole-v1, against seven other libraries?

    CLEANRL_SOURCE=CHECKOUT PUREJAXRL_SOURCE=CHECKOUT REVISITING_SOURCE=CHECKOUT python -m benchmarks.dqn_speed \\
        [--only CASE ...] [--rounds N] [--out FILE] [--quick]

And which share of the matrix products that the processor can do at most is it? In each of the `CASES` all train at the
same settings: network, batch of 128, replay, exploration, and one update for each four environment steps; those with
512x512 are the paper's of Revisiting Rainbow (Obando-Ceron and Castro 2021, arXiv 2011.14826), and its own code takes
part. Without `--only` those in `USUAL` are measured. A case's old rows are kept until it has new ones.

Ours is the real command with 10 seeds (in two cases 1 and 32), in a new process with an empty cache of compiled
programs. Rejax and PureJaxRL map as many seeds in one program. The others train one seed in a process: of them there is
one, with all cores to itself, or one for each core, with that core to itself, whichever made more steps a second in a
short trial of both (`trial` in their rows, by the number of processes); 10 seeds would take several turns at the same
rate. Contestants take turns in rounds; ratios are taken within a round.

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
from benchmarks.peers.common import DQN, WARM, Task
from frugalrl.doctor import cores

NAME = "dqn_speed"
OBS, ACTIONS = 4, 2  # CartPole's
SEEDS = 10
SMALL = DQN()
LARGE = DQN(
    steps=10_000, width=512, replay=50_000, learning_starts=500, learning_rate=1e-3, target_every=100,
    epsilon_start=0.01, epsilon_end=0.01,
)  # fmt: skip
C51 = {"atoms": 51, "epsilon_start": 0.01, "epsilon_end": 0.01}
RAINBOW = {**C51, "prioritized": True, "n_step": 3}
FULL = {**RAINBOW, "double": True, "dueling": True, "noisy": True}


class Case(NamedTuple):
    settings: DQN
    peers: tuple[str, ...]
    seeds: int = SEEDS  # of our run, and of those who map them


CASES = {
    "dqn 64x64": Case(SMALL, ("sb3", "cleanrl", "dopamine", "rejax", "purejaxrl")),
    "c51 64x64": Case(SMALL._replace(**C51), ("cleanrl",)),
    "dqn 512x512": Case(LARGE, ("dopamine", "revisiting", "rejax", "purejaxrl")),
    "full 512x512": Case(LARGE._replace(**FULL), ("revisiting",)),
    "dqn 64x64, 1 seed": Case(SMALL, ("sb3",), 1),
    "dqn 64x64, 32 seeds": Case(SMALL, ("sb3",), 32),
    "rainbow 64x64": Case(SMALL._replace(**RAINBOW), ("dopamine",)),
    "c51 512x512": Case(LARGE._replace(**C51), ("cleanrl",)),
    "rainbow 512x512": Case(LARGE._replace(**RAINBOW), ("dopamine",)),
}
USUAL = ("dqn 64x64", "c51 64x64", "dqn 512x512", "full 512x512")
# steps of a seed of those who need too long: at the rates seen so far they take a quarter of a minute to one
SHORT = {
    ("sb3", 64): 20_000, ("dopamine", 64): 5_000, ("rejax", 64): 5_000,
    ("dopamine", 512): 4_000, ("rejax", 512): 4_000, ("purejaxrl", 512): 4_000, ("revisiting", 512): 2_000,
}  # fmt: skip
QUICK = 2_000
TRIAL = 0.2  # of a peer's steps, and at least twice as many as it takes to be warm
# times the best steps a second of the peer
TARGETS = {
    ("dqn 64x64, 32 seeds", "sb3"): 25.0, ("dqn 64x64", "cleanrl"): 3.0, ("c51 64x64", "cleanrl"): 3.0,
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
    return found | {"gflops": gflops(settings, found["training_steps_per_second"])}


COMPILED = ("rejax", "purejaxrl")  # all seeds in one program; the others a process each
WORDS: dict[str, Callable[[DQN, int], Task]] = {  # the settings, and how many seeds, in each peer's own words
    "sb3": lambda s, _: peers.sb3_dqn(s),
    "cleanrl": lambda s, _: peers.cleanrl_dqn(s),
    "dopamine": lambda s, _: peers.dopamine_dqn(s),
    "revisiting": lambda s, _: peers.revisiting_dqn(s),
    "rejax": peers.rejax_dqn,
    "purejaxrl": peers.purejaxrl_dqn,
}


def length(name: str, settings: DQN) -> int:
    """Steps of a seed of a peer: those of the settings, or fewer if it is slow."""
    return min(SHORT.get((name, settings.width), settings.steps), settings.steps)


def peer(name: str, settings: DQN, seeds: int) -> Found:
    """One run of a peer with so many seeds."""
    steps = length(name, settings)
    task = WORDS[name](settings._replace(steps=steps), seeds)
    run = partial(peers.vmapped, task) if name in COMPILED else partial(getattr(peers, name), task, seeds)
    found = theirs(run, short=steps < settings.steps)
    return found | {"gflops": gflops(settings, found["training_steps_per_second"])}


class Rival(NamedTuple):
    """A peer that is there, and how many seeds of it train at a time."""

    name: str
    seeds: int
    trial: dict[str, float]  # steps a second in training, by the number of processes; empty where there was no choice


def rival(name: str, case: Case) -> Rival:
    """A peer with the case's seeds in one program, else with the number of processes that a short trial was best at."""
    counts = [case.seeds] if name in COMPILED else sorted({1, cores()})
    if len(counts) == 1:
        return Rival(name, counts[0], {})
    steps = max(2 * (case.settings.learning_starts + WARM), int(TRIAL * length(name, case.settings)))
    short = case.settings._replace(steps=steps)
    rates = {count: peer(name, short, count)["training_steps_per_second"] for count in counts}
    best = max(counts, key=rates.__getitem__)
    print(f"{name}: {best} at a time, of " + ", ".join(f"{n}: {rate:,.0f} steps/s" for n, rate in rates.items()))
    return Rival(name, best, {str(count): float(f"{rate:.4g}") for count, rate in rates.items()})


def title(each: Rival) -> str:
    return f"{each.name} x{each.seeds}"


def contestants(case: Case, rivals: Sequence[Rival]) -> dict[str, Callable[[], Found]]:
    """Name -> one measurement, in the order of a round."""
    made: dict[str, Callable[[], Found]] = {f"frugalrl x{case.seeds}": partial(mine, case.settings, case.seeds)}
    return made | {title(each): partial(peer, each.name, case.settings, each.seeds) for each in rivals}


def peak_gflops(quick: bool) -> float:
    """The rate of matrix products on all cores, measured now in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        line = [sys.executable, "-m", f"benchmarks.{matrix_product.NAME}", "--out", str(file)]
        subprocess.run([*line, "--quick"] if quick else line, cwd=rows.ROOT, check=True, capture_output=True)
        measured = rows.read(file)
    most = max(each["threads"] for each in measured)
    return max(each["gflops"]["median"] for each in measured if each["threads"] == most)


def table(
    name: str, case: Case, rivals: Sequence[Rival], rounds: Sequence[Round], peaks: Sequence[float]
) -> list[rows.Row]:
    """A row for each contestant, with its share of the peak in training, then one of ours with its ratios."""
    s, trials = case.settings, {title(each): {"trial": each.trial} for each in rivals if each.trial}
    cost = {"flops_per_update": update_flops(s), "flops_formula": FORMULA, "peak_gflops": rows.spread(peaks)}
    made = []
    for each in rounds[0]:
        share = [turn[each]["gflops"] / peak for turn, peak in zip(rounds, peaks, strict=True)]
        goal = {"target_share": TARGET_SHARE} if each.startswith("frugalrl") and s.width == 512 else {}
        made.append(
            contestant(
                NAME, each, rounds, case=name, settings=s._asdict(), share_of_peak=rows.spread(share), **cost, **goal,
                **trials.get(each, {}),
            )
        )  # fmt: skip
    return [*made, _ratios(name, f"frugalrl x{case.seeds}", rivals, rounds)]


def _ratios(name: str, ours: str, rivals: Sequence[Rival], rounds: Sequence[Round]) -> rows.Row:
    groups = {each.name: [title(each)] for each in rivals}
    groups["compiled"] = [title(each) for each in rivals if each.name in COMPILED]
    found = {group: against(rounds, ours, members, TARGETS.get((name, group))) for group, members in groups.items()}
    return rows.row(
        NAME, kind="ratios", case=name, contestant=ours, rounds=len(rounds),
        against={group: ratio for group, ratio in found.items() if ratio},
    )  # fmt: skip


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--only", nargs="*", default=list(USUAL), choices=CASES, metavar="CASE")
    args = command.parse_args()
    for name in sorted({name for case in args.only for name in CASES[case].peers}):
        if reason := peers.missing(name):
            print(f"without {name}: {reason}")
    path = rows.destination(NAME, args)
    old, new = rows.read(path), []
    for name in args.only:
        case, peaks = CASES[name], []
        if args.quick:
            case = case._replace(settings=case.settings._replace(steps=QUICK, learning_starts=500))
        rivals = [rival(each, case) for each in case.peers if peers.missing(each) is None]
        added: list[rows.Row] = []
        for rounds in held(name, contestants(case, rivals), 1 if args.quick else args.rounds):
            peaks.append(peak_gflops(args.quick))
            added = table(name, case, rivals, rounds, peaks)
            rows.write(path, rows.renewed(old, new + added, "case"))
        new += added
    show(new, "case")
    print(rows.said(path, rows.renewed(old, new, "case")))


if __name__ == "__main__":
    main()
