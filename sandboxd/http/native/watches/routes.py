"""The paths of watches."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native.watches import handlers
from sandboxd.http.native.watches.schemas import (
    CreateWatch,
    FollowQuery,
    PollWatch,
    WatchEvents,
    WatchList,
    WatchStopped,
    WatchView,
)
from sandboxd.model import Scope

READ, WRITE = Scope.READ, Scope.WRITE
WATCHES = "/v1/sandboxes/<sandbox>/fs/watch"
WATCH = f"{WATCHES}/<watch>"

# fmt: off
WATCH_ROUTES = (
    Route(method="POST", path=WATCHES, handler=handlers.create, scope=WRITE, optional_body=True,
          body=CreateWatch, response=WatchView, status=201, summary="Watch a directory"),
    Route(method="GET", path=WATCHES, handler=handlers.list_all, scope=READ,
          response=WatchList, summary="List watches, oldest first"),
    Route(method="GET", path=WATCH, handler=handlers.get, scope=READ,
          response=WatchView, summary="One watch"),
    Route(method="POST", path=f"{WATCH}/poll", handler=handlers.poll, scope=READ, optional_body=True,
          body=PollWatch, response=WatchEvents, summary="What happened since the last poll, or after a cursor"),
    Route(method="GET", path=f"{WATCH}/stream", handler=handlers.stream, scope=READ,
          query=FollowQuery, streams="sse", summary="What happens (SSE); takes nothing from those who poll"),
    Route(method="POST", path=f"{WATCH}/stop", handler=handlers.stop, scope=WRITE,
          response=WatchStopped, summary="Stop a watch"),
)
# fmt: on
