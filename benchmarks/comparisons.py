"""Which of two ways learns better? Arms on one environment, seed by seed, with intervals of their difference.

    python -m benchmarks.comparisons [--only NAME ...] [--minutes M] [--out FILE] [--quick]

Each comparison has arms, ours or a peer's, and the first is the one that the others are compared with. A run that has
its row already is not made again, so a study that was stopped goes on where it was; no run begins that would not end
within `--minutes`. Returns are means of 100 greedy episodes; over seeds, interquartile means with 95 % bootstrap
intervals. Where arms begin alike, seed by seed, the difference is that of each seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from benchmarks import rows
from benchmarks.peers import run as peers
from benchmarks.peers.common import Task
from frugalrl.statistics import Interval, bootstrap, difference

NAME = "comparisons"
EPISODES = 100
QUICK = 11_000  # steps of --quick, unless a comparison says how many
Found = dict[str, Any]  # final_return, wall_seconds, and what else is worth keeping of a run


class Arm(NamedTuple):
    run: Callable[[int, range], list[Found]]  # (steps, seeds) -> what each of them reached
    says: str  # the command, or the peer's algorithm
    together: bool = False  # the seeds share a program, and so are run at once


class Comparison(NamedTuple):
    env: str
    steps: int  # of each seed
    seeds: int
    arms: dict[str, Arm]
    quick: int = QUICK
    paired: bool = False  # runs of a seed begin alike in every arm
    beside: str = ""  # what arms cost that their steps do not say


def ours(agent: str, env: str, *words: str, together: bool = False, command: str = "train") -> Arm:
    """`frugal train`, or another command, for each seed, or for all of them in one.

    Of members that are runs of their own, what counts is the return of the one that was the fittest on other episodes.
    """

    def run(steps: int, seeds: range) -> list[Found]:
        line = [agent, env, "--seed", str(seeds[0]), "--seeds", str(len(seeds)), "--steps", str(steps), *words]
        with tempfile.TemporaryDirectory() as folder:
            done = rows.train(Path(folder, "run"), line, command=command)
        found = done.receipt
        best = (found.get("population") or {}).get("best")
        returns = [each["return"] for each in best] if best else found["returns"]["per_seed"]
        shared = {
            "wall_seconds": found["wall_seconds"] / len(seeds),
            "cpu_seconds": found["cpu_seconds"] / len(seeds),
            "steps_per_second": found["env_steps_per_second"],
            "time_split": found["time_split"],
            "runtime": found["runtime"],
            "hyper": done.config["hyper"],
        }
        names = ("member", "hyper", "fitness")
        winners = [{"winner": {name: each[name] for name in names}} for each in best] if best else [{}] * len(seeds)
        return [{"final_return": each} | winner | shared for each, winner in zip(returns, winners, strict=True)]

    return Arm(run, f"frugal {command} {' '.join([agent, env, *words])}", together)


def sb3(task: Task) -> Arm:
    """Stable-Baselines3 with a process for each seed."""

    def run(steps: int, seeds: range) -> list[Found]:
        episodes = EPISODES if steps > QUICK else 1
        made = [peers.sb3(task._replace(steps=steps, seed=seed, episodes=episodes)) for seed in seeds]
        return [
            {
                "final_return": found["mean_returns"][0],
                "wall_seconds": found["wall_seconds"],
                "steps_per_second": found["steps_per_second"],
                "hyper": task.options,
                "peer_versions": found["versions"],
            }
            for found in made
        ]

    return Arm(run, f"stable-baselines3 {task.algorithm}")


CHEETAH = "HalfCheetah-v5"
# those of its zoo for MuJoCo, which are our defaults too: 256x256, Adam at 3e-4, batches of 256, one update a step
SB3_SAC = Task("SAC", CHEETAH, 0, {"learning_starts": 10_000}, (256, 256))

PONG = "ALE/Pong-v5"
# PPO's settings for Atari, for a training a tenth as long: batches of 64 steps in place of 256, twice the learning rate
# and clipping range. With 256 nothing was learned in 800,000 steps.
PPO_PONG = "num_envs=8 n_steps=128 num_minibatches=16 learning_rate=5e-4 clip_range=0.2 ent_coef=0.01"


# of PTR-PPO and of PPO beside it
PTR = ("num_envs=8", "n_steps=128", "num_minibatches=4", "learning_rate=3e-4", "ent_coef=0.01")


def ptr_ppo(env: str, steps: int) -> Comparison:
    """With as many passes over the data as PTR-PPO makes, 2 over the new rollouts and 8 over old ones, and with 4."""

    def arm(agent: str, *more: str) -> Arm:
        return ours(agent, env, "--hyper", *PTR, *more, together=True)

    arms = {"ptr-ppo": arm("ptr-ppo"), "ppo 4": arm("ppo", "n_epochs=4"), "ppo 10": arm("ppo", "n_epochs=10")}
    return Comparison(env, steps, 10, arms)


def ptr_fillings(env: str, steps: int) -> Comparison:
    """What PTR-PPO's paper leaves open, one choice changed at a time."""
    changes = (
        "priority=mean", "priority=reward", "priority_alpha=0", "priority_alpha=1", "value_target=one-step",
        "ratio=latest", "buffer_size=64", "replay_epochs=2", "normalize_advantage=true",
    )  # fmt: skip
    base = {"defaults": ours("ptr-ppo", env, "--hyper", *PTR, together=True)}
    return Comparison(
        env, steps, 10, base | {c: ours("ptr-ppo", env, "--hyper", *PTR, c, together=True) for c in changes}
    )


def shared_critic(env: str, steps: int, random: int, limit: int) -> Comparison:
    """TD3, and populations of it: CEM-RL of ten members and DvD of five, as in their papers, with small networks.

    Episodes last `limit` steps whatever is done, so that a generation is one of each member; the first `random` steps
    are of random actions in every arm, which is whole generations of both.
    """

    def arm(command: str, *more: str) -> Arm:
        shared = ("--env-option", f"time_limit={limit}", "--hyper", "hidden=64,64", f"learning_starts={random}")
        return ours("td3", env, *shared, *more, command=command)

    arms = {"td3": arm("train"), "cem": arm("cem", "--members", "10"), "dvd": arm("dvd", "--members", "5")}
    beside = "each arm makes an update a step; one of cem and of dvd is five actors' and a critic's of five batches"
    return Comparison(env, steps, 3, arms, quick=3 * random // 2, beside=beside)


def evolution(env: str, steps: int, ready: int, limit: int) -> Comparison:
    """PBT of eight members against random search of as many, each of which has random numbers of its own.

    Random search is a population in which nobody takes over: a seed's members begin with the same values and random
    numbers in both. Three selections, the first when SAC has begun to learn; later than here any member that can learn
    has done so, and there would be nothing left to choose.
    """
    members, search = 8, ("learning_rate=log:1e-5:1e-2", "gamma=uniform:0.9:0.999")

    def arm(ready: int) -> Arm:
        words = ("--members", str(members), "--ready", str(ready), "--search", *search)
        return ours("sac", env, *words, command="pbt")

    looks, each = steps // ready, members * 20 * limit
    beside = (
        f"members are chosen by 20 episodes of {limit} steps at each look, which are not among their steps: "
        f"{looks * each:,} steps a seed for pbt, {each:,} for random search, beside {members * steps:,} of training"
    )
    arms = {"random": arm(10 * steps), "pbt": arm(ready)}
    return Comparison(env, steps, 10, arms, quick=ready + 200, paired=True, beside=beside)


COMPARISONS: dict[str, Comparison] = {
    "td3-halfcheetah": shared_critic(CHEETAH, 50_000, 4_000, 200),
    "pbt-pendulum": evolution("Pendulum-v1", 4_000, 1_000, 200),
    "sac-halfcheetah": Comparison(CHEETAH, 50_000, 3, {"frugalrl": ours("sac", CHEETAH), "sb3": sb3(SB3_SAC)}),
    # random play ends at about -20.7; a step is 4 frames, of 42x42 pixels to spare three quarters of the time
    "pong": Comparison(
        PONG,
        1_000_000,
        3,
        {"ppo": ours("ppo", PONG, "--env-option", "screen_size=42", "sticky_actions=0", "--hyper", *PPO_PONG.split())},
    ),
    "ptr-ppo-cartpole": ptr_ppo("CartPole-v1", 50_000),
    "ptr-ppo-acrobot": ptr_ppo("Acrobot-v1", 100_000),
    "ptr-fillings-cartpole": ptr_fillings("CartPole-v1", 50_000),
    "ptr-fillings-acrobot": ptr_fillings("Acrobot-v1", 100_000),
}


def kept(path: Path | None) -> list[rows.Row]:
    """The runs of the file."""
    return [each for each in rows.read(path) if each["kind"] == "run"]


def runs_of(study: Comparison) -> Iterator[tuple[str, range]]:
    """Arms and seeds in the order they are run; who comes first alternates."""
    for seed in range(study.seeds):
        for arm in study.arms if seed % 2 == 0 else reversed(study.arms):
            if not study.arms[arm].together:
                yield arm, range(seed, seed + 1)
            elif seed == 0:
                yield arm, range(study.seeds)


def left(names: Sequence[str], quick: bool, runs: Sequence[rows.Row]) -> Iterator[tuple[str, str, range, int]]:
    """What has no row yet: comparison, arm, seeds, steps."""
    for name in names:
        steps = COMPARISONS[name].quick if quick else COMPARISONS[name].steps
        for arm, seeds in runs_of(COMPARISONS[name]):
            there = {each["seed"] for each in _of(runs, name, arm) if each["steps"] == steps}
            if not there.issuperset(seeds):
                yield name, arm, seeds, steps


def measure(name: str, arm: str, seeds: range, steps: int) -> list[rows.Row]:
    study = COMPARISONS[name]
    made = study.arms[arm].run(steps, seeds)
    return [
        rows.row(
            NAME, kind="run", comparison=name, env=study.env, arm=arm, how=study.arms[arm].says,
            seed=seed, steps=steps, **found,
        )
        for seed, found in zip(seeds, made, strict=True)
    ]  # fmt: skip


def summaries(runs: Sequence[rows.Row]) -> list[rows.Row]:
    """A row for each arm that was run, with its difference to the first."""
    made = []
    for name, found in COMPARISONS.items():
        by_arm = {arm: _of(runs, name, arm) for arm in found.arms}
        first = next(iter(found.arms))
        for arm, mine in by_arm.items():
            if not mine:
                continue
            gap = {}
            if arm != first and by_arm[first]:
                gap = {"minus": first} | _gap(mine, by_arm[first], found.paired)
            made.append(
                rows.row(
                    NAME, kind="summary", comparison=name, env=found.env, arm=arm, how=found.arms[arm].says,
                    seeds=len(mine), steps=mine[0]["steps"], returns=_interval(bootstrap(_returns(mine))),
                    wall_seconds=rows.spread([each["wall_seconds"] for each in mine]), **_cpu(mine), **gap,
                    **({"beside": found.beside} if found.beside else {}),
                )
            )  # fmt: skip
    return made


def _gap(mine: Sequence[rows.Row], first: Sequence[rows.Row], paired: bool) -> dict[str, Any]:
    """The difference of two arms, of each seed that both have if they are paired."""
    if not paired:
        return {"difference": _interval(difference(_returns(mine), _returns(first)))}
    ours, theirs = ({each["seed"]: each["final_return"] for each in arm} for arm in (mine, first))
    gaps = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return {"paired": True, "difference": _interval(bootstrap(gaps))} if gaps else {"difference": None}


def _cpu(runs: Sequence[rows.Row]) -> dict[str, Any]:
    """CPU seconds of a seed, if all runs tell."""
    found = [each["cpu_seconds"] for each in runs if "cpu_seconds" in each]
    return {"cpu_seconds": rows.spread(found)} if len(found) == len(runs) else {}


def _of(runs: Sequence[rows.Row], name: str, arm: str) -> list[rows.Row]:
    return [each for each in runs if (each["comparison"], each["arm"]) == (name, arm)]


def _place(row: rows.Row) -> tuple:
    return row["comparison"], row["arm"], row["seed"]


def _returns(runs: Sequence[rows.Row]) -> list[float]:
    return [each["final_return"] for each in runs]


def _interval(x: Interval) -> dict[str, float | None]:
    return {"iqm": x.point, "low": x.low, "high": x.high}


def show(made: Sequence[rows.Row]) -> None:
    for each in made:
        gap = f", minus {each['minus']}: {_said(each['difference'])}" if each.get("difference") else ""
        cpu = f", {each['cpu_seconds']['median']:.0f} CPU s" if "cpu_seconds" in each else ""
        print(
            f"  {each['comparison']:22} {each['arm']:24} {_said(each['returns'])} over {each['seeds']} seeds of "
            f"{each['steps']:,} steps, {each['wall_seconds']['median']:.0f} s{cpu} a seed{gap}"
        )
        if "beside" in each and "minus" not in each:
            print(f"    {each['beside']}")


def _said(x: dict[str, Any]) -> str:
    return f"{x['iqm']:.1f}" + ("" if x["low"] is None else f" [{x['low']:.1f}, {x['high']:.1f}]")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--only", nargs="*", default=list(COMPARISONS), choices=COMPARISONS, metavar="NAME")
    command.add_argument("--minutes", type=float, default=float("inf"), help="time box")
    args = command.parse_args()
    path = rows.destination(NAME, args)
    runs = kept(path)
    for name, arm, seeds, steps in rows.boxed([*left(args.only, args.quick, runs)], args.minutes):
        start = monotonic()
        made = measure(name, arm, seeds, steps)
        others = kept(path) if path else runs  # another process may have added to the file
        runs = [each for each in others if _place(each) not in map(_place, made)] + made
        rows.write(path, [*runs, *summaries(runs)])
        found = f"returns {[round(each['final_return'], 1) for each in made]}"
        print(f"{name}, {arm}, seeds {[*seeds]}: {found}, {monotonic() - start:.0f} s", flush=True)
    whole = [*runs, *summaries(runs)]
    rows.write(path, whole)
    show(whole[len(runs) :])
    print(rows.said(path, whole))


if __name__ == "__main__":
    main()
