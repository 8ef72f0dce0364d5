"""Slots made ahead: how many there are, who gets them, and that none is left."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sandboxd.errors import LaunchFailed
from sandboxd.isolation.plan import Slot
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.service.sandboxes.entry import Host
from sandboxd.service.sandboxes.ranges import IdRanges
from sandboxd.service.sandboxes.slots import READY, Slots
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.volume import PlainVolume
from tests.isolation.fake_backend import FakeBackend


class Reluctant(FakeBackend):
    """A backend that fails to prepare as often as it is told to."""

    failures = 0

    async def prepare(self, slot: Slot, *, cgroup: Cgroup | None) -> None:
        if self.failures:
            self.failures -= 1
            raise LaunchFailed("cannot prepare: told so")
        await super().prepare(slot, cgroup=cgroup)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    volume = PlainVolume(tmp_path / "state", userxattr=False)
    return Host(
        backend=Reluctant(),
        cgroups=None,
        disk=Disk(volume=volume, runtime_dir=tmp_path / "run", root_id=0),
        ranges=IdRanges(1 << 20, 64),
        idmapped=True,
        root_id=0,
        init=Path("/init"),
        block_device=None,
    )


@asynccontextmanager
async def keeping(host: Host) -> AsyncIterator[Slots]:
    """The task that keeps slots, with all of them made."""
    slots = Slots(host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.run)
        await trio.testing.wait_all_tasks_blocked()
        yield slots
        nursery.cancel_scope.cancel()


async def test_as_many_are_ready_as_are_to_be(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host):
        assert len(host.disk.known()) == len(host.ranges.taken()) == READY


async def test_what_is_taken_is_prepared_and_made_again(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        before = host.disk.known()
        slot = slots.take()
        assert slot.sandbox in before
        assert host.backend.is_prepared(slot.sandbox)
        assert slot.sandbox not in slots
        await trio.sleep(1)
        assert len(host.disk.known()) == READY + 1


async def test_a_burst_gets_slots_too_each_one_of_its_own(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        taken = [slots.take() for _ in range(3 * READY)]
        assert len({slot.sandbox for slot in taken}) == len({slot.ids.start for slot in taken}) == len(taken)
        assert {slot.sandbox for slot in taken} <= host.disk.known()
        assert [host.backend.is_prepared(slot.sandbox) for slot in taken].count(True) == READY


async def test_one_whose_process_is_gone_is_given_to_nobody(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        spoiled = host.disk.known()
        for sandbox in spoiled:
            await host.backend.drop(sandbox)
        assert slots.take().sandbox not in spoiled
        await trio.sleep(1)
        assert spoiled.isdisjoint(host.disk.known())


async def test_what_cannot_be_made_leaves_nothing_and_is_tried_again(host: Host, autojump_clock: MockClock) -> None:
    assert isinstance(host.backend, Reluctant)
    host.backend.failures = 2
    async with keeping(host):
        assert host.disk.known() == host.ranges.taken() == frozenset()
        await trio.sleep(60)
        assert len(host.disk.known()) == READY


async def test_none_outlives_the_task_but_those_that_were_taken(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        taken = slots.take()
    assert host.disk.known() == {taken.sandbox}
    assert host.ranges.taken() == {taken.ids.start}


async def test_a_directory_that_cannot_be_made_is_an_answer(
    host: Host, tmp_path: Path, autojump_clock: MockClock
) -> None:
    slots = Slots(host)
    os.rmdir(tmp_path / "run" / "sandboxes")
    with pytest.raises(LaunchFailed, match=r"^cannot create the sandbox"):
        slots.take()
    assert host.ranges.taken() == frozenset()
