"""Do int8 actors make DQN on LunarLander-v3 cheaper, and does it still learn as well as with fp32 actors?

    python -m benchmarks.lunarlander_int8 [--seeds N] [--steps N] [--minutes M] [--out FILE] [--quick]

Seed by seed, once with each kind of actor and each time in a new process; which comes first alternates. A seed that has
its row already is not run again, so a run that was stopped goes on where it was; rows of other steps or other versions
are thrown away. No run begins that would not end within `--minutes`. Means of returns come with their intervals.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from frugalrl.catalog import defaults
from frugalrl.statistics import Interval, bootstrap, difference

NAME = "lunarlander_int8"
ENV = "LunarLander-v3"
MODES = ("fp32", "int8")
PARTS = ("environment", "inference", "transport", "compressor")  # of the work of an actor
PACKAGES = ("onnxruntime", "openvino")  # engines that the base install does not have


def run(mode: str, seed: int, steps: int) -> rows.Row:
    """Train one seed and keep what matters of its receipt."""
    words = ["dqn", ENV, "--actors", mode, "--seed", str(seed), "--steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        done = rows.train(Path(folder, "run"), words)
    found, split, actors = done.receipt, done.receipt["time_split"], done.receipt["actors"]
    calls = found["steps"] / done.config["hyper"]["num_envs"]
    training = found["wall_seconds"] - found["compile_seconds"] - found["evaluation_seconds"]
    return rows.row(
        NAME,
        PACKAGES,
        kind="run",
        mode=mode,
        seed=seed,
        steps=steps,
        final_return=found["returns"]["per_seed"][0],
        wall_seconds=found["wall_seconds"],
        training_seconds=training,
        compile_seconds=found["compile_seconds"],
        evaluation_seconds=found["evaluation_seconds"],
        cpu_seconds=found["cpu_seconds"],
        steps_per_second=found["env_steps_per_second"],
        time_split=split,
        actor_microseconds_per_step=1e6 * sum(split[part] for part in PARTS) / found["steps"],
        inference_microseconds_per_call=1e6 * split["inference"] / calls,
        engine=actors["engine"],
        kl=actors.get("kl"),
        ess=actors.get("ess"),
        refreshes=actors["refreshes"],
        packet_bytes=actors["packet_bytes"],
        waiting_seconds=actors["waiting_seconds"],
        learner_waiting_seconds=actors["learner_waiting_seconds"],
        engines_measured=actors["measured"],
    )


def summaries(runs: Sequence[rows.Row]) -> list[rows.Row]:
    """A row for each mode and one that compares them; the comparison of speed is over seeds that both have."""
    by_mode = {mode: {each["seed"]: each for each in runs if each["mode"] == mode} for mode in MODES}
    made = [_summary(mode, list(found.values())) for mode, found in by_mode.items() if found]
    both = sorted(set(by_mode["fp32"]) & set(by_mode["int8"]))
    if both:
        made.append(_comparison([by_mode["fp32"][seed] for seed in both], [by_mode["int8"][seed] for seed in both]))
    return made


def _summary(mode: str, runs: list[rows.Row]) -> rows.Row:
    names = ("wall_seconds", "training_seconds", "steps_per_second", "actor_microseconds_per_step")
    names += ("inference_microseconds_per_call", "kl", "ess", "refreshes")
    split = {part: rows.spread([each["time_split"][part] for each in runs]) for part in runs[0]["time_split"]}
    return rows.row(
        NAME, PACKAGES, kind="summary", mode=mode, seeds=len(runs), steps=runs[0]["steps"],
        returns=_interval(bootstrap([each["final_return"] for each in runs])),
        **{name: rows.spread([each[name] for each in runs]) for name in names if runs[0][name] is not None},
        time_split=split,
    )  # fmt: skip


def _comparison(fp32: list[rows.Row], int8: list[rows.Row]) -> rows.Row:
    def times(name: str) -> dict[str, float]:
        return rows.spread([a[name] / b[name] for a, b in zip(fp32, int8, strict=True)])

    gap = difference([each["final_return"] for each in int8], [each["final_return"] for each in fp32])
    names = ("training_seconds", "cpu_seconds", "actor_microseconds_per_step", "inference_microseconds_per_call")
    return rows.row(
        NAME, PACKAGES, kind="int8 against fp32", seeds=len(fp32), steps=fp32[0]["steps"],
        return_difference=_interval(gap), times_less={name: times(name) for name in names},
    )  # fmt: skip


def _interval(x: Interval) -> dict[str, float | None]:
    return {"iqm": x.point, "low": x.low, "high": x.high}


def order(seeds: int) -> list[tuple[str, int]]:
    """Modes and seeds as they are run."""
    return [(mode, seed) for seed in range(seeds) for mode in (MODES if seed % 2 == 0 else MODES[::-1])]


def kept(path: Path | None, steps: int) -> list[rows.Row]:
    """The runs of the file that a run of today would repeat."""
    now = rows.versions(PACKAGES)
    return [r for r in rows.read(path) if r["kind"] == "run" and r["steps"] == steps and r["versions"] == now]


def show(made: Sequence[rows.Row]) -> None:
    for each in made:
        if each["kind"] == "summary":
            r = each["returns"]
            bounds = "" if r["low"] is None else f" [{r['low']:.0f}, {r['high']:.0f}]"
            print(
                f"  {each['mode']}: return {r['iqm']:.0f}{bounds} over {each['seeds']} seeds, "
                f"training {each['training_seconds']['median']:.1f} s, "
                f"actors {each['actor_microseconds_per_step']['median']:.1f} us a step, "
                f"inference {each['inference_microseconds_per_call']['median']:.1f} us a call"
            )
        else:
            gap, less = each["return_difference"], each["times_less"]
            bounds = "" if gap["low"] is None else f" [{gap['low']:.0f}, {gap['high']:.0f}]"
            shown = ", ".join(f"{name} {value['median']:.2f}" for name, value in less.items())
            print(f"  int8 - fp32: {gap['iqm']:+.0f}{bounds}; times less: {shown}")


def main() -> None:
    command = rows.parser(__doc__)
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--steps", type=int, help="of each seed; default: what a plain `frugal train` takes")
    command.add_argument("--minutes", type=float, default=float("inf"), help="time box")
    args = command.parse_args()
    seeds = 2 if args.quick else args.seeds
    steps = args.steps or (12_000 if args.quick else defaults("dqn", ENV)[0])
    path = rows.destination(NAME, args)
    runs = kept(path, steps)
    done = {(each["mode"], each["seed"]) for each in runs}
    for mode, seed in rows.boxed([each for each in order(seeds) if each not in done], args.minutes):
        runs.append(run(mode, seed, steps))
        rows.write(path, [*runs, *summaries(runs)])
        print(
            f"{mode} seed {seed}: return {runs[-1]['final_return']:.0f}, {runs[-1]['wall_seconds']:.0f} s", flush=True
        )
    made = [*runs, *summaries(runs)]
    rows.write(path, made)
    show(made[len(runs) :])
    print(rows.said(path, made))


if __name__ == "__main__":
    main()
