"""Terminals: started, listed, polled, typed into, resized, ended. Their websocket is in terminal_websocket.py."""

from sandboxd.http.kit.call import Call
from sandboxd.http.native.commands.background_schemas import StdinView, decode_base64
from sandboxd.http.native.commands.terminal_schemas import PtyList, PtyOutputView, PtyView
from sandboxd.service.commands.follower import Command
from sandboxd.service.sandboxes.entry import Entry


async def start(call: Call) -> PtyView:
    entry = call.entry
    return PtyView.of(await call.service.terminals.start(entry, call.body.to_domain()))


async def list_all(call: Call) -> PtyList:
    records = call.service.terminals.list(call.entry)
    return PtyList(ptys=[PtyView.of(record) for record in records])


async def get(call: Call, pty: str) -> PtyView:
    return PtyView.of(call.service.background.record(*find(call, pty)))


async def write(call: Call, pty: str) -> StdinView:
    entry, command = find(call, pty)
    data = decode_base64(call.body.data_b64, "data_b64")
    return StdinView.of(await call.service.background.write_stdin(entry, command, data))


async def output(call: Call, pty: str) -> PtyOutputView:
    entry, command = find(call, pty)
    body = call.body
    drained = await call.service.terminals.drain(entry, command, limit=body.limit_bytes, patience=body.wait_ms / 1000)
    return PtyOutputView.of(drained)


async def resize(call: Call, pty: str) -> PtyView:
    entry, command = find(call, pty)
    await call.service.background.resize(entry, command, call.body.to_domain())
    return PtyView.of(call.service.background.record(entry, command))


async def kill(call: Call, pty: str) -> PtyView:
    return PtyView.of(await call.service.background.kill(*find(call, pty)))


def find(call: Call, pty: str) -> tuple[Entry, Command]:
    """Raises: NotFound."""
    entry = call.entry
    return entry, call.service.terminals.find(entry, pty)
