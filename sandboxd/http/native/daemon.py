"""The daemon itself: whether it is well, and what it can do."""

import time
from typing import Literal

from sandboxd import __version__
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route
from sandboxd.http.native.fields import Response
from sandboxd.model import Scope


class Health(Response):
    status: Literal["ok"] = "ok"
    version: str
    uptime_s: float
    sandboxes: int


class CapabilitiesView(Response):
    version: str
    backend: str
    """what isolates a sandbox whose client does not say"""
    backends: list[str]
    rootless: bool
    default_image: str
    limits: dict[str, bool]
    """which limits this host can enforce"""
    limits_reason: str
    disk_reason: str
    """why the disk cannot be limited"""
    volume: str
    """plain, or the file system of the pool: xfs or btrfs"""
    max_timeout_ms: int
    max_sandboxes: int
    networks: list[str]


LIMITS = ("memory", "swap", "pids", "cpu", "io", "disk")


async def health(call: Call) -> Health:
    service = call.service
    return Health(
        version=__version__,
        uptime_s=round(time.monotonic() - service.started, 3),
        sandboxes=len(service.sandboxes.all()),
    )


async def capabilities(call: Call) -> CapabilitiesView:
    known = call.service.capabilities
    return CapabilitiesView(
        version=__version__,
        backend=known.backend,
        backends=list(known.backends),
        rootless=known.rootless,
        default_image=known.default_image,
        limits={name: name in known.enforceable for name in LIMITS},
        limits_reason=known.limits_reason,
        disk_reason=known.disk_reason,
        volume=known.volume,
        max_timeout_ms=int(known.max_lifetime * 1000),
        max_sandboxes=known.max_sandboxes,
        networks=["none"],
    )


READ = Scope.READ

# fmt: off
DAEMON_ROUTES = (
    Route(method="GET", path="/v1/health", handler=health, scope=None,
          response=Health, summary="Whether the daemon is well"),
    Route(method="GET", path="/v1/capabilities", handler=capabilities, scope=READ,
          response=CapabilitiesView, summary="What this daemon can do on this host"),
)
# fmt: on
