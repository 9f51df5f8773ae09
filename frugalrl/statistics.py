"""Statistics for a handful of runs: the interquartile mean, and intervals that the same numbers always give again.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).

Scores are either one array of runs, [runs], or a sequence of such arrays, one for each task. Tasks may have different
numbers of runs; the statistic is taken over the runs of all tasks together, as the paper takes the interquartile mean,
so normalise scores of different tasks first. Its mean and median are of the tasks' means: `per_task=np.mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Scores = Any  # [runs], or a sequence of [runs], one for each task
Statistic = Callable[..., Any]  # called as statistic(array, axis=-1); np.mean, np.median and iqm are such


class Interval(NamedTuple):
    """An estimate and its confidence interval; `low` and `high` are None where the data cannot give one."""

    point: float
    low: float | None
    high: float | None


def iqm(scores: Scores, axis: int = -1) -> Any:
    """The mean of the middle half of `scores` along `axis` (of the runs of all tasks together, if given by task).

    The floor(n / 4) lowest and as many highest of n scores are left out, whole scores only: what
    `scipy.stats.trim_mean(scores, 0.25)` and rliable compute. With n < 4 nothing is left out and this is the mean. A
    NaN among the scores gives NaN: a run that diverged must not be trimmed away unseen.
    """
    scores = np.concatenate(_tasks(scores)) if _is_by_task(scores) else np.asarray(scores, np.float64)
    if not scores.size:
        raise ValueError("iqm needs at least one score, got none")
    ordered = np.moveaxis(np.sort(scores, axis=axis), axis, -1)
    runs = ordered.shape[-1]
    cut = runs // 4
    middle = ordered[..., cut : runs - cut].mean(axis=-1)
    mean = np.where(np.isnan(ordered[..., -1]), np.nan, middle)  # NaN sorts last
    return float(mean) if mean.ndim == 0 else mean


def bootstrap(
    scores: Scores,
    statistic: Statistic = iqm,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    per_task: Statistic | None = None,
) -> Interval:
    """The statistic of `scores` with its percentile-bootstrap interval at `level`, stratified by task.

    With `per_task` it is the statistic of what that gives of each task's runs, each task counted once: the median and
    the mean over tasks of Agarwal et al. 2021, section 3, are np.median and np.mean with per_task=np.mean.
    Each task's runs are resampled among themselves, with draws that depend on `seed` and the shape only. One run says
    nothing of the spread between runs: unless every task has at least two, `low` and `high` are None, and so they are
    when a score is not finite.
    """
    _check(resamples, level)
    tasks = _tasks(scores)
    point = float(_together(tasks, statistic, per_task))
    if not _has_interval(tasks):
        return Interval(point, None, None)
    rng = np.random.default_rng(seed)
    return Interval(point, *_bounds(_replicates(tasks, statistic, rng, resamples, per_task), level))


def difference(
    ours: Scores,
    theirs: Scores,
    statistic: Statistic = iqm,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """statistic(ours) - statistic(theirs) for independent runs, with the interval `bootstrap` would give it.

    An interval that holds 0 does not tell the two apart.
    """
    _check(resamples, level)
    rng = np.random.default_rng(seed)
    ours, theirs = _tasks(ours), _tasks(theirs)
    point = float(_together(ours, statistic) - _together(theirs, statistic))
    if not (_has_interval(ours) and _has_interval(theirs)):
        return Interval(point, None, None)
    replicates = [_replicates(tasks, statistic, rng, resamples) for tasks in (ours, theirs)]
    return Interval(point, *_bounds(replicates[0] - replicates[1], level))


def improvement(ours: Scores, theirs: Scores, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """The probability that a run of `ours` scores more than one of `theirs`, ties counted as half, with its interval.

    Mann and Whitney's U over the number of pairs of runs, a mean over the tasks (Agarwal et al. 2021, section 4.3);
    both have the same tasks, in the same order. The interval is that of `bootstrap`: 0.5 in it does not tell the two
    apart. A NaN gives NaN.
    """
    _check(resamples, level)
    ours, theirs = _tasks(ours), _tasks(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"both need the same tasks, got {len(ours)} and {len(theirs)}")
    point = float(np.mean([_wins(x, y) for x, y in zip(ours, theirs, strict=True)]))
    if not (_has_interval(ours) and _has_interval(theirs)):
        return Interval(point, None, None)
    rng = np.random.default_rng(seed)
    replicates = [
        _wins(_drawn(x, rng, resamples), _drawn(y, rng, resamples)) for x, y in zip(ours, theirs, strict=True)
    ]
    return Interval(point, *_bounds(np.mean(replicates, axis=0), level))


def chance(ours: Scores, theirs: Scores, seed: int = 0, resamples: int = 10_000) -> float:
    """How likely an `improvement` at least as far from a half is where it makes no difference whose run it is.

    A permutation test: the runs of each task are dealt out anew to both sides (Fisher 1935; what
    `scipy.stats.permutation_test` does, here of several tasks at once). The interval of `improvement` is too short for
    a handful of runs, and none at all for those that do not overlap: of three runs each, dealt out anew, one in ten
    stands as far apart. A NaN gives NaN.
    """
    _check(resamples, 0.95)
    rng, moved, found = np.random.default_rng(seed), np.zeros(resamples), 0.0
    for x, y in zip(_tasks(ours), _tasks(theirs), strict=True):
        dealt = rng.permuted(np.tile(np.concatenate([x, y]), (resamples, 1)), axis=-1)
        moved += _wins(dealt[:, : len(x)], dealt[:, len(x) :]) - 0.5
        found += _wins(x, y) - 0.5
    if np.isnan(found):
        return float("nan")
    return float((1 + np.sum(abs(moved) >= abs(found) - 1e-9)) / (1 + resamples))


def profile(
    scores: Scores, thresholds: Sequence[float], seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> list[Interval]:
    """The performance profile: for each threshold the share of the runs of all tasks that score more.

    Agarwal et al. 2021, section 4.2: run-score distributions, with an interval at each threshold by itself.
    """
    return [
        bootstrap(
            scores, lambda x, axis, t=threshold: np.where(np.isnan(x), np.nan, x > t).mean(axis), seed, resamples, level
        )
        for threshold in thresholds
    ]


def area(steps: Sequence[float], returns: Sequence[float]) -> float:
    """The area under a learning curve over its length: the mean return from its first step to its last.

    `steps` increase; between two of them the curve is straight. One point is its own mean.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(returns, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not x.size or (np.diff(x) <= 0).any():
        raise ValueError("a learning curve is one return for each of increasing steps")
    return float(y[0] if len(x) == 1 else np.trapezoid(y, x) / (x[-1] - x[0]))


def _wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The share of pairs of runs in which ours scores more; [...] of [..., runs] each."""
    x, y = ours[..., :, None], theirs[..., None, :]
    won = np.where(np.isnan(x) | np.isnan(y), np.nan, (x > y) + 0.5 * (x == y))
    return won.mean((-2, -1))


def _together(tasks: list[np.ndarray], statistic: Statistic, per_task: Statistic | None = None) -> np.ndarray:
    """The statistic of all runs, or with `per_task` of one number for each task; [...] of [..., runs] for each task."""
    parts = tasks if per_task is None else [np.expand_dims(per_task(runs, axis=-1), -1) for runs in tasks]
    return np.asarray(statistic(np.concatenate(parts, axis=-1), axis=-1))


def _replicates(
    tasks: list[np.ndarray],
    statistic: Statistic,
    rng: np.random.Generator,
    resamples: int,
    per_task: Statistic | None = None,
) -> np.ndarray:
    """The statistic of each resample, [resamples]."""
    return _together([_drawn(runs, rng, resamples) for runs in tasks], statistic, per_task)


def _drawn(runs: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Resamples of the runs of one task, [resamples, runs]."""
    return runs[rng.integers(len(runs), size=(resamples, len(runs)))]


def _bounds(replicates: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _has_interval(tasks: list[np.ndarray]) -> bool:
    return all(len(runs) >= 2 and np.isfinite(runs).all() for runs in tasks)


def _is_by_task(scores: Scores) -> bool:
    return isinstance(scores, Sequence) and len(scores) > 0 and np.ndim(scores[0]) == 1


def _tasks(scores: Scores) -> list[np.ndarray]:
    """One float64 array of runs for each task."""
    tasks = [np.asarray(runs, np.float64) for runs in (scores if _is_by_task(scores) else [scores])]
    for runs in tasks:
        if runs.ndim != 1 or not runs.size:
            raise ValueError(f"scores are one or more runs, [runs], or a list of such by task; got shape {runs.shape}")
    return tasks


def _check(resamples: int, level: float) -> None:
    if not (resamples >= 1 and 0 < level < 1):
        raise ValueError(f"resamples must be >= 1 and 0 < level < 1, got resamples={resamples}, level={level}")
