"""Snapshots, clones and the disk: their paths, who may use them, and what does it."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native.sandboxes.schemas import SandboxView
from sandboxd.http.native.snapshots import handlers
from sandboxd.http.native.snapshots.schemas import (
    Clone,
    Cloned,
    Collected,
    ImportSnapshot,
    Restore,
    SnapshotDeleted,
    SnapshotList,
    SnapshotQuery,
    SnapshotView,
    StorageView,
    TakeSnapshot,
)
from sandboxd.model import Scope

READ, WRITE, ADMIN = Scope.READ, Scope.WRITE, Scope.ADMIN
SANDBOX = "/v1/sandboxes/<sandbox>"

# fmt: off
SNAPSHOT_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/snapshot", handler=handlers.take, scope=WRITE, optional_body=True,
          body=TakeSnapshot, response=SnapshotView, status=201, summary="Keep what it has on its disk now"),
    Route(method="POST", path=f"{SANDBOX}/clone", handler=handlers.clone, scope=WRITE, optional_body=True,
          body=Clone, response=Cloned, status=201, summary="Create sandboxes that begin with its files"),
    Route(method="POST", path=f"{SANDBOX}/restore", handler=handlers.restore, scope=WRITE,
          body=Restore, response=SandboxView, summary="Put its files back to a snapshot, and start it again"),

    Route(method="GET", path="/v1/snapshots", handler=handlers.list_all, scope=READ,
          query=SnapshotQuery, response=SnapshotList, summary="List snapshots, oldest first"),
    Route(method="POST", path="/v1/snapshots/import", handler=handlers.import_file, scope=WRITE,
          query=ImportSnapshot, response=SnapshotView, status=201, streams="upload",
          summary="Make a snapshot of a file that export gave, here or elsewhere"),
    Route(method="GET", path="/v1/snapshots/<snapshot>/export", handler=handlers.export, scope=READ,
          streams="download", summary="The snapshot as a file, complete but for its image"),
    Route(method="GET", path="/v1/snapshots/<snapshot>", handler=handlers.get, scope=READ,
          response=SnapshotView, summary="One snapshot, by id or name"),
    Route(method="DELETE", path="/v1/snapshots/<snapshot>", handler=handlers.delete, scope=WRITE,
          response=SnapshotDeleted, summary="Delete a snapshot; what stands on it goes on"),
    Route(method="GET", path="/v1/storage", handler=handlers.storage, scope=READ,
          response=StorageView, summary="What sandboxes, snapshots and images take on disk"),
    Route(method="POST", path="/v1/storage/gc", handler=handlers.collect, scope=ADMIN,
          response=Collected, summary="Remove layers that nothing stands on"),
)
# fmt: on
