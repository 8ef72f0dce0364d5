"""The gateway as a whole: the sandboxes it serves, and the daemon's commands.

It ends only when it is told to (SIGTERM): a daemon that goes away leaves it as it is, and the next one connects,
lists what there is, and says what is to be otherwise.
"""

import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import trio

from sandboxd.gateway import control
from sandboxd.gateway.control import ControlError
from sandboxd.gateway.policy import Judge, Policy, Site
from sandboxd.gateway.resolver import Resolver
from sandboxd.gateway.sandbox import Event, Sandbox
from sandboxd.gateway.spec import PolicyError, parse_policy, parse_site, policy_document
from sandboxd.gateway.tcp import Budget, serve_connections
from sandboxd.gateway.udp import DatagramSockets, serve_datagrams

MAX_SANDBOXES = 4096
MAX_ID = 200
MAX_DAEMONS = 8
EVENTS_WAITING = 1000
DESCRIPTORS_PER_CONNECTION = 6
"""two sockets, and a pipe in each direction"""
_PAUSE = 0.1

Command = Callable[["Gateway", dict[str, Any], list[int]], dict[str, Any]]


class Gateway:
    """Owns: every socket that it was given.

    `most_connections`: of all sandboxes together.
    """

    def __init__(self, *, most_connections: int) -> None:
        self._sandboxes: dict[str, Sandbox] = {}
        self._site = Site()
        self._resolver = Resolver()
        self._budget = Budget(most_connections)
        self._daemons: set[_Daemon] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, listener: trio.socket.SocketType) -> None:
        """Serve whoever connects to `listener`, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError:
                    await trio.sleep(_PAUSE)
                    continue
                if len(self._daemons) >= MAX_DAEMONS:
                    connection.close()
                    continue
                self._nursery.start_soon(self._serve_daemon, _Daemon(connection))

    # -- the daemon -----------------------------------------------------------------------------------------------

    async def _serve_daemon(self, daemon: "_Daemon") -> None:
        self._daemons.add(daemon)
        try:
            with daemon.connection:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(daemon.tell_events)
                    await self._take_commands(daemon)
                    nursery.cancel_scope.cancel("the daemon has gone")
        except* OSError:
            pass
        finally:
            self._daemons.discard(daemon)

    async def _take_commands(self, daemon: "_Daemon") -> None:
        space = socket.CMSG_SPACE(4 * control.MAX_SOCKETS)
        while True:
            data, ancillary, _, _ = await daemon.connection.recvmsg(
                control.MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC
            )
            descriptors = control.descriptors_in(ancillary)
            if not data:
                return control.close_all(descriptors)
            await daemon.send(self._answer(data, descriptors))

    def _answer(self, data: bytes, descriptors: list[int]) -> dict[str, Any]:
        """Do a command. What it does not take of the descriptors is closed."""
        seq = None
        try:
            message = control.decode(data)
            seq = message.get("seq")
            command = _COMMANDS.get(str(message.get("op")))
            if command is None:
                raise ControlError(f"there is no command {message.get('op')!r}; there are {', '.join(_COMMANDS)}")
            return {"seq": seq, "result": command(self, message, descriptors)}
        except (ControlError, PolicyError) as error:
            return {"seq": seq, "error": str(error)}
        finally:
            control.close_all(descriptors)

    def _tell(self, event: Event) -> None:
        for daemon in self._daemons:
            daemon.put(event)

    # -- commands ---------------------------------------------------------------------------------------------------

    def _set_site(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        site = parse_site(message.get("site"))
        if site.resolvers != self._site.resolvers:
            self._resolver.use(site.resolvers)
        self._site = site
        return {"cut": sum(sandbox.set_site(site) for sandbox in self._sandboxes.values())}

    def _add(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """One that is there already keeps its sockets and gets the policy: a daemon may say everything twice."""
        name, policy = _id(message), _policy(message)
        if name in self._sandboxes:
            return {"cut": self._sandboxes[name].set_judge(Judge(policy, self._site))}
        if len(self._sandboxes) >= MAX_SANDBOXES:
            raise ControlError(f"there are {MAX_SANDBOXES} sandboxes, and no more are served")
        if len(descriptors) not in (control.MAX_SOCKETS - 1, control.MAX_SOCKETS):
            raise ControlError(f"a sandbox comes with its sockets ({', '.join(control.SOCKETS)})")
        sandbox = Sandbox(name, Judge(policy, self._site), self._tell)
        listener, datagrams = _sockets(descriptors)
        self._sandboxes[name] = sandbox
        assert self._nursery is not None
        self._nursery.start_soon(self._serve_sandbox, sandbox, listener, datagrams)
        return {"cut": 0}

    def _set_policy(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        sandbox = self._sandbox(message)
        return {"cut": sandbox.set_judge(Judge(_policy(message), self._site))}

    def _get_policy(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        return {"policy": policy_document(self._sandbox(message).judge.policy)}

    def _remove(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        sandbox = self._sandboxes.pop(_id(message), None)
        if sandbox is not None:
            sandbox.scope.cancel("the sandbox is gone")
        return {}

    def _list(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        return {"sandboxes": sorted(self._sandboxes)}

    def _stats(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        return {"sandboxes": {name: _figures(sandbox) for name, sandbox in self._sandboxes.items()}}

    def _recent(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        return {"events": list(self._sandbox(message).recent)}

    def _sandbox(self, message: dict[str, Any]) -> Sandbox:
        name = _id(message)
        if name not in self._sandboxes:
            raise ControlError(f"there is no sandbox {name}")
        return self._sandboxes[name]

    # -- a sandbox --------------------------------------------------------------------------------------------------

    async def _serve_sandbox(
        self, sandbox: Sandbox, listener: trio.socket.SocketType, datagrams: DatagramSockets
    ) -> None:
        """Its failure is its own: then nothing of it passes any more."""
        try:
            with sandbox.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve_datagrams, sandbox, datagrams, self._resolver)
                    await serve_connections(sandbox, listener, self._resolver, self._budget)
        except Exception as error:
            sandbox.note("failed", reason=f"the gateway's own fault: {error!r}"[:300])
        finally:
            listener.close()
            datagrams.close()


_COMMANDS: dict[str, Command] = {
    "site": Gateway._set_site,
    "add": Gateway._add,
    "policy": Gateway._set_policy,
    "policies": Gateway._get_policy,
    "remove": Gateway._remove,
    "list": Gateway._list,
    "stats": Gateway._stats,
    "recent": Gateway._recent,
}


class _Daemon:
    """A connection of the daemon's. Owns: it. Events wait for who reads slowly, and are lost in the end."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self.connection = connection
        self._sending = trio.Lock()
        self._put, self._waiting = trio.open_memory_channel[Event](EVENTS_WAITING)
        self._lost = 0

    def put(self, event: Event) -> None:
        try:
            self._put.send_nowait(event)
        except trio.WouldBlock:
            self._lost += 1

    async def tell_events(self) -> None:
        while True:
            event = await self._waiting.receive()
            if self._lost:
                lost, self._lost = self._lost, 0
                await self.send({"lost": lost})
            await self.send({"event": event})

    async def send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await self.connection.send(control.encode(message))


def _id(message: dict[str, Any]) -> str:
    name = message.get("id")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID:
        raise ControlError(f"a sandbox's id is a string of 1 to {MAX_ID} characters")
    return name


def _policy(message: dict[str, Any]) -> Policy:
    # The daemon has looked for public suffixes when it was typed; the list is a megabyte that is not needed here.
    return parse_policy(message.get("policy"), suffixes=False)


def _sockets(descriptors: list[int]) -> tuple[trio.socket.SocketType, DatagramSockets]:
    """The sockets of a sandbox. They take the descriptors over. Raises: ControlError for what are none."""
    made: list[socket.socket] = []
    try:
        while descriptors:
            made.append(socket.socket(fileno=descriptors[0]))
            descriptors.pop(0)
        for each in made:
            each.setblocking(False)
    except OSError as error:
        for each in made:
            each.close()
        raise ControlError(f"a descriptor is no socket: {error}") from error
    tcp, udp, raw4, *raw6 = map(trio.socket.from_stdlib_socket, made)
    return tcp, DatagramSockets(udp, raw4, raw6[0] if raw6 else None)


def _figures(sandbox: Sandbox) -> dict[str, int]:
    return {**asdict(sandbox.counters), "connections": sandbox.connections, "pins": sandbox.pins}
