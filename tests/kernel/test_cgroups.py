"""cgroups.py and cgroup_events.py on this host's cgroup2. Limits need controllers: see tests/uml/inside."""

import errno
import os
import select
import signal
from pathlib import Path

import pytest

from sandboxd.kernel.cgroup_events import CgroupWatcher
from sandboxd.kernel.cgroup_tree import CgroupTree, discover_cgroups, prepare_cgroups
from sandboxd.kernel.cgroups import Cgroup, CgroupLimits, IoLimit, block_device_of
from sandboxd.kernel.syscalls import clone3
from tests.kernel.processes import BUSY_LOOP, empty, process_in, wait_until
from tests.support import waiting
from tests.support.waiting import PATIENCE

# What a process may still run, in µs, from when it is told of as frozen until it sleeps.
ON_ITS_WAY = 20_000


def test_freeze_stops_a_running_process_and_thaw_lets_it_go_on(cgroup: Cgroup) -> None:
    def used() -> int:
        return cgroup.statistics().cpu_usec

    with process_in(cgroup, BUSY_LOOP):
        start = used()
        while used() == start:
            os.sched_yield()
        cgroup.freeze()
        wait_until(lambda: cgroup.frozen, cgroup)
        frozen = used()
        # Not ordering: time in which a process that is not frozen would run. It counts as frozen just before it is.
        select.select([], [], [], 0.2)
        frozen, before = used(), frozen
        assert frozen - before < ON_ITS_WAY
        cgroup.thaw()
        wait_until(lambda: not cgroup.frozen, cgroup)
        while used() - frozen < ON_ITS_WAY:
            os.sched_yield()


def test_kill_ends_frozen_processes_and_those_of_child_cgroups(cgroup: Cgroup) -> None:
    child = Cgroup.create(cgroup.path / "child")
    with process_in(cgroup, ("sleep", "600")) as outer, process_in(child, ("sleep", "600")) as inner:
        assert cgroup.pids() == {outer.pid, inner.pid}
        cgroup.freeze()
        wait_until(lambda: cgroup.frozen, cgroup)
        cgroup.kill()
        assert outer.wait(PATIENCE) == inner.wait(PATIENCE) == -signal.SIGKILL
        wait_until(lambda: not cgroup.populated, cgroup)
        assert cgroup.pids() == frozenset()


def test_kill_reaches_a_process_that_left_its_parent_and_session(cgroup: Cgroup) -> None:
    script = "setsid sh -c 'echo $$; exec sleep 600' & exit 0"
    with process_in(cgroup, ("sh", "-c", script)) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        assert process.wait(PATIENCE) == 0
        assert orphan in cgroup.pids()
        descriptor = os.pidfd_open(orphan)
        try:
            cgroup.kill()
            assert select.select([descriptor], [], [], PATIENCE)[0]
        finally:
            os.close(descriptor)


def test_remove_refuses_while_a_process_is_left_and_takes_child_cgroups_along(cgroup: Cgroup) -> None:
    Cgroup.create(Cgroup.create(cgroup.path / "child").path / "grandchild")
    with process_in(cgroup, ("sleep", "600")):
        with pytest.raises(OSError) as caught:
            cgroup.remove()
        assert caught.value.errno == errno.EBUSY
    empty(cgroup)
    cgroup.remove()
    assert not cgroup.exists()
    cgroup.remove()


def test_a_process_is_born_in_a_cgroup_by_its_descriptor(cgroup: Cgroup) -> None:
    descriptor = cgroup.open_fd()
    try:
        child = clone3(cgroup=descriptor)
        if child == 0:
            os._exit(0 if str(os.getpid()) in (cgroup.path / "cgroup.procs").read_text().split() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(descriptor)


def test_the_watcher_tells_only_of_what_changed(tree: CgroupTree) -> None:
    quiet, busy, forgotten = (tree.create(name) for name in ("quiet", "busy", "forgotten"))
    with CgroupWatcher() as watcher:
        for cgroup in (quiet, busy, forgotten):
            watcher.add(cgroup)
        watcher.discard(forgotten)
        assert watcher.read() <= {forgotten}
        with process_in(forgotten, ("true",)) as first, process_in(busy, ("true",)) as second:
            assert first.wait(PATIENCE) == second.wait(PATIENCE) == 0
            assert select.select([watcher], [], [], PATIENCE)[0]
            assert watcher.read() == {busy}


def test_the_watcher_refuses_a_cgroup_that_does_not_exist_and_holds_nothing_of_it(tree: CgroupTree) -> None:
    with CgroupWatcher() as watcher:
        with pytest.raises(FileNotFoundError):
            watcher.add(tree.sandbox("nobody"))
        assert watches_of(watcher) == 0


def test_what_is_no_longer_watched_costs_the_kernel_nothing(tree: CgroupTree) -> None:
    with CgroupWatcher() as watcher:
        kept, removed = tree.create("kept"), tree.create("removed")
        for cgroup in (kept, removed):
            watcher.add(cgroup)
        assert watches_of(watcher) >= 2
        removed.remove()
        for cgroup in (kept, removed, removed):
            watcher.discard(cgroup)
        assert watches_of(watcher) == 0


def watches_of(watcher: CgroupWatcher) -> int:
    """How many watches the kernel keeps for it."""
    return Path(f"/proc/self/fdinfo/{watcher.fileno()}").read_text().count("inotify wd:")


def test_counters_are_there_without_any_controller(cgroup: Cgroup) -> None:
    with process_in(cgroup, BUSY_LOOP):
        # Which part of the time was the user's is found out by samples.
        waiting.wait_until(lambda: cgroup.statistics().cpu_user_usec > 0)
        counted = cgroup.statistics()
    assert 0 < counted.cpu_user_usec <= counted.cpu_usec < 2 * PATIENCE * 1e6
    assert counted.cpu_pressure is None or counted.cpu_pressure.some_avg10 >= 0


def test_a_limit_without_its_controller_is_refused_not_ignored(cgroup: Cgroup) -> None:
    # Nothing is passed on to children of a sandbox's cgroup, so the child has no controller on any host.
    child = Cgroup.create(cgroup.path / "child")
    for limits in (CgroupLimits(memory_max=1 << 30), CgroupLimits(pids_max=9), CgroupLimits(io=(IoLimit("1:2"),))):
        with pytest.raises(OSError, match="controller is not enabled") as caught:
            child.set_limits(limits)
        assert caught.value.errno == errno.EOPNOTSUPP
    child.set_limits(CgroupLimits())
    with pytest.raises(OSError, match="controller is not enabled"):
        Cgroup.create(cgroup.path / "second", CgroupLimits(memory_max=1 << 30))
    assert not (cgroup.path / "second").exists()


def test_a_cgroup_that_is_gone_is_file_not_found(tree: CgroupTree) -> None:
    gone = tree.sandbox("gone")
    assert not gone.exists()
    for use in (
        gone.freeze,
        gone.kill,
        gone.pids,
        gone.statistics,
        lambda: gone.set_limits(CgroupLimits(pids_max=1)),
    ):
        with pytest.raises(FileNotFoundError):
            use()


def test_the_tree_finds_what_an_earlier_daemon_left(tree: CgroupTree) -> None:
    tree.create("left")
    again = prepare_cgroups(discover_cgroups(), instance=f"test-{os.getpid()}")
    assert again == tree
    assert again.names() == {"left"}
    assert again.sandbox("left").exists()


def test_limits_become_the_kernels_settings() -> None:
    limits = CgroupLimits(memory_max=1 << 20, swap_max=0, pids_max=64, cpus=1.5, cpu_weight=50)
    assert limits.settings() == {
        "memory.swap.max": "0",
        "memory.high": "max",
        "memory.max": "1048576",
        "pids.max": "64",
        "cpu.max": "150000 100000",
        "cpu.weight": "50",
    }
    assert CgroupLimits(cpus=0.001).settings()["cpu.max"] == "1000 100000"
    assert str(IoLimit("8:0", write_bytes_per_second=5)) == "8:0 rbps=max wbps=5 riops=max wiops=max"


def test_the_disk_of_a_path_is_a_whole_disk() -> None:
    disk = block_device_of(Path(__file__))
    if disk is not None:
        assert Path(f"/sys/dev/block/{disk}").exists()
        assert not Path(f"/sys/dev/block/{disk}/partition").exists()
    assert block_device_of(Path("/proc")) is None
