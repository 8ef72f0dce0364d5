"""Akira's bodies. Documented are `image` to create with, and `id`, `status`, `created_at` in answers, no more.

Times are RFC 3339 in UTC, durations seconds, sizes bytes.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from sandboxd.constraints import MAX_ENVIRONMENT, bounded_mapping
from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.encoding import base64_field
from sandboxd.model import CommandSpec, Sandbox, SandboxSpec, Snapshot
from sandboxd.service.commands.attached import CommandResult
from sandboxd.service.sandboxes.metrics import Metrics

# Its own name for what a sandbox is made of by default.
DEFAULT_IMAGE = "akiralabs/akira-default-sandbox"

DAY = 86400.0


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
Path = Annotated[Text, StringConstraints(min_length=1, max_length=4095)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
Env = Annotated[
    dict[EnvName, Annotated[Text, StringConstraints(max_length=131_000)]],
    Field(max_length=MAX_ENVIRONMENT),
    AfterValidator(bounded_mapping),
]
Seconds = Annotated[float, Field(gt=0, le=30 * DAY, allow_inf_nan=False)]
Command = Annotated[Text, StringConstraints(min_length=1, max_length=131_071)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Error(Answer):
    code: str
    message: str


class ErrorBody(Answer):
    error: Error


# -- sandboxes ----------------------------------------------------------------------------------------------------


class CreateSandbox(Request):
    image: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    env: Env = {}
    timeout: Seconds | None = None
    """lifetime"""

    def to_domain(self) -> SandboxSpec:
        name = "" if self.image == DEFAULT_IMAGE else self.image
        return SandboxSpec(image="", image_name=name, env=self.env, timeout=self.timeout)


class SandboxView(Answer):
    id: str
    status: str
    image: str
    created_at: datetime

    @classmethod
    def of(cls, sandbox: Sandbox) -> Self:
        return cls(
            id=sandbox.id,
            status=sandbox.state,
            image=sandbox.spec.image_name,
            created_at=datetime.fromtimestamp(sandbox.created_at, UTC),
        )


class SandboxList(Answer):
    sandboxes: list[SandboxView]


class Deleted(Answer):
    id: str
    status: str = "deleted"


class AllDeleted(Answer):
    deleted: list[str]


class StatusView(Answer):
    id: str
    status: str
    created_at: datetime
    uptime: float
    cpu_percent: float | None
    memory_bytes: int
    memory_percent: float | None
    processes: int

    @classmethod
    def of(cls, sandbox: Sandbox, metrics: Metrics) -> Self:
        return cls(
            id=sandbox.id,
            status=sandbox.state,
            created_at=datetime.fromtimestamp(sandbox.created_at, UTC),
            uptime=round(metrics.uptime, 3),
            cpu_percent=metrics.cpu_percent,
            memory_bytes=metrics.memory,
            memory_percent=metrics.memory_percent,
            processes=metrics.pids,
        )


# -- commands -----------------------------------------------------------------------------------------------------


class Execute(Request):
    command: Command
    """for the sandbox's shell"""
    cwd: Path | None = None
    env: Env = {}
    timeout: Seconds | None = None
    """then it is killed, with all it started"""

    def to_domain(self) -> CommandSpec:
        return CommandSpec(argv=(self.command,), shell=True, cwd=self.cwd or "", env=self.env, timeout=self.timeout)


class Executed(Answer):
    stdout: str
    stderr: str
    exit_code: int
    """128 + n when signal n ended it"""
    timed_out: bool
    truncated: bool
    duration: float


def executed(result: CommandResult) -> dict[str, Any]:
    """An Executed, in which the texts are still to be made, piece by piece."""
    exited = result.exited
    return {
        "stdout": result.stdout.text(),
        "stderr": result.stderr.text(),
        "exit_code": exited.status or 0,
        "timed_out": exited.timed_out,
        "truncated": result.truncated,
        "duration": round(exited.duration, 3),
    }


# -- files --------------------------------------------------------------------------------------------------------


class FileQuery(Request):
    path: Path


class UploadQuery(Request):
    path: Path | None = None
    """of a file whose content is the body; without it the body is JSON"""


class Upload(Request):
    path: Path
    content: str | None = None
    """text; or"""
    content_base64: str | None = None

    def data(self) -> bytes:
        """Raises: InvalidRequest."""
        if (self.content is None) == (self.content_base64 is None):
            raise InvalidRequest("cannot upload: give one of content and content_base64")
        if self.content is not None:
            return self.content.encode("utf-8", "surrogatepass")
        return base64_field(self.content_base64 or "", "content_base64")


class Uploaded(Answer):
    path: str
    size: int


# -- snapshots ----------------------------------------------------------------------------------------------------


class TakeSnapshot(Request):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")] | None = None
    description: Annotated[str, StringConstraints(max_length=4096)] = ""


class SnapshotView(Answer):
    id: str
    status: str = "ready"
    name: str | None
    description: str
    sandbox_id: str | None
    created_at: datetime

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        return cls(
            id=snapshot.id,
            name=snapshot.name,
            description=snapshot.description,
            sandbox_id=snapshot.sandbox,
            created_at=datetime.fromtimestamp(snapshot.created_at, UTC),
        )


class SnapshotList(Answer):
    snapshots: list[SnapshotView]


class Nothing(Request):
    """An empty object, or no body."""


class Restore(Request):
    sandbox_id: str | None = None
    """to put back, in place; without it a new sandbox is made"""
