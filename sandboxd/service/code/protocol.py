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
_MAX_DIGITS: Final = 4000
_MAX_CONTEXTS: Final = 1000
_MAX_PIECES: Final = 100_000
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
        self._truncated = False
        self.ended = False

    def feed(self, data: bytes | bytearray) -> list[RunEvent]:
        """Raises: BridgeError; and what the bridge refuses the run for, as a SandboxdError."""
        return [event for line in self._splitter.feed(data) for event in self._bounded(line)]

    def _bounded(self, line: bytes) -> tuple[RunEvent, ...]:
        if self.ended:
            raise BridgeError("it went on after the end")
        event = _decode(line, _RUN)
        if isinstance(event, RunEnded):
            self.ended = True
            return (replace(event, truncated=event.truncated or self._truncated),)
        if isinstance(event, RunText):
            self._output -= len(event.text)
        if isinstance(event, RunResult):
            self._results -= len(line)
        if isinstance(event, RunText | RunResult):
            self._pieces -= 1
        if min(self._output, self._results, self._pieces) >= 0:
            return (event,)
        self._truncated = True
        return ()


def decode_context(line: bytes) -> CodeContext:
    return _decode(line, {"context": _context})


def decode_contexts(line: bytes) -> tuple[CodeContext, ...]:
    return _decode(line, {"contexts": _contexts})


Raw = dict[str, Any]


def _decode(line: bytes, kinds: Mapping[str, Callable[[Raw], _T]]) -> _T:
    raw = _parse(line)
    if not isinstance(raw, dict):
        raise BridgeError("it sent a line that is no JSON object")
    kind = raw.get("type")
    if kind == "refused":
        raise _refusal(raw)
    try:
        return kinds[str(kind)](raw)
    except (KeyError, TypeError) as error:
        raise BridgeError(f"it sent a malformed {str(kind)[:40]!r}: {str(error)[:100]}") from error


def _parse(line: bytes) -> Any:
    """Any JSON, with nothing in it that could not be written again."""
    text = line.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=lambda name: None, parse_int=_integer, parse_float=_real)
        return _scrubbed(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise BridgeError(f"it sent a line that is not JSON: {str(error)[:100]}") from error


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MAX_DIGITS else None


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
    "error": lambda raw: RunError(_text(raw, "name"), _text(raw, "value"), _text(raw, "traceback")),
    "end": lambda raw: RunEnded(_whole(raw, "execution_ms"), raw.get("truncated") is True),
}
