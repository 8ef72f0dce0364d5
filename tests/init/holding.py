"""Hold forks of a sandbox-init where they are, by ptrace(2), so that a test decides which of them goes on first.

    python holding.py PID

From when it has said "ready", the first keeper of a new command is held as soon as the command runs, before it can
tell so ("keeper"), and then the next fork of init's before it does anything ("worker"). A line with one of these
words lets that one go on. The end of this process lets everything go.
"""

import ctypes
import os
import select
import sys
import time

_CONT, _SEIZE = 7, 0x4206
_TRACE_FORK, _TRACE_VFORK_DONE = 1 << 1, 1 << 5
_EVENT_VFORK_DONE, _EVENT_STOP = 5, 128
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def main(init: int) -> None:
    ptrace(_SEIZE, init, _TRACE_FORK | _TRACE_VFORK_DONE)
    print("ready", flush=True)
    held: dict[str, int] = {}
    known = {init}
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            ptrace(_CONT, held[sys.stdin.readline().strip()], 0)
        pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
        if pid == 0:
            time.sleep(0.001)
        elif os.WIFSTOPPED(status):
            event = status >> 16
            if event == _EVENT_VFORK_DONE and "keeper" not in held:
                hold("keeper", pid, held)
            elif event == _EVENT_STOP and pid not in known and "keeper" in held and "worker" not in held:
                hold("worker", pid, held)
            else:
                ptrace(_CONT, pid, 0 if event else os.WSTOPSIG(status))
            known.add(pid)


def hold(what: str, pid: int, held: dict[str, int]) -> None:
    held[what] = pid
    print(what, flush=True)


def ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(request, pid, None, data) < 0 and ctypes.get_errno() != 3:  # ESRCH: it has been killed
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
