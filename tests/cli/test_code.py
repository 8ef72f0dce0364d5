"""sandboxctl code."""

import signal
from pathlib import Path

import pytest

from tests.cli.support import LIMIT, Ctl
from tests.support.coding import IMAGE
from tests.support.daemon import Daemon

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n"


@pytest.fixture
def sandbox(ctl: Ctl, root_daemon: Daemon) -> str:
    return root_daemon.create(image=IMAGE)


def test_it_remembers_and_prints(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    assert ctl.text("code", sandbox, "-c", "x = 41") == ""
    assert ctl.text("code", sandbox, "-c", "print('out')\nx + 1") == "out\n42\n"
    script = tmp_path / "script.py"
    script.write_text("import os\n(x, os.environ['A'], os.getcwd())")
    assert ctl.text("code", sandbox, str(script), "-e", "A=ä", "-w", "/tmp") == "(41, 'ä', '/tmp')\n"
    assert ctl.text("code", sandbox, stdin=b"x") == "41\n"
    assert ctl.text("code", sandbox, "-", stdin=b"x") == "41\n"


def test_what_fails_is_told_by_status_and_stderr(ctl: Ctl, sandbox: str) -> None:
    failed = ctl.run("code", sandbox, "-c", "import sys\nprint('err', file=sys.stderr)\n1 / 0")
    assert failed.returncode == 1
    assert failed.stderr.startswith(b"err\n")
    assert b"ZeroDivisionError" in failed.stderr
    late = ctl.run("code", sandbox, "-c", "while True: pass", "--timeout", "200ms")
    assert (late.returncode, late.stderr[:17]) == (1, b"ExecutionTimeout:")
    assert ctl.run("code", sandbox, "-c", "1", "--context", "nope").stderr.startswith(
        b"sandboxctl: cannot find context"
    )
    assert ctl.run("code", sandbox, stdin=b"\xff").stderr.startswith(b"sandboxctl: cannot run ")
    assert ctl.run("code", sandbox, "/dev/null", "-c", "1").returncode == 2


def test_images_are_saved(ctl: Ctl, sandbox: str, tmp_path: Path) -> None:
    assert "Figure" in ctl.text("code", sandbox, "-c", PLOT)
    directory = tmp_path / "new" / "one"
    assert ctl.text("code", sandbox, "-c", PLOT, "--output-dir", str(directory)) == f"{directory}/result-1.png\n"
    assert (directory / "result-1.png").read_bytes()[:4] == b"\x89PNG"


def test_an_interrupt_ends_the_code_and_keeps_the_variables(ctl: Ctl, sandbox: str) -> None:
    with ctl.start("code", sandbox, "-c", "x = 1\nprint('up', flush=True)\nwhile True: pass") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(LIMIT) == 130
    assert ctl.text("code", sandbox, "-c", "x") == "1\n"
