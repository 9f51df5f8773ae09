"""What the actors of a run act with, what that costs, and what its Monitor sees: of all its seeds.

Here the modes of `--actors` become agents and states, and `auto` becomes a choice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

import jax
import numpy as np

from . import rng
from .errors import Diverged, EngineFailed, RunFailed
from .levers.compress import calibrate, engines, modes, shrink, students
from .levers.compress.modes import Mode, Rung
from .levers.compress.prune import narrowed
from .monitor import quality
from .monitor.receipt import Saving, given_up
from .networks import Layers, network
from .policy import Card
from .runtime import actor, actors
from .runtime.compiled import seeds_of
from .types import Agent, Box, Session, Transition, best_policy

FULL = Mode(1.0, "fp32")
PROBE_SECONDS = 1.0  # at least, between two comparisons of the full and the compressed policy
PROBE_SHARE = 0.02  # of the time, at most, that goes to them
STATIC = "int8-static"


def acting(agent: Agent, mode: Mode) -> Agent:
    """The agent whose actors act in `mode`."""
    if mode.share < 1:
        agent = (students.taught if mode.lessons else students.cut)(agent, mode.share)
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
    student, wanted = isinstance(state, students.Taught), mode.share < 1 and mode.lessons
    if (student, static) == (wanted, mode.format == STATIC):
        return carry
    if student != wanted:
        state = students.teacher(state) if student else students.enrolled(agent, mode.share, state)
    if mode.format == STATIC:
        state = calibrate.begun(acting(agent, mode._replace(format="int8")), state, rng.key(0))
    return carry._replace(state=state)


def items_of(spec: actor.Spec) -> Transition:
    """The shapes of an unroll."""
    return Transition(*(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in actor.unroll_fields(spec)))


def host_weights(agent: Agent, state) -> tuple:
    """Those of the full policy."""
    return jax.device_get(best_policy(agent, own(state)).params)


def weights_of_each(agent: Agent, states) -> list:
    """Those of the full policies of states [members, ...]."""
    params = jax.device_get(jax.vmap(partial(best_policy, agent))(own(states)).params)
    return [jax.tree.map(lambda x, k=k: x[k], params) for k in range(seeds_of(params))]


def _of_so_many(carry: Any, width: int) -> Any:
    """The shapes of a carry [members, ...] of `width` members."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((width, *x.shape[1:]), x.dtype), carry)


class Ledger:
    """Keeps what actors act with, what this runtime spends and what its Monitor sees, over all seeds of a run."""

    chosen: Rung
    why: str  # it was
    session: Session  # of the Monitor

    def __init__(
        self, agent: Agent, card: Card, plan: actors.Plan, report: Callable[[str], None],
        compiler: dict[str, Any] | None = None,
    ):  # fmt: skip
        """In lockstep nothing is chosen by the clock: not the engine, and not when the policies are compared.

        What members of a crew act with is never compared: it is what they have.
        """
        self.agent, self.card, self.plan, self.report = agent, card, plan, report
        self.compiler = compiler or None  # its options for the Learner's programs
        self.timings: list[Rung] = []
        self.full: Rung | None = None  # fp32 and the whole network, in its fastest engine
        self.watch: modes.Watch | None = None  # where the mode is `auto`
        self.seed, self.switches = 0, []  # of the phase; what `auto` changed, and why
        self.compressed_returns: list[float] = []  # of each seed, greedy
        self.layers = card.layers  # of the learner's policy; fewer units of them after it was pruned
        self.obs: deque = deque()  # of the newest messages, if it will be
        self.fallback: dict[str, Any] | None = None  # what was asked for and given up, and why
        self.timer, self.fleets = actor.Timer(), []
        self.compile_seconds, self.packet_bytes, self.weight_bytes, self.first_update = 0.0, 0, 0, None
        self.look_after, self.seen, self.sums, self.looks, self.looked = 0.0, {}, {}, 0, False
        self.spent: dict[str, float] = {}  # by the Learner before the newest actors began
        self.members, self.recent = 1, [deque(maxlen=100)]  # those that train side by side; of each, newest returns
        self.stale, self.learned, self.stalest = 0.0, 0, 0.0  # staleness of messages, and of how many

    def choose(self, name: str, among: Iterable[str] | None = None, why: str = "") -> None:
        """Take the fastest engine of the mode `name`, or of fp32 if all engines fail in that.

        `why` ends the line that reports the choice. Raises ValueError if no engine is left.
        """
        failures: list[str] = []
        wanted = self._ladder() if name == "auto" else [modes.mode(name)]
        timed = dict.fromkeys([FULL, *wanted])  # fp32 too, to tell what is saved
        found: list[Rung] = []
        for width in sorted({mode._replace(format="") for mode in timed}):
            formats = [mode.format for mode in timed if mode._replace(format="") == width]
            found += self._measure(width, formats, among, failures)
        self.timings += found
        self.full = next((rung for rung in found if rung.mode == FULL), None)
        measured = [rung for rung in found if rung.mode in wanted]
        if name not in ("fp32", "auto") and not measured:
            reason = "; ".join(failures)
            self.fallback = {"mode": name, "engine": None, "seed": None, "step": None, "reason": reason}
            return self.choose("fp32", among, f"; {given_up(self.fallback)}")
        for line in failures:
            self.report(line)
        if not measured:
            raise ValueError(f"no engine can run {name} here")
        self.watch = modes.Watch(modes.ladder(measured)) if name == "auto" else None
        taken = self.watch.now if self.watch else min(measured, key=lambda rung: rung.cost)
        self.why = modes.reason(taken, measured, asked=self.watch is None) + why
        if self.plan.lockstep:
            self.why = f"{taken.mode.name} was asked for, and lockstep takes the first engine that runs it{why}"
        self._take(taken, why)

    def _ladder(self) -> list[Mode]:
        """What `auto` chooses from: actor-learners need the network they learn with, and students have no noise."""
        found = [modes.mode(name) for name in modes.LADDER]
        return [mode for mode in found if mode.share == 1 or not (self.plan.gradients or self.agent.settled)]

    def _measure(self, width: Mode, formats: list[str], among: Iterable[str] | None, failures: list[str]) -> list[Rung]:
        layers = narrowed(self.layers, width.share)
        found = engines.measure(
            layers, self.card.obs, self.plan.num_envs, formats, among,
            seconds=0.0 if self.plan.lockstep else 0.2, report=failures.append,
        )  # fmt: skip
        best, first = {}, engines.ACTOR_ENGINES.index
        for timing in sorted(found, key=lambda t: -first(t.engine) if self.plan.lockstep else -t.cost):
            mode = width._replace(format=timing.mode)
            best[mode] = Rung(mode, timing.engine, timing.microseconds, timing.cost)
        return list(best.values())

    def _take(self, rung: Rung, why: str = "") -> None:
        self.chosen = rung
        speed = f"{rung.microseconds:.1f} us a call of {self.plan.num_envs}"
        self.report(f"actors: {rung.mode.name} on {rung.engine}, {speed}{why}")

    def savings(self) -> list[Saving]:
        """What the newest actors act with, beside fp32 and the whole network."""
        saved = []
        whole, left = (parameters(layers, self.card.obs) for layers in (self.card.layers, self.layers))
        if left < whole:
            saved.append(Saving("--prune", "parameters of the policy", "parameters", whole, left))
        if self.chosen.mode != FULL:
            lever = f"--actors {self.chosen.mode.name}"
            if self.weight_bytes:
                of_all = 4 * left * self.members
                saved.append(Saving(lever, "weights sent to an actor", "bytes", of_all, self.weight_bytes))
            if self.full is not None:
                what = f"a call of the policy ({self.chosen.engine}; fp32 {self.full.engine})"
                saved.append(Saving(lever, what, "microseconds", self.full.microseconds, self.chosen.microseconds))
        return saved

    def begin(self, seed: int, agent: Agent, members: int = 1) -> None:
        """A seed begins, at the rung where `auto` begins, or goes on with what pruning has left of `agent`.

        With `members` as many runs begin together, of which `seed` is the first.
        """
        self.seed, self.members = seed, members
        self.recent = [deque(maxlen=100) for _ in range(members)]
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
        why = self.watch.look(float(self.seen["harm"][0]), self._share_of_acting())
        if why is None:
            return False
        self.switches.append(
            {"seed": self.seed, "step": step, "from": before.mode.name, "to": self.watch.now.mode.name,
             "kl": float(self.seen["kl"][0]), "reason": why}
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

    def fall_back(self, unfit: actors.Unfit, carry: actors.Carry) -> None:
        """Take fp32 after a compressed mode has failed, at `carry`. Raises RunFailed where that would not help."""
        step, failed = int(np.max(carry.step)), self.chosen
        if self.agent.crew:
            weights = [jax.device_get(self.agent.crew.policies(carry.state).params)]
        elif self.members == 1:
            weights = [host_weights(self.agent, carry.state)]
        else:
            weights = weights_of_each(self.agent, carry.state)
        lost = [self.seed + k for k, of_one in enumerate(weights) if not actors.finite(jax.tree.leaves(of_one))]
        if lost:
            raise Diverged(
                f"seed {lost[0]} has diverged, its weights are no longer finite at step {step:,}: look at the "
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

    def compile(
        self, learner: actors.Learner, carry: actors.Carry, spec: actor.Spec, widths: Iterable[int] = (0,)
    ) -> dict[int, actors.Learner]:
        """The Learner with its programs compiled ahead of time, for each of the `widths`: that many members at a time.

        0 stands for a run that is alone. Raises EngineFailed.
        """
        start = perf_counter()
        names = ("learn", "add", "ship", *(() if self.plan.crew else ("probe",)))
        if not self.plan.crew:
            seen = jax.eval_shape(learner.probe, carry)[0].shape[1 if spec.members else 0]
            self.session = actor.session(spec.engine, spec.layers, self.card.obs, seen, spec.mode, spec.members)
        self.spent, self.looked = dict(self.timer.seconds), False
        lowered, crew = {}, self.plan.crew * self.plan.actors
        for width in widths:
            part = _of_so_many(carry, width) if width else carry
            items, stream = items_of(spec._replace(members=width or crew)), jax.ShapeDtypeStruct((), "int32")
            brought = [jax.ShapeDtypeStruct(f.shape, f.dtype) for f in spec.gradient]
            jobs = {
                "learn": (part, items, stream, brought), "add": (part, items, stream),
                "ship": (part.state,), "probe": (part,),
            }  # fmt: skip
            lowered |= {(width, name): getattr(learner, name).lower(*jobs[name]) for name in names}
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda x: x.compile(compiler_options=self.compiler), lowered.values()))
        self.compile_seconds += perf_counter() - start
        packet, _, shared = jax.eval_shape(learner.ship, carry.state)
        self.packet_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((packet, shared)))
        self.weight_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(packet.weights))
        made = {who: program for who, program in zip(lowered, done, strict=True)}
        return {width: learner._replace(**{name: made[width, name] for name in names}) for width in widths}

    def look(self, parts: actors.Learner, tick: actors.Tick, due: bool = False) -> dict[str, Any]:
        """The metrics of the moment, [members]; the policies are compared now and then, in lockstep when `due`.

        Raises EngineFailed.
        """
        for ret, _, member in tick.episodes:
            self.recent[member].append(ret)
        if tick.metrics and self.first_update is None:
            self.first_update = seconds_since_start()
        start = perf_counter()
        if tick.metrics and not self.plan.crew and (due if self.plan.lockstep else start > self.look_after):
            obs, outputs, knobs, log_ratio = jax.device_get(parts.probe(tick.carry))
            packet, *_ = jax.device_get(parts.ship(tick.carry.state))
            self.session.load(packet.weights)
            if self.members > 1:
                compressed = self.session.run(obs.reshape(-1, *obs.shape[2:]))
            else:
                outputs, knobs, log_ratio = jax.tree.map(lambda x: np.asarray(x)[None], (outputs, knobs, log_ratio))
                compressed = self.session.run(obs)[None]
            found = []
            for k in range(self.members):
                own_knobs = {name: x[k] for name, x in knobs.items()}
                whole, acts = (self.agent.head(x[k], own_knobs) for x in (outputs, compressed))
                found.append(quality.divergence(whole, acts) | quality.importance(log_ratio[k]))
            self.seen = {name: np.array([seen[name] for seen in found]) for name in found[0]}
            self.looks, self.looked = self.looks + 1, True
            self.sums = {name: self.sums.get(name, 0.0) + float(x.mean()) for name, x in self.seen.items()}
            self.look_after = start + max(PROBE_SECONDS, (perf_counter() - start) / PROBE_SHARE)
        train_return = [float(np.mean(returns)) if returns else float("nan") for returns in self.recent]
        if "staleness" in tick.metrics:
            self.learned += 1
            self.stale += float(np.mean(tick.metrics["staleness"]))
            self.stalest = max(self.stalest, float(np.max(tick.metrics["staleness_max"])))
        told = tick.metrics | self.staleness() | self.seen | {"train_return": np.array(train_return)}
        return {name: np.broadcast_to(value, self.members) for name, value in told.items()}

    def kept(self) -> dict[str, Any]:
        """What later rows will tell of what has been: for a checkpoint, as JSON has it."""
        return {"recent": [list(x) for x in self.recent], "stale": [self.stale, self.learned, self.stalest]}

    def recall(self, kept: dict[str, Any]) -> None:
        """Go on from what `kept` gave."""
        self.recent = [deque(returns, maxlen=100) for returns in kept["recent"]]
        self.stale, self.learned, self.stalest = kept["stale"]

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
        away = sum(fleet.cpu_seconds for fleet in self.fleets)
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
            "savings": [saving._asdict() for saving in self.savings()],
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
                "lockstep": self.plan.lockstep,
                "restarts": sum(fleet.restarts for fleet in self.fleets),
                "lost_unrolls": sum(fleet.lost_unrolls for fleet in self.fleets),
                "waiting_seconds": acting.get("waiting", 0.0),
                "learner_waiting_seconds": own.get("waiting", 0.0),
                "step_seconds": sum(acting.get(kind, 0.0) for kind in ("environment", "inference", "other")),
                "refresh_seconds": refresh,
                **{f"{kind}_seconds": acting.get(kind, 0.0) for kind in actor.REFRESH},
                "switches": self.switches,
                "compressed_returns": self.compressed_returns,
                "measured": [rung._asdict() | {"mode": rung.mode.name} for rung in self.timings],
            },
            **({"cluster": {"cpu_seconds": away}} if away else {}),
        }


def parameters(layers: Layers, obs: Box) -> int:
    """How many numbers a network has."""
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(network(layers, obs).init, rng.key(0))))


def seconds_since_start() -> float | None:
    """Seconds since this process began, on Linux."""
    try:
        with open("/proc/self/stat") as f:
            ticks = int(f.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime") as f:
            return float(f.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
