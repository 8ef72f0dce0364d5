"""A sandbox's place in the registry, and what all sandboxes stand on."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVarTuple, Unpack

import trio

from sandboxd.errors import Conflict, SandboxdError
from sandboxd.isolation.backend import Backend, RunningMachine
from sandboxd.kernel.cgroup_tree import CgroupTree
from sandboxd.kernel.cgroups import CgroupLimits, IoLimit
from sandboxd.model import EventKind, Limits, Sandbox, SandboxState
from sandboxd.service.disk import Disk
from sandboxd.service.ranges import IdRanges

log = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Entry:
    """One sandbox's place in the registry. Its supervisor changes it; everyone else reads, or asks for its end.

    What other parts of the service keep for a sandbox, they keep by its entry in a WeakKeyDictionary, so that it goes
    when the entry goes.
    """

    sandbox: Sandbox
    running: RunningMachine | None = None
    residents: trio.Nursery | None = None
    """tasks beside the running machine; opened and, when the machine has ended, cancelled by the supervisor"""
    stop_reason: EventKind | None = None
    """why it is to end, once that is decided"""
    changed: trio.Event = field(default_factory=trio.Event)
    """set, and replaced, when there may be something for the supervisor to do"""
    settled: trio.Event = field(default_factory=trio.Event)
    """set, and replaced, when a deletion ended: well, or with `failure`"""
    failure: SandboxdError | None = None
    oom_noticed: bool = False

    def ask_to_stop(self, reason: EventKind = EventKind.DELETED) -> None:
        """Let its supervisor delete it. The first reason counts."""
        self.stop_reason = self.stop_reason or reason
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def settle(self, failure: SandboxdError | None = None) -> None:
        self.failure = failure
        self.settled.set()
        self.settled = trio.Event()

    def note_oom(self) -> None:
        self.oom_noticed = True

    def start_resident(self, task: Callable[[Unpack[Arguments]], Awaitable[None]], *arguments: *Arguments) -> None:
        """Run a task for as long as the machine lives and the daemon runs. Raises: Conflict.

        Cancelled: at the machine's end, and when the daemon stops (the sandbox lives on): a resident cleans up after
        itself in bounded time and, for what outlives the daemon, is begun again by `Sandboxes.on_found`.
        """
        self.require_running()
        assert self.residents is not None
        self.residents.start_soon(_reside, self.sandbox.id, task, arguments)

    def require_running(self) -> RunningMachine:
        """The live machine. Raises: Conflict naming the state that is in the way."""
        if self.sandbox.state is SandboxState.RUNNING and self.running is not None and self.stop_reason is None:
            return self.running
        state = self.sandbox.state if self.stop_reason is None else SandboxState.DELETING
        raise Conflict(f"cannot use sandbox {self.sandbox.id}: it is {state}", state=state)


async def _reside(
    sandbox: str, task: Callable[[Unpack[Arguments]], Awaitable[None]], arguments: tuple[*Arguments]
) -> None:
    """A resident's failure is its own: neither its sandbox nor the daemon ends with it."""
    try:
        await task(*arguments)
    except (SandboxdError, OSError) as failure:
        log.warning("sandbox %s: %s", sandbox, failure)
    except Exception:
        log.exception("sandbox %s: a task beside it failed", sandbox)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the sandboxes stand on, gathered so that it is passed as one thing."""

    backend: Backend
    cgroups: CgroupTree | None
    disk: Disk
    ranges: IdRanges
    idmapped: bool
    root_id: int
    """id on disk of a sandbox's root: 0, or 1 where the daemon itself lives in a user namespace"""
    init: Path
    block_device: str | None
    """major:minor of the disk under the state directory, for io limits"""

    def cgroup_limits(self, limits: Limits) -> CgroupLimits | None:
        """The limits in the kernel's terms; None if there are none."""
        if not limits.named():
            return None
        io: tuple[IoLimit, ...] = ()
        if self.block_device is not None and (limits.read_bps or limits.write_bps):
            io = (
                IoLimit(
                    self.block_device,
                    read_bytes_per_second=limits.read_bps,
                    write_bytes_per_second=limits.write_bps,
                ),
            )
        return CgroupLimits(
            memory_max=limits.memory,
            swap_max=limits.swap,
            pids_max=limits.pids,
            cpus=limits.cpus,
            cpu_weight=limits.cpu_weight,
            io=io,
        )
