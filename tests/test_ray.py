"""Runs spread over a Ray cluster: what is refused, and that a node which dies costs time and nothing else.

All but the refusals need Ray, which only `make test-long` installs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import runs

from frugalrl import cli, config
from frugalrl.errors import UsageError

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


@pytest.fixture
def cluster(monkeypatch) -> Iterator[Any]:
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
    def test_a_node_that_is_killed_costs_an_interval_and_changes_nothing(self, cluster, tmp_path):
        process = runs.start(*PBT, "--runtime", "ray", "--ray-address", cluster.address, "--out", tmp_path / "ray")
        runs.wait_for(lambda: process.poll() is not None or runs.has_rows(tmp_path / "ray", 3), 400)
        time.sleep(1)  # into the next interval
        assert process.poll() is None, process.communicate()
        cluster.remove_node(cluster.nodes[1], allow_graceful=False)
        ended = runs.finish(process, 600)
        assert ended.code == 0, ended.err
        receipt = runs.receipt(tmp_path / "ray")
        assert receipt["cluster"]["nodes"] == 2
        assert sum(receipt["cluster"]["lost_intervals"]) >= 1
        assert max(receipt["cluster"]["lost_intervals"]) <= 1
        assert runs.finish(runs.start(*PBT, "--runtime", "compiled", "--out", tmp_path / "compiled"), 600).code == 0
        assert told(tmp_path / "ray") == told(tmp_path / "compiled")

    @pytest.mark.filterwarnings("ignore")  # of Ray's own
    def test_an_actor_that_dies_with_its_node_is_replaced(self, cluster, tmp_path):
        words = ("train", "dqn", "CartPole-v1", "--steps", 30_000, "--hyper", "hidden=16", "learning_starts=500")
        process = runs.start(*words, "--runtime", "ray", "--ray-address", cluster.address, "--out", tmp_path / "run")
        runs.wait_for(lambda: process.poll() is not None or runs.has_rows(tmp_path / "run", 2), 400)
        assert process.poll() is None, process.communicate()
        cluster.remove_node(cluster.nodes[1], allow_graceful=False)
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
