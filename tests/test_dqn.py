"""DQN's gradient against a plain reference, and every switch changes what it should and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import HYPER, OBS, bits, random_batch, random_state, small_dqn

from frugalrl.agents.dqn import LOSSES, OPTIMIZERS, Hyper, State, Static, assemble
from frugalrl.config import configure
from frugalrl.jobs import memory_of, records
from frugalrl.losses import squared
from frugalrl.runtime.compiled import learn
from frugalrl.types import Agent, Batch, Box, Discrete, Memory, Transition, update

KEY = jax.random.key(0)
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it is the compiler that takes time
GAMMA = float(np.float32(HYPER.gamma))


def forward(params, x, xp=jnp) -> Any:
    """Two layers on a batch of observations, written out."""
    (w1, b1), (w2, b2) = params
    return xp.maximum(x @ w1 + b1[None], 0) @ w2 + b2[None]


def targets(state: State, batch: Batch, double: bool) -> np.ndarray:
    """The target of each sample, in a loop over its steps."""
    state, data = jax.device_get((state, batch.data))
    aim = []
    for i in range(len(data.reward)):
        total, discount, bootstrap = 0.0, 1.0, True
        for t in range(data.reward.shape[1]):
            total += discount * data.reward[i, t]
            discount *= GAMMA
            if data.terminated[i, t] or data.truncated[i, t]:
                bootstrap = not data.terminated[i, t]
                break
        after = data.next_obs[i, t][None]
        judge = forward(state.target, after, np)[0]
        chooser = forward(state.params, after, np)[0] if double else judge
        aim.append(total + (discount * judge[chooser.argmax()] if bootstrap else 0.0))
    return np.array(aim, np.float32)


@partial(jax.jit, static_argnames="mse")
def reference(state: State, batch: Batch, aim: jax.Array, mse: bool = False):
    """(gradients, absolute errors) of the mean loss, by the definition."""

    def objective(params):
        q = forward(params, batch.data.obs[:, 0])[jnp.arange(len(aim)), batch.data.action[:, 0]]
        size = jnp.abs(aim - q)
        loss = 0.5 * size**2 if mse else jnp.where(size < 1, 0.5 * size**2, size - 0.5)
        return jnp.mean(batch.weight * loss), size

    return jax.grad(objective, has_aux=True)(state.params)


def close(got: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(("double", "mse"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_gradient_is_the_references(window, double, mse):
    agent = small_dqn(double=double, **({"loss": squared} if mse else {}))
    state, batch = random_state(agent), random_batch(window=window, size=64)
    grads, info = agent.grad(state, batch, KEY)
    expected, error = reference(state, batch, targets(state, batch, double), mse)
    close(info.priority, error)
    close(grads, expected)
    q = forward(state.params, batch.data.obs[:, 0])
    close(info.metrics["q"], q[np.arange(64), batch.data.action[:, 0]].mean())
    per_sample = 0.5 * error**2 if mse else jnp.where(error < 1, 0.5 * error**2, error - 0.5)
    close(info.metrics["loss"], per_sample.mean())


def test_double_changes_only_where_the_networks_disagree():
    """On the best action of the next observation, that is; elsewhere the targets are the same."""
    plain, double = small_dqn(), small_dqn(double=True)
    state, batch = random_state(plain), random_batch(size=256, ends=0.0)
    after = batch.data.next_obs[:, 0]
    disagree = np.argmax(forward(state.params, after), -1) != np.argmax(forward(state.target, after), -1)
    errors = [np.asarray(agent.grad(state, batch, KEY)[1].priority) for agent in (plain, double)]
    np.testing.assert_array_equal(errors[0] != errors[1], disagree)
    assert 0 < disagree.sum() < 256


PARTS = ("init", "policy", "dist", "grad", "apply")


BOUNDED = Box((4,), low=-2.0, high=(1.0, 2.0, 6.0, np.inf))


def test_rescaled_observations_are_learned_from_as_if_they_came_so():
    """From -2 to 1, 2 and 6 to -1 to 1, the last as it is; actors take them as they are, in a plain network."""
    plain, agent = (assemble(Static(hidden=(16,), rescale_obs=on), BOUNDED, Discrete(2)) for on in (False, True))
    batch = random_batch(window=3)

    def seen(obs):
        obs = np.asarray(obs)
        return np.float32((obs - np.float32([-0.5, 0, 2, 0])) / np.float32([1.5, 2, 4, 1]))

    data = batch.data._replace(obs=seen(batch.data.obs), next_obs=seen(batch.data.next_obs))

    @quickly
    def learn(obs, seen):
        state = random_state(agent)
        acting = agent.policy(state)
        values = agent.dist(acting, obs, KEY).values, plain.dist(plain.policy(state), seen, KEY).values
        grads = agent.grad(state, batch, KEY), plain.grad(state, batch._replace(data=data), KEY)
        folded = agent.fold(state, state.params), agent.unfold(state, acting.params)
        return values, grads, folded, (acting.params, state.params), [a.init(KEY, HYPER) for a in (agent, plain)]

    obs = batch.data.obs[0, 0]
    values, grads, folded, expected, starts = learn(obs, seen(obs))
    close(*grads, atol=1e-5)
    close(*values, atol=1e-5)
    close(folded, expected)
    assert bits(starts[0]) == bits(starts[1])


def test_other_bounds_take_the_place_of_those_of_the_environment():
    """On both sides of 0, also of a number that has none."""
    one, two = Static(hidden=(16,), rescale_obs=True, obs_bounds=(2.0, 4.0, 8.0, 0.5)), Static(hidden=(16,))
    scaled, plain = (assemble(static, BOUNDED, Discrete(2)) for static in (one, two))
    state, obs = random_state(scaled), jnp.float32([0.3, -1.0, 4.0, 7.0])
    seen = obs / jnp.float32([2.0, 4.0, 8.0, 0.5])
    close(scaled.dist(scaled.policy(state), obs).values, plain.dist(plain.policy(state), seen).values, atol=1e-5)


def test_rescaling_is_beneath_all_other_parts():
    """Of all that is learned the first layer of the network takes the observation, and not that of an embedding."""
    everything = {"dueling": True, "noisy": True, "atoms": 5, "distribution": "implicit", "hidden": (16,)}
    on, off = (assemble(Static(rescale_obs=rescale, **everything), BOUNDED, Discrete(2)) for rescale in (True, False))

    @quickly
    def values(obs, seen):
        state = random_state(on)._replace(noise=())
        return on.dist(on.policy(state), obs).values, off.dist(off.policy(state), seen).values

    obs = jnp.float32([0.3, -1.0, 4.0, 7.0])
    close(*values(obs, (obs - jnp.float32([-0.5, 0, 2, 0])) / jnp.float32([1.5, 2, 4, 1])), atol=1e-4)


def programs(agent: Agent, window: int = 1) -> dict[str, str]:
    """The jaxpr of each part."""
    state, batch = jax.eval_shape(agent.init, KEY, HYPER), random_batch(window=window)
    policy, obs = jax.eval_shape(agent.policy, state), jnp.zeros(OBS.shape)
    arguments = {"init": (KEY, HYPER), "policy": (state,), "dist": (policy, obs, KEY)}
    arguments |= {"grad": (state, batch, KEY), "apply": (state, state.params)}
    return {part: str(jax.make_jaxpr(getattr(agent, part))(*arguments[part])) for part in PARTS}


SWITCHES = {  # a choice in Static -> the parts it may change, and must
    "double": (True, {"grad"}),
    "loss": ("mse", {"grad"}),
    "dueling": (True, {"init", "policy", "grad", "apply"}),  # an actor's network stays what it is
    "noisy": (True, {"init", "policy", "grad", "apply"}),
    "noisy_std": (0.1, set()),  # without noise
    "frozen_noise": (True, set()),
    "atoms": (51, set(PARTS)),
    "distribution": ("quantile", set()),  # of one atom
    "prioritized": (True, {"grad"}),
    "munchausen": (True, {"grad"}),
    "optimizer_eps": (0.1, {"apply"}),
    "optimizer": ("rmsprop", {"init", "policy", "grad", "apply"}),  # the state they take holds other moments
    "n_step": (3, set()),  # the window of the memory, and nothing in the agent
    "rescale_obs": (True, {"policy", "grad"}),
    "buffer_size": (7, set()),
    "train_freq": (8, set()),
    "gradient_steps": (2, set()),
    "learning_starts": (7, set()),
    "batch_size": (7, set()),
    "num_envs": (7, set()),
    "hidden": ((8,), set(PARTS)),
    "network": ("mlp", set()),  # which it is anyway, for vectors
}


def test_every_choice_is_in_the_table():
    assert SWITCHES.keys() | {"obs_bounds"} == set(Static._fields)  # which alone is refused


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_its_parts_and_no_other(name):
    value, expected = SWITCHES[name]
    before, after = (programs(assemble(s, OBS, Discrete(2))) for s in (Static(), Static()._replace(**{name: value})))
    assert {part for part in PARTS if before[part] != after[part]} == expected


IN_CONTEXT = {  # what does something beside another switch only
    # other numbers in the same programs: what they do is shown above
    "obs_bounds": ({"rescale_obs": True}, (2.0, 4.0, 8.0, 0.5), set()),
    "noisy_std": ({"noisy": True}, 0.1, {"init"}),
    "frozen_noise": ({"noisy": True}, True, {"init", "policy", "grad", "apply"}),
    "distribution": ({"atoms": 51}, "quantile", {"policy", "dist", "grad"}),
    "dueling": ({"atoms": 51}, True, {"init", "policy", "grad", "apply"}),
    "prioritized": ({"noisy": True, "atoms": 51}, True, {"grad"}),
    "double": ({"atoms": 51, "distribution": "quantile"}, True, {"grad"}),
    "loss": ({"atoms": 51}, "mse", set()),
}


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_a_switch_beside_another_changes_its_parts_and_no_other(name):
    beside, value, expected = IN_CONTEXT[name]
    before, after = (
        programs(assemble(s, OBS, Discrete(2)))
        for s in (Static()._replace(**beside), Static()._replace(**beside, **{name: value}))
    )
    assert {part for part in PARTS if before[part] != after[part]} == expected


def of_a_run(**switches: Any) -> tuple[Agent, Memory, Callable[[], tuple[State, Any]]]:
    """Agent and memory of a run that learns nothing, and what begins it: its state and 40 steps in the memory, whose
    reward is the step's number, but 1000 for step 7.
    """
    hyper = {"hidden": [8], "learning_rate": 0.0, "n_step": 1, "buffer_size": 512, **switches}
    parts = records(configure("dqn", "CartPole-v1", hyper=hyper))
    memory = memory_of(parts.recipe, parts.static, parts.card, parts.cadence, lanes=1, unroll=40, streams=1)

    def begin() -> tuple[State, Any]:
        when, never = jnp.arange(40, dtype=jnp.float32)[:, None], jnp.zeros((40, 1), bool)
        obs, action = jnp.sin(when[..., None] + jnp.arange(4.0)[None, None]), jnp.zeros((40, 1), jnp.int32)
        reward = jnp.where(when == 7, 1000.0, when)
        items = Transition(obs, action, reward, never, never, -obs, 0 * reward, action)
        return parts.agent.init(KEY, parts.hyper), memory.add(memory.init(), items, jnp.int32(0))

    return parts.agent, memory, begin


@pytest.mark.parametrize("prioritized", [False, True])
def test_with_priorities_a_run_replays_what_it_is_wrong_about_and_without_everything_evenly(prioritized):
    alpha = {"prioritized_replay_alpha": 1.0} if prioritized else {}
    agent, memory, begin = of_a_run(prioritized=prioritized, batch_size=512, **alpha)

    @quickly
    def live():
        state, kept = begin()
        state, kept, _ = learn(agent, memory, 2, state, kept, KEY)
        return memory.deal(kept, KEY, lambda rollout: ())[1](kept, KEY, 0).data.reward

    share = np.mean(live() == 1000)
    assert share == pytest.approx(1000 / 1773 if prioritized else 1 / 40, rel=0.2, abs=0.02)


def test_several_steps_are_the_window_of_the_runs_memory_and_the_sum_of_its_targets():
    agent, memory, begin = of_a_run(n_step=3, batch_size=64)

    @quickly
    def live():
        state, kept = begin()
        batch = memory.deal(kept, KEY, lambda rollout: ())[1](kept, KEY, 0)
        return state, batch, agent.grad(state, batch, KEY)[1].priority

    state, batch, error = live()
    when = np.where(batch.data.reward == 1000, 7, batch.data.reward)
    np.testing.assert_array_equal(when, when[:, :1] + np.arange(3))
    q = forward(state.params, batch.data.obs[:, 0])[:, 0]
    np.testing.assert_allclose(error, abs(targets(state, batch, double=False) - q), rtol=1e-4)


def test_the_optimizer_changes_no_gradient_and_no_policy():
    adam, rms = (small_dqn(optimizer=OPTIMIZERS[name]()) for name in ("adam", "rmsprop"))
    batch, states = random_batch(), [random_state(agent) for agent in (adam, rms)]
    assert bits([adam.grad(states[0], batch, KEY), adam.policy(states[0])]) == bits(
        [rms.grad(states[1], batch, KEY), rms.policy(states[1])]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_optaxs_with_the_learning_rate_of_the_state(name):
    theirs = {"adam": optax.adam(1e-2), "rmsprop": optax.rmsprop(1e-2, decay=0.95, eps=0.01, centered=True)}[name]
    agent = small_dqn(optimizer=OPTIMIZERS[name]())
    state, batch = random_state(agent, hyper=HYPER._replace(max_grad_norm=1e9)), random_batch()
    params, moments = state.params, theirs.init(state.params)
    for _ in range(3):
        grads, _ = agent.grad(state, batch, KEY)
        state = agent.apply(state, grads)
        with jax.numpy_dtype_promotion("standard"):
            direction, moments = theirs.update(grads, moments, params)
        params = optax.apply_updates(params, direction)
        close(state.params, params, rtol=1e-5)


def test_long_gradients_are_shortened_and_short_ones_kept():
    agent = small_dqn(optimizer=optax.identity())
    grads, _ = agent.grad(random_state(agent), random_batch(), KEY)
    norm = float(optax.tree.norm(grads))
    for limit, factor in ((norm / 4, 0.25), (norm * 4, 1.0)):
        state = random_state(agent, hyper=HYPER._replace(max_grad_norm=limit))
        moved = jax.tree.map(jnp.subtract, state.params, agent.apply(state, grads).params)
        close(moved, jax.tree.map(lambda g, f=factor: HYPER.learning_rate * f * g, grads), rtol=1e-3)


@pytest.mark.parametrize("tau", [1.0, 0.25])
@pytest.mark.parametrize(("interval", "every"), [(12, 3), (4, 1), (1, 1), (6, 2)])
def test_the_target_network_moves_at_its_interval(interval, every, tau):
    """In environment steps, four to an update here; 6 is not a whole number of updates and is rounded, to even."""
    agent = small_dqn()
    state = random_state(agent, hyper=HYPER._replace(target_update_interval=interval, steps_per_update=4.0, tau=tau))
    grads = agent.grad(state, random_batch(), KEY)[0]
    for version in range(1, 8):
        before, state = state, agent.apply(state, grads)
        assert state.version == version
        if version % every:
            assert bits(state.target) == bits(before.target)
        elif tau == 1:
            assert bits(state.target) == bits(state.params)
        else:
            mixed = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, before.target, state.params)
            close(state.target, mixed, rtol=1e-6, atol=1e-7)


def test_the_target_network_starts_as_the_online_one():
    state = small_dqn().init(KEY, HYPER)
    assert bits(state.target) == bits(state.params)


def epsilon(version: int, **hyper: float) -> float:
    agent = small_dqn()
    state = agent.init(KEY, HYPER._replace(**hyper))._replace(version=jnp.int32(version))
    return float(agent.policy(state).knobs["epsilon"])


def test_epsilon_falls_linearly_over_its_share_of_the_steps():
    chosen = {"total_steps": 1000, "exploration_fraction": 0.2, "steps_per_update": 4.0}
    chosen |= {"exploration_initial_eps": 0.9, "exploration_final_eps": 0.1}
    assert epsilon(0, **chosen) == pytest.approx(0.9)
    assert epsilon(25, **chosen) == pytest.approx(0.5)  # 100 of 200 steps
    assert epsilon(49, **chosen) == pytest.approx(0.116)
    for at_its_end in (50, 250, 10**6):
        assert epsilon(at_its_end, **chosen) == pytest.approx(0.1)
    assert epsilon(25, **chosen | {"steps_per_update": 8.0}) == pytest.approx(0.1)
    assert epsilon(1, **chosen | {"exploration_fraction": 0.0}) == pytest.approx(0.1)


def test_a_policy_is_the_online_network_and_epsilon():
    agent = small_dqn()
    state = random_state(agent)
    policy = agent.policy(state)
    assert bits(policy.params) == bits(state.params)
    assert policy.knobs.keys() == {"epsilon"}
    obs = random_batch().data.obs[0, 0]
    dist = agent.dist(policy, obs, KEY)
    close(dist.values, forward(state.params, obs[None])[0], rtol=1e-5)
    assert dist == agent.head(dist.values, policy.knobs)


def ended(batch: Batch, step: int, terminated: bool = False, truncated: bool = False) -> Batch:
    flags = {"terminated": jnp.zeros_like(batch.data.terminated).at[:, step].set(terminated)}
    flags["truncated"] = jnp.zeros_like(batch.data.truncated).at[:, step].set(truncated)
    return batch._replace(data=batch.data._replace(**flags))


@pytest.mark.parametrize("double", [True, False])
def test_a_termination_has_no_future_and_a_truncation_does(double):
    agent = small_dqn(double=double)
    state, batch = random_state(agent), random_batch(window=3)
    elsewhere = batch._replace(data=batch.data._replace(next_obs=-batch.data.next_obs))

    def gradient(batch, **flags):
        return bits(agent.grad(state, ended(batch, 0, **flags), KEY)[0])

    assert gradient(batch, terminated=True) == gradient(elsewhere, terminated=True)
    assert gradient(batch, terminated=True, truncated=True) == gradient(batch, terminated=True)
    assert gradient(batch, truncated=True) != gradient(elsewhere, truncated=True)
    # cut off after one step: the one-step target of that step
    one = batch._replace(data=jax.tree.map(lambda x: x[:, :1], ended(batch, 0).data))
    close(agent.grad(state, ended(batch, 0, truncated=True), KEY)[0], agent.grad(state, one, KEY)[0])


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_nothing_after_an_end_is_read(how):
    agent = small_dqn()
    state, batch, other = random_state(agent), random_batch(window=3), random_batch(seed=1, window=3)
    after = batch._replace(data=jax.tree.map(lambda x, y: x.at[:, 2].set(y[:, 2]), batch.data, other.data))
    first, second = (agent.grad(state, ended(b, 1, **{how: True}), KEY) for b in (batch, after))
    assert bits(first) == bits(second)


def test_weights_scale_the_gradient_of_their_sample():
    agent = small_dqn()
    state, batch = random_state(agent), random_batch(size=8)
    grads, info = agent.grad(state, batch, KEY)
    doubled, same = agent.grad(state, batch._replace(weight=batch.weight * 2), KEY)
    close(doubled, jax.tree.map(lambda g: 2 * g, grads), rtol=1e-6)
    assert bits(same.priority) == bits(info.priority)
    alone = [agent.grad(state, batch._replace(weight=jnp.zeros(8).at[i].set(i)), KEY)[0] for i in range(8)]
    mixed, _ = agent.grad(state, batch._replace(weight=jnp.arange(8.0)), KEY)
    close(mixed, jax.tree.map(lambda *g: sum(g), *alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_state_keeps_its_dtypes_and_structure(optimizer, loss):
    agent = assemble(Static(hidden=(16,), optimizer=optimizer, loss=loss), OBS, Discrete(2))
    before = jax.eval_shape(agent.init, KEY, Hyper())
    after, _ = jax.eval_shape(lambda state: update(agent, state, random_batch(), KEY), before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), before
    )


def test_choices_that_do_not_exist_are_refused_by_name():
    for static, obs, actions, message in (
        (Static(loss="hinge"), OBS, Discrete(2), "loss='hinge' does not exist; there are: huber, mse"),
        (Static(optimizer="sgd"), OBS, Discrete(2), "optimizer='sgd' does not exist; there are: adam, rmsprop"),
        (Static(), OBS, Box((2,)), "discrete actions"),
        (Static(rescale_obs=True), Box((10, 10, 4)), Discrete(2), "rescale_obs=true is for observations that are vec"),
        (Static(obs_bounds=(1.0,)), OBS, Discrete(2), "obs_bounds are what rescale_obs=true goes by, which is off"),
        (Static(rescale_obs=True, obs_bounds=(1.0,)), BOUNDED, Discrete(2), "obs_bounds must be 4 numbers above 0"),
        (Static(rescale_obs=True, obs_bounds=(1.0, 2.0, 0.0, 1.0)), BOUNDED, Discrete(2), "4 numbers above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            assemble(static, obs, actions)
