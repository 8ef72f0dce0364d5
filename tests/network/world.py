"""A gateway at work: its host, the internet behind it, and sandboxes that are nothing but their networks."""

import contextlib
import itertools
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype

from sandboxd.gateway import control
from sandboxd.kernel.sandbox_network import GATEWAY4
from tests.network import internet as net
from tests.network.namespaces import CHECKOUT, Holder, inside
from tests.support import ordinary_user
from tests.support.waiting import wait_until

GATEWAY_USER = 61183
CLIENT_LIMIT = 30.0
SITE = {"resolvers": [net.SERVER], "granted": ["10.1.0.0/16"], "own_ports": [8000]}


class Control:
    """A connection of the daemon's, with its own way to wait for answers. Owns: the connection."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(CLIENT_LIMIT)
        self._socket.connect(str(path))
        self._numbers = itertools.count()
        self.events: list[dict[str, Any]] = []

    def call(self, op: str, descriptors: list[int] | None = None, **arguments: Any) -> dict[str, Any]:
        answer = self.ask(op, descriptors, **arguments)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def ask(self, op: str, descriptors: list[int] | None = None, **arguments: Any) -> dict[str, Any]:
        seq = next(self._numbers)
        message = control.encode({"seq": seq, "op": op, **arguments})
        self._socket.sendmsg([message], control.descriptors_beside(descriptors or []))
        while (answer := self._receive()).get("seq") != seq or "seq" not in answer:
            pass
        return answer

    def _receive(self) -> dict[str, Any]:
        message = control.decode(self._socket.recv(control.MAX_MESSAGE))
        if "event" in message:
            self.events.append(message["event"])
        return message

    def close(self) -> None:
        self._socket.close()


@dataclass(eq=False)
class World:
    """Owns: everything that close() ends.

    `prefix` is put before the gateway and the maker of namespaces, to run them as somebody.
    """

    prefix: tuple[str, ...]
    maker_prefix: tuple[str, ...]
    user: int | None
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sandboxd-test-net-")))
    gateway: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _held: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        net.make_certificates(self.directory)
        self.holder = Holder(self.maker_prefix)
        self.host, self.outside = self.namespace(), self.namespace()
        net.join(self.host, self.outside)
        self.internet = net.Internet(self.outside, self.directory)
        self.internet.start()
        self.start_gateway()

    def namespace(self) -> int:
        (namespace,) = self.holder.make("empty")
        self._held.append(namespace)
        return namespace

    def close(self) -> None:
        self.stop_gateway()
        self.internet.stop()
        self.holder.close()
        for descriptor in self._held:
            os.close(descriptor)
        shutil.rmtree(self.directory)

    # -- the gateway ------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self.directory / "gateway.sock"

    def start_gateway(self, **options: Any) -> None:
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, inside(self.host):
            listener.bind(str(self.path))
            listener.listen(8)
            user = [] if self.user is None else [str(self.user)]
            self.gateway = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "sandboxd.gateway", str(listener.fileno()), *user],
                pass_fds=[listener.fileno()],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                cwd="/",
                **options,
            )
        self.control = Control(self.path)
        self.control.call("site", site=SITE)

    def stop_gateway(self) -> None:
        assert self.gateway is not None
        self.control.close()
        self.gateway.terminate()
        self.gateway.wait(30)

    @property
    def pid(self) -> int:
        assert self.gateway is not None
        return self.gateway.pid

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # -- sandboxes --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def sandbox(self, policy: dict[str, Any]) -> Iterator["Box"]:
        namespace, *sockets = self.holder.make("sandbox")
        box = Box(self, f"box-{next(self._numbers)}", namespace, sockets)
        try:
            box.add(policy)
            yield box
        finally:
            box.close()

    def restore(self) -> None:
        """As it was before a test changed it."""
        self.internet.zone = {name: list(addresses) for name, addresses in net.ZONE.items()}
        self.internet.silent = self.internet.truncates = self.internet.lies = False
        self.internet.queries.clear()
        self.internet.requests.clear()
        self.control.events.clear()
        self.control.call("site", site={})  # what was resolved is forgotten with the server that told it
        self.control.call("site", site=SITE)


@dataclass(eq=False)
class Box:
    """A sandbox's network, and clients in it. Owns: the namespace and its sockets, as the daemon would."""

    world: World
    name: str
    namespace: int
    sockets: list[int]

    def add(self, policy: dict[str, Any]) -> dict[str, Any]:
        return self.world.control.call("add", self.sockets, id=self.name, policy=policy)

    def policy(self, policy: dict[str, Any]) -> int:
        return int(self.world.control.call("policy", id=self.name, policy=policy)["cut"])

    def close(self) -> None:
        self.world.control.call("remove", id=self.name)
        for descriptor in (self.namespace, *self.sockets):
            os.close(descriptor)

    @property
    def figures(self) -> dict[str, int]:
        return dict(self.world.control.call("stats")["sandboxes"][self.name])

    def events(self, action: str) -> list[dict[str, Any]]:
        found = self.world.control.call("recent", id=self.name)["events"]
        return [event for event in found if event["action"] == action]

    # -- clients ----------------------------------------------------------------------------------------------------

    def open(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        with inside(self.namespace):
            made = socket.socket(family, kind)
        made.settimeout(CLIENT_LIMIT)
        return made

    def connect(self, address: str, port: int) -> socket.socket:
        sock = self.open(family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def query(
        self, name: str, kind: str = "A", *, server: str = GATEWAY4, limit: float = CLIENT_LIMIT
    ) -> dns.message.Message:
        wire = dns.message.make_query(name, kind, use_edns=0).to_wire()
        return dns.message.from_wire(self.exchange(wire, server, 53, limit=limit))

    def resolve(self, name: str, kind: str = "A") -> list[str]:
        answer = self.query(name, kind)
        wanted = dns.rdatatype.from_text(kind)
        return [str(record) for rrset in answer.answer if rrset.rdtype == wanted for record in rrset]

    def exchange(self, data: bytes, address: str, port: int, *, limit: float = CLIENT_LIMIT) -> bytes:
        """A datagram and its answer."""
        with self.open(socket.SOCK_DGRAM, socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.settimeout(limit)
            sock.connect((address, port))
            sock.send(data)
            return sock.recv(65536)

    def http(self, host: str, port: int = 8000, *, address: str = "", path: str = "/", head: str = "") -> str:
        """A whole conversation; what came back, or how it broke off. `address`: not the one of the name."""
        request = head or f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        return self.talk(address or self._address(host), port, request.encode("latin-1"))

    def https(self, name: str, *, address: str = "", port: int = 443, trusting: bool = True) -> str:
        context = ssl.create_default_context(cafile=str(self.world.directory / "root.pem"))
        if not trusting:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            sock = self.connect(address or self._address(name), port)
            with sock, context.wrap_socket(sock, server_hostname=name) as tls:
                tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                return _until_body(tls)
        except OSError as error:
            return f"broke off: {error}"

    def talk(self, address: str, port: int, data: bytes) -> str:
        try:
            with self.connect(address, port) as sock:
                sock.sendall(data)
                return _until_body(sock)
        except OSError as error:
            return f"broke off: {error}"

    def _address(self, host: str) -> str:
        found = self.resolve(host) or self.resolve(host, "AAAA")
        return found[0] if found else host


def _until_body(sock: socket.socket) -> str:
    """A response with a length, or all that there is."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = [
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        ]
        if end and length and len(body) >= length[0]:
            return body.decode("latin-1")
        more = sock.recv(65536)
        if not more:
            return data.decode("latin-1")
        data += more


def as_root() -> World:
    return World(prefix=(), maker_prefix=(), user=GATEWAY_USER)


def as_user() -> World:
    """The gateway as an ordinary user, and namespaces of a user namespace of that user's."""
    prefix = ordinary_user.prefix()
    return World(prefix=prefix, maker_prefix=(*prefix, "unshare", "--user", "--map-root-user"), user=None)


def closed(sock: socket.socket) -> bool:
    """Whether its peer has broken it off, by now or within a while."""
    deadline = time.monotonic() + CLIENT_LIMIT
    while time.monotonic() < deadline:
        try:
            if not sock.recv(1 << 16):
                return True
        except OSError as error:
            return not isinstance(error, TimeoutError)
    return False


__all__ = ["Box", "Control", "World", "as_root", "as_user", "closed", "wait_until"]
