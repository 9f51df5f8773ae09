"""How a Config becomes programs and processes: the one place where agents, runtimes and levers meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache, partial, reduce
from math import gcd, prod
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from . import catalog, checkpoint, rng
from .catalog import UsageError
from .config import side_by_side, split, values_of
from .envs import repeated
from .envs.make import make, options_for
from .envs.twins import twin
from .errors import BadFile, Diverged, EngineFailed
from .evaluate import HELD_OUT, SELECTION, Episodes, on_gymnasium, on_twin
from .ledger import FULL, Ledger, acting, fitted, host_weights, items_of, own, seconds_since_start, taken_in
from .ledger import weights_of_each as host_weights_of_each
from .levers.compress import engines, modes, quantise, shrink, students
from .levers.compress.aware import DELAY, quantisation_aware
from .levers.compress.modes import Mode, Rung
from .levers.compress.prune import narrowed
from .levers.correct import ACTION_VALUES, STATE_VALUES, corrected, truncated
from .levers.population import evolution, search
from .levers.population.cem import cem
from .levers.population.dvd import dvd
from .levers.population.joint import Rule, joint
from .levers.population.watch import Watch
from .levers.precision import products
from .levers.precision.modes import COLLAPSED, PRECISIONS, Precision
from .levers.precision.numerics import Counts, counts, numerics, stored, watched
from .monitor import files, words
from .monitor.machine import free_memory, hardware, versions
from .monitor.receipt import Saving
from .networks import Layers
from .policy import Card
from .runtime import actor, actor_learner, actors, cluster, compiled, link
from .training import EVAL_EPISODES, SEGMENTS, Config, Heirs, Job, Moment, Phase, Restore, added, milestones
from .types import Agent, Box, Cadence, Discrete, Memory, Packet, Recipe, Space, Transition, best_policy
from .xla import cache_folder, set_up_jax

# (population, updates of the whole training) -> what makes members of one agent a population
RULES: dict[str, Callable[[search.Population, float], Rule]] = {
    "cem": lambda population, updates: cem(population.members, population.variance),
    "dvd": lambda population, updates: dvd(population.members, population.novelty, updates),
}
CORRECTORS = {"state": STATE_VALUES, "action": ACTION_VALUES}
MUCH = 500e6  # bytes that a run says beforehand that it holds
PIECE = 1.0  # seconds of training between two looks at what is asked of a compiled run
UNROLL = 16  # steps of each environment in a message of an actor
SHARES = 8  # of a crew, at most: a process is more than a hundred megabytes


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
    agent = assembled(recipe, static, obs, space, config)
    assert agent.network.layers is not None
    has = jax.eval_shape(lambda: agent.policy(agent.init(rng.key(0), hyper))).knobs
    greedy = {name: value for name, value in recipe.greedy(space).items() if name in has}
    card = Card(
        config.agent, config.env, obs, space, agent.network.layers, agent.head.__name__, greedy, config.env_options
    )  # fmt: skip
    return Parts(recipe, agent, static, hyper, card, recipe.cadence(static))


def assembled(recipe: Recipe, static: Any, obs: Box, space: Space, config: Config) -> Agent:
    """An agent with its precision and its Corrector."""
    values, precision = values_of(recipe, static), PRECISIONS[config.precision]
    lower: dict[str, Any] = {} if precision == Precision() else {"numerics": numerics(precision)}
    if precision.dtype == "bfloat16":
        products.take_over()
    if values in CORRECTORS:
        agent = recipe.assemble(static, obs, space, CORRECTORS[values][config.correct], **lower)
    else:
        agent = recipe.assemble(static, obs, space, **lower)
        agent = corrected(agent, truncated()) if config.correct == "tis" else agent
    return watched(agent, precision) if lower else agent


def aware(agent: Agent, config: Config, cadence: Cadence, steps_per_update: float) -> Agent:
    """With `--qat` the agent that learns with rounded weights, from half of its updates on; the same when resumed."""
    if config.qat is None:
        return agent
    compressor = quantise.rounded(config.qat) if config.actors == "fp32" else quantise.int8()
    updates = (config.first_steps - cadence.starts) / steps_per_update
    return quantisation_aware(agent, compressor, int(DELAY * updates))


EXACT = {"xla_allow_excess_precision": False}  # what has 16 bits is rounded to them, also inside of a program


def told(config: Config, report: Callable[[str], None]) -> None:
    """Says what to expect of the precision."""
    if config.precision_why:
        report(f"precision: {config.precision}, as {config.precision_why}")
    if config.precision.startswith("fp16") and jax.default_backend() == "cpu":
        report(f"precision: {config.precision} on a CPU takes less memory, but not less time than fp32")


def sound(config: Config, step: int, seeds: list[int], of_seeds: list[Counts]) -> None:
    """Raises Diverged if the scale of the loss has become so small that nothing is learned any more, in every seed: as
    long as one goes on, its program does.
    """
    scales = np.concatenate([np.atleast_1d(x.loss_scale) for x in of_seeds])
    if (scales < COLLAPSED).all() and step < config.steps:
        whose = f"seed {seeds[0]} has" if len(seeds) == 1 else f"all of the {len(seeds)} seeds have"
        raise Diverged(
            f"{whose} diverged, the scale of the loss has collapsed at step {step:,}: look at the rewards, or train "
            "anew with --precision fp32 or a smaller learning_rate", None,
        )  # fmt: skip


def precision_of(config: Config, of_seeds: list[Counts], lowered: int | None = None) -> dict[str, Any]:
    """What a receipt says of a learner of less than float32; `lowered` is `products.lowered()` before there was any of
    its programs, None if those are other processes'.
    """
    why = {"why": config.precision_why} if config.precision_why else {}
    if config.precision == "fp32":
        return {"precision": {"mode": "fp32", **why}} if why else {}
    mode = PRECISIONS[config.precision]
    bad, scales = (
        np.concatenate([np.atleast_1d(x[i]) for x in of_seeds]).tolist() if of_seeds else [] for i in range(2)
    )
    lost = {"collapsed": [scale < COLLAPSED for scale in scales]} if mode.compound_scaling else {}
    whose = {}
    if mode.dtype == "bfloat16" and lowered is not None:
        whose = {"products": "oneDNN" if products.lowered() > lowered else "XLA"}
    return {"precision": {"mode": config.precision, **why, **whose, mode.counted: bad, "loss_scale": scales, **lost}}


def kept_smaller(config: Config, memory: Callable[[str], Memory]) -> list[Saving]:
    """What a precision saves of what one run holds, counted from shapes; `memory` makes that of each precision."""

    def held(precision: str) -> tuple[int, int]:
        _, agent, _, hyper, *_ = records(config._replace(precision=precision))
        state, contents = jax.eval_shape(lambda: (agent.init(rng.key(0), hyper), memory(precision).init()))
        return bytes_of(state), bytes_of(contents)

    if config.precision == "fp32":
        return []
    names = ("learner of a run: weights, targets, moments", "memory of a run")
    both = zip(names, held("fp32"), held(config.precision), strict=True)
    return [Saving(f"--precision {config.precision}", what, "bytes", off, on) for what, off, on in both]


def gradient_parts(config: Config, card: Card, static: Any, hyper: Any, plan: actors.Plan) -> actor_learner.Parts:
    """What actor-learners compute gradients with; called in their processes."""
    set_up_jax()
    recipe = catalog.recipe(config.agent)
    agent = assembled(recipe, static, card.obs, card.actions, config)
    agent = aware(agent, config, recipe.cadence(static), _steps_per_update(plan))
    memory = recipe.memory(static, example(card), lanes=plan.num_envs, unroll=plan.unroll, streams=1)
    return actor_learner.Parts(agent, memory, hyper, EXACT if config.precision != "fp32" else {})


def with_schedule(hyper: Any, config: Config, steps_per_update: float) -> Any:
    """Schedules count environment steps, an agent its updates."""
    derived = {"total_steps": config.first_steps, "steps_per_update": steps_per_update}
    return hyper._replace(**{name: value for name, value in derived.items() if name in hyper._fields})


def sized(static: Any, cadence: Cadence, config: Config, spare: int) -> Any:
    """No room for more steps than the first `train` takes, `spare` ones aside; the same when it is resumed."""
    if cadence.rollout:
        return static
    return static._replace(buffer_size=min(static.buffer_size, config.first_steps + spare))


def memory_of(
    recipe: Recipe, static: Any, card: Card, cadence: Cadence, precision: str = "fp32", **shape: int
) -> Memory:
    """The memory of a run. A replay is told of how many frames an observation is made, and keeps floats in 16 bits with
    less than fp32; rollouts stay what the actor saw and did, and so those log-probabilities that come with them.
    """
    if cadence.rollout:
        return recipe.memory(static, example(card), **shape)
    shape["stack"] = options_for(card.env, card.env_options).frame_stack
    return stored(partial(recipe.memory, static, **shape), example(card), PRECISIONS[precision])


def example(card: Card) -> Transition:
    """One transition of zeros."""
    obs = jnp.zeros(card.obs.shape, card.obs.dtype)
    action = jnp.int32(0) if isinstance(card.actions, Discrete) else jnp.zeros(card.actions.shape, jnp.float32)
    zero, flag = jnp.float32(0), jnp.bool_(False)
    return Transition(obs, action, zero, flag, flag, obs, zero, jnp.int32(0))


def kinds(config: Config) -> tuple[search.Population | None, search.Population | None]:
    """The population whose members share a critic, or the one whose members are runs of their own, if any."""
    population = config.population
    return (population, None) if population and population.joint else (None, population)


def with_crew(agent: Agent, static: Any, config: Config, updates: float) -> tuple[Agent, Any]:
    """The agent that is a whole population, which learns by so many updates, and the batches that go with it."""
    population = config.population
    assert population is not None
    rule = RULES[population.kind](population, updates)
    return joint(agent, rule), static._replace(batch_size=static.batch_size * rule.learners)


class Group(NamedTuple):
    """Runs that share a program."""

    name: str
    runs: list[int]
    config: Config  # with their Static
    hypers: list[dict[str, Any]]  # of each run, what differs from it
    alone: bool = False  # its run trains apart from the other members: who takes over is decided elsewhere


def groups(config: Config) -> list[Group]:
    """All runs, or of a population those with the same values of what shapes the program."""
    population = config.population
    if population is None or population.joint:
        return [Group("all", list(range(config.runs)), config, [{}] * config.runs)]
    priors, static = search.priors(config.agent, population.search), catalog.recipe(config.agent).static
    seeds = range(config.seed, config.seed + config.seeds)
    chosen = [values for seed in seeds for values in search.begun(population, priors, seed, config.seed)]
    together: dict[tuple, list[int]] = {}
    for run, values in enumerate(chosen):
        together.setdefault(tuple((n, v) for n, v in values.items() if n in static._fields), []).append(run)

    def group(number: int, shape: tuple, runs: list[int]) -> Group:
        name = "all" if len(together) == 1 else f"group-{number}"
        hypers = [{name: v for name, v in chosen[run].items() if name not in static._fields} for run in runs]
        return Group(name, runs, config._replace(hyper=config.hyper | dict(shape)), hypers)

    return [group(number, shape, runs) for number, (shape, runs) in enumerate(together.items())]


def alone(config: Config, run: int, report: Callable[[str], None]) -> tuple[Phase, Callable[[], dict[str, Any]]]:
    """The phase of one run that trains apart from the others of its group, and what it has cost so far; JAX is set up.

    The carry of its phase has an axis of runs, of length 1, in `compiled`, and none in `actors`.
    """
    group = next(group for group in groups(config) if run in group.runs)
    one = group._replace(runs=[run], hypers=[group.hypers[group.runs.index(run)]], alone=True)
    if config.within == "compiled":
        return _compiled_group(one, report)
    phases, account = _actors_group(one, report)
    return phases[0], account


class Start(NamedTuple):
    """What runs begin with, [runs]."""

    seed: Any  # int32
    member: Any  # int32; -1 of members that have the random numbers of their seed
    hyper: Any  # float32, of each leaf

    @property
    def key(self) -> Any:
        """Of one run."""
        key = rng.key(self.seed)
        return jnp.where(self.member < 0, key, jax.random.fold_in(key, jnp.maximum(self.member, 0)))


def start_of(group: Group, hyper: Any) -> Start:
    """Members of a population that evolves begin apart; those of a sweep are what `train` gives with their numbers."""
    who = [group.config.who(k) for k in group.runs]
    evolves = group.config.population is not None and group.config.population.evolves
    values = {
        name: jnp.array([own.get(name, value) for own in group.hypers], jnp.float32)
        for name, value in hyper._asdict().items()
    }
    member = jnp.array([member if evolves else -1 for _, member in who], jnp.int32)
    return Start(jnp.array([seed for seed, _ in who], jnp.int32), member, type(hyper)(**values))


def compiled_job(config: Config, report: Callable[[str], None]) -> Job:
    """All runs in the `compiled` runtime: one program, or of a sweep one for each of the shapes it has."""
    set_up_jax()
    told(config, report)
    made = [_compiled_group(group, report) for group in groups(config)]
    return Job([phase for phase, _ in made], of_groups(config, {phase.name: account for phase, account in made}))


def of_groups(config: Config, accounts: dict[str, Callable[[], dict[str, Any]]]) -> Callable[[], dict[str, Any]]:
    """The account of a run from those of its groups, by their names."""

    def account() -> dict[str, Any]:
        parts = {name: told() for name, told in accounts.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        counted = [part["precision"] for part in parts.values() if "precision" in part]
        lists = {
            name: [x for part in counted for x in part[name]]
            for name in Counts._fields
            if counted and name in counted[0]
        }
        ways = {name: part["batching"] for name, part in parts.items() if part.get("batching")}
        return {
            **reduce(lambda before, part: added(part, before), parts.values()),
            "savings": [],  # programs of different shapes have no common amount
            **({"batching": ways} if ways else {}),
            **({"precision": counted[0] | lists} if counted else {}),
        }

    return account


def _compiled_group(group: Group, report: Callable[[str], None]) -> tuple[Phase, Callable[[], dict[str, Any]]]:
    """The phase of runs that share a program, and what it has cost so far."""
    config, population, count = group.config, group.config.population, len(group.runs)
    recipe, agent, static, hyper, card, cadence = records(config)
    options = options_for(config.env, config.env_options)
    env = twin(config.env, options)
    assert env is not None
    unroll = cadence.rollout or max(cadence.steps // static.num_envs, 1)
    together, apart = kinds(config)
    if together:
        unroll, static = together.ready, static._replace(num_envs=static.num_envs * together.members)
    per_iteration = unroll * static.num_envs
    updates = _whole_ratio(per_iteration, cadence, f"num_envs={gcd(static.num_envs, cadence.steps)}")
    warmup = -(-cadence.starts // per_iteration)
    if together:
        warmup = max(warmup - 1, 0)  # a generation is there before it is learned from
        agent, static = with_crew(agent, static, config, (config.first_steps / per_iteration - warmup) * updates)
    agent = aware(agent, config, cadence, per_iteration / updates)
    hyper = with_schedule(hyper, config, per_iteration / updates)
    static = sized(static, cadence, config, 2 * per_iteration)
    kept = partial(memory_of, recipe, static, card, cadence, lanes=static.num_envs, unroll=unroll, streams=1)
    memory, savings = kept(config.precision), kept_smaller(config, kept)
    acting = actor_learner.in_rotation(agent, cadence.learners) if cadence.learners else agent
    run = compiled.run(acting, env, memory, compiled.Plan(static.num_envs, unroll, updates, warmup), options)
    starts, evolving = start_of(group, hyper), apart if apart and apart.evolves else None
    players = on_twin(agent, env, EVAL_EPISODES)
    spent: dict[str, Any] = {"compile": 0.0, "first_update": None, "batching": None}
    low, of_runs, lowered = config.precision != "fp32", [], products.lowered()

    def begin(starts: Start):
        return jax.vmap(lambda start: run.init(start.key, start.hyper))(starts)

    def play(states, key):
        return jax.vmap(lambda state: players(best_policy(agent, state), key))(states)

    def shared(state: Any) -> Any:
        """The states that are evaluated and kept: of actor-learners the one they share."""
        return state.newest if cadence.learners else state

    def step_of(iteration: int) -> int:
        return (warmup + iteration) * per_iteration

    def iteration_at(step: int) -> int:
        return -(-(step - step_of(0)) // per_iteration)

    shapes = jax.eval_shape(begin, starts)
    if count > 1:
        ways = partial(compiled.ways, cores=compiled.cores(), devices=compiled.devices())
        fits(config, shapes, count, lambda runs: compiled.copies(runs, ways(runs)[: 1 if together else None]))
    tell_memory(report, shapes)
    due = [step for step in looks(config) if step > step_of(0) or step == config.steps or not apart]
    turns = [step for step in due if evolving and step % evolving.ready == 0]
    sever = lambda contents: memory.cut(contents, 0)
    heirs = None
    if evolving:
        heirs = Heirs(turns, evolution.successor(acting, type(hyper), evolving.copy, sever))

    def moments(restore: Restore | None) -> Iterator[Moment]:
        start = perf_counter()
        programs = compiled.Programs(run, shapes, EXACT if low else {})
        options = compiled.ways(count, compiled.cores(), compiled.devices())
        if together:  # an iteration is a whole generation, too long to be tried; and its members are mapped together
            options = options[-1:] if jax.default_backend() == "cpu" else options[:1]
        found = None if together else remembered_way(config, count)
        options = options if found is None else [found]
        if restore is not None:
            options = as_before(restore.width, count, options, report)
        pool = ThreadPoolExecutor(2)
        # a program that runs once, and of nothing but the start, is not worth the compiler's while
        level: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" and warmup == 0 else None
        starter = pool.submit(lambda: jax.jit(begin).lower(starts).compile(compiler_options=level))
        sizes = {(width, way.devices) for way in options for width in compiled.widths(count, way)}
        list(pool.map(lambda size: programs.prepare(*size), sizes))
        starter = starter.result()
        # needed at the first evaluation only: until then it is compiled beside the training
        evaluator = pool.submit(lambda: jax.jit(play).lower(shared(shapes.state), rng.key(0)).compile())
        pool.shutdown(wait=False)
        spent["compile"] += perf_counter() - start
        carry = jax.block_until_ready(starter(starts)) if restore is None else restored(restore.read, shapes)
        del starter
        way, measured = options[0], {}
        if len(options) > 1:
            measured = compiled.fastest(programs, carry, options)
            way = agreed_way(config, min(options, key=measured.__getitem__), count)
        spent["batching"] = {
            "way": str(way),
            "microseconds_per_iteration": {str(way): round(value, 1) for way, value in measured.items()},
        }
        if count > 1:
            report(f"batching: {way}" + (" (as measured before)" if found else ""))
        iterations = max(1, iteration_at(config.steps))
        marks = {iteration_at(step) for step in (*milestones(config.steps, SEGMENTS), *due)}
        watch = None
        if apart:
            looked = {step_of(max(1, iteration_at(step))) for step in due}
            turning = {step_of(max(1, iteration_at(step))): step for step in reversed(turns)}
            watch = Watch(config, count, acting, type(hyper), looked, {} if group.alone else turning, sever)

        def fitness(state: Callable[[], Any]) -> np.ndarray:
            played = _evaluate_on_twin(evaluator, lambda: shared(state()), EVAL_EPISODES, SELECTION)
            return np.mean(played.returns, -1)

        # The first segment is one iteration, so that the time of the first update is known. A row's metrics are means
        # over its last segment, which follows from the configuration; where a segment is cut follows from the clock.
        # A run that is alone is asked for at steps that others reach too, and has nobody to tell of what is between.
        segments = sorted({1, iterations, *(mark for mark in marks if 0 < mark < iterations)})
        between = (lambda i, state: watch.succession(fitness, step_of(i), state)) if watch and evolving else None
        ticks = compiled.train(programs, way, carry, segments, between, None if group.alone else PIECE)
        del carry
        for tick in ticks:
            spent["first_update"] = spent["first_update"] or seconds_since_start()

            def state(tick=tick):
                return shared(tick.state())

            of_runs[:] = [counts(state())] if low else []
            yield Moment(
                min(step_of(tick.iteration), config.steps),
                {name: np.asarray(x) for name, x in tick.metrics.items()}
                | (watch.metrics(fitness, step_of(tick.iteration), tick.state) if watch else {}),
                partial(_evaluate_on_twin, evaluator, state),
                lambda tick=tick: tick.parts,
                partial(_weights_per_run, agent, state, count),
            )
            if low and population is None and tick.whole:  # not at a moment that only the clock has chosen
                sound(config, step_of(tick.iteration), [config.who(k)[0] for k in group.runs], of_runs)

    def account() -> dict[str, Any]:
        return {
            "compile_seconds": spent["compile"],
            "first_update_seconds": spent["first_update"],
            "batching": spent["batching"],
            "savings": [saving._asdict() for saving in savings],
            **precision_of(config, of_runs, lowered),
        }

    return Phase(group.name, group.runs, moments, card, due, heirs), account


def restored(read: Callable[[Any], Any], shapes: compiled.Carry) -> compiled.Carry:
    """The carry of a checkpoint; one of before `Carry.totals` is of the end of a segment, where they begin anew."""
    try:
        return read(shapes)
    except BadFile as error:
        try:
            before = read(shapes._replace(totals=()))
        except BadFile:
            raise error from None
    return before._replace(totals=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.totals))


def looks(config: Config) -> list[int]:
    """The steps at which a run is evaluated; of a population that evolves, where members may take over from others."""
    if config.population is None or not config.population.evolves:
        return milestones(config.steps, config.evaluations)
    return [*range(config.population.ready, config.steps, config.population.ready), config.steps]


def fits(config: Config, shapes: Any, count: int, copies: Callable[[int], float]) -> None:
    """Raises UsageError if the memory of this machine is too small for so many runs, and says how many would do.

    Counted is what is known before anything is compiled: the learners, memories and environments of all runs, as many
    times as they are there at once, by `copies` of how many runs there are.
    """
    free, population = free_memory(), config.population

    def needed(runs: int) -> float:
        return copies(runs) * runs * bytes_of(shapes) / count

    if free is None or needed(count) <= free:
        return

    def most(of: int = 1) -> int:
        return next((n for n in range(count // of, 0, -1) if needed(n * of) <= free), 0)

    if population is None or population.joint:
        advice = f"--seeds {most()} would fit" if most() else "not even one would"
    elif population.kind == "grid" or count < config.runs:  # of programs of several shapes one is there at a time
        fewer = "--seeds" if population.kind == "grid" else "--members or --seeds"
        advice = f"{most()} would fit: give --search fewer values, or fewer {fewer}"
    elif (members := most(config.seeds)) >= (2 if population.evolves else 1):
        advice = f"--members {members} would fit"
    else:
        advice = "not even the fewest --members would" + (", with so many --seeds" if config.seeds > 1 else "")
    smaller = ", or a smaller --hyper buffer_size" if "buffer_size" in config.hyper else ""
    raise UsageError(
        f"{count} runs in one program need {words.size(needed(count))} of memory, and {words.size(free)} are free: "
        f"{advice}{smaller}"
    )


def bytes_of(shapes: Any) -> int:
    return sum(prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def tell_memory(report: Callable[[str], None], shapes: Any) -> None:
    """Says beforehand what a run that holds much needs."""
    needed, free = bytes_of(shapes), free_memory()
    if needed > MUCH:
        beside = "" if free is None else f", {words.size(free)} are free"
        report(f"memory: {words.size(needed)} for what the run holds{beside}")


def _way_file(config: Config, runs: int) -> Path:
    """Where the way to batch so many runs is remembered: a file for each program and machine."""
    what = config._replace(steps=0, seed=0, seeds=0, population=None, log="", first_steps=0)
    machine = [hardware(), compiled.cores(), compiled.devices()]
    told = json.dumps([what, runs, versions(), machine], sort_keys=True, default=str)
    return Path(cache_folder(), "ways", hashlib.sha256(told.encode()).hexdigest()[:32] + ".json")


def remember_way(config: Config, way: compiled.Way, runs: int) -> None:
    with suppress(OSError):  # then it is measured again next time
        files.replace(_way_file(config, runs), json.dumps(way._asdict()))


def agreed_way(config: Config, way: compiled.Way, runs: int) -> compiled.Way:
    """The way that has just been measured, unless another run has measured one meanwhile: from now on it is the same.

    Raises nothing: what cannot be remembered is measured again next time.
    """
    first = remembered_way(config, runs)
    if first is None:
        remember_way(config, way, runs)
    return first or way


def as_before(
    width: int | None, runs: int, options: list[compiled.Way], report: Callable[[str], None]
) -> list[compiled.Way]:
    """The way to go on with runs of which so many shared a program: the last bits follow from that, not from threads.

    Only where that cannot be had, it is one of `options`, and `report` is told.
    """
    if width is None or any(width == way.width for way in options):  # of a checkpoint that does not say
        return [way for way in options if width in (None, way.width)]
    if not 1 <= width <= runs or options[0].devices > 1:
        report(f"batching: {width} runs shared a program before, which cannot be had here: last bits may differ")
        return options
    return [compiled.Way(width, min(compiled.cores(), -(-runs // width)))]


def remembered_way(config: Config, runs: int) -> compiled.Way | None:
    """The way measured by an earlier run of this program on this machine, if any."""
    try:
        way = compiled.Way(**json.loads(_way_file(config, runs).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return way if way in compiled.ways(runs, compiled.cores(), compiled.devices()) else None


def _evaluate_on_twin(program: Future, state: Callable[[], Any], episodes: int, seed: int = HELD_OUT) -> Episodes:
    evaluator, keys = program.result(), jax.random.split(rng.key(seed), -(-episodes // EVAL_EPISODES))
    played = [jax.device_get(evaluator(state(), key)) for key in keys]
    return Episodes(*(np.concatenate(x, -1)[:, :episodes] for x in zip(*played, strict=True)))


def _weights_per_run(agent: Agent, state: Callable[[], Any], runs: int) -> list:
    params = jax.device_get(jax.vmap(partial(best_policy, agent))(state()).params)
    return [jax.tree.map(lambda x, k=k: x[k], params) for k in range(runs)]


def actors_job(config: Config, report: Callable[[str], None]) -> Job:
    """All runs in the `actors` runtime: side by side, or one after the other where what acts is not stateless."""
    set_up_jax()
    told(config, report)
    if config.lockstep:
        repeatable(config)
    made = [(group.name, *_actors_group(group, report)) for group in groups(config)]
    phases = [phase for _, phases, _ in made for phase in phases]
    return Job(phases, of_groups(config, {name: account for name, _, account in made}), shrink.of_one_shape)


def _actors_group(group: Group, report: Callable[[str], None]) -> tuple[list[Phase], Callable[[], dict[str, Any]]]:
    """The phases of runs with the same Static, and what they have cost so far."""
    config, population = group.config, group.config.population
    recipe, agent, static, hyper, card, cadence = records(config)
    together, apart = kinds(config)
    plan = _crew_plan(together, static, cadence) if together else _actors_plan(static, cadence)
    if config.lockstep:
        plan = plan._replace(slots=1, lockstep=True)
    if together:
        updates = (config.first_steps - plan.warmup) / _steps_per_update(plan)
        agent, static = with_crew(agent, static, config, updates)
    agent = aware(agent, config, cadence, _steps_per_update(plan))
    hyper = with_schedule(hyper, config, _steps_per_update(plan))
    # an actor may bring all the steps there are
    streams = 1 if together else plan.actors
    static = sized(static, cadence, config, (streams - 1) * config.first_steps + plan.round)
    lanes = plan.message // plan.unroll
    kept = partial(memory_of, recipe, static, card, cadence, lanes=lanes, unroll=plan.unroll, streams=streams)
    memory, savings = kept(config.precision), kept_smaller(config, kept)
    tell_memory(report, jax.eval_shape(memory.init))
    compiler = EXACT if config.precision != "fp32" else {}
    lowered = None if cadence.learners else products.lowered()
    ledger = Ledger(agent, card, plan, report, compiler)
    of_phases: dict[str, Counts] = {}
    batching: dict[str, Any] = {}
    ledger.choose(config.actors)
    # a checkpoint holds what the mode asked for needs; what `auto` adds to that is made anew
    asked = FULL if config.actors == "auto" else modes.mode(config.actors)
    starts, message = start_of(group, hyper), plan.message

    def after(step: int, messages: int) -> int:
        """The first step that is not before `step` and at which a whole number of so many messages has come in."""
        return -(-step // (messages * message)) * messages * message

    due, looked, turns = looks(config), set(), dict[int, int]()
    if apart:
        # agents that wait learn from a message of every actor: in between some would have acted with another policy
        messages = plan.actors if plan.waits or plan.lockstep else 1
        reached = {step: after(step, messages) for step in due if step > plan.warmup}
        looked = {
            after(config.steps, plan.actors if plan.lockstep else 1),
            *(step for step in reached.values() if step < config.steps),
        }
        due = sorted({min(step, config.steps) for step in looked})
        if apart.evolves:
            turns = {reached[step]: step for step in reversed(reached) if step % apart.ready == 0}

    @cache
    def pruned(share: float) -> Agent:
        """The agent with that share of its units left."""
        if share == 1:
            return agent
        made = assembled(recipe, _narrowed(static, share), card.obs, card.actions, config)
        return aware(made, config, cadence, _steps_per_update(plan))

    def left(step: int) -> float:
        """The share of units that is left at a step."""
        return 1.0 if config.prune is None else shrink.share_at(config.prune, config.prune_at, step, config.first_steps)

    def learner(agent: Agent, mode: Mode, members: int) -> actors.Learner:
        full, compressor = (agent.network, lambda state: agent.policy(own(state))), quantise.COMPRESSORS[mode.format]()
        return actors.learner(acting(agent, mode), memory, plan, compressor, full, members=members > 0)

    def phase(name: str, those: slice) -> Phase:
        """Of these runs of the group."""
        runs = group.runs[those]
        members = len(runs) if len(runs) > 1 else 0  # a run that is alone has no axis of members
        seed = config.who(runs[0])[0]
        start = jax.tree.map(lambda x: x[those] if members else x[those.start], starts)
        before: list[int | None] = []  # the width of its parts when it was saved
        watch = heirs = None
        if apart:
            sever, taken = partial(_severed, memory, plan), {} if group.alone else turns
            watch = Watch(config, len(runs), agent, type(hyper), looked, taken, sever)
            if apart.evolves:
                heirs = Heirs(sorted(turns.values()), watch.become)

        def beginning(share: float) -> Callable[[Start], Any]:
            init = learner(pruned(share), asked, 0).init
            return jax.jit(jax.vmap(lambda x: init(x.key, x.hyper)) if members else lambda x: init(x.key, x.hyper))

        if members:
            shapes = jax.eval_shape(beginning(1.0), start)
            ways, tried = partial(compiled.ways, cores=compiled.cores()), 1 if plan.lockstep else None
            fits(config, shapes, members, lambda runs: compiled.copies(runs, ways(runs)[:tried]))

        def moments(restore: Restore | None) -> Iterator[Moment]:
            share = left(restore.step if restore else 0)
            before.clear()
            begin = beginning(share)
            ledger.begin(seed, pruned(share), len(runs))
            pasts = actors.begun(plan, max(members, 1) * plan.num_envs)
            if restore is None:
                carry = begin(start)
            elif plan.lockstep:
                carry, text = restore.read((jax.eval_shape(begin, start), checkpoint.TEXT))
                told = json.loads(bytes(np.asarray(text)))
                before.append(told.get("width"))
                kind = action_field(card.actions).dtype
                pasts = [[repeated.restored(past, kind) for past in lanes] for lanes in told["pasts"]]
                ledger.recall(told["ledger"])
            else:
                carry = restore.read(jax.eval_shape(begin, start))
            while True:
                agent = pruned(share)
                try:
                    yield from sitting(agent, fitted(agent, carry, ledger.chosen.mode), pasts)
                    return
                except actors.Unfit as unfit:
                    carry = _joined(unfit.carry)
                    ledger.fall_back(unfit, carry)
                except Changed as changed:
                    carry, share = changed.carry, left(int(changed.carry.step))
                    if pruned(share) is not agent:
                        hidden = _narrowed(static, share).hidden
                        carry = shrunk(agent, pruned(share), carry, hidden, np.concatenate(ledger.obs))
                        ledger.thin(pruned(share))
                        units = ", ".join(map(str, hidden))
                        report(f"the learner is pruned to layers of {units} from step {int(carry.step):,}")

        def sitting(agent: Agent, carry: Any, pasts: actors.Pasts) -> Iterator[Moment]:
            mode, last = ledger.chosen.mode, int(np.max(carry.step))
            made = learner(agent, mode, members)
            packet, *_ = jax.eval_shape(made.ship, carry.state)
            spec = _actor_spec(config, agent, card, plan, ledger.chosen, narrowed(ledger.layers, mode.share), packet)
            spec = spec._replace(members=plan.crew or members)
            if plan.gradients:
                brought = actor_learner.shapes(agent, memory, carry.state, items_of(spec))
                spec = spec._replace(
                    learner=partial(gradient_parts, config, card, static, hyper, plan),
                    gradient=link.fields(jax.tree.leaves(brought)),
                )
            share = left(0 if members else int(carry.step))
            try:
                with ThreadPoolExecutor(compiled.cores()) as pool:
                    if members:
                        parts, carry = in_the_fastest_way(made, carry, spec, pool)
                    else:
                        parts = ledger.compile(made, carry, spec)[0]
                    ticks = actors.train(
                        parts, plan, spec, carry, steps=config.steps, seed=seed,
                        report=report, timer=ledger.timer, fleets=ledger.fleets,
                        turns=set() if group.alone else set(turns), between=succession,
                        losses=apart is not None and (members > 0 or mode == FULL),
                        wired=cluster.wire if config.spreads_actors else None,
                        pasts=pasts,
                    )  # fmt: skip
                    with closing(cast(Generator, ticks)):
                        for tick in ticks:
                            carry = tick.carry
                            if config.precision != "fp32":
                                of_phases[name] = counts(own(_joined(carry.state)))
                            if config.prune is not None:
                                ledger.keep(tick)
                            if left(tick.step) != share:
                                raise Changed(carry)  # before anything is kept: a checkpoint's step says what it holds
                            metrics: dict[str, Any] = ledger.look(
                                parts, tick, tick.whole and any(last < step <= tick.step for step in due)
                            )
                            if not tick.whole:
                                continue
                            last = tick.step
                            if watch is not None:
                                scores = partial(fitness, agent)
                                metrics |= watch.metrics(scores, tick.step, lambda carry=carry: _joined(carry.state))
                            seen = (list(pasts), ledger.kept()) if plan.lockstep else None  # both go on changing
                            yield Moment(
                                min(tick.step, config.steps),
                                metrics,
                                partial(evaluate, agent, parts, carry, tick.step >= config.steps),
                                partial(snapshot, agent, carry, seen),
                                partial(weights_of, agent, carry.state),
                                partial(_structures, agent, carry.state),
                            )
                            if config.precision != "fp32" and population is None:
                                sound(config, tick.step, [config.who(k)[0] for k in runs], [of_phases[name]])
                            if tick.step < config.steps and ledger.climb(tick.step):
                                raise Changed(carry)
            except EngineFailed as error:  # in this process: the Monitor's
                raise actors.Unfit(f"the engine failed: {error}", carry) from error

        def snapshot(agent: Agent, carry: Any, seen: tuple[actors.Pasts, dict[str, Any]] | None) -> list:
            tree = fitted(agent, _joined(carry), asked)
            if seen is None:
                return [tree]
            told: dict[str, Any] = {
                "pasts": [[repeated.saved(past) for past in lanes] for lanes in seen[0]],
                "ledger": seen[1],
                "width": compiled.seeds_of(carry.parts[0]) if members else None,
            }
            return [(tree, np.frombuffer(json.dumps(told).encode(), np.uint8))]

        def in_the_fastest_way(made: actors.Learner, carry: Any, spec: actor.Spec, pool: ThreadPoolExecutor) -> tuple:
            """The Learner of members and their carry, in the parts that are the fastest to update."""
            found = None if plan.lockstep else remembered_way(config, members)
            options = compiled.ways(members, compiled.cores()) if found is None else [found]
            if plan.lockstep:  # chunks, measured or not
                options = as_before(next(iter(before), None), members, options[:1], report)
            widths = {width for way in options for width in compiled.widths(members, way)}
            learners = ledger.compile(made, carry, spec, widths)

            def messages(part: Any, iterations: int) -> tuple[Any, dict]:
                program = learners[compiled.seeds_of(part)].learn
                shapes = items_of(spec._replace(members=compiled.seeds_of(part)))
                items, metrics = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), {}
                for _ in range(iterations):
                    part, metrics = jax.block_until_ready(program(part, items, np.int32(0), []))
                return part, metrics

            way, measured = options[0], {}
            if len(options) > 1:
                measured = compiled.fastest(messages, carry, options)
                way = agreed_way(config, min(options, key=measured.__getitem__), members)
            times = {str(way): round(value, 1) for way, value in measured.items()}
            batching[name] = {"way": str(way), "microseconds_per_message": times}
            report(f"batching: {way}" + (" (as measured before)" if found else ""))
            return actors.in_parts(learners, pool), actors.Members(tuple(compiled.split(carry, way)))

        def succession(step: int, carry: Any) -> Any:
            assert watch is not None
            found = watch.succession(partial(fitness, agent), step, lambda: _joined(carry.state))
            return actors.taken_over(carry, found)

        def weights_of(agent: Agent, state: Any) -> list:
            return host_weights_of_each(agent, _joined(state)) if members else [host_weights(agent, state)]

        def fitness(agent: Agent, state: Callable[[], Any]) -> np.ndarray:
            return np.mean(played(agent, weights_of(agent, state()), EVAL_EPISODES, SELECTION).returns, -1)

        def evaluate(agent: Agent, parts: actors.Learner, carry: Any, last: bool, episodes: int) -> Episodes:
            """Of the full policy; at the end of the compressed one as well."""
            full, mode = agent.network.layers, ledger.chosen.mode
            assert full is not None
            if last and mode != FULL:
                packet, *_ = jax.device_get(parts.ship(carry.state))
                layers = narrowed(full, mode.share)
                for k in range(len(runs)):
                    weights = jax.tree.map(lambda x, k=k: x[k], packet.weights) if members else packet.weights
                    ended = _evaluate_greedily(agent, card, layers, ledger.chosen, weights, EVAL_EPISODES)
                    ledger.compressed_returns.append(float(np.mean(ended.returns)))
            return played(agent, weights_of(agent, carry.state), episodes, HELD_OUT)

        return Phase(name, runs, moments, card, due, heirs)

    def played(agent: Agent, weights: list, episodes: int, seed: int) -> Episodes:
        """Greedy episodes of each policy, [policies, episodes]; a policy that is not finite has none worth a number."""
        found = []
        for one in weights:
            if population is not None and not actors.finite(jax.tree.leaves(one)):
                found.append(Episodes(np.full((1, episodes), np.nan), np.zeros((1, episodes), np.int64)))
                continue
            full = agent.network.layers
            assert full is not None
            rung = Rung(FULL, "litert", 0.0, 0.0)
            found.append(_evaluate_greedily(agent, card, full, rung, one, episodes, seed))
        return Episodes(*(np.concatenate(x) for x in zip(*found, strict=True)))

    count = len(group.runs)
    if side_by_side(config, cadence) and count > 1 and not together:
        phases = [phase(group.name, slice(0, count))]
    else:
        phases = [phase(_name_of(config, run), slice(i, i + 1)) for i, run in enumerate(group.runs)]

    def account() -> dict[str, Any]:
        counted = [of_phases[phase.name] for phase in phases if phase.name in of_phases]
        ways = {"batching": next(iter(batching.values()))} if batching else {}
        spent = ledger.account()
        spent["savings"] = [*(saving._asdict() for saving in savings), *spent["savings"]]
        return spent | ways | precision_of(config, counted, lowered)

    return phases, account


def _name_of(config: Config, run: int) -> str:
    """Of a phase with a single run."""
    seed, member = divmod(run, config.members)
    return f"seed-{seed}-member-{member}" if kinds(config)[1] else f"seed-{seed}"


def _joined(tree: Any) -> Any:
    """The carry, or the states, of members in parts as one, [members, ...]; else as it is."""
    if isinstance(tree, actors.Members):
        return tree.joined()
    return compiled.join(list(tree)) if type(tree) is tuple else tree


def _severed(memory: Memory, plan: actors.Plan, contents: Any) -> Any:
    """The contents of a memory whose streams go on elsewhere."""
    for stream in range(plan.actors):
        contents = memory.cut(contents, stream)
    return contents


class Changed(Exception):
    """The learner is due to be pruned, or the Monitor has chosen another mode; `carry` is where the run stands."""

    def __init__(self, carry: Any):
        super().__init__()
        self.carry = carry


def _narrowed(static: Any, share: float) -> Any:
    return static if share == 1 else static._replace(hidden=shrink.widths(static.hidden, share))


def shrunk(agent: Agent, narrow: Agent, carry: actors.Carry, hidden: tuple[int, ...], obs: np.ndarray) -> actors.Carry:
    """`carry` with smaller networks, distilled on `obs` from those that they were; a student begins anew."""
    teacher = own(carry.state)
    state = shrink.smaller(teacher, hidden)
    return carry._replace(state=shrink.reminded(agent, teacher, narrow, state, obs))


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
    # What is learned from once should be of a policy that is not old: an actor begins when its last unroll is taken
    return actors.Plan(
        count, static.num_envs // count, cadence.rollout, cadence.updates, 0, slots=1, waits=cadence.waits
    )


def _crew_plan(population: search.Population, static: Any, cadence: Cadence) -> actors.Plan:
    """How actor processes, each for as many members, play the generations that a Learner follows.

    There are as few of them, from two to SHARES, as share the members evenly, else one for all.
    """
    members = population.members
    count = next((n for n in range(actors.Plan().actors, SHARES + 1) if members % n == 0), 1)
    plan = actors.Plan(count, static.num_envs, population.ready, slots=1, lockstep=True, crew=members // count)
    updates = _whole_ratio(plan.round, cadence, f"train_freq={gcd(plan.round * cadence.updates, cadence.steps)}")
    # a generation is there before it is learned from
    return plan._replace(updates=updates, warmup=max(-(-cadence.starts // plan.round) - 1, 0) * plan.round)


def _steps_per_update(plan: actors.Plan) -> float:
    """Environment steps of all actors together."""
    return (plan.round if plan.waits else plan.message) / plan.updates


def _actor_spec(
    config: Config, agent: Agent, card: Card, plan: actors.Plan, chosen: Rung, layers: Layers, packet: Packet
) -> actor.Spec:
    return actor.Spec(
        env_id=config.env,
        env_options=options_for(config.env, config.env_options),
        num_envs=plan.num_envs,
        unroll=plan.unroll,
        seed=(),
        folder="",
        slab="",
        slots=plan.slots,
        action=action_field(card.actions),
        obs=card.obs,
        layers=layers,
        engine=engines.module(chosen.engine),
        mode=chosen.mode.format,
        head=agent.head,
        packet=(),
        kinds=tuple(type(layer).__name__ for layer in packet.weights),
        knobs=tuple(sorted(card.knobs)),
        steady=plan.waits or plan.gradients or plan.lockstep,
        pull_period=config.pull_period,
    )


def action_field(space: Space) -> actor.Field:
    """Of one action."""
    return actor.Field((), "int32") if isinstance(space, Discrete) else actor.Field(space.shape, "float32")


def repeatable(config: Config) -> None:
    """Raises UsageError if runs on the environment cannot be repeated."""
    registration, options = catalog.registration(config.env), options_for(config.env, config.env_options)
    if not repeated.repeats(partial(make, registration, options, training=True)):
        raise UsageError(
            f"{config.env} does not repeat itself, which --lockstep needs: after reset(seed=1) the same actions must "
            "lead to the same observations each time, as they do in the environments that `frugal envs` lists; leave "
            "--lockstep out"
        )


def _structures(agent: Agent, state: Any) -> dict[str, list]:
    """The student, if there is one, as the run folder keeps it."""
    state = taken_in(state)
    if not isinstance(state, students.Taught):
        return {}
    return {"half": [jax.device_get(students.taught(agent, modes.HALF).policy(state).params)]}


def _evaluate_greedily(
    agent: Agent, card: Card, layers: Layers, rung: Rung, weights: tuple, episodes: int, seed: int = HELD_OUT
) -> Episodes:
    parallel = min(episodes, EVAL_EPISODES)
    session = engines.engine(rung.engine).build(layers, card.obs, parallel, rung.mode.format)
    session.load(weights)

    def act(obs):
        return agent.head(session.run(obs), card.knobs).mode()

    options = options_for(card.env, card.env_options)
    played = on_gymnasium(
        act, card.env, episodes, seed=seed, parallel=parallel, options=options, obs_dtype=card.obs.dtype
    )  # fmt: skip
    return Episodes(*(x[None] for x in played))


def _whole_ratio(steps: int, cadence: Cadence, advice: str) -> int:
    """Learner updates that go with `steps` environment steps. Raises UsageError if that is not a whole number."""
    if steps * cadence.updates % cadence.steps:
        raise UsageError(
            f"{steps} environment steps at a time and train_freq={cadence.steps} do not make whole rounds of updates: "
            f"use {advice}"
        )
    return steps * cadence.updates // cadence.steps
