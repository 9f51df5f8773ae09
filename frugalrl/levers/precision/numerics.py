"""A Precision as the `Numerics` that an agent takes, and what goes around the agent and its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...agents.descent import PLAIN, Numerics, directly, follow, shrunk
from ...distributions import normal, squashed_normal, tanh_normal
from ...types import Agent, Batch, Memory, Transition
from . import log_probs, scaling
from .hadam import laid_down, of_squares, taken_up
from .modes import REPAIRS, Precision
from .rounding import dithered, like, narrow, split, value_of, whole, wide
from .scaling import Guard, Scaled


class Guarded(NamedTuple):
    """The state of an optimiser, and what is known of the gradients that it gets."""

    inner: Any
    guard: Guard


def numerics(precision: Precision) -> Numerics:
    """How a learner of that precision keeps weights, takes gradients, steps and follows.

    What is kept between updates, what networks compute with, and what flows back through them has 16 bits; losses,
    returns and targets, and the registers of a step, are float32. Updates that are not finite are counted, and left out
    if the precision `skips` them. Log-probabilities are rounded in float16 alone, whose range they may leave.
    """
    if precision == Precision():
        return PLAIN
    dtype, scaled = jnp.dtype(precision.dtype), precision.compound_scaling

    def kept(tree: Any, compensated: bool) -> Any:
        """As it is kept from now on: `like` goes on with it."""
        if precision.masters:
            return tree
        if precision.stochastic:
            return dithered(wide(tree), dtype)
        return split(wide(tree), dtype) if compensated else narrow(wide(tree), dtype)

    def weights(found: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(dtype), value_of(found))

    def init(tx: optax.GradientTransformation, found: Any) -> Guarded:
        state, full = tx.init(whole(found)), not precision.masters
        if full and isinstance(state, optax.ScaleByRStdDevState):
            raise ValueError(
                "centred RMSProp takes differences of numbers that 16 bits cannot tell apart: use optimizer=adam, or "
                "--precision bf16"
            )

        def one(path: tuple, x: jax.Array) -> Any:
            if not full or not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return kept(x, precision.kahan_squares) if of_squares(path) else narrow(x, dtype)

        return Guarded(
            jax.tree_util.tree_map_with_path(one, state), scaling.guard(scaling.START if scaled else 1.0)
        )  # fmt: skip

    def gradient(objective, params: Any, moments: Guarded, how=directly) -> tuple[tuple[Any, Any], Any]:
        both, scale = scaling.value_and_grad(objective), moments.guard.scale
        found, grads = how(lambda params, *rest: both(params, scale, *rest), params)
        return found, Scaled(grads, scale)

    def descend(tx, found: Any, moments: Guarded, grads: Scaled, learning_rate, most=None) -> tuple[Any, Guarded]:
        ok, params, guard = scaling.fits(grads.value, dtype), whole(found), moments.guard
        slopes = jax.tree.map(lambda g: g / grads.scale, wide(grads.value))
        if most is not None:
            slopes = shrunk(slopes, most)
        before = taken_up(moments.inner, guard.scale, precision.hadam)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            if precision.supervised:
                direction, after = tx.update(narrow(slopes, dtype), moments.inner, value_of(found))
                direction, after = wide(direction), taken_up(after, root=False)
            else:
                direction, after = tx.update(slopes, before, params)
        moved = like(found, jax.tree.map(lambda p, d: p - learning_rate * d, params, direction))
        if precision.skips:
            moved, after = jax.tree.map(lambda new, old: jnp.where(ok, new, old), (moved, after), (found, before))
        if scaled:
            roomy = scaling.fits(laid_down(after, 2 * guard.scale, precision.hadam), dtype)
            guard = scaling.followed(guard, ok, roomy)
        else:
            guard = scaling.counted(guard, ok)
        return moved, Guarded(like(moments.inner, laid_down(after, guard.scale, precision.hadam)), guard)

    def towards(target: Any, found: Any, tau) -> Any:
        return like(target, follow(whole(target), whole(found), tau))

    rounds = precision.dtype == "float16"
    fixes = precision.normal_fix, precision.softplus_fix
    return Numerics(
        store=lambda params: kept(params, precision.kahan_gradients),
        target=lambda found: kept(whole(found), precision.kahan_momentum),
        weights=weights,
        full=lambda found: wide(value_of(found)),
        init=init,
        gradient=gradient,
        descend=descend,
        follow=towards,
        draw=log_probs.sampler(dtype, *fixes) if rounds else PLAIN.draw,
        log_prob=log_probs.density(dtype, *fixes) if rounds else PLAIN.log_prob,
    )


def repairs(agent: Agent, hyper: Any) -> tuple[str, ...]:
    """Those that change something in what `agent`, assembled with any `numerics`, learns with. Raises ValueError for
    an optimiser that these numerics do not have.
    """
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0), hyper))
    there = {
        "kahan_momentum": bool(jax.tree.leaves(getattr(state, "target", ()))),
        "normal_fix": agent.head in (normal, tanh_normal, squashed_normal),
        "softplus_fix": agent.head in (tanh_normal, squashed_normal),
    }
    return tuple(name for name in REPAIRS if there.get(name, True))


def guards(state: Any) -> list[Guard]:
    """Those in the state of an agent, or of several seeds."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Guard))
    return [x for x in found if isinstance(x, Guard)]


class Counts(NamedTuple):
    """What the guards of a learner have found, [seeds] each, or of one seed."""

    not_finite: Any  # updates of all networks together, skipped or not
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
        bad = ~scaling.fits(scaling.unscaled(grads), precision.dtype)
        scale = jnp.min(jnp.stack([x.scale for x in guards(state)]))
        told = {precision.counted: bad.astype(jnp.float32), "loss_scale": scale}
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
