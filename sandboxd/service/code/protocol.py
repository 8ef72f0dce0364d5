"""What the daemon and the code bridge in a sandbox say to each other, without I/O.

The other half is rootfs/recipes/code-interpreter/bridge; its __main__.py describes the operations. One connection is
one request: a line of JSON each way, or for a run many lines back until its `end`. The bridge runs inside the
sandbox, so all it says is hostile: a line becomes one of the values below, whose sizes are bounded and whose texts
can be written as UTF-8, or it raises BridgeError.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from sandboxd.errors import NotFound, SandboxdError, TooManyRequests, Unprocessable
from sandboxd.model import StreamName
from sandboxd.service.code.bounded_json import MAX_DIGITS, TooMuchJson, read_json
from sandboxd.service.code.values import (
    CodeContext,
    CodeLimits,
    CodeSpec,
    RunBegun,
    RunCounted,
    RunEnded,
    RunError,
    RunEvent,
    RunResult,
    RunText,
)

_MAX_DEPTH: Final = 100
_MAX_CONTEXTS: Final = 1000
_MAX_PIECES: Final = 100_000
"""Messages of one run that are passed on."""
_MAX_DROPPED: Final = 900_000
"""Messages of one run that are read and dropped."""
_MAX_VALUES: Final = 250_000
"""In all the results of one run."""
_MIN_VALUES: Final = 1000
"""In a message that is no result: it has a few."""
_MAX_EXCESSES: Final = 10
"""Lines with more values than are taken, each of which costs as much as one with as many."""
_MAX_ERROR: Final = 256 * 1024
"""Characters of each text of an error."""
_LARGE: Final = 64 * 1024
"""Bytes of a line that is not for the event loop to decode."""
_T = TypeVar("_T")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class BridgeError(Exception):
    """What answers is not a bridge, or a broken one. The connection is of no further use."""


# -- to the bridge ------------------------------------------------------------------------------------------------


def encode_run(spec: CodeSpec, limits: CodeLimits) -> bytes:
    return encode_request(
        "run",
        code=spec.code,
        context=spec.context,
        env=dict(spec.env),
        cwd=spec.cwd,
        timeout=spec.timeout,
        output=limits.output,
        results=limits.results,
    )


def encode_request(operation: str, **fields: Any) -> bytes:
    return json.dumps({"op": operation, **fields}).encode() + b"\n"


# -- from the bridge ----------------------------------------------------------------------------------------------


class LineSplitter:
    """Cuts a stream into lines. Holds at most one incomplete line, of bounded length."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._buffer = bytearray()
        self._searched = 0

    @property
    def buffered(self) -> int:
        """Bytes of the incomplete line."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The lines completed by `data`. Raises: BridgeError."""
        self._buffer += data
        lines = []
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._searched))) >= 0:
            lines.append(bytes(self._buffer[start:end]))
            start = end + 1
        del self._buffer[:start]
        self._searched = len(self._buffer)
        if len(self._buffer) > self._longest:
            raise BridgeError(f"it sent a line of more than {self._longest} bytes")
        return lines


class RunDecoder:
    """The lines of one run as events, within the limits whatever the bridge sends."""

    def __init__(self, limits: CodeLimits) -> None:
        self._splitter = LineSplitter(limits.line)
        self._output = limits.output
        self._results = limits.line
        self._pieces = _MAX_PIECES
        self._values = _MAX_VALUES
        self._excesses = 0
        self._truncated = False
        self.ended = False

    def feed(self, data: bytes | bytearray) -> list[RunEvent]:
        """Raises: BridgeError; and what the bridge refuses the run for, as a SandboxdError."""
        return [event for line in self.lines(data) for event in self.decode(line)]

    @property
    def buffered(self) -> int:
        """Bytes of the line that is not complete yet."""
        return self._splitter.buffered

    def lines(self, data: bytes | bytearray) -> list[bytes]:
        """The lines completed by `data`, for decode(). Raises: BridgeError."""
        return self._splitter.feed(data)

    def decode(self, line: bytes) -> tuple[RunEvent, ...]:
        """The events of a line, none if it is over a limit. For a thread if is_large(). Raises: as feed."""
        if self.ended:
            raise BridgeError("it went on after the end")
        try:
            event = _decode(line, _RUN, values=self._values)
        except TooMuchJson as error:
            self._excesses += 1
            if self._excesses > _MAX_EXCESSES:
                raise BridgeError("it sends more values than are taken, again and again") from error
            self._truncated = True
            return ()
        if isinstance(event, RunEnded):
            self.ended = True
            return (replace(event, truncated=event.truncated or self._truncated),)
        self._pieces -= 1
        if self._pieces < -_MAX_DROPPED:
            raise BridgeError("it sends messages without end")
        if isinstance(event, RunText):
            self._output -= len(event.text)
        if isinstance(event, RunResult):
            self._results -= len(line)
            self._values -= _values_in(event.data)
        left = min(self._output, self._results, self._values, self._pieces)
        # An error is told however much was said before it.
        if left >= 0 or (isinstance(event, RunError) and self._pieces >= 0):
            return (event,)
        self._truncated = True
        return ()


def is_large(line: bytes) -> bool:
    """Whether to decode it would keep the event loop waiting."""
    return len(line) > _LARGE


def decode_context(line: bytes) -> CodeContext:
    return _decode(line, {"context": _context})


def decode_contexts(line: bytes) -> tuple[CodeContext, ...]:
    return _decode(line, {"contexts": _contexts})


Raw = dict[str, Any]


def _decode(line: bytes, kinds: Mapping[str, Callable[[Raw], _T]], *, values: int = _MAX_VALUES) -> _T:
    """`values`: how many a large line may have. Raises: BridgeError, TooMuchJson; a refusal as a SandboxdError."""
    raw = _parse(line, max(values, _MIN_VALUES))
    if not isinstance(raw, dict):
        raise BridgeError("it sent a line that is no JSON object")
    kind = raw.get("type")
    if kind == "refused":
        raise _refusal(raw)
    try:
        return kinds[str(kind)](raw)
    except (KeyError, TypeError) as error:
        raise BridgeError(f"it sent a malformed {str(kind)[:40]!r}: {str(error)[:100]}") from error


def _parse(line: bytes, values: int) -> Any:
    """Any JSON, with nothing in it that could not be written again."""
    try:
        if is_large(line):
            return read_json(line, values=values, depth=_MAX_DEPTH)
        text = line.decode("utf-8", "replace")
        value = json.loads(text, parse_constant=lambda name: None, parse_int=_integer, parse_float=_real)
        return _scrubbed(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise BridgeError(f"it sent a line that is not JSON: {str(error)[:100]}") from error


def _values_in(value: Any) -> int:
    """How many values there are in it, itself included."""
    total, left = 0, [value]
    while left:
        total += 1
        match left.pop():
            case dict() as found:
                left += found.values()
            case list() as found:
                left += found
    return total


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None


def _real(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _scrubbed(value: Any) -> Any:
    """Without halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, dict):
        return {_scrubbed(key): _scrubbed(item) for key, item in value.items()}
    return value


_REFUSALS: Final[Mapping[str, type[SandboxdError]]] = {
    "unknown_context": NotFound,
    "queue_full": TooManyRequests,
    "too_many_contexts": TooManyRequests,
    "bad_cwd": Unprocessable,
    "kernel_failed": Unprocessable,
}


def _refusal(raw: Raw) -> Exception:
    kind, message = str(raw.get("kind")), raw.get("message")
    if not isinstance(message, str) or kind not in _REFUSALS:
        return BridgeError("it refused for a reason that does not exist")
    return _REFUSALS[kind](message[:1000], kind=kind)


def _text(raw: Raw, name: str) -> str:
    value = raw[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _whole(raw: Raw, name: str) -> int:
    value = raw[name]
    if not isinstance(value, int) or not 0 <= value < 2**53:
        raise TypeError(f"{name} is no count")
    return value


def _result(raw: Raw) -> RunResult:
    data = raw["data"]
    if not isinstance(data, dict):
        raise TypeError("data is no object")
    return RunResult({kind: value for kind, value in data.items() if _is_fit(kind, value)}, raw.get("main") is True)


def _is_fit(kind: str, value: Any) -> bool:
    is_json = kind == "application/json" or kind.endswith("+json")
    return isinstance(value, str) or (is_json and _is_shallow(value, _MAX_DEPTH))


def _is_shallow(value: Any, depth: int) -> bool:
    """Whatever writes JSON gives up at some depth, each at its own."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inner)


def _context(raw: Raw) -> CodeContext:
    return CodeContext(
        id=_text(raw, "id")[:100],
        language=_text(raw, "language")[:40],
        cwd=_text(raw, "cwd")[:4096],
        busy=raw.get("busy") is True,
        queued=_whole(raw, "queued"),
        interrupted=raw.get("interrupted") is True,
    )


def _contexts(raw: Raw) -> tuple[CodeContext, ...]:
    contexts = raw["contexts"]
    if not isinstance(contexts, list) or not all(isinstance(item, dict) for item in contexts):
        raise TypeError("contexts is no list of objects")
    return tuple(_context(item) for item in contexts[:_MAX_CONTEXTS])


_RUN: Final[Mapping[str, Callable[[Raw], RunEvent]]] = {
    "begun": lambda raw: RunBegun(_text(raw, "context")[:100]),
    "count": lambda raw: RunCounted(_whole(raw, "execution_count")),
    "stdout": lambda raw: RunText(StreamName.STDOUT, _text(raw, "text")),
    "stderr": lambda raw: RunText(StreamName.STDERR, _text(raw, "text")),
    "result": _result,
    "error": lambda raw: RunError(*(_text(raw, part)[:_MAX_ERROR] for part in ("name", "value", "traceback"))),
    "end": lambda raw: RunEnded(_whole(raw, "execution_ms"), raw.get("truncated") is True),
}
