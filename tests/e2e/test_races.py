"""Sandboxes that are used, deleted, and left by their clients all at once."""

import contextlib
import http.client
import json
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.test_crash import stopped
from tests.support import witnesses
from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"


def leave(connection: http.client.HTTPConnection) -> None:
    """By halves: the daemon closes the other half when it has seen it, with or without an answer."""
    connection.sock.shutdown(socket.SHUT_WR)
    with contextlib.closing(connection):
        while connection.sock.recv(65536):
            pass


def test_a_client_that_leaves_while_creating_leaves_nothing_half_made(daemon: Daemon) -> None:
    """Whether it was complete before the client had left is chance; half of one must never be seen."""
    connections = [daemon.connect() for _ in range(12)]
    for number, connection in enumerate(connections):
        connection.request("POST", SANDBOXES, json.dumps({"name": f"left-{number}"}))
    for connection in connections:
        leave(connection)
    wait_until(lambda: all(view["status"] == "running" for view in daemon.views()))
    assert witnesses.disagreement(daemon) == {}
    for view in daemon.views():
        assert daemon.shell(view["id"], "echo well")["stdout"] == "well\n"


def test_a_client_that_leaves_as_its_sandbox_is_complete_leaves_one_that_can_be_deleted(daemon: Daemon) -> None:
    """A daemon that stood still learns both in one moment."""
    for number in range(36):
        wait_until(lambda: witnesses.slots(daemon) != frozenset())
        connection = daemon.connect()
        connection.request("POST", SANDBOXES, json.dumps({}))
        time.sleep(number % 12 / 1000)  # a creation takes about so long: some are caught at its end
        with stopped(daemon.pid):
            connection.close()
            time.sleep(0.02)  # sandbox-init answers meanwhile
    daemon.delete_all()
    assert witnesses.disagreement(daemon) == {}


def test_a_name_is_free_again_when_its_creator_left(daemon: Daemon) -> None:
    connection = daemon.connect()
    connection.request("POST", SANDBOXES, json.dumps({"name": "wanted"}))
    leave(connection)

    def settled() -> bool:
        answer = daemon.call("GET", f"{SANDBOXES}/wanted")
        return answer.status == 404 or answer.json["status"] == "running"

    wait_until(settled)
    daemon.call("DELETE", f"{SANDBOXES}/wanted")
    wait_until(lambda: daemon.call("POST", SANDBOXES, {"name": "wanted"}).status == 201)


def test_many_deletions_of_one_sandbox_at_once(daemon: Daemon) -> None:
    sandbox = daemon.create()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: daemon.call("DELETE", f"{SANDBOXES}/{sandbox}").status, range(8)))
    assert set(answers) <= {200, 404}
    assert 200 in answers
    assert daemon.events(sandbox) == ["created", "started", "deleted"]


def test_a_sandbox_used_while_it_is_deleted_gives_clear_answers(daemon: Daemon) -> None:
    box = Box(daemon, daemon.create())
    seen: list[tuple[int, str]] = []
    gone = threading.Event()

    def use() -> None:
        while not gone.is_set():
            answer = box.answer("shell", {"cmd": "echo well"})
            seen.append((answer.status, "" if answer.status == 200 else answer.json["kind"]))

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(4)]
        wait_until(lambda: len(seen) > 8)
        daemon.delete(box.id)
        wait_until(lambda: (404, "not_found") in seen)
        gone.set()
        for user in users:
            user.result()
    assert set(seen) <= {(200, ""), (409, "conflict"), (410, "sandbox_lost"), (404, "not_found")}


def test_files_in_transfer_when_the_sandbox_goes(daemon: Daemon) -> None:
    box = Box(daemon, daemon.create())
    with contextlib.closing(daemon.connect()) as connection:
        connection.putrequest("PUT", f"{SANDBOXES}/{box.id}/files?path=/tmp/big")
        connection.putheader("content-length", str(1 << 40))
        connection.endheaders()
        connection.send(b"x" * (1 << 20))
        wait_until(lambda: box.shell("ls -A /tmp")["stdout"] != "")
        daemon.delete(box.id)
        while not select.select([connection.sock], [], [], 0)[0]:
            connection.send(b"x" * (1 << 20))
        response = connection.getresponse()
        assert response.status == 410
        assert json.loads(response.read())["kind"] == "sandbox_lost"


def test_an_upload_that_is_cut_off_leaves_the_old_file(daemon: Daemon) -> None:
    box = Box(daemon, daemon.create())
    path = f"{SANDBOXES}/{box.id}/files?path=/tmp/file"
    assert daemon.call("PUT", path, data=b"old").json == {"path": "/tmp/file", "size": 3}
    connection = daemon.connect()
    connection.putrequest("PUT", path)
    connection.putheader("content-length", "1000000")
    connection.endheaders()
    connection.send(b"new" * 1000)
    wait_until(lambda: len(box.shell("ls -A /tmp")["stdout"].split()) == 2)
    connection.close()
    wait_until(lambda: box.shell("ls -A /tmp")["stdout"] == "file\n")
    assert daemon.call("GET", path).data == b"old"


@pytest.mark.parametrize("size", [0, 1, 65_536, 20_000_001])
def test_files_of_any_size_come_back_as_they_went(daemon: Daemon, size: int) -> None:
    box = Box(daemon, daemon.create())
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    path = f"{SANDBOXES}/{box.id}/files?path=/home/user/a%20dir/%C3%A4&mode=0750&parents=true"
    assert daemon.call("PUT", path, data=data).json["size"] == size
    answer = daemon.call("GET", f"{SANDBOXES}/{box.id}/files?path=/home/user/a%20dir/%C3%A4")
    assert answer.data == data
    assert box.shell("stat -c '%a %U %s' ~/'a dir/ä'")["stdout"] == f"750 user {size}\n"


def test_lifetimes_that_end_while_the_sandbox_is_at_work(daemon: Daemon) -> None:
    answers = []
    for _ in range(4):
        box = Box(daemon, daemon.create(timeout_ms=400))
        answers.append(box.answer("shell", {"cmd": "sleep 600"}))
    assert {answer.status for answer in answers} <= {404, 409, 410}
    wait_until(lambda: daemon.views() == [])
    assert witnesses.disagreement(daemon) == {}
