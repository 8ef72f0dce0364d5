"""Sandboxes' cgroups: where their processes are born, are limited and counted, and can be ended all at once."""

import errno
from typing import Final

import trio

from sandboxd.errors import SandboxLost, Unprocessable
from sandboxd.isolation.plan import Slot
from sandboxd.kernel.cgroup_tree import CgroupTree
from sandboxd.kernel.cgroups import Cgroup, CgroupLimits, IoLimit
from sandboxd.model import Limits, Sandbox
from sandboxd.service.resources import Resource

# A SIGKILLed process that does not go within this time hangs in the kernel.
KILL_LIMIT = 10.0
# The kernel counts the last dead process for a moment longer.
KILL_LOOK = 0.001


class Cgroups(Resource):
    """One cgroup for each sandbox that has a machine; NO_CGROUP for all of them where the host has none to give."""

    name: Final = "cgroup"

    def __init__(self, tree: CgroupTree, *, block_device: str | None) -> None:
        """`block_device`: major:minor of the disk under the state directory, for io limits; None: there is none."""
        self._tree = tree
        self._block_device = block_device

    def of(self, sandbox: str) -> Cgroup:
        """The handle, whether the cgroup is there or not."""
        return self._tree.sandbox(sandbox)

    async def take(self, slot: Slot) -> None:
        self._tree.create(slot.sandbox)

    async def fit(self, slot: Slot, sandbox: Sandbox) -> None:
        if not sandbox.spec.limits.named():
            return
        try:
            slot.cgroup.set_limits(self._in_kernel_terms(sandbox.spec.limits))
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP}:
                raise Unprocessable(f"cannot set the limits: {error}; change or drop the limit") from error
            raise

    async def release(self, sandbox: str) -> None:
        """Kill whatever is in it, and remove it. Raises: SandboxLost when it cannot be killed."""
        cgroup = self.of(sandbox)
        with trio.move_on_after(KILL_LIMIT):
            while cgroup.exists():
                cgroup.kill()
                try:
                    cgroup.remove()
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    await trio.sleep(KILL_LOOK)
            return
        raise SandboxLost(f"cannot end sandbox {sandbox}: a process in {cgroup.path} does not react to SIGKILL")

    def known(self) -> frozenset[str]:
        return self._tree.names()

    def _in_kernel_terms(self, limits: Limits) -> CgroupLimits:
        io: tuple[IoLimit, ...] = ()
        if self._block_device is not None and (limits.read_bps or limits.write_bps):
            io = (
                IoLimit(
                    self._block_device,
                    read_bytes_per_second=limits.read_bps,
                    write_bytes_per_second=limits.write_bps,
                ),
            )
        return CgroupLimits(
            memory_max=limits.memory,
            swap_max=limits.swap,
            pids_max=limits.pids,
            cpus=limits.cpus,
            cpu_weight=limits.cpu_weight,
            io=io,
        )
