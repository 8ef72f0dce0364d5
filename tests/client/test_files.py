"""The client's methods for files, against a real daemon."""

import io
import os
import tarfile
from collections.abc import AsyncIterator

import pytest

from sandboxd.client import ApiError, AsyncClient

MIB = 1024 * 1024


async def test_contents(client: AsyncClient, sandbox: str) -> None:
    data = os.urandom(2 * MIB)
    assert await client.upload(sandbox, "dir/file", data, parents=True, mode=0o600) == len(data)
    assert await client.read_bytes(sandbox, "dir/file") == data
    async with client.download(sandbox, "dir/file", offset=100, length=50) as answer:
        assert (answer.size, await answer.read()) == (50, data[100:150])
    await client.append(sandbox, "text", "grüße".encode())
    await client.append(sandbox, "text", b"!")
    assert await client.read_text(sandbox, "text") == "grüße!"
    with pytest.raises(ApiError) as raised:
        await client.read_text(sandbox, "dir/file")
    assert raised.value.kind == "not_utf8"


async def test_looking(client: AsyncClient, sandbox: str) -> None:
    await client.shell(sandbox, "mkdir -p /tmp/t/d && cd /tmp/t && touch 1 2 3 d/4 $'\\xff' && ln -s 1 link")
    found = [entry async for entry in client.list_files(sandbox, "/tmp/t", depth=2, page=2)]
    assert [entry.exact_path for entry in found] == [b"1", b"2", b"3", b"d", b"d/4", b"link", b"\xff"]
    info = await client.stat(sandbox, b"/tmp/t/\xff")
    assert (info.type, info.mode, info.owner, info.size) == ("file", 0o644, "user", 0)
    assert info.modified_at is not None
    assert (await client.stat(sandbox, "/tmp/t/link", follow=False)).target == "1"
    assert (await client.stat(sandbox, "/tmp/t/link")).real_path == "/tmp/t/1"
    assert await client.exists(sandbox, os.fsdecode(b"/tmp/t/\xff"))
    assert not await client.exists(sandbox, "/tmp/nonesuch")


async def test_changing(client: AsyncClient, sandbox: str) -> None:
    assert await client.mkdir(sandbox, "/tmp/a/b", mode=0o700) == 2
    await client.upload(sandbox, "/tmp/a/f", b"x")
    await client.copy(sandbox, "/tmp/a", "/tmp/c")
    await client.move(sandbox, "/tmp/c", "/tmp/d")
    await client.symlink(sandbox, "/tmp/d/link", b"\xff")
    assert await client.chmod(sandbox, "/tmp/d", 0o750, recursive=True) == 4
    assert await client.chown(sandbox, "/tmp/d", owner="root", group="0", recursive=True, user="root") == 4
    assert await client.remove(sandbox, "/tmp/a", recursive=True) == 3
    with pytest.raises(ApiError) as raised:
        await client.copy(sandbox, "/tmp/d/f", "/etc/passwd", overwrite=False, user="root")
    assert (raised.value.status, raised.value.kind) == (409, "exists")


async def test_an_upload_in_pieces(client: AsyncClient, sandbox: str) -> None:
    assert (await client.upload_part(sandbox, "/tmp/f", b"abc", offset=0)).offset == 3
    with pytest.raises(ApiError) as raised:
        await client.upload_part(sandbox, "/tmp/f", b"abc", offset=0)
    assert (raised.value.kind, raised.value.details["offset"]) == ("offset_mismatch", 3)
    assert (await client.upload_state(sandbox, "/tmp/f")).offset == 3
    assert (await client.upload_part(sandbox, "/tmp/f", b"def", offset=3, complete=True, mode=0o600)).complete
    assert await client.read_bytes(sandbox, "/tmp/f") == b"abcdef"
    await client.upload_part(sandbox, "/tmp/f", b"x", offset=0)
    await client.drop_upload(sandbox, "/tmp/f")
    with pytest.raises(ApiError):
        await client.upload_state(sandbox, "/tmp/f")


async def test_archives(client: AsyncClient, sandbox: str) -> None:
    await client.upload(sandbox, "/tmp/t/f", b"content", parents=True)
    for format_ in ("tar", "tar.gz", "zip"):
        async with client.download_archive(sandbox, "/tmp/t", format=format_) as answer:  # type: ignore[arg-type]
            archive = await answer.read()
        again = await client.upload_archive(sandbox, f"/tmp/{format_}", archive, format=format_)  # type: ignore[arg-type]
        assert (again.entries, again.bytes) == (1, 7)
        assert await client.read_bytes(sandbox, f"/tmp/{format_}/f") == b"content"


async def test_a_refused_archive_ends_the_upload_early(client: AsyncClient, sandbox: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../out"))

    class Endless(AsyncIterator[bytes]):
        data = buffer.getvalue()[:512]

        async def __anext__(self) -> bytes:
            data, self.data = self.data, bytes(65536)
            return data

    with pytest.raises(ApiError) as raised:
        await client.upload_archive(sandbox, "/tmp/t", Endless())
    assert raised.value.kind == "bad_archive"
