"""sandboxctl as a program of its own, for tests."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.support.daemon import Daemon

# Far beyond what any command here needs on a busy machine.
LIMIT = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "sandboxd.cli.ctl")


@dataclass(frozen=True)
class Ctl:
    """sandboxctl, pointed at one daemon."""

    url: str
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, daemon: Daemon) -> "Ctl":
        return cls(f"unix:{daemon.socket}")

    def env(self) -> dict[str, str]:
        own = {"SANDBOXD_URL": self.url, "PYTHONPATH": str(REPOSITORY), **self.environment}
        return {**{name: value for name, value in os.environ.items() if name != "SANDBOXD_API_KEY"}, **own}

    def run(
        self, *arguments: str, stdin: bytes | int | IO[bytes] = b"", **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """To its end, whatever that is; `stdin` is what it reads, or where from."""
        source: Any = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        return subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            env=self.env(),
            timeout=LIMIT,
            check=False,
            **source,
            **options,
        )

    def text(self, *arguments: str, **options: Any) -> str:
        """Its stdout, of a command that must succeed without a word on stderr."""
        done = self.run(*arguments, **options)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout.decode()

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--json"))

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The caller waits for it: use as a context manager."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*PROGRAM, *arguments], env=self.env(), **{**streams, **options})
