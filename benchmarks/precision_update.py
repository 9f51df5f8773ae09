"""What does an update cost in each precision, and what does a learner keep for each of its weights?

    python -m benchmarks.precision_update [--case NAME ...] [--rounds N] [--minutes M] [--precision P ...] [--out FILE]
        [--quick]

One update on a batch that stays the same: SAC as in Low-Precision SAC (1024x1024, batches of 1,024; of a small machine,
256x256 and 256, beside it), SAC from three pictures of 84 x 84 (a small one; on an accelerator also one as large as
DrQ's), and DQN's Nature network on pictures. `--case` takes some of them. The precisions take turns; ratios to fp32 are
taken within a round. Where oneDNN multiplies bf16 (`pip install 'frugalrl[onednn]'`), a program with XLA's products,
"bf16 by XLA", takes its turn too. Milliseconds on the wall, with all cores or on the accelerator, and of the processor;
bytes as the compiler reckons them, of the program at work and of the batch and state that it is given; bytes a weight
are counted, of all that is kept between updates: weights, targets, moments.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter, process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import rows
from frugalrl import config, jobs, rng
from frugalrl.levers.precision import products
from frugalrl.levers.precision.modes import PRECISIONS
from frugalrl.types import Agent, Batch, Discrete, Space, update

NAME = "precision_update"
ROUND_SECONDS = 2.0  # of each precision, at least one update
PICTURES = "benchmarks.blank:Blank-v0"
OPTIONS = {PICTURES: {"frame_stack": 3}}  # of environments
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sac 1024x2": ("sac", "HalfCheetah-v5", {"hidden": (1024, 1024), "batch_size": 1024}),
    "sac 256x2": ("sac", "HalfCheetah-v5", {"hidden": (256, 256), "batch_size": 256}),
    "sac pixels": ("sac", PICTURES, {"hidden": (256, 256), "batch_size": 32, "encoder_filters": 16}),
    "dqn nature": ("dqn", "ALE/Pong-v5", {"network": "nature", "batch_size": 256}),
}
LARGE = {"sac pixels drq": ("sac", PICTURES, {"hidden": (1024, 1024), "batch_size": 512, "encoder_filters": 32})}
QUICK = ("sac", "Pendulum-v1", {"hidden": (32, 32), "batch_size": 32})
BASE, PRECISION = "fp32", ("fp32", "bf16", "fp16", "bf16-kahan", "bf16-stochastic")
BY_XLA = " by XLA"


class Program(NamedTuple):
    """An update, compiled."""

    once: Callable[[], None]  # one of them, to its end
    peak_bytes: int
    weights: int
    bytes_a_weight: float
    products: str  # whose those of bf16 are


def some(space: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Observations or actions of a space, at random."""
    if isinstance(space, Discrete):
        return jax.random.randint(key, shape, 0, space.n, jnp.int32)
    if space.dtype == "uint8":
        return jax.random.bits(key, (*shape, *space.shape), jnp.uint8)
    return jnp.clip(jax.random.normal(key, (*shape, *space.shape)), jnp.float32(space.low), jnp.float32(space.high))


def batch_of(obs: Any, actions: Space, size: int) -> Batch:
    """Transitions of no environment, one in twenty of them an end."""
    keys, shape = jax.random.split(rng.key(0), 6), (size, 1)
    data = jobs.example(jobs.Card("", "", obs, actions, (), "", {}))._replace(
        obs=some(obs, keys[0], shape), next_obs=some(obs, keys[1], shape), action=some(actions, keys[2], shape),
        reward=jax.random.normal(keys[3], shape), terminated=jax.random.uniform(keys[4], shape) < 0.05,
        truncated=jnp.zeros(shape, bool), log_prob=jnp.zeros(shape), version=jnp.zeros(shape, jnp.int32),
    )  # fmt: skip
    return Batch(data, jnp.ones(size), jnp.arange(size, dtype=jnp.int32), chance=jnp.ones(size))


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def weights_of(agent: Agent, hyper: Any) -> int:
    """How many weights a learner in float32 has, of all its networks but the targets."""
    state = jax.eval_shape(lambda: agent.init(rng.key(0), hyper))
    return sum(x.size for x in jax.tree.leaves(state.params))


def program(precision: str, agent: str, env: str, hyper: dict[str, Any]) -> Program:
    """The update of that agent, and what it keeps; "bf16 by XLA" has XLA's products in any case."""
    precision, by_xla, _ = precision.partition(BY_XLA)
    chosen = config.configure(agent, env, hyper=hyper, env_options=OPTIONS.get(env), precision=precision)
    made = jobs.records(chosen)
    weights = weights_of(jobs.records(chosen._replace(precision=BASE)).agent, made.hyper)
    batch = batch_of(made.card.obs, made.card.actions, made.static.batch_size)
    options = jobs.EXACT if precision != BASE else None
    state = [jax.jit(made.agent.init)(rng.key(0), made.hyper)]
    step = jax.jit(lambda state, batch, key: update(made.agent, state, batch, key)[0], donate_argnums=0)
    before = products.lowered()
    with products.by_xla() if by_xla else nullcontext():
        compiled = step.lower(state[0], batch, rng.key(1)).compile(compiler_options=options)
    whose = "oneDNN" if products.lowered() > before else "XLA"
    memory = compiled.memory_analysis()
    assert memory is not None
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes

    def once() -> None:
        state[0] = jax.block_until_ready(compiled(state[0], batch, rng.key(1)))

    kept = bytes_of((state[0].params, state[0].target, state[0].optimizer))
    once()
    return Program(once, peak, weights, kept / weights, whose)


def contestants(precisions: list[str]) -> list[str]:
    """The precisions, and those of bfloat16 with XLA's products too if they have oneDNN's."""
    compared = jax.default_backend() == "cpu" and products.lacks() is None
    twins = [f"{name}{BY_XLA}" for name in precisions if compared and PRECISIONS[name].dtype == "bfloat16"]
    return [*precisions, *twins]


def line(found: rows.Row) -> str:
    return (
        f"{found['case']:11} {found['precision']:16} {found['ms_per_update']['median']:9.3f} ms, "
        f"{found['cpu_ms_per_update']['median']:.3f} ms of the processor, "
        f"{found['times_fp32']['median']:.2f} times fp32, {found['peak_bytes'] / 2**20:.1f} MiB, "
        f"{found['bytes_a_weight']:.2f} bytes a weight"
    )


def measured(case: str, what: tuple[str, str, dict[str, Any]], precisions: list[str], rounds: int) -> list[rows.Row]:
    """A row for each precision, which take turns."""
    agent, env, hyper = what
    programs = {name: program(name, *what) for name in contestants(precisions)}
    spent: dict[str, list[float]] = {name: [] for name in programs}
    worked: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, each in programs.items():
            start, began, times = perf_counter(), process_time(), 0
            while times == 0 or perf_counter() - start < (ROUND_SECONDS if rounds > 1 else 0):
                each.once()
                times += 1
            spent[name].append((perf_counter() - start) * 1e3 / times)
            worked[name].append((process_time() - began) * 1e3 / times)
    return [
        rows.row(
            NAME, list(products.PACKAGES), case=case, agent=agent, env=env, hyper=hyper, precision=name, rounds=rounds,
            device=jax.devices()[0].device_kind, products=found.products, ms_per_update=rows.spread(spent[name]),
            cpu_ms_per_update=rows.spread(worked[name]),
            times_fp32=rows.spread([a / b for a, b in zip(spent[name], spent[BASE], strict=True)]),
            cpu_times_fp32=rows.spread([a / b for a, b in zip(worked[name], worked[BASE], strict=True)]),
            peak_bytes=found.peak_bytes, weights=found.weights, bytes_a_weight=round(found.bytes_a_weight, 2),
        )
        for name, found in programs.items()
    ]  # fmt: skip


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--rounds", type=int, default=9, metavar="N")
    command.add_argument("--minutes", type=float, default=20.0, metavar="M", help="at most; a case is not cut short")
    command.add_argument("--precision", nargs="+", default=PRECISION, choices=tuple(PRECISIONS), metavar="P")
    command.add_argument(
        "--case", nargs="+", choices=(*CASES, *LARGE), metavar="NAME", help="all that fit, if not given"
    )
    args = command.parse_args()
    jobs.set_up_jax()
    precisions = [BASE, *(name for name in args.precision if name != BASE)]
    known = CASES | LARGE if args.case or jax.default_backend() != "cpu" else CASES
    cases = {"quick": QUICK} if args.quick else {name: known[name] for name in args.case or known}
    made: list[rows.Row] = []
    for case in rows.boxed(cases, args.minutes):
        made += measured(case, cases[case], precisions, 1 if args.quick else args.rounds)
    rows.finish(NAME, args, made, line)


if __name__ == "__main__":
    main()
