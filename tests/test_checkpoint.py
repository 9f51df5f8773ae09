"""Checkpoints: what is written and what is not, that damage is found out, and that a full disk costs no run."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import checkpoints, receipt, rows, timeless

import frugalrl
from frugalrl import checkpoint, cli, rng, training
from frugalrl.errors import BadFile

RELEASED = Path(__file__).parent / "data" / "run-format-1"  # a run folder as version 0.1 leaves it
RING = 4 * checkpoint.BLOCK


def tree(step: int = 0) -> dict[str, Any]:
    """A learner that is another at every step, and a memory of which few steps are."""
    return {
        "key": rng.key(step),
        "half": jnp.full((3, 2), step, jnp.bfloat16),
        "none": jnp.zeros((2, 0)),
        "flags": jnp.array([True, step % 2 == 0]),
        "ring": (jnp.arange(RING, dtype=jnp.int32) % 251).astype(jnp.uint8).at[: step + 1].add(1)[None],
        "step": jnp.int32(step),
    }


def bits(tree: Any) -> list:
    leaves = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    )
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves]


def read(folder: Path, step: int) -> Any:
    return checkpoint.restore(folder, step, jax.eval_shape(tree))


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with the checkpoints of steps 3 and 20."""
    writer = checkpoint.Writer(tmp_path / "all")
    for step in (3, 20):
        writer.save(step, tree(step))
    writer.wait()
    return tmp_path / "all"


def test_what_is_read_is_what_was_written(two):
    for step in (3, 20):
        assert bits(read(two, step)) == bits(tree(step))


def test_only_what_has_changed_is_written_and_only_what_is_needed_is_kept(tmp_path):
    writer, written = checkpoint.Writer(tmp_path), []
    for step in (1, 2, 10, 30):
        before = writer.bytes
        writer.save(step, tree(step))
        writer.wait()
        written.append(writer.bytes - before)
    assert written[0] > RING
    assert max(written[1:]) < RING / 3
    assert checkpoint.steps(tmp_path) == [10, 30]
    kept = {name for step in (10, 30) for name in json.loads((tmp_path / f"{step}.json").read_text())["blocks"]}
    assert {path.name for path in tmp_path.rglob("*")} == {"blocks", "10.json", "30.json", *kept}
    again = checkpoint.Writer(tmp_path, checkpoint.newest(tmp_path, print))
    again.save(40, tree(40))
    again.wait()
    assert again.bytes < RING / 3  # also after the run was resumed
    assert bits(read(tmp_path, 40)) == bits(tree(40))


def test_trees_are_joined_along_their_first_axis(tmp_path):
    parts = [{"x": jnp.arange(12.0).reshape(4, 3), "key": jax.random.split(rng.key(0), 4)} for _ in range(2)]
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    writer = checkpoint.Writer(tmp_path)
    writer.save(1, *parts)
    writer.wait()
    assert bits(checkpoint.restore(tmp_path, 1, jax.eval_shape(lambda: whole))) == bits(whole)


def test_training_goes_on_while_a_checkpoint_settles(tmp_path, monkeypatch):
    go, sync = threading.Event(), checkpoint._sync
    monkeypatch.setattr(checkpoint, "_sync", lambda path: go.wait(60) and sync(path))
    writer = checkpoint.Writer(tmp_path)
    writer.save(1, tree(1))  # returns
    assert checkpoint.steps(tmp_path) == []
    assert not writer.due()
    go.set()
    writer.wait()
    assert checkpoint.steps(tmp_path) == [1]
    assert not writer.due()  # it has cost more than its share of the time since
    writer.next -= writer.seconds / checkpoint.SHARE
    assert writer.due()


def test_no_flipped_bit_is_read(two):
    """It is told of and passed over, unless the checkpoint before has the same block."""
    mine, others = ({*json.loads((two / f"{s}.json").read_text())["blocks"]} for s in (20, 3))
    drawn = np.random.default_rng(0)
    passed_over = 0
    for file in [two / "20.json", *(two / "blocks" / name for name in sorted(mine))] * 8:
        whole = file.read_bytes()
        bit = int(drawn.integers(8 * len(whole)))
        with file.open("r+b") as f:
            f.seek(bit // 8)
            f.write(bytes([whole[bit // 8] ^ 1 << bit % 8]))
        said: list[str] = []
        if file.name in others:
            with pytest.raises(BadFile, match=f"damaged.*remove {two} to train again from the beginning"):
                checkpoint.newest(two, said.append)
            assert said == []
        else:
            assert checkpoint.newest(two, said.append) == 3
            assert said[0].endswith("going on from the one before, of step 3")
            assert str(two / "20.json") in said[0]
            passed_over += 1
        with pytest.raises(BadFile, match=r"20\.json is damaged"):
            read(two, 20)
        file.write_bytes(whole)
    assert 0 < passed_over < 8 * len(mine) + 8
    assert checkpoint.newest(two, print) == 20


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"blocks": None}, {"blocks": ["../../config"]}, {"blocks": [3]}, {"more": 1}]
)
def test_a_manifest_that_makes_no_sense_is_damage(change, two):
    """Also with a checksum that is right."""
    found = json.loads((two / "20.json").read_text()) | change
    del found["sha256"]
    if found.keys() == set(checkpoint.Manifest._fields):
        found["sha256"] = checkpoint.Manifest(**found).digest
    (two / "20.json").write_text(json.dumps(found))
    assert checkpoint.newest(two, lambda said: None) == 3


def test_the_damaged_ones_are_removed_when_there_is_a_better_one(two):
    (two / "20.json").write_text("")
    writer = checkpoint.Writer(two, checkpoint.newest(two, lambda said: None))
    assert checkpoint.steps(two) == [3, 20]
    for step, kept in ((5, [3, 5]), (7, [5, 7])):
        writer.save(step, tree(step))
        writer.wait()
        assert checkpoint.steps(two) == kept


def test_what_a_process_that_was_killed_left_is_swept(two):
    for name in ("7.new", "blocks/abc", f"{'a' * 64}.new"):
        (two / name).write_text("half")
    checkpoint.save(two, 21, tree(21))
    assert not list(two.glob("*.new"))
    assert not (two / "blocks" / "abc").exists()


def test_checkpoints_from_before_the_first_release_are_one_clear_error(tmp_path):
    (tmp_path / "3000" / "default").mkdir(parents=True)
    with pytest.raises(
        BadFile, match=f"of a version before 0.1, which cannot be read; remove {tmp_path} to train again"
    ):
        checkpoint.newest(tmp_path, print)


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(two, monkeypatch, capfd):
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    sync, calls, when = checkpoint._sync, [], []

    def full(path: Path) -> None:
        calls.append(path)
        if len(calls) == when[-1]:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(checkpoint, "_sync", full)
    for number in range(1, 6):  # at a block, at the folder of blocks, at the checkpoint, ...
        calls.clear()
        when.append(number)
        writer = checkpoint.Writer(two, 20)
        writer.save(30, tree(30))
        with pytest.raises(OSError, match=r"the checkpoint .*30 cannot be written: No space left on device"):
            writer.wait()
        left = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
        if two / "30.json" not in left:
            assert left == before
    (two.parent / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"the checkpoint .*5 cannot be written"):
        checkpoint.save(two.parent / "file", 5, tree(5))
    assert capfd.readouterr() == ("", "")


# whole runs


CALL: dict[str, Any] = {"steps": 3000, "hyper": {"hidden": (16,), "batch_size": 32, "learning_starts": 500}}
train = partial(training.train, "dqn", "CartPole-v1", **CALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder that nothing else writes in."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(out=out)
    return out


def test_a_disk_that_is_full_for_a_while_costs_no_run(trained, tmp_path, monkeypatch, capfd):
    """Also with --quiet, it is told of in one line and in the receipt; the rows are those of any other run."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint.Writer, "due", lambda writer: True)
    sync, calls = checkpoint._sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if 10 < len(calls) < 12:
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(checkpoint, "_sync", full)
    result = train(out=tmp_path / "run")
    [line] = capfd.readouterr().err.splitlines()
    assert "No space left on device; the run goes on, and the last good checkpoint is kept" in line
    assert result.receipt["faults"] == [line]
    assert 0 < result.receipt["checkpoint_seconds"] < result.receipt["wall_seconds"]
    assert timeless(rows(tmp_path / "run")) == timeless(rows(trained))
    assert checkpoints(tmp_path / "run")[-1].stem == "3000"


def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, capfd):
    """A run goes on from the one before, and has the rows that it had."""
    out = shutil.copytree(trained, tmp_path / "run")
    training.resume(out, steps=5000)
    assert [path.stem for path in checkpoints(out)] == ["3000", "5000"]
    before, (_, last) = rows(out), checkpoints(out)
    last.write_bytes(last.read_bytes()[:-100])
    (out / "receipt.json").unlink()
    assert cli.main(["resume", str(out), "--quiet"]) == 0
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"checkpoint {last} is damaged (")
    assert line.endswith("going on from the one before, of step 3,000")
    assert receipt(out)["faults"] == [line]
    assert timeless(rows(out)) == timeless(before)
    for path in checkpoints(out):
        path.write_text("")
    (out / "receipt.json").unlink()
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cli.main(["resume", str(out), "--quiet"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"remove {out / 'checkpoints' / 'all'} to train again from the beginning with `frugal resume`" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == kept


def test_a_run_of_the_first_format_still_loads(tmp_path, capfd):
    """Policy, rows, receipt, report and checkpoint; if this fails, a user's run does not load any more."""
    out = Path(shutil.copytree(RELEASED, tmp_path / "run"))
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 100_000
    assert int(frugalrl.load(out).predict(np.zeros(4, np.float32))) in (0, 1)
    assert cli.main(["eval", str(out), "--episodes", "2"]) == 0
    assert cli.main(["report", str(out)]) == 0
    assert cli.main(["resume", str(out), "--quiet"]) == 0  # it is finished
    before = rows(out)
    assert cli.main(["resume", str(out), "--steps", "1500", "--quiet"]) == 0
    assert capfd.readouterr().err == ""
    assert rows(out)[: len(before)] == before
    assert receipt(out)["steps"] == 1500
