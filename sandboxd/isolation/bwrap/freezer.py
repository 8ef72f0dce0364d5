"""A tree of processes held still, all at once, and let go: by its cgroup, or by signals where it has none."""

from collections.abc import Set as AbstractSet
from typing import Protocol

from sandboxd.kernel import halting
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.threads import run_in_thread_or_here


class Freezer(Protocol):
    """How the processes are held. See RunningMachine for what is not said here."""

    def stopped_jobs(self) -> frozenset[int]: ...

    async def freeze(self) -> bool:
        """Stop what runs. False while something still does: call it again."""

    async def thaw(self, *, but: AbstractSet[int]) -> None: ...

    def is_frozen(self) -> bool: ...


class CgroupFreezer:
    """By the kernel's own freezer, of which processes notice nothing, nor forget anything."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup

    def stopped_jobs(self) -> frozenset[int]:
        return frozenset()

    async def freeze(self) -> bool:
        if not self._cgroup.freezing:
            self._cgroup.freeze()
        return self._cgroup.frozen

    async def thaw(self, *, but: AbstractSet[int]) -> None:
        self._cgroup.thaw()

    def is_frozen(self) -> bool:
        return self._cgroup.freezing


class SignalFreezer:
    """By SIGSTOP to `root`, a pid 1, and to all its descendants; its numbers for jobs are host pids."""

    def __init__(self, root: int) -> None:
        self._root = root

    def stopped_jobs(self) -> frozenset[int]:
        return halting.stopped_jobs(self._root)

    async def freeze(self) -> bool:
        return await run_in_thread_or_here(lambda: halting.halt_tree(self._root))

    async def thaw(self, *, but: AbstractSet[int]) -> None:
        await run_in_thread_or_here(lambda: halting.continue_tree(self._root, but=but))

    def is_frozen(self) -> bool:
        return halting.halted(self._root)
