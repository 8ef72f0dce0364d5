"""A pid 1 that somebody has replaced: whatever it answers costs the daemon bounded memory and time.

The attacker here is a socket that speaks the protocol's framing well and everything else badly.
"""

import itertools
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitClient, InitError
from sandboxd.isolation.init.messages import (
    MESSAGES,
    Entry,
    Exited,
    FileHeader,
    Listed,
    ListeningSocket,
    Message,
    Started,
    Welcome,
    decode_message,
)
from sandboxd.isolation.init.wire import (
    FRAMES_AT_ONCE,
    FROM_INIT,
    HEADER_SIZE,
    MAX_CHANGES,
    MAX_COMMANDS,
    MAX_PORTS,
    ChangeKind,
    CommandState,
    FileType,
    Flag,
    FrameDecoder,
    Op,
    Output,
    Stream,
    Tag,
    WireError,
    decode_changes,
    decode_fields,
    encode_field,
    encode_frame,
    encode_output,
)
from tests.support.waiting import PATIENCE


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a path short enough for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        yield Path(name)


LISTED = Listed(1, 1, CommandState.RUNNING, "", b"", 0, 0, 0, 0, 0, Flag(0))
ENTRY = Entry("a", FileType.REGULAR, 0, 0, 0, 0, "", "", 0, 0)
FILE = FileHeader(0, 0, 0, 0)
EXITED = Exited(0, 0, 0, 0, 0, 0, 0, Flag(0), exit_code=0)


@asynccontextmanager
async def answering(directory: Path, answer: Iterable[bytes]) -> AsyncIterator[InitClient]:
    """A client of an init that answers whatever it is asked with these bytes, and then with nothing."""

    async def answer_one(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some(1000)
            for part in answer:
                await stream.send_all(part)
            await trio.sleep_forever()

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "init.sock"))
        sock.listen()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer_one, [listener])
            with trio.fail_after(PATIENCE):
                yield InitClient(directory / "init.sock")
            nursery.cancel_scope.cancel()


# ---- without end -----------------------------------------------------------------------------------------


async def list_directory(client: InitClient) -> None:
    async with client.list_dir("/", limit=1000) as reader:
        async for _ in reader:
            pass


async def read_a_part(client: InitClient) -> None:
    async with client.read_file("/f", length=1000) as reader:
        async for _ in reader:
            pass


async def read_nothing(client: InitClient) -> None:
    async with client.read_file("/f") as reader:
        async for _ in reader:
            pass


async def pack(client: InitClient) -> None:
    async with client.pack("/") as reader:
        async for _ in reader:
            pass


ENDLESS: list[tuple[Callable[[InitClient], Awaitable[object]], bytes, bytes]] = [
    (InitClient.commands, b"", LISTED.encode()),
    (InitClient.listening_sockets, b"", ListeningSocket(1, "::", 0).encode()),
    (list_directory, b"", ENTRY.encode()),
    (read_a_part, FILE.encode(), encode_frame(Op.DATA, b"x")),
    (read_nothing, FILE.encode(), encode_frame(Op.DATA)),
    (pack, ENTRY.encode(), encode_frame(Op.DATA, b"x")),
    (InitClient.hello, b"", encode_frame(Op.STDIN_CLOSED)),
]


@pytest.mark.parametrize(("ask", "before", "over_and_over"), ENDLESS, ids=[ask.__name__ for ask, _, _ in ENDLESS])
async def test_an_answer_without_end_is_cut_off(
    directory: Path, ask: Callable[[InitClient], Awaitable[object]], before: bytes, over_and_over: bytes
) -> None:
    async with answering(directory, itertools.chain([before], itertools.repeat(over_and_over * 1000))) as client:
        with pytest.raises(WireError):
            await ask(client)


async def test_as_many_as_an_honest_init_may_tell_are_taken(directory: Path) -> None:
    """The control: the bounds are those that sandbox-init itself holds."""
    end = encode_frame(Op.END)
    async with answering(directory, [LISTED.encode() * MAX_COMMANDS + end]) as client:
        assert len(await client.commands()) == MAX_COMMANDS
    (directory / "init.sock").unlink()
    async with answering(directory, [ListeningSocket(1, "::", 0).encode() * MAX_PORTS + end]) as client:
        assert len(await client.listening_sockets()) == MAX_PORTS


@pytest.mark.parametrize("in_batches", [False, True])
async def test_a_flood_of_small_frames_leaves_others_their_turns(directory: Path, in_batches: bool) -> None:
    frames = 20_000
    flood = encode_output(Output(Stream.STDOUT, 0, b"x")) * frames
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with answering(directory, [flood]) as client, trio.open_nursery() as nursery:
        async with client.attach(1) as attachment:
            await attachment.receive()  # now much more has come, in one piece
            nursery.start_soon(take_turns)
            await trio.lowlevel.checkpoint()
            received, turns = 1, 0
            while received < frames:
                batch = await attachment.receive_all() if in_batches else [await attachment.receive()]
                received += len(batch)
            assert turns >= frames // FRAMES_AT_ONCE - 1
        nursery.cancel_scope.cancel()


# ---- large -----------------------------------------------------------------------------------------------


def decode_frames(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(data)
    while decoder.take():
        pass


def work(decode: Callable[[bytes], object], payload: bytes) -> float:
    """What decoding costs, as the least of some tries: what others do meanwhile only adds to it."""

    def once() -> float:
        before = time.thread_time()
        with suppress(WireError):
            decode(payload)
        return time.thread_time() - before

    return min(once() for _ in range(5))


@pytest.mark.parametrize(
    ("decode", "payload"),
    [
        (lambda data: decode_message(Listed, data), lambda size: encode_field(Tag.ARG, b"") * (size // 5)),
        (decode_changes, lambda size: (b"\1\0\0\0\0\0\1\0a") * (size // 9)),
        (decode_frames, lambda size: encode_frame(Op.SYNCED) * (size // 5)),
    ],
    ids=["repeated fields", "changes", "frames"],
)
def test_decoding_costs_in_proportion(decode: Callable[[bytes], object], payload: Callable[[int], bytes]) -> None:
    """8 times the bytes, not 64 times the work; of more than a frame may have, where a square could not hide."""
    small, large = payload(2**17), payload(2**20)
    assert work(decode, large) < 24 * work(decode, small)


def test_a_proportion_is_told_from_a_square() -> None:
    """The control of the measure itself."""

    def square(data: bytes) -> None:
        values: tuple[int, ...] = ()
        for value in data[::100]:
            values = (*values, value)

    assert work(square, bytes(2**20)) > 24 * work(square, bytes(2**17))


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_holds_no_more_than_its_frame_may(kind: type[Message]) -> None:
    assert FROM_INIT[kind.OP] <= 16 * 1024
    decoder = FrameDecoder()
    decoder.feed(encode_frame(kind.OP, bytes(FROM_INIT[kind.OP] + 1)))
    with pytest.raises(WireError, match="more than"):
        decoder.take()


def test_changes_hold_few_paths() -> None:
    changes = decode_changes((b"\1\0\0\0\0\0\1\0a") * (MAX_CHANGES // 9))
    assert {change.kind for change in changes} == {ChangeKind.CREATE}
    assert len(changes) <= MAX_CHANGES // 9


# ---- texts and numbers that go further -------------------------------------------------------------------


def encode_error(kind: bytes, message: bytes) -> bytes:
    fields = ((Tag.ERRNO, bytes(4)), (Tag.KIND, kind), (Tag.MESSAGE, message))
    return encode_frame(Op.ERROR, b"".join(encode_field(*field) for field in fields))


@pytest.mark.parametrize(
    "said",
    ["end\nsandboxd: forged line", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "a\rb", "\u2028", "\x00"],
)
async def test_the_sentence_of_an_error_cannot_act(directory: Path, said: str) -> None:
    async with answering(directory, [encode_error(b"file", said.encode())]) as client:
        with pytest.raises(InitError) as raised:
            await client.stat("/f")
    assert raised.value.message.isprintable()
    assert raised.value.message.encode("ascii").decode("unicode_escape") == said


@pytest.mark.parametrize("kind", [b"", b"x" * 16, b"Sandbox", b"a\nb", b"\xff", b"a b"])
async def test_the_kind_of_an_error_is_a_word(directory: Path, kind: bytes) -> None:
    async with answering(directory, [encode_error(kind, b"said")]) as client:
        with pytest.raises(WireError):
            await client.stat("/f")


async def test_an_error_says_no_more_than_a_sentence(directory: Path) -> None:
    async with answering(directory, [encode_error(b"x", b"x" * 2000)]) as client:
        with pytest.raises(WireError):
            await client.stat("/f")


@pytest.mark.parametrize(
    ("message", "tag"),
    [
        (Started(1, 1), Tag.COMMAND),
        (EXITED, Tag.STARTED_AT_MS),
        (EXITED, Tag.ENDED_AT_MS),
        (EXITED, Tag.STDOUT_TOTAL),
        (EXITED, Tag.MAX_RSS_KB),
        (Welcome(1, 1, 0, 0, b""), Tag.UPTIME_MS),
        (ENTRY, Tag.SIZE),
    ],
)
def test_numbers_fit_a_row_of_the_store_and_moments_have_dates(message: Message, tag: Tag) -> None:
    fields = dict(decode_fields(message.encode()[HEADER_SIZE:]))
    assert len(fields[tag]) == 8
    fields[tag] = b"\xff" * 8
    with pytest.raises(WireError, match="at most"):
        type(message).decode(b"".join(encode_field(*field) for field in fields.items()))
