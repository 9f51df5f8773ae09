"""Pruned networks, students that actors act with, and the Monitor that chooses between compressions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import receipt
from small import HYPER, OBS, bits, random_batch, random_state, small

from frugalrl import cli, ledger, policy, rng, training
from frugalrl.agents import ppo, td3
from frugalrl.agents.dqn import dqn
from frugalrl.distributions import categorical, epsilon_greedy
from frugalrl.levers.compress import modes, quantise, students
from frugalrl.levers.compress.modes import Mode, Rung
from frugalrl.levers.compress.prune import as_wide_as, kept, narrowed, sliced
from frugalrl.monitor import quality
from frugalrl.networks import (
    Conv,
    Dense,
    LayerNorm,
    Residual,
    impala_resnet,
    minatar_cnn,
    mlp,
    nature_cnn,
    network,
    normalised,
    weighted,
)
from frugalrl.types import Box, Discrete, Linear, Transition, update

KEY = rng.key(0)
NETWORKS = {
    "mlp": (mlp((64, 32), 3), Box((5,))),
    "normalised": (normalised(mlp((64, 64), 3)), Box((5,))),
    "minatar": (minatar_cnn(3), Box((10, 10, 4), "bool")),
    "nature": (nature_cnn(6), Box((44, 44, 4), "uint8")),
    "impala": (impala_resnet(6), Box((16, 16, 4), "uint8")),
}


def inputs(obs: Box, count: int = 8) -> np.ndarray:
    r = np.random.default_rng(0)
    if obs.dtype == "float32":
        return r.standard_normal((count, *obs.shape), np.float32)
    return r.integers(0, 2 if obs.dtype == "bool" else 256, (count, *obs.shape)).astype(obs.dtype)


def outputs(layers, obs: Box, weights) -> np.ndarray:
    net = network(layers, obs)
    return np.asarray(jax.jit(jax.vmap(net.apply, (None, 0, None)))(weights, inputs(obs), None))


# which units stay


@pytest.mark.parametrize("name", ["mlp", "minatar", "nature", "impala"])
def test_units_that_do_nothing_are_those_that_go(name):
    """Every other unit of each layer but the last is dead: without them the network is the same function."""
    layers, obs = NETWORKS[name]
    whole = list(network(layers, obs).init(KEY))
    for i, (layer, w) in enumerate(zip(list(weighted(layers, obs.shape))[:-1], whole[:-1], strict=True)):
        assert isinstance(layer[0], Dense | Conv)
        alive = np.arange(w.b.shape[0]) % 2 == 1
        whole[i] = Linear(*(jnp.asarray(np.asarray(x) * alive) for x in (w.w, w.b + 0.1)))
    thin = narrowed(layers, 0.5)
    what = kept(layers, thin, obs, tuple(whole))
    assert all(k.outputs is None or (np.asarray(k.outputs) % 2 == 1).all() for k in what)
    few = sliced(tuple(whole), what)
    assert sum(x.size for x in jax.tree.leaves(few)) < 0.6 * sum(x.size for x in jax.tree.leaves(whole))
    np.testing.assert_allclose(outputs(thin, obs, few), outputs(layers, obs, tuple(whole)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrowed_network_takes_what_is_sliced_for_it(name):
    layers, obs = NETWORKS[name]
    whole, thin = network(layers, obs).init(KEY), narrowed(layers, 0.5)
    few = jax.jit(lambda w: sliced(w, kept(layers, thin, obs, w)))(whole)
    assert [x.w.shape for x in few] == [shape for _, shape in weighted(thin, obs.shape)]
    assert as_wide_as(layers, few) == thin
    assert few[-1].b.shape == whole[-1].b.shape


def test_widths_are_whole_registers():
    layers = (Conv(48, 3), Residual((Conv(48, 3, padding="SAME"),)), Dense(100), LayerNorm(), Dense(10), Dense(7))
    assert narrowed(layers, 0.5) == (
        Conv(24, 3), Residual((Conv(24, 3, padding="SAME"),)), Dense(48), LayerNorm(), Dense(10), Dense(7),
    )  # fmt: skip
    assert narrowed(layers, 1.0) is layers


# students


def a_dqn(hidden: int = 64):
    return dqn(network(mlp((hidden,), 2), OBS))


def an_actor_critic(**static):
    return ppo.ppo.assemble(ppo.PPO(hidden=(64, 64), **static), Box((4,)), Discrete(2))


def a_rollout(lanes: int = 4) -> Transition:
    """[time, lanes, ...] of random numbers, far from the unit scale."""
    data = random_batch(size=16, window=lanes).data
    return data._replace(obs=3 + 10 * data.obs, next_obs=3 + 10 * data.next_obs)


def test_a_teacher_learns_as_if_it_had_no_student():
    agent = a_dqn()
    taught = students.taught(agent, 0.5)
    alone, together = agent.init(KEY, HYPER), taught.init(KEY, HYPER)
    how = {"xla_backend_optimization_level": 0}  # it is the compiler that takes time
    step, step_taught = (jax.jit(partial(update, each), compiler_options=how) for each in (agent, taught))
    for seed in range(3):
        alone, info = step(alone, random_batch(seed), KEY)
        together, info_taught = step_taught(together, random_batch(seed), KEY)
    for a, b in zip(jax.tree.leaves(together.teacher), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info_taught.metrics["loss"], info.metrics["loss"], rtol=1e-5)
    assert info_taught.metrics.keys() - info.metrics.keys() == {"distillation_loss"}
    assert together.version == 3


def test_a_student_steps_as_far_as_its_teacher_and_never_less_than_its_own_rate():
    agent = a_dqn()
    taught = students.taught(agent, 0.5)

    @jax.jit
    def step(rate: float) -> jax.Array:
        state = taught.init(KEY, HYPER._replace(learning_rate=rate))
        grads, _ = taught.grad(state, random_batch(0), KEY)
        after = taught.apply(state, grads)
        return after.student[0].w - state.student[0].w

    own = step(students.LEARNING_RATE)
    np.testing.assert_allclose(step(students.LEARNING_RATE / 10), own, rtol=1e-4)
    np.testing.assert_allclose(step(students.LEARNING_RATE * 10), 10 * own, rtol=1e-3, atol=1e-6)


def test_what_acts_is_the_student_with_the_knobs_of_its_teacher():
    agent = a_dqn()
    taught = students.taught(agent, 0.5)
    state = students.enrolled(agent, 0.5, random_state(agent))
    found, whole = taught.policy(state), agent.policy(state.teacher)
    assert bits(found.params) == bits(state.student)
    assert bits(found.knobs) == bits(whole.knobs)
    assert found.params[0].w.shape == (4, 32)
    assert taught.network.layers == mlp((32,), 2)
    assert bits(students.teacher(state)) == bits(state.teacher) == bits(students.teacher(state.teacher))


@pytest.mark.parametrize(
    "agent", [pytest.param(a_dqn, id="values"), pytest.param(an_actor_critic, id="policy", marks=pytest.mark.long)]
)
def test_a_student_comes_to_act_as_its_teacher(agent):
    """The teacher stands still, far from where it began."""
    agent = agent()
    state = agent.init(KEY, agent_hyper(agent))
    stirred = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), state.params)
    taught, state = students.taught(agent, 0.5), students.enrolled(agent, 0.5, state._replace(params=stirred))

    @jax.jit
    def lesson(state, batch):
        _, info = taught.grad(state, batch, KEY)
        grads, _ = taught.grad(state, batch, KEY)
        grads = grads._replace(teacher=jax.tree.map(jnp.zeros_like, grads.teacher))
        return taught.apply(state, grads)._replace(teacher=state.teacher), info.metrics["distillation_loss"]

    def batch(seed):
        found = random_batch(seed, size=128)
        if agent.head is epsilon_greedy:
            return found
        made = jax.vmap(partial(agent.prepare, state.teacher))(found.data)
        return found._replace(extra=made)

    losses = []
    for seed in range(300):
        state, loss = lesson(state, batch(seed % 20))
        losses.append(float(loss))
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:5])
    obs = random_batch(99, size=256).data.obs[:, 0]
    whole, half = agent.policy(state.teacher), taught.policy(state)
    a, b = (np.asarray(jax.vmap(net.apply, (None, 0, None))(p.params, obs, None)) for net, p in (
        (agent.network, whole), (taught.network, half)
    ))  # fmt: skip
    assert (a.argmax(-1) == b.argmax(-1)).mean() > 0.9


def agent_hyper(agent):
    return HYPER if agent.head is epsilon_greedy else ppo.Hyper()


def test_a_student_is_folded_with_the_moments_of_its_teacher():
    agent = an_actor_critic(normalize_obs=True)
    assert agent.head is categorical
    teacher = agent.init(KEY, ppo.Hyper())
    teacher = jax.jit(agent.observe)(teacher, a_rollout(), 0)
    state = students.enrolled(agent, 0.5, teacher)
    acted = students.taught(agent, 0.5).policy(state).params
    layers, obs = agent.network.layers, agent.network.obs
    whole = agent.policy(teacher).params
    expected = sliced(whole, kept(layers, narrowed(layers, 0.5), obs, whole))
    for a, b in zip(jax.tree.leaves(acted), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    unfolded = agent.unfold(teacher, whole)
    assert abs(unfolded[0].w - whole[0].w).max() > 0.1
    np.testing.assert_allclose(unfolded[0].w, teacher.params.actor[0].w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(unfolded[0].b, teacher.params.actor[0].b, rtol=1e-4, atol=1e-4)


def test_a_student_of_deterministic_actions_learns_the_outputs():
    taught = students.taught(small("td3"), 0.5)
    state = taught.init(KEY, td3.Hyper(learning_rate=1e-2))
    _, info = jax.jit(taught.grad)(state, random_batch(continuous=True), KEY)
    assert np.isfinite(info.metrics["distillation_loss"])


@pytest.mark.long
def test_what_is_cut_is_the_salient_part_of_the_policy_of_now():
    agent = a_dqn()
    cut, state = students.cut(agent, 0.5), random_state(agent)
    found, whole = cut.policy(state), agent.policy(state)
    layers, narrow = mlp((64,), 2), mlp((32,), 2)
    assert bits(found) == bits(
        (sliced(whole.params, kept(layers, narrow, agent.network.obs, whole.params)), whole.knobs)
    )
    assert bits(found.params) == bits(students.enrolled(agent, 0.5, state).student)  # as a student begins
    batch = random_batch()
    assert bits(update(cut, state, batch, KEY)) == bits(update(agent, state, batch, KEY))
    outputs = cut.network.apply(found.params, batch.data.obs[0, 0], None)
    assert bits(cut.dist(found, batch.data.obs[0, 0]).values) == bits(outputs)
    assert cut.network.layers == narrow


# modes, and the choice between them


def test_a_mode_is_its_name():
    assert [modes.mode(name).name for name in modes.NAMES] == list(modes.NAMES)
    assert modes.mode("half+int8") == Mode(0.5, "int8")
    assert modes.mode("half") == Mode(0.5, "fp32")
    assert modes.mode("cut") == Mode(0.5, "fp32", lessons=False)


FP32, INT8, BOTH = (modes.mode(name) for name in ("fp32", "int8", "half+int8"))


def test_a_rung_must_be_a_tenth_faster_than_the_one_below():
    rungs = [Rung(BOTH, "litert", 1.0, 3.0), Rung(FP32, "numpy", 10.0, 10.0), Rung(INT8, "litert", 5.0, 5.0)]
    assert [r.mode for r in modes.ladder(rungs)] == [FP32, INT8, BOTH]
    assert [r.mode for r in modes.ladder([rungs[1], rungs[2]._replace(cost=9.5), rungs[0]])] == [FP32, BOTH]
    assert [r.mode for r in modes.ladder([rungs[1]._replace(cost=2.0), *rungs[::2]])] == [FP32]


def watch() -> modes.Watch:
    return modes.Watch(
        [Rung(FP32, "numpy", 10.0, 10.0), Rung(INT8, "litert", 5.0, 5.0), Rung(BOTH, "litert", 2.0, 2.0)]
    )


def test_the_monitor_climbs_down_where_policies_differ_and_not_up_again():
    seen = watch()
    assert seen.now.mode == INT8  # students wait
    assert seen.look(1.0, 0.9) is None  # once is chance
    assert "is above" in str(seen.look(float("nan"), 0.9))
    assert seen.now.mode == FP32
    assert [seen.look(0.0, 0.9) for _ in range(20)] == [None] * 20


def test_the_monitor_climbs_up_where_that_pays():
    idle, busy = watch(), watch()
    assert [idle.look(0.0, 0.1) for _ in range(20)] == [None] * 20  # 0.6 of a tenth of the time is too little
    assert [busy.look(0.0, 0.4) is None for _ in range(modes.LOOKS)] == [True] * (modes.LOOKS - 1) + [False]
    assert busy.now.mode == BOTH
    different = watch()
    assert [different.look(0.1, 0.9) for _ in range(20)] == [None] * 20  # neither too much nor room for more


def test_harm_to_action_values_is_what_their_choices_lose():
    values = np.float32([[1.0, 0.999, 0.0], [0.0, 2.0, 1.0]])
    full = epsilon_greedy(values, {"epsilon": np.float32(0.05)})
    tie = epsilon_greedy(values[:, [1, 0, 2]] * [[1], [0]] + values * [[0], [1]], {"epsilon": np.float32(0.05)})
    found = quality.divergence(full, tie)
    assert found["agreement"] == 0.5
    assert found["kl"] > 1
    np.testing.assert_allclose(found["harm"], 0.0005 / 1.5, rtol=1e-3)
    assert quality.regret(values, np.array([2, 0])) == 1.0


# in the runtime

WORDS = {"steps": 1280, "hyper": {"hidden": "64,64", "learning_starts": 128, "num_envs": 2}, "runtime": "actors"}


def test_actors_act_with_a_student_that_the_run_keeps(tmp_path):
    out = tmp_path / "run"
    result = training.train("dqn", "fake_env:Walk-v0", **WORDS, actors="half+int8-static", out=out)
    made = receipt(out)["actors"]
    assert made["mode"] == "half+int8-static"
    assert made["fallback"] is None
    assert made["switches"] == []
    assert len(made["compressed_returns"]) == 1
    assert "distillation_loss" in result.rows[-1]
    full, half = policy.load(out), policy.load(out, "half")
    assert [w.w.shape for w in full.weights[0]] == [(3, 64), (64, 64), (64, 2)]
    assert [w.w.shape for w in half.weights[0]] == [(3, 32), (32, 32), (32, 2)]


def test_actors_act_with_a_network_that_is_cut(tmp_path):
    out = tmp_path / "run"
    training.train("dqn", "fake_env:Walk-v0", **WORDS, actors="cut+int8", out=out)
    made = receipt(out)["actors"]
    assert (made["mode"], made["fallback"]) == ("cut+int8", None)
    assert not (out / "policy" / "half").exists()


def breaks(monkeypatch, epsilon: float) -> None:
    """From when exploration has fallen to `epsilon`, int8 packets say the opposite of the policy.

    They are finite: only the Monitor can tell. `auto` begins with int8, faster or not.
    """
    whole = quantise.int8()

    def encode(policy):
        packet = whole.encode(policy)
        if not policy.knobs:  # where engines are measured
            return packet
        sign = jnp.where(policy.knobs["epsilon"] < epsilon, -1, 1).astype(jnp.int8)
        *others, last = packet.weights
        return packet._replace(weights=(*others, last._replace(q=last.q * sign, b=last.b * sign.astype(jnp.float32))))

    monkeypatch.setitem(quantise.COMPRESSORS, "int8", lambda: whole._replace(encode=encode))
    monkeypatch.setattr(
        modes, "ladder", lambda measured: sorted(measured, key=lambda r: modes.LADDER.index(r.mode.name))
    )


def test_auto_gives_up_a_compressor_that_breaks_half_way(tmp_path, monkeypatch):
    breaks(monkeypatch, 0.8)
    monkeypatch.setattr(ledger, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(ledger, "PROBE_SHARE", 1.0)
    out = tmp_path / "run"
    training.train("dqn", "fake_env:Walk-v0", **(WORDS | {"steps": 2560}), actors="auto", out=out)
    made = receipt(out)["actors"]
    assert made["mode"] == "fp32"
    assert made["fallback"] is None
    (switch,) = made["switches"]
    assert (switch["from"], switch["to"], switch["seed"]) == ("int8", "fp32", 0)
    assert 0 < switch["step"] < 2560
    assert "is above" in switch["reason"]


def test_an_explicit_mode_is_obeyed_whatever_the_monitor_sees(monkeypatch):
    monkeypatch.setattr(modes, "BOUND", -1.0)
    monkeypatch.setattr(ledger, "PROBE_SECONDS", 0.0)
    made = training.train("dqn", "fake_env:Walk-v0", **WORDS, actors="int8").receipt["actors"]
    assert made["mode"] == "int8"
    assert made["switches"] == []


def test_students_are_refused_where_actors_compute_gradients(capsys):
    assert cli.main(["train", "a3c", "CartPole-v1", "--actors", "half"]) == 2
    assert "its actors compute gradients of the whole network; use --actors int8" in capsys.readouterr().err


@pytest.mark.long
def test_a_compressor_that_breaks_half_way_costs_no_return(monkeypatch):
    """The interval of the runs in which it does is not below that of uncompressed runs."""
    words = {"steps": 50_000, "seeds": 5, "runtime": "actors", "hyper": {"exploration_fraction": 0.8}}
    plain = training.train("dqn", "CartPole-v1", **words).returns
    breaks(monkeypatch, 0.6)
    broken = training.train("dqn", "CartPole-v1", **words, actors="auto")
    switches = broken.receipt["actors"]["switches"]
    assert sorted(switch["seed"] for switch in switches) == list(range(5))
    # exploration is at 0.6 after 16,800 steps; the Monitor looks once a second, and has to see it twice
    assert all(switch["to"] == "fp32" and 16_800 < switch["step"] < 50_000 for switch in switches)
    assert broken.returns["high"] >= plain["low"]
