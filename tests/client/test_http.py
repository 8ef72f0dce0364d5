"""Requests and answers: connections kept and replaced, bodies of any length, answers that are none."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxd.client import ApiError, AsyncClient, ConnectionLost
from tests.client.support import server
from tests.support.daemon import Daemon

MIB = 1024 * 1024
LIMIT = 30.0


def url(daemon: Daemon) -> str:
    return f"unix:{daemon.socket}"


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(64 * 1024)


async def test_a_connection_serves_many_requests(root_daemon: Daemon) -> None:
    async with AsyncClient(url(root_daemon)) as client:
        for _ in range(3):
            await client.health()
        with pytest.raises(ApiError):
            await client.get("nonesuch")
        assert len(client._pool._idle) == 1


async def test_requests_may_run_side_by_side(root_daemon: Daemon) -> None:
    async with AsyncClient(url(root_daemon)) as client, trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(client.health)


async def test_a_daemon_that_restarted_is_found_again(own_root_daemon: Daemon) -> None:
    own_root_daemon.start()
    async with AsyncClient(url(own_root_daemon)) as client:
        await client.health()
        own_root_daemon.stop()
        own_root_daemon.start()
        assert (await client.health()).status == "ok"


async def test_a_refusal_of_an_endless_upload_is_heard(root_daemon: Daemon) -> None:
    async with AsyncClient(url(root_daemon)) as client:
        with trio.fail_after(LIMIT), pytest.raises(ApiError) as caught:
            await client.upload("nonesuch", "/tmp/x", endless())
        assert (caught.value.status, caught.value.kind) == (404, "not_found")
        assert (await client.health()).status == "ok"


async def test_an_upload_whose_source_fails_changes_nothing(root_daemon: Daemon) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"new"
        raise RuntimeError("the disk is gone")

    async with AsyncClient(url(root_daemon)) as client:
        sandbox = await client.create()
        try:
            await client.upload(sandbox.id, "/tmp/x", b"old")
            with pytest.raises(RuntimeError, match="the disk is gone"):
                await client.upload(sandbox.id, "/tmp/x", failing())
            async with client.download(sandbox.id, "/tmp/x") as answer:
                assert await answer.read() == b"old"
        finally:
            await client.delete(sandbox.id)


async def test_an_abandoned_download_does_not_spoil_the_next_request(root_daemon: Daemon) -> None:
    async with AsyncClient(url(root_daemon)) as client:
        sandbox = await client.create()
        try:
            await client.upload(sandbox.id, "/tmp/x", bytes(8 * MIB))
            async with client.download(sandbox.id, "/tmp/x") as answer:
                assert answer.size == 8 * MIB
                async for _ in answer:
                    break
            assert (await client.get(sandbox.id)).id == sandbox.id
        finally:
            await client.delete(sandbox.id)


async def test_a_cancelled_request_leaves_no_connection(root_daemon: Daemon) -> None:
    async with AsyncClient(url(root_daemon)) as client:
        sandbox = await client.create()
        try:
            with trio.move_on_after(0.2) as scope:
                await client.shell(sandbox.id, "sleep 600")
            assert scope.cancelled_caught
            assert (await client.shell(sandbox.id, "pgrep sleep || true")).exit_code == 0
        finally:
            await client.delete(sandbox.id)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nnot json",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_a_lost_connection(tmp_path: Path, answer: bytes) -> None:
    async with server(tmp_path / "s", answer) as address, AsyncClient(address) as client:
        with trio.fail_after(LIMIT), pytest.raises(ConnectionLost):
            await client.health()


async def test_an_error_that_is_not_ours_is_named_by_its_status(tmp_path: Path) -> None:
    page = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 13\r\n\r\n<html></html>"
    async with server(tmp_path / "s", page) as address, AsyncClient(address) as client:
        with pytest.raises(ApiError, match="HTTP 502") as caught:
            await client.health()
        assert caught.value.status == 502
