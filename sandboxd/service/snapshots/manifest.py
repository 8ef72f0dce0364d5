"""The first member of a snapshot's file: what the snapshot is, as JSON.

Whoever holds a file may have written it, so nothing in it is believed that the API would not take from a client:
each field has the type that it has in the body of a creation (sandboxd.constraints). Who owns what is imported is not
in the file at all; files of older daemons name an owner, which is passed over.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sandboxd.constraints import (
    BandwidthLimit,
    CpuLimit,
    CpuWeight,
    Description,
    DiskLimit,
    Hostname,
    ImageName,
    Lifetime,
    MemoryLimit,
    Metadata,
    Name,
    OptionalPath,
    ProcessLimit,
    SwapLimit,
    UserName,
    WholeEnv,
)
from sandboxd.model import ExpiryAction, Image, Limits, SandboxSpec, Snapshot

FORMAT: Final = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Limits(_Part):
    memory: MemoryLimit | None = None
    swap: SwapLimit | None = None
    pids: ProcessLimit | None = None
    cpus: CpuLimit | None = None
    cpu_weight: CpuWeight | None = None
    read_bps: BandwidthLimit | None = None
    write_bps: BandwidthLimit | None = None
    disk: DiskLimit | None = None


class _Spec(_Part):
    """Of the sandbox that the snapshot was taken of. `image` is a digest."""

    image: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    image_name: ImageName
    name: Name | None = None
    env: WholeEnv = {}
    metadata: Metadata = {}
    limits: _Limits = _Limits()
    user: UserName = ""
    workdir: OptionalPath = ""
    hostname: Hostname = "sandbox"
    timeout: Lifetime | None = None
    on_timeout: ExpiryAction = ExpiryAction.KILL
    idle_timeout: Lifetime | None = None
    on_idle: ExpiryAction | None = None
    auto_resume: bool = False


class Manifest(_Part):
    format: Literal[1]
    spec: _Spec
    id_base: Literal[0, 1]
    """what is to be taken off the owners in the archive"""
    created_at: Annotated[float, Field(ge=0, lt=2**53)]
    name: Name | None = None
    description: Description = ""
    metadata: Metadata = {}

    def sandbox_spec(self, image: Image, *, owner: str | None) -> SandboxSpec:
        """The description for a snapshot here, on `image`, which the manifest names, and of the key `owner`."""
        fields = {name: getattr(self.spec, name) for name in _Spec.model_fields}
        fields |= {
            "image": image.digest,
            "image_name": self.spec.image_name if self.spec.image_name in image.names else _name(image),
            "limits": Limits(**dict(self.spec.limits)),
            "owner": owner,
        }
        return SandboxSpec(**fields)


def _name(image: Image) -> str:
    return image.names[0] if image.names else image.digest


def manifest_of(snapshot: Snapshot, *, id_base: int) -> bytes:
    """The manifest of a snapshot of this daemon, as JSON."""
    spec = snapshot.spec
    fields = {name: getattr(spec, name) for name in _Spec.model_fields}
    fields |= {"env": dict(spec.env), "metadata": dict(spec.metadata)}
    fields["limits"] = _Limits.model_validate(spec.limits, from_attributes=True)
    manifest = Manifest.model_construct(
        format=FORMAT,
        spec=_Spec.model_construct(**fields),
        id_base=id_base,
        created_at=snapshot.created_at,
        name=snapshot.name,
        description=snapshot.description,
        metadata=dict(snapshot.metadata),
    )
    return manifest.model_dump_json().encode()
