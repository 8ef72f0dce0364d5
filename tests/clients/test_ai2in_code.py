"""ai2in's client as published: run_code, whole and with callbacks."""

import dataclasses
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ai2in import Sandbox

from tests.clients.conftest import Access, serving
from tests.conftest import daemon_as_root, daemon_as_user
from tests.support.coding import IMAGE
from tests.support.daemon import Daemon

pytestmark = pytest.mark.any_user

# The client never says which image it wants, so the daemon is set up to mean the one with kernels.
CONFIG = f'[sandbox]\ndefault_image = "{IMAGE}"\n'


def configured(daemon: Daemon) -> Daemon:
    file = daemon.root / "sandboxd.toml"
    file.write_text(CONFIG)
    file.chmod(0o644)
    return dataclasses.replace(daemon, options=("--config", str(file)))


@pytest.fixture(scope="module")
def root_daemon(image_dir: Path) -> Iterator[Daemon]:
    yield from serving(configured(daemon_as_root(image_dir)))


@pytest.fixture(scope="module")
def rootless_daemon(user_image_dir: Path) -> Iterator[Daemon]:
    yield from serving(configured(daemon_as_user(user_image_dir)))


@pytest.fixture
def sandbox(access: Access) -> Iterator[Any]:
    with Sandbox(base_url=access.url, api_key=access.key) as made:
        yield made


def test_code_remembers_and_gives_results(sandbox: Any) -> None:
    assert sandbox.run_code("x = 41").text is None
    execution = sandbox.run_code("print('out')\nx + 1")
    assert execution.text == "42"
    assert execution.logs.stdout == ["out\n"]
    assert execution.error is None


def test_an_error_is_in_the_execution(sandbox: Any) -> None:
    error = sandbox.run_code("1 / 0").error
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in error.traceback


def test_a_figure_is_a_png(sandbox: Any) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    results = sandbox.run_code(code).results
    assert [result.png[:8] for result in results] == ["iVBORw0K"]
    assert "png" in results[0].formats()


def test_callbacks_are_called_as_things_come(sandbox: Any) -> None:
    heard: list[tuple[str, Any]] = []
    execution = sandbox.run_code(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\n1\n2",
        on_stdout=lambda text: heard.append(("stdout", text)),
        on_stderr=lambda text: heard.append(("stderr", text)),
        on_result=lambda result: heard.append(("result", result.text)),
    )
    assert sorted(heard) == [("result", "2"), ("stderr", "err\n"), ("stdout", "out\n")]
    assert execution.text == "2"


def test_callbacks_and_an_error(sandbox: Any) -> None:
    heard: list[Any] = []
    execution = sandbox.run_code("raise ValueError('no')", on_error=heard.append)
    assert execution.error.name == "ValueError"
    assert [error.value for error in heard] == ["no"]


def test_no_such_sandbox(access: Access) -> None:
    gone = Sandbox(base_url=access.url, api_key=access.key)
    gone.kill()
    for options in ({}, {"on_stdout": print}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            gone.run_code("1", **options)
        assert refused.value.code == 404
        refused.value.close()
