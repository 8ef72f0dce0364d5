"""The daemon itself."""

import time

from sandboxd import __version__
from sandboxd.http.kit.call import Call
from sandboxd.http.native.daemon.schemas import CapabilitiesView, Health

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
