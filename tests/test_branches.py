"""A cond that also computes only what is needed under vmap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from frugalrl.branches import if_any


def test_it_is_a_cond_that_computes_only_if_one_is_due():
    seen: list[float] = []

    def compute(x: Any, y: Any) -> Any:
        jax.debug.callback(lambda n: seen.append(float(n)), x)
        return {"sum": x + y, "many": jnp.full(3, x)}

    def otherwise(x: Any, y: Any) -> Any:
        return {"sum": y, "many": jnp.full(3, -x)}

    def one(due: Any, x: Any, y: Any) -> Any:
        return if_any(due, compute, otherwise, x, y)

    def found(function: Any, *args: Any) -> tuple[list, list, list[float]]:
        seen.clear()
        got = jax.jit(function)(*args)
        jax.effects_barrier()
        return got["sum"].tolist(), got["many"].tolist(), sorted(seen)

    assert found(one, True, 2.0, 3.0) == (5.0, [2.0] * 3, [2.0])
    assert found(one, False, 2.0, 3.0) == (3.0, [-2.0] * 3, [])

    every = jax.vmap(one, (0, 0, None))
    numbers = jnp.array([1.0, 2.0])
    assert found(every, jnp.array([False, True]), numbers, 3.0) == ([3.0, 5.0], [[-1.0] * 3, [2.0] * 3], [1.0, 2.0])
    assert found(every, jnp.array([False, False]), numbers, 3.0) == ([3.0, 3.0], [[-1.0] * 3, [-2.0] * 3], [])
    alike = jax.vmap(one, (None, 0, None))  # one answer for all
    assert found(alike, True, numbers, 3.0) == ([4.0, 5.0], [[1.0] * 3, [2.0] * 3], [1.0, 2.0])
    apart = jax.vmap(one, (0, None, None))  # nothing else is mapped
    assert found(apart, jnp.array([True, False]), 2.0, 3.0)[0] == [5.0, 3.0]

    twice = jax.vmap(jax.vmap(one))
    ones = jnp.ones((2, 2))
    assert found(twice, jnp.array([[True, False], [False, False]]), ones, ones)[0] == [[2.0, 1.0], [1.0, 1.0]]
    assert found(twice, jnp.zeros((2, 2), bool), ones, ones)[2] == []
