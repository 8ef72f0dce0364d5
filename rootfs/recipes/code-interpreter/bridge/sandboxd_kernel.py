"""The kernel: IPython's, as the bridge wants it.

What differs from a notebook's: a request may bring environment and directory with it, for itself alone or from
then on (`settle`); nothing is kept in the user's home; and stdout and stderr are descriptors 1 and 2, with the bridge
at their other end. So what is printed keeps its order with what subprocesses write, arrives at once, and when there
is too much of it waits instead of piling up.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

# A debugger and a completer that nobody here talks to, 150 ms and 10 MB; code can import them all the same.
_UNWANTED = ("debugpy", "jedi")
sys.modules.update(dict.fromkeys(_UNWANTED))  # type: ignore[arg-type]

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets.config import Config

for name in _UNWANTED:
    del sys.modules[name]

# A line that is not finished yet is shown after this many seconds.
_PARTIAL_LINE = 0.1


def apply(env: Mapping[str, str], cwd: str | None) -> Callable[[], None]:
    """Change environment and directory; returns what changes them back. Raises: OSError for a directory."""
    came_from = _current_directory()
    if cwd:
        os.chdir(cwd)
    went_to = _current_directory()
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)

    def undo() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if cwd and came_from and _current_directory() == went_to:  # unless the code itself went elsewhere
            with contextlib.suppress(OSError):  # it was removed meanwhile
                os.chdir(came_from)

    return undo


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


class SandboxShell(ZMQInteractiveShell):  # type: ignore[misc]
    def system(self, cmd: str) -> None:
        """For !commands: a plain subprocess, not one on a terminal whose lines end in CR LF."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.system_raw(cmd)

    def ask_exit(self) -> None:
        """exit() is for people at a terminal. Here it would end the kernel under whoever runs something next."""


class SandboxKernel(IPythonKernel):  # type: ignore[misc]
    shell_class = SandboxShell

    async def do_execute(self, code: str, *arguments: Any, **options: Any) -> Any:
        wish = (self.get_parent("shell").get("metadata") or {}).get("sandboxd") or {}
        try:
            undo = apply(wish.get("env") or {}, wish.get("cwd"))
        except OSError as error:
            return self._refuse(error)
        try:
            return await super().do_execute(code, *arguments, **options)
        finally:
            if not wish.get("settle"):
                undo()

    def _refuse(self, error: OSError) -> dict[str, Any]:
        content = {"ename": type(error).__name__, "evalue": str(error), "traceback": [str(error)]}
        self.send_response(self.iopub_socket, "error", content)
        return {"status": "error", "execution_count": self.execution_count, **content}


class Output(io.TextIOWrapper):
    """stdout or stderr; made by IPKernelApp in the place of its own."""

    def __init__(self, session: Any, pub_thread: Any, name: str, **options: Any) -> None:
        descriptor = {"stdout": 1, "stderr": 2}[name]
        binary = open(descriptor, "wb", closefd=False)  # noqa: SIM115 - open as long as the process lives
        super().__init__(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._thread = pub_thread
        self._flush_is_due = False

    def write(self, text: str) -> int:
        count = super().write(text)
        if not self._flush_is_due and not text.endswith("\n"):
            self._flush_is_due = True
            self._thread.schedule(lambda: self._thread.io_loop.call_later(_PARTIAL_LINE, self._flush_now))
        return count

    def _flush_now(self) -> None:
        self._flush_is_due = False
        self.flush()


class SandboxKernelApp(IPKernelApp):  # type: ignore[misc]
    def init_iopub(self, context: Any) -> None:
        # By default what is printed faster than the bridge reads would be lost, and with it that the run has ended.
        context.sndhwm = 0
        super().init_iopub(context)

    def init_heartbeat(self) -> None:
        """None: the bridge sees the process end."""


def main(connection_file: str) -> None:
    """Be a kernel until it is asked to end. In a process of its own, as the user it runs code for."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "NoColor"
    config.IPKernelApp.connection_file = connection_file
    config.IPKernelApp.kernel_class = SandboxKernel
    config.IPKernelApp.outstream_class = f"{__name__}.Output"
    with tempfile.TemporaryDirectory(prefix="ipython-", dir=os.path.dirname(connection_file)) as directory:
        app = SandboxKernelApp.instance(config=config, ipython_dir=directory)
        app.initialize([])
        app.start()
