"""Archives that try to write outside of where they are unpacked, or to bring in what they must not."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

TYPES = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "character": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
}


def member(
    name: str,
    kind: str = "file",
    *,
    data: bytes = b"",
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    pax: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = TYPES[kind]
    info.linkname = link
    info.mode = mode
    info.uid = info.gid = uid
    info.size = len(data)
    info.devmajor, info.devminor = 8, 0
    info.pax_headers = dict(pax or {})
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def escapes(victim: Path) -> Mapping[str, bytes]:
    """Ways out of the target directory towards its sibling `victim`, which holds the file `precious`."""
    name = victim.name
    return {
        "dotdot": archive(member(f"../{name}/planted", data=b"x")),
        "dotdot inside": archive(member("a", "directory"), member(f"a/../../{name}/planted", data=b"x")),
        "absolute": archive(member(f"{victim}/planted", data=b"x")),
        "absolute in pax": archive(member("harmless", data=b"x", pax={"path": f"{victim}/planted"})),
        "symlinked ancestor": archive(member("a", "symlink", link=str(victim)), member("a/planted", data=b"x")),
        "relative symlinked ancestor": archive(
            member("a", "symlink", link=f"../{name}"), member("a/planted", data=b"x")
        ),
        "symlinked ancestor further up": archive(
            member("a", "directory"), member("a/b", "symlink", link="../.."), member(f"a/b/{name}/planted", data=b"x")
        ),
        "chain of symlinks": archive(
            member("a", "symlink", link="."),
            member("a/b", "symlink", link=".."),
            member(f"b/{name}/planted", data=b"x"),
        ),
        "directory over a symlink": archive(
            member("a", "symlink", link=str(victim)), member("a", "directory", mode=0o777)
        ),
        "file through a symlink": archive(
            member("a", "symlink", link=str(victim / "precious")), member("a", data=b"overwritten")
        ),
        "hard link outside": archive(
            member("a", "hardlink", link=f"../{name}/precious"), member("a", data=b"overwritten")
        ),
        "absolute hard link outside": archive(
            member("a", "hardlink", link=str(victim / "precious")), member("a", data=b"overwritten")
        ),
        "hard link through a symlink": archive(
            member("a", "symlink", link=str(victim)),
            member("b", "hardlink", link="a/precious"),
            member("b", data=b"overwritten"),
        ),
    }


def refused() -> Mapping[str, tuple[bytes, str]]:
    """Archives that stay inside but are refused, and what the message has to say."""
    long = "n" * 256
    return {
        "character device": (archive(member("a", "character")), "device"),
        "block device": (archive(member("a/b", "block")), "device"),
        "device in another dev": (archive(member("x/dev/sda", "block")), "device"),
        "overlay attribute": (
            archive(member("a", pax={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})),
            "overlayfs",
        ),
        "rootless overlay attribute": (
            archive(member("a", "directory", pax={"SCHILY.xattr.user.overlay.opaque": "y"})),
            "overlayfs",
        ),
        "whiteout": (archive(member("etc/.wh.passwd")), "docker export"),
        "opaque whiteout": (archive(member("etc/.wh..wh..opq")), "docker export"),
        "oci image": (archive(member("oci-layout", data=b"{}")), "OCI"),
        "docker image": (archive(member("manifest.json", data=b"[]")), "docker export"),
        "owner beyond the range": (archive(member("a", uid=65536)), "65535"),
        "enormous owner": (archive(member("a", uid=2**31 - 1)), "65535"),
        "file becomes directory": (archive(member("a"), member("a", "directory")), "another type"),
        "directory becomes file": (archive(member("a", "directory"), member("a")), "another type"),
        "symlink becomes file": (archive(member("a", "symlink", link="b"), member("a")), "another type"),
        "file as directory": (archive(member("a"), member("a/b")), "another type"),
        "long name": (archive(member(long)), "longer than 255"),
        "long name, gnu": (archive(member(long), format=tarfile.GNU_FORMAT), "longer than 255"),
        "long path": (archive(member("/".join(["d" * 200] * 30))), "4095"),
        "deep path": (archive(member("/".join(["d"] * 300))), "256 directories"),
        "null in name": (archive(member("a", pax={"path": "a\0b"})), "not a name"),
        "hard link to nothing": (archive(member("a", "hardlink", link="b")), "not unpacked before"),
        "hard link to itself": (archive(member("a"), member("a", "hardlink", link="a")), "to itself"),
        "hard link to a directory": (
            archive(member("a", "directory"), member("b", "hardlink", link="a")),
            "hard link",
        ),
        "hard link to the root": (archive(member("b", "hardlink", link=".")), "root"),
        "root is a file": (archive(member(".", data=b"x")), "root is not a directory"),
        "empty symlink": (archive(member("a", "symlink", link="")), "symbolic link"),
        "global path": (
            _with_global({"path": "b"}),
            "for all its entries",
        ),
        "not a tar archive": (b"just some text\n" * 100, "not a tar archive"),
        "nothing": (b"", "cut short"),
        "zeros": (bytes(10240), "empty"),
    }


def _with_global(headers: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=dict(headers)) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def unpack_naively(data: bytes, target: Path) -> None:
    """What the daemon must not do: the standard library's extraction without a filter."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        extract: Callable[..., None] = tar.extractall
        extract(target)
