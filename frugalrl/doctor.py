"""`frugal doctor`: what this machine has, what was measured on it just now, and what that means for a run."""

from __future__ import annotations

import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple

from . import catalog
from .levers.compress import engines
from .levers.precision import products
from .levers.precision.choice import Product, choose, remember
from .monitor import words
from .monitor.machine import Meter, cores, free_here, hardware, versions
from .networks import Layers, mlp
from .types import Box

LABEL, WIDTH = 15, 96  # columns of the labels, and of a whole line
SHOWN = 5  # environments of a family; `frugal envs` has them all
SMALL_SHARED_MEMORY = 256e6  # bytes; a container's usual 64 MB do not hold the unrolls of a few pixel actors


class Shape(NamedTuple):
    """A network and batch size to measure the engines with."""

    name: str
    layers: Layers
    obs: Box
    batch: int


SHAPES = (
    Shape("256x256", mlp((256, 256), 6), Box((17,)), 1),
    Shape("256x256", mlp((256, 256), 6), Box((17,)), 8),
    Shape("1024x1024x1024", mlp((1024, 1024, 1024), 17), Box((376,)), 8),
)
Entry = tuple[str, str]  # label and text of a line
Timings = list[list[engines.Timing]]  # for each Shape


def examine(seconds: float = 0.4) -> Iterator[str]:
    """The lines of the report as they become known, the verdict last; some ten seconds in all.

    `seconds` is how long each of the measurements takes, without what has to be compiled first. A part that fails
    is a line that says so and a reason in the verdict: this never raises.
    """
    problems: list[str] = []
    timings: Timings = []
    parts: list[tuple[str, Callable[[], Iterator[Entry]]]] = [
        ("machine", _machine),
        ("memory", lambda: _memory(problems)),
        ("energy", _energy),
        ("jax", _jax),
        ("programs", lambda: _programs(problems)),
        ("products", lambda: _products(seconds)),
        ("environments", lambda: _environments(problems)),
        ("engines", lambda: _engines(seconds, timings, problems)),
    ]
    for name, part in parts:
        try:
            for label, text in part():
                yield from _wrapped(label, text)
        except Exception as error:  # a doctor who falls ill helps nobody
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            problems.append(f"{name}: {reason}")
            yield from _wrapped(name, f"could not be examined: {reason}")
    yield ""
    yield from _wrapped("verdict", verdict(problems, timings))


def verdict(problems: list[str], timings: Timings) -> str:
    """One plain sentence on what to use here, or on what to mend."""
    if problems:
        return "not everything is well: " + "; ".join(problems)
    choices = [engines.choose(_of_actors(times), "auto") for times in timings]
    gains = [
        f"{words.number(_best(times, 'fp32') / choice.microseconds)} times at {shape.name}, batch {shape.batch}"
        for shape, times, choice in zip(SHAPES, timings, choices, strict=False)
        if choice.mode == "int8"
    ]
    if not gains:
        return "ready. No network measured here is clearly faster in int8 than in the best fp32: keep --actors fp32"
    return (
        f"ready. A policy call in int8 against the best fp32 is faster {'; '.join(gains)}. Try --actors int8 where "
        "the receipt of a run says that inference takes a good part of it; --actors auto measures your network first"
    )


def one_thread_a_program() -> None:
    """Let XLA's CPU programs run on the thread that calls them; only before JAX has computed anything.

    XLA has an option for it, `xla_cpu_multi_thread_eigen`, but ignores it for matrix products (jaxlib 0.10).
    """
    import jax

    os.environ["NPROC"] = "1"  # how many threads XLA makes, whatever the machine has
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def product_gflops(size: int, threads: int, seconds: float, dtype: str = "float32") -> float:
    """10^9 operations a second of JAX multiplying square matrices of `size`, a multiply-add counted as two.

    As seeds do in a `compiled` run, each of `threads` threads works by itself. XLA spreads a product over threads of
    its own unless `one_thread_a_program` was called before JAX's first computation. On an accelerator there is one
    program at a time, and `threads` is not used.
    """
    import jax
    import jax.numpy as jnp

    a = jnp.full((size, size), 1 / size, dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    jax.block_until_ready(product(a, a))
    end = perf_counter() + seconds

    def work(_: int) -> int:
        done, result = 0, a
        while done == 0 or perf_counter() < end:
            result = jax.block_until_ready(product(a, result))
            done += 1
        return done

    start, workers = perf_counter(), threads if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(workers) as pool:
        done = sum(pool.map(work, range(workers)))
    return 2 * size**3 * done / (perf_counter() - start) / 1e9


def _machine() -> Iterator[Entry]:
    found = hardware()
    usable, there = found["cores"], os.cpu_count()
    yield "processor", f"{found['cpu']}, {usable} of {there} cores usable ({found['system']})"
    sets = found["instruction_sets"]
    yield "instructions", ", ".join(sets) or "none of those that matter here"
    yield "int8", int8_support(sets)


def int8_support(sets: list[str]) -> str:
    """What the instruction sets of a processor mean for int8 networks."""
    if "amx_int8" in sets:
        return "AMX: matrix products in int8 run many times faster than in fp32, where an engine uses it"
    if "avx512_vnni" in sets or "avx_vnni" in sets:
        return "VNNI: four int8 multiply-adds take the room of one in fp32"
    if "i8mm" in sets or "asimddp" in sets:
        return "int8 dot products: four multiply-adds take the room of one in fp32"
    return "no VNNI: int8 needs several instructions for a product and seldom beats fp32; packets are still a quarter"


def _memory(problems: list[str]) -> Iterator[Entry]:
    available = free_here()
    free = "" if available is None else f", {words.size(available)} available"
    yield "memory", f"{words.size(hardware()['memory_bytes'])}{free}"
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        folder = tempfile.gettempdir()
        yield "shared memory", f"no /dev/shm: actors exchange arrays through files in {folder}, which may be slower"
        return
    left = shutil.disk_usage(shared).free
    yield "shared memory", f"{words.size(left)} free for what actors and learner exchange"
    if left < SMALL_SHARED_MEMORY:
        problems.append(f"only {words.size(left)} of shared memory (in Docker: --shm-size=1g)")


def _energy() -> Iterator[Entry]:
    if Meter().counted:
        yield "energy", "measured by the processor's own counter (RAPL)"
    else:
        yield "energy", "no counter to read (RAPL): receipts estimate it from CPU seconds"


def _jax() -> Iterator[Entry]:
    import jax

    one_thread_a_program()
    accelerator = hardware()["accelerator"]
    yield "accelerator", accelerator or f"none that JAX sees; it runs on {jax.default_backend()}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items() if version)


def _programs(problems: list[str]) -> Iterator[Entry]:
    from .xla import cache_folder

    folder = Path(cache_folder())
    files = [file for file in folder.glob("*-cache") if file.is_file()] if folder.is_dir() else []
    size = words.size(sum(file.stat().st_size for file in files))
    held = f"{len(files)} compiled programs, {size}" if files else "empty: the first run of each kind compiles"
    yield "program cache", f"{folder} ({held})"
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        problems.append(f"the program cache {folder} cannot be written: set JAX_COMPILATION_CACHE_DIR to a folder")


def _products(seconds: float) -> Iterator[Entry]:
    import jax

    if jax.default_backend() != "cpu":
        yield "products", f"{product_gflops(4096, 1, seconds):,.0f} GFLOP/s (fp32 matrices of 4096 x 4096)"
        yield from _bf16(seconds, (256, 1024, 4096))
        return
    alone, together = (product_gflops(1024, threads, seconds) for threads in (1, cores()))
    yield "products", f"{alone:.0f} GFLOP/s on one core, {together:.0f} on all {cores()} (fp32, 1024 x 1024, XLA)"
    if together < 0.6 * cores() * alone:
        yield "", "the cores hold each other up: they share hardware, or the machine is busy with something else"
    yield from _bf16(seconds, (1024,))  # at 256 products are faster too, but a whole update is not


def _bf16(seconds: float, sizes: tuple[int, ...]) -> Iterator[Entry]:
    """How much faster bf16 is, which is kept for `--precision auto`, and by whom."""
    why = products.take_over()

    def measured(size: int) -> Product:
        fp32, bf16 = (product_gflops(size, cores(), seconds / 2, dtype) for dtype in ("float32", "bfloat16"))
        return Product(size, fp32, bf16, "XLA" if why else "oneDNN")

    found = [measured(size) for size in sizes]
    remember(found)
    gains = ", ".join(f"{words.number(each.gain())} times at {each.size}" for each in found)
    widths = [str(each.size) for each in found if choose(each.size, found)[0] == "bf16"]
    chosen = f"bf16 for layers of {' or '.join(widths)} units" if widths else "fp32"
    yield "", f"in bf16 {gains}: --precision auto takes {chosen}"
    yield "", f"bf16 by XLA, not by oneDNN: {why}" if why else f"bf16 by oneDNN {products.version()}"


def _environments(problems: list[str]) -> Iterator[Entry]:
    label = "environments"
    for family in catalog.FAMILIES:
        there = find_spec(family.module) is not None
        how = "" if there else f": not installed, pip install 'frugalrl[{family.extra}]'"
        names = [f"{name} (compiled)" if there and catalog.has_twin(name) else name for name in family.ids[:SHOWN]]
        more = f" and {len(family.ids) - SHOWN} more" if len(family.ids) > SHOWN else ""
        yield label, ", ".join(names) + more + how
        label = ""
        if not there and not family.extra:
            problems.append(f"{family.module} is not installed, which the base install needs")


def _engines(seconds: float, timings: Timings, problems: list[str]) -> Iterator[Entry]:
    yield "engines", "microseconds for one policy call, NumPy to NumPy, on one thread; * not for actors"
    yield "", "network, batch" + "".join(f"{f'{shape.name}, {shape.batch}':>20}" for shape in SHAPES)
    yield "", f"{'':14}" + f"{'fp32':>11}{'int8':>9}" * len(SHAPES)
    for shape in SHAPES:
        timings.append(
            engines.measure(shape.layers, shape.obs, shape.batch, ("fp32", "int8"), engines.ENGINES, seconds)
        )
    for name in engines.ENGINES:
        missing = engines.engine(name).missing()
        title = name if name in engines.ACTOR_ENGINES else f"{name} *"
        yield "", f"{title:14}" + (f"   not installed: {missing}" if missing else _row(name, timings))
    choices = [engines.choose(_of_actors(times), "auto") for times in timings]
    cells = "".join(f"{f'{choice.mode} on {choice.engine}':>20}" for choice in choices)
    yield "", f"{'--actors auto':14}{cells}"
    if all(engines.engine(name).missing() for name in engines.ACTOR_ENGINES if name != "numpy"):
        problems.append(f"actors have no engine but NumPy ({engines.engine('litert').missing()})")


def _row(name: str, timings: Timings) -> str:
    cells = ""
    for times in timings:
        found = {timing.mode: words.number(timing.microseconds) for timing in times if timing.engine == name}
        cells += f"{found.get('fp32', '-'):>11}{found.get('int8', '-'):>9}"
    return cells


def _of_actors(times: list[engines.Timing]) -> list[engines.Timing]:
    return [time for time in times if time.engine in engines.ACTOR_ENGINES]


def _best(times: list[engines.Timing], mode: Literal["fp32", "int8"]) -> float:
    return engines.choose(_of_actors(times), mode).microseconds


def _wrapped(label: str, text: str) -> Iterator[str]:
    """`label` and `text` as lines of at most WIDTH columns; the label stands on the first."""
    is_table = "   " in text
    parts = [text] if is_table else textwrap.wrap(text, WIDTH - LABEL)
    for i, part in enumerate(parts or [""]):
        yield f"{label if i == 0 else '':{LABEL}}{part}".rstrip()
