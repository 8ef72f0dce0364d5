"""Terminals: started, listed, polled, typed into, resized, ended. Their websocket is in terminal_websocket.py."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, TypeAdapter, model_validator

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.encoding import base64_field, to_base64
from sandboxd.http.native.commands.attached import MAX_STDIN_IN_JSON, SignalCommand, TerminalModel
from sandboxd.http.native.commands.background import CommandView, Size, StdinView
from sandboxd.http.native.fields import DAY_MS, Argument, Env, OptionalPath, Request, Response, UserName, seconds
from sandboxd.model import CommandRecord, CommandSpec, TerminalSize
from sandboxd.service.commands.follower import Command
from sandboxd.service.commands.terminals import LOGIN_SHELL, Drained
from sandboxd.service.sandboxes.entry import Entry

MIB = 1024 * 1024
# A screen or two of history for those who come (back) to a terminal.
DEFAULT_TAIL = 64 * 1024

Side = Annotated[int, Field(ge=1, le=65535)]


class StartPty(Request):
    cmd: Argument | None = None
    """a line for the sandbox's shell; without cmd and argv, a login shell"""
    argv: Annotated[list[Argument], Field(min_length=1, max_length=10_000)] | None = None
    cols: Side | None = None
    rows: Side | None = None
    cwd: OptionalPath | None = None
    env: Env | None = None
    user: UserName | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.cmd is not None and self.argv is not None:
            raise ValueError("give cmd or argv, or neither")
        return self

    def to_domain(self) -> CommandSpec:
        default = TerminalSize()
        return CommandSpec(
            argv=tuple(self.argv) if self.argv is not None else (self.cmd or LOGIN_SHELL,),
            shell=self.argv is None,
            cwd=self.cwd or "",
            env=self.env or {},
            user=self.user or "",
            terminal=TerminalSize(cols=self.cols or default.cols, rows=self.rows or default.rows),
            timeout=seconds(self.timeout_ms),
        )


class PtyView(CommandView):
    pty_id: str
    """also a command_id: what …/commands/{command_id} offers, it offers for terminals too"""

    @classmethod
    def of(cls, record: CommandRecord) -> Self:
        view = super().of(record)
        return view.model_copy(update={"pty_id": record.id})


class PtyList(Response):
    ptys: list[PtyView]


class PtyInput(Request):
    data_b64: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)]


class PtyOutput(Request):
    wait_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """when there is nothing new, wait for it so long"""
    limit_bytes: Annotated[int, Field(ge=1, le=16 * MIB)] = MIB


class PtyOutputView(Response):
    data_b64: str
    """what it has shown since the last time anybody asked"""
    alive: bool
    """there may be more"""
    exit_code: int | None
    lost_bytes: int
    """were not kept, and are missing before data_b64"""

    @classmethod
    def of(cls, drained: Drained) -> Self:
        exit_code = None if drained.more else CommandView.of(drained.record).exit_code
        return cls(
            data_b64=to_base64(drained.data),
            alive=drained.more,
            exit_code=exit_code,
            lost_bytes=drained.lost,
        )


# -- the websocket ------------------------------------------------------------------------------------------------


class AttachPty(Request):
    type: Literal["attach"]
    write: Literal["if_free", "take", "never"] = "if_free"
    """whether to become the writer: if there is none, whoever there is, or not"""
    on_take_over: Literal["observe", "close"] = "observe"
    """what to become when another client takes over"""
    offset: Size | None = None
    """replay from there"""
    tail: Size | None = None
    """replay the last so many bytes"""
    size: TerminalModel | None = None
    """as the writer, give the terminal this size"""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.offset is not None and self.tail is not None:
            raise ValueError("give offset or tail")
        return self


class PtyResize(TerminalModel):
    type: Literal["resize"]


class PtySignal(SignalCommand):
    type: Literal["signal"]


class PtyPlain(Request):
    type: Literal["take_over", "release", "kill"]


PTY_MESSAGES: TypeAdapter[PtyResize | PtySignal | PtyPlain] = TypeAdapter(
    Annotated[PtyResize | PtySignal | PtyPlain, Field(discriminator="type")]
)
"""what a client may say once it is attached"""


async def start(call: Call) -> PtyView:
    entry = call.entry
    return PtyView.of(await call.service.terminals.start(entry, call.body.to_domain()))


async def list_all(call: Call) -> PtyList:
    records = call.service.terminals.list(call.entry)
    return PtyList(ptys=[PtyView.of(record) for record in records])


async def get(call: Call, pty: str) -> PtyView:
    return PtyView.of(call.service.background.record(*find(call, pty)))


async def write(call: Call, pty: str) -> StdinView:
    entry, command = find(call, pty)
    data = base64_field(call.body.data_b64, "data_b64")
    return StdinView.of(await call.service.background.write_stdin(entry, command, data))


async def output(call: Call, pty: str) -> PtyOutputView:
    entry, command = find(call, pty)
    body = call.body
    drained = await call.service.terminals.drain(entry, command, limit=body.limit_bytes, patience=body.wait_ms / 1000)
    return PtyOutputView.of(drained)


async def resize(call: Call, pty: str) -> PtyView:
    entry, command = find(call, pty)
    await call.service.background.resize(entry, command, call.body.to_domain())
    return PtyView.of(call.service.background.record(entry, command))


async def kill(call: Call, pty: str) -> PtyView:
    return PtyView.of(await call.service.background.kill(*find(call, pty)))


def find(call: Call, pty: str) -> tuple[Entry, Command]:
    """Raises: NotFound."""
    entry = call.entry
    return entry, call.service.terminals.find(entry, pty)
