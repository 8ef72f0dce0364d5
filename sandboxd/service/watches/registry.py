"""Watches: what happens to the files below a directory of a sandbox, for those who poll and those who listen.

sandbox-init watches from inside (isolation/init/watches.py); a resident task per watch brings what it tells into the
watch's queue. Definitions are in the store: a watch outlives the daemon, and the sandbox's being stopped. It is then
begun again and says so with an overflow event. It ends with its directory, or with the sandbox.
"""

import logging
import posixpath
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from errno import EACCES, EAGAIN, EMFILE, ENFILE, ENOENT, ENOSPC, ENOTDIR
from weakref import WeakKeyDictionary

import trio

from sandboxd import clock
from sandboxd.errors import NotFound, SandboxdError, SandboxLost, TooManyRequests, Unprocessable
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.init import wire
from sandboxd.isolation.init.client import InitError, InitGone
from sandboxd.isolation.init.wire import WireError
from sandboxd.model import (
    OverflowReason,
    SandboxState,
    StoredWatch,
    WatchEvent,
    WatchSpec,
)
from sandboxd.service.commands.attached import init_errors
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.watches.intake import Intake, Pace
from sandboxd.service.watches.queue import WatchQueue, cursor_after
from sandboxd.store import Store

# Of one pattern of what is not to be watched, in bytes, and of patterns: as much as sandbox-init takes.
MAX_PATTERN = wire.MAX_PATTERN
MAX_PATTERNS = wire.MAX_PATTERNS

log = logging.getLogger(__name__)

MAX_WATCHES = 64
BEGIN_AGAIN_AFTER = 0.5
# For sandbox-init to tell all that has happened: a millisecond, except in a storm (one second and a half of it are
# what the kernel and we keep at most), in a sandbox without time, or on a host that stands still for a moment. Giving
# up breaks the promise that a poll has what was done before it.
SETTLE_LIMIT = 5.0
READ_AT_ONCE = 200

# Of a directory that was watched before and now is not to be: it will not come back by waiting.
_GONE = {ENOENT, ENOTDIR, EACCES}


@dataclass(slots=True, kw_only=True, eq=False)
class Watch:
    """One watch. Its resident task writes the queue; anybody reads it, by `Watches`."""

    id: str
    spec: WatchSpec
    created_at: float
    interrupted: bool = False
    """it was begun before, and is to be begun again"""
    queue: WatchQueue = field(default_factory=WatchQueue)
    attended: bool = False
    """its task runs, or is about to"""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """of its task"""
    begun: trio.Event = field(default_factory=trio.Event)
    """all of it is watched, or `failure` says why not"""
    failure: SandboxdError | None = None
    news: trio.Event = field(default_factory=trio.Event)
    """set, and replaced, when the queue has grown"""
    intake: Intake | None = None
    """what fills the queue now"""
    readers: int = 0
    read_at: float = field(default_factory=trio.current_time)

    async def settle(self) -> None:
        """Have in the queue what has happened by now, if it can be had soon."""
        if self.intake is not None:
            with trio.move_on_after(SETTLE_LIMIT):
                await self.intake.settle()

    def announce(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def end(self) -> None:
        self.queue.end()
        self.announce()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While somebody does, it is not idle."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1
            self.read_at = trio.current_time()


class _Sandbox:
    """The watches of one sandbox, by id."""

    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}
        self.pace = Pace()


class Watches:
    """Owns: the watches' queues; their tasks are residents of their sandboxes. `idle_limit` in seconds."""

    def __init__(self, store: Store, *, idle_limit: float) -> None:
        self._store = store
        self._idle_limit = idle_limit
        self._stored: dict[str, list[StoredWatch]] = {}
        self._sandboxes: WeakKeyDictionary[Entry, _Sandbox] = WeakKeyDictionary()

    async def load(self) -> None:
        """Before the sandboxes are recovered."""
        for stored in await self._store.watches():
            self._stored.setdefault(stored.sandbox, []).append(stored)

    async def attend(self, entry: Entry) -> None:
        """Begin the watches that a sandbox has beside its new machine, or beside one that was found."""
        for watch in self._of(entry).watches.values():
            self._attend(entry, watch)

    # -- asking ---------------------------------------------------------------------------------------------------

    async def create(self, entry: Entry, spec: WatchSpec) -> Watch:
        """Watch a directory; returns when all of it is watched. A relative path starts at the sandbox's workdir.

        Raises: Conflict, NotFound, Unprocessable (no directory, or too large), Forbidden, TooManyRequests,
        SandboxLost. Cancelled: there is no watch.
        """
        await entry.ready()
        watches = self._of(entry).watches
        if len(watches) >= MAX_WATCHES:
            raise TooManyRequests(
                f"cannot watch more than {MAX_WATCHES} directories of one sandbox: stop another watch",
                max_watches=MAX_WATCHES,
            )
        sandbox = entry.sandbox.spec
        path = posixpath.join("/", sandbox.workdir, "" if spec.path == "." else spec.path)
        spec = replace(spec, path=path, user=spec.user or sandbox.user)
        watch = Watch(id="w" + secrets.token_hex(8), spec=spec, created_at=clock.wall())
        watches[watch.id] = watch
        try:
            self._attend(entry, watch)
            await watch.begun.wait()
            if watch.failure is not None:
                raise watch.failure
            await self._store.save_watch(StoredWatch(watch.id, entry.sandbox.id, watch.created_at, watch.spec))
        except BaseException:
            self._drop(entry, watch)
            raise
        return watch

    def all(self, entry: Entry) -> list[Watch]:
        """Of one sandbox, oldest first."""
        return [watch for watch in self._of(entry).watches.values() if watch.begun.is_set()]

    def get(self, entry: Entry, watch: str) -> Watch:
        """Raises: NotFound."""
        found = self._of(entry).watches.get(watch)
        if found is None:
            raise NotFound(
                f"cannot find watch {watch!r}: it was stopped, or nobody read it for {self._idle_limit:g} s",
                watch=watch,
            )
        return found

    async def stop(self, entry: Entry, watch: str) -> None:
        """Raises: NotFound."""
        found = self.get(entry, watch)
        await self._store.forget_watch(found.id)
        self._drop(entry, found)

    async def poll(
        self, entry: Entry, watch: Watch, *, after: int | None, limit: int, patience: float = 0
    ) -> tuple[list[WatchEvent], int]:
        """Events after a cursor (None: what nobody polled yet), waiting up to `patience` s for one; the cursor.

        What an answered request has changed before is among them.
        """
        queue = watch.queue
        if entry.sandbox.state is SandboxState.RUNNING:
            await watch.settle()
        with watch.reading(), entry.in_use(), trio.move_on_after(patience):
            while not queue.ended and queue.last_id <= (queue.polled if after is None else after):
                await _wait_news(entry, watch, watch.news)
        events = queue.poll(limit) if after is None else queue.read(after, limit)
        return events, cursor_after(events, queue.polled if after is None else after)

    async def follow(self, entry: Entry, watch: Watch, *, after: int | None) -> AsyncGenerator[WatchEvent, None]:
        """Events after a cursor (None: what was not polled yet), and then each new one, until the watch ends.

        It has a place of its own in the queue: what it reads is still there for those who poll. Close it when done.
        """
        queue = watch.queue
        cursor = queue.polled if after is None else after
        with watch.reading(), entry.in_use():
            while True:
                news = watch.news  # taken before the read, so that nothing falls between reading and waiting
                batch = queue.read(cursor, READ_AT_ONCE)
                for event in batch:
                    cursor = event.id
                    yield event
                if not batch and queue.ended:
                    return
                if not batch:
                    await _wait_news(entry, watch, news)

    def _of(self, entry: Entry) -> _Sandbox:
        if entry not in self._sandboxes:
            found = self._sandboxes[entry] = _Sandbox()
            for stored in self._stored.pop(entry.sandbox.id, ()):
                found.watches[stored.id] = _restored(stored)
        return self._sandboxes[entry]

    def _drop(self, entry: Entry, watch: Watch) -> None:
        self._of(entry).watches.pop(watch.id, None)
        watch.scope.cancel("nobody wants it any more")
        watch.end()

    # -- watching -------------------------------------------------------------------------------------------------

    def _attend(self, entry: Entry, watch: Watch) -> None:
        if not watch.attended:
            watch.attended = True
            entry.start_resident(self._run, entry, watch)

    async def _run(self, entry: Entry, watch: Watch) -> None:
        """A watch beside one machine: a resident of its sandbox."""
        expired = False
        watch.scope, watch.read_at = trio.CancelScope(), trio.current_time()
        try:
            with watch.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow, entry, watch)
                    await self._idle(watch)
                    expired = True
                    nursery.cancel_scope.cancel("nobody reads it")
        finally:
            watch.attended = False
            if not watch.begun.is_set():
                watch.failure = SandboxLost(f"cannot watch in sandbox {entry.sandbox.id}: it has ended")
            watch.begun.set()
            _end_with(entry, watch)
        if expired:
            log.info("sandbox %s: watch %s of %s expired", entry.sandbox.id, watch.id, watch.spec.path)
            self._drop(entry, watch)
            await self._store.forget_watch(watch.id)

    async def _idle(self, watch: Watch) -> None:
        """Until nobody has read it for the idle limit."""
        while True:
            left = watch.read_at + self._idle_limit - trio.current_time()
            if left <= 0 and not watch.readers:
                return
            await trio.sleep(left if left > 0 else self._idle_limit)

    async def _follow(self, entry: Entry, watch: Watch) -> None:
        """Until the directory or the machine is gone. What watches inside can be killed there: it is begun again."""
        machine = entry.require_machine()
        while not watch.queue.ended and watch.failure is None and _lives(entry, machine):
            try:
                await self._follow_once(entry, watch)
            except InitError as error:
                if not watch.begun.is_set():
                    watch.failure = _explained(entry, error)
                elif error.errno in _GONE:
                    watch.end()
                else:
                    log.warning("sandbox %s: watch %s: %s", entry.sandbox.id, watch.id, error)
            except (InitGone, WireError) as error:
                log.info("sandbox %s: watch %s is begun again: %s", entry.sandbox.id, watch.id, error)
            if watch.failure is None and not watch.queue.ended:
                with trio.move_on_after(BEGIN_AGAIN_AFTER):
                    while _lives(entry, machine):
                        await entry.changed.wait()
        watch.begun.set()
        if not _lives(entry, machine):
            watch.scope.cancel("the next machine has a task of its own")

    async def _follow_once(self, entry: Entry, watch: Watch) -> None:
        spec = watch.spec
        if entry.running is None:
            raise InitGone("the machine has ended")
        init = entry.running.init
        async with init.watch(spec.path, user=spec.user, recursive=spec.recursive, ignore=spec.ignore) as changes:
            if watch.interrupted:
                watch.queue.overflow(OverflowReason.RESTART)
                watch.announce()
            watch.interrupted = True
            watch.begun.set()
            watch.intake = Intake(changes, watch, spec.source, self._of(entry).pace)
            try:
                await watch.intake.run()
            finally:
                watch.intake = None
        watch.end()


def _lives(entry: Entry, machine: RunningMachine) -> bool:
    return entry.running is machine and not machine.ended()


def _end_with(entry: Entry, watch: Watch) -> None:
    """A watch of a sandbox that is deleted has ended; that of one which is stopped may go on when it is started."""
    if entry.doomed:
        watch.end()


async def _wait_news(entry: Entry, watch: Watch, news: trio.Event) -> None:
    """Until the queue has grown, or there is something about the sandbox, which may be its end."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel("there is news")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, entry.changed)
        nursery.start_soon(wait, news)
        _end_with(entry, watch)


def _restored(stored: StoredWatch) -> Watch:
    watch = Watch(id=stored.id, spec=stored.spec, created_at=stored.created_at, interrupted=True)
    watch.begun.set()
    return watch


def _explained(entry: Entry, error: InitError) -> SandboxdError:
    """Why a directory cannot be watched, as the domain's error."""
    if error.kind in {"not_directory", "pattern"} or error.errno in {ENOSPC, ENOTDIR}:
        return Unprocessable(error.message, kind=error.kind)
    if error.errno in {EMFILE, ENFILE, EAGAIN}:
        return TooManyRequests(error.message)
    try:
        with init_errors(entry):
            raise error
    except SandboxdError as explained:
        return explained
