"""What listens inside, as sandbox-init tells it."""

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitClient, SpawnRequest
from sandboxd.isolation.init.messages import ListeningSocket
from sandboxd.isolation.init.wire import MAX_PORTS, Op, WireError, encode_frame
from tests.init.harness import Etc, RunningInit, pid1_init, read_until, shell
from tests.support.waiting import PATIENCE

LISTEN = """
import socket, sys, time
held = []
for address, port in [("127.0.0.1", 1111), ("0.0.0.0", 2222), ("::1", 3333), ("::", 4444), ("127.0.0.1", 0)]:
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if port == 4444:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind((address, port))
    if port:
        one.listen()
    held.append(one)
held.append(socket.create_connection(("127.0.0.1", 1111)))
print("ready", flush=True)
time.sleep(1000)
"""

LISTEN_ON_MANY = """
import resource, socket, sys, time
count = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [socket.create_server(("127.0.0.1", 1024 + number), backlog=1) for number in range(count)]
print("ready", flush=True)
time.sleep(1000)
"""


def told(sockets: list[ListeningSocket]) -> dict[int, ListeningSocket]:
    return {socket.port: socket for socket in sockets}


async def test_what_listens_is_told_with_its_process(pid1: RunningInit) -> None:
    assert await pid1.client.listening_sockets() == []
    request = SpawnRequest(argv=[sys.executable, "-I", "-S", "-c", LISTEN])
    async with pid1.client.spawn_attached(request) as attachment:
        await read_until(attachment, b"ready")
        found = told(await pid1.client.listening_sockets())
        # Neither the socket that is bound only nor the two ends of the connection.
        assert {port: one.address for port, one in found.items()} == {
            1111: "127.0.0.1", 2222: "0.0.0.0", 3333: "::1", 4444: "::"
        }  # fmt: skip
        for one in found.values():
            assert (one.uid, one.pid) == (0, attachment.pid)
            assert one.program is not None
            assert one.program.startswith("python")
        await pid1.client.signal(attachment.command, 9)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_another_users_process_is_found_without_the_right_to_trace(
    binaries: dict[str, Path], directory: Path
) -> None:
    """As in a sandbox, whose root has no CAP_SYS_PTRACE."""
    etc = Etc(commands=['exec setpriv --bounding-set=-sys_ptrace "$0" "$@"'])
    request = SpawnRequest(argv=[sys.executable, "-I", "-S", "-c", LISTEN], user="1000:1000")
    async with (
        pid1_init(binaries["sanitized"], directory, etc) as init,
        init.client.spawn_attached(request) as attachment,
    ):
        await read_until(attachment, b"ready")
        assert (await shell(init.client, f"readlink /proc/{attachment.pid}/fd/3")).exited.exit_code == 1
        found = told(await init.client.listening_sockets())
        assert {(one.uid, one.pid) for one in found.values()} == {(1000, attachment.pid)}


async def test_a_socket_that_two_processes_hold_is_told_once(pid1: RunningInit) -> None:
    script = LISTEN.replace('print("ready"', 'import os; os.fork(); print("ready"')
    request = SpawnRequest(argv=[sys.executable, "-I", "-S", "-c", script])
    async with pid1.client.spawn_attached(request) as attachment:
        await read_until(attachment, b"ready\nready")
        sockets = await pid1.client.listening_sockets()
        assert len(sockets) == len(told(sockets)) == 4
        await pid1.client.signal(attachment.command, 9)


async def test_more_than_the_bound_are_cut_off(release_pid1: RunningInit) -> None:
    count = MAX_PORTS + 10
    request = SpawnRequest(argv=[sys.executable, "-I", "-S", "-c", LISTEN_ON_MANY, str(count)])
    async with release_pid1.client.spawn_attached(request) as attachment:
        await read_until(attachment, b"ready")
        sockets = await release_pid1.client.listening_sockets()
        assert len(sockets) == len(told(sockets)) == MAX_PORTS
        assert {one.pid for one in sockets} == {attachment.pid}
        await release_pid1.client.signal(attachment.command, 9)


@pytest.mark.parametrize(
    "answer",
    [
        ListeningSocket(1, "::", 0).encode() * (MAX_PORTS + 1),
        encode_frame(Op.LISTED),
        encode_frame(Op.PORT, b"\x3d\x05\0\0\0" + bytes(5)),
    ],
    ids=["too many", "another message", "an address of five bytes"],
)
async def test_a_hostile_answer_is_refused(directory: Path, answer: bytes) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        path = directory / "init.sock"
        listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_once, trio.SocketListener(trio.socket.from_stdlib_socket(listener)), answer)
            with pytest.raises(WireError), trio.fail_after(PATIENCE):
                await InitClient(path).listening_sockets()


async def answer_once(listener: trio.SocketListener, answer: bytes) -> None:
    async with await listener.accept() as stream:
        try:
            await stream.receive_some(1000)
            await stream.send_all(answer + encode_frame(Op.END))
        except trio.BrokenResourceError:
            return
