"""Lockstep: the same seed gives the same rows from actor processes, and a stopped run goes on as if it had not been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from runs import actors_of, checkpoints, has_rows, receipt, rows, timeless, wait_for

import frugalrl
from frugalrl import catalog, checkpoint, cli, training
from frugalrl.catalog import AGENTS
from frugalrl.envs import repeated
from frugalrl.envs.make import EnvOptions, find, make
from frugalrl.runtime import actor, actors, compiled
from frugalrl.types import Packet, Transition

REPLAY = {"hidden": (16,), "batch_size": 32, "learning_starts": 500}
ROLLOUTS = {"hidden": (16,), "num_envs": 4, "n_steps": 16}
LONG = pytest.mark.long
STEPS = 1500
RATE = {"learning_rate": "log:1e-4:1e-2"}
CEM = {"kind": "cem", "members": 3, "ready": 25, "search": {}}
DVD = CEM | {"kind": "dvd", "members": 4}


def train(agent: str, env: str, out: Path, steps: int = STEPS, **more: Any) -> None:
    known = catalog.hyper_fields(catalog.recipe(agent))
    wanted = REPLAY if "learning_starts" in known else ROLLOUTS
    hyper = {name: value for name, value in wanted.items() if name in known}
    frugalrl.train(agent, env, steps=steps, hyper=hyper, out=out, **{"runtime": "actors", "lockstep": True} | more)


def told(out: Path) -> tuple:
    """Rows without times, and what the last checkpoint of each phase holds, by its sums."""
    last = {path.parent.name: path.read_text() for path in checkpoints(out)}
    return repr(timeless(rows(out))), last


def continuous(agent: str) -> bool:
    return agent in ("sac", "td3", "ddpg", "d4pg")


EVERY_AGENT = [(name, "Pendulum-v1" if continuous(name) else "CartPole-v1", {}) for name in AGENTS if name != "dqn"]
MORE = [
    ("dqn", "CartPole-v1", {"actors": "int8"}),
    ("dqn", "CartPole-v1", {"actors": "half+int8-static"}),
    ("dqn", "CartPole-v1", {"seeds": 2}),
    ("a3c", "CartPole-v1", {"seeds": 2}),
    ("ppo", "HalfCheetah-v5", {"steps": 4000}),
    ("ppo", "CartPole-v1", {"env_options": {"frame_stack": 3, "time_limit": 30}}),
    ("a2c", "LunarLander-v3", {}),
    ("dqn", "MinAtar/Seaquest-v1", {}),
    ("dqn", "ALE/Pong-v5", {"env_options": {"frame_skip": 8}}),
    ("dqn", "CartPole-v1", {"population": {"kind": "pbt", "members": 3, "ready": 300, "search": RATE}}),
    ("td3", "Pendulum-v1", {"population": {"kind": "random", "members": 2, "search": RATE}}),
    # members that share a critic are always in lockstep
    ("td3", "InvertedPendulum-v5", {"lockstep": False, "population": CEM}),
    ("sac", "HalfCheetah-v5", {"lockstep": False, "seeds": 2, "population": DVD, "env_options": {"time_limit": 20}}),
]


# fast: one agent with a replay and one that waits, an environment with physics and one without
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("agent", "env", "more"),
    [
        ("dqn", "CartPole-v1", {}),
        ("ppo", "InvertedPendulum-v5", {}),
        *(pytest.param(*case, marks=LONG) for case in (*EVERY_AGENT, *MORE)),
    ],
    ids=str,
)
def test_a_run_in_lockstep_is_the_same_again_stopped_and_resumed(agent, env, more, tmp_path, monkeypatch):
    """Stopped in the middle of episodes and between two evaluations; compared are rows, and all that a run holds."""
    for name, value in {"FINAL_EPISODES": 5, "EVAL_EPISODES": 5, "SAVE_SECONDS": 1e9}.items():
        monkeypatch.setattr(training, name, value)
    train(agent, env, tmp_path / "whole", **more)
    asked = training.Stop.asked

    def stop(stop: training.Stop) -> int | None:
        return 0 if has_rows(tmp_path / "run", 4) and not checkpoints(tmp_path / "run") else asked(stop)

    monkeypatch.setattr(training.Stop, "asked", stop)
    train(agent, env, tmp_path / "run", **more)
    stopped = receipt(tmp_path / "run")
    assert 0 < stopped["steps"] < more.get("steps", STEPS)
    assert not stopped["finished"]
    assert frugalrl.resume(tmp_path / "run") is not None
    assert told(tmp_path / "run") == told(tmp_path / "whole")
    assert receipt(tmp_path / "run")["actors"]["lockstep"]
    crew = more.get("population", {}).get("kind") in ("cem", "dvd")
    assert ("fitness_best" in rows(tmp_path / "run")[-1]) == crew


@LONG
@pytest.mark.timeout(600)
def test_every_checkpoint_goes_on_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEEP", 10_000)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint.Writer, "due", lambda writer: True)
    train("dqn", "CartPole-v1", tmp_path / "whole")
    steps = [int(path.stem) for path in checkpoints(tmp_path / "whole")]
    assert len(steps) > 8
    for step in (0, *steps[1:-1:3]):
        out = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole", out)
        (out / "receipt.json").unlink()
        for path in checkpoints(out):
            if int(path.stem) > step:
                path.unlink()
        assert frugalrl.resume(out) is not None
        assert told(out) == told(tmp_path / "whole")


EAGER = """
import sys
from frugalrl import checkpoint, cli, training
training.SAVE_SECONDS = 0
checkpoint.Writer.due = lambda writer: True
sys.exit(cli.main(sys.argv[1:]))
"""


ALONE = ("train", "dqn", "CartPole-v1", "--runtime", "actors", "--lockstep", "--steps", 8000, "--quiet")
CREW = ("cem", "td3", "InvertedPendulum-v5", "--members", 4, "--ready", 100, "--steps", 8000, "--quiet")


@LONG
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("words", "how"),
    [
        *((ALONE, how) for how in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, "budget")),
        *((CREW, how) for how in (signal.SIGKILL, signal.SIGINT)),
    ],
)
def test_a_run_stopped_at_any_moment_ends_with_the_rows_of_one_that_was_not(words, how, tmp_path):
    hyper = ["--hyper", *(f"{name}={value}" for name, value in (REPLAY | {"hidden": 16}).items())]
    assert cli.main([*map(str, words), "--out", str(tmp_path / "whole"), *hyper]) == 0
    out, draw = tmp_path / "run", random.Random(2)
    command, times = [*words, "--out", out, *hyper], 0
    while not (out / "receipt.json").exists() or not receipt(out)["finished"]:
        limit = ["--budget", "0.05"] if how == "budget" and times < 4 else []
        process = subprocess.Popen([sys.executable, "-c", EAGER, *map(str, command), *limit], stderr=subprocess.DEVNULL)
        if how != "budget" and times < 4:
            before = [path.stem for path in checkpoints(out)]
            wait_for(lambda: [p.stem for p in checkpoints(out)] != before or process.poll() is not None, 120)  # noqa: B023
            time.sleep(0.5 * draw.random())
            process.send_signal(how)
        process.wait(timeout=120)
        times += 1
        if (out / "config.json").exists():
            command = ["resume", out, "--quiet"]
        assert times < 20
    assert times > 2
    assert told(out)[0] == told(tmp_path / "whole")[0]


@LONG
@pytest.mark.timeout(600)
def test_actors_that_are_killed_cost_nothing(tmp_path):
    train("dqn", "CartPole-v1", tmp_path / "whole", steps=24_000)
    done, draw = threading.Event(), random.Random(3)

    def campaign() -> None:
        """After each row one: an actor that is killed again and again before it has sent anything ends a run."""
        killed = 0
        while not done.wait(draw.random()):
            found = actors_of(os.getpid())
            if found and has_rows(tmp_path / "run", killed + 1):
                os.kill(draw.choice(found), signal.SIGKILL)
                killed += 1

    thread = threading.Thread(target=campaign)
    thread.start()
    try:
        train("dqn", "CartPole-v1", tmp_path / "run", steps=24_000)
    finally:
        done.set()
        thread.join()
    assert receipt(tmp_path / "run")["actors"]["restarts"] > receipt(tmp_path / "run")["actors"]["lost_unrolls"] == 0
    assert told(tmp_path / "run")[0] == told(tmp_path / "whole")[0]


@LONG
def test_members_go_on_in_parts_of_the_width_that_they_had(tmp_path, monkeypatch):
    """On another number of cores, too: the last bits follow from how many share a program."""
    monkeypatch.setattr(compiled, "cores", lambda: 1)
    train("dqn", "CartPole-v1", tmp_path / "run", steps=800, seeds=2)
    monkeypatch.setattr(compiled, "cores", lambda: 2)
    resumed = training.resume(tmp_path / "run", steps=1000)
    assert resumed is not None
    assert resumed.receipt["batching"]["way"] == "vmap over 2 seeds on 1 thread"
    assert compiled.ways(2, 2)[0].width == 1


def test_a_round_has_one_message_of_each_actor_in_their_order_whoever_dies(monkeypatch):
    """What an actor had sent before it died comes a second time, and counts once."""
    plan = actors.Plan(actors=2, num_envs=1, unroll=1, updates=1, warmup=0, slots=1, lockstep=True)
    given: list = []

    def message(i: int, action: int) -> actors.Message:
        one = np.full((1, 1), action, np.int32)
        flag, zero = np.zeros((1, 1), bool), np.zeros((1, 1), np.float32)
        return actors.Message(
            i, Transition(zero, one, zero, flag, flag, zero[..., None], zero, one), [], [], (0.0, 0.0)
        )

    script: list = [message(1, 10), message(0, 1), message(0, 2), 0, None, message(1, 20), message(0, 2)]

    class Scripted:
        """A Fleet of which it is known who sends what and when; None is the death of an actor, 0 its new start."""

        wire = SimpleNamespace(put=lambda arrays: given.append("packet"))

        def __init__(self, spec, plan, seed, packet, report, wired, past):
            self.past = past

        def receive(self, timeout):
            found = script.pop(0)
            if found == 0:
                given.append(self.past(0))
            return found

        def release(self):
            given.append("release")

        def close(self):
            pass

    def learn(carry, items, stream, gradient):
        given.append((stream, items.action.item()))
        return carry, {}

    monkeypatch.setattr(actors, "Fleet", Scripted)
    learner = actors.Learner(
        init=lambda *_: None,
        add=learn,
        learn=learn,
        cut=pytest.fail,
        ship=lambda state: (Packet((), {}), np.int32(0), ()),
        probe=lambda carry: (),
    )  # type: ignore[arg-type]
    spec: Any = SimpleNamespace(lanes=1, mode="fp32", members=0)
    carry = actors.Carry(None, None, None, np.int32(0))
    ticks = list(actors.train(learner, plan, spec, carry, steps=4, seed=0))
    past = actor.Past(1, (repeated.Past(0, np.array([1], np.int32), repeated.digest(np.zeros(1, np.float32))),))
    assert repr(given) == repr([(0, 1), (1, 10), "packet", "release", past, (0, 2), (1, 20), "packet", "release"])
    assert not script
    assert [(tick.step, tick.whole) for tick in ticks] == [(1, False), (2, True), (2, True), (3, False), (4, True)]


# where environments are brought back to

KINDS = [
    "CartPole-v1", "HalfCheetah-v5", "MinAtar/Seaquest-v1", "LunarLander-v3",
    *(
        pytest.param(env_id, marks=LONG)
        for env_id in (
            "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "BipedalWalker-v3",
            "CarRacing-v3", "Humanoid-v5", "Ant-v5", "Hopper-v5", "ALE/Breakout-v5", "brax/inverted_pendulum",
            "dm_control/cheetah-run-v0", "dm_control/reacher-easy-v0", "dm_control/lqr-lqr_2_1-v0",
            "dm_control/quadruped-escape-v0", "dm_control/manipulator-bring_ball-v0",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("env_id", KINDS)
def test_an_environment_goes_on_from_what_was_saved_as_it_would_have(env_id):
    """Saved as a checkpoint has it: through JSON. Fifty steps before, fifty after; wrappers are a part of it."""
    spec, lanes = find(env_id), 2
    options = EnvOptions(frame_stack=2, time_limit=35) if env_id == "CartPole-v1" else None
    assert repeated.repeats(partial(make, spec, options, training=True))
    begun = (repeated.Past(),) * lanes
    envs: Any = actor.vector_env(spec, lanes, options, (5, 1), actor.Past(0, begun))
    obs, _ = envs.reset(seed=0)
    envs.single_action_space.seed(0)
    actions = np.array([[envs.single_action_space.sample() for _ in range(lanes)] for _ in range(100)])
    actions = actions.astype("int32" if actions.ndim == 2 else "float32")
    pasts, since, returns = list(begun), 0, np.zeros(lanes)
    for t in range(50):
        obs, reward, terminated, truncated, info = envs.step(actions[t])
        ended, last = terminated | truncated, obs.copy()
        returns = np.where(ended, 0, returns + reward)
        if ended.any():
            last[ended] = np.stack(info["final_obs"][ended])
        if ended.any() or t % 16 == 15 or t == 49:
            rest = np.zeros((t - since, lanes), bool)
            over = np.concatenate([rest, ended[None]])
            pasts = [p.after(actions[since : t + 1, k], over[:, k], last[k]) for k, p in enumerate(pasts)]
            since = t + 1
    text = json.dumps(list(map(repeated.saved, pasts)))
    again = tuple(repeated.restored(told, actions.dtype.name) for told in json.loads(text))
    other: Any = actor.vector_env(spec, lanes, options, (5, 1), actor.Past(0, again))
    found, _ = other.reset(seed=1)
    assert found.tobytes() == obs.tobytes()
    assert envs.envs[0]._seed() != envs.envs[1]._seed()
    assert repeated.returned(other.envs, found) == (returns.tolist(), [len(past.actions) for past in pasts])
    for t in range(50, 100):
        for x, y in zip(envs.step(actions[t])[:4], other.step(actions[t])[:4], strict=True):
            assert x.tobytes() == y.tobytes()
    envs.close()
    other.close()


def test_an_environment_that_came_back_elsewhere_is_told_of():
    spec = find("CartPole-v1")
    past = repeated.Past(0, np.zeros(3, np.int32), repeated.digest(np.zeros(4, np.float32)))
    envs: Any = actor.vector_env(spec, 1, None, (5, 1), actor.Past(0, (past,)))
    obs, _ = envs.reset()
    with pytest.raises(RuntimeError, match="did not repeat itself: 3 steps played again"):
        repeated.returned(envs.envs, obs)


def test_an_environment_that_does_not_repeat_itself_is_refused_before_anything_is_written(tmp_path, capsys):
    words = ["train", "dqn", "fake_env:Walk-v0", "--lockstep", "--steps", "3000", "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("frugal: fake_env:Walk-v0 does not repeat itself, which --lockstep needs")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
