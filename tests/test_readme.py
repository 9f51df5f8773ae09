"""What the README shows works as it stands there."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import frugalrl
from frugalrl import cli
from frugalrl.training import Result, configure, train

ROOT = Path(__file__).parent.parent
README, RESULTS = ((ROOT / name).read_text() for name in ("README.md", "RESULTS.md"))
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("    ")]
MAKEFILE = (ROOT / "Makefile").read_text()


def commands() -> list[str]:
    """Every `frugal ...` of the README and the Makefile; of "frugal agents | envs" both."""
    lines = [line.removeprefix("frugal ") for line in SHELL if line.startswith("frugal ")]
    lines += re.findall(r"^\t\$\(BIN\)/frugal (.*)", MAKEFILE, re.MULTILINE)
    return [command.strip() for line in lines for command in line.split("|")]


def checked(*words, **options) -> None:
    """Raises what `frugalrl.train` would raise for a wrong call."""
    own = inspect.signature(train).parameters
    configure(*words, **{name: value for name, value in options.items() if name not in own})


def test_there_is_something_to_check():
    assert PYTHON
    assert len(commands()) > 5


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    a = cli.parser().parse_args(shlex.split(command))
    if a.command == "train":
        options = vars(a) | {"hyper": cli._pairs(a.hyper), "env_options": cli._pairs(a.env_option)}
        del options["env_option"]
        checked(options.pop("agent"), options.pop("env"), **{k: v for k, v in options.items() if k != "command"})


@pytest.mark.parametrize("text", PYTHON)
def test_calls_of_train_are_right(text):
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    trains = [call for call in calls if ast.unparse(call.func) == "frugalrl.train"]
    assert trains
    for call in trains:
        more = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        checked(*map(ast.literal_eval, call.args), **more)


def test_names_exist():
    for owner, names in ((Result, r"\brun\.(\w+)"), (frugalrl, r"\bfrugalrl\.(\w+)")):
        found = set(re.findall(names, README))
        assert found
        assert not [name for name in found if not hasattr(owner, name)]
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    assert {line.split()[1] for line in SHELL if line.startswith("make ")} <= targets


def test_the_first_minute_is_told_in_fifteen_lines():
    assert {"pip install .", "frugal train dqn CartPole-v1 --seeds 8", "make demo"} <= {
        *re.findall(r"^    (.*?)  +#", "\n".join(README.splitlines()[:15]), re.MULTILINE),
        *re.findall(r"`(.*?)`", "\n".join(README.splitlines()[:15])),
    }


def test_the_first_run_is_timed_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    first_run, fresh = (import_module(f"benchmarks.{name}") for name in ("first_run", "fresh"))
    told = re.findall(r"^\| `(frugal .*?)` \|", (ROOT / "docs" / "first-run.md").read_text(), re.MULTILINE)
    assert told == [command for command in first_run.STEPS.values() if command.startswith("frugal")]
    run = fresh.shell(tmp_path)
    spent = run("python -c 'sum(range(10**6)); print(1)'")
    assert 0 < spent.cpu_seconds < spent.wall_seconds * 2
    assert spent.printed == "1\n"
    with pytest.raises(RuntimeError, match="exited with 3:\noh"):
        run("python -c 'print(\"oh\"); raise SystemExit(3)'")


def test_what_agents_reach_at_their_defaults_stands_in_rows():
    """Return with its interval, and steps."""
    kept = (ROOT / "benchmarks" / "results" / "returns.jsonl").read_text().splitlines()
    rows = {}
    for row in map(json.loads, kept):
        iqm, low, high = (row["returns"][name] for name in ("iqm", "low", "high"))
        for places in (0, 1):
            said = f"{iqm:.{places}f} [{low:.{places}f}, {high:.{places}f}]"
            rows.setdefault((row["agent"], row["env"]), set()).add((said, f"{row['steps']:,}"))
    told = re.findall(r"^\| `([\w-]+)` \| ([^ ,|]+)[^|]* \| (\S+ \[.*?\]) \| ([\d,]+) \|", README, re.MULTILINE)
    assert len(told) >= 18
    assert not [row for row in told if row[2:] not in rows[row[:2]]]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+\.jsonl)`", README + RESULTS))))
def test_rows_that_claims_rest_on_are_there(name):
    assert name == "rows.jsonl" or (ROOT / "benchmarks" / "results" / name).read_text()


@pytest.mark.long
@pytest.mark.parametrize("text", PYTHON)
def test_the_example_runs_and_learns(text, tmp_path):
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    returns, total = ended.stdout.splitlines()
    assert ast.literal_eval(returns)["iqm"] > 400
    assert 100 < float(total) <= 500
    assert not any(tmp_path.iterdir())
