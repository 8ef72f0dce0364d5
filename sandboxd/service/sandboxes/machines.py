"""Machines of sandboxes made and ended, with what a machine needs and its files do not: ids, a cgroup, a socket."""

import errno
import uuid
from functools import partial

from sandboxd.crashpoints import crash_point
from sandboxd.errors import Unprocessable
from sandboxd.isolation.backend import Meanwhile, RunningMachine, remove_cgroup
from sandboxd.isolation.plan import IdRange, LaunchPlan, Slot
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.kernel.overlay import UPPER
from sandboxd.model import Image, Sandbox
from sandboxd.service.sandboxes.entry import Entry, Host
from sandboxd.service.storage.layers import Layers
from sandboxd.threads import run_in_thread_or_here


class Machines:
    def __init__(self, host: Host, layers: Layers) -> None:
        self._host = host
        self._layers = layers

    async def launch(
        self, slot: Slot, sandbox: Sandbox, image: Image, meanwhile: Meanwhile | None = None
    ) -> RunningMachine:
        """Give a slot the sandbox's root and limits. On failure nothing is left but its files; see Backend.launch.

        Raises: Unprocessable (a limit the kernel refuses), LaunchFailed.
        """
        plan = self._plan(slot, sandbox, image)
        cgroup = self._limited_cgroup(sandbox)
        return await self._host.backend.launch(plan, cgroup=cgroup, meanwhile=meanwhile)

    async def launch_again(self, sandbox: Sandbox, image: Image) -> RunningMachine:
        """As launch, for a sandbox that has had a machine before; its slot is made now."""
        if self._host.cgroups is not None:
            self._host.cgroups.create(sandbox.id)
        crash_point("start:cgroup")
        slot = Slot(
            sandbox=sandbox.id,
            ids=IdRange(start=sandbox.range_start, idmapped=self._host.idmapped),
            runtime=self._host.disk.paths(sandbox.id).runtime,
            boot_id=str(uuid.uuid4()),
            init=self._host.init,
        )
        return await self.launch(slot, sandbox, image)

    async def end(self, entry: Entry) -> None:
        """No process of the sandbox is left after this; its cgroup may be, empty. Raises: SandboxLost."""
        if entry.running is not None:
            await entry.running.destroy()
            entry.running = None
            return
        await self._host.backend.drop(entry.sandbox.id)
        if self._host.cgroups is not None:
            await end_cgroup(self._host.cgroups.sandbox(entry.sandbox.id))

    async def let_go(self, sandbox: Sandbox) -> None:
        """Give back what the ended machine of that record held. To be recorded first: `range_start` is free now."""
        if self._host.cgroups is not None:
            await end_cgroup(self._host.cgroups.sandbox(sandbox.id))
        self._host.ranges.give_back(sandbox.range_start)

    async def sweep(self, sandbox: str) -> None:
        """End what exists of a machine of which nothing is recorded yet."""
        if self._host.cgroups is not None:
            await end_cgroup(self._host.cgroups.sandbox(sandbox))
        await self._host.backend.sweep({sandbox})

    def take_range(self) -> int:
        return self._host.ranges.take()

    def has_files(self, sandbox: Sandbox) -> bool:
        """Whether a machine can be made over them, as far as they are not its layers'."""
        return not sandbox.discarding and self._host.disk.has_files(sandbox.id)

    def renew(self, sandbox: str) -> None:
        """Ready a sandbox's directories for its next machine."""
        self._host.disk.renew(sandbox)

    async def sync(self, sandbox: str) -> None:
        """Have its files outlive a power cut from here on. Cancelled: it goes on unattended."""
        # Without a thread too: a stop that gave up here would be under way until the next start of the daemon.
        await run_in_thread_or_here(partial(self._host.disk.sync, sandbox), abandon_on_cancel=True)

    def _plan(self, slot: Slot, sandbox: Sandbox, image: Image) -> LaunchPlan:
        return LaunchPlan(
            slot=slot,
            layers=(*(tree / UPPER for tree in self._layers.trees(sandbox.layer)), image.rootfs),
            writable=self._host.disk.paths(sandbox.id).writable,
            hostname=sandbox.spec.hostname,
            machine_id=sandbox.machine_id,
            binds=image.binds,
            hidden=image.hidden,
        )

    def _limited_cgroup(self, sandbox: Sandbox) -> Cgroup | None:
        if self._host.cgroups is None:
            return None
        cgroup, limits = self._host.cgroups.sandbox(sandbox.id), self._host.cgroup_limits(sandbox.spec.limits)
        try:
            if limits is not None:
                cgroup.set_limits(limits)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP}:
                raise Unprocessable(f"cannot set the limits: {error}; change or drop the limit") from error
            raise
        return cgroup


async def end_cgroup(cgroup: Cgroup) -> None:
    """Kill whatever is in it, and remove it."""
    if cgroup.exists():
        cgroup.kill()
        await remove_cgroup(cgroup)
