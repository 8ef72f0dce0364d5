"""Sandboxes: create, list, get, delete, lifetime, metrics."""

from collections.abc import Mapping

from sandboxd.constraints import mapping_bytes
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.pages import page_of
from sandboxd.http.native.sandboxes.schemas import Deleted, MetricsView, SandboxList, SandboxView
from sandboxd.model import Sandbox


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
        seconds = call.service.admission.check_lifetime(_seconds(body.timeout_ms))
        await lifecycle.set_lifetime(call.entry, seconds, on_timeout=body.on_timeout, only_extend=body.only_extend)
    if "idle_timeout_ms" in given:
        await lifecycle.set_idle_timeout(call.entry, _seconds(body.idle_timeout_ms))
    return _view(call, call.entry.sandbox)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


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
