"""What every backend has to do (sandboxd.isolation.backend.Backend), held against bubblewrap and the fake alike."""

import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sandboxd.config import find_asset
from sandboxd.errors import LaunchFailed
from sandboxd.isolation.backend import Backend, RunningMachine
from sandboxd.isolation.bwrap import seccomp
from sandboxd.isolation.bwrap.backend import BwrapBackend
from sandboxd.isolation.bwrap.marks import marked_processes
from sandboxd.isolation.init.client import InitClient, SpawnRequest
from sandboxd.isolation.init.messages import Exited
from sandboxd.isolation.init.wire import Output
from sandboxd.isolation.plan import IdRange, LaunchPlan, Slot
from sandboxd.kernel.cgroups import NO_CGROUP
from sandboxd.service.images.store import ImageStore
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.volume import PlainVolume
from tests.isolation.fake_backend import FakeBackend
from tests.support.plans import plan_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root; without it the daemon's own tests do this")

# Of no daemon: they begin at 0x70000000 and go up.
RANGE = 0x6F000000
LIMIT = 60.0
# Seconds that nobody else sleeps for, on a machine with several runs of the tests.
SLEEP = 1_000_000 + os.getpid()


@pytest.fixture(params=["fake", "bwrap"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    made: Backend = FakeBackend() if request.param == "fake" else _bwrap()
    yield made
    made.close()


def _bwrap() -> BwrapBackend:
    profile = seccomp.compile_profile(find_asset("seccomp/default.json"))
    return BwrapBackend(bwrap=Path(shutil.which("bwrap") or "bwrap"), profile=profile, max_processes=1000)


@pytest.fixture
def plan(tmp_path: Path, image_dir: Path) -> Iterator[Callable[[], LaunchPlan]]:
    """A factory of plans, each for a sandbox of its own. What a failed test leaves running is ended."""
    made: set[str] = set()
    disk = Disk(volume=PlainVolume(tmp_path / "state", userxattr=False), runtime_dir=tmp_path / "run", root_id=0)
    image = ImageStore(image_dir, id_base=0).get("base")
    starts = iter(range(RANGE, RANGE + 64 * 65536, 65536))

    def make() -> LaunchPlan:
        sandbox = "s" + secrets.token_hex(10)
        made.add(sandbox)
        paths = disk.make(sandbox)
        slot = Slot(
            sandbox=sandbox,
            backend="any",
            ids=IdRange(start=next(starts), idmapped=True),
            runtime=paths.runtime,
            cgroup=NO_CGROUP,
            boot_id="00000000-1111-2222-3333-444444444444",
            init=find_asset("rootfs/init/build/sandbox-init"),
        )
        return plan_of(slot, image, writable=paths.writable)

    yield make
    for pid in marked_processes(made):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def output_of(init: InitClient, command: str) -> bytes:
    collected = b""
    async with init.spawn_attached(SpawnRequest(argv=["/bin/sh", "-c", command]), lossless=True) as attachment:
        while not isinstance(event := await attachment.receive(), Exited):
            if isinstance(event, Output):
                collected += event.data
    return collected


def assert_gone(plan: LaunchPlan) -> None:
    wait_until(lambda: list(marked_processes({plan.slot.sandbox})) == [])


async def test_a_launched_machine_runs_commands_until_it_is_destroyed(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    made = plan()
    with trio.fail_after(LIMIT):
        running = await backend.launch(made)
        assert await output_of(running.init, "echo $$ is not 1; sleep 600 > /dev/null 2>&1 &") != b""
        assert not running.ended()
        assert {running.machine.pid, running.machine.monitor} <= set(marked_processes({made.slot.sandbox}))
        await running.destroy()
    assert_gone(made)


async def test_destroying_takes_what_runs_inside_along(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    with trio.fail_after(LIMIT):
        running = await backend.launch(plan())
        await output_of(running.init, f"setsid sleep {SLEEP} > /dev/null 2>&1 &")
        wait_until(lambda: len(_sleepers()) == 1)
        await running.destroy()
    wait_until(lambda: _sleepers() == [])


def _sleepers() -> list[str]:
    return [entry for entry in os.listdir("/proc") if entry.isdigit() and _is_sleeper(entry)]


def _is_sleeper(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == f"sleep\0{SLEEP}\0".encode()
    except OSError:
        return False


async def test_two_machines_know_nothing_of_each_other(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    with trio.fail_after(LIMIT):
        one, two = await backend.launch(plan()), await backend.launch(plan())
        await output_of(one.init, f"setsid sleep {SLEEP} > /dev/null 2>&1 &")
        assert str(SLEEP).encode() not in await output_of(two.init, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        await one.destroy()
        assert await output_of(two.init, "echo well") == b"well\n"
        await two.destroy()


async def test_a_machine_that_was_let_go_is_found_again(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    made = plan()
    with trio.fail_after(LIMIT):
        first = await backend.launch(made)
        first.close()
        again = backend.attach(first.machine, made.slot.runtime, cgroup=NO_CGROUP)
        assert again is not None
        assert await output_of(again.init, "echo well") == b"well\n"
        await again.destroy()
    assert backend.attach(first.machine, made.slot.runtime, cgroup=NO_CGROUP) is None


async def test_another_process_of_that_pid_is_not_taken_for_it(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    made = plan()
    with trio.fail_after(LIMIT):
        running = await backend.launch(made)
        machine = running.machine
        for other in (
            replace(machine, pid_started=machine.pid_started + 1),
            replace(machine, host_boot_id="another"),
            replace(machine, pid=os.getpid()),
        ):
            assert backend.attach(other, made.slot.runtime, cgroup=NO_CGROUP) is None
        await running.destroy()


async def test_the_end_of_a_machine_is_noticed(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    with trio.fail_after(LIMIT):
        running = await backend.launch(plan())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.wait_ended)
            os.kill(running.machine.pid, signal.SIGKILL)
        await running.destroy()  # of what has ended already


@pytest.mark.parametrize("missing", ["init", "layers"])
async def test_a_launch_that_cannot_succeed_leaves_nothing(
    backend: Backend, plan: Callable[[], LaunchPlan], missing: str
) -> None:
    nowhere = Path("/no/such/thing")
    good = plan()
    no_init = replace(good, slot=replace(good.slot, init=nowhere))
    made = no_init if missing == "init" else replace(good, layers=(nowhere,))
    with trio.fail_after(LIMIT), pytest.raises(LaunchFailed, match=r"^cannot start"):
        await backend.launch(made)
    assert_gone(made)


async def test_a_cancelled_launch_leaves_nothing(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    """Cancelled after more and more milliseconds, until the launch is through before the cancellation."""
    for milliseconds in (*range(0, 120, 3), 500, 5_000, 60_000):
        made = plan()
        with trio.move_on_after(milliseconds / 1000):
            running = await backend.launch(made)
            with trio.CancelScope(shield=True):
                await running.destroy()
                assert_gone(made)
            return
        assert_gone(made)
    pytest.fail("the launch took longer than this test expects")


async def test_a_sweep_ends_what_is_known_by_its_id_only(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    stray, known = plan(), plan()
    with trio.fail_after(LIMIT):
        running = [await backend.launch(each) for each in (stray, known)]
        await backend.sweep({stray.slot.sandbox})
        assert_gone(stray)
        assert await output_of(running[1].init, "echo well") == b"well\n"
        await backend.sweep(frozenset())
        for each in running:
            await each.destroy()


async def test_a_prepared_slot_is_launched_as_any_other(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    made = plan()
    with trio.fail_after(LIMIT):
        await backend.prepare(made.slot)
        assert backend.is_prepared(made.slot.sandbox)
        running = await backend.launch(made)
        assert not backend.is_prepared(made.slot.sandbox)
        assert await output_of(running.init, "echo well") == b"well\n"
        await running.destroy()
    assert_gone(made)


async def test_a_prepared_slot_can_be_dropped_and_nothing_is_left(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    made = plan()
    with trio.fail_after(LIMIT):
        await backend.prepare(made.slot)
        await backend.drop(made.slot.sandbox)
        await backend.drop(made.slot.sandbox)  # of what is gone already
    assert not backend.is_prepared(made.slot.sandbox)
    assert_gone(made)


# -- what is done to a machine ------------------------------------------------------------------------------------

# A process that is always busy, under a name that is not UTF-8 and looks like the end of one (proc_pid_stat(5)).
BUSY = r"(printf '\377) T (' > /proc/self/comm; while :; do :; done) > /dev/null 2>&1 &"


@asynccontextmanager
async def launched(backend: Backend, plan: LaunchPlan) -> AsyncIterator[RunningMachine]:
    with trio.fail_after(LIMIT):
        running = await backend.launch(plan)
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                await running.destroy()


async def cpu_seconds(running: RunningMachine) -> float:
    return (await running.usage()).cpu_seconds


async def wait_busy(running: RunningMachine) -> None:
    """Until it has used more processor time than now."""
    before = await cpu_seconds(running)
    while await cpu_seconds(running) <= before + 0.05:  # noqa: ASYNC110 - nothing tells of it
        await trio.sleep(0.01)


async def test_a_frozen_machine_uses_no_processor_and_goes_on_afterwards(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    async with launched(backend, plan()) as running:
        await output_of(running.init, BUSY)
        await wait_busy(running)
        assert not running.is_frozen()
        await running.freeze()
        assert running.is_frozen()
        await trio.sleep(0.05)  # who was on the way out of the kernel has come to stand too
        before = await cpu_seconds(running)
        await trio.sleep(0.3)  # in which it would have used most of that
        assert await cpu_seconds(running) == before
        await running.thaw()
        assert not running.is_frozen()
        await wait_busy(running)


async def test_a_machine_that_was_left_frozen_is_found_so_and_can_be_let_go(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    made = plan()
    async with launched(backend, made) as first:
        await output_of(first.init, BUSY)
        await first.freeze()
        again = backend.attach(first.machine, made.slot.runtime, cgroup=NO_CGROUP)
        assert again is not None
        assert again.machine == first.machine
        assert again.is_frozen()
        await again.thaw()
        await wait_busy(again)
        again.close()


async def test_what_the_sandboxs_own_shells_have_stopped_stays_so(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    async with launched(backend, plan()) as running:
        await output_of(running.init, f"{BUSY} kill -STOP $!")
        jobs = running.stopped_jobs()
        await running.freeze()
        await running.thaw(but=jobs)
        assert running.stopped_jobs() == jobs
        before = await cpu_seconds(running)
        await trio.sleep(0.3)
        assert await cpu_seconds(running) < before + 0.2
        await running.thaw()
        await wait_busy(running)


async def test_a_frozen_machine_can_be_destroyed(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    made = plan()
    async with launched(backend, made) as running:
        await output_of(running.init, BUSY)
        await running.freeze()
    assert_gone(made)


async def test_what_a_machine_uses_grows_with_what_it_does(backend: Backend, plan: Callable[[], LaunchPlan]) -> None:
    async with launched(backend, plan()) as running:
        idle = await running.usage()
        await output_of(running.init, "sleep 600 > /dev/null 2>&1 &")
        later = await running.usage()
        assert later.processes > idle.processes > 0
        assert later.memory > idle.memory > 0
        assert later.received >= idle.received >= 0
        assert later.sent >= idle.sent >= 0


async def test_without_a_cgroup_nothing_counts_kills_for_memory_or_takes_memory_back(
    backend: Backend, plan: Callable[[], LaunchPlan]
) -> None:
    async with launched(backend, plan()) as running:
        assert running.oom_kills() is None
        assert not await running.reclaim(1 << 20)
        assert (await running.usage()).cgroup is None
