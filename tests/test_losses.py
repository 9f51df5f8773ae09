"""Targets against a plain loop, losses against optax."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frugalrl.agents.descent import PLAIN, in_parts
from frugalrl.losses import before_and_after, huber, n_step, squared

ERRORS = np.concatenate([np.linspace(-3, 3, 61), [-1, 1, 0, 1e-6, 1e4]]).astype(np.float32)


def by_loop(rewards, terminated, truncated, gamma) -> tuple[float, float, int]:
    """(reward, discount, last) as a textbook would compute them."""
    total, discount = 0.0, 1.0
    for i in range(len(rewards)):
        total += discount * rewards[i]
        discount *= gamma
        if terminated[i]:
            return total, 0.0, i
        if truncated[i]:
            return total, discount, i
    return total, discount, len(rewards) - 1


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_n_step_is_the_loop(n, gamma):
    """Over random flags: terminated, truncated, both at once, and several ends in a window."""
    r = np.random.default_rng(n)
    rewards = r.standard_normal((300, n), np.float32)
    terminated, truncated = r.random((2, 300, n)) < 0.25
    got = jax.jit(jax.vmap(n_step, (0, 0, 0, None)))(rewards, terminated, truncated, jnp.float32(gamma))
    rows = zip(rewards.astype(np.float64), terminated, truncated, strict=True)
    reward, discount, last = zip(*(by_loop(*row, gamma) for row in rows), strict=True)
    np.testing.assert_array_equal(got.last, last)
    np.testing.assert_allclose(got.reward, reward, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.discount, discount, rtol=1e-6)
    assert (got.reward.dtype, got.discount.dtype, got.last.dtype) == (np.float32, np.float32, np.int32)


def test_huber_is_optaxs():
    np.testing.assert_allclose(huber(ERRORS), optax.losses.huber_loss(ERRORS), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(huber))(ERRORS), np.clip(ERRORS, -1, 1), rtol=1e-6)


def test_squared_is_optaxs():
    np.testing.assert_allclose(squared(ERRORS), optax.losses.l2_loss(ERRORS), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(squared))(ERRORS), ERRORS, rtol=1e-6)


def rollouts_of(key, cut):
    """Observations [lanes, time, 3] of steps of which the flags `cut` [lanes, time] say that they were truncated."""
    obs, last = jax.random.normal(key, (2, *cut.shape, 3))
    following = jnp.where(cut[..., None], last, jnp.roll(obs, -1, 1)).at[:, -1].set(last[:, -1])
    return obs, following, cut


@pytest.mark.parametrize("ends", [[], [(0, 2)], [(1, 0), (1, 1), (0, 4)]])
@pytest.mark.parametrize("members", [None, 3])
def test_what_follows_is_the_next_steps_observation_but_where_the_episode_was_cut_off(ends, members):
    cut = jnp.zeros((2, 5), bool)
    for at in ends:
        cut = cut.at[at].set(True)
    weights = jax.random.normal(jax.random.key(1), (members or 1, 3))

    def apply(w, x):
        return jnp.dot(w, x), jnp.stack([w[0] * x[1], x[2]])

    def both(w, args):
        return jax.vmap(lambda *one: before_and_after(apply, w, *one))(*args)

    def plain(w, args):
        return tuple(jax.vmap(jax.vmap(partial(apply, w)))(x) for x in args[:2])

    data = rollouts_of(jax.random.key(0), cut)
    if members is None:
        got, expected = both(weights[0], data), plain(weights[0], data)
        one = before_and_after(apply, weights[0], *(x[0] for x in data))  # not mapped at all
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], rtol=1e-6), one, expected)
    else:
        got, expected = (jax.vmap(f, (0, None))(weights, data) for f in (both, plain))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, expected)


def test_what_follows_costs_no_second_look_where_no_episode_was_cut_off():
    def looks(cut):
        seen = []

        def apply(w, x):
            jax.debug.callback(lambda x: seen.append(x.shape), x)
            return w * x[0]

        data = rollouts_of(jax.random.key(0), cut)
        jax.block_until_ready(jax.jit(jax.vmap(lambda *one: before_and_after(apply, 1.0, *one)))(*data))
        jax.effects_barrier()
        return len(seen)

    cut = jnp.zeros((2, 5), bool)
    assert looks(cut) == 2 * (5 + 1)
    assert looks(cut.at[0, 4].set(True)) == 2 * (5 + 1)  # the last step's is looked at in any case
    assert looks(cut.at[0, 2].set(True)) == 2 * (5 + 1 + 5)


@pytest.mark.parametrize(("most", "size"), [(None, 12), (12, 12), (50, 12), (7, 6), (5, 4), (1, 1)])
def test_a_gradient_in_parts_is_that_of_the_whole(most, size):
    x, target = jax.random.normal(jax.random.key(0), (12, 3)), jnp.arange(12, dtype=jnp.float32)
    params, sizes = jnp.array([0.5, -1.0, 2.0]), []

    def objective(params, part):
        sizes.append(part[0].shape[0])
        error = part[0] @ params - part[1]
        return jnp.sum(error**2), error

    (value, seen), grads = PLAIN.gradient(objective, params, (), in_parts((x, target), most))
    assert set(sizes) == {size}
    error = np.asarray(x) @ np.asarray(params) - np.asarray(target)
    np.testing.assert_allclose(seen, error, rtol=1e-5)
    np.testing.assert_allclose(value, (error**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(grads, 2 * error @ np.asarray(x), rtol=1e-5)
