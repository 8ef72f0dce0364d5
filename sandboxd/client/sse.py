"""Server-sent events, decoded: bytes in, events out (WHATWG HTML §9.2). Pure."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    name: str
    data: str
    id: str


class EventDecoder:
    """Feed it what arrives, however it is cut; it yields each event once its blank line has come."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0
        self._name = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, data: bytes) -> Iterator[ServerSentEvent]:
        for line in self._lines(data):
            if line:
                self._field(line)
            elif self._data:
                yield ServerSentEvent(self._name or "message", "\n".join(self._data), self._id)
                self._name, self._data = "", []
            else:
                self._name = ""

    def _lines(self, data: bytes) -> Iterator[str]:
        # `_searched` keeps a long line that comes in many pieces from being searched again with each.
        self._rest += data
        start = 0
        while (end := self._rest.find(b"\n", max(start, self._searched))) >= 0:
            yield self._rest[start:end].removesuffix(b"\r").decode("utf-8", "replace")
            start = end + 1
        del self._rest[:start]
        self._searched = len(self._rest)

    def _field(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id":
            self._id = value
