"""A backend for tests: sandbox-init in a pid namespace of its own, on the host's files, with no other isolation.

It keeps the contract of sandboxd.isolation.backend (test_contract.py holds both to it) and needs no image, no id
range and no overlay, so that what stands on a backend can be tested where none of those are to be had.
"""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Set as AbstractSet
from pathlib import Path

import trio

from sandboxd.errors import LaunchFailed
from sandboxd.isolation.backend import Meanwhile
from sandboxd.isolation.bwrap.machine import ProcessMachine
from sandboxd.isolation.bwrap.marks import MARK, marked_processes
from sandboxd.isolation.init.connection import unix_address
from sandboxd.isolation.plan import LaunchPlan, Slot
from sandboxd.kernel import procstat
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Machine

START_LIMIT = 60.0


class FakeBackend:
    """Owns: the processes it started, until they have ended and somebody reaps them."""

    name = "fake"

    def __init__(self) -> None:
        self._monitors: list[subprocess.Popen[bytes]] = []
        self._prepared: set[str] = set()

    async def launch(self, plan: LaunchPlan, *, meanwhile: Meanwhile | None = None) -> ProcessMachine:
        self._reap()
        await self.drop(plan.slot.sandbox)
        for needed in (plan.slot.init, *plan.layers):
            if not needed.exists():
                raise LaunchFailed(f"cannot start sandbox {plan.slot.sandbox}: {needed} is missing")
        monitor = self._start(plan)
        running: ProcessMachine | None = None
        try:
            with trio.fail_after(START_LIMIT):
                machine = await self._machine(monitor.pid)
                running = ProcessMachine.found(machine, plan.slot.runtime, cgroup=plan.slot.cgroup)
                assert running is not None
                if meanwhile is not None:
                    await meanwhile(running)
                await running.init.hello()
                return running
        except BaseException:
            if running is not None:
                running.close()
            _kill_tree(monitor.pid)
            monitor.wait()
            raise

    def attach(self, machine: Machine, runtime: Path, *, cgroup: Cgroup) -> ProcessMachine | None:
        self._reap()
        return ProcessMachine.found(machine, runtime, cgroup=cgroup)

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        for pid in marked_processes(sandboxes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def prepare(self, slot: Slot) -> None:
        self._prepared.add(slot.sandbox)

    def is_prepared(self, sandbox: str) -> bool:
        return sandbox in self._prepared

    async def drop(self, sandbox: str) -> None:
        self._prepared.discard(sandbox)

    def close(self) -> None:
        self._reap()

    def _start(self, plan: LaunchPlan) -> subprocess.Popen[bytes]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            with unix_address(plan.slot.socket) as address:
                listener.bind(address)
            listener.listen()
            number = str(listener.fileno())
            command = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"]
            command += [str(plan.slot.init), "--listen-fd", number, MARK, plan.slot.sandbox]
            process = subprocess.Popen(
                command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        plan.slot.cgroup.attach(process.pid)
        self._monitors.append(process)
        return process

    async def _machine(self, monitor: int) -> Machine:
        while not (children := _children(monitor)):  # noqa: ASYNC110 - nothing tells when a process forks
            await trio.sleep(0.005)
        pid = children[0]
        return Machine(
            pid=pid,
            pid_started=procstat.start_time(pid),
            monitor=monitor,
            monitor_started=procstat.start_time(monitor),
            host_boot_id=procstat.boot_id(),
        )

    def _reap(self) -> None:
        self._monitors = [monitor for monitor in self._monitors if monitor.poll() is None]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _kill_tree(monitor: int) -> None:
    for pid in (*_children(monitor), monitor):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
