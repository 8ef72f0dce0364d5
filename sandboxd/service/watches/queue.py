"""What a watch saw, kept for readers who come when they like: a bounded queue with a cursor per reader. No I/O.

The writer never waits: when the queue is full the oldest events go. A reader whose cursor points to events that are
gone gets an overflow event first, so that a loss is never silent.
"""

import time
from collections import deque
from collections.abc import Iterable
from itertools import islice

from sandboxd.model import OverflowReason, WatchEvent, WatchEventType

# As many as inotify's own queue takes to overflow in a quarter; a checkout of a large repository comes in bursts.
MAX_EVENTS = 4096
MAX_PATH_BYTES = 256 * 1024


class WatchQueue:
    """Ids begin at the clock's microseconds, so that they grow across restarts too."""

    def __init__(self, *, max_events: int = MAX_EVENTS, max_path_bytes: int = MAX_PATH_BYTES) -> None:
        self._max_events = max_events
        self._max_path_bytes = max_path_bytes
        self._events: deque[WatchEvent] = deque()
        self._path_bytes = 0
        self._lost_id = 0
        self.last_id = time.time_ns() // 1000
        self.polled = self.last_id
        """where those who poll without a cursor of their own are"""
        self.ended = False

    def put(
        self,
        kind: WatchEventType,
        path: str,
        *,
        is_directory: bool,
        cookie: int = 0,
        reason: OverflowReason | None = None,
    ) -> None:
        self.last_id += 1
        self._events.append(WatchEvent(self.last_id, kind, path, is_directory, cookie, reason))
        self._path_bytes += len(path)
        while len(self._events) > self._max_events or self._path_bytes > self._max_path_bytes:
            lost = self._events.popleft()
            self._lost_id = lost.id
            self._path_bytes -= len(lost.path)

    def overflow(self, reason: OverflowReason, path: str = ".") -> None:
        self.put(WatchEventType.OVERFLOW, path, is_directory=True, reason=reason)

    def end(self) -> None:
        """Nothing comes after this. May be called again."""
        if not self.ended:
            self.ended = True
            self.put(WatchEventType.ENDED, ".", is_directory=True)

    def read(self, after: int, limit: int = MAX_EVENTS) -> list[WatchEvent]:
        """Up to `limit` events with a greater id, oldest first, and an overflow before them if some were lost."""
        found: list[WatchEvent] = []
        if after < self._lost_id:
            found.append(WatchEvent(self._lost_id, WatchEventType.OVERFLOW, ".", True, 0, OverflowReason.READER))
        first = max(0, after - self.last_id + len(self._events))
        found.extend(islice(self._events, first, first + limit))
        return found

    def poll(self, limit: int = MAX_EVENTS) -> list[WatchEvent]:
        """What nobody has polled yet."""
        found = self.read(self.polled, limit)
        self.polled = cursor_after(found, self.polled)
        return found


def cursor_after(events: Iterable[WatchEvent], before: int) -> int:
    """Where a reader is who has read these."""
    return max((event.id for event in events), default=before)
