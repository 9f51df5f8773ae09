"""Distributions give the same numbers on NumPy and JAX, sample what they say, and agree with SciPy."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from frugalrl.distributions import (
    LOG_STD,
    Categorical,
    ClippedNormal,
    Dist,
    EpsilonGreedy,
    Normal,
    TanhNormal,
    categorical,
    clipped_normal,
    draw,
    epsilon_greedy,
    gaussian,
    squashed_normal,
    tanh_normal,
)

DISCRETE = (EpsilonGreedy, Categorical)
KINDS = (*DISCRETE, Normal, TanhNormal)
SAMPLES = 40_000
UNLIKELY = 1e-3  # seeds are fixed, so a test either passes for ever or fails for ever


def example(kind: type, lead: tuple[int, ...] = (), seed: int = 0) -> Dist:
    """A distribution with 4 actions or 3 dimensions, in NumPy."""
    r = np.random.default_rng(seed)
    if kind is EpsilonGreedy:
        return EpsilonGreedy(r.standard_normal((*lead, 4), np.float32), np.float32(0.1 + 0.2 * seed))
    if kind is Categorical:
        return Categorical(2 * r.standard_normal((*lead, 4), np.float32))
    return kind(r.standard_normal((*lead, 3), np.float32), np.float32(0.5) * r.standard_normal((*lead, 3), np.float32))


def on_jax(dist: Dist) -> Dist:
    return jax.tree.map(jnp.asarray, dist)


def many(dist: Dist) -> Dist:
    """SAMPLES copies of one distribution."""
    return type(dist)(*(np.broadcast_to(x, (SAMPLES, *x.shape)) if np.ndim(x) else x for x in dist))


def numbers(dist: Dist, other: Dist, noise) -> dict:
    """Everything a distribution can be asked."""
    action = dist.sample(noise)
    asked = {"sample": action, "log_prob": dist.log_prob(action), "mode": dist.mode(), "kl": dist.kl(other)}
    return asked | {name: getattr(dist, name)() for name in ("probs", "entropy") if hasattr(dist, name)}


@pytest.mark.parametrize("lead", [(), (7,), (3, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_jax_give_the_same_numbers(kind, lead):
    dist, other = example(kind, lead), example(kind, lead, seed=1)
    noise = draw(dist, np.random.default_rng(2))
    assert (np.shape(noise), noise.dtype) == (dist.noise_shape(), np.float32)
    expected = numbers(dist, other, np.asarray(noise))
    got = numbers(on_jax(dist), on_jax(other), jnp.asarray(noise))
    for name, value in expected.items():
        assert isinstance(value, np.ndarray | np.generic), name
        assert isinstance(got[name], jax.Array), name
        assert (got[name].shape, got[name].dtype) == (value.shape, value.dtype), name
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    assert expected["sample"].dtype == expected["mode"].dtype == (np.int32 if kind in DISCRETE else np.float32)
    assert expected["log_prob"].shape == expected["kl"].shape == lead


@pytest.mark.parametrize("kind", KINDS)
def test_a_jax_key_draws_the_noise_of_jax_arrays(kind):
    dist = on_jax(example(kind, (7,)))
    noise = draw(dist, jax.random.key(0))
    random = jax.random.uniform if kind in DISCRETE else jax.random.normal
    np.testing.assert_array_equal(noise, random(jax.random.key(0), dist.noise_shape()))


@pytest.mark.parametrize("to", [lambda dist: dist, on_jax], ids=["numpy", "jax"])
@pytest.mark.parametrize("kind", DISCRETE)
def test_frequencies_are_the_probabilities(kind, to):
    one, dist = example(kind), to(many(example(kind)))
    rng = np.random.default_rng(3) if to is not on_jax else jax.random.key(3)
    counts = np.bincount(np.asarray(dist.sample(draw(dist, rng))), minlength=4)
    probs = one.probs().astype(np.float64)
    assert stats.chisquare(counts, probs / probs.sum() * SAMPLES).pvalue > UNLIKELY


@pytest.mark.parametrize("kind", [Normal, TanhNormal])
def test_samples_are_those_of_a_normal(kind):
    one, dist = example(kind), many(example(kind))
    action = dist.sample(draw(dist, np.random.default_rng(3))).astype(np.float64)
    before = np.arctanh(action) if kind is TanhNormal else action
    for i in range(3):
        p = stats.kstest(before[:, i], stats.norm(one.mean[i], np.exp(one.log_std[i])).cdf).pvalue
        assert p > UNLIKELY


@pytest.mark.parametrize("noise", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_noise_at_its_ends_gives_an_action_that_exists(noise):
    for dist in (EpsilonGreedy(np.float32([1, 0, 0]), 0.3), Categorical(np.float32([0, 1, -100]))):
        action = dist.sample(np.float32(noise))
        assert 0 <= action < 3
        assert dist.probs()[action] > 0


def test_without_epsilon_the_best_action_is_certain():
    dist = EpsilonGreedy(np.float32([[0, 2, 1], [5, 5, 1]]), 0.0)
    noise = np.linspace(0, 1, 50, endpoint=False, dtype=np.float32)
    for u in noise:
        np.testing.assert_array_equal(dist.sample(np.full(2, u)), [1, 0])  # the first of equals
    np.testing.assert_array_equal(dist.log_prob(np.int32([1, 0])), 0)


def test_the_head_reads_epsilon_from_the_knobs():
    outputs = np.zeros(3, np.float32)
    dist = epsilon_greedy(outputs, {"epsilon": 0.25})
    assert isinstance(dist, EpsilonGreedy)
    assert dist.values is outputs
    assert dist.epsilon == 0.25


def test_epsilon_greedy_probabilities():
    dist = example(EpsilonGreedy, (6,))
    expected = np.full((6, 4), 0.1 / 4)
    expected[np.arange(6), dist.values.argmax(-1)] += 0.9
    np.testing.assert_allclose(dist.probs(), expected, rtol=1e-6)
    np.testing.assert_allclose(dist.log_prob(np.full(6, 2)), np.log(expected[:, 2]), rtol=1e-6)


def test_categorical_log_prob_is_scipys():
    dist = example(Categorical, (6,))
    expected = special.log_softmax(dist.logits.astype(np.float64), -1)
    for action in range(4):
        np.testing.assert_allclose(dist.log_prob(np.full(6, action)), expected[:, action], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dist.entropy(), stats.entropy(np.exp(expected), axis=-1), rtol=1e-5)
    far = Categorical(np.float32([1000, 0, -1000]))  # no overflow
    np.testing.assert_array_equal(far.log_prob(np.int32(0)), 0)


def test_normal_log_prob_is_scipys():
    dist = example(Normal, (6,))
    x = np.random.default_rng(4).standard_normal((6, 3), np.float32)
    exact = stats.norm(dist.mean.astype(np.float64), np.exp(dist.log_std.astype(np.float64)))
    np.testing.assert_allclose(dist.log_prob(x), exact.logpdf(x).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(dist.entropy(), exact.entropy().sum(-1), rtol=1e-5)


def test_tanh_normal_log_prob_is_the_change_of_variables():
    """The density is the slope of the probability that tanh of a normal is at most a, taken numerically."""
    dist = TanhNormal(np.array([0.4]), np.array([-0.3]))
    a, step = np.linspace(-0.99, 0.99, 199), 1e-6
    below = stats.norm(0.4, np.exp(-0.3)).cdf
    slope = (below(np.arctanh(a + step)) - below(np.arctanh(a - step))) / (2 * step)
    np.testing.assert_allclose(dist.log_prob(a[:, None]), np.log(slope), rtol=1e-6, atol=1e-7)
    total, _ = integrate.quad(lambda a: np.exp(dist.log_prob(np.array([a]))), -1, 1)
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("log_std", [-2.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("mean", [0.0, -0.4, 3.0])
def test_tanh_normal_entropy_is_that_of_its_density_and_so_is_its_gradient(mean, log_std):
    """Against integrals and, of the gradient, their differences; bounds only add the logarithm of half the range."""

    def exact(mean, log_std):
        std = np.exp(log_std)
        slope = lambda x: 2 * (np.log(2) - abs(x) - np.log1p(np.exp(-2 * abs(x))))  # log(1 - tanh(x)^2)
        density = lambda u: np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
        middle = [-mean / std] if abs(mean / std) < 12 else None
        stretch = integrate.quad(lambda u: density(u) * slope(mean + std * u), -12, 12, points=middle, limit=200)[0]
        return stats.norm(mean, std).entropy() + stretch + np.log(4)

    def entropy(mean, log_std):
        return TanhNormal(mean[None], log_std[None], jnp.float32([2]), jnp.float32([10])).entropy()

    atol = 2e-4 if log_std <= 0.5 else 5e-3
    got, slopes = jax.jit(jax.value_and_grad(entropy, (0, 1)))(jnp.float32(mean), jnp.float32(log_std))
    np.testing.assert_allclose(got, exact(mean, log_std), atol=atol)
    h = 1e-4
    by_mean = (exact(mean + h, log_std) - exact(mean - h, log_std)) / (2 * h)
    by_std = (exact(mean, log_std + h) - exact(mean, log_std - h)) / (2 * h)
    np.testing.assert_allclose(slopes, [by_mean, by_std], atol=10 * atol)


def test_tanh_normal_is_finite_at_its_bounds():
    for to in (lambda dist: dist, on_jax):
        dist = to(TanhNormal(np.float32([0, 9]), np.float32([0, 1])))
        assert np.isfinite(dist.log_prob(to(np.float32([1, 1])))).all()


def test_kl_of_probabilities_is_scipys():
    for kind in DISCRETE:
        p, q = example(kind, (6,)), example(kind, (6,), seed=1)
        expected = special.rel_entr(p.probs().astype(np.float64), q.probs().astype(np.float64)).sum(-1)
        np.testing.assert_allclose(p.kl(q), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(p.kl(p), 0, atol=1e-6)


def test_kl_of_normals_is_the_closed_form():
    def normal(mean, std):
        return Normal(np.array([mean, 0.5]), np.log([std, 2.0]))  # the second dimension is the same in all

    for kind in (Normal, TanhNormal):
        wide, shifted, standard = (kind(*normal(*p)) for p in ((0.0, 2.0), (1.0, 1.0), (0.0, 1.0)))
        assert standard.kl(wide) == pytest.approx(np.log(2) + 1 / 8 - 1 / 2)
        assert wide.kl(standard) == pytest.approx(-np.log(2) + 4 / 2 - 1 / 2)
        assert shifted.kl(standard) == pytest.approx(1 / 2)
        assert shifted.kl(wide) == pytest.approx(np.log(2) + 2 / 8 - 1 / 2)


def test_kl_is_finite_where_an_action_is_never_taken():
    sure, other = EpsilonGreedy(np.float32([1, 0]), 0.0), EpsilonGreedy(np.float32([0, 1]), 0.0)
    assert sure.kl(sure) == 0
    assert 80 < sure.kl(other) < 90


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_the_mean_difference_of_log_probabilities(kind):
    p, q = many(example(kind)), many(example(kind, seed=1))
    action = p.sample(draw(p, np.random.default_rng(5)))
    difference = (p.log_prob(action) - q.log_prob(action)).astype(np.float64)
    error = difference.std() / SAMPLES**0.5
    assert abs(difference.mean() - example(kind).kl(example(kind, seed=1))) < 4 * error


LOW, HIGH = np.float32([-2, 0.1, 5]), np.float32([3, 0.7, 9])  # of an action of three dimensions
KNOBS = {
    "low": LOW,
    "high": HIGH,
    "noise": np.float32(0.1),
    "random": np.float32(0),
    "log_std": np.float32([-1, 0, 0.5]),
}
HEADS = {tanh_normal: 6, squashed_normal: 3, clipped_normal: 3}  # outputs for three dimensions


@pytest.mark.parametrize("lead", [(), (7,), (3, 5)])
@pytest.mark.parametrize("random", [0, 1])
@pytest.mark.parametrize("head", HEADS)
def test_heads_of_continuous_actions_agree_on_numpy_and_jax(head, random, lead):
    outputs = np.float32(0.3) * np.random.default_rng(0).standard_normal((*lead, HEADS[head]), np.float32)
    knobs = KNOBS | {"random": np.float32(random)}
    dist, same = head(outputs, knobs), head(outputs, {k: np.asarray(x).tolist() for k, x in knobs.items()})
    there = head(jnp.asarray(outputs), jax.tree.map(jnp.asarray, knobs))
    noise = 2 * draw(dist, np.random.default_rng(2))  # often at a bound
    expected, got = (
        numbers(dist, head(-outputs, knobs), noise),
        numbers(there, head(-jnp.asarray(outputs), knobs), noise),
    )
    for name, value in expected.items():
        assert (got[name].shape, got[name].dtype) == (value.shape, value.dtype), name
        np.testing.assert_allclose(got[name], value, rtol=5e-4, atol=5e-5, err_msg=name)
        np.testing.assert_array_equal(numbers(same, head(-outputs, knobs), noise)[name], value, err_msg=name)
    assert expected["sample"].dtype == expected["log_prob"].dtype == np.float32


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("head", HEADS)
def test_actions_stay_within_their_bounds_and_reach_them(head, to):
    outputs = to(np.float32(100) * np.random.default_rng(0).choice(np.float32([-1, 1]), (200, HEADS[head])))
    for knobs in (KNOBS, KNOBS | {"random": np.float32(1), "noise": np.float32(9)}):
        dist = head(outputs, {k: to(x) for k, x in knobs.items()})
        for action in (dist.mode(), dist.sample(to(100 * np.random.default_rng(1).standard_normal((200, 3), "f")))):
            assert ((action >= LOW[None]) & (action <= HIGH[None])).all()
    greedy = head(outputs, {k: to(x) for k, x in KNOBS.items()}).mode()
    np.testing.assert_allclose(greedy.min(0), LOW, rtol=1e-6)
    np.testing.assert_allclose(greedy.max(0), HIGH, rtol=1e-6)


def test_random_actions_do_not_depend_on_the_policy_and_fill_the_space():
    r = np.random.default_rng(0)
    for head, least in ((tanh_normal, 0.5), (clipped_normal, 0.3)):
        knobs = KNOBS | {"random": np.float32(1)}
        some, others = (head(r.standard_normal((SAMPLES, HEADS[head]), np.float32), knobs) for _ in range(2))
        noise = draw(some, r)
        action = some.sample(noise)
        np.testing.assert_allclose(action, others.sample(noise), rtol=1e-5, atol=1e-6)
        for x, low, high in zip(action.T, LOW, HIGH, strict=True):
            assert np.histogram(x, 10, (low, high))[0].min() > least * SAMPLES / 10
    even = tanh_normal(np.zeros((1, 6), np.float32), KNOBS | {"random": np.float32(1)})
    unit = np.linspace(-1, 1, 20_002)[1:-1, None]
    log_prob = TanhNormal(even.mean[:, :1], even.log_std[:, :1]).log_prob(unit)
    assert np.mean(np.log(0.5) - log_prob) == pytest.approx(0.0144, abs=1e-3)


def test_the_standard_deviation_stays_in_its_range_with_a_gradient():
    mean, log_std = gaussian(np.float32([3, -4, -50, 50]))
    np.testing.assert_array_equal(mean, [3, -4])
    np.testing.assert_allclose(log_std, LOG_STD)
    slopes = jax.vmap(jax.grad(lambda x: gaussian(jnp.stack([x, x]))[1][0]))(jnp.float32([-4.0, 0.0, 4.0]))
    assert (slopes > 0).all()


def test_a_stretched_tanh_normal_integrates_to_one_and_scales_its_density():
    narrow = TanhNormal(np.array([0.4]), np.array([-0.3]))
    wide = narrow._replace(low=np.array([2.0]), high=np.array([10.0]))
    a = np.linspace(-0.99, 0.99, 50)[:, None]
    np.testing.assert_allclose(wide.log_prob(6 + 4 * a), narrow.log_prob(a) - np.log(4), rtol=1e-5)
    total, _ = integrate.quad(lambda a: np.exp(wide.log_prob(np.array([a]))), 2, 10)
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("to", [lambda dist: dist, on_jax], ids=["numpy", "jax"])
def test_a_sample_comes_with_its_log_probability(to):
    dist = to(example(TanhNormal, (50,))._replace(low=np.float32(-1), high=np.float32(5)))
    noise = to(np.float32(0.4) * draw(example(TanhNormal, (50,)), np.random.default_rng(2)))
    action, log_prob = dist.sample_and_log_prob(noise)
    np.testing.assert_array_equal(action, dist.sample(noise))
    np.testing.assert_allclose(log_prob, dist.log_prob(action), rtol=1e-3, atol=1e-3)
    # tanh(12) is 1 in float32; log of its derivative is not: log 4 - 24
    _, far = to(TanhNormal(np.float32([12]), np.float32([0]))).sample_and_log_prob(to(np.float32([0])))
    np.testing.assert_allclose(far, -0.5 * np.log(2 * np.pi) - (np.log(4) - 24), rtol=1e-6)


def test_a_clipped_normals_probabilities_are_scipys():
    """A density inside, probabilities at the bounds, and together they are one."""
    mean, std, low, high = 0.4, 0.5, -1.0, 1.0
    exact = stats.norm(mean, std)
    one = np.float64([1])
    dist = ClippedNormal(mean * one, std * one, low * one, high * one)
    x = np.linspace(-0.99, 0.99, 50)
    np.testing.assert_allclose(dist.log_prob(x[:, None]), exact.logpdf(x), rtol=1e-6)
    assert dist.log_prob(high * one) == pytest.approx(exact.logsf(high), rel=1e-6)
    assert dist.log_prob(low * one) == pytest.approx(exact.logcdf(low), rel=1e-6)
    middle, _ = integrate.quad(lambda a: np.exp(dist.log_prob(a * one)), low + 1e-9, high - 1e-9)
    assert middle + np.exp(dist.log_prob(low * one)) + np.exp(dist.log_prob(high * one)) == pytest.approx(1, abs=1e-6)
    assert dist.kl(dist._replace(mean=0.9 * one)) == pytest.approx(0.5)  # one standard deviation


def test_without_noise_there_is_only_the_mean():
    for to in (np.asarray, jnp.asarray):
        dist = clipped_normal(to(np.float32([[0.3, -1, 2]])), {k: to(x) for k, x in (KNOBS | {"noise": 0.0}).items()})
        np.testing.assert_array_equal(dist.sample(to(np.float32([[9, 9, 9]]))), dist.mode())
        assert np.isfinite(dist.log_prob(dist.mode())).all()
        assert dist.kl(dist) == 0


def test_the_categorical_head_takes_logits():
    logits = np.float32([[1, 2, 3]])
    assert categorical(logits, {}).logits is logits


def test_the_module_does_without_jax():
    program = """
import sys
import numpy as np
from frugalrl.distributions import Categorical, ClippedNormal, EpsilonGreedy, Normal, TanhNormal, draw
rng = np.random.default_rng(0)
x = rng.standard_normal((5, 3), np.float32)
for dist in (EpsilonGreedy(x, 0.1), Categorical(x), Normal(x, x), TanhNormal(x, x), ClippedNormal(x, abs(x), x, x)):
    dist.log_prob(dist.sample(draw(dist, rng))), dist.mode(), dist.kl(dist)
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
