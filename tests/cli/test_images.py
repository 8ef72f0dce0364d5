"""image import, ls, rm, build: on a daemon whose images are its own."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.support import Ctl
from tests.support.daemon import Daemon


@pytest.fixture
def own_images(own_root_daemon: Daemon, tmp_path: Path) -> Ctl:
    (tmp_path / "images").mkdir()
    own_root_daemon.image_dir = tmp_path / "images"
    own_root_daemon.start()
    return Ctl.of(own_root_daemon)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """The smallest root file system that can say something."""
    root = tmp_path / "rootfs"
    for name in ("bin", "etc", "tmp", "proc", "dev", "sys", "root"):
        (root / name).mkdir(parents=True)
    source = tmp_path / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    subprocess.run(["cc", "-static", "-o", root / "bin/hello", source], check=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    return root


def test_an_image_of_a_directory_or_an_archive(own_images: Ctl, rootfs: Path, tmp_path: Path) -> None:
    digest = own_images.text("image", "import", "tiny", str(rootfs)).strip()
    assert own_images.text("run", "--image", "tiny", "/bin/hello") == "hello\n"

    archive = tmp_path / "rootfs.tar"
    subprocess.run(["tar", "-C", rootfs, "-cf", archive, "."], check=True)
    assert own_images.json("image", "import", "from-file", str(archive))["digest"] == digest
    assert own_images.text("image", "import", "piped", "-", stdin=archive.read_bytes()).strip() == digest

    (listed,) = own_images.json("image", "ls")
    assert sorted(listed["names"]) == ["from-file", "piped", "tiny"]
    assert digest.removeprefix("sha256:")[:12] in own_images.text("image", "ls")
    assert own_images.text("image", "rm", "tiny", "from-file", "piped").split() == ["tiny", "from-file", "piped"]
    assert [item for item in own_images.json("image", "ls") if item["names"]] == []


def test_what_is_no_archive_is_refused_in_a_sentence(own_images: Ctl) -> None:
    done = own_images.run("image", "import", "bad", "-", stdin=b"not a tar archive" * 100)
    assert done.returncode == 1
    assert done.stderr.startswith(b"sandboxctl: cannot ")


@pytest.mark.parametrize("arguments", [("import", "x", "/nonesuch"), ("build", "nonesuch"), ("rm", "nonesuch")])
def test_what_is_not_there_is_said_in_a_sentence(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    done = ctl.run("image", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(b"sandboxctl: cannot ")


def test_an_image_that_is_there_is_not_built_again(ctl: Ctl) -> None:
    done = ctl.run("image", "build", "base")
    assert done.returncode == 0
    assert done.stdout.decode().strip() in {item["digest"] for item in ctl.json("image", "ls")}
