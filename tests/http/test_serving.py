import gc
import logging
import os
import resource
import socket
from contextlib import AsyncExitStack, contextmanager

import h11
import pytest
import quart
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.http.server.peer import Credentials
from sandboxd.http.server.serving import ServingLimits
from tests.http.support import PATIENCE, Client, client, exchange, is_serving, read_to_end, serving, websocket

GET = b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n"


# Who is there


async def test_unix_peer_is_known_by_its_credentials(app):
    async with serving(app) as served, client(served) as http:
        _, body = await http.request("GET", "/who")
    found = quart.json.loads(body)
    assert found["ids"] == [os.getpid(), os.getuid(), os.getgid()]
    assert found["listener"].startswith("unix:/")


async def test_tcp_peer_is_known_by_its_address(app):
    async with serving(app, tcp=True) as served, client(served) as http:
        _, body = await http.request("GET", "/who")
        assert quart.json.loads(body)["address"] == list(http.stream.socket.getsockname())


@pytest.mark.parametrize("dialect", [None, "akira"])
async def test_requests_know_the_dialect_of_their_listener(app, dialect):
    async with serving(app, dialect=dialect) as served, client(served) as http:
        _, body = await http.request("GET", "/who")
    assert quart.json.loads(body)["dialect"] == dialect


def test_credentials_are_a_value():
    assert Credentials(1, 2, 3) == Credentials(pid=1, uid=2, gid=3)


# Many requests on a connection, many connections


async def test_connection_carries_thousands_of_requests(app):
    async with serving(app) as served, client(served) as http:
        for _ in range(2500):
            response, _ = await http.request("GET", "/ok")
            assert response.status_code == 200
            http.reuse()


async def test_pipelined_requests_are_answered_in_order(app):
    requests = b"".join(
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n%03d" % number for number in range(200)
    )
    async with serving(app) as served, await served.connect() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, requests)
        http = Client(stream)
        for number in range(200):
            http.expect_response()
            _, body = await http.response()
            assert body == b"%03d" % number
            http.reuse()


async def test_pipelining_client_that_leaves_is_noticed(app, autojump_clock):
    """Its second request hides the end of the stream until the first one is answered."""
    async with serving(app) as served:
        async with await served.connect() as stream:
            await stream.send_all(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n" + GET)
            await app.entered.wait()
        with trio.fail_after(PATIENCE):
            await app.left.wait()


async def test_hundreds_of_idle_connections_disturb_nobody(app):
    async with serving(app) as served, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(await served.connect()) for _ in range(500)]
        for stream in idle[::2]:
            await stream.send_all(GET)
        for stream in idle[::2]:
            assert b"200" in await stream.receive_some()
        assert await is_serving(served)
        assert served.server.statistics().connections >= 500
        served.stop.set()
        with trio.fail_after(PATIENCE):
            await served.ended.wait()


async def test_connections_over_the_limit_are_told_so(app):
    async with serving(app, limits=ServingLimits(max_connections=2), tcp=True) as served:
        async with client(served) as one, client(served) as two:
            for busy in (one, two):
                fields = [("host", "x"), ("content-length", "1"), ("expect", "100-continue")]
                await busy.send(h11.Request(method="POST", target="/echo", headers=fields))
                assert isinstance(await busy.next_event(), h11.InformationalResponse)
            refusal = await exchange(served, GET)
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"2 are in use; http.max_connections allows no more" in refusal
            for busy in (one, two):
                await busy.send(h11.Data(data=b"x"))
                await busy.send(h11.EndOfMessage())
                response, _ = await busy.response()
                assert response.status_code == 200
        with trio.fail_after(PATIENCE):
            while not await is_serving(served):
                await trio.lowlevel.checkpoint()
        assert served.server.statistics().refused >= 1


async def test_first_request_has_to_come_soon_after_its_connection(app, autojump_clock):
    """And an idle connection is kept for longer than that."""
    limits = ServingLimits(header_timeout=0.3, keep_alive_timeout=2)
    async with serving(app, limits=limits) as served:
        for raw, stays in ((b"", 0.3), (b"GET /ok HT", 0.3), (GET, 2)):
            began = trio.current_time()
            await exchange(served, raw)
            assert trio.current_time() - began == pytest.approx(stays, abs=0.1)


async def test_first_request_has_half_a_minute_whatever_is_configured(app, autojump_clock):
    async with serving(app, limits=ServingLimits(header_timeout=600, keep_alive_timeout=600)) as served:
        began = trio.current_time()
        async with await served.connect() as stream:
            with trio.fail_after(2 * PATIENCE):
                assert await stream.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(30, abs=1)


@contextmanager
def no_descriptors_left():
    gc.collect()  # or what an earlier test forgot may be closed meanwhile, and make room
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def calling(react, *, on):
    """Call `react` when the serving log says `on`."""
    log = logging.getLogger("sandboxd.http.server.serving")

    def watch(record):
        if on in record.getMessage():
            react()
        return True

    log.addFilter(watch)
    try:
        yield
    finally:
        log.removeFilter(watch)


async def test_accepting_survives_running_out_of_descriptors(app, caplog):
    told = trio.Event()
    with socket.socket(socket.AF_UNIX) as waiting, calling(told.set, on="cannot accept connections"):
        async with serving(app) as served:
            path = served.connect.args[0]
            with no_descriptors_left():
                waiting.connect(str(path))
                with trio.fail_after(PATIENCE):
                    await told.wait()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(waiting))
            await stream.send_all(GET)
            with trio.fail_after(PATIENCE):
                assert b"200" in await stream.receive_some()
    assert caplog.text.count("Too many open files") == 1


# Stopping


async def test_request_under_way_is_finished_and_new_clients_are_refused(app):
    async with serving(app, grace=PATIENCE) as served, client(served) as http, trio.open_nursery() as nursery:

        async def finish() -> None:
            response, body = await http.request("GET", "/held")
            assert (response.status_code, body) == (200, b"released")
            assert await http.stream.receive_some() == b""

        nursery.start_soon(finish)
        await app.entered.wait()
        served.stop.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError):
            await served.connect()
        app.release.set()
        with trio.fail_after(PATIENCE):
            await served.ended.wait()


async def test_handler_is_cancelled_when_the_grace_is_over(app, autojump_clock):
    async with serving(app, grace=0.2) as served, client(served) as http:
        await http.send(h11.Request(method="GET", target="/held", headers=[("host", "x")]))
        await http.send(h11.EndOfMessage())
        await app.entered.wait()
        served.stop.set()
        with trio.fail_after(PATIENCE):
            await served.ended.wait()


# Failing handlers


async def test_failing_handler_answers_500_and_keeps_the_connection(app, caplog):
    async with serving(app) as served, client(served) as http:
        response, _ = await http.request("GET", "/failing")
        assert response.status_code == 500
        http.reuse()
        response, _ = await http.request("GET", "/ok")
        assert response.status_code == 200
    assert "boom" in caplog.text


async def test_response_that_fails_half_way_is_cut_so_that_the_client_notices(app, caplog):
    async with serving(app) as served:
        raw = await exchange(served, b"GET /half-failing HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.endswith(b"first half\r\n")
        assert await is_serving(served)
    assert "application failed on http /half-failing" in caplog.text


# Clients that behave badly


async def test_slow_headers_are_cut_off(app, autojump_clock):
    """One byte now and then does not prolong it: the time runs from the first."""
    limits = ServingLimits(header_timeout=0.5, keep_alive_timeout=60)
    async with serving(app, limits=limits) as served, await served.connect() as stream:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for byte in GET[:-2] * 100:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.05)

            nursery.start_soon(drip)
            answer = await read_to_end(stream)
            nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - began == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("header", [b"x: " + b"y" * 200_000, b"\r\n".join(b"x%d: y" % n for n in range(25000))])
async def test_huge_headers_are_refused(app, header):
    async with serving(app) as served:
        answer = await exchange(served, b"GET /ok HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n\r\n")
        assert answer.split()[1] in (b"400", b"431")
        assert await is_serving(served)


async def test_headers_within_the_limit_are_taken(app):
    async with serving(app) as served:
        answer = await exchange(
            served, b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"y" * 60_000 + b"\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_upload_that_ends_half_way_costs_only_itself(app):
    async with serving(app) as served, await served.connect() as stream:
        await stream.send_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf")
        await stream.send_eof()
        await read_to_end(stream)
        assert await is_serving(served)
        assert served.server.statistics().failed == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET ? HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET http://x/ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET http://[x/ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET //// HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nhost: \xff[:::\r\nconnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    ],
)
async def test_odd_request_gets_an_answer_or_the_door(app, raw):
    async with serving(app, limits=ServingLimits(header_timeout=0.3)) as served:
        answer = await exchange(served, raw)
        assert b" 500 " not in answer
        assert await is_serving(served)


FRAGMENTS = st.sampled_from(
    [
        b"GET /ok HTTP/1.1\r\n",
        b"POST /echo HTTP/1.1\r\n",
        b"GET /ws HTTP/1.1\r\n",
        b"host: x\r\n",
        b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA\r\n",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x00\x00\x05\x00\x01\x00\x00\x00\x01hello",
        b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",
        b"\x81\x85abcd",
        b"\x88\x80abcd",
    ]
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(FRAGMENTS | st.binary(max_size=40), max_size=12).map(b"".join), min_size=10, max_size=25))
def test_junk_never_ends_the_server(app, junk):
    """Each example is a batch of connections with something different wrong, left open, then a sane request."""

    async def attack() -> None:
        async with serving(app, grace=0.2) as served, AsyncExitStack() as stack:
            for raw in junk:
                stream = await stack.enter_async_context(await served.connect())
                await stream.send_all(raw)
            await trio.testing.wait_all_tasks_blocked()
            assert await is_serving(served)
        assert served.died is None

    logging.disable(logging.CRITICAL)
    try:
        trio.run(attack)
    finally:
        logging.disable(logging.NOTSET)


async def test_websocket_message_over_the_limit_closes_1009_and_is_not_collected(app):
    limits = ServingLimits(max_websocket_message=100_000)
    async with serving(app, limits=limits) as served:
        async with websocket(served, "/ws", max_message_size=200_000) as connection:
            await connection.send_message(b"x" * 100_000)
            assert await connection.get_message() == b"x" * 100_000
        async with await served.connect() as stream:
            await stream.send_all(
                b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: bKdPyn3u98cTfZJSh4TNeQ==\r\n\r\n"
            )
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101")
            endless = b"\x82\xff" + (2**40).to_bytes(8) + b"\0\0\0\0"
            await stream.send_all(endless + b"x" * 150_000)
            answer = await read_to_end(stream)
            assert b"\x88\x02" + (1009).to_bytes(2) in answer
