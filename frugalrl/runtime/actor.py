"""An actor process: steps Gymnasium environments with a (compressed) policy and hands unrolls to the Learner.

It is started as `python -m frugalrl.runtime.actor` rather than through multiprocessing, so that the caller's script is
never imported again. Its standard input brings the Spec and then the numbers of free slots; its standard output carries
one JSON line for each filled slot. Arrays go through shared slabs. It does not import JAX unless its engine is JAX.
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
from typing import Any, NamedTuple

import numpy as np

from ..distributions import draw
from ..envs import atari
from ..envs.make import EnvOptions, find, make, namespace, options_for
from ..errors import EngineFailed, one_line
from ..types import Box, Linear, QuantLinear, Session, Transition
from .link import Field, Fields, mailbox, size, slab, views

REFRESH_SHARE = 0.02  # of an actor's time; a packet is skipped while taking it would cost more


class Spec(NamedTuple):
    """All that an actor needs to know; it must pickle without JAX."""

    env_id: str
    env_options: EnvOptions | None  # None: those of its family
    num_envs: int
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
    kinds: tuple[str, ...]  # for each layer's weights: "Linear" or "QuantLinear"
    knobs: tuple[str, ...]
    waits: bool = False  # for the packet of the last update: then none is skipped
    registration: Any = None  # Gymnasium's EnvSpec: the environment may be registered in the Learner's process only


KINDS: dict[str, type] = {"Linear": Linear, "QuantLinear": QuantLinear}


def unroll_fields(spec: Spec) -> Fields:
    """The arrays of one slot: a Transition of [unroll, num_envs, ...]."""
    lead = (spec.unroll, spec.num_envs)
    obs, number = Field((*lead, *spec.obs.shape), spec.obs.dtype), Field(lead, "float32")
    action, flag = Field((*lead, *spec.action.shape), spec.action.dtype), Field(lead, "bool")
    return tuple(Transition(obs, action, number, flag, flag, obs, number, Field(lead, "int32")))


def unflatten(arrays: list[np.ndarray], kinds: tuple[str, ...], knobs: tuple[str, ...]) -> tuple[tuple, dict, int]:
    """The arrays of a mailbox as (weights, knobs, version)."""
    rest, weights = list(arrays), []
    for kind in kinds:
        record = KINDS[kind]
        n = len(record._fields)
        weights.append(record(*rest[:n]))
        rest = rest[n:]
    return tuple(weights), {name: x[()] for name, x in zip(knobs, rest, strict=False)}, int(rest[-1])


def vector_env(env: Any, num_envs: int, options: EnvOptions | None):
    """A vector of training environments, each reset within the step that ends its episode.

    Atari's games are stepped by native code where that can do what the options ask for, all others by Gymnasium's
    SyncVectorEnv. `env` is an id or an EnvSpec.
    """
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    spec = find(env) if isinstance(env, str) else env
    if namespace(spec.id) == "ALE":
        native = atari.vector(spec, num_envs, options_for(spec.id) if options is None else options)
        if native is not None:
            return native
    one = partial(make, spec, options, training=True)
    return SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def session(engine: str, layers: tuple, obs: Box, batch: int, mode: str) -> Session:
    """A session of the engine in module `engine`. All that goes wrong in it is raised as EngineFailed.

    Thus the Learner can tell an engine that fails from an environment that does.
    """

    def guarded(part: Callable) -> Callable:
        def call(*arguments):
            try:
                return part(*arguments)
            except Exception as error:  # native code may raise anything
                raise EngineFailed(one_line(error)) from error

        return call

    made = guarded(lambda: importlib.import_module(engine).ENGINE.build(layers, obs, batch, mode))()
    return Session(guarded(made.load), guarded(made.run))


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


class Worker:
    """The state of an actor: environments, policy session, and the episodes under way."""

    def __init__(self, spec: Spec):
        self.spec, self.timer, self.refreshes = spec, Timer(), 0
        self.rng = np.random.default_rng(spec.seed)
        self.envs = vector_env(spec.registration or spec.env_id, spec.num_envs, spec.env_options)
        self.session = session(spec.engine, spec.layers, spec.obs, spec.num_envs, spec.mode)
        self.box = mailbox(Path(spec.folder, "mailbox"), spec.packet)
        layout = unroll_fields(spec)
        buffer, each = slab(Path(spec.folder, spec.slab), spec.slots * size(layout)), size(layout)
        self.slots = [Transition(*views(buffer[i * each : (i + 1) * each], layout)) for i in range(spec.slots)]
        self.obs = self.envs.reset(seed=int(self.rng.integers(2**31)))[0].astype(spec.obs.dtype)
        self.ret, self.length = np.zeros(spec.num_envs), np.zeros(spec.num_envs, np.int64)
        self.count, self.knobs, self.version = 0, {}, 0
        self.refresh_cost, self.refreshed = 0.0, -np.inf

    def refresh(self) -> None:
        """Take the newest packet, unless that would cost more than its share of the time since the last one.

        An actor that waits for it takes every one.
        """
        start = self.timer.mark
        early = (start - self.refreshed) * REFRESH_SHARE < self.refresh_cost
        if self.box.newest() == self.count or (early and not self.spec.waits):
            return
        self.count, arrays = self.box.get()
        weights, self.knobs, self.version = unflatten(arrays, self.spec.kinds, self.spec.knobs)
        self.session.load(weights)
        self.timer.lap("refresh")
        self.refreshed = self.timer.mark
        self.refresh_cost = self.refreshed - start
        self.refreshes += 1

    def unroll(self, slot: Transition) -> list[tuple[float, int]]:
        """Fill a slot with the next steps of all environments; returns (return, length) of the episodes that ended."""
        ended, lap = [], self.timer.lap
        for t in range(self.spec.unroll):
            self.refresh()
            outputs = self.session.run(self.obs)
            lap("inference")
            dist = self.spec.head(outputs, self.knobs)
            action = dist.sample(draw(dist, self.rng))
            slot.obs[t], slot.action[t], slot.log_prob[t], slot.version[t] = (
                self.obs,
                action,
                dist.log_prob(action),
                self.version,
            )
            lap("other")
            obs, reward, terminated, truncated, info = self.envs.step(action)
            lap("environment")
            self.obs = obs.astype(self.spec.obs.dtype, copy=False)
            slot.reward[t], slot.terminated[t], slot.truncated[t] = reward, terminated, truncated
            slot.next_obs[t] = self.obs
            self.ret += reward
            self.length += 1
            done = terminated | truncated
            if done.any():
                slot.next_obs[t, done] = np.stack(info["final_obs"][done])
                whole = info["final_info"].get("episode")  # where rewards are clipped: the return without
                ret = self.ret[done] if whole is None else whole["r"][done]
                ended += zip(ret.tolist(), self.length[done].tolist(), strict=True)
                self.ret[done], self.length[done] = 0, 0
            lap("other")
        return ended


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
            worker.timer.lap("waiting")
            began = perf_counter()
            episodes = worker.unroll(worker.slots[int(line)])
            span = (began, perf_counter())
            refreshes, worker.refreshes = worker.refreshes, 0
            seconds = worker.timer.take()
            reply({"slot": int(line), "episodes": episodes, "seconds": seconds, "span": span, "refreshes": refreshes})
            worker.timer.lap("transport")
        worker.envs.close()
    except BrokenPipeError:
        pass
    except Exception as error:
        with suppress(BrokenPipeError):
            about = {"error": one_line(error), "place": _place(error), "details": traceback.format_exc()}
            reply(about | {"engine": isinstance(error, EngineFailed)})


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
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
