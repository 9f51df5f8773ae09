"""Quantisation-aware training: gradients at rounded weights move the full ones, from a number of updates on.

And `--qat`, which asks for it in both runtimes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import receipt, rows, timeless
from small import OBS, TORQUE, bits, random_batch, random_state, small_dqn

import frugalrl
from frugalrl import cli, jobs
from frugalrl.agents import ppo, sac
from frugalrl.config import Config, configure
from frugalrl.levers.compress.aware import quantisation_aware
from frugalrl.levers.compress.quantise import bf16, int8, rounded, through
from frugalrl.monitor.receipt import entries
from frugalrl.types import Discrete, update

KEY = jax.random.key(0)
TINY = {"steps": 3000, "hyper": {"hidden": (16,), "batch_size": 32, "learning_starts": 600}}


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


def test_weights_are_rounded_as_actors_have_them():
    """With normalised observations those are other weights than the agent's own."""
    static = ppo.ppo.static._replace(hidden=(8,), normalize_obs=True)
    agent = ppo.ppo.assemble(static, OBS, Discrete(2))
    state = agent.init(KEY, ppo.ppo.hyper)
    some = np.random.default_rng(0).normal(2, [10, 1, 30, 5], (100, 4)).astype(np.float32)
    state = state._replace(obs=state.obs.seen(jnp.asarray(some)))
    full, acts = agent.policy(state).params, quantisation_aware(agent, rounded(4), 0).policy(state).params
    for x, y in zip(jax.tree.leaves(through(rounded(4), full)), jax.tree.leaves(acts), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert not np.allclose(full[0].w, acts[0].w, rtol=1e-3)


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


# --qat


def on_grid(weights: tuple, compressor) -> bool:
    """Whether weights that have gone through a compressor stay as they are."""
    return all(
        np.allclose(x, y, rtol=1e-6, atol=1e-7)
        for x, y in zip(jax.tree.leaves(through(compressor, weights)), jax.tree.leaves(weights), strict=True)
    )


@pytest.mark.parametrize("runtime", ["compiled", "actors"])
def test_rounding_begins_when_half_of_the_updates_are_made(runtime):
    """Of 600, which come after 600 of 3000 steps."""
    config = configure("dqn", "CartPole-v1", runtime=runtime, qat=3, **TINY)
    _, agent, static, hyper, _, cadence = jobs.records(config)
    spu = jobs._steps_per_update(jobs._actors_plan(static, cadence)) if runtime == "actors" else 4
    for longer in (config, config._replace(steps=9000)):  # as a resumed one
        aware, state = jobs.aware(agent, longer, cadence, spu), agent.init(KEY, hyper)
        early, late = (aware.policy(state._replace(version=jnp.int32(version))).params for version in (299, 300))
        assert bits(early) == bits(state.params)
        assert bits(late) == bits(through(rounded(3), state.params))
    assert jobs.aware(agent, config._replace(qat=None), cadence, spu) is agent


def test_actor_learners_see_rounded_weights_too():
    config = configure("a3c", "CartPole-v1", runtime="actors", qat=3, steps=3000, hyper={"hidden": (16,)})
    _, _, static, hyper, card, cadence = jobs.records(config)
    agent = jobs.gradient_parts(config, card, static, hyper, jobs._actors_plan(static, cadence)).agent
    state = agent.init(KEY, hyper)
    late = agent.policy(state._replace(version=jnp.int32(10**6))).params
    assert bits(late) == bits(through(rounded(3), state.params.actor))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of two seeds."""
    folder = tmp_path_factory.mktemp("aware") / "run"
    frugalrl.train("dqn", "CartPole-v1", seeds=2, qat=3, out=folder, **TINY)
    return folder


def test_what_is_kept_has_so_many_bits_and_the_receipt_says_so(trained):
    actor = frugalrl.load(trained)
    assert len(actor.weights) == 2
    for weights in actor.weights:
        assert on_grid(weights, rounded(3))
        assert not on_grid(weights, rounded(2))
        assert all(len(np.unique(layer.w)) <= 2**3 + 1 for layer in weights)
    assert receipt(trained)["qat"] == 3
    assert ("weights", "trained for 3 bits in the second half of the updates") in entries(receipt(trained))


def test_a_resumed_run_is_the_same_run(trained, tmp_path):
    short = frugalrl.train("dqn", "CartPole-v1", seeds=2, qat=3, out=tmp_path / "a", budget=1e-6, **TINY)
    assert not short.receipt["finished"]
    frugalrl.resume(tmp_path / "a")
    assert timeless(rows(tmp_path / "a")) == timeless(rows(trained))


def test_int8_actors_act_with_the_weights_that_are_learned(tmp_path):
    words = ["train", "dqn", "CartPole-v1", "--steps", "2000", "--hyper", "hidden=16", "batch_size=32"]
    words += ["learning_starts=500", "--actors", "int8", "--qat", "8", "--quiet", "--out", str(tmp_path / "a")]
    assert cli.main(words) == 0
    made = receipt(tmp_path / "a")
    assert (made["qat"], made["actors"]["mode"]) == (8, "int8")
    weights = frugalrl.load(tmp_path / "a").weights[0]
    assert on_grid(weights, int8())
    assert not on_grid(weights, rounded(8))
    last = rows(tmp_path / "a")[-1]
    assert last["agreement"] == 1
    assert last["kl"] < 1e-6


def test_a_run_is_of_full_weights_unless_asked():
    assert configure("dqn", "CartPole-v1").qat is None
    assert configure("dqn", "CartPole-v1", qat=8).runtime == "compiled"
    assert Config._field_defaults["qat"] is None  # so that older config.json files are read
