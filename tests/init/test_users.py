"""Who commands and file operations run as, in a sandbox with a user database of its own."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitError, SpawnRequest
from sandboxd.isolation.init.files import WriteOptions
from sandboxd.isolation.init.wire import FileType
from tests.init.harness import Content, Etc, RunningInit, pid1_init, run, shell
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

WITH_HOME = ("mkdir -p /mnt/home && chown 1000:1000 /mnt/home && chmod 700 /mnt/home", "mkdir -m 1777 /mnt/tmp")


@pytest.fixture
async def box(binaries: dict[str, Path], directory: Path) -> AsyncIterator[RunningInit]:
    etc = Etc(
        passwd=Etc().passwd.replace("user:x:1000:1000::/tmp:", "user:x:1000:1000::/mnt/home:"), commands=WITH_HOME
    )
    async with pid1_init(binaries["sanitized"], directory, etc) as running:
        yield running


class TestCommands:
    @pytest.mark.parametrize(
        ("user", "ids"),
        [
            ("", b"0 0 0"),
            ("root", b"0 0 0"),
            ("user", b"1000 1000 1000 27 2000"),
            ("1000", b"1000 1000 1000 27 2000"),
            ("1000:7", b"1000 7 7 27 2000"),
            ("plain", b"1001 1001 1001 2000"),
            ("4321", b"4321 4321 4321"),
            ("4321:5", b"4321 5 5"),
        ],
    )
    async def test_ids_and_groups(self, box: RunningInit, user: str, ids: bytes) -> None:
        result = await shell(
            box.client, "echo $(id -u) $(id -g) $(cat /proc/self/status | grep Groups | cut -f2)", user=user
        )
        uid, gid, *groups = result.stdout.split()
        wanted_uid, wanted_gid, *wanted_groups = ids.split()
        assert (uid, gid, set(groups)) == (wanted_uid, wanted_gid, set(wanted_groups))

    async def test_no_capability_is_left_to_ordinary_users(self, box: RunningInit) -> None:
        result = await shell(box.client, "grep ^Cap /proc/self/status", user="user")
        assert {line.split()[1] for line in result.stdout.splitlines()} == {b"0" * 16}
        # The positive control: root has some.
        as_root = await shell(box.client, "grep ^CapEff /proc/self/status")
        assert as_root.stdout.split()[1] != b"0" * 16

    async def test_home_and_environment(self, box: RunningInit) -> None:
        result = await run(box.client, SpawnRequest(argv=["sh", "-c", "pwd; echo $HOME $USER $SHELL"], user="user"))
        assert result.stdout == b"/mnt/home\n/mnt/home user /bin/sh\n"

    async def test_the_directory_is_entered_as_the_user(self, box: RunningInit) -> None:
        with pytest.raises(InitError) as raised:
            await box.client.spawn(SpawnRequest(argv=["true"], cwd="/mnt/home", user="plain"))
        assert (raised.value.kind, raised.value.errno) == ("cwd", errno.EACCES)

    async def test_ordinary_user_cannot_signal_others(self, box: RunningInit) -> None:
        started = await box.client.spawn(SpawnRequest(argv=["sleep", "1000"]))
        result = await shell(box.client, f"kill -9 {started.pid}", user="user")
        assert result.exited.exit_code == 1
        # init itself can, whoever it is.
        own = await box.client.spawn(SpawnRequest(argv=["sleep", "1000"], user="user"))
        await box.client.signal(own.command, 9)


class TestHostileDatabases:
    @pytest.mark.parametrize(
        "commands",
        [
            ("umount /etc/passwd", "mount -t tmpfs none /etc"),
            ("mount -t tmpfs none /etc", "mkfifo /etc/passwd /etc/group"),
            ("mount -t tmpfs none /etc", "mkdir /etc/passwd /etc/group"),
            ("mount -t tmpfs none /etc", "ln -s passwd /etc/passwd", "ln -s /dev/zero /etc/group"),
            ("mount -t tmpfs none /etc", "head -c 3000000 /dev/zero > /etc/passwd", "cp /etc/passwd /etc/group"),
            ("mount -t tmpfs none /etc", "head -c 3000000 /dev/urandom > /etc/passwd", "cp /etc/passwd /etc/group"),
        ],
    )
    async def test_root_and_numbers_work_regardless(
        self, binaries: dict[str, Path], directory: Path, commands: tuple[str, ...]
    ) -> None:
        async with pid1_init(binaries["sanitized"], directory, Etc(commands=commands)) as box:
            with trio.fail_after(PATIENCE):
                for user, uid in (("", b"0\n"), ("root", b"0\n"), ("4242", b"4242\n")):
                    request = SpawnRequest(argv=["/usr/bin/id", "-u"], user=user, cwd="/")
                    assert (await run(box.client, request)).stdout == uid
                with pytest.raises(InitError, match="no such user"):
                    await box.client.spawn(SpawnRequest(argv=["true"], user="user"))
                assert (await box.client.stat("/", user="4242")).owner == ""

    async def test_lines_longer_than_any_buffer_are_skipped(self, binaries: dict[str, Path], directory: Path) -> None:
        long = f"long:x:7:7:{'x' * 20_000}:/:/bin/sh\n"
        etc = Etc(passwd=f"{long}:::\n\nno colons\nbad:x:minus:1::/:/bin/sh\n{long}last:x:8:9::/:/bin/sh")
        async with pid1_init(binaries["sanitized"], directory, etc) as box:
            assert (await shell(box.client, "id -u; id -g", user="last")).stdout == b"8\n9\n"
            for name in ("long", "bad", "no colons"):
                with pytest.raises(InitError, match="no such user"):
                    await box.client.spawn(SpawnRequest(argv=["true"], user=name))


class TestFiles:
    async def test_they_are_touched_as_the_user(self, box: RunningInit) -> None:
        await box.client.write_file("/mnt/home/mine", Content(b"x"), user="user", options=WriteOptions(mode=0o600))
        entry = await box.client.stat("/mnt/home/mine", user="user")
        assert (entry.uid, entry.gid, entry.owner, entry.group) == (1000, 1000, "user", "user")
        attempts = (
            lambda: box.client.stat("/mnt/home/mine", user="plain"),
            lambda: box.client.write_file("/mnt/home/new", Content(b"x"), user="plain"),
            lambda: box.client.remove("/mnt/home", user="plain", recursive=True),
            lambda: box.client.chown("/mnt/home/mine", owner="plain", user="user"),
        )
        for attempt in attempts:
            with pytest.raises(InitError) as raised:
                await attempt()
            assert raised.value.errno in (errno.EACCES, errno.EPERM)
        assert (await box.client.stat("/mnt/home/mine")).owner == "user"

    async def test_root_may_give_what_it_makes_away(self, box: RunningInit) -> None:
        await box.client.write_file(
            "/mnt/tmp/a/b/file",
            Content(b"x"),
            options=WriteOptions(parents=True, owner="user", group="extra", atomic=True),
        )
        for path in ("/mnt/tmp/a", "/mnt/tmp/a/b", "/mnt/tmp/a/b/file"):
            entry = await box.client.stat(path)
            assert (entry.owner, entry.group) == ("user", "extra")
        await box.client.mkdir("/mnt/tmp/d", owner="1001", group="7")
        entry = await box.client.stat("/mnt/tmp/d")
        assert (entry.uid, entry.gid, entry.owner, entry.group) == (1001, 7, "plain", "")

    async def test_atomic_replacement_keeps_owner_and_mode(self, box: RunningInit) -> None:
        await box.client.write_file(
            "/mnt/tmp/file", Content(b"x"), options=WriteOptions(owner="user", group="user", mode=0o640)
        )
        await box.client.write_file("/mnt/tmp/file", Content(b"y"), options=WriteOptions(atomic=True))
        entry = await box.client.stat("/mnt/tmp/file")
        assert (entry.owner, entry.group, entry.mode) == ("user", "user", 0o640)

    async def test_links_are_changed_themselves_unless_followed(self, box: RunningInit) -> None:
        await box.client.write_file("/mnt/tmp/file", Content(b"x"))
        await box.client.symlink("/mnt/tmp/link", "file")
        await box.client.chown("/mnt/tmp/link", owner="user", follow=False)
        assert (await box.client.stat("/mnt/tmp/link", follow=False)).owner == "user"
        assert (await box.client.stat("/mnt/tmp/link")).owner == "root"
        await box.client.chown("/mnt/tmp/link", owner="plain")
        assert (await box.client.stat("/mnt/tmp/file")).owner == "plain"

    @pytest.mark.parametrize("names", [{"owner": "nobody-here"}, {"group": "nobody-here"}])
    async def test_unknown_owners_are_refused(self, box: RunningInit, names: dict[str, str]) -> None:
        with pytest.raises(InitError, match="no such") as raised:
            await box.client.chown("/mnt/tmp", **names)
        assert raised.value.kind in names or raised.value.kind == "user"

    async def test_devices_are_told(self, box: RunningInit) -> None:
        assert (await box.client.stat("/dev/null")).file_type is FileType.CHARACTER
