"""What is passed on, of whatever kind: where to, the client's side of it, and the head that the program gets."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h11

from sandboxd.config import Config
from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.ports import PortRequest
from sandboxd.http.proxy.headers import RawHeaders, first, to_program

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(eq=False, kw_only=True)
class Forwarding:
    """A request or a websocket on its way to a program; the base of what passes it on."""

    wanted: PortRequest
    scope: Mapping[str, Any]
    receive: Receive
    send: Send
    limits: Config
    is_secret: Callable[[str], bool]
    """whether it is a key of ours, which no program may see"""

    def _head(self, method: bytes | str, headers: RawHeaders) -> h11.Request:
        """The request as the program gets it, with these headers besides. Raises: InvalidRequest."""
        prefix = self.wanted.prefix
        head = to_program(self.scope, host=self._host(), prefix=prefix, is_secret=self.is_secret)
        try:
            return h11.Request(method=method, target=self.wanted.target, headers=[*head, *headers])
        except h11.LocalProtocolError as error:
            raise InvalidRequest(f"cannot pass this request on: {error}") from error

    def _host(self) -> bytes:
        """By host name, what the client called it: programs compare it with Origin. By path, `localhost`."""
        given = first(self.scope["headers"], b"host")
        return given if self.wanted.prefix is None and given else f"localhost:{self.wanted.port}".encode()
