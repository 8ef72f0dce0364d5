"""Sandboxes in Akira's words."""

import contextlib

import trio

from sandboxd.errors import NotFound, ungrouped
from sandboxd.http.akira.schemas import AllDeleted, Deleted, SandboxList, SandboxView, StatusView
from sandboxd.http.kit.routes import Call
from sandboxd.model import SandboxState

# "List running sandboxes": whose processes exist.
ALIVE = frozenset({SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING})

# Deleting waits for the kernel more than for us.
DELETES_AT_ONCE = 8


async def create(call: Call) -> SandboxView:
    return SandboxView.of(await call.service.create(call.body.to_domain(), owner=call.owner))


async def list_running(call: Call) -> SandboxList:
    alive = [sandbox for sandbox in call.service.sandboxes.all() if sandbox.state in ALIVE and call.sees(sandbox)]
    return SandboxList(sandboxes=[SandboxView.of(sandbox) for sandbox in alive])


async def delete(call: Call, sandbox: str) -> Deleted:
    number = call.service.sandboxes.entry(sandbox).sandbox.id
    await _delete(call, number)
    return Deleted(id=number)


async def delete_all(call: Call) -> AllDeleted:
    """All that the caller sees now. One that somebody else deletes meanwhile is as good."""
    limit = trio.CapacityLimiter(DELETES_AT_ONCE)
    numbers = [sandbox.id for sandbox in call.service.sandboxes.all() if call.sees(sandbox)]

    async def work(number: str) -> None:
        async with limit:
            with contextlib.suppress(NotFound):
                await _delete(call, number)

    with ungrouped():
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(work, number)
    return AllDeleted(deleted=numbers)


async def _delete(call: Call, number: str) -> None:
    await call.service.sandboxes.delete(number)
    call.service.metrics.forget(number)


async def status(call: Call, sandbox: str) -> StatusView:
    entry = call.service.sandboxes.entry(sandbox)
    return StatusView.of(entry.sandbox, await call.service.metrics.read(entry))
