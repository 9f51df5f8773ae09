"""Rows as event files for TensorBoard, under the names that Stable-Baselines3 users search for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
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


class Dashboard(NamedTuple):
    write: Callable[[Iterable[Row]], None]  # the rows of one evaluation
    close: Callable[[], None]


def tensorboard(folder: str | os.PathLike) -> Dashboard:
    """Event files under `folder`, one sub-run per seed ("seed-0") or member ("seed-0-member-3").

    The x-axis is environment steps. Greedy evaluations are `eval/mean_reward` and `eval/mean_ep_length`; what
    actors report is `actors/...`; every other metric is `train/...`, unless its name already has a "/".
    Raises ValueError if tensorboardX is missing.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "--log tensorboard needs tensorboardX, which is not installed: pip install 'frugalrl[tensorboard]'"
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


def _sub_run(row: Row) -> str:
    member = row.get("member")
    return f"seed-{row.get('seed', 0)}" + ("" if member is None else f"-member-{member}")


def _scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row under their tags."""
    metrics = {name: plain(value) for name, value in row.items() if name not in IDENTITY}
    return {_tag(name): float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def _tag(name: str) -> str:
    return TAGS.get(name, name if "/" in name else f"train/{name}")
