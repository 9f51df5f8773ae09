"""How fast does IMPALA's deep network train on Pong, from processes that act, against Sample Factory?

    python -m benchmarks.pong_impala [--steps N] [--rounds N] [--out FILE] [--quick]

Environment steps a second at the settings of `SETTINGS`, each step learned from once: ours with fp32 and int8 actors,
Sample Factory's APPO in one process and in processes of its own. Contestants take turns in rounds; ratios are taken
within a round, against the better of the peer's two.

`training_steps_per_second` is from the first update to the last, so that imports, compilation and the start of
processes are left out on both sides; `steps_per_second` is of the whole process, to its end. Ours is not evaluated: an
episode of Pong is thousands of steps long, so the evaluation is taken out of the program that runs here. `DIFFERENT`
says what is not the same on both sides.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import rows
from benchmarks.peers import run as peers
from benchmarks.peers.common import IMPALA

NAME = "pong_impala"
PACKAGES = ("ale-py", "gymnasium", "ai-edge-litert", "onnxruntime")
SETTINGS = IMPALA()
OURS, PEERS = "frugalrl ", "sample-factory "
DIFFERENT = (
    "targets and loss: ours V-trace and the policy gradient, summed; theirs GAE and PPO's clipped loss, a mean",
    "optimiser: ours RMSProp, theirs Adam",
    "games: ours ale-py's native vector, theirs Gymnasium's wrappers one by one; both ALE/Pong-v5 with sticky actions",
    "in one process, theirs has 32 environments in place of 64, and acts and learns in turn on 2 threads",
)
PROGRAM = """
import sys
import numpy as np
from frugalrl import jobs
from frugalrl.evaluate import Episodes
jobs._evaluate_greedily = lambda agent, card, weights, episodes: Episodes(*np.zeros((2, 1, episodes)))
from frugalrl.cli import main
sys.exit(main())
"""


def hyper(settings: IMPALA) -> list[str]:
    """The settings in our own names."""
    values = {
        "network": "impala",
        "num_envs": settings.actors * settings.num_envs,
        "n_steps": settings.n_steps,
        "learning_rate": settings.learning_rate,
        "gamma": settings.gamma,
        "ent_coef": settings.ent_coef,
        "vf_coef": settings.vf_coef,
        "max_grad_norm": settings.max_grad_norm,
    }
    return [f"{name}={value}" for name, value in values.items()]


def ours(settings: IMPALA, mode: str) -> dict[str, object]:
    """One cold run of `frugal train` with actors of that mode, without its evaluations."""
    words = ["impala", settings.env, "--runtime", "actors", "--actors", mode, "--steps", str(settings.steps)]
    words += ["--seed", str(settings.seed), "--hyper", *hyper(settings)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        done = rows.train(run, words, cache=Path(folder, "cache"), program=("-c", PROGRAM))
        first, *_, last = (json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines())
    found = done.receipt
    if found["actors"]["mode"] != mode or found["actors"]["processes"] != settings.actors:
        raise RuntimeError(f"asked for {settings.actors} {mode} actors, the receipt says {found['actors']}")
    return {
        "training_steps_per_second": (last["step"] - first["step"]) / (last["wall_seconds"] - first["wall_seconds"]),
        "steps_per_second": settings.steps / done.process_seconds,
        "cpu_ms_per_step": 1e3 * found["cpu_seconds"] / settings.steps,
        "receipt_steps_per_second": found["env_steps_per_second"],
        "compile_seconds": found["compile_seconds"],
        "time_split": found["time_split"],
        "actors": found["actors"],
    }


def theirs(settings: IMPALA, serial: bool) -> dict[str, object]:
    """One run of Sample Factory."""
    found = peers.sf(peers.sf_impala(settings, serial))
    (run,) = found["runs"]
    first, *_, last = run["updates_at"]
    return {
        "training_steps_per_second": (run["updates"] - 1) * run["batch_size"] / (last - first),
        "steps_per_second": found["steps"] / found["process_seconds"],
        "cpu_ms_per_step": 1e3 * run["cpu_seconds"] / found["steps"],
        "time_split": run["profiles"],
        "peer_versions": found["versions"],
        "peer_options": found["settings"]["options"],
    }


def contestants(settings: IMPALA) -> dict[str, Callable[[], dict]]:
    """Name -> one measurement, in the order of a round."""
    made: dict[str, Callable[[], dict]] = {f"{OURS}{mode}": partial(ours, settings, mode) for mode in ("fp32", "int8")}
    for name, serial in (("processes", False), ("serial", True)):
        made[f"{PEERS}{name}"] = partial(theirs, settings, serial)
    return made


def table(settings: IMPALA, rounds: Sequence[dict[str, dict]]) -> list[rows.Row]:
    """A row for each contestant, ours with the ratios to the peer at its best."""
    return [_row(settings, name, rounds) for name in rounds[0]]


def _row(settings: IMPALA, name: str, rounds: Sequence[dict[str, dict]]) -> rows.Row:
    runs = [each[name] for each in rounds]
    numbers = {key: rows.spread([r[key] for r in runs]) for key, value in runs[0].items() if isinstance(value, float)}
    others = {key: runs[0][key] for key in ("peer_versions", "peer_options") if key in runs[0]}
    splits = {key: [r[key] for r in runs] for key in ("time_split", "actors") if key in runs[0]}
    if name.startswith(OURS):
        keys = {"times": "training_steps_per_second", "process_times": "steps_per_second"}
        others["sample_factory_best"] = {
            word: rows.spread([each[name][key] / _best(each, key) for each in rounds]) for word, key in keys.items()
        }
    return rows.row(
        NAME, PACKAGES, env=settings.env, contestant=name, rounds=len(rounds), settings=settings._asdict(),
        different=DIFFERENT, **numbers, **others, **splits,
    )  # fmt: skip


def _best(measured: dict[str, dict], key: str) -> float:
    return max(found[key] for name, found in measured.items() if name.startswith(PEERS))


def show(made: list[rows.Row]) -> None:
    for each in made:
        rates = [each[key]["median"] for key in ("training_steps_per_second", "steps_per_second", "cpu_ms_per_step")]
        against = each.get("sample_factory_best")
        times = f"{against['times']['median']:6.2f} times Sample Factory" if against else ""
        print(
            f"  {each['contestant']:26}{rates[0]:7.1f} steps/s in training,{rates[1]:7.1f} in all,"
            f"{rates[2]:7.1f} ms of CPU a step{times}"
        )


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--steps", type=int, default=SETTINGS.steps, help="of each contestant a turn")
    command.add_argument("--rounds", type=int, default=3)
    args = command.parse_args()
    settings = SETTINGS._replace(steps=3 * SETTINGS.num_envs * SETTINGS.n_steps if args.quick else args.steps)
    path, made = rows.destination(NAME, args), []
    rounds: list[dict[str, dict]] = []
    for number in range(1 if args.quick else args.rounds):
        measured = {}
        for name, run in contestants(settings).items():
            measured[name] = run()
            print(f"round {number + 1}, {name}: {measured[name]['training_steps_per_second']:.1f} steps/s", flush=True)
        rounds.append(measured)
        made = table(settings, rounds)
        rows.write(path, made)
    show(made)
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
