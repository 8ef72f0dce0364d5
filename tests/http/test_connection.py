from typing import Any

import h11
import psutil
import pytest
import quart
import trio
import trio_websocket
from quart import Response
from quart.wrappers.response import ResponseBody

from sandboxd.errors import InvalidRequest, TooLarge
from sandboxd.http.server.connection import SandboxdApp, raw_path_segments, read_body
from sandboxd.http.server.serving import ServingLimits
from tests.http.support import PATIENCE, client, exchange, is_serving, serving

MIB = 2**20


@pytest.fixture
def app() -> Any:
    app: Any = SandboxdApp("connection")
    app.begun = trio.Event()
    app.left = trio.Event()

    @app.errorhandler(TooLarge)
    async def too_large(error: TooLarge) -> tuple[str, int]:
        return error.message, 413

    @app.errorhandler(InvalidRequest)
    async def invalid(error: InvalidRequest) -> tuple[str, int]:
        return error.message, 400

    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    @app.post("/little")
    async def little() -> dict[str, int]:
        return {"got": len(await read_body(limit=1000))}

    @app.post("/twice")
    async def twice() -> dict[str, bool]:
        return {"same": await read_body() == await read_body() == await quart.request.get_data()}

    @app.post("/whole")
    async def whole() -> str:
        return str(len(await quart.request.get_data()))

    @app.post("/refused")
    async def refused() -> tuple[str, int]:
        return "no", 403

    @app.post("/count")
    async def count() -> dict[str, int]:
        process = psutil.Process()
        before = peak = process.memory_info().rss
        total = 0
        async for chunk in quart.request.body:
            total += len(chunk)
            peak = max(peak, process.memory_info().rss)
        return {"total": total, "growth": peak - before}

    @app.post("/store")
    async def store() -> str:
        app.stored = False
        try:
            async for _ in quart.request.body:
                app.begun.set()
            app.stored = True
        finally:
            app.left.set()
        return "stored"

    @app.get("/endless")
    async def endless() -> Response:
        async def body() -> Any:
            try:
                while True:
                    yield bytes(64 * 1024)
            finally:
                app.left.set()

        return Response(body())

    class Tracked(ResponseBody):
        """A body that, like an open file, was made by the handler and must be closed by the response."""

        async def __aenter__(self) -> Any:
            return self.pieces()

        async def __aexit__(self, *_: object) -> None:
            app.left.set()

        async def pieces(self) -> Any:
            yield b"piece"

    @app.get("/tracked")
    async def tracked() -> Response:
        return Response(Tracked())

    @app.get("/sized")
    async def sized() -> Response:
        pieces = int(quart.request.args["n"])

        async def body() -> Any:
            for _ in range(pieces):
                yield bytes(64 * 1024)

        return Response(body())

    return app


# Bodies


async def test_body_may_be_read_more_than_once(app):
    async with serving(app) as served, client(served) as http:
        _, got = await http.request("POST", "/twice", body=b"x" * 100_000)
        assert got == b'{"same":true}\n'


async def test_whole_body_over_the_default_limit_is_refused(app):
    async with serving(app) as served, client(served) as http:
        _, got = await http.request("POST", "/whole", body=bytes(8 * MIB))
        assert got == b"8388608"
        http.reuse()
        await http.begin("POST", "/whole", length=9 * MIB)
        response, _ = await http.response()
        assert response.status_code == 413


async def test_little_too_much_is_refused_and_the_connection_lives_on(app):
    async with serving(app) as served, client(served) as http:
        response, _ = await http.request("POST", "/little", body=b"x" * 2000)
        assert response.status_code == 413
        http.reuse()
        assert (await http.request("GET", "/ok"))[0].status_code == 200


async def test_unread_little_body_that_comes_late_does_not_cost_the_connection(app, autojump_clock):
    """A refusal can overtake the body it refuses: they are separate packets."""
    async with serving(app) as served, client(served) as http:
        await http.begin("POST", "/refused", length=5)
        assert isinstance(await http.next_event(), h11.Response)
        await http.send(h11.Data(data=b"hello"))
        await http.send(h11.EndOfMessage())
        while not isinstance(await http.next_event(), h11.EndOfMessage):
            pass
        http.reuse()
        assert (await http.request("GET", "/ok"))[0].status_code == 200


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("path", [b"/refused", b"/little"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_early_refusal_reaches_a_client_that_is_still_uploading(app, tcp, path, framing):
    """Even one that reads nothing before it has sent everything; and then the connection ends in good order."""
    size = 24 * MIB
    piece = bytes(MIB)
    header = b"content-length: %d" % size if framing == "length" else b"transfer-encoding: chunked"
    limits = ServingLimits(linger=PATIENCE)
    async with serving(app, limits=limits, tcp=tcp) as served, await served.connect() as stream:
        with trio.fail_after(PATIENCE):
            await stream.send_all(b"POST %s HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n" % (path, header))
            for _ in range(size // MIB):
                await stream.send_all(piece if framing == "length" else b"100000\r\n" + piece + b"\r\n")
            received = b""
            async for data in stream:  # a reset would raise here
                received += data
        assert received.split()[1] in (b"403", b"413")
        assert b"\r\n\r\n" in received
        assert await is_serving(served)


async def test_early_refusal_reaches_a_client_that_uploads_slowly(app, autojump_clock):
    """A reset would destroy it: the connection lingers for as long as pieces come, and not for ever."""

    async def send(stream: trio.SocketStream, pieces: int) -> None:
        for _ in range(pieces):
            await trio.sleep(1)
            await stream.send_all(bytes(1000))

    limits = ServingLimits(linger=2.0)
    async with serving(app, limits=limits) as served, await served.connect() as stream:
        await stream.send_all(b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n")
        await send(stream, 10)
        assert b" 403 " in await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await send(stream, 100)


async def test_refused_upload_is_told_that_the_connection_ends(app):
    async with serving(app) as served, client(served) as http:
        await http.begin("POST", "/refused", length=10_000_000)
        response, _ = await http.response()
        assert (b"connection", b"close") in response.headers


async def test_client_that_asks_first_is_told_to_go_on(app):
    async with serving(app) as served, client(served) as http:
        headers = [("host", "x"), ("content-length", "2"), ("expect", "100-continue")]
        await http.send(h11.Request(method="POST", target="/little", headers=headers))
        assert (await http.next_event()).status_code == 100
        await http.send(h11.Data(data=b"[]"))
        await http.send(h11.EndOfMessage())
        assert (await http.response())[0].status_code == 200


async def test_upload_that_stops_is_answered_408(app):
    app.config["BODY_TIMEOUT"] = 0.2
    async with serving(app) as served:
        answer = await exchange(served, b"POST /little HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("together", [False, True])
async def test_upload_cut_half_way_never_looks_complete(app, framing, together):
    """`together`: the end of the connection is there before the handler has looked at the body for the first time."""
    async with serving(app) as served:
        async with client(served) as http:
            await http.begin("POST", "/store", length=1000 if framing == "length" else None)
            await http.send(h11.Data(data=bytes(500)))
            if not together:
                with trio.fail_after(PATIENCE):
                    await app.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await is_serving(served)
    assert not getattr(app, "stored", False)
    assert together or app.left.is_set()


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_upload_keeps_memory_flat(app, framing):
    size = 256 * MIB
    piece = bytes(MIB)
    async with serving(app) as served, client(served) as http:
        await http.begin("POST", "/count", length=size if framing == "length" else None)
        for _ in range(size // MIB):
            await http.send(h11.Data(data=piece))
        await http.send(h11.EndOfMessage())
        _, body = await http.response()
    found = quart.json.loads(body)
    assert found["total"] == size
    assert found["growth"] < 16 * MIB


# Responses


async def test_large_download_keeps_memory_flat(app):
    process = psutil.Process()
    before = process.memory_info().rss
    async with serving(app) as served, await served.connect() as stream:
        await stream.send_all(b"GET /sized?n=5000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        total = 0
        with trio.fail_after(PATIENCE):
            async for data in stream:
                total += len(data)
    assert total > 256 * MIB
    assert process.memory_info().rss - before < 16 * MIB


async def test_client_that_leaves_ends_a_stream(app):
    async with serving(app) as served:
        async with await served.connect() as stream:
            await stream.send_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            await stream.receive_some(1000)
        with trio.fail_after(PATIENCE):
            await app.left.wait()


async def test_head_of_an_endless_stream_ends(app):
    async with serving(app) as served:
        answer = await exchange(served, b"HEAD /endless HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_body_is_closed_whether_it_was_sent_or_not(app, method):
    async with serving(app) as served:
        answer = await exchange(served, method + b" /tracked HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (b"piece" in answer) is (method == b"GET")
    assert app.left.is_set()


async def test_error_pages_and_unknown_places_keep_the_connection(app):
    async with serving(app) as served, client(served) as http:
        for method, target, status in [("GET", "/nowhere", 404), ("DELETE", "/ok", 405), ("OPTIONS", "/ok", 200)]:
            response, _ = await http.request(method, target)
            assert response.status_code == status
            http.reuse()


async def test_websocket_to_an_unknown_place_is_refused_with_a_status(app):
    async with serving(app) as served, await served.connect() as stream:
        with pytest.RaisesGroup(trio_websocket.ConnectionRejected, flatten_subgroups=True) as refusal:
            async with trio.open_nursery() as nursery:
                await trio_websocket.wrap_client_stream(nursery, stream, "x", "/nowhere")
        assert refusal.value.exceptions[0].status_code == 404
        assert await is_serving(served)


# Paths


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        (b"/files/a%2Fb/c", ("files", "a/b", "c")),
        (b"/a%20b+c", ("a b+c",)),
        (b"/", ("",)),
        (b"/a//b/", ("a", "", "b", "")),
        (b"/%ff", ("\udcff",)),
        (b"/%zz", ("%zz",)),
    ],
)
def test_path_segments_as_the_client_meant_them(raw, segments):
    assert raw_path_segments({"raw_path": raw}) == segments


async def test_slash_in_a_segment_survives_the_server(app):
    @app.get("/raw/<path:rest>")
    async def raw(rest: str) -> list[str]:
        return list(raw_path_segments(quart.request.scope))

    async with serving(app) as served, client(served) as http:
        _, body = await http.request("GET", "/raw/a%2Fb/c?x=/y")
        assert quart.json.loads(body) == ["raw", "a/b", "c"]


def test_what_quart_would_run_behind_our_back_does_not_run(app):
    assert not app.has_static_folder
    assert app.config["MAX_CONTENT_LENGTH"] is None
