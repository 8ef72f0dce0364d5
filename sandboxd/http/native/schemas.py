"""What travels on the wire of /v1: requests that are checked here once, responses, and how values become them.

Times are RFC 3339 in UTC, durations whole milliseconds (`_ms`), sizes bytes (`_bytes`).
"""

import base64
import binascii
import dataclasses
import signal
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sandboxd.errors import InvalidRequest
from sandboxd.model import (
    ApiKey,
    CommandExited,
    CommandResult,
    CommandSpec,
    Event,
    Image,
    Limits,
    Sandbox,
    SandboxSpec,
    SandboxState,
    Scope,
    TerminalSize,
)
from sandboxd.service.metrics import Metrics

MAX_STDIN_IN_JSON = 32 * 1024 * 1024
MAX_ENVIRONMENT = 256
DAY_MS = 24 * 3600 * 1000


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains a control character")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("it must be an absolute path, beginning with /")
    return _without_nul(text)


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Hostname = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$")]
ImageName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
UserName = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.:$-]*$")]
Path = Annotated[str, StringConstraints(max_length=4095), AfterValidator(_absolute)]
OptionalPath = Annotated[
    str, StringConstraints(max_length=4095), AfterValidator(lambda text: text and _absolute(text))
]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
EnvValue = Annotated[str, StringConstraints(max_length=131_000), AfterValidator(_without_nul)]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=MAX_ENVIRONMENT)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]
Metadata = Annotated[
    dict[MetadataKey, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=MAX_ENVIRONMENT)
]
# One argument may have 128 KiB (MAX_ARG_STRLEN in the kernel, with its final NUL).
Argument = Annotated[str, StringConstraints(max_length=131_071), AfterValidator(_without_nul)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Response(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


# -- sandboxes ----------------------------------------------------------------------------------------------------


class LimitsModel(Request):
    """What the sandbox may use. A limit that this host cannot enforce is refused (see GET /v1/capabilities)."""

    memory_bytes: Annotated[int, Field(ge=4 * 1024 * 1024, le=2**50)] | None = None
    swap_bytes: Annotated[int, Field(ge=0, le=2**50)] | None = None
    pids: Annotated[int, Field(ge=8, le=4_194_304)] | None = None
    cpus: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    read_bps: Annotated[int, Field(ge=4096, le=2**50)] | None = None
    write_bps: Annotated[int, Field(ge=4096, le=2**50)] | None = None

    def to_domain(self) -> Limits:
        return Limits(
            memory=self.memory_bytes,
            swap=self.swap_bytes,
            pids=self.pids,
            cpus=self.cpus,
            cpu_weight=self.cpu_weight,
            read_bps=self.read_bps,
            write_bps=self.write_bps,
        )

    @classmethod
    def of(cls, limits: Limits) -> Self:
        return cls.model_construct(
            memory_bytes=limits.memory,
            swap_bytes=limits.swap,
            pids=limits.pids,
            cpus=limits.cpus,
            cpu_weight=limits.cpu_weight,
            read_bps=limits.read_bps,
            write_bps=limits.write_bps,
        )


class CreateSandbox(Request):
    image: ImageName | None = None
    name: Name | None = None
    env: Env | None = None
    metadata: Metadata | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """lifetime from now on; without one the sandbox lives until it is deleted"""
    limits: LimitsModel = LimitsModel()
    user: UserName = ""
    workdir: OptionalPath = ""
    hostname: Hostname | None = None

    def to_domain(self) -> SandboxSpec:
        """`image` is still a name here, and may be empty; the service fills it in."""
        return SandboxSpec(
            image="",
            image_name=self.image or "",
            name=self.name,
            env=self.env or {},
            metadata=self.metadata or {},
            limits=self.limits.to_domain(),
            user=self.user,
            workdir=self.workdir,
            hostname=self.hostname or "sandbox",
            timeout=None if self.timeout_ms is None else self.timeout_ms / 1000,
        )


class SandboxView(Response):
    id: str
    name: str | None
    status: SandboxState
    image: str
    image_digest: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    end_at: datetime | None
    """when its lifetime is over"""
    end_reason: str | None
    metadata: dict[str, str]
    env: dict[str, str]
    limits: LimitsModel
    user: str
    workdir: str
    hostname: str
    node_id: str

    @classmethod
    def of(cls, sandbox: Sandbox, node: str) -> Self:
        spec = sandbox.spec
        return cls.model_construct(
            id=sandbox.id,
            name=spec.name,
            status=sandbox.state,
            image=spec.image_name,
            image_digest=spec.image,
            created_at=_time(sandbox.created_at),
            started_at=_time(sandbox.started_at),
            ended_at=_time(sandbox.ended_at),
            end_at=_time(sandbox.expires_at),
            end_reason=sandbox.end_reason,
            metadata=dict(spec.metadata),
            env=dict(spec.env),
            limits=LimitsModel.of(spec.limits),
            user=spec.user,
            workdir=spec.workdir,
            hostname=spec.hostname,
            node_id=node,
        )


class SandboxList(Response):
    sandboxes: list[SandboxView]
    next_cursor: str | None
    """give it as `cursor` to read on; null at the end"""


class ListQuery(Request):
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str, StringConstraints(max_length=64)] = ""
    status: SandboxState | None = None


class Deleted(Response):
    id: str
    status: Literal["deleted"] = "deleted"


class SetTimeout(Request):
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None
    """lifetime from now on; null: until deleted"""


# -- commands -----------------------------------------------------------------------------------------------------


class TerminalModel(Request):
    cols: Annotated[int, Field(ge=1, le=65535)] = 80
    rows: Annotated[int, Field(ge=1, le=65535)] = 24

    def to_domain(self) -> TerminalSize:
        return TerminalSize(cols=self.cols, rows=self.rows)


class _Command(Request):
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


class Shell(_Command):
    stdin: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    stdin_b64: Annotated[str, StringConstraints(max_length=MAX_STDIN_IN_JSON)] | None = None
    max_output_bytes: Annotated[int, Field(ge=0, le=2**40)] | None = None
    """of each stream; what is beyond is dropped, and `truncated` says so"""
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
        except binascii.Error as error:
            raise InvalidRequest(f"cannot decode stdin_b64: {error}") from error


class ExecStart(_Command):
    type: Literal["start"]
    stdin: bool = False
    terminal: TerminalModel | None = None


class ExecResize(TerminalModel):
    type: Literal["resize"]


class ExecSignal(Request):
    type: Literal["signal"]
    signal: str | int
    scope: Literal["leader", "group", "tree"] = "group"

    def number(self) -> int:
        """Raises: InvalidRequest for a signal that Linux does not have."""
        try:
            return int(signal.Signals(self.signal) if isinstance(self.signal, int) else signal.Signals[self.signal])
        except (KeyError, ValueError):
            raise InvalidRequest(f"cannot send signal {self.signal!r}: use a name like SIGTERM") from None


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


class ShellResult(ExitView):
    stdout: str
    stderr: str
    encoding: Encoding
    truncated: bool

    @classmethod
    def from_result(cls, result: CommandResult, encoding: Encoding) -> Self:
        return cls.model_construct(
            stdout=encode_output(result.stdout, encoding),
            stderr=encode_output(result.stderr, encoding),
            encoding=encoding,
            truncated=result.truncated,
            **exit_facts(result.exited),
        )


def encode_output(data: bytes, encoding: Encoding) -> str:
    return base64.b64encode(data).decode() if encoding == "base64" else data.decode("utf-8", "replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


# -- files --------------------------------------------------------------------------------------------------------


class FileQuery(Request):
    path: Path
    user: UserName = ""


class UploadQuery(FileQuery):
    mode: Annotated[str, StringConstraints(pattern=r"^0?[0-7]{3,4}$")] = "0644"
    """permission bits, octal"""
    parents: bool = False
    """make missing directories on the way"""


class Uploaded(Response):
    path: str
    size: int


# -- metrics and events -------------------------------------------------------------------------------------------


class MetricsView(Response):
    cpu_pct: float | None
    """of one processor, since the last question"""
    mem_used_mb: float
    mem_pct: float | None
    """of the memory limit, or of the machine's memory where there is none"""
    pids: int
    net_rx_bytes: int
    net_tx_bytes: int
    uptime_s: float
    limits: LimitsModel
    cgroup: dict[str, Any] | None
    """counters of the sandbox's cgroup, null where the host does not count them"""

    @classmethod
    def of(cls, metrics: Metrics) -> Self:
        return cls(
            cpu_pct=None if metrics.cpu_percent is None else round(metrics.cpu_percent, 2),
            mem_used_mb=round(metrics.memory / 1e6, 3),
            mem_pct=None if metrics.memory_percent is None else round(metrics.memory_percent, 3),
            pids=metrics.pids,
            net_rx_bytes=metrics.received,
            net_tx_bytes=metrics.sent,
            uptime_s=round(metrics.uptime, 3),
            limits=LimitsModel.of(metrics.limits),
            cgroup=None if metrics.cgroup is None else dataclasses.asdict(metrics.cgroup),
        )


class EventView(Response):
    id: int
    at: datetime
    kind: str
    sandbox: str
    details: dict[str, Any]

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls.model_construct(
            id=event.id, at=_time(event.at), kind=event.kind, sandbox=event.sandbox, details=dict(event.facts)
        )


class EventList(Response):
    events: list[EventView]
    next_after: int
    """give it as `after` to read on"""


class EventQuery(Request):
    after: Annotated[int, Field(ge=0, le=2**62)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    sandbox: Annotated[str, StringConstraints(max_length=64)] | None = None
    follow: bool = False
    """stream events as they happen (SSE); so does `Accept: text/event-stream`"""


# -- images, keys, the daemon -------------------------------------------------------------------------------------


class ImageView(Response):
    digest: str
    names: list[str]
    created_at: datetime
    size_bytes: int
    user: str
    workdir: str
    source: str

    @classmethod
    def of(cls, image: Image) -> Self:
        return cls.model_construct(
            digest=image.digest,
            names=list(image.names),
            created_at=_time(image.created_at),
            size_bytes=image.size,
            user=image.user,
            workdir=image.workdir,
            source=image.source,
        )


class ImageList(Response):
    images: list[ImageView]


class ImportQuery(Request):
    name: ImageName


class BuildImage(Request):
    recipe: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    rebuild: bool = False


class ImageDeleted(Response):
    image: str
    status: Literal["deleted"] = "deleted"


class CreateKey(Request):
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] = [Scope.READ, Scope.WRITE]


class KeyView(Response):
    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    last_used_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls.model_construct(**_key_facts(key))


class CreatedKey(KeyView):
    key: str
    """the secret itself; it is shown this once"""

    @classmethod
    def with_secret(cls, key: ApiKey, secret: str) -> Self:
        return cls.model_construct(**_key_facts(key), key=secret)


def _key_facts(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": _time(key.created_at),
        "last_used_at": _time(key.last_used_at),
    }


class KeyList(Response):
    keys: list[KeyView]


class KeyRevoked(Response):
    id: str
    status: Literal["revoked"] = "revoked"


class Health(Response):
    status: Literal["ok"] = "ok"
    version: str
    uptime_s: float
    sandboxes: int


class CapabilitiesView(Response):
    version: str
    backend: str
    rootless: bool
    default_image: str
    limits: dict[str, bool]
    """which limits this host can enforce"""
    limits_reason: str
    max_timeout_ms: int
    max_sandboxes: int
    networks: list[str]


class ErrorBody(Response):
    """Every 4xx and 5xx."""

    error: str
    kind: str
    details: dict[str, Any]


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
