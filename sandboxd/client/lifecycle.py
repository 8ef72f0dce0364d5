"""The client's methods for putting sandboxes to sleep and waking them, and for how long they may live."""

from sandboxd.client.calls import Caller, given, sandbox_path
from sandboxd.client.models import Sandbox


class LifecycleMethods(Caller):
    """Of `Client`. Each returns the sandbox as it is then; an ApiError 409 names the state that is in the way."""

    async def pause(self, sandbox: str) -> Sandbox:
        """Freeze every process."""
        return await self._become(sandbox, "pause")

    async def resume(self, sandbox: str) -> Sandbox:
        return await self._become(sandbox, "resume")

    async def stop(self, sandbox: str, *, grace_ms: int | None = None) -> Sandbox:
        """End every process; the files stay. `grace_ms`: between SIGTERM and SIGKILL."""
        return await self._become(sandbox, "stop", given(grace_ms=grace_ms))

    async def start(self, sandbox: str) -> Sandbox:
        return await self._become(sandbox, "start")

    async def touch(self, sandbox: str) -> Sandbox:
        """Count it as used now, so that it is not idle."""
        return await self._become(sandbox, "touch")

    async def set_timeout(
        self, sandbox: str, *, timeout_ms: int | None, on_timeout: str | None = None, only_extend: bool = False
    ) -> Sandbox:
        """Its lifetime from now; None lets it live until it is deleted. `on_timeout`: kill, pause or stop."""
        wish = {"timeout_ms": timeout_ms, "only_extend": only_extend, **given(on_timeout=on_timeout)}
        return await self._become(sandbox, "timeout", wish)

    async def set_idle_timeout(self, sandbox: str, *, idle_timeout_ms: int | None) -> Sandbox:
        """How long it may be idle; None for ever."""
        return await self._become(sandbox, "timeout", {"idle_timeout_ms": idle_timeout_ms})

    async def _become(self, sandbox: str, verb: str, wish: dict[str, object] | None = None) -> Sandbox:
        return Sandbox.read(await self._call("POST", sandbox_path(sandbox, verb), wish))
