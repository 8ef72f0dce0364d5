"""A layer written to a file and read again is the same in everything, whatever was in it; ids are the reader's."""

import hashlib
import io
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.service.snapshots.transfer import PACK
from sandboxd.trees.idattributes import moved
from sandboxd.trees.layerarchive import read_layer, trailer
from sandboxd.trees.layerwriting import begin_archive
from tests.support.trees import Scribbler, describe

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners can only be made by root")

OPAQUE = b"trusted.overlay.opaque"
CAPABILITY = b"security.capability"
LIST = b"system.posix_acl_access"
V2 = bytes.fromhex("0100000200040000000000000000000000000000")


def written(top: Path) -> bytes:
    """The file of the layer top/upper."""
    head, names = io.BytesIO(), io.BytesIO()
    tree = os.open(top / "upper", os.O_RDONLY)
    begin_archive(tree, b"{}", head=head, names=names)
    os.close(tree)
    (top / "names").write_bytes(names.getvalue())
    command = [*PACK, "--directory", str(top), f"--files-from={top / 'names'}"]
    done = subprocess.run(command, capture_output=True, check=True)
    data = head.getvalue() + done.stdout
    return data + trailer(hashlib.sha256(data).hexdigest())


def read(data: bytes, target: Path, *, shift: int = 0, id_base: int = 0) -> None:
    target.mkdir()
    root = os.open(target, os.O_RDONLY)
    read_layer(io.BytesIO(data), root, accept=lambda _: shift, opaque=OPAQUE, id_base=id_base)
    os.close(root)


@as_root
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_what_is_read_is_what_was_written(seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="layer-") as place:
        top = Path(place)
        (top / "upper").mkdir()
        Scribbler(top / "upper", Random(seed), root=True).scribble(80)
        read(written(top), top / "copy")
        assert describe(top / "copy") == describe(top / "upper")


@as_root
def test_names_of_one_fifo_and_of_one_socket_stay_names_of_one(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "later").mkdir(parents=True)
    os.mkfifo(upper / "fifo", 0o640)
    os.mknod(upper / "socket", 0o140711)
    for name in ("fifo", "socket"):
        os.link(upper / name, upper / "later" / name)
        os.utime(upper / name, ns=(5, -1_500_000_000))
    read(written(tmp_path), tmp_path / "copy")
    assert describe(tmp_path / "copy") == describe(upper)
    assert (tmp_path / "copy/socket").is_socket()
    assert (tmp_path / "copy/fifo").stat().st_ino == (tmp_path / "copy/later/fifo").stat().st_ino


@as_root
def test_whiteouts_and_opaque_directories_are_kept(tmp_path: Path) -> None:
    (tmp_path / "upper/dir").mkdir(parents=True)
    os.setxattr(tmp_path / "upper/dir", OPAQUE, b"y")
    os.mknod(tmp_path / "upper/gone", 0o020000, os.makedev(0, 0))
    os.link(tmp_path / "upper/gone", tmp_path / "upper/gone too")  # as overlayfs makes them
    read(written(tmp_path), tmp_path / "copy")
    assert os.getxattr(tmp_path / "copy/dir", OPAQUE) == b"y"
    for name in ("gone", "gone too"):
        assert (tmp_path / "copy" / name).is_char_device()


@as_root
def test_a_file_of_a_daemon_without_root_is_read_with_the_right_owners(tmp_path: Path) -> None:
    """There ids are one more than they are in the sandbox, in capabilities and lists too."""
    (tmp_path / "upper").mkdir()
    os.chown(tmp_path / "upper", 1, 1)
    file = tmp_path / "upper/file"
    file.touch()
    os.chown(file, 1001, 1)
    os.setxattr(file, CAPABILITY, v3(1))
    os.setxattr(file, LIST, acl(1001))
    read(written(tmp_path), tmp_path / "copy", shift=1)
    copy = tmp_path / "copy/file"
    assert (copy.stat().st_uid, copy.stat().st_gid) == (1000, 0)
    assert os.getxattr(copy, CAPABILITY) == V2
    assert os.getxattr(copy, LIST) == acl(1000)


def v3(root: int) -> bytes:
    return struct.pack("<I", 0x03000001) + V2[4:] + struct.pack("<I", root)


def acl(user: int) -> bytes:
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 7, user), (4, 4, nobody), (16, 7, nobody), (32, 4, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("name", "value", "off", "on", "expected"),
    [
        (CAPABILITY, V2, 0, 0, V2),
        (CAPABILITY, V2, 0, 1, v3(1)),
        (CAPABILITY, v3(1), 1, 0, V2),
        (CAPABILITY, v3(8), 1, 1, v3(8)),
        (CAPABILITY, V2, 1, 0, None),  # due to who runs the daemon, not to a sandbox's root
        (CAPABILITY, v3(70_000), 0, 0, None),
        (CAPABILITY, V2[:-1], 0, 0, None),
        (CAPABILITY, b"", 0, 0, None),
        (LIST, acl(5), 0, 1, acl(6)),
        (LIST, acl(5), 1, 0, acl(4)),
        (LIST, acl(0), 1, 0, None),
        (LIST, acl(5)[:-1], 0, 0, None),
        (LIST, b"\3" + acl(5)[1:], 0, 0, None),
        (b"security.selinux", b"x", 0, 0, None),
    ],
)
def test_ids_in_attributes_move_with_the_owners(
    name: bytes, value: bytes, off: int, on: int, expected: bytes | None
) -> None:
    assert moved(name, value, off=off, on=on) == expected
