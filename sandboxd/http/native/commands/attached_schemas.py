"""Commands on the wire: run to the end, streamed, and interactive."""

import base64
import signal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sandboxd.errors import InvalidRequest
from sandboxd.http.native.fields import DAY_MS, Argument, Env, OptionalPath, Request, Response, UserName
from sandboxd.model import CommandExited, CommandSpec, TerminalSize
from sandboxd.service.commands.attached import CommandResult
from sandboxd.service.output_memory import KeptOutput

MAX_STDIN_IN_JSON = 32 * 1024 * 1024


class TerminalModel(Request):
    cols: Annotated[int, Field(ge=1, le=65535)] = 80
    rows: Annotated[int, Field(ge=1, le=65535)] = 24

    def to_domain(self) -> TerminalSize:
        return TerminalSize(cols=self.cols, rows=self.rows)


class CommandBody(Request):
    cmd: Argument | None = None
    """a line for the sandbox's shell (bash, or sh where there is none)"""
    argv: Annotated[list[Argument], Field(min_length=1, max_length=10_000)] | None = None
    """a program and its arguments, without a shell"""
    cwd: OptionalPath | None = None
    env: Env | None = None
    user: UserName | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """then the command and everything it started is killed"""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.cmd is None) == (self.argv is None):
            raise ValueError("give either cmd or argv")
        return self

    def to_domain(self, *, stdin: bool, terminal: TerminalSize | None = None) -> CommandSpec:
        return CommandSpec(
            argv=tuple(self.argv) if self.argv is not None else (self.cmd or "",),
            shell=self.argv is None,
            cwd=self.cwd or "",
            env=self.env or {},
            user=self.user or "",
            stdin=stdin,
            terminal=terminal,
            timeout=None if self.timeout_ms is None else self.timeout_ms / 1000,
        )


Encoding = Literal["utf-8", "base64"]


class Shell(CommandBody):
    stdin: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    stdin_b64: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    max_output_bytes: Annotated[int, Field(ge=0, le=2**40)] | None = None
    """of each stream, 1 MiB by default; of more the beginning and the end are kept, and `omitted` says so"""
    encoding: Encoding = "utf-8"
    """how output is given: as text (what is not UTF-8 becomes U+FFFD), or as base64, byte for byte"""

    def stdin_bytes(self) -> bytes | None:
        """Raises: InvalidRequest."""
        if self.stdin_b64 is None:
            return None if self.stdin is None else self.stdin.encode()
        if self.stdin is not None:
            raise InvalidRequest("cannot use both stdin and stdin_b64: give one")
        try:
            return base64.b64decode(self.stdin_b64, validate=True)
        except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
            raise InvalidRequest(f"cannot decode stdin_b64: {error}") from error


class ExecStart(CommandBody):
    type: Literal["start"]
    stdin: bool = False
    terminal: TerminalModel | None = None


class ExecResize(TerminalModel):
    type: Literal["resize"]


class SignalCommand(Request):
    signal: str | int
    scope: Literal["leader", "group", "tree"] = "group"

    def number(self) -> int:
        """Raises: InvalidRequest for a signal that Linux does not have."""
        try:
            return int(signal.Signals(self.signal) if isinstance(self.signal, int) else signal.Signals[self.signal])
        except (KeyError, ValueError):
            raise InvalidRequest(f"cannot send signal {self.signal!r}: use a name like SIGTERM") from None


class ExecSignal(SignalCommand):
    type: Literal["signal"]


class ExecPlain(Request):
    type: Literal["stdin_close", "kill"]


class ExitView(Response):
    exit_code: int
    """as a shell has it: 128 + n when signal n ended the command"""
    signal: str | None
    duration_ms: int
    timed_out: bool
    oom_killed: bool
    output_incomplete: bool
    """something the command started lives on and holds its output open: more may have come later"""
    cpu_time_ms: int
    max_rss_bytes: int

    @classmethod
    def of(cls, exited: CommandExited) -> Self:
        return cls.model_construct(**exit_facts(exited))


def exit_facts(exited: CommandExited) -> dict[str, Any]:
    return {
        "exit_code": exited.exit_code if exited.signal is None else 128 + exited.signal,
        "signal": None if exited.signal is None else _signal_name(exited.signal),
        "duration_ms": round(exited.duration * 1000),
        "timed_out": exited.timed_out,
        "oom_killed": exited.oom_killed,
        "output_incomplete": exited.output_incomplete,
        "cpu_time_ms": round(exited.cpu_time * 1000),
        "max_rss_bytes": exited.max_rss,
    }


class Omitted(Response):
    """What was left out of the middle of a stream; as text a line of its own stands there."""

    stream: Literal["stdout", "stderr"]
    offset: int
    """bytes of the stream before it"""
    bytes: int
    reason: Literal["limit", "daemon_memory"]
    """more was written than is kept, or the daemon had no more memory for output"""


class ShellResult(ExitView):
    stdout: str
    stderr: str
    encoding: Encoding
    truncated: bool
    """less was kept than was written: `omitted` says how much, and where"""
    stdout_bytes: int
    """that were written"""
    stderr_bytes: int
    omitted: list[Omitted]


def shell_facts(result: CommandResult, encoding: Encoding) -> dict[str, Any]:
    """A ShellResult, in which the texts are still to be made, piece by piece."""
    streams = {"stdout": result.stdout, "stderr": result.stderr}
    return {
        **exit_facts(result.exited),
        **{name: kept.base64() if encoding == "base64" else kept.text() for name, kept in streams.items()},
        "encoding": encoding,
        "truncated": result.truncated,
        **{f"{name}_bytes": kept.total for name, kept in streams.items()},
        "omitted": [_omitted(name, kept) for name, kept in streams.items() if kept.omitted],
    }


def _omitted(name: str, kept: KeptOutput) -> dict[str, Any]:
    reason = "daemon_memory" if kept.starved else "limit"
    return {"stream": name, "offset": kept.head, "bytes": kept.omitted, "reason": reason}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"
