"""forward: local TCP ports that lead into a sandbox."""

import re
import socket
import struct
from dataclasses import dataclass

import click
import trio

from sandboxd.cli.output import Failure, complain
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import Parsed
from sandboxd.client import AsyncClient, ClientError, PortStream
from sandboxd.errors import first_leaf

READ_BYTES = 64 * 1024

_MAPPING = re.compile(r"(?:(?:(?P<v6>\[[0-9a-fA-F:]+\])|(?P<host>[^:]+)):)?(?P<local>\d{1,5}):(?P<remote>\d{1,5})")
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Mapping:
    host: str
    local: int
    remote: int


def parse_mapping(text: str) -> Mapping:
    """From "8080:80", "0.0.0.0:8080:80", or "80" for the same number here. Raises: ValueError."""
    match = _MAPPING.fullmatch(text if ":" in text else f"{text}:{text}")
    if match is None or int(match["local"]) > 65535 or not 1 <= int(match["remote"]) <= 65535:
        raise ValueError(f"{text!r} is not [ADDRESS:]LOCAL:REMOTE, e.g. 8080:80")
    host = match["v6"][1:-1] if match["v6"] else match["host"] or "127.0.0.1"
    return Mapping(host, int(match["local"]), int(match["remote"]))


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.argument(
    "mappings",
    nargs=-1,
    required=True,
    type=Parsed("mapping", parse_mapping),
    metavar="[ADDRESS:]LOCAL:REMOTE...",
)
def forward(sandbox: str, mappings: tuple[Mapping, ...]) -> None:
    """Bring ports of a sandbox to this machine until interrupted; LOCAL 0 takes any free port.

    Any protocol over TCP, any number of connections. Only this machine reaches them unless an ADDRESS is given.
    """
    with_client(lambda client: _forward(client, sandbox, mappings))


async def _forward(client: AsyncClient, sandbox: str, mappings: tuple[Mapping, ...]) -> None:
    await client.get(sandbox)  # so that a wrong name is said now, not at the first connection
    async with trio.open_nursery() as nursery:
        for mapping in mappings:
            for listener in await _listen(mapping):
                host, port = listener.socket.getsockname()[:2]
                click.echo(f"{host}:{port} -> {sandbox}:{mapping.remote}")
                nursery.start_soon(trio.serve_listeners, _Forward(client, sandbox, mapping.remote).serve, [listener])


async def _listen(mapping: Mapping) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(mapping.local, host=mapping.host)
    except OSError as error:
        raise Failure(f"cannot listen on {mapping.host}:{mapping.local}: {error.strerror}") from error


class _Forward:
    def __init__(self, client: AsyncClient, sandbox: str, port: int) -> None:
        self._client = client
        self._sandbox = sandbox
        self._port = port

    async def serve(self, local: trio.SocketStream) -> None:
        """One connection. Its failure is its own; whoever connected sees a reset, not an orderly end."""
        try:
            async with self._client.connect_port(self._sandbox, self._port) as remote:
                await _relay(local, remote)
        except* ClientError as errors:
            complain(first_leaf(errors))
            local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the local side has gone


async def _relay(local: trio.SocketStream, remote: PortStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_inwards, local, remote)
        while data := await remote.receive_some():
            await local.send_all(data)
        await local.send_eof()


async def _inwards(local: trio.SocketStream, remote: PortStream) -> None:
    while data := await local.receive_some(READ_BYTES):
        await remote.send_all(bytes(data))
    await remote.send_eof()
