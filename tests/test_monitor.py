"""Progress, rows, receipt, dashboards and report: what a run tells of itself."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frugalrl.errors import BadFile, UsageError
from frugalrl.monitor import charts, files, live, rows, words
from frugalrl.monitor.compare import compare
from frugalrl.monitor.compare import table as told
from frugalrl.monitor.compare import write as write_comparison
from frugalrl.monitor.dashboards import DASHBOARDS, tensorboard
from frugalrl.monitor.machine import Cost, Meter, Usage, hardware, usage, versions
from frugalrl.monitor.progress import _Lines, progress
from frugalrl.monitor.receipt import Saving, read, receipt, show, write
from frugalrl.monitor.report import load, report
from frugalrl.monitor.watch import look, serve, state, watch
from frugalrl.statistics import Interval, bootstrap, difference, improvement

KEYS = [
    *("agent", "env", "runtime", "seeds", "steps", "wall_seconds", "compile_seconds", "cpu_seconds"),
    *("env_steps_per_second", "peak_memory_bytes", "energy_joules", "energy_method", "returns", "time_split"),
    *("actors", "versions", "hardware"),
]
COST = Cost(10.0, 18.0, 512_000_000, 180.0, "estimated: CPU seconds x 10 W for a busy core")


def row(seed: int, step: int, value: float, **metrics) -> dict:
    return {
        "agent": "dqn", "env": "CartPole-v1", "seed": seed, "member": None, "step": step, "episode_return": value,
        "episode_length": value, "wall_seconds": step / 1000, **metrics,
    }  # fmt: skip


# rows


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    written = [row(0, 100, 9.5, loss=0.1), row(1, 100, 10.0, note="naïve")]
    rows.write(path, written[:1])
    rows.write(path, written[1:])
    rows.write(path, [])
    assert rows.read(path) == written
    assert path.read_bytes().count(b"\n") == 2


def test_rows_are_strict_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    array = np.array([1.0, np.nan], np.float32)
    rows.write(path, [{"a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": np.int64(3), "e": array}])
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert rows.read(path) == [{"a": None, "b": None, "c": 0.5, "d": 3, "e": [1.0, None]}]


def test_jax_scalars_are_numbers(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    rows.write(tmp_path / "rows.jsonl", [{"a": jnp.float32(2.0), "b": jnp.bfloat16(1.5)}])
    assert rows.read(tmp_path / "rows.jsonl") == [{"a": 2.0, "b": 1.5}]


def test_a_last_line_that_was_cut_short_is_dropped_and_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.write(path, [row(0, 1, 1.0), row(0, 2, 2.0)])
    path.write_bytes(path.read_bytes()[:-20])
    assert [r["step"] for r in rows.read(path)] == [1]
    rows.write(path, [row(0, 3, 3.0)])
    assert [r["step"] for r in rows.read(path)] == [1, 3]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step":1}\n{"step":2}')
    assert [r["step"] for r in rows.read(path)] == [1, 2]
    rows.write(path, [{"step": 3}])
    assert [r["step"] for r in rows.read(path)] == [1, 2, 3]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step":1}\n{"st\n{"step":3}\n')
    with pytest.raises(ValueError, match="line 2"):
        rows.read(path)


def test_keep_until_drops_later_rows_and_keeps_the_bytes_of_the_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 10, "x": 1.50}\n{"step": 20}\n{"step": 30}\n{"st')
    assert rows.keep_until(path, 20) == 1
    assert path.read_text() == '{"step": 10, "x": 1.50}\n{"step": 20}\n'
    assert rows.keep_until(path, 20) == 0
    assert rows.keep_until(tmp_path / "absent.jsonl", 0) == 0
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_no_file_is_no_rows(tmp_path):
    assert rows.read(tmp_path / "rows.jsonl") == []


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = "from frugalrl.monitor import rows; import os, sys; rows.write(sys.argv[1], [{'step': 1}]); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert rows.read(path) == [{"step": 1}]


def test_rows_that_do_not_fit_on_the_disk_are_an_error_and_leave_no_part(tmp_path):
    """The system takes what there is room for, and says so in what a write returns."""
    path = tmp_path / "rows.jsonl"
    rows.write(path, [{"step": 1}])
    code = """import resource, sys
from frugalrl.monitor import rows
resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    rows.write(sys.argv[1], [{"step": 2}] * 8)
except OSError:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 7
    assert path.read_text() == '{"step":1}\n'


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    """Else a checkpoint, which is, could outlive its rows when the power fails."""
    done = []
    for name in ("fsync", "replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (done.append(name), real(*a))[1])
    rows.write(tmp_path / "rows.jsonl", [{"step": 1}])
    assert done == ["fsync"]
    done.clear()
    files.replace(tmp_path / "config.json", "{}", lasting=True)
    assert done == ["fsync", "replace", "fsync"]  # the file, and its name
    done.clear()
    with files.together(tmp_path) as new:
        (new / "a").write_text("")
        (new / "b").write_text("")
    assert done == ["fsync", "fsync", "fsync", "rename", "fsync", "replace", "replace"]


# dashboards


def test_tensorboard_writes_one_sub_run_per_seed_under_the_usual_names(tmp_path, monkeypatch):
    tensorboardx = pytest.importorskip("tensorboardX")
    board = tensorboard(tmp_path)
    board.write([row(0, 100, 9.5, loss=0.25, kl=0.01, bad=None), row(1, 100, 8.0)])
    board.close()
    assert sorted(os.listdir(tmp_path)) == ["seed-0", "seed-1"]
    content = b"".join(path.read_bytes() for path in (tmp_path / "seed-0").iterdir())
    for tag in (b"eval/mean_reward", b"eval/mean_ep_length", b"train/loss", b"actors/kl", b"time/time_elapsed"):
        assert tag in content
    assert b"bad" not in content

    points = []
    monkeypatch.setattr(tensorboardx.SummaryWriter, "add_scalar", lambda self, *point: points.append(point))
    board = tensorboard(tmp_path / "again")
    board.write([row(0, 100, 9.5)])
    board.close()
    assert ("eval/mean_reward", 9.5, 100) in points


def test_tensorboard_says_how_to_install_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'frugalrl\[tensorboard\]'"):
        tensorboard(tmp_path)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_rows_are_tracked_apart_by_seed(name, tmp_path, monkeypatch):
    begun, said = [], []

    def init(**options):
        begun.append(options)
        run = options["name"]
        return SimpleNamespace(
            log=lambda values, step: said.append((run, values, step)), finish=lambda: said.append((run, "finished"))
        )

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    board = DASHBOARDS[name](tmp_path / "run", {"agent": "dqn", "hyper": {"hidden": (64, 64)}})
    board.write([row(0, 100, 9.5, bad=None), row(1, 100, 8.0)])
    board.write([row(0, 200, 10.0)])
    board.close()
    apart = name == "wandb"
    assert [each["name"] for each in begun] == (["run-seed-0", "run-seed-1"] if apart else ["run"])
    assert {each["group"] for each in begun} == {"run"}
    assert begun[0]["config"] == {
        "agent": "dqn", "hyper": {"hidden": [64, 64]}, **({"seed": 0, "member": None} if apart else {})
    }  # fmt: skip
    assert [each.get("mode") for each in begun] == (["offline"] * 2 if apart else [None])
    values = {"eval/mean_reward": 9.5, "eval/mean_ep_length": 9.5, "time/time_elapsed": 0.1}
    if apart:
        assert said[0] == ("run-seed-0", values, 100)
        assert said[3:] == [("run-seed-0", "finished"), ("run-seed-1", "finished")]
    else:
        assert said[0] == ("run", {f"seed-0/{tag}": value for tag, value in values.items()}, 100)
        assert said[3:] == [("run", "finished")]
    assert said[2][2] == 200

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'frugalrl\[{name}\]'"):
        DASHBOARDS[name](tmp_path, {})


# progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_off_a_terminal_are_throttled_but_for_the_first_and_the_last():
    stream, clock = io.StringIO(), Clock()
    with _Lines(1000, stream, clock) as shown:
        shown.status("compiling (first time on this machine: about 10 s)")
        for step in range(0, 1001, 100):
            shown.update(step, Interval(float(step), step - 1.0, step + 1.0), 1234.5, 0.01)
            clock.now += 1.0
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("compiling")
    assert [line.split("%")[0].strip() for line in lines[1:]] == ["0", "50", "100"]
    assert "return 500 [499, 501]" in lines[2]
    assert "ETA 0:05" in lines[2]
    assert "1,234 steps/s" in lines[2]
    assert "KL 0.01" in lines[2]
    assert "500/1,000 steps" in lines[2]


def test_the_time_left_does_not_leap_when_a_run_evaluates():
    """A run of 100 seconds of training and ten evaluations of 20 each."""
    clock = Clock()
    shown = _Lines(10_000, io.StringIO(), clock)
    for step in range(1, 10_000):
        clock.now += 0.01
        shown.update(step)
        if step % 1000 == 0:
            clock.now += 20.0
            shown.update(step)
        left = shown.state.seconds_left()
        if step > 2000:  # an evaluation more or less may lie in the window
            assert left == pytest.approx(300.0 - clock.now, rel=0.4, abs=30.0), step
            assert len(shown.state.heard) < 250


def test_lines_are_ascii_with_their_last_known_values():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with progress(100, stream=stream) as shown:
        shown.status("environment Ünï")
        shown.update(0, Interval(5.0, None, None))
        shown.update(100, None, float("nan"))
    stream.seek(0)
    assert stream.read().splitlines() == [
        "environment ?n?",
        "  0 %  return 5  0/100 steps",
        "100 %  return 5  100/100 steps",
    ]


def test_quiet_prints_nothing(capfd):
    with progress(100, quiet=True) as shown:
        shown.status("compiling")
        shown.update(100, Interval(1.0, 0.0, 2.0), 10.0, 0.1)
    assert capfd.readouterr() == ("", "")


def test_a_closed_stream_does_not_end_the_run():
    stream = io.StringIO()
    with progress(100, stream=stream) as shown:
        stream.close()
        shown.update(50)


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.seek(0)
        return self.read()


@pytest.mark.parametrize("columns", [3, 20, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_the_bar_fits_every_terminal(columns, encoding, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    stream = Terminal(encoding)
    with progress(50_000, stream=stream) as shown:
        shown.status("compiling Ünï [bold]not markup[/bold]")
        shown.update(25_000, Interval(312.4, 280.1, 341.9), 48_731.0, 0.0021)
    lines = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", stream.text().replace("\r", "\n")).split("\n")
    line = next(text for text in reversed(lines) if text.strip())
    assert len(line) <= columns
    if columns >= 80:
        for piece in ("50 %", "return 312 [280, 342]", "48.7k steps/s", "KL 0.0021"):
            assert piece in line


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_fault_is_a_line_that_stays(quiet, term, monkeypatch):
    """Also with --quiet, and however narrow the terminal is."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal("ascii")
    with progress(100, quiet=quiet, stream=stream) as shown:
        shown.say("[a] checkpoint /is/somewhere/5.json is damaged: é", always=True)
        shown.update(100)
    assert "[a] checkpoint /is/somewhere/5.json is damaged: ?\n" in stream.text().replace("\r", "")


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal("utf-8")
    with progress(10, stream=stream) as shown:
        shown.update(10)
    assert stream.text() == "100 %  10/10 steps\n"


def test_progress_imports_neither_rich_nor_jax():
    code = "import frugalrl.monitor.progress, frugalrl.monitor.receipt, sys; print({'rich', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# words


def test_numbers_in_words():
    assert [words.number(x) for x in (0.00213, 48.73, 99.96, 51_200, -3.0, 1e-7, None, math.nan)] == [
        "0.00213", "48.7", "100", "51,200", "-3", "1.00e-07", "unknown", "unknown",
    ]  # fmt: skip
    assert [words.short(x) for x in (0, 950, 999.7, 48_731, 999_600, 1.2e6)] == [
        "0", "950", "1k", "48.7k", "1M", "1.2M",
    ]  # fmt: skip
    assert [words.seconds(x) for x in (0.42, 12.34, 59.97, 245, 11_520)] == [
        "0.42 s", "12.3 s", "1 min 00 s", "4 min 05 s", "3 h 12 min",
    ]  # fmt: skip
    assert [words.size(x) for x in (310, 18_200, 512e6, 1.84e9)] == ["310 B", "18.2 kB", "512 MB", "1.84 GB"]
    assert words.energy(7200) == "7,200 J (2 Wh)"
    assert words.clock(3750) == "1:02:30"


# machine


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def zone(root: Path, index: int, name: str, microjoules: int, limit: int = 1_000_000_000) -> Path:
    path = root / f"intel-rapl:{index}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_meter_counts_cpu_time_of_this_process_its_children_and_its_actors(tmp_path):
    meter = Meter(rapl=tmp_path)
    burn(0.2)
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    alone = meter.finish()
    assert 0.45 < alone.cpu_seconds < 2.0
    together = meter.finish([Usage(100.0, 1_000_000), Usage(200.0, None)])
    assert together.cpu_seconds == pytest.approx(alone.cpu_seconds + 300, abs=0.5)
    assert together.peak_memory_bytes - alone.peak_memory_bytes >= 1_000_000  # type: ignore[operator]
    assert together.wall_seconds >= 0.2


def test_usage_of_another_process_is_what_it_used():
    code = "import time\nx = bytearray(50_000_000)\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        if not Path("/proc/self/stat").exists():
            pytest.skip("needs /proc")
        used = usage(child.pid)
        child.communicate(b"\n")
    assert 0.25 < used.cpu_seconds < 1.0
    assert 50_000_000 < used.peak_memory_bytes < 100_000_000  # type: ignore[operator]
    with pytest.raises(ProcessLookupError):
        usage(child.pid)


def test_peak_memory_outlives_what_used_it():
    if usage().peak_memory_bytes is None:
        pytest.skip("this system does not tell")
    code = (
        "from frugalrl.monitor.machine import usage\nbefore = usage().peak_memory_bytes\n"
        "block = bytearray(b'1') * 100_000_000\ndel block\nprint(usage().peak_memory_bytes - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < 250e6


def test_energy_is_read_from_counters_that_start_again(tmp_path):
    clock = Clock()
    package = zone(tmp_path, 0, "package-0", 999_000_000)
    core = zone(tmp_path, 1, "core", 0)  # within the package: not counted again
    dram = zone(tmp_path, 2, "dram", 0)
    meter = Meter(rapl=tmp_path, clock=clock)
    for package_now, dram_now in ((2_000_000, 500_000), (5_000_000, 1_000_000)):
        clock.now += 1.0
        (package / "energy_uj").write_text(str(package_now))
        (dram / "energy_uj").write_text(str(dram_now))
        (core / "energy_uj").write_text(str(package_now))
        meter.tick()
    cost = meter.finish()
    assert cost.energy_joules == pytest.approx(3.0 + 3.0 + 1.0)
    assert cost.energy_method.startswith("measured: RAPL")


def test_a_gap_in_which_a_counter_could_start_again_unseen_gives_an_estimate(tmp_path):
    clock = Clock()
    zone(tmp_path, 0, "package-0", 0)
    meter = Meter(rapl=tmp_path, clock=clock)
    clock.now += 3.0  # 1000 J at 400 W take 2.5 s
    assert meter.finish().energy_method.startswith("estimated")


def test_counters_that_may_not_be_read_give_an_estimate(tmp_path):
    zone(tmp_path, 0, "package-0", 0)
    (zone(tmp_path, 1, "dram", 0) / "energy_uj").unlink()
    (tmp_path / "intel-rapl:1" / "energy_uj").mkdir()  # as root only may read it on most systems
    cost = Meter(rapl=tmp_path).finish()
    assert cost.energy_method.startswith("estimated: CPU seconds x 10 W")
    assert cost.energy_joules == pytest.approx(10 * cost.cpu_seconds)


def test_counters_are_of_the_whole_processor_whatever_the_process_does(tmp_path):
    clock = Clock()
    package = zone(tmp_path, 0, "package-0", 0)
    meter = Meter(rapl=tmp_path, clock=clock)
    clock.now += 1.0
    (package / "energy_uj").write_text("70000000")
    cost = meter.finish([Usage(1000.0, None)])
    assert cost.energy_joules == 70.0
    assert "whole processor, all its users included" in cost.energy_method


def test_energy_without_counters_is_an_estimate_that_says_its_assumption(tmp_path):
    meter = Meter(rapl=tmp_path, watts_per_core=7.5)
    cost = meter.finish([Usage(100.0, None)])
    assert cost.energy_joules == pytest.approx(7.5 * cost.cpu_seconds)
    assert cost.energy_joules >= 750  # type: ignore[operator]
    assert "7.5 W" in cost.energy_method


def test_a_resumed_run_costs_all_its_sessions(tmp_path):
    meter = Meter(before=COST, rapl=tmp_path)
    cost = meter.finish([Usage(2.0, 10**12)])
    assert cost.wall_seconds >= 10.0
    assert 20.0 <= cost.cpu_seconds < 21.0
    assert cost.energy_joules >= 200.0  # type: ignore[operator]
    assert cost.peak_memory_bytes >= 10**12  # type: ignore[operator]


def test_hardware_and_versions_are_known():
    machine = hardware()
    assert machine["cores"] >= 1
    assert machine["cpu"]
    assert machine["memory_bytes"] > 100e6
    assert versions()["numpy"] == np.__version__
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))


# receipt


def example(**changes) -> dict:
    options = {
        "agent": "dqn", "env": "CartPole-v1", "runtime": "actors", "seeds": 4, "steps": 1000, "cost": COST,
        "per_seed": [1.0, 2.0, 3.0, 4.0], "compile_seconds": 1.5, "evaluation_seconds": 0.5,
        "time_split": {"environment": 3.0, "learner": 1.0}, "actors": {"mode": "int8", "engine": "litert"},
    }  # fmt: skip
    return receipt(**{**options, **changes})


def test_receipt_has_the_keys_of_the_contract():
    made = example(note="kept")
    assert set(KEYS) <= set(made)
    assert set(made["returns"]) == {"iqm", "low", "high", "per_seed"}
    assert list(made["time_split"]) == ["environment", "inference", "transport", "learner", "compressor", "other"]
    assert set(made["actors"]) == {"mode", "engine", "fallback", "refreshes", "packet_bytes", "kl", "ratio", "ess"}
    assert made["time_split"]["inference"] is None
    assert made["actors"]["kl"] is None
    assert made["note"] == "kept"
    assert example(actors=None)["actors"] is None


def test_receipt_adds_up():
    made = example()
    assert made["env_steps_per_second"] == pytest.approx(4 * 1000 / (10.0 - 1.5 - 0.5))
    assert Interval(*(made["returns"][k] for k in ("iqm", "low", "high"))) == bootstrap([1.0, 2.0, 3.0, 4.0])
    assert example(training_steps=16)["env_steps_per_second"] == pytest.approx(2.0)
    assert example(per_seed=[])["returns"]["iqm"] is None
    assert example(per_seed=[7.0])["returns"] == {"iqm": 7.0, "low": None, "high": None, "per_seed": [7.0]}


def test_receipt_refuses_a_part_of_time_it_does_not_know():
    with pytest.raises(ValueError, match="enviroment"):
        example(time_split={"enviroment": 1.0})


def test_receipt_survives_the_file(tmp_path):
    made = example(per_seed=[1.0, math.nan])
    write(tmp_path / "receipt.json", made)
    text = (tmp_path / "receipt.json").read_text()
    assert "NaN" not in text
    assert read(tmp_path / "receipt.json") == made
    assert os.listdir(tmp_path) == ["receipt.json"]
    assert read(tmp_path / "absent.json") is None
    (tmp_path / "receipt.json").write_text(text[:50])
    with pytest.raises(ValueError, match=r"receipt\.json"):
        read(tmp_path / "receipt.json")


@pytest.mark.parametrize(
    "changes", [{}, {"per_seed": []}, {"actors": None, "time_split": None, "compile_seconds": None}]
)
def test_receipt_shows_in_80_plain_columns(changes):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    show(example(**changes), stream)
    stream.seek(0)
    text = stream.read()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "dqn on CartPole-v1, 4 seeds, actors" in text
    assert "180 J" in text
    if not changes:
        assert "environment 75 %, learner 25 %" in text


def test_a_receipt_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path / "receipt.json", {"old": 1})

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "receipt.json", {"new": 1})
    assert read(tmp_path / "receipt.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["receipt.json"]


def test_what_levers_saved_is_told_in_words_and_in_the_report(tmp_path):
    found = [
        Saving("--actors int8", "weights <sent>", "bytes", 40_000, 10_000),
        Saving("--actors int8", "a call", "microseconds", 5.0, 10.0),
        Saving("--prune", "parameters", "parameters", 20_000, 5_000),
    ]
    stream = io.StringIO()
    made = example(savings=[one._asdict() for one in found])
    show(made, stream)
    text = " ".join(stream.getvalue().split())
    assert "--actors int8: weights <sent> 10 kB instead of 40 kB (4x); --actors int8: a call 10 us" in text
    write(fill(tmp_path) / "receipt.json", made)
    shown = page(tmp_path).text
    assert "--actors int8 weights <sent> 40 kB 10 kB 4x --actors int8 a call 5 us 10 us 0.5x" in shown
    assert "--prune parameters 20,000 5,000 4x" in shown
    write(tmp_path / "receipt.json", example())
    assert "What each lever saved" not in page(tmp_path).text


def test_receipt_in_colour_says_the_same(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, terminal = io.StringIO(), Terminal("utf-8")
    show(example(), plain)
    show(example(), terminal)
    coloured = terminal.text()
    assert "\x1b[" in coloured
    codes = coloured.split("\x1b[")
    assert codes[0] + "".join(code.partition("m")[2] for code in codes[1:]) == plain.getvalue()


# charts


@pytest.mark.parametrize(("low", "high"), [(0, 500), (-1834.2, -120), (0.97, 0.991), (3, 3), (0, 0), (1e-7, 3e-7)])
def test_ticks_are_round_and_cover(low, high):
    marks = charts.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    assert 2 <= len(marks) <= 8
    steps = np.diff(marks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


def test_the_bold_curve_is_the_iqm_of_the_seeds():
    lines = [charts.Line(f"seed {i}", [0.0, 10.0, 20.0], [i, 2.0 * i, 3.0 * i]) for i in range(4)]
    summary = charts.curve(lines)
    assert summary.x == [0.0, 10.0, 20.0]
    assert summary.intervals[1] == bootstrap([0.0, 2.0, 4.0, 6.0], resamples=1000)


@pytest.mark.parametrize("other", [15.8, math.nextafter(15.8, 16), 15.8 * (1 + 1e-12), 15.801])
def test_returns_that_hardly_differ_are_drawn(other):
    drawn = charts.learning_curve([charts.Line("seed 0", [1.0, 2.0], [15.8, other])], "name", "return")
    assert drawn.count('class="tick"') > 2
    assert "nan" not in drawn


def test_seeds_evaluated_at_other_steps_are_interpolated_where_all_have_been():
    lines = [charts.Line("a", [0.0, 10.0, 20.0], [0.0, 10.0, 20.0]), charts.Line("b", [5.0, 15.0], [5.0, 15.0])]
    summary = charts.curve(lines)
    assert summary.x == [5.0, 10.0, 15.0]
    assert [interval.point for interval in summary.intervals] == [5.0, 10.0, 15.0]


# report


class Page(HTMLParser):
    """Collects what a page has, and fails on a tag that is not closed."""

    VOID = ("meta",)

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.classes += (attributes.get("class") or "").split()
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(folder: Path) -> Page:
    path = report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def fill(folder: Path, config: bool = True, values: bool = True, finished: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        wanted = {
            "format": 1,
            "agent": "dqn",
            "env": "CartPole-v1",
            "steps": 1000,
            "hyper": {"note": "<b>&\"'", "hidden": [64, 64]},
        }
        (folder / "config.json").write_text(json.dumps(wanted))
    if values:
        for step in (0, 500, 1000):
            rows.write(folder / "rows.jsonl", [row(s, step, step + 10.0 * s, kl=0.01 * s) for s in range(4)])
    if finished:
        write(folder / "receipt.json", example())
    return folder


def test_report_of_a_finished_run(tmp_path):
    shown = page(fill(tmp_path / "a run"))
    assert shown.tags.count("polyline") == 2 * (4 + 1)  # returns and KL: a line for each seed and a bold one
    assert shown.classes.count("band") == 2
    assert {"part-0", "part-3"} <= set(shown.classes)
    assert shown.tags.count("desc") == 3
    assert "hyper.note <b>&\"'" in shown.text
    assert "hyper.hidden 64, 64" in shown.text
    assert f"frugal export '{tmp_path}/a run' --format onnx" in shown.text
    assert "--steps 2000" in shown.text
    assert "did not finish" not in shown.text
    assert "Not measured here: inference, transport, compressor, other" in shown.text
    assert "Energy 180 J 0.05 Wh, estimated" in shown.text
    assert "energy 180 J (0.05 Wh), estimated: CPU seconds x 10 W for a busy core" in shown.text


def test_report_needs_nothing_else(tmp_path):
    shown = page(fill(tmp_path))
    assert not {"script", "link", "img", "iframe", "object"} & set(shown.tags)
    assert shown.links == []
    text = (tmp_path / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_report_of_a_run_that_did_not_finish(tmp_path):
    shown = page(fill(tmp_path, finished=False))
    assert f"The run did not finish: frugal resume {tmp_path}" in shown.text
    assert "polyline" in shown.tags
    assert "Receipt" not in shown.text


def test_report_before_the_first_evaluation(tmp_path):
    shown = page(fill(tmp_path, values=False, finished=False))
    assert "No evaluation yet." in shown.text
    assert "svg" not in shown.tags
    assert "CartPole-v1" in shown.text


def test_report_of_rows_alone(tmp_path):
    rows.write(tmp_path / "rows.jsonl", [row(0, 0, math.nan), row(0, 10, 5.0)])
    shown = page(tmp_path)
    assert "dqn on CartPole-v1" in shown.text
    assert "1 of 2 evaluations gave a return that is not a finite number" in shown.text
    assert "band" not in shown.classes


def test_report_of_an_empty_folder(tmp_path):
    assert "No evaluation yet." in page(tmp_path).text


def test_report_of_constant_returns(tmp_path):
    rows.write(tmp_path / "rows.jsonl", [row(seed, step, 0.0) for seed in (0, 1) for step in (0, 10)])
    assert "nan" not in page(tmp_path).text


def test_report_of_a_study_is_a_table_of_its_runs(tmp_path):
    fill(tmp_path / "dqn & co")
    fill(tmp_path / "deeper" / "rainbow", finished=False)
    shown = page(tmp_path)
    assert "2 runs, 1 finished" in shown.text
    assert shown.links == ["deeper/rainbow/report.html", "dqn%20%26%20co/report.html"]
    assert all((tmp_path / link).is_file() for link in ("deeper/rainbow/report.html", "dqn & co/report.html"))
    assert "whisker" in shown.classes
    assert "10 s 18 s 180 J" in shown.text  # of the run that has finished
    assert ">dqn &amp; co</a>" in (tmp_path / "report.html").read_text()
    assert "not finished" in shown.text


def test_report_leaves_alone_what_is_not_a_run(tmp_path):
    fill(tmp_path / "all" / "run")
    (tmp_path / "all" / "link").symlink_to(fill(tmp_path / "elsewhere"))
    other = tmp_path / "all" / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "report.html").write_text("mine")
    for _ in range(2):  # its own page is written again
        assert page(tmp_path / "all").links == ["run/report.html"]
    assert not (tmp_path / "elsewhere" / "report.html").exists()
    with pytest.raises(UsageError, match="was not written by FrugalRL"):
        report(other)
    assert (other / "report.html").read_text() == "mine"


def test_what_a_file_says_is_text_and_no_script(tmp_path):
    name = '"><script>alert(1)</script>'
    fill(tmp_path, values=False, finished=False)
    about = json.loads((tmp_path / "config.json").read_text())
    population = {"kind": "pbt", "members": 2, "search": {name: "uniform:0:1"}}
    (tmp_path / "config.json").write_text(json.dumps(about | {"population": population}))
    for step in (1, 2):
        rows.write(
            tmp_path / "rows.jsonl", [row(s, step, 1.0, **{"member": m, name: 0.5}) for s in (0, 1) for m in (0, 1)]
        )
    assert "script" not in page(tmp_path).tags
    text = (tmp_path / "report.html").read_text()
    assert "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'" in text
    rows.write(tmp_path / "rows.jsonl", [row(0, 3, 1.0, **{"member": name, name: 0.5})])
    with pytest.raises(BadFile, match="line 9: not a row"):
        report(tmp_path)


def test_a_folder_whose_name_is_no_text_is_reported(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    faults = [f"{folder} is damaged"]
    write(fill(folder) / "receipt.json", example(faults=faults))
    assert "is damaged" in page(folder).text
    assert read(folder / "receipt.json")["faults"] == faults


def test_report_refuses_a_folder_that_is_not_there_and_a_damaged_file(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        report(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        report(tmp_path)


def test_report_of_a_run_that_was_stopped_says_so_and_tells_the_price(tmp_path):
    write(fill(tmp_path) / "receipt.json", example(finished=False))
    report(tmp_path, price=360.0)
    shown = Page((tmp_path / "report.html").read_text())
    assert f"The run did not finish: frugal resume {tmp_path}" in shown.text
    assert "money 1 at 360 an hour of wall time" in shown.text


# compare


def sides(folder: Path) -> list:
    """Three runs: one, a better one, and one that has not finished."""
    ours, theirs, other = (fill(folder / name) for name in ("base", "bet<b>ter", "third"))
    cost = COST._replace(wall_seconds=5.0, energy_joules=90.0)
    write(ours / "receipt.json", example(finished=True))
    write(theirs / "receipt.json", example(finished=True, per_seed=[3.0, 4.0, 5.0, 6.0], cost=cost))
    (other / "receipt.json").unlink()
    for path, rate in ((ours, 1), (theirs, 2), (other, 1)):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(
            json.dumps(config | {"first_steps": rate, "hyper": {**config["hyper"], "rate": rate}})
        )
    return compare([ours, theirs, other])


def test_runs_are_held_against_the_first(tmp_path):
    first, better, third = sides(tmp_path)
    assert (first.difference, first.improvement) == (None, None)
    assert better.difference == difference([3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0])
    assert better.improvement == improvement([3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0])
    assert third.scores == [1000.0, 1010.0, 1020.0, 1030.0]  # of its last evaluations
    lines = list(told([first, better, third], price=360.0))
    assert re.search(r"^bet<b>ter +4 +1k +4.5 \[.*\] +2 \[.*\] +0.875 \[.*\]$", lines[2])
    assert re.search(
        r"^bet<b>ter +5 s \(0.5x\) +18 s \(1x\) +90 J \(0.5x\) +512 MB \(1x\) +0.5$", "\n".join(lines), re.M
    )
    assert re.search(r"^hyper.rate +1 +2 +1$", "\n".join(lines), re.M)
    assert not re.search("hyper.note|first_steps", "\n".join(lines))
    assert any(line.startswith("Not finished: third.") for line in lines)


def test_the_page_of_a_comparison_needs_nothing_else(tmp_path):
    write_comparison(sides(tmp_path), tmp_path / "new.html", price=360.0)
    shown = Page((tmp_path / "new.html").read_text())
    assert shown.tags.count("polyline") == 3
    assert shown.classes.count("whisker") == 3
    assert shown.links == []
    assert not {"script", "link", "img", "b"} & set(shown.tags)
    for text in ("difference from base", "bet<b>ter", "0.875", "5 s (0.5x)", "hyper.rate", "Money at 360 an hour"):
        assert text in shown.text


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["a"], "at least two"), (["a", "../{here}/a"], "given twice"), (["a", "none"], "is not a run folder"),
        (["a", "other"], "no common scale"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(folders, said, tmp_path):
    for name, env in (("a", "CartPole-v1"), ("other", "Acrobot-v1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"agent": "dqn", "env": env}))
    with pytest.raises(UsageError, match=said):
        compare([tmp_path / name.format(here=tmp_path.name) for name in folders])


# watch


def test_a_run_is_watched_until_it_ends(tmp_path):
    tmp_path /= "a run"
    fill(tmp_path, finished=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"agent": "d\x1b[2Jqn\nno line"}))
    live.write(tmp_path, 1000, 4000, 50.0, None)

    def sleep(_: float) -> None:
        live.remove(tmp_path)
        write(tmp_path / "receipt.json", example(finished=True))

    stream = io.StringIO()
    watch(tmp_path, stream, sleep=sleep)
    first, last = stream.getvalue().split(" on CartPole-v1, ")[1:]
    assert stream.getvalue().startswith("d?[2Jqn?no line on")
    for text in ("running", "1,000 of 4,000 of all seeds, 25 %", "1 min 00 s", "1,015 [1,000, 1,030]", "▁▅█"):
        assert text in first
    for text in ("finished", "10 s", f"frugal eval '{tmp_path}'", "18 s"):
        assert text in last
    assert "\x1b" not in stream.getvalue()
    assert live.read(tmp_path) is None


@pytest.mark.parametrize("progress", [None, 120, 1200])
@pytest.mark.parametrize("locks", [True, False])
def test_a_run_that_was_killed_is_not_watched_for_ever(progress, locks, tmp_path, monkeypatch):
    """Nobody holds its lock; where there are no locks it goes by age."""
    ahead, begun = 0.0, time.time()
    fill(tmp_path, finished=False, values=False)
    (tmp_path / files.LOCK).touch()
    monkeypatch.setattr(time, "time", lambda: begun + ahead)
    if progress is not None:
        live.write(tmp_path, 1000, 4000, 50.0, None)
        ahead = float(progress)

    def sleep(_: float) -> None:
        nonlocal ahead
        ahead += 100
        assert ahead < 2000

    stream = io.StringIO()
    with monkeypatch.context() as patch:
        if not locks:
            patch.setitem(sys.modules, "fcntl", None)
        watch(tmp_path, stream, sleep=sleep)
    assert "not running" in stream.getvalue()
    assert f"frugal resume {tmp_path}" in stream.getvalue()
    assert (ahead != (progress or 0)) == (not locks and progress != 1200)
    with files.held(tmp_path, "taken"):
        assert look(tmp_path)[2].startswith("starting" if progress is None else "running, but silent")


def test_a_run_is_watched_in_place_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal("latin-1")
    watch(fill(tmp_path), stream)
    assert re.search(r"learning +_\+#", stream.text())


def test_a_run_that_is_silent_says_so_and_what_is_damaged_is_not_believed(tmp_path):
    run, now = load(fill(tmp_path, finished=False)), live.Now(1, 2, None, None, time.time() - 120)
    assert state(run, now, True) == "running, but silent for 2 min 00 s"
    assert state(run, None, True) == "starting"
    (tmp_path / live.FILE).write_text('{"step": "x"}')
    assert live.read(tmp_path) is None


def test_the_page_of_a_run_that_goes_on_is_for_this_machine_alone(tmp_path):
    live.write(fill(tmp_path, finished=False), 1000, 4000, 50.0, 0.25)
    server = serve(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"

        def get(path: str = "/", name: str = f"127.0.0.1:{port}"):
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path, headers={"Host": name})
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer, text

        answer, text = get()
        shown = Page(text)
        assert answer.status == 200
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert '<meta http-equiv="refresh" content="5">' in text
        assert "25 %" in shown.text
        assert "hyper.note <b>&\"'" in shown.text
        assert "did not finish" not in shown.text
        assert not {"script", "link", "img"} & set(shown.tags)
        assert get(name=f"evil.example:{port}")[0].status == 403
        assert get("/../config.json")[0].status == 404
        (tmp_path / "config.json").write_text("{")
        assert get()[0].status == 503
    finally:
        server.shutdown()
        server.server_close()
