"""Stateful code execution: results, contexts, limits, and code that does its worst to its own kernel."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.coding import IMAGE, Coder
from tests.support.daemon import Daemon
from tests.support.sse import Event, stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user

PNG = b"\x89PNG\r\n\x1a\n"
# Lines in one piece: print() writes the end of the line by itself, and what comes before may go ahead of it.
FOREVER = "print('begun\\n', end='', flush=True)\nwhile True: pass"


@pytest.fixture
def box(daemon: Daemon) -> Coder:
    return Coder(daemon, daemon.create(image=IMAGE))


def streamed(box: Coder, code: str, **body: object) -> list[Event]:
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/run/stream", {"code": code, **body}) as events:
        return list(events)


def of_type(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.data["type"] == kind]


# -- results ------------------------------------------------------------------------------------------------------


def test_an_execution_as_a_whole(box: Coder) -> None:
    execution = box.run("import sys\nsys.stdout.write('out\\n')\nsys.stderr.write('err\\n')\nx = 20\nx + 1")
    assert execution["results"][0]["text"] == "21"
    assert execution["results"][0]["is_main_result"] is True
    assert execution["logs"] == {"stdout": ["out\n"], "stderr": ["err\n"]}
    assert execution["error"] is None
    assert (execution["execution_count"], execution["context_id"], execution["truncated"]) == (1, "default", False)
    assert execution["execution_ms"] >= 0
    assert box.text("x * 2") == "40"


def test_an_error_has_name_value_and_a_plain_traceback(box: Coder) -> None:
    error = box.error("def f():\n    return missing\nf()")
    assert (error["name"], error["value"]) == ("NameError", "name 'missing' is not defined")
    assert "return missing" in error["traceback"]
    assert "\x1b" not in error["traceback"]
    assert box.error("def f(:")["name"] == "SyntaxError"
    assert box.error("input()")["name"] == "StdinNotImplementedError"


def test_every_kind_of_result(box: Coder) -> None:
    code = """
from IPython.display import HTML, JSON, Javascript, Latex, Markdown, SVG, display
display(HTML("<b>"), Markdown("*m*"), SVG("<svg xmlns='http://www.w3.org/2000/svg'/>"), Latex("$x$"),
        Javascript("1"), JSON({"a": [1]}), {"application/x-own": "mine", "text/plain": "t"}, raw=False)
display({"application/x-own": "mine", "text/plain": "t"}, raw=True)
"""
    results = box.run(code)["results"]
    given = {name for result in results for name, value in result.items() if value is not None}
    assert given == {"text", "html", "markdown", "svg", "latex", "javascript", "json", "extra", "is_main_result"}
    assert {"a": [1]} in [result["json"] for result in results]
    assert results[-1]["extra"] == {"application/x-own": "mine"}
    assert not any(result["is_main_result"] for result in results)


def test_what_the_image_was_made_for(box: Coder) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()\nprint('after')"
    execution = box.run(plot)
    assert [base64.b64decode(result["png"])[:8] for result in execution["results"]] == [PNG]
    assert execution["logs"]["stderr"] == []
    (table,) = box.run("import pandas as pd\npd.DataFrame({'a': [1, 2]})")["results"]
    assert "<table" in table["html"]
    (image,) = box.run("from PIL import Image\nImage.new('RGB', (2, 2))")["results"]
    assert base64.b64decode(image["png"])[:8] == PNG
    assert box.text("import numpy as np\nint(np.arange(5).sum())") == "10"


def test_subprocesses_and_prints_keep_their_order(box: Coder) -> None:
    execution = box.run("import os\nprint('one')\nos.system('echo two')\nprint('three', end='')\n!echo four")
    assert "".join(execution["logs"]["stdout"]) == "one\ntwo\nthreefour\n"


def test_bytes_that_are_no_text_do_no_harm(box: Coder) -> None:
    execution = box.run("import os\nos.write(1, bytes(range(256)) * 1000 + '€'.encode()[:2])\n'\\ud800'")
    assert "\ufffd" in "".join(execution["logs"]["stdout"])
    assert "".join(box.run("print('\\ud800 whole')")["logs"]["stdout"]) == "\\ud800 whole\n"


def test_asynchronous_code(box: Coder) -> None:
    assert box.text("import asyncio\nawait asyncio.sleep(0)\n7") == "7"


# -- as a stream --------------------------------------------------------------------------------------------------


def test_a_stream_is_nothing_but_data_frames(box: Coder) -> None:
    answer = box.answer("run/stream", {"code": "print('hi\\n', end='')\n1"})
    assert answer.data.endswith(b"\n\n")
    frames = [json.loads(frame.removeprefix(b"data: ")) for frame in answer.data.split(b"\n\n")[:-1]]
    assert [frame["type"] for frame in frames] == ["begun", "execution_count", "stdout", "result", "end"]
    assert frames[2]["text"] == "hi\n"
    assert frames[3]["result"] == {"text": "1", "is_main_result": True}
    assert frames[4]["execution_ms"] >= 0


def test_output_comes_while_the_code_runs(box: Coder) -> None:
    waiting = "import os, time\nprint('ready\\n', end='')\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)"
    body = {"code": f"{waiting}\nprint('done\\n', end='')"}
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/run/stream", body) as events:
        assert [event.data["type"] for event in events.take(3)] == ["begun", "execution_count", "stdout"]
        box.shell("touch /tmp/go")
        assert [event.data["text"] for event in of_type(list(events), "stdout")] == ["done\n"]


def test_a_line_that_is_not_finished_is_shown_too(box: Coder) -> None:
    body = {"code": "import os, time\nprint('50%', end='')\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)"}
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/run/stream", body) as events:
        assert events.take(3)[-1].data == {"type": "stdout", "text": "50%"}
        box.shell("touch /tmp/go")
        list(events)


def test_who_leaves_a_stream_interrupts_its_run(box: Coder) -> None:
    box.run("x = 5")
    body = {"code": f"try:\n    {FOREVER.replace(chr(10), chr(10) + '    ')}\nfinally:\n    x += 1"}
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/run/stream", body) as events:
        assert events.take(3)[-1].data["text"] == "begun\n"
    assert box.text("x") == "6"


# -- contexts -----------------------------------------------------------------------------------------------------


def test_contexts_know_nothing_of_each_other(box: Coder) -> None:
    box.run("x = 1")
    other = box.new_context(cwd="/tmp", env={"COLOUR": "red"})
    assert box.error("x", context_id=other)["name"] == "NameError"
    assert box.text("import os\n(os.getcwd(), os.environ['COLOUR'])", context_id=other) == "('/tmp', 'red')"
    assert box.error("import os\nos.environ['COLOUR']")["name"] == "KeyError"
    assert [context["cwd"] for context in box.contexts().values()] == ["/home/user", "/tmp"]


def test_restart_forgets_and_delete_removes(box: Coder) -> None:
    context = box.new_context(env={"KEPT": "yes"})
    box.run("x = 1", context_id=context)
    assert box.answer(f"contexts/{context}/restart", None).status == 200
    assert box.error("x", context_id=context)["name"] == "NameError"
    assert box.text("import os\nos.environ['KEPT']", context_id=context) == "'yes'"
    path = f"/v1/sandboxes/{box.id}/contexts/{context}"
    assert box.daemon.call("DELETE", path).status == 200
    assert box.contexts() == {}
    for gone in (box.daemon.call("DELETE", path), box.answer("run", {"code": "1", "context_id": context})):
        assert (gone.status, gone.json["kind"]) == (404, "unknown_context")


def test_a_run_may_bring_its_own_environment_and_directory(box: Coder) -> None:
    code = "import os\n(os.environ.get('A'), os.getcwd())"
    assert box.text(code, env={"A": "1"}, cwd="/usr") == "('1', '/usr')"
    assert box.text(code) == "(None, '/home/user')"
    assert box.error(code, cwd="/nowhere")["name"] == "FileNotFoundError"
    box.run("os.environ['A'] = 'own'; os.chdir('/')")
    assert box.text(code, env={"A": "1"}) == "('1', '/')"
    assert box.text(code) == "('own', '/')"


def test_runs_in_one_context_wait_for_each_other_in_order(box: Coder) -> None:
    box.run("order = []")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(box.run, "import os, time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)")
        wait_until(box.is_busy)
        waiting = []
        for number in range(5):
            waiting.append(pool.submit(box.run, f"order.append({number})"))
            wait_until(lambda wanted=number + 1: queued(box) == wanted)
        assert box.text("2", context_id=box.new_context()) == "2"
        box.shell("touch /tmp/go")
        assert first.result()["error"] is None
        assert [each.result()["error"] for each in waiting] == [None] * 5
    assert box.text("order") == "[0, 1, 2, 3, 4]"


def queued(box: Coder) -> int:
    return int(box.contexts()["default"]["queued"])


def test_interrupt_ends_a_run_and_keeps_the_variables(box: Coder) -> None:
    box.run("x = 5")
    with stream(box.daemon, "POST", f"/v1/sandboxes/{box.id}/run/stream", {"code": FOREVER}) as events:
        assert events.take(3)[-1].data["text"] == "begun\n"
        assert box.answer("contexts/default/interrupt", None).json["interrupted"] is True
        assert [event.data["error"]["name"] for event in of_type(list(events), "error")] == ["KeyboardInterrupt"]
    assert box.answer("contexts/default/interrupt", None).json["interrupted"] is False
    assert box.text("x") == "5"


# -- limits -------------------------------------------------------------------------------------------------------


def test_a_run_out_of_time_is_interrupted(box: Coder) -> None:
    box.run("x = 5")
    error = box.error("while True: pass", timeout_ms=500)
    assert error["name"] == "ExecutionTimeout"
    assert "0.5 s" in error["value"]
    assert "kept" in error["value"]
    assert box.text("x") == "5"


def test_a_run_that_goes_on_when_interrupted_is_killed(box: Coder) -> None:
    stubborn = "import time\nx = 5\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass"
    error = box.error(stubborn, timeout_ms=500)
    assert error["name"] == "ExecutionTimeout"
    assert "lost" in error["value"]
    assert box.error("x")["name"] == "NameError"


def test_a_hundred_megabytes_of_prints_are_cut_and_said(box: Coder) -> None:
    execution = box.run("line = 'x' * 9999\nfor _ in range(10_000): print(line)\n'end'")
    assert execution["truncated"] is True
    assert sum(map(len, execution["logs"]["stdout"])) == 16 * 1024 * 1024
    assert execution["results"][0]["text"] == "'end'"


def test_a_result_of_any_size_is_cut_and_said(box: Coder) -> None:
    execution = box.run("'y' * 40_000_000")
    assert execution["truncated"] is True
    assert len(execution["results"][0]["text"]) == 32 * 1024 * 1024
    assert box.text("1") == "1"


def test_contexts_and_waiting_runs_are_bounded(box: Coder) -> None:
    for _ in range(32):
        box.new_context()
    refused = box.answer("contexts", {})
    assert (refused.status, refused.json["kind"]) == (429, "too_many_contexts")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"code": "1", "language": "cobol"}, 422),
        ({"code": "1", "context_id": "../x"}, 422),
        ({"code": "1", "context_id": "nope"}, 404),
        ({"code": "1", "env": {"A B": "1"}}, 422),
        ({"code": "1", "timeout_ms": 0}, 422),
        ({"code": "1", "cwd": "relative"}, 422),
    ],
)
def test_bad_requests(box: Coder, body: object, status: int) -> None:
    assert box.answer("run", body).status == status
    assert box.answer("run/stream", body).status == status


def test_a_context_in_a_directory_that_is_none(box: Coder) -> None:
    refused = box.answer("contexts", {"cwd": "/nowhere"})
    assert (refused.status, refused.json["kind"]) == (422, "bad_cwd")


# -- worse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"), [("import os; os.kill(os.getpid(), 9)", "SIGKILL"), ("import os; os._exit(3)", "status 3")]
)
def test_a_dead_kernel_says_so_and_comes_back(box: Coder, code: str, said: str) -> None:
    box.run("x = 1")
    error = box.error(f"print('last words', flush=True)\n{code}")
    assert error["name"] == "KernelDied"
    assert said in error["value"]
    assert box.error("x")["name"] == "NameError"
    assert box.text("1") == "1"


def test_exit_does_not_end_the_kernel(box: Coder) -> None:
    box.run("x = 1\nexit()")
    assert box.text("x") == "1"


def test_a_kernel_killed_between_runs_is_replaced(box: Coder) -> None:
    pid = box.text("import os\nos.getpid()")
    file = box.text("from ipykernel.connect import get_connection_file\nget_connection_file()").strip("'")
    assert box.shell(f"kill -9 {pid}; test -e {file}", user="root")["exit_code"] == 0
    wait_until(lambda: box.shell(f"test -e {file}", user="root")["exit_code"] != 0)  # it has been noticed
    assert box.text("1") == "1"


def test_a_killed_bridge_says_so_and_comes_back(box: Coder) -> None:
    box.run("x = 1")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(box.run, FOREVER)
        wait_until(box.is_busy)
        box.shell("pkill -9 -f 'code-bridge --user'", user="root")
        assert running.result()["error"]["name"] == "KernelDied"
    assert box.error("x")["name"] == "NameError"
    kernels = [line for line in box.processes() if "code-bridge" in line]
    assert len(kernels) <= 4  # the bridge, what kernels are forked from, the one in use, and one kept ready


def test_a_killed_zygote_says_so_and_comes_back(box: Coder) -> None:
    box.run("1")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(box.run, FOREVER)
        wait_until(box.is_busy)
        zygote = box.shell("pgrep -u root -f zygote.py", user="root")["stdout"].strip()
        box.shell(f"kill -9 {zygote}", user="root")
        assert running.result()["error"]["name"] == "KernelDied"
    assert box.text("1") == "1"


def test_a_forked_kernel_is_a_process_like_any_other(daemon: Daemon) -> None:
    box = Coder(daemon, daemon.create(image=IMAGE, env={"PYTHONPATH": "/tmp/own"}))
    box.shell("mkdir -p /tmp/own $(python3 -m site --user-site); echo A=1 > /tmp/own/mine.py")
    box.shell("echo B=2 > $(python3 -m site --user-site)/theirs.py")
    context = box.new_context()
    assert box.text("import mine, theirs\nmine.A + theirs.B", context_id=context) == "3"
    assert box.text("open('/proc/self/environ').read().count('HOME=/home/user')", context_id=context) == "1"
    spawned = "import multiprocessing, os\nwith multiprocessing.Pool(2) as pool: r = pool.map(abs, [-1, -2])\nr"
    assert box.text(spawned, context_id=context) == "[1, 2]"
    draws = {box.text("import random\nrandom.random()", context_id=box.new_context()) for _ in range(3)}
    assert len(draws) == 3


def test_a_bridge_that_stands_still_does_not_hold_a_timed_run_for_ever(box: Coder) -> None:
    box.run("1")
    box.shell("pkill -STOP -f 'code-bridge --user'", user="root")
    began = time.monotonic()
    listed = box.daemon.call("GET", f"/v1/sandboxes/{box.id}/contexts")
    assert (listed.status, listed.json["kind"]) == (422, "kernel_failed")
    assert time.monotonic() - began < 50


def test_a_hostile_bridge_cannot_hurt_the_daemon(box: Coder) -> None:
    box.run("1")
    hostile = """
import os, socket
os.system("pkill -9 -f 'code-bridge --user'")
os.unlink("/run/sandboxd-code/bridge")
server = socket.socket(socket.AF_UNIX)
server.bind("/run/sandboxd-code/bridge")
server.listen()
print("up", flush=True)
for answer in (b'{"type":"result","data":1}\\n', b'nonsense\\n', b'{"type":"end","execution_ms":1e999}\\n'):
    peer, _ = server.accept()
    peer.recv(100000)
    peer.sendall(answer)
    peer.close()
"""
    box.shell("cat > /tmp/hostile.py", stdin=hostile)
    box.shell("setsid python3 /tmp/hostile.py > /tmp/up 2>&1 &", user="root")
    wait_until(lambda: box.shell("cat /tmp/up")["stdout"] == "up\n")
    for _ in range(3):
        assert box.error("1")["name"] == "KernelDied"
    assert box.text("1") == "1"


def test_code_runs_as_the_sandboxes_user(daemon: Daemon) -> None:
    for user, uid in (("", "1000"), ("root", "0"), ("1234", "1234")):
        box = Coder(daemon, daemon.create(image=IMAGE, **({"user": user} if user else {})))
        assert box.text("import os\nos.getuid()") == uid


def test_the_bridge_is_not_the_users_to_change(box: Coder) -> None:
    assert box.error("open('/usr/lib/sandboxd/code-bridge/kernel.py', 'a')")["name"] == "PermissionError"
    assert box.error("open('/run/sandboxd-code/x', 'w')")["name"] == "PermissionError"
    connect = "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/sandboxd-code/bridge')"
    assert box.error(connect)["name"] == "PermissionError"


def test_an_image_without_kernels_says_what_to_do(daemon: Daemon) -> None:
    box = Coder(daemon, daemon.create())
    for path, body in (("run", {"code": "1"}), ("run/stream", {"code": "1"}), ("contexts", {})):
        refused = box.answer(path, body)
        assert (refused.status, refused.json["kind"]) == (422, "no_kernel")
        assert "sandboxctl image build code-interpreter" in refused.json["error"]
        assert '"image": "code-interpreter"' in refused.json["error"]


def test_a_paused_sandbox_refuses_and_forgets_nothing(box: Coder) -> None:
    box.run("x = 1")
    assert box.answer("pause", None).status == 200
    for path in ("run", "run/stream"):
        refused = box.answer(path, {"code": "x"})
        assert (refused.status, refused.json["details"]["state"]) == (409, "paused")
    assert box.answer("resume", None).status == 200
    assert box.text("x") == "1"


def test_a_stopped_sandbox_has_fresh_kernels_when_it_is_started(box: Coder) -> None:
    box.run("x = 1")
    assert box.answer("stop", None).status == 200
    assert box.answer("start", None).status == 200
    assert box.error("x")["name"] == "NameError"


def test_a_sandbox_that_is_deleted_under_a_run(box: Coder) -> None:
    with ThreadPoolExecutor() as pool:
        running = pool.submit(box.answer, "run", {"code": FOREVER})
        wait_until(box.is_busy)
        box.daemon.delete(box.id)
        assert running.result().status == 410
    assert box.answer("run", {"code": "1"}).status == 404
