"""HTTP/2 frames as they come, before anybody interprets them: cut into small batches, and counted against a budget.

A frame of nine bytes costs its sender nothing and this end some twenty microseconds, and most of what has been tried
against HTTP/2 servers is one kind of frame sent without end: requests that are reset at once (CVE-2023-44487) or that
the server is made to reset (CVE-2025-8671), pings (CVE-2019-9512), priorities (-9513), settings (-9515), empty frames
(-9518), windows opened byte by byte (-9511), header blocks that go on (CVE-2024-27316). So each connection has a
budget of such frames. It fills with time and with what is really transferred: nobody who does something useful meets
its bottom, however much they do. Bodies are not counted, flow control holds them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

PREFACE_BYTES = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
HEADER_BYTES = 9

# Frames handed on at once: half a millisecond's work, after which others may have their turn.
BATCH_FRAMES = 16

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x1
PADDED = 0x8

# A browser leaves a page with a hundred requests under way and comes back: this allows 200 resets at once, and 20 a
# second for ever. A client that opens its windows after each frame sends two updates for 16 KiB, which give it 16.
BUDGET = 1000.0
REFILL_PER_SECOND = 100.0
RESET_COST = 5.0
RESPONSE_GRANT = 5.0
BYTES_PER_FRAME = 1024

# Settings in one frame that count as one: six bytes each. No client sends more than eight.
SETTINGS_BYTES = 48


@dataclass(frozen=True, slots=True)
class Frame:
    """The head of a frame."""

    kind: int
    flags: int
    size: int

    @property
    def cost(self) -> float:
        """What it takes of a connection's budget."""
        if self.kind == HEADERS:
            return 0.0  # a request: how many are under way is limited, and an answer is work for its sender, too
        if self.kind == DATA:
            empty = self.size <= (1 if self.flags & PADDED else 0)
            return 1.0 if empty and not self.flags & END_STREAM else 0.0
        if self.kind == RST_STREAM:
            return RESET_COST
        if self.kind == SETTINGS:
            return 1.0 + self.size // SETTINGS_BYTES
        return 1.0


class FrameCutter:
    """Cuts what a client sends into batches of at most `BATCH_FRAMES` frames, from the connection's preface on."""

    def __init__(self) -> None:
        self._skip = PREFACE_BYTES
        """bytes to come that begin no frame"""
        self._head = b""
        """what is there of the head of the next frame"""

    def cut(self, data: bytes) -> Iterator[tuple[bytes, list[Frame]]]:
        """The pieces of `data`, each with the frames whose heads end in it. Who stops early has to stop for good."""
        begin = position = 0
        frames: list[Frame] = []
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                continue
            missing = HEADER_BYTES - len(self._head)
            self._head += data[position : position + missing]
            position += missing
            if len(self._head) == HEADER_BYTES:
                frame = Frame(self._head[3], self._head[4], int.from_bytes(self._head[:3], "big"))
                self._skip, self._head = frame.size, b""
                frames.append(frame)
                if len(frames) == BATCH_FRAMES:
                    yield data[begin:position], frames
                    begin, frames = position, []
        if begin < len(data):
            yield data[begin:], frames


class FrameBudget:
    """How many frames that transfer nothing a connection may still send."""

    def __init__(self, now: float) -> None:
        self._left = BUDGET
        self._at = now

    def spend(self, cost: float, now: float) -> bool:
        """Take `cost` of it; False if it does not suffice."""
        self._left = min(BUDGET, self._left + (now - self._at) * REFILL_PER_SECOND) - cost
        self._at = now
        return self._left >= 0

    def grant(self, amount: float) -> None:
        """Add to it: something was transferred."""
        self._left = min(BUDGET, self._left + amount)

    def grant_bytes(self, size: int) -> None:
        self.grant(size / BYTES_PER_FRAME)
