"""A kernel process and the channels to it: Jupyter's messaging protocol (version 5.3) over ZeroMQ.

A kernel runs as the sandbox's user, in a session of its own; its sockets lie in a directory that only that user and
root can enter. Whatever it says is passed on as data, never acted on beyond its own run.
"""

import asyncio
import codecs
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from forking import Account, Forker, KernelFailed, Process

CONNECTION = "connection.json"
START_LIMIT = 60.0
# A subscription takes effect some time after it was made, and nothing says when.
GREETING_INTERVAL = 0.1
# What a finished run has written is in the pipes by then; what goes on writing is not waited for.
DRAIN_READS = 64
READ_SIZE = 65536
LAST_WORDS = 500
_DELIMITER = b"<IDS|MSG>"
_PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}

Content = Mapping[str, Any]


class Listener:
    """What a run is told. `begun` is set when it has the kernel's attention, `ended` once: "idle" or "died"."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def message(self, kind: str, content: Content) -> None:
        raise NotImplementedError

    def text(self, stream: str, text: str) -> None:
        raise NotImplementedError

    async def wait_ended(self, seconds: float | None) -> bool:
        """Whether it ended within so many seconds (None: as many as it takes)."""
        done, _ = await asyncio.wait([self.ended], timeout=seconds)
        return bool(done)

    def end(self, how: str) -> None:
        self.begun.set()
        if not self.ended.done():
            self.ended.set_result(how)


class Greeting(Listener):
    """Of a new kernel: that it answers, and what it says if it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def message(self, kind: str, content: Content) -> None:
        pass

    def text(self, stream: str, text: str) -> None:
        self.said = (self.said + text)[-LAST_WORDS:]


class Kernel:
    """A live kernel. Made by `start`; whoever has it ends it with `kill`."""

    def __init__(self, directory: Path, process: Process, key: bytes, zmq_context: Any) -> None:
        self.directory = directory
        self.process = process
        self.end_reason = ""
        """why we ended it, if we did"""
        self._key = key
        self._session = uuid.uuid4().hex
        self._listener: Listener | None = None
        self._waiting_for = ""
        self._pipes: list[_Pipe] = []
        self._shell = zmq_context.socket(zmq.DEALER)
        self._iopub = zmq_context.socket(zmq.SUB)
        self._iopub.rcvhwm = 0
        self._iopub.subscribe(b"")
        for socket, name in ((self._shell, "shell"), (self._iopub, "iopub")):
            socket.linger = 0
            socket.connect(f"ipc://{directory}/c-{_PORTS[name]}")
        self._tasks = [asyncio.create_task(task) for task in (self._follow(), self._skip_replies(), self._reap())]

    @classmethod
    async def start(cls, directory: Path, account: Account, forker: Forker, zmq_context: Any) -> "Kernel":
        """A kernel that answers. Raises: KernelFailed."""
        key = secrets.token_hex(32).encode()
        _prepare(directory, account, key)
        outputs = {"stdout": os.pipe(), "stderr": os.pipe()}
        try:
            process = await forker.start(directory / CONNECTION, [ends[1] for ends in outputs.values()])
        except BaseException:
            for read_end, _ in outputs.values():
                os.close(read_end)
            raise
        finally:
            for _, write_end in outputs.values():
                os.close(write_end)
        kernel = cls(directory, process, key, zmq_context)
        kernel._pipes = [_Pipe(ends[0], name, kernel._text) for name, ends in outputs.items()]
        await kernel._greet()
        await kernel._warm_up()
        return kernel

    @property
    def alive(self) -> bool:
        return self.process.status is None

    async def _greet(self) -> None:
        deadline = asyncio.get_running_loop().time() + START_LIMIT
        listener = Greeting()
        patience = GREETING_INTERVAL
        while asyncio.get_running_loop().time() < deadline:
            listener = Greeting()
            self._send("kernel_info_request", {}, {}, listener)
            if await listener.wait_ended(patience):
                if listener.ended.result() == "idle":
                    return
                break
            patience *= 2  # or a kernel on a busy machine would never catch up with the greetings
        await self.kill("")
        raise KernelFailed(f"cannot start a kernel: it did not answer; it said {listener.said.strip()!r}")

    async def _warm_up(self) -> None:
        """The first code that a kernel runs costs it 50 ms that later code does not."""
        greeting = Greeting()
        self.execute("None", {"settle": True}, greeting)
        await greeting.wait_ended(START_LIMIT)

    # -- running --------------------------------------------------------------------------------------------------

    def execute(self, code: str, settings: Content, listener: Listener) -> None:
        """Begin to run code; one at a time. `settings`: env, cwd, settle, as sandboxd_kernel has them."""
        content = {
            "code": code,
            "silent": bool(settings.get("settle")),
            "store_history": not settings.get("settle"),
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        if not self.alive:
            listener.end("died")
            return
        for pipe in self._pipes:
            pipe.forget()  # whatever an earlier run left running has written since: nobody asked for it
        self._send("execute_request", content, {"sandboxd": dict(settings)}, listener)

    def interrupt(self) -> None:
        self.process.signal(signal.SIGINT)

    async def kill(self, reason: str) -> None:
        """End it and what it started in its session. Its listener is told that it died."""
        self.end_reason = self.end_reason or reason
        self.process.signal(signal.SIGKILL)
        await self.process.wait()
        self._died()

    def how_it_ended(self) -> str:
        """For people; only when it is dead."""
        if self.end_reason:
            return self.end_reason
        status = self.process.status or 0
        if status < 0:
            return f"the kernel was ended by {_signal_name(-status)}"
        return f"the kernel exited with status {status}"

    # -- the protocol ---------------------------------------------------------------------------------------------

    def _send(self, kind: str, content: Content, metadata: Content, listener: Listener) -> None:
        self._waiting_for = uuid.uuid4().hex
        header = {
            "msg_id": self._waiting_for,
            "session": self._session,
            "username": "sandboxd",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": kind,
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, metadata, content)]
        signature = hmac.new(self._key, b"".join(parts), hashlib.sha256).hexdigest().encode()
        self._listener = listener
        self._shell.send_multipart([_DELIMITER, signature, *parts])

    async def _follow(self) -> None:
        while True:
            frames = await self._iopub.recv_multipart()
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
                self._dispatch(frames)

    def _dispatch(self, frames: list[bytes]) -> None:
        start = frames.index(_DELIMITER) + 2
        header, parent = json.loads(frames[start]), json.loads(frames[start + 1])
        listener = self._listener
        if listener is None or parent.get("msg_id") != self._waiting_for:
            return
        kind, content = header["msg_type"], json.loads(frames[start + 3])
        if kind == "status":
            if content["execution_state"] == "idle":
                self._finish(listener)
            return
        for pipe in self._pipes:
            pipe.drain()  # it was printed before
        listener.begun.set()
        listener.message(kind, content)

    def _finish(self, listener: Listener) -> None:
        for pipe in self._pipes:
            pipe.drain()
        self._listener = None
        listener.end("idle")

    def _text(self, stream: str, text: str) -> None:
        if self._listener is not None:
            self._listener.text(stream, text)

    async def _skip_replies(self) -> None:
        while True:  # they say nothing that was not published
            await self._shell.recv_multipart()

    async def _reap(self) -> None:
        await self.process.wait()
        self._died()

    def _died(self) -> None:
        for pipe in self._pipes:
            pipe.drain()
            pipe.close()
        self._pipes = []
        if self._listener is not None:
            self._listener.end("died")
            self._listener = None
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._shell.close()
        self._iopub.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class _Pipe:
    """The read end of a kernel's descriptor 1 or 2."""

    def __init__(self, descriptor: int, name: str, text: Callable[[str, str], None]) -> None:
        self._descriptor = descriptor
        self._name = name
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            return False
        self._text(self._name, self._decoder.decode(data))
        return True

    def drain(self) -> None:
        for _ in range(DRAIN_READS):
            if not self._read():
                return

    def forget(self) -> None:
        self.drain()
        self._decoder.reset()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)


def _prepare(directory: Path, account: Account, key: bytes) -> None:
    """The directory of a kernel's sockets, and the file that tells it where they are."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    connection = {
        "transport": "ipc",
        "ip": str(directory / "c"),
        "key": key.decode(),
        "signature_scheme": "hmac-sha256",
        **{f"{name}_port": port for name, port in _PORTS.items()},
    }
    file = directory / CONNECTION
    file.write_text(json.dumps(connection))
    for path in (file, directory):
        os.chown(path, account.uid, account.gid)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
