"""How many steps of MinAtar does one core make: in the compiled runtime, in Gymnax, in the Python package?

    python -m benchmarks.minatar_env [--games NAME ...] [--lanes N ...] [--rounds N] [--out FILE] [--quick]

Random actions from the minimal set; many lanes in one compiled scan, the package one game at a time. Processor time is
counted, on one core. Contestants take turns in rounds; a ratio is taken within a round. Gymnax takes part where the
peers' environment is there: without sticky actions and Seaquest, its episodes cut off (`peers/gymnax_minatar.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable
from time import process_time
from typing import Any

BOUND = hasattr(os, "sched_setaffinity")
if BOUND:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import rows  # noqa: E402
from benchmarks.peers.gymnax_minatar import rate  # noqa: E402
from benchmarks.peers.run import ENVIRONMENTS, JAX  # noqa: E402
from frugalrl import rng  # noqa: E402
from frugalrl.envs.make import make  # noqa: E402
from frugalrl.envs.minatar_games import GAMES, twin  # noqa: E402
from frugalrl.xla import set_up_jax  # noqa: E402

NAME = "minatar_env"
PACKAGES = ("minatar",)
PEER = ENVIRONMENTS / "jax" / "bin" / "python"


def ours(game: str, lanes: int, steps: int) -> Callable[[], float]:
    """Steps a second of the twin, with this library's random keys."""
    env = twin(f"MinAtar/{game}-v1")

    def own(keys):
        return jax.vmap(rng.key)(jax.random.key_data(keys)[:, 0])

    def step(state, action, keys):
        return jax.vmap(env.step)(state, action, own(keys))

    return rate(lambda keys: jax.vmap(env.reset)(own(keys)), step, env.actions.n, lanes, steps)  # type: ignore[union-attr]


def package(game: str, steps: int) -> Callable[[], float]:
    """Steps a second of the package, through the adapter that actors use."""
    env, random = make(f"MinAtar/{game}-v1"), np.random.default_rng(0)
    env.reset(seed=0)

    def measured() -> float:
        actions = random.integers(env.action_space.n, size=steps)  # type: ignore[attr-defined]
        start = process_time()
        for action in actions:
            if env.step(action)[2]:
                env.reset()
        return steps / (process_time() - start)

    return measured


def gymnax(lanes: list[int], steps: int) -> dict[str, Any]:
    words = [str(PEER), "-m", "benchmarks.peers.gymnax_minatar", json.dumps({"lanes": lanes, "steps": steps})]
    done = subprocess.run(words, cwd=rows.ROOT, env=os.environ | JAX, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES), metavar="NAME")
    command.add_argument("--lanes", nargs="+", type=int, default=[128, 1024], metavar="N")
    command.add_argument("--rounds", type=int, default=3, metavar="N")
    args = command.parse_args()
    set_up_jax()
    rounds, steps = (1, 20_000) if args.quick else (args.rounds, 200_000)
    made = {(game, lanes): ours(game, lanes, steps // lanes) for game in args.games for lanes in args.lanes}
    alone = {game: package(game, steps // 100) for game in args.games}
    rates: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    versions: dict[str, str] = {}
    for _ in range(rounds):
        for (game, lanes), measured in made.items():
            rates[game, "frugalrl", lanes].append(measured())
        for game, measured in alone.items():
            rates[game, "minatar", 1].append(measured())
        if PEER.exists():
            found = gymnax(args.lanes, steps)
            versions = {"gymnax": found["versions"]["gymnax"], "gymnax's jax": found["versions"]["jax"]}
            for name, value in found["rates"].items():
                game, lanes = name.split()
                if game in args.games:
                    rates[game, "gymnax", int(lanes)].append(value)
    measured_rows = []
    for (game, library, lanes), found in sorted(rates.items()):
        row = rows.row(
            NAME, PACKAGES, game=game, library=library, lanes=lanes, steps_per_second=rows.spread(found),
            times_package=rows.spread([a / b for a, b in zip(found, rates[game, "minatar", 1], strict=True)]),
            rounds=rounds, steps_a_turn=steps if library != "minatar" else steps // 100,
            seconds="of the processor", threads="bound to one core" if BOUND else "one",
        )  # fmt: skip
        measured_rows.append(row | {"versions": row["versions"] | (versions if library == "gymnax" else {})})
    rows.finish(NAME, args, measured_rows, line)


def line(row: rows.Row) -> str:
    rate, ratio = row["steps_per_second"]["median"], row["times_package"]["median"]
    return f"  {row['game']:14}{row['library']:10}{row['lanes']:6}{rate:12,.0f} steps/s{ratio:8.1f}x"


if __name__ == "__main__":
    main()
