"""The process that a backend starts ahead of time and that waits to become a sandbox's machine."""

from collections.abc import Set as AbstractSet
from typing import Final

from sandboxd.isolation.backend import Backends
from sandboxd.isolation.plan import Slot
from sandboxd.service.resources import Resource


class Processes(Resource):
    """One waiting process for each slot. The launch makes it the machine, and then it is the machine's to end."""

    name: Final = "process"

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def take(self, slot: Slot) -> None:
        await self._backends.get(slot.backend).prepare(slot)

    async def release(self, sandbox: str) -> None:
        for backend in self._backends:
            await backend.drop(sandbox)

    def known(self) -> frozenset[str]:
        return frozenset()  # one that waits ends with its daemon; machines are found by what else they hold

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        """End machines too: no record leads to them."""
        for backend in self._backends:
            await backend.sweep(sandboxes)

    def intact(self, slot: Slot) -> bool:
        return self._backends.get(slot.backend).is_prepared(slot.sandbox)
