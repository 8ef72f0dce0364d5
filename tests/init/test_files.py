"""File operations."""

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import trio

from sandboxd.isolation.init.client import InitClient, InitError
from sandboxd.isolation.init.files import WriteOptions
from sandboxd.isolation.init.messages import Entry
from sandboxd.isolation.init.wire import MAX_DEPTH, FileType
from tests.init.harness import Content, RunningInit, wait_until
from tests.support.waiting import PATIENCE

MIB = 1024 * 1024


@pytest.fixture
def place(directory: Path) -> Path:
    """Where a test's files go."""
    path = directory / "files"
    path.mkdir()
    return path


async def content(client: InitClient, path: Path, *, offset: int = 0, length: int | None = None) -> bytes:
    async with client.read_file(str(path), offset=offset, length=length) as reader:
        return b"".join([part async for part in reader])


async def entries(client: InitClient, path: Path, *, depth: int = 1, limit: int = 1000) -> tuple[list[Entry], bool]:
    async with client.list_dir(str(path), depth=depth, limit=limit) as reader:
        found = [entry async for entry in reader]
        return found, reader.truncated


class TestLooking:
    async def test_stat(self, init: RunningInit, place: Path) -> None:
        file = place / "file"
        file.write_bytes(b"12345")
        file.chmod(0o6640)
        os.utime(file, ns=(0, -1_500_000_000))
        entry = await init.client.stat(str(file))
        assert (entry.path, entry.file_type, entry.size, entry.mode) == (str(file), FileType.REGULAR, 5, 0o6640)
        assert entry.mtime_ns == -1_500_000_000
        assert (entry.uid, entry.gid) == (os.geteuid(), os.getegid())
        assert entry.target is None

    async def test_links_are_followed_or_not(self, init: RunningInit, place: Path) -> None:
        (place / "link").symlink_to("nowhere")
        entry = await init.client.stat(str(place / "link"), follow=False)
        assert (entry.file_type, entry.target) == (FileType.SYMLINK, "nowhere")
        with pytest.raises(InitError) as raised:
            await init.client.stat(str(place / "link"))
        assert raised.value.errno == errno.ENOENT

    async def test_every_type_is_told(self, init: RunningInit, place: Path) -> None:
        os.mkfifo(place / "fifo")
        (place / "directory").mkdir()
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(place / "socket"))
        found, _ = await entries(init.client, place)
        assert {entry.path: entry.file_type for entry in found} == {
            "fifo": FileType.FIFO,
            "directory": FileType.DIRECTORY,
            "socket": FileType.SOCKET,
        }
        assert (await init.client.stat("/dev/null")).file_type is FileType.CHARACTER

    async def test_names_may_be_any_bytes(self, init: RunningInit, place: Path) -> None:
        name = bytes(set(range(1, 256)) - {ord("/")})
        (place / os.fsdecode(name)).write_bytes(b"")
        found, _ = await entries(init.client, place)
        assert [os.fsencode(entry.path) for entry in found] == [name]
        assert (await init.client.stat(os.fsencode(place) + b"/" + name)).size == 0

    async def test_depth_and_limit(self, init: RunningInit, place: Path) -> None:
        (place / "a/b/c").mkdir(parents=True)
        (place / "loop").symlink_to(place)
        for depth, names in (
            (1, {"a", "loop"}),
            (2, {"a", "loop", "a/b"}),
            (MAX_DEPTH, {"a", "loop", "a/b", "a/b/c"}),
        ):
            found, truncated = await entries(init.client, place, depth=depth)
            assert {entry.path for entry in found} == names
            assert not truncated
        found, truncated = await entries(init.client, place, depth=9, limit=2)
        assert (len(found), truncated) == (2, True)
        with pytest.raises(InitError, match="use 1 to 64"):
            await entries(init.client, place, depth=MAX_DEPTH + 1)

    async def test_a_directory_with_many_entries(self, init: RunningInit, place: Path) -> None:
        for number in range(3000):
            (place / f"{number:0200}").touch()
        found, _ = await entries(init.client, place, limit=5000)
        assert len({entry.path for entry in found}) == 3000

    async def test_listing_what_is_no_directory(self, init: RunningInit) -> None:
        with pytest.raises(InitError) as raised:
            await entries(init.client, Path("/etc/passwd"))
        assert raised.value.errno == errno.ENOTDIR

    @pytest.mark.parametrize("path", ["", "/with\0nul", "/" + "x" * 5000])
    async def test_impossible_paths(self, init: RunningInit, path: str) -> None:
        with pytest.raises(ValueError, match=r"^cannot "):
            await init.client.stat(path)


class TestReading:
    async def test_whole_and_part(self, init: RunningInit, place: Path) -> None:
        data = os.urandom(3 * MIB + 7)
        (place / "file").write_bytes(data)
        assert await content(init.client, place / "file") == data
        assert await content(init.client, place / "file", offset=MIB, length=100_000) == data[MIB : MIB + 100_000]
        assert await content(init.client, place / "file", offset=10 * MIB) == b""
        assert await content(init.client, place / "file", length=0) == b""

    async def test_files_of_proc_have_content_though_no_size(self, init: RunningInit) -> None:
        boot_id = "/proc/sys/kernel/random/boot_id"
        assert await content(init.client, Path(boot_id)) == await trio.Path(boot_id).read_bytes()

    async def test_slow_reader_holds_the_sender_back(self, init: RunningInit, place: Path) -> None:
        with (place / "sparse").open("wb") as file:
            file.truncate(1 << 40)
        async with init.client.read_file(str(place / "sparse")) as reader:
            assert reader.size == 1 << 40
            await anext(reader)
        await init.wait_idle()

    @pytest.mark.parametrize(
        ("make", "kind", "number"),
        [
            (lambda path: os.mkfifo(path), "not_regular", errno.EINVAL),
            (lambda path: path.symlink_to("/dev/zero"), "not_regular", errno.EINVAL),
            (lambda path: path.mkdir(), "file", errno.EISDIR),
            (lambda path: path.symlink_to(path), "file", errno.ELOOP),
            (lambda path: None, "file", errno.ENOENT),
        ],
    )
    async def test_what_cannot_be_read(self, init: RunningInit, place: Path, make, kind: str, number: int) -> None:
        make(place / "thing")
        with trio.fail_after(PATIENCE), pytest.raises(InitError) as raised:
            await content(init.client, place / "thing")
        assert (raised.value.kind, raised.value.errno) == (kind, number)


class TestWriting:
    async def test_new_file(self, init: RunningInit, place: Path) -> None:
        size = await init.client.write_file(str(place / "new"), Content(b"one ", b"", b"two"))
        assert size == 7
        assert (place / "new").read_bytes() == b"one two"
        assert stat.S_IMODE((place / "new").stat().st_mode) == 0o644

    async def test_large_parts(self, init: RunningInit, place: Path) -> None:
        data = os.urandom(5 * MIB)
        await init.client.write_file(str(place / "big"), Content(data), options=WriteOptions(mode=0o600))
        assert (place / "big").read_bytes() == data
        assert stat.S_IMODE((place / "big").stat().st_mode) == 0o600

    @pytest.mark.parametrize("atomic", [False, True])
    async def test_existing_file_is_replaced_and_keeps_its_mode(
        self, init: RunningInit, place: Path, atomic: bool
    ) -> None:
        (place / "file").write_bytes(b"a longer text")
        (place / "file").chmod(0o4751)
        (place / "link").symlink_to("file")
        await init.client.write_file(str(place / "link"), Content(b"short"), options=WriteOptions(atomic=atomic))
        assert (place / "link").is_symlink()
        assert (place / "file").read_bytes() == b"short"
        # A write in place takes the setuid bit away, as everywhere.
        assert stat.S_IMODE((place / "file").stat().st_mode) & 0o777 == 0o751
        assert sorted(os.listdir(place)) == ["file", "link"]

    async def test_append_and_offset_keep_the_rest(self, init: RunningInit, place: Path) -> None:
        (place / "file").write_bytes(b"0123456789")
        await init.client.write_file(str(place / "file"), Content(b"XY"), options=WriteOptions(offset=3))
        await init.client.write_file(str(place / "file"), Content(b"end"), options=WriteOptions(append=True))
        assert (place / "file").read_bytes() == b"012XY56789end"

    @pytest.mark.parametrize("atomic", [False, True])
    async def test_exclusive(self, init: RunningInit, place: Path, atomic: bool) -> None:
        await init.client.write_file(
            str(place / "file"), Content(b"first"), options=WriteOptions(exclusive=True, atomic=atomic)
        )
        with pytest.raises(InitError) as raised:
            await init.client.write_file(
                str(place / "file"), Content(b"second"), options=WriteOptions(exclusive=True, atomic=atomic)
            )
        assert raised.value.errno == errno.EEXIST
        assert (place / "file").read_bytes() == b"first"
        assert os.listdir(place) == ["file"]

    async def test_parents(self, init: RunningInit, place: Path) -> None:
        target = place / "a/b/c/file"
        with pytest.raises(InitError) as raised:
            await init.client.write_file(str(target), Content(b"x"))
        assert raised.value.errno == errno.ENOENT
        await init.client.write_file(str(target), Content(b"x"), options=WriteOptions(parents=True))
        assert target.read_bytes() == b"x"

    async def test_interrupted_atomic_write_changes_nothing(self, init: RunningInit, place: Path) -> None:
        (place / "file").write_bytes(b"old")

        async def endless(given_up: trio.CancelScope) -> AsyncIterator[bytes]:
            for _ in range(10):  # which is more than lies between it and us: some has been written
                yield bytes(MIB)
            given_up.cancel()
            while True:
                yield bytes(MIB)

        with trio.CancelScope() as scope:
            async with aclosing(endless(scope)) as data:
                await init.client.write_file(str(place / "file"), data, options=WriteOptions(atomic=True))
        assert scope.cancelled_caught
        await init.wait_idle()
        assert (place / "file").read_bytes() == b"old"
        assert os.listdir(place) == ["file"]

    async def test_part_of_a_file_cannot_be_atomic(self, init: RunningInit, place: Path) -> None:
        with pytest.raises(InitError, match="atomically"):
            await init.client.write_file(
                str(place / "file"), Content(b"x"), options=WriteOptions(atomic=True, append=True)
            )

    async def test_full_disk_is_reported_while_much_is_being_sent(self, init: RunningInit, place: Path) -> None:
        with trio.fail_after(PATIENCE), pytest.raises(InitError) as raised:
            await init.client.write_file("/dev/full", Content(bytes(30 * MIB)))
        assert raised.value.kind == "not_regular"
        assert raised.value.errno == errno.EINVAL

    @pytest.mark.parametrize("atomic", [False, True])
    @pytest.mark.parametrize(
        ("make", "kind"),
        [
            (lambda path: os.mkfifo(path), "not_regular"),
            (lambda path: path.mkdir(), "file"),
            (lambda path: path.symlink_to(path), "file"),
        ],
    )
    async def test_what_cannot_be_written(
        self, init: RunningInit, place: Path, make, kind: str, atomic: bool
    ) -> None:
        make(place / "thing")
        with trio.fail_after(PATIENCE), pytest.raises(InitError) as raised:
            await init.client.write_file(str(place / "thing"), Content(b"x"), options=WriteOptions(atomic=atomic))
        assert raised.value.kind == kind
        assert os.listdir(place) == ["thing"]

    async def test_fifo_with_a_reader_is_still_no_file(self, init: RunningInit, place: Path) -> None:
        os.mkfifo(place / "fifo")
        reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(InitError) as raised:
            await init.client.write_file(str(place / "fifo"), Content(b"x"))
        assert raised.value.kind == "not_regular"
        os.close(reader)

    async def test_truncate(self, init: RunningInit, place: Path) -> None:
        (place / "file").write_bytes(b"0123456789")
        await init.client.truncate(str(place / "file"), 4)
        assert (place / "file").read_bytes() == b"0123"


class TestChanging:
    async def test_mkdir(self, init: RunningInit, place: Path) -> None:
        assert await init.client.mkdir(str(place / "one"), mode=0o750) == 1
        assert stat.S_IMODE((place / "one").stat().st_mode) == 0o750
        with pytest.raises(InitError) as raised:
            await init.client.mkdir(str(place / "one"))
        assert raised.value.errno == errno.EEXIST
        assert await init.client.mkdir(str(place / "one//two/./three/"), mode=0o700, parents=True) >= 2
        assert stat.S_IMODE((place / "one/two/three").stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "one/two").stat().st_mode) == 0o755
        assert await init.client.mkdir(str(place / "one/two"), parents=True) == 0

    async def test_rename(self, init: RunningInit, place: Path) -> None:
        (place / "a").write_bytes(b"a")
        (place / "b").write_bytes(b"b")
        with pytest.raises(InitError) as raised:
            await init.client.rename(str(place / "a"), str(place / "b"), replace=False)
        assert raised.value.errno == errno.EEXIST
        await init.client.rename(str(place / "a"), str(place / "b"))
        assert (place / "b").read_bytes() == b"a"
        assert os.listdir(place) == ["b"]

    async def test_symlink_and_chmod(self, init: RunningInit, place: Path) -> None:
        (place / "file").touch()
        await init.client.symlink(str(place / "link"), "file")
        await init.client.chmod(str(place / "link"), 0o711)
        assert os.readlink(place / "link") == "file"
        assert stat.S_IMODE((place / "file").stat().st_mode) == 0o711

    async def test_remove_one(self, init: RunningInit, place: Path) -> None:
        (place / "file").touch()
        (place / "directory").mkdir()
        (place / "link").symlink_to("directory")
        for name in ("link", "directory", "file"):
            assert await init.client.remove(str(place / name)) == 1
        assert os.listdir(place) == []
        with pytest.raises(InitError) as raised:
            await init.client.remove(str(place / "file"))
        assert raised.value.errno == errno.ENOENT

    async def test_remove_tree_does_not_follow_links(self, init: RunningInit, place: Path) -> None:
        outside = place / "outside"
        outside.mkdir()
        (outside / "precious").touch()
        tree = place / "tree"
        for name in ("a/b/c", "a/b2", "z"):
            (tree / name).mkdir(parents=True)
            (tree / name / "file").touch()
        (tree / "a/link").symlink_to(outside)
        with pytest.raises(InitError) as raised:
            await init.client.remove(str(tree))
        assert raised.value.errno == errno.ENOTEMPTY
        assert await init.client.remove(str(tree), recursive=True) == 10
        assert (outside / "precious").exists()
        assert os.listdir(place) == ["outside"]

    async def test_remove_tree_deeper_than_descriptors_and_paths_reach(self, init: RunningInit, place: Path) -> None:
        depth = 3000
        here = os.open(place, os.O_DIRECTORY)
        for _ in range(depth):
            os.mkdir("d" * 10, dir_fd=here)
            below = os.open("d" * 10, os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        assert await init.client.remove(str(place / ("d" * 10)), recursive=True) == depth

    async def test_remove_tree_stops_at_what_it_may_not(self, init: RunningInit) -> None:
        with trio.fail_after(PATIENCE), pytest.raises(InitError):
            await init.client.remove("/proc/self", recursive=True)
        with trio.fail_after(PATIENCE), pytest.raises(InitError):
            await init.client.remove("/sys/kernel", recursive=True)


async def test_worker_stuck_in_a_read_ends_with_its_client(init: RunningInit, place: Path) -> None:
    """A regular file can block as well; here its worker is stopped in the middle."""
    with (place / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    async with init.client.read_file(str(place / "sparse")) as reader:
        await anext(reader)
        (worker,) = psutil.Process(init.pid).children()
        worker.suspend()
    await wait_until(lambda: not worker.is_running())


async def test_too_many_operations_are_refused(init: RunningInit, place: Path) -> None:
    with (place / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    refused = []
    async with trio.open_nursery() as nursery:

        async def hold() -> None:
            try:
                async with init.client.read_file(str(place / "sparse")):
                    await trio.sleep_forever()
            except InitError as error:
                refused.append(error)

        for _ in range(70):
            nursery.start_soon(hold)
        while len(refused) < 6:  # noqa: ASYNC110
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert {error.kind for error in refused} == {"too_many"}
    await init.wait_idle()
