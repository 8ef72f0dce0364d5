"""A sandbox's place in the registry."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVarTuple, Unpack

import trio

from sandboxd.errors import Conflict, SandboxdError
from sandboxd.isolation.backend import RunningMachine
from sandboxd.model import TRANSITIONS, Sandbox, SandboxState
from sandboxd.service.sandboxes.expiry import Expiry, ExpiryReason, deadline_after, now

log = logging.getLogger(__name__)

# States that a start or a resume leads out of.
ASLEEP = frozenset({SandboxState.PAUSED, SandboxState.STOPPED, SandboxState.EXITED})

Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What is being done to a sandbox as a whole. Its scope is cancelled when the sandbox is to be deleted."""

    name: str
    beside_use: bool
    """commands and files go on beside it"""
    scope: trio.CancelScope


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Entry:
    """One sandbox's place in the registry. Its operations change it, one at a time; everyone else reads.

    What other parts of the service keep for a sandbox, they keep by its entry in a WeakKeyDictionary, so that it goes
    when the entry goes.
    """

    sandbox: Sandbox
    revive: Callable[["Entry"], Awaitable[None]]
    """resume or start it, or wait for who does"""
    running: RunningMachine | None = None
    """the live machine, frozen or not; None while there is none"""
    residents: trio.Nursery | None = None
    """tasks beside the machine; opened and, soon after the machine has ended, cancelled by the supervisor"""
    attended: trio.Event = field(default_factory=trio.Event)
    """set while `residents` is open"""
    under_way: Operation | None = None
    recording: trio.Lock = field(default_factory=trio.Lock)
    """held while a change of `sandbox` is written"""
    doomed: bool = False
    """it is decided that it is to be deleted"""
    expiry: Expiry | None = None
    """why, if its time is over"""
    changed: trio.Event = field(default_factory=trio.Event)
    """set, and replaced, when there may be something for the supervisor to do, or for who waits for an operation"""
    settled: trio.Event = field(default_factory=trio.Event)
    """set, and replaced, when a deletion ended: well, or with `failure`"""
    failure: SandboxdError | None = None
    oom_noticed: bool = False
    uses: int = 0
    """how many uses of its machine are under way for clients"""
    last_used: float = field(default_factory=lambda: now().uptime)

    @contextlib.asynccontextmanager
    async def operation(self, name: str, *, beside_use: bool = False, wait: bool = False) -> AsyncIterator[None]:
        """The block changes the sandbox as a whole: one operation at a time, and none once it is to be deleted.

        While another one is under way it is refused, or (`wait`) comes after it; then look at the state again. Unless
        `beside_use`, nobody is given the machine meanwhile. A deletion does not wait for the block: it cancels it, so
        that it undoes what a deletion would not, in bounded time. Raises: Conflict, then too.
        """
        while wait and self.under_way is not None and not self.doomed:
            await self.changed.wait()
        self._require_free(name)
        with trio.CancelScope() as scope:
            self.under_way = Operation(name, beside_use, scope)
            try:
                yield
            finally:
                self.under_way = None
                self.wake()
        if scope.cancelled_caught:
            raise self._refusal(name)

    def _require_free(self, name: str) -> None:
        if self.under_way is not None or self.doomed:
            raise self._refusal(name)

    async def wait_free(self) -> None:
        """Until no operation is under way."""
        while self.under_way is not None:
            await self.changed.wait()

    def ask_to_delete(self) -> None:
        """Let its supervisor delete it."""
        self.doomed = True
        if self.under_way is not None:
            self.under_way.scope.cancel("the sandbox is deleted")
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def settle(self, failure: SandboxdError | None = None) -> None:
        self.failure = failure
        self.settled.set()
        self.settled = trio.Event()

    async def wait_awake(self) -> None:
        """Until it is not paused."""
        while self.sandbox.paused_at is not None:
            await self.changed.wait()

    async def sleep_awake(self, seconds: float) -> None:
        """Sleep for so many seconds, of which those that the sandbox is paused for do not count."""
        while seconds > 0:
            await self.wait_awake()
            began = trio.current_time()
            with trio.move_on_after(seconds):
                await self.changed.wait()
            seconds -= trio.current_time() - began

    def note_oom(self) -> None:
        self.oom_noticed = True

    def start_resident(self, task: Callable[[Unpack[Arguments]], Awaitable[None]], *arguments: *Arguments) -> None:
        """Run a task for as long as the machine lives and the daemon runs. Raises: Conflict when there is none.

        It goes on while the sandbox is paused, when sandbox-init does not answer. Cancelled: soon after the machine's
        end, and when the daemon stops (the sandbox lives on): a resident cleans up after itself in bounded time and,
        for what outlives the daemon, is begun again (`beside_found` of the Supervisor).
        """
        self.require_machine()
        if self.residents is None:
            raise self._conflict("use", ", its machine has just ended")
        self.residents.start_soon(_reside, self.sandbox.id, task, arguments)

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[RunningMachine]:
        """The live machine, for as long as a client's business with it takes: so long the sandbox is not idle.

        One that is asleep is woken first if it was made so (`auto_resume`). Raises: Conflict, and what waking raises.
        """
        running = await self.ready()
        with self.in_use():
            yield running

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Not idle meanwhile: a client is attached that needs nothing of the machine just now."""
        self.uses += 1
        try:
            yield
        finally:
            self.uses -= 1
            self.touch()

    async def ready(self) -> RunningMachine:
        """As use(), for business that is over at once."""
        while self.sandbox.spec.auto_resume and self._asleep():
            await self.revive(self)
        self.touch()
        return self.require_running()

    def touch(self) -> None:
        """It is used now: from here on it is idle, unless another use is under way."""
        self.last_used = now().uptime
        if self.sandbox.spec.idle_timeout is not None:
            self.wake()

    def put_off(self, expiry: Expiry, seconds: float) -> None:
        """Have it come again after a while."""
        if expiry.reason is ExpiryReason.LIFETIME:
            self.sandbox = replace(self.sandbox, deadline=deadline_after(seconds, now()))
        self.touch()

    @property
    def unused_since(self) -> float | None:
        """CLOCK_BOOTTIME of the end of the last use; None while it is in use."""
        return None if self.uses else self.last_used

    def _asleep(self) -> bool:
        """Whether its machine is not to be had now, but could be."""
        if self.doomed:
            return False
        changing = self.under_way is not None and not self.under_way.beside_use
        return changing or self.sandbox.state in ASLEEP

    def require_running(self) -> RunningMachine:
        """The live machine. Raises: Conflict naming the state, or the operation, that is in the way."""
        usable = not self.doomed and (self.under_way is None or self.under_way.beside_use)
        if self.sandbox.state is SandboxState.RUNNING and self.running is not None and usable:
            return self.running
        raise self._refusal("use")

    def require_machine(self) -> RunningMachine:
        """The live machine, which may be paused: for residents. Raises: Conflict."""
        if self.running is None or self.doomed:
            raise self._refusal("use")
        return self.running

    def require_recorded(self, name: str) -> None:
        """That a record of it may be written: it is there already, and not about to be gone. Raises: Conflict."""
        if self.doomed or self.sandbox.state is SandboxState.CREATING:
            raise self._refusal(name)

    def require_change(self, name: str, into: SandboxState) -> None:
        """For an operation: that the state allows what it is about to do. Raises: Conflict."""
        if into not in TRANSITIONS[self.sandbox.state]:
            raise self._conflict(name)

    @property
    def shown_state(self) -> SandboxState:
        return SandboxState.DELETING if self.doomed else self.sandbox.state

    def _refusal(self, name: str) -> Conflict:
        if self.under_way is None or self.doomed:
            return self._conflict(name)
        operation = self.under_way.name
        return self._conflict(name, f", the operation {operation!r} is under way", operation=operation)

    def _conflict(self, name: str, reason: str = "", **facts: str) -> Conflict:
        state = self.shown_state
        return Conflict(f"cannot {name} sandbox {self.sandbox.id}: it is {state}{reason}", state=state, **facts)


async def _reside(
    sandbox: str, task: Callable[[Unpack[Arguments]], Awaitable[None]], arguments: tuple[*Arguments]
) -> None:
    """A resident's failure is its own: neither its sandbox nor the daemon ends with it."""
    try:
        await task(*arguments)
    except (SandboxdError, OSError) as failure:
        log.warning("sandbox %s: %s", sandbox, failure)
    except Exception:
        log.exception("sandbox %s: a task beside it failed", sandbox)
