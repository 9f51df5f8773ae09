"""One training run as pure functions of (key, hyper): environment, memory and learner in a single XLA program.

Many seeds are a mapped axis of that program. How many are mapped together, and on how many threads, is measured once
on a machine and remembered, because the last bit of a sum may depend on how many seeds share a program.

The walk of an observation to a gradient comes here from `envs/`, to `collect`, and goes on in `networks.py`, `apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..distributions import draw
from ..envs.make import EnvOptions, lesson
from ..monitor import machine
from ..types import Agent, Env, Memory, Policy, Transition, update


class Plan(NamedTuple):
    """Static numbers that shape the program."""

    num_envs: int = 1
    unroll: int = 4  # steps of each environment in an iteration
    updates: int = 1  # learner updates in an iteration
    warmup: int = 250  # iterations that only collect, before the first update


class Episodes(NamedTuple):
    """Running totals of the training episodes."""

    ret: Any  # float32 [num_envs], of the episode under way
    length: Any  # int32 [num_envs]
    finished: Any  # int32, episodes ended since the last report
    sum_ret: Any  # float32, their returns
    sum_length: Any  # int32


class Totals(NamedTuple):
    """Of the iterations since the last report: in the carry, so that a row's means do not depend on where it is cut."""

    iterations: Any  # int32
    metrics: Any  # name -> float32, their sums


class Carry(NamedTuple):
    state: Any
    memory: Any
    env: Any
    obs: Any
    episodes: Episodes
    key: Any  # the run's own; iteration i uses fold_in(key, i), so chunks of any length give the same run
    iteration: Any  # int32
    totals: Any = ()  # Totals


class Run(NamedTuple):
    """The parts of one run. They are pure, unbatched, and made to be mapped over a population."""

    init: Callable[[Any, Any], Carry]  # (key, hyper) -> carry, its memory warmed up
    # (carry, int32 iterations, whether a report is due then) -> (carry, mean metrics since the last report)
    advance: Callable[..., tuple[Carry, dict]]


def run(agent: Agent, env: Env, memory: Memory, plan: Plan, options: EnvOptions = EnvOptions()) -> Run:  # noqa: B008
    """A training run of `agent` on `env`, which learns from rewards and ends as `options` say.

    A crew begins each rollout with new episodes, so that each of its members is judged by whole ones of its own.
    """
    crew = agent.crew

    def act_and_step(policy, version, env_state, obs, key):
        key_net, key_act, key_env = jax.random.split(key, 3)
        dist = agent.dist(policy, obs, key_net)
        action = dist.sample(draw(dist, key_act))
        env_state, step = env.step(env_state, action, key_env)
        transition = Transition(
            obs, action, step.reward, step.terminated, step.truncated, step.next_obs, dist.log_prob(action), version
        )
        return env_state, step.obs, transition

    def acting(state) -> tuple[Policy, Policy | None]:
        """The policy of all lanes, or one for each; and which axis is that of lanes."""
        if crew is None:
            return agent.policy(state), None
        policies, lanes = crew.policies(state), plan.num_envs // crew.members
        params = jax.tree.map(lambda x: jnp.repeat(x, lanes, 0), policies.params)
        return Policy(params, policies.knobs), Policy(0, None)

    def anew(carry: Carry, key) -> Carry:
        """All lanes at the beginning of an episode."""
        env_state, obs = jax.vmap(env.reset)(jax.random.split(key, plan.num_envs))
        none = carry.episodes._replace(ret=jnp.zeros(plan.num_envs), length=jnp.zeros(plan.num_envs, jnp.int32))
        return carry._replace(env=env_state, obs=obs, episodes=none)

    def collect(carry: Carry, key) -> tuple[Carry, Transition]:
        policy, axis = acting(carry.state)
        version = carry.state.version
        if crew is not None:
            carry = anew(carry, jax.random.fold_in(key, plan.unroll * plan.num_envs))

        def one(c, keys):
            env_state, obs, episodes = c
            env_state, obs, t = jax.vmap(act_and_step, (axis, None, 0, 0, 0))(policy, version, env_state, obs, keys)
            reward, terminated, truncated = lesson(options, t.reward, t.terminated, t.truncated)
            learned = t._replace(reward=reward, terminated=terminated, truncated=truncated)
            return (env_state, obs, count(episodes, t)), learned

        keys = jax.random.split(key, (plan.unroll, plan.num_envs))
        (env_state, obs, episodes), items = jax.lax.scan(one, (carry.env, carry.obs, carry.episodes), keys)
        kept = memory.add(carry.memory, items if crew is None else cut_off(items))
        return carry._replace(memory=kept, env=env_state, obs=obs, episodes=episodes), items

    def warm_up(carry: Carry, key) -> tuple[Carry, None]:
        carry, items = collect(carry, key)
        return carry._replace(state=agent.observe(carry.state, items, 0)), None

    def iterate(carry: Carry):
        key_collect, key_learn = jax.random.split(jax.random.fold_in(carry.key, carry.iteration))
        carry, items = collect(carry, key_collect)
        if crew is not None:
            turned = crew.turn(carry.state, items, jax.random.fold_in(key_learn, plan.updates + 1))
            carry = carry._replace(state=turned)
        state, kept, metrics = learn(agent, memory, plan.updates, carry.state, carry.memory, key_learn)
        state = agent.observe(state, items, 0)  # only now: the updates see the normalisers that acted
        return carry._replace(state=state, memory=kept, iteration=carry.iteration + 1), metrics

    def init(key, hyper) -> Carry:
        key_agent, key_env, key_warm, key_run = jax.random.split(key, 4)
        env_state, obs = jax.vmap(env.reset)(jax.random.split(key_env, plan.num_envs))
        zero = jnp.zeros((), jnp.float32)
        episodes = Episodes(
            jnp.zeros(plan.num_envs), jnp.zeros(plan.num_envs, jnp.int32), jnp.int32(0), zero, jnp.int32(0)
        )
        carry = Carry(
            agent.init(key_agent, hyper), memory.init(), env_state, obs, episodes, key_run,
            jnp.int32(0),
        )  # fmt: skip
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(iterate, carry)[1])
        warm = jax.random.split(key_warm, plan.warmup)
        return jax.lax.scan(warm_up, carry, warm)[0]._replace(totals=Totals(jnp.int32(0), sums))

    def advance(carry: Carry, iterations, report=True):
        def body(_, carry):
            totals = carry.totals
            carry, metrics = iterate(carry)
            return carry._replace(totals=Totals(totals.iterations + 1, jax.tree.map(jnp.add, totals.metrics, metrics)))

        carry = jax.lax.fori_loop(0, iterations, body, carry)
        e, totals = carry.episodes, carry.totals
        metrics = jax.tree.map(lambda x: x / totals.iterations.astype(jnp.float32), totals.metrics)
        done = e.finished.astype(jnp.float32)
        metrics |= {"train_return": e.sum_ret / done, "train_length": e.sum_length.astype(jnp.float32) / done}

        def anew(tree):
            return jax.tree.map(lambda x: jnp.where(report, jnp.zeros_like(x), x), tree)

        fresh = e._replace(finished=anew(e.finished), sum_ret=anew(e.sum_ret), sum_length=anew(e.sum_length))
        return carry._replace(episodes=fresh, totals=anew(totals)), metrics

    return Run(init, advance)


def learn(agent: Agent, memory: Memory, updates: int, state, kept, key):
    """The updates of one iteration: (state, contents of the memory, mean metrics). Every runtime learns like this."""

    def one(c, step):
        state, kept = c
        number, key = step
        key_sample, key_update = jax.random.split(key)
        batch = draw(kept, key_sample, number)
        state, info = update(agent, state, batch, key_update)
        return (state, memory.update(kept, batch.index, info.priority)), info.metrics

    kept, draw = memory.deal(kept, jax.random.fold_in(key, updates), partial(agent.prepare, state))
    steps = (jnp.arange(updates, dtype=jnp.int32), jax.random.split(key, updates))
    (state, kept), metrics = jax.lax.scan(one, (state, kept), steps)
    return state, kept, jax.tree.map(jnp.mean, metrics)


def cut_off(items: Transition) -> Transition:
    """A rollout [time, lanes, ...] whose last steps are truncated, unless they terminated: other episodes follow."""
    return items._replace(truncated=items.truncated.at[-1].set(~items.terminated[-1]))


def count(episodes: Episodes, t: Transition) -> Episodes:
    """Add one step of every environment to the running totals."""
    ret, length = episodes.ret + t.reward, episodes.length + 1
    ended = t.terminated | t.truncated
    return Episodes(
        jnp.where(ended, 0.0, ret),
        jnp.where(ended, 0, length),
        episodes.finished + ended.sum(dtype=jnp.int32),
        episodes.sum_ret + jnp.where(ended, ret, 0.0).sum(),
        episodes.sum_length + jnp.where(ended, length, 0).sum(dtype=jnp.int32),
    )


C = TypeVar("C")  # the carry of a runtime
GROWTH = 4  # of pieces of a segment: a short one may have been quick by chance
CHUNK = 8  # seeds: with more, their replay memories no longer share a core's cache


class Way(NamedTuple):
    """A way to batch seeds: `width` of them mapped in one program, `threads` such programs at a time.

    With several `devices` a program is spread over them, each of which has as many of its seeds.
    """

    width: int
    threads: int
    devices: int = 1

    def __str__(self) -> str:
        if self.devices > 1:
            return f"{self.width} seeds on {self.devices} devices, vmap over {self.width // self.devices} on each"
        if self.width == 1:
            return f"one seed at a time on {self.threads} thread{'s' * (self.threads > 1)}"
        return f"vmap over {self.width} seeds on {self.threads} thread{'s' * (self.threads > 1)}"


def ways(seeds: int, cores: int, devices: int = 1) -> list[Way]:
    """The ways worth measuring: chunks that keep every core busy, and one by one; on a single core all in one vmap too.

    On several devices the seeds are spread over as many of them as divide their number; what one device can do alone is
    not measured then, unless the seeds cannot be spread.

    On several cores that vmap leaves all but one idle (with 32 seeds of PPO it took 2.2 times as long as chunks on two
    cores), and to compile it costs as much as each of the others. Widths divide the number of seeds where one of half a
    core's share or more does; else what remains has a program of its own. `lax.map` over chunks is not among them:
    chunks on a single core do the same, and an iteration count at a time costs one call.
    """
    shares = max(d for d in range(1, devices + 1) if seeds % d == 0)
    if shares > 1:
        return [Way(seeds, 1, shares)]
    fair = min(CHUNK, -(-seeds // cores))
    even = max(w for w in range(1, fair + 1) if seeds % w == 0)
    widths = {even if 2 * even >= fair else fair, 1} | ({seeds} if cores == 1 else set())
    return sorted({Way(w, min(cores, -(-seeds // w))) for w in widths}, reverse=True)


def widths(seeds: int, way: Way) -> set[int]:
    """How many seeds are mapped together in the programs of a way."""
    return {len(range(seeds)[part]) for part in chunks(seeds, way.width)}


def copies(seeds: int, options: Sequence[Way]) -> float:
    """How many times what `seeds` hold is in the memory of one device at once, if these ways are measured.

    They begin together on one device, where the copies are that `fastest` makes; then the parts of one way are made of
    them. Those that are spread over several devices need their share of it there.
    """
    if any(way.devices > 1 for way in options):
        return 1 + 1 / min(way.devices for way in options)
    measured = sum(min(seeds, way.width * way.threads) for way in options) / seeds if len(options) > 1 else 0.0
    return 1 + max(1.0, measured)


def chunks(seeds: int, width: int) -> list[slice]:
    """The seeds in runs of `width`."""
    return [slice(i, min(i + width, seeds)) for i in range(0, seeds, width)]


def take(tree, part: slice):
    """The seeds of `part`, of every leaf [seeds, ...]."""
    return jax.tree.map(lambda x: x[part], tree)


def seeds_of(tree) -> int:
    """How many seeds a tree has of which every leaf is [seeds, ...]."""
    return jax.tree.leaves(tree)[0].shape[0]


def spread(devices: int) -> NamedSharding | None:
    """Seeds in equal shares over the first so many devices; None for one."""
    if devices == 1:
        return None
    return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("seeds",)), PartitionSpec("seeds"))


class Programs:
    """The compiled `advance` of a run, one for each number of seeds mapped together, and of devices. `carry` gives the
    shapes, `compiler` options for it.
    """

    def __init__(self, run: Run, carry: Carry, compiler: dict[str, Any] | None = None):
        self.run, self.carry, self.compiled, self.compiler = run, carry, {}, compiler or {}

    def prepare(self, width: int, devices: int = 1) -> None:
        """Compile the program for `width` seeds; may be called from several threads at once."""
        place = spread(devices)

        def shape(x):
            return jax.ShapeDtypeStruct((width, *x.shape[1:]), x.dtype, sharding=place)

        mapped = jax.vmap(self.run.advance, (0, None, None))
        if place is not None:  # what a device does for its seeds concerns no other: nothing is ever sent
            specs: Any = {"in_specs": (place.spec, PartitionSpec(), PartitionSpec()), "out_specs": place.spec}
            mapped = jax.shard_map(mapped, mesh=place.mesh, check_vma=False, **specs)
        # the other cores run other seeds, and small products only lose by being split; XLA splits wide ones all the
        # same
        options: Any = {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else {}
        numbers = np.int32(1), np.bool_(True)
        lowered = jax.jit(mapped, donate_argnums=0).lower(jax.tree.map(shape, self.carry), *numbers)
        self.compiled[width, devices] = lowered.compile(compiler_options=(options | self.compiler) or None)

    def __call__(self, carry: Carry, iterations: int, report: bool = True):
        key = carry.iteration.shape[0], len(carry.iteration.sharding.device_set)
        return jax.block_until_ready(self.compiled[key](carry, np.int32(iterations), np.bool_(report)))


def split(carry: C, way: Way, most: int | None = None) -> list[C]:
    """The parts of a carry [seeds, ...] that are advanced together, where they are to be; the first `most` of them."""
    parts = [take(carry, part) for part in chunks(seeds_of(carry), way.width)[:most]]
    return parts if way.devices == 1 else jax.device_put(parts, spread(way.devices))


def devices() -> int:
    """How many devices the seeds can be spread over."""
    return len(jax.devices())


def cores() -> int:
    """Processor cores this process may use, or 1 where the seeds run on an accelerator."""
    return machine.cores() if jax.default_backend() == "cpu" else 1


def fastest(
    programs: Callable[..., tuple[Any, Any]], carry: Any, options: list[Way], seconds: float = 0.8
) -> dict[Way, float]:
    """Microseconds that an iteration of one seed takes each way, measured on copies of `carry` [seeds, ...].

    `programs` are given a part of the carry and a number of iterations, and must have been prepared. `seconds` is for
    all measurements together, if an iteration does not take longer than its share of them; a way that took half as long
    again as the best is not measured further.
    """
    best: dict[Way, float] = {}
    trials = {way: copied(carry, way) for way in options}
    with ThreadPoolExecutor(max(way.threads for way in options)) as pool:
        for attempt in range(4):  # in turns, so that a busy moment of the machine hits all of them
            for way in options:
                if attempt > 1 and best[way] > 1.5 * min(best.values()):
                    continue
                count = sum(map(seeds_of, trials[way]))
                share = seconds / len(options) / 3 * 1e6
                iterations = 1 if attempt == 0 else max(1, int(share / best[way] / count))
                start = perf_counter()
                done = list(pool.map(partial(programs, iterations=iterations), trials[way]))
                microseconds = (perf_counter() - start) / iterations / count * 1e6
                trials[way] = [c for c, _ in done]
                # the first attempt warms up
                best[way] = microseconds if attempt <= 1 else min(best[way], microseconds)
    return best


def copied(carry: C, way: Way) -> list[C]:
    """The parts that are advanced first, as copies: a program uses up what it is given."""
    whole = way.width >= seeds_of(carry)  # else slices are copies already
    return jax.block_until_ready(split(jax.tree.map(jnp.copy, carry) if whole else carry, way, way.threads))


class Tick(NamedTuple):
    """What a run yields after each segment, and after each piece of one."""

    iteration: int
    carry: Callable[[], Carry]  # [seeds, ...], all seeds together; valid until the next tick
    state: Callable[[], Any]  # of the agents alone
    metrics: dict  # name -> [seeds], means over the segment so far
    parts: list[Carry]  # the carry as it lies in memory, so many seeds in each; valid until the next tick
    whole: bool  # a segment ends here


class Succession(NamedTuple):
    """That some seeds take over from others."""

    moves: list[tuple[int, int, Any]]  # the one that becomes another, the one it takes over from, and what else counts
    become: Callable[[Any, Any, Any], Any]  # of these three, without the axis of seeds


def train(
    programs: Programs,
    way: Way,
    carry: Carry,
    segments: list[int],
    between: Callable[[int, Callable[[], Any]], Succession | None] | None = None,
    seconds: float | None = None,
) -> Iterator[Tick]:
    """Advance all seeds to each of the iteration counts in `segments`, yielding after each; `carry` is used up.

    Counts already passed are skipped; if all are, the carry is yielded as it is. `between` is asked before each segment
    who takes over from whom: it is given the iteration and the agents' states [seeds, ...]. With `seconds` a segment is
    cut into pieces of about that time each, by the pace of the piece before; the first is a single iteration, and none
    may be more than GROWTH times as long as the one before. Where it is cut changes no number.
    """
    iteration, most = int(carry.iteration[0]), 1
    parts = split(carry, way)
    del carry
    if max(segments) <= iteration:
        yield Tick(iteration, partial(join, parts), partial(join, [c.state for c in parts]), {}, parts, True)
    with ThreadPoolExecutor(way.threads) as pool:
        for target in segments:
            if target <= iteration:
                continue
            succession = between(iteration, partial(join, [c.state for c in parts])) if between else None
            succeeded(parts, way.width, succession)
            while iteration < target:
                count = target - iteration if seconds is None else min(most, target - iteration)
                iteration += count
                start, whole = perf_counter(), iteration == target
                done = list(pool.map(partial(programs, iterations=count, report=whole), parts))
                if seconds is not None:
                    wanted = int(count * seconds / max(perf_counter() - start, 1e-6))
                    most = max(1, min(wanted, GROWTH * most))
                parts, metrics = [c for c, _ in done], join([m for _, m in done])
                states = [c.state for c in parts]
                yield Tick(iteration, partial(join, parts), partial(join, states), metrics, parts, whole)


def succeeded(parts: list, width: int, succession: Succession | None) -> None:
    """Let members take over as `succession` says, in parts of `width` members each."""
    for to, source, what in succession.moves if succession else ():
        (k, i), (other, j) = divmod(to, width), divmod(source, width)
        place = jax.tree.leaves(parts[k])[0].sharding
        heir = succession.become(_pick(parts[k], i), _pick(parts[other], j), what)  # type: ignore[union-attr]
        parts[k] = jax.device_put(_placed(parts[k], heir, i), place)


@jax.jit
def _pick(carry: C, i) -> C:
    """One seed's carry, of those in a part."""
    return jax.tree.map(lambda x: x[i], carry)


@partial(jax.jit, donate_argnums=0)
def _placed(carry: C, one: C, i) -> C:
    """A part with the carry of seed i replaced, in its place in memory."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), carry, one)


def join(parts: list):
    """The parts as one tree [seeds, ...], on one device."""
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return jax.device_put(whole, jax.devices()[0]) if jax.tree.leaves(parts)[0].sharding.num_devices > 1 else whole
