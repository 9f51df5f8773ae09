"""A program is traced once for all hyper-parameters and any number of iterations, and promotes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import HYPER, OBS, small_run

from frugalrl import rng
from frugalrl.agents.dqn import LOSSES, OPTIMIZERS, Static, assemble
from frugalrl.envs.twins import TWINS, twin
from frugalrl.levers.compress.quantise import int8
from frugalrl.levers.compress.simulate import compressed
from frugalrl.levers.correct import corrected, truncated
from frugalrl.memory import uniform
from frugalrl.runtime import compiled
from frugalrl.types import Agent, Discrete, Transition

STATIC = Static(hidden=(16,), batch_size=32)
VALUES = HYPER._replace(**{name: np.float32(value) for name, value in HYPER._asdict().items()})
OTHERS = HYPER._replace(**{name: np.float32(0.37) for name in HYPER._fields})


def counted(agent: Agent) -> tuple[Agent, Counter]:
    """The agent, and how often each of its parts was traced: a compiled program calls no Python."""
    count = Counter()

    def wrap(name: str, function: Callable) -> Callable:
        def call(*arguments):
            count[name] += 1
            return function(*arguments)

        return call

    parts = ("init", "policy", "dist", "grad", "apply")
    return agent._replace(**{name: wrap(name, getattr(agent, name)) for name in parts}), count


def test_other_hyper_parameters_compile_nothing():
    agent, count = counted(assemble(STATIC, OBS, Discrete(2)))
    run = small_run(agent)
    how = {"xla_backend_optimization_level": 0}  # it is the compiler that takes time
    init, advance = (jax.jit(each, compiler_options=how) for each in (run.init, run.advance))
    carry = init(rng.key(0), VALUES)
    advance(carry, jnp.int32(3))
    before = dict(count)
    assert before["init"] == 1
    assert before.keys() == {"init", "policy", "dist", "grad", "apply"}
    for hyper in (OTHERS, VALUES._replace(learning_rate=np.float32(0.5)), VALUES._replace(gamma=np.float32(0))):
        other, _ = advance(init(rng.key(0), hyper), jnp.int32(3))
        assert any((a.w != b.w).any() for a, b in zip(other.state.params, carry.state.params, strict=True))
    assert dict(count) == before
    assert advance._cache_size() == 1


def test_every_hyper_parameter_is_a_leaf_of_the_state():
    """So that each may differ between the members of a population."""
    agent = assemble(STATIC, OBS, Discrete(2))
    for name in HYPER._fields:
        hypers = HYPER._replace(**{name: jnp.array([0.25, 0.75])})
        axes = HYPER._replace(**{k: 0 if k == name else None for k in HYPER._fields})
        state = jax.vmap(agent.init, (None, axes))(rng.key(0), hypers)
        np.testing.assert_array_equal(getattr(state.hyper, name), [0.25, 0.75])


def test_any_number_of_iterations_is_one_program():
    agent, count = counted(assemble(STATIC, OBS, Discrete(2)))
    run = small_run(agent)
    carry = jax.jit(jax.vmap(run.init, (0, None)))(rng.key(0)[None], HYPER)
    programs = compiled.Programs(run, carry)
    programs.prepare(1)
    before = dict(count)
    ticks = compiled.train(programs, compiled.Way(1, 1), carry, [1, 2, 5, 12])
    assert [int(tick.carry().iteration[0]) for tick in ticks] == [1, 2, 5, 12]
    assert dict(count) == before
    assert list(programs.compiled) == [(1, 1)]


def test_the_session_is_strict():
    """What the next test rests on: see conftest.py."""
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.float32(1) + jnp.int32(1)
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


SWITCHES = [
    Static(hidden=(8,), loss=loss, optimizer=optimizer, n_step=n, double=n > 1)
    for loss in LOSSES
    for optimizer in OPTIMIZERS
    for n in (1, 3)
] + [
    Static(hidden=(8,), n_step=3, double=True, dueling=True, noisy=True, atoms=5, prioritized=True),
    Static(hidden=(8,), dueling=True, atoms=4, distribution="implicit", munchausen=True),
]


@pytest.mark.parametrize("env_id", [name for name in TWINS if isinstance(twin(name).actions, Discrete)])
@pytest.mark.parametrize("static", SWITCHES, ids=lambda s: f"{s.loss}-{s.optimizer}-{s.n_step}-{s.atoms}")
def test_a_run_promotes_no_dtype_and_no_rank(static, env_id):
    env = twin(env_id)
    agent = compressed(corrected(assemble(static, env.obs, env.actions), truncated()), int8())
    obs, zero, flag = jnp.zeros(env.obs.shape), jnp.float32(0), jnp.bool_(False)
    example = Transition(obs, jnp.int32(0), zero, flag, flag, obs, zero, jnp.int32(0))
    memory = uniform(example, 200, 16, lanes=2, unroll=2, window=static.n_step)
    run = compiled.run(agent, env, memory, compiled.Plan(2, 2, 1, 3))
    carry = jax.eval_shape(run.init, rng.key(0), HYPER)
    after, metrics = jax.eval_shape(run.advance, carry, jnp.int32(2))
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}
