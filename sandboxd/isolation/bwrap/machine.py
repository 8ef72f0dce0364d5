"""A machine that is a tree of this host's processes: sandbox-init, pid 1 of a namespace, and its monitor."""

import contextlib
import os
import select
import signal
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import trio

from sandboxd.errors import SandboxLost, Unavailable
from sandboxd.isolation.backend import Usage
from sandboxd.isolation.bwrap.freezer import CgroupFreezer, Freezer, SignalFreezer
from sandboxd.isolation.bwrap.usage import measure
from sandboxd.isolation.init.client import InitClient
from sandboxd.kernel import procstat
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Machine
from sandboxd.threads import run_in_thread

# A SIGKILLed process that does not go within this time hangs in the kernel (a dead network mount, a kernel bug).
KILL_LIMIT = 10.0
# Freezing is mostly over at once. A process in an uninterruptible system call (a dead network mount) holds it up.
FREEZE_LIMIT = 10.0
FIRST_LOOK = 0.0005
LONGEST_LOOK = 0.02


@dataclass(slots=True, kw_only=True)
class ProcessMachine:
    """See RunningMachine. Its processes are known by pidfds, which cannot come to mean others.

    Owns: the pidfds of sandbox-init and of its monitor.
    """

    machine: Machine
    init: InitClient
    cgroup: Cgroup
    init_pidfd: int
    monitor_pidfd: int | None
    _freezer: Freezer = field(init=False)

    def __post_init__(self) -> None:
        self._freezer = CgroupFreezer(self.cgroup) if self.cgroup.present else SignalFreezer(self.machine.pid)

    @classmethod
    def found(cls, machine: Machine, runtime: Path, *, cgroup: Cgroup) -> Self | None:
        """An earlier daemon's, by pid, start time and boot id: together they cannot name another process. None if it
        is gone.
        """
        if machine.host_boot_id != procstat.boot_id():
            return None
        init_pidfd = _open_pidfd(machine.pid, machine.pid_started)
        if init_pidfd is None:
            return None
        return cls(
            machine=machine,
            init=InitClient(runtime / "init.sock"),
            cgroup=cgroup,
            init_pidfd=init_pidfd,
            monitor_pidfd=_open_pidfd(machine.monitor, machine.monitor_started),
        )

    @classmethod
    def started(cls, pid: int, monitor: int, runtime: Path, *, cgroup: Cgroup) -> Self:
        """Of two processes that have just been started. Raises: OSError if one of them has ended."""
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
        made = cls(
            machine=machine,
            init=InitClient(runtime / "init.sock"),
            cgroup=cgroup,
            init_pidfd=init_pidfd,
            monitor_pidfd=monitor_pidfd,
        )
        # While they live nobody else has their pids: the start times are theirs.
        if not (_alive(init_pidfd) and _alive(monitor_pidfd)):
            made.close()
            raise OSError("the sandbox ended while it started")
        return made

    # -- its end --------------------------------------------------------------------------------------------------

    async def wait_ended(self) -> None:
        await trio.lowlevel.wait_readable(self.init_pidfd)

    def ended(self) -> bool:
        return not _alive(self.init_pidfd)

    async def destroy(self) -> None:
        self.cgroup.kill()
        if self.init_pidfd >= 0:
            _kill(self.init_pidfd)
        with trio.move_on_after(KILL_LIMIT) as limit:
            await _wait_dead(self.init_pidfd)
            if self.monitor_pidfd is not None:
                await trio.lowlevel.wait_readable(self.monitor_pidfd)
        if limit.cancelled_caught:
            raise SandboxLost(f"cannot end process {self.machine.pid}: it does not react to SIGKILL")
        self.close()

    def close(self) -> None:
        self.init.close()
        for descriptor in (self.init_pidfd, self.monitor_pidfd):
            if descriptor is not None and descriptor >= 0:
                trio.lowlevel.notify_closing(descriptor)
                os.close(descriptor)
        self.init_pidfd, self.monitor_pidfd = -1, None

    # -- standing still -------------------------------------------------------------------------------------------

    def stopped_jobs(self) -> frozenset[int]:
        return self._freezer.stopped_jobs()

    async def freeze(self) -> None:
        with trio.move_on_after(FREEZE_LIMIT):
            pause = FIRST_LOOK
            while not await self._freezer.freeze():
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_LOOK)
            return
        await self.thaw()
        raise Unavailable(
            f"cannot freeze the processes: one of them does not stop within {FREEZE_LIMIT:g} s, "
            "it waits in the kernel"
        )

    async def thaw(self, *, but: AbstractSet[int] = frozenset()) -> None:
        await self._freezer.thaw(but=but)

    def is_frozen(self) -> bool:
        return self._freezer.is_frozen()

    # -- what it uses ---------------------------------------------------------------------------------------------

    async def usage(self) -> Usage:
        return await run_in_thread(measure, self.machine.pid, self.cgroup)

    def oom_kills(self) -> int | None:
        return self.cgroup.oom_kills()

    async def reclaim(self, amount: int) -> bool:
        return await run_in_thread(self.cgroup.reclaim, amount)


def _open_pidfd(pid: int, started: int) -> int | None:
    """A pidfd of the process `pid` that started at `started` (clock ticks since boot); None if it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if procstat.start_time(pid) == started and _alive(descriptor):
        return descriptor
    os.close(descriptor)
    return None


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
