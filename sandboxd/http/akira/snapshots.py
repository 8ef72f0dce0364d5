"""Snapshots and clones in Akira's words."""

from quart.wrappers import Response

from sandboxd.http.akira.schemas import Deleted, SandboxView, SnapshotList, SnapshotView
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import render
from sandboxd.model import Sandbox, SandboxSpec


async def take(call: Call) -> SnapshotView:
    body = call.body
    snapshot = await call.service.snapshots.take(
        call.entry, name=body.name, description=body.description, metadata=None
    )
    return SnapshotView.of(snapshot)


async def list_all(call: Call) -> SnapshotList:
    return SnapshotList(
        snapshots=[SnapshotView.of(each) for each in call.service.snapshots.layers.snapshots() if call.sees(each)]
    )


async def delete(call: Call) -> Deleted:
    await call.service.snapshots.delete(call.snapshot)
    return Deleted(id=call.snapshot.id)


async def clone(call: Call) -> SandboxView:
    clones = await call.service.clone(call.entry, count=1, name=None, lifetime=None, owner=call.owner)
    (made,) = clones.outcomes
    if isinstance(made, Sandbox):
        return SandboxView.of(made)
    raise made


async def restore(call: Call) -> SandboxView | Response:
    """Into a new sandbox (201), or the one named, in place (200)."""
    if call.body.sandbox_id is None:
        spec = SandboxSpec(image="", image_name="")
        return SandboxView.of(await call.service.create_from(call.snapshot, spec, owner=call.owner))
    entry = call.find_sandbox(call.body.sandbox_id)
    return render(SandboxView.of(await call.service.snapshots.restore(entry, call.snapshot)))
