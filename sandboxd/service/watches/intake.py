"""What sandbox-init tells of a watch, taken into its queue: raw or folded, and as fast as the daemon can afford."""

from typing import Protocol

import trio

from sandboxd.isolation.init.connection import InitGone
from sandboxd.isolation.init.watches import ChangeStream, Synced
from sandboxd.isolation.init.wire import Change, ChangeKind
from sandboxd.model import OverflowReason, WatchEventType, WatchSource
from sandboxd.service.watches.fold import Fold
from sandboxd.service.watches.queue import WatchQueue

# Long enough to fold a file's create, write and chmod into one; the aim from a change to a reader is 20 ms.
FOLD_TIME = 0.004
# How fast one sandbox's storms are taken in, at about 10 µs of the daemon's time for each change. What comes faster
# waits inside, and in the end overflows there.
CHANGES_PER_SECOND = 15_000
BURST = 15_000

_RAW = {
    ChangeKind.CREATE: WatchEventType.CREATE,
    ChangeKind.WRITE: WatchEventType.WRITE,
    ChangeKind.ATTRIBUTES: WatchEventType.CHMOD,
    ChangeKind.RENAME: WatchEventType.RENAME,
    ChangeKind.REMOVE: WatchEventType.REMOVE,
}
_LOST = {ChangeKind.OVERFLOW: OverflowReason.KERNEL, ChangeKind.UNWATCHED: OverflowReason.LIMIT}


class Place(Protocol):
    """Where it goes."""

    queue: WatchQueue

    def announce(self) -> None:
        """The queue has grown."""


class Pace:
    """A token bucket: how fast changes of one sandbox are taken in."""

    def __init__(self) -> None:
        self._paid_until = -float("inf")

    async def spend(self, changes: int) -> None:
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now - BURST / CHANGES_PER_SECOND) + changes / CHANGES_PER_SECOND
        if self._paid_until > now:
            await trio.sleep_until(self._paid_until)


class Intake:
    """Brings what one connection to sandbox-init tells into a queue."""

    def __init__(self, stream: ChangeStream, place: Place, source: WatchSource, pace: Pace) -> None:
        self._stream = stream
        self._place = place
        self._pace = pace
        self._fold = Fold() if source is WatchSource.CHANGES else None
        self._due = float("inf")
        """when what is folded has to be told"""
        self._syncing = trio.Lock()
        self._asked = self._answered = 0
        self._answer = trio.Event()
        self._ended = False

    async def run(self) -> None:
        """Until the watched directory is gone."""
        try:
            while True:
                told: list[Change] | Synced | None = None
                with trio.move_on_at(self._due) as waiting:
                    told = await anext(self._stream, None)
                if told is not None:
                    await self._take(told)
                elif waiting.cancelled_caught:
                    self._tell_folded()
                else:
                    return
        finally:
            self._tell_folded()
            self._ended = True
            self._note_answer()

    async def settle(self) -> None:
        """Until all that has happened by now is in the queue, or the connection has ended."""
        async with self._syncing:
            try:
                await self._stream.sync()
            except InitGone:
                return
            self._asked += 1
            mine = self._asked
            while self._answered < mine and not self._ended:
                await self._answer.wait()

    async def _take(self, told: list[Change] | Synced) -> None:
        if isinstance(told, Synced):
            self._tell_folded()
            self._answered += 1
            self._note_answer()
            return
        before = self._place.queue.last_id
        for change in told:
            self._put(change)
        if self._place.queue.last_id > before:
            self._place.announce()
        if self._fold:
            self._due = min(self._due, trio.current_time() + FOLD_TIME)
        await self._pace.spend(len(told))

    def _put(self, change: Change) -> None:
        queue = self._place.queue
        if change.kind in _LOST:
            queue.overflow(_LOST[change.kind], change.path)
        elif change.kind is ChangeKind.ENDED:
            return  # so does the stream, which says it to the watch
        elif self._fold is None:
            queue.put(_RAW[change.kind], change.path, is_directory=change.is_directory, cookie=change.cookie)
        else:
            for kind, path, is_directory in self._fold.add(change):
                queue.put(kind, path, is_directory=is_directory)

    def _tell_folded(self) -> None:
        self._due = float("inf")
        if self._fold:
            for kind, path, is_directory in self._fold.take():
                self._place.queue.put(kind, path, is_directory=is_directory)
            self._place.announce()

    def _note_answer(self) -> None:
        self._answer.set()
        self._answer = trio.Event()
