"""The routes of commands: attached, in the background, and with a terminal; a part of the table in routes.py."""

from sandboxd.http.kit.routes import Route
from sandboxd.http.native.commands import attached, background, terminal_websocket, terminals
from sandboxd.http.native.commands.attached import Shell, ShellResult, SignalCommand, TerminalModel
from sandboxd.http.native.commands.background import (
    CommandList,
    CommandView,
    LogsBody,
    LogsView,
    LogsWish,
    StartCommand,
    StdinBody,
    StdinView,
    WaitBody,
)
from sandboxd.http.native.commands.terminals import (
    PtyInput,
    PtyList,
    PtyOutput,
    PtyOutputView,
    PtyView,
    StartPty,
)
from sandboxd.model import Scope

READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"
COMMAND = f"{SANDBOX}/commands/<command>"
PTY = f"{SANDBOX}/pty/<pty>"

# fmt: off
COMMAND_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/shell", handler=attached.shell, scope=WRITE,
          body=Shell, response=ShellResult, summary="Run a command to its end"),
    Route(method="POST", path=f"{SANDBOX}/shell/stream", handler=attached.shell_stream, scope=WRITE,
          body=Shell, streams="sse", summary="Run a command and stream its output"),
    Route(method="GET", path=f"{SANDBOX}/exec", handler=attached.exec_websocket, scope=WRITE,
          streams="websocket", summary="Run a command interactively: stdin, output, terminal, signals"),

    Route(method="POST", path=f"{SANDBOX}/commands", handler=background.start, scope=WRITE,
          body=StartCommand, response=CommandView, status=201, summary="Start a command in the background"),
    Route(method="GET", path=f"{SANDBOX}/commands", handler=background.list_all, scope=READ,
          response=CommandList, summary="List background commands and terminals, oldest first"),
    Route(method="GET", path=COMMAND, handler=background.get, scope=READ,
          response=CommandView, summary="One background command or terminal"),
    Route(method="POST", path=f"{COMMAND}/wait", handler=background.wait, scope=READ, optional_body=True,
          body=WaitBody, response=CommandView, summary="Wait until it has ended"),
    Route(method="GET", path=f"{COMMAND}/logs", handler=background.logs, scope=READ,
          query=LogsBody, response=LogsView, summary="Its output, whole or in part"),
    Route(method="POST", path=f"{COMMAND}/logs", handler=background.logs, scope=READ, optional_body=True,
          body=LogsBody, response=LogsView, summary="Its output, whole or in part"),
    Route(method="GET", path=f"{COMMAND}/logs/stream", handler=background.follow_logs, scope=READ,
          query=LogsWish, streams="sse", summary="Its output as it comes, until it has ended"),
    Route(method="POST", path=f"{COMMAND}/stdin", handler=background.write_stdin, scope=WRITE,
          body=StdinBody, response=StdinView, summary="Write to its stdin"),
    Route(method="POST", path=f"{COMMAND}/stdin/close", handler=background.close_stdin, scope=WRITE,
          response=CommandView, summary="Close its stdin"),
    Route(method="POST", path=f"{COMMAND}/signal", handler=background.signal, scope=WRITE,
          body=SignalCommand, response=CommandView, summary="Send it a signal"),
    Route(method="POST", path=f"{COMMAND}/kill", handler=background.kill, scope=WRITE,
          response=CommandView, summary="Kill it and everything it started"),

    Route(method="POST", path=f"{SANDBOX}/pty", handler=terminals.start, scope=WRITE, optional_body=True,
          body=StartPty, response=PtyView, status=201, summary="Start a terminal; by default with a login shell"),
    Route(method="GET", path=f"{SANDBOX}/pty", handler=terminals.list_all, scope=READ,
          response=PtyList, summary="List terminals, oldest first"),
    Route(method="GET", path=PTY, handler=terminals.get, scope=READ,
          response=PtyView, summary="One terminal"),
    Route(method="POST", path=f"{PTY}/input", handler=terminals.write, scope=WRITE,
          body=PtyInput, response=StdinView, summary="Type into it"),
    Route(method="POST", path=f"{PTY}/output", handler=terminals.output, scope=WRITE, optional_body=True,
          body=PtyOutput, response=PtyOutputView, summary="What it has shown since the last time; drains"),
    Route(method="POST", path=f"{PTY}/resize", handler=terminals.resize, scope=WRITE,
          body=TerminalModel, response=PtyView, summary="Give it another size"),
    Route(method="POST", path=f"{PTY}/kill", handler=terminals.kill, scope=WRITE,
          response=PtyView, summary="Kill its command and everything that started"),
    Route(method="GET", path=f"{PTY}/ws", handler=terminal_websocket.attach, scope=WRITE,
          streams="websocket", summary="Share it: replay, output, input from one writer at a time"),
)
# fmt: on
