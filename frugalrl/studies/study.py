"""What a study is: arms that differ in what a claim is about, tasks that they train on, and findings that decide it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from .. import training
from ..catalog import nearest
from ..config import Config
from ..errors import UsageError
from ..monitor.files import plain

FORMAT = 1  # of study.json
Arguments = Mapping[str, Any]  # `agent`, `env` and options of `frugalrl.train`
Row = Mapping[str, Any]  # what is kept of a finished run; see `running.py`
Runs = Sequence[Sequence[Row]]  # of one arm, by task


class Answer(NamedTuple):
    """What the runs say to a question."""

    verdict: str  # one of the three below
    found: str  # the number with its interval
    note: str = ""


REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "undecided"


class Finding(NamedTuple):
    """A question to two arms; `findings.py` has what may answer it."""

    question: str
    ours: str  # arms
    base: str
    test: Callable[[Runs, Runs], Answer]  # (runs of ours, of base)
    together: bool = False  # asked once of all its tasks; else of each by itself
    tasks: tuple[str, ...] = ()  # that it is asked of; none for all that have both arms


class Study(NamedTuple):
    """A claim as an experiment.

    A run's arguments are those of `base`, of its task, of its arm, and of that arm on that task, the latter first.
    """

    name: str
    claim: str  # one sentence, with its source
    base: Arguments
    # each with its `env`, and `arms`: their names, if not all are for it, or for each what is its own on this task
    tasks: Mapping[str, Arguments]
    arms: Mapping[str, Arguments]  # the first is the one that the others are compared with
    findings: tuple[Finding, ...]
    seeds: int = 5
    figures: Mapping[str, tuple[str, ...]] = {}  # of curves: name -> arms; none for one of all arms
    bits: tuple[int, ...] = ()  # to which the weights of a finished run are rounded, to see what it returns then
    claims: Mapping[str, str] = {}  # what questions that begin with "1. " are about: number -> claim
    batched: bool = False  # seeds train together on host environments too: quicker, but no times seed by seed
    other: Callable[[str], Arguments] = lambda env: {"env": env}  # the task of an environment that no task is of


class Run(NamedTuple):
    """One training: a seed, or all of them side by side, as always in the `compiled` runtime."""

    task: str
    arm: str
    seeds: range
    arguments: dict[str, Any]  # of `frugalrl.train`, but for `seed` and `seeds`
    config: Config


class Plan(NamedTuple):
    """A study with its settings filled in."""

    study: Study
    seeds: int
    scale: float  # of the steps
    envs: tuple[str, ...]  # as they were asked for; none for the study's own
    arms: tuple[str, ...]  # the same
    arguments: dict[str, dict[str, dict[str, Any]]]  # task -> arm -> of `frugalrl.train`
    configs: dict[str, dict[str, Config]]  # that they make

    def settings(self) -> dict[str, Any]:
        """What study.json holds, and what decides every number."""
        return plain(
            {
                "format": FORMAT, "study": self.study.name, "seeds": dict.fromkeys(self.arguments, self.seeds),
                "scale": self.scale,
                "envs": self.envs, "arms": self.arms, "arguments": self.arguments,
                **({"bits": self.study.bits} if self.study.bits else {}),
            }
        )  # fmt: skip


def plan(
    study: Study, seeds: int | None = None, scale: float = 1.0, envs: Sequence[str] = (), arms: Sequence[str] = ()
) -> Plan:
    """Fill in the settings of a study and check every run of it. Raises UsageError; writes nothing.

    `scale` shortens training, the steps before learning starts along with the rest. Of `envs`, those that the study has
    (ids or names of tasks) restrict it to them; others take the place of its tasks, as `Study.other` has them. `arms`,
    if there are any, are those of its arms that are run. Two that would be the same run on a task are refused.
    """
    seeds = study.seeds if seeds is None else seeds
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {seeds}")
    if not 0 < scale < math.inf:
        raise UsageError(f"--scale must be more than 0, got {scale:g}")
    for arm in arms:
        if arm not in study.arms:
            raise UsageError(f"--arms {arm!r} does not exist: {nearest(arm, study.arms, 'there are')}")
    arguments, configs = {}, {}
    for task, about in chosen(study, envs).items():
        made, about = {}, dict(about)
        own = about.pop("arms", tuple(study.arms))
        for arm, there in (own if isinstance(own, Mapping) else {arm: {} for arm in own}).items():
            if arms and arm not in arms:
                continue
            try:
                made[arm] = scaled(merged(study.base, about, study.arms[arm], there), scale)
            except UsageError as error:
                raise UsageError(f"study {study.name}, arm {arm} on {task}: {error}") from None
        for (arm, (_, one)), (other, (_, two)) in combinations(made.items(), 2):
            if one == two:
                raise UsageError(f"{arm} and {other} are the same run on {task}: leave one of them out by --arms")
        if made:
            arguments[task] = {arm: found for arm, (found, _) in made.items()}
            configs[task] = {arm: found for arm, (_, found) in made.items()}
    if not arguments:
        raise UsageError(f"none of the --arms {', '.join(arms)} is for {', '.join(envs)}: leave one of the two out")
    return Plan(study, seeds, float(scale), tuple(envs), tuple(arms), arguments, configs)


def chosen(study: Study, envs: Sequence[str]) -> dict[str, Arguments]:
    """The tasks that `envs` ask for; all if that is empty."""
    if not envs:
        return dict(study.tasks)
    found: dict[str, Arguments] = {}
    for env in envs:
        own = {name: about for name, about in study.tasks.items() if env in (name, about["env"])}
        found |= own or {env: study.other(env)}
    return found


def merged(*parts: Arguments) -> dict[str, Any]:
    """Later arguments take the place of earlier ones; those that are dictionaries, `hyper` say, name by name."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            whole[name] = {**whole.get(name, {}), **value} if isinstance(value, Mapping) else value
    return whole


def scaled(arguments: dict[str, Any], scale: float) -> tuple[dict[str, Any], Config]:
    """The arguments of a training of `scale` times the steps, and the Config they make. Raises UsageError."""
    config = training.configured(**arguments)
    if scale == 1:
        return arguments, config
    starts = config.hyper.get("learning_starts")
    shorter: dict[str, Any] = {"steps": max(1, round(config.steps * scale))}
    if starts:
        shorter["hyper"] = {"learning_starts": max(1, int(starts * scale))}
    arguments = merged(arguments, shorter)
    return arguments, training.configured(**arguments)


def runs(made: Plan) -> Iterator[Run]:
    """The runs in their order, so that a study that is stopped early has something of every task.

    First those of all seeds at once, arm by arm; then seed by seed, where the first arm alternates, as machines change
    over a day.
    """

    def together(config: Config) -> bool:
        return made.study.batched or config.runtime == "compiled"

    for arm in made.study.arms:
        for task, configs in made.configs.items():
            if arm in configs and together(configs[arm]):
                yield Run(task, arm, range(made.seeds), made.arguments[task][arm], configs[arm])
    for seed in range(made.seeds):
        for task, arms in made.arguments.items():
            configs = made.configs[task]
            for arm in arms if seed % 2 == 0 else reversed(arms):
                if not together(configs[arm]):
                    yield Run(task, arm, range(seed, seed + 1), arms[arm], configs[arm])


def words(arguments: Arguments) -> list[str]:
    """The words of `frugal train` that say the same."""
    said = [arguments["agent"], arguments["env"]]
    for name, value in arguments.items():
        option = f"--{name.rstrip('s') if name == 'env_options' else name}".replace("_", "-")
        if name in ("agent", "env"):
            continue
        if isinstance(value, Mapping):
            said += [option, *(f"{key}={_said(each)}" for key, each in _flat(value))] if value else []
        else:
            said += [option, *map(_said, value if isinstance(value, list | tuple) else [value])]
    return said


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values; those of a dictionary within, `kwargs`, with its name before theirs."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from (
                (f"{name}.{key}", each if isinstance(each, str) else json.dumps(each)) for key, each in value.items()
            )
        else:
            yield name, value


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
