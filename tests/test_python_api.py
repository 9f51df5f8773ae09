"""The library as Python sees it: train, predict, save, load, resume."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import fake_env
import gymnasium
import numpy as np
import pytest
from runs import receipt, rows

import frugalrl
from frugalrl import cli, networks, policy
from frugalrl.errors import BadFile, UsageError
from frugalrl.levers.compress.engines import random_weights
from frugalrl.networks import Dense
from frugalrl.types import Box, Discrete, Linear

SMALL = {"steps": 3000, "hyper": {"hidden": (16,), "batch_size": 32, "learning_starts": 500}}


@pytest.fixture(scope="module")
def result():
    return frugalrl.train("dqn", "CartPole-v1", seeds=2, **SMALL)


@pytest.fixture
def obs() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.2, 0.2, (64, 4)).astype(np.float32)


def test_train_tells_what_it_reached(result):
    returns = result.returns
    assert len(returns["per_seed"]) == 2
    assert returns["low"] <= returns["iqm"] <= returns["high"]
    assert result.receipt["finished"]
    assert result.folder is None
    assert re.fullmatch(r"<dqn on CartPole-v1, 2 seeds, compiled: return .{5,40}, folder None>", repr(result))
    assert set(frugalrl.__all__) < set(dir(frugalrl))
    # one for each tenth of the steps; the first when learning starts, since nothing changes before
    assert [row["step"] for row in result.rows if row["seed"] == 1] == [504, *range(600, 3001, 300)]


def test_predict_takes_one_observation_or_a_batch(result, obs):
    actions = result.predict(obs)
    assert actions.shape == (64,)
    assert set(actions) <= {0, 1}
    assert [result.predict(x) for x in obs] == actions.tolist()
    assert result.predict(obs[0].tolist()) == actions[0]  # whatever becomes an array
    assert result.predict(obs[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"observations of shape \(4,\)"):
        result.predict(obs[:, :3])


def test_the_seeds_have_policies_of_their_own(result, obs):
    assert (result.predict(obs, seed=0) != result.predict(obs, seed=1)).any()


def test_a_policy_folder_gives_back_layers_of_every_kind(tmp_path):
    block = networks.Residual((networks.Relu(), networks.Conv(8, 3, padding="SAME"), networks.LayerNorm(1e-3)))
    body = (networks.Scale(0.5), networks.Conv(8, 3), networks.LayerNorm(), networks.MaxPool(), block)
    layers = (*body, networks.Flatten(), networks.Dense(2, relu=False))
    assert {type(layer).__name__ for layer in (*layers, *block.body)} == policy.LAYERS.keys()
    obs = Box((10, 10, 4), "bool", 0.0, 1.0)
    card = policy.Card("pqn", "MinAtar/Breakout-v1", obs, Discrete(2), layers, "epsilon_greedy", {"epsilon": 0.0})
    weights = random_weights(layers, obs, np.random.default_rng(0))
    policy.write(tmp_path, card, [weights])
    found, (loaded,) = policy.read(tmp_path)
    assert found == card
    for ours, theirs in zip(weights, loaded, strict=True):
        np.testing.assert_array_equal(ours.w, theirs.w)
        np.testing.assert_array_equal(ours.b, theirs.b)


def test_a_policy_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    """A process that dies in between leaves the old one or the new one, never seeds of both."""
    layers, obs = (networks.Dense(2, relu=False),), Box((3,))
    card = policy.Card("dqn", "CartPole-v1", obs, Discrete(2), layers, "epsilon_greedy", {"epsilon": 0.0})

    def of(age: int) -> list:
        made = [random_weights(layers, obs, np.random.default_rng(0)) for _ in range(2)]
        return [tuple(one._replace(b=one.b * 0 + age) for one in weights) for weights in made]

    class Killed(BaseException):
        pass

    def dying(real, left):
        def call(*what):
            if not left:
                raise Killed
            left.pop()
            return real(*what)

        return call

    policy.write(tmp_path, card, of(0))
    before, seen = 0.0, set()
    for number in range(20):
        with monkeypatch.context() as patch:
            left = [0] * number  # calls that are carried out before
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, dying(getattr(os, name), left))
            done = False
            with suppress(Killed):
                policy.write(tmp_path, card._replace(knobs={"epsilon": float(number + 1)}), of(number + 1))
                done = True
        found, weights = policy.read(tmp_path)
        (age,) = {float(x) for one in weights for x in one[0].b}
        assert age == found.knobs["epsilon"]
        assert age in (before, number + 1)
        seen.add((done, age != before))
        before = age
        if done:
            break
    assert seen == {(False, False), (False, True), (True, True)}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_save_and_load_give_the_same_policy(result, obs, tmp_path):
    assert result.save(tmp_path / "policy") == tmp_path / "policy"
    loaded = frugalrl.load(tmp_path / "policy")
    for seed in (0, 1):
        np.testing.assert_array_equal(loaded.predict(obs, seed=seed), result.predict(obs, seed=seed))
    for one, other in zip(loaded.weights, result.actor.weights, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.w, b.w)
            np.testing.assert_array_equal(a.b, b.b)
    assert loaded.card == result.actor.card


def test_a_run_folder_loads_and_resumes(result, obs, tmp_path):
    kept = frugalrl.train("dqn", "CartPole-v1", out=tmp_path / "run", **SMALL)
    assert kept.folder == tmp_path / "run"
    assert frugalrl.resume(tmp_path / "run") is None
    loaded = frugalrl.load(str(tmp_path / "run"))
    np.testing.assert_array_equal(loaded.predict(obs), kept.predict(obs))
    np.testing.assert_array_equal(loaded.predict(obs), result.predict(obs))  # seed 0 alone is seed 0 among two
    more = frugalrl.resume(tmp_path / "run", steps=3600)
    assert more is not None
    assert more.receipt["steps"] == 3600
    assert more.rows == rows(tmp_path / "run")


def test_a_class_of_a_module_trains_and_is_found_again_in_the_files(tmp_path, capfd):
    run, hyper = tmp_path / "run", {"hidden": (8,), "learning_starts": 64, "train_freq": 64}
    told = {"kwargs": {"seconds": 1e-4}, "time_limit": 6}
    first = frugalrl.train("dqn", fake_env.Walk, steps=256, hyper=hyper, evaluations=1, env_options=told, out=run)
    assert (first.receipt["env"], first.receipt["runtime"], first.receipt["actors"]["restarts"]) == (
        "fake_env:Walk", "actors", 0
    )  # fmt: skip
    assert cli.main(["resume", str(run), "--steps", "512", "--quiet"]) == 0
    assert rows(run)[-1]["step"] == 512
    assert cli.main(["eval", str(run), "--episodes", "2"]) == 0
    assert "cut off" not in capfd.readouterr().out
    assert frugalrl.load(run).play(2).lengths.tolist() == [5, 5]  # each in an environment of its own


@pytest.mark.parametrize(
    ("words", "more", "hint"),
    [
        (("dqm", "CartPole-v1"), {}, "did you mean dqn"),
        (("dqn", "CartPol-v1"), {}, "did you mean CartPole-v1"),
        ((3, "CartPole-v1"), {}, "the agent is given by its name, got 3"),
        (("dqn", None), {}, "the environment is given by its id, or as a class or function of a module"),
        (("dqn", fake_env.Walk()), {}, "put a class, or a function that makes one, into m.py beside the script"),
        (("dqn", lambda: fake_env.Walk()), {}, "beside the script, and give m.NAME"),
        (("dqn", type("Local", (fake_env.Walk,), {})), {}, "beside the script, and give m.NAME"),
        (("dqn", fake_env.Walk.reset), {}, "beside the script, and give m.NAME"),
        (("dqn", fake_env.unsaid), {}, "def unsaid() -> gymnasium.Env"),
        (("dqn", subprocess.Popen), {}, "neither a class that inherits gymnasium.Env nor a function"),
        (("dqn", gymnasium.make), {"env_options": {"kwargs": {"id": "CartPole-v1"}}}, "called without kwargs"),
        (("dqn", "CartPole-v1"), {"steps": 1.5}, "--steps must be a whole number, got 1.5"),
        (("dqn", "CartPole-v1"), {"steps": 1e10}, "--steps must be from 1 to 2147483647, got 10000000000"),
        (("CartPole-v1", "dqn"), {}, "the agent comes first, then the environment: dqn CartPole-v1"),
        (("ppo", "CartPole-v1"), {"batch_size": 64}, "hyper={'num_minibatches': ...}"),
        (("dqn", "CartPole-v1"), {"steps": -1}, "--steps must be from 1"),
        (("dqn", "CartPole-v1"), {"seeds": "2"}, "--seeds must be a whole number, got '2'"),
        (("dqn", "CartPole-v1"), {"step": 5}, "train has no option 'step': did you mean steps"),
        (("dqn", "CartPole-v1"), {"learning_rate": 1e-3}, "hyper={'learning_rate': 0.001}"),
        (("dqn", "CartPole-v1"), {"hyper": {"learningrate": 1}}, "did you mean learning_rate"),
        (("dqn", "CartPole-v1"), {"hyper": {"hidden": 64}}, "write for example hidden="),
        (("dqn", "CartPole-v1"), {"hyper": {"batch_size": 1.5}}, "write for example batch_size="),
        (("dqn", "CartPole-v1"), {"actors": "int9"}, "did you mean int8"),
        (("dqn", "CartPole-v1"), {"budget": -1}, "--budget must be more than 0"),
        (("dqn", "Pendulum-v1"), {}, "continuous actions"),
    ],
)
def test_a_wrong_call_raises_and_writes_nothing(words, more, hint, tmp_path):
    with pytest.raises(UsageError) as wrong:
        frugalrl.train(*words, out=tmp_path / "run", **more)
    assert hint in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert not any(tmp_path.iterdir())


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadFile, match="not a run folder"):
        frugalrl.resume(tmp_path)
    with pytest.raises(BadFile, match="holds no policy"):
        frugalrl.load(tmp_path)
    assert not any(tmp_path.iterdir())


def test_whole_numbers_of_numpy_and_powers_of_ten_are_whole_numbers(tmp_path):
    config = frugalrl.training.configure("dqn", "CartPole-v1", steps=np.int64(5000), seeds=np.int32(2), qat=8.0)
    assert repr(config) == repr(config._replace(qat=8))
    power = frugalrl.training.configure("dqn", "CartPole-v1", steps=5e3, seeds=2, qat=8, evaluations=1e1)
    assert (repr(power.steps), repr(power.evaluations)) == ("5000", "10")
    frugalrl.training.Folder(tmp_path / "run").create(config)
    assert frugalrl.training.read_config(tmp_path / "run") == config


SCRIPT = """
import frugalrl
result = frugalrl.train("dqn", "CartPole-v1", steps=1500, runtime="actors", out={out!r},
                        hyper={{"hidden": (8,), "learning_starts": 500}})
print(result.receipt["actors"]["processes"], result.predict([0.0, 0.0, 0.0, 0.0]) in (0, 1))
"""


@pytest.mark.parametrize("way", ["script", "stdin"])
def test_actors_run_from_a_script_without_a_guard(way, tmp_path):
    text = SCRIPT.format(out=str(tmp_path / "run"))
    (tmp_path / "script.py").write_text(text)
    words = [sys.executable, str(tmp_path / "script.py") if way == "script" else "-"]
    ended = subprocess.run(words, input=text, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2 True\n", "")
    assert receipt(tmp_path / "run")["finished"]


@pytest.mark.long
def test_a_module_beside_the_script_is_found_by_the_actors(tmp_path):
    here = Path(__file__).parent
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "games.py").write_text((here / "fake_env.py").read_text())
    text = "import frugalrl, games\nprint(frugalrl.train('dqn', '{}', steps=256, "
    text += "hyper={{'hidden': (8,), 'learning_starts': 64, 'train_freq': 64}}).receipt['actors']['restarts'])\n"
    for env in ("Walk-v0", "games:Walk-v0"):
        (tmp_path / "beside" / "script.py").write_text(text.format(env))
        words = [sys.executable, str(tmp_path / "beside" / "script.py")]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


def test_an_environment_of_the_script_itself_is_refused_for_actors(tmp_path):
    text = "import gymnasium, frugalrl\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
    text += "class Mine(CartPoleEnv): pass\n"
    text += "gymnasium.register('Mine-v0', entry_point={}, max_episode_steps=200)\n"
    text += (
        "try: frugalrl.train('dqn', 'Mine-v0', steps=2000)\nexcept frugalrl.errors.UsageError as error: print(error)\n"
    )
    text += "try: frugalrl.train('dqn', Mine)\nexcept frugalrl.errors.UsageError as error: print(error)\n"
    for entry in ("Mine", "lambda: Mine()", "'__main__:Mine'"):
        ended = subprocess.run(
            [sys.executable, "-"], input=text.format(entry), capture_output=True, text=True, timeout=60
        )
        assert ended.stderr == ""
        assert "register it in a module, m.py say, and call it m:Mine-v0" in ended.stdout
        assert "got <class '__main__.Mine'>: put a class" in ended.stdout


@pytest.mark.parametrize("signum", [signal.SIGINT])
def test_ctrl_c_in_a_script_raises_stopped_and_ends_the_actors(signum, tmp_path):
    text = SCRIPT.format(out=str(tmp_path / "run")).replace("steps=1500", "steps=10**7")
    wait = f"while not os.path.exists({str(tmp_path / 'run' / 'config.json')!r}): time.sleep(0.1)"  # it has begun
    watch = f"def watch():\n    {wait}\n    os.kill(os.getpid(), {int(signum)})\n"
    text = f"import os, threading, time\n{watch}threading.Thread(target=watch, daemon=True).start()\n" + text
    ended = subprocess.run(
        [sys.executable, "-"], input=text, capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("frugalrl.errors.Stopped: stopped at step ")
    assert not receipt(tmp_path / "run")["finished"]


def test_predicted_actions_are_within_the_bounds():
    card = policy.Card(
        "ppo", "Pendulum-v1", Box((3,)), Box((1,), low=-2.0, high=2.0), (Dense(1, relu=False),), "normal",
        {"log_std": [0.0]}, None,
    )  # fmt: skip
    actor = policy.Actor(card, [(Linear(np.zeros((3, 1), np.float32), np.float32([9.0])),)])
    found = actor.predict(np.zeros((4, 3)))
    assert found.tolist() == [[2.0]] * 4
    assert found.dtype == np.float32
