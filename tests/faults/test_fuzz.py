"""Random mistakes, in calls and in files: each is one clear line and exit code 2, and nothing is written.

A few of each kind with every test run, 12,000 with the long ones. A case is its number: a failure names it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frugalrl import checkpoint, cli, config, hub, policy, training
from frugalrl.errors import BadFile, UsageError
from frugalrl.monitor import receipt
from frugalrl.monitor.report import load, report
from frugalrl.monitor.watch import figures

RUN = Path(__file__).parent.parent / "data" / "run-format-1"
FEW, MANY = 60, 3000
SIZES = pytest.mark.parametrize("cases", [range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.long)], ids=len)
JUNK: tuple = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 1e400, float("nan"), 2**31, 2**64, -(2**70)),
    *(
        "",
        "0",
        "x",
        "dqn",
        "ppo",
        "CartPole-v1",
        "half",
        "\x00",
        "\n",
        "é",
        "💥",
        "../..",
        "/",
        "a" * 5000,
        "nan",
        "[1]",
    ),
    *([], [[]], [0], [None], [-1, "x"], {}, {"x": 1}, {"": None}, [[1, 2], [3]]),
)


class Valid(Exception):
    """A call had nothing wrong with it: now it would begin."""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A copy of a finished run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def drawn(draw: np.random.Generator, among: Any) -> Any:
    return among[int(draw.integers(len(among)))]


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def damaged(draw: np.random.Generator, data: bytes) -> bytes:
    """Bytes of which some are others, or missing, or too many."""
    at, other = int(draw.integers(len(data))), draw.integers(0, 256, int(draw.integers(1, 20)), np.uint8).tobytes()
    flipped = bytes([data[at] ^ 1 << int(draw.integers(8))])
    return drawn(
        draw,
        [
            data[:at] + flipped + data[at + 1 :],
            data[:at] + flipped + data[at + 1 :],
            data[:at],
            data[at:],
            data[:at] + other + data[at + len(other) :],
            data[:at] + other + data[at:],
            data + other,
            other,
            b"",
        ],
    )


def jumbled(draw: np.random.Generator, value: Any) -> Any:
    """JSON with a value changed somewhere in it, or missing, or one too many."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return drawn(draw, JUNK)
    changed: Any = value.copy()
    key = drawn(draw, list(changed) if isinstance(changed, dict) else range(len(changed)))
    how = draw.random()
    if how < 0.1:
        del changed[key]
    elif how < 0.2 and isinstance(changed, dict):
        changed[drawn(draw, ["x", "", "format", "seeds"])] = drawn(draw, JUNK)
    else:
        changed[key] = jumbled(draw, changed[key])
    return changed


def read_checkpoint(run: Path) -> None:
    step = checkpoint.newest(run / "checkpoints" / "all", lambda told: None)
    assert step in (None, 1000)


def read_policy(run: Path) -> None:
    actor = policy.load(run)
    actor.predict(np.zeros(actor.card.obs.shape, actor.card.obs.dtype))


def read_receipt(run: Path) -> None:
    training._read_receipt(training.Folder(run))


def read_config(run: Path) -> None:
    config.read(run)


def read_report(run: Path) -> None:
    """All that is told of a run, in a page, in the terminal and in the card of an upload."""
    report(run, price=1.0)
    found = receipt.read(run / "receipt.json") or {}
    list(figures(load(run), None, "starting"))
    list(hub._page("a/b", policy.read(run / "policy")[0], {}, found))


def eventful(run: Path) -> None:
    """Has a run's receipt, rows and configuration tell of all that a receipt, rows and a configuration can."""
    told = json.loads((run / "receipt.json").read_text())
    told |= {
        "time_split": {"environment": 1.0, "learner": 2.0}, "faults": ["a disk"], "qat": 8, "episode_cap": 500,
        "savings": [{"lever": "x", "what": "y", "unit": "bytes", "off": 8, "on": 2}],
        "precision": {"mode": "fp16", "why": "x", "skipped_updates": [3], "loss_scale": [8.0]},
        "population": {"kind": "pbt", "members": 2, "ready": 9, "replaced": 1,
                       "best": [{"member": 1, "hyper": {"gamma": 0.5}}]},
        "actors": {
            "mode": "int8", "engine": "x", "fallback": {"mode": "int8", "step": 9, "seed": 0}, "refreshes": 3,
            "packet_bytes": 9, "kl": 0.1, "step_seconds": 2.0, "pull_seconds": 1.0, "compressed_returns": [1.0],
            "switches": [{"step": 3, "to": "int8"}], "measured": [{"mode": "int8", "cost": 1.5}],
        },
    }  # fmt: skip
    (run / "receipt.json").write_text(json.dumps(told))
    about = json.loads((run / "config.json").read_text())
    population = {"kind": "pbt", "members": 2, "search": {"gamma": "log:0.1:0.9"}}
    (run / "config.json").write_text(json.dumps(about | {"population": population}))
    lines = [
        {
            "agent": "dqn", "env": "CartPole-v1", "seed": 0, "member": m, "step": step, "episode_return": 9.0 * m,
            "episode_length": 9.0, "wall_seconds": 1.0, "fitness": 1.0 * m, "gamma": 0.5, "kl": 0.1, "parent": None,
        }
        for step in (500, 1000) for m in (0, 1)
    ]  # fmt: skip
    (run / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


FILES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "config": (read_config, ("config.json",)),
    "policy": (read_policy, ("policy/policy.json", "policy/policy.json", "policy/seed-0.npz")),
    "checkpoint": (read_checkpoint, ("checkpoints/all/1000.json", "checkpoints/all/blocks/*")),
    "receipt": (read_receipt, ("receipt.json",)),
    "report": (read_report, ("receipt.json", "receipt.json", "rows.jsonl", "rows.jsonl", "config.json")),
}


@SIZES
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_not_what_it_was_is_read_as_it_should_be_or_refused(kind, cases, run):
    """Never with a traceback; and a checkpoint is either what was saved or refused."""
    read, names = FILES[kind]
    if kind == "report":
        eventful(run)
    refused = 0
    for case in cases:
        draw = np.random.default_rng(case)
        [file] = run.glob(drawn(draw, names))
        whole = file.read_bytes()
        new = damaged(draw, whole)
        if file.suffix == ".json" and draw.random() < 0.7:
            new = json.dumps(jumbled(draw, json.loads(whole))).encode()
        if file.suffix == ".jsonl" and draw.random() < 0.7:
            changed = jumbled(draw, [json.loads(line) for line in whole.splitlines()])
            new = "".join(
                f"{json.dumps(row)}\n" for row in (changed if isinstance(changed, list) else [changed])
            ).encode()
        file.write_bytes(new)
        try:
            read(run)
        except (BadFile, UsageError) as error:
            refused += str(run) in str(error)
        except Exception as error:
            raise AssertionError(f"case {case} of {file.name}: {new[:3000]!r}") from error
        else:
            if kind == "checkpoint" and file.suffix == "":
                assert new == whole, f"case {case}: a block that is not what was written"
        file.write_bytes(whole)
    assert refused > len(cases) / 5, "either mistakes are not found, or what is said does not name the file"


VALUES = (
    *(
        "",
        "0",
        "-1",
        "1",
        "2",
        "3.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "99999999999999999999",
        "x",
        "-",
        "--",
        "=",
        "a=b",
    ),
    *(
        "None",
        "auto",
        "int8",
        "half",
        "half+int8",
        "bf16",
        "fp16",
        "compiled",
        "actors",
        "ray",
        "tis",
        "vtrace",
        "litert",
    ),
    *("💥", "\n", "a b", "[1]", "gamma=2", "gamma=nan", "gamma=", "=0.9", "hidden=0", "hidden=16,16", "hidden=-1,x"),
    *(
        "learning_rate=x",
        "num_envs=0",
        "buffer_size=1",
        "batch_size=99999999",
        "gama=0.9",
        "frame_stack=0",
        "n_step=-3",
    ),
    *(
        "kwargs.x=1",
        "time_limit=5",
        "nowhere",
        "run",
        "run/config.json",
        "/dev/null/x",
        "log:1:0",
        "gamma=log:0:1",
        "0.5",
    ),
)
AGENTS = ("dqn", "ppo", "sac", "impala", "a3c", "dqm", "", "-", "💥", "DQN")
ENVS = (
    "CartPole-v1",
    "Pendulum-v1",
    "CartPole",
    "CartPole-v9",
    "",
    "nowhere:X-v0",
    "a/b/c",
    "💥",
    "--",
    "os:CartPole-v1",
)
COMMANDS = (
    "train",
    "pbt",
    "sweep",
    "resume",
    "eval",
    "export",
    "study",
    "report",
    "trian",
    "",
    "--steps",
    "💥",
    "watch",
)


def call(draw: np.random.Generator) -> list[str]:
    """A call in which something is likely to be wrong."""
    command = drawn(draw, COMMANDS[:3] * 3 + COMMANDS)
    words = [command]
    if command in ("train", "pbt", "sweep"):
        words += [drawn(draw, AGENTS[:4] * 2 + AGENTS), drawn(draw, ENVS[:2] * 3 + ENVS)]
    elif command in ("eval", "export", "resume"):
        words += [drawn(draw, ("run", "nowhere", ".", "", "run/policy", "run/config.json"))]
    elif command == "report":  # one that is there would be written, rightly
        words += [drawn(draw, ("nowhere", "run/config.json", "💥"))]
    elif command == "study":
        words += [drawn(draw, ("rainbo", "", "💥"))]
    known = cli.parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    options = [o for a in known[command]._actions for o in a.option_strings] if command in known else ["--steps"]
    for _ in range(int(draw.integers(0, 4))):
        option = drawn(draw, [o for o in options if o not in ("-h", "--help")] or ["--steps"])
        words += [option if draw.random() < 0.9 else option[:-1] + "x"]
        words += [drawn(draw, VALUES) for _ in range(drawn(draw, (0, 1, 1, 1, 1, 2)))]
    return words if draw.random() < 0.9 else words[: int(draw.integers(len(words) + 1))]


@SIZES
def test_a_wrong_call_is_one_line_and_writes_nothing(cases, run, monkeypatch, capfd):
    def begins(*what: Any, **how: Any):
        raise Valid

    for where in ("training._prepare", "policy.Actor.play", "levers.compress.deploy.deploy", "policy.Actor.rounded"):
        monkeypatch.setattr(f"frugalrl.{where}", begins)
    before, wrong = everything(run.parent), 0
    for case in cases:
        words = call(np.random.default_rng(case))
        try:
            code = cli.main(words)
        except Valid:
            capfd.readouterr()
            continue
        except BaseException as error:
            raise AssertionError(f"case {case}: frugal {words}") from error
        said, wrong = capfd.readouterr(), wrong + 1
        if not words or (code == 0 and "run is finished" in said.out):
            continue
        where = f"case {case}: frugal {words} gave {code}, {said}"
        assert code == 2, where
        assert said.err.startswith("frugal: "), where
        assert said.err.count("\n") == 1, where
        assert said.out == "", where
    assert wrong > len(cases) / 3
    assert everything(run.parent) == before
