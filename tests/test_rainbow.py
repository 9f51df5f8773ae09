"""What Rainbow adds to DQN, part by part against brute force, and all of it together against a loop over samples."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from small import HYPER, OBS, bits, compiled, random_batch, random_state, small_run, start

import frugalrl
from frugalrl import catalog, cli, rng
from frugalrl.agents import dqn
from frugalrl.agents.dqn import Hyper, Static, assemble
from frugalrl.agents.returns import categorical, implicit, midpoints, quantile
from frugalrl.config import configure
from frugalrl.distributions import distributional_greedy
from frugalrl.errors import UsageError
from frugalrl.losses import munchausen_bonus, project, quantile_huber, soft
from frugalrl.networks import COSINES, Dense, NoisyLinear, dueling, embedded, embedding, network, noisy, plain
from frugalrl.types import Agent, Batch, Box, Discrete, Linear, best_policy

KEY = jax.random.key(0)
UNLIKELY = 1e-3  # seeds are fixed, so a test either passes for ever or fails for ever
FAMILY = ("dqn", "rainbow", "qrdqn", "iqn", "mdqn", "miqn")
RANGE = {"v_min": -4.0, "v_max": 5.0}


@cache
def made(actions: int = 2, **static: Any) -> Agent:
    return compiled(assemble(Static(hidden=(16,), **static), OBS, Discrete(actions)))


def close(got: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# kinds of action values


def test_a_projection_is_the_integral_of_its_neighbours_shares():
    """Against numerical integration: the share of each atom in a density around each return, as it narrows."""
    r, onto = np.random.default_rng(0), np.linspace(-2, 3, 11)
    support, probs = r.uniform(-3, 4, 7), r.dirichlet(np.ones(7))
    got = jax.jit(project)(*map(jnp.float32, (support, probs, onto)))
    width = 1e-4
    for i in range(len(onto)):
        tent = partial(np.interp, xp=onto, fp=np.eye(len(onto))[i])  # constant beyond the ends, as clipping has it
        parts = [integrate.quad(tent, z - width, z + width)[0] / (2 * width) for z in support]
        assert got[i] == pytest.approx(probs @ parts, abs=2e-4)
    assert got.sum() == pytest.approx(1, abs=1e-6)


def test_the_quantile_loss_is_a_double_loop_and_so_is_its_gradient():
    r = np.random.default_rng(1)
    quantiles, target, fractions = 2 * r.standard_normal(5), 2 * r.standard_normal(19), r.random(5)
    loss, slopes = 0.0, np.zeros(5)
    for i in range(5):
        for j in range(19):
            error = target[j] - quantiles[i]
            side = abs(fractions[i] - (error < 0))
            loss += side * (0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5) / 19
            slopes[i] -= side * np.clip(error, -1, 1) / 19
    got = jax.jit(jax.value_and_grad(quantile_huber))(*map(jnp.float32, (quantiles, fractions, target)))
    np.testing.assert_allclose(got[0], loss, rtol=1e-5)
    np.testing.assert_allclose(got[1], slopes, rtol=1e-5, atol=1e-6)


def test_quantiles_learned_by_their_loss_are_those_of_the_samples():
    samples = np.random.default_rng(2).exponential(50.0, 400).astype(np.float32)
    at = midpoints(4)
    step = jax.jit(lambda q, _: (q - 2.0 * jax.grad(quantile_huber)(q, at, samples), None))
    found = jax.lax.scan(step, jnp.zeros(4), None, length=2000)[0]
    np.testing.assert_allclose(found, np.quantile(samples, at), atol=2)


def test_munchausens_bonus_is_clipped_and_its_policy_soft():
    values, temperature = np.array([0.0, 1.0, 0.98, -5.0]), 0.03
    probs = np.exp(values / temperature - 1 / temperature)
    probs /= probs.sum()
    policy = jax.jit(soft)(jnp.float32(values), jnp.float32(temperature))
    np.testing.assert_allclose(policy.probs, probs, rtol=1e-4, atol=1e-12)
    for action in range(4):
        with np.errstate(divide="ignore"):
            wanted = 0.9 * max(temperature * np.log(probs[action]), -0.7)
        got = munchausen_bonus(policy, jnp.int32(action), jnp.float32(0.9), jnp.float32(0.7))
        assert got == pytest.approx(wanted, abs=1e-5)
    assert munchausen_bonus(policy, jnp.int32(3), jnp.float32(0.9), jnp.float32(0.7)) == pytest.approx(-0.63)


def test_implicit_quantiles_are_the_papers_product():
    """Features times embedding through the last layer, fraction by fraction; actors have their mean."""
    form = embedding(plain((Dense(8), Dense(3, relu=False)), OBS), 8)
    r = np.random.default_rng(0)
    w = jax.tree.map(lambda x: r.standard_normal(x.shape, np.float32), jax.eval_shape(form.init, KEY))
    fractions, obs = np.float32([0.1, 0.5, 0.93]), r.standard_normal(4, np.float32)
    net, kind = network((Dense(8), Dense(3, relu=False)), OBS), implicit(6)

    def by_hand(fraction):
        features = np.maximum(obs @ w[1].w + w[1].b, 0)
        cosines = np.cos(np.pi * fraction * np.arange(1, COSINES + 1))
        return (features * np.maximum(cosines @ w[0].w + w[0].b, 0)) @ w[2].w + w[2].b

    got = jax.jit(lambda w: net.apply(embedded(w, jnp.asarray(fractions)), obs, None))(w)
    close(got.reshape(3, 3), np.stack([by_hand(f) for f in fractions], -1), rtol=1e-3)  # [actions, fractions]
    got = jax.jit(lambda w: net.apply(kind.acting(w), obs, None))(w)
    close(got, np.mean([by_hand(f) for f in np.asarray(midpoints(6))], 0), rtol=1e-3)


def test_fractions_are_even_and_drawn_anew_for_each_key():
    at = np.asarray(jax.vmap(lambda key: implicit(64).at(HYPER, key))(jax.random.split(KEY, 40)))
    assert stats.kstest(at.reshape(-1), "uniform").pvalue > UNLIKELY
    assert len(np.unique(at)) > 2500
    np.testing.assert_allclose(quantile(4).at(HYPER, KEY), [0.125, 0.375, 0.625, 0.875])


def test_what_acts_is_the_mean_of_quantiles():
    layers, kind = (Dense(8), Dense(3 * 5, relu=False)), quantile(5)
    weights = plain(layers, OBS).init(KEY)
    obs, net = jax.random.normal(KEY, (4,)), network(layers, OBS)
    close(net.apply(kind.acting(weights), obs, None), net.apply(weights, obs, None).reshape(3, 5).mean(-1))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_the_head_of_atoms_is_the_same_in_numpy_and_jax(lead):
    outputs = 3 * np.random.default_rng(3).standard_normal((*lead, 3 * 7), np.float32)
    knobs = {"epsilon": np.float32(0.1), "v_min": np.float32(-2), "v_max": np.float32(4), "actions": np.zeros(3)}
    here, there = (distributional_greedy(to(outputs), knobs) for to in (np.asarray, jnp.asarray))
    probs = np.exp(outputs.reshape(*lead, 3, 7))
    wanted = (probs / probs.sum(-1, keepdims=True)) @ np.linspace(-2, 4, 7)
    assert isinstance(here.values, np.ndarray)
    for dist in (here, there):
        assert (dist.values.shape, dist.values.dtype) == ((*lead, 3), np.float32)
        np.testing.assert_allclose(dist.values, wanted, rtol=1e-4, atol=1e-5)
    # which action is best does not depend on the range
    other = distributional_greedy(outputs, knobs | {"v_min": 0.0, "v_max": 1.0, "actions": [0.0] * 3})
    np.testing.assert_array_equal(other.mode(), here.mode())


# forms


@pytest.mark.parametrize("numbers", [1, 5])
def test_dueling_is_value_and_advantage_less_its_mean(numbers):
    base = plain((Dense(8), Dense(4 * numbers, relu=False)), OBS)
    form, params = dueling(base, numbers), base.init(KEY)
    obs = jax.random.normal(KEY, (4,))
    streams = np.maximum(obs @ params[0].w + params[0].b, 0) @ params[1].w + params[1].b
    streams = streams.reshape(4, numbers)
    wanted = streams[:1] + streams[1:] - streams[1:].mean(0, keepdims=True)
    net = network((Dense(8), Dense(3 * numbers, relu=False)), OBS)
    got = net.apply(form.weights(params, None), obs, None).reshape(3, numbers)
    close(got, wanted)
    close(got.mean(0), streams[0])  # the mean is the value: advantages have none
    raised = (params[0], Linear(params[1].w, params[1].b.at[numbers:].add(7.0)))  # every advantage alike
    close(net.apply(form.weights(raised, None), obs, None).reshape(3, numbers), got, atol=1e-4)


class Drawn(NamedTuple):
    params: tuple
    weights: Any  # of (params, key)


def noise_of(std: float = 0.5) -> Drawn:
    form = noisy(plain((Dense(32), Dense(20, relu=False)), Box((30,))), std)
    return Drawn(form.init(KEY), jax.jit(form.weights))


def test_noise_is_factorised_and_as_large_as_it_should_be():
    params, weights = noise_of()
    mean = plain((Dense(32), Dense(20, relu=False)), Box((30,))).init(KEY)
    assert bits([layer[:2] for layer in params]) == bits(mean)  # means begin as without noise
    assert bits(jax.tree.leaves(weights(params, None))) == bits(jax.tree.leaves(mean))
    drawn = jax.device_get(jax.jit(jax.vmap(weights, (None, 0)))(params, jax.random.split(KEY, 200)))
    seen, params = [], jax.device_get(params)
    for i in range(200):
        for before, after in zip(params, drawn, strict=True):
            np.testing.assert_allclose(before.w_std, 0.5 / np.sqrt(before.w.shape[0]), rtol=1e-6)
            noise, columns = (after.w[i] - before.w) / before.w_std, (after.b[i] - before.b) / before.b_std
            rows = noise @ columns / (columns @ columns)
            np.testing.assert_allclose(noise, np.outer(rows, columns), atol=1e-3)  # of rank one, the bias its columns
            seen += [*rows, *columns]
    seen = np.array(seen)
    assert stats.kstest(np.sign(seen) * seen**2, "norm").pvalue > UNLIKELY


def test_noise_is_drawn_anew_for_each_key_and_each_layer():
    params, weights = noise_of()
    first, again, other = (jax.tree.leaves(weights(params, jax.random.key(i))) for i in (1, 1, 2))
    assert bits(first) == bits(again)
    assert all((a != b).all() for a, b in zip(first, other, strict=True))
    square = noisy(plain((Dense(30), Dense(30)), Box((30,))), 0.5)
    before = square.init(KEY)
    one, two = (after.w - layer.w for layer, after in zip(before, square.weights(before, KEY), strict=True))
    assert not np.allclose(one, two, atol=1e-4)


def test_the_policy_has_one_draw_until_new_data_comes_and_is_kept_without():
    agent = made(noisy=True, dueling=True)
    state = random_state(agent)
    one, same = agent.policy(state), agent.policy(state)
    assert bits(one) == bits(same)
    after = agent.observe(state, None, 0)  # type: ignore[arg-type]
    assert bits(after._replace(noise=())) == bits(state._replace(noise=()))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(agent.policy(after).params), strict=True):
        assert (a != b).all()
    mean = best_policy(agent, state)
    assert bits(mean) == bits(best_policy(agent, after))
    silent = tuple(layer._replace(w_std=0 * layer.w_std, b_std=0 * layer.b_std) for layer in state.params)
    close(mean.params, agent.policy(state._replace(params=silent)).params, rtol=1e-6)
    seeds = [agent.init(rng.key(i), HYPER) for i in range(2)]
    assert bits(seeds[0].noise) != bits(seeds[1].noise)


def test_each_network_of_an_update_draws_its_own_noise():
    """A network that judges itself has no error, unless the two uses of it differ."""
    batch = random_batch(size=16, ends=0.0)
    data = batch.data._replace(next_obs=batch.data.obs, reward=0 * batch.data.reward, action=0 * batch.data.action)
    for std, frozen, exact in ((0.0, False, True), (0.5, True, True), (0.5, False, False)):
        static = Static(hidden=(16,), noisy=True, noisy_std=std, frozen_noise=frozen)
        agent = assemble(static, OBS, Discrete(1))
        state = agent.init(KEY, HYPER._replace(gamma=1.0))
        error = jax.jit(agent.grad)(state, batch._replace(data=data), KEY)[1].priority
        assert (np.abs(error).max() < 1e-6) == exact
    errors = [jax.jit(agent.grad)(state, batch, jax.random.key(i))[1].priority for i in range(2)]
    assert (errors[0] != errors[1]).all()


def test_frozen_noise_moves_the_weights_once_and_for_all():
    agent, plain = made(noisy=True, frozen_noise=True), made()
    state = random_state(agent)
    means = tuple(Linear(layer.w, layer.b) for layer in state.params)
    acting, mean = agent.policy(state).params, plain.policy(random_state(plain)._replace(params=means)).params
    for a, b in zip(jax.tree.leaves(acting), jax.tree.leaves(mean), strict=True):
        assert (a != b).all()
    assert bits(best_policy(agent, state).params) == bits(acting)
    assert agent.observe is plain.observe


def test_a_run_acts_with_new_noise_in_every_iteration():
    agent = made(noisy=True)
    runs = small_run(agent)
    carry = start(runs)
    advance, seen = jax.jit(jax.vmap(runs.advance, (0, None))), []
    for _ in range(3):
        seen.append(bits(carry.state.noise))
        carry, _ = advance(carry, jnp.int32(1))
    assert len({str(x) for x in seen}) == 3


@pytest.mark.long
@pytest.mark.parametrize("mode", ["fp32", "int8", "int8-static"])
def test_actors_act_with_noise_and_the_run_keeps_none(mode):
    """The Monitor compares what acts with the same draw in full, so that noise is no divergence."""
    hyper = {"hidden": (16,), "batch_size": 32, "learning_starts": 500}
    run = frugalrl.train("rainbow", "CartPole-v1", runtime="actors", actors=mode, steps=4000, hyper=hyper)
    acted = run.receipt["actors"]
    assert (acted["mode"], acted["fallback"]) == (mode, None)
    assert acted["refreshes"] > 10
    assert acted["harm"] < 0.2
    assert len(run.actor.weights[0]) == 2
    assert run.actor.weights[0][1].b.shape == (2 * 51,)
    assert isinstance(int(run.actor.predict(np.zeros(4, np.float32))), int)


# the learner


class Sample(NamedTuple):
    reward: float
    discount: float
    next_obs: np.ndarray


def returned(batch: Batch, i: int, gamma: float) -> Sample:
    data, total, discount = jax.device_get(batch.data), 0.0, 1.0
    for t in range(data.reward.shape[1]):
        total, discount = total + discount * data.reward[i, t], discount * gamma
        if data.terminated[i, t] or data.truncated[i, t]:
            break
    return Sample(total, 0.0 if data.terminated[i, t] else discount, data.next_obs[i, t])


def two_layers(params, obs):
    (w1, b1), (w2, b2) = jax.device_get(params)
    obs = np.asarray(obs)
    return np.maximum(obs @ w1 + b1, 0) @ w2 + b2


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


HARD = Hyper(learning_rate=1e-2, gamma=0.9, munchausen_tau=0.3, munchausen_clip=0.4, **RANGE)


def test_the_loss_of_atoms_is_the_papers_sample_by_sample():
    static = {"atoms": 9, "double": True, "dueling": False}
    agent, batch = made(3, **static), random_batch(window=3, size=48)
    state = random_state(agent, hyper=HARD)
    state = state._replace(hyper=jax.tree.map(jnp.float32, HARD))
    batch = batch._replace(data=batch.data._replace(action=batch.data.action + 1))
    support, losses, errors = np.linspace(-4, 5, 9), [], []
    for i in range(48):
        sample = returned(batch, i, 0.9)
        online, target = (softmax(two_layers(p, sample.next_obs).reshape(3, 9)) for p in (state.params, state.target))
        best = (online @ support).argmax()
        aim = np.zeros(9)
        for z, p in zip(support, target[best], strict=True):
            place = (np.clip(sample.reward + sample.discount * z, -4, 5) + 4) / (9 / 8)
            low = min(int(place), 7)
            aim[low] += p * (low + 1 - place)
            aim[low + 1] += p * (place - low)
        action = int(batch.data.action[i, 0])
        logits = two_layers(state.params, batch.data.obs[i, 0]).reshape(3, 9)[action]
        losses.append(-(aim @ np.log(softmax(logits))))
        errors.append(losses[-1] + aim @ np.log(np.maximum(aim, 1e-30)))
    _, info = agent.grad(state, batch, KEY)
    np.testing.assert_allclose(info.metrics["loss"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(info.priority, errors, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("atoms", [1, 6])
def test_munchausen_is_the_papers_sample_by_sample(atoms):
    """M-DQN, and with quantiles for values what M-IQN is at fixed fractions."""
    agent = made(3, atoms=atoms, distribution="quantile", munchausen=True)
    batch, state = random_batch(size=48), random_state(agent, hyper=HARD)
    losses, at, clipped = [], (np.arange(atoms) + 0.5) / atoms, 0
    for i in range(48):
        sample, (obs, action) = returned(batch, i, 0.9), (batch.data.obs[i, 0], int(batch.data.action[i, 0]))
        then, now = (two_layers(state.target, x).reshape(3, atoms) for x in (sample.next_obs, obs))
        pi, pi_now = softmax(then.mean(-1) / 0.3), softmax(now.mean(-1) / 0.3)
        bonus = 0.9 * np.clip(0.3 * np.log(pi_now[action]), -0.4, 0)
        clipped += bool(np.isclose(bonus, -0.36))
        mixed = pi @ (then - 0.3 * np.log(pi)[:, None])
        aim = sample.reward + bonus + sample.discount * mixed
        mine = two_layers(state.params, obs).reshape(3, atoms)[action]
        error = aim[None] - mine[:, None]
        size = np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5)
        side = np.abs(at[:, None] - (error < 0)) if atoms > 1 else 1.0
        losses.append((side * size).mean(1).sum())
    assert 5 < clipped < 43
    _, info = agent.grad(state, batch, KEY)
    np.testing.assert_allclose(info.metrics["loss"], np.mean(losses), rtol=1e-4)


def test_weights_undo_the_chances_that_samples_were_drawn_with():
    agent, even = made(prioritized=True), made()
    hyper = HYPER._replace(prioritized_replay_beta=0.4, total_steps=100.0, steps_per_update=10.0)
    batch = random_batch(size=8)
    chance = jnp.float32([0.5, 1, 2, 4, 4, 2, 1, 0.5])
    for version, beta in ((0, 0.4), (5, 0.7), (10, 1.0), (40, 1.0)):
        state = random_state(agent, hyper=hyper)._replace(version=jnp.int32(version))
        got, info = agent.grad(state, batch._replace(chance=chance), KEY)
        weight = (0.5 / np.asarray(chance)) ** beta
        wanted, plainly = even.grad(state, batch._replace(weight=batch.weight * weight), KEY)
        close(got, wanted, rtol=1e-4)
        np.testing.assert_allclose(info.priority, (plainly.priority + 1e-6) ** 0.6, rtol=1e-5)
    assert bits(agent.grad(state, batch, KEY)[0]) == bits(even.grad(state, batch, KEY)[0])  # where all are alike


def off(static: Static) -> Static:
    switches = ("double", "dueling", "noisy", "n_step", "atoms", "distribution", "prioritized", "munchausen")
    return static._replace(**{name: getattr(Static(), name) for name in switches})


@pytest.mark.parametrize("name", FAMILY)
def test_every_agent_is_dqn_with_other_defaults(name):
    recipe = catalog.recipe(name)
    assert off(recipe.static) == Static()
    for part in ("assemble", "cadence", "memory", "greedy", "values"):
        assert getattr(recipe, part) is getattr(dqn.recipe, part)


OF_A_SWITCH = {  # hyper-parameters -> the switches without which they are nothing
    "v_min": {"atoms": 5}, "v_max": {"atoms": 5}, "prioritized_replay_alpha": {"prioritized": True},
    "prioritized_replay_beta": {"prioritized": True}, "prioritized_replay_eps": {"prioritized": True},
    "munchausen_alpha": {"munchausen": True}, "munchausen_tau": {"munchausen": True},
    "munchausen_clip": {"munchausen": True},
}  # fmt: skip


@pytest.mark.parametrize("name", OF_A_SWITCH)
def test_the_numbers_of_a_switch_count_with_it_and_not_without(name):
    batch = random_batch(size=16)._replace(chance=jnp.linspace(0.1, 1.0, 16))
    for switches, counts in ((OF_A_SWITCH[name], True), ({}, False)):
        agent = made(**switches)
        state = random_state(agent)
        hyper = state.hyper._replace(**RANGE, munchausen_clip=jnp.float32(0.3), munchausen_tau=jnp.float32(0.3))
        other = hyper._replace(**{name: 1.5 * getattr(hyper, name) + 0.1})
        one, two = (agent.grad(state._replace(hyper=h), batch, KEY) for h in (hyper, other))
        assert (bits(one) != bits(two)) == counts


@pytest.mark.parametrize("name", FAMILY)
def test_continuous_actions_are_refused_with_agents_that_take_them(name):
    with pytest.raises(UsageError, match=f"continuous actions, and {name} takes discrete ones; use ppo.* sac"):
        configure(name, "Pendulum-v1")


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["compiled", "actors"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_command_line_trains_evaluates_and_exports_each(name, runtime, tmp_path, capsys):
    small = ("--hyper", "hidden=16", "batch_size=32", "learning_starts=500", "--steps", "3000", "--quiet")
    more = ("--actors", "int8") if runtime == "actors" else ("--seeds", "2")
    out, file = str(tmp_path / "run"), str(tmp_path / "policy.tflite")
    assert cli.main(["train", name, "CartPole-v1", "--runtime", runtime, *more, *small, "--out", out]) == 0
    assert cli.main(["eval", out, "--episodes", "3"]) == 0
    assert "mean greedy return" in capsys.readouterr().out
    assert cli.main(["export", out, "--format", "litert", "--mode", "int8", "--episodes", "3", "--out", file]) == 0


@pytest.mark.parametrize("name", FAMILY)
def test_what_acts_is_a_plain_chain_that_gives_the_values(name):
    """An engine knows dense layers, a Linear for each, and the head; on them the agent and an actor agree."""
    agent = compiled(assemble(catalog.recipe(name).static._replace(hidden=(16, 8)), OBS, Discrete(3)))
    policy = jax.device_get(agent.policy(random_state(agent, hyper=HARD)))
    assert [layer.features for layer in agent.network.layers] == [16, 8, 3 * (51 if name == "rainbow" else 1)]
    obs = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    outputs = obs
    for i, layer in enumerate(policy.params):
        assert type(layer) is Linear
        outputs = (np.maximum(outputs, 0) if i else obs) @ layer.w + layer.b
    values = jax.vmap(lambda o: agent.dist(policy, o, KEY).values)(obs)
    close(agent.head(outputs, policy.knobs).values, values, rtol=1e-4)


def test_a_memory_forgets_no_sample_that_has_no_error():
    """A priority of 0 would mean that there is no window."""
    agent = made(prioritized=True, n_step=1)
    batch = random_batch(size=4, ends=0.0)
    state = agent.init(KEY, HYPER._replace(gamma=0.0))
    state = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    data = batch.data._replace(reward=0 * batch.data.reward)
    assert (agent.grad(state, batch._replace(data=data), KEY)[1].priority > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hyper": {"munchausen": True, "double": True}}, "use double=false"),
        ({"hyper": {"munchausen": True, "double": False, "atoms": 51}}, "use distribution=quantile"),
        ({"hyper": {"atoms": 51, "distribution": "gauss"}}, "there are: categorical, quantile, implicit"),
        ({"hyper": {"noisy": True}, "actors": "half"}, "not for noisy=true: a student has no noise"),
        ({"hyper": {"noisy": True}, "prune": 0.5}, "not for noisy=true or distribution=implicit"),
        ({"hyper": {"atoms": 8, "distribution": "implicit"}, "prune": 0.5}, "not for noisy=true or distribution="),
        ({"hyper": {"noisy": True}, "qat": 4}, "--qat is for weights that act as they are learned, not for noisy=true"),
        ({"hyper": {"dueling": True}, "qat": 4}, "--qat is for weights that act as they are learned"),
        ({"hyper": {"atoms": 8, "distribution": "quantile"}, "qat": 4}, "--qat is for weights that act as they are"),
        ({"hyper": {"atoms": 8, "distribution": "implicit"}, "qat": 4}, "--qat is for weights that act as they are"),
        ({"hyper": {"atoms": 0}}, "atoms=0 must be at least 1"),
        ({"hyper": {"v_min": 3.0, "v_max": 2.0}}, "v_min=3 must be less than v_max=2"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        configure("dqn", "CartPole-v1", **options)


def test_what_goes_with_students_and_pruning_is_taken():
    everything = {"dueling": True, "atoms": 51, "prioritized": True, "n_step": 3}
    assert configure("dqn", "CartPole-v1", hyper=everything, actors="half+int8").runtime == "actors"
    assert configure("dqn", "CartPole-v1", hyper=everything, prune=0.5).prune == 0.5
    assert configure("rainbow", "CartPole-v1", actors="int8").actors == "int8"
    plain = {"double": True, "atoms": 51, "prioritized": True, "n_step": 3}
    assert configure("dqn", "CartPole-v1", hyper=plain, qat=4).qat == 4
    assert configure("mdqn", "CartPole-v1", qat=4).qat == 4


def test_atoms_need_company():
    for kind in (categorical, quantile, implicit):
        with pytest.raises(ValueError, match="atoms=1 make no distribution"):
            kind(1)
    assert isinstance(noise_of().params[0], NoisyLinear)
