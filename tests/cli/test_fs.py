"""fs: files in a sandbox from the command line."""

import os

import pytest

from tests.cli.support import Ctl


def test_a_files_life(ctl: Ctl, sandbox: str) -> None:
    assert ctl.run("fs", "write", sandbox, "note", stdin=b"one\n").returncode == 0
    assert ctl.run("fs", "write", "-a", sandbox, "note", stdin=b"two\n").returncode == 0
    assert ctl.text("fs", "cat", sandbox, "note", "note") == "one\ntwo\n" * 2
    ctl.text("fs", "mkdir", "-p", sandbox, "a/b", "c")
    ctl.text("fs", "mv", sandbox, "note", "a")
    ctl.text("fs", "cp", sandbox, "a", "c")
    ctl.text("fs", "cp", sandbox, "a/note", "copy")
    ctl.text("fs", "ln", sandbox, "a/note", "link")
    assert ctl.text("fs", "ls", sandbox).split() == sorted(["a", "c", "copy", "link", *skeleton(ctl, sandbox)])
    assert ctl.text("fs", "ls", "-d", "3", sandbox, "c").split() == ["a", "a/b", "a/note"]
    ctl.text("fs", "chmod", sandbox, "600", "copy")
    ctl.text("fs", "chown", "-u", "root", "-R", sandbox, "root:0", "a")
    assert ctl.json("fs", "stat", sandbox, "copy")["mode"] == "0600"
    assert ctl.json("fs", "stat", sandbox, "a/note")["owner"] == "root"
    ctl.text("fs", "rm", "-r", sandbox, "c", "copy")
    ctl.text("fs", "rm", "-f", sandbox, "copy")
    assert ctl.run("fs", "rm", sandbox, "copy").returncode == 1


def skeleton(ctl: Ctl, sandbox: str) -> list[str]:
    """What a home has from the beginning."""
    return [name for name in ctl.text("fs", "ls", sandbox).split() if name.startswith(".")]


def test_ls_long_and_json(ctl: Ctl, sandbox: str) -> None:
    ctl.text(
        "exec", sandbox, "sh", "-c", "mkdir -m 1777 /tmp/t && cd /tmp/t && echo > f && chmod 4751 f && ln -s f l"
    )
    lines = [line.split() for line in ctl.text("fs", "ls", "-l", sandbox, "/tmp/t").splitlines()]
    assert lines[0] == ["MODE", "OWNER", "GROUP", "SIZE", "MODIFIED", "NAME"]
    assert (lines[1][:3], lines[1][-1]) == (["-rwsr-x--x", "user", "user"], "f")
    assert (lines[2][0], lines[2][-3:]) == ("lrwxrwxrwx", ["l", "->", "f"])
    assert [entry["path"] for entry in ctl.json("fs", "ls", sandbox, "/tmp/t")] == ["f", "l"]
    assert ctl.text("fs", "ls", "-l", sandbox, "/tmp").splitlines()[1].startswith("drwxrwxrwt")
    assert ctl.text("fs", "ls", sandbox, "/etc/passwd") == "/etc/passwd\n"


def test_stat_for_people(ctl: Ctl, sandbox: str) -> None:
    ctl.text("exec", sandbox, "ln", "-s", "/etc/passwd", "/tmp/link")
    text = ctl.text("fs", "stat", sandbox, "/tmp/link")
    assert "real path" in text
    assert "/etc/passwd" in text
    assert "symlink" in ctl.text("fs", "stat", "-P", sandbox, "/tmp/link")


def test_names_of_any_bytes(ctl: Ctl, sandbox: str) -> None:
    name = os.fsdecode(b"/tmp/caf\xe9\n")
    assert ctl.run("fs", "write", sandbox, name, stdin=b"odd").returncode == 0
    assert ctl.run("fs", "cat", sandbox, name).stdout == b"odd"
    assert repr(name[5:]) in ctl.run("fs", "ls", sandbox, "/tmp").stdout.decode()
    ctl.text("fs", "rm", sandbox, name)
    assert ctl.text("fs", "ls", sandbox, "/tmp") == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cat", "{box}", "/nonesuch"), "No such file"),
        (("cat", "{box}", "/etc/shadow"), "Permission denied"),
        (("ls", "{box}", "/nonesuch"), "No such file"),
        (("mv", "-n", "{box}", "/etc/hostname", "/etc/passwd"), "cannot"),
        (("chmod", "{box}", "u+x", "/tmp"), "octal"),
        (("chmod", "{box}", "77777", "/tmp"), "octal"),
        (("mkdir", "{box}", "/tmp"), "exists"),
        (("stat", "nonesuch", "/tmp"), "cannot find sandbox"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    ctl: Ctl, sandbox: str, arguments: tuple[str, ...], words: str
) -> None:
    done = ctl.run("fs", *(argument.format(box=sandbox) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith(b"sandboxctl: cannot ")
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
