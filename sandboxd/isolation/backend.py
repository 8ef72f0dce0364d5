"""What the service needs of a way to isolate: launch a plan, find a machine again, and all that is done to machines.

Nothing above this package knows which processes of the host a machine is, or looks at them: under a backend with a
kernel of its own they are not the sandbox's. Two backends pass the same contract tests
(tests/isolation/test_contract.py): bubblewrap, and a fake for tests that runs sandbox-init without isolation.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandboxd.errors import Unprocessable
from sandboxd.isolation.init.client import InitClient
from sandboxd.isolation.plan import LaunchPlan, Slot
from sandboxd.kernel.cgroup_statistics import CgroupStatistics
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a machine uses at one moment."""

    processes: int
    memory: int
    """bytes, without page cache that can be had back where the host tells it apart"""
    cpu_seconds: float
    """processor time since the machine began"""
    received: int
    """bytes over the sandbox's network interfaces but loopback"""
    sent: int
    cgroup: CgroupStatistics | None
    """all that the sandbox's cgroup counts; None on a host without cgroups"""


class RunningMachine(Protocol):
    """A live sandbox. Its companions, host processes that live and die with it, are part of it.

    Owns: what leads to its processes (descriptors), until close() or destroy().
    Cancelled: destroy() may be called again, freeze() may have frozen some of it.
    """

    machine: Machine
    """what a later daemon finds it by"""
    init: InitClient
    """its sandbox-init: commands, files, ports, and all else that happens inside"""

    async def wait_ended(self) -> None:
        """Return when sandbox-init, and with it every process of the sandbox, is gone. For one task at a time.

        Raises: trio.ClosedResourceError when it is closed or destroyed meanwhile.
        """

    def ended(self) -> bool:
        """Whether it is gone."""

    async def destroy(self) -> None:
        """Kill everything and return when no process is left. Raises: SandboxLost when one cannot be killed."""

    def close(self) -> None:
        """Let go of the machine without touching it: it lives on."""

    def stopped_jobs(self) -> frozenset[int]:
        """Processes that the sandbox's own shells have stopped, as numbers for thaw(): what a freeze would make
        forget. Empty where none is forgotten.
        """

    async def freeze(self) -> None:
        """Return when no process runs any more. Raises: Unavailable when one will not stop; then all run on."""

    async def thaw(self, *, but: AbstractSet[int] = frozenset()) -> None:
        """Let everything go on, except what stopped_jobs() told before the freeze."""

    def is_frozen(self) -> bool:
        """Whether somebody froze it, or began to."""

    async def usage(self) -> Usage:
        """What it uses now. Works while it is frozen; meaningless when it has ended meanwhile."""

    def oom_kills(self) -> int | None:
        """How many of its processes the kernel killed for memory; None where that is not counted."""

    async def reclaim(self, amount: int) -> bool:
        """Have so many bytes of memory that it does not need now written out or dropped; False if it were fewer."""


Meanwhile = Callable[[RunningMachine], Awaitable[None]]


class Backend(Protocol):
    """A way to isolate. Methods raise LaunchFailed when the host is at fault and RequestError when the plan is."""

    name: str

    async def launch(self, plan: LaunchPlan, *, meanwhile: Meanwhile | None = None) -> RunningMachine:
        """Start the plan; returns when sandbox-init answers. On any failure or cancellation no process is left.

        Quick if its slot was prepared. The machine is complete, and only its answer is waited for, while `meanwhile`
        is done; a failure of that is one of the launch.
        """

    def attach(self, machine: Machine, runtime: Path, *, cgroup: Cgroup) -> RunningMachine | None:
        """The machine that an earlier daemon started, or None if it is gone."""

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        """End whatever runs of these sandboxes, of which nothing is known but their ids."""

    async def prepare(self, slot: Slot) -> None:
        """Start all of a sandbox that does not depend on its plan. On failure or cancellation no process is left."""

    def is_prepared(self, sandbox: str) -> bool:
        """Whether something is, and still lives."""

    async def drop(self, sandbox: str) -> None:
        """End what was prepared for a sandbox, if anything was."""

    def close(self) -> None:
        """Let go of all machines, which live on, and end what was prepared."""


class Backends:
    """The backends of one daemon, by name, and the one that is used where none is asked for.

    Owns: the backends.
    """

    def __init__(self, *backends: Backend, default: str) -> None:
        self._named: Mapping[str, Backend] = {backend.name: backend for backend in backends}
        self.default = default

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._named))

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._named.values())

    def get(self, name: str) -> Backend:
        """Raises: Unprocessable, naming those that there are."""
        found = self._named.get(name)
        if found is None:
            raise Unprocessable(
                f"cannot use the backend {name!r}: this daemon has {', '.join(self.names)}",
                kind="no_such_backend",
                backends=list(self.names),
            )
        return found

    def close(self) -> None:
        for backend in self:
            backend.close()
