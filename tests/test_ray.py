"""Runs spread over a Ray cluster: what is refused, and that a node which dies costs time and nothing else.

All but the refusals need Ray, which only `make test-long` installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs

import frugalrl
from frugalrl import checkpoint, cli, config, spread, training
from frugalrl.errors import BadFile, UsageError
from frugalrl.levers.population import evolution, search
from frugalrl.monitor import machine
from frugalrl.runtime import cluster

needs_ray = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.skipif(not find_spec("ray"), reason="no Ray")]
# wide enough for programs of several members to give what those of one give, to the last bit
PBT = (
    *("pbt", "dqn", "CartPole-v1", "--members", 3, "--steps", 12_000, "--ready", 3000),
    *("--search", "learning_rate=log:1e-5:1e-2"),
    *("--hyper", "hidden=128,128", "batch_size=32", "learning_starts=200", "--quiet"),
)


def test_without_ray_one_line_says_what_to_install(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    assert cli.main(["train", "dqn", "CartPole-v1", "--runtime", "ray", "--out", str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err == (
        "frugal: --runtime ray needs a package that is not installed: pip install 'frugalrl[ray]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_address_is_for_ray():
    with pytest.raises(UsageError, match=r"--ray-address 1\.2\.3\.4:6379 needs --runtime ray"):
        config.configure("dqn", "CartPole-v1", ray_address="1.2.3.4:6379")


@pytest.mark.parametrize(
    ("env", "options", "within"),
    [
        ("CartPole-v1", {}, "compiled"),
        ("CartPole-v1", {"actors": "int8"}, "actors"),
        ("LunarLander-v3", {}, "actors"),
    ],
)
def test_what_members_train_in(monkeypatch, env, options, within):
    monkeypatch.setattr(config, "find_spec", lambda name: True)
    assert config.configure("dqn", env, runtime="ray", seeds=2, **options).within == within
    assert config.configure("dqn", env, **options).runtime == within


class Here(cluster.Pool):
    """Workers of a cluster that is this process; of each run one interval, the second, is lost with its worker."""

    def __init__(self, module, settings, cpus, report):
        super().__init__(module, settings, cpus, report)
        self.service, self.asked, self.has = spread.serve(settings), dict[int, int](), set[int]()

    def submit(self, task):
        self.waiting.append(task)

    def forget(self, run):
        self.has.discard(run)
        self.service.drop(run)

    def poll(self, timeout):
        task = self.waiting.pop(0)
        self.asked[task.run] = self.asked.get(task.run, 0) + 1
        if self.asked[task.run] == 3:
            self.lost[task.run] = 1
            self.forget(task.run)
        order = task.question(task.run not in self.has)
        self.has.add(task.run)
        return [(task.run, self.service.answer(order))]


@pytest.fixture
def here(monkeypatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: True)
    monkeypatch.setattr(cluster, "Pool", Here)
    monkeypatch.setattr(cluster, "connected", lambda address: nullcontext())
    monkeypatch.setattr(cluster, "room", lambda cpus: 2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_crew_in_actors_survives_a_lost_worker_and_is_resumed(here, tmp_path, monkeypatch):
    """Its checkpoints have a text, of another length for each seed; and it is the run of this machine."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    hyper = {"hidden": (8,), "batch_size": 8, "learning_starts": 100, "train_freq": 8}
    crew = {"members": 2, "ready": 40, "steps": 480, "seeds": 2, "hyper": hyper, "evaluations": 4}
    first = frugalrl.cem("td3", "InvertedPendulum-v5", runtime="ray", out=tmp_path, **crew)
    assert first.receipt["cluster"]["within"] == "actors"
    assert first.receipt["cluster"]["lost_intervals"] == [1, 1]
    assert first.receipt["cluster"]["cpu_seconds"] > 0
    resumed = frugalrl.resume(tmp_path, steps=640)
    assert resumed is not None
    assert runs.timeless(resumed.rows)[: len(first.rows)] == runs.timeless(runs.rows(tmp_path))[: len(first.rows)]
    assert [row["step"] for row in resumed.rows][-2:] == [640, 640]
    local = frugalrl.cem("td3", "InvertedPendulum-v5", runtime="actors", **crew)
    told = [
        {(row["seed"], row["step"]): (row["episode_return"], row["fitness_mean"]) for row in result.rows}
        for result in (first, local)
    ]
    assert told[0] == told[1]


def test_checkpoints_of_runs_go_together_whatever_the_length_of_their_texts():
    texts = [json.dumps({"pasts": list(range(n))}) for n in (3, 30)]
    trees = [
        [np.full((1, 2), k, np.float32), np.frombuffer(text.encode(), np.uint8)[None]] for k, text in enumerate(texts)
    ]
    alike = spread._alike(trees)
    assert alike[0][1].shape == alike[1][1].shape
    like = [jax.ShapeDtypeStruct((1, 2), "float32"), jax.ShapeDtypeStruct((1, -1), "uint8")]
    for tree, text in zip(alike, texts, strict=True):
        sent = checkpoint.packed(tree)
        _, found = checkpoint.unpacked(sent, sent.new, like)
        assert json.loads(bytes(np.asarray(found[0]))) == json.loads(text)
    with pytest.raises(BadFile):
        checkpoint.unpacked(sent, sent.new, [like[0], jax.ShapeDtypeStruct((1, 5), "uint8")])


def test_what_a_worker_has_cost_is_told_once_and_with_its_children(monkeypatch):
    """Two runs take turns, each of which costs a second, and so does what happens between."""
    clock = iter([3.0, 5.0, 7.0, 9.0])
    report = spread.Report(0, {}, None, None, {}, checkpoint.Packed([], [], {}), {}, 0.0)

    class Live:
        def __init__(self, *given):
            self.moments = iter(())

        def until(self, step, due):
            return report

    monkeypatch.setattr(spread, "Live", Live)
    monkeypatch.setattr(spread, "family_seconds", lambda: next(clock))
    service = spread.serve(config.configure("dqn", "CartPole-v1", seeds=2))
    orders = [spread.Order(run, 1, 1, start) for start in (spread.Start(0, None), None) for run in (0, 1)]
    assert [service.answer(order).cpu_seconds for order in orders] == [3.0, 2.0, 2.0, 2.0]


def test_children_that_still_run_count():
    before = machine.family_seconds()
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        spent = machine.family_seconds() - before
        child.communicate(b"\n")
    assert spent > 0.45
    assert machine.family_seconds() - before >= 0.45  # and once it has ended


def test_a_tournament_tells_when_what_is_loaded_was_handed_in():
    """The board of a seed is in the checkpoint of a run, with the steps of what is on it."""
    made = {"kind": "pbt", "members": 2, "search": {"learning_rate": "log:1e-5:1e-2"}, "selection": "tournament"}
    settings = config.configure("dqn", "CartPole-v1")
    settings = settings._replace(population=config._population(settings, **made))
    priors = search.priors("dqn", made["search"])
    packed = {run: checkpoint.packed([np.full((1, 3), run, np.float32)]) for run in (0, 1)}
    board = {0: [evolution.Entry(9.0, 1, 1000, {"learning_rate": 1e-3}, packed[1])]}
    told = {run: np.array([2000, np.nan, 1e-4]) for run in (0, 1)}  # so that both load what there is
    stood = spread.Standing(2000, packed, told, {0: (1.0,), 1: (2.0,)}, board)
    starts, lineage, _, after = spread._taken_over(settings, priors, stood)
    assert lineage == {"parent": [1, 1], "parent_step": [1000, 1000]}
    assert starts.keys() == {0, 1}
    assert [entry.step for entry in after[0]] == [1000]
    blocks = packed[0].new | packed[1].new
    trees = [
        [x for each in (packed[run], *carries) for x in checkpoint.unpacked(each, blocks)] + [row[None]]
        for run, carries, row in spread._places(settings, stood)
    ]
    saved = [np.concatenate(x) for x in zip(*trees, strict=True)]
    again = spread._restored(settings, priors, training.Restore(2000, lambda shapes: saved), [0, 1], {})
    assert again.board[0][0]._replace(carry=None) == board[0][0]._replace(carry=None)
    assert again.past == stood.past
    assert spread._taken_over(settings, priors, again)[1] == lineage


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Any]:
    """A cluster on this machine, of a node that trains nothing and two with a processor each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    for left in (2, 1, 0):  # Ray gives a node half a minute to come up, whatever else the machine does
        made = Cluster()
        try:
            head = made.add_node(num_cpus=0, include_dashboard=False)
            made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
            break
        except Exception:
            made.shutdown()
            if not left:
                raise
    begun = [info.process for node in (head, *made.nodes) for kind in node.all_processes.values() for info in kind]
    try:
        yield made
    finally:
        made.shutdown()
        for process in begun:  # Ray does not wait for all of them, of which Python would warn
            process.kill()
            process.wait()


def told(folder: Path) -> list[dict[str, Any]]:
    return runs.timeless(runs.rows(folder))


class TestOnACluster:
    pytestmark = needs_ray

    @pytest.mark.filterwarnings("ignore")  # of Ray's own
    def test_a_node_that_is_killed_costs_an_interval_and_changes_nothing(self, nodes, tmp_path):
        process = runs.start(*PBT, "--runtime", "ray", "--ray-address", nodes.address, "--out", tmp_path / "ray")
        runs.wait_for(lambda: process.poll() is not None or runs.has_rows(tmp_path / "ray", 3), 400)
        time.sleep(1)  # into the next interval
        assert process.poll() is None, process.communicate()
        nodes.remove_node(nodes.nodes[1], allow_graceful=False)
        ended = runs.finish(process, 600)
        assert ended.code == 0, ended.err
        receipt = runs.receipt(tmp_path / "ray")
        assert receipt["cluster"]["nodes"] == 2
        assert sum(receipt["cluster"]["lost_intervals"]) >= 1
        assert max(receipt["cluster"]["lost_intervals"]) <= 1
        assert runs.finish(runs.start(*PBT, "--runtime", "compiled", "--out", tmp_path / "compiled"), 600).code == 0
        assert told(tmp_path / "ray") == told(tmp_path / "compiled")

    @pytest.mark.filterwarnings("ignore")  # of Ray's own
    def test_an_actor_that_dies_with_its_node_is_replaced(self, nodes, tmp_path):
        words = ("train", "dqn", "CartPole-v1", "--steps", 30_000, "--hyper", "hidden=16", "learning_starts=500")
        process = runs.start(*words, "--runtime", "ray", "--ray-address", nodes.address, "--out", tmp_path / "run")
        runs.wait_for(lambda: process.poll() is not None or runs.has_rows(tmp_path / "run", 2), 400)
        assert process.poll() is None, process.communicate()
        nodes.remove_node(nodes.nodes[1], allow_graceful=False)
        ended = runs.finish(process, 600)
        assert ended.code == 0, ended.err
        receipt = runs.receipt(tmp_path / "run")
        assert receipt["actors"]["restarts"] >= 1
        assert "died and was started anew" in ended.err
        assert [row["step"] for row in runs.rows(tmp_path / "run")][-1] == 30_000
        assert receipt["time_split"]["environment"] > 0
        assert receipt["actors"]["refreshes"] > 2

    def test_a_tournament_that_is_stopped_and_resumed_is_the_one_that_was_not(self, tmp_path):
        words = (*PBT, "--selection", "tournament", "--steps", 36_000, "--runtime", "ray", "--out")
        assert runs.finish(runs.start(*words, tmp_path / "whole"), 600).code == 0
        process = runs.start(*words, tmp_path / "stopped")
        runs.wait_for(lambda: process.poll() is not None or runs.has_rows(tmp_path / "stopped", 6), 400)
        runs.interrupt(process)
        assert runs.finish(process, 100).code == 130
        assert runs.finish(runs.start("resume", tmp_path / "stopped", "--quiet"), 600).code == 0
        rows = told(tmp_path / "stopped")
        assert rows == told(tmp_path / "whole")
        assert any(row.get("parent") is not None for row in rows)
        assert runs.receipt(tmp_path / "stopped")["cluster"]["lost_intervals"] == [0, 0, 0]
