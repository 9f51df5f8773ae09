"""What does a step cost an actor, and how much of that can compression save? The real loop of one actor, no training.

    python -m benchmarks.actor_time [--only TASK ...] [--rounds N] [--out FILE] [--quick]

`runtime.actor.Worker` on a mailbox and a slab of its own fills unrolls: env.step, the hand-over of observations, the
policy call and the choice of actions, in microseconds an environment step, bound to one core. Packets are taken once,
before the clock starts. Contestants are sessions of that one Worker and take turns in rounds, so that all play the same
episodes on the same environments:

- every engine in fp32, of which the fastest is `best fp32` and `xla` is what an actor in JAX would have
- every engine of actors in int8; `half` and `half+int8`: a plain network of half the widths in their place
- `free`: a policy that costs nothing, and so Amdahl's limit of all of these
- `torch`: eager PyTorch as Stable-Baselines3 runs it, in a process of its own (see `peers/torch_call.py`). Its step is
  reckoned, that of `free` and its call's share, and not measured in this loop

Ratios are of the step of `best fp32`, `xla` or `torch` to a contestant's, taken within a round: above 1 is faster.
Weights are random, so the episodes are those of a random policy. With `--only`, rows of other tasks stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from time import perf_counter

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
BOUND = hasattr(os, "sched_setaffinity")
if BOUND:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["NPROC"] = "1"  # XLA's threads
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import rows  # noqa: E402
from benchmarks.peers.run import ENVIRONMENTS, ROOT  # noqa: E402
from frugalrl import catalog, distributions  # noqa: E402
from frugalrl.envs.make import options_for  # noqa: E402
from frugalrl.levers.compress.engines import ACTOR_ENGINES, ENGINES, module, random_weights, usable  # noqa: E402
from frugalrl.levers.compress.modes import HALF  # noqa: E402
from frugalrl.levers.compress.prune import narrowed  # noqa: E402
from frugalrl.levers.compress.quantise import int8  # noqa: E402
from frugalrl.networks import (  # noqa: E402
    Layers,
    Residual,
    impala_resnet,
    minatar_cnn,
    mlp,
    out_features,
    weighted,
)
from frugalrl.runtime import actor, link  # noqa: E402
from frugalrl.runtime.actors import arrays_of  # noqa: E402
from frugalrl.types import Box, Discrete, Packet, Policy, Session  # noqa: E402

NAME = "actor_time"
PACKAGES = ("onnxruntime", "openvino", "ale-py", "mujoco", "minatar")
UNROLL = 4  # steps in a turn, at least twice: a step of the widest network takes tenths of a second
BATCHES = (1, 8)
CHEETAH = "HalfCheetah-v5"
TASKS: dict[str, tuple[str, Callable[[int], Layers]]] = {  # environment, and the network for so many outputs
    "pong-impala-1": ("ALE/Pong-v5", impala_resnet),
    "pong-impala-4": ("ALE/Pong-v5", lambda out: impala_resnet(out, 4)),
    **{f"cheetah-{n}x3": (CHEETAH, lambda out, n=n: mlp((n, n, n), out)) for n in (1024, 2048, 4096)},
    "lunarlander-256x2": ("LunarLander-v3", lambda out: mlp((256, 256), out)),
    "minatar-breakout": ("MinAtar/Breakout-v1", minatar_cnn),
}
FREE, TORCH = ("none", "free"), ("torch", "torch")
Who = tuple[str, str]  # engine, and what it runs: fp32, int8, half, half+int8, or one of the above


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--only", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    command.add_argument("--rounds", type=int, default=7)
    args = command.parse_args()
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # as the engine advises
    rounds, turn = (2, 0.05) if args.quick else (args.rounds, 0.5)
    path = rows.destination(NAME, args)
    old, made = rows.read(path), []
    for task in args.only:
        for batch in BATCHES:
            new = measured(task, batch, rounds, turn)
            made += new
            rows.write(path, rows.renewed(old, made, "task"))
            show(new)
    print(rows.said(path, rows.renewed(old, made, "task")))


def measured(task: str, batch: int, rounds: int, turn: float) -> list[rows.Row]:
    """The rows of all contestants; each has `turn` seconds a round."""
    env, network = TASKS[task]
    obs, actions = catalog.spaces(env, options_for(env))
    out = actions.n if isinstance(actions, Discrete) else actions.shape[0]
    layers = network(out)
    with tempfile.TemporaryDirectory() as folder, peer(layers, obs, batch) as torch_call:
        worker = ready(folder, env, obs, actions, layers, batch)
        sessions = contestants(layers, obs, batch, out)
        with closing(worker.envs):
            for each in sessions.values():
                steps_of(worker, each, 0)  # the first calls allocate
            times = [_round(worker, sessions, torch_call, batch, turn) for _ in range(rounds)]
    return [row(task, env, obs, layers, batch, who, times) for who in times[0]]


def _round(worker, sessions: dict[Who, Session], torch_call: Callable, batch: int, turn: float) -> dict[Who, tuple]:
    """Microseconds an environment step, and those of them in the policy call, of each contestant."""
    found = {who: steps_of(worker, session, turn) for who, session in sessions.items()}
    call = torch_call(turn)
    if call is not None:
        total, own = found[FREE]
        found[TORCH] = (total - own + call / batch, call / batch)
    return found


def steps_of(worker: actor.Worker, session: Session, seconds: float) -> tuple[float, float]:
    """Microseconds an environment step of unrolls, the median of at least two, and of its policy calls."""
    worker.session = session
    slot, steps = worker.slots[0].items, worker.spec.unroll * worker.spec.num_envs
    totals, calls, end = [], [], perf_counter() + seconds
    while len(totals) < 2 or perf_counter() < end:
        worker.timer.lap("between")
        worker.timer.take()
        start = perf_counter()
        worker.unroll(slot)
        totals.append(perf_counter() - start)
        calls.append(worker.timer.take()["inference"])
    return float(np.median(totals)) * 1e6 / steps, float(np.median(calls)) * 1e6 / steps


def ready(folder: str, env: str, obs: Box, actions, layers: Layers, batch: int) -> actor.Worker:
    """A Worker that has taken its packet; its session is of LiteRT in fp32."""
    discrete = isinstance(actions, Discrete)
    knobs = {} if discrete else {"log_std": np.zeros(actions.shape, np.float32)}
    packet = arrays_of(Packet(random_weights(layers, obs, np.random.default_rng(0)), knobs), np.int32(0))
    spec = actor.Spec(
        env_id=env,
        env_options=options_for(env),
        num_envs=batch,
        unroll=UNROLL,
        seed=(0,),
        folder=folder,
        slab="actor",
        slots=1,
        action=link.Field((), "int32") if discrete else link.Field(actions.shape, "float32"),
        obs=obs,
        layers=layers,
        engine=module("litert"),
        mode="fp32",
        head=distributions.categorical if discrete else distributions.normal,
        packet=link.fields(packet),
        kinds=("Linear",) * len(list(weighted(layers, obs.shape))),
        knobs=tuple(knobs),
    )
    worker = actor.Worker(spec)
    worker.box.put(packet)
    worker.unroll(worker.slots[0].items)
    return worker


def contestants(layers: Layers, obs: Box, batch: int, out: int) -> dict[Who, Session]:
    """A session for each, with its weights."""
    rng, compress = np.random.default_rng(1), int8()
    made: dict[Who, Session] = {}
    for name, net in (("", layers), ("half", narrowed(layers, HALF))):
        weights = random_weights(net, obs, rng)
        packets = {"fp32": weights, "int8": compress.encode(Policy(weights, ())).weights}
        for mode, packet in packets.items():
            for engine in usable(mode, ACTOR_ENGINES if name or mode != "fp32" else ENGINES):
                session = engine.build(net, obs, batch, mode)
                session.load(packet)
                made[engine.name, {"": mode, "half": "half" if mode == "fp32" else f"half+{mode}"}[name]] = session
    nothing = np.zeros((batch, out), np.float32)
    return {**made, FREE: Session(lambda weights: None, lambda obs: nothing)}


@contextmanager
def peer(layers: Layers, obs: Box, batch: int) -> Iterator[Callable[[float], float | None]]:
    """A function: seconds -> median microseconds of a call in PyTorch, or None if that is not installed."""
    python = ENVIRONMENTS / "sb3" / "bin" / "python"
    if not python.exists():
        print("torch is left out: bash benchmarks/peers/setup.sh sb3")
        yield lambda seconds: None
        return
    about = {"layers": described(layers), "shape": obs.shape, "dtype": obs.dtype, "batch": batch}
    with subprocess.Popen(
        [python, "-m", "benchmarks.peers.torch_call", json.dumps(about)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        asked, said = process.stdin, process.stdout
        assert asked is not None
        assert said is not None
        theirs = json.loads(said.readline())["parameters"]
        ours = sum(np.prod(shape) + shape[-1] for _, shape in weighted(layers, obs.shape))
        if theirs != ours:
            raise RuntimeError(f"torch's network has {theirs} parameters, ours {ours}")

        def call(seconds: float) -> float:
            print(seconds, file=asked, flush=True)
            return float(said.readline())

        try:
            yield call
        finally:
            asked.close()


def described(layers: Layers) -> list:
    """Layers as JSON can hold them."""
    return [
        [type(layer).__name__, *([described(layer.body)] if isinstance(layer, Residual) else layer)] for layer in layers
    ]


def row(task: str, env: str, obs: Box, layers: Layers, batch: int, who: Who, times: list[dict]) -> rows.Row:
    engine, runs = who
    own = [each[who][0] for each in times]
    fp32 = [{name: total for (name, mode), (total, _) in each.items() if mode == "fp32"} for each in times]
    against = {
        "times_best_fp32": [min(each.values()) for each in fp32],
        "times_xla": [each["xla"] for each in fp32],
        "times_torch": [each[TORCH][0] for each in times if TORCH in each],
    }
    return rows.row(
        NAME,
        PACKAGES,
        task=task,
        env=env,
        batch=batch,
        inputs=obs.shape,
        parameters=int(sum(np.prod(shape) + shape[-1] for _, shape in weighted(layers, obs.shape))),
        outputs=out_features(layers, obs.shape),
        engine=engine,
        runs=runs,
        us_per_step=rows.spread(own),
        us_per_step_of_policy=rows.spread([each[who][1] for each in times]),
        **{
            name: rows.spread([base / mine for base, mine in zip(bases, own, strict=True)])
            for name, bases in against.items()
            if bases
        },
        best_fp32=min(fp32[0], key=lambda name: np.median([each[name] for each in fp32])),
        torch="reckoned: the step of free, and the call's share" if who == TORCH else None,
        rounds=len(times),
        unroll=UNROLL,
        threads="bound to one core" if BOUND else "one, as far as each engine obeys",
    )


def show(made: list[rows.Row]) -> None:
    first = made[0]
    print(f"\n{first['task']}, {first['batch']} environments; best fp32: {first['best_fp32']}")
    print(f"  {'':24}us a step   policy   best fp32       xla     torch")
    for each in sorted(made, key=lambda each: each["us_per_step"]["median"]):
        ratios = (each.get(f"times_{name}", {}).get("median") for name in ("best_fp32", "xla", "torch"))
        print(
            f"  {each['engine']:13}{each['runs']:11}{each['us_per_step']['median']:9.1f}"
            f"{each['us_per_step_of_policy']['median']:9.1f}"
            + "".join(f"{x:9.2f}x" if x else " " * 10 for x in ratios),
            flush=True,
        )


if __name__ == "__main__":
    main()
