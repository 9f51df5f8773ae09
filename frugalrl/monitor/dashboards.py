"""Rows for TensorBoard, Weights & Biases and Trackio, under the names that Stable-Baselines3 users search for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from .files import plain
from .rows import Row

IDENTITY = ("agent", "env", "seed", "member", "step")
TAGS = {
    "episode_return": "eval/mean_reward",
    "episode_length": "eval/mean_ep_length",
    "env_steps_per_second": "time/fps",
    "steps_per_second": "time/fps",
    "fps": "time/fps",
    "wall_seconds": "time/time_elapsed",
    "kl": "actors/kl",
    "agreement": "actors/agreement",
    "ratio": "actors/ratio",
    "ess": "actors/ess",
    "staleness": "actors/staleness",
    "staleness_max": "actors/staleness_max",
}


MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}  # that each needs
INSTALL = {name: f"pip install 'frugalrl[{name}]'" for name in MODULES}


class Dashboard(NamedTuple):
    write: Callable[[Iterable[Row]], None]  # the rows of one evaluation
    close: Callable[[], None]


def tensorboard(folder: str | os.PathLike, config: Mapping[str, Any] | None = None) -> Dashboard:
    """Event files under `folder`, one sub-run per seed ("seed-0") or member ("seed-0-member-3").

    The x-axis is environment steps. Greedy evaluations are `eval/mean_reward` and `eval/mean_ep_length`; what
    actors report is `actors/...`; every other metric is `train/...`, unless its name already has a "/".
    Raises ValueError if tensorboardX is missing.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            f"--log tensorboard needs tensorboardX, which is not installed: {INSTALL['tensorboard']}"
        ) from None
    writers: dict[str, Any] = {}

    def write(rows: Iterable[Row]) -> None:
        for row in rows:
            name = _sub_run(row)
            if name not in writers:
                writers[name] = SummaryWriter(str(Path(folder) / name))
            for tag, value in _scalars(row).items():
                writers[name].add_scalar(tag, value, row["step"])
        for writer in writers.values():
            writer.flush()

    def close() -> None:
        for writer in writers.values():
            writer.close()
        writers.clear()

    return Dashboard(write, close)


def tracked(module: str, folder: str | os.PathLike, config: Mapping[str, Any] | None = None) -> Dashboard:
    """Weights & Biases or Trackio, whose interfaces are alike.

    In Weights & Biases, whose steps may not go back, each seed or member is a run of a group of the run folder's name;
    Trackio has one run at a time, in which they are names before those of the metrics. The project is `frugalrl`, or
    what WANDB_PROJECT and TRACKIO_PROJECT say. Nothing leaves this machine unless the environment says so:
    WANDB_MODE=online, or TRACKIO_SPACE_ID. A run that is resumed goes on as another one. Raises ValueError if the
    package is missing.
    """
    try:
        package = import_module(module)
    except ImportError:
        raise ValueError(f"--log {module} needs a package that is not installed: {INSTALL[module]}") from None
    name = Path(folder).resolve().name
    project = os.environ.get(f"{module.upper()}_PROJECT") or "frugalrl"
    apart = module == "wandb"
    local = {"dir": str(folder), "mode": os.environ.get("WANDB_MODE") or "offline", "reinit": "create_new"}
    more: dict[str, Any] = local if apart else {}
    runs: dict[str, Any] = {}

    def write(rows: Iterable[Row]) -> None:
        for row in rows:
            sub = _sub_run(row)
            one = f"{name}-{sub}" if apart else name
            if one not in runs:
                told = plain(
                    {**(config or {}), **({"seed": row.get("seed"), "member": row.get("member")} if apart else {})}
                )
                runs[one] = package.init(project=project, group=name, name=one, config=told, **more)
            values = _scalars(row)
            runs[one].log(values if apart else {f"{sub}/{tag}": v for tag, v in values.items()}, step=row["step"])

    def close() -> None:
        for run in runs.values():
            run.finish()
        runs.clear()

    return Dashboard(write, close)


def _sub_run(row: Row) -> str:
    member = row.get("member")
    return f"seed-{row.get('seed', 0)}" + ("" if member is None else f"-member-{member}")


def _scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row under their tags."""
    metrics = {name: plain(value) for name, value in row.items() if name not in IDENTITY}
    return {_tag(name): float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def _tag(name: str) -> str:
    return TAGS.get(name, name if "/" in name else f"train/{name}")


DASHBOARDS: dict[str, Callable[[str | os.PathLike, Mapping[str, Any]], Dashboard]] = {
    "tensorboard": tensorboard,
    "wandb": partial(tracked, "wandb"),
    "trackio": partial(tracked, "trackio"),
}
