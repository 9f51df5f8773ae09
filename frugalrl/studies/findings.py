"""What answers a question of a study: numbers of two arms with their interval, and the verdict that it gives.

A claim is reproduced where the whole interval is on its side, not reproduced where the whole is on the other, and
undecided between. Fewer than `ENOUGH` runs of a task decide nothing: an interval of two is the gap between them. Who
learns better has to be unlikely by chance, too, which takes four runs of each arm, or several tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np

from .. import statistics
from ..monitor import words
from ..statistics import Interval
from .study import NOT, REPRODUCED, UNDECIDED, Answer, Row, Runs

ENOUGH = 3  # runs of each arm and task
UNLIKELY = 0.05  # what a permutation test may give, at most, if arms are to differ
Test = Callable[[Runs, Runs], Answer]
Tasks = Sequence[Sequence]  # what was measured on each task: runs of an arm, or shares of pairs of them


def values(runs: Sequence[Row], name: str) -> list[float]:
    """A number of each run; NaN where it is not known."""
    return [float("nan") if row.get(name) is None else float(row[name]) for row in runs]


def returns(runs: Sequence[Row], bits: int | None = None) -> list[float]:
    """The final return of each run; or with its weights rounded to so many bits, NaN where that is not known."""
    if bits is None:
        return values(runs, "final_return")
    return [dict(row["rounded"]).get(bits, float("nan")) for row in runs]


def costs(runs: Sequence[Row], name: str) -> list[float]:
    """A cost of each run, seconds say; seeds that trained in one program are one measurement."""
    return list(_by_seed(runs, name).values())


def _by_seed(runs: Sequence[Row], name: str) -> dict[int, float]:
    kept = [row for row in runs if row["seeds_together"] == 1 or row["seed"] == 0]
    return dict(zip((row["seed"] for row in kept), values(kept, name), strict=True))


def times(measure: str, at_most: float, note: Callable[[Runs, Runs], str] = lambda ours, base: "") -> Test:
    """Whether ours takes at most `at_most` times what base takes of `measure`: seconds, joules.

    A run is compared with that of the same seed, for arms take turns within a seed: so the machine's drift over hours
    cancels out.
    """

    def test(ours: Runs, base: Runs) -> Answer:
        shares = [_shares(*arms, measure) for arms in zip(ours, base, strict=True)]
        if not all(shares):
            return Answer(UNDECIDED, "no two runs of one seed", note(ours, base))
        found = statistics.bootstrap(shares)
        said = f"{words.interval(found)} times {measure.replace('_', ' ')}, claimed {at_most:.3g}"
        return Answer(decided(found, shares, most=at_most), said, note(ours, base))

    return test


def _shares(ours: Sequence[Row], base: Sequence[Row], measure: str) -> list[float]:
    """What each run of ours takes over what that of base with the same seed takes."""
    mine, theirs = _by_seed(ours, measure), _by_seed(base, measure)
    return [mine[seed] / theirs[seed] for seed in mine if theirs.get(seed)]


def better(at_least: float = 0.5, bits: int | None = None) -> Test:
    """Whether a run of ours ends with a higher return than one of base with a probability of more than `at_least`.

    With `bits` the returns are those of weights rounded to so many.
    """

    def test(ours: Runs, base: Runs) -> Answer:
        found, verdict = _won(ours, base, lambda runs: returns(runs, bits), at_least)
        return Answer(verdict, f"better with probability {words.interval(found)}")

    return test


def learns_better() -> Test:
    """Whether a run of ours has more often than not a higher return than one of base, over all of its evaluations."""

    def test(ours: Runs, base: Runs) -> Answer:
        found, verdict = _won(ours, base, _areas)
        return Answer(verdict, f"a higher mean of the curve with probability {words.interval(found)}")

    return test


def like(theirs: Sequence[tuple[int, float]], after: int = 0) -> Test:
    """Whether the mean of one published curve, (step, return), from step `after` on, lies among those of our runs.

    A curve that is like n of ours is outside of them with a probability of 2 / (n + 1).
    """

    def mean(curve: Sequence[Sequence[float]]) -> float:
        return statistics.area(*zip(*(point for point in curve if point[0] >= after), strict=True))

    def test(ours: Runs, base: Runs) -> Answer:
        curves = [row["curve"] for each in ours for row in each]
        if not _enough(ours) or any(curve[-1][0] != theirs[-1][0] or None in dict(curve).values() for curve in curves):
            return Answer(UNDECIDED, "a run that has failed, of other steps, or too few runs")
        means = [mean(curve) for curve in curves]
        said = f"a mean of the curve of {min(means):.4g} to {max(means):.4g}, theirs {mean(theirs):.4g}"
        return Answer(REPRODUCED if min(means) <= mean(theirs) <= max(means) else NOT, said)

    return test


def not_everywhere(of: int) -> Test:
    """Whether there is a task on which ours learns worse than base, and so helps not on all of them, which are `of`.

    Asked of several tasks, chance must be the less likely on each (Holm 1979). That it helps everywhere denies it.
    """

    def test(ours: Runs, base: Runs) -> Answer:
        each = {b[0]["task"]: ([a], [b]) for a, b in zip(ours, base, strict=True)}
        found = {task: _won(*runs, _areas) for task, runs in each.items()}
        worse = [task for task, (_, verdict) in found.items() if verdict == NOT]
        chances = {task: statistics.chance(*_ranked(*each[task], _areas)) for task in worse}
        order = sorted(worse, key=chances.__getitem__)
        sure = {*takewhile(lambda task: chances[task] * (len(each) - order.index(task)) <= UNLIKELY, order)}
        worse = [task for task in worse if task in sure]
        helped = [task for task, (_, verdict) in found.items() if verdict == REPRODUCED]
        said = f"worse on {', '.join(worse) or 'none'}; better on {', '.join(helped) or 'none'}"
        if worse:
            return Answer(REPRODUCED, said)
        return Answer(NOT if len(helped) == len(each) >= of else UNDECIDED, said)

    return test


Scores = Callable[[Sequence[Row]], list[float]]  # of the runs of an arm and task


def _won(ours: Runs, base: Runs, of: Scores, least: float = 0.5) -> tuple[Interval, str]:
    """How probable it is that a run of ours is the better one, with its interval, and what that says."""
    scores = _ranked(ours, base, of)
    found = statistics.improvement(*scores)
    verdict = decided(found, ours, base, least=least)
    if verdict != UNDECIDED and not statistics.chance(*scores) <= UNLIKELY:
        verdict = UNDECIDED
    return found, verdict


def _ranked(ours: Runs, base: Runs, of: Scores) -> tuple[list, list]:
    """Scores of ours and of base, by task; a run that has failed is worse than all others, and as bad as another."""
    scores: tuple[list, list] = ([], [])
    for pair in zip(ours, base, strict=True):
        known = [x for runs in pair for x in of(runs) if not np.isnan(x)]
        for runs, made in zip(pair, scores, strict=True):
            made.append(
                [min(known, default=0.0) - 1 if _failed(row) else x for row, x in zip(runs, of(runs), strict=True)]
            )
    return scores


def _failed(row: Row) -> bool:
    """Whether it has returns that are not finite numbers."""
    return row["final_return"] is None or row.get("area", 0.0) is None


def _areas(runs: Sequence[Row]) -> list[float]:
    return values(runs, "area")


def equal_return() -> Test:
    """Whether nothing was lost: the intervals of both returns overlap, or ours is the higher one.

    Where they overlap, but our return itself is below the interval of base, too few seeds can tell: undecided. Of ours,
    half that diverged on a task are a loss. What may be lost all the same is told: the interval of the difference.
    """

    def test(ours: Runs, base: Runs) -> Answer:
        mine, theirs = (statistics.bootstrap([returns(each) for each in runs]) for runs in (ours, base))
        gap = statistics.difference([returns(each) for each in ours], [returns(each) for each in base])
        said = f"return {words.interval(mine)} against {words.interval(theirs)}, a difference of {words.interval(gap)}"
        lost = [sum(bool(row.get("diverged")) for row in each) for each in ours]
        if _enough(ours, base) and any(2 * n >= len(each) for n, each in zip(lost, ours, strict=True)):
            return Answer(NOT, said, f"{sum(lost)} runs have diverged")
        if not _enough(ours, base) or mine.high is None or theirs.low is None:
            return Answer(UNDECIDED, said)
        if mine.high < theirs.low:
            return Answer(NOT, said)
        return Answer(REPRODUCED if mine.point >= theirs.low else UNDECIDED, said)

    return test


def keeps(bits: int, at_most: float, full: int = 32) -> Test:
    """Whether ours, each run for itself, loses at most that share of its return when its weights have `bits` bits."""

    def lost(ours: Runs, n: int) -> Interval:
        return statistics.bootstrap([losses(each, n, full) for each in ours])

    def test(ours: Runs, base: Runs) -> Answer:
        there = {n for runs in ours for row in runs for n, _ in row["rounded"]}
        verdicts = {n: decided(lost(ours, n), ours, base, most=at_most) for n in sorted(there, reverse=True)}
        enough = [n for n, _ in takewhile(lambda each: each[1] == REPRODUCED, verdicts.items())]
        said = f"{words.interval(lost(ours, bits))} of the return is lost, claimed at most {at_most:g}"
        note = f"no more than that down to {enough[-1]} bits" if enough else ""
        return Answer(verdicts.get(bits, UNDECIDED), said, note)

    return test


def losses(runs: Sequence[Row], bits: int, full: int) -> list[float]:
    """The share of its return that each run loses with weights of so many bits: QuaRL's relative error."""
    whole, rounded = (np.array(returns(runs, n)) for n in (full, bits))
    return ((whole - rounded) / np.where(whole == 0, np.nan, abs(whole))).tolist()


def both(*tests: Test) -> Test:
    """Reproduced if all of them are, not if one is not."""

    def test(ours: Runs, base: Runs) -> Answer:
        answers = [each(ours, base) for each in tests]
        verdicts = {answer.verdict for answer in answers}
        verdict = next(one for one in (NOT, UNDECIDED, REPRODUCED) if one in verdicts)
        return Answer(verdict, *("; ".join(filter(None, parts)) for parts in list(zip(*answers, strict=True))[1:]))

    return test


def saves(part: float, measure: str = "training_seconds") -> Test:
    """Whether ours saves at least `part` of what a policy that costs nothing would save of base's."""

    def test(ours: Runs, base: Runs) -> Answer:
        return times(measure, 1 - part * policies(base), amdahl)(ours, base)

    return test


def amdahl(ours: Runs, base: Runs) -> str:
    """What a policy that costs nothing would save of base's work: the bound of all compression of actors."""
    share = policies(base)
    if not share:
        return ""
    arm = base[0][0]["arm"]
    work = f"policy calls and packets are {share:.0%} of the work of {arm}"
    return f"{work}: without any, {1 - share:.2f} times is left (Amdahl)"


def policies(runs: Runs) -> float:
    """The share of policy calls, and of making and taking packets, in the work of actors and learner."""
    splits = [row["time_split"] or {} for each in runs for row in each]
    work = sum(value or 0.0 for split in splits for name, value in split.items() if name != "other")
    spent = sum(split.get(name) or 0.0 for split in splits for name in ("inference", "compressor"))
    return spent / work if work else 0.0


def methods(ours: Runs, base: Runs) -> str:
    """How the energy was measured."""
    found = {str(row["energy_method"]).partition(":")[0] for runs in (*ours, *base) for row in runs}
    return f"{' and '.join(sorted(found))}, compilation and evaluation included"


def breaks() -> Test:
    """Whether ours fails: by a return below the interval of base, or, in at least half of its runs, by weights or
    updates that were not finite numbers and used all the same, or by a loss whose scale has collapsed. Updates that a
    guard has skipped are no failure.
    """

    def test(ours: Runs, base: Runs) -> Answer:
        mine, theirs = (statistics.bootstrap([returns(each) for each in runs]) for runs in (ours, base))
        runs = [row for each in ours for row in each]
        lost = [row for row in runs if row.get("diverged") or row.get("broken_updates") or row["final_return"] is None]
        said = f"return {words.interval(mine)} against {words.interval(theirs)}"
        note = f"numbers that were not finite, or a scale that has collapsed, in {len(lost)} of {len(runs)} runs"
        if not _enough(ours, base):
            return Answer(UNDECIDED, said, note)
        below = mine.high is not None and theirs.low is not None and mine.high < theirs.low
        if below or 2 * len(lost) >= len(runs):
            return Answer(REPRODUCED, said, note)
        return Answer(UNDECIDED if lost or mine.point < (theirs.low or mine.point) else NOT, said, note)

    return test


def decided(found: Interval, *measured: Tasks, least: float = -np.inf, most: float = np.inf) -> str:
    """The verdict on the claim that a number is between `least` and `most`, if enough was measured on each task."""
    if not _enough(*measured) or found.low is None or found.high is None:
        return UNDECIDED
    if least < found.low and found.high < most:
        return REPRODUCED
    return NOT if found.high < least or found.low > most else UNDECIDED


def _enough(*measured: Tasks) -> bool:
    return all(len(task) >= ENOUGH for tasks in measured for task in tasks)
