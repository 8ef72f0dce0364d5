"""As many operations in one sandbox as sandbox-init takes: one more is refused at once, and control goes on."""

from collections.abc import Iterator

import pytest

from sandboxd.isolation.init.wire import MAX_FOLLOWERS
from tests.support.daemon import Daemon
from tests.support.sandbox import Box


@pytest.fixture
def box(root_daemon: Daemon) -> Iterator[Box]:
    yield Box(root_daemon, root_daemon.create())
    root_daemon.delete_all()


def test_one_command_too_many_is_a_429_and_ending_others_works(box: Box) -> None:
    started = [box.answer("commands", {"argv": ["sleep", "1000"]}) for _ in range(MAX_FOLLOWERS)]
    assert {answer.status for answer in started} == {201}, started[-1].data
    for path, body in (("commands", {"argv": ["sleep", "1"]}), ("shell", {"cmd": "true"})):
        refused = box.answer(path, body)
        assert (refused.status, refused.json["kind"]) == (429, "too_many_operations"), refused.data
        assert f"more than {MAX_FOLLOWERS}" in refused.json["error"]
    # What needs no place of its own goes on: signals, files, the list, the end of one.
    one = started[0].json["command_id"]
    assert box.answer(f"commands/{one}/signal", {"signal": "SIGCONT"}).status == 200
    assert box.answer("fs/write", {"path": "/tmp/file", "content": "written"}).status == 200
    assert box.answer("fs/read", {"path": "/tmp/file"}).json["content"] == "written"
    listed = box.daemon.call("GET", f"/v1/sandboxes/{box.id}/commands").json["commands"]
    assert sum(command["status"] == "running" for command in listed) == MAX_FOLLOWERS
    assert box.answer(f"commands/{one}/kill", {}).json["status"] == "killed"
    # The control: there is room again for exactly one.
    assert box.shell("echo works")["stdout"] == "works\n"
    assert box.answer("commands", {"argv": ["sleep", "1000"]}).status == 201
    assert box.answer("commands", {"argv": ["sleep", "1000"]}).status == 429
