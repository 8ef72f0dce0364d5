"""`sandboxd check`: what this host can do, found out by trying, and what to install for the rest."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandboxd.config import Config, find_asset, is_root
from sandboxd.errors import StartupError
from sandboxd.kernel import overlay, rootless, syscalls
from sandboxd.kernel.cgroup_tree import discover_cgroups
from sandboxd.kernel.loop import enter_private_mounts
from sandboxd.kernel.userns import make_userns
from sandboxd.service.storage import pool

# An id range for the trial: the last of the space, which no daemon hands out before all others.
TRIAL_RANGE = 0xEFFF0000


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    ok: bool
    detail: str
    """what was found, or what to do"""
    required: bool = True


def examine(config: Config) -> list[Finding]:
    """Everything sandboxes need and what makes them better, in the order in which it is worth mending."""
    return [
        _kernel(),
        _program("bwrap", str(config.bwrap or "bwrap"), "install the package bubblewrap"),
        _asset("sandbox-init", "rootfs/init/build/sandbox-init", config.init),
        _asset("seccomp profile", "seccomp/default.json", config.seccomp_profile),
        *(_privileged() if is_root() else _unprivileged()),
        *_cgroups(config),
        *_pools(),
        _images(config),
        _program("mmdebstrap", "mmdebstrap", "install the package mmdebstrap to build images", required=False),
    ]


def as_text(findings: list[Finding]) -> str:
    width = max(len(finding.what) for finding in findings)
    return "\n".join(f"{_mark(finding)}  {finding.what:{width}}  {finding.detail}" for finding in findings)


def as_json(findings: list[Finding]) -> str:
    return json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2)


def _mark(finding: Finding) -> str:
    return "ok  " if finding.ok else ("FAIL" if finding.required else "note")


def _kernel() -> Finding:
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    ok = version >= (5, 19)
    return Finding("kernel", ok, platform.release() + ("" if ok else ": 5.19 or newer is needed"))


def _program(what: str, name: str, remedy: str, *, required: bool = True) -> Finding:
    found = shutil.which(name)
    if found is None:
        return Finding(what, False, remedy, required)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return Finding(what, True, f"{found} ({done.stdout.strip().splitlines()[0] if done.stdout else '?'})", required)


def _asset(what: str, name: str, configured: Path | None) -> Finding:
    if configured is not None:
        return Finding(what, configured.is_file(), str(configured))
    try:
        return Finding(what, True, str(find_asset(name)))
    except StartupError as error:
        return Finding(what, False, error.message)


def _privileged() -> Iterator[Finding]:
    yield _attempt("user namespaces", _try_userns, "set user.max_user_namespaces above 0")
    yield _attempt(
        "idmapped overlay root", _try_root, "a file system with idmapped mounts (ext4, xfs, btrfs) is needed"
    )


def _unprivileged() -> Iterator[Finding]:
    yield _attempt("subordinate ids", rootless.find_subordinate_ids, "")
    yield _attempt("user namespaces", _try_own_userns, "the kernel or AppArmor forbids unprivileged user namespaces")


def _attempt(what: str, attempt: Callable[[], object], remedy: str) -> Finding:
    try:
        attempt()
    except OSError as error:
        return Finding(what, False, "; ".join(part for part in (str(error), remedy) if part))
    return Finding(what, True, "works")


def _try_userns() -> None:
    os.close(make_userns(TRIAL_RANGE, max_processes=16))


def _try_own_userns() -> None:
    _in_child(lambda: syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS))


def _try_root() -> None:
    """A root as the fork server builds it, in a child with a mount namespace of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("lower", "w/upper", "w/work"):
            os.makedirs(f"{scratch}/{name}")
        userns = make_userns(TRIAL_RANGE, max_processes=16)

        def build() -> None:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            overlay.make_private()
            trees = [overlay.clone_tree(f"{scratch}/{name}", userns=userns) for name in ("lower", "w")]
            overlay.make_stage("/tmp")
            for tree, name in zip(trees, ("l", "w"), strict=True):
                overlay.attach(tree, name)
            os.mkdir("r")
            with overlay.acting_as(TRIAL_RANGE):
                overlay.mount_overlay(["l"], "w", "r", userxattr=False)

        try:
            _in_child(build)
        finally:
            os.close(userns)


def _in_child(work: Callable[[], str | None]) -> str:
    """Do something irreversible in a child; what it returns. What it raises is raised here as OSError."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(tell, f"+{work() or ''}".encode()[:1000])
        except BaseException as error:
            os.write(tell, f"-{error}".encode()[:1000])
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as reader:
        answer = reader.read().decode(errors="replace")
    os.waitpid(child, 0)
    if not answer.startswith("+"):
        raise OSError(answer[1:])
    return answer[1:]


def _cgroups(config: Config) -> Iterator[Finding]:
    support = discover_cgroups(config.cgroup_root)
    yield Finding("cgroup v2", support.root is not None, support.reason or str(support.root), required=False)
    names = ", ".join(sorted(support.controllers)) or "none: sandboxes that ask for limits are refused"
    yield Finding("cgroup controllers", len(support.controllers) == 4, names, required=False)


def _pools() -> Iterator[Finding]:
    for file_system in pool.FILE_SYSTEMS:
        what = f"pool on {file_system}"
        if not is_root():
            yield Finding(what, False, "takes root", required=False)
            continue
        try:
            lacking = _try_pool(file_system)
        except (OSError, StartupError) as error:
            yield Finding(what, False, str(error), required=False)
        else:
            yield Finding(
                what, True, f"works, but {lacking}" if lacking else "works, with disk limits", required=False
            )


def _try_pool(file_system: pool.FileSystem) -> str:
    """Make a small one and mount it, in a child whose mounts go with it; why it has no disk limits, or nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        pool.init(Path(scratch), size=pool.SMALLEST, file_system=file_system)

        def use() -> str:
            enter_private_mounts()
            return pool.open_volume(Path(scratch), rootless=False).limits_disk

        return _in_child(use)


def _images(config: Config) -> Finding:
    names = config.image_dir / "names.json"
    try:
        known = ", ".join(sorted(json.loads(names.read_text())))
    except (OSError, ValueError):
        known = ""
    remedy = "none: run `make setup` in the source tree, or `sandboxctl image build base`"
    return Finding("images", bool(known), known or remedy, required=False)
