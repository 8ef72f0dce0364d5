"""The client's methods for watches, once, against the daemon."""

import pytest

from sandboxd.client import ApiError, AsyncClient


async def test_a_watch_from_its_beginning_to_its_end(client: AsyncClient, sandbox: str) -> None:
    made = await client.watch(sandbox, "/home/user", source="raw", recursive=False, ignore=["*.tmp"])
    assert await client.watches(sandbox) == [made]
    assert (made.path, made.source, made.recursive, made.ignore) == ("/home/user", "raw", False, ("*.tmp",))
    await client.shell(sandbox, "mkdir ~/one ~/x.tmp ~/two")
    polled = await client.poll_watch(sandbox, made.watch_id, wait_ms=20_000)
    assert (polled.events[0].type, polled.events[0].path, polled.events[0].is_directory) == ("create", "one", True)
    assert not polled.overflow
    async with client.follow_watch(sandbox, made.watch_id, after=polled.events[0].id) as events:
        assert (await anext(aiter(events))).path == "two"
    await client.stop_watch(sandbox, made.watch_id)
    with pytest.raises(ApiError) as caught:
        await client.poll_watch(sandbox, made.watch_id)
    assert caught.value.status == 404
