"""Ports and sockets of a sandbox: what listens, and byte streams to it, all from inside its network namespace."""

import trio

from sandboxd.isolation.init.connection import Connector, error_of
from sandboxd.isolation.init.messages import End, ListeningSocket, check_path, encode_fields
from sandboxd.isolation.init.wire import MAX_PORTS, Op, Tag, WireError, encode_frame


class PortOperations(Connector):
    async def listening_sockets(self) -> list[ListeningSocket]:
        """The TCP sockets that listen, over IPv4 and IPv6, in no order; the first MAX_PORTS of them.

        Which process holds one is looked for within bounds, and may stay unknown. Raises: InitError, InitGone.
        """
        found: list[ListeningSocket] = []
        async with self._open(encode_frame(Op.LIST_PORTS)) as connection:
            while (frame := await connection.receive()).op is not Op.END:
                if frame.op is Op.ERROR:
                    raise error_of(frame)
                if frame.op is not Op.PORT or len(found) == MAX_PORTS:
                    raise WireError(f"cannot go on: {frame.op.name} after {len(found)} listening sockets")
                found.append(ListeningSocket.decode(frame.payload))
            End.decode(frame.payload)
        return found

    async def connect_port(self, port: int) -> trio.SocketStream:
        """A byte stream to a TCP port on the sandbox's loopback. The caller closes it."""
        return await self._connect(encode_fields(Op.CONNECT, {Tag.PORT: port}))

    async def connect_socket(self, path: str | bytes) -> trio.SocketStream:
        """A byte stream to a Unix socket of the sandbox, reached as root. The caller closes it."""
        return await self._connect(encode_fields(Op.CONNECT, {Tag.PATH: check_path(path)}))
