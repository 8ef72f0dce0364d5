"""Stateful code execution: the daemon's side of the code bridge that lives in the sandbox.

Each request is a connection of its own to the bridge's socket, through sandbox-init. So nothing of a run is kept
here: a client that leaves closes the connection, and the bridge interrupts the run; a daemon that dies does the same
to all of them; and the next daemon finds bridge, kernels and variables as they were.

The bridge is a command with a label, started when it is first needed, or with the sandbox so that a kernel is ready
before anybody asks.
"""

import contextlib
import logging
import math
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

import trio

from sandboxd.config import CodeConfig
from sandboxd.errors import Conflict, SandboxdError, SandboxLost, Unprocessable
from sandboxd.isolation.init.client import Attachment, InitClient, InitError, SpawnRequest
from sandboxd.isolation.init.messages import Exited, Listed
from sandboxd.isolation.init.wire import CommandState, Output, Scope, Stream
from sandboxd.model import Image
from sandboxd.service.code.bounded_json import TooMuchJson
from sandboxd.service.code.protocol import (
    BridgeError,
    LineSplitter,
    RunDecoder,
    decode_context,
    decode_contexts,
    encode_request,
    encode_run,
    is_large,
)
from sandboxd.service.code.values import (
    CodeContext,
    CodeLimits,
    CodeSpec,
    Execution,
    RunBegun,
    RunEnded,
    RunError,
    RunEvent,
)
from sandboxd.service.commands.attached import init_errors, oom_kills
from sandboxd.service.output_memory import OutputMemory, Share
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.threads import run_in_thread

log = logging.getLogger(__name__)

PROGRAM: Final = "/usr/lib/sandboxd/code-bridge"
SOCKET: Final = "/run/sandboxd-code/bridge"
LABEL: Final = b"sandboxd code"
"""of the bridge, among the sandbox's commands"""
# It says one word, and why it failed if it does.
RING_SIZE: Final = 64 * 1024
START_LIMIT: Final = 60.0
# An answer that needs no kernel.
ANSWER_LIMIT: Final = 10.0
# What the bridge may need, after a run's own limit, to interrupt it and to kill it.
STOP_LIMIT: Final = 20.0
# Less memory than this holds one kernel with pandas and little else.
MEMORY_FOR_SPARES: Final = 512 * 1024 * 1024
# Of the smallest messages, as many as are decoded without anybody waiting for it.
_RECEIVE_SIZE: Final = 64 * 1024
_MAX_ANSWER: Final = 1024 * 1024
# For a processor: what is decoded beside is decoded no sooner.
_decoders: Final = trio.CapacityLimiter(2)
_T = TypeVar("_T")


class CodeRun:
    """A run under way. Made by `Code.run` only."""

    def __init__(
        self, entry: Entry, answer: "_Answer", spec: CodeSpec, limits: CodeLimits, share: Share, *, whole: bool
    ) -> None:
        self.share = share
        """of the memory for output: what has been read of a line, and with `whole` all that has been received"""
        self._whole = whole
        self._kept = 0
        self._entry = entry
        self._answer = answer
        self._spec = spec
        self._decoder = RunDecoder(limits)
        self._events: list[RunEvent] = []
        self._deadline = float("inf")
        self._oom_before = oom_kills(entry)
        self.ended = False

    async def receive(self) -> RunEvent:
        """The next event; RunEnded is the last.

        Raises: NotFound, TooManyRequests, Unprocessable, SandboxLost, Unavailable.
        """
        while not self._events:
            self._events = self._told(await self._more())
        event = self._events.pop(0)
        if isinstance(event, RunBegun) and self._spec.timeout is not None:
            self._deadline = trio.current_time() + self._spec.timeout + STOP_LIMIT
        self.ended = isinstance(event, RunEnded)
        return event

    async def _more(self) -> list[RunEvent]:
        try:
            # However late our own reader is: what has come already is heard.
            with trio.fail_at(max(self._deadline, trio.current_time() + ANSWER_LIMIT)):
                data = await self._answer.receive()
            if data:
                lines = self._decoder.lines(data)
                self._kept += sum(map(len, lines)) if self._whole else 0
                self.share.require(self._kept + self._decoder.buffered)
                return [event for line in lines for event in await self._decode(line)]
            raise BridgeError("it ended")
        except trio.TooSlowError:
            return _cut_short("ExecutionTimeout", "the sandbox did not stop the code when its time was over")
        except (BridgeError, trio.BrokenResourceError) as error:
            _still_there(self._entry)
            return _cut_short("KernelDied", f"what runs kernels in the sandbox failed: {error}")

    async def _decode(self, line: bytes) -> tuple[RunEvent, ...]:
        if is_large(line):
            return await run_in_thread(self._decoder.decode, line, limiter=_decoders)
        return self._decoder.decode(line)

    def _told(self, events: list[RunEvent]) -> list[RunEvent]:
        """With the reason that only the host knows."""
        return [self._with_reason(event) if isinstance(event, RunError) else event for event in events]

    def _with_reason(self, error: RunError) -> RunError:
        if error.name != "KernelDied" or oom_kills(self._entry) <= self._oom_before:
            return error
        return RunError(error.name, f"{error.value} (the sandbox ran out of memory)", error.traceback)


def _still_there(entry: Entry) -> None:
    """That something inside failed is worth telling only then. Raises: SandboxLost."""
    try:
        entry.require_running()
    except Conflict as error:
        raise SandboxLost(f"cannot go on: sandbox {entry.sandbox.id} ended under the operation") from error


def _cut_short(name: str, value: str) -> list[RunEvent]:
    return [RunError(name, value, ""), RunEnded(0, truncated=True)]


class Code:
    """Runs code in sandboxes whose image has the bridge."""

    def __init__(self, config: CodeConfig, memory: OutputMemory) -> None:
        self._config = config
        self._memory = memory
        self._limits = CodeLimits(output=config.max_output, results=config.max_results)
        self._starting: WeakKeyDictionary[Entry, trio.Lock] = WeakKeyDictionary()

    # -- running --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def run(self, entry: Entry, spec: CodeSpec, *, whole: bool = False) -> AsyncIterator[CodeRun]:
        """Run code in its turn. Cancelled (or left early): it is interrupted. `whole`: all its events will be kept.

        Raises: Conflict, Unprocessable (an image without the bridge), SandboxLost, TooManyRequests, Unavailable.
        """
        share = self._memory.share(entry.sandbox.spec.owner)
        async with self._request(entry, encode_run(spec, self._limits)) as answer:
            yield CodeRun(entry, answer, spec, self._limits, share, whole=whole)

    async def run_to_end(self, entry: Entry, spec: CodeSpec) -> Execution:
        """Raises: as `run` and CodeRun.receive."""
        async with self.run(entry, spec, whole=True) as run:
            execution = Execution(run.share)
            while not run.ended:
                execution.add(await run.receive())
        return execution

    async def check(self, entry: Entry, spec: CodeSpec) -> None:
        """That a run can begin, as far as that is known beforehand. Raises: as `run`, and NotFound."""
        if spec.context is not None:
            await self.context(entry, spec.context)
        else:
            await self._prepare(entry)

    # -- contexts -------------------------------------------------------------------------------------------------

    async def contexts(self, entry: Entry) -> tuple[CodeContext, ...]:
        """All contexts, oldest first. Raises: Conflict, Unprocessable, SandboxLost."""
        return await self._ask(entry, encode_request("list"), decode_contexts)

    async def create_context(self, entry: Entry, *, cwd: str | None, env: dict[str, str]) -> CodeContext:
        """Raises: Conflict, Unprocessable, TooManyRequests, SandboxLost."""
        return await self._ask(entry, encode_request("create", cwd=cwd, env=env), decode_context)

    async def context(self, entry: Entry, context: str) -> CodeContext:
        """Raises: NotFound, Conflict, Unprocessable, SandboxLost."""
        return await self._change(entry, "get", context)

    async def restart_context(self, entry: Entry, context: str) -> CodeContext:
        """Its variables are gone after this; a run under way ends with an error. Raises: as `context`."""
        return await self._change(entry, "restart", context)

    async def interrupt_context(self, entry: Entry, context: str) -> CodeContext:
        """A KeyboardInterrupt in what it runs now, if anything. Raises: as `context`."""
        return await self._change(entry, "interrupt", context)

    async def delete_context(self, entry: Entry, context: str) -> CodeContext:
        """Raises: as `context`."""
        return await self._change(entry, "delete", context)

    async def _change(self, entry: Entry, operation: str, context: str) -> CodeContext:
        return await self._ask(entry, encode_request(operation, context=context), decode_context)

    async def _ask(self, entry: Entry, request: bytes, decode: Callable[[bytes], _T]) -> _T:
        try:
            async with self._request(entry, request, limit=ANSWER_LIMIT) as answer:
                with trio.fail_after(ANSWER_LIMIT):
                    line = await _line(answer)
                    return await run_in_thread(decode, line, limiter=_decoders) if is_large(line) else decode(line)
        except (BridgeError, TooMuchJson, trio.BrokenResourceError, trio.TooSlowError) as error:
            _still_there(entry)
            raise Unprocessable(
                f"cannot manage the contexts of sandbox {entry.sandbox.id}: what runs kernels in it failed ({error})",
                kind="kernel_failed",
            ) from error

    # -- the bridge -----------------------------------------------------------------------------------------------

    def prestart(self, entry: Entry, image: Image) -> None:
        """Begin to have a kernel ready in a new sandbox, if its image has kernels and there is memory for it."""
        has_kernels = (image.rootfs / PROGRAM[1:]).is_dir()
        if has_kernels and self._ready(entry) > 0:
            with contextlib.suppress(SandboxdError):  # deleted already
                entry.start_resident(self._prepare, entry)

    async def _prepare(self, entry: Entry) -> None:
        await (await self._connect(entry)).aclose()

    def _ready(self, entry: Entry) -> int:
        memory = entry.sandbox.spec.limits.memory
        return self._config.ready_kernels if memory is None or memory >= MEMORY_FOR_SPARES else 0

    @contextlib.asynccontextmanager
    async def _request(self, entry: Entry, request: bytes, *, limit: float = math.inf) -> AsyncIterator["_Answer"]:
        """Send a request; the block gets the answer, once it begins. `limit`: seconds for that, with a bridge there.

        Raises: trio.TooSlowError.
        """
        async with contextlib.AsyncExitStack() as stack:
            answer = await self._try(stack, entry, request, limit)
            if not answer.first:
                # A bridge that was killed takes connections until its last moment, but no requests: the next will.
                _still_there(entry)
                answer = await self._try(stack, entry, request, limit)
            yield answer

    async def _try(self, stack: contextlib.AsyncExitStack, entry: Entry, request: bytes, limit: float) -> "_Answer":
        stream = await self._connect(entry)
        stack.push_async_callback(trio.aclose_forcefully, stream)
        stack.enter_context(entry.in_use())
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(limit):
            await stream.send_all(request)
            return _Answer(stream, await stream.receive_some(_RECEIVE_SIZE))
        return _Answer(stream, b"")

    async def _connect(self, entry: Entry) -> trio.SocketStream:
        """To the bridge, started if need be. Raises: Conflict, Unprocessable, SandboxLost."""
        init = (await entry.ready()).init
        with init_errors(entry):
            stream = await _reach(init)
            if stream is not None:
                return stream
            async with self._starting.setdefault(entry, trio.Lock()):
                stream = await _reach(init)
                if stream is not None:
                    return stream
                with _failing_after(START_LIMIT, entry):
                    await self._start(entry, init)
                return await init.connect_socket(SOCKET)

    async def _start(self, entry: Entry, init: InitClient) -> None:
        """Until a bridge listens: one that an earlier daemon began to start, or a new one."""
        await _require_program(init, entry)
        for command in await init.commands():
            if command.label == LABEL:
                if command.state is CommandState.RUNNING and command.stdout_total == 0:
                    async with init.attach(command.command) as attachment:
                        await _wait_ready(attachment, entry)
                    return
                await _clear_away(init, command)
        async with init.spawn_attached(self._spawn_request(entry)) as attachment:
            await _wait_ready(attachment, entry)

    def _spawn_request(self, entry: Entry) -> SpawnRequest:
        spec = entry.sandbox.spec
        options = ("--user", spec.user, "--cwd", spec.workdir, "--ready", str(self._ready(entry)))
        return SpawnRequest(
            argv=("/usr/bin/python3", "-I", PROGRAM, *options),
            env=spec.env,
            cwd="/",
            label=LABEL,
            ring_size=RING_SIZE,
        )


class _Answer:
    """What the bridge sends back."""

    def __init__(self, stream: trio.SocketStream, first: bytes | bytearray) -> None:
        self.first = first
        """what came first; empty if nothing did, and nothing will"""
        self._stream = stream
        self._first_is_due = True

    async def receive(self) -> bytes | bytearray:
        """What comes next; empty at the end. Raises: trio.BrokenResourceError."""
        if self._first_is_due:
            self._first_is_due = False
            return self.first
        return await self._stream.receive_some(_RECEIVE_SIZE) if self.first else b""


async def _reach(init: InitClient) -> trio.SocketStream | None:
    """A connection, or None where nothing listens."""
    try:
        return await init.connect_socket(SOCKET)
    except InitError:
        return None


async def _require_program(init: InitClient, entry: Entry) -> None:
    try:
        await init.stat(PROGRAM)
    except InitError as error:
        raise Unprocessable(
            f"cannot run code in sandbox {entry.sandbox.id}: its image {entry.sandbox.spec.image_name!r} has no "
            'kernel. Build one that has with "sandboxctl image build code-interpreter", and create the sandbox with '
            '"image": "code-interpreter" (or make that the default_image of the daemon)',
            kind="no_kernel",
            image=entry.sandbox.spec.image_name,
        ) from error


async def _clear_away(init: InitClient, command: Listed) -> None:
    """A bridge that no longer answers, with its kernels."""
    with contextlib.suppress(InitError):
        await init.signal(command.command, signal.SIGKILL, scope=Scope.TREE)
        await init.release(command.command)


async def _wait_ready(attachment: Attachment, entry: Entry) -> None:
    """Until it says that it listens; whatever it writes to stdout means that."""
    said = b""
    while True:
        event = await attachment.receive()
        if isinstance(event, Output):
            if event.stream is Stream.STDOUT:
                return
            said = (said + event.data)[-1000:]
        if isinstance(event, Exited):
            reason = said.decode("utf-8", "replace").strip() or "it did not say why"
            raise Unprocessable(f"cannot run code in sandbox {entry.sandbox.id}: {reason}", kind="kernel_failed")


@contextlib.contextmanager
def _failing_after(seconds: float, entry: Entry) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise Unprocessable(
            f"cannot run code in sandbox {entry.sandbox.id}: its kernels were not ready within {seconds:g} s",
            kind="kernel_failed",
        )


async def _line(answer: _Answer) -> bytes:
    splitter = LineSplitter(_MAX_ANSWER)
    while data := await answer.receive():
        if lines := splitter.feed(data):
            return lines[0]
    raise BridgeError("it ended")
