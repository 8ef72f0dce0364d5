"""sandboxctl snapshot, clone, restore and storage, as the manual shows them."""

from pathlib import Path

from tests.cli.support import Ctl
from tests.support.daemon import Daemon


def test_snapshots_from_the_command_line(daemon: Daemon, tmp_path: Path) -> None:
    ctl = Ctl.of(daemon)
    ctl.text("create", "--name", "work")
    ctl.text("exec", "work", "--", "sh", "-c", "echo one > ~/file")
    good = ctl.text("snapshot", "create", "work", "--name", "good").strip()
    ctl.text("exec", "work", "--", "sh", "-c", "echo two > ~/file")
    assert len(ctl.text("clone", "work", "-n", "2", "--name", "try").split()) == 2
    assert ctl.text("exec", "try-2", "--", "sh", "-c", "cat ~/file") == "two\n"
    assert ctl.text("restore", "work", "good") == "running\n"
    assert ctl.text("exec", "work", "--", "sh", "-c", "cat ~/file") == "one\n"
    ctl.text("create", "--snapshot", "good", "--name", "other")
    assert ctl.text("exec", "other", "--", "sh", "-c", "cat ~/file") == "one\n"
    ctl.text("snapshot", "export", "good", str(tmp_path / "good.tar"))
    copy = ctl.text("snapshot", "import", str(tmp_path / "good.tar"), "--name", "copy").strip()
    assert ctl.text("snapshot", "ls", "-q").split() == [good, copy]
    assert "imported" in ctl.text("snapshot", "ls")
    assert ctl.json("snapshot", "inspect", "copy")["name"] == "copy"
    assert good in ctl.text("snapshot", "inspect", "good")
    ctl.text("exec", "work", "--", "sh", "-c", "head -c 3000000 /dev/urandom > ~/large")
    told = ctl.run("snapshot", "create", "work", "--name", "third")
    copied = ctl.json("snapshot", "inspect", "third")["cost"]["copied_bytes"]
    assert (b"were copied, the sandbox stood still for" in told.stderr) is (copied > 0)
    assert (b"were copied, the sandbox stood still for" in ctl.run("clone", "work").stderr) is (copied > 0)
    ctl.text("snapshot", "rm", "third")
    assert "layers" in ctl.text("storage")
    assert ctl.json("storage")["volume"] == "plain"
    assert "layers" in ctl.text("storage", "gc")
    assert ctl.text("snapshot", "rm", "good", "copy").split() == ["good", "copy"]
    assert ctl.run("snapshot", "rm", "good").returncode == 1
