"""Machines of sandboxes: launched over their files, and ended."""

from functools import partial

from sandboxd.isolation.backend import Meanwhile, RunningMachine
from sandboxd.isolation.plan import LaunchPlan, Slot
from sandboxd.kernel.overlay import UPPER
from sandboxd.model import Image, Sandbox
from sandboxd.service.resources import Lifetime
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.sandboxes.host import Host
from sandboxd.service.storage.layers import Layers
from sandboxd.threads import run_in_thread_or_here


class Machines:
    """Launches and ends. What a machine takes of the host is not taken or released here, but by who records it."""

    def __init__(self, host: Host, layers: Layers) -> None:
        self._host = host
        self._layers = layers

    async def launch(
        self, slot: Slot, sandbox: Sandbox, image: Image, meanwhile: Meanwhile | None = None
    ) -> RunningMachine:
        """Give a slot, all of which has been taken, the sandbox's root and limits. On failure no process is left.

        See Backend.launch for `meanwhile`. Raises: Unprocessable (a limit the kernel refuses), LaunchFailed.
        """
        plan = self._plan(slot, sandbox, image)
        await self._host.resources.fit(slot, sandbox)
        return await self._host.backends.get(slot.backend).launch(plan, meanwhile=meanwhile)

    async def end(self, entry: Entry) -> None:
        """No process of the sandbox is left after this; what else it holds stays. Raises: SandboxLost."""
        if entry.running is not None:
            await entry.running.destroy()
            entry.running = None
            return
        await self._host.processes.release(entry.sandbox.id)
        await self._host.cgroups.release(entry.sandbox.id)

    async def end_unrecorded(self, sandbox: str) -> None:
        """As end(), for a machine that a daemon did not live to record: by its id alone."""
        await self._host.processes.sweep({sandbox})
        await self._host.cgroups.release(sandbox)

    def slot(self, sandbox: Sandbox) -> Slot:
        """For its next machine, its ids reserved but nothing taken. Raises: Unavailable, Unprocessable (its backend
        is not there).
        """
        return self._host.slot(sandbox.id, self._host.backends.get(sandbox.spec.backend).name)

    async def take(self, slot: Slot) -> None:
        """Everything for a sandbox that is started again."""
        await self._host.resources.take(slot, "start")

    async def release(self, sandbox: str) -> None:
        """Give back what the ended machine held. To be recorded first: its ids may be another's from here on."""
        await self._host.resources.release(sandbox, "stop", lifetime=Lifetime.MACHINE)

    def has_files(self, sandbox: Sandbox) -> bool:
        """Whether a machine can be made over them, as far as they are not its layers'."""
        return not sandbox.discarding and self._host.disk.has_files(sandbox.id)

    async def sync(self, sandbox: str) -> None:
        """Have its files outlive a power cut from here on. Cancelled: it goes on unattended."""
        # Without a thread too: a stop that gave up here would be under way until the next start of the daemon.
        await run_in_thread_or_here(partial(self._host.disk.sync, sandbox), abandon_on_cancel=True)

    def _plan(self, slot: Slot, sandbox: Sandbox, image: Image) -> LaunchPlan:
        return LaunchPlan(
            slot=slot,
            layers=(*(tree / UPPER for tree in self._layers.trees(sandbox.layer)), image.rootfs),
            writable=self._host.disk.paths(sandbox.id).writable,
            sandbox=sandbox,
            image=image,
        )
