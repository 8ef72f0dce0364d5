"""Sandboxes: create, list, get, delete, lifetime, sleep, metrics."""

import dataclasses
from collections.abc import Mapping
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
    mapping_bytes,
)
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.pages import page_of
from sandboxd.http.kit.routes import Route
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
    milliseconds,
    rfc3339_time,
    seconds,
)
from sandboxd.model import ExpiryAction, Limits, Sandbox, SandboxSpec, SandboxState, Scope
from sandboxd.service.sandboxes import expiry
from sandboxd.service.sandboxes.metrics import Metrics

# What a client asks for, and is told, under the names that it has here. `image` and `limits` mean something else.
_SAME = {field.name for field in dataclasses.fields(SandboxSpec)} - {"image", "limits"}


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
            timeout=seconds(self.timeout_ms),
            idle_timeout=seconds(self.idle_timeout_ms),
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
            idle_timeout_ms=milliseconds(spec.idle_timeout),
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


async def create(call: Call) -> SandboxView:
    spec = call.body.to_domain()
    if call.body.snapshot is not None:
        snapshot = call.find_snapshot(call.body.snapshot)
        return _view(call, await call.service.create_from(snapshot, spec, owner=call.owner))
    return _view(call, await call.service.create(spec, owner=call.owner))


async def list_all(call: Call) -> SandboxList:
    wanted = {
        name.removeprefix("metadata."): value for name, value in call.arguments.items() if name[:9] == "metadata."
    }
    matching = [
        sandbox
        for sandbox in call.service.sandboxes.all()
        if call.sees(sandbox) and _matches(sandbox, call.query.status, wanted)
    ]
    page, cursor = page_of(matching, key=cursor_of, size=_size, cursor=call.query.cursor, limit=call.query.limit)
    return SandboxList(sandboxes=[_view(call, sandbox) for sandbox in page], next_cursor=cursor)


def _size(sandbox: Sandbox) -> int:
    return mapping_bytes(sandbox.spec.env) + mapping_bytes(sandbox.spec.metadata)


def cursor_of(sandbox: Sandbox) -> str:
    """Sorts as sandboxes are listed, and stays valid when the sandbox it names is gone."""
    return f"{sandbox.created_at:020.6f}-{sandbox.id}"


def _matches(sandbox: Sandbox, status: str | None, metadata: Mapping[str, str]) -> bool:
    return (status is None or sandbox.state == status) and metadata.items() <= sandbox.spec.metadata.items()


async def get(call: Call) -> SandboxView:
    return _view(call, call.entry.sandbox)


async def delete(call: Call) -> Deleted:
    await call.service.lifecycle.delete(call.entry)
    return Deleted(id=call.entry.sandbox.id)


async def set_timeout(call: Call) -> SandboxView:
    body, lifecycle = call.body, call.service.lifecycle
    given = body.model_fields_set
    if "timeout_ms" in given:
        lifetime = call.service.admission.check_lifetime(seconds(body.timeout_ms))
        await lifecycle.set_lifetime(call.entry, lifetime, on_timeout=body.on_timeout, only_extend=body.only_extend)
    if "idle_timeout_ms" in given:
        await lifecycle.set_idle_timeout(call.entry, seconds(body.idle_timeout_ms))
    return _view(call, call.entry.sandbox)


async def touch(call: Call) -> SandboxView:
    return _view(call, call.service.lifecycle.touch(call.entry))


async def pause(call: Call) -> SandboxView:
    return _view(call, await call.service.lifecycle.pause(call.entry))


async def resume(call: Call) -> SandboxView:
    return _view(call, await call.service.lifecycle.resume(call.entry))


async def stop(call: Call) -> SandboxView:
    return _view(call, await call.service.lifecycle.stop(call.entry, grace=call.body.grace_ms / 1000))


async def start(call: Call) -> SandboxView:
    return _view(call, await call.service.lifecycle.start(call.entry))


async def metrics(call: Call) -> MetricsView:
    return MetricsView.of(await call.service.metrics.read(call.entry))


def _view(call: Call, sandbox: Sandbox) -> SandboxView:
    return SandboxView.of(sandbox, call.service.node)


READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"

# fmt: off
SANDBOX_ROUTES = (
    Route(method="POST", path="/v1/sandboxes", handler=create, scope=WRITE, optional_body=True,
          body=CreateSandbox, response=SandboxView, status=201, summary="Create a sandbox"),
    Route(method="GET", path="/v1/sandboxes", handler=list_all, scope=READ,
          query=ListQuery, free_arguments="metadata.", response=SandboxList,
          summary="List sandboxes, oldest first; metadata.KEY=VALUE filters by metadata"),
    Route(method="GET", path=SANDBOX, handler=get, scope=READ,
          response=SandboxView, summary="One sandbox, by id or name"),
    Route(method="DELETE", path=SANDBOX, handler=delete, scope=WRITE,
          response=Deleted, summary="Destroy a sandbox"),
    Route(method="POST", path=f"{SANDBOX}/timeout", handler=set_timeout, scope=WRITE,
          body=SetTimeout, response=SandboxView, summary="Set how long it may live, or be idle, from now on"),
    Route(method="POST", path=f"{SANDBOX}/touch", handler=touch, scope=WRITE,
          response=SandboxView, summary="Count it as used now, so that it is not idle"),
    Route(method="POST", path=f"{SANDBOX}/pause", handler=pause, scope=WRITE,
          response=SandboxView, summary="Freeze every process; memory and files stay"),
    Route(method="POST", path=f"{SANDBOX}/resume", handler=resume, scope=WRITE,
          response=SandboxView, summary="Let a paused sandbox go on from where it stood"),
    Route(method="POST", path=f"{SANDBOX}/stop", handler=stop, scope=WRITE, optional_body=True,
          body=Stop, response=SandboxView, summary="End every process; files stay"),
    Route(method="POST", path=f"{SANDBOX}/start", handler=start, scope=WRITE,
          response=SandboxView, summary="Start a stopped or exited sandbox over its files"),
    Route(method="GET", path=f"{SANDBOX}/metrics", handler=metrics, scope=READ,
          response=MetricsView, summary="What it uses now"),
)
# fmt: on
