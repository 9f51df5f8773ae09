"""receipt.json: what a run reached and what it cost."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from frugalrl.statistics import Interval, bootstrap

from . import kinds, members, words
from .files import plain, read_json, replace
from .kinds import flag, number, string, whole
from .machine import Cost, Meter, Usage, hardware, usage, versions
from .streams import encodable, is_terminal

__all__ = ["Cost", "Meter", "Usage", "hardware", "read", "receipt", "show", "usage", "versions", "write"]

TIMES = ("environment", "inference", "transport", "learner", "compressor", "other")
# `mode` and `engine` are what acted last. `fallback` is None, or says what was given up for fp32 and why: mode, engine,
# seed, step (None: it never ran), reason. A resumed run asks for its mode again and keeps the first fallback.
ACTORS = ("mode", "engine", "fallback", "refreshes", "packet_bytes", "kl", "ratio", "ess")
# Seconds of all actors together, beside those: steps (environment, inference, sampling), then what taking packets cost,
# which is pull (the copy out of the mailbox), decode (its arrays as layers), load (into the engine) and compare (with
# the packet before). `staleness` and `staleness_max`: learner updates between acting and learning, mean and most.
ACTING = ("step_seconds", "refresh_seconds", "pull_seconds", "decode_seconds", "load_seconds", "compare_seconds")
# updates of a learner of less than float32 whose gradients were not finite, of each run
COUNTED = {"skipped_updates": "skipped as not finite", "broken_updates": "applied although not finite"}
WIDTH = 80
KIND = {  # of a receipt: all that something is worked out from
    **dict.fromkeys(("agent", "env", "runtime", "energy_method"), string),
    **dict.fromkeys(("wall_seconds", "compile_seconds", "evaluation_seconds", "cpu_seconds", "energy_joules"), number),
    **dict.fromkeys(("checkpoint_seconds", "first_update_seconds", "env_steps_per_second"), number),
    **dict.fromkeys(("seeds", "steps", "peak_memory_bytes", "episodes_per_seed", "episode_cap", "qat"), whole),
    "returns": {"iqm": number, "low": number, "high": number, "per_seed": [number]},
    "time_split": {...: number},
    "actors": {
        **dict.fromkeys((*ACTORS[3:], *ACTING, "waiting_seconds", "learner_waiting_seconds"), number),
        **dict.fromkeys(("agreement", "harm", "staleness", "staleness_max", "restarts", "lost_unrolls"), number),
        "mode": string, "engine": string, "fallback": {"step": whole},
        "switches": [({},)], "measured": [({},)], "compressed_returns": [number],
    },
    "precision": {name: [number] for name in (*COUNTED, "loss_scale")} | {"collapsed": [flag]},
    "savings": [({**dict.fromkeys(("lever", "what", "unit"), (string,)), "off": (number,), "on": (number,)},)],
    "population": {"ready": number, "replaced": number, "best": [({"hyper": {}},)]},
    "versions": {}, "hardware": {"memory_bytes": whole}, "faults": [(string,)],
}  # fmt: skip


def receipt(
    *,
    agent: str,
    env: str,
    runtime: str,
    seeds: int,
    steps: int,
    per_seed: Sequence[float],
    cost: Cost,
    compile_seconds: float | None = None,
    evaluation_seconds: float | None = None,
    time_split: Mapping[str, float | None] | None = None,
    actors: Mapping[str, Any] | None = None,
    training_steps: int | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The receipt of a run, with every key of the contract; what is not known is None.

    `steps` counts environment steps of one seed, `per_seed` has the final greedy return of each seed (a population's
    best member, say). Speed is training steps of all seeds (`training_steps`, or steps x seeds if that is None) over
    the wall time without compilation and evaluation. `time_split` and `actors` may leave out names of `TIMES` and
    `ACTORS`; a name that is not one of `TIMES` raises ValueError. `extra` is added as it is.
    """
    unknown = sorted(set(time_split or {}) - set(TIMES))
    if unknown:
        raise ValueError(f"time_split has no {', '.join(unknown)}; its names are {', '.join(TIMES)}")
    training_steps = steps * seeds if training_steps is None else training_steps
    training_seconds = cost.wall_seconds - (compile_seconds or 0.0) - (evaluation_seconds or 0.0)
    return plain(
        {
            "agent": agent,
            "env": env,
            "runtime": runtime,
            "seeds": seeds,
            "steps": steps,
            "wall_seconds": cost.wall_seconds,
            "compile_seconds": compile_seconds,
            "evaluation_seconds": evaluation_seconds,
            "cpu_seconds": cost.cpu_seconds,
            "env_steps_per_second": training_steps / training_seconds if training_seconds > 0 else None,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "energy_joules": cost.energy_joules,
            "energy_method": cost.energy_method,
            "returns": _returns(per_seed),
            "time_split": {name: (time_split or {}).get(name) for name in TIMES},
            "actors": None if actors is None else {**dict.fromkeys(ACTORS), **actors},
            "versions": versions(),
            "hardware": hardware(),
            **extra,
        }
    )


def write(path: str | os.PathLike, receipt: Mapping[str, Any]) -> None:
    """Write receipt.json, as a whole or not at all."""
    text = json.dumps(plain(receipt), indent=2, allow_nan=False, ensure_ascii=False)
    replace(path, text + "\n", lasting=True)


def read(path: str | os.PathLike) -> dict[str, Any] | None:
    """The receipt in a file, None if there is no file. Raises BadFile if it is damaged."""
    return read_json(path, KIND)


def cost(receipt: Mapping[str, Any]) -> Cost:
    """What a run had cost when its receipt was written. Raises ValueError if it does not tell."""
    wanted = {"wall_seconds": (number,), "cpu_seconds": (number,), "energy_method": (string,)}
    kinds.check(receipt, (wanted,))
    return Cost(*(receipt.get(name) for name in Cost._fields))  # type: ignore[arg-type]


def returns(receipt: Mapping[str, Any]) -> Interval | None:
    """The returns of a receipt as an Interval; None if it has none."""
    found = receipt.get("returns") or {}
    return None if found.get("iqm") is None else Interval(found["iqm"], found.get("low"), found.get("high"))


def title(receipt: Mapping[str, Any]) -> str:
    """What was trained."""
    return f"{receipt.get('agent')} on {receipt.get('env')}, {_seeds(receipt)}, {receipt.get('runtime')}"


def show(receipt: Mapping[str, Any], stream: TextIO) -> None:
    """Print a receipt in 80 columns, plain; on a terminal with the labels in colour."""
    lines = list(_lines(receipt))
    if is_terminal(stream):
        return _show_in_colour(title(receipt), lines, stream)
    stream.write(
        encodable("\n".join([title(receipt), *(f"  {label:<12}  {text}" for label, text in lines)]) + "\n", stream)
    )
    stream.flush()


def _show_in_colour(title: str, lines: list[tuple[str, str]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    console.print(Text(encodable(title, stream), style="bold"), soft_wrap=True)
    for label, text in lines:
        line = Text.assemble((f"  {label:<12}  ", "cyan"), encodable(text, stream))
        console.print(line, soft_wrap=True)


def _lines(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each line; a text too long for a line goes on under an empty label."""
    for label, text in entries(receipt):
        for i, part in enumerate(textwrap.wrap(text, WIDTH - 16) or [""]):
            yield (label if i == 0 else "", part)


def money(receipt: Mapping[str, Any], price: float | None) -> float | None:
    """What a run cost at `price` an hour of wall time; None where one of them is not known."""
    wall = receipt.get("wall_seconds")
    return None if price is None or wall is None else price * wall / 3600


def entries(receipt: Mapping[str, Any], price: float | None = None) -> Iterator[tuple[str, str]]:
    """Label and text of each thing a receipt tells; with a price of an hour, also the money."""
    yield "return", return_text(receipt)
    per_seed = (receipt.get("returns") or {}).get("per_seed") or []
    if 1 < len(per_seed) <= 16:
        yield "by seed", ", ".join(words.number(score) for score in per_seed)
    if receipt.get("population"):
        yield "population", members.told(receipt["population"])
    yield "steps", f"{words.number(receipt.get('steps'))} a seed"
    yield "wall time", _wall(receipt)
    yield "speed", f"{words.number(receipt.get('env_steps_per_second'))} environment steps/s in training"
    yield "CPU time", words.seconds(receipt.get("cpu_seconds"))
    yield "peak memory", words.size(receipt.get("peak_memory_bytes"))
    yield "energy", f"{words.energy(receipt.get('energy_joules'))}, {receipt.get('energy_method') or 'method unknown'}"
    if price is not None:
        yield "money", f"{words.number(money(receipt, price))} at {words.number(price)} an hour of wall time"
    shares = time_shares(receipt)
    if shares:
        yield "time split", ", ".join(f"{name} {percent(share)}" for name, _, share in shares)
    if receipt.get("qat"):
        yield "weights", f"trained for {receipt['qat']} bits in the second half of the updates"
    if receipt.get("precision"):
        yield "precision", _precision(receipt["precision"])
    saved = [f"{s.lever}: {s.what} {s.shown(s.on)} instead of {s.shown(s.off)} ({s.times})" for s in savings(receipt)]
    if saved:
        yield "saved", "; ".join(saved)
    if receipt.get("actors"):
        yield "actors", _actors(receipt["actors"])
    if receipt.get("faults"):
        yield "faults", "; ".join(receipt["faults"])


def return_text(receipt: Mapping[str, Any]) -> str:
    """IQM and interval in words."""
    interval = returns(receipt)
    if interval is None:
        return "not evaluated"
    runs = len((receipt.get("returns") or {}).get("per_seed") or [])
    episodes = receipt.get("episodes_per_seed")
    played = f"{episodes} greedy episodes" + (" a seed" if runs > 1 else "") if episodes else ""
    if played and receipt.get("episode_cap"):
        played += f" of at most {receipt['episode_cap']:,} steps"
    if interval.low is None:
        about = ["one seed: no interval"] if runs == 1 else []
    else:
        about = [f"IQM and 95 % interval over {runs} seeds"]
    about = "; ".join([played] * bool(played) + about)
    return f"{words.interval(interval)} ({about})" if about else words.interval(interval)


def time_shares(receipt: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Name, seconds and share of the total for each part of `time_split` that was measured and took time."""
    split = {name: value for name, value in (receipt.get("time_split") or {}).items() if value}
    total = sum(split.values())
    return [(name, value, value / total) for name, value in split.items()] if total > 0 else []


class Saving(NamedTuple):
    """What a lever saved, as the run itself counted or timed it: an amount without the lever, and with it."""

    lever: str  # as it is asked for
    what: str
    unit: str  # "bytes", "microseconds" or "parameters"
    off: float
    on: float

    def shown(self, amount: float) -> str:
        if self.unit == "bytes":
            return words.size(amount)
        return f"{words.number(amount)} us" if self.unit == "microseconds" else words.number(amount)

    @property
    def times(self) -> str:
        return f"{words.number(self.off / self.on)}x" if self.on else words.UNKNOWN


def savings(receipt: Mapping[str, Any]) -> list[Saving]:
    """Those that a receipt tells."""
    return [Saving(*(one[name] for name in Saving._fields)) for one in receipt.get("savings") or []]


def _returns(per_seed: Sequence[float]) -> dict[str, Any]:
    """A run whose return is not finite is counted: the IQM is then not known either."""
    if not len(per_seed):
        return {"iqm": None, "low": None, "high": None, "per_seed": []}
    interval = bootstrap(per_seed)
    return {"iqm": interval.point, "low": interval.low, "high": interval.high, "per_seed": list(per_seed)}


def _seeds(receipt: Mapping[str, Any]) -> str:
    seeds = receipt.get("seeds")
    seeds = len(seeds) if isinstance(seeds, list) else seeds
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _wall(receipt: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {words.seconds(receipt.get(key))}"
        for name, key in (("compilation", "compile_seconds"), ("evaluation", "evaluation_seconds"))
        if receipt.get(key)
    ]
    wall = words.seconds(receipt.get("wall_seconds"))
    return f"{wall} ({', '.join(parts)})" if parts else wall


def _precision(precision: Mapping[str, Any]) -> str:
    parts = [str(precision.get("mode"))]
    parts += [f"as {precision['why']}"] if precision.get("why") else []
    parts += [f"matrix products by {precision['products']}"] if precision.get("products") else []
    parts += [
        f"{words.number(sum(x or 0 for x in precision[name]))} updates {what}"
        for name, what in COUNTED.items()
        if precision.get(name)
    ]
    lost = precision.get("collapsed") or []
    parts += [f"the scale of the loss has collapsed in {sum(lost)} of {len(lost)} seeds"] if any(lost) else []
    return ", ".join(parts)


def _actors(actors: Mapping[str, Any]) -> str:
    parts = [f"{actors.get('mode')} on {actors.get('engine')}"]
    if actors.get("fallback"):
        parts.append(given_up(actors["fallback"]))
    if actors.get("refreshes") is not None:
        parts.append(f"{words.number(actors['refreshes'])} refreshes of {words.size(actors.get('packet_bytes'))}")
    if actors.get("step_seconds"):
        parts.append(_refreshing(actors))
    names = {"kl": "KL", "ratio": "ratio", "ess": "ESS", "staleness": "staleness"}
    parts += [f"{name} {words.number(actors[key])}" for key, name in names.items() if actors.get(key) is not None]
    return ", ".join(parts)


def _refreshing(actors: Mapping[str, Any]) -> str:
    """What taking packets cost beside steps, in words."""
    split = [name for name in ACTING[2:] if actors.get(name)]
    shown = ", ".join(f"{name.removesuffix('_seconds')} {words.seconds(actors[name])}" for name in split)
    steps, refresh = (words.seconds(actors.get(name)) for name in ACTING[:2])
    return f"{steps} of steps and {refresh} of refreshing" + (f" ({shown})" if shown else "")


def given_up(fallback: Mapping[str, Any]) -> str:
    """What a `fallback` of actors says, in words."""
    step = fallback.get("step")
    when = "at the start" if step is None else f"at step {step:,} of seed {fallback.get('seed')}"
    return f"{fallback.get('mode')} was given up {when}: {fallback.get('reason')}"


def percent(share: float) -> str:
    """A share as whole per cent."""
    return "<1 %" if share < 0.01 else f"{math.floor(100 * share + 0.5)} %"
