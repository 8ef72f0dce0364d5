"""What time it is, for all that is written down and has a meaning after this process: records, events, lifetimes.

Waiting within the process goes by trio's clock (`trio.current_time`). The service reads no other clock than these, so
that a test can move all of them forward together (tests/quick).
"""

import time


def wall() -> float:
    """Seconds since the epoch. Somebody may set this clock, in either direction."""
    return time.time()


def uptime() -> float:
    """Seconds since the host's boot, suspended ones included. Nobody can set this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
