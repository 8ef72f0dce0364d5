from contextlib import suppress

import h2.events
import pytest
import trio

from sandboxd.http.server.serving import ServingLimits
from tests.http.support import PATIENCE, Http2Client, read_to_end, serving


async def test_http2_by_prior_knowledge(app):
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        for _ in range(3):
            assert await http.response(await http.request("GET", "/ok")) == ("200", b'{"ok":true}\n')


async def test_http2_requests_do_not_wait_for_one_another(app):
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        held = await http.request("GET", "/held")
        await app.entered.wait()
        assert (await http.response(await http.request("GET", "/ok")))[0] == "200"
        app.release.set()
        assert await http.response(held) == ("200", b"released")


async def test_http2_connection_survives_data_after_the_response(app):
    """An upload refused early: the peer is told to stop, its other requests go on."""
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        number = await http.request("POST", "/no-such-place", end_stream=False)
        assert (await http.response(number))[0] == "404"
        http.h2.send_data(number, b"still uploading")
        assert (await http.response(await http.request("GET", "/ok")))[0] == "200"
    assert served.server.statistics().failed == 0


async def test_http2_upload_larger_than_every_window(app):
    size = 2**20
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        number = await http.request("POST", "/echo", end_stream=False)
        sent = 0
        received = 0
        with trio.fail_after(PATIENCE):
            while received < size:
                window = min(http.h2.local_flow_control_window(number), http.h2.max_outbound_frame_size, size - sent)
                if window > 0:
                    sent += window
                    http.h2.send_data(number, bytes(window), end_stream=sent == size)
                    await http.flush()
                    continue
                for event in http.h2.receive_data(await stream.receive_some()):
                    if isinstance(event, h2.events.DataReceived):
                        received += len(event.data)
                        http.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                await http.flush()


async def fill(http: Http2Client, number: int, *, limit: int) -> tuple[int, int]:
    """Upload until the server leaves no more room: bytes sent, and received (and not acknowledged) meanwhile."""
    sent = received = 0
    with trio.move_on_after(0.25) as quiet:
        while True:
            size = min(http.h2.local_flow_control_window(number), http.h2.max_outbound_frame_size, limit - sent)
            if size > 0:
                await http.send_data(number, bytes(size))
                sent += size
            else:
                for event in http.h2.receive_data(await http.stream.receive_some()):
                    if isinstance(event, h2.events.DataReceived):
                        received += event.flow_controlled_length
            quiet.deadline = trio.current_time() + 0.25
    return sent, received


async def test_http2_upload_that_nobody_reads_does_not_hold_up_its_neighbours(app, autojump_clock):
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        number = await http.request("POST", "/held-upload", end_stream=False)
        await app.entered.wait()
        sent, _ = await fill(http, number, limit=2**20)
        assert sent < 2**20
        assert (await http.response(await http.request("GET", "/ok")))[0] == "200"
        app.release.set()
        await http.response(number)


async def test_http2_relay_gets_along_with_a_client_that_reads_late(app, autojump_clock):
    """Both windows are used up again and again, and the client opens its own only when it can send no more."""
    size = 512 * 1024
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        number = await http.request("POST", "/relay", end_stream=False)
        total_sent = total_received = 0
        with trio.fail_after(PATIENCE):
            while total_received < size:
                sent, received = await fill(http, number, limit=size - total_sent)
                total_sent += sent
                total_received += received
                if received:
                    http.h2.acknowledge_received_data(received, number)
                    await http.flush()


async def test_http2_uploads_refused_half_way_give_their_window_back(app):
    """The window of the connection is 64 KiB: two such uploads would use it up for ever."""
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        for _ in range(6):
            number = await http.request("POST", "/nowhere", end_stream=False)
            await http.send_data(number, bytes(16_000))
            await http.send_data(number, bytes(16_000))
            assert (await http.response(number))[0] == "404"
        number = await http.request("POST", "/echo", end_stream=False)
        await http.send_data(number, bytes(16_000), end_stream=True)
        assert (await http.response(number))[1] == bytes(16_000)


async def test_idle_http2_connection_is_closed_after_its_limit(app, autojump_clock):
    async with (
        serving(app, limits=ServingLimits(cleartext_http2=True, keep_alive_timeout=0.3)) as served,
        await served.connect() as stream,
    ):
        http = Http2Client(stream)
        await http.response(await http.request("GET", "/ok"))
        began = trio.current_time()
        await read_to_end(stream)
        assert trio.current_time() - began == pytest.approx(0.3, abs=0.1)


async def test_http2_connection_without_a_request_is_closed_after_the_limit_for_the_first(app, autojump_clock):
    """Pings, settings and the like are no request."""
    limits = ServingLimits(cleartext_http2=True, header_timeout=0.3)
    async with serving(app, limits=limits) as served, await served.connect() as stream:
        http = Http2Client(stream)
        began = trio.current_time()
        with suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE):
            while True:
                http.h2.ping(b"hello...")
                await http.flush()
                await trio.sleep(0.05)
        assert trio.current_time() - began == pytest.approx(0.3, abs=0.1)


async def test_http2_connection_is_kept_between_requests_whatever_else_is_sent(app, autojump_clock):
    limits = ServingLimits(cleartext_http2=True, header_timeout=0.3, keep_alive_timeout=60)
    async with serving(app, limits=limits) as served, await served.connect() as stream:
        http = Http2Client(stream)
        for _ in range(2):
            assert (await http.response(await http.request("GET", "/ok")))[0] == "200"
            http.h2.ping(b"hello...")
            await http.flush()
            await trio.sleep(1)
