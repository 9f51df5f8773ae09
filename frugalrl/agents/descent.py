"""Steps down a gradient, and the target weights that follow them: the end of every agent's `apply`.

`Numerics` is what of this, and of what leads to it, depends on the precision of the learner.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import optax

from ..distributions import Dist, TanhNormal


def value_and_grad(objective: Callable) -> Callable:
    """`jax.value_and_grad(objective, has_aux=True)`, the gradients of matrices in the order that they are kept in."""
    return untransposed(jax.value_and_grad(objective, has_aux=True))


def untransposed(function: Callable) -> Callable:
    """`function` of arrays, computed with b @ a in place of every transpose(a @ b).

    JAX has the gradient of a matrix as a transposed product. XLA, above all if the program is mapped over seeds, would
    move the transposition into each of the optimiser's passes, which then read memory against its order: a third of an
    update of wide layers on a CPU (`benchmarks/update_cost.py`).
    """

    def run(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        flat = jax.extend.core.jaxpr_as_fun(_turned(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return run


def _turned(closed):
    """A ClosedJaxpr without transpositions of products that have no other use; also in what it calls."""
    jaxpr = closed.jaxpr
    atoms = [x for eqn in jaxpr.eqns for x in eqn.invars] + jaxpr.outvars
    uses = Counter(id(x) for x in atoms)
    products, eqns = {}, []
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            products[id(eqn.outvars[0])] = eqn
        elif name == "transpose" and uses[source := id(eqn.invars[0])] == 1 and source in products:
            eqn = _swapped(products[source], eqn)
        elif name in ("jit", "pjit"):
            eqn = eqn.replace(params=eqn.params | {"jaxpr": _turned(eqn.params["jaxpr"])})
        eqns.append(eqn)
    return closed.replace(jaxpr=jaxpr.replace(eqns=eqns))


def _swapped(product, transpose):
    """The transposition of a product as a product, if it is one; else as it was."""
    (left, right), (left_batch, right_batch) = product.params["dimension_numbers"]
    batch, dims = len(left_batch), len(transpose.params["permutation"])
    middle = product.invars[0].aval.ndim - len(left)  # the dimensions of b begin here
    if tuple(transpose.params["permutation"]) != (*range(batch), *range(middle, dims), *range(batch, middle)):
        return transpose
    params = product.params | {"dimension_numbers": ((right, left), (right_batch, left_batch))}
    if isinstance(params["precision"], tuple):
        params["precision"] = params["precision"][::-1]
    return product.replace(invars=product.invars[::-1], outvars=transpose.outvars, params=params)


def directly(both: Callable, weights):
    """((value, aux), gradients) by `both`, at once."""
    return both(weights)


def in_parts(data, most: int | None = None) -> Callable:
    """How to take gradients of a sum over samples, `most` of them at a time if that is given.

    The objective, of (weights, some of `data` [samples, ...]), is (their share of the sum, what is to be seen of each
    [samples, ...]).
    """
    samples = jax.tree.leaves(data)[0].shape[0]
    size = next(n for n in range(min(most or samples, samples), 0, -1) if samples % n == 0)

    def summed(both: Callable, weights):
        if size == samples:
            return both(weights, data)

        def add(total, part):
            (value, seen), grads = both(weights, part)
            return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, (value, grads)), seen

        parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), data)
        start = (jnp.float32(0), jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights))
        (value, grads), seen = jax.lax.scan(add, start, parts)
        return (value, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)), grads

    return summed


def shrunk(grads, most):
    """Gradients scaled so that their norm is at most `most` (Pascanu et al. 2013, algorithm 1)."""
    shrink = jnp.minimum(1.0, most / jnp.maximum(optax.tree.norm(grads), 1e-12))
    return jax.tree.map(lambda g: g * shrink, grads)


def descend(tx: optax.GradientTransformation, params, moments, grads, learning_rate) -> tuple[Any, Any]:
    """(params, moments) one step further down."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        direction, moments = tx.update(grads, moments, params)
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction), moments


def by_width(tx: optax.GradientTransformation, base: int) -> optax.GradientTransformation:
    """`tx` with steps in proportion to base / inputs for matrices of more than `base` inputs; 0 changes nothing.

    Yang et al. 2021 (arXiv 2203.03466, table 3, Adam): one learning rate then fits networks of every width, and also
    one that is pruned as it learns. For optimisers whose steps do not depend on the size of gradients.
    """
    if not base:
        return tx

    def share(weights) -> float:
        inputs = math.prod(weights.shape[:-1]) if weights.ndim > 1 else 0
        return base / max(inputs, base)

    def update(updates, state, params=None):
        direction, state = tx.update(updates, state, params)
        return jax.tree.map(lambda d: share(d) * d, direction), state

    return optax.GradientTransformation(tx.init, update)


def follow(target, params, tau):
    """Target weights moved by `tau` of the way, exactly for 0 and 1 (Lillicrap et al. 2015, algorithm 1)."""
    return jax.tree.map(lambda t, p: (1 - tau) * t + tau * p, target, params)


class Numerics(NamedTuple):
    """How a learner keeps its weights, and what it computes with: `PLAIN` is float32 throughout, `levers.precision`
    has others. Between `store` and `weights` an agent treats what is kept as a whole, and so it does gradients.
    """

    store: Callable[[Any], Any]  # float32 weights -> what is kept of them
    target: Callable[[Any], Any]  # what is kept of weights -> what is kept of target weights
    weights: Callable[[Any], Any]  # what is kept of either -> weights of the dtype that networks compute in
    full: Callable[[Any], Any]  # what is kept of weights -> float32 weights, to act with
    init: Callable[[optax.GradientTransformation, Any], Any]  # (tx, kept) -> moments
    # (objective of weights with an aux, weights, moments, `directly` or `in_parts`) -> ((value, aux), gradients)
    gradient: Callable[..., tuple[tuple[Any, Any], Any]]
    # (tx, kept, moments, gradients, learning rate, the most their norm may be or None) -> (kept, moments)
    descend: Callable[..., tuple[Any, Any]]
    follow: Callable[[Any, Any, Any], Any]  # (kept of the target, kept, tau) -> kept of the target
    draw: Callable[[TanhNormal, Any], tuple[Any, Any]]  # (dist, noise) -> (action, log_prob)
    log_prob: Callable[[Dist, Any], Any]  # (dist, action) -> that of the action


def _step(tx: optax.GradientTransformation, params, moments, grads, learning_rate, most=None) -> tuple[Any, Any]:
    return descend(tx, params, moments, grads if most is None else shrunk(grads, most), learning_rate)


PLAIN = Numerics(
    store=lambda params: params,
    target=lambda params: params,
    weights=lambda params: params,
    full=lambda params: params,
    init=lambda tx, params: tx.init(params),
    gradient=lambda objective, weights, moments, how=directly: how(value_and_grad(objective), weights),
    descend=_step,
    follow=follow,
    draw=TanhNormal.sample_and_log_prob,
    log_prob=lambda dist, action: dist.log_prob(action),
)
