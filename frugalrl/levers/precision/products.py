"""Matrix products of bfloat16 by oneDNN, where XLA's own gain nothing: on CPUs that have instructions for them.

XLA widens both sides to float32 on a CPU. oneDNN comes from PyPI (`pip install 'frugalrl[onednn]'`), and a foreign
function of XLA (`products.c`) calls it; the C compiler of the machine makes that once, into the cache folder. What has
no public way in JAX is to have `dot_general` lowered to it, so gradients, mapped axes and all agents come for free;
that is in `_taken_over`. Where anything is missing, XLA's own products stay.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ...monitor.machine import hardware
from ...xla import cache_folder

PACKAGES = {"onednn-cpu-gomp": "libdnnl.so.3", "onednn-devel-cpu-gomp": "dnnl.h"}  # and a file that tells the folder
SOURCE = Path(__file__).with_name("products.c")
WORTH = 2**20  # multiply-adds of a product, from which on oneDNN was the faster in every shape that was tried
_lowered = 0  # products
_given_back = False


def lacks() -> str | None:
    """Why this machine cannot have oneDNN's products, as far as that is known without JAX; None if it can."""
    if not {"avx512_bf16", "amx_bf16"} & set(hardware()["instruction_sets"]):
        return "this processor has no instructions for them"
    if any(_folder(name) is None for name in PACKAGES):
        return "oneDNN is not installed: pip install 'frugalrl[onednn]'"
    return None


def version() -> str | None:
    """Of oneDNN's package, where its products can be had."""
    return None if lacks() else metadata.version(next(iter(PACKAGES)))


@cache
def take_over() -> str | None:
    """From now on oneDNN multiplies large matrices of bfloat16 in programs that are lowered in this process, for a CPU.
    None, or the reason why XLA still does.

    Call it after threads were bounded: it tries a product. Programs without such products stay what they are.
    """
    import jax

    if jax.default_backend() != "cpu":
        return "this is not a CPU"
    if why := lacks():
        return why
    try:
        target = f"frugalrl_product_{_key()}"
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(ctypes.CDLL(str(_compiled())).product), platform="cpu")
        _taken_over(target)
    except Exception as error:  # XLA's products do as well, only not as fast
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def lowered() -> int:
    """How often a product became oneDNN's in the programs that this process has lowered; once for all of the same shape
    in a program.
    """
    return _lowered


@contextmanager
def by_xla() -> Iterator[None]:
    """What is lowered meanwhile has XLA's products, in all threads: to compare them."""
    global _given_back
    before, _given_back = _given_back, True
    try:
        yield
    finally:
        _given_back = before


def _taken_over(target: str) -> None:
    """Have JAX lower `dot_general` to the foreign function where `numbers` says so. Raises if JAX is not as it was when
    this was written, and leaves it as it is.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.interpreters import mlir

    rules = mlir._platform_specific_lowerings["cpu"]
    before = rules[jax.lax.dot_general_p]
    foreign = jax.ffi.ffi_lowering(target)

    def rule(ctx: Any, a: Any, b: Any, *, dimension_numbers: Any, **others: Any) -> Any:
        global _lowered
        (x, y), (out,) = ctx.avals_in, ctx.avals_out
        ours = x.dtype == y.dtype == jnp.bfloat16 and out.dtype in (jnp.bfloat16, jnp.float32) and not _given_back
        found = numbers(x.shape, y.shape, dimension_numbers) if ours else None
        if found is None:
            return before.rule(ctx, a, b, dimension_numbers=dimension_numbers, **others)
        _lowered += 1
        if not found.a_m == found.b_n == 1:
            return foreign(ctx, a, b, shape=np.array(found, np.int64))
        # The gradient of weights, which JAX turns over afterwards: made so and turned here, it is not moved at all.
        (sums, _), (maps, _) = dimension_numbers
        axes, first = list(range(out.ndim)), x.ndim - len(sums)
        axes = [*axes[: len(maps)], *axes[first:], *axes[len(maps) : first]]
        made = out.update(shape=tuple(out.shape[i] for i in axes))
        turned = ctx.replace(avals_in=(y, x), avals_out=(made,))
        (c,) = foreign(turned, b, a, shape=np.array(found.turned(), np.int64))
        back = mlir.lower_fun(lambda c: jax.lax.transpose(c, np.argsort(axes)), multiple_results=False)
        return back(ctx.replace(avals_in=(made,)), c)

    mlir.register_lowering(jax.lax.dot_general_p, rule, platform="cpu")
    try:
        a = jnp.eye(256, dtype=jnp.bfloat16)
        b = jnp.arange(256 * 256, dtype=jnp.float32).astype(jnp.bfloat16).reshape(256, 256)
        # a function that JAX has not lowered before, of a large product and a small one
        program = jax.jit(lambda a, b: (a @ b, a[:2] @ b)).lower(a, b)
        large, small = program.compile()(a, b)
        if program.as_text().count(target) != 1 or not ((large == b).all() and (small == b[:2]).all()):
            raise RuntimeError("a product of oneDNN was not what it should be")
    except Exception:
        rules[jax.lax.dot_general_p] = before
        raise


class Numbers(NamedTuple):
    """What `products.c` is told: how many products, c [m, n] = a [m, k] b [k, n] each, and how far apart their elements
    lie, which are rows of memory in c.
    """

    items: int
    m: int
    n: int
    k: int
    a_item: int
    a_m: int
    a_k: int
    b_item: int
    b_k: int
    b_n: int

    def turned(self) -> Numbers:
        """Of b and a, for the transposed c."""
        items, m, n, k, a_item, a_m, a_k, b_item, b_k, b_n = self
        return Numbers(items, n, m, k, b_item, b_n, b_k, a_item, a_k, a_m)


def numbers(a: Sequence[int], b: Sequence[int], dimension_numbers: Any) -> Numbers | None:
    """Those of a `dot_general` of arrays of these shapes; None if it is XLA's.

    Axes of each kind (mapped, free, contracted) must lie one after the other, so that they are as one, and each matrix
    must have its elements side by side along one of its two.
    """
    (a_sums, b_sums), (a_maps, b_maps) = dimension_numbers
    parts = [
        _joined(shape, axes)
        for shape, maps, sums in ((a, a_maps, a_sums), (b, b_maps, b_sums))
        for axes in (maps, [i for i in range(len(shape)) if i not in (*maps, *sums)], sums)
    ]
    if None in parts:
        return None
    (items, a_item), (m, a_m), (k, a_k), (_, b_item), (n, b_n), (_, b_k) = parts  # type: ignore[misc]
    if m * n * k < WORTH or min(m, n, k) == 1 or 1 not in (a_m, a_k) or 1 not in (b_k, b_n):
        return None
    return Numbers(items, m, n, k, a_item, a_m, a_k, b_item, b_k, b_n)


def _joined(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, int] | None:
    """(size, stride) of some axes of a row-major array as one; None if they are not one after the other."""
    found = [(shape[i], prod(shape[i + 1 :])) for i in axes if shape[i] != 1]
    follow = all(outer == size * stride for (_, outer), (size, stride) in pairwise(found))
    return (prod(size for size, _ in found), found[-1][1] if found else 0) if follow else None


def _compiled() -> Path:
    """The foreign function as a library, made if it is not there. Raises RuntimeError if it cannot be."""
    import jax

    made = Path(cache_folder(), f"products-{_key()}.so")
    if made.exists():
        return made
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler (cc, gcc or clang)")
    library, headers = (_folder(name) for name in PACKAGES)
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:  # another process may do the same
        fresh = Path(folder, made.name)
        command = [compiler, "-O2", "-shared", "-fPIC", "-pthread", f"-I{headers}", f"-I{jax.ffi.include_dir()}"]
        files = [str(SOURCE), f"{library}/libdnnl.so.3", f"-Wl,-rpath,{library}", "-o", str(fresh)]
        done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(
                f"the C compiler failed: {(done.stderr.strip() or str(done.returncode)).splitlines()[0]}"
            )
        os.replace(fresh, made)
    return made


def _folder(package: str) -> Path | None:
    """Where the file of that package is."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    files = [Path(str(found.locate_file(file))) for file in found.files or () if file.name == PACKAGES[package]]
    return min((file.parent.resolve() for file in files), key=lambda folder: len(folder.parts), default=None)


def _key() -> str:
    """What the compiled function depends on."""
    versions = [metadata.version(name) for name in ("jaxlib", *PACKAGES)]
    told = "\n".join([SOURCE.read_text(), *versions, *(str(_folder(name)) for name in PACKAGES)])
    return hashlib.sha256(told.encode()).hexdigest()[:12]
