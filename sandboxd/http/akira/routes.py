"""Akira's API in one screen.

Three of its paths are the native API's too, with the same meaning: those stay native under /v1, where answers hold
what Akira's do and more, and only the error body differs.
"""

from sandboxd.http.akira import commands, files, sandboxes, snapshots
from sandboxd.http.akira.schemas import (
    AllDeleted,
    CreateSandbox,
    Deleted,
    Execute,
    Executed,
    FileQuery,
    Nothing,
    Restore,
    SandboxList,
    SandboxView,
    SnapshotList,
    SnapshotView,
    StatusView,
    TakeSnapshot,
    Uploaded,
    UploadQuery,
)
from sandboxd.http.kit.routes import Route
from sandboxd.model import Scope

READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"
SNAPSHOT = "/v1/snapshots/<snapshot>"

# fmt: off
OWN = (
    Route(method="POST", path="/v1/sandboxes/create", handler=sandboxes.create, scope=WRITE,
          body=CreateSandbox, response=SandboxView, status=201, summary="Create a new sandbox"),
    Route(method="GET", path="/v1/sandboxes/list", handler=sandboxes.list_running, scope=READ,
          response=SandboxList, summary="List running sandboxes"),
    Route(method="DELETE", path=f"{SANDBOX}/delete", handler=sandboxes.delete, scope=WRITE,
          response=Deleted, summary="Delete a sandbox"),
    Route(method="DELETE", path="/v1/sandboxes/delete-all", handler=sandboxes.delete_all, scope=WRITE,
          response=AllDeleted, summary="Delete all sandboxes"),
    Route(method="POST", path=f"{SANDBOX}/execute", handler=commands.execute, scope=WRITE,
          body=Execute, response=Executed, summary="Execute a command"),
    Route(method="POST", path=f"{SANDBOX}/execute_async", handler=commands.execute_async, scope=WRITE,
          body=Execute, streams="sse", summary="Stream command execution"),
    Route(method="POST", path=f"{SANDBOX}/upload", handler=files.upload, scope=WRITE,
          query=UploadQuery, response=Uploaded, status=201, streams="upload", summary="Upload a file"),
    Route(method="GET", path=f"{SANDBOX}/download", handler=files.download, scope=READ,
          query=FileQuery, streams="download", summary="Download a file"),
    Route(method="GET", path=f"{SANDBOX}/status", handler=sandboxes.status, scope=READ,
          response=StatusView, summary="Get resource usage"),
    Route(method="GET", path="/v1/snapshots/list", handler=snapshots.list_all, scope=READ,
          response=SnapshotList, summary="List snapshots"),
    Route(method="POST", path=f"{SNAPSHOT}/restore", handler=snapshots.restore, scope=WRITE, optional_body=True,
          body=Restore, response=SandboxView, status=201, summary="Restore from snapshot"),
)
SHARED = (
    Route(method="POST", path=f"{SANDBOX}/snapshot", handler=snapshots.take, scope=WRITE, optional_body=True,
          body=TakeSnapshot, response=SnapshotView, status=201, summary="Create a snapshot"),
    Route(method="POST", path=f"{SANDBOX}/clone", handler=snapshots.clone, scope=WRITE, optional_body=True,
          body=Nothing, response=SandboxView, status=201, summary="Clone a sandbox"),
    Route(method="DELETE", path=SNAPSHOT, handler=snapshots.delete, scope=WRITE,
          response=Deleted, summary="Delete a snapshot"),
)
# fmt: on
