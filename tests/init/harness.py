"""Real sandbox-inits to test: as an ordinary process, and as pid 1 of namespaces of its own."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import trio

from sandboxd.isolation.init.client import Attachment, InitClient, InitGone, SpawnRequest
from sandboxd.isolation.init.messages import Exited, Gap, StdinAck, StdinClosed
from sandboxd.isolation.init.wire import Output, Stream
from tests.support.waiting import PATIENCE

SOURCES = Path(__file__).parents[2] / "rootfs" / "init"
RELEASE = SOURCES / "build" / "sandbox-init"
SANITIZED = SOURCES / "build" / "sandbox-init-sanitized"
BACKLOG = 256


@dataclass(frozen=True)
class RunningInit:
    client: InitClient
    socket: Path
    pid: int

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_kb(self) -> int:
        # By its page tables: the counters behind all other figures lag behind by some hundred KiB.
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        found = re.search(r"^Rss: +(\d+) kB$", rollup, re.MULTILINE)
        assert found is not None, rollup
        return int(found[1])

    async def wait_idle(self) -> None:
        """Until what was asked before is over and every keeper and worker has been reaped."""
        # Something asked of it just now may have no worker yet; it has been looked at when a later question was.
        await self.client.hello()
        process = psutil.Process(self.pid)
        await wait_until(lambda: not process.children())


async def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for what the kernel does not announce."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


def alive(process: psutil.Process) -> bool:
    """Neither gone nor dead: a zombie only waits to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> list[str]:
    """What it runs; empty when it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def descendants(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children(recursive=True) if alive(one)]


def has_terminal(pid: int, program: str) -> bool:
    """Whether such a program, below this process, is in the foreground of its terminal."""
    for one in descendants(pid):
        with suppress(OSError):
            name, _, rest = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")
            _state, _parent, group, _session, _terminal, foreground = rest.split()[:6]
            if name.partition("(")[2] == program and group == foreground:
                return True
    return False


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _started(command: Sequence[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command --listen-fd N`. Sanitizers write to files, since init has no stderr; any such is a failure."""
    reports = directory / "sanitizer"
    environment = {
        "PATH": os.environ["PATH"],
        "ASAN_OPTIONS": f"log_path={reports}:detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": f"log_path={reports}:print_stacktrace=1",
    }
    with _listen(directory / "init.sock") as listener:
        fd = listener.fileno()
        process = subprocess.Popen([*command, "--listen-fd", str(fd)], pass_fds=[fd], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        found = [path.read_text() for path in directory.glob("sanitizer.*")]
        assert not found, found[0]


@asynccontextmanager
async def ordinary_init(binary: Path, directory: Path) -> AsyncIterator[RunningInit]:
    """An init that is the subreaper of its commands. All of them have ended when this does."""
    with _started([os.fspath(binary)], directory) as process:
        init = RunningInit(InitClient(directory / "init.sock"), directory / "init.sock", process.pid)
        try:
            with trio.fail_after(PATIENCE):
                await init.client.hello()
            yield init
        finally:
            with trio.CancelScope(shield=True), trio.fail_after(PATIENCE):
                await _end(init, process)


async def _end(init: RunningInit, process: subprocess.Popen[bytes]) -> None:
    try:
        below = descendants(init.pid)
        await init.client.shutdown(grace_ms=0)
    except (InitGone, psutil.NoSuchProcess):
        # A test may have shut it down; nothing else ends it.
        assert process.wait(PATIENCE) == 0, f"sandbox-init has died: {process.returncode}"
        return
    left = [child for child in below if alive(child)]
    assert not left, left


@dataclass(frozen=True)
class Etc:
    """The user database of a test's sandbox."""

    passwd: str = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\nplain:x:1001:1001::/tmp:/bin/sh\n"
    group: str = "root:x:0:\nsudo:x:27:user\nuser:x:1000:\nplain:x:1001:\nextra:x:2000:plain,user\n"
    commands: Sequence[str] = field(default=())
    """Shell commands to run in the new mount namespace before init starts."""


@asynccontextmanager
async def pid1_init(binary: Path, directory: Path, etc: Etc | None = None) -> AsyncIterator[RunningInit]:
    """An init that is pid 1, with its own pid, mount, network and ipc namespaces; /mnt/sudo is its applet."""
    etc = etc or Etc()
    (directory / "passwd").write_text(etc.passwd)
    (directory / "group").write_text(etc.group)
    shutil.copy(binary, directory / "sudo")
    script = "\n".join(
        (
            "set -e",
            "mount -t tmpfs -o mode=755 none /mnt",
            f"cp {directory}/sudo {directory}/passwd {directory}/group /mnt/",
            "mount --bind /mnt/passwd /etc/passwd",
            "mount --bind /mnt/group /etc/group",
            *etc.commands,
            'exec "$0" "$@"',
        )
    )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    namespaces = ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc"]
    with _started([*namespaces, "sh", "-c", script, os.fspath(binary)], directory) as process:
        client = InitClient(directory / "init.sock")
        with trio.fail_after(PATIENCE):
            await client.hello()
        (pid,) = (child.pid for child in psutil.Process(process.pid).children())
        yield RunningInit(client, directory / "init.sock", pid)


# ---- following commands -----------------------------------------------------------------------------------


@dataclass
class Result:
    exited: Exited
    stdout: bytes
    stderr: bytes
    gaps: list[Gap]


async def follow(attachment: Attachment) -> Result:
    """Everything up to the exit. Checks that offsets and totals add up."""
    output = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    expected: dict[Stream, int] = {}
    gaps: list[Gap] = []
    while True:
        match await attachment.receive():
            case Output(stream, offset, data):
                assert expected.get(stream, offset) == offset
                expected[stream] = offset + len(data)
                output[stream] += data
            case Gap(stream, start, end) as gap:
                assert expected.get(stream, start) == start < end
                expected[stream] = end
                gaps.append(gap)
            case Exited() as exited:
                assert expected.get(Stream.STDOUT, exited.stdout_total) == exited.stdout_total
                assert expected.get(Stream.STDERR, exited.stderr_total) == exited.stderr_total
                return Result(exited, bytes(output[Stream.STDOUT]), bytes(output[Stream.STDERR]), gaps)
            case StdinAck() | StdinClosed():
                pass


async def run(client: InitClient, request: SpawnRequest, *, stdin: bytes | None = None) -> Result:
    """Run a command to its end, losslessly."""
    async with client.spawn_attached(request, lossless=True) as attachment, trio.open_nursery() as nursery:

        async def feed(data: bytes) -> None:
            await attachment.send_stdin(data)
            await attachment.close_stdin()

        if stdin is not None:
            nursery.start_soon(feed, stdin)
        return await follow(attachment)


async def shell(client: InitClient, script: str, *, user: str = "", cwd: str = "/") -> Result:
    """Run a shell script to its end."""
    return await run(client, SpawnRequest(argv=["/bin/sh", "-c", script], user=user, cwd=cwd))


async def read_until(attachment: Attachment, wanted: bytes) -> bytes:
    """Receive stdout until it contains `wanted`."""
    seen = b""
    while wanted not in seen:
        event = await attachment.receive()
        assert not isinstance(event, Exited), seen
        if isinstance(event, Output) and event.stream is Stream.STDOUT:
            seen += event.data
    return seen


class Content:
    """What to write into a file. Not a generator, which would have to be closed when the write fails early."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = iter(parts)

    def __aiter__(self) -> "Content":
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration
