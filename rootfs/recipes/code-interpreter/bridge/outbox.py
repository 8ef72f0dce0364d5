"""What a run says to the daemon: one JSON object per line, within the bounds the daemon gave."""

import json
from collections.abc import Mapping
from typing import Any

from kernels import Content, Listener

# Of one line of text; the daemon reads line by line.
TEXT_PIECE = 64 * 1024
MAX_TRACEBACK = 64 * 1024
MAX_NAME = 1000


def encode(message: Mapping[str, Any]) -> bytes:
    # A lone surrogate comes out as bytes that are not UTF-8, which the daemon replaces.
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


class Outbox(Listener):
    """A run's output, passed on as it comes.

    Nothing waits for the daemon: what it does not read is kept by the transport, and is bounded because all of a run
    is. `output` and `results` are how many characters of each may still come; the rest is dropped, and the end says
    so.
    """

    def __init__(self, write: Any, *, output: int, results: int) -> None:
        super().__init__()
        self._write = write
        self._output = output
        self._results = results
        self._held: list[Mapping[str, Any]] = []
        """text that overtook the news that the run has begun: it came by a pipe, that by a socket"""
        self.truncated = False
        self.muted = False
        """the kernel's errors are not passed on any more: we have one of our own to report"""

    def say(self, message: Mapping[str, Any]) -> None:
        self._write(encode(message))

    def leave(self) -> None:
        """Nobody listens any more."""
        self._write = lambda data: None

    def error(self, name: str, value: str, traceback: str = "") -> None:
        value, traceback = value[:MAX_TRACEBACK], traceback[:MAX_TRACEBACK]
        self.say({"type": "error", "name": name[:MAX_NAME], "value": value, "traceback": traceback})

    def text(self, stream: str, text: str) -> None:
        if len(text) > self._output:
            self.truncated = True
        text = text[: self._output]
        self._output -= len(text)
        for start in range(0, len(text), TEXT_PIECE):
            piece = {"type": stream, "text": text[start : start + TEXT_PIECE]}
            if self.begun.is_set():
                self.say(piece)
            else:
                self._held.append(piece)

    def _release(self) -> None:
        held, self._held = self._held, []
        for piece in held:
            self.say(piece)

    def end(self, how: str) -> None:
        self._release()
        super().end(how)

    def message(self, kind: str, content: Content) -> None:
        self._pass_on(kind, content)
        self._release()

    def _pass_on(self, kind: str, content: Content) -> None:
        if kind == "execute_input":
            self.say({"type": "count", "execution_count": int(content["execution_count"])})
        elif kind in {"execute_result", "display_data"}:
            self._result(content["data"], main=kind == "execute_result")
        elif kind == "error" and not self.muted:
            self.error(str(content["ename"]), str(content["evalue"]), "\n".join(map(str, content["traceback"])))

    def _result(self, data: Content, *, main: bool) -> None:
        bundle = {}
        for kind, value in sorted(data.items(), key=lambda item: item[0] != "text/plain"):
            size = len(value) if isinstance(value, str) else len(json.dumps(value))
            if size > self._results:
                self.truncated = True
                if kind != "text/plain":
                    continue
                value, size = value[: self._results], self._results
            self._results -= size
            bundle[kind] = value
        self.say({"type": "result", "data": bundle, "main": main})
