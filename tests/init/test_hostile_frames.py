"""Whatever bytes arrive, init lives on, answers others, and touches no memory it should not."""

import math
import os
import random
import re
import resource
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from sandboxd.isolation.init import wire
from sandboxd.isolation.init.archives import PutEntry
from sandboxd.isolation.init.client import InitError, SpawnRequest, TerminalSize
from sandboxd.isolation.init.connection import connect, connect_nowait
from sandboxd.isolation.init.messages import ResourceLimit, encode_fields
from sandboxd.isolation.init.wire import (
    MAX_DATA,
    MAX_PAYLOAD,
    FileType,
    Flag,
    Op,
    Scope,
    StdinMode,
    Tag,
    encode_frame,
)
from tests.init.harness import SOURCES, RunningInit, ordinary_init, shell
from tests.support.waiting import PATIENCE

# The same ones in every run, unless FUZZ_SEED says otherwise; they take some 10 s.
CONVERSATIONS = 600
MAX_CONNECTIONS = 1344  # from outside; as in connections.c


@pytest.fixture
async def sanitized_init(binaries: dict[str, Path], directory: Path) -> AsyncIterator[RunningInit]:
    async with ordinary_init(binaries["sanitized"], directory) as running:
        yield running


def corpus(directory: Path) -> list[bytes]:
    """One well-formed conversation for each operation, harmless outside of its directory."""
    place = str(directory / "fuzz")
    attached = SpawnRequest(
        argv=["cat"],
        env={"A": "b"},
        stdin=StdinMode.PIPE,
        rlimits=[ResourceLimit(1, 2, 3)],
        ring_size=4096,
        linger_ms=5,
        label=b"label",
    )
    terminal = SpawnRequest(argv=["cat"], terminal=TerminalSize(80, 24))
    size = {Tag.COLS: 10, Tag.ROWS: 20}
    command = {Tag.COMMAND: 1}
    stdin = encode_frame(Op.STDIN, b"x" * 100) + encode_frame(Op.STDIN_EOF)
    return [
        encode_frame(Op.HELLO),
        encode_fields(Op.HELLO, {Tag.FLAGS: Flag.KEEP}) + encode_frame(Op.LIST),
        attached.encode(attach=True, lossless=True, keep=True) + stdin,
        encode_frame(Op.LIST),
        attached.encode(attach=True, lossless=True) + stdin,
        terminal.encode(attach=True, lossless=False)
        + encode_fields(Op.RESIZE, size)
        + encode_fields(Op.SIGNAL, {Tag.SIGNO: 9, Tag.SCOPE: Scope.TREE}),
        encode_fields(Op.ATTACH, {**command, Tag.STDOUT_FROM: 0, Tag.FLAGS: 2}) + stdin,
        encode_fields(Op.WRITE_STDIN, command) + stdin,
        encode_fields(Op.STDIN_EOF, command),
        encode_fields(Op.RESIZE, {**command, **size}),
        encode_fields(Op.SIGNAL, {**command, Tag.SIGNO: 9, Tag.SCOPE: Scope.LEADER}),
        encode_fields(Op.RELEASE, command),
        encode_frame(Op.LIST_PORTS),
        encode_fields(Op.CONNECT, {Tag.PORT: 1}),
        encode_fields(Op.CONNECT, {Tag.PATH: place}),
        encode_fields(Op.STAT, {Tag.PATH: place, Tag.USER: "root"}),
        encode_fields(Op.LIST_DIR, {Tag.PATH: "/etc", Tag.DEPTH: 3, Tag.LIMIT: 50}),
        encode_fields(Op.READ_FILE, {Tag.PATH: "/etc/passwd", Tag.OFFSET: 3, Tag.LENGTH: 5}),
        encode_fields(Op.WRITE_FILE, {Tag.PATH: place, Tag.MODE: 0o600, Tag.FLAGS: 0x200})
        + encode_frame(Op.DATA, b"data")
        + encode_frame(Op.END),
        encode_fields(Op.WATCH, {Tag.PATH: str(directory), Tag.FLAGS: 0x2000, Tag.ARG: ["*.o", "a/*"]})
        + encode_frame(Op.SYNC) * 2,
        encode_fields(Op.WRITE_FILE, {Tag.PATH: place, Tag.OFFSET: 0, Tag.FLAGS: Flag.RESUME | Flag.ATOMIC})
        + encode_frame(Op.DATA, b"data")
        + encode_frame(Op.END),
        # What changes or copies whole trees is left to test_files.py: a path cut short must not mean all of /tmp.
        encode_fields(Op.COPY, {Tag.PATH: "/etc/passwd", Tag.TARGET: place}),
        encode_fields(Op.PACK, {Tag.PATH: "/etc/default"}),
        encode_fields(Op.UNPACK, {Tag.PATH: place + "-tree", Tag.FLAGS: Flag.PARENTS})
        + PutEntry(path=b"d", file_type=FileType.DIRECTORY, mode=0o755, mtime_ns=1).encode()
        + PutEntry(path=b"d/f", file_type=FileType.REGULAR, mode=0o644, mtime_ns=-1).encode()
        + encode_frame(Op.DATA, b"data")
        + PutEntry(path=b"l", file_type=FileType.SYMLINK, mode=0o777, mtime_ns=0, target=b"d").encode()
        + PutEntry(path=b"h", file_type=FileType.HARDLINK, mode=0, mtime_ns=0, target=b"d/f").encode()
        + encode_frame(Op.END),
        encode_frame(Op.SUDO, b""),
    ]


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Flip, cut, repeat, splice, and above all lie about lengths."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + chance.randint(1, 8)]
            case 2:
                changed[at:at] = changed[at : at + chance.randint(1, 64)]
            case 3:
                number = chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, MAX_PAYLOAD, MAX_DATA + 1])
                changed[at : at + 4] = struct.pack("<I", number)
            case 4:
                changed += chance.choice(others)
            case 5:
                changed[at:at] = chance.randbytes(chance.randint(1, 40))
            case 6:
                changed[at : at + 8] = b"\xff" * 8
    # Nothing may name another place in the file system.
    return re.sub(rb"/(?!etc|tmp)", b"_", bytes(changed))


async def kill_all(init: RunningInit) -> None:
    for listed in await init.client.commands():
        with suppress(InitError):  # a RELEASE of the fuzzer's may still be under way
            await init.client.signal(listed.command, 9, scope=Scope.TREE)


async def test_mutated_conversations(sanitized_init: RunningInit, directory: Path) -> None:
    init = sanitized_init
    chance = random.Random(os.environ.get("FUZZ_SEED", "0"))
    conversations = corpus(directory)
    for sent in range(CONVERSATIONS):
        data = mutate(chance, chance.choice(conversations), conversations)
        if data[4:5] == bytes([Op.SHUTDOWN]):
            continue  # as well-formed as any, and the end of the test
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(0.02)
            try:
                peer.connect(str(init.socket))
                peer.sendall(data)
                while peer.recv(65536):
                    pass
            except (TimeoutError, ConnectionError, BlockingIOError):
                pass
        if sent % 50 == 0:
            await kill_all(init)
    with trio.fail_after(PATIENCE):
        assert (await init.client.hello()).pid == init.pid
        await kill_all(init)
        await init.wait_idle()
        assert (await shell(init.client, "echo alive")).stdout == b"alive\n"


async def test_connections_beyond_the_limit_wait_and_are_served_later(init: RunningInit) -> None:
    with ExitStack() as idle:
        for _ in range(MAX_CONNECTIONS):
            idle.enter_context(await connect(init.socket))
        with trio.move_on_after(0.2) as scope:
            await init.client.hello()
        assert scope.cancelled_caught
    with trio.fail_after(PATIENCE):
        await init.client.hello()


async def test_full_queue_is_waited_for(init: RunningInit) -> None:
    os.kill(init.pid, signal.SIGSTOP)
    with ExitStack() as idle:
        with suppress(BlockingIOError):
            while True:
                idle.enter_context(connect_nowait(init.socket))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(init.client.hello)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(init.pid, signal.SIGCONT)
            idle.close()


async def test_running_out_of_descriptors_is_survived(init: RunningInit) -> None:
    soft, hard = resource.prlimit(init.pid, resource.RLIMIT_NOFILE)
    used = init.descriptors()
    resource.prlimit(init.pid, resource.RLIMIT_NOFILE, (used + 3, hard))
    with pytest.raises(InitError, match=r"cannot start a command: No file descriptors available|Too many open files"):
        await init.client.spawn(SpawnRequest(argv=["true"]))
    resource.prlimit(init.pid, resource.RLIMIT_NOFILE, (3, hard))  # not one more
    with trio.move_on_after(0.3) as scope:
        await init.client.hello()
    assert scope.cancelled_caught
    resource.prlimit(init.pid, resource.RLIMIT_NOFILE, (soft, hard))
    with trio.fail_after(PATIENCE):
        assert (await shell(init.client, "echo alive")).stdout == b"alive\n"


async def test_bytes_one_at_a_time(init: RunningInit) -> None:
    request = SpawnRequest(argv=["echo", "slow"]).encode(attach=True, lossless=False)
    stream = await trio.open_unix_socket(str(init.socket))
    async with stream:
        for position in range(len(request)):
            await stream.send_all(request[position : position + 1])
        received = b"".join([part async for part in stream])
    assert b"slow\n" in received


async def test_peer_that_never_reads_stalls_nobody(release_init: RunningInit) -> None:
    init = release_init
    request = SpawnRequest(argv=["yes"]).encode(attach=True, lossless=False)
    async with await trio.open_unix_socket(str(init.socket)) as stream:
        await stream.send_all(request)
        for _ in range(20):
            with trio.fail_after(PATIENCE):
                await init.client.hello()
        assert init.resident_kb() < 4096
    for listed in await init.client.commands():
        await init.client.signal(listed.command, 9)


def test_constants_match_the_c_header() -> None:
    header = (SOURCES / "protocol.h").read_text()
    found = {
        name: int(value, 0) for name, value in re.findall(r"^\s+((?:OP|TAG|FLAG)_\w+) = (\w+),", header, re.MULTILINE)
    }

    def named(prefix: str, kind: type) -> dict[str, int]:
        return {f"{prefix}_{name}": int(member) for name, member in kind.__members__.items()}

    assert found == {**named("OP", wire.Op), **named("TAG", wire.Tag), **named("FLAG", wire.Flag)}
    for prefix, kind in (
        ("STDIN", wire.StdinMode),
        ("STREAM", wire.Stream),
        ("SCOPE", wire.Scope),
        ("STATE", wire.CommandState),
        ("TYPE", wire.FileType),
        ("CHANGE", wire.ChangeKind),
    ):
        pairs = re.findall(rf"\b({prefix}_\w+) = (\d+)[, ]", header)
        assert {name: int(value) for name, value in pairs if name != "STDIN_WINDOW"} == named(prefix, kind)
    numbers = header[header.index("PROTOCOL_VERSION") : header.index("RLIMIT_SIZE")]
    for name, factors in re.findall(r"^\s*(\w+) = ([\d *]+),", numbers, re.MULTILINE):
        assert math.prod(int(factor) for factor in factors.split("*")) == getattr(wire, name)
