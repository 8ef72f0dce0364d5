"""Attacks of one tenant on another: a name that changes hands, a key that is revoked, an id taken for a name."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.conftest import daemon_as_root
from tests.security.support import listening_on_tcp
from tests.security.tenants import SANDBOXES, Tenant, Town
from tests.support.daemon import running
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def town(image_dir: Path) -> Iterator[Town]:
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon)
    with running(daemon):
        yield Town(daemon, port)


@pytest.fixture(autouse=True)
def nothing_left(town: Town) -> Iterator[None]:
    """Whatever a test made is gone after it: sandboxes, snapshots, keys."""
    yield
    assert town.daemon.alive, town.daemon.log
    town.daemon.delete_all()
    for key in town.daemon.call("GET", "/v1/keys").json["keys"]:
        assert town.daemon.call("DELETE", f"/v1/keys/{key['id']}").status == 200


async def off(call: Any, *arguments: Any) -> Any:
    """A synchronous call in a thread."""
    return await trio.to_thread.run_sync(call, *arguments)


def change_hands(name: str, attacker: Tenant, victim: Tenant) -> str:
    """The attacker's sandbox goes, and the victim makes one of the same name: its id."""
    attacker.delete(name)
    return victim.create(name=name)


def untouched(victim: Tenant, sandbox: str) -> None:
    """That nobody has been in there."""
    view = victim.call("GET", f"{SANDBOXES}/{sandbox}").json
    assert (view["status"], view["end_at"], view["idle_timeout_ms"], view["snapshot"]) == (
        "running", None, None, None,
    )  # fmt: skip
    assert victim.call("GET", f"{SANDBOXES}/{sandbox}/commands").json["commands"] == []
    assert victim.call("GET", f"{SANDBOXES}/{sandbox}/ports").json["exposed"] == []
    assert victim.call("GET", f"{SANDBOXES}/{sandbox}/fs/watch").json["watches"] == []
    result = victim.call("POST", f"{SANDBOXES}/{sandbox}/shell", {"cmd": "ls -A /home/user /tmp"}).json
    assert "mark" not in result["stdout"]
    assert [each["status"] for each in victim.call("GET", SANDBOXES).json["sandboxes"]] == ["running"]
    assert victim.call("GET", "/v1/snapshots").json["snapshots"] == []


# -- a name that changes hands ------------------------------------------------------------------------------------

START = {"type": "start", "cmd": "touch /tmp/mark; id", "user": "root"}


async def test_a_silent_websocket_does_not_enter_a_namesake(town: Town) -> None:
    attacker, victim = town.tenant(), town.tenant()
    await off(lambda: attacker.create(name="shared"))
    async with attacker.websocket(f"{SANDBOXES}/shared/exec") as control:
        await control.say(**START)
        assert (await control.next())["type"] == "started"
    async with attacker.websocket(f"{SANDBOXES}/shared/exec") as client:
        theirs = await off(change_hands, "shared", attacker, victim)
        await client.say(**START)
        messages, code, _ = await client.rest()
    assert [message["type"] for message in messages] == ["error"]
    assert code == 4404
    await off(untouched, victim, theirs)


async def test_a_silent_websocket_does_not_share_a_namesakes_terminal(town: Town) -> None:
    attacker, victim = town.tenant(), town.tenant()

    def terminal(tenant: Tenant) -> str:
        answer = tenant.call("POST", f"{SANDBOXES}/shared/pty", {"cmd": "sleep 600"})
        assert answer.status == 201
        return str(answer.json["pty_id"])

    await off(lambda: attacker.create(name="shared"))
    mine = await off(terminal, attacker)
    async with attacker.websocket(f"{SANDBOXES}/shared/pty/{mine}/ws") as control:
        await control.say(type="attach")
        assert (await control.next())["type"] == "attached"
    # Once with the victim's id, which the attacker cannot know yet: the path is fixed when the websocket is opened.
    async with attacker.websocket(f"{SANDBOXES}/shared/pty/{mine}/ws") as client:
        await off(change_hands, "shared", attacker, victim)
        await off(terminal, victim)
        await client.say(type="attach")
        messages, code, _ = await client.rest()
    assert [message["type"] for message in messages] == ["error"]
    assert code == 4404


SLOW = {
    "shell": ("POST", "shell", {"cmd": "touch /tmp/mark", "user": "root"}),
    "shell stream": ("POST", "shell/stream", {"cmd": "touch /tmp/mark", "user": "root"}),
    "command": ("POST", "commands", {"cmd": "touch /tmp/mark", "user": "root"}),
    "terminal": ("POST", "pty", {"cmd": "touch /tmp/mark"}),
    "write": ("POST", "fs/write", {"path": "/tmp/mark", "content": "x"}),
    "read": ("POST", "fs/read", {"path": "/etc/hostname"}),
    "list": ("POST", "fs/list", {"path": "/"}),
    "watch": ("POST", "fs/watch", {"path": "/tmp"}),
    "lifetime": ("POST", "timeout", {"timeout_ms": 3_600_000}),
    "idle timeout": ("POST", "timeout", {"idle_timeout_ms": 3_600_000}),
    "stop": ("POST", "stop", {"grace_ms": 0}),
    "snapshot": ("POST", "snapshot", {"description": "stolen"}),
    "clone": ("POST", "clone", {"timeout_ms": 3_600_000}),
    "expose": ("POST", "expose", {"port": 8000}),
    "Akira's execute": ("POST", "execute", {"command": "touch /tmp/mark"}),
    "Akira's upload": ("POST", "upload", {"path": "/tmp/mark", "content": "x"}),
}


@pytest.mark.parametrize("attack", SLOW)
def test_a_slow_body_does_not_enter_a_namesake(town: Town, attack: str) -> None:
    method, path, body = SLOW[attack]
    attacker, victim = town.tenant(), town.tenant()
    attacker.create(name="shared")
    with attacker.slow_request(method, f"{SANDBOXES}/shared/{path}", json.dumps(body).encode()) as request:
        control = request.finish()
        assert control.status in (200, 201), control.data
    wait_until(lambda: attacker.call("GET", f"{SANDBOXES}/shared").json["status"] in ("running", "stopped"))
    with attacker.slow_request(method, f"{SANDBOXES}/shared/{path}", json.dumps(body).encode()) as request:
        theirs = change_hands("shared", attacker, victim)
        answer = request.finish()
    assert answer.status == 404, answer.data
    for each in attacker.call("GET", SANDBOXES).json["sandboxes"]:  # the control's clone
        attacker.delete(each["id"])
    untouched(victim, theirs)


def test_a_slow_body_does_not_put_a_namesake_back(town: Town) -> None:
    attacker, victim = town.tenant(), town.tenant()
    attacker.create(name="shared")
    snapshot = attacker.call("POST", f"{SANDBOXES}/shared/snapshot", {}).json["id"]
    body = json.dumps({"snapshot": snapshot}).encode()
    with attacker.slow_request("POST", f"{SANDBOXES}/shared/restore", body) as request:
        assert request.finish().status == 200
    with attacker.slow_request("POST", f"{SANDBOXES}/shared/restore", body) as request:
        theirs = change_hands("shared", attacker, victim)
        assert request.finish().status == 404
    untouched(victim, theirs)


def test_a_slow_body_does_not_create_of_anothers_snapshot(town: Town) -> None:
    """Akira's restore names the snapshot in its path, and the body comes after."""
    attacker, victim = town.tenant(), town.tenant()
    for tenant, word in ((attacker, "mine"), (victim, "secret")):
        tenant.create(name=word)
        tenant.call("POST", f"{SANDBOXES}/{word}/shell", {"cmd": f"echo {word} > /tmp/word", "user": "root"})
    attacker.call("POST", f"{SANDBOXES}/mine/snapshot", {"name": "backup"})
    path = "/akira/v1/snapshots/backup/restore"
    with attacker.slow_request("POST", path, b"{}") as request:
        assert request.finish().status == 201
    with attacker.slow_request("POST", path, b"{}") as request:
        assert attacker.call("DELETE", "/v1/snapshots/backup").status == 200
        assert victim.call("POST", f"{SANDBOXES}/secret/snapshot", {"name": "backup"}).status == 201
        assert request.finish().status == 404
    assert len(attacker.call("GET", SANDBOXES).json["sandboxes"]) == 2  # its own, and the control's


# Answers each request with its word once the whole of it has come.
PROGRAM = r"""
import socket, sys
server = socket.create_server(("127.0.0.1", 8000))
while True:
    client, _ = server.accept()
    seen = b""
    while not seen.endswith((b"xy", b"0\r\n\r\n") if seen.startswith(b"POST") else b"\r\n\r\n"):
        if not (data := client.recv(4096)):
            break
        seen += data
    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\n" + sys.argv[1].encode())
    client.close()
"""


def serve(tenant: Tenant, word: str) -> None:
    """Create `shared`, with a program on port 8000."""
    tenant.create(name="shared")
    tenant.call("POST", f"{SANDBOXES}/shared/commands", {"argv": ["python3", "-c", PROGRAM, word]})
    wait_until(lambda: tenant.call("GET", PORT).data == word.encode())


PORT = f"{SANDBOXES}/shared/ports/8000/"


def test_a_slow_body_does_not_reach_a_namesakes_port(town: Town) -> None:
    attacker, victim = town.tenant(), town.tenant()
    serve(attacker, "mine")
    with attacker.slow_request("POST", PORT, b"xy") as request:
        assert request.finish().data == b"mine"
    with attacker.slow_request("POST", PORT, b"xy") as request:
        attacker.delete("shared")
        serve(victim, "gold")
        answer = request.finish()
    assert answer.status == 502, answer.data
    assert b"gold" not in answer.data


# -- what is another's does not exist -------------------------------------------------------------------------------


def test_whether_a_name_is_anothers_or_nobodys_is_told_apart_by_nothing(town: Town) -> None:
    one, other = town.tenant(), town.tenant()
    other.create(name="theirs")
    other.call("POST", f"{SANDBOXES}/theirs/snapshot", {"name": "kept"})
    for path in (f"{SANDBOXES}/NAME", "/v1/snapshots/NAME", "/v1/events?sandbox=NAME"):
        taken = "kept" if "snapshots" in path else "theirs"
        answers = [one.call("GET", path.replace("NAME", name)) for name in (taken, "nobody")]
        assert {answer.status for answer in answers} == {404}
        texts = {answer.data.replace(taken.encode(), b"NAME").replace(b"nobody", b"NAME") for answer in answers}
        assert len(texts) == 1
        assert other.call("GET", path.replace("NAME", taken)).status == 200


# -- names that look like ids ---------------------------------------------------------------------------------------

IDS = [
    "s" + "0123456789" * 2,
    "n" + "a" * 20,
    "l" + "0" * 20,
    "c" + "0" * 16,
    "p" + "f" * 16,
    "w" + "0" * 16,
    "key" + "0" * 12,
]
NO_IDS = ["s" + "0" * 19, "s" + "0" * 21, "s" + "g" * 20, "x" + "0" * 20, "s-" + "0" * 19]


@pytest.mark.parametrize("name", IDS)
def test_a_name_that_could_be_an_id_is_refused(town: Town, name: str) -> None:
    tenant = town.tenant()
    source = tenant.create()
    for path, body in (
        (SANDBOXES, {"name": name}),
        (f"{SANDBOXES}/{source}/clone", {"name": name}),
        (f"{SANDBOXES}/{source}/snapshot", {"name": name}),
    ):
        answer = tenant.call("POST", path, body)
        assert (answer.status, answer.json["kind"]) == (422, "reserved_name"), path
        assert "another name" in answer.json["error"]
    imported = tenant.call("POST", f"/v1/snapshots/import?name={name}", data=b"")
    assert (imported.status, imported.json["kind"]) == (422, "reserved_name")


@pytest.mark.parametrize("name", NO_IDS)
def test_a_name_that_only_resembles_an_id_is_fine(town: Town, name: str) -> None:
    tenant = town.tenant()
    made = tenant.create(name=name)
    assert tenant.call("POST", f"{SANDBOXES}/{made}/snapshot", {"name": name}).status == 201


def test_events_are_those_of_the_sandbox_meant_not_of_what_is_called_like_it(town: Town) -> None:
    tenant, everybody = town.tenant(), town.tenant(own=False)
    made = tenant.create(name="named")
    for holder in (tenant, everybody):
        for wanted in (made, "named"):
            events = holder.call("GET", f"/v1/events?sandbox={wanted}").json["events"]
            assert [event["sandbox"] for event in events] == [made] * len(events)
            assert [event["kind"] for event in events] == ["created", "started"]
    tenant.delete(made)
    tenant.create(name="named")
    assert made not in {event["sandbox"] for event in tenant.call("GET", "/v1/events?sandbox=named").json["events"]}
    assert tenant.call("GET", f"/v1/events?sandbox={made}").status == 404
    gone = everybody.call("GET", f"/v1/events?sandbox={made}").json["events"]
    assert [event["kind"] for event in gone][-1] == "deleted"


# -- a key that is revoked ------------------------------------------------------------------------------------------


# Answers without end, and speaks one text message back over a websocket.
ENDLESS = r"""
import base64, hashlib, socket, threading, time
def answer(client):
    head = client.recv(65536)
    if b"/endless" in head:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        time.sleep(600)
    elif b"/websocket" in head:
        (key,) = [each[19:] for each in head.split(b"\r\n") if each.lower().startswith(b"sec-websocket-key")]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        client.sendall(b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
                       + accept + b"\r\n\r\n")
        client.recv(65536)
        client.sendall(b"\x81\x04echo")
        client.recv(65536)
    else:
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    client.close()
server = socket.create_server(("127.0.0.1", 8001))
while True:
    threading.Thread(target=answer, args=server.accept()[:1]).start()
"""


def serve_endlessly(tenant: Tenant) -> None:
    """Create `shared`, with that program on port 8001."""
    tenant.create(name="shared")
    tenant.call("POST", f"{SANDBOXES}/shared/commands", {"argv": ["python3", "-c", ENDLESS]})
    wait_until(lambda: tenant.call("GET", f"{SANDBOXES}/shared/ports/8001/").data == b"ok")


def processes(town: Town, sandbox: str) -> str:
    return str(town.daemon.shell(sandbox, "ps axww -o args", user="root")["stdout"])


async def test_a_revoked_keys_command_ends(town: Town) -> None:
    holder, other = town.tenant(), town.tenant()
    mine, theirs = await off(holder.create), await off(other.create)
    async with (
        holder.websocket(f"{SANDBOXES}/{mine}/exec") as client,
        other.websocket(f"{SANDBOXES}/{theirs}/exec") as control,
    ):
        for conversation in (client, control):
            await conversation.say(type="start", cmd="while read line; do sleep 12345; done", stdin=True)
            await conversation.until("started")
        await client.socket.send_message(b"\n")
        await off(wait_until, lambda: "sleep 12345" in processes(town, mine))
        await off(holder.revoke)
        messages, code, reason = await client.rest()
        assert [message["type"] for message in messages if message["type"] != "stdin_ack"] == []
        assert code == 4401
        assert "revoked" in reason
        await off(wait_until, lambda: "sleep 12345" not in processes(town, mine))
        await control.say(type="kill")
        await control.until("exit")


@pytest.mark.parametrize("path", ["exec", "pty/PTY/ws", "tcp/8000"])
async def test_a_revoked_keys_silent_websocket_is_closed(town: Town, path: str) -> None:
    holder = town.tenant()
    await off(serve, holder, "mine")
    pty = await off(lambda: holder.call("POST", f"{SANDBOXES}/shared/pty", {"cmd": "sleep 600"}).json["pty_id"])
    async with holder.websocket(f"{SANDBOXES}/shared/{path.replace('PTY', pty)}") as client:
        if path.startswith("tcp"):
            assert (await client.next())["type"] == "connected"
        await off(holder.revoke)
        _, code, reason = await client.rest()
    assert (code, "revoked" in reason) == (4401, True)


async def test_a_revoked_keys_terminal_is_left(town: Town) -> None:
    holder = town.tenant()
    sandbox = await off(holder.create)
    pty = (await off(holder.call, "POST", f"{SANDBOXES}/{sandbox}/pty", {"cmd": "sleep 600"})).json["pty_id"]
    async with holder.websocket(f"{SANDBOXES}/{sandbox}/pty/{pty}/ws") as client:
        await client.say(type="attach")
        assert (await client.until("attached"))["writer"]
        await off(holder.revoke)
        _, code, _ = await client.rest()
    assert code == 4401
    record = town.daemon.call("GET", f"{SANDBOXES}/{sandbox}/pty/{pty}").json
    assert record["status"] == "running"  # what runs by itself is the sandbox's, not the key's


STREAMS = {
    "events": ("GET", "/v1/events?sandbox={sandbox}&follow=true&after=0", None),
    "logs": ("GET", SANDBOXES + "/{sandbox}/commands/{command}/logs/stream", None),
    "shell": ("POST", SANDBOXES + "/{sandbox}/shell/stream", {"cmd": "sleep 12345"}),
    "watch": ("GET", SANDBOXES + "/{sandbox}/fs/watch/{watch}/stream", None),
    "Akira's execute_async": ("POST", SANDBOXES + "/{sandbox}/execute_async", {"command": "sleep 12345"}),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_revoked_keys_streams_end(town: Town, kind: str) -> None:
    holder, other = town.tenant(), town.tenant(own=False)
    sandbox = holder.create()
    command = holder.call("POST", f"{SANDBOXES}/{sandbox}/commands", {"cmd": "echo begun; sleep 54321"}).json
    watch = holder.call("POST", f"{SANDBOXES}/{sandbox}/fs/watch", {"path": "/tmp"}).json
    method, template, body = STREAMS[kind]
    path = template.format(sandbox=sandbox, command=command["command_id"], watch=watch["watch_id"])
    with holder.opened(method, path, body) as (_, stream), other.opened(method, path, body) as (connection, control):
        assert (stream.status, control.status) == (200, 200)
        holder.revoke()
        stream.read()  # to its end, which is a proper one: IncompleteRead otherwise
        assert control.readable()
        connection.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            control.read()
    wait_until(lambda: "sleep 12345" not in processes(town, sandbox))


def test_a_revoked_keys_request_is_answered_with_a_401(town: Town) -> None:
    holder = town.tenant()
    sandbox = holder.create()
    with holder.asked("POST", f"{SANDBOXES}/{sandbox}/shell", {"cmd": "sleep 12345"}) as connection:
        wait_until(lambda: "sleep 12345" in processes(town, sandbox))
        holder.revoke()
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["kind"]) == (401, "key_revoked")
    wait_until(lambda: "sleep 12345" not in processes(town, sandbox))


@pytest.mark.parametrize("path", ["fs/write", "files?path=/tmp/mark", "archive?path=/tmp/mark", "ports/8000/"])
def test_a_revoked_keys_slow_body_is_not_waited_for(town: Town, path: str) -> None:
    holder = town.tenant()
    serve(holder, "mine")
    method = "POST" if path in ("fs/write", "ports/8000/") else "PUT"
    body = json.dumps({"path": "/tmp/mark", "content": "x"}).encode()
    with holder.slow_request(method, f"{SANDBOXES}/shared/{path}", body) as request:
        holder.revoke()
        answer = request.answer()
    assert (answer.status, answer.json["kind"]) == (401, "key_revoked")
    assert town.daemon.shell("shared", "find /tmp/mark -type f")["stdout"] == ""


def test_a_revoked_keys_download_is_cut_off(town: Town) -> None:
    holder = town.tenant()
    sandbox = holder.create()
    town.daemon.shell(sandbox, "truncate -s 1G /tmp/large")
    path = f"{SANDBOXES}/{sandbox}/files?path=/tmp/large"
    with holder.opened("GET", path) as (_, response):
        assert (response.status, response.headers["content-length"]) == (200, str(1 << 30))
        response.read(1 << 16)
        holder.revoke()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


async def test_a_revoked_keys_connections_to_ports_end(town: Town) -> None:
    holder = town.tenant()
    await off(serve_endlessly, holder)
    path = f"{SANDBOXES}/shared/ports/8001"

    def watch() -> None:
        with holder.opened("GET", f"{path}/endless") as (_, response):
            assert response.read(5) == b"begun"
            holder.revoke()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()

    async with holder.websocket(f"{path}/websocket") as client:
        await client.socket.send_message("echo")
        assert await client.socket.get_message() == "echo"
        await off(watch)
        _, code, reason = await client.rest()
    assert (code, "revoked" in reason) == (1008, True)


def test_a_key_may_revoke_itself(town: Town) -> None:
    holder = town.tenant(scopes=["admin"])
    answer = holder.call("DELETE", f"/v1/keys/{holder.id}")
    assert (answer.status, answer.json["status"]) == (200, "revoked")
    assert holder.call("GET", SANDBOXES).status == 401
