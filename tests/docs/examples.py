"""The examples of a page, and running them: every document's examples are programs that must do what it says.

A page is a Markdown file. Its fenced blocks run from top to bottom in one empty directory against one daemon, in one
shell and one Python interpreter, so later ones see the variables and files of earlier ones:

    ```console        `$ ` begins a command, `> ` goes on with it; what follows, if anything does, is its output
    ```sh             a script without its output
    ```python         Python; a ```text block right behind it is what it prints
    ```toml           a configuration of the daemon: it is loaded
    ```console not run: WHY    shown only, whatever the language; the reason is part of the page

No command may fail: one that is to says so, `… || echo "exit status $?"`; and the API answers an error only where it
is shown. In an output `...` stands for anything within a line and, alone on a line, for any lines. `/run/sandboxd` in
an example is the daemon's runtime directory and `127.0.0.1:8000` its TCP listener, wherever these are in the test.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from markdown_it import MarkdownIt

# Far beyond what any example needs on a busy machine.
LIMIT = 240.0
RUN = {"console", "sh", "python", "toml"}
SHOWN = {"text", "mermaid", "json"}
NOT_RUN = "not run: "
_MARK = "--example-done--"

_BASH = f"""
set -E; trap '__failed=1' ERR
while IFS= read -r -u 3 file; do __failed=0; source "$file" </dev/null; printf '\\n%s %s\\n' {_MARK} $__failed; done
"""
_PYTHON = f"""
import sys, traceback
names, commands = {{"__name__": "__main__"}}, open(3)
for line in commands:
    failed = 0
    try:
        exec(compile(open(line.strip()).read(), "example", "exec"), names)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        failed = 1
    print("\\n{_MARK}", failed, flush=True)
"""


@dataclass(frozen=True)
class Example:
    """One command, script or program, and what it must print; None where that is not shown."""

    language: str
    source: str
    output: str | None
    line: int
    """in the page, counted from one"""


@dataclass(frozen=True)
class Block:
    """A fenced block as it stands in a page."""

    language: str
    note: str
    text: str
    line: int
    end: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    tokens = [token for token in MarkdownIt("commonmark").parse(page) if token.type == "fence"]
    found = []
    for token in tokens:
        assert token.map is not None
        language, _, note = token.info.strip().partition(" ")
        found.append(Block(language, note, token.content, token.map[0] + 1, token.map[1]))
    return found


def examples(page: str) -> Iterator[Example]:
    """What a page wants run. Raises: ValueError for a block of no known kind."""
    previous: Example | None = None
    end = 0
    lines = page.splitlines()
    for block in blocks(page):
        where = f"line {block.line}"
        if block.note and not block.note.startswith(NOT_RUN):
            raise ValueError(f"{where}: write `{NOT_RUN}WHY`, not {block.note!r}")
        behind = not "".join(lines[end : block.line - 1]).strip()
        if block.language == "text" and previous is not None and behind:
            previous = replace(previous, output=block.text)
        if previous is not None:
            yield previous
        previous, end = None, block.end
        if block.language not in RUN | SHOWN:
            raise ValueError(f"{where}: a block of {block.language!r} is neither run nor only shown")
        if block.note or block.language in SHOWN:
            continue
        if block.language == "console":
            yield from _commands(block)
        elif block.language == "python":
            previous = Example("python", block.text, None, block.line)
        else:
            yield Example(block.language, block.text, None, block.line)
    if previous is not None:
        yield previous


def _commands(block: Block) -> Iterator[Example]:
    current: Example | None = None
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            if current is not None:
                yield current
            current = Example("sh", line.removeprefix("$ "), None, number)
        elif current is None:
            raise ValueError(f"line {number}: a console's first line is a command: `$ …`")
        elif line.startswith("> ") and current.output is None:
            current = replace(current, source=f"{current.source}\n{line.removeprefix('> ')}")
        else:
            current = replace(current, output=f"{current.output or ''}{line}\n")
    if current is not None:
        yield current


def agrees(shown: str, printed: str) -> bool:
    """Whether what was printed is what a page shows."""
    pattern = ""
    for line in shown.rstrip().splitlines():
        if line.strip() in {"...", "…"}:
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in re.split(r"\.\.\.|…", line.rstrip())) + "[ \t]*\n"
    return re.fullmatch(pattern, printed.rstrip() + "\n") is not None


class Interpreter:
    """A shell, or Python, that runs one example after the other. Owns: the process, and what runs in its group."""

    def __init__(self, command: list[str], *, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._process = subprocess.Popen(
            ["sh", "-c", 'exec 3<&0 </dev/null; exec "$@"', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
            text=True,
        )
        self._count = 0

    @classmethod
    def bash(cls, directory: Path, environment: Mapping[str, str]) -> Self:
        return cls(["bash", "--norc", "-c", _BASH], directory=directory, environment=environment)

    @classmethod
    def python(cls, directory: Path, environment: Mapping[str, str]) -> Self:
        return cls([sys.executable, "-c", _PYTHON], directory=directory, environment=environment)

    def run(self, source: str) -> tuple[str, bool]:
        """What it printed, and whether all of it went well."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        path = self._directory / f".example-{self._process.pid}-{self._count}"
        path.write_text(source + "\n")
        overdue = threading.Timer(LIMIT, self._process.kill)
        overdue.start()
        try:
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
            printed = ""
            for line in self._process.stdout:
                if line.startswith(_MARK):
                    return printed.removesuffix("\n"), line.split()[1] == "0"
                printed += line
            return f"{printed}\n[ended, or took more than {LIMIT} s]", False
        finally:
            overdue.cancel()
            path.unlink()

    def close(self) -> None:
        """End it, and what it left running."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
