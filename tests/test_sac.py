"""SAC, TD3, DDPG and D4PG: losses against NumPy, and every switch changes what it should and nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from small import MODULES, OBS, TORQUE, bits, random_batch, random_state, small

import frugalrl
from frugalrl.agents import d4pg, sac, td3
from frugalrl.config import configure
from frugalrl.distributions import LOG_STD
from frugalrl.errors import UsageError
from frugalrl.losses import project
from frugalrl.policy import HEADS, load
from frugalrl.types import Agent, Batch, Box, Discrete, update

KEY = jax.random.key(0)
SIZE, GAMMA = 32, 0.9
NAMES = ("sac", "td3", "ddpg", "d4pg")
CHOSEN = {"learning_rate": 1e-2, "gamma": GAMMA, "tau": 0.25}
HYPER = {name: module.Hyper(**CHOSEN) for name, module in MODULES.items()}
HYPER["sac"] = HYPER["sac"]._replace(ent_coef=0.5)
HYPER["td3"] = HYPER["td3"]._replace(target_policy_noise=1.0, target_noise_clip=0.3)
HYPER["d4pg"] = HYPER["d4pg"]._replace(v_min=-2.0, v_max=3.0)


def given(name: str, window: int = 1, continuous: bool = True, **static: Any) -> tuple[Agent, Any, Batch]:
    """An agent, a state whose targets are other weights, and a batch."""
    agent = small(name, continuous, **static)
    state = random_state(agent, hyper=HYPER[name])._replace(version=jnp.int32(7))
    return agent, state, random_batch(size=SIZE, window=window, continuous=continuous)


def forward(params: Any, x: Any, xp: Any = np) -> Any:
    """Two layers on a batch of inputs, written out."""
    (w1, b1), (w2, b2) = params
    return xp.maximum(x @ w1 + b1[None], 0) @ w2 + b2[None]


def member(params: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], params)


def both(params: Any, x: Any, xp: Any = np) -> Any:
    """[2, batch, outputs] of two stacked critics."""
    return xp.stack([forward(member(params, i), x, xp) for i in range(2)])


def returns(data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reward, discount, next_obs) of each sample, in a loop over its steps."""
    out = []
    for i in range(len(data.reward)):
        total, discount, bootstrap, t = 0.0, 1.0, True, 0
        for t in range(data.reward.shape[1]):
            total += discount * data.reward[i, t]
            discount *= GAMMA
            if data.terminated[i, t] or data.truncated[i, t]:
                bootstrap = not data.terminated[i, t]
                break
        out.append((total, discount * bootstrap, data.next_obs[i, t]))
    reward, discount, next_obs = zip(*out, strict=True)
    return np.array(reward), np.array(discount), np.array(next_obs)


def in_unit(action: Any) -> Any:
    return (action - TORQUE.low) / (TORQUE.high - TORQUE.low) * 2 - 1


def beside(obs: Any, action: Any, xp: Any = np) -> Any:
    return xp.concatenate([obs, action], -1)


def close(got: Any, expected: Any, rtol: float = 1e-3, atol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def noise_of(key: Any) -> np.ndarray:
    """One normal number for each key."""
    return np.asarray(jax.vmap(lambda k: jax.random.normal(k, (1,)))(key), np.float64)


def squashed(params: Any, obs: Any, noise: Any) -> tuple[Any, Any]:
    """(action in [-1, 1], its log-probability) by the definitions."""
    mean, raw = np.split(forward(params, obs), 2, -1)
    std = np.exp(LOG_STD[0] + (LOG_STD[1] - LOG_STD[0]) * (np.tanh(raw) + 1) / 2)
    before = mean + std * noise
    return np.tanh(before), (stats.norm.logpdf(before, mean, std) - np.log(1 - np.tanh(before) ** 2))[:, 0]


def critic_reference(params: Any, inputs: Any, target: Any, pick: Any = None) -> Any:
    """Gradient of two critics' mean squared error, by the definition."""

    def loss(params):
        q = both(params, jnp.float32(inputs), jnp)
        q = q[..., 0] if pick is None else q[:, jnp.arange(SIZE), pick]
        return jnp.mean(jnp.sum((jnp.float32(target)[None] - q) ** 2 / 2, 0))

    return jax.grad(loss)(params)


@pytest.mark.parametrize("window", [1, 3])
def test_sac_is_the_reference(window):
    agent, state, batch = given("sac", window)
    grads, info = agent.grad(state, batch, KEY)
    noise = [noise_of(k) for k in jax.random.split(KEY, (2, SIZE))]
    here = jax.device_get(state)
    data, params, target = jax.device_get(batch.data), here.params, here.target
    temperature = np.exp(params.log_ent_coef)
    reward, discount, next_obs = returns(data)
    after, log_prob = squashed(params.actor, next_obs, noise[0])
    value = both(target, beside(next_obs, after))[..., 0].min(0) - temperature * log_prob
    aim, inputs = reward + discount * value, beside(data.obs[:, 0], in_unit(data.action[:, 0]))
    q = both(params.critic, inputs)[..., 0]
    close(info.priority, abs(aim - q).mean(0))
    close(info.metrics["loss"], ((aim - q) ** 2 / 2).sum(0).mean())
    close(grads.critic, critic_reference(state.params.critic, inputs, aim))
    action, log_prob = squashed(params.actor, data.obs[:, 0], noise[1])
    climbed = both(params.critic, beside(data.obs[:, 0], action))[..., 0].min(0)
    close(info.metrics["actor_loss"], (temperature * log_prob - climbed).mean())
    close(info.metrics["entropy"], -log_prob.mean())
    close(grads.log_ent_coef, -log_prob.mean() + 1)  # the entropy is to be -1, one dimension

    def actor_loss(params):  # along one direction, by differences: the actor moves action and log-probability
        action, log_prob = squashed(params, np.float64(data.obs[:, 0]), noise[1])
        q = both(here.params.critic, beside(data.obs[:, 0], action))[..., 0].min(0)
        return (temperature * log_prob - q).mean()

    slopes_along(actor_loss, params.actor, grads.actor)


def slopes_along(loss: Any, params: Any, grads: Any) -> None:
    """That `grads` foretells how `loss`, in double precision, changes along some directions."""
    r = np.random.default_rng(0)
    for _ in range(3):
        way = jax.tree.map(lambda x: r.standard_normal(x.shape), params)
        ends = [loss(jax.tree.map(lambda x, d, s=s: np.float64(x) + s * d, params, way)) for s in (-1e-6, 1e-6)]
        foretold = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True))
        assert foretold == pytest.approx((ends[1] - ends[0]) / 2e-6, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("window", [1, 3])
def test_discrete_sac_is_the_reference(window):
    agent, state, batch = given("sac", window, continuous=False)
    grads, info = agent.grad(state, batch, KEY)
    here = jax.device_get(state)
    data, params = jax.device_get(batch.data), here.params
    temperature = np.exp(params.log_ent_coef)

    def soft_value(actor, critics, obs):
        logits = special.log_softmax(forward(actor, obs), -1)
        q = both(critics, obs).min(0)
        return sum(np.exp(logits[:, a]) * (q[:, a] - temperature * logits[:, a]) for a in range(2))

    reward, discount, next_obs = returns(data)
    aim = reward + discount * soft_value(params.actor, here.target, next_obs)
    obs, action = data.obs[:, 0], data.action[:, 0]
    q = both(params.critic, obs)[:, np.arange(SIZE), action]
    close(info.priority, abs(aim - q).mean(0))
    close(grads.critic, critic_reference(state.params.critic, obs, aim, action))
    slopes_along(lambda p: -soft_value(p, params.critic, np.float64(obs)).mean(), params.actor, grads.actor)
    entropy = stats.entropy(special.softmax(forward(params.actor, obs), -1), axis=-1).mean()
    close(grads.log_ent_coef, entropy - 0.98 * np.log(2))


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_td3_and_ddpg_are_the_references(name, window):
    agent, state, batch = given(name, window)
    grads, info = agent.grad(state, batch, KEY)
    here = jax.device_get(state)
    data, params, target = jax.device_get(batch.data), here.params, here.target
    count = {"td3": 2, "ddpg": 1}[name]

    def critics(params, inputs):
        return np.stack([forward(member(params, i), inputs)[:, 0] for i in range(count)])

    reward, discount, next_obs = returns(data)
    after = np.tanh(forward(target.actor, next_obs))
    if name == "td3":
        noise = noise_of(jax.random.split(KEY, SIZE))
        assert (abs(noise) > 0.3).any()
        assert (abs(after) > 0.7).any()
        after = np.clip(after + np.clip(noise, -0.3, 0.3), -1, 1)
    aim = reward + discount * critics(target.critic, beside(next_obs, after)).min(0)
    obs = data.obs[:, 0]
    inputs = beside(obs, in_unit(data.action[:, 0]))
    q = critics(params.critic, inputs)
    close(info.priority, abs(aim - q).mean(0))
    close(info.metrics["loss"], ((aim - q) ** 2 / 2).sum(0).mean())
    if name == "td3":
        close(grads.critic, critic_reference(state.params.critic, inputs, aim))
    else:
        slopes_along(
            lambda p: ((aim - critics(p, np.float64(inputs))) ** 2 / 2).mean(), params.critic, grads.critic
        )  # fmt: skip
    climb = lambda p: -critics(params.critic, beside(obs, np.tanh(forward(p, np.float64(obs)))))[0].mean()
    delay = float(state.hyper.policy_delay)  # every so many updates it is told, so many times as much
    close(info.metrics["actor_loss"], delay * climb(params.actor))
    slopes_along(climb, params.actor, grads.actor)


@pytest.mark.parametrize("window", [1, 3])
def test_d4pg_is_the_reference(window):
    agent, state, batch = given("d4pg", window, atoms=7)
    grads, info = agent.grad(state, batch, KEY)
    here = jax.device_get(state)
    data, params, target = jax.device_get(batch.data), here.params, here.target
    z = np.linspace(-2, 3, 7)
    reward, discount, next_obs = returns(data)
    after = np.tanh(forward(target.actor, next_obs))
    probs = special.softmax(forward(target.critic, beside(next_obs, after)), -1)
    aim = np.stack([spread(r + d * z, p, z) for r, d, p in zip(reward, discount, probs, strict=True)])
    obs = data.obs[:, 0]
    inputs = np.float64(beside(obs, in_unit(data.action[:, 0])))

    def loss(p):
        return -(aim * special.log_softmax(forward(p, inputs), -1)).sum(-1)

    least = -special.xlogy(aim, aim).sum(-1)  # of the cross-entropy: priorities are divergences
    close(info.priority, loss(params.critic) - least)
    slopes_along(lambda p: loss(p).mean(), params.critic, grads.critic)

    def climb(p):
        outputs = forward(params.critic, beside(obs, np.tanh(forward(p, np.float64(obs)))))
        return -(special.softmax(outputs, -1) @ z).mean()

    slopes_along(climb, params.actor, grads.actor)


def spread(support: np.ndarray, probs: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Bellemare et al. 2017, atom by atom."""
    out, step = np.zeros(len(onto)), onto[1] - onto[0]
    for z, p in zip(support, probs, strict=True):
        b = (np.clip(z, onto[0], onto[-1]) - onto[0]) / step
        low = min(int(np.floor(b + 1e-9)), len(onto) - 2)
        out[low] += p * (low + 1 - b)
        out[low + 1] += p * (b - low)
    return out


def test_the_projection_keeps_probability_and_every_mean_within():
    r, onto = np.random.default_rng(0), np.linspace(-2, 3, 11)
    for scale in (0.0, 0.3, 1.0, 4.0):
        support, probs = np.sort(scale * r.standard_normal(11)) + 0.4, r.dirichlet(np.ones(11))
        got = project(*map(jnp.float32, (support, probs, onto)))
        np.testing.assert_allclose(got, spread(support, probs, onto), atol=1e-5)
        assert got.sum() == pytest.approx(1, abs=1e-5)
        # the integral of the clipped variable, which linear sharing keeps
        assert got @ onto == pytest.approx(probs @ np.clip(support, -2, 3), abs=1e-5)


@pytest.mark.parametrize("high_entropy", [True, False])
def test_the_temperature_moves_towards_the_target_entropy(high_entropy):
    agent, state, batch = given("sac")
    bias = jnp.array([0.0, 0.4 if high_entropy else -3.0])  # of mean and log_std: all but uniform, or narrow
    last = state.params.actor[-1]
    actor = (*state.params.actor[:-1], last._replace(w=0 * last.w, b=bias))
    state = state._replace(params=state.params._replace(actor=actor))
    after, info = update(agent, state, batch, KEY)
    assert (info.metrics["entropy"] > -1) == high_entropy
    moved = float(after.params.log_ent_coef - state.params.log_ent_coef)
    assert moved == pytest.approx(-1e-2 if high_entropy else 1e-2, rel=1e-3)  # Adam's first step
    eager = state._replace(hyper=state.hyper._replace(target_entropy_scale=jnp.float32(-100)))
    assert update(agent, eager, batch, KEY)[0].params.log_ent_coef > state.params.log_ent_coef  # even more is wanted
    fixed = small("sac", auto_ent_coef=False)
    assert update(fixed, state, batch, KEY)[0].params.log_ent_coef == state.params.log_ent_coef


def test_the_temperature_starts_where_it_is_told():
    for ent_coef, expected in ((0.2, 0.2), (1.0, 1.0), (0.0, 1e-8)):
        state = small("sac").init(KEY, HYPER["sac"]._replace(ent_coef=ent_coef))
        assert float(jnp.exp(state.params.log_ent_coef)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_the_delay_holds_back_actor_and_targets_and_nothing_else(delay):
    agent, state, batch = given("td3")
    state = state._replace(version=jnp.int32(0))
    state = state._replace(hyper=state.hyper._replace(policy_delay=jnp.float32(delay)))
    for version in range(1, 7):
        grads, info = agent.grad(state, batch, KEY)
        due = version % delay == 0
        assert any(map(jnp.any, jax.tree.leaves(grads.actor))) == bool(info.metrics["actor_loss"]) == due
        before, state = state, agent.apply(state, grads)
        assert state.version == version
        assert bits(state.params.critic) != bits(before.params.critic)
        held = [
            bits(old) == bits(new)
            for old, new in (
                (before.params.actor, state.params.actor),
                (before.optimizer.actor, state.optimizer.actor),
                (before.target.actor, state.target.actor),
                (before.target.critic, state.target.critic),
            )
        ]
        assert held == [not due] * 4
        if due:
            close(state.target, jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, before.target, state.params))


def test_sacs_targets_follow_at_every_update():
    agent, state, batch = given("sac")
    after, _ = update(agent, state, batch, KEY)
    close(after.target, jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, state.target, after.params.critic))


def cases() -> list[Any]:
    return [*((name, True) for name in NAMES), ("sac", False)]


CASES = pytest.mark.parametrize(("name", "continuous"), cases())


@CASES
def test_a_termination_has_no_future_and_a_truncation_does(name, continuous):
    agent, state, batch = given(name, 1, continuous)
    other = batch._replace(data=batch.data._replace(next_obs=-batch.data.next_obs))

    def gradient(batch, **flags):
        flags = {k: jnp.full((SIZE, 1), flags.get(k, False)) for k in ("terminated", "truncated")}
        ended = batch.data._replace(**flags)
        return agent.grad(state, batch._replace(data=ended), KEY)[0].critic

    # to the last digits only: D4PG's probabilities add up to one but for rounding
    close(gradient(batch, terminated=True), gradient(other, terminated=True))
    close(gradient(batch, terminated=True, truncated=True), gradient(batch, terminated=True))
    assert bits(gradient(batch, truncated=True)) == bits(gradient(batch))
    with pytest.raises(AssertionError):
        close(gradient(batch, truncated=True), gradient(other, truncated=True))


@CASES
def test_weights_count_for_the_critics_only(name, continuous):
    agent, state, batch = given(name, 1, continuous)
    grads, _ = agent.grad(state, batch, KEY)
    doubled, _ = agent.grad(state, batch._replace(weight=2 * batch.weight), KEY)
    close(doubled.critic, jax.tree.map(lambda g: 2 * g, grads.critic))
    assert bits(doubled._replace(critic=0)) == bits(grads._replace(critic=0))


@CASES
def test_a_policy_is_the_actor_and_knobs_that_fit_the_greedy_ones(name, continuous):
    agent, state, _ = given(name, 1, continuous)
    policy = agent.policy(state)
    assert bits(policy.params) == bits(state.params.actor)
    greedy = MODULES[name].greedy(TORQUE if continuous else Discrete(2))
    assert policy.knobs.keys() == greedy.keys()
    assert HEADS[agent.head.__name__] is agent.head
    obs = jnp.float32(np.random.default_rng(0).standard_normal(4))
    dist = agent.dist(policy, obs, KEY)
    outputs = np.asarray(agent.network.apply(policy.params, obs))[None]
    np.testing.assert_allclose(agent.head(outputs, greedy).mode()[0], dist.mode(), rtol=1e-5)
    if continuous:
        close([policy.knobs["low"], policy.knobs["high"]], [[-2.0], [1.0]])
        random = [agent.policy(state._replace(version=jnp.int32(v))).knobs["random"] for v in (0, 1)]
        assert random == [1, 0]
    if "noise" in greedy:
        assert greedy["noise"] == 0
        assert policy.knobs["noise"] == np.float32(state.hyper.action_noise)


@CASES
def test_a_batch_of_another_size_keeps_dtypes_and_structure(name, continuous):
    agent, state, _ = given(name, 1, continuous)
    batch = random_batch(size=7, continuous=continuous)
    after, info = jax.eval_shape(lambda state: update(agent, state, batch, KEY), state)
    assert info.priority.shape == (7,)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


PARTS = ("init", "policy", "dist", "grad", "apply")
INERT = {"batch_size", "buffer_size", "learning_starts", "train_freq", "gradient_steps", "num_envs", "n_step"}
INERT |= {"encoder_filters", "encoder_features", "random_shift"}  # of pictures
SWITCHES = {  # what else is in Static -> the parts it may change, and must
    "hidden": ((8,), set(PARTS)),
    "auto_ent_coef": (False, {"grad"}),
    "atoms": (9, set(PARTS) - {"dist"}),
}


def programs(module: Any, static: Any) -> dict[str, str]:
    """The jaxpr of each part."""
    agent = module.assemble(static, OBS, TORQUE)
    state, batch = jax.eval_shape(agent.init, KEY, module.Hyper()), random_batch(size=4, continuous=True)
    policy = jax.eval_shape(agent.policy, state)
    arguments = {"init": (KEY, module.Hyper()), "policy": (state,), "dist": (policy, jnp.zeros(4), KEY)}
    arguments |= {"grad": (state, batch, KEY), "apply": (state, state.params)}
    return {part: str(jax.make_jaxpr(getattr(agent, part))(*arguments[part])) for part in PARTS}


@pytest.mark.parametrize("name", NAMES)
def test_a_switch_changes_its_parts_and_no_other(name):
    module = MODULES[name]
    plain = module.Static(hidden=(16,))
    before = programs(module, plain)
    for switch in plain._fields:
        if switch in INERT:
            continue
        value, expected = SWITCHES[switch]
        after = programs(module, plain._replace(**{switch: value}))
        assert {part for part in PARTS if before[part] != after[part]} == expected, switch
    inert = plain._replace(**{switch: 7 for switch in INERT if switch in plain._fields})
    assert programs(module, inert) == before


def test_spaces_it_cannot_handle_are_refused():
    for module, obs, actions, message in (
        (td3, OBS, Discrete(2), "takes continuous actions"),
        (sac, OBS, Box((2, 2), low=-1, high=1), "vectors, not of shape"),
        (d4pg, OBS, Box((2,), low=(0, 0), high=(1, float("inf"))), "with bounds"),
        (td3, Box((8, 8)), TORQUE, "observations that are vectors"),
        (sac, Box((8, 8)), Discrete(2), "pictures of bytes that are at least 15 x 15"),
        (sac, Box((14, 84, 3), "uint8"), TORQUE, "pictures of bytes that are at least 15 x 15"),
    ):
        with pytest.raises(ValueError, match=message):
            module.assemble(module.Static(), obs, actions)
    with pytest.raises(ValueError, match="atoms=1 make no distribution; use atoms=51"):
        d4pg.assemble(d4pg.Static(atoms=1), OBS, TORQUE)


@pytest.mark.parametrize(
    ("agent", "env", "hyper", "message"),
    [
        (
            "td3",
            "CartPole-v1",
            {},
            "CartPole-v1 has discrete actions, and td3 takes continuous ones; use dqn, rainbow, qrdqn",
        ),
        (
            "dqn",
            "Pendulum-v1",
            {},
            "Pendulum-v1 has continuous actions, and dqn takes discrete ones; use ppo, a2c",
        ),
        ("d4pg", "Pendulum-v1", {"v_min": 5, "v_max": 5}, "v_min=5 must be less than v_max=5"),
    ],
)
def test_a_wrong_choice_is_one_line_that_says_what_to_use(agent, env, hyper, message):
    with pytest.raises(UsageError, match=message):
        configure(agent, env, hyper=hyper)


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["compiled", "actors"])
@pytest.mark.parametrize(("name", "env"), [*((name, "Pendulum-v1") for name in NAMES), ("sac", "CartPole-v1")])
def test_it_trains_in_both_runtimes_and_its_policy_is_kept(name, env, runtime, tmp_path):
    hyper = {"hidden": (16,), "batch_size": 32}
    run = frugalrl.train(name, env, steps=1000, seeds=2, runtime=runtime, hyper=hyper, out=tmp_path / "run")
    assert len(run.returns["per_seed"]) == 2
    kept = load(tmp_path / "run")
    obs = np.random.default_rng(0).standard_normal((50, *kept.card.obs.shape), np.float32)
    actions = kept.predict(obs)
    np.testing.assert_array_equal(actions, run.predict(obs))
    if env == "Pendulum-v1":
        assert actions.shape == (50, 1)
        assert (abs(actions) <= 2).all()
        sampled = kept.predict(obs, deterministic=False, rng=np.random.default_rng(0))
        assert (sampled != actions).any() == (name == "sac")  # the others' noise is a matter of training
