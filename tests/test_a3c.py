"""A3C: a gradient is of an actor-learner's own rollout and weights, and meets the shared ones as late as it says."""

from __future__ import annotations

import os
import signal
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import GAMMA, PROBES
from runs import receipt, rows, timeless
from scipy import stats
from small import bits
from test_ppo import lane

import frugalrl
from frugalrl import catalog, checkpoint, ledger, rng
from frugalrl.agents import a3c
from frugalrl.agents.a3c import ACTOR_CRITIC, CHANCES, FINAL_EPS, VALUES, Hyper
from frugalrl.config import configure
from frugalrl.envs.cartpole import cartpole
from frugalrl.errors import RunFailed, UsageError
from frugalrl.levers.correct import ACTION_VALUES
from frugalrl.runtime import compiled
from frugalrl.runtime.actor_learner import gradient, in_rotation, light
from frugalrl.types import Agent, Box, Discrete, Env, Memory, Transition

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # the programs are small and run once
OBS, ACTIONS = Box((4,)), Discrete(2)
HYPER = Hyper(learning_rate=1e-2, total_steps=1000.0, target_update_interval=48.0, exploration_initial_eps=0.7)
ALGORITHMS = (ACTOR_CRITIC, *VALUES)
SMALL: dict[str, Any] = {"hidden": (8,), "num_envs": 2, "n_steps": 4}


def static(**changes: Any) -> a3c.Static:
    return a3c.Static(**SMALL | changes)


def made(obs: Box = OBS, actions: Any = ACTIONS, corrector: Any = None, **changes: Any) -> Agent:
    more = () if corrector is None else (corrector,)
    return a3c.assemble(static(**changes), obs, actions, *more)


def memory_of(obs: Box = OBS, lanes: int = 2, time: int = 4) -> Memory:
    first, zero, flag = jnp.zeros(obs.shape), jnp.float32(0), jnp.bool_(False)
    example = Transition(first, jnp.int32(0), zero, flag, flag, first, zero, jnp.int32(0))
    return a3c.memory(static(), example, lanes=lanes, unroll=time)


def run_of(agent: Agent, env: Env | None = None, lanes: int = 2, time: int = 4) -> compiled.Run:
    env = cartpole() if env is None else env
    return compiled.run(agent, env, memory_of(env.obs, lanes, time), compiled.Plan(lanes, time, 1, 0))


def stirred(agent: Agent, seed: int = 1, version: int = 20) -> Any:
    """A state some way into training, whose target network, if it has one, prefers other actions."""
    state = agent.init(jax.random.key(seed), HYPER)
    for k, name in enumerate({"params", "target"} & set(state._fields)):
        moved = jax.tree.map(lambda x, k=k: x + 0.4 * jax.random.normal(rng.key(k), x.shape), getattr(state, name))
        state = state._replace(**{name: moved})
    return state._replace(version=jnp.int32(version))


def rollouts(count: int) -> list[Transition]:
    """Rollouts of no environment, [time, lanes, ...]."""
    lanes = [lane(seed, time=4) for seed in range(2 * count)]
    return [jax.tree.map(lambda *x: jnp.stack(x, 1), *lanes[2 * i : 2 * i + 2]) for i in range(count)]


# one program


@pytest.mark.parametrize("algorithm", [ACTOR_CRITIC, pytest.param("n-step-q", marks=pytest.mark.long)])
def test_a_single_worker_is_the_agent_itself(algorithm):
    """Bit for bit, with the moments of observations and rewards that come after an update."""
    more = {"normalize_obs": True, "normalize_reward": True} if algorithm == ACTOR_CRITIC else {}
    agent = made(algorithm=algorithm, workers=1, **more)
    carries = []
    for each in (agent, in_rotation(agent, 1)):
        run = run_of(each)
        carry, metrics = jit(run.advance)(jit(run.init)(rng.key(3), HYPER), jnp.int32(30))
        carries.append(carry)
    plain, alone = carries
    assert metrics["staleness"] == 0
    assert int(alone.state.newest.version) == 30
    assert bits(alone.state.newest) == bits(plain.state)
    assert bits(alone._replace(state=0)) == bits(plain._replace(state=0))


@cache
def rotation(algorithm: str, workers: int = 3) -> tuple[compiled.Run, Any]:
    run = run_of(in_rotation(made(algorithm=algorithm, workers=workers), workers))
    return run, jit(jax.vmap(run.init, (0, None)))(jax.vmap(rng.key)(jnp.arange(2)), HYPER)


@cache
def advanced(algorithm: str, seeds: int = 2) -> Any:
    run, _ = rotation(algorithm)
    return jit(jax.vmap(run.advance, (0, None)))


def test_the_staleness_is_that_of_the_others_turns():
    """And transitions tell the version that acted."""
    _, carry = rotation("one-step-q")
    found = []
    for i in range(7):
        carry, metrics = advanced("one-step-q")(carry, jnp.int32(1))
        found.append(metrics["staleness"].tolist())
        newest = jax.vmap(lambda state: state.version)(carry.state)
        assert newest.tolist() == [max(0, i + 1 - 2)] * 2
    assert found == [[min(i, 2)] * 2 for i in range(7)]


@pytest.mark.parametrize("algorithm", [ACTOR_CRITIC, pytest.param("one-step-sarsa", marks=pytest.mark.long)])
def test_gradients_are_of_old_weights_and_meet_the_newest_with_one_set_of_statistics(algorithm):
    """Step by step: three copies by turns, every gradient in the one mean of squares."""
    agent, memory, hyper = made(algorithm=algorithm, workers=3), memory_of(), HYPER._replace(max_grad_norm=1e9)
    turning = in_rotation(agent, 3)
    state = turning.init(KEY, hyper)
    newest = agent.init(KEY, hyper)
    copies = [agent.own(light(newest), i) for i in range(3)]
    square = jax.tree.map(np.zeros_like, newest.params)
    one, other = (jit(partial(gradient, each, memory)) for each in (agent, turning))
    apply, apply_in_turn = jit(agent.apply), jit(turning.apply)
    for i, items in enumerate(rollouts(8)):
        who = i % 3
        expected, _ = one(copies[who], items, KEY)
        grads, metrics = other(state, items, KEY)
        assert metrics["staleness"] == min(i, 2)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        state, newest = apply_in_turn(state, grads), apply(newest, grads)
        copies[who] = agent.own(light(newest), who)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * np.square(g), square, jax.device_get(grads))
    for a, b in zip(jax.tree.leaves(state.newest), jax.tree.leaves(newest), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(jax.tree.leaves(state.newest.optimizer), jax.tree.leaves(square), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)
    assert not jax.tree.leaves(state.copies.optimizer)


@pytest.mark.parametrize(
    "algorithm", [name if name == "one-step-q" else pytest.param(name, marks=pytest.mark.long) for name in ALGORITHMS]
)
def test_the_laws_of_a_run(algorithm, tmp_path):
    """States keep their dtypes, seeds differ in every weight, a member is the run alone, resumed is never stopped.

    Those of actor-critic are in test_ppo too.
    """
    _, carry = rotation(algorithm)
    for leaf in jax.tree.leaves(carry.state.newest.params):
        if leaf.ndim > 2:
            assert (np.asarray(leaf[0]) != np.asarray(leaf[1])).all()
    advance = advanced(algorithm)
    together = advance(carry, jnp.int32(20))[0]
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), c.state) for c in (carry, together)]
    assert kinds[0] == kinds[1]
    alone = advance(compiled.take(carry, slice(1, 2)), jnp.int32(20))[0]
    for a, b in zip(jax.tree.leaves(together.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=2e-3, atol=5e-4)
    half = advance(carry, jnp.int32(9))[0]
    checkpoint.save(tmp_path, 9, half)
    restored = checkpoint.restore(tmp_path, 9, jax.eval_shape(lambda: half))
    resumed = advance(restored, jnp.int32(11))[0]
    assert bits(resumed._replace(episodes=0)) == bits(together._replace(episodes=0))


@pytest.mark.long
@pytest.mark.parametrize("algorithm", VALUES)
@pytest.mark.parametrize("probe", ["reward after two steps", "reward of both", "cut off at once"])
def test_the_known_values_are_learned(algorithm, probe):
    """Those of actor-critic are in test_ppo."""
    env, known = PROBES[probe]
    agent = made(env.obs, env.actions, algorithm=algorithm, draw_eps=False)
    run = run_of(in_rotation(agent, 2), env, lanes=8, time=8)
    numbers = {"gamma": GAMMA, "max_grad_norm": 10.0, "learning_rate": 1e-2}
    hyper = HYPER._replace(total_steps=64.0 * 1500, steps_per_update=64.0, target_update_interval=64.0, **numbers)

    @jax.jit
    def learn(key):
        policy = agent.policy(run.advance(run.init(key, hyper), jnp.int32(1500))[0].state.newest)
        return jax.vmap(lambda x: agent.dist(policy, x, key).values)(jnp.array(list(known), jnp.float32)[:, None])

    np.testing.assert_allclose(learn(rng.key(0)), list(known.values()), atol=0.08)


# what each algorithm learns


def test_actor_critic_learns_from_n_step_returns():
    """Mnih et al. 2016, algorithm S3: the rewards of the rollout, and the value of what came after it."""
    agent, data = made(), lane()
    state = stirred(agent)
    extra, zero = agent.prepare(state, data), jnp.zeros_like(data.reward)
    ends = jnp.ones_like(data.truncated)
    then = agent.prepare(state, data._replace(obs=data.next_obs, reward=zero, truncated=ends, terminated=ends))
    now = agent.prepare(state, data._replace(reward=zero, truncated=ends, terminated=ends))
    later, expected = 0.0, np.zeros(12)
    for t in reversed(range(12)):
        following = -then.advantage[t] if t == 11 or data.truncated[t] else later
        expected[t] = later = data.reward[t] + (0.0 if data.terminated[t] else 0.99 * following)
    np.testing.assert_allclose(extra.target, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(extra.advantage, expected + now.advantage, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", VALUES)
def test_values_are_learned_from_the_target_of_their_algorithm(algorithm):
    """Mnih et al. 2016, algorithms 1, 2 and S2, with values of the target network."""
    agent, data = made(algorithm=algorithm, draw_eps=False), lane()
    state = agent.own(stirred(agent), 0)
    q = np.asarray(jax.vmap(agent.network.apply, (None, 0, None))(state.target, data.next_obs, None))
    epsilon = float(agent.policy(state).knobs["epsilon"])
    mean = (1 - epsilon) * q.max(-1) + epsilon * q.mean(-1)
    expected, later = np.zeros(12), 0.0
    for t in reversed(range(12)):
        cut = t == 11 or data.truncated[t]
        if algorithm == "one-step-sarsa":
            worth = mean[t] if cut else q[t, data.action[t + 1]]
        else:
            worth = later if algorithm == "n-step-q" and not cut else q[t].max()
        expected[t] = later = data.reward[t] + (0.0 if data.terminated[t] else 0.99 * worth)
    np.testing.assert_allclose(agent.prepare(state, data), expected, rtol=1e-4, atol=1e-5)


def test_final_epsilons_are_drawn_with_the_chances_of_the_paper():
    agent = made(algorithm="n-step-q", workers=40)
    drawn = jax.vmap(lambda key: agent.init(key, HYPER).hyper.exploration_final_eps)(jax.random.split(KEY, 50))
    counts = [(np.asarray(drawn) == np.float32(eps)).sum() for eps in FINAL_EPS]
    assert sum(counts) == 2000
    assert stats.chisquare(counts, 2000 * np.array(CHANCES)).pvalue > 1e-3
    common = made(algorithm="n-step-q", workers=3, draw_eps=False).init(KEY, HYPER)
    np.testing.assert_array_equal(common.hyper.exploration_final_eps, np.full(3, HYPER.exploration_final_eps, "f4"))


def test_each_actor_learner_keeps_the_epsilon_that_is_its_own():
    agent = made(algorithm="one-step-q", workers=3)
    turning = in_rotation(agent, 3)
    finals = jnp.array([0.1, 0.01, 0.5])
    state = turning.init(KEY, HYPER._replace(exploration_fraction=0.0))
    newest = state.newest._replace(
        version=jnp.int32(3), hyper=state.newest.hyper._replace(exploration_final_eps=finals)
    )
    copies = jax.vmap(agent.own, (None, 0))(light(newest), jnp.arange(3))
    state, seen = turning.observe(state._replace(newest=newest, copies=copies), rollouts(1)[0], 0), []
    nothing, apply = jax.tree.map(jnp.zeros_like, newest.params), jit(turning.apply)
    for _ in range(7):
        state = apply(state, nothing)
        seen.append(float(turning.policy(state).knobs["epsilon"]))
    np.testing.assert_allclose(seen, [0.01, 0.5, 0.1, 0.01, 0.5, 0.1, 0.01], rtol=1e-6)
    np.testing.assert_allclose(agent.policy(state.newest).knobs["epsilon"], finals.mean(), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    continuous = Box((1,), low=-1.0, high=1.0)
    with pytest.raises(ValueError, match="discrete actions; use algorithm=actor-critic"):
        made(actions=continuous, algorithm="n-step-q")
    with pytest.raises(ValueError, match="normalize_obs is of algorithm=actor-critic"):
        made(algorithm="n-step-q", normalize_obs=True)
    with pytest.raises(ValueError, match="algorithm='a2c' does not exist; there are: actor-critic, one-step-q"):
        made(algorithm="a2c")
    with pytest.raises(ValueError, match="use --correct none"):
        made(algorithm="one-step-sarsa", corrector=ACTION_VALUES["retrace"])
    with pytest.raises(UsageError, match="--correct retrace is not for a3c"):
        configure("a3c", "CartPole-v1", correct="retrace")
    assert configure("a3c", "CartPole-v1", correct="retrace", hyper={"algorithm": "n-step-q"}).correct == "retrace"


# whole runs

WALK: dict[str, Any] = {"hidden": (8,), "num_envs": 2, "n_steps": 8}


@pytest.mark.long
def test_a_compiled_run_that_was_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    """Also with two seeds: the way to batch them is remembered, whatever kinds of numbers config.json gives back."""
    whole = frugalrl.train("a3c", "CartPole-v1", steps=2560, seeds=2, hyper=WALK)
    short = frugalrl.train("a3c", "CartPole-v1", steps=2560, seeds=2, hyper=WALK, out=tmp_path, budget=1e-9)
    assert not short.receipt["finished"]
    resumed = frugalrl.resume(tmp_path)
    assert resumed is not None
    assert resumed.receipt["batching"]["microseconds_per_iteration"] == {}
    one, other = ([sorted(map(repr, row.items())) for row in timeless(run.rows)] for run in (whole, resumed))
    assert one == other
    assert bits(whole.actor.weights) == bits(resumed.actor.weights)
    assert {row["staleness"] for row in whole.rows[2:]} == {1.0}


class Seen(NamedTuple):
    """A message as the Learner took it."""

    worker: int
    items: Transition
    gradient: list
    before: Any  # the shared state that it was applied to
    after: Any
    metrics: dict


@pytest.fixture
def watched(monkeypatch):
    """A list that fills with what the Learner of the next run sees; `kill` in it ends actor 0 at that message."""
    seen: list[Seen] = []
    kill: list[int] = []
    compiling = ledger.Ledger.compile

    def compile(self, learner, carry, spec):
        (done,) = compiling(self, learner, carry, spec).values()

        def learn(carry, items, stream, leaves):
            if len(seen) in kill:
                os.kill(self.fleets[-1].processes[0].pid, signal.SIGKILL)
            before = jax.tree.map(np.array, carry.state)
            carry, metrics = done.learn(carry, items, stream, leaves)
            after = jax.tree.map(np.array, carry.state)
            seen.append(Seen(stream, items, leaves, before, after, metrics))
            return carry, metrics

        return {0: done._replace(learn=learn)}

    monkeypatch.setattr(ledger.Ledger, "compile", compile)
    return seen, kill


@pytest.mark.parametrize(
    ("algorithm", "mode"),
    [
        (ACTOR_CRITIC, "fp32"),
        pytest.param(ACTOR_CRITIC, "int8", marks=pytest.mark.long),
        pytest.param("one-step-sarsa", "fp32", marks=pytest.mark.long),
    ],
)
def test_gradients_of_actor_learners_are_those_of_their_rollouts_and_weights(algorithm, mode, watched):
    seen, _ = watched
    hyper = WALK | {"algorithm": algorithm}
    result = frugalrl.train("a3c", "fake_env:Walk-v0", steps=960, runtime="actors", actors=mode, hyper=hyper)
    obs, space = catalog.spaces("fake_env:Walk-v0")
    agent, memory = made(obs, space, **hyper), memory_of(obs, 2, 8)
    states = {0: seen[0].before} | {int(each.after.version): each.after for each in seen}
    assert [int(each.before.version) for each in seen] == list(range(60))
    compute = jit(lambda state, items: gradient(agent, memory, state, items, KEY))
    apply, log_probs = jit(agent.apply), []

    @jit
    def log_prob(state, obs, action):
        policy = agent.policy(state)
        return jax.vmap(jax.vmap(lambda x, a: agent.dist(policy, x, KEY).log_prob(a)))(obs, action)

    for each in seen:
        (version,) = set(each.items.version.ravel().tolist())  # one policy acted
        assert each.metrics["staleness"] == int(each.before.version) - version
        own = agent.own(light(states[version]), each.worker)
        grads, metrics = compute(own, each.items)
        for a, b in zip(each.gradient, jax.tree.leaves((grads, metrics)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        brought = jax.tree.unflatten(jax.tree.structure(grads), each.gradient[: len(jax.tree.leaves(grads))])
        expected = apply(each.before, brought)
        for a, b in zip(jax.tree.leaves(each.after), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        own_log_prob = log_prob(own, each.items.obs, each.items.action)
        log_probs.append(abs(own_log_prob - each.items.log_prob).max())
    assert max(log_probs) < (1e-4 if mode == "fp32" else 0.2)
    late = [each.metrics["staleness"] for each in seen]
    told = result.receipt["actors"]
    assert told["staleness"] == pytest.approx(np.mean(late))
    assert told["staleness_max"] == max(late)
    assert told["mode"] == mode
    assert result.receipt["time_split"]["learner"] > 0
    for worker in range(2):  # what it does next, it does with parameters that have seen its last gradient
        mine = [each for each in seen if each.worker == worker]  # of one that was slow to start there may be none
        assert all(following.items.version[0, 0] >= last.after.version for last, following in pairwise(mine))


@pytest.mark.long
def test_a_killed_actor_learner_is_replaced(watched):
    seen, kill = watched
    kill.append(20)
    result = frugalrl.train("a3c", "fake_env:Slow-v0", steps=2400, runtime="actors", hyper=WALK)
    assert result.receipt["actors"]["restarts"] == 1
    assert [int(each.before.version) for each in seen] == list(range(150))
    assert {each.worker for each in seen[:20]} == {each.worker for each in seen[21:]} == {0, 1}
    assert all(np.isfinite(x).all() for each in seen for x in each.gradient)


@pytest.mark.long
def test_a_gradient_that_is_not_finite_ends_the_run_and_is_not_kept(tmp_path):
    with pytest.raises(RunFailed, match="seed 0 has diverged, its weights are no longer finite at step"):
        frugalrl.train("a3c", "fake_env:Priceless-v0", steps=2400, runtime="actors", hyper=WALK, out=tmp_path / "run")
    assert not (tmp_path / "run" / "policy").exists()
    assert not receipt(tmp_path / "run")["finished"]


@pytest.mark.long
def test_actor_learners_go_on_from_a_checkpoint(tmp_path):
    first = frugalrl.train("a3c", "fake_env:Walk-v0", steps=640, runtime="actors", hyper=WALK, out=tmp_path / "run")
    again = frugalrl.resume(tmp_path / "run", steps=1280)
    assert again is not None
    assert again.receipt["steps"] == 1280
    assert [row["step"] for row in rows(tmp_path / "run")] == [64 * i for i in range(1, 11)] + [
        768, 896, 1024, 1152, 1280,
    ]  # fmt: skip
    assert rows(tmp_path / "run")[:10] == first.rows
    assert all(row["staleness_max"] >= row["staleness"] >= 0 for row in again.rows)


def test_the_moments_of_the_optimiser_stay_with_the_shared_parameters():
    """Copies leave them out: they are as large as the weights."""
    agent = made()
    state = agent.init(KEY, HYPER)
    sizes = [sum(x.size for x in jax.tree.leaves(part)) for part in (light(state), state.optimizer, state)]
    assert sizes[0] + sizes[1] == sizes[2]
    assert light(state).params is state.params
