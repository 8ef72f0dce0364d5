"""What a measured system can be asked to do, and running programs for those who do it by a command line."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.bench.measure import TrialFailed

TRUE = "/bin/true"
IDLE = ("sleep", "infinity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where systems are measured."""

    scratch: Path
    """removed at the end"""
    rootfs: Path
    """the image's tree; not to be written to"""
    image_dir: Path


class Instance:
    """One running sandbox of a system. A subclass has the methods that its system's `offers` promises."""

    def true(self) -> None:
        """Run /bin/true in it to its end ("exec")."""
        raise NotImplementedError

    def output(self, size: int) -> int:
        """Have it write `size` bytes of text and receive them all; how many came ("output")."""
        raise NotImplementedError

    def upload(self, data: bytes) -> None:
        """Put a file into it ("files")."""
        raise NotImplementedError

    def download(self) -> int:
        """Get the uploaded file back; its size ("files")."""
        raise NotImplementedError

    def shell(self, command: str) -> None:
        """Run a shell command in it as root, to its end ("copies")."""
        raise NotImplementedError

    def snapshot(self) -> Any:
        """Keep what it has on disk now, while it goes on; what System.forget() takes ("copies")."""
        raise NotImplementedError

    def clone(self) -> "Instance":
        """One that runs and begins with the files of this one ("copies")."""
        raise NotImplementedError

    def restore(self, snapshot: Any) -> None:
        """Put its files to what the snapshot has; it runs afterwards ("copies")."""
        raise NotImplementedError

    def processes(self) -> set[int]:
        """The pids that are there only because it is ("memory")."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class System:
    """One of those measured. open() comes first and raises NotAvailable; close() always comes last."""

    name: ClassVar[str]
    conditions: ClassVar[str]
    offers: ClassVar[frozenset[str]]
    """of: life, exec, output, files, memory, copies"""
    disk: ClassVar[str | None] = "ext4"
    """of the disk on which its copies are measured; None: the scratch directory's own (see volumes)"""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace

    def open(self) -> str:
        """Make it ready. Returns its version. Raises: NotAvailable."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave no process, mount or file of it behind."""

    def live(self) -> None:
        """Create a sandbox, run /bin/true in it, destroy it. May be called from several threads at once."""
        raise NotImplementedError

    def start(self) -> Instance:
        """A sandbox that idles until it is stopped."""
        raise NotImplementedError

    def origin(self) -> Instance:
        """One whose files can be kept ("copies")."""
        return self.start()

    def forget(self, snapshot: Any) -> None:
        """Remove a snapshot ("copies")."""
        raise NotImplementedError


def call(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, output thrown away. Raises: TrialFailed with the end of what it said.

    posix_spawn, because what Popen adds (a pipe, a read, a fork of this process) would be counted as the peer's.
    """
    said = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, said, 2),
        ]
        pid = os.posix_spawn(argv[0], list(argv), environment or os.environ, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            tail = os.pread(said, 4096, 0).decode(errors="replace").strip()[-300:]
            raise TrialFailed(f"{os.path.basename(argv[0])} ended with {status}: {tail}")
    finally:
        os.close(said)


def count_output(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
    """Run a program and read its standard output to the end; how many bytes that was."""
    total = 0
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment or os.environ,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(256 * 1024):
            total += len(chunk)
    if process.returncode:
        raise TrialFailed(f"{os.path.basename(argv[0])} ended with {process.returncode}")
    return total


def version_of(argv: Sequence[str]) -> str:
    """The first line a program says about itself that has a digit in it."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if any(map(str.isdigit, line))), "unknown version")


def text_of(size: int) -> str:
    """A shell command that writes `size` bytes of text."""
    return f"yes 0123456789abcdef | head -c {size}"


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
