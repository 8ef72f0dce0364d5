"""The versions of the serving stack we rely on, checked before any of their private names is used.

hypercorn, quart-trio and Quart promise none of the names below: their minor versions are therefore pinned, this
module is the only place that imports them, and a test checks that each is still there. Everything else in
`sandboxd.http` imports them from here, so that an upgrade is one file to read.
"""

from importlib.metadata import PackageNotFoundError, version

from sandboxd.errors import StartupError

PINNED = {"Hypercorn": (0, 18), "quart-trio": (0, 12), "Quart": (0, 22)}


def check_versions() -> None:
    """Raise `StartupError` unless every pinned package is installed in its pinned minor version."""
    for package, wanted in PINNED.items():
        expected = ".".join(map(str, wanted))
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        if not found.startswith(f"{expected}."):
            raise StartupError(
                f"cannot serve with {package} {found}: this daemon leans on internals of {package} {expected}.x; "
                f"install it with: pip install '{package}~={expected}.0'",
                kind="unsupported_stack",
                package=package,
                found=found,
                expected=expected,
            )


check_versions()

# ruff: noqa: E402 - the check must come before the imports it explains
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body as StreamBody
from hypercorn.protocol.events import Data as StreamData
from hypercorn.protocol.events import EndBody, EndData, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request as StreamRequest
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    HTTPScope,
    Scope,
    WebsocketScope,
)
from hypercorn.utils import filter_pseudo_headers
from quart.asgi import ASGIWebsocketConnection
from quart.ctx import AppContext, RequestContext
from quart.globals import _cv_app as current_app
from quart.globals import _cv_request as current_request
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioRequest, TrioResponse, TrioWebsocket
from quart_trio.wrappers.request import TrioBody
from werkzeug.routing import MapAdapter

__all__ = (
    "PINNED",
    "STREAM_ID",
    "ASGIFramework",
    "ASGIReceiveCallable",
    "ASGIReceiveEvent",
    "ASGISendCallable",
    "ASGISendEvent",
    "ASGIWebsocketConnection",
    "ASGIWebsocketState",
    "AppContext",
    "Closed",
    "ConnectionState",
    "DataBody",
    "EndBody",
    "EndData",
    "Event",
    "H2Protocol",
    "H2ProtocolAssumedError",
    "H11Protocol",
    "H11WSConnection",
    "HTTPScope",
    "HTTPStream",
    "HypercornConfig",
    "MapAdapter",
    "QuartTrio",
    "RawData",
    "RequestContext",
    "Scope",
    "StreamBody",
    "StreamClosed",
    "StreamData",
    "StreamEvent",
    "StreamRequest",
    "TrioASGIHTTPConnection",
    "TrioASGIWebsocketConnection",
    "TrioBody",
    "TrioRequest",
    "TrioResponse",
    "TrioWebsocket",
    "Updated",
    "WSStream",
    "WebsocketScope",
    "WorkerContext",
    "check_versions",
    "current_app",
    "current_request",
    "filter_pseudo_headers",
)
