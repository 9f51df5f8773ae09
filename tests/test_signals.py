"""Ctrl-C, SIGTERM and kill -9 at several moments of a run: one line, nothing lost, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import (
    actors_of,
    checkpoints,
    finish,
    has_rows,
    interrupt,
    receipt,
    rows,
    running,
    shared_folders,
    start,
    timeless,
    wait_for,
)  # fmt: skip

from frugalrl import checkpoint, cli, jobs, training
from frugalrl.errors import Stopped
from frugalrl.monitor import words
from frugalrl.monitor.watch import figures, look
from frugalrl.signals import Stop

STEPS = "40000"
HYPER = ("--hyper", "hidden=16", "batch_size=32", "learning_starts=500")
SMALL: dict[str, Any] = {"steps": 3000, "hyper": {"hidden": (16,), "batch_size": 32, "learning_starts": 500}}
RUNTIMES = ("compiled", "actors")


def train(runtime: str, out: Path, *more: str) -> subprocess.Popen:
    words = ["train", "dqn", "CartPole-v1", "--steps", STEPS, "--runtime", runtime, "--out", out, "--quiet"]
    return start(*words, *HYPER, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert finish(train("compiled", out)) == (0, "", "")
    return out


def assert_nothing_runs(pid: int, actors: list[int]) -> None:
    wait_for(lambda: not any(map(running, actors)), seconds=10)
    assert shared_folders(pid) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_saves_the_run_and_resume_finishes_it(runtime, signum, code, tmp_path, whole):
    out = tmp_path / "run"
    process = train(runtime, out)
    wait_for(lambda: has_rows(out, 2))
    actors = actors_of(process.pid)
    assert all(os.getpgid(pid) != process.pid for pid in actors)  # a terminal's Ctrl-C does not reach them
    interrupt(process, signum)
    ended = finish(process)
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("frugal: stopped at step ")
    assert ended.err.endswith(f"saved, go on with: frugal resume {out}\n")
    assert len(actors) == (2 if runtime == "actors" else 0)
    assert_nothing_runs(process.pid, actors)

    saved, before = int(checkpoints(out)[-1].stem), rows(out)
    assert not receipt(out)["finished"]
    assert receipt(out)["steps"] == saved < int(STEPS)
    lost = receipt(out)["actors"]["lost_unrolls"] if runtime == "actors" else 0
    assert lost <= 4  # two slots of each actor
    assert cli.main(["resume", str(out), "--quiet"]) == 0
    assert receipt(out)["finished"]
    if runtime == "actors":
        assert receipt(out)["actors"]["lost_unrolls"] == lost
    steps = [row["step"] for row in rows(out)]
    assert steps == sorted(set(steps))
    assert len(steps) == 10
    assert rows(out)[: len(before)] == before
    if runtime == "compiled":
        assert timeless(rows(out)) == timeless(rows(whole))


EVOLVING = {"kind": "pbt", "members": 2, "search": {"learning_rate": "log:1e-4:1e-2"}, "ready": 2500}


@pytest.mark.parametrize(
    ("stops", "how", "more"),
    [
        *((stops, how, {}) for stops, how in ((1, 2), (4, 2), (40, 2), (30, 0), (110, 0))),
        pytest.param(30, 0, {"population": EVOLVING}, marks=pytest.mark.long),
        pytest.param(400, 0, {"population": EVOLVING}, marks=pytest.mark.long),
    ],
)
def test_a_compiled_run_stopped_at_any_moment_has_the_rows_of_one_that_was_not(stops, how, more, tmp_path, monkeypatch):
    """Stopped by a signal or its budget, between any two iterations: within what a row's metrics are means over."""

    def run(out, piece, asked):
        with monkeypatch.context() as patch:
            patch.setattr(Stop, "asked", asked)
            patch.setattr(jobs, "PIECE", piece)
            return training.train("dqn", "CartPole-v1", **SMALL, out=tmp_path / out, **more)

    looks, out = [], tmp_path / "stopped"
    run("whole", 1e9, lambda stop: None)
    with pytest.raises(Stopped) if how else nullcontext():
        ended = run("stopped", 1e-9, lambda stop: looks.append(0) or (how if len(looks) == stops else None))
        assert (ended.receipt["finished"], ended.predict(np.zeros(4, np.float32)) in (0, 1)) == (False, True)
    reached, before = receipt(out), rows(out) if has_rows(out, 1) else []
    assert (reached["steps"], reached["episodes_per_seed"]) == (int(checkpoints(out)[-1].stem), 20)
    assert all(row["step"] < reached["steps"] for row in before)  # no row of where nobody else would have one
    if not how:  # what was reached is known all the same, also to those who only look
        assert reached["returns"]["iqm"] not in (None, *(row["episode_return"] for row in before))
        assert dict(figures(*look(out)))["return"] == words.number(reached["returns"]["iqm"])
    training.resume(out)
    assert timeless(rows(out)) == timeless(rows(tmp_path / "whole"))


def test_a_long_compiled_run_tells_its_time_and_obeys_within_seconds(monkeypatch, capfd):
    """Of which a fiftieth is minutes."""
    monkeypatch.setattr(training, "PACE", 0.0)
    tell, told = training.Sitting._tell, []

    def interrupted(*words):
        tell(*words)
        told.append(words[1])
        if len(told) == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training.Sitting, "_tell", interrupted)
    with pytest.raises(Stopped) as stopped:
        training.train("dqn", "CartPole-v1", steps=500_000_000, hyper={"hidden": (16,)}, quiet=False)
    assert len(told) == 4
    assert stopped.value.step < 5_000_000
    said = capfd.readouterr().err
    assert [said.count(text) for text in ("\nestimate: ", "frugal: stopping; Ctrl-C again ends at once")] == [1, 1]


@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.2])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_signal_at_the_beginning_ends_the_run_cleanly(runtime, seconds, tmp_path):
    out = tmp_path / "run"
    process = train(runtime, out)
    time.sleep(seconds)  # Python starts, imports, compiles
    interrupt(process)
    ended = finish(process)
    # or Python itself was not up yet, or busy with the command line's own imports
    assert ended.code == 130 or (ended.code == -signal.SIGINT and "in main" not in ended.err)
    if ended.code == 130:
        assert ended.err.startswith("frugal: ")
        assert ended.err.count("\n") == 1
    assert_nothing_runs(process.pid, [])
    assert not out.exists() or checkpoints(out)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_second_ctrl_c_ends_the_run_at_once(runtime, tmp_path):
    out = tmp_path / "run"
    process = start("train", "dqn", "CartPole-v1", "--runtime", runtime, "--steps", "2000000", "--out", out, *HYPER,
                    "batch_size=512", "--quiet")  # fmt: skip
    wait_for((out / "config.json").exists)
    actors = wait_for(lambda: actors_of(process.pid)) if runtime == "actors" else []
    interrupt(process)
    time.sleep(0.35)
    began = time.monotonic()
    if process.poll() is None:
        interrupt(process)
    ended = finish(process)
    assert time.monotonic() - began < 2
    assert ended.code == 130
    assert ended.err.count("\n") == 1
    assert_nothing_runs(process.pid, actors)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_wrapper_sends_twice_is_one_signal(signum, tmp_path):
    out = tmp_path / "run"
    process = train("compiled", out)
    wait_for(lambda: has_rows(out, 1))
    for _ in range(3):
        interrupt(process, signum)
        time.sleep(0.02)
    ended = finish(process)
    assert ended.code == 128 + signum
    assert "saved" in ended.err


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_run_that_was_killed_resumes(runtime, tmp_path, whole):
    out = tmp_path / "run"
    process = train(runtime, out)
    wait_for(lambda: has_rows(out, 1))
    actors = actors_of(process.pid)
    process.kill()
    finish(process)
    wait_for(lambda: not any(map(running, actors)), seconds=10)  # they see that nobody reads any more
    assert len(shared_folders(process.pid)) == (runtime == "actors")
    assert checkpoints(out) == []
    assert cli.main(["resume", str(out), "--quiet"]) == 0  # from the beginning
    assert len(rows(out)) == 10
    if runtime == "compiled":
        assert timeless(rows(out)) == timeless(rows(whole))
    else:
        assert shared_folders(process.pid) == []  # swept by the next run


def test_the_state_is_saved_now_and_then(tmp_path, monkeypatch):
    """What a run that is killed resumes from."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint.Writer, "due", lambda writer: True)
    found = []

    def look(sitting: training.Sitting, *what: Any) -> None:
        for writer in sitting.writers:
            writer.wait()
        found.append((checkpoints(out), (out / "receipt.json").exists()))

    monkeypatch.setattr(training.Sitting, "_show", look)
    out = tmp_path / "run"
    training.train("dqn", "CartPole-v1", **SMALL, out=out)
    assert [len(saved) for saved, _ in found][:4] == [0, 1, 2, 2]
    assert found[1][1]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_library_call_gets_stopped_and_gives_the_signals_back(runtime, tmp_path, monkeypatch):
    before, show = signal.getsignal(signal.SIGINT), training.Sitting._show

    def interrupted(*words):
        signal.raise_signal(signal.SIGINT)
        return show(*words)

    monkeypatch.setattr(training.Sitting, "_show", interrupted)
    with pytest.raises(Stopped, match=f"frugal resume {tmp_path / 'run'}") as stopped:
        training.train("dqn", "CartPole-v1", **SMALL, runtime=runtime, out=tmp_path / "run")
    assert stopped.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert actors_of(os.getpid()) == []  # also while somebody holds on to the error
    assert shared_folders(os.getpid()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_run_is_prepared_leaves_what_was_there(signum, tmp_path, monkeypatch):
    out, prepare = tmp_path / "run", training._prepare
    training.train("dqn", "CartPole-v1", **SMALL, out=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def interrupted(*words):
        signal.raise_signal(signum)
        return prepare(*words)

    monkeypatch.setattr(training, "_prepare", interrupted)
    for call in (
        lambda: training.train("dqn", "CartPole-v1", steps=4000, out=out, force=True),
        lambda: training.resume(out, steps=4000),
    ):
        with pytest.raises(Stopped, match="stopped before it began"):
            call()
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_second_signal_is_pythons_own_in_a_library_call():
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked() == signal.SIGINT
        signal.raise_signal(signal.SIGINT)  # the echo of the first
        stop.at -= 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.asked() is None
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_budget_asks_to_stop():
    stop = Stop(budget=0.5 / 60)
    assert stop.asked() is None
    stop.deadline = time.perf_counter() - 1
    assert stop.asked() == 0


def test_ctrl_c_in_a_command_that_does_not_train(tmp_path):
    code = "import frugalrl.cli as c, signal\n"
    code += "def agents(a): signal.raise_signal(signal.SIGINT)\n"
    code += "c.COMMANDS['agents'] = agents; raise SystemExit(c.main())"
    ended = subprocess.run([sys.executable, "-c", code, "agents"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "frugal: interrupted\n")
