"""How many environment steps a second does PPO reach, against Stable-Baselines3, CleanRL, Rejax and PureJaxRL?

    CLEANRL_SOURCE=CHECKOUT PUREJAXRL_SOURCE=CHECKOUT python -m benchmarks.ppo_speed [--rounds N] [--out FILE] [--quick]

On CartPole-v1 and Pendulum-v1, all at the settings of `SETTINGS`: environments, rollout, epochs, minibatches and
networks, two hidden layers of 64 units in actor and critic. Ours is the real command with 1 and 32 seeds, in a new
process with an empty cache of compiled programs. Contestants take turns in rounds; ratios are taken within a round.
Agents an hour, at so many seeds, are in the same ratio as steps a second. Rates are those of `contest.py`. PureJaxRL's
PPO for continuous actions has wider networks and environments of Brax, so it is not in Pendulum's table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks import rows
from benchmarks.contest import Found, Round, against, contestant, held, ours, show, theirs
from benchmarks.peers import run as peers
from benchmarks.peers.common import PPO

NAME = "ppo_speed"
SEEDS = (1, 32)
TARGET = 30  # times Stable-Baselines3 at its best number of processes, with 32 seeds
SETTINGS = {
    "CartPole-v1": PPO(),
    "Pendulum-v1": PPO(
        "Pendulum-v1", 100_000, n_steps=512, epochs=10, minibatches=8, learning_rate=1e-3, anneal=False, gamma=0.9,
        ent_coef=0.0,
    ),
}  # fmt: skip


def hyper(settings: PPO) -> dict[str, Any]:
    """The settings in our own names."""
    return {
        "num_envs": settings.num_envs,
        "n_steps": settings.n_steps,
        "n_epochs": settings.epochs,
        "num_minibatches": settings.minibatches,
        "hidden": "64,64",
        "learning_rate": settings.learning_rate,
        "anneal_lr": float(settings.anneal),
        "gamma": settings.gamma,
        "gae_lambda": settings.gae_lambda,
        "clip_range": settings.clip_range,
        "ent_coef": settings.ent_coef,
        "vf_coef": settings.vf_coef,
        "max_grad_norm": settings.max_grad_norm,
    }


def contestants(settings: PPO) -> dict[str, Callable[[], Found]]:
    """Name -> one measurement, in the order of a round; peers whose source is not here are left out."""
    made: dict[str, Callable[[], Found]] = {}
    continuous = settings.env == "Pendulum-v1"
    for seeds in SEEDS:
        made[f"frugalrl x{seeds}"] = partial(ours, "ppo", settings.env, seeds, settings.steps, hyper(settings))
        made[f"rejax x{seeds}"] = partial(theirs, partial(peers.vmapped, peers.rejax_ppo(settings, seeds)))
        if not peers.missing("purejaxrl") and not continuous:
            task = peers.purejaxrl_ppo(settings, seeds)
            made[f"purejaxrl x{seeds}"] = partial(theirs, partial(peers.vmapped, task))
    for processes in (1, 2):
        made[f"sb3 x{processes}"] = partial(theirs, partial(peers.sb3, peers.sb3_ppo(settings), processes))
    if not peers.missing("cleanrl"):
        made["cleanrl x1"] = partial(theirs, partial(peers.cleanrl, peers.cleanrl_ppo(settings, continuous)))
    return made


def table(env: str, rounds: Sequence[Round]) -> list[rows.Row]:
    """A row for each contestant, then one for each of ours with its ratios to the peers."""
    settings = SETTINGS[env]._asdict()
    made = [contestant(NAME, name, rounds, env=env, settings=settings) for name in rounds[0]]
    return made + [_ratios(env, seeds, rounds) for seeds in SEEDS]


def _ratios(env: str, seeds: int, rounds: Sequence[Round]) -> rows.Row:
    mine = f"frugalrl x{seeds}"
    groups = {
        "sb3": against(rounds, mine, ("sb3 x1", "sb3 x2"), TARGET if seeds == max(SEEDS) else None),
        "compiled": against(rounds, mine, (f"rejax x{seeds}", f"purejaxrl x{seeds}"), 1.0),
        "cleanrl": against(rounds, mine, ("cleanrl x1",)),
    }
    return rows.row(
        NAME, kind="ratios", env=env, contestant=mine, rounds=len(rounds),
        against={group: ratio for group, ratio in groups.items() if ratio},
    )  # fmt: skip


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--only", nargs="*", default=list(SETTINGS), choices=SETTINGS, metavar="ENV")
    args = command.parse_args()
    for name in ("cleanrl", "purejaxrl"):
        if reason := peers.missing(name):
            print(f"without {name}: {reason}")
    path = rows.destination(NAME, args)
    old, new = rows.read(path), []
    for env in args.only:
        settings = SETTINGS[env]._replace(steps=20_480) if args.quick else SETTINGS[env]
        added: list[rows.Row] = []
        for rounds in held(env, contestants(settings), 1 if args.quick else args.rounds):
            added = table(env, rounds)
            rows.write(path, rows.renewed(old, new + added, "env"))
        new += added
    show(new, "env")
    print(rows.said(path, rows.renewed(old, new, "env")))


if __name__ == "__main__":
    main()
