"""`--precision auto`: bf16 where matrix products were measured to be faster in it, by `frugal doctor`, on this machine.

It imports no JAX, so that a command line is checked quickly. float16 it never takes: on a CPU it has no products of its
own, and elsewhere it has no speed that bf16 has not.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ...monitor import files, words
from ...monitor.machine import hardware, versions
from ...xla import cache_folder
from . import products

WORTH = 1.2  # times as fast, at least: an update has more to do than products, and casts besides


class Product(NamedTuple):
    """Matrix products of size x size, in 10^9 operations a second."""

    size: int
    fp32: float
    bf16: float
    by: str = "XLA"  # those in bf16

    def gain(self) -> float:
        return self.bf16 / self.fp32


def remember(measured: list[Product]) -> None:
    """Keep what was measured on this machine, where that is possible."""
    with suppress(OSError):
        told = {"machine": _machine(), "products": [each._asdict() for each in measured]}
        files.replace(_file(), json.dumps(told))


def remembered() -> list[Product]:
    """What was measured on this machine with these versions, the smallest first; nothing if it was not."""
    try:
        found = json.loads(_file().read_text())
        measured = [Product(**each) for each in found["products"]]
        return sorted(measured) if found["machine"] == _machine() else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def choose(width: int, measured: list[Product]) -> tuple[str, str]:
    """(a precision, why) for networks whose widest layer has so many units."""
    if not measured:
        return "fp32", "bf16 has not been measured on this machine, which frugal doctor does"
    known = [each for each in measured if each.size <= width]
    if not known:
        return "fp32", f"layers of {width} units are too narrow for bf16 to gain"
    best = known[-1]
    said = f"matrix products of {best.size} x {best.size} are {words.number(best.gain())} times as fast in bf16"
    said += "" if best.by == "XLA" else f" by {best.by}"
    return ("bf16" if best.gain() >= WORTH else "fp32"), said


def _file() -> Path:
    return Path(cache_folder(), "precision.json")


def _machine() -> dict[str, Any]:
    """What the numbers depend on, as far as it is known without JAX."""
    found = {name: hardware()[name] for name in ("cpu", "cores")}
    return {
        **found,
        "versions": versions(),
        "onednn": products.version(),
        # whether JAX finds an accelerator, as far as that can be known before it has looked for one
        "platforms": [os.environ.get(name, "") for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")],
        "accelerators": sorted(map(str, Path("/dev").glob("nvidia[0-9]*"))),
    }
