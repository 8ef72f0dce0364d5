"""Blocking work in threads, and what to say when the host has no thread or process left to give."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, TypeVarTuple, Unpack

import trio

from sandboxd.errors import Unavailable

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

# What Python says of any failed clone(2) of a thread; it keeps no errno.
_NO_THREAD = "can't start new thread"
# None of them writes to a disk. open_tree(2) puts a copy of a mount into a namespace of its own.
_NAMESPACE_MAKERS = ("clone3", "unshare", "open_tree", "namespace")


async def run_in_thread(
    work: Callable[[Unpack[Arguments]], T],
    *arguments: *Arguments,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """As trio.to_thread.run_sync. Raises also: Unavailable when the process table is full."""
    with _as_unavailable("do this"):
        return await trio.to_thread.run_sync(work, *arguments, limiter=limiter, abandon_on_cancel=abandon_on_cancel)


async def run_in_thread_or_here(
    work: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None, abandon_on_cancel: bool = False
) -> T:
    """For what is short and has to be done: if there is no thread to be had, everything waits for it."""
    try:
        return await trio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
    async with limiter or contextlib.nullcontext():
        return work()


async def open_process(command: Sequence[str], *, verb: str, **options: Any) -> trio.Process:
    """As trio.lowlevel.open_process. `verb`: what cannot be done without. Raises also: Unavailable."""
    try:
        with _as_unavailable(verb):  # trio forks in a thread
            return await trio.lowlevel.open_process(command, **options)
    except BlockingIOError as error:
        raise no_processes(verb) from error


@contextlib.contextmanager
def _as_unavailable(verb: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        raise no_processes(verb) from error


def no_processes(verb: str) -> Unavailable:
    """`verb`: what cannot be done."""
    return Unavailable(
        f"cannot {verb}: no more processes can be made; end some, or raise the limit that is reached: of this user "
        "(ulimit -u), of the service (TasksMax), or of the host (kernel.pid_max, kernel.threads-max)",
        kind="no_processes",
    )


def shortage(said: str, number: int | None = None) -> Unavailable | None:
    """What a launch has found too little of: by the errno, or by what bwrap says, since it tells in no other way.

    None if nothing, or if it is disk space. ENOSPC is what the kernel says of a limit on namespaces too.
    """
    if number == errno.EAGAIN or _says(said, errno.EAGAIN):
        return no_processes("start the sandbox")
    if any(maker in said for maker in _NAMESPACE_MAKERS) and (number == errno.ENOSPC or _says(said, errno.ENOSPC)):
        return Unavailable(
            "cannot start the sandbox: no more namespaces can be made; delete sandboxes, or raise the limit that is "
            "reached: sysctl user.max_user_namespaces, user.max_mnt_namespaces, user.max_pid_namespaces, …",
            kind="no_namespaces",
        )
    return None


def told_errno(said: str) -> int | None:
    """Of a program that said that the disk is full."""
    return next((number for number in (errno.ENOSPC, errno.EDQUOT) if _says(said, number)), None)


def _says(said: str, number: int) -> bool:
    return os.strerror(number) in said or errno.errorcode[number] in said
