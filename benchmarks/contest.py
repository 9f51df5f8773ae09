"""A contest of speed: ours and peers train at equal settings, taking turns in rounds, and rows say how they compare.

Our time is `wall_seconds` of the receipt: importing JAX, compilation, training, all evaluations and checkpoints. The
time of a peer is training alone: its imports and its evaluation are not counted, its compilation is. So ratios are
rather too small than too large. `process` rates are from the start of a process to its end. `training` rates are of
what comes after the first update, without start and compilation, on both sides: ours to the end of the process but
without evaluations, a peer's from where its clock says that all has been done once (`peers/common.py`). Only those who
train all seeds in one program have no such moment: of them it is the whole program after compilation, in which the
steps before the first update cost less, so that this too makes ratios rather too small.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import rows

Found = dict[str, Any]  # of one contestant in one round
Round = dict[str, Found]
RATES = {  # of a ratio -> of what
    "times": "steps_per_second",
    "training_times": "training_steps_per_second",
    "process_times": "process_steps_per_second",
}


def ours(agent: str, env: str, seeds: int, steps: int, hyper: Mapping[str, Any]) -> Found:
    """One run of `frugal train` with `seeds` seeds, in a new process with an empty cache of compiled programs."""
    values = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in hyper.items()]
    words = [agent, env, "--seeds", str(seeds), "--steps", str(steps), "--hyper", *values]
    with tempfile.TemporaryDirectory() as folder:
        done = rows.train(Path(folder, "run"), words, cache=Path(folder, "cache"))
    found, steps = done.receipt, seeds * steps
    return {
        "steps_per_second": steps / found["wall_seconds"],
        "process_steps_per_second": steps / done.process_seconds,
        "training_steps_per_second": own_training_rate(done, seeds),
        "wall_seconds": found["wall_seconds"],
        "compile_seconds": found["compile_seconds"],
        "evaluation_seconds": found["evaluation_seconds"],
        "first_update_seconds": found["first_update_seconds"],
        "peak_memory_bytes": found["peak_memory_bytes"],
        "returns": found["returns"]["per_seed"],
        "batching": found["batching"],
        "num_envs": done.config["hyper"]["num_envs"],
    }


def own_training_rate(done: rows.Trained, seeds: int) -> float:
    """Steps a second of all seeds from the first update to the end of the process, without evaluations.

    Where a run cannot tell when its process began (elsewhere than on Linux) only the compilation is left out.
    """
    found, hyper = done.receipt, done.config["hyper"]
    first = hyper.get("learning_starts", 0) + hyper["num_envs"] * hyper.get("n_steps", 1)
    start = found["first_update_seconds"] or found["compile_seconds"]
    seconds = done.process_seconds - start - found["evaluation_seconds"]
    return seeds * (found["steps"] - first) / seconds


def theirs(run: Callable[[], Found], short: bool = False) -> Found:
    """One run of a peer. If it is a `short` one, with fewer steps than ours, its rate is that without compilation."""
    found = run()
    training = sum(training_rate(each) for each in found["runs"])
    return {
        "steps_per_second": training if short else found["steps_per_second"],
        "process_steps_per_second": training if short else found["steps"] / found["process_seconds"],
        "training_steps_per_second": training,
        "wall_seconds": found["wall_seconds"],
        "import_seconds": found["import_seconds"],
        "returns": found["mean_returns"],
        "steps": found["steps"],
        "processes": found["processes"],
        "peer_versions": found["versions"],
    }


def training_rate(run: Found) -> float:
    """Steps a second of one process of a peer after `warm_steps` in `warm_seconds`, or after `compile_seconds`."""
    start = run["compile_seconds"] if "compile_seconds" in run else run["warm_seconds"]
    return (run["steps"] - run.get("warm_steps", 0)) / (run["wall_seconds"] - start)


def held(title: str, contestants: Mapping[str, Callable[[], Found]], count: int) -> Iterator[list[Round]]:
    """All rounds so far, after each of `count` of them."""
    rounds: list[Round] = []
    for number in range(count):
        measured: Round = {}
        for name, run in contestants.items():
            measured[name] = found = run()
            seen = sum(found["returns"]) / len(found["returns"])
            rate = f"{found['steps_per_second']:,.0f} steps/s"
            print(f"{title}, round {number + 1}, {name}: {rate}, return {seen:.0f}", flush=True)
        rounds.append(measured)
        yield rounds


def contestant(benchmark: str, name: str, rounds: Sequence[Round], **which: Any) -> rows.Row:
    """The row of one contestant; `which` says of what contest."""
    runs = [each[name] for each in rounds]
    numbers = {key: rows.spread([r[key] for r in runs]) for key, value in runs[0].items() if isinstance(value, float)}
    plain = ("num_envs", "steps", "processes", "peer_versions")
    others = {key: runs[0][key] for key in plain if key in runs[0]}
    batching = {"batching": [run["batching"]["way"] for run in runs]} if "batching" in runs[0] else {}
    return rows.row(
        benchmark, kind="contestant", contestant=name, rounds=len(runs), **which, **numbers, **others, **batching,
        returns=[run["returns"] for run in runs],
    )  # fmt: skip


def against(rounds: Sequence[Round], mine: str, peers: Sequence[str], target: float | None = None) -> Found:
    """How many times as fast as the best of `peers` it was in each round; empty where there is no such peer."""
    there = [name for name in peers if name in rounds[0]]
    if not there:
        return {}
    found: Found = {
        word: rows.spread([each[mine][key] / max(each[name][key] for name in there) for each in rounds])
        for word, key in RATES.items()
    }
    goal = {} if target is None else {"target": target, "reached": found["times"]["median"] >= target}
    return found | {"peers": there} | goal


def show(made: Sequence[rows.Row], title: str) -> None:
    """Print rows of contestants and of ratios; `title` is the name of what says of what contest."""
    for each in made:
        if each["kind"] == "contestant":
            rates = [each[key]["median"] for key in ("steps_per_second", "training_steps_per_second")]
            said = f"{rates[0]:12,.0f} steps/s, {rates[1]:12,.0f} in training"
        else:
            medians = {
                k: [v[word]["median"] for word in ("times", "training_times")] for k, v in each["against"].items()
            }
            said = ", ".join(f"{a:.2f} times {k} ({b:.2f} in training)" for k, (a, b) in medians.items())
        share = f", {100 * each['share_of_peak']['median']:.1f} % of the peak" if "share_of_peak" in each else ""
        print(f"  {each[title]} {each['contestant']:16}{said}{share}")
