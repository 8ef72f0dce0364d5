"""The machine itself: what a program inside sees, and that nothing of it is left on the host."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.uml.machine import CHECKOUT, COPIED, DISK, Machine, UmlError, run_in_uml

pytestmark = pytest.mark.needs_uml

# Some 3 s on a quiet machine.
BOOT_LIMIT = 240.0


def machine_processes() -> list[int]:
    """The host's processes that are, or were, part of a machine of ours; other test runs may have theirs."""
    status: dict[int, tuple[str, int, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent, _group, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                status[int(entry.name)] = (state, int(parent), int(session))
    strangers = {pid for pid, (_state, parent, _session) in status.items() if parent != os.getpid()}
    return [
        pid
        for pid, (state, _parent, session) in status.items()
        if state not in "ZX" and session not in strangers and is_uml(pid)
    ]


def is_uml(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name == "linux.uml"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each machine's files go below a directory of the test's, and it and all its processes must be gone after."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = set(os.listdir("/proc/self/fd"))
    yield
    assert machine_processes() == []
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    assert list(tmp_path.iterdir()) == []


def test_a_program_ends_with_its_own_status_and_its_exact_output() -> None:
    script = "import os, sys; os.write(1, b'one\\ntab\\there\\r\\n'); os.write(2, 'ü'.encode() * 9000); sys.exit(7)"
    result = run_in_uml([sys.executable, "-ISc", script], timeout=BOOT_LIMIT)
    assert result.returncode == 7
    assert result.output == "one\ntab\there\r\n" + "ü" * 9000


def test_a_program_killed_by_a_signal_says_so() -> None:
    assert run_in_uml(["sh", "-c", "kill -TERM $$"], timeout=BOOT_LIMIT).returncode == -15


def test_the_host_is_visible_and_read_only() -> None:
    script = f"""
        head -1 pyproject.toml
        for place in . /usr /root; do touch $place/written 2>/dev/null && echo wrote to $place; done
        touch {DISK}/file /tmp/file /run/file /dev/shm/file /home/file /etc/written && echo private places are not
        ip addr show lo 2>/dev/null | grep -q 'inet 127.0.0.1' && echo loopback
        cat /sys/fs/cgroup/cgroup.controllers
        awk '$2 == "{DISK}" {{ print $3 }}' /proc/mounts
        grep -o ^overlay /proc/modules
        """
    result = run_in_uml(["sh", "-c", script], timeout=BOOT_LIMIT)
    first = (CHECKOUT / "pyproject.toml").read_text().splitlines()[0]
    assert result.output.splitlines() == [
        first,
        "private places are not",
        "loopback",
        "cpu io memory pids",
        "ext4",
        "overlay",
    ]
    assert result.returncode == 0
    assert not Path("/etc/written").exists()


def test_a_copied_directory_keeps_its_owners_and_modes(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source")
    (source / "file").write_text("content")
    (source / "link").symlink_to("nowhere")
    if os.geteuid() == 0:
        os.chown(source / "file", 1234, 5678)
    (source / "file").chmod(0o4751)
    owner = (source / "file").stat()
    script = f"""
        cd {COPIED}
        stat -c '%u %g %a %s' file
        readlink link
        cat file; echo
        rm file && echo writable
        echo $TMPDIR
        """
    result = run_in_uml(["sh", "-c", script], timeout=BOOT_LIMIT, copied=source)
    identity = f"{owner.st_uid} {owner.st_gid} 4751 7"
    assert result.output.splitlines() == [identity, "nowhere", "content", "writable", f"{DISK}/tmp"]
    assert (source / "file").exists()


def test_lines_arrive_while_the_program_runs_and_its_end_takes_everything_along() -> None:
    script = "exec 3>$SANDBOXD_UML_CHANNEL; echo said; echo begun >&3; sleep 600 & sleep 600"
    with Machine(["sh", "-c", script]) as machine:
        assert machine.next_line(timeout=BOOT_LIMIT) == "begun"
        assert len(machine_processes()) > 1
        with pytest.raises(UmlError, match=r"cannot wait longer for the machine(.|\n)*said"):
            machine.next_line(timeout=0.1)
        with pytest.raises(UmlError, match="the machine died first"):
            machine.result()
    assert machine_processes() == []


def test_a_machine_over_its_time_is_ended_while_it_boots() -> None:
    with pytest.raises(UmlError, match="cannot wait longer"):
        run_in_uml(["true"], timeout=0.3)


def test_a_machine_that_panics_is_told_from_a_program_that_fails() -> None:
    with pytest.raises(UmlError, match=r"the machine died first(.|\n)*Kernel panic"):
        run_in_uml(["sh", "-c", "echo c > /proc/sysrq-trigger"], timeout=BOOT_LIMIT)


def test_a_program_that_does_not_exist_is_an_error_of_the_machine() -> None:
    with pytest.raises(UmlError, match="No such file or directory: '/no/such/program'"):
        run_in_uml(["/no/such/program"], timeout=BOOT_LIMIT)
