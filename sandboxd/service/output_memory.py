"""What commands, code and files say to requests that get it in one piece: how much of it the daemon holds in all.

Each request has a share, which grows as output comes and is given back with the object, whichever way a request ends.
Nothing waits for a share while it holds one: two that waited for each other would hold theirs for ever. Output that
finds no room is left out and said to be, or the request is refused.
"""

import base64
import codecs
from collections import Counter
from collections.abc import Iterator
from typing import Final

from sandboxd.errors import TooManyRequests, Unavailable

STEP: Final = 16 * 1024
"""Bytes by which shares grow, and that there have to be for one to begin with."""
_PIECE: Final = 48 * 1024
"""Bytes of output that become text at once; base64 has no rest of them."""


class OutputMemory:
    """`size`: bytes for all requests together; those for the sandboxes of one key have half of that."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._by_owner: Counter[str | None] = Counter()

    def share(self, owner: str | None) -> "Share":
        """For one request on behalf of a key; None: an administrator. Raises: TooManyRequests, Unavailable."""
        share = Share(self, owner)
        share.require(STEP)
        return share

    def room(self, owner: str | None) -> int:
        """How many bytes more the key's requests may hold now."""
        left = self.size - self.used
        return left if owner is None else min(left, self.size // 2 - self._by_owner[owner])

    def change(self, owner: str | None, size: int) -> None:
        """For shares only."""
        self.used += size
        self._by_owner[owner] += size
        if not self._by_owner[owner]:
            del self._by_owner[owner]


class Share:
    """Owns: what it took of the memory, until nobody refers to it any more, or it is told to give it back."""

    def __init__(self, memory: OutputMemory, owner: str | None) -> None:
        self.held = 0
        self._memory = memory
        self._owner = owner

    def __del__(self) -> None:
        self.give_back()

    def give_back(self) -> None:
        self._memory.change(self._owner, -self.held)
        self.held = 0

    def cover(self, size: int) -> bool:
        """Grow to hold `size` bytes in all. False if there is no room for that: then nothing has changed."""
        more = size - self.held
        if more <= 0:
            return True
        more = -(-more // STEP) * STEP
        if more > self._memory.room(self._owner):
            return False
        self._memory.change(self._owner, more)
        self.held += more
        return True

    def cover_most(self, size: int) -> int:
        """Grow towards `size` bytes as far as there is room; how many it holds now."""
        if not self.cover(size):
            self.cover(self.held + max(0, self._memory.room(self._owner)) // STEP * STEP)
        return self.held

    def require(self, size: int) -> None:
        """As cover(). Raises: TooManyRequests when the key's other requests hold too much, Unavailable."""
        if self.cover(size):
            return
        advice = "read them to their ends, or use a stream, a background command or a download, and try again"
        if self._owner is not None and self._memory.room(None) >= size - self.held:
            raise TooManyRequests(
                f"cannot hold more output for this key: its answers under way have {self._memory.size // 2} bytes; "
                f"{advice}",
                kind="output_memory",
                retry_after=1,
            )
        raise Unavailable(
            f"cannot hold more output: answers under way have the {self._memory.size} bytes that there are for it "
            f"(sandbox.output_memory); {advice}",
            kind="output_memory",
            retry_after=1,
        )


class KeptOutput:
    """What is kept of one stream: all of it, or its beginning and its end, half of the limit each.

    Holds no more than `limit` bytes, and no more than its share of the daemon's memory.
    """

    def __init__(self, share: Share, limit: int) -> None:
        self.total = 0
        """bytes that were written"""
        self.starved = False
        """less was kept than the limit allows, since the daemon had no more memory for it"""
        self._share = share
        self._limit = limit
        self._data = bytearray()
        self._oldest = 0
        """where in the second half, once it is full, the next byte goes, which is where its oldest one is"""

    @property
    def omitted(self) -> int:
        """Bytes that were left out, in the middle."""
        return self.total - len(self._data)

    @property
    def head(self) -> int:
        """Bytes before those that were left out."""
        return self._limit // 2 if self.omitted else len(self._data)

    def add(self, data: bytes | bytearray | memoryview) -> None:
        self.total += len(data)
        room = self._grow(min(len(data), self._limit - len(self._data)))
        self._data += data[:room]
        if rest := memoryview(data)[room:]:
            self._overwrite(rest)

    def _grow(self, wanted: int) -> int:
        """How many of the wanted bytes there is memory for. If it is less, what there is now is the limit."""
        if wanted <= 0:
            return 0
        used = len(self._data)
        held = self._share.cover_most(used + wanted)
        if held >= used + wanted:
            return wanted
        self.starved = True
        self._limit = held
        return held - used

    def _overwrite(self, data: memoryview) -> None:
        """Go round in the second half, of which the newest bytes are kept."""
        start = self._limit // 2
        size = self._limit - start
        if not size:
            return
        if not self._oldest:
            self._oldest = start
        data = data[-size:]
        while data:
            count = min(len(data), self._limit - self._oldest)
            self._data[self._oldest : self._oldest + count] = data[:count]
            data = data[count:]
            self._oldest = start + (self._oldest + count - start) % size

    # -- given out ------------------------------------------------------------------------------------------------

    def parts(self) -> tuple[Iterator[bytes], Iterator[bytes]]:
        """Beginning and end, each in pieces; the end is empty if nothing was left out."""
        head, end = self.head, len(self._data)
        if not self.omitted:
            return self._pieces([(0, end)]), iter(())
        return self._pieces([(0, head)]), self._pieces([(self._oldest, end), (head, self._oldest)])

    def _pieces(self, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
        for start, end in ranges:
            for at in range(start, end, _PIECE):
                yield bytes(memoryview(self._data)[at : min(at + _PIECE, end)])

    def text(self) -> Iterator[str]:
        """As UTF-8, what is not as U+FFFD; where something was left out a line says how much."""
        for number, part in enumerate(self.parts()):
            if number and self.omitted:
                yield f"\n[{self.omitted} bytes left out]\n"
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for piece in part:
                yield decoder.decode(piece)
            yield decoder.decode(b"", final=True)

    def base64(self) -> Iterator[str]:
        """Beginning and end, one after the other; `head` says where what was left out had been."""
        rest = b""
        for part in self.parts():
            for piece in part:
                data = rest + piece
                whole = len(data) - len(data) % 3
                yield base64.b64encode(data[:whole]).decode()
                rest = data[whole:]
        yield base64.b64encode(rest).decode()
