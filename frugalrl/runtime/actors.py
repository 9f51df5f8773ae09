"""Actor processes step Gymnasium environments while one Learner updates; the Learner answers unrolls with packets.

The ratio of updates to steps is fixed: every unroll that is added is followed by the same number of updates, and an
actor whose slots are all waiting to be learned from waits too. Actor-learners bring the gradients of their unrolls, and
the Learner applies each as it comes. This file runs in the Learner's process.

In lockstep nothing depends on who is faster: all actors fill a slot with the same packet, their messages are learned
from in the order of the actors, and then the next round begins. What an actor is at the beginning of a round follows
from its past, which the Learner can tell from what it was sent. So an actor that dies is started anew without a loss,
and a run that is stopped goes on as if it had not been.

Several members train side by side if every actor steps environments of all of them: each message then brings as many
steps of every member, a packet has the weights of all, and the Learner is the same one, mapped over them.

An agent with a crew is one learner with many who act: each actor acts for a share of them, from new episodes in each
round, which is a generation. What the round brought is one message, so the Learner sees whole generations.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..envs import repeated
from ..errors import ActorFailed, EngineFailed
from ..types import Agent, Compressor, Memory, Network, Packet, Policy, Transition
from ..xla import module_path
from . import link
from .actor import Past, Slot, Spec, Timer, slab_size, slots
from .actor_learner import light, shapes
from .compiled import Succession, cut_off, join, seeds_of, succeeded
from .compiled import learn as updates

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # or two cores fight
NO_ACCELERATOR = {"JAX_PLATFORMS": "cpu"}  # it is the Learner's alone
PATIENCE = 3  # times in a row that an actor may die without having delivered anything
PROBED = 128  # observations, at most, on which two policies are compared
SILENCE = 60.0  # seconds after which it is told that an actor does not deliver
GRACE = 2.0  # seconds that the actors have to end by themselves


class Plan(NamedTuple):
    """Static numbers of a run in this runtime."""

    actors: int = 2
    num_envs: int = 4  # of each actor and member
    unroll: int = 16  # steps of each environment in a message
    updates: int = 16  # learner updates of each member after each message
    warmup: int = 1000  # steps of all environments of a member before the first update
    slots: int = 2  # messages an actor may have under way: the bound of the queue, and of how old its policy gets
    waits: bool = False  # updates follow a message of every actor, and the actors wait for them
    gradients: bool = False  # actor-learners: a message brings its gradient, and the actor waits until it is applied
    lockstep: bool = False  # actors and Learner take turns
    crew: int = 0  # members of an agent's crew that each actor acts for, in lockstep

    @property
    def round(self) -> int:
        """Environment steps of a message of every actor."""
        return self.actors * self.unroll * self.num_envs * max(self.crew, 1)

    @property
    def message(self) -> int:
        """Environment steps that are learned from at a time: of each member's, or of a crew's generation."""
        return self.round if self.crew else self.unroll * self.num_envs


class Carry(NamedTuple):
    """What a checkpoint holds."""

    state: Any
    memory: Any
    key: Any
    step: Any  # int32, environment steps added


class Members(NamedTuple):
    """The carries of members that train side by side: parts of them, [members of the part, ...]."""

    parts: tuple

    @property
    def step(self) -> Any:
        """Environment steps of each member."""
        return self.parts[0].step[0]

    @property
    def state(self) -> tuple:
        return tuple(part.state for part in self.parts)

    def joined(self) -> Carry:
        """[members, ...]: what a checkpoint holds."""
        return join(list(self.parts))


class Unfit(ActorFailed):
    """Actors cannot act with what they were given: packets are not finite, or the engine of a compressed mode failed.

    `carry` is where the run stands; its streams end in the middle of episodes.
    """

    def __init__(self, reason: str, carry: Any):
        super().__init__(reason)
        self.carry = carry


class Message(NamedTuple):
    actor: int
    items: Transition  # [unroll, lanes, ...], a copy
    gradient: list  # of an actor-learner: the leaves of (gradient, metrics), copies
    episodes: list  # (return, length, member) of those that ended
    span: tuple[float, float]  # perf_counter at the first and last step


class Line(NamedTuple):
    """An actor as the Learner reaches it."""

    send: Callable[[int], None]  # lets it fill a slot; if it died nothing happens, and its last message says so
    take: Callable[[Any], Slot]  # what a message brought, as copies
    hang_up: Callable[[], None]  # it ends by itself soon
    end: Callable[[float], str]  # hangs up, waits until that moment, then kills it; says how it ended
    process: subprocess.Popen | None = None  # where it is one of this machine


class Wire(NamedTuple):
    """What carries packets to actors and unrolls back."""

    put: Callable[[list[np.ndarray]], None]  # the newest packet
    # starts the actor of a Spec; its messages go to the function, the last one is None
    start: Callable[[Spec, Callable[[dict | None], None]], Line]
    close: Callable[[], None]
    folder: Path | None = None  # of the slabs, where they are on this machine


def generation(messages: list[Message]) -> Message:
    """The messages of a round as one, whose lanes are those of a crew's members in order."""
    items = jax.tree.map(lambda *x: np.concatenate(x, 1), *[message.items for message in messages])
    episodes = [(ret, length, 0) for message in messages for ret, length, _ in message.episodes]
    begins, ends = zip(*[message.span for message in messages], strict=True)
    return Message(0, items, [], episodes, (min(begins), max(ends)))


class Fleet:
    """The actors: starts them, restarts the dead, and collects what they send."""

    def __init__(
        self, spec: Spec, plan: Plan, seed: tuple[int, ...], packet: list[np.ndarray], report: Callable[[str], None],
        wired: Callable[[Spec, Plan], Wire] | None = None, past: Callable[[int], Past] | None = None,
    ):  # fmt: skip
        """`past` is of a run in lockstep: what an actor has been through when the round under way began."""
        self.plan, self.seed, self.report, self.past = plan, seed, report, past
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.seconds: dict[str, float] = {}
        self.refreshes, self.restarts, self.lost_unrolls = 0, 0, 0
        self.cpu_seconds = 0.0  # of actors that are no children of this process
        self.births, self.silent_deaths = [0] * plan.actors, [0] * plan.actors
        self.errors: list[dict | None] = [None] * plan.actors  # what an actor said before it died
        self.held: list[tuple[int, int, int]] = []  # slots of actors that wait: actor, birth, slot
        # slots that each actor was given; of those it has filled, as its listener counts, and when that was last; and
        # those of them that the Learner has
        self.given, self.filled, self.since = [0] * plan.actors, [0] * plan.actors, [0.0] * plan.actors
        self.received = [0] * plan.actors
        self.lines: list[Line] = []
        self.spec = spec._replace(slots=plan.slots, packet=link.fields(packet), registration=registration(spec.env_id))
        self.wire = (wired or processes)(self.spec, plan)
        try:
            self.wire.put(packet)
            for i in range(plan.actors):
                self.lines.append(self._start(i))
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[subprocess.Popen]:
        return [line.process for line in self.lines if line.process]

    def _start(self, i: int) -> Line:
        spec = self.spec._replace(slab=f"actor-{i}", number=i, seed=(*self.seed, i, self.births[i]))
        if self.past is not None:  # the same, however often it begins
            spec = spec._replace(seed=(self.seed[0], i), past=self.past(i))
        self.births[i] += 1
        self.given[i], self.filled[i], self.since[i] = self.plan.slots, 0, perf_counter()
        self.received[i] = 0
        line = self.wire.start(spec, partial(self._hear, i, self.births[i]))
        for slot in range(self.plan.slots):
            line.send(slot)
        return line

    def _hear(self, i: int, birth: int, message: dict | None) -> None:
        """In a thread of that actor's: it may be a while until the Learner looks, when it evaluates say."""
        if message and "error" not in message:
            self.filled[i], self.since[i] = self.filled[i] + 1, perf_counter()
        self.inbox.put((i, birth, message))

    def receive(self, timeout: float) -> Message | int | None:
        """The next message; the number of an actor that died and was started anew; or None after `timeout` seconds."""
        self._tell_of_silence()
        try:
            i, birth, message = self.inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        if birth != self.births[i]:
            return None  # the last words of an actor already replaced
        if message is None:
            return self._restart(i)
        if "error" in message:
            if message["engine"] and self.spec.mode != "fp32":
                raise EngineFailed(message["error"].partition(": ")[2])  # without the name of this class
            self.errors[i] = message
            return None  # the end of its output follows, and the restart with it
        self.silent_deaths[i] = 0
        self.received[i] += 1
        for kind, seconds in message["seconds"].items():
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        self.refreshes += message["refreshes"]
        self.cpu_seconds += message.get("cpu_seconds", 0.0)
        items, gradient = self.lines[i].take(message)
        self.held.append((i, birth, message["slot"]))
        # While other messages wait the Learner is behind: who acts on at once only acts with an older policy
        if not (self.plan.waits or self.plan.gradients or self.plan.lockstep) and self.inbox.empty():
            self.release()
        return Message(i, items, gradient, message["episodes"], tuple(message["span"]))

    def release(self) -> None:
        """Let the actors fill the slots that were received."""
        for i, birth, slot in self.held:
            if birth == self.births[i]:
                self.lines[i].send(slot)
                self.given[i] += 1
                self.since[i] = perf_counter()
        self.held.clear()

    def _tell_of_silence(self) -> None:
        """Once for each time: an environment may hang, or it is slow, and nobody but the user can know."""
        for i, since in enumerate(self.since):
            if self.given[i] > self.filled[i] and perf_counter() - since > SILENCE:
                self.since[i] = float("inf")
                self.report(
                    f"actor {i} has delivered nothing for {SILENCE:.0f} s: its environment is slow, or hangs; "
                    "Ctrl-C saves the run"
                )

    def _restart(self, i: int) -> int:
        how = self.lines[i].end(perf_counter() + GRACE)
        said, self.errors[i] = self.errors[i], None
        reason = f"{said['error']} ({said['place']})" if said else how
        self.silent_deaths[i] += 1
        if self.silent_deaths[i] >= PATIENCE:
            details = said["details"] if said else ""
            raise ActorFailed(f"actor {i} failed {PATIENCE} times in a row before its first unroll: {reason}", details)
        self.restarts += 1
        self.lose(i)
        lost = "goes on where it was" if self.past else "its unfinished unroll is lost"
        self.report(f"actor {i} died and was started anew, {lost}: {reason}")
        self.lines[i] = self._start(i)
        return i

    def lose(self, i: int) -> None:
        """Count the unrolls of an actor that are filled, or being filled, and of which nothing will be learned.

        It fills one slot at a time. In lockstep unrolls are played again, and nothing is lost.
        """
        if self.past is None:
            self.lost_unrolls += self.filled[i] - self.received[i] + (self.given[i] > self.filled[i])

    def close(self) -> None:
        """Hang up, which ends the actors; whoever does not end is killed."""
        deadline = perf_counter() + GRACE
        try:
            for line in self.lines:
                line.hang_up()
            for line in self.lines:
                line.end(deadline)
        finally:  # also when a second Ctrl-C comes in here
            self.wire.close()


def processes(spec: Spec, plan: Plan) -> Wire:
    """Actors as processes of this machine, with slabs in memory that is shared."""
    folder = link.shared_folder(plan.actors * slab_size(spec) + 2 * link.size(spec.packet))
    started: list[subprocess.Popen] = []

    def close() -> None:
        for process in started:
            process.kill()
        link.remove(folder)

    def start(spec: Spec, hear: Callable[[dict | None], None]) -> Line:
        spec = spec._replace(folder=str(folder))
        filled = slots(folder / spec.slab, spec)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "frugalrl.runtime.actor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD | NO_ACCELERATOR | {"PYTHONPATH": os.pathsep.join(module_path())},
            process_group=0,  # out of reach of Ctrl-C, also while it still imports
        )
        started.append(process)

        def send(line: bytes) -> None:
            assert process.stdin is not None
            with suppress(BrokenPipeError, ValueError):  # it died; its listener says so
                process.stdin.write(line + b"\n")
                process.stdin.flush()

        def listen() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    hear(json.loads(line))
            hear(None)

        threading.Thread(target=listen, daemon=True).start()
        send(base64.b64encode(pickle.dumps(spec)))
        return Line(
            lambda slot: send(str(slot).encode()),
            lambda message: jax.tree.map(np.array, filled[message["slot"]]),
            partial(_hang_up, process),
            lambda deadline: f"exit code {_end(process, deadline)}",
            process,
        )

    try:
        put = link.mailbox(folder / "mailbox", spec.packet).put
    except BaseException:
        close()
        raise
    return Wire(put, start, close, folder)


def registration(env_id: str) -> Any:
    """Gymnasium's EnvSpec of an environment: an actor process may not have run what registered it."""
    import gymnasium

    return gymnasium.registry.get(env_id.rpartition(":")[2])


def _hang_up(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def _end(process: subprocess.Popen, deadline: float) -> int:
    """Wait for a process until `deadline`, then kill it; returns its exit code."""
    _hang_up(process)
    try:
        return process.wait(timeout=max(0.0, deadline - perf_counter()))
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def arrays_of(packet: Packet, version, shared: Any = ()) -> list[np.ndarray]:
    """A packet as the mailbox carries it: the weights' arrays, the knobs by name, the version, what learners share."""
    knobs = [packet.knobs[name] for name in sorted(packet.knobs)]
    return [np.asarray(x) for x in (*(x for w in packet.weights for x in w), *knobs, version, *jax.tree.leaves(shared))]


def finite(arrays) -> bool:
    """Whether all floats in some NumPy arrays are numbers."""
    return all(np.isfinite(x).all() for x in arrays if jnp.issubdtype(x.dtype, jnp.floating))


def staleness(version, items: Transition) -> dict[str, jax.Array]:
    """Updates from the policies that acted in a message to `version`, when it is learned from: mean and most.

    It is what skipped packets, waiting and the way here cost; that packets are compressed is no part of it.
    """
    late = (version - items.version).astype(jnp.float32)
    return {"staleness": jnp.mean(late), "staleness_max": jnp.max(late)}


def without_lost(packet: list[np.ndarray], last: list[np.ndarray]) -> list[np.ndarray]:
    """A packet [members, ...] in which members with numbers that are not finite are as they were in the last one."""
    lost = [k for k in range(len(packet[0])) if not finite([x[k] for x in packet])]
    kept = np.isin(np.arange(len(packet[0])), lost, invert=True)
    return [np.where(kept.reshape(-1, *(1,) * (x.ndim - 1)), x, y) for x, y in zip(packet, last, strict=True)]


class Learner(NamedTuple):
    """The compiled parts of the Learner. A carry is a Carry, [members, ...] of members, or Members."""

    init: Callable[[Any, Any], Any]  # (key, hyper) -> carry
    add: Callable[[Any, Transition, Any], Any]  # (carry, items, stream) -> carry
    learn: Callable[[Any, Transition, Any, list], tuple[Any, dict]]  # (carry, items, stream, gradient): and update
    cut: Callable[[Any, Any], Any]  # (carry, stream) -> carry, after an actor was lost
    ship: Callable[[Any], tuple[Packet, Any, Any]]  # state -> (packet, version, what actor-learners share)
    probe: Callable[[Any], tuple]  # carry -> (obs, full outputs, knobs, log-ratios) of a sample


def learner(
    agent: Agent, memory: Memory, plan: Plan, compressor: Compressor, full: tuple[Network, Callable] | None = None,
    *, members: bool = False,
) -> Learner:  # fmt: skip
    """Compile nothing yet, but say what is to be compiled.

    `full` is (network, state -> Policy) of what the Monitor compares with what acts, if that is not the agent's own.
    With `members` all is of several: arrays are [members, ...], but messages [unroll, lanes, ...] of all of them.
    """
    network, whole = full or (agent.network, agent.policy)
    crew = agent.crew

    def init(key, hyper) -> Carry:
        key_agent, key_run = jax.random.split(key)
        return Carry(agent.init(key_agent, hyper), memory.init(), key_run, jnp.zeros((), jnp.int32))

    def keep(carry: Carry, items: Transition, stream) -> Carry:
        items = items if crew is None else cut_off(items)
        return carry._replace(memory=memory.add(carry.memory, items, stream), step=carry.step + plan.message)

    def add(carry: Carry, items: Transition, stream) -> Carry:
        carry = keep(carry, items, stream)
        return carry._replace(state=agent.observe(carry.state, items, stream))

    def learn(carry: Carry, items: Transition, stream, leaves: list) -> tuple[Carry, dict]:
        carry = keep(carry, items, stream)
        if plan.gradients:
            kept = carry.memory
            state, metrics = applied(carry.state, items, leaves)
        else:
            key = jax.random.fold_in(carry.key, carry.step)
            if crew is not None:
                turned = crew.turn(carry.state, items, jax.random.fold_in(key, plan.updates + 1))
                carry = carry._replace(state=turned)
            state, kept, metrics = updates(agent, memory, plan.updates, carry.state, carry.memory, key)
        late = staleness(carry.state.version, items)
        return carry._replace(state=agent.observe(state, items, stream), memory=kept), metrics | late

    def applied(state, items: Transition, leaves: list) -> tuple[Any, dict]:
        """The state after a gradient that came with `items`, computed as many updates ago as `staleness` says."""
        grads, metrics = jax.tree.unflatten(jax.tree.structure(shapes(agent, memory, state, items)), leaves)
        return agent.apply(state, grads), metrics

    def ship(state):
        if crew is not None:
            each = jax.vmap(compressor.encode, (Policy(0, None),))(crew.policies(state))  # knobs for each of them, too
            return each, jnp.broadcast_to(state.version, (crew.members,)), ()
        return compressor.encode(agent.policy(state)), state.version, light(state) if plan.gradients else ()

    def probe(carry: Carry):
        def unprepared(rollout: Transition) -> Any:  # targets cost as much as the rest, and nothing here reads them
            shapes = jax.eval_shape(partial(agent.prepare, carry.state), rollout)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        key = jax.random.fold_in(jax.random.fold_in(carry.key, carry.step), 1)
        _, draw = memory.deal(carry.memory, key, unprepared)
        data = draw(carry.memory, key, 0).data
        policy = whole(carry.state)
        first = jax.tree.map(lambda x: x[:PROBED, 0], data)
        outputs = jax.vmap(network.apply, (None, 0, None))(policy.params, first.obs, key)
        log_prob = jax.vmap(lambda output, action: agent.head(output, policy.knobs).log_prob(action))
        return first.obs, outputs, policy.knobs, log_prob(outputs, first.action) - first.log_prob

    def cut(carry: Carry, stream) -> Carry:
        return carry._replace(memory=memory.cut(carry.memory, stream))

    def of_each(part: Callable) -> Callable:
        """A function of (carry, items, ...), of several members."""

        def mapped(carry: Carry, items: Transition, *rest):
            lanes = plan.unroll, seeds_of(carry), plan.num_envs
            items = jax.tree.map(lambda x: x.reshape(*lanes, *x.shape[2:]), items)
            return jax.vmap(part, (0, 1, *(None for _ in rest)))(carry, items, *rest)

        return mapped

    if members:
        init, ship, probe, cut = jax.vmap(init), jax.vmap(ship), jax.vmap(probe), jax.vmap(cut, (0, None))
        add, learn = of_each(add), of_each(learn)
    single = {"xla_cpu_multi_thread_eigen": False}  # for the actors' sake; XLA splits wide products all the same
    jit = partial(jax.jit, compiler_options=single if jax.default_backend() == "cpu" else None)
    return Learner(
        init,
        jit(add, donate_argnums=0),
        jit(learn, donate_argnums=0),
        # Not one program, and nothing donated: the caller can save what it last saw while an actor is started anew, and
        # whatever `cut` leaves alone, frames above all, is not copied.
        cut,
        jit(ship),
        jit(probe),
    )


def in_parts(made: Mapping[int, Learner], pool: Executor) -> Learner:
    """The Learner of Members in parts; `made` is compiled for one of them, for each number of members that one has."""
    init = next(iter(made.values())).init

    def of(part: Any) -> Learner:
        return made[seeds_of(part)]

    def shares(items: Transition, parts: Sequence) -> list[Transition]:
        sizes = [*map(seeds_of, parts)]
        lanes, ends = items.reward.shape[1] // sum(sizes), [*accumulate(sizes, initial=0)]
        return [jax.tree.map(lambda x, a=a, b=b: x[:, a * lanes : b * lanes], items) for a, b in pairwise(ends)]

    def together(parts: list) -> Any:
        return jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))

    def add(carry: Members, items: Transition, stream) -> Members:
        parts = zip(carry.parts, shares(items, carry.parts), strict=True)
        return Members(tuple(of(part).add(part, share, stream) for part, share in parts))

    def learn(carry: Members, items: Transition, stream, gradient: list) -> tuple[Members, dict]:
        def one(part: Carry, share: Transition) -> tuple[Carry, dict]:
            return jax.block_until_ready(of(part).learn(part, share, stream, gradient))

        done = list(pool.map(one, carry.parts, shares(items, carry.parts)))
        return Members(tuple(part for part, _ in done)), together([metrics for _, metrics in done])

    def cut(carry: Members, stream) -> Members:
        return Members(tuple(of(part).cut(part, stream) for part in carry.parts))

    return Learner(
        init, add, learn, cut,
        lambda states: together([of(state).ship(state) for state in states]),
        lambda carry: together([of(part).probe(part) for part in carry.parts]),
    )  # fmt: skip


def taken_over(carry: Members, succession: Succession | None) -> Members:
    """Members, some of which have taken over from others."""
    parts = list(carry.parts)
    succeeded(parts, seeds_of(parts[0]), succession)
    return Members(tuple(parts))


class Tick(NamedTuple):
    """What a run yields after each message."""

    step: int
    carry: Any  # a Carry, or Members; valid until the next tick
    metrics: dict  # of the updates since the last tick: a number, or [members]
    episodes: list  # (return, length, member) of training episodes
    spans: tuple  # ((actor, begin, end), (learner begin, end)): when the two worked
    items: Transition | None = None  # the message
    whole: bool = True  # whether the run can be left here; in lockstep that is between two rounds


Pasts = list[list[repeated.Past]]  # of each actor, of each of its environments


def begun(plan: Plan, lanes: int) -> Pasts:
    """The pasts of actors of `lanes` environments that have none yet; those of a crew never have one."""
    return [[] if plan.crew else [repeated.Past()] * lanes for _ in range(plan.actors)]


def followed(pasts: list[repeated.Past], items: Transition) -> list[repeated.Past]:
    """The pasts of an actor's environments after a message."""
    ended = items.terminated | items.truncated
    return [past.after(items.action[:, k], ended[:, k], items.next_obs[-1, k]) for k, past in enumerate(pasts)]


def heard(metrics: dict[str, Any]) -> None:
    """Wait for a generation's updates. They may take minutes, and inside of XLA no second Ctrl-C would be heard."""
    while not all(x.is_ready() for x in metrics.values()):
        sleep(0.01)


def train(
    parts: Learner, plan: Plan, spec: Spec, carry: Any, *, steps: int, seed: int,
    report: Callable[[str], None] = lambda text: None, timer: Timer | None = None, fleets: list | None = None,
    turns: Collection[int] = (), between: Callable[[int, Any], Any] = lambda step, carry: carry, losses: bool = False,
    wired: Callable[[Spec, Plan], Wire] | None = None, pasts: Pasts | None = None,
) -> Iterator[Tick]:  # fmt: skip
    """Run until `steps` environment steps have been added, yielding after each message; close it to stop early.

    It yields too after each second without a message, so that the caller can look whether to stop. `carry` may come
    from a checkpoint. `timer` collects the Learner's seconds by kind, `fleets` receives the Fleet, so that the caller
    can read what the actors spent. Raises Unfit instead of sending a packet that is not finite, and when the engine of
    a compressed mode fails; where `losses` are allowed, a member that is not finite acts as it last could
    instead, or with zeros.

    Actors are processes of this machine, unless `wired` says otherwise.

    At the steps `turns` the carry becomes what `between` makes of (step, carry), after it was yielded and before
    anything else is done with it: a checkpoint is of before.

    In lockstep `pasts` are where the actors begin, from the beginning if there are none, and are kept up to date.
    """

    def shipped() -> list[np.ndarray]:
        nonlocal last
        packet = arrays_of(*jax.device_get(parts.ship(carry.state)))
        if losses and not finite(packet):
            before = last or [np.zeros_like(x) for x in packet]
            packet = without_lost(packet, before) if spec.members else before
        if not finite(packet):
            raise Unfit(f"{spec.mode} packets are no longer finite", carry)
        last = packet
        return packet

    timer = timer or Timer()
    step, last = int(carry.step), []
    if step >= steps:
        yield Tick(step, carry, {}, [], ())
        return
    if step in turns:
        carry = between(step, carry)
    if step and not plan.lockstep:  # the episodes that were under way when it was saved are lost
        for stream in range(plan.actors):
            carry = parts.cut(carry, stream)
    arrived: set[int] = set()  # actors of which a message was added since the last update
    brought: dict[int, Message] = {}  # of the round under way
    known = begun(plan, spec.lanes) if pasts is None else pasts

    def past(i: int) -> Past:
        return Past(step // plan.round, tuple(known[i]))

    fleet = Fleet(spec, plan, (seed, step), shipped(), report, wired, past if plan.lockstep else None)
    if fleets is not None:
        fleets.append(fleet)
    timer.lap("start")
    try:
        while step < steps:
            message = fleet.receive(timeout=1.0)
            timer.lap("waiting")
            if message is None:
                yield Tick(step, carry, {}, [], ())
                continue
            if isinstance(message, int):
                if plan.lockstep:
                    brought.pop(message, None)  # it fills the same unroll once more
                else:
                    carry = parts.cut(carry, message)
                continue
            brought[message.actor] = message
            if plan.lockstep and len(brought) < plan.actors:
                continue
            batch = [brought.pop(i) for i in sorted(brought)]
            batch = [generation(batch)] if plan.crew else batch
            for message in batch:
                began, metrics, whole = perf_counter(), {}, message is batch[-1]
                arrived.add(message.actor)
                learns = step >= plan.warmup and (len(arrived) == plan.actors or not plan.waits)
                step += plan.message
                if plan.lockstep:
                    known[message.actor] = followed(known[message.actor], message.items)
                if learns:
                    arrived.clear()
                    carry, metrics = parts.learn(carry, message.items, message.actor, message.gradient)
                    if plan.crew:
                        heard(metrics)
                    metrics = {name: np.asarray(x) for name, x in metrics.items()}  # waits for the updates to be done
                    timer.lap("learner")
                else:
                    carry = parts.add(carry, message.items, message.actor)
                    timer.lap("transport")
                if whole and learns:
                    packet = shipped()
                    if step not in turns:
                        fleet.wire.put(packet)
                    timer.lap("compressor")
                goes_on = whole and (learns or not plan.waits)
                if goes_on and step not in turns:
                    fleet.release()
                spans = ((message.actor, *message.span), (began, perf_counter()))
                yield Tick(step, carry, metrics, message.episodes, spans, message.items, whole)
                timer.lap("other")
                if whole and step in turns and step < steps:
                    carry = between(step, carry)
                    fleet.wire.put(shipped())
                    if goes_on:
                        fleet.release()
                    timer.lap("compressor")
    except EngineFailed as error:
        raise Unfit(f"the engine failed: {error}", carry) from error
    finally:
        for i in range(plan.actors if step < steps else 0):
            fleet.lose(i)
        fleet.close()
