"""Every method of the client, once, against the daemon."""

import base64
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd import __version__
from sandboxd import client as package
from sandboxd.client import ApiError, AsyncClient, ClientError, ConnectionLost, Exited, Output, Sandbox, Started
from tests.support.daemon import Daemon


async def test_the_daemon(client: AsyncClient) -> None:
    assert (await client.health()).status == "ok"
    able = await client.capabilities()
    assert (able.version, able.default_image) == (__version__, "base")
    assert set(able.limits) == {"memory", "swap", "pids", "cpu", "io", "disk"}


async def test_the_life_of_a_sandbox(client: AsyncClient) -> None:
    made = await client.create(name="box", env={"A": "1"}, metadata={"k": "v"}, hostname="inside", timeout_ms=60_000)
    try:
        assert made.created_at is not None
        assert abs(datetime.now(UTC) - made.created_at) < timedelta(minutes=1)
        assert (made.status, made.name, dict(made.metadata)) == ("running", "box", {"k": "v"})
        assert await client.get("box") == made
        assert [item.id async for item in client.sandboxes(metadata={"k": "v"})] == [made.id]
        assert [item.id async for item in client.sandboxes(status="exited")] == []
        assert (await client.set_timeout("box", timeout_ms=None)).end_at is None
        assert ((await client.metrics("box")).pids or 0) >= 1
    finally:
        await client.delete("box")
    with pytest.raises(ApiError) as caught:
        await client.get("box")
    assert (caught.value.status, caught.value.kind) == (404, "not_found")


async def test_a_place_for_cp_is_no_sandbox(client: AsyncClient) -> None:
    with pytest.raises(ClientError, match="has a slash in it"):
        await client.get("box:/tmp")


async def test_listing_goes_through_all_pages(client: AsyncClient, root_daemon: Daemon) -> None:
    made = [root_daemon.create() for _ in range(5)]
    try:
        assert [item.id async for item in client.sandboxes(page=2)] == made
    finally:
        root_daemon.delete_all()


async def test_a_command_to_its_end(client: AsyncClient, sandbox: str) -> None:
    result = await client.shell(sandbox, "cat; echo $A >&2; pwd; exit 3", stdin=b"\xff\0", env={"A": "1"}, cwd="/")
    assert (result.stdout, result.stderr, result.exit_code) == (b"\xff\0/\n", b"1\n", 3)
    assert (await client.shell(sandbox, ["printf", "%s", "a b"])).stdout == b"a b"
    assert (await client.shell(sandbox, ["sleep", "9"], timeout_ms=50)).timed_out
    assert (await client.shell(sandbox, ["printf", "12345"], max_output_bytes=2)).truncated


async def test_a_command_as_a_stream(client: AsyncClient, sandbox: str) -> None:
    async with client.shell_stream(sandbox, "cat; exit 3", stdin=b"\xff\0") as events:
        seen = [event async for event in events]
    assert isinstance(seen[0], Started)
    assert seen[1] == Output("stdout", b"\xff\0")
    assert isinstance(seen[-1], Exited)
    assert seen[-1].exit_code == 3


async def test_a_stream_that_cannot_begin(client: AsyncClient, sandbox: str) -> None:
    with pytest.raises(ApiError, match="nonesuch"):
        async with client.shell_stream(sandbox, ["nonesuch"]) as events:
            assert [event async for event in events]


async def test_files(client: AsyncClient, sandbox: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b""
        yield b"two"

    assert await client.upload(sandbox, "/tmp/a b&c/file", pieces(), parents=True, mode=0o600) == 7
    async with client.download(sandbox, "/tmp/a b&c/file") as answer:
        assert (answer.size, await answer.read()) == (7, b"one two")
    assert await client.upload(sandbox, "/tmp/known", pieces(), size=7) == 7
    assert await client.upload(sandbox, "/tmp/empty", b"") == 0
    shown = await client.shell(sandbox, ["stat", "-c", "%a", "/tmp/a b&c/file"])
    assert shown.stdout == b"600\n"


async def test_events(client: AsyncClient, sandbox: str) -> None:
    past, following = await client.events(sandbox=sandbox)
    assert [event.kind for event in past] == ["created", "started"]
    assert following == past[-1].id
    async with client.follow_events(after=past[0].id, sandbox=sandbox) as events:
        assert await anext(events) == past[1]


async def test_images(client: AsyncClient) -> None:
    assert "base" in [name for image in await client.images() for name in image.names]
    with pytest.raises(ApiError) as caught:
        await client.delete_image("none/such")
    assert caught.value.status == 404


async def test_keys(client: AsyncClient) -> None:
    made = await client.create_key("ci", scopes=["read"])
    assert made.key
    assert [(key.id, key.scopes, key.key) for key in await client.keys()] == [(made.id, ("read",), None)]
    await client.revoke_key(made.id)
    assert await client.keys() == []


# -- models -------------------------------------------------------------------------------------------------------


def test_models_keep_what_they_do_not_know() -> None:
    raw = {"id": "s1", "status": "running", "from_the_future": 1}
    assert Sandbox.read(raw).raw["from_the_future"] == 1


@pytest.mark.parametrize("raw", [{}, {"id": "s1"}, {"id": "s1", "status": "x", "created_at": "yesterday"}])
def test_an_answer_that_lacks_what_is_needed_is_none(raw: dict[str, str]) -> None:
    with pytest.raises(ConnectionLost, match="Sandbox"):
        Sandbox.read(raw)


def test_a_result_is_exact_bytes() -> None:
    encoded = base64.b64encode(b"\xff").decode()
    result = package.CommandResult.read({"stdout": encoded, "stderr": "", "exit_code": 0})
    assert (result.stdout, result.stderr) == (b"\xff", b"")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.exit_code = 1  # type: ignore[misc]
