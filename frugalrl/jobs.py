"""How a Config becomes programs and processes: the one place where agents, runtimes and levers meet."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import gcd
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import catalog, rng
from .catalog import UsageError
from .envs.twins import twin
from .evaluate import HELD_OUT, Episodes, on_gymnasium, on_twin
from .levers.compress import engines, quantise
from .levers.correct import corrected, truncated
from .memory import uniform
from .monitor import files, quality
from .monitor.machine import hardware, versions
from .networks import weighted
from .policy import Card
from .runtime import actor, actors, compiled
from .training import EVAL_EPISODES, EVALUATIONS, SEGMENTS, Config, Job, Moment, Phase, Restore, milestones
from .types import Agent, Discrete, Transition

COMPRESSORS = {"fp32": quantise.fp32, "int8": quantise.int8}
UNROLL = 16  # steps of each environment in a message of an actor
PROBE_SECONDS = 1.0  # between two comparisons of the full and the compressed policy


def cache_folder() -> str:
    """Where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR, else the user's cache folder."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "frugalrl", "jax")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def set_up_jax() -> None:
    """JAX as this library wants it; a setting that the caller has made stays."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", cache_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # Dispatch in the calling thread: small calls are four times as quick, and threads that each run seeds do not queue
    # up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def records(config: Config) -> tuple[Agent, Any, Any, Card]:
    """(agent, static, hyper, card) of a run, the derived hyper-parameters filled in."""
    module = catalog.recipe(config.agent)
    static = module.Static(**{k: v for k, v in config.hyper.items() if k in module.Static._fields})
    hyper = module.Hyper(**{k: v for k, v in config.hyper.items() if k in module.Hyper._fields})
    derived = {"total_steps": config.first_steps, "steps_per_update": static.train_freq / static.gradient_steps}
    hyper = hyper._replace(**{name: value for name, value in derived.items() if name in hyper._fields})
    obs, space = catalog.spaces(config.env)
    agent = module.assemble(static, obs, space)
    if config.correct == "tis":
        agent = corrected(agent, truncated())
    assert agent.network.layers is not None
    knobs = module.greedy(space)
    card = Card(config.agent, config.env, obs, space, agent.network.layers, agent.head.__name__, knobs)
    return agent, static, hyper, card


def example(card: Card) -> Transition:
    """One transition of zeros."""
    obs = jnp.zeros(card.obs.shape, card.obs.dtype)
    action = jnp.int32(0) if isinstance(card.actions, Discrete) else jnp.zeros(card.actions.shape, jnp.float32)
    zero, flag = jnp.float32(0), jnp.bool_(False)
    return Transition(obs, action, zero, flag, flag, obs, zero, jnp.int32(0))


def compiled_job(config: Config, report: Callable[[str], None]) -> Job:
    """All seeds in the `compiled` runtime."""
    set_up_jax()
    agent, static, hyper, card = records(config)
    env = twin(config.env)
    assert env is not None
    unroll = max(static.train_freq // static.num_envs, 1)
    per_iteration = unroll * static.num_envs
    advice = f"num_envs={gcd(static.num_envs, static.train_freq)}"
    updates = _whole_ratio(per_iteration * static.gradient_steps, static, advice)
    warmup = -(-static.learning_starts // per_iteration)
    plan = compiled.Plan(static.num_envs, unroll, updates, warmup)
    # no room for more steps than the first `train` takes; the same size when it is resumed
    memory = uniform(
        example(card), min(static.buffer_size, config.first_steps + 2 * per_iteration), static.batch_size,
        lanes=static.num_envs, unroll=unroll, window=static.n_step,
    )  # fmt: skip
    run = compiled.run(agent, env, memory, plan)
    seeds = jnp.arange(config.seeds) + config.seed
    hypers = jax.tree.map(lambda x: jnp.full(config.seeds, x, jnp.float32), hyper)
    players = on_twin(agent, env, EVAL_EPISODES)
    spent: dict[str, Any] = {"compile": 0.0, "first_update": None, "batching": None}

    def begin(seeds, hypers):
        return jax.vmap(run.init)(jax.vmap(rng.key)(seeds), hypers)

    def play(states, key):
        return jax.vmap(lambda state: players(agent.policy(state), key))(states)

    def step_of(iteration: int) -> int:
        return (warmup + iteration) * per_iteration

    def moments(restore: Restore | None) -> Iterator[Moment]:
        start = perf_counter()
        shapes = jax.eval_shape(begin, seeds, hypers)
        programs = compiled.Programs(run, shapes)
        found = remembered_way(config)
        options = compiled.ways(config.seeds, compiled.cores()) if found is None else [found]
        with ThreadPoolExecutor(2) as pool:
            starter = pool.submit(lambda: jax.jit(begin).lower(seeds, hypers).compile())
            list(pool.map(programs.prepare, {way.width for way in options}))
            starter = starter.result()
        spent["compile"] += perf_counter() - start
        carry = jax.block_until_ready(starter(seeds, hypers)) if restore is None else restore(shapes)
        del starter
        way, measured = options[0], {}
        if len(options) > 1:
            measured = compiled.fastest(programs, carry, options)
            way = min(options, key=measured.__getitem__)
            remember_way(config, way)
        spent["batching"] = {
            "way": str(way),
            "microseconds_per_iteration": {str(way): round(value, 1) for way, value in measured.items()},
        }
        if config.seeds > 1:
            report(f"batching: {way}" + (" (as measured before)" if found else ""))
        iterations = max(1, -(-(config.steps - step_of(0)) // per_iteration))
        marks = [-(-(step - step_of(0)) // per_iteration) for step in milestones(config.steps, EVALUATIONS * SEGMENTS)]
        # The first segment is one iteration, so that the time of the first update is known. A row's metrics are means
        # over its last segment: a resumed run must have the same ones.
        ticks = compiled.train(programs, way, carry, [1, *marks, iterations])
        del carry
        evaluator = None
        for tick in ticks:
            spent["first_update"] = spent["first_update"] or seconds_since_start()
            if evaluator is None:
                start = perf_counter()
                evaluator = jax.jit(play).lower(tick.state(), rng.key(0)).compile()
                spent["compile"] += perf_counter() - start
            yield Moment(
                min(step_of(tick.iteration), config.steps),
                {name: np.asarray(x) for name, x in tick.metrics.items()},
                partial(_evaluate_on_twin, evaluator, tick.state),
                tick.carry,
                partial(_weights_per_seed, agent, tick.state, config.seeds),
            )

    def account() -> dict[str, Any]:
        return {
            "compile_seconds": spent["compile"],
            "first_update_seconds": spent["first_update"],
            "batching": spent["batching"],
        }

    return Job([Phase("all", range(config.seeds), moments)], card, account)


def _way_file(config: Config) -> Path:
    """Where the way to batch the seeds of a run is remembered: a file for each program and machine."""
    what = config._replace(steps=0, seed=0, log="", first_steps=0)
    told = json.dumps([what, versions(), hardware(), compiled.cores()], sort_keys=True, default=str)
    return Path(cache_folder(), "ways", hashlib.sha256(told.encode()).hexdigest()[:32] + ".json")


def remember_way(config: Config, way: compiled.Way) -> None:
    with suppress(OSError):  # then it is measured again next time
        files.replace(_way_file(config), json.dumps(way._asdict()))


def remembered_way(config: Config) -> compiled.Way | None:
    """The way measured by an earlier run of this program on this machine, if any."""
    try:
        way = compiled.Way(**json.loads(_way_file(config).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return way if way in compiled.ways(config.seeds, compiled.cores()) else None


def _evaluate_on_twin(evaluator: Callable, state: Callable[[], Any], episodes: int) -> Episodes:
    keys = jax.random.split(rng.key(HELD_OUT), -(-episodes // EVAL_EPISODES))
    played = [jax.device_get(evaluator(state(), key)) for key in keys]
    return Episodes(*(np.concatenate(x, -1)[:, :episodes] for x in zip(*played, strict=True)))


def _weights_per_seed(agent: Agent, state: Callable[[], Any], seeds: int) -> list:
    params = jax.device_get(jax.vmap(agent.policy)(state()).params)
    return [jax.tree.map(lambda x, k=k: x[k], params) for k in range(seeds)]


def actors_job(config: Config, report: Callable[[str], None]) -> Job:
    """The seeds one after the other in the `actors` runtime, each with all the cores."""
    set_up_jax()
    agent, static, hyper, card = records(config)
    modes = ("fp32", "int8") if config.actors == "auto" else (config.actors,)
    timings = engines.measure(card.layers, card.obs, static.num_envs, modes)
    chosen = engines.choose(timings, config.actors)  # type: ignore[arg-type]
    report(f"actors: {chosen.mode} on {chosen.engine}, {chosen.microseconds:.1f} us a call of {static.num_envs}")
    per_message = UNROLL * static.num_envs
    advice = f"train_freq={gcd(per_message * static.gradient_steps, static.train_freq)}"
    plan = actors.Plan(
        num_envs=static.num_envs,
        unroll=UNROLL,
        updates=_whole_ratio(per_message * static.gradient_steps, static, advice),
        warmup=static.learning_starts,
    )
    memory = uniform(
        example(card), min(static.buffer_size, plan.actors * (config.first_steps + per_message)), static.batch_size,
        lanes=plan.num_envs, unroll=plan.unroll, window=static.n_step, streams=plan.actors,
    )  # fmt: skip
    learner = actors.learner(agent, memory, plan, COMPRESSORS[chosen.mode]())
    spec = _actor_spec(config, agent, card, plan, chosen)
    ledger = Ledger(agent, card, chosen, static.batch_size)

    def phase(k: int) -> Phase:
        def moments(restore: Restore | None) -> Iterator[Moment]:
            begin, key = jax.jit(learner.init), rng.key(config.seed + k)
            carry = begin(key, hyper) if restore is None else restore(jax.eval_shape(begin, key, hyper))
            parts = ledger.compile(learner, carry, plan, spec)
            ticks = actors.train(
                parts, plan, spec, carry, steps=config.steps, seed=config.seed + k,
                report=report, timer=ledger.timer, fleets=ledger.fleets,
            )  # fmt: skip
            for tick in ticks:
                metrics = {name: [value] for name, value in ledger.look(parts, tick).items()}
                weights = partial(_host_weights, agent, tick.carry.state)
                yield Moment(
                    min(tick.step, config.steps),
                    metrics,
                    partial(_evaluate_greedily, agent, card, weights),
                    lambda carry=tick.carry: carry,
                    lambda weights=weights: [weights()],
                )

        return Phase(f"seed-{k}", range(k, k + 1), moments)

    return Job([phase(k) for k in range(config.seeds)], card, lambda: ledger.account(plan, timings))


def _actor_spec(config: Config, agent: Agent, card: Card, plan: actors.Plan, chosen: engines.Timing) -> actor.Spec:
    one = card.actions
    action = actor.Field((), "int32") if isinstance(one, Discrete) else actor.Field(one.shape, "float32")
    quantised = "QuantLinear" if chosen.mode == "int8" else "Linear"
    return actor.Spec(
        env_id=config.env,
        env_options={},
        num_envs=plan.num_envs,
        unroll=plan.unroll,
        seed=(),
        folder="",
        slab="",
        slots=plan.slots,
        action=action,
        obs=card.obs,
        layers=card.layers,
        engine=engines.module(chosen.engine),
        mode=chosen.mode,
        head=agent.head,
        packet=(),
        kinds=(quantised,) * sum(1 for _ in weighted(card.layers, card.obs.shape)),
        knobs=tuple(sorted(card.knobs)),
    )


def _host_weights(agent: Agent, state) -> tuple:
    return jax.device_get(agent.policy(state).params)


def _evaluate_greedily(agent: Agent, card: Card, weights: Callable[[], tuple], episodes: int) -> Episodes:
    parallel = min(episodes, EVAL_EPISODES)
    session = engines.engine("litert").build(card.layers, card.obs, parallel, "fp32")
    session.load(weights())

    def act(obs):
        return agent.head(session.run(obs), card.knobs).mode()

    played = on_gymnasium(act, card.env, episodes, parallel=parallel, obs_dtype=card.obs.dtype)
    return Episodes(*(x[None] for x in played))


class Ledger:
    """Keeps what the `actors` runtime spends and what its Monitor sees, over all seeds of a run."""

    def __init__(self, agent: Agent, card: Card, chosen: engines.Timing, batch: int):
        self.agent, self.chosen = agent, chosen
        self.session = engines.engine(chosen.engine).build(card.layers, card.obs, batch, chosen.mode)
        self.timer, self.fleets = actor.Timer(), []
        self.compile_seconds, self.packet_bytes, self.first_update = 0.0, 0, None
        self.looked_at, self.seen, self.sums, self.looks = 0.0, {}, {}, 0
        self.recent: deque = deque(maxlen=100)

    def compile(
        self, learner: actors.Learner, carry: actors.Carry, plan: actors.Plan, spec: actor.Spec
    ) -> actors.Learner:
        """The Learner with its programs compiled ahead of time."""
        start = perf_counter()
        items = actor.Transition(*(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in actor.unroll_fields(spec)))
        stream = jax.ShapeDtypeStruct((), "int32")
        jobs = {
            "learn": (carry, items, stream), "add": (carry, items, stream), "cut": (carry, stream),
            "ship": (carry.state,), "probe": (carry,),
        }  # fmt: skip
        lowered = [getattr(learner, name).lower(*arguments) for name, arguments in jobs.items()]
        with ThreadPoolExecutor() as pool:
            done = dict(zip(jobs, pool.map(lambda x: x.compile(), lowered), strict=True))
        self.compile_seconds += perf_counter() - start
        packet, _ = jax.eval_shape(learner.ship, carry.state)
        self.packet_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packet))
        return learner._replace(**done)

    def look(self, parts: actors.Learner, tick: actors.Tick) -> dict[str, float]:
        """The metrics of the moment; the policies are compared once in PROBE_SECONDS."""
        self.recent.extend(ret for ret, _ in tick.episodes)
        if tick.metrics and self.first_update is None:
            self.first_update = seconds_since_start()
        if tick.metrics and perf_counter() - self.looked_at > PROBE_SECONDS:
            self.looked_at = perf_counter()
            obs, outputs, knobs, log_ratio = jax.device_get(parts.probe(tick.carry))
            packet, _ = jax.device_get(parts.ship(tick.carry.state))
            self.session.load(packet.weights)
            compressed = self.agent.head(self.session.run(obs), knobs)
            self.seen = quality.divergence(self.agent.head(outputs, knobs), compressed) | quality.importance(log_ratio)
            self.looks += 1
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in self.seen.items()}
        train_return = float(np.mean(self.recent)) if self.recent else float("nan")
        return tick.metrics | self.seen | {"train_return": train_return}

    def account(self, plan: actors.Plan, timings: list[engines.Timing]) -> dict[str, Any]:
        """What the receipt says about actors, and the seconds of all processes by kind of work."""
        acting: dict[str, float] = {}
        for fleet in self.fleets:
            for kind, seconds in fleet.seconds.items():
                acting[kind] = acting.get(kind, 0.0) + seconds
        own = self.timer.seconds
        idle = ("waiting", "start", "other")
        return {
            "compile_seconds": self.compile_seconds,
            "first_update_seconds": self.first_update,
            "time_split": {
                "environment": acting.get("environment", 0.0),
                "inference": acting.get("inference", 0.0),
                "transport": acting.get("transport", 0.0) + own.get("transport", 0.0),
                "learner": own.get("learner", 0.0),
                "compressor": own.get("compressor", 0.0) + acting.get("refresh", 0.0),
                "other": sum(times.get(kind, 0.0) for times in (acting, own) for kind in idle),
            },
            "actors": {
                "mode": self.chosen.mode,
                "engine": self.chosen.engine,
                "refreshes": sum(fleet.refreshes for fleet in self.fleets),
                "packet_bytes": self.packet_bytes,
                **{name: value / self.looks for name, value in self.sums.items()},
                "processes": plan.actors,
                "restarts": sum(fleet.restarts for fleet in self.fleets),
                "waiting_seconds": acting.get("waiting", 0.0),
                "learner_waiting_seconds": own.get("waiting", 0.0),
                "refresh_seconds": acting.get("refresh", 0.0),
                "measured": [timing._asdict() for timing in timings],
            },
        }


def _whole_ratio(updates: int, static, advice: str) -> int:
    """How often `updates` holds train_freq. Raises UsageError if that is not a whole number."""
    if updates % static.train_freq:
        raise UsageError(
            f"num_envs={static.num_envs} and train_freq={static.train_freq} do not make whole rounds of updates: "
            f"use {advice}"
        )
    return updates // static.train_freq


def seconds_since_start() -> float | None:
    """Seconds since this process began, on Linux."""
    try:
        with open("/proc/self/stat") as f:
            ticks = int(f.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime") as f:
            return float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
