"""Members that share a critic: CEM-RL's distribution, DvD's determinant, one critic for all; resumed bit for bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from small import MODULES, bits, pushed, random_batch, small

import frugalrl
from frugalrl import catalog, checkpoint, jobs, ledger, rng, training
from frugalrl.config import configure
from frugalrl.envs.make import EnvOptions
from frugalrl.errors import UsageError
from frugalrl.levers.compress import engines, quantise
from frugalrl.levers.population import cem, dvd, joint
from frugalrl.memory import uniform
from frugalrl.monitor.files import plain
from frugalrl.runtime import actor, actors, compiled
from frugalrl.types import Agent, Batch, Transition

MEMBERS, LEARNERS = 4, 2
KEY = rng.key(0)


def weights(seed: int, *leading: int) -> dict[str, jax.Array]:
    r = np.random.default_rng(seed)
    return {name: jnp.asarray(r.standard_normal((*leading, *shape), np.float32)) for name, shape in SHAPES.items()}


SHAPES = {"w": (3, 2), "b": (2,)}


def test_a_generation_moves_the_distribution_as_the_equations_say():
    search = cem.begun(weights(0), 0.3)._replace(noise=jnp.float32(0.25))
    scores = [1.0, np.nan, 7.0, -3.0, 5.0, 6.0, np.inf * 0, 2.0, 0.0]  # nine members: four elites
    drawn = weights(1, len(scores))
    told = jax.jit(cem.told)
    after = told(search, drawn, jnp.float32(jnp.asarray(scores)))
    raw = np.log((1 + 4) / np.arange(1, 5))
    share = raw / raw.sum()
    noise = 0.95 * 0.25 + 0.05 * 1e-5
    for name in SHAPES:
        best = np.asarray(drawn[name], np.float64)[[2, 5, 4, 7]]  # the fittest first; what is no number is last
        old = np.asarray(search.mean[name], np.float64)
        mean = sum(s * x for s, x in zip(share, best, strict=True))
        variance = sum(s * (x - old) ** 2 for s, x in zip(share, best, strict=True)) / 4 + noise
        np.testing.assert_allclose(after.mean[name], mean, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(after.variance[name], variance, rtol=2e-6)
    assert float(after.noise) == pytest.approx(noise)
    last = told(after._replace(noise=jnp.float32(1e-5)), drawn, jnp.zeros(9))
    assert float(last.noise) == pytest.approx(1e-5)  # where it ends


def test_members_are_drawn_in_pairs_around_the_mean():
    search = cem.begun(weights(0), 0.04)
    for members in (4, 5):
        found = jax.jit(cem.drawn, static_argnums=1)(search, members, KEY)
        apart = {name: np.asarray(x) - np.asarray(search.mean[name]) for name, x in found.items()}
        half = (members + 1) // 2
        for x in apart.values():
            np.testing.assert_allclose(x[half:], -x[: members - half], atol=1e-6)
    many = jax.jit(cem.drawn, static_argnums=1)(search, 2000, KEY)
    for name, x in many.items():
        assert np.std(np.asarray(x) - np.asarray(search.mean[name])) == pytest.approx(0.2, rel=0.03)


def test_the_gradient_of_the_determinant_is_that_of_finite_differences():
    does = np.random.default_rng(0).uniform(-1, 1, (4, 3))

    def oracle(x: np.ndarray) -> float:
        apart = ((x[:, None] - x[None]) ** 2).sum(-1)
        return np.linalg.slogdet(np.exp(-apart / 2) + dvd.JITTER * np.eye(4))[1]

    value, grads = jax.jit(jax.value_and_grad(lambda x: dvd.log_determinant(dvd.kernel(x))))(
        jnp.float32(jnp.asarray(does))
    )
    assert float(value) == pytest.approx(oracle(does), abs=1e-4)
    for i, j in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[i, j] = 1e-6
        assert float(grads[i, j]) == pytest.approx((oracle(does + step) - oracle(does - step)) / 2e-6, abs=2e-3)


def test_members_that_do_the_same_have_no_volume():
    same, near, far = jnp.zeros((5, 6)), 0.1 * jnp.eye(5, 6), 3 * jnp.eye(5, 6)
    volume = jax.jit(jax.value_and_grad(dvd.diversity))
    volumes = [float(volume(x)[0]) for x in (same, near, far)]
    assert volumes[0] < 1e-9 < volumes[1] < 0.01 < 0.9 < volumes[2] <= 1.01
    assert np.isfinite(volume(1e-6 * near)[1]).all()


def test_the_weight_of_novelty():
    rule = dvd.dvd(2, "bandit", 100)
    rule, thompson = rule._replace(turn=jax.jit(rule.turn)), jax.jit(dvd.thompson)
    memory, _ = rule.begin(KEY, {})
    for generation, fitness in enumerate([[1.0, 0.0], [3.0, 2.0], [2.0, 1.0], [9.0, 4.0]]):
        memory, actors = rule.turn(memory._replace(arm=jnp.int32(1)), {}, jnp.array(fitness), KEY)
        assert actors is None  # they go on
        assert memory.trials.sum() == generation  # nothing is known before the first
    assert memory.trials.sum(0).tolist() == [[0, 0], [2, 1]]  # 3 and 9 were better than all before
    scores = [1.0, 0.0]
    for fitness in ([3.0, 2.0], [2.0, 1.0], [9.0, 4.0]):
        scores = [s + (f - s) / 5 for s, f in zip(scores, fitness, strict=True)]
    np.testing.assert_allclose(memory.scores, scores, rtol=1e-6)
    certain = memory._replace(trials=memory.trials.at[:25, 0, 1].set(9.0).at[:25, 1, 0].set(9.0))
    arms = {int(thompson(certain, jnp.float32(0), jax.random.fold_in(KEY, i)).arm) for i in range(5)}
    assert arms == {1}
    assert [float(dvd.weight("bandit", memory._replace(arm=jnp.int32(i)), 0.0)) for i in (0, 1)] == [0.0, 0.5]
    told = [float(dvd.weight("schedule", memory, jnp.float32(x))) for x in (0.0, 0.05, 0.2, 0.5, 1.0)]
    assert told == pytest.approx([0.0, 0.3, 0.5, 0.2, 0.2])
    assert float(dvd.weight("0.25", memory, 0.0)) == 0.25


def test_fitness_counts_what_an_unfinished_episode_brought():
    reward = jnp.array([[1, 2, 4], [1, 2, 4], [1, 2, 4.0]]).repeat(2, 1)
    ended = jnp.zeros((3, 6), bool).at[0, 0].set(True).at[1, 0].set(True).at[2, 1].set(True).at[1, 2].set(True)
    none = jnp.zeros_like(ended)
    rollout = Transition((), (), reward, ended & (reward < 2), ended & (reward >= 2), (), (), none)
    # of four episodes half end at once, and the one that is seen after two steps brings 2 more; half of two that are
    # seen after the first end with the second; and none has an end, but 12 so far in each of two lanes
    np.testing.assert_allclose(joint.fitness(rollout, 3), [1 + 2 / 2, 2 + 2 + 2 / 2, 12], rtol=1e-6)


def test_members_that_fall_later_or_less_often_are_fitter():
    """Each in 200 steps worth 1: what it falls after."""
    falls = [[10, 30, 40, 60, 70, 200], [*range(20, 201, 20)], [10], [101], [199], []]
    ended = np.zeros((200, len(falls)), bool)
    for lane, ends in enumerate(falls):
        ended[[end - 1 for end in ends], lane] = True

    def fitness(reward: float, ended: np.ndarray) -> np.ndarray:
        rewards, none = jnp.full(ended.shape, reward), jnp.zeros(ended.shape, bool)
        return np.asarray(joint.fitness(Transition((), (), rewards, ended, none, (), (), none), len(falls)))

    found = fitness(1.0, ended)
    np.testing.assert_allclose(found, [200 / 6, 20, 100, 101, 199, 200], rtol=1e-5)  # the first: a mean of whole ones
    np.testing.assert_allclose(fitness(-2.0, ended), -2 * found, rtol=1e-5)  # where an end is what is sought


@cache
def crowd(name: str, kind: str) -> Agent:
    rules = {"cem": cem.cem(MEMBERS, 1e-2), "dvd": dvd.dvd(MEMBERS, "0", 100)}
    made = joint.joint(small(name), rules[kind])
    return made._replace(init=jax.jit(made.init), grad=jax.jit(made.grad), apply=jax.jit(made.apply))


def begun(name: str, kind: str) -> Any:
    return crowd(name, kind).init(KEY, MODULES[name].Hyper(learning_rate=1e-2))


def alone(state: Any, member: int) -> Any:
    """The state, or gradients, that an agent would have with one member's actor and the critic of all."""
    return joint._mapped(lambda own, x: x[member] if own else x, state)


@pytest.mark.parametrize(("name", "kind", "learners"), [("td3", "cem", LEARNERS), ("sac", "dvd", MEMBERS)])
def test_there_is_one_critic_and_it_learns_from_what_every_learner_drew(name, kind, learners):
    """But for that each actor follows the gradient of an agent of its own; of DvD's, where novelty has no weight."""
    agent, state, batch = crowd(name, kind), begun(name, kind), random_batch(size=learners * 8, continuous=True)
    one = jax.eval_shape(small(name).init, KEY, MODULES[name].Hyper())
    for part, leading in (("actor", (MEMBERS,)), ("critic", ())):
        for x, many in zip(*(jax.tree.leaves(getattr(s.params, part)) for s in (one, state.agent)), strict=True):
            assert many.shape == leading + x.shape
    grads, info = agent.grad(state, batch, KEY)
    keys, shares = jax.random.split(KEY, learners), []
    for m in range(learners):
        own = jax.tree.map(lambda x, m=m: x[8 * m : 8 * m + 8], (batch.data, batch.weight, batch.index))
        shares.append(small(name).grad(alone(state.agent, m), Batch(*own), keys[m])[0])
        for x, y in zip(*map(jax.tree.leaves, (shares[m].actor, grads.actor)), strict=True):
            np.testing.assert_allclose(x, y[m], rtol=1e-4, atol=1e-6)
    means = jax.tree.map(lambda *x: np.mean(x, 0), *[share.critic for share in shares])
    for x, y in zip(*map(jax.tree.leaves, (means, grads.critic)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert bits(shares[0].critic) != bits(shares[1].critic)
    assert info.priority.shape == (learners * 8,)
    after = agent.apply(state, grads)
    expected = small(name).apply(alone(state.agent, 1), alone(grads, 1))
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(alone(after.agent, 1)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    for m in range(learners, MEMBERS):  # the other half waits to be judged as it was drawn
        assert bits(alone(after.agent, m).params.actor) == bits(alone(state.agent, m).params.actor)


def test_novelty_pulls_members_apart():
    rule, version = dvd.dvd(MEMBERS, "0.25", 100), jnp.int32(1)
    memory, actors = rule.begin(KEY, jnp.float32(np.random.default_rng(0).uniform(-1, 1, (MEMBERS, 3))))
    guide = jax.jit(lambda actors, grads: rule.guide(memory, version, actors, lambda x: x, grads))
    pull, told = guide(actors, jnp.zeros_like(actors))
    both, _ = guide(actors, actors)
    np.testing.assert_allclose(both, 0.75 * actors + pull, rtol=1e-5, atol=1e-6)
    _, after = guide(actors - 0.01 * pull, actors)  # what a learner does with gradients
    assert after["diversity"] > 1.001 * told["diversity"]


def memory_of_crowd() -> Any:
    obs, zero, flag = jnp.zeros(4), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.zeros(1), zero, flag, flag, obs, zero, jnp.int32(0))
    return uniform(example, 400, 8 * LEARNERS, lanes=8, unroll=25)


def small_run(kind: str) -> compiled.Run:
    return compiled.run(crowd("td3", kind), pushed(), memory_of_crowd(), compiled.Plan(8, 25, 2, 1))


def mean_returns(items: Transition) -> list[float]:
    """Of the episodes in each member's two lanes, age by age."""
    found = []
    for m in range(MEMBERS):
        episodes, ended = [], items.terminated | items.truncated
        for lane in (2 * m, 2 * m + 1):
            ends = np.flatnonzero(ended[:, lane]) + 1
            episodes += [(part, True) for part in np.split(items.reward[:, lane], ends)]
            episodes[-1] = (episodes[-1][0], False)
        share, total = 1.0, 0.0
        for age in range(len(ended)):
            there = [(part[age], whole and len(part) == age + 1) for part, whole in episodes if len(part) > age]
            if there:
                total += share * float(np.mean([reward for reward, _ in there]))
                share *= 1 - float(np.mean([end for _, end in there]))
        found.append(total)
    return found


def test_every_member_acts_for_itself_in_actors_too_and_is_judged_by_what_it_did():
    """Two actors with two members each; one is lost in the second generation, which another plays once more."""
    agent, plan = crowd("td3", "cem"), actors.Plan(2, 2, 25, 2, 0, slots=1, lockstep=True, crew=2)
    made = actors.learner(agent, memory_of_crowd(), plan, quantise.fp32())
    carry, layers = made.init(KEY, MODULES["td3"].Hyper(action_noise=0.0)), agent.network.layers
    assert layers is not None
    spec = actor.Spec(
        env_id="InvertedPendulum-v5", env_options=EnvOptions(time_limit=12), num_envs=2, unroll=25, seed=(), folder="",
        slab="", slots=1, action=actor.Field((1,), "float32"), obs=catalog.spaces("InvertedPendulum-v5")[0],
        layers=layers, engine=engines.module("numpy"), mode="fp32", head=agent.head, packet=(),
        kinds=("Linear", "Linear"), knobs=tuple(sorted(agent.policy(carry.state).knobs)), steady=True, members=2,
    )  # fmt: skip
    does = jax.jit(jax.vmap(lambda policy, obs: small("td3").dist(policy, obs, None).mode(), (None, 0)))
    fleets, before = [], jax.device_get(carry.state)
    for tick in actors.train(made, plan, spec, carry, steps=600, seed=0, fleets=fleets):
        if tick.items is None:
            continue
        state, items = jax.device_get(tick.carry.state), tick.items
        if before.version == 0:  # what acted before the first update was chance
            assert np.isnan(state.fitness).all()
        else:
            for lane in range(8):
                expected = does(small("td3").policy(alone(before.agent, lane // 2)), items.obs[:, lane])
                np.testing.assert_allclose(items.action[:, lane], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(state.fitness, mean_returns(items), rtol=1e-5)
        assert np.abs(items.obs[0]).max() <= 0.01  # the pendulum begins there
        assert int(state.version) == tick.step // 200 * 2
        if tick.step == 200:
            fleets[0].processes[1].kill()
        before = state
    assert fleets[0].restarts == 1
    assert before.version == 6


@pytest.mark.long
def test_every_member_acts_for_itself_in_new_episodes_and_is_judged_before_it_learns():
    run = small_run("cem")
    hyper = MODULES["td3"].Hyper(action_noise=0.0)
    carry = jax.jit(run.init)(KEY, hyper)
    advance = jax.jit(run.advance)
    first, _ = advance(carry, jnp.int32(1))
    assert np.isnan(first.state.fitness).all()  # what acted before the first update was chance
    second, _ = advance(first, jnp.int32(1))
    assert np.isfinite(second.state.fitness).all()
    rows = second.memory.rows[0]
    newest = (int(second.memory.position[0]) - 25) % rows.shape[1]
    words = rows[0, newest : newest + 25]  # [time, lanes, width]
    seen = jax.lax.bitcast_convert_type(words[..., :5], jnp.float32)
    assert np.abs(seen[0, :, :4]).max() <= 0.05  # CartPole begins there
    does = jax.jit(jax.vmap(lambda policy, obs: small("td3").dist(policy, obs, None).mode(), (None, 0)))
    for lane in range(8):
        state, obs = alone(first.state.agent, lane // 2), seen[:, lane, :4]
        expected = does(small("td3").policy(state), obs)
        np.testing.assert_allclose(seen[:, lane, 4:5], expected, rtol=1e-4, atol=1e-5)
    # the distribution was told of the weights that acted, not of what the updates after it made of them
    told = jax.jit(cem.told)(first.state.memory.search, first.state.agent.params.actor, second.state.fitness)
    for x, y in zip(jax.tree.leaves(told), jax.tree.leaves(second.state.memory.search), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    both, _ = advance(carry, jnp.int32(2))
    assert bits(both) == bits(second)


TINY = {"hidden": (8,), "batch_size": 8, "learning_starts": 100, "train_freq": 8}


def trained(kind: str, **options: Any) -> training.Result:
    train = {"cem": frugalrl.cem, "dvd": frugalrl.dvd}[kind]
    agent = {"cem": "td3", "dvd": "sac"}[kind]
    return train(agent, "Pendulum-v1", 3, ready=40, steps=900, seeds=2, hyper=TINY, **options)


def timeless(result: Any) -> list[str]:
    return [repr({k: plain(v) for k, v in row.items() if k != "wall_seconds"}) for row in result.rows]


@pytest.mark.parametrize(("members", "processes"), [(10, 2), (9, 3), (11, 1)])
def test_a_run_in_actors_is_that_of_the_whole_crew(members, processes, monkeypatch):
    made = []

    class Seen(ledger.Ledger):
        def __init__(self, agent, card, plan, *rest):
            made.append((agent, plan))
            super().__init__(agent, card, plan, *rest)

    monkeypatch.setattr(jobs, "Ledger", Seen)
    population = {"kind": "cem", "search": {}, "members": members, "ready": 40}
    config = configure("td3", "InvertedPendulum-v5", steps=9000, population=population, hyper=TINY | {"num_envs": 2})
    assert (config.runtime, config.steps % config.generation) == ("actors", 0)
    job = jobs.actors_job(config, lambda text: None)
    assert [phase.name for phase in job.phases] == ["seed-0"]
    ((agent, plan),) = made
    assert agent.crew.members == members
    assert (plan.actors, plan.crew, plan.unroll, plan.num_envs) == (processes, members // processes, 40, 2)
    assert plan.message == config.generation == 80 * members
    assert plan.updates == config.generation // TINY["train_freq"]
    assert plan.warmup == 0  # the first generation is more than learning starts at


@pytest.mark.parametrize("kind", ["cem", pytest.param("dvd", marks=pytest.mark.long)])
def test_a_resumed_population_is_the_one_that_was_not_stopped(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEEP", 1000)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    whole = trained(kind, out=tmp_path)
    assert whole.receipt["steps"] == 960  # eight generations of three members, 40 steps each
    assert {row["member"] for row in whole.rows} == {None}
    found = whole.receipt["population"]
    assert (found["kind"], found["members"], found["ready"], len(found["last"])) == (kind, 3, 40, 2)
    assert "Generations" in (tmp_path / "report.html").read_text()
    saved = runs.checkpoints(tmp_path)
    later = [path for path in saved if int(path.stem) > 480]
    assert 0 < len(later) < len(saved)
    for path in later:
        path.unlink()
    (tmp_path / "receipt.json").unlink()
    resumed = frugalrl.resume(tmp_path)
    assert resumed is not None
    assert timeless(resumed) == timeless(whole)
    assert bits(resumed.actor.weights) == bits(whole.actor.weights)


@pytest.mark.parametrize(
    ("agent", "env", "options", "why"),
    [
        ("dqn", "CartPole-v1", {}, "continuous actions: use td3"),
        ("sac", "CartPole-v1", {}, "continuous actions: use td3"),
        ("ppo", "Pendulum-v1", {}, "continuous actions: use td3"),
        ("td3", "Pendulum-v1", {"members": 1}, "--members must be from 2"),
        ("td3", "Pendulum-v1", {"ready": 0}, "--ready must be from 1"),
        ("td3", "Pendulum-v1", {"variance": 0.0}, "--variance must be above 0"),
        ("td3", "Pendulum-v1", {"kind": "dvd", "novelty": "bandits"}, "--novelty must be bandit or schedule"),
        ("td3", "Pendulum-v1", {"kind": "dvd", "novelty": "nan"}, "--novelty must be bandit or schedule"),
        ("td3", "Pendulum-v1", {"precision": "bf16"}, "leave --precision"),
        ("sac", "dm_control_pixels/cartpole-swingup-v0", {"kind": "dvd", "ready": 9}, "dvd is not for pictures"),
        ("td3", "InvertedPendulum-v5", {"actors": "int8"}, "--actors int8 is not for cem"),
        ("td3", "InvertedPendulum-v5", {"prune": 0.5}, "--prune is not for cem"),
        ("td3", "InvertedPendulum-v5", {"pull_period": 9}, "--pull-period is not for cem"),
    ],
)
def test_a_wrong_option_is_refused(agent, env, options, why):
    population = {"kind": "cem", "search": {}, "members": 4} | options
    rest = {name: population.pop(name) for name in ("precision", "actors", "prune", "pull_period") if name in options}
    with pytest.raises(UsageError, match=why):
        configure(agent, env, population=population, **rest)
