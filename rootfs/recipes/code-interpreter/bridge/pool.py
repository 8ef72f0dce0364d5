"""Kernels on their way: started ahead of need, so that whoever needs one finds it ready."""

import asyncio
import itertools
from pathlib import Path

import zmq.asyncio
from forking import Account, Forker, KernelFailed
from kernels import Kernel


class KernelPool:
    """Owns the kernels that nobody has taken yet."""

    def __init__(self, directory: Path, account: Account, ready: int) -> None:
        self._directory = directory
        self._account = account
        self._forker = Forker(account)
        self._ready = ready
        self._numbers = itertools.count(1)
        self._context = zmq.asyncio.Context()
        self._started: list[asyncio.Task[Kernel]] = []

    def refill(self) -> None:
        """Have as many on the way as are to be ready."""
        while len(self._started) < self._ready:
            self._started.append(self._start())

    async def take(self) -> Kernel:
        """A kernel of the caller's own. Raises: KernelFailed. Cancelled: it stays for the next."""
        while True:
            ahead = bool(self._started)
            task = self._started.pop(0) if ahead else self._start()
            try:
                kernel = await asyncio.shield(task)
            except asyncio.CancelledError:
                self._started.insert(0, task)
                raise
            except KernelFailed:
                if not ahead:  # what went wrong earlier may not go wrong again
                    raise
                continue
            if kernel.alive:
                return kernel

    def _start(self) -> asyncio.Task[Kernel]:
        directory = self._directory / f"k{next(self._numbers)}"
        return asyncio.create_task(Kernel.start(directory, self._account, self._forker, self._context))
