"""What the pages of docs/ show is right, and (long) runs, in few steps, from the first block of a page to its last."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from test_readme import checked

from frugalrl import catalog, cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"(?:<!-- (.*?) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STEPS = 2000


class Block(NamedTuple):
    note: str  # of the comment before it
    kind: str
    text: str


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


def blocks(page: str) -> list[Block]:
    return [Block(*(part or "" for part in found)) for found in BLOCK.findall(text_of(page))]


def commands(block: Block) -> list[list[str]]:
    text = block.text.replace("\\\n", " ")
    lines = [line.partition(" #")[0].split(None, 1) for line in text.splitlines() if line.strip()]
    assert {first for first, _ in lines} <= {"frugal", "pip", "ray"}
    return [shlex.split(rest) for first, rest in lines if first == "frugal"]


def small(words: list[str]) -> list[str]:
    """The same command in a few steps, seeds and episodes."""
    most = {"--steps": STEPS, "--seeds": 2, "--members": 4, "--episodes": 2}
    words = [
        str(min(most[before], int(word)) if before in most else word)
        for before, word in zip(["", *words], words, strict=False)
    ]
    match words[0]:
        case "train" | "pbt" | "sweep" | "cem" | "dvd":
            starts = "learning_starts" in catalog.hyper_fields(catalog.recipe(words[1]))
            more = [*([] if "--steps" in words else ["--steps", str(STEPS)]), "--quiet"]
            return [*words, *more, *(["--hyper", "learning_starts=500"] if starts else [])]
        case "resume":
            return [*words, "--quiet"]
        case "export":
            return [*words, "--episodes", "1"]
        case "eval" if "--episodes" not in words:
            return [*words, "--episodes", "2"]
    return words


def test_the_site_has_every_page_and_no_other():
    nav = re.findall(r"^ *- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(nav) == PAGES
    assert len(PAGES) > 10


def test_names_of_other_libraries_are_those_that_a_wrong_call_is_told():
    table = [line.split("|")[1:-1] for line in text_of("migration.md").splitlines() if line.startswith("| `")]
    names = [[re.findall(r"`(\w+)(?:=[^`]*)?`", cell) for cell in row] for row in table]
    told = {other: mine for mine, *others in names for cell in others for other in cell if other not in mine}
    assert told.keys() == catalog.ALIASES.keys()
    assert all(name in told[other] for other, name in catalog.ALIASES.items())


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_right(page):
    for note, kind, text in blocks(page):
        assert kind in ("sh", "python"), kind
        assert re.fullmatch(r"|not run: .+|needs \w+", note)
        if kind == "python":
            compile(text, page, "exec")
            continue
        for words in commands(Block(note, kind, text)):
            a = cli.parser().parse_args(words)
            if a.command == "train" and ":" not in a.env:
                options = vars(a) | {"hyper": cli._pairs(a.hyper), "env_options": cli._pairs(a.env_option)}
                own = ("env_option", "command", "agent", "env")
                checked(a.agent, a.env, **{name: value for name, value in options.items() if name not in own})
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text_of(page)):
        assert (DOCS / page).parent.joinpath(target).is_file(), target
    for name in re.findall(r"`(\w+\.jsonl)`", text_of(page)):
        assert name == "rows.jsonl" or (ROOT / "benchmarks" / "results" / name).is_file(), name
    for name in re.findall(r"^::: ([\w.]+)$", text_of(page), re.MULTILINE):
        try:
            import_module(name)
        except ImportError:
            module, _, member = name.rpartition(".")
            assert getattr(import_module(module), member).__doc__, name


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not b.note.startswith("not run") for b in blocks(page))]
)
def test_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict = {}
    for block in blocks(page):
        if block.note.startswith("not run"):
            continue
        if block.note:
            try:
                import_module(block.note.removeprefix("needs "))
            except ImportError:
                continue
        if block.kind == "sh":
            for words in commands(block):
                assert cli.main(small(words)) == 0, words
        elif block.text.startswith("# "):
            (tmp_path / block.text.split()[1]).write_text(block.text)
        else:
            exec(re.sub(r"(?<=steps=)[\d_]+|(?<=^STEPS, SEEDS = )[\d_]+", str(STEPS), block.text, flags=re.M), names)
