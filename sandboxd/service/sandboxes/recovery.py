"""What an earlier daemon left on the host: found again by record, or ended where no record knows it."""

import logging
from collections.abc import Set as AbstractSet

from sandboxd.crashpoints import crash_point
from sandboxd.isolation.backend import RunningMachine
from sandboxd.isolation.freezer import freeze, is_frozen, thaw
from sandboxd.model import Sandbox, SandboxState
from sandboxd.service.sandboxes.entry import Entry, Host
from sandboxd.service.sandboxes.lifecycle import Lifecycle
from sandboxd.service.sandboxes.machines import end_cgroup
from sandboxd.service.storage.disk import sweep_away

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


async def finish_interrupted(lifecycle: Lifecycle, entry: Entry) -> None:
    """Bring a sandbox that an earlier daemon left to a state that is true, on the way it was going."""
    state, running = entry.sandbox.state, entry.running
    if state is SandboxState.STOPPING:
        await lifecycle.finish_stop(entry)
    elif state is SandboxState.STARTING:
        await lifecycle.abandon_start(entry)
    elif state in {SandboxState.STOPPED, SandboxState.EXITED}:
        await lifecycle.let_go(entry)
    elif running is None:
        await lifecycle.note_exit(entry)
    elif state is SandboxState.PAUSING:
        await lifecycle.finish_pause(entry, running)
    elif state is SandboxState.RESUMING:
        await lifecycle.finish_resume(entry, running)
    elif state is SandboxState.PAUSED:
        await freeze(running)
    elif is_frozen(running):  # for a moment, by what did not live to let it go
        await thaw(running)


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
    if strays:
        crash_point("sweep:killed")
    for stray in strays:
        sweep_away(host.disk.discard, stray)
        crash_point("sweep:discarded")
