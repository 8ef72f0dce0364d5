"""What the daemon and sandbox-init say to each other: framing and messages, without I/O.

The other half is `rootfs/init/protocol.h`, whose comment is the reference for framing, conversations and flow
control; a test compares the constants. In short:

    frame   = length u32, type u8, payload[length]
    payload = field*          field = tag u8, length u32, value[length]

little-endian throughout; STDIN and DATA carry bare bytes, OUTPUT a stream number, an offset and bare bytes.

init runs inside the sandbox, so everything it says is hostile input: a decoder either returns values within their
stated bounds or raises `WireError`, whatever the bytes, in time that is linear in their number. Frames are bounded by
what an honest init puts into each of their types (FROM_INIT), and cut out of the stream a few at a time
(FRAMES_AT_ONCE). Texts that people read are decoded with replacement, and what is not printable in them is escaped;
names and paths are bytes in the sandbox and become `str` with surrogateescape.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import STRICT, IntEnum, IntFlag
from typing import Final, NamedTuple

PROTOCOL_VERSION: Final = 1
HEADER_SIZE: Final = 5
MAX_PAYLOAD: Final = 1024 * 1024
MAX_DATA: Final = 64 * 1024
STDIN_WINDOW: Final = 256 * 1024
MAX_PATH: Final = 4095
MAX_LABEL: Final = 256
MIN_RING: Final = 4 * 1024
DEFAULT_RING: Final = 1024 * 1024
MAX_RING: Final = 16 * 1024 * 1024
DEFAULT_LINGER_MS: Final = 100
MAX_LINGER_MS: Final = 60 * 1000
MAX_ENDED_COMMANDS: Final = 64
MAX_DEPTH: Final = 64
MAX_CHANGES: Final = 8 * 1024
RECORD_HEADER_SIZE: Final = 8
MAX_WATCHED: Final = 32 * 1024
MAX_PATTERNS: Final = 64
MAX_PATTERN: Final = 256
MAX_NESTING: Final = 256
MAX_COMMANDS: Final = 1024
MAX_FOLLOWERS: Final = 448
MAX_ATTACHED: Final = 512
MAX_WORKERS: Final = 64
MAX_WATCHES: Final = 128
MAX_SIGNALS: Final = 64
MAX_PORTS: Final = 4096
MAX_PROGRAM: Final = 15

OFFSET_NOW: Final = 2**64 - 1
"""As an offset to attach from: only what is written from here on."""

_HEADER = struct.Struct("<IB")
_FIELD = struct.Struct("<BI")
_OUTPUT = struct.Struct("<BQ")
_RECORD = struct.Struct("<B?IH")


class WireError(Exception):
    """The peer does not speak the protocol. The connection is of no further use."""


class Op(IntEnum):
    """Frame types."""

    HELLO = 0x01
    SPAWN = 0x02
    ATTACH = 0x03
    WRITE_STDIN = 0x04
    LIST = 0x05
    RELEASE = 0x06
    CONNECT = 0x07
    SHUTDOWN = 0x08
    SUDO = 0x09
    LIST_PORTS = 0x0A
    STDIN_EOF = 0x10
    RESIZE = 0x11
    SIGNAL = 0x12
    STDIN = 0x13
    STAT = 0x20
    LIST_DIR = 0x21
    READ_FILE = 0x22
    WRITE_FILE = 0x23
    MKDIR = 0x24
    REMOVE = 0x25
    RENAME = 0x26
    SYMLINK = 0x27
    CHMOD = 0x28
    CHOWN = 0x29
    TRUNCATE = 0x2A
    COPY = 0x2B
    PACK = 0x2C
    UNPACK = 0x2D
    WATCH = 0x30
    SYNC = 0x31
    DATA = 0x40
    END = 0x41
    PUT = 0x42
    OK = 0x80
    ERROR = 0x81
    WELCOME = 0x82
    STARTED = 0x83
    OUTPUT = 0x84
    GAP = 0x85
    EXITED = 0x86
    STDIN_ACK = 0x87
    STDIN_CLOSED = 0x88
    LISTED = 0x89
    ENTRY = 0x8A
    FILE = 0x8B
    PORT = 0x8C
    CHANGES = 0x90
    SYNCED = 0x91


class Tag(IntEnum):
    """Fields of structured payloads."""

    COMMAND = 1
    PID = 2
    VERSION = 3
    UPTIME_MS = 4
    COUNT = 5
    TOKEN = 6
    ARG = 7
    ENV = 8
    CWD = 9
    USER = 10
    STDIN_MODE = 11
    COLS = 12
    ROWS = 13
    RLIMIT = 14
    RING_SIZE = 15
    FLAGS = 16
    LINGER_MS = 17
    LABEL = 18
    STREAM = 19
    FROM = 20
    TO = 21
    STDOUT_FROM = 22
    STDERR_FROM = 23
    EXIT_CODE = 24
    EXIT_SIGNAL = 25
    STARTED_AT_MS = 26
    ENDED_AT_MS = 27
    STDOUT_TOTAL = 28
    STDERR_TOTAL = 29
    USER_TIME_US = 30
    SYSTEM_TIME_US = 31
    MAX_RSS_KB = 32
    ERRNO = 33
    KIND = 34
    MESSAGE = 35
    SIGNO = 36
    SCOPE = 37
    STATE = 38
    STDOUT_OLDEST = 39
    STDERR_OLDEST = 40
    BYTES = 41
    PATH = 42
    TARGET = 43
    MODE = 44
    OWNER = 45
    GROUP = 46
    DEPTH = 47
    LIMIT = 48
    OFFSET = 49
    LENGTH = 50
    SIZE = 51
    FILE_TYPE = 52
    UID = 53
    GID = 54
    MTIME_NS = 55
    PORT = 56
    GRACE_MS = 57
    CTIME_NS = 58
    AFTER = 59
    REAL_PATH = 60
    ADDRESS = 61
    PROGRAM = 62


class Flag(IntFlag, boundary=STRICT):
    """Bits of the FLAGS field; each has one meaning, whatever the message."""

    ATTACH = 0x1
    LOSSLESS = 0x2
    PROGRAM_LOOKUP = 0x4
    NO_OUTPUT = 0x8
    OUTPUT_INCOMPLETE = 0x10
    STATUS_LOST = 0x20
    CORE_DUMPED = 0x40
    TERMINAL = 0x80
    FOLLOW = 0x100
    ATOMIC = 0x200
    APPEND = 0x400
    EXCLUSIVE = 0x800
    PARENTS = 0x1000
    RECURSIVE = 0x2000
    NO_REPLACE = 0x4000
    TRUNCATED = 0x8000
    STDIN_OPEN = 0x10000
    SURVIVORS = 0x20000
    RESUME = 0x40000
    OWNERS = 0x80000
    HARDLINKS = 0x100000
    KEEP = 0x200000


class StdinMode(IntEnum):
    NULL = 0
    PIPE = 1


class Stream(IntEnum):
    STDOUT = 1
    STDERR = 2


class Scope(IntEnum):
    """Whom a signal reaches: the command's first process, that one's process group, or every descendant."""

    LEADER = 0
    GROUP = 1
    TREE = 2


class CommandState(IntEnum):
    """DRAINING: the first process has exited and its output is being read to the end."""

    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    ENDED = 3


class FileType(IntEnum):
    UNKNOWN = 0
    REGULAR = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER = 6
    BLOCK = 7
    HARDLINK = 8


class ChangeKind(IntEnum):
    """What a watch tells. RENAME: away from this path; UNWATCHED: what happens in this directory stays untold."""

    CREATE = 1
    WRITE = 2
    ATTRIBUTES = 3
    RENAME = 4
    REMOVE = 5
    OVERFLOW = 6
    UNWATCHED = 7
    ENDED = 8


# ---- frames ----------------------------------------------------------------------------------------------

# Of a frame with fields, where nothing else is said: numbers, and the sentence of an ERROR.
_FEW_FIELDS: Final = 1024

_MAX_RAW: Final[Mapping[Op, int]] = {
    Op.STDIN: MAX_DATA,
    Op.DATA: MAX_DATA,
    Op.OUTPUT: MAX_DATA + _OUTPUT.size,
    Op.CHANGES: MAX_CHANGES,
}

FROM_INIT: Final[Mapping[Op, int]] = {
    **dict.fromkeys((Op.OK, Op.ERROR, Op.WELCOME, Op.STARTED, Op.GAP, Op.EXITED, Op.STDIN_ACK), _FEW_FIELDS),
    **dict.fromkeys((Op.STDIN_CLOSED, Op.FILE, Op.PORT, Op.SYNCED, Op.END), _FEW_FIELDS),
    # Arguments as far as they are kept, a user and a label.
    Op.LISTED: 8 * 1024,
    # Up to three paths and two names.
    Op.ENTRY: 16 * 1024,
    Op.DATA: _MAX_RAW[Op.DATA],
    Op.OUTPUT: _MAX_RAW[Op.OUTPUT],
    Op.CHANGES: _MAX_RAW[Op.CHANGES],
}
"""The frames that init sends, and how many bytes of payload each may have."""

ANY: Final[Mapping[Op, int]] = {op: FROM_INIT.get(op, _MAX_RAW.get(op, MAX_PAYLOAD)) for op in Op}
"""The same for all frames, those that init receives among them."""

FRAMES_AT_ONCE: Final = 256
"""How many frames a decoder gives at once: the smallest has five bytes, and each of them costs a turn of a loop."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its type, and its payload not yet looked at."""

    op: Op
    payload: bytes


class FrameDecoder:
    """Cuts a stream of bytes into frames. Holds what was fed and not yet taken."""

    def __init__(self, accepted: Mapping[Op, int] = FROM_INIT) -> None:
        self._accepted = accepted
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add what has been received."""
        self._buffer += data

    def take(self, count: int = FRAMES_AT_ONCE) -> list[Frame]:
        """The next complete frames, in order, at most so many. Raises WireError; the decoder is of no use then."""
        frames: list[Frame] = []
        start = 0
        with memoryview(self._buffer) as view:
            while len(view) - start >= HEADER_SIZE and len(frames) < count:
                op, length = self._parse_header(view, start)
                end = start + HEADER_SIZE + length
                if end > len(view):
                    break
                frames.append(Frame(op, bytes(view[start + HEADER_SIZE : end])))
                start = end
        del self._buffer[:start]
        return frames

    @property
    def empty(self) -> bool:
        """Whether nothing has come that was not taken."""
        return not self._buffer

    def missing(self) -> int:
        """How many bytes are needed, at least, to complete the next frame; 0 if one is complete. Raises WireError."""
        have = len(self._buffer)
        if have < HEADER_SIZE:
            return HEADER_SIZE - have
        with memoryview(self._buffer) as view:
            _, length = self._parse_header(view, 0)
        return max(HEADER_SIZE + length - have, 0)

    def _parse_header(self, view: memoryview, start: int) -> tuple[Op, int]:
        length, number = _HEADER.unpack_from(view, start)
        op = _OPS.get(number)
        limit = self._accepted.get(op) if op is not None else None
        if op is None or limit is None:
            raise WireError(f"cannot decode frame type {number:#x}: unknown, or never sent by the peer")
        if length > limit:
            raise WireError(f"cannot decode {op.name} frame of {length} bytes: more than {limit}")
        return op, length


_OPS: Final[Mapping[int, Op]] = {int(op): op for op in Op}


def encode_frame(op: Op, payload: bytes = b"") -> bytes:
    """One frame. Raises ValueError when the payload is larger than the protocol allows."""
    limit = _MAX_RAW.get(op, MAX_PAYLOAD)
    if len(payload) > limit:
        raise ValueError(f"cannot encode {op.name} frame of {len(payload)} bytes: at most {limit}")
    return _HEADER.pack(len(payload), op) + payload


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of a command's output; `offset` counts from the beginning of the stream."""

    stream: Stream
    offset: int
    data: bytes


def encode_output(output: Output) -> bytes:
    return encode_frame(Op.OUTPUT, _OUTPUT.pack(output.stream, output.offset) + output.data)


def decode_output(payload: bytes) -> Output:
    if len(payload) < _OUTPUT.size:
        raise WireError("cannot decode OUTPUT: too short")
    number, offset = _OUTPUT.unpack_from(payload)
    data = payload[_OUTPUT.size :]
    if number not in (Stream.STDOUT, Stream.STDERR) or offset + len(data) >= OFFSET_NOW:
        raise WireError(f"cannot decode OUTPUT of stream {number} at offset {offset}")
    return Output(Stream(number), offset, data)


class Change(NamedTuple):
    """`path` is relative to the watched directory, which itself is "."; `cookie` joins two names of one rename, or 0.

    A tuple, not a dataclass: the sandbox decides how many of them come.
    """

    kind: ChangeKind
    is_directory: bool
    cookie: int
    path: str


def encode_changes(changes: Iterable[Change]) -> bytes:
    records = []
    for change in changes:
        path = change.path.encode("utf-8", "surrogateescape")
        records.append(_RECORD.pack(change.kind, change.is_directory, change.cookie, len(path)) + path)
    return encode_frame(Op.CHANGES, b"".join(records))


def decode_changes(payload: bytes) -> list[Change]:
    changes = []
    at = 0
    while at < len(payload):
        if len(payload) - at < _RECORD.size:
            raise WireError("cannot decode CHANGES: a record is cut off")
        kind, is_directory, cookie, length = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        path = payload[at : at + length]
        at += length
        if len(path) < length or not _is_below(path):
            raise WireError(f"cannot decode CHANGES: path {path[:100]!r} is cut off, or leads elsewhere")
        try:
            changes.append(Change(ChangeKind(kind), is_directory, cookie, path.decode("utf-8", "surrogateescape")))
        except ValueError:
            raise WireError(f"cannot decode CHANGES: kind {kind} is unknown") from None
    return changes


def _is_below(path: bytes) -> bool:
    """Whether a client may join it to the watched directory and stay in there."""
    if not path or len(path) > MAX_PATH or path.startswith(b"/") or b"\0" in path:
        return False
    return b".." not in path or b".." not in path.split(b"/")


# ---- fields ----------------------------------------------------------------------------------------------


def encode_field(tag: Tag, value: bytes) -> bytes:
    return _FIELD.pack(tag, len(value)) + value


def decode_fields(payload: bytes) -> Iterator[tuple[Tag, bytes]]:
    """The fields of a structured payload, in order, each when it is asked for. Raises WireError."""
    at = 0
    while at < len(payload):
        if len(payload) - at < _FIELD.size:
            raise WireError("cannot decode a field: its header is cut off")
        number, length = _FIELD.unpack_from(payload, at)
        at += _FIELD.size
        if length > len(payload) - at:
            raise WireError(f"cannot decode field {number} of {length} bytes: the frame ends before it")
        tag = _TAGS.get(number)
        if tag is None:
            raise WireError(f"cannot decode field {number}: unknown")
        yield tag, payload[at : at + length]
        at += length


_TAGS: Final[Mapping[int, Tag]] = {int(tag): tag for tag in Tag}
