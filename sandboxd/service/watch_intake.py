"""What sandbox-init tells of a watch, taken into its queue: raw or folded, and as fast as the daemon can afford."""

from typing import Protocol

import trio

from sandboxd.isolation.init_watches import ChangeStream
from sandboxd.isolation.wire import Change, ChangeKind
from sandboxd.model import OverflowReason, WatchEventType, WatchSource
from sandboxd.service.watch_fold import Fold
from sandboxd.service.watch_queue import WatchQueue

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


class Intake(Protocol):
    """What a watch has for it."""

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


async def take_in(source: WatchSource, batches: ChangeStream, watch: Intake, pace: Pace) -> None:
    """Until the watched directory is gone."""
    take = _take_folded if source is WatchSource.CHANGES else _take_raw
    await take(watch, batches, pace)


async def _take_raw(watch: Intake, batches: ChangeStream, pace: Pace) -> None:
    async for changes in batches:
        for change in changes:
            if not _take_loss(watch, change):
                kind = _RAW[change.kind]
                watch.queue.put(kind, change.path, is_directory=change.is_directory, cookie=change.cookie)
        watch.announce()
        await pace.spend(len(changes))


async def _take_folded(watch: Intake, batches: ChangeStream, pace: Pace) -> None:
    fold, due = Fold(), float("inf")
    while True:
        changes: list[Change] | None = None
        with trio.move_on_at(due):
            changes = await anext(batches, [])
        if changes:
            _fold_in(watch, fold, changes)
            due = min(due, trio.current_time() + FOLD_TIME) if fold else float("inf")
            await pace.spend(len(changes))
            continue
        for kind, path, is_directory in fold.take():
            watch.queue.put(kind, path, is_directory=is_directory)
        watch.announce()
        due = float("inf")
        if changes is not None:
            return


def _fold_in(watch: Intake, fold: Fold, changes: list[Change]) -> None:
    before = watch.queue.last_id
    for change in changes:
        if not _take_loss(watch, change):
            for kind, path, is_directory in fold.add(change):
                watch.queue.put(kind, path, is_directory=is_directory)
    if watch.queue.last_id > before:
        watch.announce()


def _take_loss(watch: Intake, change: Change) -> bool:
    """Whether the change was none, but news of the watch itself."""
    if change.kind in _LOST:
        watch.queue.overflow(_LOST[change.kind], change.path)
        return True
    return change.kind is ChangeKind.ENDED
