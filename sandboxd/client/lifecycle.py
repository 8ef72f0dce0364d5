"""The client's methods for putting sandboxes to sleep and waking them, and for how long they may live."""

from sandboxd.client.calls import Caller, SandboxRef, drop_none, sandbox_path
from sandboxd.client.models import Sandbox


class LifecycleMethods(Caller):
    """Of `Client`. Each returns the sandbox as it is then; an ApiError 409 names the state that is in the way."""

    async def pause(self, sandbox: SandboxRef) -> Sandbox:
        """Freeze every process."""
        return await self._become(sandbox, "pause")

    async def resume(self, sandbox: SandboxRef) -> Sandbox:
        return await self._become(sandbox, "resume")

    async def stop(self, sandbox: SandboxRef, *, grace_ms: int | None = None) -> Sandbox:
        """End every process; the files stay. `grace_ms`: between SIGTERM and SIGKILL."""
        return await self._become(sandbox, "stop", drop_none(grace_ms=grace_ms))

    async def start(self, sandbox: SandboxRef) -> Sandbox:
        return await self._become(sandbox, "start")

    async def touch(self, sandbox: SandboxRef) -> Sandbox:
        """Count it as used now, so that it is not idle."""
        return await self._become(sandbox, "touch")

    async def set_timeout(
        self, sandbox: SandboxRef, *, timeout_ms: int | None, on_timeout: str | None = None, only_extend: bool = False
    ) -> Sandbox:
        """Its lifetime from now; None lets it live until it is deleted. `on_timeout`: kill, pause or stop."""
        body = {"timeout_ms": timeout_ms, "only_extend": only_extend, **drop_none(on_timeout=on_timeout)}
        return await self._become(sandbox, "timeout", body)

    async def set_idle_timeout(self, sandbox: SandboxRef, *, idle_timeout_ms: int | None) -> Sandbox:
        """How long it may be idle; None for ever."""
        return await self._become(sandbox, "timeout", {"idle_timeout_ms": idle_timeout_ms})

    async def _become(self, sandbox: SandboxRef, verb: str, body: dict[str, object] | None = None) -> Sandbox:
        return Sandbox.read(await self._call("POST", sandbox_path(sandbox, verb), body))
