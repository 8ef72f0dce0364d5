"""The native API in one screen: every path of /v1, who may use it, and what does it."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native import manual, openapi
from sandboxd.http.native.code.routes import CODE_ROUTES
from sandboxd.http.native.commands.routes import COMMAND_ROUTES
from sandboxd.http.native.daemon import handlers as daemon
from sandboxd.http.native.daemon import images, keys, log
from sandboxd.http.native.daemon.log_schemas import LogList, LogQuery
from sandboxd.http.native.daemon.schemas import (
    BuildImage,
    CapabilitiesView,
    CreatedKey,
    CreateKey,
    Health,
    ImageDeleted,
    ImageList,
    ImageView,
    ImportQuery,
    KeyList,
    KeyRevoked,
)
from sandboxd.http.native.files.routes import FILE_ROUTES
from sandboxd.http.native.ports.routes import PORT_ROUTES
from sandboxd.http.native.sandboxes import events
from sandboxd.http.native.sandboxes import handlers as sandboxes
from sandboxd.http.native.sandboxes.schemas import (
    CreateSandbox,
    Deleted,
    EventList,
    EventQuery,
    ListQuery,
    MetricsView,
    SandboxList,
    SandboxView,
    SetTimeout,
    Stop,
)
from sandboxd.http.native.snapshots.routes import SNAPSHOT_ROUTES
from sandboxd.http.native.watches.routes import WATCH_ROUTES
from sandboxd.model import Scope

READ, WRITE, ADMIN = Scope.READ, Scope.WRITE, Scope.ADMIN
SANDBOX = "/v1/sandboxes/<sandbox>"

# fmt: off
API = (
    Route(method="GET", path="/v1/health", handler=daemon.health, scope=None,
          response=Health, summary="Whether the daemon is well"),
    Route(method="GET", path="/v1/capabilities", handler=daemon.capabilities, scope=READ,
          response=CapabilitiesView, summary="What this daemon can do on this host"),

    Route(method="POST", path="/v1/sandboxes", handler=sandboxes.create, scope=WRITE, optional_body=True,
          body=CreateSandbox, response=SandboxView, status=201, summary="Create a sandbox"),
    Route(method="GET", path="/v1/sandboxes", handler=sandboxes.list_all, scope=READ,
          query=ListQuery, free_arguments="metadata.", response=SandboxList,
          summary="List sandboxes, oldest first; metadata.KEY=VALUE filters by metadata"),
    Route(method="GET", path=SANDBOX, handler=sandboxes.get, scope=READ,
          response=SandboxView, summary="One sandbox, by id or name"),
    Route(method="DELETE", path=SANDBOX, handler=sandboxes.delete, scope=WRITE,
          response=Deleted, summary="Destroy a sandbox"),
    Route(method="POST", path=f"{SANDBOX}/timeout", handler=sandboxes.set_timeout, scope=WRITE,
          body=SetTimeout, response=SandboxView, summary="Set how long it may live, or be idle, from now on"),
    Route(method="POST", path=f"{SANDBOX}/touch", handler=sandboxes.touch, scope=WRITE,
          response=SandboxView, summary="Count it as used now, so that it is not idle"),
    Route(method="POST", path=f"{SANDBOX}/pause", handler=sandboxes.pause, scope=WRITE,
          response=SandboxView, summary="Freeze every process; memory and files stay"),
    Route(method="POST", path=f"{SANDBOX}/resume", handler=sandboxes.resume, scope=WRITE,
          response=SandboxView, summary="Let a paused sandbox go on from where it stood"),
    Route(method="POST", path=f"{SANDBOX}/stop", handler=sandboxes.stop, scope=WRITE, optional_body=True,
          body=Stop, response=SandboxView, summary="End every process; files stay"),
    Route(method="POST", path=f"{SANDBOX}/start", handler=sandboxes.start, scope=WRITE,
          response=SandboxView, summary="Start a stopped or exited sandbox over its files"),
    Route(method="GET", path=f"{SANDBOX}/metrics", handler=sandboxes.metrics, scope=READ,
          response=MetricsView, summary="What it uses now"),

    *COMMAND_ROUTES,

    *FILE_ROUTES,
    *CODE_ROUTES,

    *WATCH_ROUTES,

    *PORT_ROUTES,

    *SNAPSHOT_ROUTES,

    Route(method="GET", path="/v1/events", handler=events.events, scope=READ,
          query=EventQuery, response=EventList, streams="sse", summary="What happened, or what happens (SSE)"),

    Route(method="GET", path="/v1/log", handler=log.log, scope=ADMIN,
          query=LogQuery, response=LogList, streams="sse", summary="The daemon's latest log lines, or new (SSE)"),

    Route(method="GET", path="/v1/images", handler=images.list_all, scope=READ,
          response=ImageList, summary="List images"),
    Route(method="POST", path="/v1/images/import", handler=images.import_tar, scope=ADMIN,
          query=ImportQuery, response=ImageView, status=201, streams="upload",
          summary="Make an image of a tar archive"),
    Route(method="POST", path="/v1/images/build", handler=images.build, scope=ADMIN,
          body=BuildImage, streams="sse", summary="Build an image from a recipe"),
    Route(method="GET", path="/v1/images/<image>", handler=images.get, scope=READ,
          response=ImageView, summary="One image, by name or digest"),
    Route(method="DELETE", path="/v1/images/<image>", handler=images.delete, scope=ADMIN,
          response=ImageDeleted, summary="Remove an image"),

    Route(method="POST", path="/v1/keys", handler=keys.create, scope=ADMIN,
          body=CreateKey, response=CreatedKey, status=201, summary="Create an API key"),
    Route(method="GET", path="/v1/keys", handler=keys.list_all, scope=ADMIN,
          response=KeyList, summary="List API keys"),
    Route(method="DELETE", path="/v1/keys/<key>", handler=keys.revoke, scope=ADMIN,
          response=KeyRevoked, summary="Revoke an API key"),
)
# fmt: on

ROUTES = (*API, *openapi.routes(API), *manual.ROUTES)
