"""A reader can walk from an observation to a gradient: six files in a row, no cycles, and no lever on the way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import frugalrl

ROOT = Path(frugalrl.__file__).parent
WALK = (  # file and what to read there
    ("envs/cartpole.py", "advance"),
    ("runtime/compiled.py", "collect"),
    ("networks.py", "apply"),
    ("distributions.py", "sample"),
    ("memory.py", "add"),
    ("agents/dqn.py", "grad"),
)
WITHOUT_JAX = (
    "frugalrl",
    "frugalrl.types",
    "frugalrl.networks",
    "frugalrl.distributions",
    "frugalrl.policy",
    "frugalrl.runtime.actor",
    "frugalrl.runtime.link",
    "frugalrl.levers.compress.deploy",
    "frugalrl.levers.compress.quantise",
    "frugalrl.levers.compress.engines",
    "frugalrl.levers.compress.engines.numpy_engine",
    "frugalrl.levers.compress.engines.litert",
)


def name_of(path: Path) -> str:
    parts = ("frugalrl", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def statements(tree: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module: those run when it is imported, or all that are in it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if everywhere:
                yield from statements(node, everywhere)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from statements(node, everywhere)


def imports(module: str, everywhere: bool = False) -> set[str]:
    """The modules of this library that a module imports by name."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in statements(ast.parse(path.read_text()), everywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            found.add(inner if inner in MODULES else source)
    return {name for name in found if name in MODULES} - {module}


def test_the_parser_sees_imports():
    """Else the laws below would hold of nothing."""
    assert {"frugalrl.types", "frugalrl.distributions"} <= imports("frugalrl.runtime.compiled")
    assert "frugalrl.levers.correct" in imports("frugalrl.jobs")
    assert imports("frugalrl") == set()
    assert "frugalrl.levers.compress.engines" in imports("frugalrl.policy", everywhere=True) - imports(
        "frugalrl.policy"
    )


def test_no_cycles():
    graph = {module: imports(module) for module in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


CORE = ("agents", "runtime", "envs", "types", "networks", "distributions", "losses", "memory", "rng", "evaluate")


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in CORE])
def test_the_core_imports_no_lever(module):
    assert not [name for name in imports(module, everywhere=True) if name.startswith("frugalrl.levers")]


def test_the_core_is_all_there():
    assert {name.split(".")[1] for name in MODULES if "." in name} >= set(CORE)


@pytest.mark.parametrize(("file", "what"), WALK)
def test_the_six_files_of_the_walk_hold_what_is_to_be_read(file, what):
    defined = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
    assert what in defined


@pytest.mark.parametrize("i", range(len(WALK) - 1))
def test_each_file_of_the_walk_names_the_next(i):
    docstring = ast.get_docstring(ast.parse((ROOT / WALK[i][0]).read_text())) or ""
    following, what = WALK[i + 1]
    assert f"`{following}`" in docstring
    assert f"`{what}`" in docstring


def test_what_an_actor_process_needs_does_without_jax():
    program = f"""
import sys
from importlib import import_module
for name in {WITHOUT_JAX}:
    import_module(name)
    heavy = {{"jax", "jaxlib", "optax"}} & set(sys.modules)
    assert not heavy, f"importing {{name}} loads {{heavy}}"
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
