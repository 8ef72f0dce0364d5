"""What an earlier daemon left on the host: found again by record, or ended where no record knows it."""

import logging
from collections.abc import Set as AbstractSet

from sandboxd.isolation.backend import RunningMachine, remove_cgroup
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Sandbox
from sandboxd.service.entry import Host

log = logging.getLogger(__name__)


def attach(host: Host, record: Sandbox) -> RunningMachine | None:
    """The machine if it still runs.

    Whether sandbox-init answers is not asked: on a host that is busy starting up it may take its time, and a live
    sandbox is not to be ended for that.
    """
    if record.machine is None:
        return None
    cgroup = host.cgroups.sandbox(record.id) if host.cgroups else None
    return host.backend.attach(record.machine, host.disk.paths(record.id).runtime, cgroup=cgroup)


async def sweep(host: Host, known: AbstractSet[str]) -> None:
    """End what carries our mark and has no record: a daemon was killed at just the wrong moment."""
    strays = host.disk.known() - known
    if host.cgroups is not None:
        strays |= host.cgroups.names() - known
    for stray in strays:
        log.warning("sweeping sandbox %s, which has no record", stray)
        if host.cgroups is not None:
            await end_cgroup(host.cgroups.sandbox(stray))
    await host.backend.sweep(strays)
    for stray in strays:
        host.disk.discard(stray)


async def end_cgroup(cgroup: Cgroup) -> None:
    """Kill whatever is in it, and remove it."""
    if cgroup.exists():
        cgroup.kill()
        await remove_cgroup(cgroup)
