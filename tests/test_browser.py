"""Reports, comparisons and the page of a run that goes on in a real browser: telephone and desk, light and dark."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from test_monitor import example, fill, row, sides

from frugalrl.monitor import live, rows
from frugalrl.monitor.compare import write as write_comparison
from frugalrl.monitor.page import POLICY, page, section
from frugalrl.monitor.receipt import Saving, write
from frugalrl.monitor.report import report
from frugalrl.monitor.watch import serve

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(browser.chromium() is None, reason="needs Chromium: apt-get install chromium-headless-shell"),
]
LONG = "a-name-without-a-place-to-break-" * 4


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[browser.Browser]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def compressed(folder: Path) -> Path:
    """Seeds whose actors were compressed, with all that a receipt can tell of them."""
    measured = [{"mode": mode, "engine": "litert", "microseconds": 41.5, "cost": 48.25} for mode in ("fp32", "int8")]
    switch = {"seed": 0, "step": 500, "from": "fp32", "to": "int8", "kl": 0.01, "reason": "divergence is small " * 6}
    acting = {
        "mode": "int8", "engine": "litert", "why": "it is a tenth cheaper or more " * 4, "packet_bytes": 18_000,
        "kl": 0.01, "refreshes": 40, "measured": measured, "switches": [switch],
    }  # fmt: skip
    times = dict.fromkeys(("environment", "inference", "transport", "learner", "compressor", "other"), 1.0)
    saved = [Saving("--actors int8", f"a call of {LONG}", "microseconds", 41.5, 12.25)._asdict()]
    made = example(actors=acting, time_split=times, faults=[LONG], savings=saved)
    write(fill(folder, values=False) / "receipt.json", made)
    for step in (0, 500, 1000):
        rows.write(folder / "rows.jsonl", [row(s, step, -1000.0 * step * s, kl=1e-5 * s) for s in range(4)])
    return folder


def population(folder: Path) -> Path:
    """Members of PBT, of which one took over from another, in hyper-parameters and figures."""
    search = {"learning_rate": "log:1e-5:1e-2", "gamma": "uniform:0.9:0.999"}
    wanted = {"kind": "pbt", "members": 12, "search": search, "ready": 250}
    fill(folder, values=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"population": wanted, LONG: LONG}))
    for step in (250, 500, 750, 1000):
        for seed in (0, 1):
            found = [
                row(
                    seed,
                    step,
                    step / 4 + m,
                    fitness=step / 4 + m,
                    learning_rate=10 ** (-5 + m / 4),
                    gamma=0.9 + m / 200,
                )
                for m in range(12)
            ]
            rows.write(folder / "rows.jsonl", [
                {**one, "member": m, "parent": 11 if m == 2 and step == 500 else None} for m, one in enumerate(found)
            ])  # fmt: skip
    return folder


def study(folder: Path) -> Path:
    for name in ("base", LONG[:60]):
        fill(folder / name)
    return folder


def compared(folder: Path) -> Path:
    folder.mkdir()
    write_comparison(sides(folder), folder / "report.html", price=360.0)
    return folder


PAGES = {
    "seeds": lambda folder: report(fill(folder), price=0.04).parent,
    "empty": lambda folder: fill(folder, values=False),
    "compressed": compressed, "population": population, "study": study, "compared": compared,
}  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_reads_well_and_asks_for_nothing(kind, width, dark, chromium, tmp_path):
    folder = PAGES[kind](tmp_path / "a run")
    file = folder / "report.html" if kind in ("seeds", "compared") else report(folder)
    seen = chromium.see(file.as_uri(), width, dark)
    assert (seen.faults, seen.said, seen.asked) == ([], [], [file.as_uri()])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_live_page_reads_well_and_asks_for_nothing_else(width, dark, chromium, tmp_path):
    live.write(fill(tmp_path, finished=False), 1000, 4000, 50.0, 0.25)
    server = serve(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        seen = chromium.see(address, width, dark)
    finally:
        server.shutdown()
        server.server_close()
    assert (seen.faults, seen.said, seen.asked) == ([], [], [address])


FAULTS = {
    "a contrast of": '<p style="color: #999; background: #aaa">pale</p>',
    "px wide on a screen": '<div style="width: 500px">wide</div>',
    "px small": '<svg viewBox="0 0 2000 9"><title>t</title><circle r="5"/><text y="8">tiny</text></svg>',
    "is empty": '<svg viewBox="0 0 9 9"><title>none</title></svg>',
    "leaves figure": '<svg viewBox="0 0 99 9"><title>t</title><circle r="5"/><text x="95" y="8">beyond</text></svg>',
    "lies over": '<svg viewBox="0 0 99 50"><title>t</title><circle r="5"/><text x="9" y="20">a</text>'
    '<text x="9" y="21">b</text></svg>',
    "no.where": '<img alt="x" src="http://no.where.invalid/x.png">',
    "thrown": "<script>throw Error('thrown')</script>",
    "inline script violates": "<script>document.title = 'run'</script>",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_browser_sees_what_is_wrong(fault, chromium, tmp_path):
    file = tmp_path / "wrong.html"
    text = page("wrong", [section("wrong", FAULTS[fault])])
    file.write_text(text.replace(POLICY, "") if fault == "thrown" else text)
    seen = chromium.see(file.as_uri(), 390)
    assert fault in " ".join([*seen.faults, *seen.said, *seen.asked[1:]])
