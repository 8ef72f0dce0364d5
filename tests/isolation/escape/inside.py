"""How attacks are run: in a sandbox of the daemon, and, to show that they are real, without its protection.

An attack is a piece of Python which ends in `report(value)`. `call` and `attempt` give the name of the errno, or ""
for success, so that "refused" and "worked" read the same on both sides.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support import witnesses
from tests.support.daemon import Daemon

CONTROL_LIMIT = 120.0

PRELUDE = """
import ctypes, errno, fcntl, glob, json, os, resource, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    "The errno's name of a raw system call, or '' if it succeeded."
    ctypes.set_errno(0)
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else ""

def attempt(function, *arguments, **keywords):
    "Likewise for anything in Python that raises OSError."
    try:
        function(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return ""

def opened(path, flags=os.O_RDONLY):
    "Likewise for opening, and closing again, a file."
    return attempt(lambda: os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)))

def report(value):
    print("\\nREPORT" + json.dumps(value))
"""


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str
    exit_code: int | None
    signal: str | None = None

    @property
    def report(self) -> Any:
        """What the attack reported; a failure of the test if it came to an end before."""
        _, mark, value = self.stdout.rpartition("\nREPORT")
        assert mark, f"the attack did not run to its end: {self}"
        return json.loads(value)


@dataclass(frozen=True)
class Sandbox:
    """One sandbox, from inside (run, python, place) and from the host (init, monitor)."""

    daemon: Daemon
    id: str
    rootless: bool

    def run(self, command: str, *, user: str = "root", **body: Any) -> Done:
        result = self.daemon.shell(self.id, command, user=user, cwd=body.pop("cwd", "/tmp"), **body)
        return Done(result["stdout"], result["stderr"], result["exit_code"], result["signal"])

    def python(self, source: str, *, user: str = "root") -> Any:
        return self.run("exec python3 -I -", user=user, stdin=PRELUDE + source).report

    def outcomes(self, attacks: Mapping[str, str], *, user: str = "root") -> dict[str, str]:
        """Many attacks, each an expression, in one go: what came of each, by name."""
        return self.python(_all_of(attacks), user=user)

    def place(self, program: Path, path: str, *, mode: str = "755") -> None:
        """Copy a program of the host's into the sandbox."""
        content = base64.b64encode(program.read_bytes()).decode()
        done = self.run(f"base64 -d >{path} && chmod {mode} {path}", stdin=content)
        assert done.exit_code == 0, done

    @cached_property
    def monitor(self) -> int:
        """The host pid of bwrap."""
        return witnesses.monitor_of(self.id)

    @cached_property
    def init(self) -> int:
        """The host pid of sandbox-init."""
        return witnesses.init_of(self.id)


def unconfined(source: str, *, prefix: Sequence[str] = (), **how: Any) -> Any:
    """The positive control: the same attack on the host, or behind a weaker `prefix` such as a plain bwrap."""
    done = subprocess.run(
        [*prefix, sys.executable, "-I", "-"],
        input=PRELUDE + source,
        capture_output=True,
        text=True,
        timeout=CONTROL_LIMIT,
        check=False,
        **how,
    )
    return Done(done.stdout, done.stderr, done.returncode).report


def unconfined_outcomes(attacks: Mapping[str, str], *, prefix: Sequence[str] = ()) -> dict[str, str]:
    return unconfined(_all_of(attacks), prefix=prefix)


def _all_of(attacks: Mapping[str, str]) -> str:
    return "report({" + ", ".join(f"{name!r}: {attack}" for name, attack in attacks.items()) + "})"


def plain_bwrap(*options: str) -> list[str]:
    """bubblewrap as people use it: the host's files, its own pid namespace, no filter, no ids of its own."""
    return ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", *options, "--"]
