"""Runs spread over a Ray cluster: each trains an interval wherever there is room, and moves as a checkpoint.

A run's interval follows from the checkpoint it begins with, so one that is lost with its worker is trained anew, and in
`compiled` gives the same numbers. The driver holds the newest checkpoint of every run, as blocks named by their
SHA-256, of which only those that are new are sent; it decides who takes over from whom, and keeps the run folder. A
worker has one run of the job that the driver's Config stands for, in the runtime `Config.within`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from . import checkpoint, jobs
from .checkpoint import Packed
from .config import Config
from .errors import BadFile, Diverged, RunFailed, UsageError, one_line
from .evaluate import Episodes
from .levers.compress import shrink
from .levers.population import evolution, search
from .monitor.machine import family_seconds
from .runtime import cluster
from .training import EVAL_EPISODES, FINAL_EPISODES, Job, Moment, Phase, Restore, added
from .xla import set_up_jax

AHEAD = 2  # intervals that a run may be ahead of the slowest, where none takes over from another
# what a receipt does not tell of one process but of all of them together, under `cluster`
APART = ("compile_seconds", "first_update_seconds", "batching")


class Start(NamedTuple):
    """Where a run begins an interval."""

    step: int
    own: Packed | None  # None: at the beginning of its training
    donor: Packed | None = None  # the run that it takes over from first
    hyper: Mapping[str, float] = {}  # and its own hyper-parameters from then on


class Order(NamedTuple):
    """What a worker is asked for: train a run until a step."""

    run: int
    until: int
    due: int  # the step at or after which to evaluate
    start: Start | None  # None: go on with what is kept


class Report(NamedTuple):
    """What it answers."""

    step: int
    metrics: dict[str, Any]
    episodes: Episodes | None  # [1, episodes]
    weights: Any
    structures: dict[str, Any]
    packed: Packed  # leaves [1, ...], without their structure
    account: dict[str, Any]  # since the worker began with the run
    cpu_seconds: float  # of the worker and its children, since its last report


class Failed(NamedTuple):
    """Or this, if it cannot: another worker could not either."""

    kind: str
    reason: str


def serve(config: Config) -> cluster.Service:
    """A worker's side; called in its process."""
    set_up_jax()
    kept: dict[int, Live] = {}
    told = 0.0  # seconds, that the driver knows of

    def answer(order: Order) -> Report | Failed:
        nonlocal told
        try:
            if order.start is not None:
                _end(kept.pop(order.run, None))
                kept[order.run] = Live(config, order.run, order.start)
            report, before = kept[order.run].until(order.until, order.due), told
            told = family_seconds()
            return report._replace(cpu_seconds=told - before)
        except Exception as error:  # as a record: not every error arrives as it was sent
            reason = str(error) if isinstance(error, RunFailed | UsageError | BadFile) else one_line(error)
            return Failed("diverged" if isinstance(error, Diverged) else "failed", reason)

    return cluster.Service(answer, lambda run: _end(kept.pop(run, None)))


def _end(live: Live | None) -> None:
    if live is not None:
        live.moments.close()


class Live:
    """A run that a worker is training."""

    def __init__(self, config: Config, run: int, start: Start):
        self.config = config
        self.phase, self.account = jobs.alone(config, run, lambda text: None)
        restore = None if start.own is None else Restore(start.step, partial(self._read, start))
        self.moments = cast(Generator, self.phase.moments(restore))
        self.moment: Moment | None = None
        self.known: set[str] = set(start.own.blocks) if start.own else set()  # blocks that the driver has

    def until(self, step: int, due: int) -> Report:
        """Train until a step, and evaluate if `due` is reached."""
        while self.moment is None or self.moment.step < step:
            following = next(self.moments, None)
            if following is None:
                break
            self.moment = following
        moment = self.moment
        assert moment is not None
        played = None
        if moment.step >= due:
            played = moment.evaluate(FINAL_EPISODES if moment.step >= self.config.steps else EVAL_EPISODES)
        leaves = [x if self._batched() else x[None] for tree in moment.snapshot() for x in jax.tree.leaves(tree)]
        packed = checkpoint.packed(leaves, self.known)
        self.known = set(packed.blocks)
        report = Report(
            moment.step,
            {name: x[0] for name, x in moment.metrics.items()},
            played,
            jax.device_get(moment.weights()[0]),
            {name: jax.device_get(weights[0]) for name, weights in moment.structures().items()},
            packed,
            self.account(),
            0.0,
        )
        if moment.step >= self.config.steps:
            self.moments.close()
        return report

    def _batched(self) -> bool:
        return self.config.within == "compiled"

    def _read(self, start: Start, shapes: Any) -> Any:
        assert start.own is not None
        leaves, tree = jax.tree.flatten(shapes)
        like = leaves if self._batched() else [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in leaves]

        def carry(sent: Packed, batched: bool) -> Any:
            found = checkpoint.unpacked(sent, sent.new, like)
            return tree.unflatten(found if batched else [x[0] for x in found])

        if start.donor is None:
            return carry(start.own, self._batched())
        assert self.phase.heirs is not None
        heir = self.phase.heirs.become(carry(start.own, False), carry(start.donor, False), start.hyper)
        return jax.tree.map(lambda x: x[None], heir) if self._batched() else heir


def ray_job(config: Config, report: Callable[[str], None]) -> Job:
    """All runs, spread over a Ray cluster; or a single one, whose actors are."""
    set_up_jax()
    opened = ExitStack()
    if config.spreads_actors:
        opened.enter_context(cluster.connected(config.ray_address))
        return jobs.actors_job(config, report)._replace(close=opened.close)
    jobs.told(config, report)
    ledger = Ledger(config)
    phases = [_phase(config, group, ledger, report) for group in jobs.groups(config)]
    opened.enter_context(cluster.connected(config.ray_address))
    if not cluster.room(1):
        opened.close()
        raise UsageError("the Ray cluster has no processor to run on: add a node to it")
    return Job(phases, ledger.account, shrink.of_one_shape, opened.close)


class Ledger:
    """What all workers have cost."""

    def __init__(self, config: Config):
        self.config = config
        self.accounts: dict[int, dict[str, Any]] = {}  # of each run: with its present worker
        self.before: dict[int, dict[str, Any]] = {}  # and with those before
        self.cpu_seconds = 0.0
        self.pools: list[cluster.Pool] = []  # one for each phase so far

    def enter(self, run: int, report: Report) -> None:
        self.accounts[run] = report.account
        self.cpu_seconds += report.cpu_seconds

    def turn(self, run: int) -> None:
        """It begins with another worker."""
        if run in self.accounts:
            self.before[run] = added(self.accounts.pop(run), self.before.get(run, {}))

    def account(self) -> dict[str, Any]:
        runs = sorted(self.accounts.keys() | self.before.keys())
        each = {run: added(self.accounts[run], self.before.get(run, {})) for run in runs if run in self.accounts}
        each |= {run: self.before[run] for run in runs if run not in each}
        found = jobs.of_groups(self.config, {str(run): lambda x=x: x for run, x in each.items()})() if each else {}
        return {name: x for name, x in found.items() if name not in APART} | {
            "cluster": {
                "address": self.config.ray_address,
                "within": self.config.within,
                "nodes": len({node for pool in self.pools for node in pool.nodes}),
                "workers": max((pool.most for pool in self.pools), default=0),
                "cpu_seconds": self.cpu_seconds,
                "compile_seconds": found.get("compile_seconds"),
                "lost_intervals": [
                    sum(pool.lost.get(run, 0) for pool in self.pools) for run in range(self.config.runs)
                ],
                "migrations": sum(pool.moved for pool in self.pools),
            }
        }


Lineage = dict[str, list[int | None]]  # `parent`, and of a tournament `parent_step`, when that was handed in
Past = dict[int, tuple[float, ...]]
Board = dict[int, list[evolution.Entry]]  # by seed, from 0


class Standing(NamedTuple):
    """Where the runs of a phase stand, all at one step."""

    step: int
    packed: dict[int, Packed]
    # float64 [2 + n]: the step that a turn was due at, if members take over from others now, else 0; fitness; and the
    # hyper-parameters that are searched
    told: dict[int, np.ndarray]
    # of a tournament, as they were before this step
    past: Past  # fitness of each run, at the last turns
    board: Board


def _phase(config: Config, group: jobs.Group, ledger: Ledger, report: Callable[[str], None]) -> Phase:
    """The runs of a group; they are at the same steps."""
    template, _ = jobs.alone(config, group.runs[0], lambda text: None)
    population, runs, heirs = config.population, group.runs, template.heirs
    priors = search.priors(config.agent, population.search) if population and population.evolves else {}
    cpus = 1 if config.within == "compiled" else 2  # a learner and two actors that wait for each other

    def moments(restore: Restore | None) -> Iterator[Moment]:
        blocks: dict[str, bytes] = {}  # of the checkpoints that are held
        answers: dict[int, deque[Report]] = {run: deque() for run in runs}
        starts = {run: Start(0, None) for run in runs}
        at, moment = restore.step if restore else 0, None
        past: Past = {}
        board: Board = {}
        targets = [at + 1, *(step for step in template.due if step > at + 1)]
        reached = dict.fromkeys(runs, at)  # the step of the last answer
        busy: set[int] = set()
        limit = 1 if heirs else AHEAD

        def arrays(packed: Packed) -> list[np.ndarray]:
            return checkpoint.unpacked(packed, blocks)

        def full(packed: Packed | None) -> Packed | None:
            return None if packed is None else packed._replace(new={name: blocks[name] for name in packed.blocks})

        def question(order: Order, anew: bool) -> Order:
            if not anew:
                return order
            ledger.turn(order.run)
            start = starts[order.run]
            return order._replace(start=start._replace(own=full(start.own), donor=full(start.donor)))

        def ask(pool: cluster.Pool) -> None:
            """All runs that are not at work, and not too far ahead, for their next interval."""
            for run in runs:
                until = next((step for step in targets if step > reached[run]), None)
                if until is None or run in busy or len(answers[run]) >= limit:
                    continue
                due = next((step for step in template.due if step > reached[run]), config.steps)
                busy.add(run)
                pool.submit(cluster.Task(run, partial(question, Order(run, until, due, None))))

        if restore is not None:
            stood = _restored(config, priors, restore, runs, blocks)
            starts = {run: Start(at, packed) for run, packed in stood.packed.items()}
            changed, _, past, board = _taken_over(config, priors, stood)
            starts |= changed
        with cluster.Pool(__name__, config, cpus, report) as pool:
            ledger.pools.append(pool)
            while moment is None or at < config.steps:
                ask(pool)
                while not all(answers.values()):
                    for run, answer in pool.poll(1.0):
                        if isinstance(answer, Failed):
                            raise _error(config, run, answer)
                        blocks |= answer.packed.new
                        answers[run].append(answer)
                        ledger.enter(run, answer)
                        starts[run] = Start(answer.step, answer.packed._replace(new={}))
                        reached[run] = answer.step
                        busy.remove(run)
                    ask(pool)
                    if moment is not None:
                        yield moment
                told = {run: answers[run].popleft() for run in runs}
                step = told[runs[0]].step
                turn = next((turn for turn in heirs.steps if at < turn <= step), 0) if heirs else 0
                at, stood = step, Standing(
                    step,
                    {run: answer.packed._replace(new={}) for run, answer in told.items()},
                    {run: _told(answer, priors, turn) for run, answer in told.items()}, past, board,
                )  # fmt: skip
                changed, parents, past, board = _taken_over(config, priors, stood)
                starts |= changed
                for run in changed:
                    pool.forget(run)
                moment = _moment(config, stood, told, arrays, parents)
                yield moment
                held = {name for start in starts.values() for x in (start.own, start.donor) if x for name in x.blocks}
                held |= {name for x in stood.packed.values() for name in x.blocks}
                entries = [entry for places in (board, stood.board) for each in places.values() for entry in each]
                held |= {name for entry in entries for name in entry.carry.blocks}
                held |= {name for queue in answers.values() for x in queue for name in x.packed.blocks}
                blocks = {name: block for name, block in blocks.items() if name in held}

    return Phase(group.name, runs, moments, template.card, template.due)


def _told(answer: Report, priors: Mapping[str, Any], turn: int) -> np.ndarray:
    return np.array([turn, *(answer.metrics.get(name, np.nan) for name in ("fitness", *priors))], np.float64)


def _taken_over(
    config: Config, priors: Mapping[str, Any], stood: Standing
) -> tuple[dict[int, Start], Lineage, Past, Board]:
    """Where those begin that take over from others, what a row tells of it, and the `past` and `board` after it."""
    runs = sorted(stood.told)
    told = np.stack([stood.told[run] for run in runs])
    turn = int(told[0, 0])
    if not turn:
        return {}, {}, stood.past, stood.board
    assert config.population is not None
    if config.population.selection == "tournament":
        return _tournament(config, priors, stood, turn)
    hypers = {name: told[:, 2 + i] for i, name in enumerate(priors)}
    moves = evolution.turned(config.population, priors, config.seed, turn, told[:, 1], hypers)
    starts = {
        runs[move.to]: Start(
            stood.step, stood.packed[runs[move.to]], stood.packed[runs[move.source]], move.hyper
        ) for move in moves
    }  # fmt: skip
    parents = {move.to: move.source % config.population.members for move in moves}
    return starts, {"parent": [parents.get(k) for k in range(len(runs))]}, {}, {}


def _tournament(
    config: Config, priors: Mapping[str, Any], stood: Standing, turn: int
) -> tuple[dict[int, Start], Lineage, Past, Board]:
    """The same where members are pods that load from a leaderboard of their seed."""
    assert config.population is not None
    starts: dict[int, Start] = {}
    origins: dict[int, evolution.Entry] = {}
    past, board = {}, {}
    for seed in range(config.seeds):
        pods = [run for run in sorted(stood.told) if run // config.members == seed]
        for run in pods:
            past[run] = (*stood.past.get(run, ()), float(stood.told[run][1]))[-evolution.RECENT :]
        scores = [evolution.score(past[run]) for run in pods]
        new = [
            evolution.Entry(
                scores[m], m, stood.step, dict(zip(priors, stood.told[run][2:].tolist(), strict=True)),
                stood.packed[run],
            ) for m, run in enumerate(pods)
        ]  # fmt: skip
        board[seed] = evolution.entered(stood.board.get(seed, []), new)
        r = np.random.default_rng([config.seed + seed, turn])
        for pod, place in evolution.loads(board[seed], scores, r).items():
            entry, run = board[seed][place], pods[pod]
            hyper = evolution.explored(config.population, priors, entry.hyper, r)
            starts[run] = Start(stood.step, stood.packed[run], entry.carry, hyper)
            origins[run], past[run] = entry, (entry.score,)
    each = [origins.get(run) for run in sorted(stood.told)]
    lineage: Lineage = {
        "parent": [entry and entry.member for entry in each],
        "parent_step": [entry and entry.step for entry in each],
    }
    return starts, lineage, past, board


def _moment(
    config: Config,
    stood: Standing,
    told: Mapping[int, Report],
    arrays: Callable[[Packed], list[np.ndarray]],
    lineage: Mapping[str, list],
) -> Moment:
    answers = list(told.values())

    def snapshot() -> list:
        return _alike([
            [x for packed in (stood.packed[run], *carries) for x in arrays(packed)] + [row[None]]
            for run, carries, row in _places(config, stood)
        ])  # fmt: skip

    def evaluate(episodes: int) -> Episodes | None:
        played = [answer.episodes for answer in answers if answer.episodes is not None]
        return Episodes(*(np.concatenate(x) for x in zip(*played, strict=True))) if played else None

    structures = set.intersection(*(set(answer.structures) for answer in answers))
    names = answers[0].metrics
    return Moment(
        stood.step,
        {name: [answer.metrics.get(name) for answer in answers] for name in names} | dict(lineage),
        evaluate,
        snapshot,
        lambda: [answer.weights for answer in answers],
        lambda: {name: [answer.structures[name] for answer in answers] for name in structures},
    )


def _alike(trees: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The same, with texts (bytes of JSON, [1, length]) made as long as the longest by spaces, which say nothing."""

    def one(parts: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        longest = max(x.shape[-1:] for x in parts)
        if parts[0].dtype != np.uint8 or all(x.shape[-1:] == longest for x in parts):
            return [*parts]
        return [np.pad(x, ((0, 0), (0, longest[0] - x.shape[1])), constant_values=ord(" ")) for x in parts]

    return [list(tree) for tree in zip(*map(one, zip(*trees, strict=True)), strict=True)]


def _places(config: Config, stood: Standing) -> Iterator[tuple[int, list[Packed], np.ndarray]]:
    """Of each run: its number, what is on its places of the leaderboard, and `told` with what goes with these.

    A place that is free has the run itself, with a score that is not a number.
    """
    tournament = config.population is not None and config.population.selection == "tournament"
    for run, told in stood.told.items():
        if not tournament:
            yield run, [], told
            continue
        seed, member = divmod(run, config.members)
        entries = stood.board.get(seed, [])[member * evolution.PLACES :][: evolution.PLACES]
        free = evolution.Entry(np.nan, 0, 0, dict.fromkeys(map(str, range(len(told) - 2)), np.nan), stood.packed[run])
        entries = [*entries, *[free] * (evolution.PLACES - len(entries))]
        past = [np.nan] * (evolution.RECENT - len(stood.past.get(run, ()))) + [*stood.past.get(run, ())]
        row = [*told, *past, *(x for e in entries for x in (e.score, e.member, e.step, *e.hyper.values()))]
        yield run, [entry.carry for entry in entries], np.array(row, np.float64)


def _restored(
    config: Config, priors: Mapping[str, Any], restore: Restore, runs: Sequence[int], blocks: dict[str, bytes]
) -> Standing:
    """What `_places` and `_moment` have saved; `blocks` receives what it is made of."""
    *arrays, told = restore.read(None)
    tournament = config.population is not None and config.population.selection == "tournament"
    each = len(arrays) // (1 + evolution.PLACES) if tournament else len(arrays)
    own = 2 + len(priors)

    def packed(k: int, place: int) -> Packed:
        made = checkpoint.packed([x[k : k + 1] for x in arrays[place * each : (place + 1) * each]])
        blocks.update(made.new)
        return made._replace(new={})

    numbered = dict(enumerate(runs))
    carries = {run: packed(k, 0) for k, run in numbered.items()}
    stood = Standing(restore.step, carries, {run: told[k, :own] for k, run in numbered.items()}, {}, {})
    for k, run in enumerate(runs if tournament else ()):
        past = told[k, own : own + evolution.RECENT]
        stood.past[run] = tuple(past[np.cumsum(~np.isnan(past)) > 0].tolist())
        entries = stood.board.setdefault(run // config.members, [])
        for place, row in enumerate(told[k, own + evolution.RECENT :].reshape(evolution.PLACES, 1 + own)):
            if np.isfinite(row[0]):
                hyper = dict(zip(priors, row[3:].tolist(), strict=True))
                score, member, at = float(row[0]), int(row[1]), int(row[2])
                entries.append(evolution.Entry(score, member, at, hyper, packed(k, 1 + place)))
    return stood


def _error(config: Config, run: int, failed: Failed) -> RunFailed:
    seed, member = config.who(run)
    who = f"seed {seed}" if member is None else f"member {member} of seed {seed}"
    kind = Diverged if failed.kind == "diverged" else RunFailed
    return kind(f"{who}: {failed.reason}", None)
