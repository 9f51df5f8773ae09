"""The campaign: processes killed at random moments and a disk that is really full. The short forms are in
test_signals.py, test_actors.py and test_checkpoint.py; docs/reliability.md has the whole table.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import actors_of, checkpoints, receipt, rows, timeless, wait_for

from frugalrl import checkpoint, cli, config, training

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("FRUGALRL_KILLS", "50"))
HYPER = {"hidden": (16,), "batch_size": 32, "learning_starts": 500}
WORDS = ("hidden=16", "batch_size=32", "learning_starts=500")
# a checkpoint at every moment, so that there is always one under way
EAGER = """
import sys
from frugalrl import checkpoint, cli, training
training.SAVE_SECONDS = 0
checkpoint.Writer.due = lambda writer: True
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.timeout(3600)
def test_a_learner_killed_again_and_again_ends_with_the_rows_of_one_that_was_not(tmp_path):
    out, draw, reached = tmp_path / "run", random.Random(0), 0
    steps = 400 * KILLS + 3000
    for _ in range(KILLS):
        words = ["train", "dqn", "CartPole-v1", "--steps", steps, "--out", out, "--hyper", *WORDS]
        if (out / "config.json").exists():
            words = ["resume", out]
        before = [path.stem for path in checkpoints(out)]
        process = subprocess.Popen(
            [sys.executable, "-c", EAGER, *map(str, words), "--quiet"], stderr=subprocess.PIPE, text=True
        )
        # a moment of the start, or one of the training: once it has saved something
        if draw.random() < 0.8:
            wait_for(lambda: [p.stem for p in checkpoints(out)] != before or process.poll() is not None, 240)  # noqa: B023
        time.sleep(draw.random())
        process.kill()
        _, said = process.communicate()
        assert said == "", said
        if (out / "config.json").exists():
            assert config.read(out).steps == steps
            newest = checkpoint.newest(out / "checkpoints" / "all", pytest.fail) or 0
            assert newest >= reached
            reached = newest
    assert reached > 0
    training.resume(out)
    whole = training.train("dqn", "CartPole-v1", steps=steps, hyper=HYPER)
    assert repr(timeless(rows(out))) == repr([_read_back(row) for row in timeless(whole.rows)])
    assert receipt(out)["finished"]


def _read_back(row: dict) -> dict:
    """A row as the file has it."""
    return {name: None if value != value else value for name, value in row.items()}


@pytest.mark.timeout(3600)
def test_actors_killed_again_and_again_cost_their_unrolls_and_no_more(tmp_path):
    draw, killed, done = random.Random(1), [], threading.Event()

    def campaign() -> None:
        while len(killed) < KILLS and not done.wait(0.5 + 2 * draw.random()):
            found = actors_of(os.getpid())
            if found:
                os.kill(draw.choice(found), signal.SIGKILL)
                killed.append(0)

    thread = threading.Thread(target=campaign)
    thread.start()
    try:
        hyper = HYPER | {"train_freq": 16}
        steps = 1000 * KILLS
        result = training.train("dqn", "fake_env:Slow-v0", steps=steps, hyper=hyper, out=tmp_path / "run")
    finally:
        done.set()
        thread.join()
    assert len(killed) > KILLS / 2
    assert len(killed) / 2 <= result.receipt["actors"]["restarts"] <= len(killed)
    late = [row["step"] - steps // 10 * (k + 1) for k, row in enumerate(result.rows)]
    assert len(late) == 10
    assert 0 <= min(late) <= max(late) < 64  # a message
    assert result.receipt["finished"]
    assert not actors_of(os.getpid())


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and a function that makes the disk larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> int:
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return subprocess.run(words, capture_output=True).returncode

    if sys.platform != "linux" or os.geteuid() != 0 or mount("size=400k"):
        pytest.skip("a disk can only be mounted by root")
    yield folder, lambda size: mount("remount", f"size={size}")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_keeps_the_last_good_checkpoint(small_disk, monkeypatch, capfd):
    disk, grow = small_disk
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint.Writer, "due", lambda writer: True)
    out: Path = disk / "run"
    assert (
        cli.main(["train", "dqn", "CartPole-v1", "--steps", "3000", "--quiet", "--out", str(out), "--hyper", *WORDS])
        == 1
    )
    *told, last = capfd.readouterr().err.splitlines()
    assert all(
        "No space left on device; the run goes on, and the last good checkpoint is kept" in line for line in told
    )
    assert "No space left on device" in last
    assert f"frugal resume {out}" in last
    assert checkpoint.newest(out / "checkpoints" / "all", pytest.fail) in range(1, 3000)
    assert grow("20m") == 0
    assert cli.main(["resume", str(out), "--quiet"]) == 0
    whole = training.train("dqn", "CartPole-v1", steps=3000, hyper=HYPER)
    assert repr(timeless(rows(out))) == repr([_read_back(row) for row in timeless(whole.rows)])
