"""What a sandbox may use of the gateway: rates, and how much the kernel buffers for it. No I/O but socket options."""

import contextlib
import socket
from dataclasses import dataclass

import trio

MIB = 1 << 20

DNS_PER_SECOND = 200
"""queries; `npm install` of a large project asks some 50 in its busiest second"""
DATAGRAM_FLOWS = 128
DATAGRAM_IDLE = 60.0
"""seconds without a datagram in either direction"""
DNS_AT_ONCE = 64

# A client that asks and never reads leaves what was sent to it in kernel buffers, which grow to 32 MB each if nobody
# says otherwise: 200 such connections took 2.3 GB. So may one that sends to who stops reading. The kernel doubles
# what it is told. A window of 512 KiB is 10 MB/s over 50 ms; the first few connections of a sandbox may have all that
# a long way takes.
_FREE_CONNECTIONS = 4
_BUFFERS = ((32, 512 << 10), (1 << 30, 128 << 10))
"""bytes on their way from the world, and to it: up to so many connections"""


def bound_buffers(upstream: trio.socket.SocketType, nth: int) -> None:
    """Of the way out of a sandbox's nth connection open at once. Call it before connecting: it bounds the window."""
    if nth > _FREE_CONNECTIONS:
        size = next(size for most, size in _BUFFERS if nth <= most)
        with contextlib.suppress(OSError):
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


@dataclass(slots=True)
class TokenBucket:
    """A rate with a burst of one second's worth. Times are of one monotonic clock."""

    rate: float
    tokens: float = 0.0
    at: float = float("-inf")

    def take(self, amount: float, now: float) -> bool:
        """Take it if it is there."""
        self._fill(now)
        if self.tokens < amount:
            return False
        self.tokens -= amount
        return True

    def owe(self, amount: float, now: float) -> float:
        """Take it in any case; the seconds to wait until it would have been there."""
        self._fill(now)
        self.tokens -= amount
        return max(0.0, -self.tokens / self.rate)

    def _fill(self, now: float) -> None:
        self.tokens = min(self.rate, self.tokens + (now - self.at) * self.rate)
        self.at = now
