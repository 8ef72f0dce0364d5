"""Asking the kernel about one descriptor, without waiting."""

import select


def is_writable(descriptor: int) -> bool:
    """Whether a write of a few bytes to it would not wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def is_readable(descriptor: int) -> bool:
    """Whether a read of it would not wait."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
