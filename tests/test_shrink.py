"""A learner that is pruned while it trains."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from runs import receipt

from frugalrl import cli, config, errors, jobs, policy, rng, training
from frugalrl.levers.compress import shrink
from frugalrl.networks import mlp, network
from frugalrl.types import Box, Linear

PAIRS = [("impala", "Pendulum-v1"), ("dqn", "CartPole-v1"), ("sac", "Pendulum-v1"), ("td3", "Pendulum-v1"),
         ("d4pg", "Pendulum-v1"), ("ppo", "CartPole-v1")]  # fmt: skip


def parts(agent: str, env: str, **hyper) -> tuple[jobs.Parts, config.Config]:
    made = config.configure(agent, env, hyper={"hidden": "64,64", **hyper})
    return jobs.records(made), made


def narrowed(made: jobs.Parts, of: config.Config, hidden: tuple[int, ...]):
    """The agent with other widths."""
    return jobs.assembled(made.recipe, made.static._replace(hidden=hidden), made.card.obs, made.card.actions, of)


@pytest.mark.parametrize(("agent", "env"), PAIRS)
def test_a_smaller_state_is_one_of_the_smaller_agent(agent, env):
    """Also where actor and critic have the same shapes, as on Pendulum."""
    made, of = parts(agent, env)
    state = jax.eval_shape(lambda: shrink.smaller(made.agent.init(rng.key(0), made.hyper), (32, 48)))
    narrow = narrowed(made, of, (32, 48))
    assert state == jax.eval_shape(lambda: narrow.init(rng.key(0), made.hyper))


def test_moments_and_targets_keep_the_units_of_their_weights():
    made, _ = parts("dqn", "CartPole-v1")
    state = made.agent.init(rng.key(0), made.hyper)
    marked = jax.tree.map(lambda x: np.asarray(x) * 10, state.params)
    state = state._replace(target=marked, optimizer=state.optimizer._replace(mu=marked))
    few = shrink.smaller(state, (32, 48))
    for tree in (few.target, few.optimizer.mu):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(few.params), strict=True):
            np.testing.assert_allclose(a, 10 * b, rtol=1e-6)


def test_networks_of_other_layers_are_refused():
    made, _ = parts("pqn", "CartPole-v1")
    with pytest.raises(ValueError, match="only those can be pruned"):
        shrink.smaller(made.agent.init(rng.key(0), made.hyper), (32, 48))


def test_what_is_left_is_distilled_from_what_was_there():
    """Of actor and critic; the observations are far from the unit scale, and normalised."""
    made, of = parts("impala", "Pendulum-v1", normalize_obs=True)
    state = made.agent.init(rng.key(0), made.hyper)
    state = state._replace(
        params=jax.tree.map(lambda x: x + 0.1 * jax.random.normal(rng.key(1), x.shape), state.params)
    )
    obs = 5 + 3 * np.random.default_rng(0).standard_normal((1024, 3), np.float32)
    state = state._replace(obs=state.obs.seen(obs))
    few = shrink.smaller(state, (32, 32))
    narrow = narrowed(made, of, (32, 32))
    after = shrink.reminded(made.agent, state, narrow, few, obs)

    def error(found, name: str) -> float:
        def outputs(agent, state, hidden):
            weights = agent.fold(state, getattr(state.params, name))
            return np.asarray(jax.vmap(network(mlp(hidden, 1), Box((3,))).apply, (None, 0, None))(weights, obs, None))

        wanted = outputs(made.agent, state, (64, 64))
        return float(np.square(outputs(narrow, found, (32, 32)) - wanted).mean() / wanted.var())

    for name in ("actor", "critic"):
        assert error(after, name) < 0.1 * error(few, name)
    assert after.params.log_std is few.params.log_std


STAGES = (0.1, 0.2, 0.3)


def test_units_go_in_stages():
    shares = [shrink.share_at(0.5, STAGES, step, 1000) for step in (0, 99, 100, 200, 300, 999)]
    np.testing.assert_allclose(shares, [1, 1, 0.5 ** (1 / 3), 0.5 ** (2 / 3), 0.5, 0.5])
    assert shrink.widths((1024, 100), 0.5) == (512, 48)
    assert shrink.widths((100, 8), 1.0) == (100, 8)


def test_seeds_of_other_widths_get_units_that_do_nothing():
    layers, obs = mlp((64, 64), 2), Box((3,))
    wide = network(layers, obs).init(rng.key(0))
    thin = network(mlp((32, 48), 2), obs).init(rng.key(1))
    found, (first, second) = shrink.of_one_shape(layers, [jax.device_get(w) for w in (wide, thin)])
    assert found == layers
    x = np.random.default_rng(0).standard_normal((8, 3), np.float32)

    def run(layers, weights):
        return np.asarray(jax.vmap(network(layers, obs).apply, (None, 0, None))(weights, x, None))

    np.testing.assert_allclose(run(layers, second), run(mlp((32, 48), 2), thin), rtol=1e-5, atol=1e-6)
    assert all((a.w == b.w).all() for a, b in zip(first, wide, strict=True))
    assert shrink.of_one_shape(layers, [thin])[0] == mlp((32, 48), 2)


WORDS = {
    "steps": 1600, "runtime": "actors", "prune": 0.5, "prune_at": STAGES,
    "hyper": {"hidden": "64,64", "num_envs": 2, "n_steps": 8},
}  # fmt: skip


def widths(out) -> list[tuple[int, ...]]:
    return [w.w.shape for w in policy.load(out).weights[0]]


def test_a_run_ends_with_the_smaller_network_and_goes_on_from_any_stage(tmp_path, monkeypatch):
    out, looked = tmp_path / "run", []
    asked = training.Stop.asked
    # stopped after the first stage, at 160 of 1600 steps
    monkeypatch.setattr(training.Stop, "asked", lambda self: looked.append(1) or (2 if len(looked) == 25 else None))
    with pytest.raises(errors.Stopped) as stopped:
        training.train("impala", "fake_env:Walk-v0", **WORDS, out=out)
    assert 160 <= stopped.value.step < 320
    assert widths(out) == [(3, 48), (48, 48), (48, 2)]
    monkeypatch.setattr(training.Stop, "asked", asked)
    training.resume(out)
    assert widths(out) == [(3, 32), (32, 32), (32, 2)]
    assert receipt(out)["finished"]
    weights = policy.load(out).weights[0]
    assert all(isinstance(w, Linear) and np.isfinite(w.w).all() for w in weights)


@pytest.mark.long
def test_a_run_that_ends_with_its_first_message_can_go_on(tmp_path):
    """All stages are passed at once, and the checkpoint holds what its step says."""
    out = tmp_path / "run"
    training.train("impala", "fake_env:Walk-v0", **(WORDS | {"steps": 8}), out=out)
    assert widths(out) == [(3, 32), (32, 32), (32, 2)]
    training.resume(out, steps=64)
    assert receipt(out)["steps"] == 64
    assert widths(out) == [(3, 32), (32, 32), (32, 2)]


@pytest.mark.long
def test_a_student_of_a_pruned_learner_is_half_of_what_is_left(tmp_path):
    out = tmp_path / "run"
    words = WORDS | {"hyper": WORDS["hyper"] | {"hidden": "128,128"}}
    training.train("impala", "fake_env:Walk-v0", **words, actors="half", out=out)
    assert widths(out)[1] == (64, 64)
    assert policy.load(out, "half").weights[0][1].w.shape == (32, 32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ppo", "CartPole-v1", "--prune", "1.5"], "--prune must be between 0 and 1"),
        (["ppo", "CartPole-v1", "--prune", "0.5", "--prune-at", "0.1", "1"], "--prune-at must be shares"),
        (["ppo", "CartPole-v1", "--prune-at", "0.2"], "--prune-at needs --prune"),
        (["ppo", "CartPole-v1", "--prune", "0.5", "--runtime", "compiled"], "--prune needs actor processes"),
        (["a3c", "CartPole-v1", "--prune", "0.5"], "--prune is not for a3c"),
        (["pqn", "CartPole-v1", "--prune", "0.5"], "--prune is for networks of dense layers"),
    ],
)
def test_a_learner_that_cannot_be_pruned_is_refused(words, said, capsys):
    assert cli.main(["train", *words]) == 2
    assert said in capsys.readouterr().err
