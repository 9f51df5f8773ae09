"""The numerics of a learner of 16 bits: each repair, what it repairs, and what the published form left broken."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import receipt
from small import ACTIONS, HYPER, OBS, TORQUE, bits, compiled, random_batch

from frugalrl import catalog, jobs, rng
from frugalrl.agents import sac
from frugalrl.agents.descent import PLAIN, in_parts
from frugalrl.config import configure, read
from frugalrl.distributions import Normal, TanhNormal
from frugalrl.envs import twins
from frugalrl.envs.make import options_for
from frugalrl.errors import Diverged, UsageError
from frugalrl.levers.precision import choice, log_probs, scaling
from frugalrl.levers.precision.hadam import hadam, laid_down, rooted, taken_up
from frugalrl.levers.precision.modes import COLLAPSED, PRECISIONS, REPAIRS, WITHOUT, Precision
from frugalrl.levers.precision.numerics import Counts, Guarded, counts, numerics, stored, watched
from frugalrl.levers.precision.rounding import (
    Dithered,
    Split,
    at_random,
    dithered,
    kahan,
    like,
    narrow,
    rounded,
    split,
    whole,
)
from frugalrl.levers.precision.scaling import Scaled
from frugalrl.memory import uniform
from frugalrl.monitor.receipt import entries
from frugalrl.runtime import actor_learner
from frugalrl.runtime import compiled as runtime
from frugalrl.training import resume, train
from frugalrl.types import Agent, Discrete, Linear, Transition, update

KEY = jax.random.key(0)
HALF = jnp.float16
NAMES = {jnp.float16: "float16", jnp.bfloat16: "bfloat16"}


def half(x) -> jax.Array:
    return jnp.asarray(x, HALF)


def scaled(w, scale: float = scaling.START) -> Scaled:
    """The gradient of one weight, as it flows back."""
    return Scaled({"w": half(w)}, jnp.float32(scale))


# rounding


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_rounding_is_that_of_the_dtype(dtype):
    """Also in a compiled program, of numbers below the least normal one, and beyond the greatest."""
    r = np.random.default_rng(0)
    x = np.float32(r.standard_normal(10_000) * 10.0 ** r.uniform(-9, 6, 10_000))
    with np.errstate(over="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(lambda x: rounded(x, dtype))(x), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: narrow(x, dtype))(x).astype(jnp.float32), expected)


def test_rounding_survives_the_compiler():
    """A cast there and back need not: whether XLA leaves it out is XLA's choice (jax 0.10.2 on a CPU keeps it), so
    the program itself is looked at, too.
    """
    x = jnp.float32([0.1, 0.3, 1e-6])

    @jax.jit
    def lost(x):
        return x - rounded(x, jnp.bfloat16)

    np.testing.assert_array_equal(lost(x), x - x.astype(jnp.bfloat16).astype(jnp.float32))
    assert (lost(x) != 0).all()
    assert "reduce_precision" in str(jax.make_jaxpr(lost)(x))


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
def test_a_number_in_two_parts_has_twice_the_digits(dtype):
    """From the least weights to the largest: nothing overflows and nothing is lost, as 1e4 times a weight would be."""
    r = np.random.default_rng(1)
    x = np.float32(r.choice([-1, 1], 10_000) * 10.0 ** r.uniform(-4, 4.8, 10_000))
    kept = jax.jit(lambda x: split(x, dtype))(x)
    assert kept.value.dtype == kept.lost.dtype == dtype
    digits = 2 * (jnp.finfo(dtype).nmant + 1)
    np.testing.assert_allclose(whole(kept), x, rtol=2.0**-digits)
    np.testing.assert_array_equal(kept.value, x.astype(dtype))


def test_the_published_scale_of_targets_overflows_and_ours_does_not():
    weight = half(7.0)
    assert jnp.isinf(half(1e4) * weight)
    lowered = numerics(PRECISIONS["fp16"])
    kept = lowered.follow(lowered.target(weight), lowered.store(jnp.float32(60_000)), jnp.float32(0.5))
    np.testing.assert_allclose(whole(kept), 30_003.5, rtol=1e-6)


# Kahan


def followed(precision: Precision, dtype, steps: int = 3_000) -> float:
    """The target weight .04 after it has followed .05, with tau .005."""
    lowered = numerics(precision._replace(dtype=NAMES[dtype], masters=False))
    params = lowered.store(jnp.float32(0.05))

    @jax.jit
    def run(target):
        return jax.lax.fori_loop(0, steps, lambda _, x: lowered.follow(x, params, jnp.float32(0.005)), target)

    return float(lowered.full(run(lowered.target(jnp.float32(0.04)))))


def test_kahan_momentum_reaches_what_it_follows():
    """The figures of the exact average: .0500; float16 alone stalls at .0469."""
    naive, repaired = (followed(PRECISIONS[name], HALF) for name in ("fp16-naive", "fp16"))
    assert naive == pytest.approx(0.0469, abs=5e-5)
    assert repaired == pytest.approx(0.05, abs=2e-5)


def test_bfloat16_needs_kahan_even_more():
    assert followed(PRECISIONS["fp16-naive"], jnp.bfloat16) == pytest.approx(0.04, abs=5e-4)
    assert followed(PRECISIONS["fp16"], jnp.bfloat16) == pytest.approx(0.05, abs=2e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(HALF, 5e-4), (jnp.bfloat16, 4e-3)], ids=NAMES.values())
def test_kahan_gradients_add_up(dtype, tolerance):
    """A thousand steps of 1e-5 from .5, to .51; without, not one of them moves the weight."""
    tx = optax.chain(optax.scale(1.0), kahan())
    weight = jnp.asarray(0.5, dtype)

    @jax.jit
    def run(weight):
        def step(_, c):
            weight, state = c
            updates, state = tx.update(jnp.asarray(1e-5, dtype), state, weight)
            return optax.apply_updates(weight, updates), state

        return jax.lax.fori_loop(0, 1_000, step, (weight, tx.init(weight)))

    with jax.numpy_dtype_promotion("standard"):  # optax adds float32 to the weight, and rounds
        moved, (_, state) = run(weight)
    assert moved.dtype == dtype
    assert float(moved) == pytest.approx(0.51, abs=tolerance)
    step = float(np.asarray(1e-5, dtype))
    total = float(whole(Split(moved, state.lost)))
    assert total == pytest.approx(0.5 + 1_000 * step, abs=2e-6 if dtype == HALF else 1.5e-3)
    naive = jax.lax.fori_loop(0, 1_000, lambda _, w: narrow(w.astype(jnp.float32) + step, dtype), weight)
    assert float(naive) == 0.5


def test_kahan_asks_for_the_weights():
    tx = kahan()
    with pytest.raises(ValueError, match="update\\(updates, state, params\\)"):
        tx.update(half(1.0), tx.init(half(1.0)))


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_a_target_follows_exactly_at_both_ends(tau):
    lowered = numerics(PRECISIONS["fp16"])
    target, params = lowered.target(lowered.store(jnp.float32(0.3))), lowered.store(jnp.float32(0.7))
    expected = params if tau else target
    assert bits(lowered.follow(target, params, jnp.float32(tau))) == bits(expected)


# pure bfloat16


def test_rounding_at_random_is_right_on_average():
    """Each number comes out as one of its two neighbours, by chances that make its mean; what has the digits stays."""
    r = np.random.default_rng(8)
    x = np.float32(r.standard_normal(64) * 10.0 ** r.uniform(-6, 6, 64))
    keys = jax.random.split(KEY, 4_000)
    drawn = jax.jit(jax.vmap(lambda key: at_random(jnp.asarray(x), jnp.bfloat16, key)))(keys)
    drawn = np.asarray(drawn, np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)
    assert (np.abs(drawn - x) < unit).all()
    below = np.floor(x / unit) * unit
    chance = (x - below) / unit
    assert {*np.unique((drawn - below) / unit)} == {0.0, 1.0}
    # five standard deviations, of 64 means
    np.testing.assert_allclose((drawn.mean(0) - below) / unit, chance, atol=5 * 0.5 / len(keys) ** 0.5)
    exact = jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(at_random(exact, jnp.bfloat16, KEY).astype(jnp.float32), exact)
    odd = jnp.float32([np.inf, -np.inf, np.nan, 0.0])
    np.testing.assert_array_equal(at_random(odd, jnp.bfloat16, KEY).astype(jnp.float32), odd)


def test_weights_that_are_rounded_at_random_draw_anew():
    """At every step, for every array, and for networks that begin with other weights."""
    x = jnp.full((2, 500), 0.3, jnp.float32)
    one = dithered({"a": x, "b": x}, jnp.bfloat16)
    again, other = like(one, {"a": x, "b": x}), dithered({"a": x, "b": x + 1e-6}, jnp.bfloat16)
    values = [one.value["a"], one.value["b"], again.value["a"], other.value["a"]]
    for i, y in enumerate(values):
        assert set(np.unique(y.astype(np.float32))) == {np.float32(0.298828125), np.float32(0.30078125)}
        assert not any((y == z).all() for z in values[i + 1 :])
    assert bits(dithered({"a": x, "b": x}, jnp.bfloat16)) == bits(one)


def descended(precision: str, steps: int = 500) -> float:
    """A weight of 1 after some steps of 1e-4 each, by Adam."""
    lowered, tx, kept, moments = fresh(precision)

    @jax.jit
    def run(kept, moments):
        grads = Scaled({"w": jnp.ones(1, jnp.bfloat16)}, jnp.float32(1))
        one = lambda _, c: lowered.descend(tx, *c, grads, jnp.float32(1e-4))
        return jax.lax.fori_loop(0, steps, one, (kept, moments))

    kept, _ = run(kept, moments)
    return float(whole(kept)["w"][0])


def test_steps_that_bfloat16_would_lose_are_kept():
    """To .95; plain, every one of them is rounded away."""
    assert descended("bf16-naive") == 1.0
    assert descended("bf16-kahan") == pytest.approx(0.95, abs=1e-3)
    assert descended("bf16-stochastic") == pytest.approx(0.95, abs=0.02)
    assert descended("bf16") == pytest.approx(0.95, abs=1e-4)


def test_the_second_moment_of_bfloat16_can_fall():
    """By a thousandth a step, half of what it can tell: plain, it would stay at the greatest gradients ever seen."""
    found = {}
    for name in ("bf16-kahan", "bf16-stochastic"):
        lowered, tx, kept, moments = fresh(name)
        moments = moments._replace(inner=moments.inner._replace(nu=like(moments.inner.nu, {"w": jnp.full(1, 100.0)})))
        grads = Scaled({"w": jnp.zeros(1, jnp.bfloat16)}, jnp.float32(1))

        @jax.jit
        def run(kept, moments, lowered=lowered, tx=tx, grads=grads):
            one = lambda _, c: lowered.descend(tx, *c, grads, jnp.float32(0))
            return jax.lax.fori_loop(0, 1_000, one, (kept, moments))

        found[name] = float(whole(run(kept, moments)[1].inner.nu["w"])[0])
    assert found["bf16-kahan"] == pytest.approx(100 * 0.999**1_000, rel=0.01)
    assert found["bf16-stochastic"] == pytest.approx(100 * 0.999**1_000, rel=0.25)


@pytest.mark.parametrize(
    ("precision", "size"), [("bf16-kahan", 14), ("bf16-stochastic", 8), ("fp16", 12), ("bf16", 16)]
)
def test_what_is_kept_of_a_weight(precision, size):
    """Weight, two moments and target, in bytes; numbers that belong to a whole array aside."""
    lowered, tx = numerics(PRECISIONS[precision]), optax.scale_by_adam()
    kept = lowered.store({"w": jnp.zeros(1_000)})
    state = kept, lowered.init(tx, kept), lowered.target(kept)
    assert bytes_of(state) == pytest.approx(1_000 * size, abs=64)


# hAdam


def trajectory(tx: optax.GradientTransformation, gradients, dtype) -> jax.Array:
    """The directions [steps, n] that an optimiser takes for gradients [steps, n]."""
    start = tx.init(jnp.zeros(gradients.shape[1], dtype))

    def step(state, g):
        direction, state = tx.update(g, state)
        return state, direction

    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda g: jax.lax.scan(step, start, g)[1])(gradients)


def test_hadam_is_adam():
    gradients = np.random.default_rng(2).standard_normal((300, 5)) * 10.0 ** np.arange(-6, 4, 2)
    with jax.enable_x64(True):
        expected = trajectory(optax.scale_by_adam(eps=0.0), gradients, jnp.float64)
        got = trajectory(hadam(eps=0.0), gradients, jnp.float64)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, expected, rtol=1e-12)


RULES = {"rms": lambda: optax.scale_by_rms(decay=0.99, eps=1e-12), "radam": lambda: optax.scale_by_radam(eps=1e-12)}


@pytest.mark.parametrize("name", RULES)
def test_other_optimisers_keep_roots_too(name):
    """Those of A2C and PQN: in float64 nothing is lost, and in float16 little."""
    gradients = np.random.default_rng(2).uniform(0.5, 1.5, (300, 5)) * 10.0 ** np.arange(-3, 2)
    with jax.enable_x64(True):
        expected = trajectory(RULES[name](), gradients, jnp.float64)
        np.testing.assert_allclose(trajectory(rooted(RULES[name]()), gradients, jnp.float64), expected, rtol=1e-12)
    if name == "rms":
        np.testing.assert_allclose(trajectory(rooted(RULES[name]()), half(gradients), HALF)[-1], expected[-1], rtol=0.2)


def published(g: float, steps: int, eps: float) -> tuple[float, float]:
    """(w, its exact value) of the authors' code in float16 after some gradients g: (1 - b1) |g| goes into the root."""
    w, a, b2 = np.float16(0), np.float16(0.1 * g), np.float16(0.999**0.5)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            most, least = max(a, b2 * w), min(a, b2 * w)
            ratio = np.float16(least / np.float16(most + np.float16(eps)))
            w = np.float16(most * np.sqrt(np.float16(1 + ratio * ratio)))
    exact = 0.1 * g * np.sqrt((1 - 0.999**steps) / (1 - 0.999))
    return float(w), float(exact)


def test_the_published_root_overflows_and_ours_does_not():
    """Theirs is infinite for gradients that are finite, and the weight then still for ever."""
    assert np.isinf(published(4e4, 400, eps=1e-4)[0])
    g = jnp.full((400, 1), 4e4, HALF)
    np.testing.assert_allclose(trajectory(hadam(eps=1e-4), g, HALF), 1.0, rtol=0.05)


def test_the_published_root_of_small_gradients_is_too_small_and_ours_is_not():
    w, exact = published(1e-4, 200, eps=1e-4)
    assert w < exact / 4
    g = jnp.full((200, 1), 1e-4, HALF)
    np.testing.assert_allclose(trajectory(hadam(eps=0.0), g, HALF), 1.0, rtol=0.1)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 100.0, 2e4])
def test_hadam_of_half_precision_moves_and_stays_finite(size):
    """For every size of scaled gradients; Adam's own second moment is 0 below 5.5e-3 and infinite above 256."""
    r = np.random.default_rng(3)
    gradients = r.uniform(0.5, 1.5, (500, 8)) * r.choice([-1, 1], (500, 8), p=[0.2, 0.8]) * size
    g = jnp.asarray(gradients, HALF)
    with jax.enable_x64(True):
        expected = trajectory(optax.scale_by_adam(eps=0.0), np.asarray(g, np.float64), jnp.float64)
    got = trajectory(hadam(eps=0.0), g, HALF)
    np.testing.assert_allclose(got[-1], expected[-1], rtol=0.2, atol=0.1)
    stock = np.asarray(trajectory(optax.scale_by_adam(), g, HALF), np.float32)
    broken = ~np.isfinite(stock[0]) | (stock[0] == 0)
    assert broken.all() if size in (1e-4, 2e4) else not broken.any()


def test_nothing_that_nobody_reads_is_kept():
    """Two numbers a weight: the authors' code keeps a third."""
    params = jnp.zeros(1_000, HALF)
    kept = hadam().init(params)
    assert sum(x.size for x in jax.tree.leaves(kept)) == 2_000 + 1


# compound loss scaling


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_another_scale_changes_no_step(factor, root):
    """Of an optimiser that is itself told nothing of the scale."""
    gradients = np.random.default_rng(4).standard_normal((20, 5))
    tx, scale, other = optax.scale_by_adam(), scaling.START, factor * scaling.START
    with jax.enable_x64(True):
        state = tx.init(jnp.zeros(5, jnp.float64))
        for g in gradients:
            with jax.numpy_dtype_promotion("standard"):
                direction, expected = tx.update(g, taken_up(laid_down(state, scale, root), scale, root))
                again, state = tx.update(other * g / other, taken_up(laid_down(state, other, root), other, root))
            np.testing.assert_allclose(again, direction, rtol=1e-14)
            for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-14)


def fresh(precision: str = "fp16", weight: float = 1.0):
    """(numerics, tx, kept, moments) of a learner of one weight."""
    lowered = numerics(PRECISIONS[precision])
    kept, tx = lowered.store({"w": jnp.full(1, weight)}), optax.scale_by_adam()
    return lowered, tx, kept, lowered.init(tx, kept)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    lowered, tx, kept, moments = fresh()
    kept, moments = lowered.descend(tx, kept, moments, scaled([3.0]), jnp.float32(0.1))
    for i, bad in enumerate((np.inf, np.nan, 64_000.0), 1):  # the last leaves the moments no margin
        after, halved = lowered.descend(tx, kept, moments, scaled([bad]), jnp.float32(0.1))
        assert bits(after) == bits(kept)
        assert halved.guard.scale == moments.guard.scale / 2
        np.testing.assert_array_equal(halved.inner.mu["w"], moments.inner.mu["w"] / 2)
        np.testing.assert_array_equal(halved.inner.nu["w"], moments.inner.nu["w"] / 2)
        assert halved.inner.count == moments.inner.count
        assert halved.guard.skipped == i
        assert halved.guard.good == 0
        moments = halved
    after, moments = lowered.descend(tx, kept, moments, scaled([3.0]), jnp.float32(0.1))
    assert after.value["w"] < kept.value["w"]
    assert counts(moments).not_finite == 3


@pytest.mark.parametrize("precision", ["bf16", "bf16-kahan", "bf16-stochastic", "bf16-naive", "fp16-naive"])
def test_without_a_scale_what_is_not_finite_is_skipped_too_but_by_the_naive(precision):
    lowered, tx, kept, moments = fresh(precision)
    kept, moments = lowered.descend(tx, kept, moments, scaled([3.0], 1.0), jnp.float32(0.1))
    after, last = lowered.descend(tx, kept, moments, scaled([np.nan], 1.0), jnp.float32(0.1))
    assert last.guard.scale == 1
    assert counts(last).not_finite == 1
    finite = all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves((lowered.full(after), last.inner)))
    assert finite == PRECISIONS[precision].skips == (not precision.endswith("naive"))
    if finite:
        assert bits(whole((after, last.inner))) == bits(whole((kept, moments.inner)))


def test_a_gradient_keeps_the_scale_that_it_was_taken_with():
    """An actor-learner's comes when the scale may have changed."""
    lowered, tx, kept, moments = fresh()
    late = moments._replace(guard=moments.guard._replace(scale=jnp.float32(scaling.START / 4)))
    expected, _ = lowered.descend(tx, kept, moments, scaled([3.0]), jnp.float32(0.1))
    after, now = lowered.descend(tx, kept, late, scaled([3.0]), jnp.float32(0.1))
    np.testing.assert_allclose(whole(after)["w"], whole(expected)["w"], rtol=1e-5)
    np.testing.assert_allclose(now.inner.mu["w"], 0.1 * 3.0 / 4, rtol=1e-3)


def test_the_scale_doubles_after_many_good_steps_if_the_moments_have_room():
    for size, expected in ((3.0, 2 * scaling.START), (40_000.0, scaling.START)):
        lowered, tx, kept, moments = fresh()
        moments = moments._replace(guard=moments.guard._replace(good=jnp.int32(scaling.PERIOD)))
        full = {"w": jnp.full_like(moments.inner.nu["w"], size)}
        moments = moments._replace(inner=moments.inner._replace(nu=full, mu=full))
        _, after = lowered.descend(tx, kept, moments, scaled([3.0]), jnp.float32(0.1))
        assert after.guard.scale == expected
        assert after.guard.good == 0


def test_gradients_stay_scaled_and_the_loss_is_not():
    """Nor can it overflow: the scale is what flows back, and float16 never holds the scaled loss."""
    value, grads = scaling.value_and_grad(lambda w: (jnp.sum(w * w), 5))(half([100.0]), jnp.float32(128))
    assert (float(value[0]), value[1]) == (10_000.0, 5)
    assert float(grads[0]) == 25_600.0
    small = scaling.value_and_grad(lambda w: (1e-6 * jnp.sum(w.astype(jnp.float32)) * 1e-3, None))
    assert float(small(half([1.0]), jnp.float32(1))[1][0]) == 0
    assert float(small(half([1.0]), jnp.float32(1e4))[1][0]) == pytest.approx(1e-5, rel=1e-2)


def test_the_norm_is_clipped_in_the_units_of_the_loss():
    """And in float32: the squares of scaled gradients overflow float16."""
    lowered, tx, kept, moments = fresh()
    grads = scaled([3e4])
    _, after = lowered.descend(tx, kept, moments, grads, jnp.float32(0.1), jnp.float32(1.0))
    np.testing.assert_allclose(after.inner.mu["w"], 0.1 * scaling.START, rtol=1e-3)
    _, free = lowered.descend(tx, kept, moments, grads, jnp.float32(0.1), jnp.float32(10.0))
    np.testing.assert_allclose(free.inner.mu["w"], 0.1 * 3e4, rtol=1e-3)


# log-probabilities

BEFORE = np.linspace(-40, 40, 401, dtype=np.float32)  # of tanh
STDS = np.exp(np.linspace(-5, 2, 8, dtype=np.float32))


def gradients(draw, mean, log_std, noise):
    """(log_prob, its gradients) for each triple [n]."""

    def one(mean, log_std, noise):
        def log_prob(mean, log_std):
            return draw(TanhNormal(mean, log_std), noise)[1]

        return draw(TanhNormal(mean, log_std), noise)[1], *jax.grad(log_prob, (0, 1))(mean, log_std)

    return jax.jit(jax.vmap(one))(mean[:, None], log_std[:, None], noise[:, None])


def grid() -> tuple:
    means, stds = (x.ravel() for x in np.meshgrid(BEFORE, STDS))
    noise = np.random.default_rng(5).standard_normal(means.size).astype(np.float32)
    return jnp.asarray(means), jnp.log(jnp.asarray(stds)), jnp.asarray(noise)


def test_log_probabilities_in_half_precision_are_right_and_their_gradients_finite():
    """For all that a mean in [-40, 40] and a deviation in [e^-5, e^2] give."""
    expected = gradients(PLAIN.draw, *grid())
    got = gradients(log_probs.sampler(HALF), *grid())
    np.testing.assert_allclose(got[0], expected[0], rtol=2e-3, atol=0.05)
    for ours, exact in zip(got[1:], expected[1:], strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mean", [0.0, 5.0, -40.0])
def test_the_density_of_actions_that_are_given_is_finite_and_so_are_its_gradients(mean):
    """For all actions in [-40, 40] and deviations in [e^-5, e^2]; and right where float16 has the number."""
    actions, stds = (jnp.asarray(x.ravel()) for x in np.meshgrid(BEFORE, STDS))

    def found(log_prob):
        def one(mean, log_std, action):
            return log_prob(Normal(mean[None], log_std[None]), action[None])

        both = jax.vmap(jax.value_and_grad(one, (0, 1)), (None, 0, 0))
        value, slopes = jax.jit(both)(jnp.float32(mean), jnp.log(stds), actions)
        return np.stack([value, *slopes])

    got, exact = found(log_probs.density(HALF)), found(PLAIN.log_prob)
    assert np.isfinite(got).all()
    near = np.abs((actions - mean) / stds) < 200
    assert 0 < near.sum() < near.size
    np.testing.assert_allclose(got[:, near], exact[:, near], rtol=1e-2, atol=2e-2)
    assert not np.isfinite(found(log_probs.density(HALF, normal_fix=False))).all()


def test_without_softplus_fix_gradients_are_no_numbers():
    """Where e^(-2u) overflows and the threshold of 20 is not reached: u from -10 to -5.6."""
    mean = jnp.float32([-4.0, -6.0, -9.0, -11.0])
    rest = jnp.zeros(4)
    broken = gradients(log_probs.sampler(HALF, softplus_fix=False), mean, rest, rest)
    assert np.isfinite(broken[0][:1]).all()
    assert np.isnan(broken[1][1:3]).all()
    assert np.isfinite(broken[1][::3]).all()
    assert np.isfinite(gradients(log_probs.sampler(HALF), mean, rest, rest)[1]).all()


def test_without_normal_fix_small_deviations_are_lost():
    """(u - mean)^2 is 0 or of few digits, and so is the density: it is off by whole nats."""
    noise = jnp.float32([0.02, 1.0, 1.5, 2.5])
    mean, log_std = jnp.full(4, 4.0), jnp.full(4, -5.0)
    exact, fixed, stock = (
        np.asarray(gradients(draw, mean, log_std, noise)[0])
        for draw in (PLAIN.draw, log_probs.sampler(HALF), log_probs.sampler(HALF, normal_fix=False))
    )
    np.testing.assert_allclose(fixed, exact, atol=0.02)
    assert np.abs(stock - exact).max() > 0.3


def test_the_published_form_of_the_normal_is_finite_where_the_stock_one_is_not():
    """That is of an action which is given: of one that was just drawn, ours takes no difference at all."""
    u, mean, log_std = jnp.float32(300.0), jnp.float32(0.0), jnp.float32(2.0)
    assert jnp.isinf(log_probs.stock_normal_log_prob(u, mean, log_std, HALF))
    expected = log_probs.normal_log_prob(u, mean, log_std)
    np.testing.assert_allclose(log_probs.normal_log_prob(half(u), half(mean), half(log_std)), expected, rtol=5e-3)


@pytest.mark.parametrize("squash", [False, True])
def test_the_density_of_an_action_that_is_given(squash):
    """Right in half precision with the repairs, and infinite without them."""
    dist, action = Normal(jnp.float32([0.0]), jnp.float32([2.0])), jnp.float32([300.0])
    if squash:
        dist, action = TanhNormal(jnp.float32([-7.0]), jnp.float32([0.0])), jnp.float32([-0.999997])
    expected = float(dist.log_prob(action))
    assert float(log_probs.density(HALF)(dist, action)) == pytest.approx(expected, rel=5e-3)
    broken = log_probs.density(HALF, normal_fix=squash, softplus_fix=not squash)(dist, action)
    assert np.isinf(broken)


# agents

STATICS: dict[str, tuple[str, dict]] = {
    "sac": ("sac", {}), "td3": ("td3", {}), "dqn": ("dqn", {}), "iqn": ("iqn", {"atoms": 8}),
    "rainbow": ("rainbow", {"prioritized": False, "n_step": 1, "atoms": 5}), "rescaled": ("dqn", {"rescale_obs": True}),
}  # fmt: skip


@cache
def learner(name: str, precision: str) -> Agent:
    agent, switches = STATICS[name]
    recipe, chosen = catalog.recipe(agent), PRECISIONS[precision]
    lower = {} if precision == "fp32" else {"numerics": numerics(chosen)}
    actions = TORQUE if name in ("sac", "td3") else Discrete(ACTIONS)
    made = recipe.assemble(recipe.static._replace(hidden=(16,), **switches), OBS, actions, **lower)
    return compiled(watched(made, chosen) if lower else made)


def trained(name: str, precision: str, updates: int = 20):
    """(state, metrics) after some updates on one batch."""
    agent = learner(name, precision)
    continuous = name in ("sac", "td3")
    hyper = catalog.recipe(name).hyper._replace(learning_rate=1e-2) if continuous else HYPER
    state, batch = agent.init(KEY, hyper), random_batch(continuous=continuous)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for i in range(updates):
        state, info = update(agent, state, batch, jax.random.key(i))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == kinds
    return state, info.metrics


def bytes_of(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-stochastic", "fp16"])
@pytest.mark.parametrize("agent", ["td3", "sac", "ppo"])
def test_a_copy_of_the_policy_alone_is_kept_as_before(agent, precision):
    """The actor, and its target, are the donor's; the critic is not; the optimiser begins anew."""
    recipe = catalog.recipe(agent)
    lower = {} if precision == "fp32" else {"numerics": numerics(PRECISIONS[precision])}
    made = recipe.assemble(recipe.static._replace(hidden=(16,)), OBS, TORQUE, **lower)
    mine, donor = (made.init(jax.random.key(i), recipe.hyper) for i in (0, 1))
    grafted = made.graft(mine, donor)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grafted) == jax.tree.map(lambda x: (x.shape, x.dtype), mine)

    def numbers(state) -> dict[str, bytes]:
        parts = jax.tree_util.tree_flatten_with_path((state.params, getattr(state, "target", ())))[0]
        kept = [("actor" in str(path), x) for path, x in parts if jnp.issubdtype(x.dtype, jnp.floating)]
        return {name: bits([x for is_actor, x in kept if is_actor == (name == "actor")]) for name in ("actor", "rest")}

    before, after = numbers(mine), numbers(grafted)
    assert after == {"actor": numbers(donor)["actor"], "rest": before["rest"]}
    assert before["actor"] != after["actor"]


QUICK = {("sac", "fp16"), ("dqn", "bf16")}
MODES = ("bf16", "fp16", "bf16-kahan", "bf16-stochastic")
LEARNERS = [(name, precision) for name in STATICS for precision in MODES if precision in MODES[:2] or name == "sac"]


@pytest.mark.parametrize(
    ("name", "precision"), [x if x in QUICK else pytest.param(*x, marks=pytest.mark.long) for x in LEARNERS]
)
def test_a_learner_of_16_bits_learns_what_one_of_32_does(name, precision):
    exact, _ = trained(name, "fp32")
    state, metrics = trained(name, precision)
    before = learner(name, "fp32").init(KEY, exact.hyper)
    plain = learner(name, "fp32").policy
    weights, other, first = (x.params for x in (learner(name, precision).policy(state), plain(exact), plain(before)))

    def distance(one, two) -> float:
        return np.mean([float(jnp.abs(x - y).mean()) for x, y in zip(*map(jax.tree.leaves, (one, two)), strict=True)])

    # numbers of 8 bits that are rounded at random are as far apart as such numbers are
    assert distance(weights, other) < (0.3 if precision == "bf16-stochastic" else 0.1) * distance(other, first)
    assert metrics["skipped_updates"] == 0
    assert counts(state).not_finite == 0
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["dqn", pytest.param("sac", marks=pytest.mark.long)])
def test_the_naive_arm_fails(name):
    """Else an ablation would show nothing."""
    state, metrics = trained(name, "fp16-naive")
    policy = learner(name, "fp16-naive").policy(state).params
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(policy))
    assert not size < 10  # NaN, or far from what 20 steps of 0.01 can do
    assert metrics["loss_scale"] == 1


def test_what_is_kept_of_a_weight_has_twelve_bytes_or_less():
    """Of a critic: value and lost part, two moments, and the target's two parts; in float32 it is 16."""
    hyper = catalog.recipe("sac").hyper  # and updates change no shape and no dtype, as `trained` asserts
    state, exact = (jax.eval_shape(learner("sac", mode).init, KEY, hyper) for mode in ("fp16", "fp32"))
    weights = sum(x.size for x in jax.tree.leaves(exact.params.critic))
    assert bytes_of((exact.params.critic, exact.optimizer.critic, exact.target)) == 16 * weights + 4
    kept = bytes_of((state.params.critic, state.optimizer.critic, state.target))
    assert 12 * weights < kept <= 12 * weights + 32


def density(lowered, mean: float, log_std: float) -> float:
    return float(lowered.draw(TanhNormal(jnp.float32([mean]), jnp.float32([log_std])), jnp.float32([1.5]))[1])


def stepped(lowered):
    """The moments after a small gradient."""
    kept, tx = lowered.store({"w": jnp.zeros(1)}), optax.scale_by_adam()
    moments = lowered.init(tx, kept)
    grads = scaled([0.0078125], moments.guard.scale)
    return lowered.descend(tx, kept, moments, grads, jnp.float32(0.1))[1]


KEPT = {  # what each repair is to change in the state or in the program, and what without it is there instead
    "hadam": lambda n: stepped(n).inner.nu["w"][0] > 1e-4,
    "compound_scaling": lambda n: float(stepped(n).guard.scale) == scaling.START,
    "normal_fix": lambda n: abs(density(n, 4.0, -5.0) - density(PLAIN, 4.0, -5.0)) < 0.02,
    "softplus_fix": lambda n: bool(
        jnp.isfinite(jax.grad(lambda m: n.draw(TanhNormal(m, jnp.zeros(1)), jnp.zeros(1))[1])(jnp.float32([-7.0])))[0]
    ),
    "kahan_momentum": lambda n: isinstance(n.target(n.store(jnp.zeros(1))), Split),
    "kahan_gradients": lambda n: isinstance(n.store(jnp.zeros(1)), Split),
}


@pytest.mark.parametrize("repair", REPAIRS)
def test_each_repair_is_a_switch_of_its_own(repair):
    without = numerics(PRECISIONS[f"fp16-without-{repair.replace('_', '-')}"])
    found = {name: bool(ask(without)) for name, ask in KEPT.items()}
    assert found == {name: name != repair for name in REPAIRS}
    assert all(ask(numerics(PRECISIONS["fp16"])) for ask in KEPT.values())


def test_float32_takes_no_detour():
    assert numerics(PRECISIONS["fp32"]) is PLAIN
    for name in ("sac", "dqn"):
        plain = learner(name, "fp32").init(KEY, HYPER if name == "dqn" else sac.Hyper())
        kinds = Split, Dithered, Guarded
        found = jax.tree.leaves(plain, is_leaf=lambda x, kinds=kinds: isinstance(x, kinds))
        assert not [x for x in found if isinstance(x, kinds)]


def test_a_network_computes_in_the_dtype_of_its_weights():
    net = learner("dqn", "fp32").network
    weights = jax.tree.map(lambda x: x.astype(HALF), net.init(KEY))
    program = str(jax.make_jaxpr(net.apply)(weights, jnp.zeros(4)))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    assert all("f16[" in line.split("=")[0] for line in products)
    assert net.apply(weights, jnp.zeros(4)).dtype == jnp.float32


ROLLED = [(name, precision) for name in ("ppo", "a2c", "impala", "ptr-ppo", "pqn", "a3c") for precision in MODES]


def rolled(name: str, precision: str, env: str = "CartPole-v1", iterations: int = 3, **hyper):
    """The carry of a run of an agent that learns from rollouts, and its metrics, after some iterations."""
    small = {"num_envs": 4, "n_steps": 8} | (
        {"num_minibatches": 2} if "num_minibatches" in catalog.hyper_fields(catalog.recipe(name)) else {}
    )
    config = configure(name, env, precision=precision, hyper=small | hyper, steps=100_000)
    recipe, agent, static, values, card, cadence = jobs.records(config)
    assert cadence.rollout
    memory = jobs.memory_of(recipe, static, card, cadence, precision, lanes=4, unroll=8, streams=1)
    if cadence.learners:
        agent = actor_learner.in_rotation(agent, cadence.learners)
    plan = runtime.Plan(4, 8, cadence.updates, 0)
    run = runtime.run(agent, twins.twin(env, options_for(env, None)), memory, plan)
    exact = {"compiler_options": jobs.EXACT}
    carry = jax.jit(run.init, **exact)(rng.key(0), values)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), carry)
    for _ in range(iterations):
        carry, metrics = jax.jit(run.advance, **exact)(carry, jnp.int32(1))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == kinds
    return agent, carry, metrics


@pytest.mark.parametrize(
    ("name", "precision"), [x if x == ("a3c", "fp16") else pytest.param(*x, marks=pytest.mark.long) for x in ROLLED]
)
def test_agents_of_rollouts_learn_in_16_bits(name, precision):
    agent, carry, metrics = rolled(name, precision)
    assert np.isfinite(float(metrics["loss"]))
    assert metrics["skipped_updates"] == 0
    weights = jax.tree.leaves(agent.policy(carry.state).params)
    assert {x.dtype for x in weights} == {jnp.dtype("float32")}
    dtype = jnp.dtype(PRECISIONS[precision].dtype)
    state = getattr(carry.state, "newest", carry.state)
    computed = numerics(PRECISIONS[precision]).weights(state.params)
    assert {x.dtype for x in jax.tree.leaves(computed)} == {dtype}


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_convolutions_learn_in_16_bits(precision):
    """And their gradients, taken in parts, are added up in float32."""
    _, _, metrics = rolled("ppo", precision, "MinAtar/Breakout-v1", n_epochs=1)
    assert np.isfinite(float(metrics["loss"]))
    assert metrics["skipped_updates"] == 0


@pytest.mark.long
def test_moments_of_observations_do_not_leave_half_precision():
    """They are in float32, so that a first layer need not hold their ratio; and continuous actions have densities."""
    more = {"normalize_obs": True, "normalize_reward": True}
    _, _, metrics = rolled("ppo", "fp16", "Pendulum-v1", **more)
    _, _, exact = rolled("ppo", "fp32", "Pendulum-v1", **more)
    assert metrics["skipped_updates"] == 0
    assert float(metrics["value_loss"]) == pytest.approx(float(exact["value_loss"]), rel=0.05)


def test_a_gradient_in_parts_is_that_of_the_whole():
    """Also with a scale, which is not added up."""
    lowered = numerics(PRECISIONS["fp16"])
    x, params = jax.random.normal(KEY, (12, 3)), half([0.5, -1.0, 2.0])

    def objective(params, x):
        found = x.astype(HALF) @ params
        return 1e-2 * jnp.sum(found.astype(jnp.float32) ** 2), found

    moments = lowered.init(optax.scale_by_adam(), lowered.store(params.astype(jnp.float32)))
    found = [lowered.gradient(objective, params, moments, in_parts(x, most)) for most in (None, 4)]
    (whole_value, whole_grads), (value, grads) = ((v[0], g) for v, g in found)
    np.testing.assert_allclose(value, whole_value, rtol=1e-3)
    assert grads.scale == whole_grads.scale == scaling.START
    np.testing.assert_allclose(grads.value, whole_grads.value.astype(jnp.float32), rtol=5e-3)


ABLE = {
    ("sac", "Pendulum-v1"): set(REPAIRS),
    ("sac", "CartPole-v1"): set(REPAIRS) - {"normal_fix", "softplus_fix"},
    ("td3", "Pendulum-v1"): set(REPAIRS) - {"normal_fix", "softplus_fix"},
    ("dqn", "CartPole-v1"): set(REPAIRS) - {"normal_fix", "softplus_fix"},
    ("ppo", "CartPole-v1"): set(REPAIRS) - {"normal_fix", "softplus_fix", "kahan_momentum"},
    ("ppo", "Pendulum-v1"): set(REPAIRS) - {"softplus_fix", "kahan_momentum"},
}


@pytest.mark.parametrize(("name", "env"), ABLE)
def test_a_repair_that_an_agent_does_not_have_cannot_be_left_out(name, env):
    for mode, repair in WITHOUT.items():
        if repair in ABLE[name, env]:
            assert configure(name, env, precision=mode).precision == mode
        else:
            with pytest.raises(
                UsageError, match=f"{mode} is not for {name} here, which|{mode} is not for {name} here, whose"
            ):
                configure(name, env, precision=mode)


def test_centred_rmsprop_is_not_for_weights_of_16_bits():
    more = {"hyper": {"optimizer": "rmsprop"}}
    assert configure("dqn", "CartPole-v1", precision="bf16", **more)
    with pytest.raises(UsageError, match="differences of numbers that 16 bits cannot tell apart: use optimizer=adam"):
        configure("dqn", "CartPole-v1", precision="fp16", **more)


# memory


def steps(obs) -> Transition:
    """Transitions [time, 1 lane] of these observations."""
    n = len(obs)
    flag, number = jnp.zeros((n, 1), bool), jnp.zeros((n, 1))
    return Transition(
        obs[:, None], obs[:, None, :1], number + 0.1, flag, flag, obs[:, None] + 1, number, jnp.zeros((n, 1), jnp.int32)
    )


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", HALF), ("bf16", jnp.bfloat16)])
def test_observations_and_actions_are_kept_in_16_bits(precision, dtype):
    obs = jnp.asarray(np.random.default_rng(6).standard_normal((4, 3)), jnp.float32).at[0, 0].set(1e6)
    example = jax.tree.map(lambda x: x[0, 0], steps(obs))
    sizes = {}
    for name in ("fp32", precision):
        memory = stored(lambda e: uniform(e, 4, 64, lanes=1, unroll=4), example, PRECISIONS[name])
        kept = memory.add(memory.init(), steps(obs))
        sizes[name] = bytes_of(kept.rows)
        kept, draw = memory.deal(kept, KEY, None)
        batch = draw(kept, KEY, 0)
    assert sizes["fp32"] - sizes[precision] == 4 * 7 * 2
    assert batch.data.obs.dtype == batch.data.action.dtype == jnp.float32
    slot = np.asarray(batch.index)
    expected = obs.astype(dtype).astype(jnp.float32)
    expected = expected.at[0, 0].set(65504.0) if dtype == HALF else expected
    np.testing.assert_array_equal(batch.data.obs[:, 0], expected[slot])
    np.testing.assert_array_equal(batch.data.reward, jnp.full((64, 1), 0.1))


def test_pixels_are_kept_as_they_are():
    pixels = Linear(jnp.zeros((2, 2, 1), jnp.uint8), 0).w
    example = jax.tree.map(lambda x: x[0, 0], steps(jnp.zeros((4, 3))))._replace(obs=pixels, next_obs=pixels)
    built = []
    stored(lambda e: built.append(e) or uniform(e, 4, 1, lanes=1, unroll=4), example, PRECISIONS["fp16"])
    assert built[0].obs.dtype == jnp.uint8
    assert built[0].action.dtype == HALF


# runs

TINY = {"hidden": (16,), "batch_size": 32, "learning_starts": 500}


def test_a_run_says_what_its_precision_cost(tmp_path, capfd):
    result = train(
        "dqn", "CartPole-v1", steps=1_500, seeds=2, hyper=TINY, precision="fp16", out=tmp_path / "run", quiet=False
    )
    told = "".join(capfd.readouterr()).splitlines()
    assert len([line for line in told if "fp16 on a CPU" in line]) == (jax.default_backend() == "cpu")
    found = receipt(tmp_path / "run")["precision"]
    assert found["mode"] == "fp16"
    assert [len(found[name]) for name in ("skipped_updates", "loss_scale")] == [2, 2]
    assert result.rows[-1]["loss_scale"] > 1
    assert 0 <= result.rows[-1]["skipped_updates"] < 0.1
    assert read(tmp_path / "run").precision == "fp16"
    assert {x.dtype for weights in result.actor.weights for x in jax.tree.leaves(weights)} == {np.dtype("float32")}


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["compiled", "actors"])
def test_sac_runs_in_half_precision(runtime, tmp_path):
    hyper = TINY | {"learning_starts": 100}
    more = {"runtime": runtime, "hyper": hyper, "precision": "fp16", "out": tmp_path / "run", "quiet": True}
    train("sac", "Pendulum-v1", steps=600, **more)
    resume(tmp_path / "run", steps=900, quiet=True)
    found = receipt(tmp_path / "run")
    assert found["steps"] == 900
    assert len(found["precision"]["skipped_updates"]) == 1
    assert found["returns"]["iqm"] < 0


def test_auto_takes_bfloat16_where_it_was_measured_to_be_faster(monkeypatch, tmp_path):
    """And float32 where nothing is known of it, of this machine, or where networks are narrow."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))

    def chosen(*hidden: int, **options) -> tuple:
        config = configure("sac", "Pendulum-v1", precision="auto", hyper={"hidden": hidden}, **options)
        return config.precision, config.precision_why

    unknown = chosen(1024)
    assert unknown == ("fp32", "bf16 has not been measured on this machine, which frugal doctor does")
    fast, slow = choice.Product(1024, 100.0, 190.0), choice.Product(256, 100.0, 110.0)
    choice.remember([fast, slow])
    assert chosen(1024, 64) == ("bf16", "matrix products of 1024 x 1024 are 1.9 times as fast in bf16")
    assert chosen(512) == ("fp32", "matrix products of 256 x 256 are 1.1 times as fast in bf16")
    assert chosen(64) == ("fp32", "layers of 64 units are too narrow for bf16 to gain")
    assert chosen(1024, qat=8)[0] == "fp32"
    assert configure("sac", "Pendulum-v1", precision="fp32").precision_why is None
    for name, value in (("CUDA_VISIBLE_DEVICES", "7"), ("JAX_PLATFORMS", "other")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            assert chosen(1024) == unknown
    monkeypatch.setattr(choice, "hardware", lambda: {"cpu": "another", "cores": 2})
    assert chosen(1024) == unknown


def test_a_receipt_says_why_auto_has_chosen():
    config = configure("dqn", "CartPole-v1")._replace(precision_why="so it is")
    assert jobs.precision_of(config, []) == {"precision": {"mode": "fp32", "why": "so it is"}}
    assert ("precision", "fp32, as so it is") in entries(jobs.precision_of(config, []))
    said = []
    jobs.told(config, said.append)
    assert said == ["precision: fp32, as so it is"]
    low = jobs.precision_of(config._replace(precision="bf16"), [Counts(np.array([3]), np.array([1.0]))])
    assert ("precision", "bf16, as so it is, 3 updates skipped as not finite") in entries(low)
    naive = jobs.precision_of(config._replace(precision="bf16-naive"), [Counts(np.array([3]), np.array([1.0]))])
    assert ("precision", "bf16-naive, as so it is, 3 updates applied although not finite") in entries(naive)
    some = jobs.precision_of(config._replace(precision="fp16"), [Counts(np.array([9, 3]), np.array([1e-4, 1.0]))])
    assert some["precision"]["collapsed"] == [True, False]
    assert ("precision", "fp16, as so it is, 12 updates skipped as not finite, the scale of the loss has collapsed in "
            "1 of 2 seeds") in entries(some)  # fmt: skip


def test_a_run_whose_scale_collapses_stops():
    config = configure("dqn", "CartPole-v1", precision="fp16", seeds=2)

    def told(*scales: float) -> list[Counts]:
        return [Counts(np.zeros(len(scales)), np.array(scales))]

    jobs.sound(config, 100, [0, 1], told(1e-4, COLLAPSED))  # one goes on
    with pytest.raises(Diverged, match="all of the 2 seeds have diverged, the scale of the loss has collapsed at step"):
        jobs.sound(config, 100, [0, 1], told(1e-5, 1e-4))
    with pytest.raises(Diverged, match="seed 7 has diverged, the scale of the loss has collapsed at step 100"):
        jobs.sound(config, 100, [7], told(1e-4))
    jobs.sound(config, config.steps, [0, 1], told(1e-5, 1e-4))  # it is over


def test_actor_learners_round_as_the_learner_does():
    """Their programs are compiled with its options."""
    for precision, options in (("fp32", {}), ("fp16", jobs.EXACT)):
        config = configure("a3c", "CartPole-v1", runtime="actors", precision=precision, hyper={"hidden": (16,)})
        _, _, static, hyper, card, cadence = jobs.records(config)
        parts = jobs.gradient_parts(config, card, static, hyper, jobs._actors_plan(static, cadence))
        assert parts.compiler == options
    items = jax.tree.map(lambda x: np.zeros((8, 4, *x.shape), x.dtype), jobs.example(card))
    with pytest.raises(Exception, match="no_such_option"):
        actor_learner.learning(parts._replace(compiler={"no_such_option": True}), 0, items)
