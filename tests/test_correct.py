"""The Corrector's weight is the truncated product of importance ratios, and it touches nothing but the weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import bits, random_batch, random_state, small_dqn

from frugalrl.distributions import Categorical
from frugalrl.levers.correct import corrected, none, truncated
from frugalrl.types import Agent, Info

KEY = jax.random.key(0)


def spy(agent: Agent) -> Agent:
    """The agent whose gradient is the batch and key it was asked about."""
    return agent._replace(grad=lambda state, batch, key: ((batch, key), Info({}, batch.weight)))


def log_probs(agent: Agent, state, batch) -> np.ndarray:
    """Of the batch's actions under the agent's own policy."""
    policy, data = agent.policy(state), batch.data
    one = lambda obs, action: agent.dist(policy, obs, KEY).log_prob(action)
    return np.asarray(jax.vmap(jax.vmap(one))(data.obs, data.action))


def weights(agent: Agent, state, batch, corrector) -> np.ndarray:
    (seen, _), _ = corrected(spy(agent), corrector).grad(state, batch, KEY)
    return np.asarray(seen.weight)


@pytest.mark.parametrize("ratio_from", [0, 1, 2])
@pytest.mark.parametrize("limit", [1.0, 20.0])
@pytest.mark.parametrize("window", [1, 4])
def test_a_weight_is_the_truncated_product_up_to_the_end_of_the_episode(window, limit, ratio_from):
    agent = small_dqn()._replace(ratio_from=ratio_from)
    state, batch = random_state(agent), random_batch(window=window, size=100)
    ratios = np.exp(log_probs(agent, state, batch).astype(np.float64) - batch.data.log_prob)
    ends = np.asarray(batch.data.terminated | batch.data.truncated)
    expected = []
    for i in range(100):
        product = 1.0
        for t in range(window):
            product *= ratios[i, t] if t >= ratio_from else 1.0
            if ends[i, t]:  # the ending step's own action still counts
                break
        expected.append(min(limit, product))
    np.testing.assert_allclose(weights(agent, state, batch, truncated(limit)), expected, rtol=1e-4)
    if window > ratio_from and limit > 1:
        assert len(set(expected)) > 10


@pytest.mark.parametrize("window", [1, 3])
def test_data_of_the_own_policy_is_left_alone(window):
    agent = small_dqn()._replace(ratio_from=0)
    state, batch = random_state(agent), random_batch(window=window)
    own = batch._replace(data=batch.data._replace(log_prob=jnp.asarray(log_probs(agent, state, batch))))
    np.testing.assert_allclose(weights(agent, state, own, truncated()), 1, atol=1e-6)
    grads, info = agent.grad(state, own, KEY)
    got, got_info = corrected(agent, truncated()).grad(state, own, KEY)
    for a, b in zip(jax.tree.leaves((got, got_info)), jax.tree.leaves((grads, info)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # and data of another policy is not
    assert abs(weights(agent, state, batch, truncated()) - 1).max() > 0.1


def test_one_step_action_values_need_no_ratio():
    """The first action of a window is given to an action value, whoever chose it."""
    agent = small_dqn()
    assert agent.ratio_from == 1
    state, batch = random_state(agent), random_batch(window=1)
    assert bits(corrected(agent, truncated()).grad(state, batch, KEY)) == bits(agent.grad(state, batch, KEY))


def test_none_weighs_everything_the_same():
    agent = small_dqn()
    state, batch = random_state(agent), random_batch(window=3)
    assert bits(corrected(agent, none()).grad(state, batch, KEY)) == bits(agent.grad(state, batch, KEY))


def test_only_the_weight_changes_and_what_was_in_it_is_kept():
    agent = small_dqn()
    state, batch = random_state(agent), random_batch(window=3)
    batch = batch._replace(weight=jnp.linspace(0, 2, 32))
    (seen, key), _ = corrected(spy(agent), truncated()).grad(state, batch, KEY)
    assert bits((seen.data, seen.index, key)) == bits((batch.data, batch.index, KEY))
    unweighted = weights(agent, state, batch._replace(weight=jnp.ones(32)), truncated())
    np.testing.assert_allclose(seen.weight, unweighted * batch.weight, rtol=1e-6)
    changed = [n for n, a, b in zip(agent._fields, corrected(agent, truncated()), agent, strict=True) if a is not b]
    assert changed == ["grad"]


def test_no_gradient_flows_through_a_weight():
    """Of a policy whose log-probabilities have a slope, which those of EpsilonGreedy have not."""
    agent = small_dqn()
    agent = agent._replace(dist=lambda policy, obs, key: Categorical(small_dqn().dist(policy, obs, key).values))
    state, batch = random_state(agent), random_batch(window=3)

    def total(params):
        (seen, _), _ = corrected(spy(agent), truncated(50.0)).grad(state._replace(params=params), batch, KEY)
        return seen.weight.sum()

    for slope in jax.tree.leaves(jax.grad(total)(state.params)):
        np.testing.assert_array_equal(slope, 0)


def test_a_certain_action_of_the_other_policy_does_no_harm():
    """An action the own policy never takes weighs nothing, and no weight is undefined."""
    agent = small_dqn()
    state = random_state(agent)
    sure = state._replace(hyper=jax.tree.map(jnp.zeros_like, state.hyper))
    assert agent.policy(sure).knobs["epsilon"] == 0
    found = weights(agent, sure, random_batch(window=2, ends=0.0), truncated())
    assert np.isfinite(found).all()
    assert (found == 0).any()
