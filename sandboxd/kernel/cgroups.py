"""One cgroup (v2) for one sandbox: limits, freeze, kill, membership, counters, removal.

Where such cgroups may live is cgroup_tree's business; waiting for changes is cgroup_events'. Version 1
hierarchies are never touched. Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sandboxd.kernel.cgroup_statistics import (
    CgroupStatistics,
    MemoryEvents,
    parse_flat,
    read_memory_events,
    read_statistics,
)

# The kernel's own default. Longer periods let a burst through before the throttle bites and then stall the
# sandbox for longer; shorter ones cost timer interrupts.
CPU_PERIOD_USEC = 100_000

# Both are the kernel's: CPU_WEIGHT_DEFAULT, and the smallest quota it takes (1 ms, min_cfs_quota_period).
CPU_WEIGHT_DEFAULT = 100
CPU_QUOTA_MIN_USEC = 1_000


def _cpu_quota(cpus: float | None) -> str:
    # A request for less than the kernel's smallest quota gets that quota, rather than EINVAL.
    return "max" if cpus is None else str(max(CPU_QUOTA_MIN_USEC, round(cpus * CPU_PERIOD_USEC)))


def _or_max(value: int | None) -> str:
    return "max" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class IoLimit:
    """Limits for one block device, `device` being "major:minor" of a whole disk (see block_device_of).

    Bytes and operations per second; None means unlimited.
    """

    device: str
    read_bytes_per_second: int | None = None
    write_bytes_per_second: int | None = None
    read_operations_per_second: int | None = None
    write_operations_per_second: int | None = None

    def __str__(self) -> str:
        """A line for io.max."""
        return (
            f"{self.device} rbps={_or_max(self.read_bytes_per_second)}"
            f" wbps={_or_max(self.write_bytes_per_second)}"
            f" riops={_or_max(self.read_operations_per_second)}"
            f" wiops={_or_max(self.write_operations_per_second)}"
        )


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The whole of what a cgroup may use. None means unlimited (the kernel's default).

    memory_max, memory_high, swap_max in bytes; pids_max counts threads; cpus in processors (0.5 is half of
    one); cpu_weight from 1 to 10000, against 100 for everyone else.
    """

    memory_max: int | None = None
    memory_high: int | None = None
    swap_max: int | None = None
    pids_max: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    io: tuple[IoLimit, ...] = ()

    def settings(self) -> dict[str, str]:
        """File name -> value, for the limits that have a single-valued file, in the order they must be
        written.
        """
        return {
            # Swap first: lowering memory.max reclaims at once, and must not push pages to swap that is then
            # refused.
            "memory.swap.max": _or_max(self.swap_max),
            "memory.high": _or_max(self.memory_high),
            "memory.max": _or_max(self.memory_max),
            "pids.max": _or_max(self.pids_max),
            "cpu.max": f"{_cpu_quota(self.cpus)} {CPU_PERIOD_USEC}",
            "cpu.weight": str(self.cpu_weight or CPU_WEIGHT_DEFAULT),
        }


_UNLIMITED = CgroupLimits().settings()


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A handle on the cgroup at `path`: a value, it holds nothing open and may name a cgroup that is gone.

    Methods raise FileNotFoundError (or OSError ENODEV, when it vanishes during the call) if there is no such
    cgroup.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, limits: CgroupLimits | None = None) -> Self:
        """Make the cgroup with these limits; on failure nothing is left behind.

        Raises FileExistsError, or OSError as set_limits does.
        """
        path.mkdir()
        cgroup = cls(path)
        try:
            if limits is not None:
                cgroup._apply(limits, skip_unlimited=True)
        except BaseException:
            path.rmdir()
            raise
        return cgroup

    @property
    def present(self) -> bool:
        """Whether this host has cgroups for sandboxes at all; False for NO_CGROUP only."""
        return True

    def exists(self) -> bool:
        return self.path.is_dir()

    def set_limits(self, limits: CgroupLimits) -> None:
        """Make these the limits, lifting those that are None.

        Raises OSError: EOPNOTSUPP for a limit whose controller this cgroup does not have, EINVAL or ERANGE
        for a value the kernel refuses, ENODEV for an io device that does not exist.
        """
        self._apply(limits, skip_unlimited=False)

    def _apply(self, limits: CgroupLimits, *, skip_unlimited: bool) -> None:
        for name, value in limits.settings().items():
            if value != _UNLIMITED[name]:
                self._write_limit(name, value)
            elif not skip_unlimited and (self.path / name).exists():
                _write(self.path / name, value)
        stale = set() if skip_unlimited else self._io_devices() - {limit.device for limit in limits.io}
        for limit in (*limits.io, *(IoLimit(device) for device in sorted(stale))):
            self._write_limit("io.max", str(limit))

    def _write_limit(self, name: str, value: str) -> None:
        try:
            _write(self.path / name, value)
        except FileNotFoundError:
            if not self.exists():
                raise
            message = f"cannot set {name}: the controller is not enabled for this cgroup"
            raise OSError(errno.EOPNOTSUPP, message, str(self.path / name)) from None

    def _io_devices(self) -> set[str]:
        try:
            return {line.split()[0] for line in (self.path / "io.max").read_text().splitlines()}
        except FileNotFoundError:
            return set()

    def freeze(self) -> None:
        """Ask for every process to stop. The freezer works on its own time: `frozen` says when it is done."""
        _write(self.path / "cgroup.freeze", "1")

    def thaw(self) -> None:
        _write(self.path / "cgroup.freeze", "0")

    @property
    def freezing(self) -> bool:
        """Whether it was asked to freeze, done or not."""
        return (self.path / "cgroup.freeze").read_text().strip() == "1"

    @property
    def frozen(self) -> bool:
        """Whether every process (here and below) is stopped now."""
        return self._events()["frozen"] == 1

    def reclaim(self, amount: int) -> bool:
        """Have the kernel take so many bytes of memory back: page cache, and what it can swap out. Takes a while.

        False when it did not get that much, or cannot be asked (no memory controller; Linux before 5.19).
        """
        try:
            _write(self.path / "memory.reclaim", str(amount))
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.ENOENT, errno.EINVAL}:
                return False
            raise
        return True

    @property
    def populated(self) -> bool:
        """Whether a process that is not a zombie is here or below."""
        return self._events()["populated"] == 1

    def _events(self) -> dict[str, int]:
        return parse_flat((self.path / "cgroup.events").read_text())

    def kill(self) -> None:
        """SIGKILL every process, here and below, frozen ones and those being forked too.

        They die on their own time; `populated` says when the last one is gone.
        """
        _write(self.path / "cgroup.kill", "1")

    def attach(self, pid: int) -> None:
        """Move a process, with all its threads, into the cgroup.

        Costs an RCU grace period (milliseconds); a process that is yet to be made is better born here, by
        clone3 with CLONE_INTO_CGROUP and open_fd().
        """
        _write(self.path / "cgroup.procs", str(pid))

    def open_fd(self) -> int:
        """An O_PATH descriptor for clone3's CLONE_INTO_CGROUP. The caller closes it."""
        return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def pids(self) -> frozenset[int]:
        """Process ids here and below, as this process' pid namespace numbers them."""
        found: set[int] = set()
        for directory in _walk(self.path):
            try:
                found.update(map(int, (directory / "cgroup.procs").read_text().split()))
            except OSError as error:
                # A child cgroup may vanish while we look; our own being gone is for the caller to know.
                if directory == self.path or error.errno not in {errno.ENOENT, errno.ENODEV}:
                    raise
        # 0 stands for a process outside our pid namespace: nobody can act on it.
        return frozenset(found - {0})

    def statistics(self) -> CgroupStatistics:
        return read_statistics(self.path)

    def memory_events(self) -> MemoryEvents | None:
        """None without the memory controller. Cheaper than statistics() where only an OOM kill matters."""
        return read_memory_events(self.path)

    def oom_kills(self) -> int | None:
        """How many processes the kernel killed here for memory; None where that is not counted, or it is gone."""
        try:
            events = self.memory_events()
        except OSError:
            return None
        return None if events is None else events.oom_kill

    def remove(self) -> None:
        """Remove the cgroup and those below it; one that is gone already is fine.

        Raises OSError EBUSY while a process is left (see populated).
        """
        for directory in reversed(list(_walk(self.path))):
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue


class NoCgroup(Cgroup):
    """What a sandbox has for a cgroup on a host where it can have none: nothing is in it, so whatever is to be done
    to all that is in it is done.
    """

    @property
    def present(self) -> bool:
        return False

    def exists(self) -> bool:
        return False

    def set_limits(self, limits: CgroupLimits) -> None:
        """Nobody asks for limits here, or wants them ignored: the service refuses those that cannot be enforced."""

    def reclaim(self, amount: int) -> bool:
        return False

    def kill(self) -> None:
        pass

    def attach(self, pid: int) -> None:
        pass

    def pids(self) -> frozenset[int]:
        return frozenset()

    def memory_events(self) -> MemoryEvents | None:
        return None

    def remove(self) -> None:
        pass


NO_CGROUP: Final = NoCgroup(Path("/nonexistent"))


def block_device_of(path: Path) -> str | None:
    """The whole disk, as "major:minor", that holds this path; None where there is none (tmpfs, btrfs, …).

    io.max takes whole disks only, so a partition is answered with its parent.
    """
    device = path.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not entry.exists():
        return None
    disk = entry.resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    return (disk / "dev").read_text().strip()


def _walk(top: Path) -> Iterator[Path]:
    """The cgroup and all below it, parents first. Tolerates what vanishes on the way."""
    yield top
    try:
        children = [Path(entry.path) for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for child in children:
        yield from _walk(child)


def _write(path: Path, value: str) -> None:
    """One write(2), never creating: cgroup files take a value whole, and a missing file must be ENOENT."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)
