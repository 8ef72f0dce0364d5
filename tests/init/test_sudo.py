"""sudo: the applet, and hostile clients of its socket."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import SpawnRequest, TerminalSize
from sandboxd.isolation.init.wire import Scope, StdinMode
from tests.init.harness import (
    Etc,
    RunningInit,
    command_line,
    descendants,
    follow,
    has_terminal,
    pid1_init,
    read_until,
    run,
    shell,
    wait_until,
)
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

PASSWD = "root:x:0:0::/mnt:/bin/bash\nuser:x:1000:1000::/tmp:/bin/sh\nplain:x:1001:1001::/tmp:/bin/sh\n"
SUDO = "/mnt/sudo"


@pytest.fixture(params=["release", "sanitized"])
async def box(
    request: pytest.FixtureRequest, binaries: dict[str, Path], directory: Path
) -> AsyncIterator[RunningInit]:
    async with pid1_init(binaries[request.param], directory, Etc(passwd=PASSWD)) as running:
        yield running


async def sudo(box: RunningInit, arguments: str, *, user: str = "user") -> tuple[int | None, str, str]:
    """Run the applet without a terminal: exit code, stdout, stderr."""
    result = await shell(box.client, f"{SUDO} {arguments}", user=user, cwd="/tmp")
    return result.exited.exit_code, result.stdout.decode(), result.stderr.decode()


async def test_a_member_of_group_sudo_becomes_root(box: RunningInit) -> None:
    assert await sudo(box, "id -u") == (0, "0\n", "")


async def test_others_are_refused(box: RunningInit) -> None:
    code, out, err = await sudo(box, "id -u", user="plain")
    assert (code, out) == (1, "")
    assert "cannot use sudo as uid 1001: it is not in group sudo" in err
    assert (await sudo(box, "id -u", user="4242"))[0] == 1


async def test_root_may_always(box: RunningInit) -> None:
    assert await sudo(box, "-u plain id -un", user="") == (0, "plain\n", "")


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        ("-u plain id -u", "1001\n"),
        ("-uplain id -u", "1001\n"),
        ("--user=1001 id -u", "1001\n"),
        ("-n -H -S -- id -u", "0\n"),
        ("pwd", "/tmp\n"),
        ("sh -c 'echo $HOME $USER $SUDO_USER $SUDO_UID $SUDO_GID'", "/mnt root user 1000 1000\n"),
        ("A=b HOME=/x sh -c 'echo $A $HOME'", "b /x\n"),
        ("-i pwd", "/mnt\n"),
        ("-i echo 'a  b' \"c'd\" '$HOME'", "a  b c'd $HOME\n"),
        ("-s echo '*'", "*\n"),
        ("-v", ""),
        ("-k", ""),
        ("-K", ""),
        ("-k id -u", "0\n"),
        ("-u '#1001' id -u", "1001\n"),
        ("-g extra id -un", "user\n"),
        ("-g extra id -gn", "extra\n"),
        ("-g extra id -Gn", "extra sudo user\n"),
        ("-u plain -g '#27' id -g", "27\n"),
        ("--user plain --group=user id -gn", "user\n"),
        ("-p 'password: ' id -u", "0\n"),
        ("-i -- pwd", "/mnt\n"),
    ],
)
async def test_options(box: RunningInit, arguments: str, out: str) -> None:
    assert await sudo(box, arguments) == (0, out, "")


async def test_environment_is_reset_unless_preserved(box: RunningInit) -> None:
    environment = {"LANG": "C.UTF-8", "SECRET": "s", "PATH": f"/evil:{os.environ['PATH']}", "LC_ALL": "C"}
    for option, kept in (
        ("", {"LANG", "LC_ALL"}),
        ("-E", {"LANG", "LC_ALL", "SECRET"}),
        ("--preserve-env", {"LANG", "LC_ALL", "SECRET"}),
        ("--preserve-env=OTHER,SECRET", {"LANG", "LC_ALL", "SECRET"}),
        ("--preserve-env=SECRE,SECRETS", {"LANG", "LC_ALL"}),
    ):
        argv = ["sh", "-c", f"{SUDO} {option} env"]
        result = await run(box.client, SpawnRequest(argv=argv, env=environment, user="user"))
        got = dict(line.split("=", 1) for line in result.stdout.decode().splitlines())
        assert {name for name in environment if name in got} - {"PATH"} == kept
        assert got["PATH"].startswith("/usr/local/sbin:")


@pytest.mark.parametrize("arguments", ["", "-i -s", "A=b"])
async def test_anything_else_is_explained(box: RunningInit, arguments: str) -> None:
    code, out, err = await sudo(box, arguments)
    assert (code, out) == (1, "")
    assert err.startswith("usage: sudo ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [("-x id", "-x"), ("-l", "-l"), ("-nb id", "-b"), ("--chdir=/ id", "--chdir=/"), ("-D / id", "-D"), ("-u", "-u")],
)
async def test_an_option_that_it_has_not_is_refused_by_name(box: RunningInit, arguments: str, named: str) -> None:
    code, out, err = await sudo(box, arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"sudo: cannot use {named} in a sandbox\nusage: sudo ")


@pytest.mark.parametrize("option", ["-h", "--help", "-V"])
async def test_help_is_no_failure(box: RunningInit, option: str) -> None:
    code, out, err = await sudo(box, option)
    assert (code, err) == (0, "")
    assert out.startswith("usage: sudo ")


async def test_an_unknown_group_is_refused(box: RunningInit) -> None:
    code, _, err = await sudo(box, "-g nobody-knows id")
    assert code == 1
    assert 'cannot use group "nobody-knows"' in err


async def test_exit_status_is_passed_through(box: RunningInit) -> None:
    assert (await sudo(box, "sh -c 'exit 42'"))[0] == 42
    assert (await sudo(box, "sh -c 'kill -9 $$'"))[0] == 128 + signal.SIGKILL
    code, _, err = await sudo(box, "no-such-program")
    assert code == 1
    assert 'cannot run "no-such-program"' in err


async def test_descriptors_are_the_callers_own(box: RunningInit) -> None:
    script = f"echo input | {SUDO} sh -c 'cat; readlink /proc/$$/fd/2 >&2; ls /proc/$$/fd' 2>/mnt/err; cat /mnt/err"
    await shell(box.client, "chmod 777 /mnt")
    result = await shell(box.client, script, user="user")
    assert result.stdout.decode().split() == ["input", "0", "1", "2", "/mnt/err"]


async def test_pipelines_end_when_the_command_does(box: RunningInit) -> None:
    with trio.fail_after(PATIENCE):
        assert (await sudo(box, "echo hello | cat; echo done"))[1] == "hello\ndone\n"


async def test_signals_are_relayed(box: RunningInit) -> None:
    script = f"exec {SUDO} sh -c 'trap \"echo got; exit 3\" TERM; echo up; while :; do sleep 0.02; done'"
    async with box.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script], user="user")) as attachment:
        await read_until(attachment, b"up\n")
        await attachment.signal(signal.SIGTERM)
        result = await follow(attachment)
    assert result.stdout == b"got\n"
    assert result.exited.exit_code == 3


class TestTerminal:
    async def test_shell_has_job_control_and_size(self, box: RunningInit) -> None:
        request = SpawnRequest(argv=[SUDO, "bash", "--norc", "-i"], terminal=TerminalSize(90, 30), user="user")
        async with box.client.spawn_attached(request) as attachment:
            await read_until(attachment, b"# ")
            await attachment.send_stdin(b"stty size; whoami\n")
            seen = await read_until(attachment, b"root\r\n")
            assert b"30 90" in seen
            assert b"no job control" not in seen
            await attachment.resize(TerminalSize(100, 40))
            await attachment.send_stdin(b"while stty size | grep -q 90; do sleep 0.02; done; stty size\n")
            await read_until(attachment, b"40 100")
            await attachment.send_stdin(b"sleep 1000\n")
            await wait_until(lambda: has_terminal(box.pid, "sleep"))
            await attachment.send_stdin(b"\x03")
            await attachment.send_stdin(b"exit 6\n")
            assert (await follow(attachment)).exited.exit_code == 6

    async def test_terminal_is_left_as_it_was(self, box: RunningInit) -> None:
        script = f"stty -g; {SUDO} true; stty -g; {SUDO} nothing-here; stty -g"
        request = SpawnRequest(argv=["sh", "-c", script], terminal=TerminalSize(80, 24), user="user")
        lines = (await run(box.client, request)).stdout.decode().splitlines()
        settings = [line for line in lines if ":" in line and "sudo" not in line]
        assert len(settings) == 3
        assert len(set(settings)) == 1

    async def test_pipeline_on_a_terminal(self, box: RunningInit) -> None:
        script = f"{SUDO} echo hello | cat"
        request = SpawnRequest(argv=["sh", "-c", script], terminal=TerminalSize(80, 24), user="user")
        assert (await run(box.client, request)).stdout == b"hello\r\n"


class TestLifetime:
    async def test_command_ends_with_the_applet(self, box: RunningInit) -> None:
        async with box.client.spawn_attached(
            SpawnRequest(argv=["sh", "-c", f"{SUDO} sh -c 'echo up; setsid sleep 1000'"], user="user")
        ) as attachment:
            await read_until(attachment, b"up\n")
            applet = next(one for one in descendants(box.pid) if command_line(one)[:1] == [SUDO])
            applet.kill()
            await follow(attachment)
        await box.wait_idle()

    async def test_killing_a_command_reaches_what_it_started_through_sudo(self, box: RunningInit) -> None:
        # Survivors of a sudo command that has ended: the applet is long gone.
        script = f"{SUDO} sh -c 'setsid sleep 1000 >/dev/null 2>&1 & echo up'; sleep 1000"
        async with box.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script], user="user")) as attachment:
            await read_until(attachment, b"up\n")
            assert await box.client.signal(attachment.command, signal.SIGKILL, scope=Scope.TREE) >= 2
            await follow(attachment)
        await box.wait_idle()

    async def test_killing_a_command_reaches_what_it_is_just_starting_through_sudo(self, box: RunningInit) -> None:
        """The program runs and has ended before init hears of it; by then the tree to be killed has been decided."""
        script = f"read go; {SUDO} sh -c 'setsid sleep 1000 >/dev/null 2>&1 & echo up'; sleep 2000"
        request = SpawnRequest(argv=["sh", "-c", script], user="user", stdin=StdinMode.PIPE)
        async with (
            box.client.spawn_attached(request) as attachment,
            holding(box) as held,
            trio.open_nursery() as nursery,
        ):
            await attachment.send_stdin(b"\n")
            await held.wait_for("keeper")
            await read_until(attachment, b"up\n")
            nursery.start_soon(partial(box.client.signal, attachment.command, signal.SIGKILL, scope=Scope.TREE))
            await held.wait_for("worker")
            await held.let_go("keeper")
            await wait_until(lambda: ["sleep", "2000"] in [command_line(one) for one in descendants(box.pid)])
            await held.let_go("worker")
            await follow(attachment)
        await box.wait_idle()

    async def test_commands_of_sudo_are_not_in_the_list(self, box: RunningInit) -> None:
        async with box.client.spawn_attached(
            SpawnRequest(argv=["sh", "-c", f"{SUDO} sh -c 'echo up; read x'"], user="user", stdin=StdinMode.PIPE)
        ) as attachment:
            await read_until(attachment, b"up\n")
            assert [one.command for one in await box.client.commands()] == [attachment.command]
            assert (await box.client.hello()).count == 1
            await attachment.close_stdin()
            await follow(attachment)


@dataclass(frozen=True)
class Held:
    """Forks of an init that do not go on before they are let go."""

    process: trio.Process

    async def wait_for(self, what: str) -> None:
        assert self.process.stdout is not None
        with trio.fail_after(PATIENCE):
            assert await self.process.stdout.receive_some(100) == f"{what}\n".encode()

    async def let_go(self, what: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(f"{what}\n".encode())


@asynccontextmanager
async def holding(box: RunningInit) -> AsyncIterator[Held]:
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("holding.py")), str(box.pid)]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
        process = await nursery.start(run)
        async with process.stdin, process.stdout:
            held = Held(process)
            await held.wait_for("ready")
            yield held
        nursery.cancel_scope.cancel("the test is over")


HOSTILE = r"""
import array, os, socket, struct, sys
NAME = "\0sandbox-init-sudo"
def connect():
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(NAME)
    return peer
def frame(kind, payload=b""):
    return struct.pack("<IB", len(payload), kind) + payload
def field(tag, value):
    return struct.pack("<BI", tag, len(value)) + value
def closed(peer):
    peer.settimeout(60)
    try:
        return peer.recv(1000) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True
def send_fds(peer, data, count):
    fds = array.array("i", [1] * count)
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
run = frame(9, field(7, b"id"))
"""


@pytest.mark.parametrize(
    "attack",
    [
        # HELLO and SPAWN are the daemon's, as is every operation on files.
        "peer = connect(); peer.send(frame(1)); assert closed(peer)",
        "peer = connect(); peer.send(frame(2, field(7, b'id'))); assert closed(peer)",
        "peer = connect(); peer.send(frame(0x22, field(42, b'/etc/passwd'))); assert closed(peer)",
        # Three descriptors, or a terminal: nothing else will do.
        "peer = connect(); peer.send(run); assert closed(peer)",
        "peer = connect(); send_fds(peer, run, 2); assert closed(peer)",
        "peer = connect(); send_fds(peer, run, 4); assert closed(peer)",
        "peer = connect(); send_fds(peer, run, 200); assert closed(peer)",
        "peer = connect(); send_fds(peer, run[:3], 2); send_fds(peer, run[3:], 2); assert closed(peer)",
        "peer = connect(); send_fds(peer, frame(9, field(7, b'a\\0b')), 3); assert b'cannot' in peer.recv(1000)",
        "peer = connect(); peer.send(b'\\xff' * 5); assert closed(peer)",
        # Announces much and says nothing, or too much; opens more than there may be.
        "peer = connect(); peer.send(struct.pack('<IB', 1 << 20, 9)); assert closed(peer)",
        "peer = connect(); peer.send(struct.pack('<IB', 1 << 20, 9) + bytes(300000)); assert closed(peer)",
        "peers = [connect() for _ in range(40)]; assert closed(peers[0])",
        "peer = connect(); send_fds(peer, run, 3); assert b'not in group sudo' in peer.recv(1000)",
    ],
)
async def test_hostile_clients_harm_themselves_only(release_box: RunningInit, attack: str) -> None:
    box = release_box
    before = box.descriptors()
    async with trio.open_nursery() as nursery:

        async def others_work() -> None:
            for _ in range(20):
                with trio.fail_after(PATIENCE):
                    await shell(box.client, "true")

        nursery.start_soon(others_work)
        script = HOSTILE + attack
        result = await run(box.client, SpawnRequest(argv=["python3", "-c", script], user="plain", cwd="/"))
        assert result.exited.exit_code == 0, result.stderr
    await box.wait_idle()
    await wait_until(lambda: box.descriptors() <= before)


@pytest.fixture
async def release_box(binaries: dict[str, Path], directory: Path) -> AsyncIterator[RunningInit]:
    async with pid1_init(binaries["release"], directory, Etc(passwd=PASSWD)) as running:
        yield running
