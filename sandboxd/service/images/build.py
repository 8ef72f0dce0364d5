"""Builds images from recipes. Whatever a recipe is made of, what comes out goes through the store's one way in.

A Debian recipe is built by mmdebstrap, which writes a tar archive that is unpacked as it comes, like a stranger's.
mmdebstrap runs in namespaces of its own, so its mounts end with it; as an ordinary user the build happens inside
the daemon's user namespace, where it is root over the ids that the user was given (see kernel/rootless).
"""

import argparse
import contextlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from sandboxd.config import default_image_dir, in_own_userns, is_root
from sandboxd.errors import SandboxdError, Unprocessable
from sandboxd.kernel import rootless
from sandboxd.model import Image
from sandboxd.service.images.apt_sources import acquire_options, distribution_sources, read_sources, render_deb822
from sandboxd.service.images.directory import Staging, sole_builder
from sandboxd.service.images.host_system import host_config, write_host_root
from sandboxd.service.images.recipes import DebianRecipe, HostRecipe, complete_recipe, find_recipe, recipe_key
from sandboxd.service.images.store import ImageStore, Origin
from sandboxd.trees.archive import unpack
from sandboxd.trees.tarstream import ArchiveTruncated
from sandboxd.trees.treewriter import UnpackSummary

Progress = Callable[[str], None]
"""Called with one line for people at each step, from the building thread or a helper of it."""

EPOCH: Final = 1_700_000_000
"""SOURCE_DATE_EPOCH of builds: any fixed time does; this one is older than every package of the releases in use."""
_LOG_LINES: Final = 30
_LOG_WIDTH: Final = 300
# Lines of a failed command that are told with the error that follows them.
_REASON_LINES: Final = 3
"""The part of mmdebstrap's log that is kept for when it fails. Some of its lines name a hundred packages."""
_STEPS: Final = {
    "running apt-get update": "fetching the package lists",
    "downloading packages with apt": "downloading packages",
    "extracting archives": "unpacking the essential packages",
    "installing essential packages": "installing the essential packages",
    "installing remaining packages inside the chroot": "installing the other packages",
    "creating tarball": "storing the image",
}
"""What mmdebstrap says, and what we make of it. The rest of what it says is only for its log."""


def build_image(
    store: ImageStore, name: str, *, recipe: str | None = None, rebuild: bool = False, progress: Progress
) -> Image:
    """Build the image `name` from the recipe of that name, or from `recipe` (a name or a path).

    Returns at once what the same recipe gave before on this machine, unless `rebuild`. Raises NotFound and
    InvalidRequest for the recipe, Unprocessable for a machine that lacks what the build needs.
    """
    complete = complete_recipe(find_recipe(recipe or name))
    match complete.recipe:
        case DebianRecipe() as loaded:
            return _build_debian(store, name, complete.directories, loaded, rebuild=rebuild, progress=progress)
        case HostRecipe() as loaded:
            return _build_host(store, name, loaded, progress=progress)


def _build_host(store: ImageStore, name: str, recipe: HostRecipe, *, progress: Progress) -> Image:
    # Always made again: it takes a second, and the host may have changed in ways that no key would notice.
    progress(f"{name}: collecting what the host shows of itself")
    config = host_config(recipe)
    origin = Origin(source="this machine's own system")
    return store.create(
        lambda staging: write_host_root(staging.root, recipe, id_base=store.id_base),
        name,
        config=config,
        origin=origin,
    )


# -- Debian -------------------------------------------------------------------------------------------------------


def _build_debian(
    store: ImageStore,
    name: str,
    directories: Sequence[Path],
    recipe: DebianRecipe,
    *,
    rebuild: bool,
    progress: Progress,
) -> Image:
    distribution, suite = _release(recipe)
    sources = distribution_sources(read_sources(), distribution=distribution, codename=suite)
    published = render_deb822(sources, passwords=False)
    key = recipe_key(directories, suite, platform.machine(), published)

    def fill(staging: Staging) -> UnpackSummary:
        with tempfile.TemporaryDirectory(prefix="build-", dir=staging.path) as scratch:
            command = _mmdebstrap(
                Path(scratch),
                directories,
                recipe,
                suite,
                sources=render_deb822(sources, passwords=True),
                published=published,
            )
            with _running(command, name, Path(scratch), staging.lock, progress) as archive:
                summary = unpack(archive, staging.root, id_base=store.id_base)
                _drain(archive)
        return summary

    def wait() -> None:
        progress(f"{name}: waiting for another build of the same")

    with sole_builder(store.directory, key, wait):
        if not rebuild and (built := store.find_built(key)) is not None:
            progress(f"{name}: unchanged, already built")
            return built if name in built.names else store.tag(built.digest, name)
        origin = Origin(source=f"recipe {directories[-1].name} ({distribution} {suite})", recipe=key)
        return store.create(fill, name, config=recipe.config.to_image_config(), origin=origin)


def _release(recipe: DebianRecipe) -> tuple[str, str]:
    """The distribution this machine runs, and the release to build."""
    facts = platform.freedesktop_os_release()
    suite = facts.get("VERSION_CODENAME", "") if recipe.suite == "host" else recipe.suite
    if not suite or facts["ID"] not in ("debian", "ubuntu"):
        raise Unprocessable(
            f"cannot build Debian packages' images on {facts.get('PRETTY_NAME', 'this system')}: use the host image "
            "(sandboxctl image build host), or import a root file system",
            kind="cannot_build",
        )
    return facts["ID"], suite


def _mmdebstrap(
    scratch: Path, directories: Sequence[Path], recipe: DebianRecipe, suite: str, *, sources: str, published: str
) -> list[str]:
    """The complete command. `scratch` gets the files it refers to."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise Unprocessable(
            "cannot build the image: the program mmdebstrap is missing; install the package mmdebstrap",
            kind="cannot_build",
        )
    (scratch / "distribution.sources").write_text(sources)
    (scratch / "published.sources").write_text(published)
    hooks = [_configure_apt(scratch / "published.sources")]
    setups = (directory / "setup" for directory in directories)
    hooks += [f'/bin/sh {shlex.quote(str(setup))} "$1"' for setup in setups if setup.is_file()]
    stage = "extract" if recipe.variant == "extract" else "customize"  # the last one that the variant reaches
    return [
        *_confined(),
        program,
        "--mode=unshare",
        f"--variant={recipe.variant}",
        "--format=tar",
        "--skip=output/dev,check/signed-by",
        *(f"--include={package}" for package in recipe.packages),
        *(f"--aptopt={line}" for line in acquire_options()),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.exclude),
        *(f"--dpkgopt=path-include={pattern}" for pattern in recipe.include),
        *(f"--{stage}-hook={hook}" for hook in hooks),
        suite,
        "-",
        str(scratch / "distribution.sources"),
    ]


def _confined() -> tuple[str, ...]:
    """Runs a command as the first process of a pid namespace that ends, with all in it, when this thread does.

    mmdebstrap ignores SIGTERM and SIGHUP while its children work, and would go on building for nobody. Its mounts go
    into a mount namespace that passes nothing on to the host's; only in a plain chroot, whose root is not a mount,
    that cannot be asked for, and there mmdebstrap's own clean-up has to do.
    """
    mounts: tuple[str, ...] = ("--mount", "--propagation=private")
    if subprocess.run(["unshare", *mounts, "--", "true"], capture_output=True, check=False).returncode != 0:
        mounts = ()
    die_with_us = ("setpriv", "--pdeathsig=KILL", "--")
    return (*die_with_us, "unshare", "--pid", "--fork", "--kill-child=KILL", *mounts, "--")


def _configure_apt(published: Path) -> str:
    """A hook that leaves in the image the sources without passwords, and nothing of the host's proxies."""
    return (
        'cd "$1" && rm -rf etc/apt/sources.list etc/apt/sources.list.d/* etc/apt/apt.conf.d/99mmdebstrap && '
        f"install -m 644 {shlex.quote(str(published))} etc/apt/sources.list.d/distribution.sources"
    )


@contextmanager
def _running(command: list[str], name: str, scratch: Path, lock: int, progress: Progress) -> Iterator[IO[bytes]]:
    """Run mmdebstrap for its archive. Raises with the end of its log if it fails, and ends it if the body does.

    It gets `lock` too, so that a sweep after this process was killed leaves its directory alone until it has ended.
    """
    log: deque[str] = deque(maxlen=_LOG_LINES)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(scratch),
        **{key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")},
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        pass_fds=(lock,),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reporter = threading.Thread(target=_report, args=(process.stderr, log, name, progress))
    reporter.start()
    try:
        with process.stdout:
            yield process.stdout
    except ArchiveTruncated:
        if process.wait() == 0:
            raise  # otherwise a consequence of the build's own failure, which is told below
    except BaseException:
        _end(process)
        raise
    finally:
        reporter.join()
        process.stderr.close()
    if (status := process.wait()) != 0:
        raise SandboxdError(
            f'cannot build the image "{name}": mmdebstrap ended with status {status}: {_reason(log)}',
            kind="build_failed",
            log=tuple(log),
        )


def _reason(log: Iterable[str]) -> str:
    """The first error in mmdebstrap's log, after what the command that failed said itself just before."""
    said: deque[str] = deque(maxlen=_REASON_LINES)
    for line in log:
        if line.startswith(("E: ", "dpkg: error")):
            return "; ".join((*said, line))
        if line.startswith(("I: ", "W: ")):
            said.clear()
        else:
            said.append(line)
    return "; ".join(said) or "it did not say why"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the build and everything it started; none of it runs any more when this returns.

    Killing the namespace's first process rather than `unshare`, which waits for it, is what makes that so: the
    kernel reports its end only after the ends of all others.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # killed before it had a child
        process.kill()
        process.wait()


def _report(stderr: IO[bytes], log: deque[str], name: str, progress: Progress) -> None:
    for raw in stderr:
        line = raw.decode(errors="replace").rstrip()
        log.append(line[:_LOG_WIDTH])
        if (step := _STEPS.get(line.removeprefix("I: ").removesuffix("..."))) is not None:
            progress(f"{name}: {step}")


def _drain(archive: IO[bytes]) -> None:
    """Tar pads its output; leaving before the end would end the builder with SIGPIPE."""
    while archive.read(1 << 20):
        pass


# -- as a program, for machines on which no daemon runs yet -------------------------------------------------------


def main() -> int:
    """`python -m sandboxd.service.images.build NAME`: build into the image directory, with root or without."""
    parser = argparse.ArgumentParser(description="Build an image from a recipe.")
    parser.add_argument("name", help="name of the image, and of the recipe unless one is given")
    parser.add_argument("--recipe", help="name of a recipe, or path of a directory with a recipe.toml")
    parser.add_argument("--image-dir", type=Path, default=default_image_dir())
    parser.add_argument("--rebuild", action="store_true", help="even if the recipe has not changed")
    options = parser.parse_args()
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        image = build_image(
            open_image_store(options.image_dir),
            options.name,
            recipe=options.recipe,
            rebuild=options.rebuild,
            progress=lambda line: print(f"[{time.monotonic() - started:4.0f} s] {line}", flush=True),
        )
    except KeyboardInterrupt:
        print(f"{options.name}: interrupted, nothing was kept", file=sys.stderr)
        return 130
    except (SandboxdError, OSError) as error:
        log = error.facts.get("log", ()) if isinstance(error, SandboxdError) else ()
        print(*log, error, sep="\n", file=sys.stderr)
        return 1
    print(f"{options.name}: {image.digest[:12]}, {image.size / 1e6:.0f} MB, in {options.image_dir}")
    return 0


def open_image_store(directory: Path) -> ImageStore:
    """The store, for a single-threaded process: without root it moves into the user's namespace first."""
    if not is_root() and not in_own_userns():
        rootless.enter_rootless_namespace()
    return ImageStore(directory, id_base=rootless.FIRST_ID if in_own_userns() else 0)


if __name__ == "__main__":
    sys.exit(main())
