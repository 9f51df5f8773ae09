"""Numbers as people read them, in ASCII, so that every terminal and file can show them."""

from __future__ import annotations

import math

from frugalrl.statistics import Interval

UNKNOWN = "unknown"


def number(x: float | None) -> str:
    """Three significant digits, or all of a longer whole part: 0.00213, 48.7, 51,200; "unknown" for None or NaN."""
    if x is None or math.isnan(x):
        return UNKNOWN
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    if x == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(x)))
    if magnitude >= 2 or x == int(x):
        return f"{x:,.0f}"
    if magnitude < -4:
        return f"{x:.2e}"
    return f"{x:.{2 - magnitude}f}".rstrip("0").rstrip(".")


def short(x: float) -> str:
    """Three significant digits with a unit: 950, 48.7k, 1.2M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 0.9995 * factor:
            return number(float(f"{x / factor:.3g}")) + unit
    return number(x)


def seconds(x: float | None) -> str:
    """A duration: 0.42 s, 12.3 s, 4 min 05 s, 3 h 12 min, 2 d 04 h."""
    if x is None or not math.isfinite(x):
        return UNKNOWN
    if x < 59.95:
        return f"{number(round(x, 1) if x >= 10 else x)} s"
    minutes, s = divmod(round(x), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h:02d} h"
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s"


def clock(x: float) -> str:
    """A time to wait: 0:07, 12:30, 1:02:30."""
    minutes, s = divmod(max(0, round(x)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def size(n: float | None) -> str:
    """Bytes in decimal units: 310 B, 18.2 kB, 512 MB, 1.84 GB."""
    if n is None or math.isnan(n):
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{number(n)} {unit}"
        n /= 1000
    return f"{number(n)} GB"


def energy(joules: float | None) -> str:
    """Joules, with watt-hours beside them: 201 J (0.0558 Wh), 7.2 MJ (2 kWh)."""
    if joules is None or math.isnan(joules):
        return UNKNOWN
    if joules < 1e4:
        return f"{number(joules)} J ({number(joules / 3600)} Wh)"
    if joules < 1e6:
        return f"{number(joules / 1e3)} kJ ({number(joules / 3600)} Wh)"
    return f"{number(joules / 1e6)} MJ ({number(joules / 3.6e6)} kWh)"


def interval(x: Interval | None) -> str:
    """312 [280, 341], or the point alone where there is no interval."""
    if x is None:
        return UNKNOWN
    if x.low is None or x.high is None:
        return number(x.point)
    return f"{number(x.point)} [{number(x.low)}, {number(x.high)}]"
