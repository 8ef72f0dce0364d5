"""What the daemon answers, as frozen values.

Each keeps `raw`, the JSON object it was read from: fields that a newer daemon adds are there. Times are aware UTC
datetimes, durations milliseconds, sizes bytes.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self, TypedDict

from sandboxd.client.errors import ConnectionLost

Json = Mapping[str, Any]


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# Field metadata: how a field's JSON becomes its value.
TIME = {"read": _time}
BASE64 = {"read": b64decode}
TUPLE = {"read": tuple}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Read from JSON by field name; keys without a field stay in `raw`."""

    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, raw: Json) -> Self:
        """Raises: ConnectionLost when the answer lacks what this model needs."""
        try:
            values = {
                item.name: item.metadata["read"](raw[item.name]) if item.metadata else raw[item.name]
                for item in fields(cls)
                if item.name in raw
            }
            return cls(raw=raw, **values)
        except (TypeError, ValueError) as error:
            raise ConnectionLost(f"cannot read the daemon's answer as {cls.__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Model):
    status: str
    version: str = ""
    uptime_s: float = 0
    sandboxes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(Model):
    version: str = ""
    backend: str = ""
    backends: Sequence[str] = ()
    rootless: bool = False
    default_image: str = ""
    limits: Mapping[str, bool] = field(default_factory=dict)
    """which limits this host can enforce"""
    limits_reason: str | None = None
    disk_reason: str | None = None
    volume: str = ""
    features: Json = field(default_factory=dict)
    max_timeout_ms: int | None = None
    max_sandboxes: int | None = None


class SandboxOptions(TypedDict, total=False):
    """What a sandbox can be asked for with; all of it optional."""

    image: str | None
    """the name or digest of an image"""
    snapshot: str | None
    """the name or id of a snapshot to begin with the files of, in place of an image"""
    name: str | None
    env: Mapping[str, str] | None
    metadata: Mapping[str, str] | None
    """kept with the sandbox, to find it by"""
    timeout_ms: int | None
    """lifetime from now on"""
    limits: Json | None
    """memory_bytes, swap_bytes, pids, cpus, cpu_weight, read_bps, write_bps, disk_bytes"""
    user: str | None
    workdir: str | None
    hostname: str | None
    backend: str | None
    """what isolates it: one of `Capabilities.backends`"""
    on_timeout: str | None
    """what happens at the end of its lifetime: kill, pause or stop"""
    idle_timeout_ms: int | None
    """how long nothing may need it"""
    on_idle: str | None
    """what happens then"""
    auto_resume: bool | None
    """let whatever needs it while it is asleep wake it first"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox(Model):
    id: str
    status: str
    image: str = ""
    name: str | None = None
    created_at: datetime | None = field(default=None, metadata=TIME)
    started_at: datetime | None = field(default=None, metadata=TIME)
    ended_at: datetime | None = field(default=None, metadata=TIME)
    end_at: datetime | None = field(default=None, metadata=TIME)
    """when its lifetime is over"""
    end_reason: str | None = None
    paused_at: datetime | None = field(default=None, metadata=TIME)
    on_timeout: str = ""
    """kill, pause or stop"""
    idle_timeout_ms: int | None = None
    on_idle: str = ""
    auto_resume: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Json = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    hostname: str = ""
    backend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult(Model):
    """A command that ran to its end; its output as exact bytes."""

    stdout: bytes = field(metadata=BASE64)
    stderr: bytes = field(metadata=BASE64)
    exit_code: int
    """128+n when signal n ended it"""
    signal: str | None = None
    duration_ms: float = 0
    timed_out: bool = False
    oom_killed: bool = False
    truncated: bool = False
    """the middle of an output was left out: ask for more by max_output_bytes, or use shell_stream()"""
    stdout_bytes: int | None = None
    """that were written"""
    stderr_bytes: int | None = None
    output_incomplete: bool = False
    cpu_time_ms: float | None = None
    max_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundCommand(Model):
    """A command in the background, or a terminal."""

    command_id: str
    pid: int
    """inside the sandbox"""
    status: str
    """starting, running, exited, killed, or lost: its machine ended under it"""
    cmd: str = ""
    user: str = ""
    cwd: str = ""
    stdin: bool = False
    terminal: Mapping[str, int] | None = None
    """its cols and rows"""
    created_at: datetime | None = field(default=None, metadata=TIME)
    started_at: datetime | None = field(default=None, metadata=TIME)
    ended_at: datetime | None = field(default=None, metadata=TIME)
    exit_code: int | None = None
    """128+n when signal n ended it"""
    signal: str | None = None
    duration_ms: float | None = None
    timed_out: bool = False
    oom_killed: bool = False
    output_incomplete: bool = False
    unlogged_bytes: int = 0

    @property
    def ended(self) -> bool:
        return self.status in {"exited", "killed", "lost"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLogs(Model):
    """Output of a background command, as exact bytes."""

    stdout: bytes = field(metadata=BASE64)
    stderr: bytes = field(metadata=BASE64)
    status: str
    cursor: str
    """ask with it for what follows"""
    exit_code: int | None = None
    lost_bytes: int = 0
    more: bool = False
    """there is more already"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtyOutput(Model):
    """What a terminal has shown since it was read last."""

    data_b64: bytes = field(metadata=BASE64)
    alive: bool
    exit_code: int | None = None
    lost_bytes: int = 0

    @property
    def data(self) -> bytes:
        return self.data_b64


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningPort(Model):
    """A TCP port on which something listens inside."""

    port: int
    addresses: tuple[str, ...] = field(default=(), metadata=TUPLE)
    reachable: bool = True
    """through the daemon: not when it listens only on an address other than the loopback's"""
    uid: int = 0
    pid: int | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedPort(Model):
    port: int
    host: str
    url: str | None = None
    path: str = ""
    """of the same port below the API, with a key"""
    protected: bool = False
    created_at: datetime | None = field(default=None, metadata=TIME)
    end_at: datetime | None = field(default=None, metadata=TIME)
    token: str | None = None
    """only in the answer to its exposure"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(Model):
    """None is what the host cannot tell."""

    cpu_pct: float | None = None
    mem_used_mb: float | None = None
    mem_pct: float | None = None
    pids: int | None = None
    net_rx_bytes: int | None = None
    net_tx_bytes: int | None = None
    uptime_s: float | None = None
    limits: Json = field(default_factory=dict)
    cgroup: Json | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Model):
    id: int
    at: datetime = field(metadata=TIME)
    kind: str
    sandbox: str
    details: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch(Model):
    watch_id: str
    path: str
    recursive: bool
    source: str
    ended: bool
    """the directory or the sandbox is gone: nothing more will come"""
    cursor: int
    """id of the latest event"""
    ignore: tuple[str, ...] = field(default=(), metadata=TUPLE)
    user: str = ""
    created_at: datetime | None = field(default=None, metadata=TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent(Model):
    id: int
    type: str
    """changes: create, modify, remove; raw: create, write, chmod, rename, remove; both: overflow, ended"""
    path: str
    """relative to the watched directory, which itself is "." """
    is_directory: bool = False
    path_b64: str | None = None
    """the path's bytes, if they are no UTF-8"""
    cookie: int | None = None
    """the same in the rename of the old name and the create of the new one"""
    reason: str | None = None
    """of an overflow: reader, kernel, restart or limit"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvents(Model):
    events: tuple[WatchEvent, ...] = field(
        metadata={"read": lambda raw: tuple(WatchEvent.read(event) for event in raw)}
    )
    cursor: int
    """`after` of the next poll"""
    overflow: bool
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Model):
    digest: str
    names: tuple[str, ...] = field(default=(), metadata=TUPLE)
    created_at: datetime | None = field(default=None, metadata=TIME)
    size_bytes: int = 0
    user: str = ""
    workdir: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey(Model):
    id: str
    name: str
    scopes: tuple[str, ...] = field(default=(), metadata=TUPLE)
    quota: Json = field(default_factory=dict)
    """max_sandboxes, requests_per_minute, max_memory_bytes, max_disk_bytes; None is not bounded"""
    own: bool = False
    created_at: datetime | None = field(default=None, metadata=TIME)
    last_used_at: datetime | None = field(default=None, metadata=TIME)
    key: str | None = None
    """the secret; only in the answer to its creation"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord(Model):
    """One line of the daemon's own log."""

    id: int
    at: datetime = field(metadata=TIME)
    level: str
    logger: str = ""
    message: str = ""
    details: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo(Model):
    path: str
    """absolute, or relative to the directory that was listed; `raw["path_b64"]` where it is not UTF-8"""
    name: str
    type: str
    """file, directory, symlink, fifo, socket, character_device, block_device or unknown"""
    size: int
    mode: int = field(metadata={"read": lambda text: int(text, 8)})
    """permission bits"""
    owner: str = ""
    group: str = ""
    uid: int = 0
    gid: int = 0
    modified_at: datetime | None = field(default=None, metadata=TIME)
    target: str | None = None
    """what a symbolic link says"""
    real_path: str | None = None
    """where the path leads, links resolved"""

    @property
    def exact_path(self) -> bytes:
        encoded = self.raw.get("path_b64")
        return self.path.encode() if encoded is None else b64decode(encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState(Model):
    offset: int
    """where the next piece begins"""
    complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked(Model):
    entries: int
    bytes: int
