"""What a sandbox takes of the host. Each kind of it is a resource: one class, and one entry in the list of them.

The list is in the order in which resources are taken; they are released in reverse. Nothing is taken or released
other than by a walk over it:

    a slot, ahead of time   take           only the sandbox's id is known
    a creation              fit            there is a record now, and with it limits and other wants
    a stop or an exit       release        those that live as long as a machine
    a start                 take, fit      all; what was kept is made ready for another machine
    a deletion              release        all
    a daemon's start        claim, sweep   what a record says is in use is so; what has no record is released

A daemon may be killed between any two steps of a walk, and tests let it be: after each step of the walks in WALKS
there is a crash point, `WALK:NAME` with the resource's name. The next daemon comes out right since `known` finds what
is left by the sandbox's id, and `release` may be repeated.

Recipe: a new kind of resource
    1. A module with a class derived from Resource: its `name`, its `lifetime`, and `take`, `release` and `known`;
       `fit` if it depends on what the sandbox is to be; `claim` if it remembers what is in use; `intact` if what was
       taken ahead can break while it waits.
    2. An instance in the list in daemon.ready_host, behind those that it stands on: behind `process`, for one that
       needs the namespaces which a backend makes.
    Creation, deletion, stop, start, recovery, slots and the crash tests walk the list: there is no third step. What
    the launch itself has to know of it is a field of Slot (known ahead) or of LaunchPlan (known by the record).
"""

import enum
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import ClassVar, Final

from sandboxd.crashpoints import crash_point
from sandboxd.isolation.plan import Slot
from sandboxd.model import Sandbox

log = logging.getLogger(__name__)

WALKS: Final = ("slot", "start", "stop", "delete", "sweep")


class Lifetime(enum.Enum):
    """How long a sandbox keeps a resource."""

    MACHINE = enum.auto()
    """as long as its processes live: a stopped sandbox has none of it, and takes it again when it is started"""
    SANDBOX = enum.auto()
    """until the sandbox is deleted"""


class Resource(ABC):
    """One kind of thing that every sandbox has one of. Methods raise OSError or SandboxdError when the host refuses.

    Cancelled: whatever was done in part, `release` undoes.
    """

    name: ClassVar[str]
    """a word for crash points and logs"""
    lifetime: ClassVar[Lifetime] = Lifetime.MACHINE

    @abstractmethod
    async def take(self, slot: Slot) -> None:
        """Take one for the sandbox `slot.sandbox`, whose next machine needs it.

        One that lives as long as its sandbox may be there already, used by an earlier machine: make it ready again.
        """

    async def fit(self, slot: Slot, sandbox: Sandbox) -> None:
        """Make what was taken what the record asks for, right before each launch. Raises also: Unprocessable."""
        return

    @abstractmethod
    async def release(self, sandbox: str) -> None:
        """Give it back. Fine to repeat, and for a sandbox that has none, or one in part."""

    @abstractmethod
    def known(self) -> frozenset[str]:
        """Ids of the sandboxes that have one as far as the host itself can tell, earlier daemons' included."""

    async def claim(self, record: Sandbox) -> None:
        """An earlier daemon's record says that the sandbox has, or may have, one."""
        return

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        """Release those of sandboxes of which nothing is known but their ids."""
        for sandbox in sandboxes:
            await self.release(sandbox)

    def intact(self, slot: Slot) -> bool:
        """Whether what was taken for a slot, some time ago, can still be used."""
        return True


class Resources:
    """All kinds of resources, and the walks over them."""

    def __init__(self, *resources: Resource) -> None:
        self._all = resources

    async def take(self, slot: Slot, walk: str) -> None:
        """Take all for a slot. On failure some are taken: the caller releases them."""
        for resource in self._all:
            await resource.take(slot)
            crash_point(f"{walk}:{resource.name}")

    async def fit(self, slot: Slot, sandbox: Sandbox) -> None:
        """Make all what the record asks for."""
        for resource in self._all:
            await resource.fit(slot, sandbox)

    async def release(self, sandbox: str, walk: str, *, lifetime: Lifetime = Lifetime.SANDBOX) -> None:
        """Give back those with that lifetime or a shorter one. A failure ends the walk: what comes later in it, the
        ids above all, is not for others while what comes first is in use. Repeat it then.
        """
        for resource in reversed(self._all):
            if lifetime is Lifetime.SANDBOX or resource.lifetime is lifetime:
                await resource.release(sandbox)
                crash_point(f"{walk}:{resource.name}")

    def intact(self, slot: Slot) -> bool:
        """Whether everything of a slot can still be used."""
        return all(resource.intact(slot) for resource in self._all)

    async def claim(self, records: Iterable[Sandbox]) -> None:
        """Take over what an earlier daemon's records say is in use."""
        for record in records:
            for resource in self._all:
                await resource.claim(record)

    async def sweep(self, recorded: AbstractSet[str]) -> None:
        """Release what belongs to no record: a daemon was killed at just the wrong moment."""
        strays = frozenset[str]().union(*(resource.known() for resource in self._all)) - recorded
        for stray in strays:
            log.warning("sweeping sandbox %s, which has no record", stray)
        for resource in reversed(self._all):
            await resource.sweep(strays)
            if strays:
                crash_point(f"sweep:{resource.name}")
