"""The client's methods for snapshots, clones, restores, and what is on the daemon's disk."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

from sandboxd.client.calls import (
    Caller,
    SandboxRef,
    body_headers,
    drop_none,
    json_of,
    sandbox_id,
    sandbox_path,
    target_of,
)
from sandboxd.client.http import Answer
from sandboxd.client.models import TIME, TUPLE, Json, Model, Sandbox
from sandboxd.client.streams import Content, Pages, chunks_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Model):
    id: str
    name: str | None = None
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    sandbox_id: str | None = None
    """it was taken of; None: it was imported"""
    parent: str | None = None
    image: str = ""
    created_at: datetime | None = field(default=None, metadata=TIME)
    size_bytes: int | None = None
    """None until it has been counted"""
    entries: int | None = None
    layers: int = 0
    sandboxes: tuple[str, ...] = field(default=(), metadata=TUPLE)
    """that stand on it"""
    cost: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clones:
    sandboxes: tuple[Sandbox, ...]
    errors: tuple[str, ...]
    """why others could not be made"""
    cost: Json
    """`frozen_ms`, `copied_bytes`, `shared_bytes` of copying the files, once for all of them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage(Model):
    volume: str
    """plain, or the file system of the pool: btrfs, xfs"""
    size_bytes: int
    available_bytes: int
    sandboxes: tuple[Json, ...] = field(default=(), metadata=TUPLE)
    """each with id, name, size_bytes"""
    snapshots: tuple[Json, ...] = field(default=(), metadata=TUPLE)
    images: tuple[Json, ...] = field(default=(), metadata=TUPLE)
    layers: int = 0
    layers_bytes: int = 0
    unused_layers: int = 0


class SnapshotMethods(Caller):
    """Of `Client`."""

    async def take_snapshot(
        self,
        sandbox: SandboxRef,
        *,
        name: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Keep what the sandbox has on its disk now."""
        body = drop_none(name=name, description=description, metadata=metadata)
        return Snapshot.read(await self._call("POST", sandbox_path(sandbox, "snapshot"), body))

    def snapshots(self, *, sandbox: SandboxRef | None = None, page: int = 100) -> AsyncIterator[Snapshot]:
        """All of them, or those taken of a sandbox (its id), oldest first, asked for in pages."""

        async def fetch(cursor: str | None) -> tuple[list[Snapshot], str | None]:
            query = drop_none(limit=page, cursor=cursor, sandbox=None if sandbox is None else sandbox_id(sandbox))
            answer = await self._call("GET", "/v1/snapshots", query=query)
            return [Snapshot.read(raw) for raw in answer["snapshots"]], answer.get("next_cursor")

        return Pages(fetch)

    async def snapshot(self, snapshot: str) -> Snapshot:
        """By id or name, as everywhere below."""
        return Snapshot.read(await self._call("GET", _path(snapshot)))

    async def delete_snapshot(self, snapshot: str) -> None:
        """Sandboxes that stand on it go on."""
        await self._call("DELETE", _path(snapshot))

    async def clone(
        self, sandbox: SandboxRef, *, count: int = 1, name: str | None = None, timeout_ms: int | None = None
    ) -> Clones:
        """Sandboxes that begin with the files this one has now."""
        body = drop_none(count=count, name=name, timeout_ms=timeout_ms)
        answer = await self._call("POST", sandbox_path(sandbox, "clone"), body)
        return Clones(
            sandboxes=tuple(Sandbox.read(raw) for raw in answer["sandboxes"]),
            errors=tuple(each["error"] for each in answer["errors"]),
            cost=answer.get("cost", {}),
        )

    async def restore(self, sandbox: SandboxRef, snapshot: str) -> Sandbox:
        """Put its files back to the snapshot; it runs afterwards if it ran."""
        return Sandbox.read(await self._call("POST", sandbox_path(sandbox, "restore"), {"snapshot": snapshot}))

    @asynccontextmanager
    async def export_snapshot(self, snapshot: str) -> AsyncIterator[Answer]:
        """A snapshot as a file: iterate over `answer`."""
        async with self._pool.exchange("GET", _path(snapshot) + "/export") as answer:
            yield answer

    async def import_snapshot(
        self, archive: Content, *, name: str | None = None, size: int | None = None
    ) -> Snapshot:
        """A snapshot of what export_snapshot() gave, here or elsewhere; the image it stands on has to be here."""
        target = target_of("/v1/snapshots/import", drop_none(name=name))
        async with self._pool.exchange(
            "POST", target, chunks_of(archive), body_headers("application/x-tar", size)
        ) as answer:
            return Snapshot.read(await json_of(answer))

    async def storage(self) -> Storage:
        """What sandboxes, snapshots and images take on the daemon's disk."""
        return Storage.read(await self._call("GET", "/v1/storage"))

    async def collect_storage(self) -> tuple[int, int]:
        """Remove what nothing stands on: how many layers, and their bytes."""
        answer = await self._call("POST", "/v1/storage/gc")
        return int(answer["layers"]), int(answer["freed_bytes"])


def _path(snapshot: str) -> str:
    return f"/v1/snapshots/{quote(snapshot, safe='')}"
