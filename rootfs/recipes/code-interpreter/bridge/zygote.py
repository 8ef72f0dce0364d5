"""The process that kernels are forked from: it has a kernel's modules loaded, and nothing going on.

    python3 -I zygote.py ACCOUNT          with a Unix socket (SOCK_SEQPACKET) as descriptor 0

A kernel started from nothing takes half a second of processor and 45 MB of its own; one that is forked from here
takes a tenth of the time, and shares what it has in common with the others.

A request is the path of a connection file, with two descriptors for stdout and stderr. What is said back: a JSON
object {"started": PID}, and for each kernel that ends {"ended": PID, "status": as subprocess has it}.

This process is root, so it reads nothing that the sandbox's user can write: what that user may add to a kernel, the
kernel adds itself, once it is the user.
"""

import ctypes
import gc
import json
import os
import select
import signal
import site
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any

REQUEST_SIZE = 4096
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
# When memory runs out a kernel goes, not the bridge that can start another.
_OOM_SCORE = "500"
# The socket, the descriptors of the request, and one for each kernel.
_HIGHEST_DESCRIPTOR = 1024


def become(account: Mapping[str, Any], stdout: int, stderr: int) -> None:
    """In the forked process: somebody else, in a session of its own, at the other end of the two descriptors."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor, number in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(descriptor, number)
    os.closerange(3, _HIGHEST_DESCRIPTOR)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    os.setgroups(account["groups"])
    os.setresgid(account["gid"], account["gid"], account["gid"])
    os.setresuid(account["uid"], account["uid"], account["uid"])
    # A change of user forbids both: to look at oneself in /proc, and to die with one's parent.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 1)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    own = os.environ.get("PYTHONPATH", "").split(":")
    sys.path[:0] = [path for path in own if path]
    site.addsitedir(site.getusersitepackages())


def run_kernel(account: Mapping[str, Any], connection_file: str, descriptors: list[int]) -> None:
    """In the forked process. Never returns."""
    status = 1
    try:
        become(account, *descriptors)
        import sandboxd_kernel

        sandboxd_kernel.main(connection_file)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Zygote:
    def __init__(self, peer: socket.socket, account: Mapping[str, Any]) -> None:
        self._peer = peer
        self._account = account
        self._children: dict[int, int] = {}
        """pidfd -> pid"""
        self._poll = select.poll()
        self._poll.register(peer, select.POLLIN)

    def serve(self) -> None:
        """Until the bridge is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._fork():
                    return

    def _fork(self) -> bool:
        request, descriptors, _, _ = socket.recv_fds(self._peer, REQUEST_SIZE, 2)
        if not request:
            return False
        pid = os.fork()
        if pid == 0:
            run_kernel(self._account, request.decode(), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._say({"started": pid})
        return True

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: Mapping[str, int]) -> None:
        self._peer.send(json.dumps(message).encode())


def main() -> None:
    peer = socket.socket(fileno=os.dup(0))
    account = json.loads(sys.argv[1])
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    import sandboxd_kernel  # noqa: F401 - for the kernels

    sys.path.remove(here)
    sys.argv = [""]
    gc.collect()
    gc.freeze()  # or the first collection in each kernel would copy every page it looks at
    Zygote(peer, account).serve()


if __name__ == "__main__":
    main()
