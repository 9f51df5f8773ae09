"""Targets against a plain loop, losses against optax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frugalrl.losses import huber, n_step, squared

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
