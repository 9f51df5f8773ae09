"""`frugal export`: the file and its model card appear together, and what the card says is true of the file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from frugalrl import cli, policy
from frugalrl.errors import UsageError
from frugalrl.evaluate import HELD_OUT, on_gymnasium
from frugalrl.levers.compress import card as cards
from frugalrl.levers.compress import export
from frugalrl.levers.compress.deploy import MOST, deploy, environment_packages, play
from frugalrl.levers.compress.engines import random_weights
from frugalrl.levers.compress.export import FORMATS
from frugalrl.networks import Dense, mlp
from frugalrl.types import Box, Discrete, Linear

OBS = Box((4,))
CARD = policy.Card("dqn", "CartPole-v1", OBS, Discrete(2), mlp((64, 64), 2), "epsilon_greedy", {"epsilon": 0.0})
LOW, HIGH = [-1.0, -2.0], [1.0, 0.5]
KNOBS = {"epsilon": 0.0, "low": LOW, "high": HIGH, "log_std": [0.0, 0.0], "random": 0.0, "noise": 0.0}
KNOBS |= {"v_min": 0.0, "v_max": 1.0, "actions": [0.0] * 4}
CONTINUOUS = ("normal", "squashed_normal", "clipped_normal", "tanh_normal")


@pytest.fixture(autouse=True)
def _short(monkeypatch) -> None:
    """Times that need not be right take no time."""
    monkeypatch.setattr("frugalrl.levers.compress.deploy.SECONDS", 0.01)


def kept(folder: Path, card: policy.Card = CARD, seeds: int = 1) -> Path:
    """A run folder with policies of random weights."""
    weights = [random_weights(card.layers, card.obs, np.random.default_rng(seed)) for seed in range(seeds)]
    policy.write(folder / "policy", card, weights)
    (folder / "receipt.json").write_text(json.dumps({"steps": 30_000, "runtime": "actors"}))
    (folder / "config.json").write_text(json.dumps({"seed": 7}))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return kept(tmp_path / "run", seeds=2)


def usable(format: str) -> str:
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    return format


def facts(path: Path) -> dict:
    """What a card has for programs."""
    return json.loads(path.read_text().rpartition("```json\n")[2].removesuffix("\n```"))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_the_card_tells_what_the_file_is(run, format):
    file, card = deploy(run, usable(format), "int8", episodes=2)
    assert (file, card) == (run / f"policy{FORMATS[format].suffix}", run / f"policy{FORMATS[format].suffix}.md")
    said, data = facts(card), file.read_bytes()
    assert said["file"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert said["file"]["bytes"] == len(data)
    assert (said["agent"], said["env"], said["steps"], said["seeds"], said["seed"]) == (
        "dqn",
        "CartPole-v1",
        30_000,
        2,
        7,
    )
    parameters = 4 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2
    assert (said["full"]["parameters"], said["full"]["bytes"]) == (parameters, 4 * parameters)
    # a byte a weight, four for each bias and scale; the first layer is whole
    assert said["compressed"]["bytes"] == 4 * (4 * 64 + 64) + 64 * 64 + 64 * 2 + 8 * (64 + 2)
    assert [layer["weights"] for layer in said["full"]["layers"]] == [[4, 64], [64, 64], [64, 2]]
    times = {(time["policy"], time["batch"]): time for time in said["latency"]}
    assert {key for key in times if times[key]["microseconds"] > 0} == {
        (name, batch) for name in ("full", "full, fastest engine", "file") for batch in (1, 8)
    }
    assert times["file", 8]["engine"] == FORMATS[format].engine
    assert {"package": "gymnasium", "version": gymnasium.__version__, "licence": "MIT License"} in said["packages"]
    assert said["hardware"]["cores"]
    text = card.read_text()
    for words in (
        "30,000 steps",
        "2, of which this is seed 7",
        "MIT License",
        f"{4 * parameters:,}",
        "index of the largest",
    ):
        assert words in text


def test_the_card_tells_how_the_file_plays(run):
    file, card = deploy(run, "litert", "int8", episodes=3)
    said, actor = facts(card)["play"], policy.load(run)
    ours, theirs = FORMATS["litert"].open(file.read_bytes()), actor.session(1).run

    def returns(call) -> np.ndarray:
        def act(obs):
            return call(obs).argmax(-1)

        return on_gymnasium(act, "CartPole-v1", 3, parallel=1).returns

    assert said["file"]["point"] == pytest.approx(returns(ours).mean())
    assert said["full"]["point"] == pytest.approx(returns(theirs).mean())
    assert said["difference"]["point"] == pytest.approx((returns(ours) - returns(theirs)).mean())
    assert said["file"]["low"] <= said["file"]["point"] <= said["file"]["high"]
    seen = play(CARD, ours, CARD.knobs, 3).observations
    assert len(seen) == said["observations"] == returns(ours).sum()  # an observation for each reward of 1
    env = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(seen[0], env.reset(seed=HELD_OUT)[0])
    p, q = (np.where(call_all(call, seen).argmax(-1)[:, None] == np.arange(2), 0.975, 0.025) for call in (theirs, ours))
    assert said["kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4, abs=1e-6)
    assert said["agreement"] == (p == q).all(-1).mean()
    assert "at epsilon 0.05" in card.read_text()


def test_each_policy_plays_for_itself(run):
    """The full one keeps the pole up, the other pushes to the left."""
    push = np.array([[0, 0], [0, 0], [-1, 1], [-1, 1]], np.float32)
    card, none = CARD._replace(layers=(Dense(2, relu=False),)), np.zeros(2, np.float32)
    policy.write(run / "policy", card, [(Linear(push, none),)])
    policy.write(run / "policy" / "half", card, [(Linear(0 * push, none),)])
    said = facts(deploy(run, "litert", "half", episodes=2)[1])["play"]
    assert said["file"]["point"] < 15 < 100 < said["full"]["point"]
    assert said["difference"]["point"] == said["file"]["point"] - said["full"]["point"]
    assert said["observations"] == 2 * said["file"]["point"]  # of the file's play
    deploy(run, "litert", "int8", episodes=2)
    assert facts(run / "policy.tflite.md")["play"]["file"]["point"] > 100


def call_all(call, seen: np.ndarray) -> np.ndarray:
    return np.concatenate([call(x[None]) for x in seen])


def test_an_exact_copy_is_told_from_none(run):
    said = facts(deploy(run, "litert", "fp32", episodes=2)[1])["play"]
    assert (said["kl"], said["agreement"]) == (0.0, 1.0)
    assert set(said["difference"].values()) == {0.0}
    kept(run, CARD._replace(layers=mlp((8,), 2)))
    said = facts(deploy(run, "litert", "int8", episodes=1)[1])["play"]
    assert said["file"]["low"] is None  # one episode gives no interval


def test_observations_of_long_play_are_spread_over_all_of_it():
    card = policy.Card("ppo", "Pendulum-v1", Box((3,)), Box((1,)), mlp((4,), 1), "normal", {"log_std": [0.0]})
    seen = play(card, lambda obs: np.zeros((1, 1), np.float32), card.knobs, 6).observations
    assert MOST // 2 <= len(seen) <= MOST
    env = gymnasium.make("Pendulum-v1")
    starts = [env.reset(seed=HELD_OUT + i)[0] for i in range(6)]
    assert (
        np.abs(seen[:, None] - np.array(starts)[None]).max(-1).min(0) == 0
    ).all()  # every fourth step: the starts too


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head", policy.HEADS)
def test_the_code_of_a_card_chooses_the_greedy_action(head, format, tmp_path, monkeypatch):
    actions = Box((2,), low=tuple(LOW), high=tuple(HIGH)) if head in CONTINUOUS else Discrete(4)
    outputs = {"tanh_normal": 4, "distributional_greedy": 12}.get(head, 2 if head in CONTINUOUS else 4)
    card = policy.Card("x", "nowhere:Thing-v0", Box((5,)), actions, mlp((8,), outputs), head, KNOBS)
    run = kept(tmp_path / "run", card)
    _, path = deploy(run, usable(format), episodes=0)
    program = path.read_text().partition("```python\n")[2].partition("```")[0]
    assert "frugalrl" not in program
    monkeypatch.chdir(run)
    scope = {}
    exec(program, scope)
    for obs in np.random.default_rng(1).standard_normal((5, 5), np.float32):
        np.testing.assert_allclose(scope["act"](obs), policy.load(run).predict(obs), atol=1e-5)


def test_every_head_has_its_words():
    assert cards.HEADS.keys() == policy.HEADS.keys()
    assert cards._OPEN.keys() == FORMATS.keys()


@pytest.mark.parametrize("head", CONTINUOUS)
def test_continuous_actions_are_compared_by_their_distance(head, tmp_path):
    pytest.importorskip("mujoco", reason="an environment with more than one action")
    low, high = [-1.0] * 6, [1.0] * 6
    knobs = KNOBS | {"low": low, "high": high, "log_std": [0.0] * 6}
    layers = mlp((16,), 12 if head == "tanh_normal" else 6, 0.01)
    card = policy.Card(
        "x", "HalfCheetah-v5", Box((17,)), Box((6,), low=tuple(low), high=tuple(high)), layers, head, knobs
    )
    said = facts(deploy(kept(tmp_path / "run", card), "litert", "int8", episodes=1)[1])["play"]
    assert 0 < said["action_gap"] < said["largest_action_gap"] < 1
    assert 0 < said["kl"] < 1000  # without noise, standard deviations of 1e-6 would make it billions
    assert "agreement" not in said


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("nowhere:Thing-v0", "cannot be found"),
        ("fake_env:BrokenStep-v0", "the wheel came off"),
        ("fake_env:Walk-v0", "does not fit"),
        ("LunarLander-v3", "pip install 'frugalrl[box2d]'"),
    ],
)
def test_an_environment_that_cannot_be_played_is_told_and_the_file_written(env, says, tmp_path, monkeypatch):
    if env == "LunarLander-v3":

        def absent(*_, **__):
            raise gymnasium.error.DependencyNotInstalled("no Box2D")

        monkeypatch.setattr("gymnasium.make", absent)
    obs = OBS if env == "fake_env:Walk-v0" else Box((3,))
    run = kept(tmp_path / "run", CARD._replace(env=env, obs=obs))
    file, card = deploy(run, "litert")
    assert file.stat().st_size > 100
    assert says in facts(card)["play"]["not_played"]
    assert f"Not measured: {facts(card)['play']['not_played']}." in card.read_text()


def test_licences_are_those_that_packages_state():
    assert environment_packages("nowhere:Thing-v0") == [{"package": "nowhere", "version": None, "licence": None}]
    pytest.importorskip("ale_py")
    (ale,) = environment_packages("ALE/Pong-v5")
    assert (ale["package"], ale["licence"]) == ("ale-py", "GPL-2.0-only")


def test_another_structure_is_written_where_the_run_has_one(run):
    with pytest.raises(UsageError, match=r"--actors half\+int8"):
        deploy(run, "litert", "half+int8")
    card = CARD._replace(layers=mlp((32, 32), 2))
    policy.write(run / "policy" / "half", card, [random_weights(card.layers, OBS, np.random.default_rng(5))])
    file, beside = deploy(run, "litert", "half", episodes=2)
    said = facts(beside)
    assert [layer["weights"] for layer in said["compressed"]["layers"]] == [[4, 32], [32, 32], [32, 2]]
    assert [layer["weights"] for layer in said["full"]["layers"]] == [[4, 64], [64, 64], [64, 2]]
    assert said["play"]["agreement"] < 1
    obs = np.random.default_rng(0).standard_normal((1, 4), np.float32)
    small = policy.load(run, "half").session(1).run(obs)
    np.testing.assert_array_equal(FORMATS["litert"].open(file.read_bytes())(obs), small)
    larger = file.stat().st_size
    assert facts(deploy(run, "litert", "half+int8", episodes=0)[1])["file"]["bytes"] < larger
    with pytest.raises(UsageError, match=r"did you mean half\+int8"):
        deploy(run, "litert", "half+int4")


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (("--mode", "int4"), "did you mean int8?"),
        (("--mode", "half"), "--actors half"),
        (("--mode", ""), "does not exist"),
        (("--episodes", "-1"), "must not be negative"),
        (("--out", "."), "is a folder"),
        (("--out", "nowhere/x.tflite"), "no folder nowhere"),
        (("--out", "taken"), "--out taken: Is a directory"),
    ],
)
def test_a_wrong_call_gets_one_line_and_writes_nothing(more, hint, run, monkeypatch, capfd):
    monkeypatch.chdir(run)
    (run / "taken.md").mkdir()
    before = listing(run)
    assert cli.main(["export", str(run), "--format", "litert", "--episodes", "0", *more]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert hint in err
    assert listing(run) == before


def test_file_and_card_are_replaced_together_or_not_at_all(run, monkeypatch):
    deploy(run, "litert", episodes=0)
    before, replace, done = listing(run), os.replace, []

    def second_fails(source, target):
        done.append(target)
        if len(done) == 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(UsageError, match="No space left on device"):
        deploy(run, "litert", "int8", episodes=0)
    assert listing(run) == before


def test_the_card_tells_if_the_machine_was_busy(run):
    said = facts(deploy(run, "litert", episodes=0)[1])
    assert 0 < said["share_of_a_core"] < 1.5
    assert "other work left 42 % of a core" in cards.markdown(said | {"share_of_a_core": 0.42})
    assert "quiet machine" not in cards.markdown(said | {"share_of_a_core": 0.99})


def test_a_package_that_is_not_installed_is_named_and_nothing_written(run, monkeypatch):
    absent = export.engine("onnxruntime")._replace(missing=lambda: "pip install 'frugalrl[engines]'")
    monkeypatch.setattr(export, "engine", lambda name: absent)
    before = listing(run)
    with pytest.raises(UsageError, match=r"needs another package: pip install 'frugalrl\[engines\]'"):
        deploy(run, "onnx")
    assert listing(run) == before


def test_a_folder_of_a_policy_alone_has_no_training_to_tell(run, tmp_path):
    policy.load(run).save(tmp_path / "alone")
    _, card = deploy(tmp_path / "alone", "litert", episodes=0)
    assert "unknown: there was no receipt" in card.read_text()


def test_how_the_environment_is_set_up_is_told():
    options = {"env": "ALE/Pong-v5", "env_options": {"frame_stack": 4, "clip_reward": True, "noop_max": 30}}
    assert dict(cards._options(options)) == {"frame_stack": 4, "noop_max": 30}  # rewards are not the player's concern
    assert dict(cards._options(options | {"env": "CartPole-v1"})) == {"frame_stack": 4}
