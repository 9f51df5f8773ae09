"""How a Config becomes programs and processes: the one place where agents, runtimes and levers meet."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache, partial
from math import gcd
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from . import catalog, rng
from .catalog import UsageError
from .config import split, values_of
from .envs.make import options_for
from .envs.twins import twin
from .errors import EngineFailed, RunFailed
from .evaluate import HELD_OUT, Episodes, on_gymnasium, on_twin
from .levers.compress import calibrate, engines, modes, quantise, shrink, students
from .levers.compress.modes import Mode, Rung
from .levers.compress.prune import narrowed
from .levers.correct import ACTION_VALUES, STATE_VALUES, corrected, truncated
from .monitor import files, quality
from .monitor.machine import hardware, versions
from .monitor.receipt import given_up
from .networks import Layers
from .policy import Card
from .runtime import actor, actor_learner, actors, compiled, link
from .training import EVAL_EPISODES, EVALUATIONS, SEGMENTS, Config, Job, Moment, Phase, Restore, milestones
from .types import Agent, Box, Cadence, Discrete, Memory, Packet, Recipe, Session, Space, Transition
from .xla import cache_folder, set_up_jax

CORRECTORS = {"state": STATE_VALUES, "action": ACTION_VALUES}
UNROLL = 16  # steps of each environment in a message of an actor
FULL = Mode(1.0, "fp32")
PROBE_SECONDS = 1.0  # at least, between two comparisons of the full and the compressed policy
PROBE_SHARE = 0.02  # of the time, at most, that goes to them


class Parts(NamedTuple):
    """The records of a run, whatever its runtime."""

    recipe: Recipe
    agent: Agent
    static: Any
    hyper: Any
    card: Card
    cadence: Cadence


def records(config: Config) -> Parts:
    """The records of a run; `with_schedule` fills in the hyper-parameters that follow from its runtime."""
    recipe = catalog.recipe(config.agent)
    static, hyper = split(recipe, config.hyper)
    obs, space = catalog.spaces(config.env, options_for(config.env, config.env_options))
    agent = assembled(recipe, static, obs, space, config.correct)
    assert agent.network.layers is not None
    has = jax.eval_shape(lambda: agent.policy(agent.init(rng.key(0), hyper))).knobs
    greedy = {name: value for name, value in recipe.greedy(space).items() if name in has}
    card = Card(
        config.agent, config.env, obs, space, agent.network.layers, agent.head.__name__, greedy, config.env_options
    )  # fmt: skip
    return Parts(recipe, agent, static, hyper, card, recipe.cadence(static))


def assembled(recipe: Recipe, static: Any, obs: Box, space: Space, correct: str) -> Agent:
    """An agent with its Corrector."""
    values = values_of(recipe, static)
    if values in CORRECTORS:
        return recipe.assemble(static, obs, space, CORRECTORS[values][correct])
    agent = recipe.assemble(static, obs, space)
    return corrected(agent, truncated()) if correct == "tis" else agent


def gradient_parts(config: Config, card: Card, static: Any, hyper: Any, plan: actors.Plan) -> actor_learner.Parts:
    """What actor-learners compute gradients with; called in their processes."""
    set_up_jax()
    recipe = catalog.recipe(config.agent)
    agent = assembled(recipe, static, card.obs, card.actions, config.correct)
    memory = recipe.memory(static, example(card), lanes=plan.num_envs, unroll=plan.unroll, streams=1)
    return actor_learner.Parts(agent, memory, hyper)


def with_schedule(hyper: Any, config: Config, steps_per_update: float) -> Any:
    """Schedules count environment steps, an agent its updates."""
    derived = {"total_steps": config.first_steps, "steps_per_update": steps_per_update}
    return hyper._replace(**{name: value for name, value in derived.items() if name in hyper._fields})


def sized(static: Any, cadence: Cadence, config: Config, spare: int) -> Any:
    """No room for more steps than the first `train` takes, `spare` ones aside; the same when it is resumed."""
    if cadence.rollout:
        return static
    return static._replace(buffer_size=min(static.buffer_size, config.first_steps + spare))


def memory_of(recipe: Recipe, static: Any, card: Card, cadence: Cadence, **shape: int) -> Memory:
    """The memory of a run; a replay is told of how many frames an observation is made."""
    if not cadence.rollout:
        shape["stack"] = options_for(card.env, card.env_options).frame_stack
    return recipe.memory(static, example(card), **shape)


def example(card: Card) -> Transition:
    """One transition of zeros."""
    obs = jnp.zeros(card.obs.shape, card.obs.dtype)
    action = jnp.int32(0) if isinstance(card.actions, Discrete) else jnp.zeros(card.actions.shape, jnp.float32)
    zero, flag = jnp.float32(0), jnp.bool_(False)
    return Transition(obs, action, zero, flag, flag, obs, zero, jnp.int32(0))


def compiled_job(config: Config, report: Callable[[str], None]) -> Job:
    """All seeds in the `compiled` runtime."""
    set_up_jax()
    recipe, agent, static, hyper, card, cadence = records(config)
    env = twin(config.env)
    assert env is not None
    unroll = cadence.rollout or max(cadence.steps // static.num_envs, 1)
    per_iteration = unroll * static.num_envs
    updates = _whole_ratio(per_iteration, cadence, f"num_envs={gcd(static.num_envs, cadence.steps)}")
    warmup = -(-cadence.starts // per_iteration)
    hyper = with_schedule(hyper, config, per_iteration / updates)
    static = sized(static, cadence, config, 2 * per_iteration)
    memory = memory_of(recipe, static, card, cadence, lanes=static.num_envs, unroll=unroll, streams=1)
    acting = actor_learner.in_rotation(agent, cadence.learners) if cadence.learners else agent
    run = compiled.run(acting, env, memory, compiled.Plan(static.num_envs, unroll, updates, warmup))
    seeds = jnp.arange(config.seeds) + config.seed
    hypers = jax.tree.map(lambda x: jnp.full(config.seeds, x, jnp.float32), hyper)
    players = on_twin(agent, env, EVAL_EPISODES)
    spent: dict[str, Any] = {"compile": 0.0, "first_update": None, "batching": None}

    def begin(seeds, hypers):
        return jax.vmap(run.init)(jax.vmap(rng.key)(seeds), hypers)

    def play(states, key):
        return jax.vmap(lambda state: players(agent.policy(state), key))(states)

    def shared(state: Any) -> Any:
        """The states that are evaluated and kept: of actor-learners the one they share."""
        return state.newest if cadence.learners else state

    def step_of(iteration: int) -> int:
        return (warmup + iteration) * per_iteration

    def moments(restore: Restore | None) -> Iterator[Moment]:
        start = perf_counter()
        shapes = jax.eval_shape(begin, seeds, hypers)
        programs = compiled.Programs(run, shapes)
        found = remembered_way(config)
        options = compiled.ways(config.seeds, compiled.cores()) if found is None else [found]
        pool = ThreadPoolExecutor(2)
        # a program that runs once, and of nothing but the start, is not worth the compiler's while
        level: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" and warmup == 0 else None
        starter = pool.submit(lambda: jax.jit(begin).lower(seeds, hypers).compile(compiler_options=level))
        list(pool.map(programs.prepare, {way.width for way in options}))
        starter = starter.result()
        # needed at the first evaluation only: until then it is compiled beside the training
        evaluator = pool.submit(lambda: jax.jit(play).lower(shared(shapes.state), rng.key(0)).compile())
        pool.shutdown(wait=False)
        spent["compile"] += perf_counter() - start
        carry = jax.block_until_ready(starter(seeds, hypers)) if restore is None else restore.read(shapes)
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
        for tick in ticks:
            spent["first_update"] = spent["first_update"] or seconds_since_start()

            def state(tick=tick):
                return shared(tick.state())

            yield Moment(
                min(step_of(tick.iteration), config.steps),
                {name: np.asarray(x) for name, x in tick.metrics.items()},
                partial(_evaluate_on_twin, evaluator, state),
                tick.carry,
                partial(_weights_per_seed, agent, state, config.seeds),
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


def _evaluate_on_twin(program: Future, state: Callable[[], Any], episodes: int) -> Episodes:
    evaluator, keys = program.result(), jax.random.split(rng.key(HELD_OUT), -(-episodes // EVAL_EPISODES))
    played = [jax.device_get(evaluator(state(), key)) for key in keys]
    return Episodes(*(np.concatenate(x, -1)[:, :episodes] for x in zip(*played, strict=True)))


def _weights_per_seed(agent: Agent, state: Callable[[], Any], seeds: int) -> list:
    params = jax.device_get(jax.vmap(agent.policy)(state()).params)
    return [jax.tree.map(lambda x, k=k: x[k], params) for k in range(seeds)]


def actors_job(config: Config, report: Callable[[str], None]) -> Job:
    """The seeds one after the other in the `actors` runtime, each with all the cores."""
    set_up_jax()
    recipe, agent, static, hyper, card, cadence = records(config)
    plan = _actors_plan(static, cadence)
    messages = plan.actors if plan.waits else 1  # before the updates
    hyper = with_schedule(hyper, config, messages * plan.unroll * plan.num_envs / plan.updates)
    # an actor may bring all the steps there are
    spare = (plan.actors - 1) * config.first_steps + plan.actors * plan.unroll * plan.num_envs
    static = sized(static, cadence, config, spare)
    memory = memory_of(
        recipe, static, card, cadence, lanes=plan.num_envs, unroll=plan.unroll, streams=plan.actors
    )  # fmt: skip
    ledger = Ledger(agent, card, plan, report)
    ledger.choose(config.actors)
    # a checkpoint holds what the mode asked for needs; what `auto` adds to that is made anew
    asked = FULL if config.actors == "auto" else modes.mode(config.actors)

    @cache
    def pruned(share: float) -> Agent:
        """The agent with that share of its units left."""
        return assembled(recipe, _narrowed(static, share), card.obs, card.actions, config.correct)

    def left(step: int) -> float:
        """The share of units that is left at a step."""
        return 1.0 if config.prune is None else shrink.share_at(config.prune, step, config.first_steps)

    def learner(agent: Agent, mode: Mode) -> actors.Learner:
        full = agent.network, lambda state: agent.policy(own(state))
        return actors.learner(acting(agent, mode), memory, plan, quantise.COMPRESSORS[mode.format](), full)

    def phase(k: int) -> Phase:
        def moments(restore: Restore | None) -> Iterator[Moment]:
            share, key = left(restore.step if restore else 0), rng.key(config.seed + k)
            begin = jax.jit(learner(pruned(share), asked).init)
            carry = begin(key, hyper) if restore is None else restore.read(jax.eval_shape(begin, key, hyper))
            ledger.begin(config.seed + k, pruned(share))
            while True:
                agent = pruned(share)
                try:
                    yield from sitting(agent, fitted(agent, carry, ledger.chosen.mode), k)
                    return
                except actors.Unfit as unfit:
                    carry = unfit.carry
                    ledger.fall_back(unfit)
                except Climbed as climbed:
                    carry = climbed.carry
                except Thinned as thinned:
                    carry, share = thinned.carry, left(int(thinned.carry.step))
                    carry = shrunk(
                        agent, pruned(share), carry, _narrowed(static, share).hidden, np.concatenate(ledger.obs)
                    )
                    ledger.thin(pruned(share))
                    hidden = ", ".join(map(str, _narrowed(static, share).hidden))
                    report(f"the learner is pruned to layers of {hidden} from step {int(carry.step):,}")

        def sitting(agent: Agent, carry: actors.Carry, k: int) -> Iterator[Moment]:
            share, mode = left(int(carry.step)), ledger.chosen.mode
            packet, *_ = jax.eval_shape(learner(agent, mode).ship, carry.state)
            spec = _actor_spec(config, agent, card, plan, ledger.chosen, narrowed(ledger.layers, mode.share), packet)
            if plan.gradients:
                brought = actor_learner.shapes(agent, memory, carry.state, _items(spec))
                spec = spec._replace(
                    learner=partial(gradient_parts, config, card, static, hyper, plan),
                    gradient=link.fields(jax.tree.leaves(brought)),
                )
            try:
                parts = ledger.compile(learner(agent, mode), carry, spec)
                ticks = actors.train(
                    parts, plan, spec, carry, steps=config.steps, seed=config.seed + k,
                    report=report, timer=ledger.timer, fleets=ledger.fleets,
                )  # fmt: skip
                with closing(cast(Generator, ticks)):
                    for tick in ticks:
                        carry = tick.carry
                        if config.prune is not None:
                            ledger.keep(tick)
                        if left(tick.step) != share and tick.step < config.steps:
                            raise Thinned(carry)  # before anything is kept: a checkpoint's step says what it holds
                        metrics = {name: [value] for name, value in ledger.look(parts, tick).items()}
                        weights = partial(_host_weights, agent, carry.state)
                        yield Moment(
                            min(tick.step, config.steps),
                            metrics,
                            partial(evaluate, agent, parts, carry, tick.step >= config.steps),
                            lambda carry=carry: fitted(agent, carry, asked),
                            lambda weights=weights: [weights()],
                            partial(_structures, agent, carry.state),
                        )
                        if tick.step < config.steps and ledger.climb(tick.step):
                            raise Climbed(carry)
            except EngineFailed as error:  # in this process: the Monitor's
                raise actors.Unfit(f"the engine failed: {error}", carry) from error

        def evaluate(agent: Agent, parts: actors.Learner, carry: actors.Carry, last: bool, episodes: int) -> Episodes:
            """Of the full policy; at the end of the compressed one as well."""
            full, mode = agent.network.layers, ledger.chosen.mode
            assert full is not None
            if last and mode != FULL:
                packet, *_ = jax.device_get(parts.ship(carry.state))
                layers = narrowed(full, mode.share)
                played = _evaluate_greedily(agent, card, layers, ledger.chosen, packet.weights, EVAL_EPISODES)
                ledger.compressed_returns.append(float(np.mean(played.returns)))
            weights = _host_weights(agent, carry.state)
            return _evaluate_greedily(agent, card, full, Rung(FULL, "litert", 0.0), weights, episodes)

        return Phase(f"seed-{k}", range(k, k + 1), moments)

    return Job([phase(k) for k in range(config.seeds)], card, ledger.account, shrink.of_one_shape)


class Thinned(Exception):
    """The learner is due to be pruned; `carry` is where the run stands."""

    def __init__(self, carry: actors.Carry):
        super().__init__()
        self.carry = carry


def _narrowed(static: Any, share: float) -> Any:
    return static if share == 1 else static._replace(hidden=shrink.widths(static.hidden, share))


def shrunk(agent: Agent, narrow: Agent, carry: actors.Carry, hidden: tuple[int, ...], obs: np.ndarray) -> actors.Carry:
    """`carry` with smaller networks, distilled on `obs` from those that they were; a student begins anew."""
    teacher = own(carry.state)
    state = shrink.smaller(teacher, hidden)
    return carry._replace(state=shrink.reminded(agent, teacher, narrow, state, obs))


class Climbed(Exception):
    """The Monitor has chosen another mode; `carry` is where the run stands."""

    def __init__(self, carry: actors.Carry):
        super().__init__()
        self.carry = carry


STATIC = "int8-static"


def acting(agent: Agent, mode: Mode) -> Agent:
    """The agent whose actors act in `mode`."""
    agent = agent if mode.share == 1 else students.taught(agent, mode.share)
    return calibrate.calibrated(agent) if mode.format == STATIC else agent


def taken_in(state: Any) -> Any:
    """The state of an agent or of its student, without what calibrates it."""
    return state.inner if isinstance(state, calibrate.Calibrated) else state


def own(state: Any) -> Any:
    """The state of the agent itself, whatever its actors act with."""
    return students.teacher(taken_in(state))


def fitted(agent: Agent, carry: actors.Carry, mode: Mode) -> actors.Carry:
    """`carry` with the state that actors in `mode` need; a student that was not there is a part of its teacher."""
    state, static = taken_in(carry.state), isinstance(carry.state, calibrate.Calibrated)
    student = isinstance(state, students.Taught)
    if (student, static) == (mode.share < 1, mode.format == STATIC):
        return carry
    if student != (mode.share < 1):
        state = students.teacher(state) if student else students.enrolled(agent, mode.share, state)
    if mode.format == STATIC:
        state = calibrate.begun(acting(agent, Mode(mode.share, "int8")), state, rng.key(0))
    return carry._replace(state=state)


def _actors_plan(static: Any, cadence: Cadence) -> actors.Plan:
    """How the actor processes, two unless an agent says how many, and a Learner take turns."""
    count = actors.Plan().actors
    if cadence.learners:
        return actors.Plan(
            cadence.learners, static.num_envs, cadence.rollout, cadence.updates, 0, slots=1, gradients=True
        )
    if not cadence.rollout:
        steps = UNROLL * static.num_envs
        advice = f"train_freq={gcd(steps * cadence.updates, cadence.steps)}"
        updates = _whole_ratio(steps, cadence, advice)
        return actors.Plan(count, static.num_envs, UNROLL, updates, cadence.starts)
    if static.num_envs % count:
        raise ValueError(
            f"{static.num_envs} environments cannot be shared by {count} actors: for example "
            f"--hyper num_envs={count * (static.num_envs // count + 1)}"
        )
    return actors.Plan(
        count, static.num_envs // count, cadence.rollout, cadence.updates, 0,
        slots=1 if cadence.waits else 2, waits=cadence.waits,
    )  # fmt: skip


def _actor_spec(
    config: Config, agent: Agent, card: Card, plan: actors.Plan, chosen: Rung, layers: Layers, packet: Packet
) -> actor.Spec:
    one = card.actions
    action = actor.Field((), "int32") if isinstance(one, Discrete) else actor.Field(one.shape, "float32")
    return actor.Spec(
        env_id=config.env,
        env_options=options_for(config.env, config.env_options),
        num_envs=plan.num_envs,
        unroll=plan.unroll,
        seed=(),
        folder="",
        slab="",
        slots=plan.slots,
        action=action,
        obs=card.obs,
        layers=layers,
        engine=engines.module(chosen.engine),
        mode=chosen.mode.format,
        head=agent.head,
        packet=(),
        kinds=tuple(type(layer).__name__ for layer in packet.weights),
        knobs=tuple(sorted(card.knobs)),
        steady=plan.waits or plan.gradients,
        pull_period=config.pull_period,
    )


def _items(spec: actor.Spec) -> Transition:
    """The shapes of an unroll."""
    return Transition(*(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in actor.unroll_fields(spec)))


def _structures(agent: Agent, state: Any) -> dict[str, list]:
    """The student, if there is one, as the run folder keeps it."""
    state = taken_in(state)
    if not isinstance(state, students.Taught):
        return {}
    return {"half": [jax.device_get(students.taught(agent, modes.HALF).policy(state).params)]}


def _host_weights(agent: Agent, state) -> tuple:
    """Those of the full policy."""
    return jax.device_get(agent.policy(own(state)).params)


def _evaluate_greedily(agent: Agent, card: Card, layers: Layers, rung: Rung, weights: tuple, episodes: int) -> Episodes:
    parallel = min(episodes, EVAL_EPISODES)
    session = engines.engine(rung.engine).build(layers, card.obs, parallel, rung.mode.format)
    session.load(weights)

    def act(obs):
        return agent.head(session.run(obs), card.knobs).mode()

    options = options_for(card.env, card.env_options)
    played = on_gymnasium(act, card.env, episodes, parallel=parallel, options=options, obs_dtype=card.obs.dtype)
    return Episodes(*(x[None] for x in played))


class Ledger:
    """Keeps what actors act with, what this runtime spends and what its Monitor sees, over all seeds of a run."""

    chosen: Rung
    why: str  # it was
    session: Session  # of the Monitor

    def __init__(self, agent: Agent, card: Card, plan: actors.Plan, report: Callable[[str], None]):
        self.agent, self.card, self.plan, self.report = agent, card, plan, report
        self.timings: list[Rung] = []
        self.watch: modes.Watch | None = None  # where the mode is `auto`
        self.seed, self.switches = 0, []  # of the phase; what `auto` changed, and why
        self.compressed_returns: list[float] = []  # of each seed, greedy
        self.layers = card.layers  # of the learner's policy; fewer units of them after it was pruned
        self.obs: deque = deque()  # of the newest messages, if it will be
        self.fallback: dict[str, Any] | None = None  # what was asked for and given up, and why
        self.timer, self.fleets = actor.Timer(), []
        self.compile_seconds, self.packet_bytes, self.first_update = 0.0, 0, None
        self.look_after, self.seen, self.sums, self.looks, self.looked = 0.0, {}, {}, 0, False
        self.spent: dict[str, float] = {}  # by the Learner before the newest actors began
        self.recent: deque = deque(maxlen=100)
        self.stale, self.learned, self.stalest = 0.0, 0, 0.0  # staleness of messages, and of how many

    def choose(self, name: str, among: Iterable[str] | None = None, why: str = "") -> None:
        """Take the fastest engine of the mode `name`, or of fp32 if all engines fail in that.

        `why` ends the line that reports the choice. Raises ValueError if no engine is left.
        """
        failures: list[str] = []
        wanted = self._ladder() if name == "auto" else [modes.mode(name)]
        measured: list[Rung] = []
        for share in sorted({mode.share for mode in wanted}):
            formats = [mode.format for mode in wanted if mode.share == share]
            measured += self._measure(share, formats, among, failures)
        self.timings += measured
        if name not in ("fp32", "auto") and not measured:
            reason = "; ".join(failures)
            self.fallback = {"mode": name, "engine": None, "seed": None, "step": None, "reason": reason}
            return self.choose("fp32", among, f"; {given_up(self.fallback)}")
        for line in failures:
            self.report(line)
        if not measured:
            raise ValueError(f"no engine can run {name} here")
        self.watch = modes.Watch(modes.ladder(measured)) if name == "auto" else None
        taken = self.watch.now if self.watch else min(measured, key=lambda rung: rung.microseconds)
        self.why = modes.reason(taken, measured, asked=self.watch is None) + why
        self._take(taken, why)

    def _ladder(self) -> list[Mode]:
        """What `auto` chooses from: an actor-learner needs the network that it computes gradients of."""
        found = [modes.mode(name) for name in modes.LADDER]
        return [mode for mode in found if mode.share == 1 or not self.plan.gradients]

    def _measure(
        self, share: float, formats: list[str], among: Iterable[str] | None, failures: list[str]
    ) -> list[Rung]:
        layers = narrowed(self.layers, share)
        found = engines.measure(
            layers, self.card.obs, self.plan.num_envs, formats, among, report=failures.append
        )  # fmt: skip
        best = {}
        for timing in sorted(found, key=lambda t: -t.microseconds):
            best[timing.mode] = Rung(Mode(share, timing.mode), timing.engine, timing.microseconds)
        return list(best.values())

    def _take(self, rung: Rung, why: str = "") -> None:
        self.chosen = rung
        speed = f"{rung.microseconds:.1f} us a call of {self.plan.num_envs}"
        self.report(f"actors: {rung.mode.name} on {rung.engine}, {speed}{why}")

    def begin(self, seed: int, agent: Agent) -> None:
        """A seed begins, at the rung where `auto` begins, or goes on with what pruning has left of `agent`."""
        self.seed = seed
        if agent.network.layers != self.layers:
            self.thin(agent)
        elif self.watch:
            self.watch = modes.Watch(self.watch.rungs)
            self.chosen = self.watch.now

    def thin(self, agent: Agent) -> None:
        """The learner was pruned: what is fastest is measured anew, for the mode that acts now."""
        assert agent.network.layers is not None
        self.layers = agent.network.layers
        self.choose("auto" if self.watch else self.chosen.mode.name)

    def keep(self, tick: actors.Tick) -> None:
        """Remember the newest observations, to distil on."""
        if tick.items is not None:
            self.obs.append(np.asarray(tick.items.obs).reshape(-1, *self.card.obs.shape))
            while sum(map(len, self.obs)) - len(self.obs[0]) >= shrink.RECENT:
                self.obs.popleft()

    def climb(self, step: int) -> bool:
        """Whether `auto` takes another mode from here on."""
        if self.watch is None or not self.looked:
            return False
        self.looked, before = False, self.chosen
        why = self.watch.look(self.seen["harm"], self._share_of_acting())
        if why is None:
            return False
        self.switches.append(
            {"seed": self.seed, "step": step, "from": before.mode.name, "to": self.watch.now.mode.name,
             "kl": self.seen["kl"], "reason": why}
        )  # fmt: skip
        self.why = f"{self.watch.now.mode.name} from step {step:,}: {why}"
        self._take(self.watch.now, f" from step {step:,}: {why}")
        return True

    def _share_of_acting(self) -> float:
        """Policy calls as a share of the time in which any process of the newest actors worked."""
        acting, own = self.fleets[-1].seconds, self.timer.seconds
        busy = sum(seconds for kind, seconds in acting.items() if kind not in ("waiting", "start"))
        busy += sum(own.get(kind, 0.0) - self.spent.get(kind, 0.0) for kind in ("learner", "compressor", "transport"))
        return acting.get("inference", 0.0) / busy if busy > 0 else 0.0

    def fall_back(self, unfit: actors.Unfit) -> None:
        """Take fp32 after a compressed mode has failed. Raises RunFailed where that would not help."""
        step, failed = int(unfit.carry.step), self.chosen
        if not actors.finite(jax.tree.leaves(_host_weights(self.agent, unfit.carry.state))):
            raise RunFailed(
                f"seed {self.seed} has diverged, its weights are no longer finite at step {step:,}: look at the "
                "rewards, or train it anew with a smaller learning_rate", None,
            )  # fmt: skip
        if failed.mode.name == "fp32":
            raise unfit
        broken = (failed.engine,) if isinstance(unfit.__cause__, EngineFailed) else ()
        self.fallback = {
            "mode": failed.mode.name, "engine": failed.engine, "seed": self.seed, "step": step, "reason": str(unfit)
        }  # fmt: skip
        among = [name for name in engines.ACTOR_ENGINES if name not in broken]
        try:
            self.choose("fp32", among, f"; {given_up(self.fallback)}")
        except ValueError as error:
            raise RunFailed(f"{unfit}; {error}", None) from unfit

    def compile(self, learner: actors.Learner, carry: actors.Carry, spec: actor.Spec) -> actors.Learner:
        """The Learner with its programs compiled ahead of time. Raises EngineFailed."""
        start = perf_counter()
        seen = jax.eval_shape(learner.probe, carry)[0].shape[0]
        self.session = actor.session(spec.engine, spec.layers, self.card.obs, seen, spec.mode)
        self.spent, self.looked = dict(self.timer.seconds), False
        items, stream = _items(spec), jax.ShapeDtypeStruct((), "int32")
        brought = [jax.ShapeDtypeStruct(f.shape, f.dtype) for f in spec.gradient]
        jobs = {
            "learn": (carry, items, stream, brought), "add": (carry, items, stream),
            "ship": (carry.state,), "probe": (carry,),
        }  # fmt: skip
        lowered = [getattr(learner, name).lower(*arguments) for name, arguments in jobs.items()]
        with ThreadPoolExecutor() as pool:
            done = dict(zip(jobs, pool.map(lambda x: x.compile(), lowered), strict=True))
        self.compile_seconds += perf_counter() - start
        packet, _, shared = jax.eval_shape(learner.ship, carry.state)
        self.packet_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((packet, shared)))
        return learner._replace(**done)

    def look(self, parts: actors.Learner, tick: actors.Tick) -> dict[str, float]:
        """The metrics of the moment; the policies are compared now and then. Raises EngineFailed."""
        self.recent.extend(ret for ret, _ in tick.episodes)
        if tick.metrics and self.first_update is None:
            self.first_update = seconds_since_start()
        start = perf_counter()
        if tick.metrics and start > self.look_after:
            obs, outputs, knobs, log_ratio = jax.device_get(parts.probe(tick.carry))
            packet, *_ = jax.device_get(parts.ship(tick.carry.state))
            self.session.load(packet.weights)
            compressed = self.agent.head(self.session.run(obs), knobs)
            self.seen = quality.divergence(self.agent.head(outputs, knobs), compressed) | quality.importance(log_ratio)
            self.looks, self.looked = self.looks + 1, True
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in self.seen.items()}
            self.look_after = start + max(PROBE_SECONDS, (perf_counter() - start) / PROBE_SHARE)
        train_return = float(np.mean(self.recent)) if self.recent else float("nan")
        if "staleness" in tick.metrics:
            self.learned += 1
            self.stale += tick.metrics["staleness"]
            self.stalest = max(self.stalest, tick.metrics["staleness_max"])
        return tick.metrics | self.staleness() | self.seen | {"train_return": train_return}

    def staleness(self) -> dict[str, float]:
        """How many updates late messages were, on average and at most; nothing before one was learned from."""
        return {"staleness": self.stale / self.learned, "staleness_max": self.stalest} if self.learned else {}

    def account(self) -> dict[str, Any]:
        """What the receipt says about actors, and the seconds of all processes by kind of work."""
        acting: dict[str, float] = {}
        for fleet in self.fleets:
            for kind, seconds in fleet.seconds.items():
                acting[kind] = acting.get(kind, 0.0) + seconds
        own, refresh = self.timer.seconds, sum(acting.get(kind, 0.0) for kind in actor.REFRESH)
        idle = ("waiting", "start", "other")
        return {
            "compile_seconds": self.compile_seconds,
            "first_update_seconds": self.first_update,
            "time_split": {
                "environment": acting.get("environment", 0.0),
                "inference": acting.get("inference", 0.0),
                "transport": acting.get("transport", 0.0) + own.get("transport", 0.0),
                "learner": own.get("learner", 0.0) + acting.get("learner", 0.0),
                "compressor": own.get("compressor", 0.0) + refresh,
                "other": sum(times.get(kind, 0.0) for times in (acting, own) for kind in idle),
            },
            "actors": {
                "mode": self.chosen.mode.name,
                "why": self.why,
                "engine": self.chosen.engine,
                "refreshes": sum(fleet.refreshes for fleet in self.fleets),
                "packet_bytes": self.packet_bytes,
                **{name: value / self.looks for name, value in self.sums.items()},
                **self.staleness(),
                "fallback": self.fallback,
                "processes": self.plan.actors,
                "restarts": sum(fleet.restarts for fleet in self.fleets),
                "waiting_seconds": acting.get("waiting", 0.0),
                "learner_waiting_seconds": own.get("waiting", 0.0),
                "step_seconds": sum(acting.get(kind, 0.0) for kind in ("environment", "inference", "other")),
                "refresh_seconds": refresh,
                **{f"{kind}_seconds": acting.get(kind, 0.0) for kind in actor.REFRESH},
                "switches": self.switches,
                "compressed_returns": self.compressed_returns,
                "measured": [rung._asdict() | {"mode": rung.mode.name} for rung in self.timings],
            },
        }


def _whole_ratio(steps: int, cadence: Cadence, advice: str) -> int:
    """Learner updates that go with `steps` environment steps. Raises UsageError if that is not a whole number."""
    if steps * cadence.updates % cadence.steps:
        raise UsageError(
            f"{steps} environment steps at a time and train_freq={cadence.steps} do not make whole rounds of updates: "
            f"use {advice}"
        )
    return steps * cadence.updates // cadence.steps


def seconds_since_start() -> float | None:
    """Seconds since this process began, on Linux."""
    try:
        with open("/proc/self/stat") as f:
            ticks = int(f.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime") as f:
            return float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
