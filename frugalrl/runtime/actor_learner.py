"""Actor-learners: each computes gradients of its own rollouts, at the weights that acted, for parameters that all share
(Mnih et al. 2016, arXiv 1602.01783, section 4).

`learning` is what such a process does beside acting, in the `actors` runtime; `in_rotation` is the same in one program,
deterministic, for the `compiled` runtime. In both the gradients are applied whole and one after the other, in the order
of a parameter server, where the paper's threads write without locks and may tear each other's updates. There is one set
of the optimiser's statistics, kept with the shared parameters (the paper's "Shared RMSProp").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import rng
from ..types import Agent, Batch, Info, Memory, Policy, Transition


class Parts(NamedTuple):
    """What gradients are computed with."""

    agent: Agent
    memory: Memory  # of one stream, dealing in rollouts
    hyper: Any  # gives the state its shapes
    compiler: Mapping[str, Any] = {}  # options of


class Learning(NamedTuple):
    """What an actor-learner does beside acting, on NumPy arrays; `shared` are the leaves of a `light` state."""

    knobs: Callable[[list], dict]  # shared -> knobs of its policy
    gradient: Callable[[list, Transition, Any], list]  # (shared, items, uint32 seed) -> leaves of (gradient, metrics)


def light(state: Any) -> Any:
    """A state without what only `apply` reads: of the optimiser only its numbers are left, the scale of a loss say."""
    return state._replace(optimizer=jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else (), state.optimizer))


def gradient(agent: Agent, memory: Memory, state: Any, items: Transition, key) -> tuple[Any, dict]:
    """(gradient, metrics) of one rollout [time, lanes, ...], with all of `state` as it acted."""
    kept = memory.add(memory.init(), items)
    kept, draw = memory.deal(kept, key, partial(agent.prepare, state))
    key_sample, key_update = jax.random.split(key)
    grads, info = agent.grad(state, draw(kept, key_sample, 0), key_update)
    return grads, info.metrics


def shapes(agent: Agent, memory: Memory, state: Any, items: Transition) -> tuple[Any, dict]:
    """The shapes of what `gradient` gives, in the Learner's process, which has the whole `state`."""

    def one(state: Any, items: Transition) -> tuple[Any, dict]:
        return gradient(agent, memory, agent.own(light(state), 0), items, rng.key(0))

    return jax.eval_shape(one, state, items)


def learning(parts: Parts, number: int, items: Transition) -> Learning:
    """Compile what actor-learner `number` does with rollouts shaped as `items`."""
    agent = parts.agent
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda h: light(agent.init(rng.key(0), h)), parts.hyper))

    def own(shared: list) -> Any:
        return agent.own(jax.tree.unflatten(tree, shared), number)

    def knobs(shared: list) -> dict:
        return agent.policy(own(shared)).knobs

    def compute(shared: list, items: Transition, seed) -> list:
        return jax.tree.leaves(gradient(agent, parts.memory, own(shared), items, rng.key(seed)))

    jit = partial(jax.jit, compiler_options={"xla_cpu_multi_thread_eigen": False, **parts.compiler})
    arguments = leaves, jax.tree.map(np.asarray, items), jnp.uint32(0)
    compiled = jit(compute, keep_unused=True).lower(*arguments).compile()
    named = jit(knobs, keep_unused=True).lower(leaves).compile()
    return Learning(lambda x: jax.device_get(named(x)), lambda *x: jax.device_get(compiled(*x)))


class Rotation(NamedTuple):
    """The state of `in_rotation`."""

    newest: Any  # the agent's, with the shared parameters; it counts the updates of all
    copies: Any  # [workers, ...]: what each actor-learner acts and learns with, a `light` state

    @property
    def turn(self) -> Any:
        """Whose turn it is, int32."""
        return self.newest.version % jax.tree.leaves(self.copies)[0].shape[0]

    @property
    def now(self) -> Any:
        """The copy of the actor-learner whose turn it is."""
        return jax.tree.map(lambda x: x[self.turn], self.copies)

    @property
    def version(self) -> Any:
        """Updates that the policy has seen which acts now."""
        return self.now.version


def in_rotation(agent: Agent, workers: int) -> Agent:
    """`workers` actor-learners that take turns, an iteration each: asynchrony that is the same in every run.

    Who has its turn acts, in the environments that all share, and learns with the copy it took at the end of its last
    turn; its gradient is applied to the newest parameters. So from the second round on every gradient is `workers` - 1
    updates old, and one worker alone is the agent itself.
    """

    def init(key, hyper) -> Rotation:
        state = agent.init(key, hyper)
        return Rotation(state, jax.vmap(agent.own, (None, 0))(light(state), jnp.arange(workers, dtype=jnp.int32)))

    def taken(newest: Any, copies: Any) -> Rotation:
        """The one whose turn has ended takes the newest parameters."""
        last = (newest.version - 1) % workers
        fresh = agent.own(light(newest), last)
        return Rotation(newest, jax.tree.map(lambda x, y: x.at[last].set(y), copies, fresh))

    def policy(state: Rotation) -> Policy:
        return agent.policy(state.now)

    def grad(state: Rotation, batch: Batch, key) -> tuple[Any, Info]:
        now = state.now
        grads, info = agent.grad(now, batch, key)
        staleness = (state.newest.version - now.version).astype(jnp.float32)
        return grads, info._replace(metrics=info.metrics | {"staleness": staleness})

    def apply(state: Rotation, grads: Any) -> Rotation:
        return taken(agent.apply(state.newest, grads), state.copies)

    def observe(state: Rotation, rollout: Transition, stream: Any) -> Rotation:
        return taken(agent.observe(state.newest, rollout, stream), state.copies)

    def prepare(state: Rotation, rollout: Transition) -> Any:
        return agent.prepare(state.now, rollout)

    def graft(state: Rotation, donor: Rotation) -> Rotation:
        return donor  # what acts are copies of all that is learned

    return agent._replace(
        init=init, policy=policy, grad=grad, apply=apply, observe=observe, prepare=prepare, graft=graft
    )
