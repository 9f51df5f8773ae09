"""From an agent's name to a trained policy: put the records together, run them, and keep everything in a run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from . import catalog
from .catalog import UsageError
from .evaluate import HELD_OUT, Episodes
from .monitor import dashboards, files, receipt, rows
from .monitor.progress import Progress, progress
from .monitor.receipt import Cost, Meter
from .policy import Actor, BadFile, Card, write
from .statistics import bootstrap

EVALUATIONS = 10  # of a run, evenly spaced
SEGMENTS = 5  # progress reports between two evaluations of a compiled run
EVAL_EPISODES = 20  # of an evaluation along the way
FINAL_EPISODES = 100  # of the last one
SAVE_SECONDS = 120.0  # between two checkpoints
MODES = ("fp32", "int8", "auto")
FORMAT = 1  # of config.json


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


class Stopped(Exception):
    """A run was asked to stop and has been saved; `signal` says by what."""

    def __init__(self, signum: int, step: int, folder: Path | None):
        super().__init__(f"stopped at step {step:,}")
        self.signum, self.step, self.folder = signum, step, folder


Restore = Callable[[Any], Any]  # a tree of shapes -> the tree of a checkpoint


class Phase(NamedTuple):
    """Seeds that train together."""

    name: str
    seeds: range
    moments: Callable[[Restore | None], Iterator[Moment]]  # from a checkpoint, or None for the beginning


class Moment(NamedTuple):
    """What a runtime yields while a phase goes on."""

    step: int  # environment steps of each seed
    metrics: dict[str, Any]  # name -> [seeds of the phase]
    evaluate: Callable[[int], Episodes]  # episodes -> [seeds, episodes]; may be called at any moment
    snapshot: Callable[[], Any]  # the tree to checkpoint
    weights: Callable[[], list]  # one network's weights for each seed


class Job(NamedTuple):
    """A run made ready by one of the runtimes."""

    phases: list[Phase]
    card: Card
    account: Callable[[], dict[str, Any]]  # compile_seconds, time_split, actors, and other receipt entries, so far


class Result(NamedTuple):
    """A finished run."""

    actor: Actor
    receipt: dict[str, Any]
    rows: list[dict[str, Any]]
    folder: Path | None

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


def configure(
    agent: str,
    env: str,
    *,
    steps: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    runtime: str = "auto",
    hyper: dict[str, Any] | None = None,
    actors: str = "fp32",
    correct: str = "auto",
    precision: str = "fp32",
    log: str = "none",
) -> Config:
    """Check every choice and fill in the defaults. Raises UsageError, one line that names the fix; writes nothing."""
    module = catalog.recipe(agent)
    _among("--actors", actors, MODES)
    _among("--correct", correct, ("auto", "none", "tis"))
    _among("--precision", precision, ("fp32",))
    _among("--runtime", runtime, ("auto", "compiled", "actors"))
    _among("--log", log, ("none", "tensorboard"))
    default_steps, defaults = catalog.defaults(agent, env)
    chosen = defaults | catalog.parse_hyper(agent, hyper or {})
    steps = default_steps if steps is None else steps
    for name, value in (("--steps", steps), ("--seeds", seeds)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed must be from 0 to 2147483647, got {seed}")
    obs, actions = catalog.spaces(env)
    static, _ = _split(module, chosen)
    try:
        module.assemble(static, obs, actions)
    except ValueError as error:
        raise UsageError(f"{agent} cannot train on {env}: {error}") from None
    if runtime == "compiled" and actors != "fp32":
        raise UsageError(f"--actors {actors} needs actor processes: use --runtime actors, or leave --runtime out")
    if runtime == "compiled" and not catalog.has_twin(env):
        raise UsageError(f"{env} has no JAX twin, which --runtime compiled needs: use --runtime actors")
    if runtime == "auto":
        runtime = "compiled" if catalog.has_twin(env) and actors == "fp32" else "actors"
    if correct == "auto":
        correct = "none"  # what every agent so far does of its own
    config = Config(agent, env, steps, seeds, seed, runtime, actors, correct, precision, chosen, steps, log)
    _check_numbers(config)
    return config


def _among(option: str, value: str, known: tuple[str, ...]) -> None:
    if value in known:
        return
    if value in catalog.LATER:
        raise UsageError(f"{option} {value} is not there yet; today: {', '.join(known)}")
    raise UsageError(f"{option} {value!r} does not exist: {catalog.nearest(value, known, 'there are')}")


def _check_numbers(config: Config) -> None:
    """Numbers that would fail later or do nothing."""
    for name, value in config.hyper.items():
        if isinstance(value, float) and not np.isfinite(value):
            raise UsageError(f"--hyper {name}={value} must be a finite number")
        least = 0 if name in ("learning_starts", "gradient_steps") or isinstance(value, float) else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
            raise UsageError(f"--hyper {name}={value} must be at least {least}")
    h = config.hyper
    if h.get("gradient_steps") == 0:
        raise UsageError("--hyper gradient_steps=0 would never learn; use 1 or more")
    if h.get("buffer_size", 0) < h.get("batch_size", 0):
        raise UsageError(f"--hyper buffer_size={h['buffer_size']} is smaller than batch_size={h['batch_size']}")
    if config.steps <= h.get("learning_starts", 0):
        raise UsageError(
            f"--steps {config.steps} ends before learning starts at {h['learning_starts']}: "
            f"more steps, or --hyper learning_starts={config.steps // 10}"
        )


def _split(module, chosen: dict[str, Any]):
    """(Static, Hyper) of an agent from one dictionary of both."""
    static = module.Static(**{k: v for k, v in chosen.items() if k in module.Static._fields})
    hyper = module.Hyper(**{k: v for k, v in chosen.items() if k in module.Hyper._fields})
    return static, hyper


class Folder(NamedTuple):
    """A run folder, or None for a run that is not kept."""

    path: Path | None

    def create(self, config: Config, force: bool) -> None:
        """Make the folder and write config.json. Raises UsageError before anything is written."""
        if self.path is None:
            return
        path = self.path
        if path.exists() and not path.is_dir():
            raise UsageError(f"--out {path} is a file; give a folder")
        if path.is_dir() and any(path.iterdir()):
            if not force:
                raise UsageError(f"--out {path} is not empty: use --force to replace it, or another folder")
            if not (path / "config.json").exists():
                raise UsageError(
                    f"--out {path} is not a run folder, so --force will not replace it: use another folder"
                )
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(f"no permission to write in {path}")
        except OSError as error:
            raise UsageError(f"--out {path} cannot be written: {error.strerror or error}") from None
        for old in path.iterdir() if force else ():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        if self.path is not None:
            text = json.dumps({"format": FORMAT, **config._asdict()}, indent=1)
            files.replace(self.path / "config.json", text + "\n")

    def checkpoints(self, phase: str) -> Path | None:
        return None if self.path is None else self.path / "checkpoints" / phase


def read_config(path: Path) -> Config:
    """config.json of a run folder. Raises BadFile if it is missing, damaged, or of another program."""
    file = path / "config.json"
    if not file.exists():
        raise BadFile(f"{path} is not a run folder (no config.json); give the --out folder of a `frugal train`")
    try:
        found = json.loads(file.read_text())
        if found.pop("format") != FORMAT:
            raise ValueError("written by another version")
        config = Config(**found)
        hyper = {k: tuple(v) if isinstance(v, list) else v for k, v in config.hyper.items()}
        return config._replace(hyper=catalog.parse_hyper(config.agent, hyper))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{file} is damaged or not from FrugalRL ({error}); restore it or train again") from None


def train(
    agent: str,
    env: str,
    *,
    out: str | Path | None = None,
    force: bool = False,
    quiet: bool = True,
    budget: float | None = None,
    **options: Any,
) -> Result:
    """Train `agent` on `env` and evaluate it greedily on held-out seeds.

    Options are those of `frugal train`: steps, seeds, seed, runtime, hyper, actors, correct, precision, log. `out` is
    the run folder; without it nothing is kept but the Result. `budget` is in minutes. Raises UsageError for a wrong
    call, and Stopped when interrupted, after saving.
    """
    config = configure(agent, env, **options)
    folder = Folder(None if out is None else Path(out))
    folder.create(config, force)
    return _run(config, folder, quiet=quiet, budget=budget)


def resume(
    path: str | Path, *, steps: int | None = None, quiet: bool = True, budget: float | None = None
) -> Result | None:
    """Go on with a run from its last checkpoint, to `steps` if given; None if it was finished already."""
    folder = Folder(Path(path))
    config = read_config(Path(path))
    if steps is not None:
        if steps < config.steps:
            raise UsageError(f"--steps {steps} is less than the run's {config.steps}; give at least that")
        config = config._replace(steps=steps)
    done = receipt.read(Path(path) / "receipt.json")
    if done and done.get("finished") and done.get("steps") == config.steps:
        return None
    folder.write_config(config)
    return _run(config, folder, quiet=quiet, budget=budget, again=True)


def _prepare(config: Config, report: Callable[[str], None]) -> Job:
    """Only now is JAX imported: a wrong call has been refused long before."""
    from . import jobs

    return {"compiled": jobs.compiled_job, "actors": jobs.actors_job}[config.runtime](config, report)


def _run(config: Config, folder: Folder, *, quiet: bool, budget: float | None, again: bool = False) -> Result:
    meter = Meter(_earlier_cost(folder) if again else None)
    bar = progress(config.steps * config.seeds, quiet=quiet)
    with bar, _Stop(budget) as stop:
        bar.status("compiling (cached for next time)")
        job = _prepare(config, bar.status)
        sitting = Sitting(config, folder, job, meter, bar, stop)
        for phase in job.phases:
            sitting.run(phase)
    return sitting.finish()


def _earlier_cost(folder: Folder) -> Cost | None:
    found = receipt.read(folder.path / "receipt.json") if folder.path else None
    return Cost(**{name: found[name] for name in Cost._fields}) if found else None


class _Stop:
    """Turns SIGINT, SIGTERM and a spent budget into a request that the run looks at between two steps.

    A second SIGINT ends the program at once.
    """

    def __init__(self, budget: float | None):
        self.signum: int | None = None
        self.deadline = None if budget is None else perf_counter() + 60 * budget
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.old[signum] = signal.signal(signum, self._ask)
        return self

    def _ask(self, signum: int, frame: Any) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    def asked(self) -> int | None:
        if self.signum is None and self.deadline is not None and perf_counter() > self.deadline:
            return 0
        return self.signum

    def __exit__(self, *raised: Any) -> None:
        for signum, handler in self.old.items():
            signal.signal(signum, handler)


class Sitting:
    """One sitting of a run: folds over the moments of its phases and keeps rows, checkpoints, policies and receipt."""

    def __init__(self, config: Config, folder: Folder, job: Job, meter: Meter, bar: Progress, stop: _Stop):
        self.config, self.folder, self.job, self.meter, self.bar, self.stop = config, folder, job, meter, bar, stop
        self.dashboard = None
        if config.log == "tensorboard" and folder.path is not None:
            self.dashboard = dashboards.tensorboard(folder.path)
        self.rows: list[dict[str, Any]] = []
        self.weights: dict[int, Any] = {}
        self.evaluation_seconds, self.saved_at = 0.0, perf_counter()
        self.began, self.first_step, self.steps_done = perf_counter(), 0, 0
        self.last: dict[str, Any] = {}

    def run(self, phase: Phase) -> None:
        checkpoints = self.folder.checkpoints(phase.name)
        start, restore = self._start(phase, checkpoints)
        due = [s for s in milestones(self.config.steps, EVALUATIONS) if s > (start or 0)]
        offset = phase.seeds.start * self.config.steps
        moment = None
        for moment in phase.moments(restore):
            self.meter.tick()
            if due and moment.step >= due[0]:
                due = [s for s in due if s > moment.step]
                final = moment.step >= self.config.steps
                self._evaluate(phase, moment, FINAL_EPISODES if final else EVAL_EPISODES)
            self._show(phase, moment, offset)
            asked = None if moment.step >= self.config.steps else self.stop.asked()
            if asked is not None or perf_counter() - self.saved_at > SAVE_SECONDS:
                self._save(checkpoints, moment)
            if asked is not None:
                self.steps_done = moment.step
                self._write_receipt(finished=False)
                raise Stopped(asked, moment.step, self.folder.path)
        assert moment is not None
        if moment.step != start:
            self._save(checkpoints, moment)
        self.weights |= dict(zip(phase.seeds, moment.weights(), strict=True))

    def _start(self, phase: Phase, checkpoints: Path | None) -> tuple[int | None, Restore | None]:
        """The step to go on from and how to; rows after it, of the phase's seeds, are dropped."""
        from . import checkpoint

        found = checkpoint.steps(checkpoints) if checkpoints is not None else []
        start = found[-1] if found else None
        if self.folder.path is not None:
            file, seeds = self.folder.path / "rows.jsonl", [self.config.seed + k for k in phase.seeds]
            rows.keep_until(file, start or 0, seeds)
            self.rows += [row for row in rows.read(file) if row["seed"] in seeds]
        if start is None or checkpoints is None:
            return None, None
        return start, partial(checkpoint.restore, checkpoints, start)

    def _evaluate(self, phase: Phase, moment: Moment, episodes: int) -> None:
        start = perf_counter()
        played = moment.evaluate(episodes)
        self.evaluation_seconds += perf_counter() - start
        now = self.meter.finish().wall_seconds
        new = [
            {
                "agent": self.config.agent,
                "env": self.config.env,
                "seed": self.config.seed + seed,
                "member": None,
                "step": moment.step,
                "episode_return": float(np.mean(played.returns[k])),
                "episode_length": float(np.mean(played.lengths[k])),
                "wall_seconds": now,
                "episodes": episodes,
                **{name: float(values[k]) for name, values in moment.metrics.items()},
            }
            for k, seed in enumerate(phase.seeds)
        ]
        self.rows += new
        if self.folder.path is not None:
            rows.write(self.folder.path / "rows.jsonl", new)
        if self.dashboard is not None:
            self.dashboard.write(new)

    def _show(self, phase: Phase, moment: Moment, offset: int) -> None:
        done = offset + moment.step * len(phase.seeds)
        if not self.first_step:
            self.first_step, self.began = done, perf_counter()
        newest = {row["seed"]: row["episode_return"] for row in self.rows}
        interval = bootstrap(list(newest.values())) if newest else None
        seconds = perf_counter() - self.began - self.evaluation_seconds
        speed = (done - self.first_step) / seconds if seconds > 0 and done > self.first_step else None
        kl = moment.metrics.get("kl")
        self.bar.update(done, interval, speed, None if kl is None else float(np.mean(kl)))

    def _save(self, checkpoints: Path | None, moment: Moment) -> None:
        if checkpoints is not None:
            from . import checkpoint

            checkpoint.save(checkpoints, moment.step, moment.snapshot())
        self.saved_at = perf_counter()

    def _write_receipt(self, finished: bool) -> dict[str, Any]:
        last = {row["seed"]: row["episode_return"] for row in self.rows}
        account = self.job.account()
        made = receipt.receipt(
            agent=self.config.agent,
            env=self.config.env,
            runtime=self.config.runtime,
            seeds=self.config.seeds,
            steps=self.config.steps if finished else self.steps_done,
            per_seed=[last[seed] for seed in sorted(last)],
            cost=self.meter.finish(),
            evaluation_seconds=self.evaluation_seconds,
            finished=finished,
            **account,
        )
        if self.folder.path is not None:
            receipt.write(self.folder.path / "receipt.json", made)
        return made

    def finish(self) -> Result:
        from .monitor.report import report

        actor = Actor(self.job.card, [self.weights[k] for k in sorted(self.weights)])
        made = self._write_receipt(finished=True)
        if self.dashboard is not None:
            self.dashboard.close()
        if self.folder.path is not None:
            write(self.folder.path / "policy", actor.card, actor.weights)
            report(self.folder.path)
        return Result(actor, made, self.rows, self.folder.path)


def milestones(steps: int, count: int) -> list[int]:
    """`count` evenly spaced steps, the last of which is `steps`."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


__all__ = ["HELD_OUT", "Config", "Result", "Stopped", "UsageError", "configure", "read_config", "resume", "train"]
