"""A machine's processes held still, all at once, and let go: by its cgroup, or by signals where it has none."""

import trio

from sandboxd.errors import Unavailable
from sandboxd.isolation.backend import RunningMachine
from sandboxd.kernel import halting
from sandboxd.threads import run_in_thread_or_here

# Freezing is mostly over at once. A process in an uninterruptible system call (a dead network mount) holds it up.
FREEZE_LIMIT = 10.0
FIRST_LOOK = 0.0005
LONGEST_LOOK = 0.02


def stopped_jobs(running: RunningMachine) -> frozenset[int]:
    """Host pids that its own shells had stopped; only signals would forget that, so empty for a cgroup."""
    return frozenset() if running.cgroup else halting.stopped_jobs(running.machine.pid)


async def freeze(running: RunningMachine) -> None:
    """Returns when no process of it runs any more. Raises: Unavailable, and then it runs on.

    Cancelled: some or all of it may be frozen.
    """
    with trio.move_on_after(FREEZE_LIMIT):
        pause = FIRST_LOOK
        while not await _frozen_now(running):
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK)
        return
    await thaw(running)
    raise Unavailable(
        f"cannot freeze the processes: one of them does not stop within {FREEZE_LIMIT:g} s, it waits in the kernel"
    )


async def thaw(running: RunningMachine, *, but: frozenset[int] = frozenset()) -> None:
    """Let everything go on; `but`: what stopped_jobs() told before the freeze."""
    if running.cgroup is not None:
        running.cgroup.thaw()
    else:
        await run_in_thread_or_here(lambda: halting.continue_tree(running.machine.pid, but=but))


def is_frozen(running: RunningMachine) -> bool:
    """Whether somebody froze it, or began to."""
    if running.cgroup is not None:
        return running.cgroup.freezing
    return halting.halted(running.machine.pid)


async def _frozen_now(running: RunningMachine) -> bool:
    if running.cgroup is None:
        return await run_in_thread_or_here(lambda: halting.halt_tree(running.machine.pid))
    if not running.cgroup.freezing:
        running.cgroup.freeze()
    return running.cgroup.frozen
