"""The blocking client: `AsyncClient` on sockets that block, where its coroutines never suspend.

Every method is the asynchronous one, driven from its start to its end: its signature, its types and its documentation
are that one's. So there is nothing here that could differ from it but how contexts and iterators are entered.
"""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from sandboxd.client.address import Address
from sandboxd.client.api import AsyncClient
from sandboxd.client.background import LogEvent
from sandboxd.client.code import CodeEvent
from sandboxd.client.execution import Conversation, ExecEvent
from sandboxd.client.http import Answer
from sandboxd.client.models import Event, Image, LogRecord, WatchEvent
from sandboxd.client.network import run
from sandboxd.client.network.on_sockets import SocketNetwork
from sandboxd.client.ports import PortStream
from sandboxd.client.ptys import PtyAttachment, PtyEvent

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


# -- from the asynchronous to the blocking ------------------------------------------------------------------------


def _call(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """A coroutine function as a function."""

    @functools.wraps(method)
    def call(self: Any, /, *arguments: P.args, **options: P.kwargs) -> T:
        return run(method(self._core, *arguments, **options))

    return call


def _iterate(method: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """A method that returns an asynchronous iterator, as one that returns an iterator."""

    @functools.wraps(method)
    def iterate(self: Any, /, *arguments: P.args, **options: P.kwargs) -> Iterator[T]:
        return _Iterator(method(self._core, *arguments, **options))

    return iterate


def _enter(
    method: Callable[Concatenate[Any, P], AbstractAsyncContextManager[A]], blocking: Callable[[A], B]
) -> Callable[Concatenate[Any, P], AbstractContextManager[B]]:
    """A method that returns an asynchronous context, as one that returns a context; `blocking` makes its value."""

    @functools.wraps(method)
    def enter(self: Any, /, *arguments: P.args, **options: P.kwargs) -> AbstractContextManager[B]:
        return _Context(method(self._core, *arguments, **options), blocking)

    return enter


class _Iterator(Iterator[T]):
    def __init__(self, core: AsyncIterator[T]) -> None:
        self._core = core

    def __next__(self) -> T:
        try:
            return run(_next(self._core))
        except StopAsyncIteration:
            raise StopIteration from None


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)


class _Context(AbstractContextManager[B]):
    def __init__(self, core: AbstractAsyncContextManager[A], blocking: Callable[[A], B]) -> None:
        self._core = core
        self._blocking: Callable[[Any], B] = blocking

    def __enter__(self) -> B:
        return self._blocking(run(self._core.__aenter__()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return run(self._core.__aexit__(kind, error, trace))


# -- what contexts give -------------------------------------------------------------------------------------------

E = TypeVar("E")


class _Blocking(Generic[A]):
    def __init__(self, core: A) -> None:
        self._core = core


class _BlockingConversation(_Blocking[Any], Generic[E]):
    """With one running command. Iterate over it for its events.

    One thread may send while another receives. In a single thread `send_stdin` receives by itself while it must wait,
    and keeps what comes for the next `receive`.
    """

    def __iter__(self) -> Iterator[E]:
        return _Iterator(self._core)

    def receive(self) -> E:
        """The next event; `Exited` is the last.

        Raises: ApiError, ConnectionLost, TimedOut; StreamEnded after the last.
        """
        event: E = run(self._core.receive())
        return event

    send_stdin = _call(Conversation.send_stdin)
    close_stdin = _call(Conversation.close_stdin)
    resize = _call(Conversation.resize)
    signal = _call(Conversation.signal)
    kill = _call(Conversation.kill)


class BlockingExec(_BlockingConversation[ExecEvent]):
    """A command with live input and output. Leaving its context ends the command if it still runs."""


class BlockingAttachment(_BlockingConversation[PtyEvent]):
    """A place at a terminal. Leaving its context leaves the terminal as it is."""

    take_over = _call(PtyAttachment.take_over)
    release = _call(PtyAttachment.release)

    @property
    def offset(self) -> int:
        """The offset of the byte after the last one received: attach again from there."""
        return int(self._core.offset)


class BlockingPortStream(_Blocking[PortStream]):
    """Bytes to and from a program in a sandbox; each direction ends by itself."""

    send_all = _call(PortStream.send_all)
    send_eof = _call(PortStream.send_eof)
    receive_some = _call(PortStream.receive_some)


class Download(_Blocking[Answer]):
    """What is downloaded: iterate over it for its bytes piece by piece, or `read` all of it."""

    def __iter__(self) -> Iterator[bytes]:
        return _Iterator(self._core)

    read = _call(Answer.read)

    @property
    def size(self) -> int | None:
        """How many bytes it has, where the daemon knows that beforehand."""
        return self._core.size


# -- the client ---------------------------------------------------------------------------------------------------


class Client(_Blocking[AsyncClient]):
    """A daemon's native API, for code without an event loop.

    Owns: its idle connections, closed when its context ends. Safe to use from several threads at once. Every method
    raises ApiError when the daemon refuses, DaemonUnreachable, ConnectionLost or TimedOut.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None, timeout: float | None = None) -> None:
        """`url`: unix:PATH, http://HOST:PORT or https://HOST:PORT; by default SANDBOXD_URL, or this user's daemon.

        `api_key`: by default that of SANDBOXD_API_KEY. `timeout`: for how many seconds the daemon may be silent in
        the middle of a call; None, the default, for ever, since a command may run for hours without a word. Raises:
        ClientError for an address that is none.
        """
        super().__init__(AsyncClient(url, api_key=api_key, network=SocketNetwork(timeout)))

    @property
    def address(self) -> Address:
        """Where the daemon is."""
        return self._core.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; leaving the client's context does it too."""
        run(self._core.__aexit__(None, None, None))

    # The daemon

    health = _call(AsyncClient.health)
    capabilities = _call(AsyncClient.capabilities)

    # Sandboxes

    create = _call(AsyncClient.create)
    get = _call(AsyncClient.get)
    sandboxes = _iterate(AsyncClient.sandboxes)
    delete = _call(AsyncClient.delete)
    metrics = _call(AsyncClient.metrics)

    # Commands

    shell = _call(AsyncClient.shell)
    shell_stream = _enter(AsyncClient.shell_stream, _Iterator[ExecEvent])
    exec = _enter(AsyncClient.exec, BlockingExec)

    # Events and the log

    events = _call(AsyncClient.events)
    follow_events = _enter(AsyncClient.follow_events, _Iterator[Event])
    log = _call(AsyncClient.log)
    follow_log = _enter(AsyncClient.follow_log, _Iterator[LogRecord])

    # Images

    images = _call(AsyncClient.images)
    delete_image = _call(AsyncClient.delete_image)
    import_image = _call(AsyncClient.import_image)
    build_image = _enter(AsyncClient.build_image, _Iterator[str | Image])

    # Keys

    create_key = _call(AsyncClient.create_key)
    keys = _call(AsyncClient.keys)
    revoke_key = _call(AsyncClient.revoke_key)

    # Sleep and lifetime

    pause = _call(AsyncClient.pause)
    resume = _call(AsyncClient.resume)
    stop = _call(AsyncClient.stop)
    start = _call(AsyncClient.start)
    touch = _call(AsyncClient.touch)
    set_timeout = _call(AsyncClient.set_timeout)
    set_idle_timeout = _call(AsyncClient.set_idle_timeout)

    # Background commands

    start_command = _call(AsyncClient.start_command)
    commands = _call(AsyncClient.commands)
    command = _call(AsyncClient.command)
    wait_command = _call(AsyncClient.wait_command)
    command_logs = _call(AsyncClient.command_logs)
    follow_logs = _enter(AsyncClient.follow_logs, _Iterator[LogEvent])
    write_stdin = _call(AsyncClient.write_stdin)
    close_stdin = _call(AsyncClient.close_stdin)
    signal_command = _call(AsyncClient.signal_command)
    kill_command = _call(AsyncClient.kill_command)

    # Terminals

    start_pty = _call(AsyncClient.start_pty)
    ptys = _call(AsyncClient.ptys)
    pty = _call(AsyncClient.pty)
    write_pty = _call(AsyncClient.write_pty)
    read_pty = _call(AsyncClient.read_pty)
    resize_pty = _call(AsyncClient.resize_pty)
    kill_pty = _call(AsyncClient.kill_pty)
    attach_pty = _enter(AsyncClient.attach_pty, BlockingAttachment)

    # Files

    upload = _call(AsyncClient.upload)
    download = _enter(AsyncClient.download, Download)
    upload_part = _call(AsyncClient.upload_part)
    upload_state = _call(AsyncClient.upload_state)
    drop_upload = _call(AsyncClient.drop_upload)
    read_text = _call(AsyncClient.read_text)
    read_bytes = _call(AsyncClient.read_bytes)
    append = _call(AsyncClient.append)
    upload_archive = _call(AsyncClient.upload_archive)
    download_archive = _enter(AsyncClient.download_archive, Download)
    list_files = _iterate(AsyncClient.list_files)
    stat = _call(AsyncClient.stat)
    exists = _call(AsyncClient.exists)
    mkdir = _call(AsyncClient.mkdir)
    remove = _call(AsyncClient.remove)
    move = _call(AsyncClient.move)
    copy = _call(AsyncClient.copy)
    symlink = _call(AsyncClient.symlink)
    chmod = _call(AsyncClient.chmod)
    chown = _call(AsyncClient.chown)

    # Watches

    watch = _call(AsyncClient.watch)
    watches = _call(AsyncClient.watches)
    poll_watch = _call(AsyncClient.poll_watch)
    follow_watch = _enter(AsyncClient.follow_watch, _Iterator[WatchEvent])
    stop_watch = _call(AsyncClient.stop_watch)

    # Code

    run_code = _call(AsyncClient.run_code)
    run_code_stream = _enter(AsyncClient.run_code_stream, _Iterator[CodeEvent])
    contexts = _call(AsyncClient.contexts)
    create_context = _call(AsyncClient.create_context)
    restart_context = _call(AsyncClient.restart_context)
    interrupt_context = _call(AsyncClient.interrupt_context)
    delete_context = _call(AsyncClient.delete_context)

    # Ports

    expose = _call(AsyncClient.expose)
    conceal = _call(AsyncClient.conceal)
    ports = _call(AsyncClient.ports)
    connect_port = _enter(AsyncClient.connect_port, BlockingPortStream)

    # Snapshots and storage

    take_snapshot = _call(AsyncClient.take_snapshot)
    snapshots = _iterate(AsyncClient.snapshots)
    snapshot = _call(AsyncClient.snapshot)
    delete_snapshot = _call(AsyncClient.delete_snapshot)
    clone = _call(AsyncClient.clone)
    restore = _call(AsyncClient.restore)
    export_snapshot = _enter(AsyncClient.export_snapshot, Download)
    import_snapshot = _call(AsyncClient.import_snapshot)
    storage = _call(AsyncClient.storage)
    collect_storage = _call(AsyncClient.collect_storage)
