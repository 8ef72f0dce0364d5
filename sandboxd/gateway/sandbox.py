"""One sandbox, as the gateway knows it."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from sandboxd.gateway.addresses import Address
from sandboxd.gateway.limits import DNS_PER_SECOND, TokenBucket
from sandboxd.gateway.policy import Judge, Site

MAX_PINS = 4096
MAX_NAMES_OF_ADDRESS = 8
MAX_RECENT = 100
MAX_TOLD = 1024
TOLD_AGAIN_AFTER = 1.0
"""seconds for which the same thing is not told again"""

Event = dict[str, Any]
"""{"at": seconds since the epoch, "sandbox", "action": allowed|denied|failed|closed|limit, "name", "address", "port",
"protocol", "rule", "reason", "sent", "received"}: what applies"""


class Flow(Protocol):
    """A connection, or datagrams to one place, that the policy has allowed."""

    def still_allowed(self, judge: Judge) -> bool: ...

    def cut(self) -> None:
        """End it now, so that the client notices."""


@dataclass(slots=True)
class Counters:
    """Of one sandbox since it was added, counted while flows are open."""

    sent: int = 0
    """bytes from the sandbox to the world"""
    received: int = 0
    allowed: int = 0
    denied: int = 0
    failed: int = 0
    queries: int = 0


@dataclass(eq=False)
class Sandbox:
    """Its policy, what is under way for it, and what has been.

    `tell` is given each event that is to be known outside.
    """

    id: str
    judge: Judge
    tell: Callable[[Event], None]
    counters: Counters = field(default_factory=Counters)
    flows: set[Flow] = field(default_factory=set)
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_RECENT))
    connections: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """of everything that is done for it"""
    queries: TokenBucket = field(default_factory=lambda: TokenBucket(DNS_PER_SECOND))
    _rate: TokenBucket | None = None
    _pins: OrderedDict[Address, tuple[str, ...]] = field(default_factory=OrderedDict)
    _told: OrderedDict[tuple[Any, ...], float] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._set_rate()

    # -- policy ---------------------------------------------------------------------------------------------------

    def set_judge(self, judge: Judge) -> int:
        """Follow another policy from now on. How many flows that it no longer allows were cut."""
        self.judge = judge
        self._set_rate()
        cut = [flow for flow in self.flows if not flow.still_allowed(judge)]
        for flow in cut:
            flow.cut()
        return len(cut)

    def set_site(self, site: Site) -> int:
        return self.set_judge(Judge(self.judge.policy, site))

    def _set_rate(self) -> None:
        rate = self.judge.policy.limits.bytes_per_second
        if rate is None:
            self._rate = None
        elif self._rate is None or self._rate.rate != rate:
            self._rate = TokenBucket(float(rate))

    # -- names ----------------------------------------------------------------------------------------------------

    def pin(self, address: Address, name: str) -> None:
        """Remember that our own DNS gave this address for that name."""
        names = self._pins.pop(address, ())
        others = tuple(each for each in names if each != name)
        self._pins[address] = (*others, name)[-MAX_NAMES_OF_ADDRESS:]
        while len(self._pins) > MAX_PINS:
            self._pins.popitem(last=False)

    def names_of(self, address: Address) -> tuple[str, ...]:
        """Names that our DNS gave this address for, the latest first."""
        return self._pins.get(address, ())[::-1]

    @property
    def pins(self) -> int:
        return len(self._pins)

    # -- what happens ---------------------------------------------------------------------------------------------

    def note(self, action: str, **facts: Any) -> None:
        """Something happened: it is told, unless the same was told within the last second."""
        event = {"action": action, **{name: fact for name, fact in facts.items() if fact is not None}}
        key = tuple(event.get(name) for name in ("action", "name", "address", "port", "protocol", "reason"))
        now = time.monotonic()
        if now - self._told.get(key, float("-inf")) < TOLD_AGAIN_AFTER:
            return
        self._told[key] = now
        self._told.move_to_end(key)
        while len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)
        event = {"at": round(time.time(), 3), "sandbox": self.id, **event}
        self.recent.append(event)
        self.tell(event)

    async def count(self, *, sent: int = 0, received: int = 0) -> None:
        """These bytes passed; return when more may."""
        self.counters.sent += sent
        self.counters.received += received
        if self._rate is not None:
            wait = self._rate.owe(sent + received, trio.current_time())
            if wait > 0:
                await trio.sleep(wait)

    def may_pass(self, *, sent: int = 0, received: int = 0) -> bool:
        """Whether a datagram passes, which is then counted: what is beyond the rate is lost, nobody waits for it."""
        if self._rate is not None and not self._rate.take(sent + received, trio.current_time()):
            return False
        self.counters.sent += sent
        self.counters.received += received
        return True

    @property
    def most_at_once(self) -> int:
        """Bytes to move in one go, so that a rate is kept evenly."""
        return (1 << 20) if self._rate is None else max(1024, min(65536, int(self._rate.rate / 20)))
