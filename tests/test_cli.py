"""The command line: what each command does on a tiny run, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from runs import TINY, checkpoints, command, has_rows, receipt, rows, timeless

from frugalrl import catalog, checkpoint, cli, config, errors, jobs, policy, training
from frugalrl.monitor import files

CARTPOLE = ("train", "dqn", "CartPole-v1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main([*CARTPOLE, *TINY, "--quiet", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def wrong(capfd):
    """A function that makes a wrong call and returns the one line it gets."""

    def call(*words: object) -> str:
        assert cli.main([str(word) for word in words]) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert said.err.startswith("frugal: ")
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        return said.err

    return call


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_run_leaves_what_the_contract_promises(finished):
    for name in ("config.json", "rows.jsonl", "receipt.json", "report.html", "policy/policy.json", "policy/seed-0.npz"):
        assert (finished / name).is_file()
    assert [path.stem for path in checkpoints(finished)] == ["3000"]
    config = json.loads((finished / "config.json").read_text())
    assert (config["agent"], config["env"], config["steps"]) == ("dqn", "CartPole-v1", 3000)
    assert config["hyper"]["hidden"] == [16]
    assert config["hyper"]["learning_rate"] == catalog.defaults("dqn", "CartPole-v1")[1]["learning_rate"]
    steps = [row["step"] for row in rows(finished)]
    assert steps == sorted(set(steps))
    assert len(steps) == 10
    assert steps[-1] == 3000
    assert receipt(finished)["finished"]
    assert receipt(finished)["returns"]["per_seed"] == [rows(finished)[-1]["episode_return"]]


def test_training_says_what_it_reached_and_what_to_do_next(tmp_path, capfd):
    out = tmp_path / "my  run é"
    assert cli.main([*CARTPOLE, *TINY, "--out", str(out)]) == 0
    said = capfd.readouterr()
    assert "compiling" in said.err
    assert "dqn on CartPole-v1, 1 seed, compiled" in said.out
    for words in (f"frugal eval '{out}'", "frugal export", f"frugal resume '{out}' --steps 6000"):
        assert words in said.out


def test_quiet_prints_nothing(tmp_path, capfd):
    assert cli.main([*CARTPOLE, *TINY, "--quiet", "--out", str(tmp_path / "a")]) == 0
    assert capfd.readouterr() == ("", "")


def test_quiet_prints_nothing_in_the_actors_runtime(tmp_path, capfd):
    words = [*CARTPOLE, *TINY, "--quiet", "--actors", "int8", "--out", str(tmp_path / "a")]
    assert cli.main(words) == 0
    assert capfd.readouterr() == ("", "")
    assert receipt(tmp_path / "a")["actors"]["mode"] == "int8"


def test_without_out_the_run_folder_is_named_and_numbered(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main([*CARTPOLE, *TINY, "--quiet"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["dqn-CartPole-v1", "dqn-CartPole-v1-2"]


def test_the_same_call_gives_the_same_rows(finished, tmp_path):
    assert cli.main([*CARTPOLE, *TINY, "--quiet", "--out", str(tmp_path / "a")]) == 0
    assert timeless(rows(tmp_path / "a")) == timeless(rows(finished))


def test_hidden_sets_the_widths(tmp_path):
    words = [*CARTPOLE, *TINY[:-3], "hidden=32,24", "learning_starts=500", "--quiet", "--out", str(tmp_path / "a")]
    assert cli.main(words) == 0
    with np.load(tmp_path / "a" / "policy" / "seed-0.npz") as arrays:
        assert [arrays[f"w{i}"].shape for i in range(3)] == [(4, 32), (32, 24), (24, 2)]


def test_eval_plays_the_policy(finished, capfd):
    assert cli.main(["eval", str(finished), "--episodes", "3"]) == 0
    assert "seed 0: mean greedy return" in capfd.readouterr().out


def test_eval_on_the_held_out_seeds_agrees_with_itself_and_not_with_other_seeds(finished, capfd):
    said = []
    for more in ([], [], ["--seed", "5"]):
        assert cli.main(["eval", str(finished), "--episodes", "5", *more]) == 0
        said.append(capfd.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_eval_of_rounded_weights(finished, capfd):
    said = {}
    for bits in (None, 32, 2):
        words = ["eval", str(finished), "--episodes", "5", *(() if bits is None else ("--bits", str(bits)))]
        assert cli.main(words) == 0
        said[bits] = capfd.readouterr().out.splitlines()
    assert said[32] == ["weights rounded to 32 bits after training", *said[None]]
    actor = policy.load(finished)
    coarse = policy.Actor(actor.card, [tuple(w._replace(w=_coarse(w.w)) for w in actor.weights[0])])
    assert f"return {np.mean(coarse.play(5).returns):.1f} over" in said[2][1]
    assert said[2][1] != said[None][0]


def _coarse(w: np.ndarray) -> np.ndarray:
    """To 2 bits, by QuaRL's rule."""
    step = (abs(w.min()) + abs(w.max())) / 4
    return (np.rint(w / step) * step).astype(np.float32)


@pytest.mark.parametrize(("form", "name"), [("onnx", "policy.onnx"), ("litert", "policy.tflite")])
def test_export_writes_a_file(run, capfd, form, name):
    if form == "onnx":
        pytest.importorskip("onnx")
    assert cli.main(["export", str(run), "--format", form]) == 0
    assert capfd.readouterr().out.splitlines() == [str(run / name), str(run / f"{name}.md")]
    assert (run / name).stat().st_size > 100
    assert cli.main(["export", str(run), "--format", form, "--out", str(run / "mine")]) == 0
    assert (run / "mine").is_file()


def test_report_is_written_again(run, capfd):
    (run / "report.html").unlink()
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()


def test_resume_of_a_finished_run_says_so(run, capfd):
    before = everything(run)
    assert cli.main(["resume", str(run)]) == 0
    assert "is finished" in capfd.readouterr().out
    assert cli.main(["resume", str(run), "--steps", "3000"]) == 0
    assert everything(run) == before


def test_resume_of_no_run_goes_on_with_the_newest_that_is_not_finished(tmp_path, monkeypatch, wrong, capfd):
    monkeypatch.chdir(tmp_path)
    assert "no run below runs/ is left unfinished" in wrong("resume")
    done = Path(__file__).parent / "data" / "run-format-1"
    for age, name in enumerate(("finished", "newest", "older")):
        run = shutil.copytree(done, tmp_path / "runs" / name)
        if name != "finished":
            (run / "receipt.json").unlink()
        os.utime(run / "config.json", (10 - age, 10 - age))
    gone_on = []
    monkeypatch.setattr(training, "resume", lambda run, **options: gone_on.append(run))
    assert cli.main(["resume"]) == 0
    assert gone_on == [Path("runs/newest")]
    assert capfd.readouterr().out.startswith("going on with runs/newest\n")


def test_resume_goes_on_to_more_steps(run, capfd):
    before, cost = rows(run), receipt(run)
    assert cli.main(["resume", str(run), "--steps", "5000", "--quiet"]) == 0
    after = rows(run)
    assert after[: len(before)] == before
    assert [row["step"] for row in after[len(before) :]] == [3500, 4000, 4500, 5000]
    assert checkpoints(run)[-1].stem == "5000"
    made, config = receipt(run), json.loads((run / "config.json").read_text())
    assert (made["steps"], made["finished"]) == (5000, True)
    assert (config["steps"], config["first_steps"]) == (5000, 3000)
    for name in ("wall_seconds", "cpu_seconds", "evaluation_seconds"):
        assert made[name] > cost[name]
    assert cli.main(["eval", str(run), "--episodes", "2"]) == 0


def test_a_run_killed_before_its_first_checkpoint_starts_again(run, finished):
    for path in (run / "checkpoints", run / "policy"):
        shutil.rmtree(path)
    (run / "receipt.json").unlink()
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    assert timeless(rows(run)) == timeless(rows(finished))


def test_a_run_killed_between_its_last_checkpoint_and_its_receipt_is_completed(run, finished):
    shutil.rmtree(run / "policy")
    (run / "receipt.json").unlink()
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    assert rows(run) == rows(finished)
    assert receipt(run)["finished"]
    with np.load(run / "policy" / "seed-0.npz") as new, np.load(finished / "policy" / "seed-0.npz") as old:
        for name in old:
            np.testing.assert_array_equal(new[name], old[name])


def test_an_evaluation_that_failed_is_done_again(finished, tmp_path, monkeypatch, capfd):
    """On the way, and at the end: where no row can be written either, no receipt says that the run is finished."""
    out, play, write = tmp_path / "run", jobs._evaluate_on_twin, training.rows.write
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint.Writer, "due", lambda writer: True)

    def broken(*what):
        if has_rows(out, 4):
            raise ValueError("nobody may look")
        return play(*what)

    def full(path, new, **how):
        if new[0]["step"] == 3000:
            raise OSError(28, "No space left on device")
        write(path, new, **how)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_evaluate_on_twin", broken)
        assert cli.main([*CARTPOLE, *TINY, "--quiet", "--out", str(out)]) == 1
    assert "the evaluation at step 1,500 failed" in capfd.readouterr().err
    assert [int(path.stem) for path in checkpoints(out)][-1] < 1500
    with monkeypatch.context() as patch:
        patch.setattr(training.rows, "write", full)
        assert cli.main(["resume", str(out), "--quiet"]) == 1
    assert (len(rows(out)), receipt(out)["finished"]) == (9, False)
    assert cli.main(["resume", str(out), "--quiet"]) == 0
    assert timeless(rows(out)) == timeless(rows(finished))
    assert (receipt(out)["finished"], receipt(out)["episodes_per_seed"]) == (True, 100)


def test_a_run_is_not_finished_before_its_last_evaluation(run, finished):
    file = run / "rows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    (run / "receipt.json").unlink()
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    assert len(rows(run)) == 10
    assert receipt(run)["returns"] == receipt(finished)["returns"]


def test_one_process_trains_in_a_folder_and_others_may_look(run, finished, wrong, monkeypatch, capfd):
    before = everything(run)
    with training.Folder(run).held():
        for words in (("resume", run, "--steps", "5000"), (*CARTPOLE, *TINY, "--force", "--quiet", "--out", run)):
            assert f"another process trains in {run}" in wrong(*words)
        for words in (("eval", run, "--episodes", "1"), ("report", run), ("watch", run), ("compare", run, finished)):
            assert cli.main([str(word) for word in words]) == 0
        capfd.readouterr()
    (run / "report.html").write_bytes(before[run / "report.html"] or b"")
    assert everything(run) == before

    prepare, out = training._prepare, run.parent / "other"

    def while_another_begins(*what):
        shutil.copytree(finished, out)
        return prepare(*what)

    monkeypatch.setattr(training, "_prepare", while_another_begins)
    assert "is not empty" in wrong(*CARTPOLE, *TINY, "--quiet", "--out", out)
    assert rows(out) == rows(finished)


def test_a_name_that_is_taken_meanwhile_is_numbered(tmp_path, monkeypatch, wrong):
    tried = []

    def train(*what, out, **how):
        tried.append(out.name)
        if len(tried) == 1:
            out.mkdir(parents=True)  # by another process
            raise errors.Taken("it trains there")
        raise errors.UsageError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "train", train)
    assert "enough" in wrong(*CARTPOLE)
    assert tried == ["dqn-CartPole-v1", "dqn-CartPole-v1-2"]
    assert "enough" in wrong("train", "dqn", "my_module:ALE/Pong-v5")
    assert tried[2] == "dqn-my_module-ALE-Pong-v5"  # Windows takes no colon
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)  # where there are runs
    assert "environment" in wrong("train", "dqn", "x" * 300)


def test_force_leaves_the_old_run_or_the_new_one(run, monkeypatch):
    """Wherever it breaks off: by an error, with everything as it was, or because the process was killed."""
    before, wanted = everything(run), training.configured("dqn", "CartPole-v1", steps=2000)
    old, folder, rename, kept = config.read(run), training.Folder(run), os.rename, run.parent / "kept"
    shutil.copytree(run, kept)

    class Killed(BaseException):
        pass

    for error in (OSError(16, "busy"), Killed()):
        for number in range(7):
            calls = []

            def moved(*what, calls=calls, error=error, number=number):
                calls.append(what)
                if len(calls) == number + 1:
                    raise error
                rename(*what)

            shutil.rmtree(run)
            shutil.copytree(kept, run)
            with monkeypatch.context() as patch, suppress(errors.UsageError, Killed):
                patch.setattr(training.os, "rename", moved)
                folder.create(wanted)
            there = {path.name for path in run.iterdir()} & {"rows.jsonl", "receipt.json", "checkpoints", "policy"}
            if config.read(run) != old:
                assert there == set()
                assert number > 4
            elif isinstance(error, OSError):
                assert everything(run) == before
            else:
                assert "receipt.json" not in there or number == 0
    assert config.read(run) == wanted


def test_force_replaces_a_run_and_nothing_else(run):
    (run / "notes.txt").write_text("mine")
    (run / "policy.onnx").write_text("of the old run")
    words = [*CARTPOLE, *TINY, "--quiet", "--force", "--seed", "3", "--out", str(run)]
    assert cli.main(words) == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "policy.onnx").exists()
    assert {row["seed"] for row in rows(run)} == {3}
    assert len(rows(run)) == 10


def test_environment_options_are_kept_for_whatever_comes_after(tmp_path, capfd, wrong):
    out = tmp_path / "a"
    options = {"frame_stack": 2, "kwargs": {"sutton_barto_reward": True}}
    words = ["--env-option", "frame_stack=2", "kwargs.sutton_barto_reward=true", "--quiet", "--out", str(out)]
    assert cli.main([*CARTPOLE, *TINY, *words]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["runtime"], config["env_options"]) == ("actors", options)
    actor = policy.load(out)
    assert actor.card.env_options == options
    assert actor.card.obs.shape == (8,)
    assert actor.predict(np.zeros(8)).shape == ()
    assert cli.main(["eval", str(out), "--episodes", "2"]) == 0
    assert "mean greedy return -1.0" in capfd.readouterr().out
    assert {row["episode_return"] for row in rows(out)} == {-1.0}
    assert cli.main(["resume", str(out), "--steps", "3500", "--quiet"]) == 0
    assert json.loads((out / "config.json").read_text())["env_options"] == options
    assert cli.main(["export", str(out), "--format", "litert"]) == 0
    capfd.readouterr()
    card = json.loads((out / "policy" / "policy.json").read_text())
    (out / "policy" / "policy.json").write_text(json.dumps(card | {"env_options": {"frame_stak": 2}}))
    assert "is damaged" in wrong("eval", out)


def test_files_from_before_there_were_environment_options_are_read(run, capfd):
    for file in (run / "config.json", run / "policy" / "policy.json"):
        found = json.loads(file.read_text())
        del found["env_options"]
        file.write_text(json.dumps(found))
    assert cli.main(["eval", str(run), "--episodes", "1"]) == 0
    assert cli.main(["resume", str(run), "--steps", "3100", "--quiet"]) == 0


def test_environment_options_may_be_python_values():
    options = {"terminal_on_life_loss": True, "sticky_actions": 0, "kwargs.mode": 1, "kwargs": {"difficulty": "0"}}
    assert catalog.parse_env_options(options) == {
        "terminal_on_life_loss": True, "sticky_actions": 0.0, "kwargs": {"mode": 1, "difficulty": 0},
    }  # fmt: skip
    with pytest.raises(training.UsageError, match="must be a number, text, list or dictionary"):
        catalog.parse_env_options({"kwargs": {"mode": object()}})


def test_options_that_are_the_defaults_leave_the_twin():
    assert training.configure("dqn", "CartPole-v1", env_options={"frame_stack": 1}).runtime == "compiled"


def test_a_spent_budget_stops_the_run_after_saving(tmp_path, capfd):
    out = tmp_path / "my  run é"
    words = [*CARTPOLE, *TINY, "--steps", "100000", "--budget", "0.0001", "--quiet", "--out", str(out)]
    assert cli.main(words) == 0
    said = capfd.readouterr()
    assert said.err.count("\n") == 1
    assert f"frugal resume '{out}'" in said.err
    assert len(checkpoints(out)) == 1
    assert not receipt(out)["finished"]
    assert not (out / "rows.jsonl").exists()
    assert receipt(out)["returns"]["iqm"] is not None
    assert "The run did not finish" in (out / "report.html").read_text()
    assert not (out / "progress.json").exists()
    assert cli.main(["eval", str(out), "--episodes", "1"]) == 0
    shutil.rmtree(out / "policy")
    assert cli.main(["eval", str(out)]) == 2
    assert f"no policy yet; go on with: frugal resume '{out}'" in capfd.readouterr().err


def test_a_run_says_how_long_it_takes_and_outlives_its_dashboard(tmp_path, capfd, monkeypatch):
    steps, begun = [], []

    def fail(**options):
        begun.append(options["name"])
        raise ConnectionError("no server")

    fake = ModuleType("wandb")
    fake.__spec__, fake.init = ModuleSpec("wandb", None), fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(training, "LONG", 0.0)
    monkeypatch.setattr(training, "PACE", 0.0)
    monkeypatch.setattr(training.live, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(training.live, "write", lambda folder, step, total, *_: steps.append((step, total)))
    assert cli.main([*CARTPOLE, *TINY, "--log", "wandb", "--out", str(tmp_path / "a")]) == 0
    said = capfd.readouterr().err
    assert re.search(r"^estimate: .* for the [\d,]+ steps that are left", said, re.MULTILINE)
    assert said.count("--log wandb has failed and is given up: ConnectionError: no server") == 1
    assert begun == ["a-seed-0"]
    assert steps[-1] == (3000, 3000)
    assert len(rows(tmp_path / "a")) == 10


def test_a_policy_is_pushed_with_its_card(run, wrong, monkeypatch, capfd):
    seen = {}

    class Hub:
        def create_repo(self, repo, exist_ok, private):
            seen.update(repo=repo, private=private)
            return f"https://hub.example/{repo}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            seen["files"] = {p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file()}
            seen["card"] = (Path(folder_path) / "README.md").read_text()
            again = policy.load(folder_path)
            seen["action"] = again.predict(np.zeros(4, np.float32))

    fake = ModuleType("huggingface_hub")
    fake.__spec__, fake.HfApi = ModuleSpec("huggingface_hub", None), Hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    (run / "policy" / "notes").write_text("mine")
    (run / "policy" / "more").symlink_to(Path.home())
    assert cli.main(["push", str(run), "me/cart-pole"]) == 0
    assert capfd.readouterr().out == "https://hub.example/me/cart-pole\n"
    files = {"README.md", "config.json", "receipt.json", "rows.jsonl", "report.html", "policy/policy.json"}
    assert seen["files"] == files | {"policy/seed-0.npz"}
    assert (seen["repo"], seen["private"]) == ("me/cart-pole", None)
    assert seen["action"] in (0, 1)
    assert seen["card"].startswith("---\nlibrary_name: frugalrl\n")
    for text in (
        '"reinforcement-learning", "frugalrl", "dqn", "CartPole-v1"',
        "| energy |",
        'snapshot_download("me/cart-pole")',
    ):
        assert text in seen["card"]
    monkeypatch.setattr(Hub, "upload_folder", lambda self, **_: 1 / 0)
    assert cli.main(["push", str(run), "me/cart-pole"]) == 1
    assert "the upload to me/cart-pole failed: ZeroDivisionError" in capfd.readouterr().err
    for link in (run / "report.html", run / "policy" / "seed-0.npz"):
        link.rename(run / "elsewhere")
        link.symlink_to(run / "elsewhere")
        assert f"{link} is a link" in wrong("push", run, "me/cart-pole")
        (run / "elsewhere").replace(link)
    shutil.rmtree(run / "policy")
    assert "holds no policy" in wrong("push", run, "me/cart-pole")


def test_agents_envs_and_bench_list_what_there_is(capfd):
    assert cli.main(["agents"]) == 0
    every = capfd.readouterr().out
    assert "--hyper learning_rate=0.001" in every
    assert cli.main(["agents", "ppo"]) == 0
    only = capfd.readouterr().out
    assert only.startswith("ppo: ")
    assert only in every
    assert only.count("\n") < 30
    assert cli.main(["envs"]) == 0
    assert "CartPole-v1" in capfd.readouterr().out
    assert cli.main(["bench"]) == 0
    assert "policy_call" in capfd.readouterr().out


@pytest.mark.long
def test_envs_says_which_agents_can_train(capfd, monkeypatch):
    assert cli.main(["envs"]) == 0
    lines = capfd.readouterr().out.splitlines()
    for env_id in ("CartPole-v1", "MountainCar-v0", "Pendulum-v1"):
        (line,) = [line for line in lines if line.startswith(env_id)]
        able = []
        for agent in catalog.AGENTS:
            with suppress(training.UsageError):
                able.append(training.configure(agent, env_id).agent)
        assert line.endswith(", ".join(able) or "no agent yet takes its continuous actions")
    for family in catalog.FAMILIES:  # of which one tells of all, unless it is said to be mixed
        able = {catalog.able(*catalog.spaces(env_id)) for env_id in family.ids}
        assert (len(able) > 1) == family.mixed, family
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "Box2D" else name)
    assert cli.main(["envs"]) == 0
    assert "pip install 'frugalrl[box2d]'" in capfd.readouterr().out


def test_bench_hands_its_options_on(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "matrix_product", "--quick", "--out", "rows.jsonl"]) == 0
    assert "rows in rows.jsonl" in capfd.readouterr().out
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert row["command"] == "python -m benchmarks.matrix_product --quick"
    assert cli.main(["bench", "matrix_product", "--quik"]) == 2


def test_outside_of_a_checkout_there_is_nothing_to_bench(tmp_path, monkeypatch, wrong):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "policy_call.py").write_text("somebody else's")
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "frugalrl" / "cli.py"))
    assert "clone the repository" in wrong("bench")
    assert "clone the repository" in wrong("bench", "policy_call", "--quick")


def test_help_offers_what_can_be_had(capfd):
    said = {}
    for name in ("train", "cem", "dvd"):
        assert cli.main([name, "--help"]) == 0
        said[name] = set(re.findall(r"--[\w-]+", capfd.readouterr().out))
    refused = {"--actors", "--prune", "--prune-at", "--qat", "--pull-period", "--lockstep", "--precision"}
    assert said["train"] - said["cem"] == said["train"] - said["dvd"] == refused


def test_help_names_every_command(capfd):
    assert cli.main(["--help"]) == 0
    said = capfd.readouterr().out
    assert all(name in said for name in cli.COMMANDS)


DEEP: list = []
for _ in range(100):
    DEEP = [DEEP]
PBT, RATE = ("pbt", "dqn", "CartPole-v1"), "learning_rate=log:1e-5:1e-2"
WRONG_CALLS = {
    "agent": (("train", "dqm", "CartPole-v1"), "did you mean dqn?"),
    "environment": (("train", "dqn", "CartPol-v1"), "did you mean CartPole-v1?"),
    "agent and environment swapped": (("train", "CartPole-v1", "dqn"), "agent comes first, then the environment: dqn"),
    "agent to list": (("agents", "dqm"), "did you mean dqn?"),
    "case of the environment": (("train", "dqn", "cartpole-V1"), "did you mean CartPole-v1?"),
    "version that is not there": (("train", "dqn", "LunarLander-v99"), "did you mean LunarLander-v3?"),
    "version that is gone": (("train", "dqn", "LunarLander-v2"), "did you mean LunarLander-v3?"),
    "namespace": (("train", "dqn", "Nowhere/CartPole-v1"), "did you mean CartPole-v1?"),
    "no environment": (("train", "dqn", ""), "unknown environment ''"),
    "module": (("train", "dqn", "nosuchmodule:Env-v0"), "'nosuchmodule'; run this in the folder that holds"),
    "environment of a module": (("train", "dqn", "fake_env:Wolk-v0"), "did you mean Walk-v0?"),
    "no environment of a module": (
        ("train", "dqn", "subprocess:Popen", "--env-option", "kwargs.args=id"),
        "neither a class that inherits",
    ),
    "colons": (("train", "dqn", "a:b:c"), "environment 'a:b:c'"),
    "continuous actions": (("train", "dqn", "Pendulum-v1"), "takes discrete ones; use ppo, a2c"),
    "images": (("train", "sac", "MinAtar/Breakout-v1"), "takes vectors and images of 15 x 15 or more; use dqn, "),
    "images and continuous actions": (("train", "td3", "CarRacing-v3"), "takes vectors; use ppo"),
    "observations": (("train", "dqn", "FrozenLake-v1"), "FrugalRL takes arrays"),
    "runtime": ((*CARTPOLE, "--runtime", "compled"), "did you mean compiled?"),
    "no twin": (("train", "dqn", "fake_env:Walk-v0", "--runtime", "compiled"), "use --runtime actors"),
    "compiled int8": ((*CARTPOLE, "--runtime", "compiled", "--actors", "int8"), "use --runtime actors"),
    "actors": ((*CARTPOLE, "--actors", "int9"), "did you mean int8?"),
    "correct": ((*CARTPOLE, "--correct", "tiss"), "did you mean tis?"),
    "a corrector of other values": ((*CARTPOLE, "--correct", "vtrace"), "which takes: none, tis"),
    "precision": ((*CARTPOLE, "--precision", "fp32x"), "did you mean fp32?"),
    "repair that an agent has not": (
        ("train", "ppo", "CartPole-v1", "--precision", "fp16-without-kahan-momentum"),
        "is not for ppo here, which has no target network: use fp16-without-hadam, ",
    ),
    "precision and bits": ((*CARTPOLE, "--precision", "bf16", "--qat", "8"), "leave one of them out"),
    "precision and another optimiser": (
        (*CARTPOLE, "--precision", "fp16", "--hyper", "optimizer=rmsprop"),
        "use optimizer=adam, or --precision bf16",
    ),
    "log": ((*CARTPOLE, "--log", "tensorbord"), "did you mean tensorboard?"),
    "log that is not installed": ((*CARTPOLE, "--log", "trackio"), "pip install 'frugalrl[trackio]'"),
    "hyper name": ((*CARTPOLE, "--hyper", "learningrate=1"), "did you mean learning_rate?"),
    "hyper name of others": ((*CARTPOLE, "--hyper", "start_e=1"), "did you mean exploration_initial_eps?"),
    "batch of ppo": (("train", "ppo", "CartPole-v1", "--hyper", "batch_size=64"), "did you mean num_minibatches?"),
    "unlike any hyper name": ((*CARTPOLE, "--hyper", "zzz=1"), "v_max, v_min\n"),
    "hyper word": ((*CARTPOLE, "--hyper", "learning_rate=abc"), "write for example learning_rate="),
    "hyper nan": ((*CARTPOLE, "--hyper", "learning_rate=nan"), "finite"),
    "hyper inf": ((*CARTPOLE, "--hyper", "batch_size=inf"), "write for example batch_size="),
    "hyper beyond 32 bits": ((*CARTPOLE, "--hyper", "batch_size=1e30"), "batch_size=1e+30 must be at most 2147483647"),
    "hyper beyond 64 bits": ((*CARTPOLE, "--hyper", "buffer_size=20000000000000000000"), "must be at most 2147483647"),
    "width beyond 32 bits": ((*CARTPOLE, "--hyper", "hidden=64,1e30"), "hidden=1e+30 must be at most 2147483647"),
    "too many weights": ((*CARTPOLE, "--hyper", "hidden=1000000,1000000"), "has 1,000,006,000,000 weights"),
    "hyper negative": ((*CARTPOLE, "--hyper", "learning_rate=-1"), "at least 0"),
    "hyper above one": ((*CARTPOLE, "--hyper", "gamma=1.5"), "from 0 to 1"),
    "hyper fraction": ((*CARTPOLE, "--hyper", "batch_size=1.5"), "write for example batch_size="),
    "hyper flag": ((*CARTPOLE, "--hyper", "double=maybe"), "write for example double="),
    "hyper choice": ((*CARTPOLE, "--hyper", "loss=hubber"), "huber, mse"),
    "hyper without value": ((*CARTPOLE, "--hyper", "gamma"), "--hyper takes name=value"),
    "option of no environment": ((*CARTPOLE, "--env-option", "frame_stak=2"), "did you mean frame_stack?"),
    "option without value": ((*CARTPOLE, "--env-option", "frame_stack"), "--env-option takes name=value"),
    "option word": ((*CARTPOLE, "--env-option", "frame_stack=two"), "write for example frame_stack=1"),
    "option out of bounds": ((*CARTPOLE, "--env-option", "frame_stack=0"), "must be from 1 to 64"),
    "option nan": ((*CARTPOLE, "--env-option", "sticky_actions=nan"), "must be from 0 to 1"),
    "option of others": ((*CARTPOLE, "--env-option", "frame_skip=2"), "is of ALE environments"),
    "kwargs": ((*CARTPOLE, "--env-option", "kwargs=2"), "write kwargs.NAME=VALUE"),
    "kwargs of others": ((*CARTPOLE, "--env-option", "kwargs.foo=2"), "unexpected keyword argument 'foo'"),
    "deep kwargs": ((*CARTPOLE, "--env-option", f"kwargs.foo={'[' * 100_000}"), "unexpected keyword argument 'foo'"),
    "option of no twin": (
        (*CARTPOLE, "--env-option", "frame_stack=2", "--runtime", "compiled"),
        "knows no --env-option frame_stack=2: use --runtime actors",
    ),
    "backend": (("train", "dqn", "ALE/Pong-v5", "--env-option", "backend=epool"), "ale, envpool, python"),
    "no width": ((*CARTPOLE, "--hyper", "hidden=0"), "write for example hidden="),
    "n_step": ((*CARTPOLE, "--hyper", "n_step=0"), "at least 1"),
    "n_step beyond memory": ((*CARTPOLE, "--hyper", "n_step=500", "buffer_size=400"), "too small"),
    "memory": ((*CARTPOLE, "--hyper", "buffer_size=10", "batch_size=32"), "smaller than batch_size=32"),
    "ratio": ((*CARTPOLE, "--hyper", "num_envs=3", "train_freq=4"), "use num_envs=1"),
    "negative steps": ((*CARTPOLE, "--steps", "-5"), "--steps must be from 1"),
    "no steps": ((*CARTPOLE, "--steps", "0"), "--steps must be from 1"),
    "word for steps": ((*CARTPOLE, "--steps", "abc"), "argument --steps: must be a whole number, got 'abc'"),
    "fraction of steps": ((*CARTPOLE, "--steps", "1.5"), "--steps: must be a whole number, got '1.5'"),
    "steps in powers of ten": ((*CARTPOLE, "--steps", "1e10"), "--steps must be from 1 to 2147483647, got 10000000000"),
    "too many steps": ((*CARTPOLE, "--steps", "3000000000"), "--steps must be from 1 to 2147483647"),
    "too few steps": ((*CARTPOLE, "--steps", "100"), "ends before learning starts"),
    "too many seeds": ((*CARTPOLE, "--seeds", "2000000000"), "--seeds must be from 1 to 100000"),
    "too many members": ((*PBT, "--members", "2000000000", "--search", RATE), "--members must be from 2 to 100000"),
    "no seeds": ((*CARTPOLE, "--seeds", "0"), "--seeds must be from 1"),
    "negative seed": ((*CARTPOLE, "--seed", "-1"), "--seed must be from 0"),
    "large seed": ((*CARTPOLE, "--seed", "2147483647"), "--seed must be from 0"),
    "no budget": ((*CARTPOLE, "--budget", "0"), "--budget must be more than 0"),
    "budget nan": ((*CARTPOLE, "--budget", "nan"), "--budget must be more than 0"),
    "missing words": (("train", "dqn"), "required: ENV"),
    "one word too many": ((*CARTPOLE, "now"), "unexpected argument 'now'"),
    "option": ((*CARTPOLE, "--stepz", "5"), "unknown option --stepz: did you mean --steps?"),
    "hyper as an option": ((*CARTPOLE, "--learning-rate=1e-3"), "use --hyper learning_rate=..."),
    "hyper of others as an option": ((*CARTPOLE, "--n-envs", "4"), "--n-envs: use --hyper num_envs=..."),
    "option of other libraries": ((*CARTPOLE, "--eval-freq", "9"), "did you mean --evaluations?"),
    "unlike any option": ((*CARTPOLE, "--device", "cpu"), "options are: --actors, --budget, "),
    "unlike any command": (("help",), "commands are: agents, bench, "),
    "shortened option": ((*CARTPOLE, "--step", "5"), "unknown option --step: did you mean --steps?"),
    "address of nothing": ((*CARTPOLE, "--ray-address", "here"), "needs --runtime ray"),
    "lockstep on Ray": ((*CARTPOLE, "--lockstep", "--runtime", "ray"), "use --runtime actors, or leave it out"),
    "lockstep in one program": ((*CARTPOLE, "--lockstep", "--runtime", "compiled"), "repeats itself without"),
    "lockstep by the clock": ((*CARTPOLE, "--lockstep", "--actors", "auto"), "name a mode, --actors int8 say"),
    "lockstep of cem": (("cem", "td3", "Pendulum-v1", "--members", "4", "--lockstep"), "--lockstep is not for cem"),
    "lockstep and pruning": ((*CARTPOLE, "--lockstep", "--prune", "0.5"), "leave one of them out"),
    "lockstep and old packets": ((*CARTPOLE, "--lockstep", "--pull-period", "9"), "leave --pull-period out"),
    "command": (("trian", "dqn", "CartPole-v1"), "did you mean train?"),
    "watch nothing": (("watch", "nowhere"), "nowhere is not a run folder"),
    "port without a page": (("watch", "nowhere", "--port", "8000"), "add --web"),
    "push to no user": (("push", "nowhere", "mine"), "REPO must be USER/NAME"),
    "no search": (("sweep", "dqn", "CartPole-v1", "--members", "3"), "--search NAME=log:LOW:HIGH is needed"),
    "no members": (("pbt", "dqn", "CartPole-v1", "--search", RATE), "required: --members"),
    "members of a sweep": (("sweep", "dqn", "CartPole-v1", "--search", RATE), "--members N is needed"),
    "one member": ((*PBT, "--members", "1", "--search", RATE), "--members must be from 2"),
    "search name": ((*PBT, "--members", "3", "--search", "learning_rat=log:1:2"), "did you mean learning_rate?"),
    "search kind": ((*PBT, "--members", "3", "--search", "gamma=normal:0:1"), "write name=log:LOW:HIGH"),
    "search word": ((*PBT, "--members", "3", "--search", "gamma=uniform:a:b"), "write for example gamma=0.99"),
    "search ends": ((*PBT, "--members", "3", "--search", "gamma=uniform:1:0"), "must have LOW < HIGH"),
    "search log of 0": ((*PBT, "--members", "3", "--search", "learning_rate=log:0:1"), "must have 0 < LOW < HIGH"),
    "search bounds": ((*PBT, "--members", "3", "--search", "gamma=uniform:0.9:1.1"), "gamma=1.1 must be from 0 to 1"),
    "search range of static": (
        ("sweep", *PBT[1:], "--members", "3", "--search", "n_step=uniform:1:5"),
        "list its values",
    ),
    "search twice": ((*PBT, "--members", "3", "--search", "gamma=choice:0.9:0.9"), "has a value twice"),
    "search static": (
        (*PBT, "--members", "3", "--search", "n_step=choice:1:5"),
        "compare its values with frugal sweep",
    ),
    "search bad static": (
        ("sweep", *PBT[1:], "--members", "3", "--search", "buffer_size=choice:10:1000"),
        "smaller than batch_size",
    ),
    "points of a grid": (("sweep", *PBT[1:], "--grid", "--search", f"{RATE}:999999999999999"), "2 to 100000 points"),
    "endless points": (("sweep", *PBT[1:], "--grid", "--search", f"{RATE}:{'9' * 5000}"), "from 2 to 100000 points"),
    "large grid": (
        ("sweep", *PBT[1:], "--grid", "--search", f"{RATE}:90000", "gamma=uniform:0.8:0.9:90000"),
        "got 8100000000",
    ),
    "grid size": (("sweep", *PBT[1:], "--grid", "--members", "4", "--search", RATE), "not the size of the grid, 5"),
    "ready": ((*PBT, "--members", "3", "--search", RATE, "--ready", "0"), "--ready must be from 1"),
    "truncation": ((*PBT, "--members", "3", "--search", RATE, "--truncation", "0.6"), "above 0 and at most 0.5"),
    "explore": ((*PBT, "--members", "3", "--search", RATE, "--explore", "pertub"), "did you mean perturb?"),
    "copy": ((*PBT, "--members", "3", "--search", RATE, "--copy", "all"), "--copy 'all' does not exist"),
    "population that does not fit": ((*PBT, "--members", "90000", "--search", RATE), "would fit"),
    "run": (("eval", "nowhere"), "holds no policy"),
    "run to resume": (("resume", "nowhere"), "not a run folder"),
    "run to export": (("export", "nowhere", "--format", "onnx"), "holds no policy"),
    "format": (("export", "nowhere", "--format", "onx"), "did you mean onnx?"),
    "no format": (("export", "nowhere"), "required: --format"),
    "report": (("report", "nowhere"), "not a folder"),
    "bench": (("bench", "policy_cal"), "did you mean policy_call?"),
    "no episodes": (("eval", "nowhere", "--episodes", "0"), "--episodes must be at least 1"),
    "eval bits": (("eval", "nowhere", "--bits", "1"), "--bits must be from 2 to 32, got 1"),
    "many eval bits": (("eval", "nowhere", "--bits", "33"), "--bits must be from 2 to 32, got 33"),
    "qat": ((*CARTPOLE, "--qat", "1"), "--qat must be from 2 to 16 bits, got 1"),
    "much qat": ((*CARTPOLE, "--qat", "17"), "--qat must be from 2 to 16 bits, got 17"),
    "qat of part of a bit": ((*CARTPOLE, "--qat", "3.5"), "--qat: must be a whole number"),
    "qat and other actors": ((*CARTPOLE, "--qat", "4", "--actors", "int8"), "use --actors fp32, or --actors int8 with"),
    "qat and a student": ((*CARTPOLE, "--qat", "8", "--actors", "half+int8"), "--qat 8 does not go with --actors half"),
    "qat and auto": ((*CARTPOLE, "--qat", "8", "--actors", "auto"), "--qat 8 does not go with --actors auto"),
    "eval seed": (("eval", "nowhere", "--seed", "-1"), "--seed must not be negative"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_gets_one_line_and_writes_nothing(case, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, hint = WRONG_CALLS[case]
    assert hint in wrong(*words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["compiled", "actors"])
def test_numbers_that_do_not_go_together_write_nothing_in_any_runtime(runtime, wrong, tmp_path):
    out = tmp_path / "run"
    for bad, hint in ((("num_envs=3", "train_freq=64"), "whole rounds"), (("n_step=2000",), "too small")):
        words = (*CARTPOLE, "--runtime", runtime, "--out", out, "--hyper", "buffer_size=1000", *bad)
        assert hint in wrong(*words)
    assert not out.exists()


@pytest.mark.parametrize(("runtime", "numbers"), [("compiled", (3, 4)), ("actors", (3, 32)), ("actors", (4, 40))])
def test_the_advice_about_the_ratio_of_updates_is_right(runtime, numbers, wrong):
    num_envs, train_freq = numbers
    line = wrong(*CARTPOLE, "--runtime", runtime, "--hyper", f"num_envs={num_envs}", f"train_freq={train_freq}")
    name, value = line.rpartition("use ")[2].split("=")
    better = {"num_envs": num_envs, "train_freq": train_freq, name: int(value)}
    config = training.configure("dqn", "CartPole-v1", runtime=runtime, hyper=better)
    assert training._prepare(config, lambda text: None).phases


def test_tensorboard_that_is_not_installed_is_refused_before_anything_is_written(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("frugalrl.config.find_spec", lambda name: None)
    assert "pip install 'frugalrl[tensorboard]'" in wrong(*CARTPOLE, "--log", "tensorboard", "--out", tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_a_missing_extra_is_named(wrong, tmp_path, monkeypatch):
    def make(found):
        import gymnasium

        raise gymnasium.error.DependencyNotInstalled("no Box2D")

    monkeypatch.setattr("gymnasium.make", make)
    assert "pip install 'frugalrl[box2d]'" in wrong("train", "dqn", "LunarLander-v3", "--out", tmp_path / "a")


@pytest.mark.parametrize("place", ["file", "below a file", "proc", "long"])
def test_an_out_that_cannot_be_written_is_refused(place, wrong, tmp_path):
    (tmp_path / "file").write_text("mine")
    places = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "run", "proc": Path("/proc/frugal")}
    out = places.get(place, tmp_path / ("x" * 300))
    assert "--out" in wrong(*CARTPOLE, *TINY, "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_policy_whose_newer_files_cannot_be_put_in_place_is_refused(run, wrong, monkeypatch):
    (run / "policy" / files.READY).mkdir()
    (run / "policy" / files.READY / "policy.json").write_text("{}")

    def refused(*names):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refused)
    assert "newer files that cannot be put in place (Permission denied)" in wrong("eval", run)


def test_a_name_that_is_too_long_for_a_folder_is_unknown(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "unknown environment" in wrong("train", "dqn", "x" * 300)
    assert "unknown agent" in wrong("train", "x" * 300, "CartPole-v1")


@pytest.mark.parametrize("module", ["got.run.evil", "got.evil", "got.run.policy.evil", "beside", "fake_env"])
def test_a_module_that_came_with_a_run_is_not_imported(module, wrong, tmp_path, monkeypatch):
    """One beside the folders of runs is, as are those of packages."""
    run = tmp_path / "got" / "run"
    shutil.copytree(Path(__file__).parent / "data" / "run-format-1", run)
    for file in (run / "config.json", run / "policy" / "policy.json"):
        about = json.loads(file.read_text())
        mine = {"env": f"{module}:CartPole-v1"} | ({"runtime": "actors"} if "runtime" in about else {})
        file.write_text(json.dumps(about | mine))
    if module != "fake_env":
        place = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        place.write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    if module in ("beside", "fake_env"):
        assert policy.load(run).card.env == config.read(run).env
        assert (tmp_path / "imported").exists() == (module == "beside")
        return
    for words in (("resume", run), ("eval", run), ("eval", run / "policy"), ("export", run, "--format", "onnx")):
        assert "whose module came with it" in wrong(*words)
    assert not (tmp_path / "imported").exists()


def test_a_folder_that_is_not_empty_is_left_alone(run, wrong, tmp_path):
    before = everything(run)
    assert "--force" in wrong(*CARTPOLE, *TINY, "--out", run)
    assert everything(run) == before


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "bert"}', "not JSON"])
def test_force_does_not_replace_what_is_not_a_run(config, wrong, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = everything(tmp_path)
    assert "not a run folder" in wrong(*CARTPOLE, *TINY, "--force", "--out", tmp_path)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("bad", ["num_envs=3", "n_step=200000", "loss=no"])
def test_force_destroys_nothing_if_the_new_run_cannot_start(bad, run, wrong):
    before = everything(run)
    wrong(*CARTPOLE, *TINY, "--force", "--out", run, "--hyper", bad)
    assert everything(run) == before


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["policy.json", "seed-0.npz"])
def test_a_truncated_policy_is_refused(name, share, run, wrong):
    file = run / "policy" / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    for words in (("eval", run), ("export", run, "--format", "litert")):
        assert f"{file} is damaged" in wrong(*words)
    assert not (run / "policy.tflite").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": "x"}, {"seeds": 0}, {"layers": []}, {"layers": 3}, {"layers": [["Os", {}]]}, {"obs": {}},
        {"head": "no"}, {"head": []}, {"head": "tanh_normal"}, {"knobs": {}},
        {"actions": {"kind": "Discrete"}}, {"more": 1}, {"env": 5}, {"obs": {"shape": [10**14]}},
        {"layers": [["Dense", {"features": 10**14}]]},
        {"layers": [["Conv", {"features": 1, "kernel": 1, "stride": 0}]], "obs": {"shape": [4, 4, 1]}},
        {"knobs": {"epsilon": DEEP}},
    ],
)  # fmt: skip
def test_a_policy_card_that_makes_no_sense_is_refused(change, run, wrong):
    file = run / "policy" / "policy.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert f"{file} is damaged" in wrong("eval", run)


def test_weights_are_never_unpickled(run, wrong, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    file = run / "policy" / "seed-0.npz"
    with np.load(file) as arrays:
        weights = dict(arrays) | {"w0": np.array([Bomb()], dtype=object)}
    np.savez(file, **weights)
    assert "is damaged" in wrong("eval", run)
    np.array([Bomb()], dtype=object).dump(file)
    assert "is damaged" in wrong("eval", run)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_network_are_refused(run, wrong):
    file = run / "policy" / "seed-0.npz"
    with np.load(file) as arrays:
        weights = {name: np.zeros([2 * n for n in x.shape], np.float32) for name, x in arrays.items()}
    np.savez(file, **weights)
    assert "does not fit" in wrong("eval", run)


def test_a_policy_of_another_environment_is_refused(run, wrong):
    file = run / "policy" / "policy.json"
    file.write_text(file.read_text().replace("CartPole-v1", "Acrobot-v1"))
    assert "does not fit Acrobot-v1" in wrong("eval", run)


@pytest.mark.parametrize(
    "text", ["", '{"format": 1', "[]", '{"format": 99}', '{"format": 1, "agent": "dqn"}', "[" * 10**5]
)
def test_a_damaged_config_is_refused(text, run, wrong):
    (run / "config.json").write_text(text)
    assert f"{run / 'config.json'} is damaged" in wrong("resume", run)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": "dqm"}, {"steps": "many"}, {"steps": 3.5}, {"hyper": 3}, {"hyper": {"gamma": "x"}}, {"x": 1},
        {"population": {"kind": "x", "members": 2, "search": {"gamma": "uniform:0.8:0.9"}}},
        {"population": {"kind": "grid", "members": 2, "search": {"gamma": "uniform:0.8:0.9:90000"}}},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(change, run, wrong):
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert f"{file} is damaged or not usable" in wrong("resume", run, "--steps", "5000")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("dqn", "Acrobot-v1", "--pull-period", "0"), "--pull-period must be from 1 to 2147483647, got 0"),
        (("dqn", "Acrobot-v1", "--pull-period", "-30"), "--pull-period must be from 1 to"),
        (("dqn", "Acrobot-v1", "--pull-period", "1.5"), "--pull-period: must be a whole number"),
        (("dqn", "Acrobot-v1", "--pull-period", "30", "--runtime", "compiled"), "needs actor processes: use --runtime"),
        (("ppo", "Acrobot-v1", "--pull-period", "30"), "is not for ppo, whose actors wait for the newest policy"),
        (("a3c", "Acrobot-v1", "--pull-period", "30"), "is not for a3c, whose actor-learners take the newest policy"),
    ],
)
def test_a_pull_period_that_would_do_nothing_is_refused(words, says, wrong):
    assert says in wrong("train", *words)


def test_a_pull_period_takes_actor_processes_and_is_kept(tmp_path):
    made = config.configure("dqn", "CartPole-v1", pull_period=30)
    assert made.runtime == "actors"
    config.write(tmp_path, made)
    assert config.read(tmp_path) == made
    older = json.loads((tmp_path / "config.json").read_text())
    del older["pull_period"]  # as versions without it wrote
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert config.read(tmp_path) == made._replace(pull_period=None)
    for wrong_type in ("30", 1.5, [30]):
        (tmp_path / "config.json").write_text(json.dumps(older | {"pull_period": wrong_type}))
        with pytest.raises(errors.BadFile, match="--pull-period must be a whole number"):
            config.read(tmp_path)


def test_a_run_is_evaluated_as_often_as_asked_for(tmp_path, wrong):
    words = ["dqn", "CartPole-v1", *TINY, "--quiet"]
    assert cli.main(["train", *words, "--evaluations", "3", "--out", str(tmp_path / "a")]) == 0
    found = [json.loads(line)["step"] for line in (tmp_path / "a" / "rows.jsonl").read_text().splitlines()]
    assert [round(step, -2) for step in found] == [1000, 2000, 3000]
    assert "--evaluations must be from 1 to 1000, got 0" in wrong("train", *words, "--evaluations", "0")
    population = ("--members", "2", "--search", "gamma=uniform:0.9:0.99", "--evaluations", "3")
    assert "--evaluations is not for members that take over" in wrong("pbt", "dqn", "CartPole-v1", *population)


@pytest.mark.parametrize(
    "change", ["", "[]", {"cpu_seconds": None}, "null and void", {"wall_seconds": "9"}, {"savings": [{}]}]
)
def test_a_damaged_receipt_is_refused(change, run, wrong):
    file = run / "receipt.json"
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    assert "receipt.json is damaged" in wrong("resume", run, "--steps", "5000")


@pytest.mark.parametrize("row", ["not a row", "[" * 100_000, '{"seed": 0, "step": 9, "episode_retrun": 1.0}'])
def test_damaged_rows_are_refused(row, run, wrong):
    file = run / "rows.jsonl"
    file.write_text(f"{row}\n" + file.read_text())
    before = everything(run)
    assert "rows.jsonl is damaged" in wrong("resume", run, "--steps", "5000", "--quiet")
    assert everything(run) == before


def test_a_checkpoint_of_a_wider_network_is_refused(run, wrong):
    file = run / "config.json"
    config = json.loads(file.read_text())
    config["hyper"]["hidden"] = [24]
    file.write_text(json.dumps(config))
    with open(run / "rows.jsonl", "a") as kept:
        kept.write('{"seed":0,"member":null,"step":4000,"episode_return":1.0}\n')  # later than the checkpoint
    before = everything(run)
    assert "is of another run" in wrong("resume", run, "--steps", "5000", "--quiet")
    assert everything(run) == before


def test_resume_refuses_fewer_steps_and_changes_nothing(run, wrong):
    before = everything(run)
    for steps in ("2000", "-1"):
        assert "give at least that" in wrong("resume", run, "--steps", steps)
    assert everything(run) == before


def test_compare_prints_a_table_and_writes_a_page(run, finished, wrong, capfd):
    assert cli.main(["compare", str(run), str(finished), "--price", "2"]) == 0
    said = capfd.readouterr()
    assert (said.err, f"report: {run.parent / 'compare.html'}" in said.out) == ("", True)
    assert f"difference from {run}" in (run.parent / "compare.html").read_text()
    assert "at least two" in wrong("compare", run)
    assert "write a .html" in wrong("compare", run, finished, "--out", run / "rows.jsonl")
    assert "nowhere" in wrong("compare", run, finished, "--out", run / "nowhere" / "x.html")
    assert "--price must be at least 0" in wrong("report", run, "--price", "nan")


def test_export_and_video_to_a_folder_that_is_not_there(run, wrong):
    assert "nowhere" in wrong("export", run, "--format", "litert", "--out", run / "nowhere" / "x.tflite")
    assert "nowhere" in wrong("eval", run, "--video", run / "nowhere" / "x.gif")
    assert "write a .gif or an .mp4" in wrong("eval", run, "--video", run / "x.avi")


@pytest.mark.parametrize(("name", "module"), [("x.gif", "PIL.Image"), ("x.mp4", "imageio_ffmpeg")])
def test_a_video_says_what_it_needs(name, module, run, wrong, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'frugalrl[video]'" in wrong("eval", run, "--video", run / name)
    assert not (run / name).exists()


def test_a_video_of_what_cannot_be_drawn_is_refused(run, wrong, monkeypatch):
    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.metadata", {"render_modes": ["human"]})
    assert "CartPole-v1 draws no pictures" in wrong("eval", run, "--video", run / "x.gif")
    assert not (run / "x.gif").exists()


@pytest.mark.parametrize(
    "writer", ["frugalrl.checkpoint._sync", "frugalrl.training.write", "frugalrl.monitor.report.report"]
)
def test_a_full_disk_is_one_line(writer, tmp_path, monkeypatch, capfd):
    def write(*what):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, write)
    assert cli.main([*CARTPOLE, *TINY, "--quiet", "--out", str(tmp_path / "a")]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert f"frugal resume {tmp_path / 'a'}" in said
    assert len(rows(tmp_path / "a")) == 10


@pytest.mark.parametrize("words", [("agents",), ("--help",)])
def test_a_reader_that_leaves_early_is_no_error(words):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 0


def test_a_wrong_call_does_not_import_jax():
    code = "import sys; from frugalrl.cli import main; main(['train', 'dqn']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
