"""What an earlier daemon left on the host: found again by record, or ended where no record knows it."""

from collections.abc import Iterable

from sandboxd.errors import StartupError
from sandboxd.isolation.backend import RunningMachine
from sandboxd.model import Sandbox, SandboxState
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.sandboxes.transitions import Transitions


def require_backends(host: Host, records: Iterable[Sandbox]) -> None:
    """That each machine can be looked for: taken for ended, it would be killed. Raises: StartupError."""
    for record in records:
        if record.machine is not None and record.spec.backend not in host.backends.names:
            raise StartupError(
                f"cannot take over sandbox {record.id}: it runs under the backend {record.spec.backend!r}, and this "
                f"daemon has {', '.join(host.backends.names)}; start it with that backend, and stop the sandbox first"
            )


def attach(host: Host, record: Sandbox) -> RunningMachine | None:
    """The machine if it still runs.

    Whether sandbox-init answers is not asked: on a host that is busy starting up it may take its time, and a live
    sandbox is not to be ended for that.
    """
    if record.machine is None:
        return None
    backend = host.backends.get(record.spec.backend)
    return backend.attach(record.machine, host.disk.paths(record.id).runtime, cgroup=host.cgroups.of(record.id))


async def finish_interrupted(transitions: Transitions, entry: Entry) -> None:
    """Bring a sandbox that an earlier daemon left to a state that is true, on the way it was going."""
    state, running = entry.sandbox.state, entry.running
    if state is SandboxState.STOPPING:
        await transitions.finish_stop(entry)
    elif state is SandboxState.STARTING:
        await transitions.abandon_start(entry)
    elif state in {SandboxState.STOPPED, SandboxState.EXITED}:
        await transitions.release(entry)
    elif running is None:
        await transitions.note_exit(entry)
    elif state is SandboxState.PAUSING:
        await transitions.finish_pause(entry, running)
    elif state is SandboxState.RESUMING:
        await transitions.finish_resume(entry, running)
    elif state is SandboxState.PAUSED:
        await running.freeze()
    elif running.is_frozen():  # for a moment, by what did not live to let it go
        await running.thaw()
