"""Ranges of activations are those of the weights they are sent with, widen at once and narrow slowly."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import HYPER, OBS, bits, random_batch, small_dqn, small_run, start

from frugalrl.levers.compress import quantise
from frugalrl.levers.compress.calibrate import SAMPLES, SHRINK, _spread, calibrated, ranges
from frugalrl.levers.compress.engines import engine
from frugalrl.networks import Dense, Flatten, Relu, Residual, Scale, mlp, network
from frugalrl.runtime import actor, compiled, link
from frugalrl.runtime.actors import arrays_of, finite
from frugalrl.types import Box, Linear, Policy, Ranges, Transition, update

KEY = jax.random.key(0)


def rollout(obs: np.ndarray) -> Transition:
    """[time, lanes] of which only the observations are read."""
    return Transition(jnp.asarray(obs), *[jnp.zeros(obs.shape[:2])] * 7)


def noise(size: float = 1, steps: int = 32, seed: int = 0) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal((steps, 4, *OBS.shape), np.float32)


def test_ranges_are_of_every_layer_the_body_before_the_sum():
    layers = (Dense(2, relu=False), Residual((Relu(), Dense(2, relu=False))), Dense(1, relu=False))
    eye = Linear(jnp.eye(2), jnp.zeros(2))
    weights = (eye, Linear(2 * jnp.eye(2), jnp.zeros(2)), Linear(-jnp.ones((2, 1)), jnp.zeros(1)))
    found = ranges(layers, Box((2,)), weights, jnp.float32([[1, -3], [2, 0.5]]))
    #                                        obs  first ReLU second sum last
    np.testing.assert_array_equal(found.low, [-3, -3, 0, 0, -3, -7.5])  # zero is always within
    np.testing.assert_array_equal(found.high, [2, 2, 2, 4, 6, 0])


def test_ranges_of_bytes():
    """A `Scale` is put in front where there is none, as engines do."""
    obs, x = Box((2, 2), "uint8", 0, 255), jnp.full((3, 2, 2), 200, jnp.uint8)
    weights = (Linear(jnp.ones((4, 1)), jnp.zeros(1)),)
    for scale, factor in (((), 1), ((Scale(0.5),), 0.5)):
        found = ranges((*scale, Flatten(), Dense(1)), obs, weights, x)
        np.testing.assert_allclose(found.high, [200, 200 * factor, 200 * factor, 800 * factor])


def test_a_range_widens_at_once_and_narrows_slowly():
    agent = calibrated(small_dqn())
    state = agent.init(KEY, HYPER)
    wide = agent.observe(state, rollout(noise(100)), 0)
    assert wide.ranges.high[0] > 100
    assert wide.ranges.low[0] < -100
    narrower = agent.observe(wide, rollout(noise(0)), 0)
    np.testing.assert_allclose(narrower.ranges.high[0], wide.ranges.high[0] * (1 - SHRINK), rtol=1e-5)
    follow = jax.jit(agent.observe)
    for _ in range(300):
        narrower = follow(narrower, rollout(noise(1)), 0)
    assert narrower.ranges.high[0] < 5


def test_few_observations_are_looked_at():
    """An eighth and 128 at most, of all lanes and all of a rollout; a wild one among the others is not seen."""
    for n in (1, 4, 64, 1024, 4096):
        seen = _spread(n)
        assert len(set(seen)) == len(seen) == max(1, min(n // 8, SAMPLES))
        assert seen.max() < n
    lanes = np.bincount(_spread(128 * 8) % 8)
    assert lanes.min() > 10
    assert np.bincount(_spread(128 * 8) // 64).min() > 3  # every 8 steps of 128
    agent, x = calibrated(small_dqn()), noise()
    unseen = sorted(set(range(128)) - set(_spread(128)))[0]
    wild = x.reshape(128, 4).copy()
    wild[unseen] = 1e6
    state = agent.init(KEY, HYPER)
    expected, got = (agent.observe(state, rollout(y.reshape(x.shape)), 0) for y in (x, wild))
    assert bits(expected) == bits(got)


@pytest.mark.long
def test_it_learns_as_before():
    """Not one bit of the agent's own state, whatever the ranges."""
    agent = small_dqn()
    runs = [small_run(each) for each in (agent, calibrated(agent))]
    ends = []
    for run in runs:
        programs = compiled.Programs(run, carry := start(run))
        programs.prepare(1)
        ends.append(programs(carry, 30)[0])
    assert bits(ends[0].state) == bits(ends[1].state.inner)
    assert bits(ends[0].memory) == bits(ends[1].memory)
    assert int(ends[1].state.version[0]) == 30
    before = jax.eval_shape(calibrated(agent).init, KEY, HYPER)
    after, _ = jax.eval_shape(lambda s: update(calibrated(agent), s, random_batch(), KEY), before)
    assert jax.tree.structure(before) == jax.tree.structure(after)


def test_a_foreign_network_is_refused():
    agent = small_dqn()
    with pytest.raises(ValueError, match="layers"):
        calibrated(agent._replace(network=agent.network._replace(layers=None)))


def shipped(state, folder: Path) -> tuple:
    """The weights that reach an actor."""
    agent, compressor = calibrated(small_dqn()), quantise.int8_static()
    packet = jax.device_get(jax.jit(lambda s: compressor.encode(agent.policy(s)))(state))
    arrays = arrays_of(packet, np.int32(0))
    link.mailbox(folder / "mailbox", link.fields(arrays)).put(arrays)
    _, received = link.mailbox(folder / "mailbox", link.fields(arrays)).get()
    return actor.unflatten(received, tuple(type(part).__name__ for part in packet.weights), ("epsilon",)).weights


def test_an_actor_acts_with_the_ranges_it_was_sent(tmp_path):
    agent = calibrated(small_dqn())
    state = agent.init(KEY, HYPER)
    state = state._replace(inner=state.inner._replace(params=jax.tree.map(lambda x: 3 * x, state.inner.params)))
    for _ in range(2):
        state = jax.jit(agent.observe)(state, rollout(noise(20, 256)), 0)
    weights = shipped(state, tmp_path)
    assert isinstance(weights[-1], Ranges)
    x = noise(20, 32, seed=1).reshape(-1, 4)
    expected = np.asarray(jax.vmap(lambda o: agent.dist(agent.policy(state), o, KEY).values)(x))
    acting = engine("litert").build(mlp((16,), 2), OBS, len(x), "int8-static")
    acting.load(weights)
    got = acting.run(x)
    assert 1e-4 < np.sqrt(((got - expected) ** 2).mean()) / expected.std() < 0.05
    assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.95
    stale = (*weights[:-1], Ranges(weights[-1].low / 20, weights[-1].high / 20))
    acting.load(stale)
    assert abs(acting.run(x) - expected).max() > expected.std()


def test_weights_that_are_not_finite_show():
    agent = calibrated(small_dqn())
    state = agent.init(KEY, HYPER)
    bad = jax.tree.map(lambda x: x * jnp.nan if x.ndim > 1 else x, state.inner.params)
    state = agent.observe(state._replace(inner=state.inner._replace(params=bad)), rollout(noise()), 0)
    assert not np.isfinite(state.ranges.high[1:]).any()
    packet = quantise.int8_static().encode(agent.policy(state))
    assert not finite([np.asarray(state.ranges.high)])
    assert not finite(arrays_of(jax.device_get(packet), np.int32(0)))
    assert not finite(arrays_of(jax.device_get(quantise.bf16().encode(small_dqn().policy(state.inner))), np.int32(0)))


def test_random_observations_begin():
    """Before the first rollout: pixels and bounded numbers of their bounds, others around zero."""
    layers = (Flatten(), Dense(2, relu=False))
    for obs, least, most in (
        (Box((3, 3), "uint8", 0, 255), 200, 255),
        (Box((3, 3), "bool", 0, 1), 1, 1),
        (Box((3, 3), low=-5.0, high=7.0), 6, 7),
        (Box((3, 3)), 2, 6),
    ):
        net = network(layers, obs)
        agent = small_dqn()._replace(network=net, init=lambda key, hyper, net=net: net.init(key))
        agent = agent._replace(policy=lambda state: Policy(state, {}))
        found = calibrated(agent).init(KEY, HYPER).ranges
        assert least <= found.high[0] <= most
