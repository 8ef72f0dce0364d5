"""What a program behind a port tries on the daemon's clients, and what it may learn of their secrets."""

import base64
import http.client

import pytest

from tests.security.tenants import SANDBOXES, Tenant, Town
from tests.security.test_tenants import nothing_left, town
from tests.support.waiting import wait_until

__all__ = ("nothing_left", "town")

PROGRAM = r"""
import socket, threading
ANSWERS = {
    b"/twice": b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"/once": b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"/claims": b"x-sandboxd-error: quota_exceeded\r\nx-other: kept\r\ncontent-length: 2\r\n\r\nok",
}
def answer(client):
    head = client.recv(65536)
    echo = b"content-length: %d\r\n\r\n%s" % (len(head), head)
    client.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + ANSWERS.get(head.split(b" ")[1], echo))
    client.close()
server = socket.create_server(("127.0.0.1", 8000))
while True:
    threading.Thread(target=answer, args=server.accept()[:1]).start()
"""
PORT = f"{SANDBOXES}/served/ports/8000"


def serve(tenant: Tenant) -> str:
    """Create `served` with the program, exposed; the name of its host."""
    tenant.create(name="served")
    tenant.call("POST", f"{SANDBOXES}/served/commands", {"argv": ["python3", "-c", PROGRAM]})
    wait_until(lambda: tenant.call("GET", f"{PORT}/once").status == 200)
    return str(tenant.call("POST", f"{SANDBOXES}/served/expose", {"port": 8000}).json["host"])


def test_an_answer_with_two_lengths_is_none(town: Town) -> None:
    tenant = town.tenant()
    serve(tenant)
    assert tenant.call("GET", f"{PORT}/once").data == b"ok"
    answer = tenant.call("GET", f"{PORT}/twice")
    assert (answer.status, answer.headers["x-sandboxd-error"]) == (502, "bad_answer")


def test_a_program_cannot_speak_as_the_daemon(town: Town) -> None:
    tenant = town.tenant()
    serve(tenant)
    answer = tenant.call("GET", f"{PORT}/claims")
    assert (answer.status, answer.headers["x-other"]) == (200, "kept")
    assert "x-sandboxd-error" not in answer.headers


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("form", ["bearer", "x-api-key", "bare", "password", "user"])
def test_no_key_reaches_a_program_not_even_a_revoked_one(town: Town, form: str) -> None:
    tenant, gone = town.tenant(), town.tenant()
    host = serve(tenant)
    gone.revoke()
    for secret in (tenant.secret, gone.secret):
        header = {
            "bearer": ("Authorization", f"Bearer {secret}"),
            "x-api-key": ("X-API-Key", secret),
            "bare": ("Authorization", secret),
            "password": ("Authorization", basic("api", secret)),
            "user": ("Authorization", basic(secret, "")),
        }[form]
        connection = http.client.HTTPConnection("127.0.0.1", town.port, timeout=60)
        connection.request("GET", "/echo", headers=dict([("Host", host), header]))
        seen = connection.getresponse().read()
        connection.close()
        assert b"/echo" in seen
        assert header[1].encode() not in seen
    own = tenant.call("GET", f"{PORT}/echo", headers={"x-api-key": "the program's", "cookie": "a=1"})
    assert b"the program's" in own.data


def test_a_programs_own_password_passes(town: Town) -> None:
    tenant = town.tenant()
    host = serve(tenant)
    connection = http.client.HTTPConnection("127.0.0.1", town.port, timeout=60)
    connection.request("GET", "/echo", headers={"Host": host, "Authorization": basic("user", "password")})
    seen = connection.getresponse().read()
    connection.close()
    assert basic("user", "password").encode() in seen


def test_no_answer_leads_to_the_host_that_the_client_named(town: Town) -> None:
    """A path with two slashes was redirected to `http://` and whatever the request said it is for."""
    tenant = town.tenant()
    answer = tenant.call("GET", "/v1//sandboxes", headers={"host": "evil.example"})
    assert answer.status == 404
    assert "location" not in answer.headers
    assert b"evil" not in answer.data
