"""A daemon that ends while code runs: the kernels and their variables are there for the next one."""

import http.client
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import witnesses
from tests.support.coding import IMAGE, Coder
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until

WAIT = (
    "import os, time\nx += 1\nopen('/tmp/begun', 'w')\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)\nx += 10"
)


@pytest.fixture
def box(own_daemon: Daemon) -> Coder:
    own_daemon.start()
    return Coder(own_daemon, own_daemon.create(image=IMAGE))


def test_variables_outlive_a_killed_daemon(box: Coder) -> None:
    context = box.new_context()
    box.run("x = 1", context_id=context)
    pid = box.text("import os\nos.getpid()", context_id=context)
    box.daemon.kill()
    box.daemon.start()
    assert box.text("(x, os.getpid())", context_id=context) == f"(1, {pid})"
    assert box.daemon.stop() == 0
    box.daemon.start()
    assert box.text("(x, os.getpid())", context_id=context) == f"(1, {pid})"


def test_a_run_under_way_is_interrupted_and_told(box: Coder) -> None:
    box.run("x = 1")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(box.answer, "run", {"code": WAIT})
        wait_until(lambda: box.shell("test -e /tmp/begun")["exit_code"] == 0)
        box.daemon.kill()
        with pytest.raises((http.client.HTTPException, OSError)):
            running.result()
    box.daemon.start()
    assert box.text("x") == "2"


def test_a_daemon_killed_while_the_bridge_starts(box: Coder) -> None:
    box.daemon.kill()
    box.daemon.start()
    assert box.text("1") == "1"
    assert box.shell("pgrep -fc 'code-bridge --user'", user="root")["stdout"] == "1\n"
    box.daemon.delete_all()
    assert witnesses.disagreement(box.daemon) == {}
