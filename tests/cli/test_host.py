"""info, completion, help, and a daemon that is not there."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from sandboxd import __version__
from sandboxd.cli.ctl import COMMANDS, LazyGroup, cli
from tests.cli.support import LIMIT, PROGRAM, Ctl
from tests.support.daemon import Daemon


def test_info_for_people_and_programs(ctl: Ctl) -> None:
    facts = ctl.json("info")
    assert facts["health"]["status"] == "ok"
    assert facts["capabilities"]["default_image"] == "base"
    lines = dict(line.split(maxsplit=1) for line in ctl.text("info").splitlines())
    assert lines["version"] == __version__
    assert lines["address"] == ctl.url


def test_every_command_can_be_loaded_and_has_its_summary() -> None:
    context = cli.make_context("sandboxctl", ["--url", "unix:/none"], resilient_parsing=True)
    assert isinstance(cli, LazyGroup)
    for section in COMMANDS.values():
        for name in section:
            command = cli.get_command(context, name)
            assert command is not None
            assert command.name == name
            assert command.help


def test_help_names_every_command_without_loading_one(ctl: Ctl) -> None:
    script = "import sys; from sandboxd.cli.ctl import main; main(['--help'], standalone_mode=False); "
    check = "assert 'trio' not in sys.modules and 'rich' not in sys.modules, 'help loads too much'"
    shown = subprocess.run(
        [PROGRAM[0], "-c", script + check], env=ctl.env(), capture_output=True, timeout=LIMIT, check=True
    )
    for section in COMMANDS.values():
        for name, (_, summary) in section.items():
            assert f"{name} " in shown.stdout.decode()
            assert summary in shown.stdout.decode()


def test_the_version(ctl: Ctl) -> None:
    assert ctl.text("--version") == f"sandboxctl {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("nonesuch",), ("ls", "--nonesuch"), ("completion", "tcsh")])
def test_wrong_use_is_status_2(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert ctl.run(*arguments).returncode == 2


# -- completion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_what_the_shell_reads(ctl: Ctl, shell: str, tmp_path: Path) -> None:
    script = ctl.text("completion", shell)
    assert "_SANDBOXCTL_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=LIMIT)


def complete(ctl: Ctl, line: str) -> list[str]:
    """What bash would offer at the end of a line."""
    words = line.split(" ")
    asked = {"_SANDBOXCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        PROGRAM, env={**ctl.env(), **asked}, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stderr == ""
    return [offer.removeprefix("plain,") for offer in done.stdout.split()]


def test_commands_options_and_sandboxes_are_completed(ctl: Ctl, root_daemon: Daemon) -> None:
    root_daemon.create(name="blue")
    root_daemon.create(name="black")
    assert complete(ctl, "sandboxctl exe") == ["exec"]
    assert complete(ctl, "sandboxctl rm --a") == ["--all"]
    assert complete(ctl, "sandboxctl inspect bl") == ["blue", "black"]


def test_completion_is_silent_without_a_daemon(tmp_path: Path) -> None:
    assert complete(Ctl(f"unix:{tmp_path}/none"), "sandboxctl inspect bl") == []


# -- no daemon ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "status"), [(("ls",), 1), (("run", "true"), 125)])
def test_without_a_daemon_there_is_a_sentence_that_helps(
    tmp_path: Path, arguments: tuple[str, ...], status: int
) -> None:
    done = Ctl(f"unix:{tmp_path}/none.sock").run(*arguments)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr.decode() == (
        f"sandboxctl: cannot reach sandboxd at unix:{tmp_path}/none.sock: there is no such socket; "
        "start the daemon with `sandboxd serve`, or set SANDBOXD_URL\n"
    )


def test_a_socket_of_a_daemon_that_died(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dead.sock"))
    done = Ctl(f"unix:{tmp_path}/dead.sock").run("ls")
    assert done.returncode == 1
    assert b"nobody listens there any more" in done.stderr


def test_an_address_that_is_none(tmp_path: Path) -> None:
    done = Ctl("ftp://example").run("ls")
    assert done.returncode == 1
    assert b"write unix:PATH or http://HOST:PORT" in done.stderr


def test_the_url_option_overrides_the_environment(ctl: Ctl, tmp_path: Path) -> None:
    elsewhere = Ctl(f"unix:{tmp_path}/none.sock")
    assert elsewhere.json("--url", ctl.url, "ls") == []


def test_a_listing_may_be_cut_short_by_its_reader(ctl: Ctl, sandbox: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with ctl.start("ls", stdout=writing) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == b""
