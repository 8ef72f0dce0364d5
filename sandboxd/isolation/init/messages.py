"""The structured messages of the sandbox-init protocol as frozen values.

A message from init is a dataclass whose fields are named like the protocol's tags; how a tag's value looks is in one
table, `_CODECS`, since a tag has one meaning everywhere. A field without default must be there, one with a default
may be missing, a tuple may repeat. Decoding raises `WireError` for anything else.
"""

import dataclasses
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Final, Self, TypeVar

from sandboxd.isolation.init.wire import (
    MAX_PATH,
    MAX_PROGRAM,
    CommandState,
    FileType,
    Flag,
    Op,
    Scope,
    StdinMode,
    Stream,
    Tag,
    WireError,
    decode_fields,
    encode_field,
    encode_frame,
)
from sandboxd.printable import printable

MAX_PID: Final = 2**22
NO_FLAGS: Final = Flag(0)

_E = TypeVar("_E", bound=IntEnum)


# ---- values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResourceLimit:
    """As of setrlimit(2); `resource` is its number, e.g. `resource.RLIMIT_NOFILE`."""

    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class _Codec:
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _number(width: int, maximum: int = 2**64 - 1, *, signed: bool = False) -> _Codec:
    def encode(value: int) -> bytes:
        try:
            return int(value).to_bytes(width, "little", signed=signed)
        except OverflowError:
            raise ValueError(f"cannot encode {value}: it does not fit {width} bytes") from None

    def decode(value: bytes) -> int:
        if len(value) != width:
            raise WireError(f"cannot decode a number of {len(value)} bytes: {width} expected")
        number = int.from_bytes(value, "little", signed=signed)
        if number > maximum:
            raise WireError(f"cannot accept {number}: at most {maximum}")
        return number

    return _Codec(encode, decode)


_LARGEST: Final = 2**63 - 1
"""What the store and every client can hold; offsets and counts never come near it."""
_LAST_MS: Final = 253_402_300_799_999
"""The end of the year 9999, in ms since the epoch: the last moment that has a date."""


def _enumeration(kind: type[_E], width: int) -> _Codec:
    number = _number(width)

    def decode(value: bytes) -> _E:
        try:
            return kind(number.decode(value))
        except ValueError:
            raise WireError(f"cannot decode {kind.__name__}: unknown value") from None

    return _Codec(number.encode, decode)


def _to_bytes(value: str | bytes) -> bytes:
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if 0 in data:
        raise ValueError("cannot encode a string that holds a NUL character")
    return data


def _to_name(value: bytes) -> str:
    if 0 in value:
        raise WireError("cannot decode a name: it holds a NUL byte")
    return value.decode("utf-8", "surrogateescape")


def _encode_limit(limit: ResourceLimit) -> bytes:
    return b"".join((_U32.encode(limit.resource), _U64.encode(limit.soft), _U64.encode(limit.hard)))


def _decode_limit(value: bytes) -> ResourceLimit:
    if len(value) != 20:
        raise WireError("cannot decode a resource limit: it takes 20 bytes")
    return ResourceLimit(_U32.decode(value[:4]), _U64.decode(value[4:12]), _U64.decode(value[12:]))


def _decode_flags(value: bytes) -> Flag:
    try:
        return Flag(_U32.decode(value))
    except ValueError:
        raise WireError("cannot decode flags: unknown bits") from None


def _encode_address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _decode_address(value: bytes) -> str:
    if len(value) not in (4, 16):
        raise WireError(f"cannot decode an address of {len(value)} bytes: it takes 4 or 16")
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def _decode_program(value: bytes) -> str:
    if len(value) > MAX_PROGRAM:
        raise WireError(f"cannot decode a program's name of {len(value)} bytes: at most {MAX_PROGRAM}")
    return value.decode("utf-8", "replace")


def _to_prose(value: bytes) -> str:
    """Text for people, in which nothing acts on a terminal, ends a line of a log, or turns the rest around."""
    return printable(value.decode("utf-8", "replace"), limit=len(value) * 10)


def _to_kind(value: bytes) -> str:
    if not _KIND.fullmatch(value):
        raise WireError("cannot decode a kind of error: it is a word of up to 15 small letters")
    return value.decode("ascii")


_KIND: Final = re.compile(rb"[a-z_]{1,15}")

_U8, _U16, _U32, _U64 = _number(1), _number(2), _number(4), _number(8, _LARGEST)
_MOMENT = _number(8, _LAST_MS)
_PID = _number(4, MAX_PID)
_NAME = _Codec(_to_bytes, _to_name)
_PROSE = _Codec(_to_bytes, _to_prose)
_RAW = _Codec(bytes, bytes)

_CODECS: Final[Mapping[Tag, _Codec]] = {
    Tag.COMMAND: _U64,
    Tag.PID: _PID,
    Tag.VERSION: _U32,
    Tag.UPTIME_MS: _U64,
    Tag.COUNT: _U32,
    Tag.TOKEN: _RAW,
    Tag.ARG: _Codec(_to_bytes, bytes),
    Tag.ENV: _Codec(_to_bytes, bytes),
    Tag.CWD: _NAME,
    Tag.USER: _NAME,
    Tag.STDIN_MODE: _enumeration(StdinMode, 1),
    Tag.COLS: _U16,
    Tag.ROWS: _U16,
    Tag.RLIMIT: _Codec(_encode_limit, _decode_limit),
    Tag.RING_SIZE: _U32,
    Tag.FLAGS: _Codec(_U32.encode, _decode_flags),
    Tag.LINGER_MS: _U32,
    Tag.LABEL: _RAW,
    Tag.STREAM: _enumeration(Stream, 1),
    Tag.FROM: _U64,
    Tag.TO: _U64,
    Tag.STDOUT_FROM: _U64,
    Tag.STDERR_FROM: _U64,
    Tag.EXIT_CODE: _number(4, 255),
    Tag.EXIT_SIGNAL: _number(4, 127),
    Tag.STARTED_AT_MS: _MOMENT,
    Tag.ENDED_AT_MS: _MOMENT,
    Tag.STDOUT_TOTAL: _U64,
    Tag.STDERR_TOTAL: _U64,
    Tag.USER_TIME_US: _U64,
    Tag.SYSTEM_TIME_US: _U64,
    Tag.MAX_RSS_KB: _U64,
    Tag.ERRNO: _number(4, 4095),
    Tag.KIND: _Codec(_to_bytes, _to_kind),
    Tag.MESSAGE: _PROSE,
    Tag.SIGNO: _number(4, 64),
    Tag.SCOPE: _enumeration(Scope, 1),
    Tag.STATE: _enumeration(CommandState, 1),
    Tag.STDOUT_OLDEST: _U64,
    Tag.STDERR_OLDEST: _U64,
    Tag.BYTES: _U64,
    Tag.PATH: _NAME,
    Tag.TARGET: _NAME,
    Tag.MODE: _number(4, 0o7777),
    Tag.OWNER: _NAME,
    Tag.GROUP: _NAME,
    Tag.DEPTH: _U32,
    Tag.LIMIT: _U32,
    Tag.OFFSET: _U64,
    Tag.LENGTH: _U64,
    Tag.SIZE: _U64,
    Tag.FILE_TYPE: _enumeration(FileType, 1),
    Tag.UID: _U32,
    Tag.GID: _U32,
    Tag.MTIME_NS: _number(8, signed=True),
    Tag.PORT: _U16,
    Tag.GRACE_MS: _U32,
    Tag.CTIME_NS: _number(8, signed=True),
    Tag.AFTER: _NAME,
    Tag.REAL_PATH: _NAME,
    Tag.ADDRESS: _Codec(_encode_address, _decode_address),
    Tag.PROGRAM: _Codec(_to_bytes, _decode_program),
}


# ---- messages from init ----------------------------------------------------------------------------------


def _tagged(tag: Tag) -> Any:
    """A field whose name is not its tag's."""
    return field(metadata={"tag": tag})


@dataclass(frozen=True, slots=True)
class Message:
    """What init sends as fields; `OP` is its frame type."""

    OP: ClassVar[Op]

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Raises WireError."""
        return decode_message(cls, payload)

    def encode(self) -> bytes:
        """The whole frame; what the real init does in C. For tests and other inits."""
        return encode_message(self)


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The answer to HELLO; `token` is 16 random bytes made when this init started, `count` its running commands."""

    OP: ClassVar = Op.WELCOME
    version: int
    pid: int
    uptime_ms: int
    count: int
    token: bytes
    flags: Flag = NO_FLAGS


@dataclass(frozen=True, slots=True)
class Done(Message):
    """OK: bytes written, or how many files or processes were affected, where that makes sense."""

    OP: ClassVar = Op.OK
    bytes: int | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """ERROR: `errno` is 0 when no system call failed; `kind` names what was at fault, e.g. "cwd".

    `offset` is where to go on instead.
    """

    OP: ClassVar = Op.ERROR
    errno: int
    kind: str
    message: str
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Started(Message):
    """`command` identifies it to init and is never used again; `pid` is its first process, as the sandbox sees it."""

    OP: ClassVar = Op.STARTED
    command: int
    pid: int


@dataclass(frozen=True, slots=True)
class Gap(Message):
    """The bytes from `start` up to `end` of a stream had been pruned before they could be sent."""

    OP: ClassVar = Op.GAP
    stream: Stream
    start: int = _tagged(Tag.FROM)
    end: int = _tagged(Tag.TO)


@dataclass(frozen=True, slots=True)
class Exited(Message):
    """A command's end: an exit code or the signal that killed it. Times are ms since the epoch, µs of CPU, KiB."""

    OP: ClassVar = Op.EXITED
    started_at_ms: int
    ended_at_ms: int
    stdout_total: int
    stderr_total: int
    user_time_us: int
    system_time_us: int
    max_rss_kb: int
    flags: Flag
    exit_code: int | None = None
    exit_signal: int | None = None

    @property
    def output_incomplete(self) -> bool:
        """A surviving process held the output open; it may yet write more."""
        return bool(self.flags & Flag.OUTPUT_INCOMPLETE)


@dataclass(frozen=True, slots=True)
class StdinAck(Message):
    """Total of bytes of this connection that the command's stdin has taken."""

    OP: ClassVar = Op.STDIN_ACK
    bytes: int


@dataclass(frozen=True, slots=True)
class StdinClosed(Message):
    """The command's stdin is closed; what is sent from here on is discarded."""

    OP: ClassVar = Op.STDIN_CLOSED


@dataclass(frozen=True, slots=True)
class Listed(Message):
    """A command that init knows. `arg` may be cut after 4 KiB; the oldest offsets are where its rings begin."""

    OP: ClassVar = Op.LISTED
    command: int
    pid: int
    state: CommandState
    user: str
    label: bytes
    started_at_ms: int
    stdout_total: int
    stderr_total: int
    stdout_oldest: int
    stderr_oldest: int
    flags: Flag
    arg: tuple[bytes, ...] = ()
    ended_at_ms: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    user_time_us: int | None = None
    system_time_us: int | None = None
    max_rss_kb: int | None = None


@dataclass(frozen=True, slots=True)
class Entry(Message):
    """A file: `path` made absolute, or relative to the directory listed. Owner and group are "" when nameless.

    `target` is what a symbolic link says, or another name of the same file in an archive; `real_path` is where the
    path leads, links resolved ("" when that cannot be told).
    """

    OP: ClassVar = Op.ENTRY
    path: str
    file_type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    owner: str
    group: str
    mtime_ns: int
    ctime_ns: int
    target: str | None = None
    real_path: str | None = None


@dataclass(frozen=True, slots=True)
class ListeningSocket(Message):
    """A TCP socket that listens in the sandbox's network namespace.

    `address` is in the notation of inet_ntop(3), `uid` who made the socket; ids and pids are the sandbox's own.
    `pid` and `program` are one process that has it open, None when none was found; the name is chosen by the program.
    """

    OP: ClassVar = Op.PORT
    port: int
    address: str
    uid: int
    pid: int | None = None
    program: str | None = None


@dataclass(frozen=True, slots=True)
class FileHeader(Message):
    """What READ_FILE opened. More or fewer than `size` bytes may follow: files in /proc say 0, others may change."""

    OP: ClassVar = Op.FILE
    size: int
    mode: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class End(Message):
    """The end of a stream of frames."""

    OP: ClassVar = Op.END
    flags: Flag = NO_FLAGS


MESSAGES: Final[tuple[type[Message], ...]] = (
    Welcome,
    Done,
    Failed,
    Started,
    Gap,
    Exited,
    StdinAck,
    StdinClosed,
    Listed,
    Entry,
    ListeningSocket,
    FileHeader,
    End,
)


# ---- encoding and decoding -------------------------------------------------------------------------------

_M = TypeVar("_M", bound=Message)

_REPEATABLE: Final = frozenset({Tag.ARG, Tag.ENV, Tag.RLIMIT})


@dataclass(frozen=True, slots=True)
class _Layout:
    names: Mapping[Tag, str]
    required: frozenset[str]


def _layout_of(kind: type[Message]) -> _Layout:
    fields = dataclasses.fields(kind)
    names = {f.metadata.get("tag") or Tag[f.name.upper()]: f.name for f in fields}
    required = frozenset(f.name for f in fields if f.default is dataclasses.MISSING)
    return _Layout(names, required)


_LAYOUTS: Final = {kind: _layout_of(kind) for kind in MESSAGES}


def decode_message(kind: type[_M], payload: bytes) -> _M:
    """The message in a payload. Raises WireError unless it has all required fields, no unknown ones, none twice."""
    layout = _LAYOUTS[kind]
    values: dict[str, Any] = {}
    repeated: dict[str, list[Any]] = {}
    for tag, data in decode_fields(payload):
        name = layout.names.get(tag)
        if name is None or name in values:
            raise WireError(f"cannot decode {kind.__name__}: unexpected field {tag.name}")
        value = _CODECS[tag].decode(data)
        if tag in _REPEATABLE:
            repeated.setdefault(name, []).append(value)
        else:
            values[name] = value
    values.update((name, tuple(items)) for name, items in repeated.items())
    missing = layout.required - values.keys()
    if missing:
        raise WireError(f"cannot decode {kind.__name__}: {', '.join(sorted(missing))} missing")
    message = kind(**values)
    if isinstance(message, Exited) and (message.exit_code is None) == (message.exit_signal is None):
        raise WireError("cannot decode Exited: either a code or a signal, and one of them")
    return message


def encode_message(message: Message) -> bytes:
    layout = _LAYOUTS[type(message)]
    return encode_fields(message.OP, {tag: getattr(message, name) for tag, name in layout.names.items()})


def encode_fields(op: Op, values: Mapping[Tag, Any]) -> bytes:
    """A structured frame. None leaves a field out, a repeatable tag takes a sequence. Raises ValueError."""
    parts: list[bytes] = []
    for tag, value in values.items():
        if value is None:
            continue
        items = value if tag in _REPEATABLE else (value,)
        parts.extend(encode_field(tag, _CODECS[tag].encode(item)) for item in items)
    return encode_frame(op, b"".join(parts))


def check_path(path: str | bytes) -> bytes:
    """A path as bytes. Raises ValueError when it is empty, contains NUL, or is longer than MAX_PATH bytes."""
    data = _to_bytes(path)
    if not 0 < len(data) <= MAX_PATH:
        raise ValueError(f"cannot use path {path[:80]!r}: it must have 1 to {MAX_PATH} bytes")
    return data
