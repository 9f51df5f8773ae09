"""Ctrl-C, SIGTERM and a lost terminal, turned into a request to stop that loses nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from time import perf_counter
from types import FrameType
from typing import Any, NoReturn

REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ECHO = 0.3  # seconds within which a second SIGINT is the first one, forwarded by a wrapper such as `timeout`


class Stop:
    """While entered, a signal or a spent budget is a request that the run looks at between two steps.

    A second SIGINT goes to whoever handled it before: Python raises KeyboardInterrupt, the command line ends at once. A
    signal that was ignored (under nohup, say) stays so.
    """

    def __init__(self, budget: float | None = None, quiet: bool = True):
        """`budget` is in minutes; unless `quiet`, the first signal is acknowledged with a line."""
        self.quiet = quiet
        self.signum: int | None = None
        self.at = 0.0
        self.deadline = None if budget is None else perf_counter() + 60 * budget
        self.old: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for signum in REQUESTS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self.old[signum] = signal.signal(signum, self._ask)
        return self

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self.at = signum, perf_counter()
            if not self.quiet:
                _tell("stopping; Ctrl-C again ends at once, and what has not been saved by then is lost")
        elif signum == signal.SIGINT and perf_counter() - self.at > ECHO:
            before = self.old[signum]
            (before if callable(before) else signal.default_int_handler)(signum, frame)

    def asked(self) -> int | None:
        """The signal that asked to stop, 0 for a spent budget, or None."""
        if self.signum is None and self.deadline is not None and perf_counter() > self.deadline:
            return 0
        return self.signum

    def __exit__(self, *raised: Any) -> None:
        for signum, handler in self.old.items():
            signal.signal(signum, handler)


def _tell(what: str, last: bool = False) -> None:
    """A line in the place of a progress bar. Not by way of a stream, which may be at work when a signal arrives."""
    bar = ("\r\x1b[K" + "\x1b[?25h" * last) if os.isatty(2) else ""  # it hides the cursor
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"{bar}frugal: {what}\n".encode())


def end_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """A signal handler for where there is nothing to save, or no patience: one line, and the process is gone.

    Nothing is unwound: inside XLA or an import that would take its time. Actor processes end by themselves.
    """
    _tell("interrupted" if signum == signal.SIGINT else "terminated", last=True)
    link = sys.modules.get("frugalrl.runtime.link")
    if link is not None:
        link.remove_own()
    os._exit(128 + signum)


class EndAtOnce:
    """While entered, SIGINT and its kin end the process at once; for the command line, never for a library call."""

    def __enter__(self) -> EndAtOnce:
        self.old = {s: signal.signal(s, end_at_once) for s in REQUESTS if signal.getsignal(s) is not signal.SIG_IGN}
        return self

    def __exit__(self, *raised: Any) -> None:
        for signum, handler in self.old.items():
            signal.signal(signum, handler)
