"""When a sandbox's time is over, and what is to happen then. No clock is read here but in now().

A lifetime is counted by CLOCK_BOOTTIME, which nobody can set and which goes on while the host is suspended; after a
reboot of the host, where that has begun anew, by the wall clock. A sandbox is idle from the end of the last use of
its machine: a command, a file, a terminal, whatever needed it for a client. Looking at it, its metrics or its events
is no use of it. A daemon that starts takes every sandbox for just used, since nobody could have used it before.
"""

import enum
from dataclasses import dataclass

from sandboxd import clock
from sandboxd.kernel import procstat
from sandboxd.model import Deadline, ExpiryAction, Instant, Sandbox, SandboxState

# How far the two clocks may drift apart before a deadline is shown where the wall clock has it now.
CLOCKS_AGREE = 1.0


class ExpiryReason(enum.StrEnum):
    LIFETIME = "lifetime"
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Expiry:
    """What comes next for a sandbox that is left alone."""

    remaining: float
    """seconds from now; not above 0 when it is due"""
    reason: ExpiryReason
    action: ExpiryAction


def now() -> Instant:
    return Instant(wall=clock.wall(), uptime=clock.uptime(), boot_id=procstat.boot_id())


def deadline_after(seconds: float, instant: Instant) -> Deadline:
    return Deadline(wall=instant.wall + seconds, uptime=instant.uptime + seconds, boot_id=instant.boot_id)


def remaining(deadline: Deadline, instant: Instant) -> float:
    if deadline.boot_id == instant.boot_id:
        return deadline.uptime - instant.uptime
    return deadline.wall - instant.wall


def is_later(one: Deadline | None, other: Deadline | None, instant: Instant) -> bool:
    """None is never."""
    if one is None or other is None:
        return one is None and other is not None
    return remaining(one, instant) > remaining(other, instant)


def anchored(deadline: Deadline | None, instant: Instant) -> Deadline | None:
    """The deadline in terms of this boot of the host, so that the wall clock matters no more from here on."""
    if deadline is None or deadline.boot_id == instant.boot_id:
        return deadline
    return deadline_after(remaining(deadline, instant), instant)


def shown(deadline: Deadline | None, instant: Instant) -> float | None:
    """The deadline as the wall clock counts now: as it was promised, unless the clock was set since."""
    if deadline is None:
        return None
    expected = instant.wall + remaining(deadline, instant)
    return deadline.wall if abs(expected - deadline.wall) < CLOCKS_AGREE else expected


def next_expiry(sandbox: Sandbox, *, idle_since: float | None, instant: Instant) -> Expiry | None:
    """The lifetime's end or the idle one's, whichever is first; `idle_since` (uptime) is None while it is in use."""
    spec, found = sandbox.spec, []
    if sandbox.deadline is not None:
        found.append(Expiry(remaining(sandbox.deadline, instant), ExpiryReason.LIFETIME, spec.on_timeout))
    if spec.idle_timeout is not None and idle_since is not None and sandbox.state is SandboxState.RUNNING:
        left = idle_since + spec.idle_timeout - instant.uptime
        found.append(Expiry(left, ExpiryReason.IDLE, spec.on_idle or spec.on_timeout))
    return min(found, key=lambda expiry: expiry.remaining, default=None)


def renewed(sandbox: Sandbox, instant: Instant) -> Deadline | None:
    """Of a sandbox that begins to run again: a lifetime that was used up begins anew, one that runs goes on."""
    if sandbox.deadline is not None or sandbox.spec.timeout is None:
        return sandbox.deadline
    return deadline_after(sandbox.spec.timeout, instant)
