"""Contexts: a kernel each, runs in order, and what happens when one takes too long, dies, or nobody waits for it."""

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels import Content, Kernel, Listener
from outbox import Outbox
from pool import KernelPool

DEFAULT = "default"
MAX_CONTEXTS = 32
MAX_QUEUED = 64
# From an interrupt until code that goes on regardless is killed, and its kernel with it.
INTERRUPT_GRACE = 5.0
KILLED = "the code went on when interrupted, so the kernel was killed; its variables are lost"


class Refused(Exception):
    """A request that cannot be met. `kind` is a word for programs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class RunRequest:
    code: str
    env: Mapping[str, str]
    cwd: str | None
    timeout: float | None


class _Settling(Listener):
    """Environment and directory of a context, applied to a kernel that is given to it."""

    error = ""

    def message(self, kind: str, content: Content) -> None:
        if kind == "error":
            self.error = str(content["evalue"])

    def text(self, stream: str, text: str) -> None:
        pass


@dataclass
class Context:
    """Owns its kernel."""

    id: str
    cwd: str
    env: Mapping[str, str]
    pool: KernelPool
    kernel: Kernel | None = None
    running: Outbox | None = None
    busy: bool = False
    queued: int = 0
    """runs that wait for their turn"""
    deleted: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def view(self) -> dict[str, Any]:
        return {"id": self.id, "language": "python", "cwd": self.cwd, "busy": self.busy, "queued": self.queued}

    async def run(self, request: RunRequest, outbox: Outbox) -> None:
        """Wait for the turn, run, report. Cancelled: the code is interrupted, or its kernel killed."""
        if self.queued >= MAX_QUEUED:
            raise Refused("queue_full", f"cannot run code in context {self.id}: {MAX_QUEUED} runs wait in it already")
        self.queued += 1
        try:
            await self.turn.acquire()
        finally:
            self.queued -= 1
        self.busy = True
        try:
            await self._run_now(request, outbox)
        finally:
            self.busy = False
            self.turn.release()
        self.pool.refill()

    async def _run_now(self, request: RunRequest, outbox: Outbox) -> None:
        kernel = await self._live_kernel()
        outbox.say({"type": "begun", "context": self.id})
        started = time.monotonic()
        self.running = outbox
        kernel.execute(request.code, {"env": dict(request.env), "cwd": request.cwd}, outbox)
        try:
            await self._attend(kernel, outbox, request.timeout)
        except asyncio.CancelledError:
            outbox.leave()
            await self._stop(kernel, outbox)
            raise
        finally:
            self.running = None
        duration = round((time.monotonic() - started) * 1000)
        outbox.say({"type": "end", "execution_ms": duration, "truncated": outbox.truncated})

    async def _attend(self, kernel: Kernel, outbox: Outbox, limit: float | None) -> None:
        if not await outbox.wait_ended(limit):
            outbox.muted = True
            kept = await self._stop(kernel, outbox)
            outcome = "it was interrupted; the context's variables are kept" if kept else KILLED
            outbox.error("ExecutionTimeout", f"cannot finish within {limit:g} s: {outcome}")
        elif outbox.ended.result() == "died":
            outbox.error("KernelDied", f"{kernel.how_it_ended()}; its variables are lost, the next run begins anew")

    async def _stop(self, kernel: Kernel, outbox: Outbox) -> bool:
        """Interrupt what runs; if that does not end it, kill the kernel and return False."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(INTERRUPT_GRACE):
                await outbox.begun.wait()  # before that, a kernel ignores interrupts
        kernel.interrupt()
        if await outbox.wait_ended(INTERRUPT_GRACE):
            return outbox.ended.result() == "idle"
        await kernel.kill(KILLED)
        return False

    async def _live_kernel(self) -> Kernel:
        if self.deleted:
            raise Refused("unknown_context", f"cannot run code in context {self.id}: it was deleted")
        if self.kernel is None or not self.kernel.alive:
            kernel = await self.pool.take()
            try:
                await self._settle(kernel)
            except BaseException:
                await kernel.kill("its context cannot be set up")
                raise
            self.kernel = kernel
        return self.kernel

    async def _settle(self, kernel: Kernel) -> None:
        settling = _Settling()
        kernel.execute("", {"env": dict(self.env), "cwd": self.cwd, "settle": True}, settling)
        await settling.wait_ended(None)
        if settling.error:
            raise Refused("bad_cwd", f"cannot use context {self.id}: {settling.error}")

    async def interrupt(self) -> bool:
        """Whether there was a run to interrupt."""
        running, kernel = self.running, self.kernel
        if running is None or kernel is None:
            return False
        await running.begun.wait()
        kernel.interrupt()
        return True

    async def end(self, reason: str) -> None:
        """Without its kernel. A run under way is told the reason."""
        kernel, self.kernel = self.kernel, None
        if kernel is not None:
            await kernel.kill(reason)


class Contexts:
    """All contexts of the sandbox."""

    def __init__(self, pool: KernelPool, cwd: str) -> None:
        self._pool = pool
        self._cwd = cwd
        self._contexts: dict[str, Context] = {}
        self._made = 0

    def list(self) -> list[Context]:
        return list(self._contexts.values())

    def get(self, identity: str) -> Context:
        """Raises: Refused. The default context is there when it is asked for."""
        if identity == DEFAULT and DEFAULT not in self._contexts:
            return self._add(DEFAULT, self._cwd, {})
        try:
            return self._contexts[identity]
        except KeyError:
            raise Refused("unknown_context", f"cannot find context {identity[:80]!r}: it does not exist") from None

    def create(self, cwd: str | None, env: Mapping[str, str]) -> Context:
        """Raises: Refused."""
        if len(self._contexts) >= MAX_CONTEXTS:
            raise Refused("too_many_contexts", f"cannot create a context: {MAX_CONTEXTS} exist; delete one")
        if cwd and not os.path.isdir(cwd):
            raise Refused("bad_cwd", f"cannot create a context in {cwd}: it is not a directory")
        self._made += 1
        return self._add(f"ctx{self._made}-{os.urandom(4).hex()}", cwd or self._cwd, env)

    def _add(self, identity: str, cwd: str, env: Mapping[str, str]) -> Context:
        context = Context(identity, cwd, env, self._pool)
        self._contexts[identity] = context
        return context

    async def restart(self, identity: str) -> Context:
        context = self.get(identity)
        await context.end("the context was restarted")
        self._pool.refill()
        return context

    async def delete(self, identity: str) -> Context:
        context = self.get(identity)
        context.deleted = True
        del self._contexts[identity]
        await context.end("the context was deleted")
        return context
