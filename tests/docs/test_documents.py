"""What holds for all documents: links lead somewhere, nothing is said about one machine, README is short."""

import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from sandboxd import manual
from sandboxd.client import AsyncClient
from sandboxd.config import Config
from tests.docs.documents import DOCUMENTS
from tests.support.daemon import CHECKOUT

pages = pytest.mark.parametrize(
    "page", [page for page in DOCUMENTS if page.exists()], ids=lambda page: str(page.relative_to(CHECKOUT))
)


def tokens(page: Path) -> Iterator[Token]:
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text()):
        yield token
        yield from token.children or ()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = set()
    parsed = list(tokens(page))
    for token, text in pairwise(parsed):
        if token.type == "heading_open":
            found.add(manual.anchor(text.content))
    return found


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for token in tokens(page):
        target = str(token.attrs.get("href", "")) if token.type == "link_open" else ""
        if not target or target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pages
def test_no_line_is_longer_than_a_reader_of_the_source_likes(page: Path) -> None:
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []


@pages
def test_every_page_begins_with_its_title_and_what_it_is_about(page: Path) -> None:
    title, blank, about, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert blank == ""
    assert re.match(r"[A-Z`]", about)


def test_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 200


def keys_of(section: type, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():  # type: ignore[attr-defined]
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from keys_of(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_manual_lists_every_key_of_the_configuration_and_no_other() -> None:
    page = (CHECKOUT / "sandboxd/manual/daemon.md").read_text()
    table = page.partition("\n| key |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", table, re.MULTILINE)
    assert {key for cell in listed for key in re.findall(r"[\w.]+", cell)} == set(keys_of(Config))


def test_the_manuals_contents_are_all_its_pages() -> None:
    assert sorted(manual.TOPICS) == [page.stem for page in sorted((CHECKOUT / "sandboxd/manual").glob("*.md"))]


def test_the_sdks_page_lists_every_method_and_no_other() -> None:
    page = (CHECKOUT / "sandboxd/manual/sdk.md").read_text()
    table = page.partition("## What there is")[2]
    public = {name for name, _ in inspect.getmembers(AsyncClient, callable) if not name.startswith("_")}
    assert set(re.findall(r"`(\w+)`", table)) == public
