"""How a run goes, while it goes: a bar on a terminal, plain lines in a log, nothing with --quiet."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from frugalrl.statistics import Interval

from . import words
from .streams import encodable, is_terminal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

SECONDS_BETWEEN_LINES = 5.0
NARROWEST_BAR = 10


class Progress(Protocol):
    """A context manager; enter it before the first call, leave it after the last."""

    def update(
        self, step: int, returns: Interval | None = None, steps_per_second: float | None = None, kl: float | None = None
    ) -> None:
        """The run has done `step` steps of its total. What is None keeps its last value.

        `returns` is the IQM over seeds with its interval, `steps_per_second` environment steps of all seeds, `kl` the
        KL divergence of the compressed policy from the full one. Calling this with the step where the run begins, as
        soon as it is compiled, lets the estimate of the time left count from there.
        """
        ...

    def status(self, text: str) -> None:
        """Say what happens now, such as "compiling (first time on this machine: about 10 s)"; shown until `update`."""
        ...

    def say(self, text: str, always: bool = False) -> None:
        """A line that stays; `always` when all else is quiet, too: what has gone wrong."""
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, *raised: Any) -> None: ...


def progress(total_steps: int, quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """The way to show progress that suits `stream` (standard error if None): a bar, lines, or nothing if `quiet`.

    Off a terminal: the first and the last update, and at most one in 5 seconds between; every line is flushed.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or stream is None:  # a program without a console has no standard error
        return _Silence(stream)
    return _Bar(total_steps, stream) if is_terminal(stream) else _Lines(total_steps, stream)


class _Silence:
    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def update(
        self, step: int, returns: Interval | None = None, steps_per_second: float | None = None, kl: float | None = None
    ) -> None:
        pass

    def status(self, text: str) -> None:
        pass

    def say(self, text: str, always: bool = False) -> None:
        if always:
            _say(text, self.stream)

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass


class _Lines:
    def __init__(self, total_steps: int, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self.state = _State(total_steps, clock)
        self.stream = stream
        self.clock = clock
        self.said: str | None = None
        self.said_at = -math.inf
        self.pending = False

    def update(
        self, step: int, returns: Interval | None = None, steps_per_second: float | None = None, kl: float | None = None
    ) -> None:
        self.state.update(step, returns, steps_per_second, kl)
        self.pending = True
        if self.clock() - self.said_at >= SECONDS_BETWEEN_LINES:
            self._say_update()

    def status(self, text: str) -> None:
        if text != self.said:
            self._say(text)

    def say(self, text: str, always: bool = False) -> None:
        self._say(text)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.pending:
            self._say_update()

    def _say_update(self) -> None:
        self.said_at = self.clock()
        self.pending = False
        self._say("  ".join(self.state.pieces()))

    def _say(self, line: str) -> None:
        self.said = line
        _say(line, self.stream)


class _Bar:
    def __init__(self, total_steps: int, stream: TextIO):
        from rich.console import Console
        from rich.live import Live

        self.state = _State(total_steps, time.monotonic)
        self.stream = stream
        self.text: str | None = "starting"
        self.live = Live(
            console=Console(file=stream),
            get_renderable=lambda: self,
            refresh_per_second=4,
            # What is printed to a terminal meanwhile appears above the bar; a redirected stdout is left alone.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )

    def update(
        self, step: int, returns: Interval | None = None, steps_per_second: float | None = None, kl: float | None = None
    ) -> None:
        if int(step) != self.state.step or not self.state.heard:
            self.text = None  # what is said where a run stands still stays
        self.state.update(step, returns, steps_per_second, kl)

    def status(self, text: str) -> None:
        self.text = encodable(" ".join(text.split()), self.stream)

    def say(self, text: str, always: bool = False) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal went away
            self.live.console.print(encodable(text, self.stream), markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> _Bar:
        self.live.start(refresh=True)
        return self

    def __exit__(self, *raised: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal went away
            self.live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line that always fits: as many pieces as there is room for, after a bar that takes what is left."""
        from rich.progress_bar import ProgressBar
        from rich.segment import Segment
        from rich.text import Text

        room = options.max_width - 1
        pieces = self.state.pieces(words.short)
        if self.text is None:
            line = _fitting(pieces, room - NARROWEST_BAR - 1 if room > 40 else room)
        else:
            line = _fitting([pieces[0], self.text] if self.state.step else [self.text], room)
        width = min(40, room - len(line) - 1)
        if width >= NARROWEST_BAR:
            bar = ProgressBar(total=1.0, completed=self.state.share(), width=width)
            drawn = list(console.render(bar, options.update(width=width)))
            yield from Segment.adjust_line_length(drawn, width + 1)  # without colour the rest of the bar is not drawn
        yield Text(line, no_wrap=True, overflow="crop", end="")


def _say(line: str, stream: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed pipe must not end a run
        if stream is not None:
            print(encodable(line, stream), file=stream, flush=True)


# Shares of a run. Over a fifth of it there are two evaluations of ten, as in what is left: with a shorter window the
# time left would leap at each of them.
WINDOW, GRAIN = 0.2, 0.002


class _State:
    """What was last heard of a run, and the pace of it."""

    def __init__(self, total_steps: int, clock: Callable[[], float]):
        self.total = max(1, int(total_steps))
        self.clock = clock
        self.step = 0
        self.returns: Interval | None = None
        self.rate: float | None = None
        self.kl: float | None = None
        self.heard: deque[tuple[float, int]] = deque()  # (when, step) over the last WINDOW: the pace may change

    def update(self, step: int, returns: Interval | None, steps_per_second: float | None, kl: float | None) -> None:
        self.step = int(step)
        self.returns = self.returns if returns is None else returns
        self.rate = self.rate if steps_per_second is None else float(steps_per_second)
        self.kl = self.kl if kl is None else float(kl)
        if len(self.heard) > 1 and self.step - self.heard[-2][1] < GRAIN * self.total:
            self.heard.pop()
        self.heard.append((self.clock(), self.step))
        while len(self.heard) > 2 and self.heard[1][1] <= self.step - WINDOW * self.total:
            self.heard.popleft()

    def share(self) -> float:
        return min(1.0, max(0.0, self.step / self.total))

    def seconds_left(self) -> float | None:
        """None until two updates have told the pace."""
        if len(self.heard) < 2:
            return None
        (first, begun), (last, done) = self.heard[0], self.heard[-1]
        if done <= begun or last <= first:
            return None
        left = (self.total - done) * (last - first) / (done - begun)
        return max(0.0, left - (self.clock() - last))

    def pieces(self, count: Callable[[float], str] = words.number) -> list[str]:
        """What to show, the most wanted first; `count` writes large numbers."""
        shown = [f"{math.floor(100 * self.share()):3d} %"]
        if self.returns is not None:
            shown.append(f"return {words.interval(self.returns)}")
        left = self.seconds_left()
        if left is not None and self.step < self.total:
            shown.append(f"ETA {words.clock(left)}")
        if self.rate is not None and math.isfinite(self.rate) and self.rate > 0:
            shown.append(f"{count(self.rate)} steps/s")
        if self.kl is not None:
            shown.append(f"KL {words.number(self.kl)}")
        shown.append(f"{count(self.step)}/{count(self.total)} steps")
        return shown


def _fitting(pieces: list[str], room: int) -> str:
    line = pieces[0][: max(0, room)]
    for piece in pieces[1:]:
        if len(line) + 2 + len(piece) > room:
            break
        line += f"  {piece}"
    return line
