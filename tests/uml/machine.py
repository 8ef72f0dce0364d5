"""Run a program in a User-Mode Linux machine: a kernel with every cgroup controller, as a plain process.

The machine sees this host's files at their own paths, read-only, so the checkout and its .venv work inside as
they are. Private to it are /tmp, /run, /dev/shm (tmpfs) and an ext4 disk at DISK, which TMPDIR points to: hostfs
can be no overlay's upper layer, and neither it nor tmpfs can be idmapped by this kernel (6.1). So a directory that
must have its owners right, such as the images, is copied to a second disk, at COPIED. /home is empty, and /etc is
the host's with changes kept on the disk, so that users can be made. Nothing that happens inside can change the
host, except through the job's own directory. It needs no privilege: inside, whoever started it is root.

    result = run_in_uml([sys.executable, "-c", "print('hello')"], timeout=60)
    assert (result.returncode, result.output) == (0, "hello\n")

A program inside finds SANDBOXD_UML=1 in its environment, and may send lines of text to the outside through
the terminal that SANDBOXD_UML_CHANNEL names; Machine.lines() yields them as they come.
"""

import contextlib
import functools
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHECKOUT = Path(__file__).resolve().parents[2]
DISK = "/mnt"
COPIED = "/mnt/copied"
BOOT = Path(__file__).with_name("boot.py")
# What its console says where it cannot run. Linux 6.1 saves a process's registers in less room than a processor with
# AMX wants; the kernel it is a process of then refuses to set them (mended in Linux 6.13).
UNFIT = re.compile(r"ptrace (set|get) fp regs failed, errno = \d+")
# The probe takes 3 s on a quiet machine.
PROBE_LIMIT = 240.0
TOOLS = {"linux.uml": "user-mode-linux", "mke2fs": "e2fsprogs", "insmod": "kmod"}

_SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_MIB = 1 << 20
# What a failing test wants to see of a log.
_TAIL_LINES = 60


class UmlError(Exception):
    """The machine did not boot, died, or took too long; the message ends with what its console said last."""


@dataclass(frozen=True, slots=True)
class UmlResult:
    """How the program inside ended. `output` is its stdout and stderr, `console` what the kernel said."""

    returncode: int
    output: str
    console: str


def missing_packages() -> tuple[str, ...]:
    """The Debian packages to install before a machine can be started."""
    return tuple(package for tool, package in TOOLS.items() if shutil.which(tool, path=_SEARCH_PATH) is None)


@functools.cache
def unfit_processor() -> str | None:
    """Why no machine can run on this processor, found by booting one, once; None if that is not what is wrong."""
    try:
        run_in_uml(["/bin/true"], timeout=PROBE_LIMIT)
    except UmlError as error:
        if found := UNFIT.search(str(error)):
            return f"User-Mode Linux cannot run on this processor: {found[0]}"
    return None  # whatever else is wrong, the tests are to fail of it


def run_in_uml(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    **machine: Any,
) -> UmlResult:
    """Boot a machine, run one program in it (cwd is the checkout), wait for both to end. Boot takes 2-3 s.

    `machine` is what Machine takes by name.

    Raises UmlError after `timeout` seconds, or when the machine dies; none of its processes or files is left
    then.
    """
    with Machine(argv, **machine) as running:
        for _line in running.lines(timeout=timeout):
            pass
        return running.result()


class Machine:
    """One booted machine that runs one program and then halts.

    env is added to the program's environment; modules are kernel modules to load beside overlay; `copied` is a
    directory of this host whose copy, owners and modes included, is to be at COPIED, where it can be written.

    Owns: the host processes of the machine (a session of their own) and a temporary directory; leaving `with`
    ends and removes them whatever happened.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        memory_mib: int = 1024,
        disk_mib: int = 4096,
        modules: Sequence[str] = (),
        copied: Path | None = None,
    ) -> None:
        if missing := missing_packages():
            raise UmlError(f"cannot start User-Mode Linux: install {' '.join(missing)}")
        self._returncode: int | None = None
        self._buffer = b""
        with contextlib.ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxd-uml-")))
            self._disks = [self._make_disk("disk", disk_mib)]
            if copied is not None:
                self._disks.append(self._make_disk("copied", disk_mib, "-d", str(copied)))
            self._write_job(argv, env or {}, modules)
            self._channel, writer = os.pipe()
            stack.callback(os.close, self._channel)
            try:
                self._process = self._start(writer, memory_mib)
            finally:
                os.close(writer)
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine, if it still runs, and remove all that belongs to it."""
        self._stack.close()

    def lines(self, *, timeout: float) -> Iterator[str]:
        """What the program sends through the channel, line by line, until the machine has halted.

        Raises UmlError when that takes longer than `timeout` seconds from this call on.
        """
        deadline = time.monotonic() + timeout
        while (line := self.next_line(timeout=deadline - time.monotonic())) is not None:
            yield line

    def next_line(self, *, timeout: float) -> str | None:
        """One line from the channel, None when the machine has halted. UmlError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (line := self._take_line()) is None:
            if not self._fill(deadline - time.monotonic()):
                return None
        verb, _, rest = line.partition(" ")
        if verb != "exit":
            return line
        self._returncode = int(rest)
        return self.next_line(timeout=deadline - time.monotonic())

    def result(self) -> UmlResult:
        """How the program ended. Raises UmlError when it did not: the machine died before."""
        if self._returncode is None:
            raise UmlError(f"cannot tell how the program ended: the machine died first\n{self.tail()}")
        return UmlResult(self._returncode, self._read_log("output"), self._read_log("console"))

    def tail(self) -> str:
        """The last lines of the console and of the program's output, for people."""
        parts = []
        for name in ("console", "output"):
            lines = self._read_log(name).splitlines()[-_TAIL_LINES:]
            parts.append("\n".join((f"--- last lines of the machine's {name}:", *lines)))
        return "\n".join(parts)

    def _read_log(self, name: str) -> str:
        return (self._directory / name).read_bytes().decode(errors="replace")

    def _take_line(self) -> str | None:
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        return line.decode(errors="replace")

    def _fill(self, timeout: float) -> bool:
        """Read some more of the channel; False at its end, when the machine's last process has gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            if not selector.select(max(0.0, timeout)):
                raise UmlError(f"cannot wait longer for the machine\n{self.tail()}")
        data = os.read(self._channel, 1 << 16)
        self._buffer += data
        return bool(data)

    def _make_disk(self, name: str, size_mib: int, *options: str) -> Path:
        """An ext4 image; a sparse file, so that its size costs nothing."""
        disk = self._directory / name
        with disk.open("wb") as file:
            file.truncate(size_mib * _MIB)
        mke2fs = shutil.which("mke2fs", path=_SEARCH_PATH)
        assert mke2fs is not None
        subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", *options, str(disk)], check=True)
        return disk

    def _write_job(self, argv: Sequence[str | Path], env: Mapping[str, str], modules: Sequence[str]) -> None:
        job = {
            "argv": [str(word) for word in argv],
            "cwd": str(CHECKOUT),
            "env": {"PATH": _SEARCH_PATH, "LANG": "C.UTF-8", **env},
            "modules": ["overlay", *modules],
            "disks": [DISK, COPIED][: len(self._disks)],
            "shared": str(self._directory),
            # Must be visible even where the machine's own /tmp, /run or disk hides that part of the host.
            "visible": [str(CHECKOUT), sys.prefix, sys.base_prefix],
        }
        (self._directory / "job.json").write_text(json.dumps(job))
        # The kernel's command line splits at spaces and takes one path for init; a script knows no such limits.
        init = self._directory / "init"
        command = shlex.join((sys.executable, "-I", str(BOOT), str(self._directory / "job.json")))
        init.write_text(f"#!/bin/sh\nexec {command}\n")
        init.chmod(0o755)

    def _start(self, channel: int, memory_mib: int) -> subprocess.Popen[bytes]:
        directory = self._directory
        with (directory / "console").open("wb") as console, (directory / "output").open("wb") as output:
            command = [
                "linux.uml",
                f"mem={memory_mib}M",
                "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
                f"init={directory}/init",
                *(f"ubd{number}={disk}" for number, disk in enumerate(self._disks)),
                f"uml_dir={directory}/run",
                "con=null", f"con0=null,fd:{console.fileno()}", f"con1=null,fd:{channel}",
                f"con2=null,fd:{output.fileno()}",
                "quiet",
            ]  # fmt: skip
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(console.fileno(), output.fileno(), channel),
                start_new_session=True,
                # HOME: it would make ~/.uml otherwise. TMPDIR: where its memory lives, as an unlinked file.
                env={"PATH": _SEARCH_PATH, "HOME": str(directory), "TMPDIR": _memory_directory(memory_mib)},
            )

    def _end(self) -> None:
        """Kill what is left of the machine: its processes, which are the host's too, in a session of theirs."""
        # Until wait(), the leader is at least a zombie, so that nobody else can have its session id.
        while members := _session_members(self._process.pid):
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()


def _session_members(session: int) -> list[int]:
    """The living processes of a session."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # After the command's name, which may hold anything: state ppid pgrp session …
                state, _ppid, _pgrp, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(sid) == session and state not in "ZX":
                    members.append(int(entry.name))
    return members


def _memory_directory(memory_mib: int) -> str:
    """Where the machine's memory can be a file: executable, with room; best not on a disk."""
    for directory in ("/dev/shm", tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            status = os.statvfs(directory)
            if not status.f_flag & os.ST_NOEXEC and status.f_bavail * status.f_frsize >= memory_mib * _MIB:
                return directory
    raise UmlError(f"cannot find {memory_mib} MiB for the machine's memory; point TMPDIR elsewhere")
