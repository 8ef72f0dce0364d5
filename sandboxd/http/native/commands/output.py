"""A command's output as items on the wire: text whose characters are never cut, or base64, with its gaps.

Pure. A character that is split between two reads waits for its rest: within one conversation in a decoder, between
two requests in the cursor.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sandboxd.http.kit.encoding import from_base64, text_decoders, to_base64
from sandboxd.http.native.commands.attached import Encoding
from sandboxd.http.native.fields import Response
from sandboxd.model import OutputChunk, StreamName
from sandboxd.service.commands.log import LogGap, LogPage


class OutputView(Response):
    stream: StreamName | None
    """null for a gap in either"""
    offset: int | None
    """of its first byte in its stream"""
    text: str | None
    data_b64: str | None
    lost_bytes: int
    """this is a gap: so many bytes are not kept (any more)"""


class LogEncoder:
    """Encodes the pages of one log, in order."""

    def __init__(
        self,
        encoding: Encoding,
        place: int,
        *,
        stream: StreamName | None,
        carried: Mapping[StreamName, bytes] = MappingProxyType({}),
    ) -> None:
        """From a place in the log, or in one stream; `carried` are the incomplete characters before it."""
        self.place = place
        self._text = encoding == "utf-8"
        self._stream = stream
        self._decoders = text_decoders()
        for stream, rest in carried.items():
            self._decoders[stream].setstate((rest, 0))

    def encode(self, page: LogPage) -> Iterator[OutputView]:
        """The items, one by one; when one is handed out, `cursor` is where it ends."""
        for item in page.items:
            if isinstance(item, LogGap):
                self.place += item.lost if item.stream is self._stream else 0
                yield from self._gap(item)
            else:
                self.place += len(item.data)
                yield from self._output(item)

    def _output(self, chunk: OutputChunk) -> Iterator[OutputView]:
        if self._text:
            return _text(chunk.stream, chunk.offset, self._decoders[chunk.stream].decode(chunk.data))
        encoded = to_base64(chunk.data)
        return iter((_view(stream=chunk.stream, offset=chunk.offset, data_b64=encoded),))

    def end(self) -> Iterator[OutputView]:
        """What waited for a rest that will not come."""
        for stream, decoder in self._decoders.items():
            yield from _text(stream, None, decoder.decode(b"", final=True))

    @property
    def cursor(self) -> str:
        """Where the next request goes on."""
        carried = [bytes(decoder.getstate()[0]).hex() for decoder in self._decoders.values()]
        return f"{self.place}.{'.'.join(carried)}" if any(carried) else str(self.place)

    def _gap(self, gap: LogGap) -> Iterator[OutputView]:
        for stream in StreamName if gap.stream is None else (gap.stream,):
            yield from _text(stream, None, self._decoders[stream].decode(b"", final=True))
            self._decoders[stream].reset()
        yield _view(stream=gap.stream, lost_bytes=gap.lost)


def _text(stream: StreamName, offset: int | None, text: str) -> Iterator[OutputView]:
    if text:
        yield _view(stream=stream, offset=offset, text=text)


def _view(**given: Any) -> OutputView:
    return OutputView.model_construct(
        **{"stream": None, "offset": None, "text": None, "data_b64": None, "lost_bytes": 0, **given}
    )


def joined(items: list[OutputView], stream: StreamName, *, encoding: Encoding) -> str:
    """One stream's part of the items."""
    own = [item for item in items if item.stream is stream]
    if encoding == "utf-8":
        return "".join(item.text or "" for item in own)
    return to_base64(b"".join(from_base64(item.data_b64 or "") for item in own))


def facts_of(item: OutputView) -> dict[str, Any]:
    """As an event has it: what there is to say, but for the stream, which is the event's name."""
    if item.lost_bytes:
        return {"stream": item.stream, "lost_bytes": item.lost_bytes}
    facts = {"offset": item.offset, "text": item.text, "data_b64": item.data_b64}
    return {name: value for name, value in facts.items() if value is not None}
