"""The event log: those who follow it see every event once and in order, however slow they are."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from sandboxd.model import EventKind
from sandboxd.service.events import BATCH, EventLog
from sandboxd.store import open_store

LIMIT = 30.0


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    async with open_store(tmp_path / "state.db") as store:
        yield EventLog(store)


async def record(log: EventLog, count: int, sandbox: str = "s1") -> None:
    for _ in range(count):
        await log.record(EventKind.CREATED, sandbox, {})


async def follow(log: EventLog, count: int, *, after: int, sandbox: str | None = None) -> list[int]:
    seen: list[int] = []
    with trio.fail_after(LIMIT):
        async with aclosing(log.follow(after=after, sandbox=sandbox)) as events:
            async for event in events:
                seen.append(event.id)
                if len(seen) == count:
                    return seen
    return seen


async def test_the_past_then_the_present_without_a_gap(log: EventLog) -> None:
    await record(log, BATCH + 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(record, log, BATCH + 5)
        assert await follow(log, 2 * (BATCH + 5), after=0) == list(range(1, 2 * (BATCH + 5) + 1))


async def test_from_now_on_leaves_the_past_out(log: EventLog) -> None:
    await record(log, 3)
    now = await log.last_id()
    await record(log, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(record, log, 1)
        assert await follow(log, 2, after=now) == [4, 5]


async def test_one_sandboxs_events_only(log: EventLog) -> None:
    for sandbox in ("s1", "s2", "s1"):
        await record(log, 1, sandbox)
    assert await follow(log, 2, after=0, sandbox="s1") == [1, 3]
    assert [event.id for event in await log.list(after=0, limit=10, sandbox="s2")] == [2]


async def test_many_listeners_each_see_all(log: EventLog) -> None:
    results: list[list[int]] = []

    async def listen() -> None:
        results.append(await follow(log, 30, after=0))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(listen)
        await record(log, 30)
    assert results == [list(range(1, 31))] * 10
