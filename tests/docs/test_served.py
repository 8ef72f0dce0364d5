"""The manual where people meet it: in a browser, from the daemon, and in a terminal, from sandboxctl."""

import base64
import hashlib
import os
import pty
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest

from sandboxd import manual
from sandboxd.http.native.manual import render
from tests.cli.support import PROGRAM, Ctl
from tests.docs.conftest import Host


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if "id" in values:
            assert values["id"] not in self.names
            self.names.add(str(values["id"]))
        if tag == "a":
            self.links.append(str(values["href"]))
        self.fetched += [value for name, value in attrs if name in {"src", "srcset", "data", "style"} and value]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style":
            self.style += data


def get(host: Host, path: str) -> Page:
    answer = host.daemon.call("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return Page(answer.data.decode())


def test_every_link_of_every_served_page_leads_to_one_that_has_what_it_names(host: Host) -> None:
    pages: dict[str, Page] = {}
    waiting = ["/docs"]
    while waiting:
        path = waiting.pop()
        pages[path] = get(host, path)
        targets = {urljoin(path, link).partition("#")[0] for link in pages[path].links}
        waiting += [target for target in targets if target.startswith("/docs") and target not in {*pages, *waiting}]
    assert {f"/docs/{topic}" for topic in manual.TOPICS} | {"/docs"} == set(pages)
    for path, page in pages.items():
        for link in page.links:
            target, _, name = urljoin(path, link).partition("#")
            if target in pages:
                assert not name or name in pages[target].names, (path, link)
            elif not target.startswith("https://"):
                assert host.daemon.call("GET", target).status == 200, (path, link)


@pytest.mark.parametrize("path", ["/docs", "/docs/files"])
def test_a_page_brings_all_it_needs_and_its_policy_allows_nothing_else(path: str, host: Host) -> None:
    answer = host.daemon.call("GET", path)
    page = Page(answer.data.decode())
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert not {"script", "link", "img", "iframe", "base", "form"} & set(page.tags)
    assert page.fetched == []
    assert "width=device-width" in answer.data.decode()


def test_a_page_takes_no_key(host: Host) -> None:
    done = subprocess.run(
        [
            "curl",
            "--silent",
            "--write-out",
            "%{http_code}",
            "--output",
            "/dev/null",
            f"http://127.0.0.1:{host.port}/docs",
        ],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"200"


@pytest.mark.parametrize("topic", ["filez", "..%2f..%2fetc%2fpasswd", "files.md", "__init__", "x" * 5000])
def test_a_topic_that_there_is_not_is_told(topic: str, host: Host) -> None:
    answer = host.daemon.call("GET", f"/docs/{topic}")
    assert answer.status == 404
    assert answer.json["kind"] == "not_found"
    if topic == "filez":
        assert "near: files" in answer.json["error"]


def test_html_in_a_page_is_text() -> None:
    body, headings = render("# T\n\nA <script>alert(1)</script> <b>x</b>\n\n<img src=x>\n\n## A `<i>` heading\n")
    assert not {"script", "b", "img", "i"} & set(Page(body).tags)
    assert headings == (("a-i-heading", "A `<i>` heading"),)


def test_help_lists_the_topics(tmp_path: Path) -> None:
    listed = Ctl("unix:/nowhere").text("help")
    for topic in manual.TOPICS:
        assert re.search(rf"^  {topic} +{re.escape(manual.page(topic).title)}$", listed, re.MULTILINE)


def test_help_prints_a_topic_as_it_is_where_nobody_looks() -> None:
    assert Ctl("unix:/nowhere").text("help", "files") == manual.page("files").text


def test_help_renders_a_topic_in_a_terminal() -> None:
    environment = {**os.environ, "PAGER": "cat", "TERM": "xterm-256color", "COLUMNS": "80"}
    terminal, inside = pty.openpty()
    try:
        with subprocess.Popen(
            [*PROGRAM, "help", "sandboxes"], stdin=inside, stdout=inside, env=environment
        ) as program:
            os.close(inside)
            shown = b""
            try:
                while part := os.read(terminal, 65536):
                    shown += part
            except OSError:  # what the end of a terminal looks like
                pass
        assert program.returncode == 0
    finally:
        os.close(terminal)
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown).decode()
    assert "Sandboxes: creation, limits, lifetime, sleep" in plain
    assert "(help snapshots)" in plain
    assert not re.search(r"\]\(|\*\*|^#", plain, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("exec", "Usage: sandboxctl exec"),
        ("snapshotz", "did you mean snapshots?"),
        ("lifetime", "did you mean sandboxes?"),
        ("qqqq", "`sandboxctl help` lists the topics"),
    ],
)
def test_help_with_another_name_says_what_was_meant(name: str, told: str) -> None:
    done = Ctl("unix:/nowhere").run("help", name)
    assert told in (done.stdout + done.stderr).decode()
    assert done.returncode == (0 if name == "exec" else 1)
