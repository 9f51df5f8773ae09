"""How many steps a second does one actor with a wide network make, in fp32 and in int8, beside ActorQ's published one?

    python -m benchmarks.actorq [--steps N] [--rounds N] [--out FILE] [--quick]

D4PG's actor, 2048x2048x2048, on HalfCheetah-v5, one environment, one process and one thread. Nobody learns: another
process hands out new weights at the same rate to all (`peers.common.PUBLISH`), in our mailbox or in the published
code's Reverb tables. Ours takes packets as it sees fit, or every 30, 100 or 300 steps; the published one every 100, its
default. Microseconds per step say where the time goes. Contestants take turns, and a ratio is taken within a turn.

What differs: the published network has tanh between its layers where ours has ReLU; its actor sends every transition of
five steps to a replay, where ours hands over messages of 16 steps and works out the probability of each action.
Without the variable ACTORQ_SOURCE or its environment (see `peers/setup.sh`) the published actor is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from benchmarks import rows
from benchmarks.peers.common import PUBLISH, WARM_UP, Task
from benchmarks.peers.run import ENVIRONMENTS, actorq, checkout
from frugalrl import catalog
from frugalrl.agents import d4pg
from frugalrl.levers.compress import engines, quantise
from frugalrl.networks import weighted
from frugalrl.runtime import actor, actors
from frugalrl.types import Agent, Box, Policy

NAME = "actorq"
ENV = "HalfCheetah-v5"
HIDDEN = (2048, 2048, 2048)
PERIODS = (30, 100, 300)
PUBLISHED_PERIOD = 100
UNROLL = 16
SECONDS = 10.0  # of a turn of ours, at least: some twenty packets
NOISE = np.float32(1e-4)  # standard deviation of what a weight moves by from one packet to the next
COMPRESSORS = {"fp32": quantise.fp32, "int8": quantise.int8}
PACKAGES = ("onnxruntime", "mujoco")


def weights_of(policy: Policy) -> Callable[[], Policy]:
    """A function that gives the policy with other weights at every call."""
    generator = np.random.default_rng(0)

    def moved(x: Any) -> np.ndarray:
        return np.asarray(x) + NOISE * generator.standard_normal(x.shape, np.float32)

    return lambda: policy._replace(params=jax.tree.map(moved, policy.params))


@cache
def agent_of() -> tuple[Agent, Policy]:
    """The agent, and a policy of it with random weights: those it would begin with take long to make orthogonal."""
    obs, space = catalog.spaces(ENV)
    agent = d4pg.assemble(d4pg.Static(hidden=HIDDEN), obs, space)
    assert agent.network.layers is not None
    weights = engines.random_weights(agent.network.layers, obs, np.random.default_rng(0))
    knobs = {name: np.asarray(x, np.float32) for name, x in d4pg.greedy(space).items()}
    return agent, Policy(weights, knobs | {"noise": np.float32(d4pg.Hyper().action_noise)})


@cache
def fastest(mode: str) -> str:
    """The engine that an actor takes for `mode` here."""
    agent, _ = agent_of()
    assert agent.network.layers is not None
    return engines.choose(engines.measure(agent.network.layers, agent.network.obs, 1, (mode,)), mode).engine  # type: ignore[arg-type]


def ours(mode: str, period: int | None, steps: int, seconds: float) -> dict[str, Any]:
    """One of our actors, without a Learner; as `published`, with the engine that it runs on."""
    agent, policy = agent_of()
    layers, obs, space = agent.network.layers, agent.network.obs, catalog.spaces(ENV)[1]
    assert layers is not None and isinstance(space, Box)  # noqa: PT018
    new, encode = weights_of(policy), jax.jit(COMPRESSORS[mode]().encode)
    plan, engine = actors.Plan(actors=1, num_envs=1, unroll=UNROLL), fastest(mode)
    kind = "QuantLinear" if mode == "int8" else "Linear"
    spec = actor.Spec(
        env_id=ENV, env_options=None, num_envs=plan.num_envs, unroll=UNROLL, seed=(), folder="", slab="",
        slots=plan.slots, action=actor.Field(space.shape, "float32"), obs=obs, layers=layers,
        engine=engines.module(engine), mode=mode, head=agent.head, packet=(),
        kinds=(kind,) * sum(1 for _ in weighted(layers, obs.shape)), knobs=tuple(sorted(policy.knobs)),
        pull_period=period,
    )  # fmt: skip

    def packet(version: int) -> list[np.ndarray]:
        return actors.arrays_of(jax.device_get(encode(new())), np.int32(version))

    first = packet(0)
    fleet, ended = actors.Fleet(spec, plan, (0,), first, print), threading.Event()

    def publish() -> None:
        version = 0
        while not ended.wait(PUBLISH):
            version += 1
            fleet.wire.put(packet(version))

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    try:
        found = counted(fleet, steps, seconds)
    finally:
        ended.set()
        publisher.join()
        fleet.close()
    size = sum(x.nbytes for x in first)
    return found | {"engine": engine, "packet_bytes": size, "settings": {"actors": mode, "pull_period": period}}


def counted(fleet: actors.Fleet, steps: int, seconds: float) -> dict[str, Any]:
    """The rate and the split of the time of at least so many steps and seconds after WARM_UP, in whole messages."""

    def receive(least: int, until: float = 0.0) -> tuple[int, float]:
        """Steps, at least so many, and when the last of them was made, not before `until`."""
        made, last = 0, 0.0
        while made < least or last < until:
            message = fleet.receive(timeout=1.0)
            if isinstance(message, int):
                raise RuntimeError("the actor died")
            if message is not None:
                made, last = made + UNROLL, message.span[1]
        return made, last

    _, start = receive(WARM_UP)
    before, refreshes = dict(fleet.seconds), fleet.refreshes
    done, last = receive(steps, start + seconds)
    wall = last - start
    spent = {kind: fleet.seconds[kind] - before.get(kind, 0.0) for kind in fleet.seconds if kind != "start"}
    spent["act"] = spent.pop("inference") + spent.pop("other")
    return split(done, wall, spent) | {"refreshes_per_1000_steps": 1e3 * (fleet.refreshes - refreshes) / done}


def published(bits: int, steps: int) -> dict[str, Any]:
    """ActorQ's own actor: `steps_per_second`, and `microseconds` of a step by kind of work."""
    options = {"quantize": bits, "actor_update_period": PUBLISHED_PERIOD}
    found = actorq(Task("d4pg", ENV, steps, options, HIDDEN))
    run = found["runs"][0]
    return split(steps, run["wall_seconds"], run["seconds"]) | {
        "refreshes_per_1000_steps": 1e3 * run["refreshes"] / steps,
        "packet_bytes": run["packet_bytes"],
        "settings": options,
        "peer_versions": found["versions"],
    }


def split(steps: int, wall: float, seconds: dict[str, float]) -> dict[str, Any]:
    return {"steps_per_second": steps / wall, "microseconds": {k: 1e6 * x / steps for k, x in seconds.items()}}


def contestants(steps: int, seconds: float, with_published: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What takes turns, by name."""
    theirs = {"fp32": 32, "int8": 8} if with_published else {}
    made = {f"published {mode}": partial(published, bits, steps) for mode, bits in theirs.items()}
    cases = [(mode, n) for mode in COMPRESSORS for n in (None, *PERIODS)]
    return made | {mode + (f" every {n}" if n else ""): partial(ours, mode, n, steps, seconds) for mode, n in cases}


def summary(name: str, runs: list[dict[str, Any]], **shape: int) -> rows.Row:
    """The row of one contestant."""
    last = runs[-1]
    kinds = dict.fromkeys(kind for each in runs for kind in each["microseconds"])
    return rows.row(
        NAME, PACKAGES, kind="actor", contestant=name, env=ENV, hidden=HIDDEN, publish_seconds=PUBLISH, **shape,
        **{key: rows.spread([each[key] for each in runs]) for key in ("steps_per_second", "refreshes_per_1000_steps")},
        microseconds={k: rows.spread([each["microseconds"].get(k, 0.0) for each in runs]) for k in kinds},
        **{key: last[key] for key in ("engine", "packet_bytes", "settings", "peer_versions") if key in last},
    )  # fmt: skip


def comparison(name: str, base: str, measured: dict[str, list[dict[str, Any]]], **shape: int) -> rows.Row:
    """The row of a ratio."""
    one, other = ([each["steps_per_second"] for each in measured[who]] for who in (name, base))
    times = rows.spread([a / b for a, b in zip(one, other, strict=True)])
    return rows.row(NAME, PACKAGES, kind="times as fast", contestant=name, than=base, **shape, times=times)


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--steps", type=int, default=2000, help="of each turn, at least")
    command.add_argument("--rounds", type=int, default=5)
    args = command.parse_args()
    steps, rounds, seconds = (300, 1, 1.0) if args.quick else (args.steps, args.rounds, SECONDS)
    with_published = checkout("actorq") is not None and (ENVIRONMENTS / "actorq").exists()
    if not with_published:
        print("the published actor is left out: see benchmarks/peers/setup.sh, and set ACTORQ_SOURCE")
    turns = contestants(steps, seconds, with_published)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            measured[name].append(turn())
            print(f"  {name:16} {measured[name][-1]['steps_per_second']:8.1f} steps/s", flush=True)
    made = [summary(name, runs, steps=steps, rounds=rounds) for name, runs in measured.items()]
    pairs = [("int8", "fp32"), ("published int8", "published fp32")]
    pairs += [(mode, f"published {mode}") for mode in COMPRESSORS]
    made += [comparison(*pair, measured, steps=steps, rounds=rounds) for pair in pairs if {*pair} <= {*measured}]
    path = rows.destination(NAME, args)
    rows.write(path, made)
    show(made)
    print(rows.said(path, made))


def show(made: list[rows.Row]) -> None:
    for each in made:
        if each["kind"] == "actor":
            parts = ", ".join(f"{k} {x['median']:.0f}" for k, x in each["microseconds"].items() if x["median"] >= 1)
            print(f"{each['contestant']:16} {each['steps_per_second']['median']:8.1f} steps/s; us a step: {parts}")
        else:
            print(f"{each['contestant']} is {each['times']['median']:.2f} times as fast as {each['than']}")


if __name__ == "__main__":
    main()
