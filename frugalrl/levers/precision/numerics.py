"""A Precision as the `Numerics` that an agent takes, and what goes around the agent and its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...agents.descent import PLAIN, Numerics, follow, shrunk
from ...types import Agent, Batch, Memory, Transition
from . import scaling
from .hadam import Moments, hadam, rescaled
from .log_probs import sampler
from .modes import Precision
from .rounding import Split, narrow, split, whole, wide
from .scaling import Guard


class Guarded(NamedTuple):
    """The state of an optimiser, and what is known of the gradients that it gets."""

    inner: Any
    guard: Guard


def numerics(precision: Precision) -> Numerics:
    """How a learner of that precision keeps weights, takes gradients, steps and follows.

    What is kept between updates, what networks compute with, and what flows back through them has 16 bits; losses,
    returns and targets, and the registers of a step, are float32. Without `compound_scaling` gradients are only counted
    where they are not finite, and applied all the same, as supervised learning would do it.
    """
    if precision == Precision():
        return PLAIN
    dtype, scaled = jnp.dtype(precision.dtype), precision.compound_scaling

    def kept(params: Any, compensated: bool) -> Any:
        if precision.masters:
            return params
        return split(params, dtype) if compensated else narrow(params, dtype)

    def weights(found: Any) -> Any:
        found = found.value if isinstance(found, Split) else found
        return jax.tree.map(lambda x: x.astype(dtype), found)

    def adam(eps: float = 1e-8) -> optax.GradientTransformation:
        return hadam(eps=eps * (scaling.START if scaled else 1.0), root=precision.hadam)

    def init(tx: optax.GradientTransformation, found: Any) -> Guarded:
        start = scaling.guard(scaling.START if scaled else 1.0)
        return Guarded(tx.init(found if precision.masters else weights(found)), start)

    def gradient(objective, params: Any, moments: Guarded) -> tuple[tuple[Any, Any], Any]:
        return scaling.value_and_grad(objective)(params, moments.guard.scale)

    def descend(tx, found: Any, moments: Guarded, grads: Any, learning_rate, most=None) -> tuple[Any, Guarded]:
        ok, grads = scaling.fits(grads, dtype), wide(grads)
        if most is not None:
            grads = shrunk(grads, most * moments.guard.scale)
        direction, inner = tx.update(grads, moments.inner, whole(found))
        moved = jax.tree.map(lambda p, d: p - learning_rate * d, whole(found), direction)
        moved = kept(moved, precision.kahan_gradients)
        if not scaled:
            return moved, Guarded(inner, scaling.counted(moments.guard, ok))
        moved, inner = jax.tree.map(lambda new, old: jnp.where(ok, new, old), (moved, inner), (found, moments.inner))
        assert isinstance(inner, Moments)
        roomy = scaling.fits((inner.m, inner.w), dtype, 2.0 if precision.hadam else 4.0)
        guard, factor = scaling.followed(moments.guard, ok, roomy)
        return moved, Guarded(rescaled(inner, factor, precision.hadam), guard)

    def towards(target: Any, found: Any, tau) -> Any:
        return kept(follow(whole(target), whole(found), tau), precision.kahan_momentum)

    return Numerics(
        adam=adam,
        store=lambda params: kept(params, precision.kahan_gradients),
        target=lambda found: kept(whole(found), precision.kahan_momentum),
        weights=weights,
        full=lambda found: wide(found.value if isinstance(found, Split) else found),
        init=init,
        gradient=gradient,
        descend=descend,
        follow=towards,
        draw=PLAIN.draw if precision.masters else sampler(dtype, precision.normal_fix, precision.softplus_fix),
    )


def guards(state: Any) -> list[Guard]:
    """Those in the state of an agent, or of several seeds."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Guard))
    return [x for x in found if isinstance(x, Guard)]


class Counts(NamedTuple):
    """What the guards of a learner have found, [seeds] each, or of one seed."""

    skipped_updates: Any  # of each network together; without compound scaling they were applied all the same
    loss_scale: Any  # the least


def counts(state: Any) -> Counts:
    """Of the state of an agent that was assembled with `numerics` of less than float32, as NumPy arrays."""
    found = jax.device_get(guards(state))
    return Counts(np.sum([x.skipped for x in found], 0), np.min([x.scale for x in found], 0))


def watched(agent: Agent, precision: Precision) -> Agent:
    """The agent, assembled with the `numerics` of `precision`, whose metrics tell how many of its gradients do not fit,
    and the least scale of its losses.
    """

    def grad(state: Any, batch: Batch, key):
        grads, info = agent.grad(state, batch, key)
        bad = ~scaling.fits(grads, precision.dtype)
        scale = jnp.min(jnp.stack([x.scale for x in guards(state)]))
        told = {"skipped_updates": bad.astype(jnp.float32), "loss_scale": scale}
        return grads, info._replace(metrics=info.metrics | told)

    return agent._replace(grad=grad)


def stored(build: Callable[[Transition], Memory], example: Transition, precision: Precision) -> Memory:
    """The memory that `build` makes of an example, with observations and actions that are floats kept in `dtype`.

    What goes in and comes out is float32. Numbers beyond the range of `dtype` are kept as its largest; pixels, rewards
    and log-probabilities as they are.
    """
    if precision == Precision():
        return build(example)
    dtype = jnp.dtype(precision.dtype)
    kind = jnp.finfo(dtype)

    def changed(items: Transition, one: Any) -> Transition:
        fields = {name: getattr(items, name) for name in ("obs", "next_obs", "action")}
        floats = {name: one(x) for name, x in fields.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        return items._replace(**floats)

    def lower(items: Transition) -> Transition:
        return changed(items, lambda x: jnp.clip(x, float(kind.min), float(kind.max)).astype(dtype))

    def back(items: Transition) -> Transition:
        return changed(items, lambda x: x.astype(jnp.float32))

    memory = build(lower(example))

    def deal(kept: Any, key: Any, prepare: Any) -> tuple[Any, Any]:
        kept, draw = memory.deal(kept, key, lambda rollout: prepare(back(rollout)))

        def drawn(kept: Any, key: Any, number: Any) -> Batch:
            batch = draw(kept, key, number)
            return batch._replace(data=back(batch.data))

        return kept, drawn

    return memory._replace(add=lambda kept, items, *stream: memory.add(kept, lower(items), *stream), deal=deal)
