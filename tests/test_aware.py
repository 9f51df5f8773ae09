"""Quantisation-aware training: gradients at rounded weights move the full ones, from a number of updates on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from small import OBS, TORQUE, bits, random_batch, random_state, small_dqn

from frugalrl.agents import ppo, sac
from frugalrl.levers.compress.aware import quantisation_aware
from frugalrl.levers.compress.quantise import bf16, int8, rounded
from frugalrl.types import Discrete, Policy, update

KEY = jax.random.key(0)


def through(compressor, weights):
    return compressor.decode(compressor.encode(Policy(weights, ()))).params


def test_32_bits_are_the_same_program():
    agent = small_dqn()
    aware, state = quantisation_aware(agent, rounded(32), 0), random_state(agent)
    for part, arguments in {"policy": (state,), "grad": (state, random_batch(), KEY)}.items():
        before, after = (str(jax.make_jaxpr(getattr(each, part))(*arguments)) for each in (agent, aware))
        assert before == after


@pytest.mark.parametrize("compressor", [int8(), bf16(), rounded(4)], ids=lambda c: c.name)
def test_values_and_gradients_are_of_rounded_weights_after_the_delay(compressor):
    agent, batch = small_dqn(), random_batch()
    aware, state = quantisation_aware(agent, compressor, 5), random_state(agent)
    early, late = (state._replace(version=jnp.int32(version)) for version in (4, 5))
    assert bits(update(aware, early, batch, KEY)) == bits(update(agent, early, batch, KEY))
    assert bits(aware.policy(early)) == bits(agent.policy(early))

    small = through(compressor, state.params)
    assert bits(small) != bits(state.params)
    assert bits(aware.policy(late).params) == bits(small)
    grads, _ = agent.grad(late._replace(params=small), batch, KEY)
    assert bits(aware.grad(late, batch, KEY)[0]) == bits(grads)
    moved, _ = update(aware, late, batch, KEY)
    assert bits(moved) == bits(agent.apply(late, grads))  # the full weights move, by less than a step


def test_the_delay_compiles_nothing_anew():
    agent = small_dqn()
    state, traces = random_state(agent), []

    @jax.jit
    def grad(state, delay):
        traces.append(1)
        return quantisation_aware(agent, int8(), delay).grad(state, random_batch(), KEY)[0]

    for version in (0, 10):
        for delay in (5, 20):
            grad(state._replace(version=jnp.int32(version)), delay)
    assert len(traces) == 1


def state_of(name: str):
    recipe = {"sac": sac.recipe, "ppo": ppo.ppo}[name]
    actions = TORQUE if name == "sac" else Discrete(2)
    return (agent := recipe.assemble(recipe.static._replace(hidden=(8,)), OBS, actions)), agent.init(KEY, recipe.hyper)


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_of_an_actor_and_a_critic_only_the_actor_is_rounded(name):
    """Wherever weights are looked at."""
    agent, state = state_of(name)
    told = agent._replace(policy=lambda s: s, grad=lambda s, batch, key: s, prepare=lambda s, rollout: s)
    aware = quantisation_aware(told, rounded(3), 0)
    actor = through(rounded(3), state.params.actor)
    expected = bits(state._replace(params=state.params._replace(actor=actor)))
    assert expected != bits(state)
    for seen in (aware.policy(state), aware.grad(state, None, KEY), aware.prepare(state, None)):
        assert bits(seen) == expected


def test_training_aware_of_3_bits_beats_rounding_afterwards():
    """DQN's network learns a sine, of which each step that is an episode of its own tells one value."""
    agent = small_dqn()
    batch = random_batch(size=256, ends=1.0)  # every step ends an episode: targets are rewards
    batch = batch._replace(data=batch.data._replace(terminated=jnp.ones_like(batch.data.terminated)))
    reward = jnp.sin(2 * batch.data.obs[..., 0]) * jnp.where(batch.data.action == 0, 1.0, -1.0)
    batch = batch._replace(data=batch.data._replace(reward=reward))
    losses = {}
    for name, each in {"after": agent, "aware": quantisation_aware(agent, rounded(3), 300)}.items():
        state, _ = jax.lax.fori_loop(
            0, 1500, lambda _, c, each=each: (update(each, c[0], batch, KEY)[0], c[1]), (random_state(agent), 0)
        )
        small = state._replace(params=through(rounded(3), state.params))
        losses[name] = float(agent.grad(small, batch, KEY)[1].metrics["loss"])
    assert losses["aware"] < 0.7 * losses["after"]
