"""Recipes, the images they make, and what a failed or interrupted build leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandboxd.config import find_asset
from sandboxd.errors import InvalidRequest, NotFound, SandboxdError, Unprocessable
from sandboxd.service.images import directory as files
from sandboxd.service.images.build import build_image
from sandboxd.service.images.recipes import (
    DebianRecipe,
    HostRecipe,
    complete_recipe,
    find_recipe,
    load_recipe,
    recipe_key,
)
from sandboxd.service.images.store import ImageStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images hold files of several owners")

# Unpacked only: a build in seconds, by the same path.
SMALL = 'kind = "debian"\nsuite = "host"\nvariant = "extract"\npackages = ["busybox-static"]\n'
TRUSTS = "import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "recipes"
    directory.mkdir()
    monkeypatch.setenv("SANDBOXD_RECIPES", str(directory))
    return directory


def write_recipe(recipes: Path, name: str, text: str, setup: str = "") -> Path:
    (recipes / name).mkdir(exist_ok=True)
    (recipes / name / "recipe.toml").write_text(text)
    if setup:
        (recipes / name / "setup").write_text(setup)
    return recipes / name


def silent(line: str) -> None:
    assert line


# -- recipes ------------------------------------------------------------------------------------------------------


def test_the_recipes_that_come_with_sandboxd_are_sound() -> None:
    assert isinstance(load_recipe(find_recipe("base")), DebianRecipe)
    assert isinstance(load_recipe(find_recipe("host")), HostRecipe)
    assert isinstance(complete_recipe(find_recipe("code-interpreter")).recipe, DebianRecipe)


def test_a_recipe_is_found_by_name_or_path(recipes: Path) -> None:
    own = write_recipe(recipes, "base", SMALL)
    assert find_recipe("base") == own
    assert find_recipe(str(own)) == own
    assert find_recipe("host") == find_asset("rootfs/recipes") / "host"
    for unknown in ("nothing", "/nowhere", "../recipes"):
        with pytest.raises(NotFound, match="base, code-interpreter, host"):
            find_recipe(unknown)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SMALL + "unknown = 1\n", "unknown"),
        (SMALL + "[config]\nshell = 1\n", "config.shell"),
        ('kind = "debian"\nsuite = "host"\n', "packages"),
        ('kind = "fedora"\n', "kind"),
        ("kind = ", "recipe.toml"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(text: str, reason: str, recipes: Path) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        load_recipe(write_recipe(recipes, "bad", text))


MORE = 'kind = "extension"\nextends = "small"\npackages = ["more"]\nexclude = ["/x"]\n[config]\nenv = {B = "own"}\n'


def test_a_recipe_that_extends_another_has_both(recipes: Path) -> None:
    config = '[config]\nuser = "user"\nenv = {A = "1", B = "2"}\n'
    small = write_recipe(recipes, "small", SMALL + config)
    more = write_recipe(recipes, "more", MORE)
    complete = complete_recipe(more)
    assert complete.directories == (small, more)
    assert isinstance(complete.recipe, DebianRecipe)
    assert (complete.recipe.packages, complete.recipe.exclude) == (["busybox-static", "more"], ["/x"])
    assert (complete.recipe.variant, complete.recipe.config.user) == ("extract", "user")
    assert complete.recipe.config.env == {"A": "1", "B": "own"}
    assert complete_recipe(small).directories == (small,)


def test_what_a_recipe_cannot_extend(recipes: Path) -> None:
    write_recipe(recipes, "small", MORE.replace("small", "more"))
    with pytest.raises(InvalidRequest, match="extends itself"):
        complete_recipe(write_recipe(recipes, "more", MORE))
    with pytest.raises(InvalidRequest, match="only recipes of Debian packages"):
        complete_recipe(write_recipe(recipes, "more", MORE.replace("small", "host")))
    with pytest.raises(NotFound, match="nowhere"):
        complete_recipe(write_recipe(recipes, "more", MORE.replace("small", "nowhere")))


def test_both_recipes_are_set_up(store: ImageStore, recipes: Path) -> None:
    write_recipe(recipes, "small", SMALL, 'echo one >>"$1/order"')
    write_recipe(recipes, "more", MORE.replace('["more"]', "[]"), 'echo two >>"$1/order"')
    image = build_image(store, "more", progress=silent)
    assert (image.rootfs / "order").read_text() == "one\ntwo\n"


def test_who_builds_the_same_at_the_same_time_waits_for_it(store: ImageStore, recipes: Path) -> None:
    write_recipe(recipes, "small", SMALL, 'echo >>"$(dirname "$0")/../built"')
    with ThreadPoolExecutor() as pool:
        building = [pool.submit(build_image, store, name, recipe="small", progress=silent) for name in ("one", "two")]
        assert len({build.result().digest for build in building}) == 1
    assert (recipes / "built").read_text() == "\n"
    assert store.get("one").digest == store.get("two").digest
    assert list(store.directory.glob(".building-*")) == []


def test_every_file_and_fact_of_a_recipe_counts(recipes: Path) -> None:
    directory = write_recipe(recipes, "small", SMALL)
    keys = {recipe_key([directory], "a"), recipe_key([directory], "b"), recipe_key([directory], "a", "b")}
    write_recipe(recipes, "small", SMALL, "true")
    keys.add(recipe_key([directory], "a"))
    write_recipe(recipes, "small", SMALL + "# comment", "true")
    keys.add(recipe_key([directory], "a"))
    assert len(keys) == 5
    assert recipe_key([directory], "a") in keys


# -- the base image -----------------------------------------------------------------------------------------------


def inside(image_dir: Path, *command: str) -> str:
    """What a command says in the base image, seen as the tree's owner would."""
    rootfs = ImageStore(image_dir).get("base").rootfs
    mounts = ["--ro-bind", str(rootfs), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    done = subprocess.run(["bwrap", *mounts, "--clearenv", *command], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_base_image_has_what_it_promises(image_dir: Path) -> None:
    environment = ("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8")
    tools = ["python", "python3", "pip", "git", "curl", "wget", "ps", "ip", "bash", "less", "tput", "openssl", "make"]
    tools += ["vim.tiny", "unzip", "jq", "ssh", "rsync"]
    found = inside(image_dir, *environment, "sh", "-c", f"for name in {' '.join(tools)}; do command -v $name; done")
    assert [Path(line).name for line in found.splitlines()] == tools
    program = f"import sqlite3, venv, sys; {TRUSTS}; print('ä', sys.stdout.encoding)"
    assert inside(image_dir, *environment, "python", "-c", program) == "True\nä utf-8\n"
    assert inside(image_dir, "id", "user").startswith("uid=1000(user) gid=1000(user) groups=1000(user),27(sudo)")


def test_the_base_image_is_fit_for_sandboxes(image_dir: Path) -> None:
    image = ImageStore(image_dir).get("base")
    assert (image.user, image.workdir) == ("user", "/home/user")
    assert os.readlink(image.rootfs / "usr/bin/sudo") == "/dev/sandbox-init"
    assert (image.rootfs / "home/user").stat().st_uid == 1000
    for name in ("dev", "proc", "run", "sys", "tmp"):
        assert (image.rootfs / name).is_dir()
        assert not (image.rootfs / name).is_symlink()
    for name in ("etc/hosts", "etc/resolv.conf", "etc/hostname", "etc/machine-id"):
        assert (image.rootfs / name).is_file()
        assert not (image.rootfs / name).is_symlink()
    assert (image.rootfs / "etc/machine-id").read_bytes() == b""
    setuid = [path for path in image.rootfs.rglob("*") if path.is_file() and path.lstat().st_mode & 0o6000]
    assert setuid == []
    # Packages' scripts link manuals into these (Java's fail without), and pip is to install as people type it.
    assert all((image.rootfs / f"usr/share/man/man{section}").is_dir() for section in range(1, 9))
    assert not list(image.rootfs.glob("usr/lib/python3*/EXTERNALLY-MANAGED"))
    assert not (image.rootfs / "etc/apt/apt.conf.d/99mmdebstrap").exists()


# -- the image that runs code -------------------------------------------------------------------------------------


def test_the_code_image_has_what_it_promises(image_dir: Path) -> None:
    image = ImageStore(image_dir).get("code-interpreter")
    assert (image.user, image.workdir, image.env["LANG"]) == ("user", "/home/user", "C.UTF-8")
    for program in (image.rootfs / "usr/lib/sandboxd/code-bridge").rglob("*"):
        facts = program.stat()
        assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o022) == (0, 0, 0)
    setuid = [path for path in image.rootfs.rglob("*") if path.is_file() and path.lstat().st_mode & 0o6000]
    assert setuid == []
    fonts = image.rootfs / "home/user/.cache/matplotlib"
    assert [path.stat().st_uid for path in (fonts, *fonts.iterdir())] == [1000, 1000]


# -- building -----------------------------------------------------------------------------------------------------


def test_two_builds_give_one_digest_and_an_unchanged_recipe_none(store: ImageStore, recipes: Path) -> None:
    write_recipe(recipes, "small", SMALL, 'echo "built" >"$1/mark"\n')
    said: list[str] = []
    first = build_image(store, "small", progress=said.append)
    assert "small: downloading packages" in said
    assert (first.rootfs / "mark").read_text() == "built\n"
    assert os.listdir(first.rootfs / "etc/apt/apt.conf.d") == []
    assert os.listdir(first.rootfs / "etc/apt/sources.list.d") == ["distribution.sources"]
    assert build_image(store, "small", rebuild=True, progress=silent).digest == first.digest
    said.clear()
    again = build_image(store, "also", recipe="small", progress=said.append)
    assert said == ["also: unchanged, already built"]
    assert again.names == ("also", "small")
    assert [entry for entry in os.listdir(store.directory) if entry.startswith(".tmp")] == []


def test_a_failed_build_says_why_and_leaves_nothing(store: ImageStore, recipes: Path) -> None:
    write_recipe(recipes, "bad", SMALL.replace("busybox-static", "no-such-package"))
    with pytest.raises(SandboxdError, match=r"mmdebstrap ended with status .* no-such-package"):
        build_image(store, "bad", progress=silent)
    assert os.listdir(store.directory) == [".lock"]


def test_a_failed_setup_is_told_with_what_it_said(store: ImageStore, recipes: Path) -> None:
    write_recipe(recipes, "bad", SMALL, "set -eu\ncp /nonexistent $1/copy\n")
    with pytest.raises(SandboxdError, match=r"cannot stat '/nonexistent'.*; E: setup failed"):
        build_image(store, "bad", progress=silent)


def test_without_mmdebstrap_it_is_named(store: ImageStore, recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(recipes, "small", SMALL)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unprocessable, match="install the package mmdebstrap"):
        build_image(store, "small", progress=silent)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_ends_with_all_its_processes(
    signal_number: signal.Signals, tmp_path: Path, recipes: Path
) -> None:
    """The census around each test sees to the processes. However late the signal comes, the build still goes on."""
    write_recipe(recipes, "small", SMALL, "sleep 600")
    command = [
        sys.executable,
        "-m",
        "sandboxd.service.images.build",
        "small",
        "--image-dir",
        str(tmp_path / "images"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stderr is not None
        for line in builder.stdout:
            if "downloading packages" in line:
                break
        builder.send_signal(signal_number)
        complaint = builder.stderr.read()
    if signal_number == signal.SIGKILL:
        assert builder.returncode == -signal.SIGKILL
        wait_for_release(tmp_path / "images")
        ImageStore(tmp_path / "images")
    else:
        assert builder.returncode == 130
        assert complaint == "small: interrupted, nothing was kept\n"
    assert os.listdir(tmp_path / "images") == [".lock"]


def wait_for_release(images: Path) -> None:
    """Wait, without guessing how long, until nobody holds the build's directory: its lock was given to all of it."""
    (work,) = images.glob(".tmp-*")
    subprocess.run(["flock", str(work), "true"], check=True)


def test_builds_of_the_same_take_turns_whatever_is_swept_meanwhile(tmp_path: Path) -> None:
    def build(waiting: Callable[[], None]) -> list[str]:
        with files.sole_builder(tmp_path, "key", waiting):
            files.sweep(tmp_path)
            return sorted(os.listdir(tmp_path))

    waits = threading.Event()
    with ThreadPoolExecutor() as threads:
        with files.sole_builder(tmp_path, "key", waits.set):
            files.sweep(tmp_path)
            second = threads.submit(build, waits.set)
            assert waits.wait(30)
        assert second.result(30) == [".building-key", ".lock"]
    (tmp_path / ".building-killed").touch()
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


# -- the host image -----------------------------------------------------------------------------------------------


def test_the_host_image_shows_usr_and_nothing_private(store: ImageStore) -> None:
    image = build_image(store, "host", progress=silent)
    assert [(str(bind.source), bind.target) for bind in image.binds][:1] == [("/usr", "/usr")]
    assert list((image.rootfs / "usr").iterdir()) == []
    accounts = (image.rootfs / "etc/passwd").read_text()
    assert [line.split(":")[0] for line in accounts.splitlines()] == ["root", "user", "nobody"]
    for name in ("home/user", "root", "var/log", "var/lib", "srv", "mnt", "run"):
        assert list((image.rootfs / name).iterdir()) == []
    names = {path.name for path in (image.rootfs / "etc").rglob("*")}
    assert names.isdisjoint({"shadow", "gshadow", "sudoers", "private", "ssh"})
    assert (image.rootfs / "etc/ld.so.cache").is_file()
    assert build_image(store, "host", progress=silent).digest == image.digest


def test_directories_closed_to_others_are_covered(store: ImageStore, recipes: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    for name, mode in (("open", 0o755), ("open/closed", 0o750), ("secret", 0o700), ("secret/deep", 0o700)):
        (shown / name).mkdir(parents=True)
        (shown / name).chmod(mode)
    (tmp_path / "readable").write_text("for all")
    (tmp_path / "unreadable").write_text("for root")
    (tmp_path / "unreadable").chmod(0o600)
    copies = json.dumps([str(tmp_path / "*readable")])
    write_recipe(recipes, "host", f'kind = "host"\nbinds = ["{shown}"]\ncopy = {copies}\nhidden = ["{shown}/none"]\n')
    image = build_image(store, "host", progress=silent)
    assert image.hidden == (f"{shown}/open/closed", f"{shown}/secret")
    assert (image.rootfs / str(shown).lstrip("/")).is_dir()
    assert (image.rootfs / str(tmp_path / "readable").lstrip("/")).read_text() == "for all"
    assert not (image.rootfs / str(tmp_path / "unreadable").lstrip("/")).exists()


def test_the_host_image_runs_the_hosts_programs_and_cannot_read_what_is_closed(
    store: ImageStore, recipes: Path
) -> None:
    image = build_image(store, "host", progress=silent)
    mounts = ["--bind", str(image.rootfs), "/", "--proc", "/proc", "--dev", "/dev"]
    for bind in image.binds:
        mounts += ["--ro-bind", str(bind.source), bind.target]
    for path in image.hidden:
        mounts += ["--tmpfs", path]
    python = ["/usr/bin/python3", "-c", TRUSTS]
    done = subprocess.run(["bwrap", *mounts, *python], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
