"""A headless Chromium, spoken to in its DevTools protocol over two pipes: what a page looks like."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
# What a reader would stumble over, found in the page itself. Contrast as in WCAG 2.1, 1.4.3: 4.5 for text of this size.
LOOK = """(() => {
  const found = [], rgba = c => c.match(/[\\d.]+/g).map(Number);
  const channel = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => .2126 * channel(c[0]) + .7152 * channel(c[1]) + .0722 * channel(c[2]);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const whole = document.documentElement;  // innerWidth grows with what overflows a telephone
  if (whole.scrollWidth > whole.clientWidth)
    found.push(`the page is ${whole.scrollWidth} px wide on a screen of ${whole.clientWidth}`);
  for (const e of document.body.querySelectorAll("*")) {
    const own = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
    if (!own || ["title", "desc"].includes(e.tagName)) continue;
    const style = getComputedStyle(e), a = light(rgba(e.ownerSVGElement ? style.fill : style.color));
    const b = light(ground(e.ownerSVGElement || e)), contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) found.push(`"${own}" has a contrast of ${contrast.toFixed(1)}`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    const name = svg.querySelector("title").textContent, frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    const scale = frame.width / svg.viewBox.baseVal.width;
    for (const e of svg.querySelectorAll("text")) {
      const size = parseFloat(getComputedStyle(e).fontSize) * scale;
      if (size < 9) found.push(`"${e.textContent}" is ${size.toFixed(1)} px small in figure "${name}"`);
    }
    const marks = [...svg.querySelectorAll("polyline, rect, circle, .branch")].map(e => e.getBoundingClientRect());
    if (!marks.some(m => m.width + m.height > 0)) found.push(`figure "${name}" is empty`);
    texts.forEach(([text, box], i) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1) found.push(`"${text}" leaves figure "${name}"`);
      for (const [other, its] of texts.slice(i + 1))
        if (over(box, its)) found.push(`"${text}" lies over "${other}" in figure "${name}"`);
    });
  }
  return found;
})()"""


class Seen(NamedTuple):
    """One page in one of its looks."""

    faults: list[str]  # of layout and colours
    said: list[str]  # errors and warnings in the console
    asked: list[str]  # addresses


class Browser(NamedTuple):
    call: Callable[..., dict[str, Any]]
    events: list[dict[str, Any]]

    def see(self, url: str, width: int = 1280, dark: bool = False, picture: Path | None = None) -> Seen:
        """Open an address, and look; with a `picture` also write a PNG of the whole page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

        def call(method: str, **given: Any) -> dict[str, Any]:
            return self.call(method, session, **given)

        for domain in ("Page", "Network", "Log", "Runtime"):
            call(f"{domain}.enable")
        call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        failed = call("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        deadline = time.monotonic() + 30
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < deadline, f"{url} does not load"
            call("Runtime.evaluate", expression="0")
        found = call("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]
        if picture is not None:
            shot = call("Page.captureScreenshot", captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        of = [(event["method"], event["params"]) for event in self.events if event.get("sessionId") == session]
        told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        self.call("Target.closeTarget", targetId=target)
        return Seen(
            found.get("value", [str(found)]),
            [json.dumps(params) for method, params in of if method in told],
            [params["request"]["url"] for method, params in of if method == "Network.requestWillBeSent"],
        )


def chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in `folder`; it ends with the block."""
    program = chromium()
    assert program is not None
    into, out = os.pipe(), os.pipe()
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
    line = [program, *options, f"--user-data-dir={folder}", "--no-first-run", "about:blank"]
    # the protocol is spoken over descriptors 3 and 4, wherever the pipes are here
    script = f'exec 8<&{into[0]} 9>&{out[1]}; exec 3<&8 4>&9; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "browser", *line], pass_fds=(into[0], out[1]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(into[0])
    os.close(out[1])
    events: list[dict[str, Any]] = []
    rest, number = b"", 0

    def call(method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        nonlocal rest, number
        number += 1
        message = {"id": number, "method": method, "params": given, **({"sessionId": session} if session else {})}
        os.write(into[1], json.dumps(message).encode() + b"\0")
        while True:
            whole, found, after = rest.partition(b"\0")
            if not found:
                assert select.select([out[0]], [], [], 60)[0], f"no answer to {method}"
                more = os.read(out[0], 1 << 20)
                assert more, "the browser has ended"
                rest += more
                continue
            rest = after
            answer = json.loads(whole)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            events.append(answer)

    try:
        yield Browser(call, events)
    finally:
        process.kill()
        process.wait()
        os.close(into[1])
        os.close(out[0])
