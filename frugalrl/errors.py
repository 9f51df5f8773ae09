"""What can go wrong, by whose fault: each of these carries a message of one line that says what to do."""

from __future__ import annotations

import shlex
from pathlib import Path


def call(*words: object, program: str = "frugal") -> str:
    """The command line of these words, for a shell: a path may hold spaces."""
    return shlex.join([program, *map(str, words)])


class UsageError(ValueError):
    """A wrong call; the message names the right one, and nothing has been written."""


class Taken(UsageError):
    """A folder that is to be written in is another run's."""


class BadFile(ValueError):
    """A file is not what it should be; the message says which and what to do."""


class ActorFailed(RuntimeError):
    """An actor process cannot run at all; `details` is its own traceback, or empty if it died without a word."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


class EngineFailed(RuntimeError):
    """An engine cannot build, load or run a policy in the mode that was asked of it."""


class RunFailed(RuntimeError):
    """A run broke off; what it had is in `folder`, unless that is None."""

    def __init__(self, reason: str, folder: Path | None):
        kept = f"; go on from the last checkpoint with: {call('resume', folder)}" if folder else ""
        super().__init__(f"{reason}{kept}")
        self.folder = folder


class Diverged(RunFailed):
    """A run broke off because its learner can learn nothing any more: to go on with it is of no use."""


class Stopped(Exception):
    """A run was asked to stop: by the signal `signum`, or by its budget if that is 0.

    It has been saved in `folder`, unless that is None; `step` is None if it was stopped before it began.
    """

    def __init__(self, signum: int, step: int | None, folder: Path | None):
        where = "before it began" if step is None else f"at step {step:,}"
        kept = f"; saved, go on with: {call('resume', folder)}" if folder else ""
        super().__init__(f"stopped {where}{kept}")
        self.signum, self.step, self.folder = signum, step, folder


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
