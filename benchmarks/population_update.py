"""What does an update of a population cost: in one program, in chunks, one by one, in processes? Beside fastpbrl.

    FASTPBRL_SOURCE=CHECKOUT python -m benchmarks.population_update [--only CASE ...] [--rounds N] [--out FILE]
        [--quick]

1 to 32 members learn from random data, as the `compiled` runtime makes them: all mapped in one program on one thread
("one program"), in chunks on a thread for each core ("chunks"), one after the other on one thread ("loop"; XLA splits
wide products over the cores all the same) and on a thread for each core ("threads"); or one after the other in a
process for each core ("processes"). "auto" is the one of the runtime's own choice, made by what it measures.
Milliseconds are of an update of the whole population, in rounds, each in its turn; ratios are taken within a round: to
one member, and to the quickest of all. `share` is that of the matrix products of 256 x 256 that all cores can do at
most, measured in the same rounds; operations are as XLA counts.

`--only seeds` asks what it is to be a population instead: 16 seeds of DQN in one run of `frugal train`, against 16 runs
of one seed each, one after the other and two at a time; seconds from the start of the first process to the end of the
last, with all programs compiled before.

fastpbrl (the code of Flajolet et al. 2022, arXiv 2206.08888) takes part in TD3 and SAC with its two ways, vectorised
and sequential, if its environment is there (`peers/setup.sh`) and FASTPBRL_SOURCE names its checkout. Its batches are
given, where ours are drawn from a memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import rows
from benchmarks.learning import learning
from benchmarks.peers import run as peers
from benchmarks.peers.common import Task
from frugalrl import config, jobs, rng
from frugalrl.agents import td3
from frugalrl.doctor import cores, product_gflops
from frugalrl.runtime import compiled
from frugalrl.runtime.compiled import Programs, Way

NAME = "population_update"
MLP = {"hidden": (256, 256), "batch_size": 256, "buffer_size": 10_000}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "td3": ("td3", "HalfCheetah-v5", MLP),
    "sac": ("sac", "HalfCheetah-v5", MLP),
    "dqn": ("dqn", "ALE/Pong-v5", {"batch_size": 32, "buffer_size": 2_000, "train_freq": 4, "gradient_steps": 1}),
}
SEEDS, SEEDS_STEPS = 16, 20_000  # of --only seeds
SIZES = (1, 2, 4, 8, 16, 32)
PEER_SIZES = (1, 8)  # it compiles a sequential population member by member
PEER_UPDATES = 20
SECONDS = 0.3  # of a turn, at least
TARGET_SHARE, TARGET_BEST = 0.6, 1.1  # of the peak, and times the best, with 16 members


class Members(NamedTuple):
    """What `Programs` advances: leaves [members, ...]."""

    state: Any
    kept: Any
    iteration: Any


def population(case: str) -> tuple[compiled.Run, int, Any]:
    """(a run that only learns, the updates of an iteration, the shapes of a member)."""
    agent, env, hyper = CASES[case]
    parts = learning(config.configure(agent, env, hyper=hyper))

    def init(key, hyper) -> Members:
        return Members(parts.init(key), parts.kept, jnp.int32(0))

    def advance(carry: Members, iterations):
        state = jax.lax.fori_loop(0, iterations, lambda _, state: parts.learn(state, carry.kept), carry.state)
        return carry._replace(state=state, iteration=carry.iteration + iterations), {}

    return compiled.Run(init, advance), parts.updates, jax.eval_shape(init, rng.key(0), ())


def members_of(run: compiled.Run, count: int) -> Members:
    return jax.block_until_ready(jax.jit(jax.vmap(lambda key: run.init(key, ())))(jax.random.split(rng.key(1), count)))


class Turn:
    """A population that learns in one way."""

    def __init__(self, programs: Programs, carry: Members, way: Way):
        self.programs, self.threads = programs, way.threads
        self.parts = compiled.split(jax.tree.map(jnp.copy, carry), way)

    def __call__(self, iterations: int) -> float:
        """Seconds of so many iterations of all members."""
        with ThreadPoolExecutor(self.threads) as pool:
            start = perf_counter()
            done = list(pool.map(partial(self.programs, iterations=iterations), self.parts))
            seconds = perf_counter() - start
        self.parts = [carry for carry, _ in done]
        return seconds


def timed(turn: Any) -> float:
    """Seconds of an iteration, of as many as last SECONDS."""
    turn(1)
    first = turn(1)
    return turn(count := max(1, round(SECONDS / first))) / count


def ways(count: int) -> dict[str, Way]:
    """By name; a way that is the same as one before is left out."""
    many = cores()
    chunk = max(compiled.ways(count, many))
    named = {
        "loop": Way(1, 1), "one program": Way(count, 1), "threads": Way(1, min(many, count)),
        "chunks": chunk,
    }  # fmt: skip
    return {name: way for i, (name, way) in enumerate(named.items()) if way not in list(named.values())[:i]}


def serve(case: str, count: int) -> None:
    """A process's side of "processes": for each line, a number of iterations, the seconds that they took."""
    if hasattr(os, "sched_setaffinity"):
        where = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {where[int(os.environ["PLACE"]) % len(where)]})
    jobs.set_up_jax()
    run, _, _ = population(case)
    carry = members_of(run, count)
    programs = Programs(run, carry)  # type: ignore[arg-type]
    programs.prepare(1)
    turn = Turn(programs, carry, Way(1, 1))
    print(turn(1), flush=True)
    for line in sys.stdin:
        print(turn(int(line)), flush=True)


@contextmanager
def processes(case: str, count: int) -> Iterator[Any]:
    """Members in a process for each core, as a `Turn`; a process for each if there are fewer."""
    many = min(cores(), count)
    shares = [len(range(place, count, many)) for place in range(many)]
    with ExitStack() as stack:
        started = []
        for place, share in enumerate(shares):
            one = [sys.executable, "-m", f"benchmarks.{NAME}", "--serve", case, str(share)]
            process = subprocess.Popen(
                one, env=os.environ | {"PLACE": str(place)}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        answers = [json.loads(process.stdout.readline()) for process in started]  # all are there
        assert answers

        def turn(iterations: int) -> float:
            for process in started:
                process.stdin.write(f"{iterations}\n")
                process.stdin.flush()
            return max(float(process.stdout.readline()) for process in started)

        yield turn


def flops(run: compiled.Run, shapes: Members) -> float:
    """Of an iteration of one member, as XLA counts them: once for what its loops repeat, which here is one update.

    It is the mean of an update in which TD3's actor takes part and of one in which it does not.
    """

    def counted(taken: Callable) -> float:
        with mock.patch.object(td3, "if_any", taken):
            made = jax.jit(lambda *given: run.advance(*given)).lower(shapes, jnp.int32(1)).compile()
        return float(made.cost_analysis()["flops"])

    with_actor = counted(lambda due, compute, otherwise, *args: compute(*args))
    without = counted(lambda due, compute, otherwise, *args: otherwise(*args))
    return (with_actor + without) / 2


def peer(case: str, method: str, count: int) -> float:
    """Seconds of an update of fastpbrl's population."""
    options = {"method": method, "members": count}
    found = peers.fastpbrl(Task(case, CASES[case][1], PEER_UPDATES, options, MLP["hidden"]))
    return found["runs"][0]["seconds_per_update"]


def measured(case: str, count: int, rounds: int, with_peer: bool) -> list[rows.Row]:
    """The rows of a population."""
    run, updates, shapes = population(case)
    carry = members_of(run, count)
    programs, found = Programs(run, carry), ways(count)  # type: ignore[arg-type]
    for width in {way.width for way in found.values()}:
        programs.prepare(width)
    options = compiled.ways(count, cores())
    times = compiled.fastest(programs, carry, options) if len(options) > 1 else {options[0]: 0.0}
    chosen = min(times, key=times.__getitem__)
    with processes(case, count) as apart:
        turns = {name: Turn(programs, carry, way) for name, way in found.items()} | {"processes": apart}
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        peak = []
        methods = ("vectorised", "sequential") if with_peer and count in PEER_SIZES else ()
        seconds |= {f"fastpbrl, {method}": [] for method in methods}
        for _ in range(rounds):
            for name, turn in turns.items():
                seconds[name].append(timed(turn) / updates)
            peak.append(product_gflops(256, cores(), SECONDS))
            for method in methods:
                seconds[f"fastpbrl, {method}"].append(peer(case, method, count))
    seconds["auto"] = seconds[next(name for name, way in found.items() if way == chosen)]
    own = [name for name in seconds if not name.startswith("fastpbrl")]
    best = [min(seconds[name][i] for name in own) for i in range(rounds)]
    work = flops(run, shapes) / updates * count / 1e9
    return [
        rows.row(
            NAME, case=case, agent=CASES[case][0], env=CASES[case][1], hyper=CASES[case][2], members=count, way=name,
            rounds=rounds, ms_per_update=rows.spread([1e3 * s for s in each]), seconds=each,
            times_best=rows.spread([a / b for a, b in zip(each, best, strict=True)]), gflop=work,
            **({"chosen": str(chosen)} if name == "auto" else {}),
            share=rows.spread([work / s / p for s, p in zip(each, peak, strict=True)]) if name in own else None,
        )
        for name, each in seconds.items()
    ]  # fmt: skip


def start_to_finish(seeds: int, steps: int, rounds: int) -> list[rows.Row]:
    """The rows of so many seeds in one run, and in a run each."""
    words = ("dqn", "CartPole-v1", "--runtime", "compiled", "--hyper", "hidden=64,64", "--steps", str(steps))

    def run(first: int, count: int, cache: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            line = [*words, "--seed", str(first), "--seeds", str(count)]
            rows.train(Path(folder, "run"), line, cache=Path(cache))

    def alone(at_once: int, cache: str) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda seed: run(seed, 1, cache), range(seeds)))

    with tempfile.TemporaryDirectory() as cache:
        ways = {
            "one run": lambda: run(0, seeds, cache),
            "one after the other": lambda: alone(1, cache),
            "two at a time": lambda: alone(2, cache),
        }
        for count in (seeds, 1):
            run(0, count, cache)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = perf_counter()
                way()
                seconds[name].append(perf_counter() - start)
    return [
        rows.row(
            NAME, case="seeds", agent=words[0], env=words[1], command_line=f"frugal train {' '.join(words)}",
            seeds=seeds, steps=steps, way=name, rounds=rounds, seconds=rows.spread(each),
            times_one_run=rows.spread([a / b for a, b in zip(each, seconds["one run"], strict=True)]),
        )
        for name, each in seconds.items()
    ]  # fmt: skip


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument(
        "--only", nargs="+", choices=[*CASES, "seeds"], help="measure these and keep the rows of others"
    )
    command.add_argument("--rounds", type=int, default=5, metavar="N")
    command.add_argument("--serve", nargs=2, metavar=("CASE", "MEMBERS"), help="for its own processes")
    args = command.parse_args()
    if args.serve:
        return serve(args.serve[0], int(args.serve[1]))
    jobs.set_up_jax()
    rounds, sizes = (1, (1, 2)) if args.quick else (args.rounds, SIZES)
    cases = args.only or (["td3"] if args.quick else list(CASES))
    reason = peers.missing("fastpbrl")
    if reason:
        print(f"fastpbrl is left out: {reason}")
    path = rows.destination(NAME, args)
    old, made = rows.read(path), []
    if "seeds" in cases:
        cases.remove("seeds")
        found = start_to_finish(*((2, 2_000) if args.quick else (SEEDS, SEEDS_STEPS)), 1 if args.quick else 3)
        for row in found:
            print(f"{row['seeds']} seeds, {row['way']:21} {row['seconds']['median']:8.1f} s", end="")
            print(f", {row['times_one_run']['median']:.2f} times one run", flush=True)
        made += found
        rows.write(path, rows.renewed(old, made, "case"))
    for case in cases:
        alone: dict[str, list[float]] = {}
        for count in sizes:
            for row in measured(case, count, rounds, reason is None and case != "dqn"):
                each = row.pop("seconds")
                if count == 1:
                    alone[row["way"]] = each
                # "chunks" and others that do not exist with one member are compared with a loop over it
                one = alone.get(row["way"], alone["loop"])
                row["times_one"] = rows.spread([a / b for a, b in zip(each, one, strict=True)])
                made.append(row)
                print(line(row), flush=True)
        rows.write(path, rows.renewed(old, made, "case"))
    print(rows.said(path, rows.renewed(old, made, "case")))


def line(row: rows.Row) -> str:
    share = f", {row['share']['median']:.0%} of the peak" if row["share"] else ""
    return (
        f"{row['case']:4} {row['members']:3} members, {row['way']:21} {row['ms_per_update']['median']:9.2f} ms, "
        f"{row['times_one']['median']:6.2f} times one, {row['times_best']['median']:.2f} times the best{share}"
    )


if __name__ == "__main__":
    main()
