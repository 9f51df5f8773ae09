"""Students: a smaller network learns to act as the learner's policy does, and actors act with it.

Knowledge distillation as in AcceRL (Zhang et al. 2022, arXiv 2211.15023), which names its parts but not their settings:
those are chosen here. The student starts as the most salient part of its teacher (`prune.py`) and is trained inside of
the learner's own update, on a share of the observations of each batch, so that it follows a teacher that moves
(Parisotto and Salakhutdinov 2021, arXiv 2104.01655, distil beside the learner too). What it does differently from its
teacher is repaired by the Corrector: log-probabilities are those of the student, which acted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ...agents.descent import by_width, descend, untransposed
from ...distributions import clipped_normal, distributional_greedy, epsilon_greedy
from ...networks import network as build_network
from ...types import Agent, Batch, Info, Policy
from .prune import kept, narrowed, sliced

SHARE = 4  # one in so many of a batch's observations is distilled on
LEAST = 32  # observations of an update, if the batch has as many
# See `by_width`. A teacher with a greater rate is followed with that: at six times this one IMPALA, 1024x3, left its
# student behind (KL 2.7 on average, and no return; 0.12 with the teacher's)
LEARNING_RATE, BASE_WIDTH = 1e-3, 64
# heads whose divergence has no useful gradient: the outputs themselves, values, logits of returns or actions before
# tanh, are compared
BY_OUTPUTS = (epsilon_greedy, distributional_greedy, clipped_normal)


class Taught(NamedTuple):
    """An agent's state and its student's."""

    teacher: Any  # the agent's own
    student: Any  # weights
    moments: Any  # of the student's optimiser

    @property
    def version(self) -> Any:
        return self.teacher.version


class Lessons(NamedTuple):
    """Gradients of both."""

    teacher: Any
    student: Any


tx = by_width(optax.scale_by_adam(), BASE_WIDTH)


def enrolled(agent: Agent, share: float, teacher: Any) -> Taught:
    """A state of `taught` whose student is the most salient part of the teacher's policy."""
    layers, obs = agent.network.layers, agent.network.obs
    assert layers is not None
    whole = agent.policy(teacher).params
    student = agent.unfold(teacher, sliced(whole, kept(layers, narrowed(layers, share), obs, whole)))
    student = jax.tree.map(jnp.copy, student)  # what stays whole is the teacher's own array, and both are donated
    return Taught(teacher, student, tx.init(student))


def teacher(state: Any) -> Any:
    """The agent's own state, of one with a student or without."""
    return state.teacher if isinstance(state, Taught) else state


def cut(agent: Agent, share: float) -> Agent:
    """The agent whose actors act with the most salient `share` of the units of its policy's layers, untaught.

    For ablations: what a student does better than this is what distillation is worth.
    """
    layers, obs_space = agent.network.layers, agent.network.obs
    assert layers is not None
    narrow = build_network(narrowed(layers, share), obs_space)

    def policy(state: Any) -> Policy:
        whole = agent.policy(state)
        what = kept(layers, narrow.layers or (), obs_space, whole.params)
        return Policy(sliced(whole.params, what), whole.knobs)

    def dist(policy: Policy, obs, key=None):
        return agent.head(narrow.apply(policy.params, obs, key), policy.knobs)

    return agent._replace(policy=policy, dist=dist, network=narrow)


def taught(agent: Agent, share: float) -> Agent:
    """The agent whose actors act with a student of about `share` of the units of its policy's layers.

    All that is learned of the environment is the teacher's: `grad`, `prepare` and `observe` are the agent's own, at its
    own state. Only `policy`, and with it `network`, are the student's.
    """
    assert agent.network.layers is not None
    obs_space = agent.network.obs
    narrow = build_network(narrowed(agent.network.layers, share), obs_space)

    def init(key, hyper) -> Taught:
        return enrolled(agent, share, agent.init(key, hyper))

    def acting(state: Taught, student: Any) -> Any:
        return agent.fold(state.teacher, student)

    def policy(state: Taught) -> Policy:
        return Policy(acting(state, state.student), agent.policy(state.teacher).knobs)

    def dist(policy: Policy, obs, key=None):
        return agent.head(narrow.apply(policy.params, obs, key), policy.knobs)

    def lesson(state: Taught, batch: Batch) -> tuple[Any, Any]:
        """(mean divergence, gradient of the student) on some observations of a batch."""
        obs = batch.data.obs.reshape(-1, *obs_space.shape)
        count = min(max(obs.shape[0] // SHARE, LEAST), obs.shape[0])
        obs = obs[:: obs.shape[0] // count][:count]
        whole = agent.policy(state.teacher)
        outputs = jax.lax.stop_gradient(jax.vmap(agent.network.apply, (None, 0, None))(whole.params, obs, None))
        by_outputs = agent.head in BY_OUTPUTS
        scale = jnp.mean(jnp.var(outputs, 0)) + 1e-6  # of outputs: a divergence that does not depend on their units

        def divergence(student):
            mine = jax.vmap(narrow.apply, (None, 0, None))(acting(state, student), obs, None)
            if by_outputs:
                return jnp.mean(jnp.square(outputs - mine)) / scale
            return jnp.mean(agent.head(outputs, whole.knobs).kl(agent.head(mine, whole.knobs)))

        return untransposed(jax.value_and_grad(divergence))(state.student)

    def grad(state: Taught, batch: Batch, key) -> tuple[Lessons, Info]:
        grads, info = agent.grad(state.teacher, batch, key)
        loss, student = lesson(state, batch)
        return Lessons(grads, student), info._replace(metrics=info.metrics | {"distillation_loss": loss})

    def apply(state: Taught, grads: Lessons) -> Taught:
        rate = jnp.maximum(LEARNING_RATE, state.teacher.hyper.learning_rate)
        student, moments = descend(tx, state.student, state.moments, grads.student, rate)
        return Taught(agent.apply(state.teacher, grads.teacher), student, moments)

    def observe(state: Taught, rollout, stream) -> Taught:
        return state._replace(teacher=agent.observe(state.teacher, rollout, stream))

    return agent._replace(
        init=init, policy=policy, dist=dist, grad=grad, apply=apply, network=narrow, observe=observe,
        prepare=lambda state, rollout: agent.prepare(state.teacher, rollout),
    )  # fmt: skip
