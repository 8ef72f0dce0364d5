"""Slots made ahead: how many there are, who gets them, and that none is left."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sandboxd.errors import LaunchFailed, SandboxLost
from sandboxd.isolation.backend import Backends
from sandboxd.isolation.plan import Slot
from sandboxd.kernel.cgroup_tree import NoCgroupTree
from sandboxd.service.resources import Resources
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.sandboxes.limits import Cgroups
from sandboxd.service.sandboxes.processes import Processes
from sandboxd.service.sandboxes.ranges import IdRanges
from sandboxd.service.sandboxes.slots import READY, Slots
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.volume import PlainVolume
from tests.isolation.fake_backend import FakeBackend


class Reluctant(FakeBackend):
    """A backend that fails to prepare as often as it is told to."""

    failures = 0

    async def prepare(self, slot: Slot) -> None:
        if self.failures:
            self.failures -= 1
            raise LaunchFailed("cannot prepare: told so")
        await super().prepare(slot)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    async def here(function: Callable[[], None]) -> None:
        function()

    # Time jumps past a thread.
    monkeypatch.setattr("sandboxd.service.storage.disk.run_in_thread_or_here", here)
    backends = Backends(Reluctant(), default="fake")
    disk = Disk(volume=PlainVolume(tmp_path / "state", userxattr=False), runtime_dir=tmp_path / "run", root_id=0)
    ranges, cgroups, processes = (
        IdRanges(1 << 20, 64),
        Cgroups(NoCgroupTree(), block_device=None),
        Processes(backends),
    )
    return Host(
        backends=backends,
        resources=Resources(ranges, disk, cgroups, processes),
        ranges=ranges,
        disk=disk,
        cgroups=cgroups,
        processes=processes,
        root_id=0,
        init=Path("/init"),
    )


def backend_of(host: Host) -> Reluctant:
    backend = host.backends.get("fake")
    assert isinstance(backend, Reluctant)
    return backend


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
        slot, taken = slots.take("fake")
        assert slot.sandbox in before
        assert taken
        assert backend_of(host).is_prepared(slot.sandbox)
        await trio.sleep(1)
        assert len(host.disk.known()) == READY + 1


async def test_a_burst_gets_slots_too_of_which_the_last_are_only_names(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        got = [slots.take("fake") for _ in range(3 * READY)]
        assert len({slot.sandbox for slot, _ in got}) == len({slot.ids.start for slot, _ in got}) == len(got)
        assert [taken for _, taken in got] == [True] * READY + [False] * 2 * READY
        assert {slot.sandbox for slot, taken in got if taken} == host.disk.known()
        assert all(backend_of(host).is_prepared(slot.sandbox) is taken for slot, taken in got)


async def test_one_whose_process_is_gone_is_given_to_nobody(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        spoiled = host.disk.known()
        for sandbox in spoiled:
            await backend_of(host).drop(sandbox)
        slot, _ = slots.take("fake")
        assert slot.sandbox not in spoiled
        await trio.sleep(1)
        assert spoiled.isdisjoint(host.disk.known())


async def test_what_cannot_be_made_leaves_nothing_and_is_tried_again(host: Host, autojump_clock: MockClock) -> None:
    backend_of(host).failures = 2
    async with keeping(host):
        assert host.disk.known() == host.ranges.taken() == frozenset()
        await trio.sleep(60)
        assert len(host.disk.known()) == READY


async def test_none_outlives_the_task_but_those_that_were_taken(host: Host, autojump_clock: MockClock) -> None:
    async with keeping(host) as slots:
        taken, _ = slots.take("fake")
    assert host.disk.known() == {taken.sandbox}
    assert host.ranges.taken() == {taken.ids.start}


async def test_what_cannot_be_released_is_not_lost_and_the_daemon_goes_on(
    host: Host, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A process in the kernel that nothing kills: its ids are nobody else's until it has gone."""
    stuck = True
    drop = backend_of(host).drop

    async def hang(sandbox: str) -> None:
        if stuck:
            raise SandboxLost("cannot end it: told so")
        await drop(sandbox)

    async with keeping(host) as slots:
        spoiled = host.disk.known()
        held = host.ranges.taken()
        for sandbox in spoiled:
            await drop(sandbox)
        monkeypatch.setattr(backend_of(host), "drop", hang)
        slots.take("fake")
        await trio.sleep(1)
        assert spoiled < host.disk.known()
        assert held < host.ranges.taken()
        stuck = False
        slots.take("fake")
        await trio.sleep(1)
        assert spoiled.isdisjoint(host.disk.known())
