"""What lies between an objective and a step down its gradient."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frugalrl.agents.descent import untransposed, value_and_grad

KEY = jax.random.key(0)


def network(weights: Any, x: Any) -> Any:
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def weights_of(*sizes: int, members: int = 0) -> list:
    lead = (members,) if members else ()
    shapes = [(*lead, *each) for each in pairwise(sizes)]
    return [jax.random.normal(jax.random.fold_in(KEY, i), shape) for i, shape in enumerate(shapes)]


def of_samples(weights: Any, xs: Any) -> tuple[Any, Any]:
    out = jax.vmap(lambda x: network(weights, x))(xs)
    return jnp.mean(out**2), out


def of_rollouts(weights: Any, xs: Any) -> tuple[Any, Any]:
    out = jax.vmap(jax.vmap(lambda x: network(weights, x)))(xs)
    return jnp.mean(out**2), out


def of_an_ensemble(weights: Any, xs: Any) -> tuple[Any, Any]:
    out = jax.vmap(lambda x: jax.vmap(network, (0, None))(weights, x))(xs)
    return jnp.mean(out**2), out


def in_a_jit(weights: Any, xs: Any) -> tuple[Any, Any]:
    return jax.jit(of_samples)(weights, xs)


CASES = {  # objective, weights, shape of the inputs, transposed products by JAX and that are left
    "samples": (of_samples, weights_of(5, 7, 3), (11, 5), 2, 0),
    "rollouts": (of_rollouts, weights_of(5, 7, 3), (4, 11, 5), 2, 0),
    # two of activations, and the first layer, whose order no product has
    "an ensemble": (of_an_ensemble, weights_of(5, 7, 3, members=2), (11, 5), 4, 3),
    "in a jit": (in_a_jit, weights_of(5, 7, 3), (11, 5), 2, 0),
}


def transposed_products(jaxpr: Any) -> int:
    """How many transpositions of a product there are, wherever."""
    products = {id(eqn.outvars[0]) for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"}
    here = sum(eqn.primitive.name == "transpose" and id(eqn.invars[0]) in products for eqn in jaxpr.eqns)
    return here + sum(transposed_products(e.params["jaxpr"]) for e in jaxpr.eqns if "jaxpr" in e.params)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_jax_without_transpositions(case):
    objective, weights, shape, by_jax, left = CASES[case]
    xs = jax.random.normal(jax.random.key(1), shape)
    plain = jax.value_and_grad(objective, has_aux=True)
    got, wanted = value_and_grad(objective)(weights, xs), plain(weights, xs)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    before, after = (
        transposed_products(jax.make_jaxpr(f)(weights, xs).jaxpr) for f in (plain, value_and_grad(objective))
    )
    assert (before, after) == (by_jax, left)


def test_they_are_those_of_jax_also_of_members():
    """Each with weights and data of its own; data that are not an argument; and in a loop."""
    weights, xs = weights_of(5, 7, 3, members=4), jax.random.normal(KEY, (4, 11, 5))

    def descended(how: Any, weights: Any, xs: Any) -> Any:
        def step(_: int, weights: Any) -> Any:
            _, grads = how(lambda w: of_samples(w, xs))(weights)
            return jax.tree.map(lambda w, g: w - 0.01 * g, weights, grads)

        return jax.lax.fori_loop(0, 3, step, weights)

    def plain(objective: Any) -> Any:
        return jax.value_and_grad(objective, has_aux=True)

    got, wanted = (
        jax.jit(jax.vmap(partial(descended, how)))(weights, xs) for how in (value_and_grad, plain)
    )  # fmt: skip
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_product_that_is_also_used_as_it_is_stays():
    def both(a: Any, b: Any) -> Any:
        product = a @ b
        return product, product.T

    def other(a: Any, b: Any) -> Any:
        return jnp.transpose(jnp.einsum("nij,njk->nik", a, b), (1, 0, 2))

    for function, a, b in ((both, (2, 3), (3, 4)), (other, (5, 2, 3), (5, 3, 4))):
        args = jax.random.normal(KEY, a), jax.random.normal(KEY, b)
        for got, wanted in zip(*(jax.tree.leaves(f(*args)) for f in (untransposed(function), function)), strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert transposed_products(jax.make_jaxpr(untransposed(function))(*args).jaxpr) == 1
