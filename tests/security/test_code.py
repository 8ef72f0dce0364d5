"""A program that took the place of what runs kernels in a sandbox, and says to the daemon what it likes."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import daemon_as_root
from tests.security.support import strain
from tests.support.coding import IMAGE
from tests.support.daemon import Daemon, running

MIB = 1 << 20
# It takes the bridge's place, and answers every request with what its stdin, a program, wrote before.
REPLACEMENT = r"""
import os, signal, socket, sys
with open("/run/answer", "w") as answer:
    exec(sys.stdin.read(), {"write": answer.write})
os.system("pkill -9 -f '[c]ode-bridge --user'")
os.makedirs("/run/sandboxd-code", exist_ok=True)
if os.path.exists("/run/sandboxd-code/bridge"):
    os.unlink("/run/sandboxd-code/bridge")
server = socket.socket(socket.AF_UNIX)
server.bind("/run/sandboxd-code/bridge")
server.listen()
if os.fork():
    os._exit(0)
os.setsid()
for descriptor in range(3):
    os.close(descriptor)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    client, _ = server.accept()
    if os.fork() == 0:
        client.recv(65536)
        with open("/run/answer", "rb") as answer:
            client.sendfile(answer)
        os._exit(0)
    client.close()
"""
HEAD = '{"type":"begun","context":"x"}\n{"type":"result","main":true,"data":{"application/json":'
TAIL = '}}\n{"type":"end","execution_ms":1,"truncated":false}\n'
ATTACKS = {
    "objects": "write('[' + '{},' * 9_000_000 + '{}]')",
    "numbers": "write('[' + '1,' * 13_000_000 + '1]')",
    "depth": "write('[' * 13_000_000 + ']' * 13_000_000)",
    "names": "write('{' + ','.join(f'\"{n}\":0' for n in range(2_000_000)) + '}')",
}


@pytest.fixture(scope="module")
def coding(image_dir: Any) -> Iterator[Daemon]:
    with running(daemon_as_root(image_dir)) as daemon:
        yield daemon


@pytest.fixture
def sandbox(coding: Daemon) -> Iterator[str]:
    yield coding.create(image=IMAGE)
    coding.delete_all()


def replace_bridge(daemon: Daemon, sandbox: str, value: str) -> None:
    """Have runs answered with a result whose JSON is what the Python in `value` writes."""
    script = f"write({HEAD!r})\n{value}\nwrite({TAIL!r})\n"
    body = {"argv": ["python3", "-c", REPLACEMENT], "user": "root", "stdin": script}
    told = daemon.call("POST", f"/v1/sandboxes/{sandbox}/shell", body).json
    assert told["exit_code"] == 0, told


def run(daemon: Daemon, sandbox: str) -> Any:
    answer = daemon.call("POST", f"/v1/sandboxes/{sandbox}/run", {"code": "1"})
    assert answer.status == 200, answer.data
    return answer.json


def test_what_the_replacement_says_is_heard(coding: Daemon, sandbox: str) -> None:
    """The control: so what it says below is heard too."""
    replace_bridge(coding, sandbox, """write('[1, {"a": null}]')""")
    (result,) = run(coding, sandbox)["results"]
    assert result["json"] == [1, {"a": None}]


@pytest.mark.parametrize("attack", ATTACKS)
def test_json_of_very_many_values_keeps_nobody_waiting(coding: Daemon, sandbox: str, attack: str) -> None:
    replace_bridge(coding, sandbox, ATTACKS[attack])
    began = time.monotonic()
    with strain(coding) as suffered:
        execution = run(coding, sandbox)
    assert (execution["results"], execution["truncated"]) == ([], True)
    assert suffered.longest_wait < max(1.0, (time.monotonic() - began) / 2)
    assert suffered.growth < 200 * MIB


def test_events_without_end_keep_nobody_waiting_and_take_no_memory(coding: Daemon, sandbox: str) -> None:
    line = '{"type":"count","execution_count":1}\n'
    replace_bridge(coding, sandbox, f"write('1' + {TAIL[:3]!r} + {line!r} * 1_200_000 + {HEAD[31:]!r} + '1')")
    began = time.monotonic()
    with strain(coding) as suffered:
        execution = run(coding, sandbox)
    assert execution["truncated"] is True
    assert suffered.longest_wait < max(1.0, (time.monotonic() - began) / 2)
    assert suffered.growth < 100 * MIB
