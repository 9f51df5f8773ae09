"""What `--actors` names: how much of the network actors run and in which number format, and the choice that adapts.

The choice never looks at the number of parameters: calls are timed on this machine, and what compression costs in
behaviour is what the Monitor sees.
"""

from __future__ import annotations

from typing import NamedTuple

HALF = 0.5
NAMES = ("fp32", "bf16", "int8-static", "int8", "half", "half+bf16", "half+int8-static", "half+int8", "cut", "cut+int8")
LADDER = ("fp32", "int8", "half+int8")  # what `auto` climbs, from the mildest to the strongest
GAIN = 1.1  # by how much a call must be cheaper for a rung to be on the ladder: less than that is within the noise
# Divergence (see `quality.harm`) above the first is too much, twice running; below the second there is room for more.
# By experience: int8 is at 0.001 to 0.02, a student that follows its teacher at 0.01 to 0.05, a broken one above 1.
BOUND, ROOM = 0.2, 0.05
LOOKS = 5  # at a rung before it is left for a stronger one
WORTH = 0.1  # of the time of all processes, that a student must save: it costs lessons and a new start of the actors


class Mode(NamedTuple):
    """A compression: the share of each layer's units, and the number format, which an engine must be able to run."""

    share: float
    format: str
    lessons: bool = True  # fewer units are a student; or else the most salient ones as they are, to see what it learns

    @property
    def name(self) -> str:
        parts = [
            *(["half" if self.lessons else "cut"] if self.share < 1 else []),
            *([] if self.share < 1 and self.format == "fp32" else [self.format]),
        ]
        return "+".join(parts)


def mode(name: str) -> Mode:
    """The Mode of that name."""
    width, _, form = name.rpartition("+")
    if form in ("half", "cut"):
        width, form = form, "fp32"
    return Mode(HALF if width else 1.0, form, width != "cut")


class Rung(NamedTuple):
    """A mode in its best engine here; the numbers are those of an engine's Timing."""

    mode: Mode
    engine: str
    microseconds: float  # of a call
    cost: float  # with its share of a load


def ladder(measured: list[Rung]) -> list[Rung]:
    """The rungs worth climbing: from fp32 up, each at least `GAIN` times as cheap as the last."""
    found = [next(r for r in measured if r.mode == Mode(1.0, "fp32"))]
    for rung in sorted(measured, key=lambda r: LADDER.index(r.mode.name)):
        if rung.cost * GAIN <= found[-1].cost:
            found.append(rung)
    return found


def reason(taken: Rung, measured: list[Rung], asked: bool) -> str:
    """Why a rung was taken, in words: it was asked for, or what a call takes in it and in the others."""
    if asked:
        return f"{taken.mode.name} was asked for, and {taken.engine} is its cheapest engine here"
    calls = ", ".join(f"{rung.mode.name} {rung.cost:.1f} us ({rung.engine})" for rung in measured)
    kept = taken.mode == Mode(1.0, "fp32")
    why = "nothing is a tenth cheaper" if kept else "it is a tenth cheaper or more"
    return f"{taken.mode.name}, as {why}; a call and its share of taking new weights: {calls}"


class Watch:
    """The Monitor that acts: climbs down where the policies differ too much, and up where more would pay."""

    def __init__(self, rungs: list[Rung]):
        self.rungs = rungs
        # students wait until it is seen what acting costs beside learning
        self.at = max(i for i, rung in enumerate(rungs) if rung.mode.share == 1)
        self.top, self.looks, self.over = len(rungs) - 1, 0, 0

    @property
    def now(self) -> Rung:
        return self.rungs[self.at]

    def look(self, harm: float, acting: float) -> str | None:
        """Why the rung changed, if it did. `acting` is the share of the busy time of all processes in policy calls."""
        self.looks += 1
        self.over = 0 if harm <= BOUND else self.over + 1  # nan is over, too
        if self.over > 1 and self.at:
            self.top = self.at - 1  # not climbed to again
            return self._move(-1, f"divergence {harm:.3g} is above {BOUND:g}")
        if self.at < self.top and self.looks >= LOOKS and harm < ROOM:
            saved = acting * (1 - self.rungs[self.at + 1].microseconds / self.now.microseconds)
            if saved >= WORTH:
                return self._move(1, f"divergence {harm:.3g} is below {ROOM:g} and calls are {acting:.0%} of the time")
        return None

    def _move(self, by: int, why: str) -> str:
        self.at, self.looks, self.over = self.at + by, 0, 0
        return why
