"""Snapshots, clones, restores, and what is on the disk."""

from collections.abc import AsyncIterator
from types import TracebackType

from quart.wrappers.response import ResponseBody

from sandboxd.constraints import mapping_bytes
from sandboxd.errors import SandboxdError
from sandboxd.http.kit.auth import require_all
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.pages import page_of
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.sandboxes.schemas import SandboxView
from sandboxd.http.native.snapshots.schemas import (
    Cloned,
    Clones,
    Collected,
    CostView,
    SnapshotDeleted,
    SnapshotList,
    SnapshotView,
    StorageView,
)
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import Sandbox, Snapshot


async def take(call: Call) -> SnapshotView:
    body = call.body
    snapshot = await call.service.snapshots.take(
        call.entry, name=body.name, description=body.description, metadata=body.metadata
    )
    return _view(call, snapshot)


async def list_all(call: Call) -> SnapshotList:
    wanted = call.query.sandbox
    found = [
        each
        for each in call.service.snapshots.layers.snapshots()
        if call.sees(each) and wanted in (None, each.sandbox)
    ]
    page, cursor = page_of(found, key=cursor_of, size=_size, cursor=call.query.cursor, limit=call.query.limit)
    return SnapshotList(snapshots=[_view(call, each) for each in page], next_cursor=cursor)


def _size(snapshot: Snapshot) -> int:
    return mapping_bytes(snapshot.metadata) + len(snapshot.description)


def cursor_of(snapshot: Snapshot) -> str:
    """Sorts as snapshots are listed, and stays valid when the snapshot it names is gone."""
    return f"{snapshot.created_at:020.6f}-{snapshot.id}"


async def get(call: Call) -> SnapshotView:
    return _view(call, call.snapshot)


async def delete(call: Call) -> SnapshotDeleted:
    await call.service.snapshots.delete(call.snapshot)
    return SnapshotDeleted(id=call.snapshot.id)


async def export(call: Call) -> TrioResponse:
    body = _Exported(call)
    await body.open()
    return TrioResponse(body, content_type="application/x-tar")


async def import_file(call: Call) -> SnapshotView:
    chunks = aiter(call.stream)
    return _view(call, await call.service.transfer.import_file(chunks, name=call.query.name, owner=call.owner))


class _Exported(ResponseBody):
    """A snapshot's file as a response body. Owns: what writes it, from open() until the response ended."""

    def __init__(self, call: Call) -> None:
        self._exported = call.service.transfer.exported(call.snapshot)
        self._chunks: AsyncIterator[bytes]

    async def open(self) -> None:
        """Begin before the response does, so that an unknown snapshot is a 404, and a full process table a 503."""
        self._chunks = await self._exported.__aenter__()

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._exported.__aexit__(exc_type, exc, tb)


async def restore(call: Call) -> SandboxView:
    restored = await call.service.snapshots.restore(call.entry, call.find_snapshot(call.body.snapshot))
    return SandboxView.of(restored, call.service.node)


async def clone(call: Call) -> Cloned:
    body = call.body
    lifetime = None if body.timeout_ms is None else body.timeout_ms / 1000
    clones = await call.service.clone(
        call.entry, count=body.count or 1, name=body.name, lifetime=lifetime, owner=call.owner
    )
    made = [each for each in clones.outcomes if isinstance(each, Sandbox)]
    failed = [each for each in clones.outcomes if isinstance(each, SandboxdError)]
    if not made:
        raise failed[0]
    views = [SandboxView.of(each, call.service.node) for each in made]
    if body.count is None:
        return Cloned(views[0])
    errors = [ErrorBody.of(each) for each in failed]
    return Cloned(Clones(sandboxes=views, errors=errors, cost=CostView.of(clones.cost)))


async def storage(call: Call) -> StorageView:
    require_all(call.caller)
    return StorageView.of(await call.service.storage_use())


async def collect(call: Call) -> Collected:
    unused = await call.service.snapshots.layers.collect()
    return Collected(layers=len(unused), freed_bytes=sum(layer.size or 0 for layer in unused))


def _view(call: Call, snapshot: Snapshot) -> SnapshotView:
    layers = call.service.snapshots.layers
    return SnapshotView.of(snapshot, layers.layer(snapshot.layer), layers.users(snapshot.layer))
