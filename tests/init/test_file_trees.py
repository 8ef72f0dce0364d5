"""Operations on whole trees: copying, packing, unpacking, changing; in both builds, for the sanitizers to see."""

import errno
import os
import stat
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.archives import PutEntry, data_frames
from sandboxd.isolation.init.client import InitClient, InitError
from sandboxd.isolation.init.files import WriteOptions
from sandboxd.isolation.init.messages import Entry, encode_fields
from sandboxd.isolation.init.wire import MAX_NESTING, FileType, Op, Tag, encode_frame
from tests.init.harness import Content, RunningInit, wait_until

SECOND = 1_000_000_000


@pytest.fixture
def place(directory: Path) -> Path:
    path = directory / "files"
    path.mkdir()
    return path


def put(path: bytes, kind: FileType = FileType.REGULAR, **more: object) -> bytes:
    facts = {"mode": 0o644, "mtime_ns": 5 * SECOND + 7, **more}
    return PutEntry(path=path, file_type=kind, **facts).encode()  # type: ignore[arg-type]


async def unpack(client: InitClient, target: Path, *frames: bytes) -> tuple[int | None, int | None]:
    async with client.unpack(str(target), parents=True) as writer:
        for frame in frames:
            await writer.send(frame)
        done = await writer.finish()
    return done.count, done.bytes


async def packed(client: InitClient, path: Path, *, hardlinks: bool = True) -> dict[str, Entry | tuple[Entry, bytes]]:
    """Entries by path, files with their content."""
    found: dict[str, Entry | tuple[Entry, bytes]] = {}
    last = ""
    async with client.pack(str(path), hardlinks=hardlinks) as reader:
        async for item in reader:
            if isinstance(item, bytes):
                entry, content = found[last]  # type: ignore[misc]
                found[last] = (entry, content + item)
            else:
                last = item.path
                found[last] = (item, b"") if item.file_type is FileType.REGULAR else item
    return found


class TestPacking:
    async def test_everything_comes_in_order(self, init: RunningInit, place: Path) -> None:
        big = os.urandom(200_000)
        (place / "d/e").mkdir(parents=True)
        (place / "d/big").write_bytes(big)
        (place / "d/empty").touch()
        (place / "d.txt").write_bytes(b"x")
        (place / "link").symlink_to("/nowhere")
        os.mkfifo(place / "pipe")
        found = await packed(init.client, place)
        assert list(found) == [".", "d", "d/big", "d/e", "d/empty", "d.txt", "link", "pipe"]
        entry, content = found["d/big"]  # type: ignore[misc]
        assert (content, entry.size) == (big, len(big))
        assert found["link"].target == "/nowhere"  # type: ignore[union-attr]

    async def test_hard_links(self, init: RunningInit, place: Path) -> None:
        for number in range(200):
            (place / f"a{number:03}").write_bytes(b"%d" % number)
            (place / f"b{number:03}").hardlink_to(place / f"a{number:03}")
        found = await packed(init.client, place)
        assert {found[f"b{number:03}"].target for number in range(200)} == {  # type: ignore[union-attr]
            f"a{number:03}" for number in range(200)
        }
        again = await packed(init.client, place, hardlinks=False)
        assert again["b199"][1] == b"199"  # type: ignore[index]

    async def test_a_tree_too_deep_is_refused(self, init: RunningInit, place: Path) -> None:
        here = os.open(place, os.O_DIRECTORY)
        for _ in range(MAX_NESTING + 5):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        for attempt in (
            lambda: packed(init.client, place),
            lambda: init.client.copy(str(place / "d"), str(place / "copy"), recursive=True),
            lambda: init.client.chmod(str(place / "d"), 0o755, recursive=True),
        ):
            with pytest.raises(InitError) as raised:
                await attempt()  # type: ignore[no-untyped-call]
            assert raised.value.errno == errno.ELOOP
        assert os.listdir(place) == ["d"]
        await init.client.remove(str(place / "d"), recursive=True)

    async def test_sparse_and_slow_readers_hold_it_back(self, init: RunningInit, place: Path) -> None:
        with (place / "sparse").open("wb") as file:
            file.truncate(1 << 40)
        async with init.client.pack(str(place)) as reader:
            for _ in range(3):
                await anext(reader)
        await init.wait_idle()


class TestUnpacking:
    async def test_everything_is_made(self, init: RunningInit, place: Path) -> None:
        count, size = await unpack(
            init.client,
            place / "new/tree",
            put(b"d", FileType.DIRECTORY, mode=0o555),
            put(b"d/f", mode=0o4751) + data_frames(b"x" * 100_000) + data_frames(b"y"),
            put(b"made/on/the/way"),
            put(b"l", FileType.SYMLINK, target=b"d/f"),
            put(b"h", FileType.HARDLINK, target=b"d/f"),
        )
        tree = place / "new/tree"
        assert (count, size) == (5, 100_001)
        assert (tree / "l").read_bytes() == b"x" * 100_000 + b"y"
        assert (tree / "h").samefile(tree / "d/f")
        assert stat.S_IMODE((tree / "d/f").stat().st_mode) == 0o751
        assert stat.S_IMODE((tree / "d").stat().st_mode) == 0o555
        for path in ("d", "d/f", "made/on/the/way"):
            assert (tree / path).stat().st_mtime_ns == 5 * SECOND + 7
        assert (tree / "l").lstat().st_mtime_ns == 5 * SECOND + 7

    async def test_many(self, init: RunningInit, place: Path) -> None:
        frames = b"".join(
            put(b"d%d" % number, FileType.DIRECTORY) + put(b"d%d/f" % number) + data_frames(b"%d" % number)
            for number in range(500)
        )
        assert await unpack(init.client, place, *(frames[i : i + 10_007] for i in range(0, len(frames), 10_007))) == (
            1000,
            sum(len(str(number)) for number in range(500)),
        )
        assert (place / "d499/f").read_bytes() == b"499"

    @pytest.mark.parametrize(
        "path", [b"../out", b"/out", b"a/../../out", b"", b".", b"a//b", b"a/", b"a/./b", b"x" * 4096]
    )
    async def test_names_that_lead_out_are_refused(self, init: RunningInit, place: Path, path: bytes) -> None:
        for frame in (put(path), put(b"h", FileType.HARDLINK, target=path or b"/")):
            with pytest.raises(InitError, match=r"^cannot unpack"):
                await unpack(init.client, place / "in", frame)
        assert os.listdir(place) == ["in"]

    @pytest.mark.parametrize(
        "frames",
        [
            encode_frame(Op.DATA, b"x"),
            put(b"d", FileType.DIRECTORY) + encode_frame(Op.DATA, b"x"),
            encode_frame(Op.PUT),
            encode_frame(Op.PUT, b"\x2a\xff\xff\xff\xff"),
            encode_fields(Op.PUT, {Tag.PATH: "x"}),
            put(b"dev", FileType.CHARACTER),
            put(b"pipe", FileType.FIFO),
            put(b"f") + put(b"f/below"),
        ],
    )
    async def test_nonsense_is_refused(self, init: RunningInit, place: Path, frames: bytes) -> None:
        with pytest.raises(InitError, match=r"^cannot unpack"):
            await unpack(init.client, place, frames)
        await init.wait_idle()

    async def test_times_of_any_kind(self, init: RunningInit, place: Path) -> None:
        for moment in (-1, -(2**31) * SECOND, 2**32 * SECOND + 1, 0):
            await unpack(init.client, place, put(b"f", mtime_ns=moment))
            assert (place / "f").stat().st_mtime_ns == moment

    async def test_a_client_that_leaves_ends_it(self, init: RunningInit, place: Path) -> None:
        with trio.move_on_after(0.2):
            async with init.client.unpack(str(place)) as writer:
                await writer.send(put(b"f") + data_frames(b"half"))
                await trio.sleep_forever()
        await init.wait_idle()


class TestCopying:
    async def test_a_copy_given_up_leaves_nothing(self, init: RunningInit, place: Path) -> None:
        (place / "tree/shut").mkdir(parents=True)
        for number in range(3000):
            (place / f"tree/shut/{number}").write_bytes(b"x" * 1000)
        (place / "tree/shut").chmod(0o500)
        (place / "tree/z").mkdir()
        with trio.move_on_after(0.01):
            await init.client.copy(str(place / "tree"), str(place / "copy"), recursive=True)
        await init.wait_idle()
        assert set(os.listdir(place)) <= {"tree", "copy"}
        if (place / "copy").exists():  # it was faster
            assert len(os.listdir(place / "copy/shut")) == 3000

    async def test_holes_stay_holes(self, init: RunningInit, place: Path) -> None:
        with (place / "sparse").open("wb") as file:
            file.truncate(1 << 40)
            os.pwrite(file.fileno(), b"in the middle", 1 << 39)
        await init.client.copy(str(place / "sparse"), str(place / "copy"))
        status = (place / "copy").stat()
        assert (status.st_size, status.st_blocks < 1000) == (1 << 40, True)
        with (place / "copy").open("rb") as file:
            assert os.pread(file.fileno(), 13, 1 << 39) == b"in the middle"

    @pytest.mark.parametrize("target", ["", ".", "..", "x/.."])
    async def test_the_copy_needs_a_name(self, init: RunningInit, place: Path, target: str) -> None:
        (place / "f").touch()
        with pytest.raises((InitError, ValueError), match=r"^cannot "):
            await init.client.copy(str(place / "f"), f"{place}/x/{target}" if target else "", parents=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


class TestParts:
    async def test_two_writers_of_one_upload(self, init: RunningInit, place: Path) -> None:

        options = WriteOptions(resume=True, offset=0)
        started = trio.Event()

        class Slow:
            def __aiter__(self) -> "Slow":
                return self

            async def __anext__(self) -> bytes:
                if started.is_set():
                    await trio.sleep_forever()
                started.set()
                return b"x"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: init.client.write_file(str(place / "f"), Slow(), options=options))
            await started.wait()
            await wait_until(lambda: _size(place / ".f.sandboxd-part") == 1)
            with pytest.raises(InitError) as raised:
                await init.client.write_file(str(place / "f"), Content(b"y"), options=options)
            assert raised.value.kind == "busy"
            nursery.cancel_scope.cancel()
        await init.wait_idle()
        assert (await init.client.stat(str(place / "f"), resume=True)).size == 1

    @pytest.mark.parametrize("name", ["x" * 242, "x" * 255])
    async def test_a_name_too_long_to_be_hidden(self, init: RunningInit, place: Path, name: str) -> None:

        with pytest.raises(InitError) as raised:
            await init.client.write_file(
                str(place / name), Content(b"x"), options=WriteOptions(resume=True, offset=0)
            )
        assert raised.value.errno == errno.ENAMETOOLONG
