"""Our keys give the very numbers of JAX's threefry keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import bits

from frugalrl import rng

SEEDS = (0, 1, 2**31 - 1)
SHAPES = ((), (7,), (2, 3, 4))


def theirs(seed):
    return jax.random.key(seed, impl="threefry2x32")


def numbers(key) -> dict:
    """What the library, and those who build on it, ask of a key."""
    random, data = jax.random, jax.random.key_data
    each = {f"bits {width}": lambda shape, w=width: random.bits(key, shape, f"uint{w}") for width in (8, 16, 32)}
    each |= {"uniform": lambda shape: random.uniform(key, shape), "normal": lambda shape: random.normal(key, shape)}
    return {name: [draw(shape) for shape in SHAPES] for name, draw in each.items()} | {
        "in a range": random.uniform(key, (9,), jnp.float32, -0.05, 0.05),
        "half precision": random.uniform(key, (9,), jnp.bfloat16),
        "randint": random.randint(key, (50,), 0, 10),
        "key": data(key),
        "split": [data(random.split(key, n)) for n in (2, 3, (2, 4))],
        "fold_in": [data(random.fold_in(key, i)) for i in (0, 1, 2**31 - 1, np.uint32(2**32 - 1))],
        "fold_in of many": jax.vmap(lambda i: data(random.fold_in(key, i)))(jnp.arange(4)),
        "a chain": random.normal(random.fold_in(random.split(key, 3)[1], 5), (4,)),
    }


def same(got: dict, expected: dict) -> None:
    assert [name for name in expected if bits(got[name]) != bits(expected[name])] == []


@pytest.fixture(scope="module")
def expected():
    return jax.jit(jax.vmap(lambda seed: numbers(theirs(seed))))(jnp.array(SEEDS))


def test_numbers_are_jaxs_when_mapped(expected):
    same(jax.jit(jax.vmap(lambda seed: numbers(rng.key(seed))))(jnp.array(SEEDS)), expected)


def test_numbers_are_jaxs_one_by_one(expected):
    ours = jax.jit(numbers)
    for i, seed in enumerate(SEEDS):
        same(ours(rng.key(seed)), jax.tree.map(lambda x, i=i: x[i], expected))


def test_numbers_are_jaxs_without_a_program():
    for draw in (jax.random.normal, jax.random.bits):
        assert bits(draw(rng.key(3), (5,))) == bits(draw(theirs(3), (5,)))


def test_64_bits():
    with jax.enable_x64(True):
        for shape in SHAPES:
            ours, expected = (jax.random.bits(key, shape, "uint64") for key in (rng.key(1), theirs(1)))
            assert bits(ours) == bits(expected)


def test_keys_survive_scan_and_stacking():
    def walk(key, _):
        key, sub = jax.random.split(key)
        return key, jax.random.bits(sub)

    assert bits(jax.lax.scan(walk, rng.key(5), length=6)) == bits(jax.lax.scan(walk, theirs(5), length=6))
    stacked = jnp.stack([rng.key(0), rng.key(1)])
    assert stacked.dtype == rng.key(0).dtype
    assert bits(stacked) == bits(jnp.stack([theirs(0), theirs(1)]))


def test_a_shape_beyond_the_counter_is_refused():
    with pytest.raises(ValueError, match=r"at most 2\*\*32"):
        jax.jit(lambda: jax.random.bits(rng.key(0), (2**16, 2**16))).lower()
