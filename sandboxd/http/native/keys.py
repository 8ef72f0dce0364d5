"""API keys."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints

from sandboxd.http.kit.call import Call
from sandboxd.http.kit.routes import Route
from sandboxd.http.native.fields import Request, Response, rfc3339_time
from sandboxd.model import ApiKey, Quota, Scope
from sandboxd.service.access.holdings import Holdings
from sandboxd.service.access.quotas import TIERS


class CreateKey(Request):
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] = [Scope.READ, Scope.WRITE]  # noqa: RUF012

    tier: Literal["beta", "pro", "unlimited"] = "unlimited"
    """what it may use: 60 requests a minute and 10 sandboxes, 300 and 50, or whatever the daemon holds"""
    max_sandboxes: Annotated[int, Field(ge=0, le=20_000)] | None = None
    """in place of the tier's"""
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """in place of the tier's"""
    max_memory_bytes: Annotated[int, Field(ge=4 * 1024 * 1024, le=2**50)] | None = None
    """of its sandboxes' limits together; one without a limit gets an equal share"""
    max_disk_bytes: Annotated[int, Field(ge=4 * 1024 * 1024, le=2**50)] | None = None
    """of its sandboxes' limits and its snapshots together"""
    max_snapshots: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """in place of the tier's: 50, 500, or as many as the disk holds"""
    own: bool = False
    """let it see and touch only what it has created"""

    def to_quota(self) -> Quota:
        tier = TIERS[self.tier]
        return Quota(
            sandboxes=tier.sandboxes if self.max_sandboxes is None else self.max_sandboxes,
            requests_per_minute=self.requests_per_minute or tier.requests_per_minute,
            memory=self.max_memory_bytes,
            disk=self.max_disk_bytes,
            snapshots=tier.snapshots if self.max_snapshots is None else self.max_snapshots,
        )


class QuotaView(Response):
    """null is not bounded"""

    max_sandboxes: int | None
    requests_per_minute: int | None
    max_memory_bytes: int | None
    max_disk_bytes: int | None
    max_snapshots: int | None

    @classmethod
    def of(cls, quota: Quota) -> Self:
        return cls(
            max_sandboxes=quota.sandboxes,
            requests_per_minute=quota.requests_per_minute,
            max_memory_bytes=quota.memory,
            max_disk_bytes=quota.disk,
            max_snapshots=quota.snapshots,
        )


class UsageView(Response):
    """What is held at the moment, as quotas count it: by the key that asks, or for an administrator by everybody."""

    key_id: str | None
    """null: everybody's"""
    quota: QuotaView
    sandboxes: int
    memory_bytes: int
    """of the sandboxes' limits together"""
    disk_bytes: int
    """of the sandboxes' limits and of the snapshots together, which is what the quota bounds"""
    snapshots: int
    snapshot_bytes: int

    @classmethod
    def of(cls, key: ApiKey | None, held: Holdings) -> Self:
        return cls(
            key_id=None if key is None else key.id,
            quota=QuotaView.of(Quota() if key is None else key.quota),
            sandboxes=held.sandboxes,
            memory_bytes=held.memory,
            disk_bytes=held.disk,
            snapshots=held.snapshots,
            snapshot_bytes=held.snapshot_disk,
        )


class KeyView(Response):
    id: str
    name: str
    scopes: list[Scope]
    quota: QuotaView
    own: bool
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
        "quota": QuotaView.of(key.quota),
        "own": key.own,
        "created_at": rfc3339_time(key.created_at),
        "last_used_at": rfc3339_time(key.last_used_at),
    }


class KeyList(Response):
    keys: list[KeyView]


class KeyRevoked(Response):
    id: str
    status: Literal["revoked"] = "revoked"


async def create(call: Call) -> CreatedKey:
    body = call.body
    new = await call.service.keys.create(body.name, frozenset(body.scopes), quota=body.to_quota(), own=body.own)
    return CreatedKey.with_secret(new.key, new.secret)


async def list_all(call: Call) -> KeyList:
    return KeyList(keys=[KeyView.of(key) for key in call.service.keys.all()])


async def usage(call: Call) -> UsageView:
    return UsageView.of(call.caller, call.service.admission.holdings(call.owner))


async def revoke(call: Call, key: str) -> KeyRevoked:
    await call.service.keys.revoke(key)
    return KeyRevoked(id=key)


ADMIN = Scope.ADMIN

# fmt: off
KEY_ROUTES = (
    Route(method="GET", path="/v1/usage", handler=usage, scope=Scope.READ,
          response=UsageView, summary="What the key that asks holds in all, and may hold"),
    Route(method="POST", path="/v1/keys", handler=create, scope=ADMIN,
          body=CreateKey, response=CreatedKey, status=201, summary="Create an API key"),
    Route(method="GET", path="/v1/keys", handler=list_all, scope=ADMIN,
          response=KeyList, summary="List API keys"),
    Route(method="DELETE", path="/v1/keys/<key>", handler=revoke, scope=ADMIN,
          response=KeyRevoked, summary="Revoke an API key"),
)
# fmt: on
