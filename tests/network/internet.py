"""A test internet: a network namespace with public, private and special addresses, and what answers at each of them.

Nothing of it leads out, so that even a test that fails sends nothing to any real address.
"""

import contextlib
import ipaddress
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

from tests.network.namespaces import inside

GOOD, EVIL, CDN = "93.184.216.34", "93.184.216.35", "93.184.216.36"
GOOD6 = "2606:2800::34"
LAN, METADATA, AZURE, ALIBABA, DOCUMENTATION = (
    "10.1.0.2",
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.2.9",
)
SERVER = "9.9.9.9"
"""the DNS server"""
ADDRESSES = (GOOD, EVIL, CDN, LAN, METADATA, AZURE, ALIBABA, DOCUMENTATION, SERVER, "203.0.113.9", "1.1.1.1")
ADDRESSES6 = (GOOD6, "2606:2800::35", "fd00:ec2::254", "2002:a01:2::1")
HOST, HOST_SECONDARY, HOST_LAN = "45.67.89.10", "45.67.89.11", "10.1.0.1"
"""addresses of the gateway's own host"""

ZONE = {
    "good.com": [GOOD, GOOD6],
    "www.good.com": [GOOD],
    "git.good.com": [CDN],
    "evil.com": [EVIL],
    "evilgood.com": [EVIL],
    "good.com.evil.com": [EVIL],
    "front.cdn.net": [CDN],
    "v6.good.com": [GOOD6],
    "rebind.good.com": [LAN],
    "meta.good.com": [METADATA],
    "self.good.com": [HOST],
    "second.good.com": [HOST_SECONDARY],
    "mapped.good.com": [f"::ffff:{LAN}"],
    "nat64.good.com": ["64:ff9b::a9fe:a9fe"],
    "mixed.good.com": [LAN, GOOD],
    "lan.corp": [LAN],
    "mirror.corp": [DOCUMENTATION],
    "dead.good.com": ["1.2.3.4"],
}
ALIASES = {"alias.good.com": "rebind.good.com", "alias2.good.com": "www.good.com"}
HTTP_PORTS = (80, 8000, 8080)


class Internet:
    """Owns: the thread in which its servers run.

    `queries` are all questions that DNS servers were asked; `seen` all bytes that plain servers got, by port.
    """

    def __init__(self, namespace: int, certificates: Path) -> None:
        self.zone = {name: list(addresses) for name, addresses in ZONE.items()}
        self.queries: list[tuple[str, str]] = []
        self.silent = False
        """servers of names do not answer"""
        self.truncates = False
        self.lies = False
        """they answer another question than was asked"""
        self.requests: list[str] = []
        self._namespace = namespace
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates / "server.pem")
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._stop: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        assert self._token is not None
        assert self._stop is not None
        self._token.run_sync_soon(self._stop.cancel)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._stop:
            async with trio.open_nursery() as nursery:
                with inside(self._namespace):
                    for port in HTTP_PORTS:
                        await self._listen(nursery, self._http, port)
                    await self._listen(nursery, self._https, 443)
                    await self._listen(nursery, self._https, 8443)
                    await self._listen(nursery, _banner, 22)
                    await self._listen(nursery, _echo, 7)
                    await self._listen(nursery, _never_reads, 9)
                    await self._listen(nursery, _endless, 19)
                    await self._listen(nursery, self._dns_by_tcp, 53)
                    for port in (123, 443, 4000):
                        for address in (*ADDRESSES, *ADDRESSES6):  # an answer comes from where it was asked
                            family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
                            sock = trio.socket.socket(family, trio.socket.SOCK_DGRAM)
                            await sock.bind((address, port))
                            nursery.start_soon(_echo_datagrams, sock)
                    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                    await sock.bind((SERVER, 53))
                nursery.start_soon(self._dns, sock)
                self._ready.set()

    async def _listen(self, nursery: trio.Nursery, handler: object, port: int) -> None:
        listener = trio.socket.socket(trio.socket.AF_INET6)
        listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        # What waits on this side, of a machine that is elsewhere in truth, is no part of what a test measures.
        listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 1 << 16)
        await listener.bind(("::", port))
        listener.listen(1024)
        nursery.start_soon(_accept, listener, handler)

    # -- services -------------------------------------------------------------------------------------------------

    async def _https(self, stream: trio.SocketStream) -> None:
        await self._http(
            trio.SSLStream(stream, self._context, server_side=True, https_compatible=True), sock=stream.socket
        )

    async def _http(self, stream: trio.abc.Stream, sock: trio.socket.SocketType | None = None) -> None:
        """`/big/N` is N MiB; anything else tells what was asked, and of whom."""
        where = (sock or stream.socket).getsockname()[0].removeprefix("::ffff:")
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some(65536)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            text = head.decode("latin-1")
            self.requests.append(text)
            headers = dict(line.lower().split(": ", 1) for line in text.split("\r\n")[1:] if ": " in line)
            while len(data) < int(headers.get("content-length", 0)):
                data += await stream.receive_some(65536)
            data = data[int(headers.get("content-length", 0)) :]
            if headers.get("upgrade") == "websocket":
                await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                while more := await stream.receive_some(65536):
                    await stream.send_all(more)
                return
            path = text.split(" ")[1]
            if path.startswith("/big/"):
                size = int(path.removeprefix("/big/")) << 20
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size >> 18):
                    await stream.send_all(bytes(1 << 18))
                continue
            body = f"hello from {where} to {headers.get('host')} for {path}".encode()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def _dns(self, sock: trio.socket.SocketType) -> None:
        with sock:
            while True:
                data, peer = await sock.recvfrom(4096)
                reply = self._answer(data, udp=True)
                if reply is not None:
                    await sock.sendto(reply, peer)

    async def _dns_by_tcp(self, stream: trio.SocketStream) -> None:
        data = await stream.receive_some(4096)
        reply = self._answer(data[2:], udp=False)
        if reply is not None:
            await stream.send_all(len(reply).to_bytes(2, "big") + reply)

    def _answer(self, data: bytes, *, udp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        asked = query.question[0]
        name = asked.name.to_text().rstrip(".").lower()
        self.queries.append((name, dns.rdatatype.to_text(asked.rdtype)))
        if self.silent:
            return None
        answer = dns.message.make_response(query)
        if self.truncates and udp:
            answer.flags |= dns.flags.TC
            return answer.to_wire()
        if self.lies:
            answer.question = [dns.rrset.RRset(dns.name.from_text("other.com"), 1, asked.rdtype)]
        owner = asked.name
        if name in ALIASES:
            answer.answer.append(dns.rrset.from_text(owner, 30, "IN", "CNAME", ALIASES[name] + "."))
            name, owner = ALIASES[name], dns.name.from_text(ALIASES[name])
        if name not in self.zone:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        kind = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}.get(asked.rdtype)
        found = [each for each in self.zone.get(name, []) if ipaddress.ip_address(each).version == kind]
        if found:
            answer.answer.append(dns.rrset.from_text_list(owner, 1, "IN", asked.rdtype, found))
        if asked.rdtype == dns.rdatatype.TXT and name in self.zone:
            answer.answer.append(dns.rrset.from_text(owner, 1, "IN", "TXT", '"' + "x" * 200 + '"'))
        return answer.to_wire()


async def _accept(listener: trio.socket.SocketType, handler: object) -> None:
    with listener:
        async with trio.open_nursery() as nursery:
            while True:
                client, _ = await listener.accept()
                nursery.start_soon(_handle, handler, client)


async def _handle(handler: object, client: trio.socket.SocketType) -> None:
    stream = trio.SocketStream(client)
    with client, contextlib.suppress(ConnectionError, trio.BrokenResourceError, trio.ClosedResourceError):
        await handler(stream)


async def _banner(stream: trio.SocketStream) -> None:
    await stream.send_all(b"SSH-2.0-test\r\n")
    while data := await stream.receive_some(1000):
        await stream.send_all(b"got " + data)


async def _echo(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_all(b"|half-closed|")


async def _never_reads(stream: trio.SocketStream) -> None:
    """Until its peer breaks off, which is seen without reading only by looking."""
    established = 1
    while stream.socket.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_INFO, 1)[0] == established:  # noqa: ASYNC110
        await trio.sleep(0.1)


async def _endless(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(bytes(1 << 16))


async def _echo_datagrams(sock: trio.socket.SocketType) -> None:
    with sock:
        while True:
            data, peer = await sock.recvfrom(65536)
            with contextlib.suppress(OSError):
                await sock.sendto(b"echo " + data, peer)


# -- certificates and wires -----------------------------------------------------------------------------------------

_OPENSSL = r"""
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3000 -subj '/CN=test root' \
    -keyout root.key -out root.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=test' -keyout server.key -out server.csr
printf 'subjectAltName=%s' "$NAMES" > extensions
openssl x509 -req -in server.csr -CA root.pem -CAkey root.key -CAcreateserial -days 3000 \
    -extfile extensions -out leaf.pem
cat server.key leaf.pem > server.pem
"""


def make_certificates(directory: Path) -> None:
    """`root.pem`, which a client is to trust, and `server.pem` for every name of the zone."""
    names = ",".join(f"DNS:{name}" for name in [*ZONE, *ALIASES])
    script = f"set -e; NAMES='{names}'\n{_OPENSSL}"
    subprocess.run(["sh", "-c", script], check=True, cwd=directory, capture_output=True)


def join(host: int, internet: int) -> None:
    """A wire between the gateway's host and the internet, with everybody's addresses."""
    with inside(internet):
        _ip("link add wan type veth peer name uplink", "link set wan up")
        _ip(*(f"address add {each}/32 dev wan" for each in ADDRESSES))
        _ip(*(f"address add {each}/128 dev wan nodad" for each in ADDRESSES6))
    with _moved(internet, host):
        pass
    with inside(host):
        _ip("link set uplink up", *(f"address add {each}/32 dev uplink" for each in (HOST, HOST_SECONDARY, HOST_LAN)))
        _ip("address add 2606:4567::10/128 dev uplink nodad")
        _ip("route add default dev uplink", "-6 route add default dev uplink")
    with inside(internet):
        _ip("route add default dev wan", "-6 route add default dev wan")


@contextlib.contextmanager
def _moved(internet: int, host: int) -> Iterator[None]:
    with inside(internet):
        command = ["ip", "link", "set", "uplink", "netns", f"/proc/self/fd/{host}"]
        subprocess.run(command, check=True, pass_fds=(host,), capture_output=True)
    yield


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
