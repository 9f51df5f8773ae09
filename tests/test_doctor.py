"""`frugal doctor` tells the truth about this machine, in lines that fit, and never falls over."""

from __future__ import annotations

from time import perf_counter

import pytest

from frugalrl import catalog, doctor
from frugalrl.levers.compress.engines import Timing
from frugalrl.levers.precision import choice
from frugalrl.monitor import machine, words


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NPROC", "1")  # the doctor sets it; this gives the old value back afterwards
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setattr(doctor, "_engines", lambda *_: iter(()))
    monkeypatch.setattr(doctor, "_products", lambda *_: iter(()))


def timings(*pairs: tuple[float, float]) -> doctor.Timings:
    return [[Timing("litert", "fp32", fp32), Timing("litert", "int8", int8)] for fp32, int8 in pairs]


def test_report_is_quick_fits_and_ends_with_a_verdict():
    start = perf_counter()
    lines = list(doctor.examine(seconds=0.02))
    assert perf_counter() - start < 15
    assert max(map(len, lines)) <= doctor.WIDTH
    labels = [line[: doctor.LABEL].strip() for line in lines]
    known = ["processor", "instructions", "int8", "memory", "shared memory", "energy", "accelerator", "versions"]
    assert [label for label in labels if label] == [
        *known, "program cache", "products", "environments", "engines", "verdict",
    ]  # fmt: skip
    text = "\n".join(lines)
    assert "could not be examined" not in text
    assert "litert" in text
    assert "LunarLander-v3" in text
    found = choice.remembered()
    assert [each.size for each in found] == [1024]
    assert f"in bf16 {words.number(found[0].gain())} times at 1024" in text
    assert lines[labels.index("verdict") - 1] == ""


@pytest.mark.usefixtures("_quick")
def test_a_part_that_fails_is_told_and_the_rest_goes_on(monkeypatch):
    def broken():
        raise RuntimeError("no such counter\nat all")
        yield

    monkeypatch.setattr(doctor, "_energy", broken)
    lines = list(doctor.examine())
    assert "energy         could not be examined: no such counter" in lines
    assert any(line.startswith("environments") for line in lines)
    assert lines[-1].endswith("not everything is well: energy: no such counter")


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    for name, text in (
        ("memory.max", "9000000\n"),
        ("memory.current", "3000000\n"),
        ("memory.stat", "inactive_file 0"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", ((tmp_path, *machine.CGROUPS[0][1:]),))
    assert dict(doctor._memory([]))["memory"].endswith(", 6 MB available")


@pytest.mark.usefixtures("_quick")
def test_missing_environments_come_with_how_to_install_them(monkeypatch):
    monkeypatch.setattr(catalog, "FAMILIES", (catalog.Family("extra", "a_module_nobody_has", ("Thing-v0",)),))
    text = "\n".join(doctor.examine())
    assert "Thing-v0: not installed, pip install 'frugalrl[extra]'" in text


@pytest.mark.usefixtures("_quick")
def test_program_cache_is_counted(tmp_path):
    for name in ("a-cache", "b-cache", "a-atime"):
        (tmp_path / name).write_bytes(bytes(1500))
    words = " ".join("\n".join(doctor.examine()).split())  # a long path moves the end to another line
    assert "(2 compiled programs, 3 kB)" in words


def test_verdict_says_where_int8_is_faster():
    assert "keep --actors fp32" in doctor.verdict([], timings((5, 5), (5, 4.9), (5, 6)))
    told = doctor.verdict([], timings((5, 5), (30, 15), (600, 150)))
    assert "2 times at 256x256, batch 8; 4 times at 1024x1024x1024, batch 8" in told
    assert "batch 1;" not in told


def test_verdict_names_every_problem():
    assert doctor.verdict(["a is full", "b is gone"], []) == "not everything is well: a is full; b is gone"


def test_only_engines_an_actor_may_use_count():
    slow = [Timing("litert", "fp32", 9.0), Timing("litert", "int8", 9.0), Timing("openvino", "int8", 1.0)]
    assert "keep --actors fp32" in doctor.verdict([], [slow, slow, slow])


@pytest.mark.parametrize(
    ("sets", "word"),
    [(["avx2"], "no VNNI"), (["avx2", "avx_vnni"], "VNNI:"), (["avx512_vnni", "amx_int8"], "AMX"), (["i8mm"], "dot")],
)
def test_int8_support_of_instruction_sets(sets, word):
    assert word in doctor.int8_support(sets)


def test_products_count_the_operations_of_a_product(monkeypatch):
    # A clock that moves one second a look: the end is at 2.5, the start at 1, and after the product that the looks at
    # 2 and 3 bound there is none left. The last look is at 4.
    ticks = iter(range(100))
    monkeypatch.setattr(doctor, "perf_counter", lambda: float(next(ticks)))
    assert doctor.product_gflops(64, 1, seconds=2.5) == pytest.approx(2 * 64**3 * 2 / (4 - 1) / 1e9)
