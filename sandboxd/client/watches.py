"""The client's methods for watches."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import quote

from sandboxd.client.calls import Caller, SandboxRef, drop_none, sandbox_path, target_of
from sandboxd.client.models import Watch, WatchEvent, WatchEvents
from sandboxd.client.streams import Messages


class WatchMethods(Caller):
    """A watch lives until it is stopped, or nobody has read it for long, the daemon's restarts included."""

    async def watch(
        self,
        sandbox: SandboxRef,
        path: str = ".",
        *,
        recursive: bool = True,
        ignore: Sequence[str] = (),
        source: Literal["changes", "raw"] = "changes",
        user: str | None = None,
    ) -> Watch:
        """Watch a directory; returns when all of it is watched. A relative path starts at the sandbox's workdir.

        `ignore`: patterns (* ? [a-z]) of what to pass over, with a slash for paths relative to the directory, without
        for any name. `source`: "changes" are create, modify and remove, folded together within moments; "raw" is
        create, write, chmod, rename and remove, each as the kernel tells it.
        """
        body = drop_none(path=path, recursive=recursive, ignore=[*ignore], source=source, user=user)
        return Watch.read(await self._call("POST", sandbox_path(sandbox, "fs/watch"), body))

    async def watches(self, sandbox: SandboxRef) -> list[Watch]:
        """Oldest first."""
        answer = await self._call("GET", sandbox_path(sandbox, "fs/watch"))
        return [Watch.read(raw) for raw in answer["watches"]]

    async def poll_watch(
        self, sandbox: SandboxRef, watch: str, *, after: int | None = None, wait_ms: int = 0, limit: int | None = None
    ) -> WatchEvents:
        """Events since the last poll, or after the one with id `after`; waits up to `wait_ms` if there is none."""
        body = drop_none(after=after, wait_ms=wait_ms, limit=limit)
        return WatchEvents.read(await self._call("POST", _path(sandbox, watch, "/poll"), body))

    @asynccontextmanager
    async def follow_watch(
        self, sandbox: SandboxRef, watch: str, *, after: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Events as they happen, from what nobody polled yet or after the one with id `after`, to the watch's end."""
        async with self._follow("GET", target_of(_path(sandbox, watch, "/stream"), drop_none(after=after))) as answer:
            yield Messages[WatchEvent](answer, lambda _, data: WatchEvent.read(data))

    async def stop_watch(self, sandbox: SandboxRef, watch: str) -> None:
        await self._call("POST", _path(sandbox, watch, "/stop"))


def _path(sandbox: SandboxRef, watch: str, operation: str) -> str:
    return sandbox_path(sandbox, f"fs/watch/{quote(watch, safe='')}{operation}")
