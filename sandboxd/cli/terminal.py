"""The local terminal, lent to a command in a sandbox: raw while it runs, restored whatever happens."""

import os
import termios
import tty
from types import TracebackType
from typing import Self


class RawTerminal:
    """Context manager: every key goes to the command, and only its output decides what is shown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved = termios.tcgetattr(descriptor)

    def __enter__(self) -> Self:
        self.make_raw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)

    def make_raw(self) -> None:
        """Again after a stop and continue: the shell has set the terminal to its own liking meanwhile."""
        tty.setraw(self._descriptor, termios.TCSADRAIN)

    def size(self) -> tuple[int, int]:
        """(cols, rows); a terminal that does not know its size (a serial line) counts as 80×24."""
        cols, rows = os.get_terminal_size(self._descriptor)
        return cols or 80, rows or 24
