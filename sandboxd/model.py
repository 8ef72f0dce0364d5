"""The values that pass between the layers: frozen, slotted, without behaviour beyond their own consistency.

Times are seconds since the epoch (float) and cross restarts; durations are seconds; sizes are bytes; ids that
people see are strings. Untrusted input becomes one of these only after the HTTP layer validated its shape.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

EMPTY: Mapping[str, str] = MappingProxyType({})


# -- sandboxes ----------------------------------------------------------------------------------------------------


class SandboxState(enum.StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    EXITED = "exited"
    DELETING = "deleting"


# Everything that may happen to a sandbox. It is recorded first at RUNNING, when all of it is there, and its record
# goes when a deletion begins: a start-up sweeps whatever carries an id without a record. Each change in between is
# recorded as begun (…ING) before its first effect and as done after the last. So a daemon that died half way finds
# what it was about:
#
#   CREATING   never recorded: the machine may exist in part.
#   RUNNING    sandbox-init answered. A start-up that finds it attaches, or learns that it EXITED.
#   PAUSING    its processes are being frozen. A start-up finishes that. Back to RUNNING if they will not freeze.
#   PAUSED     no process of it runs; memory and files stay.
#   RESUMING   its processes are being let go. A start-up finishes that.
#   STOPPING   its processes are told to end, and then killed. A start-up kills what is left.
#   STOPPED    no process of it exists, nor what a machine needs (ids, cgroup); files stay.
#   STARTING   a new machine over the same files may exist in part. A start-up ends it: STOPPED.
#   EXITED     its pid 1 is gone though nobody asked; otherwise as STOPPED.
#   DELETING   never recorded: somebody asked, or its lifetime is over. From any state; nothing comes after it.
TRANSITIONS: Mapping[SandboxState, frozenset[SandboxState]] = MappingProxyType(
    {
        SandboxState.CREATING: frozenset({SandboxState.RUNNING}),
        SandboxState.RUNNING: frozenset({SandboxState.PAUSING, SandboxState.STOPPING, SandboxState.EXITED}),
        SandboxState.PAUSING: frozenset({SandboxState.PAUSED, SandboxState.RUNNING, SandboxState.EXITED}),
        SandboxState.PAUSED: frozenset({SandboxState.RESUMING, SandboxState.STOPPING, SandboxState.EXITED}),
        SandboxState.RESUMING: frozenset({SandboxState.RUNNING, SandboxState.EXITED}),
        SandboxState.STOPPING: frozenset({SandboxState.STOPPED}),
        SandboxState.STOPPED: frozenset({SandboxState.STARTING}),
        SandboxState.STARTING: frozenset({SandboxState.RUNNING, SandboxState.STOPPED}),
        SandboxState.EXITED: frozenset({SandboxState.STARTING}),
        SandboxState.DELETING: frozenset(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sandbox may use; None means not limited. Enforced by cgroup v2, or refused (DESIGN: never pretend)."""

    memory: int | None = None
    """bytes of memory.max"""
    swap: int | None = None
    """bytes of memory.swap.max"""
    pids: int | None = None
    cpus: float | None = None
    """processors' worth of time, e.g. 1.5"""
    cpu_weight: int | None = None
    """1..10000, relative share under contention; 100 is the kernel's default"""
    read_bps: int | None = None
    """bytes per second read from the disk that holds the state directory"""
    write_bps: int | None = None
    disk: int | None = None
    """bytes that it may write over what it stands on; bounded by the pool's quotas, not by a cgroup"""

    def named(self) -> dict[str, int | float]:
        """The limits that are set, by name."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


class ExpiryAction(enum.StrEnum):
    """What happens to a sandbox whose time is over."""

    KILL = "kill"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """A moment by both clocks: the wall's, and CLOCK_BOOTTIME of one boot of the host."""

    wall: float
    uptime: float
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline(Instant):
    """A moment to come, as both clocks counted when it was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a client asked for, with every default filled in."""

    image: str
    """digest of the image, resolved from the name asked for; empty until the service has done so"""
    image_name: str
    name: str | None = None
    env: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    metadata: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    limits: Limits = field(default_factory=Limits)
    user: str = ""
    workdir: str = ""
    hostname: str = "sandbox"
    timeout: float | None = None
    """lifetime in seconds, from creation or from when it was last set"""
    on_timeout: ExpiryAction = ExpiryAction.KILL
    idle_timeout: float | None = None
    """seconds after the last use"""
    on_idle: ExpiryAction | None = None
    """None: as on_timeout"""
    owner: str | None = None
    """id of the key that created it; None: an administrator on the Unix socket"""
    auto_resume: bool = False
    """whatever needs its machine while it is paused, stopped or exited resumes or starts it first"""
    backend: str = ""
    """what isolates it; empty until the service has filled in the default"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is needed to find a running sandbox's processes again after a restart of the daemon."""

    pid: int
    """host pid of sandbox-init"""
    pid_started: int
    """its start time in clock ticks since boot: with the boot id, a pid's identity"""
    monitor: int
    """host pid of the bwrap that started it and stays as its parent"""
    monitor_started: int
    host_boot_id: str

    @property
    def name(self) -> str:
        """Differs from that of every other machine of this boot."""
        return f"{self.pid}.{self.pid_started}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox as the store and the API know it."""

    id: str
    state: SandboxState
    spec: SandboxSpec
    created_at: float
    range_start: int
    """first of the 65536 host ids that are this sandbox's own (0 while none is assigned)"""
    machine_id: str = ""
    """its /etc/machine-id, the same in every boot"""
    started_at: float | None = None
    paused_at: float | None = None
    stopped_jobs: tuple[int, ...] = ()
    """host pids that its own shells had stopped before it was paused by signals: to be left so"""
    ended_at: float | None = None
    deadline: Deadline | None = None
    """when its lifetime is over"""
    end_reason: str | None = None
    machine: Machine | None = None
    layer: str | None = None
    """uppermost of the layers that lie between its image and what it writes"""
    snapshot: str | None = None
    """what it was made of, or put back to, last"""
    discarding: bool = False
    """what it wrote is of before a restore, and to be thrown away"""


# -- layers and snapshots -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A sealed tree of what a sandbox had written. Nobody changes it; it goes when nothing stands on it any more."""

    id: str
    parent: str | None
    """the layer below; None: the image"""
    depth: int
    """layers from here to the image, this one included"""
    created_at: float
    size: int | None = None
    """bytes on disk, those shared with other layers included; None until they have been counted"""
    entries: int | None = None
    moving: str | None = None
    """the sandbox whose writable tree becomes this layer, until it has"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCost:
    """What it took to make a layer."""

    frozen: float = 0.0
    """seconds for which the sandbox stood still"""
    copied: int = 0
    """bytes copied"""
    shared: int = 0
    """bytes of files that share their blocks with the original's; a pool of subvolumes does not count them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    id: str
    layer: str
    spec: SandboxSpec
    """of the sandbox it was taken of"""
    created_at: float
    sandbox: str | None = None
    """the one it was taken of; None: it was imported"""
    parent: str | None = None
    """the snapshot that sandbox had been made of, or put back to"""
    name: str | None = None
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    cost: CopyCost = field(default_factory=CopyCost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """A port of a sandbox that has a host name of its own, where it is reached without a key."""

    sandbox: str
    port: int
    created_at: float
    expires_at: float | None = None
    token_hash: str | None = None
    """SHA-256 of the token that it takes; None: it is open to all who can reach the daemon"""


# -- images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A host path shown read-only inside."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    digest: str
    names: tuple[str, ...]
    created_at: float
    size: int
    rootfs: Path
    user: str = ""
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    binds: tuple[Bind, ...] = ()
    hidden: tuple[str, ...] = ()
    """paths covered by an empty directory, for images made of the host's own files"""
    source: str = ""


# -- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TerminalSize:
    cols: int = 80
    rows: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    argv: tuple[str, ...]
    shell: bool = False
    """argv is one string for the sandbox's shell"""
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    user: str = ""
    stdin: bool = False
    """a pipe that the client feeds; otherwise /dev/null"""
    terminal: TerminalSize | None = None
    timeout: float | None = None


class StreamName(enum.StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class CommandStarted:
    id: int
    pid: int


@dataclass(frozen=True, slots=True)
class OutputChunk:
    stream: StreamName
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputGap:
    """Bytes that nobody can read any more: the ring moved on while nobody listened."""

    stream: StreamName
    lost: int


@dataclass(frozen=True, slots=True)
class StdinAccepted:
    total: int
    """bytes of stdin that have reached the command so far"""
    closed: bool = False
    """the command no longer reads: nothing more will be accepted"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandExited:
    exit_code: int | None
    """None when a signal ended it"""
    signal: int | None
    duration: float
    timed_out: bool = False
    oom_killed: bool = False
    output_incomplete: bool = False
    """a process of the command lives on and still holds its output open"""
    cpu_time: float = 0.0
    max_rss: int = 0

    @property
    def status(self) -> int | None:
        """As a shell has it: the exit code, or 128 + n when signal n ended it."""
        return self.exit_code if self.signal is None else 128 + self.signal


# Everything that may happen to a background command. Its record is written at STARTING, before sandbox-init is asked,
# and bears the label by which a daemon that died in between finds the command again.
#
#   STARTING   asked for; nobody has been told of it yet. Not found at start-up: it never was.
#   RUNNING    its processes run and its output goes to its log, or will, when a daemon is there again.
#   EXITED     it ended by itself, with an exit code.
#   KILLED     a signal ended it.
#   LOST       the machine ended under it, so that nobody saw how it ended.
class CommandStatus(enum.StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    KILLED = "killed"
    LOST = "lost"


COMMAND_TRANSITIONS: Mapping[CommandStatus, frozenset[CommandStatus]] = MappingProxyType(
    {
        CommandStatus.STARTING: frozenset({CommandStatus.RUNNING, CommandStatus.LOST}),
        CommandStatus.RUNNING: frozenset({CommandStatus.EXITED, CommandStatus.KILLED, CommandStatus.LOST}),
        CommandStatus.EXITED: frozenset(),
        CommandStatus.KILLED: frozenset(),
        CommandStatus.LOST: frozenset(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """A command in the background, or a terminal, as the store and the API know it."""

    id: str
    """also its label in sandbox-init"""
    sandbox: str
    status: CommandStatus
    command: str
    """for people: the shell's line or the arguments, perhaps cut"""
    created_at: float
    user: str = ""
    cwd: str = ""
    stdin: bool = False
    terminal: TerminalSize | None = None
    number: int = 0
    """sandbox-init's for it; 0 while STARTING"""
    pid: int = 0
    """of its first process, as the sandbox sees it"""
    machine: str = ""
    """which machine it runs on: a sandbox that is started again has another"""
    started_at: float | None = None
    ended_at: float | None = None
    deadline: float | None = None
    """when it is killed, if it still runs"""
    oom_kills: int = 0
    """the sandbox's, before it started"""
    exited: CommandExited | None = None
    unlogged: int = 0
    """bytes of output that never reached the log, all told; known at the end"""
    survivors: bool = False
    """processes it started outlived it, and sandbox-init still knows them"""

    @property
    def ended(self) -> bool:
        return not COMMAND_TRANSITIONS[self.status]


CommandEvent = CommandStarted | OutputChunk | OutputGap | StdinAccepted | CommandExited


# -- files --------------------------------------------------------------------------------------------------------


FileType = Literal["file", "directory", "symlink", "fifo", "socket", "char", "block", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    path: str
    type: FileType
    size: int
    mode: int
    uid: int
    gid: int
    owner: str
    group: str
    modified_at: float
    target: str | None = None


# -- watches ------------------------------------------------------------------------------------------------------


class WatchSource(enum.StrEnum):
    CHANGES = "changes"
    """create, modify and remove, folded together within moments"""
    RAW = "raw"
    """create, write, chmod, rename and remove, each as the kernel tells it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSpec:
    path: str
    """absolute"""
    recursive: bool = True
    ignore: tuple[str, ...] = ()
    """patterns as of fnmatch(3): with a slash for paths relative to the directory, without for any name"""
    source: WatchSource = WatchSource.CHANGES
    user: str = ""


@dataclass(frozen=True, slots=True)
class StoredWatch:
    """What of a watch outlives the daemon."""

    id: str
    sandbox: str
    created_at: float
    spec: WatchSpec


class WatchEventType(enum.StrEnum):
    CREATE = "create"
    MODIFY = "modify"
    WRITE = "write"
    CHMOD = "chmod"
    RENAME = "rename"
    REMOVE = "remove"
    OVERFLOW = "overflow"
    ENDED = "ended"


class OverflowReason(enum.StrEnum):
    READER = "reader"
    """this reader fell behind what is kept"""
    KERNEL = "kernel"
    """more happened than could be told"""
    RESTART = "restart"
    """the watch was begun again, and nobody watched in between"""
    LIMIT = "limit"
    """a directory cannot be watched: too many of them, or its path is too long"""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    id: int
    """grows, also across restarts of the daemon"""
    type: WatchEventType
    path: str
    """relative to the watched directory, which itself is "."; bytes that are no UTF-8 as surrogates"""
    is_directory: bool
    cookie: int = 0
    """joins the rename of the old name and the create of the new one, if not 0"""
    reason: OverflowReason | None = None


# -- events, metrics, keys ----------------------------------------------------------------------------------------


class EventKind(enum.StrEnum):
    CREATED = "created"
    STARTED = "started"
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPED = "stopped"
    EXITED = "exited"
    OOM = "oom"
    EXPIRED = "expired"
    DELETED = "deleted"
    SNAPSHOT = "snapshot"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    id: int
    """grows by one per event and survives restarts, so a client can resume after the last one it saw"""
    at: float
    kind: EventKind
    sandbox: str
    facts: Mapping[str, Any] = field(default_factory=lambda: EMPTY)


class Scope(enum.StrEnum):
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What the holder of a key may use; None is not bounded."""

    sandboxes: int | None = None
    """that exist at a time, in whatever state"""
    memory: int | None = None
    """bytes, of all their limits together"""
    disk: int | None = None
    """bytes, of all their limits together, and of the snapshots'"""
    snapshots: int | None = None
    """that exist at a time, imported ones too"""
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    quota: Quota = field(default_factory=Quota)
    own: bool = False
    """it sees and touches what it created alone"""
    last_used_at: float | None = None
