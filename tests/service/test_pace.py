"""A terminal's output keeps the pace of the client that types, within bounds."""

import pytest
import trio
from trio.testing import MockClock

from sandboxd.service.commands.pace import STALL_LIMIT, WINDOW, Pace
from sandboxd.service.commands.terminals import Seat, Seats


async def keeps(pace: Pace, end: int, *, seconds: float = STALL_LIMIT / 2) -> bool:
    """Whether output up to there goes on within so many seconds."""
    with trio.move_on_after(seconds) as waiting:
        await pace.keep(end)
    return not waiting.cancelled_caught


async def test_without_a_client_that_types_nothing_waits(autojump_clock: MockClock) -> None:
    assert await keeps(Pace(), 100 * WINDOW)


async def test_output_waits_until_the_client_is_within_the_window(autojump_clock: MockClock) -> None:
    pace = Pace()
    pace.lead(0)
    assert await keeps(pace, WINDOW)
    assert not await keeps(pace, WINDOW + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeps, pace, 3 * WINDOW)
        await trio.testing.wait_all_tasks_blocked()
        pace.lead(WINDOW)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks  # it has come nearer, and not near enough
        pace.lead(2 * WINDOW)
    assert trio.current_time() - autojump_clock.current_time() == 0


async def test_a_client_that_reads_on_is_waited_for_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    pace = Pace()
    pace.lead(0)
    done = trio.Event()

    async def keep() -> None:
        await pace.keep(100 * WINDOW)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        for sent in range(0, 99 * WINDOW, WINDOW):
            assert not done.is_set()
            await trio.sleep(STALL_LIMIT * 0.9)
            pace.lead(sent)
        pace.lead(99 * WINDOW)


async def test_one_that_has_fallen_asleep_is_not_until_it_reads_on(autojump_clock: MockClock) -> None:
    pace = Pace()
    pace.lead(0)
    assert await keeps(pace, 2 * WINDOW, seconds=STALL_LIMIT * 2)
    assert await keeps(pace, 9 * WINDOW, seconds=STALL_LIMIT / 100)
    pace.lead(1)
    assert not await keeps(pace, 9 * WINDOW)


@pytest.mark.parametrize("end", ["leaves", "another takes over"])
async def test_the_pace_is_the_writers_alone(end: str, autojump_clock: MockClock) -> None:
    pace = Pace()
    seats, writer, observer = Seats(pace), Seat(), Seat()
    seats.take(writer)
    assert await keeps(pace, 5 * WINDOW)  # it is still shown the past
    seats.note_sent(writer, 0)
    seats.note_sent(observer, 5 * WINDOW)
    assert not await keeps(pace, 5 * WINDOW)
    if end == "leaves":
        seats.leave(writer)
    else:
        seats.take(observer)
    assert await keeps(pace, 5 * WINDOW)
