"""The interquartile mean and the bootstrap against SciPy's, and what they do at the edges."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from frugalrl.statistics import Interval, area, bootstrap, chance, difference, improvement, iqm, profile


@pytest.mark.parametrize("runs", [*range(1, 14), 100])
def test_iqm_is_scipys_trimmed_mean(runs):
    scores = np.random.default_rng(runs).normal(size=runs)
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25), rel=1e-12)


def test_iqm_by_hand():
    assert iqm([100.0, 1.0, 2.0, 3.0, -50.0]) == 2.0  # floor(5 / 4) = 1 from each end
    assert iqm([1, 2, 6]) == 3.0  # too few to trim


def test_iqm_along_an_axis():
    scores = np.random.default_rng(0).normal(size=(3, 9))
    np.testing.assert_allclose(iqm(scores), stats.trim_mean(scores, 0.25, axis=1), rtol=1e-12)
    np.testing.assert_allclose(iqm(scores.T, axis=0), iqm(scores), rtol=1e-12)


def test_iqm_pools_the_runs_of_all_tasks():
    assert iqm([[0.0, 1.0], np.array([2.0, 30.0])]) == 1.5


def test_iqm_does_not_hide_a_diverged_run():
    assert math.isnan(iqm([1.0, 2.0, 3.0, float("nan")]))


@pytest.mark.parametrize("statistic", [iqm, np.mean, np.median])
def test_bootstrap_agrees_with_scipy(statistic):
    scores = np.random.default_rng(3).gamma(2.0, 50.0, size=20)
    ours = bootstrap(scores, statistic, resamples=20_000)
    theirs = stats.bootstrap(
        (scores,), statistic, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * spread)
    assert ours.point == pytest.approx(float(statistic(scores)))


def test_bootstrap_is_keyed():
    scores = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert bootstrap(scores, seed=1) == bootstrap(scores, seed=1)
    assert bootstrap(scores, seed=1) != bootstrap(scores, seed=2)


def test_bootstrap_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    bootstrap([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_bootstrap_is_stratified_by_task():
    near_zero, near_thousand = [0.0, 1.0, 0.5, 0.2], [1000.0, 1001.0, 1000.5, 1000.2]
    stratified = bootstrap([near_zero, near_thousand], np.mean)
    pooled = bootstrap(near_zero + near_thousand, np.mean)
    assert stratified.point == pytest.approx(pooled.point)
    assert stratified.high - stratified.low < 1  # type: ignore[operator]
    assert pooled.high - pooled.low > 100  # type: ignore[operator]


def test_bootstrap_of_constant_scores_is_a_point():
    assert bootstrap([7.0, 7.0, 7.0]) == Interval(7.0, 7.0, 7.0)


def test_level_widens_the_interval():
    scores = np.random.default_rng(0).normal(size=12)
    narrow, wide = bootstrap(scores, level=0.5), bootstrap(scores, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]


@pytest.mark.parametrize("scores", [[4.0], [[4.0], [4.0]], [[1.0, 7.0], [4.0]], [4.0, math.inf]])
def test_no_interval_without_two_finite_runs_of_each_task(scores):
    interval = bootstrap(scores)
    assert interval.low is None
    assert interval.high is None


def test_coverage_of_the_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap(rng.normal(size=40), np.mean, seed=trial, resamples=500)
        hits += interval.low <= 0 <= interval.high  # type: ignore[operator]
    assert 0.89 <= hits / 200 <= 0.99


def test_difference_tells_apart_what_differs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(10, 1, size=10), rng.normal(0, 1, size=8)
    apart = difference(a, b)
    assert apart.low is not None
    assert apart.low > 5
    assert apart.point == pytest.approx(iqm(a) - iqm(b))
    same = difference(a, a)
    assert same.low < 0 < same.high  # type: ignore[operator]
    assert difference(a, [1.0]).low is None


@pytest.mark.parametrize("scores", [[], np.zeros((2, 2, 2)), [[1.0], []]])
def test_malformed_scores_are_refused(scores):
    with pytest.raises(ValueError):
        bootstrap(scores)


def test_malformed_options_are_refused():
    with pytest.raises(ValueError, match="level=95"):
        bootstrap([1.0, 2.0], level=95)


# comparisons and profiles


def tasks_of(seed: int, *runs: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 8, size=n).astype(float) + i for i, n in enumerate(runs)]  # with ties


def test_the_difference_is_scipys_bootstrap_of_two_samples():
    rng = np.random.default_rng(2)
    a, b = rng.gamma(9.0, 10.0, size=12), rng.gamma(9.0, 5.0, size=9)
    ours = difference(a, b, np.mean, resamples=20_000)
    theirs = stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert ours.point == pytest.approx(a.mean() - b.mean())
    assert ours.low == pytest.approx(theirs.low, rel=0.02)
    assert ours.high == pytest.approx(theirs.high, rel=0.02)


def test_improvement_is_mann_and_whitneys_u_by_task():
    ours, theirs = tasks_of(0, 5, 9, 4), tasks_of(1, 6, 9, 3)
    u = [stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(ours, theirs, strict=True)]
    found = improvement(ours, theirs)
    assert found.point == pytest.approx(np.mean(u), rel=1e-12)
    pairs = [np.mean([(a > b) + 0.5 * (a == b) for a in x for b in y]) for x, y in zip(ours, theirs, strict=True)]
    assert found.point == pytest.approx(np.mean(pairs))
    assert 0 <= found.low < found.point < found.high <= 1  # type: ignore[operator]


def test_the_interval_of_an_improvement_is_scipys_bootstrap():
    ours, theirs = tasks_of(3, 10)[0], tasks_of(4, 8)[0]

    def wins(x, y, axis):
        assert axis == -1
        return ((x[..., :, None] > y[..., None, :]) + 0.5 * (x[..., :, None] == y[..., None, :])).mean((-2, -1))

    found = improvement(ours, theirs, resamples=20_000)
    expected = stats.bootstrap(
        (ours, theirs), wins, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)


def test_improvement_is_sure_of_what_never_overlaps_and_of_nothing_where_all_is_equal():
    assert improvement([3.0, 4.0], [1.0, 2.0]) == Interval(1.0, 1.0, 1.0)
    assert improvement([1.0, 1.0], [1.0, 1.0]) == Interval(0.5, 0.5, 0.5)
    assert improvement([2.0], [1.0]) == Interval(1.0, None, None)
    assert math.isnan(improvement([math.nan, 2.0], [1.0, 1.0]).point)
    with pytest.raises(ValueError, match="same tasks"):
        improvement([[1.0], [2.0]], [1.0])


@pytest.mark.parametrize("sizes", [(3, 3), (4, 6), (10, 10)])
def test_the_chance_of_a_difference_is_scipys_permutation_test(sizes):
    rng = np.random.default_rng(sum(sizes))
    ours, theirs = (rng.normal(k, 1.0, n) for k, n in enumerate(sizes))

    def wins(x, y, axis):
        return np.mean(np.moveaxis(x, axis, -1)[..., :, None] > np.moveaxis(y, axis, -1)[..., None, :], (-2, -1)) - 0.5

    exact = stats.permutation_test((ours, theirs), wins, vectorized=True, n_resamples=20_000, rng=rng).pvalue
    assert chance(ours, theirs) == pytest.approx(exact, abs=0.015)
    assert chance(theirs, ours) == pytest.approx(exact, abs=0.015)


def test_the_chance_of_a_difference_is_stratified_by_task():
    """Three runs each that do not overlap are one arrangement in ten, of either sign; on two tasks one in 200."""
    high, low = [3.0, 4.0, 5.0], [0.0, 1.0, 2.0]
    assert chance(high, low) == pytest.approx(0.1, abs=0.01)
    assert chance([high, high], [low, low]) == pytest.approx(2 / 400, abs=0.003)
    assert chance([high, low], [low, high]) == pytest.approx(1.0)
    apart = [[0.0, 1.0, 2.0], [100.0, 101.0, 102.0]]  # tasks are never mixed
    assert chance(apart, apart) == pytest.approx(1.0)
    assert math.isnan(chance([float("nan"), 1.0], [0.0, 1.0]))


def test_the_profile_is_the_share_of_runs_above_each_threshold():
    scores, thresholds = tasks_of(7, 6, 6), [-1.0, 2.0, 5.5, 100.0]
    found = profile(scores, thresholds)
    # rliable's run_score_deviation, written out
    assert [each.point for each in found] == [np.mean(np.stack(scores) > t) for t in thresholds]
    assert found[0] == Interval(1.0, 1.0, 1.0)
    assert found[-1] == Interval(0.0, 0.0, 0.0)
    assert found[1].low < found[1].point < found[1].high  # type: ignore[operator]
    below = stats.ecdf(np.concatenate(scores)).cdf.evaluate(thresholds)
    np.testing.assert_allclose([each.point for each in found], 1 - below)


def test_the_area_under_a_curve_is_its_mean_height():
    steps, returns = [10.0, 20.0, 50.0], [0.0, 4.0, 10.0]
    assert area(steps, returns) == pytest.approx(integrate.trapezoid(returns, steps) / 40)
    assert area([5.0], [3.0]) == 3.0
    assert area([0.0, 8.0], [7.0, 7.0]) == 7.0
    for wrong in (([], []), ([1.0, 1.0], [0.0, 0.0]), ([1.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="learning curve"):
            area(*wrong)


@pytest.mark.parametrize("compare", [difference, improvement, chance])
def test_comparisons_are_keyed_and_leave_the_global_generator_alone(compare):
    ours, theirs = [3.0, 1.0, 4.0, 1.5], [9.0, 2.0, 6.0]
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    assert compare(ours, theirs, seed=1) == compare(ours, theirs, seed=1)
    assert compare(ours, theirs, seed=1) != compare(ours, theirs, seed=2)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]


# rliable

# In an environment of its own, for it needs pandas 2. rliable takes a rectangle [runs, tasks] and draws from NumPy's
# global generator. For each case with scores x and y (transposed), and np.random.seed of the number of the case:
#     interval = lambda how, *s: library.get_interval_estimates(
#         {0: s[0] if len(s) == 1 else list(s)}, lambda *s: np.array([how(*s)]), reps=10_000)
#     interval(metrics.aggregate_iqm, x), of aggregate_mean and aggregate_median also
#     interval(metrics.probability_of_improvement, x, y), with reps=2_500
#     library.create_performance_profile({0: x}, thresholds, reps=2_500)
# Each number is [point, low, high].
RLIABLE = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text())["cases"]


@pytest.mark.parametrize("case", RLIABLE, ids=lambda case: case["name"])
def test_estimates_and_intervals_are_rliables(case):
    x, y, thresholds = case["x"], case["y"], case["thresholds"]
    found = {
        "iqm": bootstrap(x, resamples=10_000),
        "mean": bootstrap(x, np.mean, per_task=np.mean, resamples=10_000),
        "median": bootstrap(x, np.median, per_task=np.mean, resamples=10_000),
        "improvement": improvement(x, y, resamples=10_000),
    }
    for name, ours in found.items():
        point, low, high = case[name]
        assert ours.point == pytest.approx(point, rel=1e-9)
        # of 10,000 resamples a bound has a standard error of 0.7 % of the interval, of 2,500 of 1.4 %
        assert ours[1:] == pytest.approx((low, high), abs=0.04 * (high - low)), name
    one = 1 / sum(map(len, x))  # a bound is a number of runs, and may be next to one that is as likely
    for ours, (point, low, high) in zip(profile(x, thresholds, resamples=10_000), case["profile"], strict=True):
        assert ours.point == pytest.approx(point, rel=1e-9)
        assert ours[1:] == pytest.approx((low, high), abs=1.01 * one)


def test_of_unequal_tasks_each_counts_once_in_what_is_taken_per_task():
    scores = [[1.0, 2.0, 3.0, 4.0], [10.0, 20.0], [7.0]]
    assert bootstrap(scores, np.mean, per_task=np.mean).point == pytest.approx((2.5 + 15 + 7) / 3)
    assert bootstrap(scores, np.median, per_task=np.mean).point == 7.0
    assert bootstrap(scores, np.median, per_task=np.max).point == 7.0
    assert bootstrap(scores, np.median).point == 4.0  # of all seven runs
    assert bootstrap(scores[0], np.median, per_task=np.mean).point == 2.5
