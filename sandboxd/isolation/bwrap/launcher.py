"""The daemon's end of the fork server (see forkserver.py): one request at a time, descriptors beside it."""

import array
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from sandboxd.errors import LaunchFailed, Unavailable, Unprocessable
from sandboxd.isolation.bwrap.pipes import Gate
from sandboxd.isolation.bwrap.requests import AssembleRequest, StartRequest
from sandboxd.threads import shortage

_PACKAGE = Path(__file__).resolve().parents[2]
_MAX_REPLY = 64 * 1024
_MAX_DESCRIPTORS = 4
_CANNOT_START = "cannot start the sandbox: "


def _lost(what: str) -> Unavailable:
    return Unavailable(
        f"cannot start the sandbox: the fork server, which starts them, is lost ({what}); try again, with a new one",
        kind="fork_server_lost",
    )


def _nothing() -> None:
    pass


class Launcher:
    """Owns: the fork server process and the socket to it. Made anew if it dies.

    Cancelled: a request that was sent is always read to its reply (it takes about a millisecond), so request and
    reply never go out of step. Raises: LaunchFailed, Unavailable, Unprocessable (its files cannot be a root).
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._control: trio.socket.SocketType | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, request: StartRequest, descriptors: Mapping[str, int]) -> int:
        """The host pid of the started child. The descriptors stay the caller's."""
        reply, _ = await self._call("start", request.to_wire(), descriptors)
        return int(reply["pid"])

    async def assemble(self, request: AssembleRequest, *, machine: int, gate: Gate) -> None:
        """Put the root together where the process of the pidfd `machine` waits, and open its gate, come what may.

        The gate is given away: the fork server opens it, so that the daemon has no part in the sandbox's going on.
        """
        await self._call(
            "assemble", request.to_wire(), {"machine": machine, "gate": gate.write_end}, when_sent=gate.open
        )

    async def find_network(self) -> str:
        """The kind of interface that this host's networks for sandboxes are made with.

        Raises: Unprocessable saying what the kernel lacks for any.
        """
        try:
            reply, _ = await self._call("find_network", {}, {})
        except LaunchFailed as failure:
            said = failure.message.removeprefix(_CANNOT_START)
            raise Unprocessable(
                f"cannot give sandboxes a network on this host: {said}", kind="no_network"
            ) from failure
        return str(reply["kind"])

    async def make_network(self, machine: int, *, kind: str, ipv6: bool) -> tuple[socket.socket, ...]:
        """A network for the process of the pidfd `machine`, which waits: its sockets, for the gateway."""
        _, made = await self._call("make_network", {"kind": kind, "ipv6": ipv6}, {"machine": machine})
        return tuple(socket.socket(fileno=descriptor) for descriptor in made)

    async def _call(
        self, op: str, plan: dict[str, Any], descriptors: Mapping[str, int], when_sent: Callable[[], None] = _nothing
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The reply, and the descriptors beside it."""
        request = {"op": op, "plan": plan, "descriptors": tuple(descriptors)}
        async with self._lock:
            with trio.CancelScope(shield=True):
                try:
                    message = json.dumps(request).encode()
                    reply, made = await self._exchange(message, list(descriptors.values()), when_sent)
                except OSError as error:
                    self.close()
                    raise shortage("", error.errno) or _lost(str(error)) from error
                if not reply:
                    self.close()
                    raise _lost("it died")
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            said, number = answer["error"], answer.get("errno")
            if (kind := answer.get("kind")) is not None:  # the files are at fault, and they are the client's
                raise Unprocessable(f"{_CANNOT_START}{said}", kind=kind)
            raise shortage(said, number) or LaunchFailed(f"{_CANNOT_START}{said}", errno=number)
        return answer, made

    async def _exchange(
        self, message: bytes, descriptors: list[int], when_sent: Callable[[], None]
    ) -> tuple[bytes, tuple[int, ...]]:
        control = self._control or self._start()
        ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        await control.sendmsg([message], [ancillary])
        when_sent()
        space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
        reply, beside, _, _ = await control.recvmsg(_MAX_REPLY, space, socket.MSG_CMSG_CLOEXEC)
        made = array.array("i")
        for level, kind, payload in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                made.frombytes(payload[: len(payload) - len(payload) % made.itemsize])
        return reply, tuple(made)

    def _start(self) -> trio.socket.SocketType:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            script = str(Path(__file__).with_name("forkserver.py"))
            # Not waited for by trio: the process has to outlive any one task, and close() reaps it.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", script, str(theirs.fileno()), str(_PACKAGE.parent)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = trio.socket.from_stdlib_socket(ours)
        return self._control

    def close(self) -> None:
        """End the fork server; sandboxes it started live on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
