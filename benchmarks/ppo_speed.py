"""How many environment steps a second does PPO reach, against Stable-Baselines3, CleanRL, Rejax and PureJaxRL?

    CLEANRL_SOURCE=CHECKOUT PUREJAXRL_SOURCE=CHECKOUT python -m benchmarks.ppo_speed [--rounds N] [--out FILE] [--quick]

On CartPole-v1 and Pendulum-v1, all at the settings of `SETTINGS`: environments, rollout, epochs, minibatches and
networks, two hidden layers of 64 units in actor and critic. Ours is the real command with 1 and 32 seeds, in a new
process with an empty cache of compiled programs. Contestants take turns in rounds; ratios are taken within a round.
Agents an hour, at so many seeds, are in the same ratio as steps a second.

Our time is `wall_seconds` of the receipt: importing JAX, compilation, training, all evaluations and checkpoints. The
time of a peer is training alone: its imports and its evaluation are not counted, its compilation is. So the ratios are
rather too small than too large. `process` rates are from the start of a process to its end, on both sides.
PureJaxRL's PPO for continuous actions has wider networks and environments of Brax, so it is not in Pendulum's table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import rows
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


def hyper(settings: PPO) -> list[str]:
    """The settings in our own names."""
    values = {
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
    return [f"{name}={value}" for name, value in values.items()]


def ours(settings: PPO, seeds: int) -> dict[str, object]:
    """One cold run of `frugal train` with `seeds` seeds."""
    words = ["ppo", settings.env, "--seeds", str(seeds), "--steps", str(settings.steps), "--hyper", *hyper(settings)]
    with tempfile.TemporaryDirectory() as folder:
        done = rows.train(Path(folder, "run"), words, cache=Path(folder, "cache"))
    found, steps = done.receipt, seeds * settings.steps
    return {
        "steps_per_second": steps / found["wall_seconds"],
        "process_steps_per_second": steps / done.process_seconds,
        "training_steps_per_second": found["env_steps_per_second"],
        "wall_seconds": found["wall_seconds"],
        "compile_seconds": found["compile_seconds"],
        "evaluation_seconds": found["evaluation_seconds"],
        "returns": found["returns"]["per_seed"],
        "batching": found["batching"],
    }


def theirs(run: Callable[[], dict]) -> dict[str, object]:
    """One run of a peer; `training_steps_per_second` leaves its compilation out."""
    found = run()
    compile_seconds = max(each.get("compile_seconds", 0.0) for each in found["runs"])
    return {
        "steps_per_second": found["steps_per_second"],
        "process_steps_per_second": found["steps"] / found["process_seconds"],
        "training_steps_per_second": found["steps"] / (found["wall_seconds"] - compile_seconds),
        "wall_seconds": found["wall_seconds"],
        "compile_seconds": compile_seconds,
        "import_seconds": found["import_seconds"],
        "returns": found["mean_returns"],
        "peer_versions": found["versions"],
    }


def contestants(settings: PPO) -> dict[str, Callable[[], dict]]:
    """Name -> one measurement, in the order of a round; peers whose source is not here are left out."""
    made: dict[str, Callable[[], dict]] = {}
    source, continuous = peers.checkout("purejaxrl"), settings.env == "Pendulum-v1"
    for seeds in SEEDS:
        made[f"frugalrl x{seeds}"] = partial(ours, settings, seeds)
        made[f"rejax x{seeds}"] = partial(theirs, partial(peers.jax_ppo, peers.rejax_ppo(settings, seeds)))
        if source and not continuous:
            task = peers.purejaxrl_ppo(settings, seeds, source)
            made[f"purejaxrl x{seeds}"] = partial(theirs, partial(peers.jax_ppo, task))
    for processes in (1, 2):
        made[f"sb3 x{processes}"] = partial(theirs, partial(peers.sb3, peers.sb3_ppo(settings), processes))
    if peers.checkout("cleanrl"):
        made["cleanrl x1"] = partial(theirs, partial(peers.cleanrl, peers.cleanrl_ppo(settings, continuous)))
    return made


def table(env: str, rounds: Sequence[dict[str, dict]]) -> list[rows.Row]:
    """A row for each contestant, then one for each of ours with its ratios to the peers."""
    made = [_contestant(env, name, [each[name] for each in rounds]) for name in rounds[0]]
    return made + [_ratios(env, seeds, rounds) for seeds in SEEDS]


def _contestant(env: str, name: str, runs: list[dict]) -> rows.Row:
    numbers = {key: rows.spread([r[key] for r in runs]) for key, value in runs[0].items() if isinstance(value, float)}
    others = {key: runs[0][key] for key in ("batching", "peer_versions") if key in runs[0]}
    return rows.row(
        NAME, kind="contestant", env=env, contestant=name, rounds=len(runs), settings=SETTINGS[env]._asdict(),
        **numbers, **others, returns=[r["returns"] for r in runs],
    )  # fmt: skip


def _ratios(env: str, seeds: int, rounds: Sequence[dict[str, dict]]) -> rows.Row:
    def best(each: dict[str, dict], key: str, *names: str) -> float:
        return max(found[key] for name, found in each.items() if name.startswith(names))

    def against(*names: str) -> dict[str, dict]:
        keys = {"times": "steps_per_second", "training_times": "training_steps_per_second"}
        keys["process_times"] = "process_steps_per_second"
        mine = f"frugalrl x{seeds}"
        return {
            word: rows.spread([each[mine][key] / best(each, key, *names) for each in rounds])
            for word, key in keys.items()
        }

    jax = tuple(f"{name} x{seeds}" for name in ("rejax", "purejaxrl"))
    other = {"cleanrl": against("cleanrl")} if "cleanrl x1" in rounds[0] else {}
    sb3, best_jax = against("sb3"), against(*jax)
    goals: dict[str, dict] = {"sb3": {}, "jax": {"target": 1, "reached": best_jax["times"]["median"] >= 1}}
    if seeds == max(SEEDS):
        goals["sb3"] = {"target": TARGET, "reached": sb3["times"]["median"] >= TARGET}
    return rows.row(
        NAME, kind="ratios", env=env, contestant=f"frugalrl x{seeds}", rounds=len(rounds),
        sb3_best=sb3 | goals["sb3"], best_jax_peer=best_jax | goals["jax"], **other,
    )  # fmt: skip


def show(made: list[rows.Row]) -> None:
    for each in made:
        if each["kind"] == "contestant":
            rates = [each[k]["median"] for k in ("steps_per_second", "training_steps_per_second")]
            print(f"  {each['env']} {each['contestant']:14}{rates[0]:12,.0f} steps/s, {rates[1]:12,.0f} in training")
        else:
            times = [each[k]["times"]["median"] for k in ("sb3_best", "best_jax_peer")]
            print(
                f"  {each['env']} {each['contestant']:14}{times[0]:8.1f} times SB3, {times[1]:8.2f} the best JAX peer"
            )


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--only", nargs="*", default=list(SETTINGS), choices=SETTINGS, metavar="ENV")
    args = command.parse_args()
    for name in ("cleanrl", "purejaxrl"):
        if peers.checkout(name) is None:
            print(f"without {name}: {name.upper()}_SOURCE is not set (see benchmarks/peers/setup.sh)")
    path = rows.destination(NAME, args)
    made = [each for each in rows.read(path) if each["env"] not in args.only]
    for env in args.only:
        settings = SETTINGS[env]._replace(steps=20_480) if args.quick else SETTINGS[env]
        rounds: list[dict[str, dict]] = []
        for number in range(1 if args.quick else args.rounds):
            measured = {}
            for name, run in contestants(settings).items():
                measured[name] = run()
                found = measured[name]
                rate, seen = found["steps_per_second"], sum(found["returns"]) / len(found["returns"])
                print(f"{env} round {number + 1}, {name}: {rate:,.0f} steps/s, return {seen:.0f}", flush=True)
            rounds.append(measured)
            rows.write(path, made + table(env, rounds))
        made += table(env, rounds)
    show(made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
