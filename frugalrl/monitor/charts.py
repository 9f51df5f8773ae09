"""Charts as SVG text: colours from the page's style sheet, a title and a description for those who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from frugalrl.statistics import Interval, bootstrap

from . import page, words

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 84, 32, 40, 54  # room for the larger letters of a telephone
POINTS = 120  # most points of a curve: more cannot be told apart at this width
CROWD = 16  # more lines than this are drawn fainter


class Line(NamedTuple):
    """One seed's curve: finite numbers, x increasing."""

    name: str
    x: list[float]
    y: list[float]


class Curve(NamedTuple):
    """The interquartile mean over seeds at each x, with its interval."""

    x: list[float]
    intervals: list[Interval]


class _Axis(NamedTuple):
    """Maps values to pixels, with round numbers at which to draw ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def curve(lines: Sequence[Line]) -> Curve:
    """Over the steps that all lines cover; between its own points a line is interpolated."""
    low, high = max(line.x[0] for line in lines), min(line.x[-1] for line in lines)
    grid = sorted({x for line in lines for x in line.x if low <= x <= high})
    if len(grid) > POINTS:
        grid = [grid[i] for i in np.linspace(0, len(grid) - 1, POINTS).round().astype(int)]
    scores = np.array([np.interp(grid, line.x, line.y) for line in lines])  # [seeds, points]
    return Curve(grid, [bootstrap(scores[:, i], resamples=1000) for i in range(len(grid))])


def learning_curve(lines: Sequence[Line], name: str, title: str) -> str:
    """A thin line per seed; over two and more, their IQM as a bold line with a band; points tell their values on hover.

    `name` makes identifiers unique within the page, `title` says what y is.
    """
    summary = curve(lines)
    x, y = _axes([x for line in lines for x in line.x], [y for line in lines for y in line.y])
    many = len(lines) > 1
    kind = ("seed crowd" if len(lines) > CROWD else "seed") if many else "mean"
    marks = [
        *(_polyline(line.x, line.y, x, y, kind, line.name) for line in lines),
        *(_bold(summary, x, y) if many else []),
        *_dots(summary, x, y),
    ]
    return _svg(name, title, _described(lines, summary, title), [*_grid(x, y, title), *marks])


def compared(curves: Sequence[tuple[int, str, Curve]], name: str, title: str, across: str = "environment steps") -> str:
    """A line with its band for each of several curves (index, name, curve), each of class part-<index>.

    `across` says what x is. The legend is apart.
    """
    bounds = [v for _, _, c in curves for i in c.intervals for v in (i.point, i.low, i.high) if v is not None]
    x, y = _axes([at for _, _, c in curves for at in c.x], bounds)
    marks = [
        f'<g class="part-{i}">{_band(c, x, y)}{_polyline(c.x, [j.point for j in c.intervals], x, y, "mean", arm)}</g>'
        for i, arm, c in curves
    ]
    said = "; ".join(f"{arm} ends at {words.interval(c.intervals[-1])}" for _, arm, c in curves)
    return _svg(name, title, f"{title}: {said}.", [*_grid(x, y, title, across), *marks])


def schedule(lines: Sequence[Line], bold: Line | None, name: str, title: str, logarithmic: bool) -> str:
    """A thin line for each member of a population, and a bold one; `title` says what y is."""

    def scaled(line: Line) -> Line:
        return line._replace(y=[math.log10(y) for y in line.y]) if logarithmic else line

    drawn = [scaled(line) for line in (*lines, *([bold] if bold else []))]
    x, y = _axes([x for line in drawn for x in line.x], [y for line in drawn for y in line.y])
    kind = "seed crowd" if len(lines) > CROWD else "seed"
    marks = [_steps(line, x, y, kind) for line in drawn[: len(lines)]]
    marks += [_steps(line, x, y, "mean") for line in drawn[len(lines) :]]
    bounds = [value for line in lines for value in line.y]
    description = (
        f"{title} of {len(lines)} members, between {words.number(min(bounds))} and {words.number(max(bounds))}."
    )
    label = (lambda v: _brief(10.0**v)) if logarithmic else _brief
    return _svg(name, title, description, [*_grid(x, y, title, label=label), *marks])


def _steps(line: Line, x: _Axis, y: _Axis, kind: str) -> str:
    """What was so until each point, as a staircase."""
    xs, ys = [0.0], [line.y[0]]
    for at, value in zip(line.x, line.y, strict=True):
        xs += [xs[-1], at]
        ys += [value, value]
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))
    return f'<polyline class="{kind}" points="{points}"><title>{escape(line.name)}</title></polyline>'


def family(
    members: Sequence[int],
    steps: Sequence[int],
    moves: Sequence[tuple[int, int, int, int]],
    bold: Sequence[int | None],
    name: str,
    title: str,
) -> str:
    """A row for each member, in the colours of first ancestors, and a link for each move: (step, member, new parent,
    the step at which that was as it is taken over).

    `steps` are those of the evaluations; `bold` is the member to draw bold up to each of them, if any, or empty.
    """
    gap = max(9, min(26, 420 // max(1, len(members))))
    bottom = TOP + gap * len(members)
    x = _axes([float(step) for step in steps], [0.0])[0]
    y = {member: TOP + gap * (i + 0.5) for i, member in enumerate(members)}
    root = {member: member for member in members}

    def line(at: tuple[float, float], rows: tuple[int, int], best: bool, kind: str, text: str) -> str:
        ends = f'x1="{x(at[0]):.1f}" x2="{x(at[1]):.1f}" y1="{y[rows[0]]:.1f}" y2="{y[rows[1]]:.1f}"'
        colour = f"line-{members.index(root[rows[1]]) % page.COLOURS}"
        return f'<line class="branch {"best" if best else kind} {colour}" {ends}><title>{text}</title></line>'

    marks = [_x_tick(x, value, bottom) for value in x.ticks]
    marks += [
        f'<text class="tick" x="{LEFT - 8}" y="{y[m] + 4:.1f}" text-anchor="end">{m}</text>'
        for m in members
        if gap >= 12 or m % 5 == 0
    ]
    path, roots = dict(zip(steps, bold, strict=False)), dict[int, dict[int, int]]()
    for before, step, after in zip((0, *steps), steps, (*steps[1:], -1), strict=False):
        for m in members:
            text = f"member {m}, descended from {root[m]}"
            marks.append(line((before, step), (m, m), path.get(step) == m, "", text))
        roots[step] = dict(root)
        for _, to, source, since in (move for move in moves if move[0] == step):
            root[to] = roots.get(since, roots[step])[source]  # a file may say a step that was none
            text = f"{to} takes over from {source} at step {step:,}"
            text += f", as that was at step {since:,}" if since < step else ""
            marks.append(line((since, step), (source, to), path.get(after) == to, "link", text))
    marks += [_label((LEFT + WIDTH - RIGHT) / 2, bottom + BOTTOM - 6, "environment steps"), _above("member")]
    alive = len(set(root.values()))
    description = (
        f"{len(members)} members, {len(moves)} times one took over from another; {alive} first ancestors left."
    )
    return _svg(name, title, description, marks, height=bottom + BOTTOM, kind="chart crowded")


def stacked_bar(parts: Sequence[tuple[int, str, float]], name: str, title: str) -> str:
    """One horizontal bar of parts (index, name, share), each of class part-<index>. The legend is apart."""
    height, gap = 34, 2
    marks, x = [], 0.0
    for index, part, share in parts:
        width = max(0.5, share * WIDTH - gap)
        label = f"{part}: {100 * share:.1f} %"
        marks.append(
            f'<rect class="part-{index}" x="{x:.1f}" y="0" width="{width:.1f}" height="{height}" rx="3">'
            f"<title>{escape(label)}</title></rect>"
        )
        x += share * WIDTH
    description = ", ".join(f"{part} {100 * share:.1f} %" for _, part, share in parts)
    return _svg(name, title, description, marks, height=height, kind="bar")


def forest(runs: Sequence[tuple[str, Interval]], name: str, title: str, across: str = "return") -> str:
    """A dot and an interval for each run, one under another; `across` says what x is."""
    left, row = 40, 48
    height = row * len(runs) + BOTTOM
    bounds = [v for _, i in runs for v in (i.point, i.low, i.high) if v is not None]
    x = _axis(min(bounds), max(bounds), left, WIDTH - RIGHT)
    bottom = height - BOTTOM
    marks = [_x_tick(x, value, bottom) for value in x.ticks]
    for i, (run, interval) in enumerate(runs):
        marks += _forest_row(run, interval, x, row * i)
    marks.append(_label((left + WIDTH - RIGHT) / 2, height - 6, across))
    description = "; ".join(f"{run}: {words.interval(interval)}" for run, interval in runs)
    return _svg(name, title, description, marks, height=height)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _svg(
    name: str, title: str, description: str, marks: Sequence[str], height: float = HEIGHT, kind: str = "chart"
) -> str:
    name = escape(name)
    return (
        f'<svg class="{kind}" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        + "".join(marks)
        + "</svg>"
    )


def _axis(low: float, high: float, start: float, end: float) -> _Axis:
    """Ends at a tick where one is near, else a little beyond the data."""
    apart = high - low > 1e-9 * max(abs(low), abs(high))  # or it is rounding: no ticks fit between
    margin = (0.05 * (high - low) if apart else 0.1 * abs(high)) or 1.0
    marks = ticks(low, high) if apart else ticks(low - margin, high + margin)
    low, high = max(marks[0], low - margin), min(marks[-1], high + margin)
    return _Axis(low, high, start, end, [mark for mark in marks if low <= mark <= high])


def _axes(xs: Sequence[float], ys: Sequence[float]) -> tuple[_Axis, _Axis]:
    right = max(xs)
    marks = [tick for tick in ticks(0, right) if tick <= right * (1 + 1e-9)]  # the axis ends where the run did
    x = _Axis(0.0, right or 1.0, LEFT, WIDTH - RIGHT, marks)
    return x, _axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)


def _grid(
    x: _Axis, y: _Axis, title: str, across: str = "environment steps", label: Callable[[float], str] | None = None
) -> list[str]:
    bottom = HEIGHT - BOTTOM
    rows = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{(label or _brief)(v)}</text>'
        for v in y.ticks
    ]
    labels = [_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across), _above(title)]
    return [*rows, *(_x_tick(x, v, bottom) for v in x.ticks), *labels]


def _forest_row(run: str, interval: Interval, x: _Axis, top: float) -> list[str]:
    y = top + 36
    marks = [f'<text class="run" x="0" y="{top + 20}">{escape(_cut(run, 50))}</text>']
    if interval.low is not None and interval.high is not None:
        low, high = x(interval.low), x(interval.high)
        marks.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
    text = escape(f"{run}: {words.interval(interval)}")
    return [*marks, f'<circle class="dot" cx="{x(interval.point):.1f}" cy="{y}" r="5"><title>{text}</title></circle>']


def _label(x: float, y: float, text: str) -> str:
    return f'<text class="label" x="{x}" y="{y}" text-anchor="middle">{escape(text)}</text>'


def _brief(value: float) -> str:
    """A number in few letters: 40k, 0.01, 3.2e-4."""
    if value == 0 or abs(value) >= 1e-3:
        return words.short(value)
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _above(text: str) -> str:
    """What y is: lying, over the axis, since a telephone shows turned letters too small."""
    return f'<text class="label" x="0" y="20">{escape(text)}</text>'


def _x_tick(x: _Axis, value: float, bottom: float) -> str:
    return (
        f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text class="tick" x="{x(value):.1f}" y="{bottom + 20}" text-anchor="middle">{_brief(value)}</text>'
    )


def _polyline(xs: Sequence[float], ys: Sequence[float], x: _Axis, y: _Axis, kind: str, name: str = "") -> str:
    keep = range(0, len(xs), max(1, len(xs) // POINTS))
    points = " ".join(f"{x(xs[i]):.1f},{y(ys[i]):.1f}" for i in sorted({*keep, *range(len(xs))[-1:]}))
    title = f"<title>{escape(name)}</title>" if name else ""
    return f'<polyline class="{kind}" points="{points}">{title}</polyline>'


def _bold(summary: Curve, x: _Axis, y: _Axis) -> list[str]:
    return [_band(summary, x, y), _polyline(summary.x, [i.point for i in summary.intervals], x, y, "mean")]


def _band(summary: Curve, x: _Axis, y: _Axis) -> str:
    bounds = [(at, i.low, i.high) for at, i in zip(summary.x, summary.intervals, strict=True)]
    whole = [(at, low, high) for at, low, high in bounds if low is not None and high is not None]
    there = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in whole]
    back = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in reversed(whole)]
    return f'<polygon class="band" points="{" ".join(there + back)}"/>'


def _dots(summary: Curve, x: _Axis, y: _Axis) -> list[str]:
    """Visible where they do not crowd; every one tells its value."""
    kind = "dot" if len(summary.x) <= 30 else "dot faint"
    return [
        f'<circle class="{kind}" cx="{x(at):.1f}" cy="{y(i.point):.1f}" r="3">'
        f"<title>{words.number(at)} steps: {words.interval(i)}</title></circle>"
        for at, i in zip(summary.x, summary.intervals, strict=True)
    ]


def _described(lines: Sequence[Line], summary: Curve, title: str) -> str:
    runs = "one seed" if len(lines) == 1 else f"{len(lines)} runs, their interquartile mean and 95 % interval"
    if not summary.x:
        return f"{title} of {runs}."
    first, last = summary.intervals[0], summary.intervals[-1]
    return (
        f"{title} of {runs}, from {words.interval(first)} at {words.number(summary.x[0])} environment steps "
        f"to {words.interval(last)} at {words.number(summary.x[-1])}."
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
