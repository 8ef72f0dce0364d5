"""Requests, and programs inside, that would have the daemon hold, write or say more than is good for everybody."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import daemon_as_root
from tests.security.support import Holder, listening_on_tcp, strain
from tests.support.coding import IMAGE
from tests.support.daemon import Daemon, running
from tests.support.waiting import wait_until

KIB = 1024
MIB = 1024 * KIB
# Each fits by itself, all of them do not.
TOO_MUCH = {f"N{number}": "x" * 4000 for number in range(80)}
FITS = {f"N{number}": "x" * 4000 for number in range(60)}


@pytest.fixture(scope="module")
def daemon_and_port(image_dir: Any) -> Iterator[tuple[Daemon, int]]:
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon)
    with running(daemon):
        yield daemon, port


@pytest.fixture
def attacked(daemon_and_port: tuple[Daemon, int]) -> Iterator[Daemon]:
    yield daemon_and_port[0]
    daemon_and_port[0].delete_all()


# -- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["env", "metadata"])
def test_what_is_kept_of_a_sandbox_is_bounded_as_a_whole(attacked: Daemon, field: str) -> None:
    refused = attacked.call("POST", "/v1/sandboxes", {field: TOO_MUCH})
    assert (refused.status, refused.json["kind"]) == (422, "invalid_request")
    assert "262144" in refused.json["error"]
    assert attacked.call("POST", "/v1/sandboxes", {field: FITS}).status == 201


@pytest.mark.parametrize("path", ["shell", "commands", "pty"])
def test_the_environment_of_a_command_is_bounded_as_a_whole(attacked: Daemon, path: str) -> None:
    sandbox = attacked.create()
    terms = {"cmd": "true"} if path != "pty" else {"argv": ["true"]}
    assert attacked.call("POST", f"/v1/sandboxes/{sandbox}/{path}", {**terms, "env": TOO_MUCH}).status == 422
    assert attacked.call("POST", f"/v1/sandboxes/{sandbox}/{path}", {**terms, "env": FITS}).status in {200, 201}


def test_an_environment_is_no_larger_for_being_put_together(attacked: Daemon) -> None:
    """A snapshot gives its own, a client another: both within the bound, and together not."""
    sandbox = attacked.create(env=FITS)
    snapshot = attacked.call("POST", f"/v1/sandboxes/{sandbox}/snapshot", {}).json["id"]
    others = {f"O{number}": "x" * 4000 for number in range(60)}
    refused = attacked.call("POST", "/v1/sandboxes", {"snapshot": snapshot, "env": others})
    assert (refused.status, refused.json["kind"]) == (422, "too_large")
    assert attacked.call("POST", "/v1/sandboxes", {"snapshot": snapshot, "env": FITS}).status == 201


def test_the_labels_of_a_snapshot_are_bounded_as_a_whole(attacked: Daemon) -> None:
    sandbox = attacked.create()
    path = f"/v1/sandboxes/{sandbox}/snapshot"
    assert attacked.call("POST", path, {"metadata": TOO_MUCH}).status == 422
    assert attacked.call("POST", path, {"metadata": FITS}).status == 201


def test_akiras_environment_is_bounded_as_a_whole(attacked: Daemon) -> None:
    refused = attacked.call("POST", "/v1/sandboxes/create", {"image": "base", "env": TOO_MUCH})
    assert refused.status in {400, 422}, refused.data
    assert attacked.call("POST", "/v1/sandboxes/create", {"image": "base", "env": FITS}).status in {200, 201}


def test_a_page_of_a_list_is_bounded_in_bytes(attacked: Daemon) -> None:
    made = [attacked.create(env=FITS, metadata=FITS) for _ in range(12)]
    answer = attacked.call("GET", "/v1/sandboxes?limit=1000")
    assert len(answer.data) < 5 * MIB
    assert 1 < len(answer.json["sandboxes"]) < len(made)
    assert [view["id"] for view in attacked.views()] == made


# -- what is said ---------------------------------------------------------------------------------------------------

# A byte that JSON says in six.
FLOOD = "head -c {size} /dev/zero | tr '\\0' '\\1'"


def test_output_that_grows_in_json_takes_little_memory_and_keeps_nobody_waiting(attacked: Daemon) -> None:
    sandbox = attacked.create()
    body = {"cmd": FLOOD.format(size=60_000_000), "max_output_bytes": 64 * MIB}
    began = time.monotonic()
    with strain(attacked) as suffered:
        answer = attacked.call("POST", f"/v1/sandboxes/{sandbox}/shell", body)
    assert len(answer.data) > 360_000_000
    assert suffered.growth < 150 * MIB
    assert suffered.longest_wait < max(1.0, (time.monotonic() - began) / 4)


def test_a_file_that_grows_in_json_takes_little_memory_and_keeps_nobody_waiting(attacked: Daemon) -> None:
    sandbox = attacked.create()
    attacked.shell(sandbox, FLOOD.format(size=30_000_000) + " > ~/flood")
    began = time.monotonic()
    with strain(attacked) as suffered:
        answer = attacked.call("POST", f"/v1/sandboxes/{sandbox}/fs/read", {"path": "flood"})
    assert len(answer.data) > 180_000_000
    assert suffered.growth < 150 * MIB
    assert suffered.longest_wait < max(1.0, (time.monotonic() - began) / 4)


def test_a_result_that_grows_in_json_takes_little_memory(attacked: Daemon) -> None:
    sandbox = attacked.create(image=IMAGE)
    attacked.call(
        "POST", f"/v1/sandboxes/{sandbox}/run", {"code": "class A:\n  def __repr__(self): return '\\1' * 16_000_000"}
    )
    with strain(attacked) as suffered:
        answer = attacked.call("POST", f"/v1/sandboxes/{sandbox}/run", {"code": "A()"})
    assert len(answer.data) > 96_000_000
    assert suffered.growth < 180 * MIB


def test_who_says_nothing_gets_a_megabyte_of_each_stream_and_how_much_there_was(attacked: Daemon) -> None:
    sandbox = attacked.create()
    result = attacked.shell(sandbox, "yes | head -c 5000000; yes no | head -c 10 >&2")
    assert (result["stdout_bytes"], result["stderr_bytes"], result["truncated"]) == (5_000_000, 10, True)
    (omitted,) = result["omitted"]
    assert omitted == {"stream": "stdout", "offset": MIB // 2, "bytes": 5_000_000 - MIB, "reason": "limit"}
    assert len(result["stdout"]) == MIB + len(f"\n[{omitted['bytes']} bytes left out]\n")


@pytest.fixture(scope="module")
def small(image_dir: Any) -> Iterator[tuple[Daemon, int]]:
    """With as little memory for output as can be."""
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon, f"[sandbox]\noutput_memory = {16 * MIB}\n")
    with running(daemon):
        yield daemon, port


def test_answers_that_nobody_reads_leave_room_for_other_keys(small: tuple[Daemon, int]) -> None:
    daemon, port = small
    greedy, quiet = Holder(daemon, port), Holder(daemon, port)
    its, others = greedy.create(), quiet.create()
    ask = {"cmd": "head -c 6000000 /dev/zero | tr '\\0' x", "max_output_bytes": 6_000_000}
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            greedy.ask_and_not_read(stack, f"/v1/sandboxes/{its}/shell", ask)

        def starved() -> bool:
            answer = greedy.call("POST", f"/v1/sandboxes/{its}/shell", ask)
            return answer.status == 429 or answer.json["omitted"][0]["reason"] == "daemon_memory"

        wait_until(starved)
        answer = quiet.call("POST", f"/v1/sandboxes/{others}/shell", ask)
        assert (answer.status, answer.json["truncated"], len(answer.json["stdout"])) == (200, False, 6_000_000)
    wait_until(lambda: greedy.call("POST", f"/v1/sandboxes/{its}/shell", ask).json.get("truncated") is False)
    daemon.delete_all()
