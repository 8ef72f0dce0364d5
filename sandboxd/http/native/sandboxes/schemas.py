"""Sandboxes, their metrics and their events on the wire."""

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sandboxd.constraints import (
    BandwidthLimit,
    CpuLimit,
    CpuWeight,
    DiskLimit,
    MemoryLimit,
    ProcessLimit,
    SwapLimit,
)
from sandboxd.http.native.fields import (
    DAY_MS,
    BackendName,
    Env,
    Hostname,
    ImageName,
    Metadata,
    Name,
    OptionalPath,
    Request,
    Response,
    UserName,
    rfc3339_time,
)
from sandboxd.model import Event, ExpiryAction, Limits, Sandbox, SandboxSpec, SandboxState
from sandboxd.service.sandboxes import expiry
from sandboxd.service.sandboxes.metrics import Metrics

# What a client asks for, and is told, under the names that it has here. `image` and `limits` mean something else.
_SAME = {field.name for field in dataclasses.fields(SandboxSpec)} - {"image", "limits"}


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


class LimitsModel(Request):
    """What the sandbox may use. A limit that this host cannot enforce is refused (see GET /v1/capabilities)."""

    memory_bytes: MemoryLimit | None = None
    swap_bytes: SwapLimit | None = None
    pids: ProcessLimit | None = None
    cpus: CpuLimit | None = None
    cpu_weight: CpuWeight | None = None
    read_bps: BandwidthLimit | None = None
    write_bps: BandwidthLimit | None = None
    disk_bytes: DiskLimit | None = None
    """that it may write over what it stands on"""

    def to_domain(self) -> Limits:
        return Limits(
            memory=self.memory_bytes,
            swap=self.swap_bytes,
            pids=self.pids,
            cpus=self.cpus,
            cpu_weight=self.cpu_weight,
            read_bps=self.read_bps,
            write_bps=self.write_bps,
            disk=self.disk_bytes,
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
            disk_bytes=limits.disk,
        )


class CreateSandbox(Request):
    image: ImageName | None = None
    snapshot: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """to begin with the files of; what is not given here is then as in the sandbox it was taken of"""
    name: Name | None = None
    env: Env | None = None
    metadata: Metadata | None = None
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """lifetime from now on; without one the sandbox lives until it is deleted"""
    on_timeout: ExpiryAction = ExpiryAction.KILL
    """what happens at its end; a lifetime that ended in a pause or a stop begins anew when it runs again"""
    idle_timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """how long nothing may have needed it (commands, files, terminals, ports); without one for ever"""
    on_idle: ExpiryAction | None = None
    """what happens then; by default the same as on_timeout"""
    auto_resume: bool = False
    """let whatever needs it while it is paused, stopped or exited resume or start it first"""
    limits: LimitsModel = LimitsModel()
    user: UserName = ""
    workdir: OptionalPath = ""
    hostname: Hostname | None = None
    backend: BackendName | None = None
    """what isolates it: one of `backends` of GET /v1/capabilities"""

    def to_domain(self) -> SandboxSpec:
        """`image` is still a name here, and may be empty; the service fills it in."""
        same = {name: getattr(self, name) for name in _SAME & type(self).model_fields.keys()}
        return SandboxSpec(
            image="",
            image_name=self.image or "",
            limits=self.limits.to_domain(),
            timeout=_seconds(self.timeout_ms),
            idle_timeout=_seconds(self.idle_timeout_ms),
            **{name: value for name, value in same.items() if value is not None},
        )


class SandboxView(Response):
    id: str
    name: str | None
    status: SandboxState
    image: str
    image_digest: str
    snapshot: str | None
    """whose files it began with, or was put back to, last"""
    created_at: datetime
    started_at: datetime | None
    paused_at: datetime | None
    ended_at: datetime | None
    end_at: datetime | None
    """when its lifetime is over"""
    end_reason: str | None
    on_timeout: ExpiryAction
    idle_timeout_ms: int | None
    on_idle: ExpiryAction
    auto_resume: bool
    metadata: dict[str, str]
    env: dict[str, str]
    limits: LimitsModel
    user: str
    workdir: str
    hostname: str
    backend: str
    node_id: str

    @classmethod
    def of(cls, sandbox: Sandbox, node: str) -> Self:
        spec = sandbox.spec
        fields = {name: getattr(spec, name) for name in _SAME & cls.model_fields.keys()} | {
            "on_idle": spec.on_idle or spec.on_timeout,
            "metadata": dict(spec.metadata),
            "env": dict(spec.env),
        }
        return cls.model_construct(
            **fields,
            id=sandbox.id,
            status=sandbox.state,
            image=spec.image_name,
            image_digest=spec.image,
            snapshot=sandbox.snapshot,
            created_at=rfc3339_time(sandbox.created_at),
            started_at=rfc3339_time(sandbox.started_at),
            paused_at=rfc3339_time(sandbox.paused_at),
            ended_at=rfc3339_time(sandbox.ended_at),
            end_at=rfc3339_time(expiry.shown(sandbox.deadline, expiry.now())),
            end_reason=sandbox.end_reason,
            idle_timeout_ms=None if spec.idle_timeout is None else round(spec.idle_timeout * 1000),
            limits=LimitsModel.of(spec.limits),
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
    timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """lifetime from now on; null: until deleted"""
    on_timeout: ExpiryAction | None = None
    """what happens at its end; left as it is when not given"""
    only_extend: bool = False
    """leave it alone if it would end later anyway"""
    idle_timeout_ms: Annotated[int, Field(ge=1, le=30 * DAY_MS)] | None = None
    """how long it may be idle; null: for ever"""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set & {"timeout_ms", "idle_timeout_ms"}:
            raise ValueError("give timeout_ms or idle_timeout_ms")
        return self


class Stop(Request):
    grace_ms: Annotated[int, Field(ge=0, le=600_000)] = 5000
    """what processes have after SIGTERM before they are killed; 0 kills at once"""


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
            id=event.id, at=rfc3339_time(event.at), kind=event.kind, sandbox=event.sandbox, details=dict(event.facts)
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
