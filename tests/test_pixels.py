"""SAC from pixels: what teaches the encoder, how pictures are shifted and kept, and dm_control's tasks as pictures."""

from __future__ import annotations

from ctypes.util import find_library
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import receipt
from small import TORQUE, bits, compiled

import frugalrl
from frugalrl import catalog, jobs
from frugalrl.agents import sac
from frugalrl.agents.pictures import Sighted, apart, convolutional, shifted
from frugalrl.config import configure
from frugalrl.distributions import tanh_normal
from frugalrl.envs import dm_control
from frugalrl.envs.make import make, options_for
from frugalrl.errors import UsageError
from frugalrl.levers.compress import engines
from frugalrl.levers.precision.modes import PRECISIONS
from frugalrl.levers.precision.numerics import counts, numerics
from frugalrl.levers.precision.rounding import value_of
from frugalrl.policy import Card, load
from frugalrl.types import Agent, Batch, Box, Transition, update

KEY = jax.random.key(0)
PICTURES, SIZE = Box((16, 17, 3), "uint8", 0.0, 255.0), 12
STATIC = sac.Static(hidden=(8,), batch_size=SIZE, encoder_filters=4, encoder_features=5)
HYPER = sac.Hyper(learning_rate=1e-2, tau=0.5, ent_coef=0.1)


@cache
def small(precision: str = "fp32", **static: Any) -> Agent:
    return compiled(sac.assemble(STATIC._replace(**static), PICTURES, TORQUE, numerics(PRECISIONS[precision])))


def batch(terminated: bool = False) -> Batch:
    """Pictures of noise."""
    r, shape = np.random.default_rng(0), (SIZE, 1)
    obs, next_obs = r.integers(0, 256, (2, *shape, *PICTURES.shape), np.uint8)
    action = r.uniform(-2, 1, (*shape, 1)).astype(np.float32)
    reward, zero = r.standard_normal(shape, np.float32), np.zeros(shape, np.float32)
    flags = np.full(shape, terminated), np.zeros(shape, bool)
    data = Transition(obs, action, reward, *flags, next_obs, zero, zero.astype(np.int32))
    made = Batch(data, np.ones(SIZE, np.float32), np.arange(SIZE, dtype=np.int32))
    return jax.tree.map(jnp.asarray, made)


def test_the_actors_loss_teaches_the_encoder_nothing():
    """Without a future the critics' loss does not depend on the actor, and so the encoder's gradient must not."""
    agent = small()
    state, given = agent.init(KEY, HYPER), batch(terminated=True)
    other = state._replace(params=state.params._replace(actor=jax.tree.map(lambda x: x + 0.3, state.params.actor)))
    (mine, _), (theirs, _) = (agent.grad(each, given, KEY) for each in (state, other))
    assert isinstance(mine.critic, Sighted)
    assert bits(mine.critic) == bits(theirs.critic)
    assert bits(mine.actor) != bits(theirs.actor)
    assert all(jnp.abs(layer.w).max() > 0 for layer in mine.critic.encoder)


@pytest.mark.parametrize("precision", ["fp32", "fp16", *(pytest.param(m, marks=pytest.mark.long) for m in PRECISIONS)])
def test_every_part_moves_in_every_precision_and_the_policy_is_one_network(precision):
    """Also as an engine runs it; and each update shifts the pictures in its own way."""
    agent, given = small(precision), batch()
    state = agent.init(KEY, HYPER)
    after = state
    for i in range(3):
        after, _ = update(agent, after, given, jax.random.fold_in(KEY, i))
    for old, new in zip(*(jax.tree.leaves(value_of(x.params)) for x in (state, after)), strict=True):
        assert jnp.isfinite(new).all()
        assert (old != new).any()
    target = [jax.tree.leaves(value_of(apart(x.target).encoder)) for x in (state, after)]
    assert all((old != new).any() for old, new in zip(*target, strict=True))
    if precision != "fp32":
        assert counts(after).not_finite == 0
    policy, obs = agent.policy(after), np.asarray(given.data.obs[:, 0])
    assert agent.network.layers is not None
    session = engines.engine("numpy").build(agent.network.layers, PICTURES, SIZE, "fp32")
    session.load(jax.device_get(policy.params))
    ours = jax.vmap(lambda x: agent.dist(policy, x, None).mode())(given.data.obs[:, 0])
    np.testing.assert_allclose(tanh_normal(session.run(obs), jax.device_get(policy.knobs)).mode(), ours, atol=1e-4)


def test_gradients_in_parts_are_those_of_the_whole(monkeypatch):
    """Pictures are seen a few at a time on a CPU."""
    whole, given = small(), batch()
    monkeypatch.setattr("frugalrl.agents.pictures.at_once", lambda net: 5)
    parts = compiled(sac.assemble(STATIC, PICTURES, TORQUE))
    state = whole.init(KEY, HYPER)
    for one, other in zip(*(jax.tree.leaves(agent.grad(state, given, KEY)) for agent in (whole, parts)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_shift_is_a_crop_of_the_padded_picture_and_each_sample_has_its_own():
    most = 2
    picture = np.arange(5 * 6 * 2, dtype=np.uint8).reshape(5, 6, 2)
    padded = np.pad(picture, [(most, most), (most, most), (0, 0)], mode="edge")
    crops = {padded[i : i + 5, j : j + 6].tobytes() for i in range(2 * most + 1) for j in range(2 * most + 1)}
    found = [np.asarray(x) for x in jax.vmap(lambda key: shifted(picture, key, most))(jax.random.split(KEY, 500))]
    assert found[0].dtype == np.uint8
    assert {x.tobytes() for x in found} == crops  # all of them, and nothing else
    np.testing.assert_array_equal(shifted(jnp.asarray(picture), KEY, 0), picture)
    given = np.asarray(batch().data.obs[:1, 0]).repeat(50, 0)
    moved = np.asarray(convolutional(PICTURES, 4, most).augmented(jnp.asarray(given), KEY))
    assert len({x.tobytes() for x in moved}) > 15


def test_replay_keeps_bytes_and_each_frame_once():
    env, steps = "dm_control_pixels/cheetah-run-v0", 10_000
    card = Card("sac", env, Box((84, 84, 9), "uint8", 0.0, 255.0), TORQUE, (), "", {})
    recipe = catalog.recipe("sac")
    static = recipe.static._replace(buffer_size=steps)
    for precision in ("fp32", "fp16"):
        memory = jobs.memory_of(recipe, static, card, recipe.cadence(static), precision, lanes=1, unroll=16, streams=2)
        kept = jax.eval_shape(memory.init)
        assert kept.frames.dtype == jnp.uint8
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
        assert steps * 84 * 84 * 3 < size < 1.05 * steps * 84 * 84 * 3


# environments


def test_the_planet_tasks_are_seen_as_pictures():
    assert set(dm_control.REPEATED) == set(catalog.PLANET)
    assert options_for("dm_control_pixels/finger-spin-v0").frame_stack == 3
    assert catalog.able(Box((84, 84, 9), "uint8"), TORQUE) == ["ppo", "a2c", "impala", "a3c", "ptr-ppo", "sac"]


def test_an_action_is_repeated_and_the_time_limit_truncates(monkeypatch):
    monkeypatch.setattr(
        dm_control.DmControl, "_drawn", lambda self, height, width: np.zeros((height, width, 3), np.uint8)
    )
    seen, plain = make("dm_control_pixels/cartpole-swingup-v0"), make("dm_control/cartpole-swingup-v0")
    for env in (seen, plain):
        env.reset(seed=1)
    for t in range(1, 126):  # 1000 / 8
        action = seen.action_space.sample()
        obs, reward, terminated, truncated, _ = seen.step(action)
        assert obs.shape == (84, 84, 9)
        assert reward == pytest.approx(sum(float(plain.step(action)[1]) for _ in range(8)), rel=1e-12)
        assert (terminated, truncated) == (False, t == 125)


def test_without_anything_that_draws_one_line_says_what_to_install(monkeypatch):
    def broken(self, height, width):
        raise RuntimeError("no OpenGL\nat all")

    monkeypatch.setattr(dm_control.DmControl, "_drawn", broken)
    with pytest.raises(UsageError, match=r"draw them \(RuntimeError: no OpenGL.*apt install libegl1") as error:
        configure("sac", "dm_control_pixels/walker-walk-v0")
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="action_repeat from 1"):
        configure("sac", "dm_control_pixels/walker-walk-v0", env_options={"kwargs.action_repeat": 0})


@pytest.mark.skipif(not find_library("EGL"), reason="needs a system library, EGL: apt install libegl1")
def test_a_step_brings_one_new_frame_of_the_task():
    env = make("dm_control_pixels/cheetah-run-v0")
    first, _ = env.reset(seed=3)
    assert (first.shape, first.dtype) == ((84, 84, 9), np.uint8)
    np.testing.assert_array_equal(first[..., :3], first[..., 6:])
    obs, *_ = env.step(np.ones(6, np.float32))
    np.testing.assert_array_equal(obs[..., :6], first[..., 3:])
    assert (obs[..., 6:] != first[..., 6:]).any()
    assert obs.std() > 10
    env.close()


# whole runs


@pytest.mark.long
@pytest.mark.parametrize(("precision", "actors"), [("fp32", "fp32"), ("fp16", "fp32"), ("bf16", "half+int8")])
def test_it_learns_from_pixels(precision, actors, tmp_path):
    """To tell where a light is: an action at random is worth 0.2 a step, the middle 0.6."""
    hyper = {"hidden": (32,), "batch_size": 32, "encoder_filters": 8, "encoder_features": 16, "random_shift": 0}
    hyper |= {"learning_rate": 1e-3, "gamma": 0.1, "ent_coef": 0.1, "learning_starts": 200}
    frugalrl.train(
        "sac", "fake_env:Spot-v0", steps=2_000, precision=precision, actors=actors, hyper=hyper,
        env_options={"frame_stack": 2}, out=tmp_path / "run",
    )  # fmt: skip
    assert receipt(tmp_path / "run")["returns"]["per_seed"][0] > 8
    kept = load(tmp_path / "run")
    dark = np.zeros((1, 16, 16, 6), np.uint8)
    left, right = dark.copy(), dark.copy()
    left[:, 4:12, 1], right[:, 4:12, 14] = 255, 255
    assert kept.predict(left)[0, 0] < -0.3 < 0.3 < kept.predict(right)[0, 0]
