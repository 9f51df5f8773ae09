"""What do a newcomer's first commands take, each of them, from a clone on?

    python -m benchmarks.first_run [--out FILE] [--quick]

The steps of docs/first-run.md, once each, one after the other, in a new folder: a clone of this repository as it was
last committed, a new virtual environment, nothing in pip's cache and no compiled programs. Wall and CPU seconds of each
are in one row, with the bytes that were installed. It downloads some hundred megabytes. `--quick` trains 2,000 steps.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from benchmarks import fresh, rows

NAME = "first_run"
DQN, PQN = (f"runs/{agent}-CartPole-v1" for agent in ("dqn", "pqn"))
STEPS = {  # as docs/first-run.md names them
    "venv": fresh.VENV,
    "install": f"{fresh.PIP} .",
    "train": "frugal train dqn CartPole-v1 --seeds 8",
    "eval": f"frugal eval {DQN}",
    "report": f"frugal report {DQN} --price 0.04",
    "export": f"frugal export {DQN} --format litert --mode int8",
    "train another": "frugal train pqn CartPole-v1 --seeds 8",
    "compare": f"frugal compare {DQN} {PQN} --price 0.04",
    "doctor": "frugal doctor",
}
QUICK = {"train": "--steps 2000", "train another": "--steps 2000", "eval": "--episodes 2", "export": "--episodes 2"}


def main() -> None:
    args = rows.parser(__doc__).parse_args()
    steps: list[dict[str, str | float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "clone")
        clone.mkdir()
        run = fresh.shell(clone)
        for name, command in {"clone": f"git clone --quiet {shlex.quote(str(rows.ROOT))} .", **STEPS}.items():
            spent = run(f"{command} {QUICK.get(name, '')}" if args.quick else command)
            seconds = {key: round(getattr(spent, key), 2) for key in ("wall_seconds", "cpu_seconds")}
            told = "git clone" if name == "clone" else command.replace(fresh.VENV, "python -m venv .venv")
            steps.append({"step": name, "typed": told, **seconds})
            print(f"{name:14} {spent.wall_seconds:6.1f} s, {spent.cpu_seconds:6.1f} CPU seconds", flush=True)
        installed = fresh.size(clone / ".venv")
    total = {key: round(sum(step[key] for step in steps), 2) for key in ("wall_seconds", "cpu_seconds")}  # type: ignore[misc]
    made = rows.row(NAME, installed_bytes=installed, steps=steps, **total)
    rows.finish(NAME, args, [made], lambda row: f"all of it {row['wall_seconds']} s, {row['cpu_seconds']} CPU seconds")


if __name__ == "__main__":
    main()
