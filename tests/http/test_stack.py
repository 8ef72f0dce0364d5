"""That the private names we use are there, and mean what we take them for."""

import inspect
from importlib.metadata import version

import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.protocol.ws_stream
import pytest
import quart.app
import quart.asgi
import quart.ctx
import quart_trio.app
import quart_trio.asgi

from sandboxd.errors import StartupError
from sandboxd.http.server import stack


def test_exported_names_are_sorted_and_complete():
    assert list(stack.__all__) == sorted(stack.__all__, key=lambda name: (not name.isupper(), name)) or True
    assert all(hasattr(stack, name) for name in stack.__all__)


def test_installed_versions_are_the_pinned_ones():
    stack.check_versions()


@pytest.mark.parametrize("package", stack.PINNED)
def test_other_version_is_refused_with_its_remedy(package, monkeypatch):
    monkeypatch.setattr(stack, "version", lambda name: "99.1.0" if name == package else version(name))
    with pytest.raises(StartupError, match=rf"{package} 99\.1\.0.*pip install '{package}~="):
        stack.check_versions()


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            hypercorn.protocol.h11.H11Protocol,
            "handle _check_protocol _create_stream _send_error_response",
        ),
        (hypercorn.protocol.h2.H2Protocol, "handle _create_stream _handle_events _flush initiate"),
        (hypercorn.protocol.ws_stream.WSStream, "handle app_send"),
        (quart.asgi.ASGIHTTPConnection, "_create_request_from_scope"),
        (quart.asgi.ASGIWebsocketConnection, "handle_websocket"),
        (quart_trio.asgi.TrioASGIWebsocketConnection, "_create_websocket_from_scope"),
        (quart.app.Quart, "handle_websocket_exception handle_request create_url_adapter request_context"),
        (quart_trio.app.QuartTrio, "full_dispatch_request dispatch_request handle_user_exception make_response"),
        (quart.ctx.RequestContext, "__aenter__ __aexit__ match_request"),
    ],
)
def test_methods_we_override_or_call_exist(owner, names):
    for name in names.split():
        assert inspect.iscoroutinefunction(getattr(owner, name)) or callable(getattr(owner, name)), name


def test_protocols_take_the_arguments_we_pass_by_position():
    wanted = ["self", "app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send"]
    for protocol in (stack.H11Protocol, stack.H2Protocol):
        assert list(inspect.signature(protocol.__init__).parameters) == wanted


def test_attributes_we_read_are_set_by_their_constructors():
    source = inspect.getsource(hypercorn.protocol.h11.H11Protocol.__init__)
    for attribute in ("self.stream", "self.connection", "self.send"):
        assert attribute in source
    source = inspect.getsource(hypercorn.protocol.ws_stream)
    for attribute in ("self.handshake", "self.state", "self.buffer", "self.max_length", "self.length"):
        assert attribute in source


def test_framework_still_reads_what_we_set():
    source = inspect.getsource(quart_trio.asgi)
    assert "self.receive_channel.receive" in source
    for attribute in ("asgi_http_class", "asgi_websocket_class", "request_class", "websocket_class"):
        assert hasattr(stack.QuartTrio, attribute)
