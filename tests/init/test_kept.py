"""One connection for one operation after another, where both sides want it."""

import socket
from contextlib import closing, suppress

import pytest
import trio

from sandboxd.isolation.init.client import InitClient, InitError, InitGone, SpawnRequest
from sandboxd.isolation.init.connection import Connection, connect
from sandboxd.isolation.init.messages import Exited, Welcome, encode_fields
from sandboxd.isolation.init.wire import MAX_DATA, Flag, Frame, Op, StdinMode, Tag, encode_frame
from tests.init.harness import RunningInit, follow, shell, wait_until

TRUE = SpawnRequest(argv=["true"])
HELLO = encode_fields(Op.HELLO, {Tag.FLAGS: Flag.KEEP})


def spawn(request: SpawnRequest, *, keep: bool = True) -> bytes:
    return request.encode(attach=True, lossless=True, keep=keep)


async def receive_exit(connection: Connection) -> Exited:
    while (frame := await connection.receive()).op is not Op.EXITED:
        assert frame.op in {Op.STARTED, Op.OUTPUT, Op.STDIN_ACK, Op.STDIN_CLOSED}
    return Exited.decode(frame.payload)


async def send_unless_closed(connection: Connection, data: bytes) -> None:
    with suppress(InitGone):
        await connection.send(data)


async def receive_unless_closed(connection: Connection) -> Frame | None:
    try:
        return await connection.receive()
    except InitGone:
        return None


async def frames_until_closed(connection: Connection) -> list[Frame]:
    frames = []
    try:
        while True:
            frames.append(await connection.receive())
    except InitGone:
        return frames


async def run_kept(client: InitClient, request: SpawnRequest = TRUE) -> bytes:
    async with client.spawn_attached(request, lossless=True, keep=True) as attachment:
        return (await follow(attachment)).stdout


async def test_operations_follow_one_another_until_one_does_not_ask_to_keep(init: RunningInit) -> None:
    with closing(Connection(await connect(init.socket))) as connection:
        await connection.begin(HELLO)
        assert Flag.KEEP in (await connection.expect(Welcome)).flags
        for _ in range(3):
            await connection.begin(spawn(SpawnRequest(argv=["echo", "hello"])))
            assert Flag.KEEP in (await receive_exit(connection)).flags
        await connection.begin(spawn(TRUE, keep=False))
        *_, last = await frames_until_closed(connection)
        assert Flag.KEEP not in Exited.decode(last.payload).flags


async def test_a_refusal_ends_the_connection(init: RunningInit) -> None:
    with closing(Connection(await connect(init.socket))) as connection:
        await connection.begin(spawn(SpawnRequest(argv=["/nowhere"])))
        assert [frame.op for frame in await frames_until_closed(connection)] == [Op.ERROR]


async def test_input_that_came_for_a_command_is_not_taken_for_the_next_operation(init: RunningInit) -> None:
    """It waits in init when the command ends, and the answer says that this was the connection's last; or it comes
    later, and ends the connection if it comes where an operation should."""
    request = SpawnRequest(argv=["sh", "-c", "read line"], stdin=StdinMode.PIPE)
    with closing(Connection(await connect(init.socket))) as connection:
        await connection.begin(spawn(request))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_unless_closed, connection, encode_frame(Op.STDIN, b"x\n" * (MAX_DATA // 2)) * 4)
            exited = await receive_exit(connection)
        await send_unless_closed(connection, HELLO)
        answer = await receive_unless_closed(connection)
        assert answer is None or (answer.op is Welcome.OP and Flag.KEEP in exited.flags)


async def test_a_late_message_for_a_command_ends_the_connection_and_nothing_else(init: RunningInit) -> None:
    with closing(Connection(await connect(init.socket))) as connection:
        await connection.begin(spawn(TRUE))
        await receive_exit(connection)
        await connection.send(encode_fields(Op.STDIN_EOF, {}))
        assert await frames_until_closed(connection) == []
    assert (await shell(init.client, "echo well")).stdout == b"well\n"


async def test_the_client_makes_one_connection_for_many_commands_and_close_ends_it(release_init: RunningInit) -> None:
    init = release_init
    with closing(init.client):
        await init.client.hello(keep=True)
        await init.wait_idle()
        with_one = init.descriptors()
        for _ in range(20):
            assert await run_kept(init.client, SpawnRequest(argv=["echo", "x"])) == b"x\n"
        await init.wait_idle()
        await wait_until(lambda: init.descriptors() == with_one)
    await wait_until(lambda: init.descriptors() == with_one - 1)


async def test_commands_at_once_do_not_share_a_connection(init: RunningInit) -> None:
    outputs = []

    async def run(number: int) -> None:
        outputs.append(await run_kept(init.client, SpawnRequest(argv=["sh", "-c", f"sleep 0.05; echo {number}"])))

    with closing(init.client):
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(run, number)
    assert sorted(outputs) == sorted([b"%d\n" % number for number in range(5)] * 2)


async def test_a_command_left_early_and_one_refused_leave_no_connection_to_the_next(init: RunningInit) -> None:
    with closing(init.client):
        await run_kept(init.client)
        async with init.client.spawn_attached(SpawnRequest(argv=["sleep", "1000"]), keep=True):
            pass
        await run_kept(init.client)
        with pytest.raises(InitError):
            await run_kept(init.client, SpawnRequest(argv=["/nowhere"]))
        assert await run_kept(init.client, SpawnRequest(argv=["echo", "again"])) == b"again\n"


async def test_exit_is_the_last_event_of_a_kept_connection_too(init: RunningInit) -> None:
    with closing(init.client):
        async with init.client.spawn_attached(TRUE, keep=True) as attachment:
            await follow(attachment)
            with pytest.raises(InitGone):
                await attachment.receive()


@pytest.mark.parametrize(
    ("kept", "then", "usable"),
    [
        (True, "nothing", True),
        (False, "nothing", False),
        (True, "init leaves", False),
        (True, "init goes on", False),
        (True, "we go on", False),
    ],
)
async def test_when_a_connection_is_used_again(kept: bool, then: str, usable: bool) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with closing(Connection(ours)) as connection, theirs:
        await connection.begin(HELLO)
        connection.kept = kept
        if then == "init leaves":
            theirs.shutdown(socket.SHUT_RDWR)
        elif then == "init goes on":
            theirs.send(b"x")
        elif then == "we go on":
            await connection.send(HELLO)
        assert connection.is_usable() is usable
