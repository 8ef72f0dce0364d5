"""A program for a sandbox that listens on a port and behaves as the request's path says: well, badly, or not at all.

Runs inside, on the standard library, h11 and wsproto (in a zip beside it). One thread per connection.
"""

import contextlib
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, "/tmp/lib.zip")

import h11
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    TextMessage,
)
from wsproto.events import Request as WsRequest

answering = set()
"""Conversations with a request that is not done with."""


class Conversation:
    """One connection: h11 until a handler takes the socket for itself."""

    def __init__(self, sock, number):
        self.sock, self.number = sock, number
        self.http = h11.Connection(h11.SERVER)
        self.answered = False

    def event(self):
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(self.sock.recv(65536))
        return event

    def send(self, *events):
        self.sock.sendall(b"".join(self.http.send(event) or b"" for event in events))

    def answer(self, data, *headers, status=200):
        framing = ("content-length", str(len(data)))
        self.send(
            h11.Response(status_code=status, headers=[framing, *headers]), h11.Data(data=data), h11.EndOfMessage()
        )

    def body(self):
        while isinstance(event := self.event(), h11.Data):
            yield event.data

    def serve(self):
        while isinstance(request := self.event(), h11.Request):
            url = urlsplit(request.target.decode())
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            handler = globals().get("do_" + url.path.split("/")[1].replace("-", "_"), do_echo)
            answering.add(self)
            if handler(self, request, query) is False or self.http.our_state is h11.MUST_CLOSE:
                return
            answering.discard(self)
            for _ in () if self.http.their_state is h11.DONE else self.body():
                pass
            self.http.start_next_cycle()


def do_echo(self, request, query):
    digest, size = hashlib.sha256(), 0
    for data in self.body():
        digest.update(data)
        size += len(data)
    facts = {
        "method": request.method.decode(),
        "target": request.target.decode(),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
        "sha256": digest.hexdigest(),
        "size": size,
        "connection": self.number,
    }
    self.answer(json.dumps(facts).encode() if request.method != b"HEAD" else b"", ("x-program", "echo"))


def do_once(self, request, query):
    """Answers the first request of a connection, and closes without a word on the second."""
    if self.answered:
        return False
    self.answered = True
    self.answer(str(self.number).encode())
    return True


def do_two_writes(self, request, query):
    """The head, and then the body, on a socket as it is made."""
    self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    self.send(h11.Response(status_code=200, headers=[("content-length", "4")]))
    self.send(h11.Data(data=b"done"), h11.EndOfMessage())


def do_bytes(self, request, query):
    """`n` bytes; in chunks unless `length` is given."""
    left, block = int(query["n"]), b"0123456789abcdef" * 4096
    headers = [("content-length", query["n"])] if "length" in query else []
    self.send(h11.Response(status_code=200, headers=headers))
    while left:
        piece = block[:left]
        self.send(h11.Data(data=piece))
        left -= len(piece)
    self.send(h11.EndOfMessage())


def do_sse(self, request, query):
    """Three events, each after the client's connection was asked for it on /tick."""
    self.send(h11.Response(status_code=200, headers=[("content-type", "text/event-stream")]))
    for number in range(int(query.get("n", 3))):
        self.send(h11.Data(data=b"data: %d\n\n" % number))
        ticks.acquire()
    self.send(h11.EndOfMessage())


ticks = threading.Semaphore(0)


def do_tick(self, request, query):
    ticks.release()
    self.answer(b"")


def do_duplex(self, request, query):
    """Answers each piece of the body at once, in capitals."""
    self.send(h11.Response(status_code=200, headers=[]))
    for data in self.body():
        self.send(h11.Data(data=data.upper()))
    self.send(h11.EndOfMessage())


def do_early(self, request, query):
    """Refuses before it has read the body, and leaves."""
    self.answer(b"too much", ("connection", "close"), status=413)
    return False


def do_headers(self, request, query):
    """Answers with what the query says, as headers."""
    self.answer(b"", *query.items())


def do_status(self, request, query):
    status = int(query["code"])
    if status in (204, 304):
        self.send(h11.Response(status_code=status, headers=[]), h11.EndOfMessage())
    else:
        self.answer(b"", status=status)


def do_interim(self, request, query):
    """1xx answers before the final one."""
    self.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
    self.answer(b"at last")


def do_raw(self, request, query):
    """These bytes, and the end."""
    self.sock.sendall(bytes.fromhex(query["hex"]))
    return False


def do_reset(self, request, query):
    """Half of an answer whose end is the connection's, and then no orderly end."""
    self.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    time.sleep(0.5)
    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def do_extra(self, request, query):
    """A proper answer, and bytes behind it that nobody asked for."""
    self.sock.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    )
    hold(self)
    return False


def do_huge_head(self, request, query):
    self.sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"a" * 200_000 + b"\r\n\r\n")
    return False


def do_endless_head(self, request, query):
    self.sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        self.sock.sendall(b"x: " + b"a" * 1000 + b"\r\n")


def do_silent(self, request, query):
    """Takes the request and never answers."""
    hold(self)
    return False


def do_stall(self, request, query):
    """Begins an answer and never ends it."""
    self.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    hold(self)
    return False


def do_deaf(self, request, query):
    """Never reads the body, nor notices that the other side has gone."""
    answering.discard(self)
    time.sleep(3600)


def do_answering(self, request, query):
    """How many requests are under way, this one included."""
    count = len(answering)
    answering.discard(self)  # before it can be asked again
    self.answer(str(count).encode())


def hold(self):
    """Until the other side closes."""
    while self.sock.recv(65536):
        pass


def do_ws(self, request, query):
    websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    websocket.initiate_upgrade_connection(request.headers, request.target.decode())
    Websocket(self.sock, websocket, query).serve()
    return False


class Websocket:
    """An echo. Text commands: `close CODE REASON`, `ping`, `big N`, `fragments`, `die`, `headers`."""

    def __init__(self, sock, websocket, query):
        self.sock, self.websocket, self.query = sock, websocket, query
        self.parts, self.headers = [], []

    def send(self, event):
        self.sock.sendall(self.websocket.send(event))

    def serve(self):
        while True:
            for event in self.websocket.events():
                if self.handle(event) is False:
                    return
            data = self.sock.recv(65536)
            self.websocket.receive_data(data or None)
            if not data:
                return

    def handle(self, event):
        if isinstance(event, WsRequest):
            self.open(event)
        elif isinstance(event, Message):
            self.parts.append(event.data)
            if event.message_finished:
                parts, self.parts = self.parts, []
                return self.message(parts[0][:0].join(parts))
        elif isinstance(event, CloseConnection):
            with open("/tmp/closed", "a") as log:
                log.write(f"{int(event.code)} {event.reason}\n")
            with contextlib.suppress(wsproto.utilities.LocalProtocolError):
                self.send(event.response())
            return False
        elif isinstance(event, Ping):
            self.send(event.response())

    def open(self, event):
        self.headers = [[name.decode(), value.decode("latin-1")] for name, value in event.extra_headers]
        if "reject" in self.query:
            headers = [(b"x-why", b"because"), (b"content-length", b"2")]
            self.send(RejectConnection(status_code=int(self.query["reject"]), headers=headers, has_body=True))
            self.send(RejectData(data=b"no", body_finished=True))
            return
        chosen = event.subprotocols[-1] if event.subprotocols else None
        self.send(AcceptConnection(subprotocol=chosen, extra_headers=[(b"x-program", b"websocket")]))

    def message(self, data):
        words = data.split() if isinstance(data, str) else []
        if words[:1] == ["close"]:
            self.send(CloseConnection(code=int(words[1]), reason=" ".join(words[2:])))
        elif words[:1] == ["ping"]:
            self.send(Ping(payload=b"x"))
            self.send(TextMessage(data="pinged"))
        elif words[:1] == ["big"]:
            self.send(BytesMessage(data=b"x" * int(words[1])))
        elif words[:1] == ["fragments"]:
            for number, part in enumerate(["one ", "two ", "three"]):
                self.send(TextMessage(data=part, message_finished=number == 2))
        elif words[:1] == ["garbage"]:
            self.sock.sendall(b"\xff\xff\xff\xff")
        elif words[:1] == ["headers"]:
            self.send(TextMessage(data=json.dumps(self.headers)))
        elif words[:1] == ["die"]:
            return False
        else:
            kind = TextMessage if isinstance(data, str) else BytesMessage
            self.send(kind(data=data))
        return None


def converse(sock, number):
    conversation = Conversation(sock, number)
    try:
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conversation.serve()
    except (OSError, h11.ProtocolError, wsproto.utilities.ProtocolError):
        pass
    finally:
        answering.discard(conversation)


def main(port):
    with socket.create_server(("127.0.0.1", port)) as listener:
        print("listening", flush=True)
        number = 0
        while True:
            number += 1
            sock = listener.accept()[0]
            threading.Thread(target=converse, args=(sock, number), daemon=True).start()


main(int(sys.argv[1]))
