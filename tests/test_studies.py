"""Studies: what they plan, that no run is lost or done twice, and what the runs say to their questions."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import finish, has_rows, interrupt, rows, running, wait_for
from test_monitor import Page

from frugalrl import catalog, cli, policy, training
from frugalrl.config import is_run
from frugalrl.config import write as write_config
from frugalrl.errors import BadFile, UsageError
from frugalrl.monitor import receipt
from frugalrl.monitor import report as monitor_report
from frugalrl.monitor import rows as row_file
from frugalrl.monitor.machine import Cost
from frugalrl.networks import Dense
from frugalrl.studies import findings, report
from frugalrl.studies import folder as folders
from frugalrl.studies import running as running_studies
from frugalrl.studies.running import study
from frugalrl.studies.study import NOT, REPRODUCED, UNDECIDED, Answer, Finding, Study, plan, runs, words
from frugalrl.types import Box, Discrete, Linear

TINY = {"hidden": (16,), "batch_size": 32}
FASTER = findings.both(findings.times("training_seconds", 0.7, findings.amdahl), findings.equal_return())
SMALL = Study(
    "small",
    "quick is faster & better.",
    {"agent": "dqn", "steps": 3000, "hyper": TINY},
    {"CartPole": {"env": "CartPole-v1"}, "Acrobot": {"env": "Acrobot-v1", "runtime": "actors", "hyper": {"tau": 0.5}}},
    {"slow": {"hyper": {"learning_rate": 1e-4}}, "quick": {"hyper": {"learning_rate": 1e-3}}},
    (
        Finding("Faster?", "quick", "slow", FASTER),
        Finding("Better?", "quick", "slow", findings.better(), together=True),
    ),
    3,
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    known = catalog.study
    monkeypatch.setattr(catalog, "study", lambda name: SMALL if name == "small" else known(name))


class Trainer:
    """Stands in for the process of a run: keeps its words, and leaves what a finished run does."""

    def __init__(self, stop_after: int | None = None, signum: int = signal.SIGTERM, fail: str = ""):
        self.calls: list[list[str]] = []
        self.stop_after, self.signum, self.fail = stop_after, signum, fail

    def __call__(self, said, stop, lock) -> int:
        self.calls.append(said)
        if said[0] == "resume":
            folder = Path(said[1])
            config = training.read_config(folder)
        else:
            a = cli.parser().parse_args(said)
            options = {"hyper": cli._pairs(a.hyper), "env_options": cli._pairs(a.env_option), "steps": a.steps}
            config = training.configured(a.agent, a.env, seeds=a.seeds, seed=a.seed, runtime=a.runtime, **options)
            folder = a.out
            write_config(folder, config)
        if self.fail and self.fail in str(folder):
            return 1
        if len(self.calls) == self.stop_after:
            stop.signum = self.signum
            return 128 + self.signum
        left(folder, config)
        return 0


def left(folder: Path, config) -> None:
    """What a finished run leaves: quick gains 50 and takes half of the time."""
    quick, acts = config.hyper["learning_rate"] > 5e-4, config.runtime == "actors"
    seeds = range(config.seed, config.seed + config.seeds)
    returns = {seed: 100.0 + seed + 50 * quick for seed in seeds}
    for step in (config.steps // 2, config.steps):
        row_file.write(
            folder / "rows.jsonl",
            [{"seed": s, "step": step, "episode_return": r * step / config.steps} for s, r in returns.items()],
        )
    made = receipt.receipt(
        agent=config.agent, env=config.env, runtime=config.runtime, seeds=config.seeds, steps=config.steps,
        per_seed=list(returns.values()), compile_seconds=1.0, evaluation_seconds=2.0, finished=True,
        cost=Cost((5.0 if quick else 10.0) + 3.0 + 0.1 * config.seed, 9.0, None, 90.0, "estimated: by assumption"),
        time_split={"environment": 1.0, "inference": 2.0, "learner": 5.0, "other": 9.0} if acts else None,
        actors={"mode": "fp32", "engine": "litert", "refresh_seconds": 0.3, "kl": 0.5} if acts else None,
    )  # fmt: skip
    receipt.write(folder / "receipt.json", made)
    rng = np.random.default_rng(0)
    weights = [(Linear(rng.normal(size=(4, 2)).astype(np.float32), np.zeros(2, np.float32)),) for _ in seeds]
    knobs = {"epsilon": 0.0}
    card = policy.Card("dqn", config.env, Box((4,)), Discrete(2), (Dense(2, False),), "epsilon_greedy", knobs)
    policy.write(folder / "policy", card, weights)


def go(out: Path, train=None, **options):
    return study("small", out=out, train=train or Trainer(), **options)


# the plan


RUNTIMES = {"quarl": {"compiled"}, "rainbow": {"compiled", "actors"}, "optimizers": {"compiled", "actors"}}
RUNTIMES["precision"] = {"compiled", "actors"}


@pytest.mark.parametrize("name", catalog.STUDIES)
def test_every_run_of_every_study_is_one_that_train_takes(name):
    about = catalog.study(name)
    assert about.name == name
    assert about.claim.endswith(".")
    made = plan(about)
    assert made.configs.keys() == about.tasks.keys()
    for task, arms in made.configs.items():
        assert list(arms) == list(about.tasks[task].get("arms", about.arms))
        assert {config.runtime for config in arms.values()} <= RUNTIMES.get(name, {"actors"})


@pytest.mark.parametrize("about", [SMALL, *map(catalog.study, catalog.STUDIES)], ids=lambda about: about.name)
def test_findings_are_of_arms_that_are_there(about):
    for finding in about.findings:
        arms = {finding.ours, finding.base}
        assert arms <= set(about.arms)
        of = finding.tasks or [task for task in about.tasks if arms <= set(about.tasks[task].get("arms", about.arms))]
        assert of  # somebody can answer it
        for task in of:
            assert arms <= set(about.tasks[task].get("arms", about.arms))
    assert {arm for arms in about.figures.values() for arm in arms} <= set(about.arms)


def changed(config, other) -> set[str]:
    """The hyper-parameters in which two runs differ."""
    assert config._replace(hyper={}, agent="") == other._replace(hyper={}, agent="")
    return {name for name in config.hyper if config.hyper[name] != other.hyper[name]}


def test_an_arm_of_rainbow_differs_in_its_component_alone():
    switch = {"n-step": "n_step", "distributional": "atoms"}
    alpha, seldom = {"prioritized_replay_alpha"}, {"exploration_initial_eps", "exploration_fraction"}
    all_configs = plan(catalog.study("rainbow")).configs
    published = all_configs.pop("CartPole-v1 as published")["DQN"]
    assert published.env_options["time_limit"] == 200
    first = all_configs["CartPole-v1"]
    assert changed(published._replace(env_options=first["DQN"].env_options), first["DQN"]) == {"loss"}
    for arm, same in (("+ noisy, frozen", "+ noisy"), ("Rainbow, frozen noise", "Rainbow")):
        assert changed(first[arm], first[same]) == {"frozen_noise"}
    for task, configs in all_configs.items():
        for name in ("double", "prioritized", "dueling", "n-step", "distributional", "noisy"):
            noisy = seldom if name == "noisy" and task.startswith("MinAtar/") else set()
            about = {switch.get(name, name)} | noisy
            assert changed(configs[f"+ {name}"], configs["DQN"]) == about
            scale = alpha if name == "distributional" else set()  # priorities are of errors then
            assert changed(configs[f"- {name}"], configs["Rainbow"]) == about | scale
        assert changed(configs["QRainbow"], configs["Rainbow"]) == {"distribution"}
        others = {"atoms", "distribution", "n_step", "munchausen", "learning_rate", "train_freq"} | alpha
        for arm in ("QR-DQN", "IQN", "M-DQN", "M-IQN"):
            bonus = {"munchausen_tau", "munchausen_alpha", "munchausen_clip"} if arm.startswith("M-") else set()
            lander = {"target_update_interval"} if task == "LunarLander-v3" and "IQN" in arm else set()
            assert changed(configs[arm], configs["DQN"]) <= others | bonus | lander
        both = changed(configs["Rainbow"], configs["DQN"])
        six = {"double", "prioritized", "dueling", "n_step", "atoms", "noisy"}
        assert six <= both <= six | alpha | seldom | {"learning_rate", "train_freq"}


def test_an_arm_of_optimizers_differs_in_its_optimizer_and_loss_alone():
    for configs in plan(catalog.study("optimizers")).configs.values():
        first = configs["Adam + Huber"]
        assert changed(configs["Adam + MSE"], first) == {"loss"}
        rate = {"learning_rate"} if first.hyper["learning_rate"] != 2.5e-4 else set()
        assert changed(configs["RMSProp + Huber"], first) == {"optimizer", "optimizer_eps"} | rate
        assert changed(configs["RMSProp + MSE"], configs["RMSProp + Huber"]) == {"loss"}
    assert changed(configs["Adam + MSE"], plan(catalog.study("rainbow")).configs[first.env]["DQN"]) == {
        "loss", "prioritized_replay_alpha"
    }  # fmt: skip


@pytest.mark.parametrize(("env", "like"), [("MinAtar/Breakout-v1", "MinAtar/Breakout-v0"), ("ALE/Pong-v5", None)])
def test_arms_are_as_different_in_environments_that_the_study_has_not(env, like):
    """Of an Atari game: at Dopamine's settings for all of them."""
    for name in ("rainbow", "optimizers"):
        about = catalog.study(name)
        found = plan(about, envs=[env]).configs[env]
        if like is not None:
            same = plan(about, envs=[like]).configs[like]
            assert {arm: config._replace(env=like) for arm, config in found.items()} == same
            continue
        atari = {"batch_size": 32, "buffer_size": 1_000_000, "learning_starts": 20_000, "target_update_interval": 8_000}
        adam = {"learning_rate": 6.25e-5, "optimizer_eps": 1.5e-4, "train_freq": 4}
        for arm, config in found.items():
            rms = {"learning_rate": 2.5e-4, "optimizer_eps": 1e-5} if arm.startswith("RMSProp") else {}
            assert (adam | atari | rms).items() <= config.hyper.items()
        assert {config.steps for config in found.values()} == {10_000_000}


def test_arms_have_what_dqn_has_where_nobody_says_more():
    rainbow = plan(catalog.study("rainbow"), envs=["fake_env:Walk-v0"]).configs["fake_env:Walk-v0"]
    own = training.configured("dqn", "fake_env:Walk-v0")
    assert rainbow.keys() >= {"DQN", "Rainbow", "+ noisy", "- noisy"}
    same = ("learning_rate", "train_freq", "batch_size", "hidden", "num_envs", "buffer_size", "gamma")
    assert {config.steps for config in rainbow.values()} == {own.steps}
    assert all(config.hyper[name] == own.hyper[name] for config in rainbow.values() for name in same)


def test_arms_that_would_be_the_same_run_are_refused():
    twins = SMALL._replace(arms={**SMALL.arms, "slow too": SMALL.arms["slow"]})
    with pytest.raises(UsageError, match="slow and slow too are the same run on CartPole: leave one of them out"):
        plan(twins)
    assert [*plan(twins, arms=["slow", "quick"]).configs["CartPole"]] == ["slow", "quick"]


def test_an_arm_may_have_what_is_its_own_on_a_task():
    own = {"quick": {"hyper": {"learning_rate": 0.5}}, "slow": {}}
    tasks = {"CartPole": {"env": "CartPole-v1", "arms": own}, "Acrobot": {"env": "Acrobot-v1"}}
    made = plan(SMALL._replace(tasks=tasks)).configs
    assert {arm: config.hyper["learning_rate"] for arm, config in made["CartPole"].items()} == {
        "quick": 0.5, "slow": 1e-4
    }  # fmt: skip
    assert made["Acrobot"]["quick"].hyper["learning_rate"] == 1e-3


def test_the_words_of_a_run_say_what_its_arguments_say():
    arguments = {
        "agent": "dqn", "env": "CartPole-v1", "steps": 2000, "actors": "int8", "correct": "tis", "prune": 0.5,
        "prune_at": (0.05, 0.2), "runtime": "actors",
        "hyper": {"hidden": (32, 16), "double": True, "learning_rate": 1e-3},
        "env_options": {"frame_stack": 2, "kwargs": {"sutton_barto_reward": True}},
    }  # fmt: skip
    a = cli.parser().parse_args(["train", *words(arguments)])
    said = training.configured(
        a.agent, a.env, steps=a.steps, actors=a.actors, correct=a.correct, prune=a.prune, prune_at=a.prune_at,
        runtime=a.runtime, hyper=cli._pairs(a.hyper), env_options=cli._pairs(a.env_option),
    )  # fmt: skip
    assert said == training.configured(**arguments)
    assert said.env_options == {"frame_stack": 2, "kwargs": {"sutton_barto_reward": True}}


def test_seeds_share_a_program_where_they_can_and_else_take_turns():
    found = [(run.task, run.arm, [*run.seeds]) for run in runs(plan(SMALL))]
    assert found[:2] == [("CartPole", "slow", [0, 1, 2]), ("CartPole", "quick", [0, 1, 2])]
    assert [(arm, *seeds) for task, arm, seeds in found[2:]] == [
        ("slow", 0), ("quick", 0), ("quick", 1), ("slow", 1), ("slow", 2), ("quick", 2)
    ]  # fmt: skip
    assert {task for task, *_ in found[2:]} == {"Acrobot"}


def test_seeds_of_a_study_that_asks_for_it_train_together_everywhere():
    """And an arm has its turn on every task before the next one begins."""
    found = [(run.arm, run.task, [*run.seeds]) for run in runs(plan(SMALL._replace(batched=True)))]
    assert found == [(arm, task, [0, 1, 2]) for arm in ("slow", "quick") for task in ("CartPole", "Acrobot")]
    assert catalog.study("rainbow").batched
    assert catalog.study("optimizers").batched


def test_every_task_has_a_seed_before_any_has_two():
    both = SMALL._replace(tasks={name: about | {"runtime": "actors"} for name, about in SMALL.tasks.items()})
    found = [(run.task, run.seeds[0]) for run in runs(plan(both))]
    assert found[:8:2] == [("CartPole", 0), ("Acrobot", 0), ("CartPole", 1), ("Acrobot", 1)]


def test_a_shorter_training_also_starts_to_learn_earlier():
    made = plan(SMALL, scale=0.1)
    config = made.configs["CartPole"]["slow"]
    assert config.steps == 300
    assert config.hyper["learning_starts"] == catalog.defaults("dqn", "CartPole-v1")[1]["learning_starts"] // 10
    assert made.configs["Acrobot"]["quick"].hyper["tau"] == 0.5
    assert made.configs["Acrobot"]["quick"].hyper["learning_rate"] == 1e-3
    assert plan(SMALL, scale=2.0).configs["CartPole"]["slow"].steps == 6000


def test_environments_restrict_a_study_or_take_the_place_of_its_own():
    assert [*plan(SMALL, envs=["Acrobot-v1"]).configs] == ["Acrobot"]
    assert [*plan(SMALL, envs=["CartPole"]).configs] == ["CartPole"]
    other = plan(SMALL, envs=["MountainCar-v0", "CartPole-v1"]).configs
    assert [*other] == ["MountainCar-v0", "CartPole"]
    assert other["MountainCar-v0"]["slow"].env == "MountainCar-v0"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nonsense",), "unknown study 'nonsense'"),
        (("acerl",), "did you mean accerl?"),
        (("small", "--seeds", "0"), "--seeds must be at least 1"),
        (("small", "--scale", "0"), "--scale must be more than 0"),
        (("small", "--scale", "nan"), "--scale must be more than 0"),
        (("small", "--budget", "-1"), "--budget must be more than 0"),
        (("small", "--env", "CartPol-v1"), "did you mean CartPole-v1?"),
        (("small", "--env", "Pendulum-v1"), "study small, arm slow on Pendulum-v1: Pendulum-v1 has continuous actions"),
        (("small", "--seed", "3"), "unknown option --seed: did you mean --seeds?"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(words, says, tmp_path, capsys):
    assert cli.main(["study", *words, "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


# the runs


def test_each_run_is_made_once_and_is_a_row(tmp_path):
    first, second = Trainer(), Trainer()
    done = go(tmp_path, first)
    assert (done.done, done.total, done.stopped, done.failed) == (8, 8, None, [])
    assert len(first.calls) == 8
    kept = [(row["task"], row["arm"], row["seed"]) for row in rows(tmp_path)]
    assert len(kept) == len(set(kept)) == 2 * 2 * 3
    assert go(tmp_path, second).done == 8
    assert second.calls == []
    assert len(rows(tmp_path)) == 12


def test_a_row_tells_what_one_seed_reached_and_cost(tmp_path):
    go(tmp_path)
    alone = next(row for row in rows(tmp_path) if (row["task"], row["arm"], row["seed"]) == ("Acrobot", "quick", 2))
    assert alone["final_return"] == 152.0
    assert alone["curve"] == [[1500, 76.0], [3000, 152.0]]
    assert alone["area"] == pytest.approx((76 + 152) / 2)
    assert alone["training_seconds"] == pytest.approx(6.2)
    assert alone["actor_microseconds_per_step"] == pytest.approx(1e6 * 3.3 / 3000)
    assert alone["actors"]["kl"] == 0.5
    assert (tmp_path / alone["folder"] / "receipt.json").is_file()
    assert "frugal train dqn Acrobot-v1 --steps 3000 --hyper hidden=16 batch_size=32 tau=0.5" in alone["command"]
    shared = [row for row in rows(tmp_path) if (row["task"], row["arm"]) == ("CartPole", "slow")]
    assert [row["training_seconds"] for row in shared] == [pytest.approx(11.0 / 3)] * 3
    assert shared[0]["actor_microseconds_per_step"] is None


def test_a_run_that_diverged_is_a_row_without_a_return(tmp_path):
    """And is not run again: it would diverge again."""

    class Diverging(Trainer):
        def __call__(self, said, stop, lock) -> int:
            super().__call__(said, stop, lock)
            folder = Path(said[said.index("--out") + 1])
            made = receipt.read(folder / "receipt.json") or {}
            more = {"finished": False, "diverged": True, "precision": {"skipped_updates": [7] * made["seeds"]}}
            receipt.write(folder / "receipt.json", made | more)
            return 1

    first, second = Diverging(), Trainer()
    done = go(tmp_path, first)
    assert (done.done, done.failed) == (8, [])
    assert {(row["final_return"], row["area"], row["diverged"], row["skipped_updates"]) for row in rows(tmp_path)} == {
        (None, None, True, 7)
    }
    assert go(tmp_path, second).done == 8
    assert second.calls == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, 0])
def test_a_study_that_was_stopped_goes_on_where_it_was(tmp_path, signum):
    first, second = Trainer(stop_after=4, signum=signum), Trainer()
    stopped = go(tmp_path, first)
    assert (stopped.done, stopped.stopped) == (3, signum)
    half = Path(first.calls[3][first.calls[3].index("--out") + 1])
    assert is_run(half)
    assert go(tmp_path, second).done == 8
    assert second.calls[0][:2] == ["resume", str(half)]
    assert [call[0] for call in second.calls[1:]] == ["train"] * 4
    assert len({(row["task"], row["arm"], row["seed"]) for row in rows(tmp_path)}) == len(rows(tmp_path)) == 12


def test_a_run_that_finished_without_its_row_gets_it_without_training(tmp_path):
    go(tmp_path)
    text = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(text[:1]) + text[1][:40])  # as a process that is killed may leave it
    train = Trainer()
    assert go(tmp_path, train).done == 8
    assert train.calls == []
    assert len({(row["task"], row["arm"], row["seed"]) for row in rows(tmp_path)}) == len(rows(tmp_path)) == 12


def test_rows_count_also_without_their_run_folders(tmp_path):
    """They take gigabytes; who has removed them does not want the study made anew."""
    go(tmp_path)
    for folder in ("Acrobot", "CartPole"):
        shutil.rmtree(tmp_path / folder)
    train = Trainer()
    assert go(tmp_path, train).done == 8
    assert train.calls == []
    assert "12 of 12 seeds finished" in (tmp_path / "report.html").read_text()


def test_a_budget_is_handed_on_and_no_run_begins_after_it(tmp_path):
    train = Trainer()
    go(tmp_path / "a", train, budget=60)
    given = [float(call[call.index("--budget") + 1]) for call in train.calls]
    assert all(59 < minutes <= 60 for minutes in given)
    assert given == sorted(given, reverse=True)
    spent = Trainer()
    done = go(tmp_path / "b", spent, budget=1e-9)
    assert (done.done, done.stopped, spent.calls) == (0, 0, [])


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path, monkeypatch, capsys):
    done = go(tmp_path, Trainer(fail="quick-seed-1"))
    assert done.done == 7
    assert done.failed == ["Acrobot, quick, seed 1 (exit code 1)"]
    again = Trainer()
    assert go(tmp_path, again).done == 8
    assert [call[0] for call in again.calls] == ["resume"]


def test_other_settings_are_refused_in_one_line_and_change_nothing(tmp_path, capsys):
    go(tmp_path, seeds=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for options in ({"seeds": 3}, {"seeds": 2, "scale": 0.5}):
        with pytest.raises(UsageError, match="--seeds 2 --out"):
            go(tmp_path, **options)
    assert cli.main(["study", "small", "--seeds", "3", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "holds a study of other seeds (2 of CartPole there, 3 asked for)" in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def told(folder: Path) -> str:
    """The command that goes on with the study in a folder."""
    return folders.command(folders.settings(folder) or {}, folder)


def test_a_study_may_be_run_part_by_part(tmp_path, capsys):
    first = Trainer()
    assert go(tmp_path, first, envs=("Acrobot",), arms=("slow",)).done == 3
    assert len(first.calls) == 3
    assert told(tmp_path).endswith(f"--env Acrobot --arms slow --out {tmp_path}")
    go(tmp_path, envs=("Acrobot", "CartPole"), arms=("quick", "slow"))
    assert told(tmp_path).endswith(f"--env Acrobot CartPole --arms slow quick --out {tmp_path}")
    nothing = Trainer()
    done = go(tmp_path, nothing)
    assert (done.done, nothing.calls) == (8, [])
    whole = report.load(tmp_path)
    assert (whole.expected, len(whole.rows)) == (12, 12)
    assert told(tmp_path) == f"frugal study small --seeds 3 --out {tmp_path}"


def test_a_study_may_have_more_seeds_of_some_tasks(tmp_path):
    go(tmp_path, envs=("CartPole",), seeds=4)
    go(tmp_path, envs=("Acrobot",), seeds=1)
    found = report.load(tmp_path)
    assert (found.expected, len(found.rows)) == (10, 10)
    lines = [
        f"frugal study small --seeds {n} --env {env} --out {tmp_path}" for n, env in ((4, "CartPole"), (1, "Acrobot"))
    ]
    assert told(tmp_path) == " && ".join(lines)
    with pytest.raises(UsageError, match=r"other seeds \(4 of CartPole there, 1 asked for\)"):
        go(tmp_path, seeds=1)
    old = json.loads((tmp_path / "study.json").read_text())
    for seeds, right in ((3, True), ({"CartPole": 4}, False), ({"CartPole": 4, "Acrobot": "1"}, False), ("4", False)):
        (tmp_path / "study.json").write_text(json.dumps(old | {"seeds": seeds}))
        if right:  # of all tasks, as it was written at first
            assert report.load(tmp_path).settings["seeds"] == {"CartPole": 3, "Acrobot": 3}
        else:
            with pytest.raises(BadFile, match="damaged"):
                report.load(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "quik"], "--arms 'quik' does not exist: did you mean quick?"),
        (["--env", "HalfCheetah-v5 1024x3", "--arms", "auto"], "none of the --arms auto is for HalfCheetah-v5 1024x3"),
    ],
)
def test_arms_that_are_not_there_are_refused(words, said, tmp_path, capsys):
    name = "small" if "quik" in words else "accerl"
    assert cli.main(["study", name, *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_whose_arms_have_changed_since_is_refused(tmp_path, monkeypatch):
    go(tmp_path)
    changed = SMALL._replace(arms={**SMALL.arms, "quick": {"hyper": {"gamma": 0.9}}})
    monkeypatch.setattr(catalog, "study", lambda name: changed)
    with pytest.raises(UsageError, match="other arguments"):
        go(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no study"):
        go(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        go(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_processes_do_not_work_on_one_study(tmp_path):
    with folders.held(tmp_path), pytest.raises(UsageError, match="another process"):
        go(tmp_path)
    assert go(tmp_path).done == 8


BITS = SMALL._replace(
    tasks={"CartPole": {"env": "CartPole-v1"}},
    arms={"full": {}, "3 bits": {"qat": 3}, "5 bits": {"qat": 5}},
    findings=(Finding("Nothing?", "full", "full", findings.keeps(8, 0.05)),),
    bits=(2, 8, 32),
)


@pytest.fixture
def bits(monkeypatch):
    monkeypatch.setattr(catalog, "study", lambda name: BITS)
    monkeypatch.setattr(running_studies, "FINAL_EPISODES", 3)


def test_a_finished_run_is_played_at_each_number_of_bits(bits, tmp_path):
    go(tmp_path)
    assert json.loads((tmp_path / "study.json").read_text())["bits"] == [2, 8, 32]
    found = {(row["arm"], row["seed"]): dict(row["rounded"]) for row in rows(tmp_path)}
    for seed in range(3):
        actor = policy.load(tmp_path / "CartPole" / "full")
        for n in (2, 8, 32):
            assert found["full", seed][n] == actor.rounded(n).play(3, seed=seed).returns.mean()
        assert [*found["3 bits", seed]] == [3]
        assert [*found["5 bits", seed]] == [5]
    assert found["full", 0][2] != found["full", 0][32]


def test_a_study_that_is_stopped_while_it_plays_goes_on_with_the_next_seed(bits, tmp_path, monkeypatch):
    played, play = [], policy.Actor.play

    def stopping(self, episodes, **how):
        played.append(how["seed"])
        if len(played) == 4:  # of the second seed
            signal.raise_signal(signal.SIGTERM)
        return play(self, episodes, **how)

    monkeypatch.setattr(policy.Actor, "play", stopping)
    stopped = go(tmp_path, first := Trainer())
    assert (stopped.done, stopped.stopped, len(first.calls)) == (0, signal.SIGTERM, 1)
    assert played == [0, 0, 0, 1, 1, 1]
    assert go(tmp_path, second := Trainer()).done == 3
    assert len(second.calls) == 2
    assert played[6:9] == [2, 2, 2]
    assert len(rows(tmp_path)) == 9


def test_the_report_shows_returns_against_bits(bits, tmp_path):
    go(tmp_path)
    shown = Page((tmp_path / "report.html").read_text())
    assert "with weights of so many bits" in shown.text
    assert "full, rounded after training" in shown.text
    figure = (tmp_path / "report.html").read_text().split('id="bits-0-desc">')[1].split("</desc>")[0]
    for line in ("full, rounded after training", "trained for so many bits"):  # of all arms together
        assert figure.count(f"{line} ends at") == 1
    assert "bits of a weight" in shown.text


# what they say


def some(returns, seconds=None, **more) -> list[dict]:
    """Rows of one arm on one task."""
    seconds = seconds or [10.0] * len(returns)
    split = {"environment": 1.0, "inference": 2.0, "compressor": 1.0, "learner": 4.0, "other": 90.0}
    base = {"arm": "fp32", "seeds_together": 1, "energy_method": "estimated: so", "time_split": split}
    return [
        base | {"seed": i, "final_return": r, "training_seconds": s, "energy_joules": s} | more
        for i, (r, s) in enumerate(zip(returns, seconds, strict=True))
    ]


HIGH, LOW, WIDE = [10.0, 11.0, 12.0, 11.5], [1.0, 2.0, 3.0, 2.5], [0.0, 9.0, 20.0, 1.0]


@pytest.mark.parametrize(
    ("ours", "base", "verdict"),
    [
        ([5.0, 5.1, 5.2], [10.0, 10.1, 10.2], REPRODUCED),
        ([7.5, 7.6, 7.7], [10.0, 10.1, 10.2], NOT),
        ([5.0, 9.0, 6.0], [10.0, 10.1, 10.2], UNDECIDED),
        ([5.0, 5.1], [10.0, 10.1, 10.2], UNDECIDED),  # two runs decide nothing
    ],
)
def test_less_time_is_reproduced_when_the_whole_interval_says_so(ours, base, verdict):
    answer = findings.times("training_seconds", 0.7)([some(ours, ours)], [some(base, base)])
    assert answer.verdict == verdict
    assert re.search(r"0\.\d+ \[0\.\d+, [\d.]+\] times training seconds, claimed 0\.7", answer.found)


def test_a_time_is_compared_with_that_of_the_same_seed():
    """A machine that gets slower by the hour is so for both arms."""
    drift = [10.0, 20.0, 40.0, 80.0]
    answer = findings.times("training_seconds", 0.6)([some(HIGH, [x / 2 for x in drift])], [some(HIGH, drift)])
    assert answer.verdict == REPRODUCED
    assert answer.found.startswith("0.5 [0.5, 0.5] times")
    quick, slow = some(HIGH, [1.0] * 4), some(HIGH, drift)
    assert findings.times("training_seconds", 0.6)([quick[:2]], [slow[2:]]).found == "no two runs of one seed"
    assert findings.times("training_seconds", 0.6)([quick[:3]], [slow[1:]]).verdict == UNDECIDED  # two pairs


@pytest.mark.parametrize(
    ("ours", "base", "verdict"),
    [
        (HIGH, LOW, REPRODUCED), (LOW, HIGH, NOT), (HIGH, HIGH, REPRODUCED), (WIDE, HIGH, UNDECIDED),
        (HIGH, WIDE, REPRODUCED), (HIGH[:2], LOW, UNDECIDED), ([10.0, None, 11.0], LOW, UNDECIDED),
        ([10.0, None, None], LOW, NOT),
    ],
)  # fmt: skip
def test_nothing_is_lost_when_the_intervals_overlap_or_ours_is_higher(ours, base, verdict):
    """And where half of ours diverged it is."""
    runs = [row | {"diverged": row["final_return"] is None} for row in some(ours)]
    assert findings.equal_return()([runs], [some(base)]).verdict == verdict


@pytest.mark.parametrize(
    ("ours", "broken", "verdict"),
    [
        (LOW, 0, REPRODUCED), (HIGH, 0, NOT), (HIGH, 3, REPRODUCED), ([None, None, 11.0], 0, REPRODUCED),
        ([10.0, 11.0, None], 0, UNDECIDED), (HIGH[:2], 3, UNDECIDED), (WIDE, 0, UNDECIDED),
    ],
)  # fmt: skip
def test_to_fail_is_to_return_less_or_to_have_no_numbers(ours, broken, verdict):
    """Updates that a guard has skipped are none."""
    answer = findings.breaks()([some(ours, broken_updates=broken, skipped_updates=5)], [some(HIGH)])
    assert answer.verdict == verdict
    count = sum(1 for x in ours if x is None or broken)
    assert f"in {count} of {len(ours)} runs" in answer.note


def test_better_is_decided_over_all_tasks():
    assert findings.better()([some(HIGH), some(HIGH)], [some(LOW), some(LOW)]).verdict == REPRODUCED
    assert findings.better()([some(LOW), some(LOW)], [some(HIGH), some(HIGH)]).verdict == NOT
    mixed = findings.better()([some(HIGH), some(LOW)], [some(LOW), some(HIGH)])
    assert mixed.verdict == UNDECIDED
    assert "0.5 [0.5, 0.5]" in mixed.found


def test_three_runs_that_do_not_overlap_may_do_so_by_chance():
    """One in ten, dealt out anew, is as far apart; on two tasks at once hardly any."""
    high, low = some(HIGH[:3]), some(LOW[:3])
    one = findings.better()([high], [low])
    assert (one.verdict, one.found) == (UNDECIDED, "better with probability 1 [1, 1]")
    assert findings.better()([high, high], [low, low]).verdict == REPRODUCED


def test_a_run_that_failed_is_worse_than_all_others():
    failed, some_failed = curved([None] * 4), curved([*HIGH[:3], None])
    for run in (*failed, some_failed[-1]):
        run["final_return"] = None
    for test in (findings.learns_better(), findings.better()):
        base = [row | {"final_return": row["area"]} for row in curved(LOW)]
        assert test([failed], [base]).verdict == NOT
        assert test([base], [failed]).verdict == REPRODUCED
        assert test([failed], [failed]).found.endswith("0.5 [0.5, 0.5]")
    assert findings.learns_better()([some_failed], [curved(LOW)]).found.startswith("a higher mean of the curve with")
    assert "0.75" in findings.learns_better()([some_failed], [curved(LOW)]).found


def curved(areas, **more) -> list[dict]:
    return [row | {"area": area} for row, area in zip(some([0.0] * len(areas), **more), areas, strict=True)]


def test_curves_are_compared_by_their_mean():
    high, low = [curved(HIGH)], [curved(LOW)]
    assert findings.learns_better()(high, low).verdict == REPRODUCED
    assert findings.learns_better()(low, high).verdict == NOT
    assert findings.learns_better()(high, high).verdict == UNDECIDED
    assert findings.learns_better()([curved(HIGH[:2])], low).verdict == UNDECIDED


def test_one_published_curve_is_like_ours_if_it_could_be_one_of_them():
    def like(returns, after=0, seeds=(-10.0, 0.0, 10.0)):
        ours = [
            [
                row | {"curve": [[k, 100.0 + x] for k in (1, 2, 3, 4)]}
                for row, x in zip(curved(seeds), seeds, strict=True)
            ]
        ]
        return findings.like([*zip((1, 2, 3, 4), returns, strict=True)], after)(ours, ours)

    assert [like([x] * 4).verdict for x in (89.0, 91.0, 111.0)] == [NOT, REPRODUCED, NOT]
    dips = [140.0, 100.0, 50.0, 60.0]
    assert like(dips).found == "a mean of the curve of 90 to 110, theirs 83.33"
    assert like([190.0, 110.0, 50.0, 60.0]).verdict == REPRODUCED  # as a whole
    assert like([190.0, 110.0, 50.0, 60.0], after=3) == Answer(NOT, "a mean of the curve of 90 to 110, theirs 55")
    assert like([91.0] * 4, seeds=(-10.0, 10.0)).verdict == UNDECIDED
    other = [[row | {"curve": [[1, 100.0], [2, 100.0]]} for row in curved([0.0] * 3)]]
    assert findings.like([(1, 100.0), (4, 100.0)])(other, other).verdict == UNDECIDED


def test_one_task_on_which_it_hurts_is_enough_not_to_help_everywhere():
    high, low, wide = ([curved(x, task=t) for t in "abc"] for x in ([*HIGH, 12.5], [*LOW, 3.5], [*WIDE, 8.0]))
    test = findings.not_everywhere(of=3)
    answer = test([high[0], low[1], wide[2]], [low[0], high[1], high[2]])
    assert answer.verdict == REPRODUCED
    assert answer.found == "worse on b; better on a"
    assert test(high, low).verdict == NOT
    assert test(high[:2], low[:2]).verdict == UNDECIDED  # two of three tasks are not everywhere
    assert test([*high[:2], wide[2]], [*low[:2], high[2]]).verdict == UNDECIDED


def test_of_many_tasks_one_may_look_worse_by_chance():
    """Four runs that do not overlap are one arrangement in 35: among nine tasks that says little, of one it does."""
    high, low = ([curved(x, task=t) for t in "abcdefghi"] for x in (HIGH, LOW))
    test = findings.not_everywhere(of=9)
    assert test([low[0], *high[1:]], [high[0], *high[1:]]).verdict == UNDECIDED
    assert test(low[:1], high[:1]).verdict == REPRODUCED


def at_bits(**by_bits) -> list[dict]:
    """Rows with returns at numbers of bits, b8=[...] say."""
    each, count = zip(*by_bits.values(), strict=True), len(next(iter(by_bits.values())))
    names = [int(name[1:]) for name in by_bits]
    return [
        row | {"rounded": [*zip(names, one, strict=True)]} for row, one in zip(some([0.0] * count), each, strict=True)
    ]


def test_what_rounding_costs_is_told_run_by_run():
    """Runs that differ by more than what is asked are still compared, each with itself."""
    full, fair, good = [100.0, 200.0, 300.0], [90.0, 199.0, 299.0], [99.0, 199.0, 299.0]
    runs = at_bits(b2=[0.0] * 3, b4=[80.0, 160.0, 240.0], b6=fair, b8=good, b32=full)
    verdicts = {n: findings.keeps(n, 0.05)([runs], [runs]) for n in (2, 4, 6, 8)}
    assert {n: answer.verdict for n, answer in verdicts.items()} == {2: NOT, 4: NOT, 6: UNDECIDED, 8: REPRODUCED}
    assert "0.2 [0.2, 0.2] of the return is lost, claimed at most 0.05" in verdicts[4].found
    assert verdicts[8].note == "no more than that down to 8 bits"
    costs = at_bits(b4=[-120.0] * 3, b32=[-100.0] * 3)  # where less is more
    assert findings.keeps(4, 0.05)([costs], [costs]).verdict == NOT
    assert findings.keeps(4, 0.05)([runs[:2]], [runs[:2]]).verdict == UNDECIDED


def test_returns_at_so_many_bits_can_be_compared():
    ours, base = at_bits(b3=HIGH), at_bits(b3=LOW, b32=[99.0] * 4)
    assert findings.better(bits=3)([ours], [base]).verdict == REPRODUCED
    assert findings.better(bits=3)([base], [ours]).verdict == NOT
    assert findings.better(bits=4)([ours], [base]).verdict == UNDECIDED  # nobody has looked


def test_of_several_conditions_the_worst_decides():
    quick, slow = [5.0, 5.1, 5.2], [10.0, 10.1, 10.2]
    base = [some(HIGH[:3], slow)]
    assert FASTER([some(HIGH[:3], quick)], base).verdict == REPRODUCED
    assert FASTER([some(LOW[:3], quick)], base).verdict == NOT
    assert FASTER([some(HIGH[:3], slow)], base).verdict == NOT
    assert FASTER([some(LOW[:3], [5.0, 14.0, 6.0])], base).verdict == NOT
    assert FASTER([some(HIGH[:3], [5.0, 14.0, 6.0])], base).verdict == UNDECIDED


def test_seeds_of_one_program_are_one_measurement_of_time():
    """Else their equal shares would be an interval without width, and decide."""
    quick, slow = some(HIGH, [2.0] * 4, seeds_together=4), some(HIGH, [9.0] * 4, seeds_together=4)
    answer = findings.times("training_seconds", 0.7)([quick], [slow])
    assert answer.verdict == UNDECIDED
    assert answer.found.startswith("0.222 times")


def test_amdahls_bound_is_of_the_work_without_waiting():
    assert "38% of the work of fp32: without any, 0.62 times" in findings.amdahl([some(HIGH)], [some(HIGH)])
    nothing = some(HIGH, time_split={"environment": None, "inference": None, "learner": None, "other": None})
    assert findings.amdahl([nothing], [nothing]) == ""


def test_questions_are_asked_of_their_tasks_and_together_of_those_that_ran(tmp_path, monkeypatch):
    mine = Finding("Of one?", "quick", "slow", findings.better(), tasks=("Acrobot",))
    asked = SMALL._replace(findings=(*SMALL.findings, mine))
    monkeypatch.setattr(catalog, "study", lambda name: asked)
    go(tmp_path, Trainer(stop_after=3))
    found = [(finding.question, task, answer) for finding, task, answer in report.answers(report.load(tmp_path))]
    assert [(question, task) for question, task, _ in found] == [
        ("Faster?", "CartPole"), ("Faster?", "Acrobot"), ("Better?", "1 of 2 tasks"), ("Of one?", "Acrobot")
    ]  # fmt: skip
    assert found[2][2].found == "better with probability 1 [1, 1]"
    assert found[3][2].found == "not run yet"
    go(tmp_path)
    assert [task for finding, task, _ in report.answers(report.load(tmp_path)) if finding.together] == ["all tasks"]


def test_a_task_that_has_only_begun_undoes_no_verdict(tmp_path, monkeypatch):
    tasks = {name: {"env": "CartPole-v1", "hyper": {"tau": tau}} for name, tau in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    monkeypatch.setattr(catalog, "study", lambda name: SMALL._replace(tasks=tasks))
    go(tmp_path)
    kept = rows(tmp_path)

    def verdict(seeds: int) -> tuple[str, str]:
        """With so many runs of the third task."""
        found = [row for row in kept if row["task"] != "c" or row["seed"] < seeds]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        of_all = [
            (task, answer.verdict)
            for finding, task, answer in report.answers(report.load(tmp_path))
            if finding.together
        ]
        return of_all[0]

    assert [verdict(n) for n in (0, 1, 2)] == [("2 of 3 tasks", REPRODUCED)] * 3
    assert verdict(3) == ("all tasks", REPRODUCED)


def test_a_claim_is_reproduced_where_all_of_its_questions_are(tmp_path, monkeypatch):
    def asked(number: str, ours: str, base: str) -> Finding:
        return Finding(f"{number}. Better?", ours, base, findings.better(), together=True)

    right, wrong = asked("1", "quick", "slow"), asked("2", "slow", "quick")
    about = SMALL._replace(
        findings=(right, wrong, asked("2", "quick", "slow")), claims={"1": "A.", "2": "B.", "3": "C."}
    )
    monkeypatch.setattr(catalog, "study", lambda name: about)
    go(tmp_path)
    found = report.load(tmp_path)
    assert [(text, verdict) for text, verdict, _ in report.claims(found)] == [
        ("1. A.", REPRODUCED), ("2. B.", NOT), ("3. C.", UNDECIDED)
    ]  # fmt: skip
    assert next(report.told(found)) == "reproduced: 1. A. (of its questions 1 reproduced)"
    shown = Page((tmp_path / "report.html").read_text()).text
    assert "2. B. 1 reproduced, 1 not reproduced not reproduced" in " ".join(shown.split())


def test_tasks_that_arms_share_are_shown_together(tmp_path, monkeypatch):
    """A task with a single arm leaves nothing out."""
    tasks = {**SMALL.tasks, "alone": {"env": "CartPole-v1", "arms": ("slow",)}}
    monkeypatch.setattr(catalog, "study", lambda name: SMALL._replace(tasks=tasks))
    go(tmp_path)
    shown = Page((tmp_path / "report.html").read_text()).text
    assert "Tasks: CartPole, Acrobot." in shown
    assert "Performance profiles" in shown


def test_figures_have_the_arms_that_the_study_says(tmp_path, monkeypatch):
    drawn = SMALL._replace(figures={"The slow one": ("slow",), "Both": ("quick", "slow"), "Less": ("quick", "slow")})
    monkeypatch.setattr(catalog, "study", lambda name: drawn)
    go(tmp_path)
    text = (tmp_path / "report.html").read_text()
    told = [text.split(f'id="curves-0-{n}-desc">')[1].split("</desc>")[0] for n in (0, 1)]
    assert ["quick ends at" in said for said in told] == [False, True]
    assert all("slow ends at" in said for said in told)
    assert "The slow one: return of greedy episodes on CartPole" in Page(text).text
    assert "curves-0-2" not in text  # nothing that the one before does not show


@pytest.mark.parametrize(("part", "verdict"), [(0.8, REPRODUCED), (0.99, NOT)])
def test_a_part_of_what_free_policies_would_save(part, verdict):
    """Calls and packets are 3/8 of the work: with 0.64 of the time, 96 % of what they would save is saved."""
    base = some(HIGH, training_seconds=100.0)
    ours = some(HIGH, training_seconds=64.0)
    answer = findings.saves(part)([ours], [base])
    assert answer.verdict == verdict
    assert "38% of the work" in answer.note


def test_a_study_knows_what_it_found(tmp_path):
    go(tmp_path)
    found = report.load(tmp_path)
    verdicts = {(finding.question, task): answer for finding, task, answer in report.answers(found)}
    assert verdicts["Faster?", "Acrobot"].verdict == REPRODUCED
    assert verdicts["Faster?", "CartPole"].verdict == UNDECIDED  # one program each
    assert verdicts["Better?", "all tasks"].verdict == REPRODUCED
    assert "25% of the work of slow" in verdicts["Faster?", "Acrobot"].note


def test_the_report_shows_every_arm_and_is_made_anew(tmp_path, capsys):
    out = tmp_path / "a study"
    go(out, Trainer(stop_after=4))
    early = Page((out / "report.html").read_text())
    assert "7 of 12 seeds finished" in early.text
    assert "not run yet" in early.text
    go(out)
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    shown = Page((out / "report.html").read_text())
    assert "quick is faster & better." in shown.text
    assert "12 of 12 seeds finished" in shown.text
    # curves of each task and the profiles: a line and a band for each arm
    assert shown.classes.count("mean") == shown.classes.count("band") == 3 * 2
    assert {"part-0", "part-1", "whisker"} <= set(shown.classes)
    for words_of in ("reproduced", "Performance profiles", "actor time, microseconds a step", "better than slow"):
        assert words_of in shown.text
    assert f"frugal study small --seeds 3 --out '{out}'" in shown.text
    assert "nan" not in shown.text
    assert len(shown.links) == 12
    assert "Acrobot/quick-seed-1/report.html" in shown.links


def test_the_report_of_a_run_that_diverged_and_of_one_without_evaluations(tmp_path):
    go(tmp_path)
    changed = rows(tmp_path)
    for row in changed:
        if row["arm"] == "quick" and row["seed"] == 1:
            row |= {"final_return": None, "area": None, "curve": [[1500, 3.0], [3000, None]]}
        if row["arm"] == "slow" and row["task"] == "Acrobot":
            row |= {"curve": []}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    shown = Page(report.report(tmp_path).read_text())
    assert "nan" not in shown.text
    assert "nan" not in (tmp_path / "report.html").read_text()
    assert "unknown" in shown.text
    verdicts = {
        (finding.question, task): answer.verdict for finding, task, answer in report.answers(report.load(tmp_path))
    }
    assert verdicts["Faster?", "Acrobot"] == UNDECIDED
    assert verdicts["Better?", "all tasks"] == UNDECIDED


def test_a_folder_of_studies_and_runs_does_not_take_a_study_for_a_run(tmp_path):
    go(tmp_path / "study")
    shown = Page(monitor_report.report(tmp_path).read_text())
    assert "8 runs, 8 finished" in shown.text
    assert "study/Acrobot/slow-seed-0/report.html" in shown.links
    assert "Study small" in (tmp_path / "study" / "report.html").read_text()


def test_studies_are_listed_with_their_claims(capsys):
    assert cli.main(["studies"]) == 0
    said = capsys.readouterr().out
    for name in catalog.STUDIES:
        assert f"{name}: {catalog.study(name).claim}" in said


# in earnest


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_studies import SMALL
from frugalrl import catalog
from frugalrl.cli import main
catalog.study = lambda name: SMALL
sys.exit(main())
"""


def begin(*words: object) -> subprocess.Popen:
    program = PROGRAM.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_study_in_earnest(tmp_path, capfd):
    out = tmp_path / "s"
    assert cli.main(["study", "small", "--env", "CartPole-v1", "--seeds", "2", "--out", str(out)]) == 0
    said = capfd.readouterr()
    assert "run 2 of 2: CartPole, quick, seeds 0 to 1" in said.err
    assert "2 of 2 runs are finished" in said.out
    assert "undecided: Faster? CartPole, quick / slow:" in said.out
    found = rows(out)
    assert [(row["arm"], row["seed"]) for row in found] == [("slow", 0), ("slow", 1), ("quick", 0), ("quick", 1)]
    assert all(row["steps"] == row["curve"][-1][0] == 3000 for row in found)
    assert all(row["final_return"] == row["curve"][-1][1] > 0 for row in found)
    assert json.loads((out / "study.json").read_text())["seeds"] == {"CartPole": 2}


@pytest.mark.long
def test_ctrl_c_and_kill_lose_nothing(tmp_path):
    out = tmp_path / "s"
    call = ("study", "small", "--env", "Acrobot-v1", "--seeds", "2", "--scale", "10", "--out", out)
    run = out / "Acrobot" / "slow-seed-0"

    first = begin(*call)
    wait_for(lambda: has_rows(run, 2), 120)
    interrupt(first)  # all processes, as a terminal does
    ended = finish(first)
    assert ended.code == 130, ended.err
    assert "stopped after 0 of 4 runs" in ended.err
    assert "Traceback" not in ended.err
    before = len(rows(run))

    second = begin(*call)
    wait_for(lambda: has_rows(run, before + 1), 120)
    second.terminate()  # it alone: its child has to be told
    ended = finish(second)
    assert ended.code == 143, ended.err
    assert receipt.read(run / "receipt.json")["finished"] is False  # type: ignore[index]

    third = begin(*call)
    wait_for(lambda: has_rows(run, len(rows(run))), 120)
    child = int(
        wait_for(lambda: subprocess.run(["pgrep", "-P", str(third.pid)], capture_output=True, text=True).stdout)
    )
    third.kill()
    third.wait()
    if running(child):  # which holds the lock
        refused = finish(begin(*call))
        assert refused.code == 2 or not running(child)
    wait_for(lambda: not running(child), 120)
    finish(third)  # closes its pipes

    last = finish(begin(*call), 240)
    assert last.code == 0, last.err
    assert [(row["arm"], row["seed"]) for row in rows(out)] == [("slow", 0), ("quick", 0), ("quick", 1), ("slow", 1)]
    steps = [row["step"] for row in rows(run)]
    assert steps == sorted(set(steps))
    assert len(steps) == 10


def test_make_gpu_asks_for_tasks_that_are_there():
    makefile = Path(__file__).parents[1] / "Makefile"
    recipe = makefile.read_text().split("\ngpu:")[1].split("\n\n")[0].replace("\\\n", " ")
    (line,) = [line for line in recipe.splitlines() if "benchmarks.studies" in line]
    words = shlex.split(line)
    asked = words[words.index("--env") + 1 : words.index("--minutes")]
    assert asked
    assert {*asked} <= {*catalog.study(words[words.index("benchmarks.studies") + 1]).tasks}
