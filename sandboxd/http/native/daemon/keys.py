"""API keys."""

from sandboxd.http.kit.call import Call
from sandboxd.http.native.daemon.schemas import CreatedKey, KeyList, KeyRevoked, KeyView


async def create(call: Call) -> CreatedKey:
    body = call.body
    new = await call.service.keys.create(body.name, frozenset(body.scopes), quota=body.to_quota(), own=body.own)
    return CreatedKey.with_secret(new.key, new.secret)


async def list_all(call: Call) -> KeyList:
    return KeyList(keys=[KeyView.of(key) for key in call.service.keys.all()])


async def revoke(call: Call, key: str) -> KeyRevoked:
    await call.service.keys.revoke(key)
    return KeyRevoked(id=key)
