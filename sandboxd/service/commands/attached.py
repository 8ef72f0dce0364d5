"""Commands in a sandbox, attached: started, fed, listened to, and ended with their whole process tree.

sandbox-init keeps the processes and their output; this is the daemon's view of one connection to it. Output is
lossless while we are attached (init holds the command back rather than drop bytes), a command's time limit is kept
whether or not anybody reads, and leaving the block before the command ended kills its tree.
"""

import contextlib
import errno
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import trio

from sandboxd.errors import (
    Conflict,
    Forbidden,
    NotFound,
    SandboxdError,
    SandboxLost,
    TooManyRequests,
    Unprocessable,
    ungrouped,
)
from sandboxd.isolation.init import client as init_client
from sandboxd.isolation.init.client import Attachment, InitClient, InitError, InitGone, SpawnRequest
from sandboxd.isolation.init.messages import Exited, Gap, StdinAck, StdinClosed
from sandboxd.isolation.init.wire import Flag, Output, Scope, StdinMode, Stream, WireError
from sandboxd.model import (
    CommandEvent,
    CommandExited,
    CommandSpec,
    CommandStarted,
    OutputChunk,
    OutputGap,
    StdinAccepted,
    StreamName,
    TerminalSize,
)
from sandboxd.service.output_memory import KeptOutput, OutputMemory
from sandboxd.service.sandboxes.entry import Entry

log = logging.getLogger(__name__)

SHELLS = ("/bin/bash", "/bin/sh")
# Enough for sandbox-init to walk and kill a large tree; a machine that needs longer is being deleted anyway.
KILL_LIMIT = 10.0
KILL_RETRY = 1.0
# Nobody attaches later, so the ring is only a buffer between the command and us; and sandbox-init keeps the rings of
# the last ended commands.
RING_SIZE = 256 * 1024

# Whom a signal to a command is for: its first process, the group of that, or all that the command has started.
SIGNAL_SCOPES = {"leader": Scope.LEADER, "group": Scope.GROUP, "tree": Scope.TREE}

STREAMS = {Stream.STDOUT: StreamName.STDOUT, Stream.STDERR: StreamName.STDERR}


class RunningCommand:
    """One attached command. Made by `attached_command` only.

    Raises (every method): SandboxLost when the sandbox ended under it.
    """

    def __init__(self, entry: Entry, init: InitClient, attachment: Attachment, started: CommandStarted) -> None:
        self.started = started
        self._entry = entry
        self._init = init
        self._attachment = attachment
        self._kills_before = _counted_kills(entry)
        self._timed_out = False
        self._killing: trio.Event | None = None
        """set when the kill is done that was begun last"""
        self.exited: CommandExited | None = None

    async def receive(self) -> CommandEvent:
        """The next event; after CommandExited there is none."""
        with init_errors(self._entry):
            event = self._translate(await self._attachment.receive())
        if isinstance(event, CommandExited):
            await self._finish_killing()
        return event

    async def send_stdin(self, data: bytes) -> None:
        """Returns when sandbox-init has room for it, not when the command has read it."""
        with init_errors(self._entry):
            await self._attachment.send_stdin(data)

    async def close_stdin(self) -> None:
        with init_errors(self._entry):
            await self._attachment.close_stdin()

    async def resize(self, size: TerminalSize) -> None:
        with init_errors(self._entry):
            await self._init.resize(self.started.id, size)

    async def signal(self, number: int, scope: Scope) -> None:
        """Send a signal; one to a command that just ended is fine."""
        with init_errors(self._entry):
            try:
                await self._init.signal(self.started.id, number, scope=scope)
            except InitError as error:
                if error.kind not in {"unknown", "ended"}:
                    raise

    async def kill(self) -> None:
        """SIGKILL the command and everything it started, whatever session that moved to."""
        with self._killing_it():
            await self._kill_tree()

    async def kill_after(self, seconds: float) -> None:
        """A task beside the reader: the time limit, which stands still with the sandbox."""
        await self._entry.sleep_awake(seconds)
        self._timed_out = True
        with self._killing_it():
            while True:
                if await self._try_kill():
                    return
                await trio.sleep(KILL_RETRY)

    async def _kill_tree(self) -> None:
        await self.signal(signal.SIGKILL, Scope.TREE)

    async def _try_kill(self) -> bool:
        try:
            await self._kill_tree()
        except (
            Unprocessable,
            TooManyRequests,
        ) as error:  # a bomb outran it, something sleeps in the kernel, or many kill
            log.warning("command %d of %s: %s", self.started.id, self._entry.sandbox.id, error)
            return False
        return True

    @contextlib.contextmanager
    def _killing_it(self) -> Iterator[None]:
        done = self._killing = trio.Event()
        try:
            yield
        finally:
            done.set()

    async def _finish_killing(self) -> None:
        """Until a kill that was begun is done: the first process goes early, the last one late."""
        if self._killing is not None:
            with trio.move_on_after(KILL_LIMIT):
                await self._killing.wait()

    def _translate(self, event: init_client.Event) -> CommandEvent:
        match event:
            case Output():
                return OutputChunk(STREAMS[event.stream], event.offset, event.data)
            case Gap():
                return OutputGap(STREAMS[event.stream], event.end - event.start)
            case StdinAck():
                return StdinAccepted(event.bytes)
            case StdinClosed():
                return StdinAccepted(0, closed=True)
            case Exited():
                self.exited = self._exited(event)
                return self.exited

    def _exited(self, message: Exited) -> CommandExited:
        before = self._kills_before
        oom_killed = before is not None and (_counted_kills(self._entry) or 0) > before
        return command_exited(message, timed_out=self._timed_out, oom_killed=oom_killed)


def command_exited(message: Exited, *, timed_out: bool, oom_killed: bool) -> CommandExited:
    """A command's end as sandbox-init tells it, in the service's words."""
    return CommandExited(
        exit_code=message.exit_code,
        signal=message.exit_signal,
        duration=max(0, message.ended_at_ms - message.started_at_ms) / 1000,
        timed_out=timed_out,
        oom_killed=oom_killed,
        output_incomplete=Flag.OUTPUT_INCOMPLETE in message.flags,
        cpu_time=(message.user_time_us + message.system_time_us) / 1e6,
        max_rss=message.max_rss_kb * 1024,
    )


@contextlib.asynccontextmanager
async def attached_command(entry: Entry, spec: CommandSpec) -> AsyncIterator[RunningCommand]:
    """Start a command and stay with it.

    Owns: the connection to sandbox-init and the command's tree until it exited. Cancelled (or left early): the tree
    is killed. Raises: Conflict, InvalidRequest, Unprocessable, SandboxLost.
    """
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(entry.use())
        request = spawn_request(entry, spec)
        with init_errors(entry):
            attachment = await spawn(stack, running.init, request, shell=spec.shell)
        started = CommandStarted(attachment.command, attachment.pid or 0)
        command = RunningCommand(entry, running.init, attachment, started)
        if spec.timeout is not None:
            await stack.enter_async_context(beside(command.kill_after, spec.timeout))
        try:
            yield command
        finally:
            if command.exited is None:
                await _kill_unheard(command)


@contextlib.asynccontextmanager
async def beside(task: Callable[..., Awaitable[None]], *arguments: object) -> AsyncIterator[None]:
    """Run a task beside the block, at most as long as that; a domain error comes out as itself."""
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task, *arguments)
            yield
            nursery.cancel_scope.cancel("the block has ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A command that has ended, and what was kept of its output."""

    stdout: KeptOutput
    stderr: KeptOutput
    exited: CommandExited

    @property
    def truncated(self) -> bool:
        return self.stdout.omitted > 0 or self.stderr.omitted > 0

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(kept.total - kept.omitted for kept in (self.stdout, self.stderr))


async def run_to_end(
    entry: Entry, spec: CommandSpec, *, stdin: bytes, max_output: int, memory: OutputMemory
) -> CommandResult:
    """Run a command and collect its output, at most `max_output` bytes of each stream.

    Raises also: TooManyRequests, Unavailable when there is no memory for output; then nothing was started.
    """
    owner = entry.sandbox.spec.owner
    collected = {stream: KeptOutput(memory.share(owner), max_output) for stream in StreamName}
    async with attached_command(entry, spec) as command, contextlib.AsyncExitStack() as stack:
        if spec.stdin:
            await stack.enter_async_context(beside(feed, command, stdin))
        while not isinstance(event := await command.receive(), CommandExited):
            if isinstance(event, OutputChunk):
                collected[event.stream].add(event.data)
    return CommandResult(stdout=collected[StreamName.STDOUT], stderr=collected[StreamName.STDERR], exited=event)


async def feed(command: RunningCommand, data: bytes) -> None:
    """Give a command all of its stdin, at the pace at which it reads."""
    await command.send_stdin(data)
    await command.close_stdin()


async def spawn(
    stack: contextlib.AsyncExitStack, init: InitClient, request: SpawnRequest, *, shell: bool
) -> Attachment:
    """Start it; for a shell command, with the first shell that the image has."""
    keep = request.stdin is StdinMode.NULL and request.terminal is None
    if not shell:
        return await stack.enter_async_context(init.spawn_attached(request, lossless=True, keep=keep))
    for program in SHELLS:
        shell_request = replace(request, argv=(program, "-c", *request.argv))
        try:
            return await stack.enter_async_context(init.spawn_attached(shell_request, lossless=True, keep=keep))
        except InitError as error:
            if error.kind != "program" or program == SHELLS[-1]:
                raise
    raise AssertionError("unreachable")


async def _kill_unheard(command: RunningCommand) -> None:
    with trio.move_on_after(KILL_LIMIT, shield=True), contextlib.suppress(SandboxdError):
        await command.kill()


def spawn_request(entry: Entry, spec: CommandSpec, *, label: bytes = b"", ring_size: int = RING_SIZE) -> SpawnRequest:
    """A command in sandbox-init's terms, with what the sandbox gives to all its commands."""
    sandbox, terminal = entry.sandbox.spec, spec.terminal
    return SpawnRequest(
        argv=spec.argv,
        env={**sandbox.env, **spec.env},
        cwd=spec.cwd or sandbox.workdir,
        user=spec.user or sandbox.user,
        stdin=StdinMode.PIPE if spec.stdin or terminal else StdinMode.NULL,
        terminal=terminal,
        ring_size=ring_size,
        label=label,
    )


@contextlib.contextmanager
def init_errors(entry: Entry) -> Iterator[None]:
    """sandbox-init's refusals and failures in the service's words."""
    try:
        yield
    except InitError as error:
        raise _refused(error) from error
    except ValueError as error:  # it cannot be said in init's protocol: too many arguments, too large an environment
        raise Unprocessable(str(error), kind="too_large") from error
    except (InitGone, WireError, OSError) as error:
        raise SandboxLost(f"cannot go on: sandbox {entry.sandbox.id} ended under the operation ({error})") from error


_KINDS = {"cwd": "bad_cwd", "user": "unknown_user", "program": "program_not_found"}
_BY_ERRNO = {
    errno.ENOENT: NotFound,
    errno.EACCES: Forbidden,
    errno.EPERM: Forbidden,
    errno.EROFS: Forbidden,
    errno.EEXIST: Conflict,
}


def _refused(error: InitError) -> SandboxdError:
    """What init would not do, by what was at fault: the command's own terms, or a file."""
    if error.kind == "too_many":
        return TooManyRequests(f"{error.message} in one sandbox; end some of them first", kind="too_many_operations")
    kind = _KINDS.get(error.kind, error.kind)
    found = _BY_ERRNO.get(error.errno, Unprocessable) if error.kind == "file" else Unprocessable
    return found(error.message, kind=kind, errno=error.errno)


def oom_kills(entry: Entry) -> int:
    """How many processes of the sandbox the kernel has killed for memory, as far as it counts them."""
    return _counted_kills(entry) or 0


def _counted_kills(entry: Entry) -> int | None:
    return entry.running.oom_kills() if entry.running else None
