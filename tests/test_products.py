"""oneDNN's matrix products of bfloat16 are what XLA's are, wherever they take their place, and XLA's stay otherwise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir
from small import OBS, TORQUE, random_batch

from frugalrl import catalog, jobs
from frugalrl.config import configure
from frugalrl.levers.precision import choice, products
from frugalrl.levers.precision.modes import PRECISIONS
from frugalrl.levers.precision.numerics import numerics
from frugalrl.monitor.receipt import entries

needs_onednn = pytest.mark.skipif(products.lacks() is not None, reason=f"no products of oneDNN: {products.lacks()}")
BF16, F32 = jnp.bfloat16, jnp.float32
CASES = {  # shapes, and what dot_general is told
    "plain": ((200, 300), (300, 130), (((1,), (0,)), ((), ()))),
    "left transposed": ((300, 200), (300, 130), (((0,), (0,)), ((), ()))),
    "right transposed": ((200, 300), (130, 300), (((1,), (1,)), ((), ()))),
    "both transposed": ((300, 200), (130, 300), (((0,), (1,)), ((), ()))),
    "mapped": ((3, 200, 300), (3, 300, 130), (((2,), (1,)), ((0,), (0,)))),
    "mapped within": ((200, 3, 300), (300, 3, 130), (((2,), (0,)), ((1,), (1,)))),
    "mapped twice": ((2, 2, 200, 300), (2, 2, 130, 300), (((3,), (3,)), ((0, 1), (0, 1)))),
    "several free axes": ((10, 20, 300), (300, 130), (((2,), (0,)), ((), ()))),
    "several sums": ((10, 30, 200), (10, 30, 130), (((0, 1), (0, 1)), ((), ()))),
}
OF_XLA = {
    "small": ((32, 64), (64, 32), (((1,), (0,)), ((), ()))),
    "a vector": ((1, 4096), (4096, 4096), (((1,), (0,)), ((), ()))),
    "free axes apart": ((10, 300, 20), (300, 130), (((1,), (0,)), ((), ()))),
    "the mapped axis innermost": ((200, 300, 3), (300, 130, 3), (((1,), (0,)), ((2,), (2,)))),
}


def matrices(a: tuple, b: tuple) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], a).astype(BF16), jax.random.normal(keys[1], b).astype(BF16)


def product(a, b, how, dtype=None):
    return lax.dot_general(a, b, how, preferred_element_type=dtype)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_describe_the_product(case):
    a, b, how = CASES[case]
    found = products.numbers(a, b, how)
    assert found is not None
    items, m, n, k, a_item, a_m, a_k, b_item, b_k, b_n = found
    x, y = (np.random.default_rng(0).normal(size=shape) for shape in (a, b))

    def seen(z: np.ndarray, sizes: tuple, strides: tuple) -> np.ndarray:
        return np.lib.stride_tricks.as_strided(z, sizes, [z.itemsize * stride for stride in strides])

    made = seen(x, (items, m, k), (a_item, a_m, a_k)) @ seen(y, (items, k, n), (b_item, b_k, b_n))
    wanted = np.asarray(product(jnp.asarray(x, F32), jnp.asarray(y, F32), how))
    np.testing.assert_allclose(made.reshape(wanted.shape), wanted, atol=1e-3)


@pytest.mark.parametrize("case", OF_XLA)
def test_other_products_are_left_to_xla(case):
    assert products.numbers(*OF_XLA[case]) is None


def test_xla_multiplies_where_something_is_missing(monkeypatch, tmp_path):
    rules = mlir._platform_specific_lowerings["cpu"]
    before, take_over = rules[lax.dot_general_p], products.take_over.__wrapped__
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(products, "hardware", lambda: {"instruction_sets": ["avx2"]})
    assert take_over() == "this processor has no instructions for them"
    monkeypatch.setattr(products, "hardware", lambda: {"instruction_sets": ["avx512_bf16"]})
    monkeypatch.setitem(products.PACKAGES, "a-package-nobody-has", "dnnl.h")
    assert take_over() == "oneDNN is not installed: pip install 'frugalrl[onednn]'"
    assert products.version() is None
    monkeypatch.setattr(products, "PACKAGES", {})
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(products.shutil, "which", lambda name: None)
    assert take_over() == "there is no C compiler (cc, gcc or clang)"
    monkeypatch.setattr(products, "_compiled", lambda: tmp_path / "nothing.so")
    assert "nothing.so" in take_over()
    with pytest.raises(Exception, match="nobody_has"):  # as if JAX had changed
        products._taken_over("a_function_nobody_has")
    assert rules[lax.dot_general_p] is before


def test_only_a_learner_of_bfloat16_asks_for_them(monkeypatch):
    asked = []
    monkeypatch.setattr(products, "take_over", lambda: asked.append(1))
    for precision, times in {"fp32": 0, "fp16": 0, "bf16": 1, "bf16-kahan": 2}.items():
        jobs.records(configure("dqn", "CartPole-v1", precision=precision))
        assert len(asked) == times, precision


def test_a_receipt_says_whose_products_were_used(monkeypatch):
    config = configure("dqn", "CartPole-v1", precision="bf16")
    monkeypatch.setattr(products, "lowered", lambda: 7)
    whose = {lowered: jobs.precision_of(config, [], lowered)["precision"].get("products") for lowered in (6, 7, None)}
    assert whose == {6: "oneDNN", 7: "XLA", None: None}
    told = ("precision", "bf16, matrix products by oneDNN")
    assert told in entries(jobs.precision_of(config, [], 6))
    assert "products" not in jobs.precision_of(config._replace(precision="fp16"), [], 6)["precision"]


def test_auto_says_whose_products_are_faster():
    fast = choice.Product(1024, 100.0, 190.0, "oneDNN")
    said = "matrix products of 1024 x 1024 are 1.9 times as fast in bf16 by oneDNN"
    assert choice.choose(1024, [fast]) == ("bf16", said)


@pytest.fixture(scope="module")
def _onednn():
    """oneDNN's products, until the tests of this module are over."""
    rules = mlir._platform_specific_lowerings["cpu"]
    before = rules[lax.dot_general_p]
    products.take_over.cache_clear()
    assert products.take_over() is None
    yield
    rules[lax.dot_general_p] = before
    products.take_over.cache_clear()


def with_how_many(f, *args):
    """(the result of f compiled, how many of its products are oneDNN's)."""
    before = products.lowered()
    made = jax.jit(lambda *args: f(*args)).lower(*args)  # lowered anew, whatever was before
    ours = made.as_text().count("frugalrl_product")
    assert (products.lowered() > before) == (ours > 0)
    return made.compile(compiler_options=jobs.EXACT)(*args), ours


@cache
def exact(case: str) -> tuple[jax.Array, jax.Array]:
    """(the product, the sum of the sizes of what is added up for it) in float32."""
    *shapes, how = CASES[case]
    a, b = (x.astype(F32) for x in matrices(*shapes))
    return product(a, b, how), product(abs(a), abs(b), how)


@needs_onednn
@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("dtype", [None, F32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_float32_rounded(case, dtype):
    *shapes, how = CASES[case]
    a, b = matrices(*shapes)
    found, ours = with_how_many(lambda a, b: product(a, b, how, dtype), a, b)
    assert (ours, found.dtype) == (1, dtype or BF16)
    wanted, size = (np.asarray(x) for x in exact(case))
    assert (abs(np.asarray(found.astype(F32)) - wanted) <= 1e-6 * size + (0 if dtype else 2**-8) * abs(wanted)).all()


@needs_onednn
@pytest.mark.usefixtures("_onednn")
@pytest.mark.parametrize("case", [*OF_XLA, "plain"])
def test_others_are_the_same_program(case):
    *shapes, how = (OF_XLA | CASES)[case]
    a, b = matrices(*shapes)

    def text(x, y):
        return jax.jit(lambda a, b: product(a, b, how)).lower(x, y).as_text()

    floats = a.astype(F32), b.astype(F32)
    for x, y in (floats,) if case in CASES else (floats, (a, b)):
        with products.by_xla():
            stock = text(x, y)
        assert text(x, y) == stock
        assert "dot_general" in stock


@needs_onednn
@pytest.mark.usefixtures("_onednn")
def test_gradients_of_mapped_networks_have_them_too():
    """For members of a population, too; three products in each layer: forwards, of the weights, of the inputs."""
    x, w = matrices((3, 160, 130), (3, 2, 130, 130))

    def loss(w, x):
        one = lambda x: jnp.tanh(jnp.tanh(x @ w[0]) @ w[1])  # of one observation
        return (jax.vmap(one)(x).astype(F32) ** 2).mean()

    def gradients(w, x):
        return jax.vmap(jax.value_and_grad(loss))(w, x)

    (value, found), ours = with_how_many(gradients, w, x)
    with products.by_xla():
        (wanted_value, wanted), theirs = with_how_many(gradients, w, x)
    assert (ours, theirs) == (5, 0)  # nothing needs the gradient of the observations
    np.testing.assert_allclose(value, wanted_value, rtol=1e-2)
    assert float(jnp.linalg.norm((found - wanted).astype(F32)) / jnp.linalg.norm(wanted.astype(F32))) < 1e-2


@needs_onednn
@pytest.mark.usefixtures("_onednn")
def test_several_threads_multiply_at_once():
    """More calls than threads, each in parts, none of which waits for another; and a loop of products."""
    a, b = matrices((8, 256, 256), (8, 256, 256))
    one = jax.jit(lambda a, b: lax.fori_loop(0, 20, lambda _, x: jnp.tanh(x @ b), a)).lower(a[0], b[0]).compile()
    alone = [one(a[i], b[i]) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: one(a[i], b[i]), range(8)))
    assert all((x == y).all() for x, y in zip(alone, together, strict=True))


@needs_onednn
@pytest.mark.long
@pytest.mark.usefixtures("_onednn")
def test_the_gradient_of_a_learner_is_the_one_with_xlas_products():
    recipe = catalog.recipe("sac")
    static = recipe.static._replace(hidden=(160, 160), batch_size=160)
    agent = recipe.assemble(static, OBS, TORQUE, numerics=numerics(PRECISIONS["bf16"]))
    state, batch = agent.init(jax.random.key(0), recipe.hyper), random_batch(size=160, continuous=True)
    gradient = lambda state, batch: agent.grad(state, batch, jax.random.key(1))[0]
    found, ours = with_how_many(gradient, state, batch)
    with products.by_xla():
        wanted, theirs = with_how_many(gradient, state, batch)
    assert (ours > 5, theirs) == (True, 0)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert float(jnp.linalg.norm((x - y).astype(F32).ravel())) <= 0.02 * float(
            jnp.linalg.norm(y.astype(F32).ravel())
        )
