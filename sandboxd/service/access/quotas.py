"""What the holder of a key may use: requests by the minute, and sandboxes, memory and disk at one time.

Requests are counted by a token bucket: a key may send a whole minute's worth at once, and then one as each falls due.
Memory and disk are counted as promised (the sandboxes' limits), so that a quota holds before the memory is touched;
so where one is set no sandbox is without a limit: one that asks for none gets an equal share.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import trio

from sandboxd.config import SandboxConfig
from sandboxd.errors import TooManyRequests, Unavailable, Unprocessable
from sandboxd.model import ApiKey, Limits, Quota, Sandbox, SandboxSpec
from sandboxd.service.access.holdings import Holdings
from sandboxd.service.sandboxes import expiry

MINUTE = 60.0
# Told when nothing says when a sandbox will be gone.
RETRY_AFTER = 60
# seed 000's, by name; a key without a tier is bounded by what the daemon can hold alone.
TIERS = {
    "beta": Quota(requests_per_minute=60, sandboxes=10, snapshots=50),
    "pro": Quota(requests_per_minute=300, sandboxes=50, snapshots=500),
    "unlimited": Quota(),
}


@dataclass(slots=True)
class TokenBucket:
    """`per_minute` requests at most at once, and that many a minute; `now` is any clock's seconds."""

    per_minute: int
    tokens: float
    at: float

    @classmethod
    def full(cls, per_minute: int, now: float) -> "TokenBucket":
        return cls(per_minute, float(per_minute), now)

    def take(self, now: float) -> float:
        """Take one: 0 if there was one, or the seconds until there will be."""
        self.tokens = min(float(self.per_minute), self.tokens + max(0.0, now - self.at) * self.per_minute / MINUTE)
        self.at = max(self.at, now)
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) * MINUTE / self.per_minute


class RequestRates:
    """One bucket for each key that has a rate, full when the daemon starts."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def admit(self, key: ApiKey) -> None:
        """Raises: TooManyRequests with `retry_after`."""
        rate = key.quota.requests_per_minute
        if rate is None:
            return
        now = trio.current_time()
        wait = self._buckets.setdefault(key.id, TokenBucket.full(rate, now)).take(now)
        if wait > 0:
            raise TooManyRequests(
                f"cannot take more requests with key {key.name!r} now: it may send {rate} a minute",
                kind="rate_limited",
                requests_per_minute=rate,
                retry_after=math.ceil(wait),
            )

    def forget(self, key: str) -> None:
        self._buckets.pop(key, None)


def with_shares(limits: Limits, quota: Quota) -> Limits:
    """The limits, with an equal share of what the quota bounds where they are open. Raises: Unprocessable."""
    for name in ("memory", "disk"):
        bound = getattr(quota, name)
        if bound is None or getattr(limits, name) is not None:
            continue
        if quota.sandboxes is None:
            raise Unprocessable(
                f"cannot create a sandbox without a limit of {name}: the key's quota bounds it; "
                f"give limits.{name}_bytes",
                kind="limit_needed",
            )
        limits = replace(limits, **{name: bound // quota.sandboxes})
    return limits


def check_key(key: ApiKey, spec: SandboxSpec, sandboxes: Iterable[Sandbox], held: Holdings) -> None:
    """That the key's quota has room for one more. Raises: TooManyRequests with `retry_after`."""
    own = [sandbox for sandbox in sandboxes if sandbox.spec.owner == key.id]
    if key.quota.sandboxes is not None and len(own) >= key.quota.sandboxes:
        raise _exceeded(key, "sandboxes", key.quota.sandboxes, own)
    for name in ("memory", "disk"):
        bound = getattr(key.quota, name)
        if bound is not None and getattr(held, name) + (getattr(spec.limits, name) or 0) > bound:
            raise _exceeded(key, f"bytes of {name}", bound, own)


def room_for_snapshot(key: ApiKey, held: Holdings) -> int | None:
    """Bytes of disk that the key's quota has left for a snapshot; None: it bounds none. Raises: TooManyRequests.

    How large a snapshot of a sandbox will be is known when it has been taken: the last one may go over.
    """
    snapshots = key.quota.snapshots
    if snapshots is not None and held.snapshots >= snapshots:
        raise _no_snapshot(key, "snapshots", snapshots)
    disk = key.quota.disk
    if disk is None:
        return None
    if held.disk >= disk:
        raise _no_snapshot(key, "bytes of disk, with the limits of its sandboxes,", disk)
    return disk - held.disk


def _no_snapshot(key: ApiKey, what: str, bound: int) -> TooManyRequests:
    return TooManyRequests(
        f"cannot make the snapshot: key {key.name!r} may have {bound} {what} at a time; delete some first",
        kind="quota_exceeded",
        quota=bound,
        retry_after=RETRY_AFTER,
    )


def check_all(config: SandboxConfig, spec: SandboxSpec, sandboxes: Iterable[Sandbox]) -> None:
    """That the daemon has room for one more. Raises: Unavailable, Unprocessable."""
    held = list(sandboxes)
    if len(held) >= config.max_sandboxes:
        raise Unavailable(f"cannot create the sandbox: this daemon holds its maximum of {config.max_sandboxes}")
    for name, bound in (("memory", config.max_memory), ("disk", config.max_disk)):
        wanted = getattr(spec.limits, name)
        if bound is None:
            continue
        if wanted is None:
            raise Unprocessable(
                f"cannot create a sandbox without a limit of {name}: this daemon bounds it; give limits.{name}_bytes",
                kind="limit_needed",
            )
        if _promised(name, held) + wanted > bound:
            raise Unavailable(
                f"cannot create the sandbox: this daemon has {bound} bytes of {name} to give, and too little is left",
                kind="at_capacity",
            )


def _promised(name: str, sandboxes: Iterable[Sandbox]) -> int:
    return sum(getattr(sandbox.spec.limits, name) or 0 for sandbox in sandboxes)


def _exceeded(key: ApiKey, what: str, bound: int, own: list[Sandbox]) -> TooManyRequests:
    instant = expiry.now()
    ends = [expiry.remaining(sandbox.deadline, instant) for sandbox in own if sandbox.deadline is not None]
    return TooManyRequests(
        f"cannot create the sandbox: key {key.name!r} may have {bound} {what} at a time; delete one first",
        kind="quota_exceeded",
        quota=bound,
        retry_after=max(1, math.ceil(min(ends, default=RETRY_AFTER))),
    )
