"""Watching directories: every event, in order, at once; and nothing lost in directories that are made quickly."""

import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitError
from sandboxd.isolation.init.connection import connect
from sandboxd.isolation.init.messages import encode_fields
from sandboxd.isolation.init.watches import ChangeStream, Synced
from sandboxd.isolation.init.wire import Change, ChangeKind, Op, Tag, encode_frame
from tests.init.harness import RunningInit, pid1_init, shell, wait_until
from tests.support.waiting import PATIENCE

CREATE, WRITE, ATTRIBUTES, RENAME, REMOVE, OVERFLOW, UNWATCHED, ENDED = ChangeKind


@pytest.fixture
def place(directory: Path) -> Path:
    path = directory / "watched"
    path.mkdir(mode=0o755)
    return path


def batch(told: list[Change] | Synced) -> list[Change]:
    assert not isinstance(told, Synced)
    return told


class Watch:
    def __init__(self, stream: ChangeStream) -> None:
        self._stream = stream

    async def so_far(self) -> list[Change]:
        """All that has happened."""
        seen: list[Change] = []
        with trio.fail_after(PATIENCE):
            await self._stream.sync()
            async for told in self._stream:
                if isinstance(told, Synced):
                    break
                seen += told
        return seen

    async def to_the_end(self) -> list[Change]:
        with trio.fail_after(PATIENCE):
            return [change async for told in self._stream for change in batch(told)]


@asynccontextmanager
async def watching(
    init: RunningInit, place: Path, *, recursive: bool = True, ignore: tuple[str, ...] = (), user: str = ""
) -> AsyncIterator[Watch]:
    async with init.client.watch(str(place), recursive=recursive, ignore=ignore, user=user) as stream:
        yield Watch(stream)


@contextmanager
def a_process_in(directory: Path) -> Iterator[None]:
    with subprocess.Popen(["sleep", "600"], cwd=directory) as process:
        try:
            yield
        finally:
            process.kill()


def brief(changes: list[Change]) -> list[tuple[ChangeKind, str]]:
    return [(change.kind, change.path) for change in changes]


def replayed(changes: list[Change]) -> set[str]:
    """The paths that a client which believes the changes thinks exist."""
    known: set[str] = set()
    for change in changes:
        if change.kind is CREATE:
            known.add(change.path)
        elif change.kind in (RENAME, REMOVE):
            known = {path for path in known if path != change.path and not path.startswith(change.path + "/")}
    return known


def walked(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


class TestEvents:
    async def test_every_event_of_a_file_in_order(self, init: RunningInit, place: Path) -> None:
        async with watching(init, place) as watch:
            file = place / "file"
            file.touch(mode=0o644)
            file.chmod(0o600)
            with file.open("a") as stream:
                stream.write("x")
            file.rename(place / "other")
            (place / "other").unlink()
            changes = await watch.so_far()
        assert [change for change in brief(changes) if change[0] is not ATTRIBUTES] == [
            (CREATE, "file"),
            (WRITE, "file"),
            (RENAME, "file"),
            (CREATE, "other"),
            (REMOVE, "other"),
        ]
        assert (ATTRIBUTES, "file") in brief(changes)[1:3]
        renamed = [change.cookie for change in changes if change.cookie]
        assert len(renamed) == 2
        assert renamed[0] == renamed[1]

    async def test_a_flat_watch_stays_flat(self, init: RunningInit, place: Path) -> None:
        (place / "old").mkdir()
        async with watching(init, place, recursive=False) as watch:
            (place / "new").mkdir()
            (place / "new" / "file").touch()
            (place / "old" / "file").touch()
            changes = await watch.so_far()
        assert {change.path for change in changes} <= {"new", "old"}
        assert (CREATE, "new") in brief(changes)

    async def test_directories_that_were_there_are_watched(self, init: RunningInit, place: Path) -> None:
        (place / "a" / "b" / "c").mkdir(parents=True)
        async with watching(init, place) as watch:
            (place / "a" / "b" / "c" / "file").touch()
            assert (CREATE, "a/b/c/file") in brief(await watch.so_far())

    async def test_names_are_bytes(self, init: RunningInit, place: Path) -> None:
        name = os.fsdecode(b"\xff\xfe new\nline \xe2\x82\xac")
        async with watching(init, place) as watch:
            (place / name).mkdir()
            (place / name / "in").touch()
            paths = [change.path for change in await watch.so_far()]
        assert paths[0] == name
        assert f"{name}/in" in paths

    async def test_ignored_names_are_neither_told_nor_entered(self, init: RunningInit, place: Path) -> None:
        (place / "node_modules").mkdir()
        ignore = ("node_modules", "*.o", "build/*/cache")
        async with watching(init, place, ignore=ignore) as watch:
            (place / "node_modules" / "x").touch()
            (place / "a.o").touch()
            (place / "build" / "one" / "cache").mkdir(parents=True)
            (place / "build" / "one" / "cache" / "y").touch()
            (place / "build" / "cache").touch()
            (place / "deep").mkdir()
            (place / "deep" / "node_modules").mkdir()
            (place / "deep" / "node_modules" / "z").touch()
            created = {change.path for change in await watch.so_far() if change.kind is CREATE}
        assert created == {"build", "build/one", "build/cache", "deep"}

    async def test_links_are_not_followed(self, init: RunningInit, place: Path, directory: Path) -> None:
        outside = directory / "outside"
        outside.mkdir()
        (place / "link").symlink_to(outside)
        (place / "loop").symlink_to(".")
        async with watching(init, place) as watch:
            (place / "late").symlink_to(outside)
            (outside / "secret").touch()
            assert {change.path for change in await watch.so_far()} == {"late"}

    async def test_a_link_to_the_directory_itself_may_be_named(self, init: RunningInit, place: Path) -> None:
        link = place.parent / "way"
        link.symlink_to(place)
        async with init.client.watch(str(link)) as stream:
            (place / "file").touch()
            assert brief(batch(await anext(stream)))[0] == (CREATE, "file")


class TestNothingIsLost:
    @pytest.mark.parametrize("round_number", range(5))
    async def test_storms_of_nested_directories(self, init: RunningInit, place: Path, round_number: int) -> None:
        script = f"""
            cd {place}
            for n in $(seq 60); do mkdir -p a$n/b/c/d/e/f && echo x > a$n/b/c/d/e/f/file; done &
            for n in $(seq 60); do mkdir -p z/$n/y/x && : > z/$n/y/x/one && mv z/$n z/moved$n; done &
            for n in $(seq 60); do mkdir -p r/$n/s/t && rm -r r/$n; done &
            wait
        """
        async with watching(init, place) as watch:
            await trio.run_process(["sh", "-c", script])
            changes = await watch.so_far()
        assert OVERFLOW not in {change.kind for change in changes}
        assert replayed(changes) == walked(place)

    async def test_nothing_is_told_twice(self, init: RunningInit, place: Path) -> None:
        script = f"cd {place}; for n in $(seq 200); do mkdir -p a$n/b/c && : > a$n/b/c/file; done"
        async with watching(init, place) as watch:
            await trio.run_process(["sh", "-c", script])
            created = [change.path for change in await watch.so_far() if change.kind is CREATE]
        assert len(created) == len(set(created)) == 800

    async def test_a_tree_that_is_moved_in_is_told_whole(
        self, init: RunningInit, place: Path, directory: Path
    ) -> None:
        outside = directory / "outside"
        (outside / "a" / "b").mkdir(parents=True)
        (outside / "a" / "b" / "file").touch()
        async with watching(init, place) as watch:
            outside.rename(place / "in")
            assert replayed(await watch.so_far()) == {"in", "in/a", "in/a/b", "in/a/b/file"}
            (place / "in").rename(place / "again")
            (place / "again" / "a" / "b" / "new").touch()
            assert (CREATE, "again/a/b/new") in brief(await watch.so_far())

    async def test_a_tree_that_is_moved_out_is_watched_no_more(
        self, init: RunningInit, place: Path, directory: Path
    ) -> None:
        (place / "out" / "deep").mkdir(parents=True)
        async with watching(init, place) as watch:
            (place / "out").rename(directory / "away")
            (directory / "away" / "deep" / "file").touch()
            assert brief(await watch.so_far()) == [(RENAME, "out")]

    async def test_a_directory_that_becomes_readable(self, binaries: dict[str, Path], directory: Path) -> None:
        place = directory / "watched"
        place.mkdir(mode=0o777)
        (place / "closed").mkdir(mode=0o700)
        async with pid1_init(binaries["sanitized"], directory) as init:
            if os.geteuid() != 0:
                pytest.skip("needs another user")
            async with watching(init, place, user="plain") as watch:
                (place / "closed" / "hidden").touch()
                assert await watch.so_far() == []
                (place / "closed").chmod(0o755)
                (place / "closed" / "seen").touch()
                assert {"closed/hidden", "closed/seen"} <= replayed(await watch.so_far())

    async def test_overflow_is_told_and_the_watch_goes_on(self, init: RunningInit, place: Path) -> None:
        async with init.client.watch(str(place), recursive=True) as stream:
            # Nobody reads, so first the socket fills and then inotify's queue (16384 events by default).
            script = (
                "import os\nfor n in range(40000):\n"
                f" path = f'{place}/x{{n % 9}}'\n open(path, 'w').close()\n os.unlink(path)\n"
            )
            await trio.run_process([sys.executable, "-c", script])
            seen: set[ChangeKind] = set()
            with trio.fail_after(PATIENCE):
                while OVERFLOW not in seen:
                    seen |= {change.kind for change in batch(await anext(stream))}
            (place / "after").touch()
            with trio.fail_after(PATIENCE):
                while not any(change.path == "after" for change in batch(await anext(stream))):
                    pass

    async def test_depth_beyond_a_path_is_told(self, init: RunningInit, place: Path) -> None:
        async with watching(init, place) as watch:
            script = f"cd {place}; n=$(printf 'n%.0s' $(seq 200)); for i in $(seq 30); do mkdir $n && cd $n; done"
            await trio.run_process(["bash", "-c", script])
            kinds = {change.kind for change in await watch.so_far()}
            assert UNWATCHED in kinds
            await trio.run_process(["sh", "-c", f"rm -r {place}/n*"])
            await watch.so_far()
            (place / "fine").touch()
            assert (CREATE, "fine") in brief(await watch.so_far())


class TestEnd:
    async def test_the_directory_is_removed(self, init: RunningInit, place: Path) -> None:
        async with watching(init, place) as watch:
            os.rmdir(place)
            assert brief(await watch.to_the_end()) == [(REMOVE, "."), (ENDED, ".")]

    async def test_it_is_removed_while_a_process_works_in_it(self, init: RunningInit, place: Path) -> None:
        with a_process_in(place):
            async with watching(init, place) as watch:
                os.rmdir(place)
                assert brief(await watch.to_the_end())[-2:] == [(REMOVE, "."), (ENDED, ".")]

    async def test_it_is_moved_away(self, init: RunningInit, place: Path) -> None:
        async with watching(init, place) as watch:
            os.rename(place, place.parent / "elsewhere")
            assert brief(await watch.to_the_end())[-2:] == [(RENAME, "."), (ENDED, ".")]

    async def test_its_parent_is_moved_away(self, init: RunningInit, directory: Path) -> None:
        inner = directory / "outer" / "inner"
        inner.mkdir(parents=True)
        async with watching(init, inner) as watch:
            (directory / "outer").rename(directory / "elsewhere")
            (directory / "elsewhere" / "inner" / "new").mkdir()
            assert brief(await watch.to_the_end())[-1] == (ENDED, ".")

    async def test_the_client_leaves(self, init: RunningInit, place: Path) -> None:
        descriptors = init.descriptors()
        async with watching(init, place) as watch:
            (place / "file").touch()
            await watch.so_far()
        await init.wait_idle()
        await wait_until(lambda: init.descriptors() <= descriptors)


class TestSync:
    async def test_many_at_once_are_answered_one_by_one(self, init: RunningInit, place: Path) -> None:
        async with init.client.watch(str(place)) as stream:
            for number in range(50):
                (place / str(number)).touch()
                await stream.sync()
            seen, answers = set(), 0
            while answers < 50:
                told = await anext(stream)
                if isinstance(told, Synced):
                    answers += 1
                    assert {str(number) for number in range(answers)} <= seen
                else:
                    seen |= {change.path for change in told}

    @pytest.mark.parametrize("message", [encode_frame(Op.HELLO), encode_frame(Op.SYNC, b"x"), b"\xff" * 9])
    async def test_anything_else_ends_the_watch_alone(self, init: RunningInit, place: Path, message: bytes) -> None:
        request = encode_fields(Op.WATCH, {Tag.PATH: str(place)})
        with trio.socket.from_stdlib_socket(await connect(init.socket)) as stream, trio.fail_after(PATIENCE):
            await stream.send(request + message)
            while await stream.recv(1000):
                pass
        await init.wait_idle()
        await init.client.hello()


class TestRefusals:
    async def test_missing(self, init: RunningInit, place: Path) -> None:
        with pytest.raises(InitError) as raised:
            async with init.client.watch(str(place / "missing")):
                pass
        assert raised.value.errno == errno.ENOENT

    async def test_a_file(self, init: RunningInit, place: Path) -> None:
        (place / "file").touch()
        with pytest.raises(InitError) as raised:
            async with init.client.watch(str(place / "file")):
                pass
        assert raised.value.kind == "not_directory"

    @pytest.mark.parametrize("ignore", [("x",) * 65, ("x" * 257,)])
    async def test_too_many_or_too_long_patterns(
        self, init: RunningInit, place: Path, ignore: tuple[str, ...]
    ) -> None:
        with pytest.raises(InitError) as raised:
            async with init.client.watch(str(place), ignore=ignore):
                pass
        assert raised.value.kind == "pattern"

    async def test_too_many_watches_leave_room_for_files(self, release_init: RunningInit, place: Path) -> None:
        client = release_init.client
        # Of a user of their own: the kernel has a limit for each, and the tests' neighbours watch, too.
        user = "65112" if os.geteuid() == 0 else ""
        refused: InitError | None = None
        async with trio.open_nursery() as nursery:

            async def hold(task_status: trio.TaskStatus[None]) -> None:
                async with client.watch(str(place), user=user):
                    task_status.started()
                    await trio.sleep_forever()

            for _ in range(129):
                try:
                    await nursery.start(hold)
                except InitError as error:
                    refused = error
                    break
            await client.stat(str(place))
            nursery.cancel_scope.cancel("seen enough")
        assert refused is not None
        # The host's own limit on inotify instances may be lower than ours.
        assert refused.kind in {"too_many", "watches"}

    async def test_another_user_sees_what_it_may(self, pid1: RunningInit, directory: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs another user")
        closed = directory / "closed"
        closed.mkdir(mode=0o700)
        await shell(pid1.client, "true")
        with pytest.raises(InitError) as raised:
            async with pid1.client.watch(str(closed), user="plain"):
                pass
        assert raised.value.errno == errno.EACCES
