"""Snapshots, clones and the use of the disk on the wire."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import Field, RootModel, StringConstraints

from sandboxd.http.native.errors import ErrorBody
from sandboxd.http.native.fields import DAY_MS, Description, Metadata, Name, Request, Response
from sandboxd.http.native.sandboxes.schemas import SandboxView
from sandboxd.model import CopyCost, Layer, Snapshot
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
