"""cgroups.py against real controllers, on a pure v2 host, as root."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxd.kernel.cgroup_tree import CgroupTree, discover_cgroups
from sandboxd.kernel.cgroups import Cgroup, CgroupLimits, IoLimit, block_device_of
from tests.kernel.processes import BUSY_LOOP, empty, process_in, wait_until

# What holds on any host must hold here too.
from tests.kernel.test_cgroups import (  # noqa: F401
    test_a_limit_without_its_controller_is_refused_not_ignored,
    test_a_process_is_born_in_a_cgroup_by_its_descriptor,
    test_freeze_stops_a_running_process_and_thaw_lets_it_go_on,
    test_kill_ends_frozen_processes_and_those_of_child_cgroups,
    test_the_watcher_tells_only_of_what_changed,
)
from tests.support import waiting
from tests.support.waiting import PATIENCE
from tests.uml.machine import DISK

MIB = 1 << 20


def hog(mib: int) -> tuple[str, ...]:
    """A program that touches so much memory and then exits with 0."""
    return (sys.executable, "-ISc", f"data = b'x' * ({mib} << 20)")


def test_every_limit_can_be_enforced_here(tree: CgroupTree) -> None:
    assert tree.controllers == {"cpu", "io", "memory", "pids"}
    assert tree.limits == {"cpu", "io", "memory", "pids", "swap"}
    assert tree.refused == {}
    assert discover_cgroups().reason == ""


def test_memory_over_the_limit_is_killed_and_told(tree: CgroupTree) -> None:
    limited = tree.create("limited", CgroupLimits(memory_max=32 * MIB, swap_max=0))
    with process_in(limited, hog(64)) as process:
        wait_until(lambda: limited.memory_events().oom_kill > 0, limited)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    counted = limited.statistics()
    assert counted.memory_events.oom_kill == 1
    assert 24 * MIB <= counted.memory_peak <= 32 * MIB
    assert counted.memory_current < 32 * MIB


def test_a_frozen_cgroup_gives_its_page_cache_back(tree: CgroupTree) -> None:
    cached = tree.create("cached")
    # A file system with a disk under it; the program stays, so that there is something to freeze.
    path = Path(DISK) / "cached"
    program = f"""
import os, time
with open({str(path)!r}, "wb") as file:
    file.write(bytes(48 << 20))
    os.fsync(file.fileno())
print(1, flush=True)
time.sleep(600)"""
    with process_in(cached, (sys.executable, "-ISc", program)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        cached.freeze()
        wait_until(lambda: cached.frozen, cached)
        before = cached.statistics().memory_current
        assert cached.reclaim(16 * MIB)
        assert cached.statistics().memory_current < before - 12 * MIB
        while cached.reclaim(16 * MIB):
            pass
        assert cached.statistics().memory_current < 16 * MIB
        assert cached.frozen
    path.unlink()


def test_memory_under_the_limit_is_left_alone(tree: CgroupTree) -> None:
    roomy = tree.create("roomy", CgroupLimits(memory_max=256 * MIB, swap_max=0))
    with process_in(roomy, hog(64)) as process:
        assert process.wait(PATIENCE) == 0
    assert roomy.memory_events().oom_kill == 0
    assert roomy.statistics().memory_peak >= 64 * MIB


def test_memory_over_the_high_mark_is_slowed_not_killed(tree: CgroupTree) -> None:
    soft = tree.create("soft", CgroupLimits(memory_high=16 * MIB, memory_max=256 * MIB, swap_max=0))
    with process_in(soft, hog(64)) as process:
        wait_until(lambda: soft.memory_events().high > 0, soft)
        assert process.poll() is None
    assert soft.memory_events().oom_kill == 0


@contextlib.contextmanager
def swap_of(mib: int) -> Iterator[None]:
    file = Path(DISK, "swap")
    file.touch(mode=0o600)
    os.posix_fallocate(descriptor := os.open(file, os.O_RDWR), 0, mib * MIB)
    os.close(descriptor)
    subprocess.run(["mkswap", file], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", file], check=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True)
        file.unlink()


def test_swap_is_used_up_to_its_own_limit(tree: CgroupTree) -> None:
    holder = (*hog(48)[:-1], hog(48)[-1] + "; print('held', flush=True); input()")
    with swap_of(96):
        spilling = tree.create("spilling", CgroupLimits(memory_max=32 * MIB))
        with process_in(spilling, holder) as process:
            assert process.stdout.readline() == b"held\n"
            assert spilling.statistics().swap_current > 12 * MIB
        empty(spilling)
        tight = tree.create("tight", CgroupLimits(memory_max=32 * MIB, swap_max=8 * MIB))
        with process_in(tight, hog(64)) as process:
            assert process.wait(PATIENCE) == -signal.SIGKILL
        assert tight.memory_events().oom_kill == 1


def test_forks_over_the_limit_fail_and_are_counted(tree: CgroupTree) -> None:
    limited = tree.create("limited", CgroupLimits(pids_max=8))
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 600 & done; echo all"
    with process_in(limited, ("sh", "-c", script), stderr=subprocess.PIPE) as process:
        assert process.wait(PATIENCE) != 0
        assert b"fork" in process.stderr.readline()
    counted = limited.statistics()
    assert counted.pids_refused >= 1
    assert counted.pids_current == len(limited.pids()) == 7


def wait_for_figure(is_right: Callable[[], bool]) -> None:
    """Measure until it is: the host may stand still while something is measured, but not each time."""
    waiting.wait_until(is_right)


def cpu_share(cgroups: list[Cgroup], *, seconds: float) -> list[float]:
    """How many processors each of these used, over some time."""
    start, before = time.monotonic(), [each.statistics().cpu_usec for each in cgroups]
    select.select([], [], [], seconds)
    after, elapsed = [each.statistics().cpu_usec for each in cgroups], time.monotonic() - start
    return [(end - begin) / 1e6 / elapsed for begin, end in zip(before, after, strict=True)]


def test_processor_time_stays_within_its_quota(tree: CgroupTree) -> None:
    limited = tree.create("limited", CgroupLimits(cpus=0.25))
    with process_in(limited, BUSY_LOOP):
        wait_for_figure(lambda: cpu_share([limited], seconds=2)[0] == pytest.approx(0.25, rel=0.3))
        assert limited.statistics().cpu_throttled_periods > 5
        limited.set_limits(CgroupLimits())
        wait_for_figure(lambda: cpu_share([limited], seconds=1)[0] > 0.6)


def test_processor_time_is_shared_by_weight(tree: CgroupTree) -> None:
    light, heavy = tree.create("light"), tree.create("heavy", CgroupLimits(cpu_weight=300))
    with process_in(light, BUSY_LOOP), process_in(heavy, BUSY_LOOP):

        def ratio() -> float:
            small, large = cpu_share([light, heavy], seconds=2)
            return large / small

        wait_for_figure(lambda: ratio() == pytest.approx(3, rel=0.4))


def written(cgroup: Cgroup, mib: int) -> float:
    """Seconds to write so much to the disk itself."""
    command = ("dd", "if=/dev/zero", f"of={DISK}/file", "bs=64k", f"count={mib * 16}", "oflag=direct")
    start = time.monotonic()
    with process_in(cgroup, command, stderr=subprocess.DEVNULL) as process:
        assert process.wait(PATIENCE) == 0
    Path(DISK, "file").unlink()
    return time.monotonic() - start


def test_disk_writes_are_slowed_to_their_limit(tree: CgroupTree) -> None:
    device = block_device_of(Path(DISK))
    assert device == "98:0"
    limited = tree.create("limited", CgroupLimits(io=(IoLimit(device, write_bytes_per_second=2 * MIB),)))
    assert written(limited, 4) >= 1.5
    assert limited.statistics().io.write_bytes >= 4 * MIB
    limited.set_limits(CgroupLimits())
    assert (limited.path / "io.max").read_text() == ""
    wait_for_figure(lambda: written(limited, 4) < 1.5)


def test_values_the_kernel_refuses_leave_no_cgroup_behind(tree: CgroupTree) -> None:
    for limits, number in (
        (CgroupLimits(cpu_weight=10001), errno.ERANGE),
        (CgroupLimits(pids_max=-1), errno.EINVAL),
        (CgroupLimits(io=(IoLimit("1:1", read_bytes_per_second=1),)), errno.ENODEV),
    ):
        with pytest.raises(OSError) as caught:
            tree.create("refused", limits)
        assert caught.value.errno == number
        assert tree.names() == frozenset()


# ── Delegation ──

USER = 1000
DELEGATED = Path("/sys/fs/cgroup/delegated")

# Runs as an ordinary user in DELEGATED, as a daemon would under systemd's Delegate=yes.
DAEMON = """
import os, signal, subprocess, sys
from sandboxd.kernel.cgroup_tree import discover_cgroups, prepare_cgroups
from sandboxd.kernel.cgroups import CgroupLimits
from tests.kernel.processes import process_in
support = discover_cgroups()
tree = prepare_cgroups(support, instance="user")
print(support.root)
print(open("/proc/self/cgroup").read().strip())
print(*sorted(tree.limits))
print(tree.refused.get("memory", "nothing"))
if "memory" in tree.limits:
    sandbox = tree.create("one", CgroupLimits(memory_max=16 << 20, swap_max=0, pids_max=9))
    with process_in(sandbox, (sys.executable, "-ISc", "data = b'x' * (64 << 20)")) as process:
        print(process.wait(30), sandbox.memory_events().oom_kill)
    sandbox.remove()
tree.remove()
"""


@pytest.fixture
def delegated() -> Iterator[Cgroup]:
    """A cgroup with every controller, given to USER as the kernel's documentation says."""
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpu +io +memory +pids")
    cgroup = Cgroup.create(DELEGATED)
    for path in (DELEGATED, *(DELEGATED / f"cgroup.{name}" for name in ("procs", "subtree_control", "threads"))):
        os.chown(path, USER, USER)
    try:
        yield cgroup
    finally:
        empty(cgroup)
        cgroup.remove()


def as_user(*command: str) -> tuple[str, ...]:
    """The command as USER, who may read everything: the interpreter and the checkout may be root's alone."""
    capability = "+dac_read_search"
    identity = ("--reuid", str(USER), "--regid", str(USER), "--clear-groups")
    return ("setpriv", *identity, "--inh-caps", capability, "--ambient-caps", capability, *command)


def run_daemon(cgroup: Cgroup, *, root: bool = False) -> list[str]:
    daemon = (sys.executable, "-c", DAEMON)
    with process_in(cgroup, daemon if root else as_user(*daemon)) as process:
        output, _ = process.communicate(timeout=4 * PATIENCE)  # imports are slow in User-Mode Linux
        assert process.returncode == 0
        return output.decode().splitlines()


def test_an_ordinary_user_enforces_limits_in_a_delegated_cgroup(delegated: Cgroup) -> None:
    root, own, limits, refused, killed = run_daemon(delegated)
    assert root == str(DELEGATED)
    assert own == "0::/delegated/daemon"
    assert limits == "cpu io memory pids swap"
    assert refused == "nothing"
    assert killed == "-9 1"


def test_a_daemon_started_again_in_its_leaf_uses_the_same_root(delegated: Cgroup) -> None:
    run_daemon(delegated)
    root, own, *_ = run_daemon(Cgroup(DELEGATED / "daemon"))
    assert (root, own) == (str(DELEGATED), "0::/delegated/daemon")


def test_a_stranger_in_the_delegated_cgroup_costs_the_controllers_and_is_named(delegated: Cgroup) -> None:
    with process_in(delegated, ("sleep", "600")):
        _, _, limits, refused = run_daemon(delegated)
        assert limits == ""
        assert "1 processes are in that cgroup itself" in refused


def test_root_prefers_a_cgroup_that_was_delegated_to_it(delegated: Cgroup) -> None:
    assert run_daemon(delegated, root=True)[0] == "/sys/fs/cgroup"
    os.setxattr(DELEGATED, "trusted.delegate", b"1")
    assert run_daemon(delegated, root=True)[0] == str(DELEGATED)


def test_an_ordinary_user_without_delegation_is_told_what_to_do() -> None:
    script = "from sandboxd.kernel.cgroup_tree import *; s = discover_cgroups(); print(s.root, s.reason)"
    output = subprocess.run(as_user(sys.executable, "-c", script), check=True, capture_output=True, text=True).stdout
    assert output.startswith("None /sys/fs/cgroup is not writable by uid 1000")
    assert "systemd-run --user --scope -p Delegate=yes" in output
