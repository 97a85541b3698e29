"""The glossary explains words that are in use, and no page or docstring uses another word for the same thing."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
GENERATED = {"benchmarks.md", "configuration.md"}
OTHER_PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in {*GENERATED, GLOSSARY.name}]
PAGES = [ROOT / "README.md", *OTHER_PAGES]
SOURCES = [path for package in ("engine", "models", "data") for path in sorted((ROOT / package).rglob("*.py"))]
BRITISH = (
    "colour|grey|centre|centring|neighbour|labelled(?!image)|licence|utilis|initialis|synchronis|recognis|favour|learnt"
)


class Entry(NamedTuple):
    """One row of the glossary."""

    term: str
    meaning: str
    code: str
    """File or folder."""
    forbidden: tuple[str, ...]
    """Other words for the same thing."""


def entries() -> list[Entry]:
    lines = GLOSSARY.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and not line.startswith("| --- ")]
    return [Entry(*row[:2], row[2].strip("`"), tuple(row[3].split(", "))) for row in rows if row[0] != "term"]


@cache
def prose() -> dict[str, str]:
    """The hand-written text of every page, without code."""
    texts = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for pattern in (r"<!-- (\w+) -->.*?<!-- /\1 -->", r"```.*?```", r"`[^`]+`", r"\]\([^)]*\)"):
            text = re.sub(pattern, " ", text, flags=re.S)
        texts[page.name] = text
    return texts


@cache
def docstrings() -> dict[str, str]:
    """All docstrings of each file, those of attributes included."""
    return {
        str(path.relative_to(ROOT)): "\n".join(
            node.value.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        for path in SOURCES
    }


def holders(pattern: str, texts: dict[str, str]) -> list[str]:
    return [name for name, text in texts.items() if re.search(pattern, text, flags=re.I)]


def words(text: str, joint: str = r"\s+") -> str:
    return joint.join(re.escape(word) for word in text.split())


def test_entries__say_one_sentence_and_where_the_code_is() -> None:
    found = entries()
    assert len(found) > 30 and len({entry.term for entry in found}) == len(found)
    assert not [entry.term for entry in found if not entry.meaning.endswith(".") or ". " in entry.meaning]
    assert not [entry.code for entry in found if not (ROOT / entry.code).exists()]


def test_terms__are_in_use() -> None:
    code = {str(path): path.read_text(encoding="utf-8") for path in SOURCES}
    in_use = {entry.term: words(entry.term.replace("-", " "), r"[-_\s]?") for entry in entries()}
    assert not [term for term, pattern in in_use.items() if not holders(pattern, {**code, **prose()})]


@pytest.mark.parametrize("word", [word for entry in entries() for word in entry.forbidden])
def test_forbidden_words__are_not_in_use(word: str) -> None:
    assert not holders(rf"\b{words(word)}s?\b", {**prose(), **docstrings()}), (
        "docs/glossary.md has the word to use instead"
    )


def test_spelling__is_american() -> None:
    texts = {**prose(), **{str(path): path.read_text(encoding="utf-8") for path in SOURCES}}
    assert not holders(BRITISH, texts)
