"""Server-sent events, read by a parser that shares nothing with the one that wrote them."""

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tests.support.daemon import Daemon


@dataclass(frozen=True)
class Event:
    kind: str
    data: Any
    id: str | None


class EventStream:
    """Iterate for the events; the iteration ends with the response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        while line := self._response.readline():
            name, _, value = line.decode().rstrip("\n").partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
            elif "data" in fields:  # a blank line ends an event; one after a comment ends nothing
                yield Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
                fields = {}

    def take(self, count: int) -> list[Event]:
        """The next so many events."""
        return list(islice(self, count))


@contextlib.contextmanager
def stream(
    daemon: Daemon, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
) -> Iterator[EventStream]:
    """A request that is answered by events. Leaving the block closes the connection, like a client that goes."""
    with contextlib.closing(daemon.connect()) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
        with contextlib.closing(connection.getresponse()) as response:
            assert response.status == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield EventStream(response)
