"""An actor process: steps Gymnasium environments with a (compressed) policy and hands unrolls to the Learner.

It is started as `python -m frugalrl.runtime.actor` rather than through multiprocessing, so that the caller's script is
never imported again. Its standard input brings the Spec and then the numbers of free slots; its standard output carries
one JSON line for each filled slot. Arrays go through shared slabs. It does not import JAX, unless its engine is JAX or
it is an actor-learner, which computes the gradient of each unroll too.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from ..distributions import draw
from ..envs import atari, repeated
from ..envs.make import EnvOptions, find, lesson, make, namespace, options_for
from ..errors import EngineFailed, one_line
from ..types import Box, Linear, QuantLinear, Ranges, Session, Transition
from ..xla import keep_memory
from .link import Field, Fields, mailbox, size, slab, views

# How often an actor looks for a packet, unless it is told. Taking one, the comparison included, may cost this share of
# its time: even a policy that changes at every update is followed for next to nothing. Time in which it would have had
# to wait anyway does not count: where the Learner is the slower one, wide networks are followed all the same.
REFRESH_SHARE = 0.02
# Nats between a packet and the one before it, on the observations at hand, that are aimed at: far less than changes
# what is learned (a ratio of probabilities is then off by some 4 %, where PPO clips at 20 %).
DRIFT = 1e-3
# An actor never looks more rarely than this many times what REFRESH_SHARE allows: there is an eighth of that cost left
# to save, and a policy that moves all at once is noticed no later.
STRETCH = 8.0
# A divergence is the mean over about so many packets: of values, one or two observations mostly keep their best action
# although the policy has changed, and rarely tell it by more than a nat at once.
LOOKS = 8
MOVED = 1.0  # nats: what a policy is taken to move at first, and the most that one packet counts for
REFRESH = ("pull", "decode", "load", "compare")  # kinds of work of taking a packet, in an actor's Timer


class Past(NamedTuple):
    """What an actor in lockstep has been through: all that another one needs to go on as it would."""

    unrolls: int  # messages so far
    lanes: tuple[repeated.Past, ...]  # none where each unroll begins with new episodes


class Spec(NamedTuple):
    """All that an actor needs to know; it must pickle without JAX."""

    env_id: str
    env_options: EnvOptions | None  # None: those of its family
    num_envs: int  # of each member
    unroll: int
    seed: tuple[int, ...]
    folder: str  # of the slabs
    slab: str  # name of this actor's slab
    slots: int
    action: Field  # of one action
    obs: Box
    layers: tuple
    engine: str  # module that holds ENGINE
    mode: str
    head: Callable
    packet: Fields  # of the mailbox: the weights, then the knobs, then the version
    kinds: tuple[str, ...]  # of the records in the packet's weights, in order: the names in KINDS
    knobs: tuple[str, ...]
    steady: bool = False  # acts a whole unroll with the packet that is the newest at its beginning, and skips none then
    pull_period: int | None = None  # steps of each environment between two looks for a packet; None: see `Pace`
    registration: Any = None  # Gymnasium's EnvSpec: the environment may be registered in the Learner's process only
    number: int = 0  # of this actor
    learner: Callable | None = None  # of an actor-learner: gives its `actor_learner.Parts`
    gradient: Fields = ()  # of an actor-learner: the leaves of (gradient, metrics)
    # Agents that act side by side, in lanes of their own; a packet then has them all, [members, ...], or where each
    # unroll begins with new episodes those of all actors, [actors * members, ...].
    members: int = 0
    past: Past | None = None  # in lockstep: all that this actor does follows from it, its seed and the packets

    @property
    def lanes(self) -> int:
        """Environments of this actor: `num_envs` of each member, one member after the other."""
        return max(self.members, 1) * self.num_envs

    @property
    def anew(self) -> bool:
        """Whether each unroll begins with new episodes: this actor's is a share of a crew."""
        return self.past is not None and not self.past.lanes


KINDS: dict[str, type] = {kind.__name__: kind for kind in (Linear, QuantLinear, Ranges)}


def unroll_fields(spec: Spec) -> Fields:
    """The arrays of one unroll: a Transition of [unroll, lanes, ...]."""
    lead = (spec.unroll, spec.lanes)
    obs, number = Field((*lead, *spec.obs.shape), spec.obs.dtype), Field(lead, "float32")
    action, flag = Field((*lead, *spec.action.shape), spec.action.dtype), Field(lead, "bool")
    return tuple(Transition(obs, action, number, flag, flag, obs, number, Field(lead, "int32")))


class Slot(NamedTuple):
    """One message: an unroll and, of an actor-learner, its gradient and metrics."""

    items: Transition
    gradient: list[np.ndarray]


def slab_size(spec: Spec) -> int:
    """Bytes of the slab of one actor."""
    return spec.slots * size((*unroll_fields(spec), *spec.gradient))


def slots(place: Path | np.ndarray, spec: Spec) -> list[Slot]:
    """The slots of the slab at `place`, a path or uint8 [slab_size(spec)]."""
    fields, unroll = (*unroll_fields(spec), *spec.gradient), len(Transition._fields)
    buffer, each = slab(place, slab_size(spec)) if isinstance(place, Path) else place, size(fields)
    found = (views(buffer[i * each : (i + 1) * each], fields) for i in range(spec.slots))
    return [Slot(Transition(*arrays[:unroll]), arrays[unroll:]) for arrays in found]


class Mail(NamedTuple):
    """What a mailbox holds."""

    weights: tuple
    knobs: dict
    version: Any  # int; of members, int32 [members]
    shared: list[np.ndarray]  # for actor-learners: the leaves of the Learner's state, the optimiser's left out


def unflatten(arrays: list[np.ndarray], kinds: tuple[str, ...], knobs: tuple[str, ...]) -> Mail:
    """The arrays of a mailbox, named."""
    rest, weights = list(arrays), []
    for kind in kinds:
        record = KINDS[kind]
        n = len(record._fields)
        weights.append(record(*rest[:n]))
        rest = rest[n:]
    named = {name: x[()] for name, x in zip(knobs, rest, strict=False)}
    return Mail(tuple(weights), named, rest[len(knobs)][()], rest[len(knobs) + 1 :])


def across(knob: Any) -> Any:
    """A knob of several members, [members, ...], in a shape that goes with their outputs [members, batch, n]."""
    return np.reshape(knob, (len(knob), 1, *(np.shape(knob)[1:] or (1,))))


def vector_env(
    env: Any, num_envs: int, options: EnvOptions | None, seed: tuple[int, ...] = (), past: Past | None = None
):
    """A vector of training environments, each reset within the step that ends its episode.

    Atari's games are stepped by native code where that can do what the options ask for, all others by Gymnasium's
    SyncVectorEnv. `env` is an id or an EnvSpec. With a `past` the environments are `Repeated` ones, with this `seed`.
    """
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    spec = find(env) if isinstance(env, str) else env
    if namespace(spec.id) == "ALE" and past is None:  # one alone cannot be begun anew in there
        native = atari.vector(spec, num_envs, options_for(spec.id) if options is None else options)
        if native is not None:
            return native
    one = partial(make, spec, options, training=True)
    makers: list[Callable] = [one] * num_envs
    if past is not None:
        makers = [partial(repeated.Repeated, one, seed, k, lane) for k, lane in enumerate(past.lanes)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def session(engine: str, layers: tuple, obs: Box, batch: int, mode: str, members: int = 0) -> Session:
    """A session of the engine in module `engine`. All that goes wrong in it is raised as EngineFailed.

    Thus the Learner can tell an engine that fails from an environment that does. With `members` it runs as many
    networks, each on `batch` observations of its own: weights are [members, ...], and obs [members * batch, ...] become
    outputs [members, batch, n].
    """

    def guarded(part: Callable) -> Callable:
        def call(*arguments):
            try:
                return part(*arguments)
            except Exception as error:  # native code may raise anything
                raise EngineFailed(one_line(error)) from error

        return call

    build = guarded(lambda: importlib.import_module(engine).ENGINE.build(layers, obs, batch, mode))
    made = side_by_side([build() for _ in range(members)], batch) if members else build()
    return Session(guarded(made.load), guarded(made.run))


def side_by_side(sessions: list[Session], batch: int) -> Session:
    """Sessions of one network as one of several, as `session` has it."""

    def load(weights: tuple) -> None:
        for k, one in enumerate(sessions):
            one.load(tuple(type(layer)(*(x[k] for x in layer)) for layer in weights))

    def run(obs: Any) -> Any:
        return np.stack([one.run(obs[k * batch : (k + 1) * batch]) for k, one in enumerate(sessions)])

    return Session(load, run)


class Timer:
    """Seconds spent in each kind of work since the last `take`, and the moments the last stretch began and ended."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.mark = perf_counter()

    def lap(self, kind: str) -> None:
        now = perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self.mark
        self.mark = now

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken


class Pace(NamedTuple):
    """How an actor follows a policy."""

    drift: float = MOVED  # nats from one packet to the next, lately
    stretch: float = 1.0  # how many times longer than REFRESH_SHARE asks for it waits before it looks again

    def after(self, kl: float) -> Pace:
        """The pace after a packet that was found to be `kl` nats, which may not be finite, from the one before it.

        The divergence of policies that are near each other grows with the square of their distance, so the square root
        scales the wait to where it would be DRIFT.
        """
        kl = max(kl, 1e-9) if kl < MOVED else MOVED  # float32 tells no smaller one, and a drift of 0 has no square root
        drift = self.drift + (kl - self.drift) / LOOKS
        return Pace(drift, min(max(self.stretch * (DRIFT / drift) ** 0.5, 1.0), STRETCH))


class Newest(Protocol):
    """Where an actor finds packets, as `link.Mailbox` has it."""

    def newest(self) -> int: ...

    def get(self) -> tuple[int, list[np.ndarray]]: ...


class Worker:
    """The state of an actor: environments, policy session, and the episodes under way.

    Packets come and unrolls go through the slabs that `spec` names, unless it is given others.
    """

    def __init__(self, spec: Spec, box: Newest | None = None, filled: list[Slot] | None = None):
        self.spec, self.timer, self.refreshes = spec, Timer(), 0
        self.rng = np.random.default_rng(spec.seed)
        self.options = options_for(spec.env_id) if spec.env_options is None else spec.env_options
        past = None if spec.anew else spec.past
        self.envs = vector_env(spec.registration or spec.env_id, spec.lanes, self.options, spec.seed, past)
        self.session = session(spec.engine, spec.layers, spec.obs, spec.num_envs, spec.mode, spec.members)
        self.box: Newest = box or mailbox(Path(spec.folder, "mailbox"), spec.packet)
        self.slots = filled or slots(Path(spec.folder, spec.slab), spec)
        self.learning = _learning(spec, self.slots[0].items) if spec.learner else None
        self.obs = self.envs.reset(seed=int(self.rng.integers(2**31)))[0].astype(spec.obs.dtype)
        # of the episodes under way; rewards as they come, clipped or not in what is learned
        self.ret, self.length = np.zeros(spec.lanes), np.zeros(spec.lanes, np.int64)
        self.count, self.knobs, self.version, self.shared = 0, {}, np.int32(0), []
        self.unrolls = self.steps = 0  # so many, and of each environment
        if spec.past is not None:
            self.unrolls = spec.past.unrolls
        if past is not None:
            self.ret[:], self.length[:] = repeated.returned(cast(Any, self.envs).envs, self.obs)
        self.pace, self.cost, self.look_after = Pace(), 0.0, -np.inf
        self.idle = 0.0  # seconds that it has waited for a slot since it took the last packet

    def due(self, t: int) -> bool:
        """Whether to look for a packet before step `t` of an unroll.

        A steady actor looks before the first, another after every `pull_period` steps, else after the time that the
        last packet was found to be good for; and before an unroll for which it had to wait longer than a packet takes:
        then the Learner is behind, and nobody waits for the actor.
        """
        if self.spec.steady:
            return t == 0
        if self.spec.pull_period:
            return self.steps % self.spec.pull_period == 0
        idle = t == 0 and self.idle > self.cost and self.pace.drift > DRIFT
        return idle or self.timer.mark > self.look_after

    def act(self, t: int) -> Any:
        """What to act with at step `t` of an unroll: what the newest packet says, if it is time to look for one."""
        before = self.refresh() if self.due(t) and self.box.newest() != self.count else None
        outputs = self.session.run(self.obs)
        self.timer.lap("inference")
        now = self.spec.head(outputs, self.knobs)
        if before is not None:
            self.compare(before, now)
        return now

    def refresh(self) -> Any:
        """Take the newest packet; returns the distribution of the one before it, if they are to be compared."""
        start, before = self.timer.mark, None
        if self.count and not (self.spec.steady or self.spec.pull_period):
            before = self.spec.head(self.session.run(self.obs), self.knobs)
            self.timer.lap("compare")
        self.count, arrays = self.box.get()
        if self.spec.anew:
            first = self.spec.number * self.spec.members
            arrays = [x[first : first + self.spec.members] for x in arrays]
        self.timer.lap("pull")
        weights, self.knobs, self.version, self.shared = unflatten(arrays, self.spec.kinds, self.spec.knobs)
        if self.learning and self.knobs:
            self.knobs = self.learning.knobs(self.shared)
        if self.spec.members:
            self.knobs = {name: across(knob) for name, knob in self.knobs.items()}
            self.version = np.repeat(self.version, self.spec.num_envs)
        self.timer.lap("decode")
        self.session.load(weights)
        self.timer.lap("load")
        self.refreshes += 1
        self.idle = 0.0
        self.cost = self.timer.mark - start
        self.look_after = self.timer.mark + self.cost / REFRESH_SHARE
        return before

    def compare(self, before: Any, now: Any) -> None:
        """Decide when to look again, from what the last two packets say of the same observations."""
        start = self.timer.mark
        self.pace = self.pace.after(float(np.mean(before.kl(now))))
        self.timer.lap("compare")
        self.cost += self.timer.mark - start
        self.look_after = self.timer.mark + self.pace.stretch * self.cost / REFRESH_SHARE

    def unroll(self, slot: Transition) -> list[tuple[float, int, int]]:
        """Fill a slot with the next steps of all environments.

        Returns (return, length, member) of the episodes that ended.
        """
        ended, lap, lanes = [], self.timer.lap, slot.action[0].shape
        if self.spec.past is not None:
            self.rng = repeated.draws(self.spec.seed, self.unrolls)
        if self.spec.anew:
            self.obs = self.envs.reset(seed=int(self.rng.integers(2**31)))[0].astype(self.spec.obs.dtype)
            self.ret[:], self.length[:] = 0, 0
            lap("environment")
        self.unrolls += 1
        for t in range(self.spec.unroll):
            dist = self.act(t)
            action = dist.sample(draw(dist, self.rng))
            # the environment gets what is told of it, bit for bit: what was learned from can be played again
            log_prob, action = dist.log_prob(action), action.reshape(lanes).astype(slot.action.dtype, copy=False)
            slot.obs[t], slot.action[t], slot.version[t] = self.obs, action, self.version
            slot.log_prob[t] = log_prob.reshape(lanes[:1])
            lap("other")
            obs, reward, terminated, truncated, info = self.envs.step(action)
            lap("environment")
            self.steps += 1
            self.obs = obs.astype(self.spec.obs.dtype, copy=False)
            slot.reward[t], slot.terminated[t], slot.truncated[t] = lesson(self.options, reward, terminated, truncated)
            slot.next_obs[t] = self.obs
            self.ret += reward
            self.length += 1
            done = terminated | truncated
            if done.any():
                slot.next_obs[t, done] = np.stack(info["final_obs"][done])
                member = np.flatnonzero(done) // self.spec.num_envs
                ended += zip(self.ret[done].tolist(), self.length[done].tolist(), member.tolist(), strict=True)
                self.ret[done], self.length[done] = 0, 0
            lap("other")
        return ended

    def fill(self, slot: Slot) -> list[tuple[float, int, int]]:
        """Fill a slot: an unroll and, of an actor-learner, its gradient at the weights that acted."""
        ended = self.unroll(slot.items)
        if self.learning:
            seed = np.uint32(self.rng.integers(2**32))
            for place, value in zip(slot.gradient, self.learning.gradient(self.shared, slot.items, seed), strict=True):
                place[...] = value
            self.timer.lap("learner")
        return ended

    def answer(self, number: int) -> dict[str, Any]:
        """Fill the slot of that number; what the Learner is told of it."""
        before = self.timer.mark
        self.timer.lap("waiting")
        began = self.timer.mark
        self.idle += began - before
        episodes = self.fill(self.slots[number])
        span = (began, perf_counter())
        refreshes, self.refreshes = self.refreshes, 0
        seconds = self.timer.take()
        return {"slot": number, "episodes": episodes, "seconds": seconds, "span": span, "refreshes": refreshes}


def complaint(error: Exception) -> dict[str, Any]:
    """The last words of an actor."""
    about = {"error": one_line(error), "place": _place(error), "details": traceback.format_exc()}
    return about | {"engine": isinstance(error, EngineFailed)}


def _learning(spec: Spec, items: Transition):
    """What an actor-learner does beside acting. Only here is JAX imported."""
    from .actor_learner import learning

    assert spec.learner is not None
    return learning(spec.learner(), spec.number, items)


def serve(commands, replies) -> None:
    """Fill slots as their numbers come in, until the input closes."""

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    try:
        first = commands.readline()
        if not first.endswith(b"\n"):
            return  # the Learner ended before it had begun
        worker = Worker(pickle.loads(base64.b64decode(first)))
        worker.timer.lap("start")
        for line in commands:
            reply(worker.answer(int(line)))
            worker.timer.lap("transport")
        worker.envs.close()
    except BrokenPipeError:
        pass
    except Exception as error:
        with suppress(BrokenPipeError):
            reply(complaint(error))


def _place(error: Exception) -> str:
    """File, line and function where an error was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def main() -> None:
    # Ctrl-C and SIGTERM may reach the whole family; the Learner decides when to stop, and then closes the input.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # Gymnasium's have been shown once, by the Learner's process
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever an environment prints must not mix with the replies
    keep_memory()
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
