"""Commands: starting, environment, exits, output, stdin, descriptors."""

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from sandboxd.isolation.init.client import InitClient, InitError, InitGone, SpawnRequest
from sandboxd.isolation.init.messages import Exited, Gap, ResourceLimit, StdinClosed
from sandboxd.isolation.init.wire import (
    MAX_ENDED_COMMANDS,
    OFFSET_NOW,
    CommandState,
    Flag,
    Output,
    Scope,
    StdinMode,
    Stream,
    WireError,
)
from tests.init.harness import RunningInit, follow, read_until, run, shell, wait_until
from tests.support.waiting import PATIENCE

MIB = 1024 * 1024


async def test_hello_tells_this_init_from_another(init: RunningInit) -> None:
    first, second = await init.client.hello(), await init.client.hello()
    assert first.pid == init.pid
    assert first.count == 0
    assert len(first.token) == 16
    assert first.token == second.token != bytes(16)
    assert first.uptime_ms <= second.uptime_ms


async def test_nobody_answering_is_gone(directory: Path) -> None:
    with pytest.raises(InitGone, match="cannot reach"):
        await InitClient(directory / "nothing.sock").hello()


async def test_socket_with_a_path_too_long_for_an_address(init: RunningInit, directory: Path) -> None:
    deep = directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "init.sock").hardlink_to(init.socket)
    assert (await InitClient(deep / "init.sock").hello()).pid == init.pid


class TestStarting:
    async def test_streams_and_exit_code(self, init: RunningInit) -> None:
        result = await shell(init.client, "echo out; echo err >&2; exit 3")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        assert (result.exited.exit_code, result.exited.exit_signal) == (3, None)
        assert result.exited.flags == Flag(0)
        assert result.exited.started_at_ms <= result.exited.ended_at_ms

    async def test_death_by_signal(self, init: RunningInit) -> None:
        result = await shell(init.client, "kill -9 $$")
        assert (result.exited.exit_code, result.exited.exit_signal) == (None, signal.SIGKILL)

    async def test_resource_usage_is_the_commands_own(self, init: RunningInit) -> None:
        result = await shell(init.client, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
        assert result.exited.user_time_us > 10_000
        assert result.exited.max_rss_kb > 100

    async def test_environment_is_the_requests_plus_what_programs_expect(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["env"], env={"HOME": "/tmp", "A": "b=c", "EMPTY": ""}, user="root")
        lines = (await run(init.client, request)).stdout.decode().splitlines()
        got = dict(line.split("=", 1) for line in lines)
        assert got.pop("PATH").startswith("/usr/local/sbin:")
        assert got.pop("SHELL").startswith("/")
        assert got == {"HOME": "/tmp", "A": "b=c", "EMPTY": "", "USER": "root", "LOGNAME": "root"}

    async def test_arguments_may_be_any_bytes(self, init: RunningInit) -> None:
        strange = bytes(range(1, 256))
        result = await run(init.client, SpawnRequest(argv=["printf", "%s", strange], env={"B": "\udcff"}))
        assert result.stdout == strange

    async def test_nul_in_an_argument_is_refused_before_sending(self, init: RunningInit) -> None:
        with pytest.raises(ValueError, match="NUL"):
            await init.client.spawn(SpawnRequest(argv=["echo", "a\0b"]))

    async def test_session_and_signals_are_fresh(self, init: RunningInit) -> None:
        script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ps -o pid=,pgid=,sid= -p $$; umask"
        result = await shell(init.client, script)
        lines = result.stdout.decode().split()
        assert lines[:4] == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]
        pid, pgid, sid = lines[4:7]
        assert pid == pgid == sid
        assert lines[7] == "0022"

    async def test_only_standard_descriptors_are_open(self, init: RunningInit) -> None:
        async with init.client.spawn_attached(SpawnRequest(argv=["sleep", "1000"])) as other:
            result = await run(init.client, SpawnRequest(argv=["ls", "/proc/self/fd"]))
            # The fourth is the directory that ls itself reads.
            assert result.stdout.split() == [b"0", b"1", b"2", b"3"]
            await init.client.signal(other.command, signal.SIGKILL)
            await follow(other)

    async def test_limits_are_applied_and_those_of_init_are_not_passed_on(self, init: RunningInit) -> None:
        limit = ResourceLimit(resource.RLIMIT_FSIZE, 4096, 8192)
        request = SpawnRequest(argv=["sh", "-c", "cat /proc/self/limits"], rlimits=[limit])
        lines = (await run(init.client, request)).stdout.decode().splitlines()
        size = next(line for line in lines if line.startswith("Max file size"))
        files = next(line for line in lines if line.startswith("Max open files"))
        assert size.split()[3:5] == ["4096", "8192"]
        assert int(files.split()[3]) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    @pytest.mark.parametrize(
        ("request_", "kind", "errno"),
        [
            (SpawnRequest(argv=["/nowhere"]), "program", 2),
            (SpawnRequest(argv=["no-such-program"]), "program", 2),
            (SpawnRequest(argv=["/etc/passwd"], program_lookup=False), "program", 13),
            (SpawnRequest(argv=["/tmp"]), "program", 13),
            (SpawnRequest(argv=["true"], cwd="/nowhere"), "cwd", 2),
            (SpawnRequest(argv=["true"], cwd="/etc/passwd"), "cwd", 20),
            (SpawnRequest(argv=["true"], user="nobody-here"), "user", 2),
            (SpawnRequest(argv=["true"], rlimits=[ResourceLimit(999, 1, 1)]), "rlimit", 22),
            (SpawnRequest(argv=["true"], ring_size=1), "request", 22),
            (SpawnRequest(argv=["true"], label=bytes(300)), "request", 22),
            (SpawnRequest(argv=["true"], env={"": "x"}), "request", 22),
        ],
    )
    async def test_failures_name_what_failed(
        self, init: RunningInit, request_: SpawnRequest, kind: str, errno: int
    ) -> None:
        with pytest.raises(InitError, match=r"^cannot ") as raised:
            await init.client.spawn(request_)
        assert (raised.value.kind, raised.value.errno) == (kind, errno)
        assert await init.client.commands() == []

    async def test_missing_interpreter_is_told_from_missing_program(self, init: RunningInit, directory: Path) -> None:
        script = directory / "script"
        script.write_text("#!/no/such/interpreter\n")
        script.chmod(0o755)
        with pytest.raises(InitError, match="interpreter it needs is missing"):
            await init.client.spawn(SpawnRequest(argv=[str(script)]))

    async def test_program_lookup_uses_the_requests_path(self, init: RunningInit, directory: Path) -> None:
        script = directory / "only-here"
        script.write_text("echo no shebang: $1")
        script.chmod(0o755)
        request = SpawnRequest(argv=["only-here", "arg"], env={"PATH": f"/nowhere:{directory}"})
        assert (await run(init.client, request)).stdout == b"no shebang: arg\n"

    async def test_no_arguments_at_all_is_a_protocol_error(self, init: RunningInit) -> None:
        with pytest.raises(InitGone):
            await init.client.spawn(SpawnRequest(argv=[]))


class TestOutput:
    async def test_64_mib_and_an_immediate_exit_arrive_whole(self, init: RunningInit) -> None:
        result = await shell(init.client, "head -c 67108864 /dev/zero | tr '\\0' x")
        assert len(result.stdout) == 64 * MIB
        assert result.stdout.count(b"x") == 64 * MIB
        assert result.exited.stdout_total == 64 * MIB

    async def test_last_bytes_are_never_lost(self, init: RunningInit) -> None:
        """65536 bytes fill the pipe exactly, so that the command ends with everything still in it."""
        request = SpawnRequest(argv=["dd", "if=/dev/zero", "bs=65536", "count=1", "status=none"])
        for _ in range(20):
            assert len((await run(init.client, request)).stdout) == 65536

    async def test_a_writer_nobody_reads_is_not_held_back(self, init: RunningInit) -> None:
        started = await init.client.spawn(SpawnRequest(argv=["sh", "-c", "head -c 8000000 /dev/zero; echo end"]))
        async with init.client.attach(started.command, output=False) as attachment:
            assert (await follow(attachment)).exited.stdout_total == 8_000_004
        async with init.client.attach(started.command) as attachment:
            late = await follow(attachment)
        assert late.stdout.endswith(b"end\n")
        assert late.gaps == [Gap(Stream.STDOUT, 0, 8_000_004 - len(late.stdout))]
        assert len(late.stdout) == MIB

    async def test_ring_keeps_as_much_as_was_asked_for(self, init: RunningInit) -> None:
        script = "head -c 100000 /dev/zero | tr '\\0' a"
        started = await init.client.spawn(SpawnRequest(argv=["sh", "-c", script], ring_size=8192))
        async with init.client.attach(started.command, output=False) as attachment:
            await follow(attachment)
        (listed,) = await init.client.commands()
        assert (listed.stdout_oldest, listed.stdout_total) == (100_000 - 8192, 100_000)

    async def test_writes_without_end_stay_bounded(self, release_init: RunningInit) -> None:
        init = release_init
        async with init.client.spawn_attached(SpawnRequest(argv=["yes"])) as attachment:
            total = 0
            while total < 100 * MIB:
                event = await attachment.receive()
                total = event.offset if isinstance(event, Output) else total
            assert init.resident_kb() < 4096
            await init.client.signal(attachment.command, signal.SIGKILL)
            assert (await follow(attachment)).exited.exit_signal == signal.SIGKILL

    async def test_slow_lossless_reader_loses_nothing(self, init: RunningInit) -> None:
        script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"
        request = SpawnRequest(argv=["sh", "-c", script], ring_size=4096)
        async with init.client.spawn_attached(request, lossless=True) as attachment:
            await trio.sleep(0.3)
            result = await follow(attachment)
        assert result.gaps == []
        assert result.stdout == b"".join(b"line %d\n" % i for i in range(20000))

    async def test_leaving_lossless_reader_lets_the_writer_go_on(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["sh", "-c", "head -c 3000000 /dev/zero; echo done"], ring_size=4096)
        async with init.client.spawn_attached(request, lossless=True) as attachment:
            await attachment.receive()
        async with init.client.attach(attachment.command, output=False) as waiting:
            assert (await follow(waiting)).exited.stdout_total == 3_000_005

    async def test_two_attachments_see_the_same(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["sh", "-c", "read x; seq 50000"], stdin=StdinMode.PIPE)
        async with (
            init.client.spawn_attached(request, lossless=True) as first,
            init.client.attach(first.command, lossless=True) as second,
        ):
            results = []

            async def take(attachment) -> None:
                results.append(await follow(attachment))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take, first)
                nursery.start_soon(take, second)
                await init.client.write_stdin(first.command, b"go\n")
        assert results[0].stdout == results[1].stdout == b"".join(b"%d\n" % i for i in range(1, 50001))

    async def test_attaching_from_an_offset_and_from_now(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["sh", "-c", "echo 0123456789; read x; echo rest"], stdin=StdinMode.PIPE)
        async with init.client.spawn_attached(request) as first:
            await read_until(first, b"9\n")
            async with (
                init.client.attach(first.command, stdout_from=4) as middle,
                init.client.attach(first.command, stdout_from=OFFSET_NOW) as now,
                init.client.attach(first.command, stdout_from=10**9) as beyond,
            ):
                assert await read_until(middle, b"9\n") == b"456789\n"
                await init.client.close_stdin(first.command)
                assert (await follow(middle)).stdout == b"rest\n"
                assert (await follow(now)).stdout == b"rest\n"
                assert (await follow(beyond)).stdout == b"rest\n"

    async def test_closed_output_is_not_the_end_of_the_command(self, init: RunningInit) -> None:
        script = "echo bye; exec >&- 2>&-; read x; exit 5"
        async with init.client.spawn_attached(
            SpawnRequest(argv=["sh", "-c", script], stdin=StdinMode.PIPE)
        ) as attachment:
            await read_until(attachment, b"bye\n")
            await trio.sleep(0.05)
            (listed,) = await init.client.commands()
            assert listed.state is CommandState.RUNNING
            await attachment.close_stdin()
            assert (await follow(attachment)).exited.exit_code == 5

    async def test_survivor_holding_the_output_delays_the_exit_only_a_little(self, init: RunningInit) -> None:
        go = init.socket.parent / "go"
        script = "echo first; (while [ ! -e $0 ]; do sleep 0.02; done; echo late) & exit 0"
        request = SpawnRequest(argv=["sh", "-c", script, str(go)])
        async with init.client.spawn_attached(request) as attachment:
            with trio.fail_after(PATIENCE):
                result = await follow(attachment)
            assert result.stdout == b"first\n"
            assert result.exited.output_incomplete
            assert result.exited.flags & Flag.SURVIVORS
        go.touch()
        await init.wait_idle()
        async with init.client.attach(attachment.command) as late:
            result = await follow(late)
        assert result.stdout == b"first\nlate\n"
        assert not result.exited.output_incomplete

    async def test_chatty_survivor_cannot_hold_the_exit_back_for_ever(self, init: RunningInit) -> None:
        script = "(while echo x; do sleep 0.01; done) & exit 0"
        request = SpawnRequest(argv=["sh", "-c", script], linger_ms=50)
        async with init.client.spawn_attached(request) as attachment:
            with trio.fail_after(PATIENCE):
                assert (await follow(attachment)).exited.output_incomplete
        await init.client.signal(attachment.command, signal.SIGKILL, scope=Scope.TREE)


class TestStdin:
    async def test_64_mib_through_cat_and_back(self, init: RunningInit) -> None:
        data = os.urandom(MIB) * 64
        result = await run(init.client, SpawnRequest(argv=["cat"], stdin=StdinMode.PIPE), stdin=data)
        assert result.stdout == data

    async def test_without_a_pipe_stdin_is_empty(self, init: RunningInit) -> None:
        assert (await run(init.client, SpawnRequest(argv=["cat"]))).exited.exit_code == 0

    async def test_sender_waits_for_a_command_that_does_not_read(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["sleep", "1000"], stdin=StdinMode.PIPE)
        async with init.client.spawn_attached(request) as attachment, trio.open_nursery() as nursery:
            nursery.start_soon(follow, attachment)
            with trio.move_on_after(0.3) as scope:
                await attachment.send_stdin(bytes(10 * MIB))
            assert scope.cancelled_caught
            # What must overtake blocked input has operations of its own.
            assert (await init.client.hello()).count == 1
            await init.client.signal(attachment.command, signal.SIGKILL)

    async def test_closed_stdin_is_told_once_and_the_rest_dropped(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["sh", "-c", "exec <&-; echo closed; sleep 1000"], stdin=StdinMode.PIPE)
        async with init.client.spawn_attached(request) as attachment:
            await read_until(attachment, b"closed\n")
            # The command's keeper may hold the pipe for a moment longer than the command, and what is written then is
            # lost without a word: only the next byte is told.
            told = False
            while not told:
                await attachment.send_stdin(b"x")
                with trio.move_on_after(0.05):
                    while not told:
                        told = isinstance(await attachment.receive(), StdinClosed)
            await attachment.send_stdin(b"y" * MIB)
            assert await init.client.write_stdin(attachment.command, b"z") is False
            await init.client.signal(attachment.command, signal.SIGKILL)
            await follow(attachment)

    async def test_detached_stdin_stays_open(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["cat"], stdin=StdinMode.PIPE)
        async with init.client.spawn_attached(request) as first:
            await first.send_stdin(b"one ")
            await read_until(first, b"one ")
        assert await init.client.write_stdin(first.command, b"two") is True
        await init.client.close_stdin(first.command)
        async with init.client.attach(first.command) as again:
            assert (await follow(again)).stdout == b"one two"

    async def test_two_writers_do_not_mix_within_a_frame(self, init: RunningInit) -> None:
        request = SpawnRequest(argv=["sh", "-c", "sleep 0.2; exec cat"], stdin=StdinMode.PIPE)
        size = 60_000
        async with init.client.spawn_attached(request, lossless=True) as attachment:
            async with trio.open_nursery() as nursery:
                for letter in (b"a", b"b", b"c"):
                    nursery.start_soon(init.client.write_stdin, attachment.command, letter * size)
            await init.client.close_stdin(attachment.command)
            out = (await follow(attachment)).stdout
        assert sorted(out[i : i + size] for i in range(0, len(out), size)) == [b"a" * size, b"b" * size, b"c" * size]


class TestListing:
    async def test_running_and_ended_commands(self, init: RunningInit) -> None:
        async with init.client.spawn_attached(SpawnRequest(argv=["sleep", "1000"], label=b"\0mine")) as attachment:
            ended = await init.client.spawn(SpawnRequest(argv=["sh", "-c", "exit 4"], user="root"))
            async with init.client.attach(ended.command) as waiting:
                await follow(waiting)
            by_id = {listed.command: listed for listed in await init.client.commands()}
            running = by_id[attachment.command]
            assert (running.state, running.pid, running.label) == (CommandState.RUNNING, attachment.pid, b"\0mine")
            assert running.arg == (b"sleep", b"1000")
            assert running.exit_code is None
            done = by_id[ended.command]
            assert (done.state, done.exit_code, done.user) == (CommandState.ENDED, 4, "root")
            with pytest.raises(InitError, match="it is running"):
                await init.client.release(attachment.command)
            await init.client.release(ended.command)
            assert [listed.command for listed in await init.client.commands()] == [attachment.command]
            await init.client.signal(attachment.command, signal.SIGKILL)
            await follow(attachment)

    @pytest.mark.parametrize("operation", ["signal", "release", "write_stdin", "close_stdin"])
    async def test_unknown_command(self, init: RunningInit, operation: str) -> None:
        arguments = {"signal": [15], "write_stdin": [b"x"]}.get(operation, [])
        with pytest.raises(InitError, match="cannot find command 77") as raised:
            await getattr(init.client, operation)(77, *arguments)
        assert raised.value.kind == "unknown"

    async def test_attaching_to_an_unknown_command(self, init: RunningInit) -> None:
        async with init.client.attach(77) as attachment:
            with pytest.raises(InitError, match="cannot find command 77"):
                await attachment.receive()

    async def test_ended_commands_are_bounded_and_the_newest_stay(self, init: RunningInit) -> None:
        ended = []
        for _ in range(MAX_ENDED_COMMANDS + 20):
            async with init.client.spawn_attached(SpawnRequest(argv=["true"])) as attachment:
                await follow(attachment)
            ended.append(attachment.command)
        left = {listed.command for listed in await init.client.commands()}
        assert left == set(ended[-MAX_ENDED_COMMANDS:])

    async def test_released_survivor_may_go_on_writing(self, init: RunningInit) -> None:
        script = "(sleep 0.2; echo a; sleep 0.1; echo b && echo fine >&3) 3>$0 & exit 0"
        proof = init.socket.parent / "proof"
        started = await init.client.spawn(SpawnRequest(argv=["sh", "-c", script, str(proof)], linger_ms=0))
        async with init.client.attach(started.command) as attachment:
            await follow(attachment)
        await init.client.release(started.command)
        await init.wait_idle()
        assert proof.read_text() == "fine\n"


class TestCancelling:
    async def test_giving_up_before_the_answer_leaves_no_unknown_command(self, init: RunningInit) -> None:
        """Whoever gives up is either too early, and the command is killed, or too late, and it is in the list."""
        for _ in range(10):
            with trio.move_on_after(0.0005):
                await init.client.spawn(SpawnRequest(argv=["sleep", "1000"]))
        for listed in await init.client.commands():
            with suppress(InitError):  # it was being killed when it was listed
                await init.client.signal(listed.command, signal.SIGKILL)
        await init.wait_idle()

    async def test_leaving_an_attachment_leaves_the_command(self, init: RunningInit) -> None:
        async with init.client.spawn_attached(SpawnRequest(argv=["sleep", "1000"])) as attachment:
            with trio.move_on_after(0.05):
                await attachment.receive()
        assert [one.state for one in await init.client.commands()] == [CommandState.RUNNING]


async def test_a_thousand_commands_leak_nothing(release_init: RunningInit) -> None:
    init = release_init
    request = SpawnRequest(argv=["sh", "-c", "echo hello; echo there >&2"])
    for _ in range(100):
        await run(init.client, request)
    await init.wait_idle()
    descriptors, resident = init.descriptors(), init.resident_kb()
    for _ in range(1000):
        await run(init.client, request)
    await init.wait_idle()
    await wait_until(lambda: init.descriptors() <= descriptors)
    assert init.resident_kb() <= resident + 64


async def test_idle_init_is_small(release_init: RunningInit) -> None:
    assert release_init.resident_kb() < 500


async def test_what_is_not_init_is_found_out(directory: Path) -> None:
    async with trio.open_nursery() as nursery:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(directory / "s"))
        listener.listen()

        async def answer() -> None:
            peer, _ = await listener.accept()
            with peer:
                await peer.recv(100)
                await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        nursery.start_soon(answer)
        with pytest.raises(WireError):
            await InitClient(directory / "s").hello()
        listener.close()


async def test_exit_is_the_last_event(init: RunningInit) -> None:
    async with init.client.spawn_attached(SpawnRequest(argv=["true"])) as attachment:
        while not isinstance(await attachment.receive(), Exited):
            pass
        with pytest.raises(InitGone):
            await attachment.receive()
