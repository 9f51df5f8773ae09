"""Quantisation-aware training: the network that learns sees the weights that will act."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...types import Agent, Compressor
from .quantise import through

DELAY = 0.5  # of all updates: what QuaRL's authors advise (README of their code, `--quant-delay`)


def quantisation_aware(agent: Agent, compressor: Compressor, delay: Any) -> Agent:
    """The agent whose actor's weights go through `compressor` and back wherever they are used, but for the update.

    As in QuaRL (Krishnan et al. 2022, arXiv 1910.01055, section 3): from `delay` updates on values and
    gradients are those of rounded weights, and the gradients move the full ones (Bengio et al. 2013, arXiv 1308.3432:
    the straight-through estimate). So is the policy, which acts, is evaluated and kept. `quantise.int8()` trains for
    int8 actors, `quantise.rounded(bits)` is the rule of the paper's sweeps. `delay` may be traced, so that it is no
    reason to compile again.

    Weights are rounded as actors have them, with normalised observations folded into the first layer. Left out:
    activations are not rounded, nor target networks, nor critics, which nobody compresses; a network that actor and
    critic share is the actor's. It goes around the agent itself: other levers that change its state come after it.
    """

    def seen(state: Any) -> Any:
        """The state, with the weights that the network sees."""
        beside = hasattr(state.params, "actor")  # a critic
        full = state.params.actor if beside else state.params
        small = agent.unfold(state, through(compressor, agent.fold(state, full)))
        now = jax.tree.map(lambda q, w: w if q is w else jnp.where(state.version >= delay, q, w), small, full)
        return state._replace(params=state.params._replace(actor=now) if beside else now)

    return agent._replace(
        policy=lambda state: agent.policy(seen(state)),
        grad=lambda state, batch, key: agent.grad(seen(state), batch, key),
        prepare=lambda state, rollout: agent.prepare(seen(state), rollout),
    )


def acts_as_learned(agent: Agent, hyper: Any) -> bool:
    """Whether the weights that act are those that are learned. Where they are made of them, by noise or by a mean over
    quantiles, rounding the learned ones does not round those that act.
    """
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), hyper))
    learned = getattr(state.params, "actor", state.params)
    return jax.eval_shape(lambda state: agent.policy(state).params, state) == learned
