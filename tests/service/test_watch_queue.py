"""The queue of a watch and the folding of changes: bounded, nothing lost in silence."""

import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.isolation.init.wire import Change, ChangeKind
from sandboxd.model import OverflowReason, WatchEvent, WatchEventType
from sandboxd.service.watches.fold import TYPES, Fold
from sandboxd.service.watches.queue import WatchQueue, cursor_after

CREATE, MODIFY, REMOVE, OVERFLOW = (
    WatchEventType.CREATE,
    WatchEventType.MODIFY,
    WatchEventType.REMOVE,
    WatchEventType.OVERFLOW,
)


def filled(count: int, *, max_events: int = 10, max_path_bytes: int = 1000) -> WatchQueue:
    queue = WatchQueue(max_events=max_events, max_path_bytes=max_path_bytes)
    for number in range(count):
        queue.put(CREATE, str(number), is_directory=False)
    return queue


def paths(events: list[WatchEvent]) -> list[str]:
    return [event.path for event in events]


class TestQueue:
    def test_polls_drain(self) -> None:
        queue = filled(3)
        assert paths(queue.poll()) == ["0", "1", "2"]
        assert queue.poll() == []
        queue.put(REMOVE, "0", is_directory=False)
        assert paths(queue.poll()) == ["0"]

    def test_a_loss_is_told_first_and_once(self) -> None:
        queue = filled(15)
        events = queue.poll()
        assert (events[0].type, events[0].reason) == (OVERFLOW, OverflowReason.READER)
        assert paths(events[1:]) == [str(number) for number in range(5, 15)]
        assert queue.poll() == []

    def test_long_paths_count(self) -> None:
        queue = WatchQueue(max_events=100, max_path_bytes=1000)
        for _ in range(10):
            queue.put(CREATE, "x" * 400, is_directory=False)
        assert [event.type for event in queue.poll()] == [OVERFLOW, CREATE, CREATE]

    def test_ids_grow_with_the_clock_so_an_old_cursor_of_an_earlier_queue_is_no_loss_of_this_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [1_000_000_000]
        monkeypatch.setattr(time, "time_ns", lambda: clock[0])
        earlier = filled(3)
        clock[0] += 1_000_000
        later = filled(2)
        assert later.last_id > earlier.last_id
        assert paths(later.read(earlier.last_id)) == ["0", "1"]

    def test_the_end_is_told_once(self) -> None:
        queue = filled(0)
        queue.end()
        queue.end()
        assert [event.type for event in queue.poll()] == [WatchEventType.ENDED]

    @given(
        st.lists(st.integers(0, 20) | st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=40),
        st.integers(1, 15),
    )
    def test_every_reader_sees_all_or_is_told(self, steps: list[int | tuple[int, int]], max_events: int) -> None:
        """A number of events is put, or one of three readers reads up to a limit."""
        queue = WatchQueue(max_events=max_events)
        start = queue.last_id
        cursors = [start] * 3
        for step in steps:
            if isinstance(step, int):
                for _ in range(step):
                    queue.put(CREATE, "x", is_directory=False)
                continue
            reader, limit = step
            events = queue.read(cursors[reader], limit)
            expected = cursors[reader] + 1
            for event in events:
                assert event.id >= expected
                assert event.id == expected or event.type is OVERFLOW
                expected = event.id + 1
            cursors[reader] = cursor_after(events, cursors[reader])
            assert len(events) <= limit + 1
        assert cursor_after(queue.read(start), start) == queue.last_id


def folded(*changes: tuple[ChangeKind, str, bool], present: bool = False) -> list[tuple[WatchEventType, str]]:
    """A create of what is there already is a rename onto it, and has a cookie."""
    fold = Fold()
    told = []
    for kind, path, is_directory in changes:
        cookie = int(kind is ChangeKind.CREATE and present)
        told += [event[:2] for event in fold.add(Change(kind, is_directory, cookie, path))]
        present = TYPES[kind] is not REMOVE
    return told + [event[:2] for event in fold.take()]


class TestFolding:
    def test_files(self) -> None:
        create, write, mode, gone = ChangeKind.CREATE, ChangeKind.WRITE, ChangeKind.ATTRIBUTES, ChangeKind.REMOVE
        for kinds, outcome in (
            ((create, write, mode), [CREATE]),
            ((create, write, gone), []),
            ((write, write), [MODIFY]),
            ((write, gone), [REMOVE]),
            ((gone, create), [MODIFY]),
            ((create, gone, create), [CREATE]),
            ((ChangeKind.RENAME,), [REMOVE]),
        ):
            assert [kind for kind, _ in folded(*[(kind, "f", False) for kind in kinds])] == outcome

    def test_directories_keep_their_place(self) -> None:
        assert folded(
            (ChangeKind.WRITE, "d/f", False),
            (ChangeKind.RENAME, "d", True),
            (ChangeKind.CREATE, "d", True),
            (ChangeKind.CREATE, "d/f", False),
        ) == [(MODIFY, "d/f"), (REMOVE, "d"), (CREATE, "d"), (CREATE, "d/f")]

    def test_what_is_told_leads_to_the_same_files(self) -> None:
        """All short histories of a file that begins absent or present."""
        for length in range(1, 6):
            for kinds in product(TYPES, repeat=length):
                for present in (False, True):
                    if is_possible(kinds, present):
                        told = folded(*[(kind, "f", False) for kind in kinds], present=present)
                        assert len(told) <= 1
                        assert after(told, present) == after([(TYPES[kind], "f") for kind in kinds], present)


def after(told: list[tuple[WatchEventType, str]], present: bool) -> bool:
    for kind, _ in told:
        present = kind is not REMOVE
    return present


def is_possible(kinds: tuple[ChangeKind, ...], present: bool) -> bool:
    """A file must be there to change; a rename may put another one in its place."""
    for kind in kinds:
        if TYPES[kind] is not CREATE and not present:
            return False
        present = TYPES[kind] is not REMOVE
    return True
