"""What the service needs of a way to isolate: launch a plan, find a machine again, destroy it.

Two kinds of it pass the same contract tests (tests/isolation/test_contract.py): bubblewrap, and a fake for tests that
runs sandbox-init without isolation.
"""

import contextlib
import errno
import os
import select
import signal
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from sandboxd.errors import SandboxLost
from sandboxd.isolation.init.client import InitClient
from sandboxd.isolation.plan import LaunchPlan, Slot
from sandboxd.kernel import procstat
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Machine

# A SIGKILLed process that does not go within this time hangs in the kernel (a dead network mount, a kernel bug).
KILL_LIMIT = 10.0


@dataclass(slots=True, kw_only=True)
class RunningMachine:
    """A live sandbox seen from the host.

    Owns: the pidfds of sandbox-init and of its monitor.
    Cancelled: destroy() may be called again.
    """

    machine: Machine
    init: InitClient
    cgroup: Cgroup | None
    init_pidfd: int
    monitor_pidfd: int | None

    async def wait_ended(self) -> None:
        """Return when sandbox-init, and with it every process of the sandbox, is gone. For one task at a time."""
        await trio.lowlevel.wait_readable(self.init_pidfd)

    def ended(self) -> bool:
        return not _alive(self.init_pidfd)

    def kill(self) -> None:
        """Kill everything. It dies on its own time; destroy() waits for it."""
        if self.cgroup is not None:
            self.cgroup.kill()
        if self.init_pidfd >= 0:
            _kill(self.init_pidfd)

    async def destroy(self) -> None:
        """Kill everything and return when no process is left; the cgroup stays. Raises: SandboxLost if it cannot."""
        self.kill()
        with trio.move_on_after(KILL_LIMIT) as limit:
            await _wait_dead(self.init_pidfd)
            if self.monitor_pidfd is not None:
                await trio.lowlevel.wait_readable(self.monitor_pidfd)
        if limit.cancelled_caught:
            raise SandboxLost(f"cannot end process {self.machine.pid}: it does not react to SIGKILL")
        self.close()

    def close(self) -> None:
        """Let go of the machine without touching it."""
        self.init.close()
        for descriptor in (self.init_pidfd, self.monitor_pidfd):
            if descriptor is not None and descriptor >= 0:
                trio.lowlevel.notify_closing(descriptor)
                os.close(descriptor)
        self.init_pidfd, self.monitor_pidfd = -1, None


Meanwhile = Callable[[RunningMachine], Awaitable[None]]


class Backend(Protocol):
    """A way to isolate. Methods raise LaunchFailed when the host is at fault and RequestError when the plan is."""

    name: str

    async def launch(
        self, plan: LaunchPlan, *, cgroup: Cgroup | None, meanwhile: Meanwhile | None = None
    ) -> RunningMachine:
        """Start the plan; returns when sandbox-init answers. On any failure or cancellation nothing is left.

        Quick if its slot was prepared, with the same cgroup. The machine is complete, and only its answer is waited
        for, while `meanwhile` is done; a failure of that is one of the launch.
        """

    def attach(self, machine: Machine, runtime: Path, *, cgroup: Cgroup | None) -> RunningMachine | None:
        """The machine that an earlier daemon started, or None if it is gone."""

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        """End whatever runs of these sandboxes, of which nothing is known but their ids."""

    async def prepare(self, slot: Slot, *, cgroup: Cgroup | None) -> None:
        """Start all of a sandbox that does not depend on its plan. On failure or cancellation nothing is left."""

    def is_prepared(self, sandbox: str) -> bool:
        """Whether something is, and still lives."""

    async def drop(self, sandbox: str) -> None:
        """End what was prepared for a sandbox, if anything was; the cgroup stays."""

    def close(self) -> None: ...


def attach_by_pid(machine: Machine, runtime: Path, *, cgroup: Cgroup | None) -> RunningMachine | None:
    """Find a machine again by pid, start time and boot id: together they cannot name another process."""
    if machine.host_boot_id != procstat.boot_id():
        return None
    init_pidfd = open_pidfd(machine.pid, machine.pid_started)
    if init_pidfd is None:
        return None
    return RunningMachine(
        machine=machine,
        init=InitClient(runtime / "init.sock"),
        cgroup=cgroup,
        init_pidfd=init_pidfd,
        monitor_pidfd=open_pidfd(machine.monitor, machine.monitor_started),
    )


def attach_new(pid: int, monitor: int, runtime: Path, *, cgroup: Cgroup | None) -> RunningMachine:
    """The machine of two processes that have just been started. Raises: OSError if one of them has ended."""
    init_pidfd = os.pidfd_open(pid)
    try:
        monitor_pidfd = os.pidfd_open(monitor)
    except BaseException:
        os.close(init_pidfd)
        raise
    machine = Machine(
        pid=pid,
        pid_started=procstat.start_time(pid),
        monitor=monitor,
        monitor_started=procstat.start_time(monitor),
        host_boot_id=procstat.boot_id(),
    )
    running = RunningMachine(
        machine=machine,
        init=InitClient(runtime / "init.sock"),
        cgroup=cgroup,
        init_pidfd=init_pidfd,
        monitor_pidfd=monitor_pidfd,
    )
    # While they live nobody else has their pids: the start times are theirs.
    if not (_alive(init_pidfd) and _alive(monitor_pidfd)):
        running.close()
        raise OSError("the sandbox ended while it started")
    return running


def open_pidfd(pid: int, started: int) -> int | None:
    """A pidfd of the process `pid` that started at `started` (clock ticks since boot); None if it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if procstat.start_time(pid) == started and _alive(descriptor):
        return descriptor
    os.close(descriptor)
    return None


async def remove_cgroup(cgroup: Cgroup) -> None:
    """Remove the directory, waiting out the moment in which the kernel still counts the last dead process in it."""
    while True:
        try:
            cgroup.remove()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            cgroup.kill()
            await trio.sleep(0.001)
        else:
            return


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


async def _wait_dead(pidfd: int) -> None:
    # By a descriptor of its own: trio lets but one task wait for each, and wait_ended() may have it already.
    own = os.dup(pidfd)
    try:
        await trio.lowlevel.wait_readable(own)
    finally:
        os.close(own)


def _alive(pidfd: int) -> bool:
    """A pidfd is readable once the process ended, reaped or not; signal 0 would still reach a zombie."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)
