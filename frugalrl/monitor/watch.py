"""A run while it goes on: in the terminal, and as a page that only this machine can see.

The page is the run's report, drawn anew whenever it is asked for, with what progress.json says above it. It has no
script: the browser is told to ask again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TextIO

import numpy as np

from frugalrl.errors import BadFile, UsageError, call

from . import files, live, words
from .charts import curve
from .page import POLICY
from .report import Run, is_run, known, lines_of, load, page_of, returns_of, steps_of
from .rows import run_of
from .streams import encodable, is_terminal, printable

SECONDS = 1.0  # between two looks at the folder
REFRESH = 5  # seconds after which a browser asks again
SILENT = 60.0  # seconds without a word after which a run may have died
GONE = 600.0  # and after which it has, where no lock tells
OVER = ("finished", "stopped", "not running")
HOST = "127.0.0.1"
BARS = "▁▂▃▄▅▆▇█"
APART = (
    "agent", "env", "seed", "member", "step", "episode_return", "wall_seconds", "episodes", "parent", "parent_step",
)  # fmt: skip


def figures(run: Run, now: live.Now | None, state: str) -> Iterator[tuple[str, str]]:
    """Label and text of what is known of a run at this moment."""
    yield "state", state
    returns = returns_of(run)
    yield "return", words.interval(returns) if run.rows or returns else "not evaluated yet"
    if now is not None:
        share = f"{math.floor(100 * now.step / max(1, now.total))} %"
        yield "steps", f"{words.number(now.step)} of {words.number(now.total)} of all seeds, {share}"
        if now.seconds_left is not None:
            yield "time left", words.seconds(now.seconds_left)
            yield "speed", f"{words.number(now.steps_per_second)} environment steps/s"
        if now.kl is not None:
            yield "KL", words.number(now.kl)
    elif steps_of(run):
        yield "steps", f"{words.number(steps_of(run))} a seed"
    wall = run.receipt.get("wall_seconds") if now is None else None
    seconds = [row["wall_seconds"] for row in run.rows if row.get("wall_seconds") is not None]
    if wall or seconds:
        yield "wall time", words.seconds(wall or max(seconds)) + ("" if wall else " at the last evaluation")
    if run.receipt:
        when = "" if run.finished else " at the last checkpoint"
        yield "CPU time", words.seconds(run.receipt.get("cpu_seconds")) + when
        yield "energy", words.energy(run.receipt.get("energy_joules")) + when
    yield from _metrics(run)


def state(run: Run, now: live.Now | None, alive: bool) -> str:
    if now is None and run.receipt:
        return "finished" if run.finished else "stopped"
    if not alive:
        return "not running"
    if now is None:
        return "starting"
    silent = time.time() - now.at
    return "running" if silent < SILENT else f"running, but silent for {words.seconds(silent)}"


def serve(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the run's page on the loopback address, not yet serving; port 0 takes a free one.

    Raises UsageError if the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own = {f"{name}:{server.server_port}" for name in (HOST, "localhost")}
            if self.headers.get("Host") not in own:  # a page from elsewhere, under a name that it points here
                return self.send_error(403)
            if self.path != "/":
                return self.send_error(404)
            try:
                seen = look(folder)
                text = page_of(seen[0], now=list(figures(*seen)), refresh=REFRESH)
            except (BadFile, OSError):
                return self.send_error(503)
            body = text.encode(errors="backslashreplace")
            self.send_response(200)
            for name, value in (
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", f"{POLICY}; frame-ancestors 'none'"),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The terminal shows the run."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--port {port} cannot be had ({error}): leave it out, and a free one is taken") from None
    return server


def look(folder: Path) -> tuple[Run, live.Now | None, str]:
    """What is known of a run now, the last how it stands. Raises BadFile if a file is damaged."""
    now = live.read(folder)
    alive = _alive(folder, now)  # before its files: those of a run that has ended are then its last
    run = load(folder)
    return run, now, state(run, now, alive)


def _alive(folder: Path, now: live.Now | None) -> bool:
    """Whether a process may be training in a folder: by its lock, and by age where that cannot tell.

    That is where there are no locks, and where what it said last is young, for it may be on another machine.
    """
    held = files.is_held(folder)
    if held is None:
        at = now.at if now else max((path.stat().st_mtime for path in folder.glob("*.json*")), default=0.0)
        return time.time() - at < GONE
    return held or (now is not None and time.time() - now.at < SILENT)


def watch(
    folder: Path,
    stream: TextIO,
    port: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run until it ends; with a `port`, serve its page too, until interrupted.

    On a terminal what is shown stays in place; elsewhere it is written again whenever there is an evaluation more.
    Raises UsageError if there is no run.
    """
    if not folder.is_dir() or not is_run(folder):
        raise UsageError(f"{folder} is not a run folder: give the folder of a `frugal train`")
    address, server = None, None
    if port is not None:
        server = serve(folder, port)
        address = f"http://{HOST}:{server.server_port}/"
        Thread(target=server.serve_forever, daemon=True).start()
    try:
        (_on_terminal if is_terminal(stream) else _as_lines)(folder, stream, address, sleep)
        while server is not None:
            sleep(SECONDS)
    except KeyboardInterrupt:  # the usual way out
        pass
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def _moments(folder: Path, sleep: Callable[[float], None]) -> Iterator[tuple[Run, live.Now | None, str]]:
    """Looks at a run until it trains no more."""
    while True:
        seen = look(folder)
        yield seen
        if seen[2] in OVER:
            return
        sleep(SECONDS)


def _as_lines(folder: Path, stream: TextIO, address: str | None, sleep: Callable[[float], None]) -> None:
    shown: tuple[int, str] | None = None
    for run, now, state in _moments(folder, sleep):
        key = len(run.rows), state.partition(",")[0]
        if key != shown:
            shown = key
            print(encodable("\n".join(_text(run, now, state, address, stream)), stream), file=stream, flush=True)


def _on_terminal(folder: Path, stream: TextIO, address: str | None, sleep: Callable[[float], None]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(file=stream, highlight=False), auto_refresh=False) as screen:
        for run, now, state in _moments(folder, sleep):
            lines = _text(run, now, state, address, stream)
            text = Text(encodable("\n".join(lines), stream), no_wrap=True, overflow="crop")
            text.stylize("bold", 0, len(lines[0]))
            screen.update(text, refresh=True)


def _text(run: Run, now: live.Now | None, state: str, address: str | None, stream: TextIO) -> list[str]:
    title = f"{known(run, 'agent', 'run')} on {known(run, 'env', 'unknown')}, {run.folder}"
    lines = [f"  {label:<12}  {text}" for label, text in figures(run, now, state)]
    drawn = lines_of(run, "episode_return")
    if drawn:
        lines.append(f"  {'learning':<12}  {_spark([i.point for i in curve(drawn).intervals], stream)}")
    if address:
        lines.append(f"  {'page':<12}  {address}")
    if state in OVER:
        lines.append(f"  {'next':<12}  {call('eval' if run.finished else 'resume', run.folder)}")
    return [printable(line) for line in (title, *lines)]


def _spark(values: Sequence[float], stream: TextIO) -> str:
    """A learning curve in a line of text, from its lowest to its highest point."""
    values = [value for value in values if math.isfinite(value)][-60:]
    bars = BARS if encodable(BARS, stream) == BARS else "_.-=+*%#"
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] for value in values)


def _metrics(run: Run) -> Iterator[tuple[str, str]]:
    """Means over seeds of what their last rows say."""
    last = {run_of(row): row for row in run.rows}
    for name in dict.fromkeys(name for row in last.values() for name in row if name not in APART):
        found = [row.get(name) for row in last.values()]
        numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        if numbers:
            yield name, words.number(float(np.mean(numbers)))
