"""That all of ai2in's client as published is driven by the tests beside this one, and what its refusals look like."""

import ast
import inspect
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import ai2in
import pytest
from ai2in import Sandbox

from tests.clients.conftest import Access

HERE = Path(__file__).parent
MIB = 1024 * 1024


def public_surface() -> Iterator[str]:
    """What the package exports, and the methods and properties of all its classes."""
    yield from ai2in.__all__
    for name, value in vars(ai2in).items():
        if inspect.isclass(value) and value.__module__ == ai2in.__name__:
            yield from (f"{name}.{member}" for member, found in vars(value).items() if _is_public(member, found))


def _is_public(name: str, member: object) -> bool:
    return not name.startswith("_") and isinstance(member, FunctionType | property | classmethod | staticmethod)


def names_in_tests() -> set[str]:
    """Attributes and names that the tests of this client use."""
    used = set()
    for path in HERE.glob("test_ai2in_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Name):
                used.add(node.id)
    return used


def test_every_public_name_of_the_package_is_exercised() -> None:
    """By its last word: which class a method is of, the tests do not say."""
    surface = set(public_surface())
    assert {"Sandbox", "Sandbox.run_code", "Sandbox.get_host", "Watcher.poll", "PtyHandle.resize"} <= surface
    made_by_the_client = {"Execution", "Result", "Logs", "ExecutionError", "CommandHandle", "Watcher", "PtyHandle"}
    used = names_in_tests()
    assert {name for name in surface - made_by_the_client if name.rpartition(".")[2] not in used} == set()


@pytest.fixture
def sandbox(access: Access) -> Iterator[Any]:
    with Sandbox(base_url=access.url, api_key=access.key) as made:
        yield made


# What needs the sandbox's machine.
USES: dict[str, Callable[[Any], object]] = {
    "run_code": lambda sandbox: sandbox.run_code("1"),
    "run_code streamed": lambda sandbox: sandbox.run_code("1", on_stdout=print),
    "run": lambda sandbox: sandbox.commands.run("true"),
    "start": lambda sandbox: sandbox.commands.start("true"),
    "pty": lambda sandbox: sandbox.pty.start(),
    "list": lambda sandbox: sandbox.files.list("/tmp"),
    "read": lambda sandbox: sandbox.files.read("/etc/hostname"),
    "write": lambda sandbox: sandbox.files.write("/tmp/x", "x"),
    "upload": lambda sandbox: sandbox.files.upload("/tmp/x", b"x"),
    "download": lambda sandbox: sandbox.files.download("/etc/hostname"),
    "watch": lambda sandbox: sandbox.files.watch("/tmp"),
    "get_host": lambda sandbox: sandbox.get_host(80),
}


def status_of(use: Callable[[], object]) -> int:
    """Of the refusal; 200 when there was none."""
    try:
        use()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
    return 200


def test_paused_everything_is_409_and_resumed_it_goes_on(sandbox: Any) -> None:
    assert sandbox.pause()["status"] == "paused"
    assert {name: status_of(lambda use=use: use(sandbox)) for name, use in USES.items()} == dict.fromkeys(USES, 409)
    assert sandbox.get_info()["status"] == "paused"
    assert sandbox.resume()["status"] == "running"
    assert sandbox.commands.run("echo on")["stdout"] == "on\n"


def test_gone_everything_is_404(access: Access) -> None:
    gone = Sandbox(base_url=access.url, api_key=access.key)
    gone.kill()
    more = {"pause": gone.pause, "resume": gone.resume, "get_metrics": gone.get_metrics}
    found = {name: status_of(lambda use=use: use(gone)) for name, use in USES.items()}
    found |= {name: status_of(use) for name, use in more.items()}
    assert found == dict.fromkeys(found, 404)


def test_with_a_wrong_key_it_is_401(sandbox: Any, access: Access) -> None:
    assert status_of(lambda: Sandbox.connect(sandbox.id, base_url=access.url, api_key="sbx_wrong")) == 401
    assert status_of(lambda: Sandbox.list(base_url=access.url)) == 401


def test_more_than_32_mib_at_once_is_413(sandbox: Any) -> None:
    assert status_of(lambda: sandbox.files.upload("/tmp/x", bytes(33 * MIB))) == 413
