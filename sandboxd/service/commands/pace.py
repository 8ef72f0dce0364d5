"""Flow control of a terminal's output: it waits for the client that types, as a program does before a real terminal.

Without it a program that floods its terminal is as fast as our disk, and what its user sees is the past: ctrl-c takes
effect at once and shows megabytes later. With it the program stands still until the client has been sent what came
before, but for a window. Clients that only watch are not waited for; they read on from the log, or are told of a gap.
"""

from typing import Final

import trio

WINDOW: Final = 64 * 1024
"""Bytes that the output may be ahead of the client: a few screens, and enough to keep a fast one busy."""
STALL_LIMIT: Final = 10.0
"""Seconds without a byte sent after which a client is not waited for, until it reads on. A program that only wants to
say something, to a client that has fallen asleep, is not stopped for ever."""


class Pace:
    """How far the client whose pace a terminal keeps has come, if there is one; offsets are of the output's bytes."""

    def __init__(self) -> None:
        self._sent: int | None = None
        self._stalled = False
        self._changed = trio.Event()

    def lead(self, sent: int | None) -> None:
        """Keep the pace of a client that has been sent all before this offset; None: of none.

        To be told again whenever the client has been sent more.
        """
        self._sent = sent
        self._stalled = False
        self._wake()

    async def keep(self, end: int) -> None:
        """Wait until the client is no further than the window behind `end`, or stands still for too long."""
        while self._sent is not None and end - self._sent > WINDOW and not self._stalled:
            with trio.move_on_after(STALL_LIMIT) as limit:
                await self._changed.wait()
            if limit.cancelled_caught:
                self._stalled = True

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
