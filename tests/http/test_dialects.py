"""Which dialect a request is for: by listener, by host, by path; and that errors are said in its words."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from sandboxd.config import Config
from sandboxd.errors import NotFound
from sandboxd.http.app import Switch
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.conversation import conversing
from sandboxd.http.kit.dialect import Dialect
from sandboxd.http.kit.errors import Close, ErrorAnswer, ErrorFormat
from sandboxd.http.kit.ports import PortRequest, by_host
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import stream_response
from sandboxd.http.kit.websockets import websocket_session
from tests.http.support import PATIENCE, close_code, exchange, read_to_end, serving, websocket


def errors_of(name: str) -> ErrorFormat:
    def answer(error: Any) -> ErrorAnswer:
        body = json.dumps({name: error.message}).encode()
        return ErrorAnswer(status=error.status, body=body, headers={"x-dialect": name})

    return ErrorFormat(
        answer=answer, close=lambda error: Close(4000, name), end_stream=lambda error: f"{name}:{error.kind}".encode()
    )


def route(path: str, handler: Callable[..., Any], **more: Any) -> Route:
    return Route(method="GET", path=path, handler=handler, scope=None, summary="", **more)


def telling(name: str) -> Callable[..., Any]:
    """A handler that tells whose it is, and what it was given."""

    async def tell(call: Call, **parameters: str) -> Any:
        raise NotFound(f"{name} {sorted(parameters.items())}")

    return tell


async def fail(call: Call) -> None:
    async with websocket_session(call.conversation):
        raise NotFound("gone")


async def endless(call: Call) -> Any:
    send, receive = trio.open_memory_channel[bytes](1)
    send.send_nowait(b"begun ")
    call.service.kept.append(send)
    return stream_response(call.conversation, receive, encode=bytes, content_type="x/y")


def by_header(scope: Mapping[str, Any]) -> Mapping[str, str] | PortRequest | None:
    """As E2B's clients say it: headers name the sandbox, and the daemon itself listens on one of its ports."""
    headers = dict(scope["headers"])
    if (box := headers.get(b"e2b-sandbox-id")) is None:
        return None
    return {"box": box.decode()} if headers[b"e2b-sandbox-port"] == b"49983" else None


FIRST = Dialect(
    name="first",
    routes=(route("/v1/x", telling("first")), route("/v1/<box>", telling("first"))),
    shared=(route("/v1/x", telling("first")), route("/v1/<box>", telling("first"))),
    errors=errors_of("first"),
    hosts=(by_host("example.com"),),
)
SECOND = Dialect(
    name="second",
    routes=(
        route("/v1/x", telling("second")),
        route("/v1/two", telling("second")),
        route("/ws", fail, streams="websocket"),
        route("/endless", endless, streams="download"),
    ),
    shared=(route("/v1/two", telling("second")),),
    errors=errors_of("second"),
    prefix=r"/second(?::[0-9]+)?",
    hosts=(by_header,),
)


@pytest.fixture
def app() -> Any:
    service: Any = SimpleNamespace(ports=None, config=Config(), keys=None, sandboxes=None, kept=[])
    switch = Switch(service, (FIRST, SECOND))
    return conversing(switch, errors=FIRST.errors)  # type: ignore[arg-type]


async def told(app: Any, path: str, *headers: str, dialect: str | None = None) -> tuple[str, str]:
    """Who answers, by its way of saying errors, and what."""
    head = "".join(f"{line}\r\n" for line in headers)
    host = "" if "host:" in head else "host: x\r\n"
    async with serving(app, dialect=dialect) as served:
        raw = await exchange(served, f"GET {path} HTTP/1.1\r\n{host}{head}connection: close\r\n\r\n".encode())
    item: tuple[str, str]
    (item,) = json.loads(raw.partition(b"\r\n\r\n")[2]).items()
    return item


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v1/x", ("first", "first []")),
        ("/v1/y", ("first", "first [('box', 'y')]")),
        ("/v1/two", ("second", "second []")),  # a word before a parameter, whoever's it is
        ("/second/v1/x", ("second", "second []")),
        ("/second:1/v1/x", ("second", "second []")),
        ("/second/v1/none", ("second", "cannot serve this: there is nothing at this path")),
        ("/second", ("second", "cannot serve this: there is nothing at this path")),
        ("/secondary", ("first", "cannot serve this: there is nothing at this path")),
    ],
)
async def test_by_path_where_a_listener_is_shared(app: Any, path: str, answer: tuple[str, str]) -> None:
    assert await told(app, path) == answer


@pytest.mark.parametrize(
    ("dialect", "path", "answer"),
    [
        ("second", "/v1/x", ("second", "second []")),
        ("second", "/second/v1/x", ("second", "cannot serve this: there is nothing at this path")),
        ("first", "/v1/two", ("first", "first [('box', 'two')]")),
    ],
)
async def test_by_listener(app: Any, dialect: str, path: str, answer: tuple[str, str]) -> None:
    assert await told(app, path, dialect=dialect) == answer


async def test_by_host_before_any_path(app: Any) -> None:
    """The names of ports are one dialect's: they are swallowed neither before another's nor on its listener."""
    port = "host: 80-box.example.com"
    with pytest.raises(json.JSONDecodeError):  # a service that has no sandboxes: it went to the ports
        await told(app, "/second/v1/x", port)
    assert await told(app, "/v1/x", port, dialect="second") == ("second", "second []")
    named = ("e2b-sandbox-id: b1", "e2b-sandbox-port: 49983")
    assert await told(app, "/v1/x", *named) == ("second", "second [('box', 'b1')]")
    assert await told(app, "/v1/x", *named, dialect="first") == ("first", "first []")


async def test_a_websockets_end_is_said_as_the_dialect_does(app: Any) -> None:
    async with serving(app) as served, websocket(served, "/second/ws") as connection:
        assert await close_code(connection) == 4000


async def test_a_stream_that_the_daemon_stops_ends_as_the_dialect_does(app: Any) -> None:
    async with serving(app, grace=PATIENCE) as served, await served.connect() as stream:
        await stream.send_all(b"GET /second/endless HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while b"begun" not in received:
            received += await stream.receive_some()
        served.stop.set()
        received += await read_to_end(stream)
    assert b"second:stopping" in received
    assert received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", ["//v1/x", "/v1//x", "/second//v1/x", "/v1/x/", "//evil.example/v1/x"])
async def test_no_path_is_redirected_to_the_host_that_the_client_names(app: Any, path: str) -> None:
    async with serving(app) as served:
        raw = await exchange(served, f"GET {path} HTTP/1.1\r\nhost: evil\r\nconnection: close\r\n\r\n".encode())
    assert raw.startswith(b"HTTP/1.1 404")
    assert b"evil" not in raw
