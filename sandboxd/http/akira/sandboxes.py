"""Sandboxes in Akira's words."""

import contextlib

import trio

from sandboxd.errors import NotFound, ungrouped
from sandboxd.http.akira.schemas import AllDeleted, Deleted, SandboxList, SandboxView, StatusView
from sandboxd.http.kit.call import Call
from sandboxd.model import SandboxState
from sandboxd.service.sandboxes.entry import Entry

# "List running sandboxes": whose processes exist.
ALIVE = frozenset({SandboxState.RUNNING, SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING})

# Deleting waits for the kernel more than for us.
DELETES_AT_ONCE = 8


async def create(call: Call) -> SandboxView:
    return SandboxView.of(await call.service.create(call.body.to_domain(), owner=call.owner))


async def list_running(call: Call) -> SandboxList:
    alive = [sandbox for sandbox in call.service.sandboxes.all() if sandbox.state in ALIVE and call.sees(sandbox)]
    return SandboxList(sandboxes=[SandboxView.of(sandbox) for sandbox in alive])


async def delete(call: Call) -> Deleted:
    await call.service.lifecycle.delete(call.entry)
    return Deleted(id=call.entry.sandbox.id)


async def delete_all(call: Call) -> AllDeleted:
    """All that the caller sees now. One that somebody else deletes meanwhile is as good."""
    limit = trio.CapacityLimiter(DELETES_AT_ONCE)
    entries = [entry for entry in call.service.sandboxes.entries() if call.sees(entry.sandbox)]

    async def delete_one(entry: Entry) -> None:
        async with limit:
            with contextlib.suppress(NotFound):
                await call.service.lifecycle.delete(entry)

    with ungrouped():
        async with trio.open_nursery() as nursery:
            for entry in entries:
                nursery.start_soon(delete_one, entry)
    return AllDeleted(deleted=[entry.sandbox.id for entry in entries])


async def status(call: Call) -> StatusView:
    return StatusView.of(call.entry.sandbox, await call.service.metrics.read(call.entry))
