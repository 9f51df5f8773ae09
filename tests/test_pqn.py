"""Action values from rollouts: targets against NumPy for every bootstrap, and the known values of the probes."""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import GAMMA, PROBES
from small import bits, compiled

from frugalrl import rng
from frugalrl.agents.pqn import BOOTSTRAPS, recipe, rollout_q
from frugalrl.config import configure
from frugalrl.errors import UsageError
from frugalrl.jobs import records
from frugalrl.levers.correct import ACTION_VALUES
from frugalrl.losses import huber, lambda_return
from frugalrl.memory import rollouts
from frugalrl.networks import Dense, LayerNorm, Relu, mlp, network
from frugalrl.runtime.compiled import Plan, run
from frugalrl.types import Agent, Batch, Box, Discrete, Trace, Transition, update

KEY = jax.random.key(0)
TIME, ACTIONS = 12, 3
NET = network(mlp((16,), ACTIONS), Box((4,)))


class Numbers(NamedTuple):
    """The hyper-parameters that `rollout_q` reads, and one that it does not know."""

    learning_rate: Any = 3e-2
    anneal_lr: Any = 0.0
    gamma: Any = 0.9
    q_lambda: Any = 0.65
    max_grad_norm: Any = 10.0
    exploration_initial_eps: Any = 0.8
    exploration_final_eps: Any = 0.2
    exploration_fraction: Any = 0.5
    target_update_interval: Any = 48.0
    total_steps: Any = 1000.0
    steps_per_update: Any = 16.0
    of_no_use: Any = 1.0


HYPER = Numbers()


def lane(seed: int = 0, ends: float = 0.15) -> Transition:
    """A rollout of no environment, [time, ...], of which no end is the last step."""
    r = np.random.default_rng(seed)
    obs = r.standard_normal((TIME + 1, 4), np.float32)
    terminated, truncated = r.random((2, TIME)) < ends
    truncated[4], terminated[[4, -1]], truncated[-1] = True, False, False
    after = obs[1:] + (terminated | truncated)[:, None].astype(np.float32)  # before a reset it is another one
    log_prob = np.log(r.uniform(0.2, 0.8, TIME)).astype(np.float32)
    action, version = r.integers(0, ACTIONS, TIME, np.int32), np.zeros(TIME, np.int32)
    reward = r.standard_normal(TIME, np.float32)
    data = Transition(obs[:-1], action, reward, terminated, truncated & ~terminated, after, log_prob, version)
    return jax.tree.map(jnp.asarray, data)


@cache
def made(**choices: Any) -> Agent:
    return compiled(rollout_q(NET, **choices))


def stirred(agent: Agent, hyper: Any = HYPER, version: int = 20) -> Any:
    """A state whose target network, if it has one, prefers other actions, some way into training."""
    state, r = agent.init(KEY, hyper), np.random.default_rng(1)
    params, target = jax.tree.map(
        lambda x: x + jnp.asarray(0.5 * r.standard_normal(x.shape), jnp.float32), (state.params, state.target)
    )
    return state._replace(params=params, target=target, version=jnp.int32(version))


def seen_by_corrector(data: Transition, **choices: Any) -> tuple[Trace, Any]:
    """The Trace that `prepare` makes of a rollout, in the place of its targets, and the state it did so in."""
    agent = made(corrector=lambda trace, lambda_: SimpleNamespace(target=trace), **choices)
    state = stirred(agent)
    return agent.prepare(state, data), state


look = jax.jit(jax.vmap(NET.apply, (None, 0, None)))


def values(params: Any, obs: Any) -> np.ndarray:
    return np.asarray(look(params, obs, None))


def epsilon_greedy(q: np.ndarray, epsilon: float) -> np.ndarray:
    probs = np.full(q.shape, epsilon / ACTIONS, np.float32)
    probs[np.arange(len(q)), q.argmax(-1)] += 1 - epsilon
    return probs


NOW = 0.8 - 0.6 * 20 * 16 / 500  # epsilon in the state of `stirred`
STEPS = np.arange(TIME)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize(("bootstrap", "epsilon"), [("max", 0.0), ("mean", NOW)])
def test_a_trace_is_of_the_policy_whose_values_are_learned(bootstrap, epsilon, target):
    data = lane()
    trace, state = seen_by_corrector(data, bootstrap=bootstrap, target=target)
    now, then = (values(state.target if target else state.params, obs) for obs in (data.obs, data.next_obs))
    prob = epsilon_greedy(now, epsilon)[STEPS, data.action]
    np.testing.assert_allclose(trace.value, now[STEPS, data.action], rtol=1e-5)
    goes_on, worth = ~np.asarray(data.terminated), (epsilon_greedy(then, epsilon) * then).sum(-1)
    np.testing.assert_allclose(trace.bootstrap[goes_on], worth[goes_on], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trace.prob, prob, rtol=1e-5)
    np.testing.assert_allclose(np.exp(trace.log_ratio), prob / np.exp(data.log_prob), rtol=1e-5)
    assert (prob == 0).any() == (bootstrap == "max")  # what the greedy policy never does
    np.testing.assert_array_equal(trace.discount, np.where(data.terminated, 0, np.float32(0.9)))
    np.testing.assert_array_equal(trace.ended, data.terminated | data.truncated)


@pytest.mark.parametrize("target", [False, True])
def test_sarsa_bootstraps_from_the_action_taken_next(target):
    """And from the mean of the epsilon-greedy policy where none is known: at a truncation and at the last step."""
    data, agent = lane(), made(bootstrap="sarsa", target=target)
    state = stirred(agent, HYPER._replace(q_lambda=0.0))
    then = values(state.target if target else state.params, data.next_obs)
    mean = (epsilon_greedy(then, NOW) * then).sum(-1)
    expected = []
    for t in range(TIME):
        known = t + 1 < TIME and not data.truncated[t]
        worth = then[t, data.action[t + 1]] if known else mean[t]
        expected.append(data.reward[t] + (0 if data.terminated[t] else 0.9 * worth))
    assert data.truncated.any()
    np.testing.assert_allclose(agent.prepare(state, data), expected, rtol=1e-4, atol=1e-5)


def test_targets_are_those_of_q_lambda():
    """Gallici et al. 2024, step by step: the greedy value and what came after, mixed by lambda."""
    data, agent = lane(), made()
    state = stirred(agent)
    best, expected, later = values(state.params, data.next_obs).max(-1), np.zeros(TIME), 0.0
    for t in reversed(range(TIME)):
        alone = t == TIME - 1 or data.truncated[t]
        mixed = best[t] if alone else 0.65 * later + 0.35 * best[t]
        expected[t] = later = data.reward[t] + (0.0 if data.terminated[t] else 0.9 * mixed)
    np.testing.assert_allclose(agent.prepare(state, data), expected, rtol=1e-4, atol=1e-5)


def test_correctors_are_asked_with_the_lambda_of_the_state():
    data = lane()
    plain = made(bootstrap="mean")
    state = stirred(plain)
    none, retrace, tree, tis = (
        made(corrector=ACTION_VALUES[name], bootstrap="mean").prepare(state, data)
        for name in ("none", "retrace", "tree-backup", "tis")
    )
    np.testing.assert_array_equal(none, plain.prepare(state, data))
    assert min(abs(none - other).max() for other in (retrace, tree, tis)) > 0.01
    short = state._replace(hyper=HYPER._replace(q_lambda=jnp.float32(0)))
    for name in ("none", "retrace", "tree-backup"):  # one step is one step
        got = made(corrector=ACTION_VALUES[name], bootstrap="mean").prepare(short, data)
        np.testing.assert_allclose(got, plain.prepare(short, data), rtol=1e-4, atol=1e-5)


def batch_of(agent: Agent, state: Any, data: Transition, together: int = 1) -> Batch:
    """The steps of a rollout, `together` of them to a sample."""
    n = TIME // together
    cut = jax.tree.map(lambda x: x.reshape(n, together, *x.shape[1:]), (data, agent.prepare(state, data)))
    return Batch(cut[0], jnp.ones(n), jnp.arange(n), cut[1])


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("reduce", [jnp.mean, jnp.sum])
def test_the_gradient_is_that_of_the_weighted_loss(reduce, together):
    data, agent = lane(), made(loss=huber, reduce=reduce)
    state = stirred(agent)
    batch = batch_of(agent, state, data, together)
    batch = batch._replace(weight=jnp.arange(1.0, len(batch.weight) + 1))
    aim, weight = agent.prepare(state, data), jnp.repeat(batch.weight, together)

    @jax.jit
    @jax.value_and_grad
    def expected(params):
        q = jax.vmap(NET.apply, (None, 0, None))(params, data.obs, None)[STEPS, data.action]
        return reduce(weight * huber(aim - q))

    loss, slope = expected(state.params)
    grads, info = agent.grad(state, batch, KEY)
    np.testing.assert_allclose(info.metrics["loss"], loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    error = abs(aim - values(state.params, data.obs)[STEPS, data.action]).reshape(-1, together).mean(-1)
    np.testing.assert_allclose(info.priority, error, rtol=1e-4, atol=1e-6)


def test_the_target_network_becomes_a_copy_at_its_interval():
    """48 environment steps are three updates of 16."""
    agent = made(target=True)
    state = stirred(agent, version=0)
    grads = agent.grad(state, batch_of(agent, state, lane()), KEY)[0]
    for version in range(1, 8):
        before, state = state, agent.apply(state, grads)
        assert bits(state.target) == bits(before.target if version % 3 else state.params)
    assert made().init(KEY, HYPER).target == ()


def test_a_step_is_optaxs_radam_at_the_learning_rate_of_the_moment():
    """Which falls to half where half of training is over."""
    agent, theirs = made(), optax.radam(1.5e-2)
    state = stirred(agent, HYPER._replace(anneal_lr=1.0, total_steps=640.0, max_grad_norm=1e9), version=20)
    grads = agent.grad(state, batch_of(agent, state, lane()), KEY)[0]
    with jax.numpy_dtype_promotion("standard"):
        direction, _ = jax.jit(theirs.update)(grads, theirs.init(state.params), state.params)
    expected = optax.apply_updates(state.params, direction)
    for a, b in zip(jax.tree.leaves(agent.apply(state, grads).params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_a_state_keeps_its_dtypes_and_structure(bootstrap, target):
    agent = made(bootstrap=bootstrap, target=target)
    before = jax.eval_shape(agent.init, KEY, HYPER)
    after, _ = jax.eval_shape(lambda s: update(agent, s, batch_of(agent, s, lane()), KEY), before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), before
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="bootstrap='min' does not exist; there are: max, mean, sarsa"):
        rollout_q(NET, bootstrap="min")
    with pytest.raises(ValueError, match=r"sarsa .* cannot be corrected; use --correct none"):
        rollout_q(NET, bootstrap="sarsa", corrector=ACTION_VALUES["retrace"])


WAYS = {  # as published, and each Corrector with a policy of either kind
    "pqn": SimpleNamespace(),
    "one-step q": SimpleNamespace(target=True, q_lambda=0.0),
    "n-step q": SimpleNamespace(target=True, q_lambda=1.0),
    "one-step sarsa": SimpleNamespace(target=True, q_lambda=0.0, bootstrap="sarsa"),
    "retrace": SimpleNamespace(corrector="retrace", q_lambda=1.0),
    "tree-backup": SimpleNamespace(corrector="tree-backup", q_lambda=1.0, bootstrap="mean"),
    "tis": SimpleNamespace(corrector="tis", q_lambda=0.9, bootstrap="mean"),
}
HARD = ("reward after two steps", "reward of both", "cut off at once")
QUICK = {("pqn", name) for name in HARD} | {(way, HARD[0]) for way in WAYS}
CELLS = [(w, p) if (w, p) in QUICK else pytest.param(w, p, marks=pytest.mark.long) for w in WAYS for p in HARD]


@pytest.mark.parametrize(("way", "probe"), CELLS)
def test_the_known_values_are_learned(way, probe):
    env, known = PROBES[probe]
    numbers = vars(WAYS[way]).copy()
    hyper = HYPER._replace(gamma=GAMMA, q_lambda=numbers.pop("q_lambda", 0.65), anneal_lr=1.0)
    corrector = ACTION_VALUES[numbers.pop("corrector", "none")]
    agent = rollout_q(network(mlp((16,), env.actions.n), env.obs), corrector=corrector, **numbers)
    obs, zero, flag = jnp.zeros(1), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    memory = rollouts(example, lanes=8, unroll=8, epochs=2, minibatches=2)
    runs = run(agent, env, memory, Plan(8, 8, 4, 0))
    iterations = 300
    hyper = hyper._replace(total_steps=64.0 * iterations, steps_per_update=16.0, target_update_interval=64.0)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def learn(key):
        carry, _ = runs.advance(runs.init(key, hyper), jnp.int32(iterations))
        policy = agent.policy(carry.state)
        return jax.vmap(lambda x: agent.dist(policy, x, key).values)(jnp.array(list(known), jnp.float32)[:, None])

    np.testing.assert_allclose(learn(rng.key(0)), list(known.values()), atol=0.05)


@pytest.mark.parametrize("name", ACTION_VALUES)
def test_the_command_lines_corrector_makes_the_targets(name):
    """Of the greedy policy's values, as PQN's are."""
    agent = records(configure("pqn", "CartPole-v1", correct=name)).agent
    state, data = agent.init(KEY, HYPER), lane()._replace(action=lane().action % 2)
    expected = rollout_q(agent.network, corrector=ACTION_VALUES[name]).prepare(state, data)
    np.testing.assert_array_equal(agent.prepare(state, data), expected)


def test_pqn_is_normalised_unless_told_otherwise():
    for layer_norm, kinds in ((True, [Dense, LayerNorm, Relu, Dense]), (False, [Dense, Dense])):
        static = recipe.static._replace(hidden=(16,), layer_norm=layer_norm)
        layers = recipe.assemble(static, Box((4,)), Discrete(2)).network.layers
        assert [type(layer) for layer in layers or ()] == kinds


def test_wrong_uses_of_pqn_are_refused():
    for choices, says in (
        ({"correct": "vtrace"}, "--correct vtrace is not for pqn, which takes: none, tis, retrace, tree-backup"),
        ({"env": "Pendulum-v1"}, "pqn takes discrete ones"),
        ({"hyper": {"q_lambda": 1.5}}, "q_lambda=1.5 must be from 0 to 1"),
        ({"hyper": {"network": "nature"}}, "pqn cannot train on CartPole-v1: network='nature' is for"),
    ):
        with pytest.raises(UsageError, match=says):
            configure("pqn", **{"env": "CartPole-v1"} | choices)


def test_the_corrector_left_out_is_the_lambda_return():
    assert ACTION_VALUES["none"] is lambda_return  # what sarsa's check of its Corrector rests on
