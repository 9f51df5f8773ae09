"""What a run is: every choice that decides it, checked before anything is written or JAX is imported."""

from __future__ import annotations

import json
import operator
import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import catalog
from .envs import atari, twins
from .envs.make import Environment, check_module, name_of, namespace, options_for
from .errors import BadFile, UsageError
from .levers.compress import modes
from .levers.population import search as searches
from .levers.population.search import MOST_RUNS, Population
from .levers.precision import choice
from .levers.precision.modes import LACKS, PRECISIONS, WITHOUT
from .monitor import dashboards, files, kinds
from .networks import Dense, weighted
from .types import Agent, Cadence, Discrete, Recipe

FORMAT = 1  # of config.json
RUNTIMES = ("auto", "compiled", "actors", "ray")
MODES = (*modes.NAMES, "auto")
# for what an agent has: state values, action values along a rollout, or a weight for each of its samples
CORRECTORS = {
    "state": ("none", "tis", "vtrace"),
    "action": ("none", "tis", "retrace", "tree-backup"),
    "weight": ("none", "tis"),
}
LOGS = ("none", *dashboards.MODULES)
MOST = 2**31 - 1  # steps and seeds are int32 in the programs
SIGNED = ("v_min", "v_max", "log_std_init")  # may be negative
EVALUATIONS, MOST_EVALUATIONS = 10, 1000
PRUNE_AT = (0.1,)  # of training, after which units go
PICTURES = 256  # units of a layer that convolutions are taken for, where `auto` chooses a precision
BITS = (2, 16)  # that a network can be trained for, least and most
# what a joint population sets otherwise than its agent alone: in CEM-RL members explore by their weights, and follow
# the critic at each of its updates
ALONE: dict[str, dict[str, Any]] = {"cem": {"policy_delay": 1, "action_noise": 0.0}, "dvd": {}}
FRACTIONS = (
    "gamma", "tau", "gae_lambda", "q_lambda",
    "exploration_initial_eps", "exploration_final_eps", "exploration_fraction",
)  # fmt: skip


class Config(NamedTuple):
    """Everything that decides a run; config.json is this."""

    agent: str
    env: str
    steps: int
    seeds: int
    seed: int
    runtime: str
    actors: str
    correct: str
    precision: str
    hyper: dict[str, Any]
    first_steps: int  # of the first `train`: what schedules are fractions of, also after `resume --steps`
    log: str = "none"
    env_options: dict[str, Any] | None = None  # those that are not the environment's defaults
    prune: float | None = None  # the share of its networks' units that the learner ends with
    prune_at: tuple[float, ...] = PRUNE_AT  # parts of the training, after each of which as large a part of them goes
    pull_period: int | None = None  # steps of each environment between an actor's looks for a packet; None: it adapts
    qat: int | None = None  # bits of the weights that the learner sees in the second half of its updates
    precision_why: str | None = None  # it is that one, if it was left to `auto`
    evaluations: int = EVALUATIONS  # on the way, evenly spaced; the last is the final one
    population: Population | None = None  # members of each seed, with hyper-parameters of their own
    lockstep: bool = False  # actors and Learner take turns: the same seed gives the same rows
    ray_address: str | None = None  # of a Ray cluster; None: this machine is one

    @property
    def spreads_actors(self) -> bool:
        """Whether it is a single run, of which a Ray cluster has the actors; of several it has the runs."""
        return self.runtime == "ray" and self.runs == 1 and self.population is None

    @property
    def within(self) -> str:
        """The runtime that each of its runs trains in, on whichever node."""
        if self.runtime != "ray":
            return self.runtime
        return "actors" if self.spreads_actors else self.fitting

    @property
    def fitting(self) -> str:
        """The runtime of this machine where none is named: one program, unless something asks for processes."""
        plain = self.actors == "fp32" and self.prune is None and self.pull_period is None and not self.lockstep
        return "compiled" if plain and catalog.has_twin(self.env, self.env_options) else "actors"

    @property
    def members(self) -> int:
        """Of each seed, those that are runs of their own."""
        return 1 if self.population is None or self.population.joint else self.population.members

    @property
    def generation(self) -> int:
        """Environment steps of all members of a joint population together."""
        assert self.population is not None
        return self.population.ready * self.population.members * self.hyper["num_envs"]

    @property
    def runs(self) -> int:
        """How many agents are trained: every member of every seed."""
        return self.seeds * self.members

    def who(self, run: int) -> tuple[int, int | None]:
        """The seed of a run, and which member of its population it is."""
        seed, member = divmod(run, self.members)
        return self.seed + seed, None if self.population is None or self.population.joint else member


def configure(
    agent: str,
    env: Environment,
    *,
    steps: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    runtime: str = "auto",
    hyper: Mapping[str, Any] | None = None,
    env_options: Mapping[str, Any] | None = None,
    actors: str = "fp32",
    pull_period: int | None = None,
    correct: str = "auto",
    precision: str = "fp32",
    log: str = "none",
    prune: float | None = None,
    prune_at: Sequence[float] = PRUNE_AT,
    qat: int | None = None,
    evaluations: int = EVALUATIONS,
    population: Mapping[str, Any] | None = None,
    lockstep: bool = False,
    ray_address: str | None = None,
) -> Config:
    """Fill in the defaults and check every choice; `env` is as `frugalrl.train` has it. Raises UsageError; writes
    nothing.
    """
    if not isinstance(agent, str):
        raise UsageError(f"the agent is given by its name, got {agent!r}")
    env = name_of(env)
    if agent not in catalog.AGENTS and env in catalog.AGENTS:
        raise UsageError(f"the agent comes first, then the environment: {env} {agent}")
    default_steps, defaults = catalog.defaults(agent, env)
    # the defaults too: config.json is read back like this, and must be the same run
    chosen = catalog.parse_hyper(agent, defaults | dict(hyper or {}))
    options = catalog.parse_env_options(env_options or {}) or None
    steps = default_steps if steps is None else steps
    if correct == "auto":
        correct = catalog.recipe(agent).corrector
    steps, seeds, seed = whole("--steps", steps), whole("--seeds", seeds), whole("--seed", seed)
    qat, pull_period = (x if x is None else whole(o, x) for o, x in (("--qat", qat), ("--pull-period", pull_period)))
    evaluations = whole("--evaluations", evaluations)
    config = Config(
        agent, env, steps, seeds, seed, runtime, actors, correct, precision, chosen, steps, log, options, prune,
        tuple(prune_at), pull_period, qat, evaluations=evaluations, lockstep=lockstep, ray_address=ray_address,
    )  # fmt: skip
    if runtime == "auto":
        config = config._replace(runtime=config.fitting)
    if precision == "auto":
        config = _with_precision(config)
    if population is not None:
        if population.get("kind") in searches.JOINT:
            own = {name: value for name, value in ALONE[population["kind"]].items() if name in chosen}
            config = config._replace(hyper=chosen | catalog.parse_hyper(agent, own | dict(hyper or {})))
        config = whole_generations(config._replace(population=_population(config, **population)))
    check(config)
    return config


def whole_generations(config: Config) -> Config:
    """Rounded up to them, if its population has any."""
    population = config.population
    if population is None or not population.joint or population.ready < 1:
        return config
    first, steps = (-(-n // config.generation) * config.generation for n in (config.first_steps, config.steps))
    return config._replace(first_steps=first, steps=steps)


def _population(
    config: Config,
    *,
    kind: str,
    search: Mapping[str, Any],
    members: int | None = None,
    ready: int | None = None,
    truncation: float = 0.25,
    explore: str = "perturb",
    copy: str = "everything",
    selection: str = "truncation",
    variance: float = Population._field_defaults["variance"],
    novelty: str | float = Population._field_defaults["novelty"],
) -> Population:
    """Fills in what follows from the rest: the members of a grid, a twentieth of the steps between selections, and an
    episode of each member as a generation.
    """
    written = {name: searches.written(what) for name, what in search.items()}
    found = searches.priors(config.agent, written)
    if kind == "grid":
        size = searches.size(found)
        if members is not None and members != size:
            raise UsageError(f"--members {members} is not the size of the grid, {size}: leave it out")
        members = size
    if members is None:
        raise UsageError("--members N is needed: how many members the population has")
    if ready is not None:
        ready = whole("--ready", ready)
    elif kind in searches.JOINT:
        limit = options_for(config.env, config.env_options).time_limit
        ready = limit or catalog.registration(config.env).max_episode_steps
        if ready is None:
            raise UsageError(f"{config.env} has no time limit: say how long a generation is with --ready STEPS")
    else:
        ready = max(1, config.steps // 20) if kind == "pbt" else 0
    return Population(
        kind, whole("--members", members), written, ready, truncation, explore, copy, selection, variance,
        str(novelty),
    )  # fmt: skip


def _with_precision(config: Config) -> Config:
    """The run in the precision that `auto` chooses."""
    if config.prune is not None or config.qat is not None:
        chosen, why = "fp32", "--prune and --qat change weights that are float32"
    else:
        # pictures are seen through convolutions, whose products are at least as large as the smallest that is measured
        # on an accelerator; on a CPU none that stands for them is
        pictures = len(catalog.spaces(config.env, options_for(config.env, config.env_options))[0].shape) > 1
        width = max(config.hyper.get("hidden") or (0,), default=0)
        chosen, why = choice.choose(PICTURES if pictures else width, choice.remembered())
    return config._replace(precision=chosen, precision_why=why)


def check(config: Config) -> None:
    """Raises UsageError if a run with these choices could not train."""
    recipe = catalog.recipe(config.agent)
    _among("--actors", config.actors, MODES)
    _check_corrector(config, recipe)
    _among("--precision", config.precision, (*PRECISIONS, "auto"))
    _check_precision(config)
    _among("--runtime", config.runtime, RUNTIMES)
    _among("--log", config.log, LOGS)
    if config.log != "none" and find_spec(dashboards.MODULES[config.log]) is None:
        how = dashboards.INSTALL[config.log]
        raise UsageError(f"--log {config.log} needs a package that is not installed: {how}")
    _check_ray(config)
    config = config._replace(runtime=config.within, ray_address=None)
    _check_counts(config)
    _check_actors(config, recipe)
    _check_qat(config)
    _check_hyper(config.hyper, catalog.hyper_fields(recipe))
    _check_pair(config, recipe)
    _check_runtime(config)
    _check_lockstep(config)
    _check_pull_period(config, recipe)
    _check_population(config, recipe)
    starts = config.hyper.get("learning_starts", 0)
    if config.steps <= starts:
        raise UsageError(
            f"--steps {config.steps} ends before learning starts at {starts}: more steps, or "
            f"--hyper learning_starts={config.steps // 10}"
        )


def whole(option: str, value: Any) -> int:
    """`value` as an int, which 1e5 is too. Raises UsageError for another number or kind."""
    return _whole(option, int(value) if isinstance(value, float) and value.is_integer() else value)


def _whole(option: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{option} must be a whole number, got {value!r}") from None


def _among(option: str, value: str, known: tuple[str, ...]) -> None:
    if value in known:
        return
    raise UsageError(f"{option} {value!r} does not exist: {catalog.nearest(str(value), known, 'there are')}")


def _check_counts(config: Config) -> None:
    counts = (
        ("--steps", config.steps, MOST),
        ("--seeds", config.seeds, MOST_RUNS),
        ("first_steps", config.first_steps, MOST),
    )
    for option, value, most in counts:
        if not 1 <= _whole(option, value) <= most:
            raise UsageError(f"{option} must be from 1 to {most}, got {value}")
    if not 0 <= _whole("--seed", config.seed) <= MOST - config.seeds:
        raise UsageError(f"--seed must be from 0 to {MOST - config.seeds}, got {config.seed}")
    if not 1 <= _whole("--evaluations", config.evaluations) <= MOST_EVALUATIONS:
        raise UsageError(f"--evaluations must be from 1 to {MOST_EVALUATIONS}, got {config.evaluations}")
    if config.evaluations != EVALUATIONS and config.population is not None and config.population.evolves:
        raise UsageError(
            "--evaluations is not for members that take over from others, who are evaluated then: use --ready"
        )


def _check_actors(config: Config, recipe: Recipe) -> None:
    """What compression asks of an agent."""
    learners = recipe.cadence(split(recipe, config.hyper)[0]).learners
    if config.actors not in ("fp32", "bf16", "int8", "auto") and learners:
        raise UsageError(
            f"--actors {config.actors} is not for {config.agent}: its actors compute gradients of the whole network; "
            "use --actors int8, or impala"
        )
    if config.prune is None:
        if config.prune_at != PRUNE_AT:
            raise UsageError("--prune-at needs --prune, the share of units to end with")
        return
    if not isinstance(config.prune, float | int) or not 0 < config.prune < 1:
        raise UsageError(f"--prune must be between 0 and 1, the share of units to end with, got {config.prune}")
    if not config.prune_at or not all(isinstance(at, float | int) and 0 <= at < 1 for at in config.prune_at):
        given = " ".join(map(str, config.prune_at))
        raise UsageError(f"--prune-at must be shares of the training, from 0 to below 1, got {given}")
    if learners:
        raise UsageError(f"--prune is not for {config.agent}, whose gradients come from other processes; use impala")
    if config.runtime == "compiled":
        raise UsageError("--prune needs actor processes: use --runtime actors, or leave it out")


def side_by_side(config: Config, cadence: Cadence) -> bool:
    """Whether actors step the environments of several runs at once: what acts must follow from the weights alone, and
    gradients from what one Learner has.
    """
    return config.actors in ("fp32", "bf16", "int8") and config.prune is None and not cadence.learners


def _check_precision(config: Config) -> None:
    """What a learner of less than float32 cannot do."""
    if config.precision == "fp32":
        return
    for option, value in (("--prune", config.prune), ("--qat", config.qat)):
        if value is not None:
            raise UsageError(
                f"{option} changes weights that are float32, and --precision {config.precision} has others: leave one "
                "of them out"
            )


def _check_repair(config: Config, agent: Agent, hyper: Any) -> None:
    """That a learner of less than float32 can be kept, and has the repair that is to be left out."""
    from .levers.precision.numerics import repairs

    try:
        there = repairs(agent, hyper)
    except ValueError as error:
        raise UsageError(f"--precision {config.precision} is not for {config.agent} as it is here: {error}") from None
    left_out = WITHOUT.get(config.precision)
    if left_out and left_out not in there:
        able = ", ".join(mode for mode, name in WITHOUT.items() if name in there)
        raise UsageError(
            f"--precision {config.precision} is not for {config.agent} here, {LACKS[left_out]}: use {able}"
        )


def _check_qat(config: Config) -> None:
    """That what acts is what the learner sees."""
    if config.qat is None:
        return
    low, high = BITS
    if not low <= _whole("--qat", config.qat) <= high:
        raise UsageError(f"--qat must be from {low} to {high} bits, got {config.qat}")
    if config.actors != "fp32" and (config.qat, config.actors) not in ((8, "int8"), (8, "int8-static")):
        raise UsageError(
            f"--qat {config.qat} does not go with --actors {config.actors}, which act with other weights than those "
            "that are trained: use --actors fp32, or --actors int8 with --qat 8"
        )


def _check_hyper(hyper: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Numbers that would fail later or do nothing."""
    for name, value in (
        (name, x) for name, each in hyper.items() for x in (each if isinstance(each, tuple) else (each,))
    ):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, float) and not np.isfinite(value):
            raise UsageError(f"--hyper {name}={value} must be a finite number")
        may_be_none = name in ("learning_starts", "random_shift") or defaults[name] in (0, ())
        least = 0 if isinstance(value, float) or may_be_none else 1
        if value < least and name not in SIGNED:
            raise UsageError(f"--hyper {name}={value:g} must be at least {least}")
        if name in FRACTIONS and value > 1:
            raise UsageError(f"--hyper {name}={value:g} must be from 0 to 1")
        if value > MOST:
            raise UsageError(f"--hyper {name}={value:g} must be at most {MOST}")
    if hyper.get("v_min", 0) >= hyper.get("v_max", 1):
        raise UsageError(f"--hyper v_min={hyper['v_min']:g} must be less than v_max={hyper['v_max']:g}")
    if hyper.get("buffer_size", hyper.get("batch_size", 0)) < hyper.get("batch_size", 0):
        raise UsageError(f"--hyper buffer_size={hyper['buffer_size']} is smaller than batch_size={hyper['batch_size']}")


def _check_corrector(config: Config, recipe: Recipe) -> None:
    known = {name for names in CORRECTORS.values() for name in names}
    _among("--correct", config.correct, ("auto", *sorted(known)))
    able = CORRECTORS[values_of(recipe, split(recipe, config.hyper)[0])]
    if config.correct not in able:
        raise UsageError(f"--correct {config.correct} is not for {config.agent}, which takes: {', '.join(able)}")


def _check_pair(config: Config, recipe: Recipe) -> None:
    """That the agent can train on the environment, and that both can be made."""
    options = options_for(config.env, config.env_options)
    obs, actions = catalog.spaces(config.env, options)
    if namespace(config.env) == "ALE":
        atari.check(catalog.registration(config.env), options)
    able, entry = catalog.able(obs, actions), catalog.AGENTS[config.agent]
    if config.agent not in able:
        kind, other = ("discrete", "continuous") if isinstance(actions, Discrete) else ("continuous", "discrete")
        why = f"{config.env} has {kind} actions, and {config.agent} takes {other} ones"
        if getattr(entry, kind):
            larger = f" and images of {entry.images} x {entry.images} or more" if entry.images else ""
            why = f"{config.env} has images {obs.shape} as observations, and {config.agent} takes vectors{larger}"
        raise UsageError(f"{why}; use {', '.join(able)}")
    static, _ = split(recipe, config.hyper)
    try:
        agent = _assembled(recipe, config, static, obs, actions)
    except ValueError as error:
        raise UsageError(f"{config.agent} cannot train on {config.env}: {error}") from None
    if config.precision != "fp32":
        _check_repair(config, agent, recipe.hyper)
    layers = agent.network.layers
    size = sum(prod(shape) for _, shape in weighted(layers or (), obs.shape))
    if size > MOST:
        raise UsageError(f"the network has {size:,} weights, and {MOST:,} are the most: smaller --hyper hidden")
    if config.prune is not None and not all(isinstance(layer, Dense) for layer in layers or (None,)):
        raise UsageError(
            f"--prune is for networks of dense layers, and that of {config.agent} has others: leave it out"
        )
    if config.prune is not None and not _prunable(agent, static, recipe.hyper):
        raise UsageError(
            "--prune is for weights that are learned as they are, not for noisy=true or distribution=implicit: leave "
            "it out"
        )
    if config.qat is not None and not _acts_as_learned(agent, recipe.hyper):
        raise UsageError(
            "--qat is for weights that act as they are learned, not for noisy=true, dueling=true, "
            "distribution=quantile, distribution=implicit, or sac on pictures: leave it out"
        )
    if agent.settled and config.actors != "auto" and modes.mode(config.actors).share < 1:
        raise UsageError(
            f"--actors {config.actors} is not for noisy=true: a student has no noise to explore with; use "
            "--actors int8, or --hyper noisy=false"
        )


def _assembled(recipe: Recipe, config: Config, static: Any, obs: Any, actions: Any) -> Agent:
    if config.precision == "fp32":
        return recipe.assemble(static, obs, actions)
    from .levers.precision.numerics import numerics

    return recipe.assemble(static, obs, actions, numerics=numerics(PRECISIONS[config.precision]))


def _prunable(agent: Agent, static: Any, hyper: Any) -> bool:
    """Whether units of the agent's networks can go. `recipe.assemble` has imported JAX already."""
    from .levers.compress.shrink import prunable

    return prunable(agent, hyper, static.hidden)


def _acts_as_learned(agent: Agent, hyper: Any) -> bool:
    from .levers.compress.aware import acts_as_learned

    return acts_as_learned(agent, hyper)


def _check_ray(config: Config) -> None:
    if config.runtime != "ray" and config.ray_address is not None:
        raise UsageError(f"--ray-address {config.ray_address} needs --runtime ray")
    if config.runtime == "ray" and config.lockstep:
        raise UsageError("--lockstep is for actors of this machine: use --runtime actors, or leave it out")
    if config.runtime == "ray" and find_spec("ray") is None:
        raise UsageError("--runtime ray needs a package that is not installed: pip install 'frugalrl[ray]'")
    if config.runtime != "ray" and config.population is not None and config.population.selection == "tournament":
        raise UsageError("--selection tournament needs --runtime ray, which keeps the checkpoints of its leaderboard")


def _check_runtime(config: Config) -> None:
    if config.runtime == "compiled" and config.actors != "fp32":
        raise UsageError(f"--actors {config.actors} needs actor processes: use --runtime actors, or leave it out")
    if config.runtime == "compiled" and not catalog.has_twin(config.env):
        raise UsageError(f"{config.env} has no JAX twin, which --runtime compiled needs: use --runtime actors")
    if config.runtime == "compiled" and not catalog.has_twin(config.env, config.env_options):
        unknown = twins.unknown(config.env, options_for(config.env, config.env_options))
        options = ", ".join(f"{name}={value}" for name, value in unknown.items())
        raise UsageError(
            f"the JAX twin of {config.env} knows no --env-option {options}: use --runtime actors, or leave it out"
        )
    if config.runtime == "actors" and not _portable(catalog.registration(config.env)):
        raise UsageError(
            f"{config.env} is registered in the script itself, which actor processes do not run: register it in a "
            f"module, m.py say, and call it m:{config.env}"
        )


def _check_lockstep(config: Config) -> None:
    """That nothing is left to the clock."""
    if not isinstance(config.lockstep, bool):
        raise UsageError(f"lockstep must be true or false, got {config.lockstep!r}")
    if not config.lockstep:
        return
    if config.runtime == "compiled":
        raise UsageError(
            "--lockstep is for actor processes, and --runtime compiled repeats itself without: leave one of them out"
        )
    if config.population is not None and config.population.joint:
        kind = config.population.kind
        raise UsageError(f"--lockstep is not for {kind}, whose actors and Learner take turns anyway: leave it out")
    if config.actors == "auto":
        raise UsageError(
            "--actors auto goes by the clock, and --lockstep by nothing that it says: name a mode, --actors int8 say"
        )
    if config.prune is not None:
        raise UsageError(
            "--prune distils on steps that no checkpoint holds, so --lockstep could not go on exactly: leave one of "
            "them out"
        )
    if config.pull_period is not None:
        raise UsageError("--lockstep has actors take the newest policy before every unroll: leave --pull-period out")
    if options_for(config.env, config.env_options).backend == "envpool":
        raise UsageError("--lockstep steps games one by one, and backend=envpool together: leave one of them out")


def _check_pull_period(config: Config, recipe: Recipe) -> None:
    """That actors skip packets at all."""
    period = config.pull_period
    if period is None:
        return
    if not 1 <= _whole("--pull-period", period) <= MOST:
        raise UsageError(f"--pull-period must be from 1 to {MOST}, got {period}")
    if config.runtime == "compiled":
        raise UsageError(f"--pull-period {period} needs actor processes: use --runtime actors, or leave it out")
    cadence = recipe.cadence(split(recipe, config.hyper)[0])
    if cadence.waits or cadence.learners:
        who = "actor-learners take" if cadence.learners else "actors wait for"
        raise UsageError(
            f"--pull-period is not for {config.agent}, whose {who} the newest policy before every rollout: leave it out"
        )


def _check_population(config: Config, recipe: Recipe) -> None:
    """That there is something to search, and that every member could train."""
    population = config.population
    if population is None:
        return
    _among("the kind of population", population.kind, searches.KINDS)
    if population.joint:
        _check_joint(config, population, recipe)
    elif not population.search:
        raise UsageError("--search NAME=log:LOW:HIGH is needed: what the members differ in")
    least = 1 if population.kind in ("random", "grid") else 2
    if not least <= _whole("--members", population.members) <= MOST_RUNS // config.seeds:
        raise UsageError(f"--members must be from {least} to {MOST_RUNS // config.seeds}, got {population.members}")
    found = searches.priors(config.agent, population.search)
    if population.kind == "grid" and population.members != searches.size(found):
        raise UsageError(f"--members {population.members} is not the size of the grid, {searches.size(found)}")
    if population.evolves:
        _check_evolution(population, recipe, found)
        if config.runtime == "actors" and not side_by_side(config, recipe.cadence(split(recipe, config.hyper)[0])):
            asked = "--prune" if config.prune is not None else f"--actors {config.actors}"
            able = f"{asked} is" if asked != "--actors fp32" else f"{config.agent} and other actor-learners are"
            raise UsageError(
                f"{able} not for members of pbt in --runtime actors, who train side by side: use --actors fp32, bf16 "
                "or int8 and another agent than a3c, or compare members with frugal sweep"
            )
    fields, ends = catalog.hyper_fields(recipe), {name: prior.values for name, prior in found.items()}
    for name, values in ends.items():
        for value in values:
            _check_hyper(config.hyper | {name: value}, fields)
    static = {name: values for name, values in ends.items() if name in recipe.static._fields}
    for values in product(*static.values()) if static else ():
        chosen = dict(zip(static, values, strict=True))
        check(config._replace(population=None, seeds=1, hyper=config.hyper | chosen))


def _check_joint(config: Config, population: Population, recipe: Recipe) -> None:
    """What members that share a critic need."""
    from .levers.population.joint import joins

    kind = population.kind
    static, hyper = split(recipe, config.hyper)
    obs, actions = catalog.spaces(config.env, options_for(config.env, config.env_options))
    replays = not recipe.cadence(static).rollout
    if (
        isinstance(actions, Discrete)
        or not replays
        or not joins(_assembled(recipe, config, static, obs, actions), hyper)
    ):
        raise UsageError(
            f"{kind} needs an actor that follows critics, a replay, and continuous actions: use td3, sac, ddpg or d4pg"
        )
    if len(obs.shape) > 1:
        raise UsageError(
            f"{kind} is not for pictures, which each actor sees through an encoder that learns with the critic: train "
            f"{config.agent} alone, or use an environment of vectors"
        )
    if config.precision != "fp32" or config.qat is not None:
        raise UsageError(f"{kind} works with weights that are float32: leave --precision and --qat out")
    for option, given in (
        (f"--actors {config.actors}", config.actors != "fp32"),
        ("--prune", config.prune is not None),
        ("--pull-period", config.pull_period is not None),
    ):
        if given:
            raise UsageError(f"{option} is not for {kind}, whose members act with the weights they have: leave it out")
    if not 1 <= population.ready <= MOST:
        raise UsageError(f"--ready must be from 1 to {MOST} steps of each environment, got {population.ready}")
    if not isinstance(population.variance, float | int) or not 0 < population.variance <= 1:
        raise UsageError(f"--variance must be above 0 and at most 1, got {population.variance}")
    try:
        fine = population.novelty in searches.NOVELTY or 0 <= float(population.novelty) < 1
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(
            f"--novelty must be {' or '.join(searches.NOVELTY)}, or a number from 0 to below 1, got "
            f"{population.novelty}"
        )


def _check_evolution(population: Population, recipe: Recipe, found: Mapping[str, Any]) -> None:
    """What selection needs."""
    shaping = [name for name in found if name in recipe.static._fields]
    if shaping:
        raise UsageError(
            f"--search {shaping[0]}: {shaping[0]} shapes the program, so members that differ in it cannot take over "
            "from one another: set it with --hyper, or compare its values with frugal sweep"
        )
    for option, value, known in (
        ("--explore", population.explore, searches.EXPLORE),
        ("--copy", population.copy, searches.COPY),
        ("--selection", population.selection, searches.SELECTION),
    ):
        _among(option, value, known)
    if not 1 <= _whole("--ready", population.ready) <= MOST:
        raise UsageError(f"--ready must be from 1 to {MOST} environment steps, got {population.ready}")
    if not isinstance(population.truncation, float | int) or not 0 < population.truncation <= 0.5:
        raise UsageError(f"--truncation must be above 0 and at most 0.5, got {population.truncation}")


def _portable(registration: Any) -> bool:
    """Whether another process can make the environment from its registration."""
    try:
        return b"__main__" not in pickle.dumps(registration)
    except (pickle.PicklingError, AttributeError, TypeError):  # a lambda, say
        return False


def values_of(recipe: Recipe, static: Any) -> str:
    """What the Correctors of an agent are of, as in Recipe.values."""
    return recipe.values(static) if callable(recipe.values) else recipe.values


def split(recipe: Recipe, hyper: dict[str, Any]) -> tuple[Any, Any]:
    """(static, hyper) of an agent from one dictionary of both."""
    return tuple(
        record._replace(**{name: value for name, value in hyper.items() if name in record._fields})
        for record in (recipe.static, recipe.hyper)
    )


def write(folder: Path, config: Config) -> None:
    """Write config.json, whole or not at all."""
    population = config.population and config.population._asdict()
    told = {"format": FORMAT, **config._asdict(), "population": population}
    files.replace(folder / "config.json", json.dumps(told, indent=1) + "\n", lasting=True)


def is_run(folder: Path) -> bool:
    """Whether a folder has a config.json of this library: others have files of that name too."""
    try:
        found = files.read_json(folder / "config.json") or {}
    except (OSError, ValueError):
        return False
    return {"format", "agent", "env", "hyper"} <= found.keys()


def read(folder: Path) -> Config:
    """config.json of a run folder. Raises BadFile if it is missing, damaged, or of another program."""
    file = folder / "config.json"
    found = files.read_json(file, {"env": (kinds.string,)})
    if found is None:
        raise BadFile(f"{folder} is not a run folder (no config.json); give the --out folder of a `frugal train`")
    check_module(found["env"], file)
    try:
        if found.pop("format") != FORMAT:
            raise ValueError("it was written by another version")
        config = Config(**found)
        hyper = {k: tuple(v) if isinstance(v, list) else v for k, v in config.hyper.items()}
        options = catalog.parse_env_options(config.env_options or {}) or None
        config = config._replace(
            hyper=catalog.parse_hyper(config.agent, hyper), env_options=options, prune_at=tuple(config.prune_at),
            population=config.population and Population(**config.population),  # type: ignore[arg-type]
        )  # fmt: skip
        check(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, UsageError | OSError) else f"{type(error).__name__}: {error}"
        raise BadFile(f"{file} is damaged or not usable here ({reason}); restore it or train again") from None
    return config
