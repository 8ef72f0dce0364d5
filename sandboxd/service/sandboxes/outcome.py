"""How something that is done to a sandbox ends, in the domain's errors."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from sandboxd.errors import LaunchFailed, SandboxdError
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.service.storage.disk import no_space

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """How an operation ended, for whoever still waits for it."""

    failure: SandboxdError | None = None
    known: trio.Event = field(default_factory=trio.Event)


async def work_on(
    entry: Entry, name: str, work: Callable[[Entry], Awaitable[None]], outcome: Outcome, *, wait: bool = False
) -> None:
    """Carry out an operation, or (`wait`) do so after the one that is under way; its failure is the outcome's."""
    try:
        async with entry.operation(name, wait=wait):
            await work(entry)
    except Exception as failure:
        outcome.failure = as_domain_error(failure, entry, name)
    finally:
        outcome.known.set()


def as_domain_error(failure: Exception, entry: Entry, verb: str) -> SandboxdError:
    """The failure in words for clients; one that is a fault of ours is logged with all there is to know."""
    full = no_space(verb, _errno(failure))
    if full is not None:
        log.warning("%s of sandbox %s failed: %s", verb, entry.sandbox.id, failure)
        return full
    if isinstance(failure, SandboxdError):
        return failure
    log.exception("%s of sandbox %s failed", verb, entry.sandbox.id, exc_info=failure)
    return LaunchFailed(f"cannot {verb} sandbox {entry.sandbox.id}: {failure}")


def _errno(failure: Exception) -> int | None:
    """What the kernel said, to us or to the fork server, which mounts for us."""
    if isinstance(failure, LaunchFailed):
        number: int | None = failure.facts.get("errno")
        return number
    return failure.errno if isinstance(failure, OSError) else None
