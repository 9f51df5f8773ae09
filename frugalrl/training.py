"""From an agent's name to a trained policy: put the records together, run them, and keep everything in a run folder."""

from __future__ import annotations

import inspect
import math
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

import numpy as np

from . import catalog
from .config import Config, check, configure, is_run, whole, whole_generations
from .config import read as read_config
from .config import write as write_config
from .envs.make import Environment, options_for
from .errors import ActorFailed, BadFile, Diverged, RunFailed, Stopped, Taken, UsageError, one_line
from .evaluate import HELD_OUT, Episodes, episode_cap
from .monitor import dashboards, files, live, members, receipt, rows, words
from .monitor.progress import Progress, progress
from .monitor.receipt import Meter
from .policy import Actor, Card, write
from .signals import Stop
from .statistics import bootstrap

SEGMENTS = 50  # of a compiled run, over which a row's metrics are means
EVAL_EPISODES = 20  # of an evaluation along the way
FINAL_EPISODES = 100  # of the last one
SAVE_SECONDS = 120.0  # between two checkpoints
LONG = 60.0  # seconds of a run that says beforehand how long it takes
PACE = 5.0  # seconds of training that tell it: in the first ones programs are still compiled beside it
# what --force removes, besides config.json, in this order; whatever else is in the folder stays
LEFT_BY_A_RUN = (
    *("receipt.json", "checkpoints", "rows.jsonl", "report.html", "progress.json", "policy", "policy.*", "seed-*"),
    "wandb",
)
ASIDE = ".replaced"  # where it goes first
# what a receipt counts over all sittings of a run
SUMS = (
    *("compile_seconds", "evaluation_seconds", "checkpoint_seconds", "refreshes", "restarts"),
    *("lost_unrolls", "waiting_seconds", "learner_waiting_seconds", *receipt.ACTING, *receipt.TIMES),
)
FIRST = ("first_update_seconds", "fallback")  # of these it keeps the first
LISTS = ("switches", "compressed_returns", "faults")  # and of these all


class Restore(NamedTuple):
    """A checkpoint to go on from."""

    step: int
    # a tree of shapes -> the tree of the checkpoint; once, before the first moment; BadFile if it has other shapes
    read: Callable[[Any], Any]
    width: int | None = None  # of a part of what was saved, along the first axis: so many runs shared a program


class Phase(NamedTuple):
    """Runs that train together."""

    name: str
    runs: list[int]  # as `Config.who` knows them
    moments: Callable[[Restore | None], Iterator[Moment]]  # from a checkpoint, or None for the beginning
    card: Card
    due: list[int]  # steps after which to evaluate
    heirs: Heirs | None = None


class Heirs(NamedTuple):
    """How members take over from others in a population that evolves."""

    steps: list[int]  # at which they are due to
    # (carry, that of the member it takes over from, hyper-parameters) -> carry; without an axis of runs
    become: Callable[[Any, Any, Mapping[str, Any]], Any]


class Moment(NamedTuple):
    """What a runtime yields while a phase goes on."""

    step: int  # environment steps of each run
    metrics: dict[str, Any]  # name -> [runs of the phase]: numbers, or None for what a run does not have
    # episodes -> [runs, episodes]; may be called at any moment, but on a Ray cluster nobody may have played (None)
    evaluate: Callable[[int], Episodes | None]
    snapshot: Callable[[], list]  # the trees to checkpoint, whose leaves go together along the first axis
    weights: Callable[[], list]  # one network's weights for each run
    # name of another structure that acts as the policy does -> its weights for each run
    structures: Callable[[], dict[str, list]] = dict


class Job(NamedTuple):
    """A run made ready by one of the runtimes."""

    phases: list[Phase]
    account: Callable[[], dict[str, Any]]  # compile_seconds, time_split, actors, and other receipt entries, so far
    # (layers, weights of each seed) -> the same: what they have become, of one shape for all
    alike: Callable[[tuple, list], tuple[tuple, list]] = lambda layers, weights: (layers, weights)
    close: Callable[[], None] = lambda: None  # when nothing trains any more


class Result(NamedTuple):
    """A run that has come to its end, or to that of its budget: then `finished` in the receipt is false."""

    actor: Actor
    receipt: dict[str, Any]
    rows: list[dict[str, Any]]
    folder: Path | None

    def __repr__(self) -> str:
        reached = words.interval(receipt.returns(self.receipt))
        return f"<{receipt.title(self.receipt)}: return {reached}, folder {self.folder}>"

    @property
    def returns(self) -> dict[str, Any]:
        """Greedy return on held-out seeds: `iqm`, `low`, `high`, `per_seed`."""
        return self.receipt["returns"]

    def predict(self, obs, **how) -> Any:
        """The action for one observation or a batch of them; see `frugalrl.policy.Actor.predict`."""
        return self.actor.predict(obs, **how)

    def save(self, folder: str | Path) -> Path:
        """Write the policy where `frugalrl.load` can read it."""
        return self.actor.save(folder)


class Found(NamedTuple):
    """What earlier sittings have left of a phase."""

    step: int | None = None  # of the checkpoint to go on from
    rows: Sequence[dict[str, Any]] = ()  # until then


class Folder(NamedTuple):
    """A run folder, or None for a run that is not kept."""

    path: Path | None

    def held(self) -> AbstractContextManager:
        """Keeps other processes from training in it. Raises Taken if one does."""
        if self.path is None:
            return nullcontext()
        return files.held(self.path, f"another process trains in {self.path}: wait for it, or end it")

    def check(self, force: bool) -> None:
        """Raises UsageError if a run may not or cannot be written here; writes nothing."""
        if self.path is None:
            return
        try:
            there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
            if there == self.path and there.is_dir() and any(path.name != files.LOCK for path in there.iterdir()):
                _may_replace(there, force)
            if not there.is_dir():
                raise NotADirectoryError(f"{there} is a file")
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write in {there}")
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def create(self, config: Config) -> None:
        """Make the folder, write config.json, and remove what an earlier run left here.

        config.json says whose all the rest is: until it is replaced, whatever is still there is the earlier run's, and
        then nothing of that is there. Raises UsageError, with everything as it was, if that cannot be done.
        """
        if self.path is None:
            return
        aside, moved = self.path / ASIDE, []
        try:
            self._sweep()
            self.path.mkdir(parents=True, exist_ok=True)
            for pattern in LEFT_BY_A_RUN:
                for old in list(self.path.glob(pattern)):
                    aside.mkdir(exist_ok=True)
                    os.rename(old, aside / old.name)
                    moved.append(old)
            write_config(self.path, config)
        except OSError as error:
            for old in moved:
                with suppress(OSError):
                    os.rename(aside / old.name, old)
            with suppress(OSError):
                aside.rmdir()
            raise _unwritable(self.path, error) from None
        self._sweep()

    def update(self, config: Config) -> None:
        """Replace config.json."""
        if self.path is not None:
            self._sweep()
            write_config(self.path, config)

    def _sweep(self) -> None:
        assert self.path is not None
        shutil.rmtree(self.path / ASIDE, ignore_errors=True)


def _may_replace(path: Path, force: bool) -> None:
    if not force:
        raise Taken(f"--out {path} is not empty: use --force to replace it, or another folder")
    if not is_run(path):
        raise UsageError(f"--out {path} is not a run folder, so --force will not replace it: use another folder")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--out {path} cannot be written ({error.strerror or error}): use another folder")


def train(
    agent: str,
    env: Environment,
    *,
    out: str | Path | None = None,
    force: bool = False,
    quiet: bool = True,
    budget: float | None = None,
    **options: Any,
) -> Result:
    """Train `agent` on `env` and evaluate it greedily on held-out seeds.

    `env` is a Gymnasium id, or a class or function of a module that makes a gymnasium.Env, kept as "module:Name".
    Options are those of `frugal train`: steps, seeds, seed, runtime, hyper and env_options (dictionaries), actors,
    prune, prune_at, qat, pull_period, lockstep, correct, precision, evaluations, log, ray_address. `out` is the run
    folder; without it nothing is kept but the Result. `budget` is in minutes: when it is spent the policy reached is
    evaluated on fewer episodes, and the Result is of that, its receipt not `finished`. Raises UsageError for a wrong
    call, before anything is written; Stopped when a signal interrupts it, after saving in `out`; and RunFailed when an
    environment or the machine gives up, after saving there.
    """
    _check_budget(budget)
    config = configured(agent, env, **options)
    folder = Folder(None if out is None else Path(out))
    folder.check(force)
    with ExitStack() as held:

        def begin() -> None:
            held.enter_context(folder.held())
            folder.check(force)  # again: nobody else can have begun a run there since
            folder.create(config)

        return _run(config, folder, begin, quiet=quiet, budget=budget)


def resume(
    path: str | Path, *, steps: int | None = None, quiet: bool = True, budget: float | None = None
) -> Result | None:
    """Go on with a run from its last checkpoint, to `steps` if given; None if it was finished already.

    Without a checkpoint the run starts again from its config.json. Raises BadFile for a folder that is not a run or is
    damaged, and what `train` raises.
    """
    _check_budget(budget)
    folder = Folder(Path(path))
    if _left(folder, steps) is None:
        return None
    with folder.held():
        left = _left(folder, steps)  # again: another process may have gone on with it since
        if left is None:
            return None
        config, before = left
        return _run(config, folder, lambda: folder.update(config), quiet=quiet, budget=budget, before=before)


def _left(folder: Folder, steps: int | None) -> tuple[Config, dict[str, Any]] | None:
    """What is to be trained, and the receipt of earlier sittings, if any; None if nothing is."""
    assert folder.path is not None
    config = read_config(folder.path)
    if steps is not None:
        steps = whole("--steps", steps)
        if steps < config.steps:
            raise UsageError(f"--steps {steps} is less than the run's {config.steps}; give at least that")
        config = whole_generations(config._replace(steps=steps))
        check(config)
    done = _read_receipt(folder)
    if done and done.get("finished") and done.get("steps") == config.steps:
        return None
    return config, done or {}


def pbt(agent: str, env: Environment, members: int, search: Mapping[str, Any], **options: Any) -> Result:
    """Population-based training: `members` train side by side, and the worst take over from the best.

    `search` maps names of hyper-parameters to "log:LOW:HIGH", "uniform:LOW:HIGH" or a list of values. Options are those
    of `train`, and of PBT: ready (environment steps between selections), truncation, explore, copy, selection. The
    Result is that of the best member of each seed; each seed has a population of its own.
    """
    return _population("pbt", agent, env, members, search, options)


def sweep(
    agent: str,
    env: Environment,
    search: Mapping[str, Any],
    members: int | None = None,
    grid: bool = False,
    **options: Any,
) -> Result:
    """Random search by `members`, or a grid: each member is trained with every seed, and the best over them is kept.

    `search` and `options` are as `pbt` has them.
    """
    return _population("grid" if grid else "random", agent, env, members, search, options)


def cem(agent: str, env: Environment, members: int, **options: Any) -> Result:
    """CEM-RL: members drawn around a mean, half of which follow a critic that all share; the Result is the mean's.

    Options are those of `train`, and: ready (steps of each environment in a generation, by default an episode),
    variance (of each weight around the first mean).
    """
    return _population("cem", agent, env, members, {}, options)


def dvd(agent: str, env: Environment, members: int, **options: Any) -> Result:
    """DvD: members that share a critic and are pulled apart; the Result is that of the one with the best score.

    Options are those of `train`, and: ready (as `cem` has it), novelty ("bandit", "schedule" or a number from 0 to 1).
    """
    return _population("dvd", agent, env, members, {}, options)


# of each kind of population, beside its members and what is searched
OPTIONS = {
    "pbt": ("ready", "truncation", "explore", "copy", "selection"),
    "cem": ("ready", "variance"),
    "dvd": ("ready", "novelty"),
}


def _population(
    kind: str, agent: str, env: Environment, members: int | None, search: Mapping[str, Any], options: dict[str, Any]
) -> Result:
    own = {name: options.pop(name) for name in OPTIONS.get(kind, ()) if name in options}
    return train(agent, env, population={"kind": kind, "members": members, "search": search, **own}, **options)


def configured(agent: str, env: Environment, **options: Any) -> Config:
    """The Config of a `train` with these options; JAX is not imported. Raises UsageError for a wrong call."""
    known = [name for name in inspect.signature(configure).parameters if name not in ("agent", "env")]
    for name in options:
        if name not in known:
            if own := catalog.meant(name, catalog.hyper_fields(catalog.recipe(agent))):
                value = repr(options[name]) if own == name else "..."
                raise UsageError(f"{name} is a hyper-parameter: give it as hyper={{{own!r}: {value}}}")
            raise UsageError(f"train has no option {name!r}: {catalog.nearest(name, known, 'options are')}")
    return configure(agent, env, **options)


def _check_budget(minutes: float | None) -> None:
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--budget must be more than 0 minutes, got {minutes:g}")


def _read_receipt(folder: Folder) -> dict[str, Any] | None:
    """receipt.json, None if there is none yet. Raises BadFile if it is damaged."""
    if folder.path is None:
        return None
    file = folder.path / "receipt.json"
    found = receipt.read(file)
    try:
        if found is not None:
            receipt.cost(found)
    except ValueError as error:
        raise BadFile(f"{file} is damaged ({error}); remove it, and the run's cost so far is not counted") from None
    return found


def _prepare(config: Config, report: Callable[[str], None]) -> Job:
    """Only now is JAX imported: a wrong call has been refused long before."""
    from . import jobs, spread

    made = {"compiled": jobs.compiled_job, "actors": jobs.actors_job, "ray": spread.ray_job}
    try:
        return made[config.runtime](config, report)
    except (UsageError, BadFile):
        raise
    except ValueError as error:  # numbers that do not go together
        raise UsageError(str(error)) from error


def _run(
    config: Config,
    folder: Folder,
    begin: Callable[[], None],
    *,
    quiet: bool,
    budget: float | None,
    before: dict[str, Any] | None = None,
) -> Result:
    """Train and keep; `begin` is called when nothing stands in the way, and nothing has been written before.

    `before` is the receipt of earlier sittings, None for a run that begins.
    """
    meter = Meter(receipt.cost(before) if before else None)
    with Stop(budget, quiet) as stop:
        with progress(config.steps * config.runs, quiet=quiet) as bar:
            held: list[str] = []  # a wrong call gets one line and no more
            say: Callable[[str], None] = held.append
            job = _prepare(config, lambda text: say(text))
            with ExitStack() as afterwards:
                afterwards.callback(job.close)
                if stop.signum is not None:
                    raise Stopped(stop.signum, None, None if before is None else folder.path)
                sitting = Sitting(config, folder, job, meter, bar, stop, before or {}, begin)
                if before is None:
                    sitting.begin()
                else:
                    sitting.look()
                say = bar.status
                for text in (*held, "compiling (cached for next time)"):
                    say(text)
                try:
                    for phase in job.phases:
                        spent = sitting.run(phase)
                        if spent is not None:
                            return spent
                finally:
                    sitting.hush()
        try:
            return sitting.finish()
        except OSError as error:  # a full disk, after the last checkpoint
            raise RunFailed(one_line(error), folder.path) from error


class Sitting:
    """One sitting of a run: folds over the moments of its phases and keeps rows, checkpoints, policies and receipt."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        job: Job,
        meter: Meter,
        bar: Progress,
        stop: Stop,
        before: dict[str, Any],
        begin: Callable[[], None],
    ):
        self.config, self.folder, self.job, self.meter, self.bar, self.stop = config, folder, job, meter, bar, stop
        self.before = before  # the receipt of earlier sittings, or empty
        self.to_begin: Callable[[], None] | None = begin  # what is to be done before anything is written
        self.found: dict[str, Found] = {}  # of each phase that is there already
        self.dashboard = None
        self.rows: list[dict[str, Any]] = []
        self.weights: dict[int, Any] = {}  # of each run
        self.structures: dict[str, dict[int, Any]] = {}  # the same, of each other structure
        self.reached: dict[tuple[int, int | None], float] = {}  # return of each run, where a budget was spent
        self.steps: dict[int, int] = {}  # of each run, so far
        self.evaluation_seconds, self.saved_at = 0.0, perf_counter()
        self.began, self.first_step = perf_counter(), 0
        self.writers: list[Any] = []  # of checkpoints, for each phase so far
        self.faults: list[str] = []  # that were survived
        self.told_at, self.estimated = -math.inf, False

    def look(self) -> None:
        """Find out where a run goes on; nothing is written. Raises BadFile if what is there is damaged."""
        from . import checkpoint

        if self.folder.path is None:
            return
        file = self.folder.path / "rows.jsonl"
        try:
            there = rows.read(file, ("step", "episode_return"))
        except (OSError, ValueError) as error:
            raise BadFile(f"{file} is damaged ({error}); repair that line or remove the file") from None
        for phase in self.job.phases:
            step = checkpoint.newest(self.folder.path / "checkpoints" / phase.name, self._note)
            whose = self._whose(phase)
            kept = [row for row in there if rows.run_of(row) in whose and (row["step"] or 0) <= (step or 0)]
            self.found[phase.name] = Found(step, kept)

    def begin(self) -> None:
        """The first time: nothing stands in the way any more."""
        begin, self.to_begin = self.to_begin, None
        if begin is None:
            return
        begin()
        if self.config.log != "none" and self.folder.path is not None:
            self.dashboard = dashboards.DASHBOARDS[self.config.log](self.folder.path, self.config._asdict())

    def run(self, phase: Phase) -> Result | None:
        """Train a phase to its end; where the budget is spent before, what there is then, else None.

        Raises Stopped if a signal asked for it, and RunFailed; both after saving.
        """
        found = self.found.get(phase.name, Found())
        start = found.step
        due = [s for s in phase.due if s > (start or 0)]
        ended = {rows.run_of(row) for row in found.rows if row.get("step", 0) >= phase.due[-1]}
        if not due and ended != self._whose(phase):
            due = phase.due[-1:]  # whatever became of the rows: what is finished has been evaluated
        moment, asked = None, None
        told = None  # the last moment whose rows, if any are due, are on the disk: a checkpoint is never ahead of them
        try:
            with closing(cast(Generator, phase.moments(self._start(phase, found)))) as moments:
                for moment in moments:
                    self.meter.tick()
                    self.steps.update((k, moment.step) for k in phase.runs)
                    if due and moment.step >= due[0]:
                        due = [s for s in due if s > moment.step]
                        final = moment.step >= self.config.steps
                        self._evaluate(phase, moment, FINAL_EPISODES if final else EVAL_EPISODES)
                    told = moment
                    self._show(phase, moment)
                    asked = None if moment.step >= self.config.steps else self.stop.asked()
                    if asked is not None:
                        break
                    self._save_if_due(moment)
                assert moment is not None
                if moment.step != start:
                    self._save(moment)
                self.weights |= dict(zip(phase.runs, moment.weights(), strict=True))
                for name, weights in moment.structures().items():
                    self.structures.setdefault(name, {}).update(zip(phase.runs, weights, strict=True))
                if asked == 0:
                    self._judge(phase, moment)
                    asked = self.stop.signum or asked
        except (RuntimeError, OSError, MemoryError) as error:  # XLA's errors are RuntimeErrors
            with suppress(Exception):  # what can be saved still
                if told is not None and told is moment:
                    self._save(told)
            kind = Diverged if isinstance(error, Diverged) else RunFailed
            with suppress(Exception):
                if self.to_begin is None:  # else nothing has been trained, and the receipt is of before
                    self._write_receipt(finished=False, diverged=kind is Diverged)
            reason = str(error) if isinstance(error, ActorFailed | RunFailed) else one_line(error)
            raise kind(reason, self.folder.path) from error
        if asked is None:
            return None
        try:
            result = self._end(finished=False)
        except OSError as error:
            raise RunFailed(one_line(error), self.folder.path) from error
        if asked:
            raise Stopped(asked, moment.step, self.folder.path)
        return result

    def _start(self, phase: Phase, found: Found) -> Restore | None:
        """How to go on from where a phase was; rows after it, of the phase's runs, are dropped."""
        from . import checkpoint

        folder = self.folder.path
        if folder is None:
            return None
        checkpoints, step = folder / "checkpoints" / phase.name, found.step
        self.writers.append(checkpoint.Writer(checkpoints, step))
        self.rows += found.rows

        def begin() -> None:
            self.begin()
            rows.keep_until(folder / "rows.jsonl", step or 0, self._whose(phase))

        def read(like: Any) -> Any:
            tree = checkpoint.restore(checkpoints, cast(int, step), like)
            begin()
            return tree

        if step is None:
            begin()
            return None
        return Restore(step, read, checkpoint.width(checkpoints, step))

    def _whose(self, phase: Phase) -> set[tuple[int, int | None]]:
        return {self.config.who(k) for k in phase.runs}

    def _played(self, moment: Moment, episodes: int) -> Episodes | None:
        start = perf_counter()
        try:
            return moment.evaluate(episodes)
        except Exception as error:  # out of the environment, which may raise anything
            raise RunFailed(f"the evaluation at step {moment.step:,} failed: {one_line(error)}", None) from error
        finally:
            self.evaluation_seconds += perf_counter() - start

    def _judge(self, phase: Phase, moment: Moment) -> None:
        """What the policy that a budget has brought is worth: for the receipt, and no row of the run's."""
        whose = list(map(self.config.who, phase.runs))
        if {rows.run_of(row) for row in self.rows if row["step"] == moment.step} >= set(whose):
            return
        self.bar.status(f"the budget is spent: evaluating what was reached, {EVAL_EPISODES} episodes")
        played = self._played(moment, EVAL_EPISODES)
        if played is not None:
            self.reached |= {who: float(np.mean(x)) for who, x in zip(whose, played.returns, strict=True)}

    def _evaluate(self, phase: Phase, moment: Moment, episodes: int) -> None:
        played = self._played(moment, episodes)
        assert played is not None
        now = self.meter.finish().wall_seconds
        new = [
            {
                "agent": self.config.agent,
                "env": self.config.env,
                "seed": seed,
                "member": member,
                "step": moment.step,
                "episode_return": float(np.mean(played.returns[i])),
                "episode_length": float(np.mean(played.lengths[i])),
                "wall_seconds": now,
                "episodes": episodes,
                **{name: _plain(values[i]) for name, values in moment.metrics.items()},
            }
            for i, (seed, member) in enumerate(map(self.config.who, phase.runs))
        ]
        if self.folder.path is not None:
            rows.write(self.folder.path / "rows.jsonl", new, lasting=False)
        self.rows += new
        self._log(new)

    def _log(self, new: list[dict[str, Any]]) -> None:
        """A dashboard that fails is given up; the run goes on."""
        if self.dashboard is None:
            return
        try:
            self.dashboard.write(new)
        except Exception as error:  # of a package that talks to a server, or a full disk
            self.dashboard = None
            self.bar.say(f"--log {self.config.log} has failed and is given up: {one_line(error)}", always=True)

    def _show(self, phase: Phase, moment: Moment) -> None:
        done = sum(self.steps.values())
        if not self.first_step:
            self.first_step, self.began = done, perf_counter() - self.evaluation_seconds
        newest = {rows.run_of(row): row["episode_return"] for row in self.rows}
        interval = bootstrap(list(newest.values())) if newest else None
        seconds = perf_counter() - self.began - self.evaluation_seconds
        speed = (done - self.first_step) / seconds if seconds > 0 and done > self.first_step else None
        kl = moment.metrics.get("kl")
        kl = None if kl is None else float(np.mean(kl))
        self.bar.update(done, interval, speed, kl)
        self._tell(done, speed if seconds >= PACE else None, speed, kl)

    def _tell(self, done: int, pace: float | None, speed: float | None, kl: float | None) -> None:
        """What is left to do: of a long run once as a line, when its pace is known, and always for those that watch."""
        total = self.config.steps * self.config.runs
        if pace is not None and not self.estimated:
            self.estimated = True
            left = (total - done) / pace
            if left > LONG:
                steps = f"{words.number(total - done)} steps that are left"
                self.bar.say(
                    f"estimate: {words.seconds(left)} for the {steps}; Ctrl-C or --budget MINUTES end with a checkpoint"
                )
        if self.folder.path is not None and perf_counter() - self.told_at > live.SECONDS_BETWEEN:
            live.write(self.folder.path, done, total, speed, kl)
            self.told_at = perf_counter()

    def hush(self) -> None:
        """Nothing trains any more."""
        if self.folder.path is not None:
            live.remove(self.folder.path)
        if self.dashboard is not None:
            with suppress(Exception):  # the rows are in rows.jsonl
                self.dashboard.close()

    def _save(self, moment: Moment) -> None:
        """Write a checkpoint and wait until it is there."""
        self._begin_saving(moment)
        for writer in self.writers[-1:]:
            writer.wait()

    def _begin_saving(self, moment: Moment) -> None:
        for writer in self.writers[-1:]:
            assert self.folder.path is not None
            file = self.folder.path / "rows.jsonl"
            if file.exists():  # a checkpoint is never ahead of its rows, whenever the power fails
                files.sync(file)
            writer.save(moment.step, *moment.snapshot())

    def _save_if_due(self, moment: Moment) -> None:
        """Begin a checkpoint from time to time. A disk that is full just then may have room when the next is due."""
        if perf_counter() - self.saved_at < SAVE_SECONDS or not all(writer.due() for writer in self.writers[-1:]):
            return
        try:
            self._begin_saving(moment)
            self._write_receipt(finished=False)
        except OSError as error:
            self._note(f"{error.strerror or error}; the run goes on, and the last good checkpoint is kept")
        self.saved_at = perf_counter()

    def _note(self, fault: str) -> None:
        self.faults.append(fault)
        self.bar.say(fault, always=True)

    def _write_receipt(self, finished: bool, diverged: bool = False) -> dict[str, Any]:
        last = {rows.run_of(row): row["episode_return"] for row in self.rows} | self.reached
        best = [self.config.who(k) for k in self._kept() or self._there()]
        newest = list(self.steps.values())[-1] if self.steps else 0
        account = {
            "evaluation_seconds": self.evaluation_seconds,
            "checkpoint_seconds": sum(writer.seconds for writer in self.writers),
            "faults": self.faults,
            **self.job.account(),
        }
        cost = self.meter.finish()
        away = account.get("cluster", {}).get("cpu_seconds")
        if away is not None:
            cost = cost._replace(
                cpu_seconds=cost.cpu_seconds + away, energy_joules=None,
                energy_method="not known: the nodes of a cluster are not measured",
            )  # fmt: skip
        made = receipt.receipt(
            agent=self.config.agent,
            env=self.config.env,
            runtime=self.config.runtime,
            seeds=self.config.seeds,
            steps=self.config.steps if finished else newest,
            training_steps=sum(self.steps.values()),
            per_seed=[last[run] for run in best if run in last],
            cost=cost,
            finished=finished,
            diverged=diverged,
            episodes_per_seed=FINAL_EPISODES if finished else EVAL_EPISODES,
            episode_cap=episode_cap(self.config.env, options_for(self.config.env, self.config.env_options)),
            qat=self.config.qat,
            **({"population": members.summary(self.config.population, self.rows)} if self.config.population else {}),
            **added(account, self.before),
        )
        if self.folder.path is not None:
            receipt.write(self.folder.path / "receipt.json", made)
        return made

    def _write_policy(self) -> Actor:
        actor = self._actor(self.weights)
        if self.folder.path is not None:
            write(self.folder.path / "policy", actor.card, actor.weights)
            for name, weights in self.structures.items():
                if weights.keys() == self.weights.keys():
                    other = self._actor(weights)
                    write(self.folder.path / "policy" / name, other.card, other.weights)
        return actor

    def _kept(self) -> list[int]:
        """The runs whose policies are kept and count: every seed's, of a population the best member."""
        if self.config.population is None or self.config.population.joint:
            return list(range(self.config.seeds))
        best = members.best(self.config.population.evolves, self.rows)
        return [k for k in range(self.config.runs) if best.get(self.config.who(k)[0]) == self.config.who(k)[1]]

    def _there(self) -> list[int]:
        """The runs whose policies are there to be kept."""
        # stopped before the first evaluation, none is best
        first = {self.config.who(k)[0]: k for k in sorted(self.weights, reverse=True)}
        return [k for k in self._kept() if k in self.weights] or sorted(first.values())

    def _actor(self, weights: dict[int, Any]) -> Actor:
        runs = self._there()
        card = next(phase.card for phase in self.job.phases if runs[0] in phase.runs)
        layers, of_seeds = self.job.alike(card.layers, [weights[k] for k in runs])
        return Actor(card._replace(layers=layers), of_seeds)

    def finish(self) -> Result:
        return self._end(finished=True)

    def _end(self, finished: bool) -> Result:
        actor = self._write_policy()
        made = self._write_receipt(finished)
        # of a run that can go on all that cannot be made again is saved by now
        with nullcontext() if finished else suppress(OSError, ValueError):
            self._report()
        return Result(actor, made, self.rows, self.folder.path)

    def _report(self) -> None:
        from .monitor.report import report

        if self.folder.path is not None:
            report(self.folder.path)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def added(account: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """An account with the sums of earlier sittings added."""
    total = dict(account)
    for name in SUMS:
        if isinstance(account.get(name), float | int) and isinstance(before.get(name), float | int):
            total[name] += before[name]
    for name in LISTS:
        if isinstance(before.get(name), list) and name in account:
            total[name] = before[name] + account[name]
    for group in ("time_split", "actors"):
        if isinstance(account.get(group), dict) and isinstance(before.get(group), dict):
            total[group] = added(account[group], before[group])
    for name in FIRST:
        if before.get(name) is not None:
            total[name] = before[name]
    return total


def milestones(steps: int, count: int) -> list[int]:
    """`count` evenly spaced steps, the last of which is `steps`."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


__all__ = ["HELD_OUT", "Config", "Result", "Stopped", "UsageError", "configure", "read_config", "resume", "train"]
