"""What a host without room for one more thread, process or namespace is answered with."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.threads import shortage, told_errno

PACKAGE = Path(__file__).resolve().parents[1] / "sandboxd"
# In a program of its own, where no thread is idle yet: none can have a stack of that size.
WITHOUT_THREADS = """
import threading, trio
from sandboxd.errors import Unavailable
from sandboxd.threads import run_in_thread, run_in_thread_or_here
threading.stack_size(1 << 46)
try:
    trio.run(run_in_thread, print, "never")
except Unavailable as error:
    print(error.kind)
trio.run(run_in_thread_or_here, lambda: print("here"))
"""


# Root may always make one more.
WITHOUT_PROCESSES = """
import os, resource, trio
from sandboxd.errors import Unavailable
from sandboxd.threads import open_process
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
async def main():
    await open_process(["true"], verb="build it")
try:
    trio.run(main)
except Unavailable as error:
    print(error.status, error.kind, error.message.partition(":")[0])
"""


def test_a_program_for_which_there_is_no_process_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PROCESSES], capture_output=True, text=True, check=True)
    assert done.stdout == "503 no_processes cannot build it\n"


def test_work_for_which_there_is_no_thread_is_refused_unless_it_has_to_be_done() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout == "no_processes\nhere\n"


@pytest.mark.parametrize(
    ("said", "number", "kind"),
    [
        ("clone3", errno.EAGAIN, "no_processes"),
        ("bwrap: Creating new namespace failed: Resource temporarily unavailable", None, "no_processes"),
        ("[Errno 28] clone3: No space left on device", errno.ENOSPC, "no_namespaces"),
        ("[Errno 28] open_tree: No space left on device: '/layer'", errno.ENOSPC, "no_namespaces"),
        ("cannot make a user namespace for ids from 7: No space left on device", None, "no_namespaces"),
        ("bwrap: Creating new namespace failed: … max_*_namespaces exceeded (ENOSPC)", None, "no_namespaces"),
        ("[Errno 28] mount overlay: No space left on device", errno.ENOSPC, None),
        ("bwrap: Can't create file: No space left on device", None, None),
        ("clone3", errno.ENOENT, None),
    ],
)
def test_what_was_lacking_is_said(said: str, number: int | None, kind: str | None) -> None:
    found = shortage(said, number)
    assert (found and found.kind) == kind


def test_a_program_that_says_that_the_disk_is_full_is_understood() -> None:
    assert told_errno(f"bwrap: Can't create file: {os.strerror(errno.ENOSPC)}") == errno.ENOSPC
    assert told_errno("bwrap: No such file or directory") is None


def test_the_daemon_asks_for_threads_here_only() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if not {"cli", "client"} & set(path.relative_to(PACKAGE).parts)]
    asking = [path.name for path in modules if "to_thread.run_sync(" in path.read_text()]
    assert asking == ["threads.py"]
