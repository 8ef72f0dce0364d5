"""Waiting for what nothing announces: a condition, looked at until it holds."""

import time
from collections.abc import Callable

# Far beyond what anything here takes on a quiet machine: reaching it is a failure, not slowness.
PATIENCE = 30.0


def wait_until(condition: Callable[[], bool], *, limit: float = PATIENCE) -> None:
    """Return when the condition holds. Raises: AssertionError if it does not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
