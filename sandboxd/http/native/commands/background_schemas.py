"""Background commands on the wire: what starts them, what they are, and their output."""

import base64
import re
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from sandboxd.errors import InvalidRequest
from sandboxd.http.native.commands.attached_schemas import (
    MAX_STDIN_IN_JSON,
    CommandBody,
    Encoding,
    TerminalModel,
    exit_facts,
)
from sandboxd.http.native.fields import Request, Response, rfc3339_time
from sandboxd.model import CommandRecord, CommandStatus, StdinAccepted, StreamName

MIB = 1024 * 1024
MOST_LOG_BYTES = 64 * MIB
MOST_WAIT_MS = 600_000

Size = Annotated[int, Field(ge=0, le=2**63)]
# Where to go on in a log: a position or an offset, and for each stream the bytes of a character that is not complete.
_CURSOR = r"^[0-9]{1,19}(\.([0-9a-f]{2}){0,3}\.([0-9a-f]{2}){0,3})?$"
Cursor = Annotated[str, StringConstraints(pattern=_CURSOR)]


class StartCommand(CommandBody):
    stdin: bool = False
    """give it a stdin that …/stdin feeds; otherwise it reads /dev/null"""


class CommandView(Response):
    command_id: str
    pid: int
    """of its first process, as the sandbox sees it"""
    status: CommandStatus
    """lost: its machine ended under it, so that nobody saw how it ended"""
    cmd: str
    user: str
    cwd: str
    stdin: bool
    terminal: TerminalModel | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    """as a shell has it: 128 + n when signal n ended the command"""
    signal: str | None
    duration_ms: int | None
    timed_out: bool
    oom_killed: bool
    output_incomplete: bool
    """something the command started lives on and held its output open: what it writes later is not kept"""
    cpu_time_ms: int | None
    max_rss_bytes: int | None
    unlogged_bytes: int
    """output that never reached the log: more than 1 MiB while no daemon ran, or the disk was full"""

    @classmethod
    def of(cls, record: CommandRecord) -> Self:
        return cls.model_construct(
            command_id=record.id,
            pid=record.pid,
            status=record.status,
            cmd=record.command,
            user=record.user,
            cwd=record.cwd,
            stdin=record.stdin,
            terminal=None
            if record.terminal is None
            else TerminalModel(cols=record.terminal.cols, rows=record.terminal.rows),
            created_at=rfc3339_time(record.created_at),
            started_at=rfc3339_time(record.started_at),
            ended_at=rfc3339_time(record.ended_at),
            unlogged_bytes=record.unlogged,
            **end_facts(record),
        )


_NO_END = {
    "exit_code": None,
    "signal": None,
    "duration_ms": None,
    "timed_out": False,
    "oom_killed": False,
    "output_incomplete": False,
    "cpu_time_ms": None,
    "max_rss_bytes": None,
}


def end_facts(record: CommandRecord) -> dict[str, Any]:
    """How it ended, or that nobody knows (yet)."""
    return exit_facts(record.exited) if record.exited is not None else dict(_NO_END)


class CommandList(Response):
    commands: list[CommandView]


class WaitBody(Request):
    timeout_ms: Annotated[int, Field(ge=0, le=MOST_WAIT_MS)] = 60_000
    """how long to wait; a command that still runs then is answered as running"""


class StdinBody(Request):
    data: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    data_b64: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    close: bool = False
    """and then close it"""

    def to_bytes(self) -> bytes:
        """Raises: InvalidRequest."""
        if self.data_b64 is None:
            return (self.data or "").encode()
        if self.data is not None:
            raise InvalidRequest("cannot use both data and data_b64: give one")
        return decode_base64(self.data_b64, "data_b64")


def decode_base64(text: str, name: str) -> bytes:
    """Raises: InvalidRequest."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise InvalidRequest(f"cannot decode {name}: {error}") from error


class StdinView(Response):
    taken_bytes: int
    """how much of it the command's stdin took; less than was sent if the command does not read on"""
    closed: bool
    """the command has closed its stdin"""

    @classmethod
    def of(cls, accepted: StdinAccepted) -> Self:
        return cls(taken_bytes=accepted.total, closed=accepted.closed)


class LogsWish(Request):
    """Which part of a log. Without any of offset, cursor and tail: from the oldest byte that is kept."""

    stream: StreamName | None = None
    """only this one; offsets are then those of the stream, otherwise positions in the log, which holds both"""
    offset: Size | None = None
    cursor: Cursor | None = None
    """from an earlier answer: go on where it ended"""
    tail: Size | None = None
    """the last so many bytes"""
    encoding: Encoding = "utf-8"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.offset, self.cursor, self.tail)) > 1:
            raise ValueError("give one of offset, cursor and tail")
        return self


class LogsBody(LogsWish):
    limit_bytes: Annotated[int, Field(ge=1, le=MOST_LOG_BYTES)] = 16 * MIB
    interleaved: bool = False
    """give the output in the order in which it came, as `output`, in place of stdout and stderr"""


class OutputView(Response):
    stream: StreamName | None
    """null for a gap in either"""
    offset: int | None
    """of its first byte in its stream"""
    text: str | None
    data_b64: str | None
    lost_bytes: int
    """this is a gap: so many bytes are not kept (any more)"""


class LogsView(Response):
    command_id: str
    status: CommandStatus
    exit_code: int | None
    signal: str | None
    started_at: datetime | None
    ended_at: datetime | None
    stdout: str
    stderr: str
    output: list[OutputView]
    encoding: Encoding
    cursor: str
    """where this answer ends: ask with it for what follows"""
    lost_bytes: int
    """gaps in this answer, all told"""
    more: bool
    """the answer was cut at limit_bytes: there is more already"""


def is_cursor(text: str) -> bool:
    return re.fullmatch(_CURSOR, text) is not None


def parse_cursor(cursor: str) -> tuple[int, dict[StreamName, bytes]]:
    """A checked cursor's place, and the incomplete characters before it."""
    place, *carried = re.split(r"\.", cursor)
    halves = [bytes.fromhex(part) for part in carried] or [b"", b""]
    return int(place), dict(zip(StreamName, halves, strict=True))
