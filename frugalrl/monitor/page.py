"""The HTML of reports: no scripts and nothing from elsewhere, for a light screen, a dark one and paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

COLOURS = 9  # of parts and arms; more take turns
# what a page may do, whatever a file made it say: nothing but look as its own style says
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbf9; --card: #ffffff; --ink: #1b1f24; --soft: #5a636e; --rule: #e3e5e1; --code: #f1f2ee;
  --accent: #1a63d6; --band: rgba(26, 99, 214, .16); --seed: #9fb0c4; --good: #1a7f4b; --warn: #9a5b00;
  --part-0: #2b6cb0; --part-1: #dd8a22; --part-2: #7a5cb8; --part-3: #2a9d77; --part-4: #c8508f; --part-5: #8b949e;
  --part-6: #b5482f; --part-7: #3a9fb8; --part-8: #7d8b1f;
}
@media (prefers-color-scheme: dark) { :root {
  --ground: #111418; --card: #181c22; --ink: #e8eaed; --soft: #a0a9b4; --rule: #2b313a; --code: #21262e;
  --accent: #6cabff; --band: rgba(108, 171, 255, .22); --seed: #56657a; --good: #5fcf95; --warn: #e8b25c;
  --part-0: #5b9bdf; --part-1: #e9a24b; --part-2: #a48be0; --part-3: #4fc09a; --part-4: #e07fb3; --part-5: #8b949e;
  --part-6: #e08066; --part-7: #6fc6db; --part-8: #b3c04d;
} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 880px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 26px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; overflow-wrap: anywhere; }
h1 small { font-weight: 400; color: var(--soft); font-size: inherit; }
h2 { font-size: 17px; letter-spacing: -.005em; margin: 36px 0 10px; }
p { margin: 0 0 10px; } .soft, figcaption, .tile span { color: var(--soft); }
.mark { font-weight: 600; } .mark.good { color: var(--good); } .mark.warn { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 12px; }
.tile dt { color: var(--soft); font-size: 13px; } .tile dd { margin: 2px 0 0; }
.tile b { display: block; font-size: 21px; font-weight: 650; letter-spacing: -.02em; line-height: 1.4;
  white-space: nowrap; }
.tile span { font-size: 13px; } .tile, table, svg { font-variant-numeric: tabular-nums; }
.notice { border-left: 3px solid var(--warn); padding: 8px 14px; background: var(--card); border-radius: 0 8px 8px 0;
  margin: 16px 0; }
.stack { display: grid; gap: 14px; }
figure { margin: 0; min-width: 0; padding: 16px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; }
figure > div { overflow-x: auto; } figcaption { font-size: 13px; margin-top: 8px; }
svg { display: block; width: 100%; height: auto; } svg.crowded { min-width: 560px; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
svg .run { fill: var(--ink); font-size: 14px; } svg .grid { stroke: var(--rule); }
svg polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg polyline, svg line { vector-effect: non-scaling-stroke; }
svg .seed { stroke: var(--seed); stroke-width: 1; opacity: .75; }
svg .crowd { opacity: .28; } svg .mean { stroke: var(--accent); stroke-width: 2.5; }
svg .band { fill: var(--band); } svg .dot { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
svg .faint { opacity: 0; } svg .faint:hover { opacity: 1; }
svg .branch { stroke-width: 1.5; stroke-linecap: round; opacity: .55; }
svg .link { stroke-dasharray: 2 3; } svg .branch.best { stroke-width: 4; opacity: 1; }
svg .whisker { stroke: var(--accent); stroke-width: 2.5; stroke-linecap: round; opacity: .55; }
PARTS
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 12px 0 0; padding: 0;
  font-size: 13px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.wide { overflow-x: auto; } .wide + .soft, .stack + .wide { margin-top: 10px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 0 28px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 6px 18px 6px 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 500; color: var(--soft); white-space: nowrap; } .names td { overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
.names th { width: 11em; }
thead th { font-size: 13px; } td.number, th.number { text-align: right; white-space: nowrap; }
td + td { white-space: nowrap; } td .note { white-space: normal; min-width: 260px; }
td .note + .note { color: var(--soft); }
a { color: var(--accent); } code, pre { font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: var(--code); border-radius: 4px; padding: 1px 5px; } pre code { background: none; padding: 0; }
pre { background: var(--code); border-radius: 10px; padding: 14px 16px; margin: 0; overflow-x: auto; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media (max-width: 560px) {
  main { padding: 24px 14px 48px; } figure { padding: 12px; } .names th { width: 7.5em; white-space: normal; }
  svg.chart:not(.crowded) text { font-size: 20px; } svg.bar { min-height: 24px; }
}
@media print {
  :root { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #ccc; --code: #f4f4f4;
    --accent: #1f57b8; --band: #d9e4f7; --seed: #8c9aab; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; } figure, .tile, table, pre { break-inside: avoid; } h2 { break-after: avoid; }
}
""".replace(
    "PARTS",
    "\n".join(
        f".part-{i} {{ fill: var(--part-{i}); background: var(--part-{i}); }} "
        f".line-{i} {{ stroke: var(--part-{i}); }} "
        f".part-{i} .mean {{ stroke: var(--part-{i}); }} .part-{i} .band {{ fill: var(--part-{i}); opacity: .14; }}"
        for i in range(COLOURS)
    ),
)


def page(title: str, body: Iterable[str], refresh: int | None = None) -> str:
    """A whole document. `title` is text; `body` is HTML. With `refresh` it is asked for again after so many seconds."""
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{again}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def is_ours(path: Path) -> bool:
    """Whether a file is a page that was written here, or is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return ": FrugalRL</title>" in file.read(5000)
    except FileNotFoundError:
        return True


def header(title: str, aside: str, line: str) -> str:
    """`title` and `aside` are text, `line` is HTML."""
    return f"<header><h1>{escape(title)} <small>{escape(aside)}</small></h1><p>{line}</p></header>"


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def notice(html: str) -> str:
    return f'<p class="notice">{html}</p>'


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Label, value and remark of each headline number."""
    cells = [
        f'<div class="tile"><dt>{escape(label)}</dt><dd><b>{escape(value)}</b><span>{escape(remark)}</span></dd></div>'
        for label, value, remark in entries
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def figure(svg: str, caption: str, legend: str = "") -> str:
    """`caption` is text."""
    return f"<figure><div>{svg}</div>{legend}<figcaption>{escape(caption)}</figcaption></figure>"


def legend(entries: Iterable[tuple[int, str]]) -> str:
    """Index and text of each entry, in the colour of class part-<index>."""
    items = [f'<li><i class="part-{index}"></i>{escape(text)}</li>' for index, text in entries]
    return f'<ul class="legend">{"".join(items)}</ul>'


def names(entries: Iterable[tuple[str, str]]) -> str:
    """A table of names and values."""
    rows = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in entries]
    return f'<div class="wide"><table class="names"><tbody>{"".join(rows)}</tbody></table></div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table with a head; cells are HTML; the columns in `numbers` are aligned right."""

    def cell(tag: str, i: int, html: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{' class=number' if i in numbers else ''}>{html}</{tag}>"

    top = "".join(cell("th", i, escape(name)) for i, name in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, html) for i, html in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def commands(lines: Iterable[str]) -> str:
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"
