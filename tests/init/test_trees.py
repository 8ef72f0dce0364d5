"""Signals and the processes that a command leaves behind."""

import resource
import signal
from functools import partial

import psutil
import pytest
import trio

from sandboxd.isolation.init.client import Attachment, InitError, SpawnRequest
from sandboxd.isolation.init.messages import ResourceLimit
from sandboxd.isolation.init.wire import Flag, Scope, StdinMode
from tests.init.harness import RunningInit, alive, command_line, descendants, follow, read_until, shell, wait_until
from tests.support.waiting import PATIENCE

DAEMON = "setsid sh -c '(sleep 1000 & echo started; exec sleep 1000) & exit 0'"

SANDBOX_CAPABILITIES = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+setfcap"
)


def programs_below(init: RunningInit) -> list[list[str]]:
    """The command lines of what runs; keepers and workers, which bear init's own, left out."""
    lines = [command_line(one) for one in descendants(init.pid)]
    return [line for line in lines if line and "sandbox-init" not in line[0]]


async def test_leader_only(init: RunningInit) -> None:
    async with init.client.spawn_attached(
        SpawnRequest(argv=["sh", "-c", "sleep 1000 & echo up; wait"])
    ) as attachment:
        await read_until(attachment, b"up\n")
        assert await init.client.signal(attachment.command, signal.SIGTERM) is None
        result = await follow(attachment)
    assert result.exited.exit_signal == signal.SIGTERM
    await wait_until(lambda: programs_below(init) == [["sleep", "1000"]])


async def test_group(init: RunningInit) -> None:
    script = "sleep 1000 & setsid sh -c 'echo apart; exec sleep 2000' & wait"
    async with init.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script])) as attachment:
        await read_until(attachment, b"apart\n")
        await init.client.signal(attachment.command, signal.SIGTERM, scope=Scope.GROUP)
        await follow(attachment)
    await wait_until(lambda: programs_below(init) == [["sleep", "2000"]])


async def test_attached_signal(init: RunningInit) -> None:
    async with init.client.spawn_attached(SpawnRequest(argv=["sleep", "1000"])) as attachment:
        await attachment.signal(signal.SIGINT)
        assert (await follow(attachment)).exited.exit_signal == signal.SIGINT


async def test_ignoring_term_helps_only_until_kill(init: RunningInit) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    async with init.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script])) as attachment:
        await read_until(attachment, b"up\n")
        assert await init.client.signal(attachment.command, signal.SIGTERM, scope=Scope.TREE) >= 1
        with trio.move_on_after(0.2) as scope:
            await follow(attachment)
        assert scope.cancelled_caught
        await init.client.signal(attachment.command, signal.SIGKILL, scope=Scope.TREE)
        assert (await follow(attachment)).exited.exit_signal == signal.SIGKILL
    await wait_until(lambda: programs_below(init) == [])


async def test_daemon_that_forked_twice_belongs_to_its_command(init: RunningInit) -> None:
    started = await init.client.spawn(SpawnRequest(argv=["sh", "-c", DAEMON]))
    async with init.client.attach(started.command) as attachment:
        assert (await follow(attachment)).exited.flags & Flag.SURVIVORS
    await wait_until(lambda: programs_below(init) == [["sleep", "1000"]] * 2)
    # The bystander shows that only the tree is hit.
    await init.client.spawn(SpawnRequest(argv=["sleep", "3000"]))
    assert await init.client.signal(started.command, signal.SIGKILL, scope=Scope.TREE) == 2
    await wait_until(lambda: programs_below(init) == [["sleep", "3000"]])


async def test_fork_bomb_is_killed_whole(release_init: RunningInit) -> None:
    init = release_init
    # Each process forks for ever; without a limit of its own on processes the machine bounds it by RLIMIT_NPROC.
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    limits = [ResourceLimit(resource.RLIMIT_NPROC, 200, 200)]
    user = "65111"  # for root RLIMIT_NPROC does not count; a uid of its own, so that the limit is the bomb's alone
    request = SpawnRequest(argv=["python3", "-S", "-c", bomb], rlimits=limits, user=user, cwd="/")
    if psutil.Process().uids().effective != 0:
        pytest.skip("needs another uid than that of the tests")
    async with init.client.spawn_attached(request) as attachment:
        await wait_until(lambda: len(programs_below(init)) > 150)
        with trio.fail_after(PATIENCE):
            await init.client.signal(attachment.command, signal.SIGKILL, scope=Scope.TREE)
        await follow(attachment)
    await wait_until(lambda: programs_below(init) == [])


async def test_signalling_what_has_ended(init: RunningInit) -> None:
    started = await init.client.spawn(SpawnRequest(argv=["true"]))
    async with init.client.attach(started.command) as attachment:
        await follow(attachment)
    for scope in (Scope.LEADER, Scope.GROUP):
        with pytest.raises(InitError, match="it has ended") as raised:
            await init.client.signal(started.command, signal.SIGTERM, scope=scope)
        assert raised.value.kind == "ended"
    assert await init.client.signal(started.command, signal.SIGKILL, scope=Scope.TREE) == 0


async def test_signal_out_of_range(init: RunningInit) -> None:
    started = await init.client.spawn(SpawnRequest(argv=["sleep", "1000"]))
    with pytest.raises(InitError, match="use 0 to 64"):
        await init.client.signal(started.command, 65)
    await init.client.signal(started.command, 0)


async def test_killed_keeper_does_not_hide_the_exit(init: RunningInit) -> None:
    request = SpawnRequest(argv=["sh", "-c", "read x; exit 9"], stdin=StdinMode.PIPE)
    async with init.client.spawn_attached(request) as attachment:
        (keeper,) = psutil.Process(init.pid).children()
        keeper.kill()
        await wait_until(lambda: not alive(keeper))
        await attachment.close_stdin()
        assert (await follow(attachment)).exited.exit_code == 9


async def test_shutdown_gives_grace(init: RunningInit) -> None:
    proof = init.socket.parent / "proof"
    polite = f"trap 'echo polite > {proof}; exit' TERM; echo up; while :; do sleep 0.02; done"
    await start_ready(init, polite)
    with trio.fail_after(PATIENCE):  # which is less than the grace
        await init.client.shutdown(grace_ms=120_000)
    assert proof.read_text() == "polite\n"


async def test_shutdown_kills_when_the_grace_is_over(init: RunningInit) -> None:
    await start_ready(init, "trap '' TERM; echo up; while :; do sleep 0.02; done")
    await start_ready(init, f"{DAEMON} && echo up")
    below = descendants(init.pid)
    start = trio.current_time()
    with trio.fail_after(PATIENCE):
        await init.client.shutdown(grace_ms=400)
    assert trio.current_time() - start > 0.3
    assert [one for one in below if alive(one)] == []


async def start_ready(init: RunningInit, script: str) -> Attachment:
    """A command, once it has said that it is up; nobody follows it any more."""
    async with init.client.spawn_attached(SpawnRequest(argv=["sh", "-c", script])) as attachment:
        await read_until(attachment, b"up\n")
    return attachment


async def test_shutdown_does_not_wait_for_nothing(init: RunningInit) -> None:
    await init.client.spawn(SpawnRequest(argv=["sleep", "1000"]))
    with trio.fail_after(PATIENCE):  # which is less than the grace
        await init.client.shutdown(grace_ms=120_000)


async def test_shutdown_goes_on_when_its_client_has_left(init: RunningInit) -> None:
    proof = init.socket.parent / "proof"
    stubborn = await start_ready(init, f"trap 'echo asked > {proof}' TERM; echo up; while :; do sleep 0.02; done")
    assert stubborn.pid is not None

    def was_asked() -> bool:
        return proof.exists() or not psutil.pid_exists(stubborn.pid)  # on a slow machine its grace is over by then

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(init.client.shutdown, grace_ms=500))
        await wait_until(was_asked)
        nursery.cancel_scope.cancel()
    # The harness sees that init ended well, and without a word from the sanitizers.
    await wait_until(lambda: not psutil.pid_exists(stubborn.pid))


class TestPid1:
    async def test_reaps_every_orphan(self, pid1: RunningInit) -> None:
        await shell(pid1.client, "for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sh -c 'sleep 0.1 &' &) ; done")
        # Also those that no keeper catches, because it was killed.
        result = await shell(pid1.client, "(sleep 0.2 &); ps -o pid=,comm= -A | awk '$2 == \"keeper\" {print $1}'")
        keepers = result.stdout.split()
        await shell(pid1.client, f"kill -9 {b' '.join(keepers).decode()} 2>/dev/null; true")
        await pid1.wait_idle()

    async def test_cannot_be_killed_traced_or_read_from_inside(self, pid1: RunningInit) -> None:
        assert (await pid1.client.hello()).pid == 1
        await shell(pid1.client, "kill -9 1; kill -TERM 1; kill -STOP 1; kill -SEGV 1")
        assert (await pid1.client.hello()).pid == 1
        look = "readlink /proc/1/fd/0; cat /proc/1/environ | head -c 1; true"
        bare = f"setpriv --bounding-set={SANDBOX_CAPABILITIES} --inh-caps=-all sh -c '{look}'"
        assert (await shell(pid1.client, bare)).stdout == b""
        # The positive control: with the capabilities that sandboxes do not have, the same look sees something.
        assert (await shell(pid1.client, look)).stdout.startswith(b"/dev/null\n")

    async def test_shutdown_ends_the_namespace(self, pid1: RunningInit) -> None:
        await pid1.client.spawn(SpawnRequest(argv=["sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"]))
        below = descendants(pid1.pid)
        await pid1.client.shutdown(grace_ms=100)
        await wait_until(lambda: not any(alive(one) for one in below))
