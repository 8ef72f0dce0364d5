"""The image store: names, digests, what interrupted work leaves behind (nothing), and several daemons at once."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandboxd.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unprocessable
from sandboxd.service.images.directory import Staging
from sandboxd.service.images.store import ImageConfig, ImageStore, Origin
from sandboxd.trees.treewriter import UnpackLimits
from tests.kernel.hostile_archives import archive, escapes, member

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images hold files of several owners")

ROOT = archive(member("bin", "directory", mode=0o755), member("bin/sh", data=b"#!", mode=0o755))
OTHER = archive(member("bin/sh", data=b"another", mode=0o755))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def import_bytes(store: ImageStore, data: bytes, name: str = "one", config: ImageConfig | None = None) -> str:
    return store.import_tar(io.BytesIO(data), name, config=config).digest


def leftovers(store: ImageStore) -> list[str]:
    return [entry for entry in os.listdir(store.directory) if entry.startswith(".tmp-")]


# -- names and digests --------------------------------------------------------------------------------------------


def test_an_imported_image_is_found_by_name_digest_and_prefix(store: ImageStore) -> None:
    config = ImageConfig(user="user", workdir="/home/user", env={"LANG": "C.UTF-8"})
    image = store.import_tar(io.BytesIO(ROOT), "one", config=config)
    assert (image.rootfs / "bin/sh").read_bytes() == b"#!"
    assert (image.names, image.user, image.workdir, dict(image.env)) == (
        ("one",),
        "user",
        "/home/user",
        {"LANG": "C.UTF-8"},
    )
    assert image.size == 2
    for key in ("one", image.digest, image.digest[:8]):
        assert store.get(key) == image
    assert store.list() == (image,)
    assert ImageStore(store.directory).get("one") == image


def test_the_mount_points_of_a_sandbox_are_always_there(store: ImageStore) -> None:
    image = store.import_tar(io.BytesIO(archive(member("tmp", "directory", mode=0o700))), "one")
    assert sorted(path.name for path in image.rootfs.iterdir()) == ["dev", "proc", "run", "sys", "tmp"]
    assert image.rootfs.joinpath("tmp").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("name", ["dev", "proc"])
def test_an_image_with_something_else_in_place_of_a_mount_point_is_refused(store: ImageStore, name: str) -> None:
    hostile = archive(member(name, "symlink", link="/oldroot/tmp"))
    with pytest.raises(Unprocessable, match=f"its /{name} is not a directory"):
        store.import_tar(io.BytesIO(hostile), "one")
    assert store.list() == ()


def test_the_same_contents_are_one_image(store: ImageStore) -> None:
    reordered = archive(member("./bin/", "directory", mode=0o755), member("bin//sh", data=b"#!", mode=0o755))
    digest = import_bytes(store, ROOT, "one")
    assert import_bytes(store, reordered, "two") == digest
    assert store.get(digest).names == ("one", "two")


def test_other_defaults_make_another_image(store: ImageStore) -> None:
    assert import_bytes(store, ROOT) != import_bytes(store, ROOT, config=ImageConfig(user="user"))


def test_a_name_moves_to_the_newest_image(store: ImageStore) -> None:
    old, new = import_bytes(store, ROOT, "one"), import_bytes(store, OTHER, "one")
    assert store.get("one").digest == new
    assert store.get(old).names == ()
    assert store.tag(old, "one").names == ("one",)
    assert store.get(new).names == ()


@pytest.mark.parametrize(
    "name", ["", ".", "-x", "a b", "a\n", "a\x1b[0m", "x" * 129, "é", "deadbeef", "a" * 64, "a/"]
)
def test_bad_names_are_refused_before_anything_is_read(name: str, store: ImageStore) -> None:
    with pytest.raises(InvalidRequest, match="cannot name an image"):
        store.import_tar(io.BytesIO(), name)


@pytest.mark.parametrize("name", ["base", "python:3.12", "team/tool_2.0-rc1", "A", "9"])
def test_good_names(name: str, store: ImageStore) -> None:
    import_bytes(store, ROOT, name)
    assert store.get(name).names == (name,)


@pytest.mark.parametrize("name", ["nothing", "0" * 64, "abcdef01", "..", "../images", "names.json"])
def test_unknown_images_are_not_found(name: str, store: ImageStore) -> None:
    import_bytes(store, ROOT)
    with pytest.raises(NotFound, match="sandboxctl image"):
        store.get(name)


@pytest.mark.parametrize("facts", [b"", b"{", b"[]", b'{"format": 99}'])
def test_an_image_of_another_format_is_passed_over(facts: bytes, store: ImageStore) -> None:
    broken, whole = import_bytes(store, ROOT, "broken"), import_bytes(store, OTHER, "whole")
    (store.directory / broken / "image.json").write_bytes(facts)
    assert [image.digest for image in store.list()] == [whole]
    with pytest.raises(NotFound):
        store.get("broken")


def test_a_directory_is_imported_by_its_contents(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree").chmod(0o755)
    (tmp_path / "tree/bin/sh").write_bytes(b"#!")
    (tmp_path / "tree/bin/sh").chmod(0o755)
    assert store.import_directory(tmp_path / "tree", "two").digest == import_bytes(store, ROOT, "one")


def test_without_root_ones_own_files_become_roots(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", id_base=1)
    for name, owner in (("mine", 0), ("unmapped", 65534), ("theirs", 1001)):
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree" / name).touch()
        os.chown(tmp_path / "tree" / name, owner, owner)
    rootfs = store.import_directory(tmp_path / "tree", "one").rootfs
    assert [rootfs.joinpath(name).stat().st_uid for name in ("mine", "unmapped", "theirs")] == [1, 1, 1001]


# -- failures -----------------------------------------------------------------------------------------------------


def test_a_hostile_archive_is_the_clients_mistake_and_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    for data in escapes(tmp_path / "victim").values():
        with pytest.raises(InvalidRequest, match="cannot unpack"):
            import_bytes(store, data)
    assert store.list() == ()
    assert leftovers(store) == []


def test_an_archive_over_the_limits_is_too_large(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", limits=UnpackLimits(entries=1))
    with pytest.raises(TooLarge):
        import_bytes(store, ROOT)
    assert leftovers(store) == []


@pytest.fixture
def small_disk(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "disk"], check=True)
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_full_disk_is_said_and_cleared(small_disk: Path) -> None:
    store = ImageStore(small_disk / "images")
    with pytest.raises(Unprocessable, match="no space is left"):
        import_bytes(store, archive(member("a", data=bytes(2 << 20))))
    assert leftovers(store) == []
    import_bytes(store, ROOT)


_IMPORT = """
import sys
from pathlib import Path
from sandboxd.service.images.store import ImageStore
ImageStore(Path(sys.argv[1])).import_tar(sys.stdin.buffer, "half")
"""


def test_a_killed_import_is_swept_and_a_running_one_is_not(store: ImageStore) -> None:
    importer = subprocess.Popen([sys.executable, "-c", _IMPORT, str(store.directory)], stdin=subprocess.PIPE)
    assert importer.stdin is not None
    try:
        data = archive(member("first", data=b"x"), member("second", data=bytes(1 << 20)))
        importer.stdin.write(data[: len(data) // 2])
        importer.stdin.flush()
        while not list(store.directory.glob(".tmp-*/rootfs/second")):
            assert importer.poll() is None
        ImageStore(store.directory)
        assert len(leftovers(store)) == 1
    finally:
        importer.kill()
        importer.stdin.close()
        importer.wait()
    ImageStore(store.directory)
    assert leftovers(store) == []
    assert store.list() == ()


def test_a_failing_maker_leaves_nothing(store: ImageStore) -> None:
    def fill(staging: Staging) -> None:
        (staging.path / "rootfs/file").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.create(fill, "one", origin=Origin(source="a test"))  # type: ignore[arg-type]
    assert leftovers(store) == []


def test_many_importers_at_once(store: ImageStore) -> None:
    def work(number: int) -> None:
        import_bytes(ImageStore(store.directory), ROOT if number % 2 else OTHER, f"image-{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for image in store.list() for name in image.names) == [f"image-{n}" for n in range(8)]
    assert len(store.list()) == 2
    assert leftovers(store) == []


def test_only_the_owner_can_enter_the_directory(tmp_path: Path) -> None:
    """An image may hold a setuid program of whoever made it, owned by root on this disk."""
    (tmp_path / "images").mkdir(mode=0o755)
    store = ImageStore(tmp_path / "images")
    import_bytes(store, archive(member("su", data=b"#!", mode=0o4755)))
    assert (store.get("one").rootfs / "su").stat().st_mode & 0o7777 == 0o4755
    assert store.directory.stat().st_mode & 0o077 == 0


# -- removal ------------------------------------------------------------------------------------------------------


def test_removing_the_last_name_removes_the_image(store: ImageStore) -> None:
    digest = import_bytes(store, ROOT, "one")
    store.tag("one", "two")
    store.remove("one")
    assert store.get("two").digest == digest
    store.remove("two")
    assert store.list() == ()
    assert not (store.directory / digest).exists()
    assert leftovers(store) == []


def test_removing_by_digest_removes_all_names(store: ImageStore) -> None:
    digest = import_bytes(store, ROOT, "one")
    store.tag("one", "two")
    store.remove(digest[:12])
    assert store.list() == ()
    assert json.loads((store.directory / "names.json").read_text()) == {}


def test_an_image_in_use_stays(store: ImageStore) -> None:
    digest = import_bytes(store, ROOT)
    with pytest.raises(Conflict, match="delete them first"):
        store.remove("one", in_use=digest.__eq__)
    assert store.get("one").digest == digest


def test_a_pin_holds_until_it_or_its_owner_is_gone(store: ImageStore, tmp_path: Path) -> None:
    digest, state = import_bytes(store, ROOT), tmp_path / "state"
    state.mkdir()
    store.pin(digest, state)
    with pytest.raises(Conflict, match=str(state)):
        ImageStore(store.directory).remove("one")
    store.unpin(digest, state)
    store.unpin(digest, state)
    store.pin(digest, tmp_path / "gone")
    store.remove("one")
    with pytest.raises(NotFound):
        store.pin(digest, state)


# -- deletion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_nothing_is_deleted_through_a_mount(kind: str, store: ImageStore, tmp_path: Path) -> None:
    """A bind mount of the same file system has the same device number, so comparing those would not do."""
    precious = tmp_path / "precious"
    precious.mkdir()
    point = store.directory / ".tmp-killed/dev"
    point.mkdir(parents=True)
    how = ["--bind", str(precious)] if kind == "bind" else ["-t", "tmpfs", "none"]
    subprocess.run(["mount", *how, str(point)], check=True)
    try:
        (point / "device").touch()
        ImageStore(store.directory)
        assert (point / "device").exists()
    finally:
        subprocess.run(["umount", str(point)], check=True)
    ImageStore(store.directory)
    assert leftovers(store) == []


def test_closed_and_deep_trees_are_deleted_and_links_not_followed(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    deep = store.directory.joinpath(".tmp-killed", *["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "link").symlink_to(tmp_path / "precious")
    deep.chmod(0)
    ImageStore(store.directory)
    assert leftovers(store) == []
    assert (tmp_path / "precious/file").exists()


@pytest.mark.parametrize("left", [0, 20])
def test_names_that_were_cut_short_cost_no_image(store: ImageStore, left: int) -> None:
    digest = import_bytes(store, ROOT, "one")
    os.truncate(store.directory / "names.json", left)
    assert store.get(digest).names == ()
    store.tag(digest, "again")
    assert store.get("again").digest == digest
