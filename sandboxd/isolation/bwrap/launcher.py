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
        reply = await self._call("start", request.to_wire(), descriptors)
        return int(reply["pid"])

    async def assemble(self, request: AssembleRequest, *, machine: int, gate: Gate) -> None:
        """Put the root together where the process of the pidfd `machine` waits, and open its gate, come what may.

        The gate is given away: the fork server opens it, so that the daemon has no part in the sandbox's going on.
        """
        await self._call(
            "assemble", request.to_wire(), {"machine": machine, "gate": gate.write_end}, when_sent=gate.open
        )

    async def _call(
        self, op: str, plan: dict[str, Any], descriptors: Mapping[str, int], when_sent: Callable[[], None] = _nothing
    ) -> dict[str, Any]:
        request = {"op": op, "plan": plan, "descriptors": tuple(descriptors)}
        async with self._lock:
            with trio.CancelScope(shield=True):
                try:
                    reply = await self._exchange(json.dumps(request).encode(), list(descriptors.values()), when_sent)
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
                raise Unprocessable(f"cannot start the sandbox: {said}", kind=kind)
            raise shortage(said, number) or LaunchFailed(f"cannot start the sandbox: {said}", errno=number)
        return answer

    async def _exchange(self, message: bytes, descriptors: list[int], when_sent: Callable[[], None]) -> bytes:
        control = self._control or self._start()
        ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        await control.sendmsg([message], [ancillary])
        when_sent()
        return await control.recv(_MAX_REPLY)

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
