"""The bridge's side of the zygote: kernel processes, started and followed to their ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).with_name("zygote.py")
_MESSAGE_SIZE = 4096


class KernelFailed(Exception):
    """A kernel could not be started."""


@dataclass(frozen=True)
class Account:
    """Who kernels run as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    env: Mapping[str, str]


class Process:
    """A kernel's process, the first of its session."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        """when it has ended: its exit status, or the number of the signal that ended it, negative"""
        self._ended = asyncio.Event()

    async def wait(self) -> None:
        await self._ended.wait()

    def end(self, status: int) -> None:
        self.status = status
        self._ended.set()

    def signal(self, number: int) -> None:
        """Also what it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # it has only just been forked
                if self.status is None:
                    os.kill(self.pid, number)


class Forker:
    """Owns the zygote, which ends with the bridge; a killed one is replaced when it is next needed."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._turn = asyncio.Lock()
        self._socket: socket.socket | None = None
        self._processes: dict[int, Process] = {}
        self._started: asyncio.Future[int] | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self, connection_file: Path, outputs: Sequence[int]) -> Process:
        """Fork a kernel. Raises: KernelFailed."""
        async with self._turn:
            if self._socket is None:
                await self._start_zygote()
            assert self._socket is not None
            self._started = asyncio.get_running_loop().create_future()
            try:
                socket.send_fds(self._socket, [os.fsencode(connection_file)], list(outputs))
                pid = await self._started
            except OSError as error:
                raise KernelFailed(f"cannot start a kernel: {error}") from error
            return self._processes[pid]

    async def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        account = self._account
        who = {"uid": account.uid, "gid": account.gid, "groups": account.groups}
        ours.setblocking(False)
        with theirs:
            zygote = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(PROGRAM),
                json.dumps(who),
                stdin=theirs.fileno(),
                cwd="/",
                env=dict(account.env),
            )
        self._socket = ours
        self._following = asyncio.create_task(self._follow(ours, zygote))

    async def _follow(self, peer: socket.socket, zygote: asyncio.subprocess.Process) -> None:
        with peer, contextlib.suppress(OSError):
            while message := await asyncio.get_running_loop().sock_recv(peer, _MESSAGE_SIZE):
                self._note(json.loads(message))
        await zygote.wait()
        self._give_up()

    def _note(self, message: Mapping[str, int]) -> None:
        if "started" in message:
            pid = message["started"]
            self._processes[pid] = Process(pid)
            if self._started is not None and not self._started.done():
                self._started.set_result(pid)
        elif (process := self._processes.pop(message["ended"], None)) is not None:
            process.end(message["status"])

    def _give_up(self) -> None:
        """The zygote is gone, and its kernels with it."""
        self._socket = None
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.signal(signal.SIGKILL)
            process.end(-signal.SIGKILL)
        if self._started is not None and not self._started.done():
            self._started.set_exception(ConnectionResetError("the process that kernels are forked from was killed"))
