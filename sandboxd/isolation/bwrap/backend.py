"""bubblewrap as a backend, in two steps.

    prepare   a slot: the fork server starts a bwrap, which makes the namespaces, /proc and what hides parts of it,
              and then waits at a gate. It needs to know nothing of the image, so it is done ahead where possible.
    launch    a plan: the fork server assembles the root where that bwrap waits, and the gate is opened. bwrap makes
              it its root, gives up its capabilities, and execs sandbox-init, which answers.

bwrap runs inside the sandbox's own user namespace and so has no privileges over the host; what it may do is made
ready for it (kernel/overlay.py). It stays as the monitor, the parent of sandbox-init, which is pid 1 inside. A slot
whose daemon dies finds its gate open and nothing to exec behind it, and ends.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import time
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import trio

from sandboxd.crashpoints import crash_point
from sandboxd.errors import LaunchFailed, first_leaf
from sandboxd.isolation.backend import Meanwhile
from sandboxd.isolation.bwrap import seccomp
from sandboxd.isolation.bwrap.launcher import Launcher
from sandboxd.isolation.bwrap.machine import KILL_LIMIT, ProcessMachine
from sandboxd.isolation.bwrap.marks import marked_processes
from sandboxd.isolation.bwrap.pipes import Gate, Pipe, closing, listening_socket, memory_file
from sandboxd.isolation.bwrap.render import assemble_request, start_request
from sandboxd.isolation.bwrap.requests import StartRequest
from sandboxd.isolation.init.client import InitGone
from sandboxd.isolation.plan import LaunchPlan, Slot
from sandboxd.kernel.cgroups import Cgroup
from sandboxd.model import Machine
from sandboxd.threads import run_in_thread, shortage, told_errno

READY_LIMIT = 20.0
SAID_LIMIT = 2000
KILL_PAUSE = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A bwrap at its gate. Owns: the machine, until launch hands it out, and the pipes to it."""

    request: StartRequest
    running: ProcessMachine
    gate: Gate
    error: Pipe

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.gate.close()
        self.error.close()


class BwrapBackend:
    """Owns: the fork server, and the slots that wait. See Backend for the contract."""

    name = "bwrap"

    def __init__(self, *, bwrap: Path, profile: bytes, max_processes: int) -> None:
        self._bwrap = bwrap
        self._profile = profile
        self._max_processes = max_processes
        self._launcher = Launcher()
        self._waiting: dict[str, _Waiting] = {}

    def attach(self, machine: Machine, runtime: Path, *, cgroup: Cgroup) -> ProcessMachine | None:
        return ProcessMachine.found(machine, runtime, cgroup=cgroup)

    async def sweep(self, sandboxes: AbstractSet[str]) -> None:
        if sandboxes:
            await run_in_thread(_kill_marked, frozenset(sandboxes))

    def close(self) -> None:
        for waiting in self._waiting.values():
            with waiting:
                waiting.running.close()
        self._waiting.clear()
        self._launcher.close()

    # -- ahead of time --------------------------------------------------------------------------------------------

    async def prepare(self, slot: Slot) -> None:
        self._waiting[slot.sandbox] = await self._start(slot)

    def is_prepared(self, sandbox: str) -> bool:
        waiting = self._waiting.get(sandbox)
        return waiting is not None and not waiting.running.ended()

    async def drop(self, sandbox: str) -> None:
        waiting = self._waiting.pop(sandbox, None)
        if waiting is not None:
            with waiting, trio.CancelScope(shield=True):
                await waiting.running.destroy()

    async def find_network(self) -> str:
        """The kind of interface for make_network(). Raises: Unprocessable saying what the kernel lacks."""
        return await self._launcher.find_network()

    async def make_network(self, sandbox: str, *, kind: str, ipv6: bool) -> tuple[socket.socket, ...]:
        """A network for a sandbox that is prepared, as kernel/sandbox_network.py makes it: its sockets."""
        machine = self._waiting[sandbox].running.init_pidfd
        return await self._launcher.make_network(machine, kind=kind, ipv6=ipv6)

    async def _start(self, slot: Slot) -> _Waiting:
        """A bwrap that waits at its gate."""
        request = start_request(slot, bwrap=self._bwrap, max_processes=self._max_processes)
        with contextlib.ExitStack() as stack:
            error, gate = stack.enter_context(Pipe()), Gate()
            stack.callback(gate.close)
            # No pipe: without us to read it, SIGPIPE would end bwrap before it has told its child to go on.
            info = memory_file("")
            stack.callback(os.close, info)
            monitor = await self._fork(slot, request, error, info, gate)
            crash_point("slot:forked")
            try:
                with trio.fail_after(READY_LIMIT):
                    await gate.wait_reached()
                    running = ProcessMachine.started(_child_pid(info), monitor, slot.runtime, cgroup=slot.cgroup)
            except BaseException as failure:
                _undo(monitor, slot.cgroup)
                error.close_write_end()
                raise await _explained(slot.sandbox, request, error, failure) from failure
            stack.pop_all()
            os.close(info)
        return _Waiting(request=request, running=running, gate=gate, error=error)

    async def _fork(self, slot: Slot, request: StartRequest, error: Pipe, info: int, gate: Gate) -> int:
        """Have the fork server run the request; the monitor's pid."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listening_socket(slot.socket))
            descriptors = {
                "error": error.write_end,
                "listener": listener.fileno(),
                "info": info,
                "seccomp": stack.enter_context(closing(seccomp.profile_descriptor(self._profile))),
                "boot_id": stack.enter_context(closing(memory_file(slot.boot_id + "\n"))),
                "gate": gate.read_end,
            }
            if slot.cgroup.present:
                descriptors["cgroup"] = stack.enter_context(closing(slot.cgroup.open_fd()))
            pid = await self._launcher.start(request, descriptors)
        error.close_write_end()
        gate.close_read_end()
        return pid

    # -- on demand ------------------------------------------------------------------------------------------------

    async def launch(self, plan: LaunchPlan, *, meanwhile: Meanwhile | None = None) -> ProcessMachine:
        sandbox = plan.slot.sandbox
        request = assemble_request(plan, max_processes=self._max_processes)
        if not self.is_prepared(sandbox):
            await self.drop(sandbox)
            await self.prepare(plan.slot)
        with self._waiting.pop(sandbox) as waiting:
            running = waiting.running
            try:
                await self._launcher.assemble(request, machine=running.init_pidfd, gate=waiting.gate)
                crash_point("create:assembled")
                async with _beside(meanwhile, running):
                    with trio.fail_after(READY_LIMIT):
                        await running.init.hello(keep=True)
            except BaseException as failure:
                with trio.CancelScope(shield=True):
                    await running.destroy()
                raise await _explained(sandbox, waiting.request, waiting.error, failure) from failure
            return running


@contextlib.asynccontextmanager
async def _beside(work: Meanwhile | None, running: ProcessMachine) -> AsyncIterator[None]:
    """Do that work beside the block; the failure of either is raised as it is."""
    if work is None:
        yield
        return
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, running)
            yield
    except ExceptionGroup as group:
        raise first_leaf(group) from group


def _child_pid(info: int) -> int:
    """The host pid of what will be sandbox-init, from what bwrap has written (`--info-fd`) before it let it go on."""
    return int(json.loads(os.pread(info, 4096, 0))["child-pid"])


def _undo(monitor: int, cgroup: Cgroup) -> None:
    """End every process of a start that failed half way; the fork server reaps the monitor."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(monitor, signal.SIGKILL)
    cgroup.kill()


async def _explained(sandbox: str, request: StartRequest, error: Pipe, failure: BaseException) -> BaseException:
    """The failure with what was said and the complete command, so that a person can run it by hand."""
    if not isinstance(failure, OSError | ValueError | trio.TooSlowError | InitGone):
        return failure
    reason = await _said(error) or str(failure) or type(failure).__name__
    facts: dict[str, Any] = {"errno": number} if (number := told_errno(reason)) else {}
    return shortage(reason) or LaunchFailed(
        f"cannot start sandbox {sandbox}: {reason}", command=shlex.join(request.argv), **facts
    )


async def _said(error: Pipe) -> str:
    """What the fork server's child, bwrap or sandbox-init said, once all of them are dead."""
    with trio.move_on_after(1, shield=True):
        return (await error.read_all())[-SAID_LIMIT:].decode(errors="replace").strip()
    return ""


def _kill_marked(sandboxes: frozenset[str]) -> None:
    """In a thread. Until a look finds none: a bwrap may have forked while we looked, and killed before it has told
    its child to go on, it leaves that child to wait for ever."""
    deadline = time.monotonic() + KILL_LIMIT
    while (found := list(marked_processes(sandboxes))) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_PAUSE)
