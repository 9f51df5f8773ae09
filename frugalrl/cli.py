"""The command line: `frugal train AGENT ENV` and its companions.

Options are parsed by argparse and errors are formatted here: one line on standard error with the nearest right
spelling, exit code 2, and nothing written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is loaded; or it fights the actors for the cores

from . import __version__, catalog, config
from .envs.make import EnvOptions, options_for
from .errors import BadFile, RunFailed, Stopped, Taken, UsageError, call
from .monitor.files import name_of
from .signals import EndAtOnce


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that offer the nearest spelling."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)  # or a new option could break a script that shortens another

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        found, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                word, agent = word.partition("=")[0], getattr(found, "agent", None)
                own = catalog.hyper_fields(catalog.recipe(agent)) if agent in catalog.AGENTS else ()
                known = [o for action in self._every_action(found) for o in action.option_strings]
                name = catalog.meant(word, own)
                hint = f"use --hyper {name}=..." if name else catalog.nearest(word, known, "options are")
                raise UsageError(f"unknown option {word}: {hint}")
            raise UsageError(f"unexpected argument {word!r}: see frugal --help")
        return found

    def _every_action(self, found) -> list[argparse.Action]:
        parsers = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        chosen = parsers[0].choices.get(getattr(found, "command", None) or "") if parsers else None
        return chosen._actions if chosen is not None else self._actions


def _whole(text: str) -> int:
    try:
        return catalog.integer(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def parser() -> Parser:
    top = Parser(prog="frugal", description="Train deep reinforcement-learning agents for a fraction of the compute.")
    top.add_argument("--version", action="version", version=f"frugalrl {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    _training(commands.add_parser("train", help="train an agent on an environment"))

    p = commands.add_parser("pbt", help="population-based training: the worst members take over from the best")
    _training(p)
    _search(p)
    p.add_argument(
        "--members", type=_whole, required=True, metavar="N", help="how many train side by side, of each seed"
    )
    p.add_argument(
        "--ready", type=_whole, metavar="STEPS",
        help="environment steps of each member between two selections (default a twentieth of --steps)",
    )  # fmt: skip
    p.add_argument(
        "--truncation", type=float, default=0.25, metavar="F",
        help="share of members that take over from as many best (default 0.25)",
    )  # fmt: skip
    p.add_argument(
        "--explore",
        default="perturb",
        metavar="HOW",
        help="what they take over: perturb it, or resample (default perturb)",
    )
    p.add_argument(
        "--copy",
        default="everything",
        metavar="WHAT",
        help="what is taken over: everything or policy (default everything)",
    )

    p.add_argument(
        "--selection", default="truncation", metavar="HOW",
        help="truncation, or tournament: each may load from a leaderboard of the best so far, with --runtime ray",
    )  # fmt: skip

    p = commands.add_parser("cem", help="CEM-RL: members drawn around a mean; half of them follow a shared critic")
    _training(p)
    _joint(p)
    p.add_argument(
        "--variance", type=float, default=1e-3, metavar="V", help="of each weight around the first mean (default 1e-3)"
    )

    p = commands.add_parser("dvd", help="DvD: members that share a critic and are pulled apart by what they do")
    _training(p)
    _joint(p)
    p.add_argument(
        "--novelty", default="bandit", metavar="HOW",
        help="how much diversity weighs: bandit, schedule, or a number from 0 to 1 (default bandit)",
    )  # fmt: skip

    p = commands.add_parser("sweep", help="random search or a grid: members that differ in hyper-parameters")
    _training(p)
    _search(p)
    p.add_argument("--members", type=_whole, metavar="N", help="how many to draw; a grid has as many as it has points")
    p.add_argument("--grid", action="store_true", help="every combination, of ranges log:LOW:HIGH:POINTS")

    p = commands.add_parser("resume", help="go on with a run from its last checkpoint")
    p.add_argument("run", type=Path, metavar="RUN", nargs="?", help="default: the newest in runs/ that is not finished")
    p.add_argument("--steps", type=_whole, help="go on to this many steps of each seed")
    _running(p)

    p = commands.add_parser("eval", help="play a trained policy on the real environment")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--episodes", type=_whole, default=100, metavar="N", help="of each seed (default 100)")
    p.add_argument("--seed", type=_whole, metavar="S", help="of the first episode (default: the held-out seeds)")
    p.add_argument("--bits", type=_whole, metavar="N", help="round its weights to so many bits before, 2 to 32")
    p.add_argument("--video", type=Path, metavar="FILE", help="write the first episode as a .gif or an .mp4")

    p = commands.add_parser("export", help="write a policy for another program, and FILE.md, its model card")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--format", required=True, metavar="F", help="onnx or litert")
    p.add_argument(
        "--mode", default="fp32", metavar="M", help="how its weights are stored: fp32 or int8 (default fp32)"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/policy.onnx or RUN/policy.tflite")
    p.add_argument(
        "--episodes", type=_whole, default=10, metavar="N",
        help="greedy episodes for the model card, of the file and of the full policy (default 10; 0 for none)",
    )  # fmt: skip

    p = commands.add_parser("study", help="test a claim: arms, tasks and seeds; the same command goes on with it")
    p.add_argument("name", metavar="NAME", help="see `frugal studies`")
    p.add_argument("--seeds", type=_whole, metavar="N", help="of each arm and task (default: what the study says)")
    p.add_argument("--scale", type=float, default=1.0, metavar="F", help="times the steps of its trainings (default 1)")
    p.add_argument("--env", nargs="+", default=[], action="extend", metavar="ENV", help="only these, or others instead")
    p.add_argument("--arms", nargs="+", default=[], action="extend", metavar="ARM", help="only these; more can follow")
    p.add_argument("--out", type=Path, metavar="DIR", help="its folder (default runs/study-NAME)")
    _running(p)

    p = commands.add_parser("report", help="write report.html of a run, a study, or a folder of runs")
    p.add_argument("folder", type=Path, metavar="DIR")
    _price(p)
    p = commands.add_parser("compare", help="several runs side by side: returns, costs, configurations")
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="each is held against the first")
    p.add_argument("--out", type=Path, metavar="FILE", help="the page (default compare.html beside the first run)")
    _price(p)
    p = commands.add_parser("watch", help="look at a run while it goes on, here or in a browser")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("--web", action="store_true", help="serve its page too, to this machine alone, until Ctrl-C")
    p.add_argument("--port", type=_whole, metavar="N", help="of the page (default: a free one)")
    p = commands.add_parser("push", help="upload a policy with its card and receipt to the Hugging Face Hub")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("repo", metavar="REPO", help="USER/NAME; made if it is not there")
    p.add_argument("--private", action="store_true", help="a new repository that only you see")
    p = commands.add_parser("bench", help="measure this machine; without a name, lists the benchmarks")
    p.add_argument("name", nargs="?", metavar="NAME")
    p.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="the benchmark's own: --help names them")
    commands.add_parser("studies", help="the studies there are, with their claims")
    p = commands.add_parser("agents", help="the agents there are, with their hyper-parameters")
    p.add_argument("name", nargs="?", metavar="NAME", help="only this one")
    commands.add_parser("envs", help="the environments there are, and how to install the rest")
    commands.add_parser("doctor", help="what this machine has, and what was measured on it")
    return top


def _training(p: argparse.ArgumentParser) -> None:
    """What `train` takes, and all that train."""
    p.add_argument("agent", metavar="AGENT", help="see `frugal agents`")
    p.add_argument("env", metavar="ENV", help="a Gymnasium id; see `frugal envs`")
    p.add_argument(
        "--steps", type=_whole, help="environment steps of each seed (default: what this pair needs to learn)"
    )
    p.add_argument("--seeds", type=_whole, default=1, metavar="N", help="how many seeds (default 1)")
    p.add_argument("--seed", type=_whole, default=0, metavar="S", help="the first of them (default 0)")
    p.add_argument("--runtime", default="auto", metavar="R", help="auto, compiled, actors or ray (default auto)")
    p.add_argument("--ray-address", metavar="A", help="of a Ray cluster, host:port (default: this machine is one)")
    p.add_argument("--hyper", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help="hyper-parameters")
    p.add_argument(
        "--env-option", nargs="+", default=[], action="extend", metavar="NAME=VALUE",
        help="how the environment is set up; kwargs.NAME=VALUE is for the environment itself",
    )  # fmt: skip
    p.add_argument(
        "--actors", default="fp32", metavar="MODE", help="what actors act with: fp32, int8, half, half+int8, auto"
    )
    p.add_argument("--prune", type=float, metavar="SHARE", help="of its units that the learner ends with (default all)")
    p.add_argument(
        "--prune-at", type=float, nargs="+", default=config.PRUNE_AT, metavar="F",
        help="shares of the training after which units go, as large a part of them each time (default 0.1)",
    )  # fmt: skip
    p.add_argument(
        "--qat", type=_whole, metavar="BITS",
        help="quantisation-aware training: weights that act have so many bits, 2 to 16 (default: full ones)",
    )  # fmt: skip
    p.add_argument(
        "--pull-period", type=_whole, metavar="N",
        help="steps of each environment after which an actor looks for a new policy (default: as fast as it changes)",
    )  # fmt: skip
    p.add_argument(
        "--lockstep", action="store_true",
        help="actors and learner take turns: the same seed gives the same rows, also stopped and resumed (slower)",
    )  # fmt: skip
    p.add_argument("--correct", default="auto", metavar="C", help="repair of off-policy data: auto, none, tis, ...")
    p.add_argument("--precision", default="fp32", metavar="P", help="of the learner: fp32, bf16, fp16, or auto")
    p.add_argument("--out", type=Path, metavar="DIR", help="run folder (default runs/AGENT-ENV, numbered)")
    p.add_argument("--force", action="store_true", help="replace the run folder")
    p.add_argument(
        "--evaluations", type=_whole, default=config.EVALUATIONS, metavar="N",
        help="how many there are on the way, the final one among them (default 10)",
    )  # fmt: skip
    p.add_argument("--log", default="none", metavar="L", help="tensorboard, wandb, trackio or none (default none)")
    _running(p)


def _search(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--search", nargs="+", default=[], action="extend", metavar="NAME=RANGE",
        help="what members differ in: log:LOW:HIGH, uniform:LOW:HIGH or choice:A:B",
    )  # fmt: skip


def _joint(p: argparse.ArgumentParser) -> None:
    p.add_argument("--members", type=_whole, required=True, metavar="N", help="how many actors a seed has")
    p.add_argument(
        "--ready", type=_whole, metavar="STEPS",
        help="steps of each environment in a generation (default: an episode)",
    )  # fmt: skip
    for action in p._actions:
        if action.dest in ("actors", "prune", "prune_at", "qat", "pull_period", "lockstep", "precision"):
            action.help = argparse.SUPPRESS  # the run's own check says why not


def _price(p: argparse.ArgumentParser) -> None:
    p.add_argument("--price", type=float, metavar="P", help="what an hour of this machine costs: tells the money, too")


def _running(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="stop after so many minutes, with a checkpoint and an evaluation",
    )
    p.add_argument("--quiet", action="store_true", help="no progress")


def train(a: argparse.Namespace, population: dict[str, Any] | None = None) -> None:
    from . import training

    hyper = _pairs(a.hyper)
    options = _pairs(a.env_option, "--env-option", "frame_stack=4")
    command = "" if population is None else f"{a.command}-"
    named = Path("runs") / name_of(f"{command}{a.agent}-{a.env}")
    go = partial(
        training.train,
        a.agent, a.env, steps=a.steps, seeds=a.seeds, seed=a.seed, runtime=a.runtime, hyper=hyper, env_options=options,
        actors=a.actors, prune=a.prune, prune_at=a.prune_at, qat=a.qat, pull_period=a.pull_period,
        lockstep=a.lockstep, correct=a.correct, precision=a.precision, force=a.force, log=a.log, quiet=a.quiet,
        budget=a.budget, evaluations=a.evaluations, population=population, ray_address=a.ray_address,
    )  # fmt: skip
    while True:
        try:
            result = go(out=a.out or _free(named))
            break
        except Taken:
            if a.out:
                raise  # else another process has begun a run under that name since it was free
    _finished(result, a.quiet)


def pbt(a: argparse.Namespace) -> None:
    search = _pairs(a.search, "--search", "learning_rate=log:1e-5:1e-2")
    own = {name: getattr(a, name) for name in ("members", "ready", "truncation", "explore", "copy", "selection")}
    train(a, {"kind": "pbt", "search": search, **own})


def cem(a: argparse.Namespace) -> None:
    train(a, {"kind": "cem", "search": {}, "members": a.members, "ready": a.ready, "variance": a.variance})


def dvd(a: argparse.Namespace) -> None:
    train(a, {"kind": "dvd", "search": {}, "members": a.members, "ready": a.ready, "novelty": a.novelty})


def sweep(a: argparse.Namespace) -> None:
    search = _pairs(a.search, "--search", "learning_rate=log:1e-5:1e-2")
    train(a, {"kind": "grid" if a.grid else "random", "search": search, "members": a.members})


def resume(a: argparse.Namespace) -> None:
    from . import training

    a.run = a.run or _unfinished()
    result = training.resume(a.run, steps=a.steps, quiet=a.quiet, budget=a.budget)
    if result is None:
        print(f"{a.run} is finished; to go on: {call('resume', a.run)} --steps N")
        return
    _finished(result, a.quiet)


def _unfinished() -> Path:
    """The newest such run below ./runs, which is said. Raises UsageError if there is none."""
    from .monitor import receipt

    found = [file.parent for file in Path("runs").glob("*/config.json") if config.is_run(file.parent)]
    left = [run for run in found if not (receipt.read(run / "receipt.json") or {}).get("finished")]
    if not left:
        raise UsageError("no run below runs/ is left unfinished: frugal resume RUN, with --steps N for more of one")
    newest = max(left, key=lambda run: (run / "config.json").stat().st_mtime)
    print(f"going on with {newest}")
    return newest


def _finished(result, quiet: bool) -> None:
    from .monitor import receipt

    if not result.receipt["finished"]:
        raise Stopped(0, result.receipt["steps"], result.folder)  # the budget is spent
    if quiet:
        return
    receipt.show(result.receipt, sys.stdout)
    hidden = Path(sys.argv[0]).name == "frugal" and not shutil.which("frugal")  # its environment is not activated
    me = partial(call, program=sys.argv[0] if hidden else "frugal")
    print(
        f"\nreport: {result.folder / 'report.html'}\nnext:\n"
        f"  {me('eval', result.folder)}\n  {me('export', result.folder, '--format', 'onnx')}\n"
        f"  {me('resume', result.folder, '--steps', 2 * result.receipt['steps'])}"
    )


def evaluate(a: argparse.Namespace) -> None:
    import numpy as np

    from . import policy, video
    from .evaluate import HELD_OUT, check_video, episode_cap
    from .statistics import bootstrap

    if a.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {a.episodes}")
    if a.seed is not None and a.seed < 0:
        raise UsageError(f"--seed must not be negative, got {a.seed}")
    if a.bits is not None and not 2 <= a.bits <= 32:
        raise UsageError(f"--bits must be from 2 to 32, got {a.bits}")
    actor = policy.load(a.run)
    if a.bits is not None:
        actor = actor.rounded(a.bits)
    options = options_for(actor.card.env, actor.card.env_options)
    obs, actions = catalog.spaces(actor.card.env, options)  # says what to install if the environment is not there
    if obs.shape != actor.card.obs.shape or type(actions) is not type(actor.card.actions):
        raise BadFile(f"the policy in {a.run} does not fit {actor.card.env}: it was trained on another version of it")
    film = None if a.video is None else video.writer(a.video)
    if film is not None:
        check_video(actor.card.env, options)
    cap = episode_cap(actor.card.env, options)
    if cap is not None:
        print(f"{actor.card.env} has no time limit: episodes are cut off after {cap:,} steps")
    if a.bits is not None:
        print(f"weights rounded to {a.bits} bits after training")
    means, first = [], HELD_OUT if a.seed is None else a.seed
    for k in range(len(actor.weights)):
        frames = [] if film is not None and k == 0 else None
        played = actor.play(a.episodes, seed=k, first=first, frames=frames)
        means.append(float(np.mean(played.returns)))
        spread = f", standard deviation {np.std(played.returns):.1f}"
        print(f"seed {k}: mean greedy return {means[-1]:.1f} over {a.episodes} episodes{spread}")
        if frames and film is not None:
            film(frames)
            print(f"video: {a.video}")
    interval = bootstrap(means)
    if interval.low is not None:
        spread = f"(95 % interval {interval.low:.1f} to {interval.high:.1f})"
        print(f"IQM over {len(means)} seeds: {interval.point:.1f} {spread}")


def export(a: argparse.Namespace) -> None:
    from .levers.compress.deploy import deploy
    from .monitor.streams import is_terminal

    def report(text: str) -> None:
        if is_terminal(sys.stderr):
            print(text, file=sys.stderr)

    for path in deploy(a.run, a.format, a.mode, a.out, a.episodes, report):
        print(path)


def study(a: argparse.Namespace) -> int:
    from .studies import report as told
    from .studies.folder import command
    from .studies.running import study as go

    done = go(
        a.name, seeds=a.seeds, scale=a.scale, envs=tuple(a.env), arms=tuple(a.arms), out=a.out, budget=a.budget,
        quiet=a.quiet,
    )  # fmt: skip
    found = told.load(done.folder)
    if not a.quiet:
        print(f"{done.done} of {done.total} runs are finished; report: {done.folder / 'report.html'}")
        for line in told.told(found):
            print(f"  {line}")
    again = command(dict(found.settings), done.folder)
    if done.stopped is not None:
        code = 128 + done.stopped if done.stopped else 0
        return _say(f"stopped after {done.done} of {done.total} runs; all is saved, go on with: {again}", code)
    if done.failed:
        return _say(f"failed: {'; '.join(done.failed)}; to try these again: {again}", 1)
    return 0


def studies(a: argparse.Namespace) -> None:
    for name in catalog.STUDIES:
        about = catalog.study(name)
        print(f"{name}: {about.claim}")
        for kind, names in (("tasks", about.tasks), ("arms", about.arms)):
            print(f"  {kind}: {', '.join(names)}")
        trainings = about.seeds * sum(len(task.get("arms", about.arms)) for task in about.tasks.values())
        print(f"  {about.seeds} seeds of each: {trainings} trainings")


def report(a: argparse.Namespace) -> None:
    from .monitor.report import report as write_report
    from .studies.report import report as write_study

    if not a.folder.is_dir():
        raise UsageError(f"{a.folder} is not a folder; give a run folder, the folder of a study, or a folder of runs")
    _check_price(a.price)
    study = (a.folder / "study.json").is_file()
    if study and a.price is not None:
        raise UsageError("--price is for the report of runs: leave it out for a study")
    try:
        print(write_study(a.folder) if study else write_report(a.folder, a.price))
    except ValueError as error:
        raise UsageError(str(error)) from None


def compare(a: argparse.Namespace) -> None:
    from .monitor import compare as compared
    from .monitor.streams import encodable

    _check_price(a.price)
    out = a.out or a.runs[0].absolute().parent / "compare.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: write a .html")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    sides = compared.compare(a.runs)
    compared.write(sides, out, a.price)
    for line in compared.table(sides, a.price):
        print(encodable(line, sys.stdout))
    print(f"\nreport: {out}")


def watch(a: argparse.Namespace) -> None:
    from .monitor.watch import watch as look

    if a.port is not None and not a.web:
        raise UsageError("--port is for the page: add --web")
    if a.port is not None and not 0 <= a.port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, got {a.port}")
    look(a.run, sys.stdout, (a.port or 0) if a.web else None)


def push(a: argparse.Namespace) -> None:
    from .hub import push as upload

    print(upload(a.run, a.repo, private=a.private))


def _check_price(price: float | None) -> None:
    if price is not None and not 0 <= price < float("inf"):
        raise UsageError(f"--price must be at least 0, what an hour costs, got {price:g}")


def agents(a: argparse.Namespace) -> None:
    for name in catalog.AGENTS if a.name is None else [a.name]:
        recipe = catalog.recipe(name)
        print(f"{name}: {catalog.AGENTS[name].summary}")
        for field, value in catalog.hyper_fields(recipe).items():
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
            print(f"  --hyper {field}={shown}")


def envs(a: argparse.Namespace) -> None:
    from importlib.util import find_spec

    @cache
    def able(env_id: str) -> str:
        try:
            return ", ".join(catalog.able(*catalog.spaces(env_id)))
        except UsageError as error:  # there is nothing that draws, say
            return str(error)

    for family in catalog.FAMILIES:
        missing = "" if find_spec(family.module) else f"not installed: pip install 'frugalrl[{family.extra}]'"
        for env_id in family.ids:  # to make each of them would take half a minute
            note = missing or able(env_id if family.mixed else family.ids[0])
            print(f"{env_id:38} {'compiled, actors' if catalog.has_twin(env_id) else 'actors':18}   {note}")
    options = " ".join(f"{name}={value}" for name, value in EnvOptions._field_defaults.items() if name != "kwargs")
    print(f"--env-option {options} kwargs.NAME=VALUE")
    print("any other Gymnasium id with array observations works too, in the actors runtime; so do the other games of")
    print("ALE/<Game>-v5, tasks of dm_control/<domain>-<task>-v0, or dm_control_pixels/... as pictures, and")
    print("brax/<name>-<backend> (spring, positional, mjx)")


def doctor(a: argparse.Namespace) -> None:
    from .doctor import examine

    for line in examine():
        print(line, flush=True)


def bench(a: argparse.Namespace) -> int:
    import subprocess

    folder = Path(__file__).parent.parent / "benchmarks"
    shared = ("__init__", "blank", "contest", "fresh", "rows")  # by the benchmarks
    known = {p.stem: p for p in sorted(folder.glob("*.py")) if p.stem not in shared}
    if not (folder / "rows.py").is_file():  # installed packages may lie beside a folder `benchmarks` of somebody else
        raise UsageError("the benchmarks are part of the source checkout, not of the package: clone the repository")
    if a.name is None:
        for name, path in known.items():
            summary = path.read_text().split('"""')[1].strip().splitlines()[0]
            print(f"{name:20} {summary}")
        return 0
    if a.name not in known:
        raise UsageError(f"unknown benchmark {a.name!r}: {catalog.nearest(a.name, known, 'there are')}")
    # not in another folder: a relative --out is meant from here
    there = os.pathsep.join([str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-P", "-m", f"benchmarks.{a.name}", *a.options]
    return subprocess.call(words, env=os.environ | {"PYTHONPATH": there})


def _pairs(items: Sequence[str], option: str = "--hyper", example: str = "learning_rate=0.001") -> dict[str, Any]:
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not value:
            raise UsageError(f"{option} takes name=value, got {item!r}; for example {option} {example}")
        pairs[name] = value
    return pairs


def _free(base: Path) -> Path:
    """`base`, or the first of base-2, base-3, ... that is not there yet."""
    paths = [base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 10_000))]
    return next(path for path in paths if not os.path.lexists(path))  # a name that cannot be is refused with the rest


TRAIN = ("train", "pbt", "cem", "dvd", "sweep", "resume", "study")  # commands that do
COMMANDS = {
    "train": train, "pbt": pbt, "cem": cem, "dvd": dvd, "sweep": sweep, "resume": resume, "eval": evaluate,
    "export": export, "study": study, "report": report, "compare": compare, "watch": watch, "push": push,
    "bench": bench, "agents": agents, "envs": envs, "studies": studies, "doctor": doctor,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 2 for a wrong call, 130 for Ctrl-C, 143 for SIGTERM, 1 for a failed run.

    Without `argv` this is the program itself, and not a call from another one: signals are its own.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may be no text in this encoding, or in any
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that "my_module:MyEnv-v0" is found; last, so that it hides nothing
    try:
        with EndAtOnce() if argv is None and words and words[0] in TRAIN else nullcontext():
            try:
                return _command(words)
            finally:
                sys.stdout.flush()  # here, so that a reader that has left is noticed here, after --help too
    except (UsageError, BadFile) as error:
        return _say(error, 2)
    except Stopped as error:
        return _say(error, 128 + error.signum if error.signum else 0)
    except BrokenPipeError:  # whoever read our output has left, as `head` does; what Python still holds goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RunFailed, OSError) as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)


def _command(words: Sequence[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UsageError(f"unknown command {words[0]!r}: {catalog.nearest(words[0], COMMANDS, 'commands are')}")
    try:
        a = parser().parse_args(words)
    except SystemExit as ended:  # argparse has shown the help or the version
        return int(ended.code or 0)
    if a.command is None:
        parser().print_help()
        return 2
    return COMMANDS[a.command](a) or 0


def _say(what: object, code: int) -> int:
    """One line on standard error."""
    print(f"frugal: {' '.join(map(str.strip, str(what).splitlines()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
