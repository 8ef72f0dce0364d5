"""Snapshots, clones, restores, and what is on the disk."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import Field, RootModel, StringConstraints
from quart.wrappers.response import ResponseBody

from sandboxd.constraints import mapping_bytes
from sandboxd.errors import SandboxdError
from sandboxd.http.kit.auth import require_all
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.pages import page_of
from sandboxd.http.kit.routes import Route
from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.fields import DAY_MS, Description, Metadata, Name, Request, Response, seconds
from sandboxd.http.native.sandboxes import SandboxView
from sandboxd.http.server.stack import TrioResponse
from sandboxd.model import CopyCost, Layer, Sandbox, Scope, Snapshot
from sandboxd.service.snapshots.use import StorageUse

MAX_CLONES = 100


class TakeSnapshot(Request):
    name: Name | None = None
    description: Description = ""
    metadata: Metadata | None = None


class CostView(Response):
    frozen_ms: float
    """for which the sandbox stood still"""
    copied_bytes: int
    shared_bytes: int
    """of files that now share their blocks on disk with the sandbox's; a btrfs pool does not count them"""

    @classmethod
    def of(cls, cost: CopyCost) -> Self:
        return cls(frozen_ms=round(cost.frozen * 1000, 3), copied_bytes=cost.copied, shared_bytes=cost.shared)


class SnapshotView(Response):
    id: str
    name: str | None
    description: str
    metadata: dict[str, str]
    status: Literal["ready"] = "ready"
    sandbox_id: str | None
    """it was taken of; null: it was imported"""
    parent: str | None
    """snapshot that sandbox had been made of, or restored to"""
    image: str
    image_digest: str
    created_at: datetime
    size_bytes: int | None
    """on disk, of what this snapshot adds to the one below it; null until it has been counted"""
    entries: int | None
    layers: int
    """between the image and a sandbox made of it"""
    sandboxes: list[str]
    """that stand on it"""
    cost: CostView

    @classmethod
    def of(cls, snapshot: Snapshot, layer: Layer, users: tuple[str, ...]) -> Self:
        return cls(
            id=snapshot.id,
            name=snapshot.name,
            description=snapshot.description,
            metadata=dict(snapshot.metadata),
            sandbox_id=snapshot.sandbox,
            parent=snapshot.parent,
            image=snapshot.spec.image_name,
            image_digest=snapshot.spec.image,
            created_at=datetime.fromtimestamp(snapshot.created_at, UTC),
            size_bytes=layer.size,
            entries=layer.entries,
            layers=layer.depth,
            sandboxes=list(users),
            cost=CostView.of(snapshot.cost),
        )


class SnapshotList(Response):
    snapshots: list[SnapshotView]
    next_cursor: str | None
    """give it as `cursor` to read on; null at the end"""


class SnapshotQuery(Request):
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str, StringConstraints(max_length=64)] = ""
    sandbox: Annotated[str, StringConstraints(max_length=64)] | None = None
    """only those taken of this sandbox, by its id"""


class SnapshotDeleted(Response):
    id: str
    status: Literal["deleted"] = "deleted"


class Restore(Request):
    snapshot: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Clone(Request):
    count: Annotated[int, Field(ge=1, le=MAX_CLONES)] | None = None
    """without it: one, and the answer is that sandbox itself"""
    name: Annotated[Name, StringConstraints(max_length=59)] | None = None
    """of the clone; of several, each has -1, -2, … behind it"""
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """lifetime from now on; without one, that of the sandbox cloned"""


class Clones(Response):
    sandboxes: list[SandboxView]
    errors: list[ErrorBody]
    """one for each clone that could not be made"""
    cost: CostView
    """of the copy that all of them stand on"""


class Cloned(RootModel[SandboxView | Clones]):
    """A sandbox when no `count` was given; otherwise what became of as many as were asked for."""


class ImportSnapshot(Request):
    name: Name | None = None


class UseView(Response):
    id: str
    name: str | None
    size_bytes: int | None


class StorageView(Response):
    volume: Literal["plain", "xfs", "btrfs"]
    """plain: the file system of the state directory as it is; otherwise the pool's"""
    size_bytes: int
    """of the file system that holds sandboxes and snapshots"""
    available_bytes: int
    sandboxes: list[UseView]
    """what each has written over what it stands on"""
    snapshots: list[UseView]
    """a layer that several snapshots share counts for each"""
    images: list[UseView]
    layers: int
    layers_bytes: int
    """that snapshots and clones stand on, each counted once"""
    unused_layers: int

    @classmethod
    def of(cls, use: StorageUse) -> Self:
        return cls.model_validate(use, from_attributes=True)


class Collected(Response):
    layers: int
    """that nothing stood on, and are gone"""
    freed_bytes: int


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
    lifetime = seconds(body.timeout_ms)
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


READ, WRITE, ADMIN = Scope.READ, Scope.WRITE, Scope.ADMIN
SANDBOX = "/v1/sandboxes/<sandbox>"

# fmt: off
SNAPSHOT_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/snapshot", handler=take, scope=WRITE, optional_body=True,
          body=TakeSnapshot, response=SnapshotView, status=201, summary="Keep what it has on its disk now"),
    Route(method="POST", path=f"{SANDBOX}/clone", handler=clone, scope=WRITE, optional_body=True,
          body=Clone, response=Cloned, status=201, summary="Create sandboxes that begin with its files"),
    Route(method="POST", path=f"{SANDBOX}/restore", handler=restore, scope=WRITE,
          body=Restore, response=SandboxView, summary="Put its files back to a snapshot, and start it again"),

    Route(method="GET", path="/v1/snapshots", handler=list_all, scope=READ,
          query=SnapshotQuery, response=SnapshotList, summary="List snapshots, oldest first"),
    Route(method="POST", path="/v1/snapshots/import", handler=import_file, scope=WRITE,
          query=ImportSnapshot, response=SnapshotView, status=201, streams="upload",
          summary="Make a snapshot of a file that export gave, here or elsewhere"),
    Route(method="GET", path="/v1/snapshots/<snapshot>/export", handler=export, scope=READ,
          streams="download", summary="The snapshot as a file, complete but for its image"),
    Route(method="GET", path="/v1/snapshots/<snapshot>", handler=get, scope=READ,
          response=SnapshotView, summary="One snapshot, by id or name"),
    Route(method="DELETE", path="/v1/snapshots/<snapshot>", handler=delete, scope=WRITE,
          response=SnapshotDeleted, summary="Delete a snapshot; what stands on it goes on"),
    Route(method="GET", path="/v1/storage", handler=storage, scope=READ,
          response=StorageView, summary="What sandboxes, snapshots and images take on disk"),
    Route(method="POST", path="/v1/storage/gc", handler=collect, scope=ADMIN,
          response=Collected, summary="Remove layers that nothing stands on"),
)
# fmt: on
