"""Waiting for what nothing announces: a condition, looked at until it holds."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable

# Far beyond what anything here takes on a quiet machine: reaching it is a failure, not slowness.
PATIENCE = 30.0


def wait_until(condition: Callable[[], bool], *, limit: float = PATIENCE) -> None:
    """Return when the condition holds. Raises: AssertionError if it does not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL these processes, of which one may end with another; return when all have ended, reaped or not."""
    with contextlib.ExitStack() as stack:
        held = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                held.append(os.pidfd_open(pid))
                stack.callback(os.close, held[-1])
        for pidfd in held:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in held:
            assert select.select([pidfd], [], [], PATIENCE)[0], "a process does not react to SIGKILL"
