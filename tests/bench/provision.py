"""Getting the peers: Debian packages, Python packages in a venv of their own, and newer Debian packages unpacked.

Each function returns where the thing is, or raises NotAvailable with the reason, which the report prints in the
peer's row. What is there already costs nothing. Nothing that is installed is left running.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sandboxd.service.images.apt_sources import AptSource, distribution_sources, read_sources, render_deb822

INSTALL_LIMIT = 600.0
POLICY = Path("/usr/sbin/policy-rc.d")


class NotAvailable(Exception):
    """A peer cannot be measured here; the text says why."""


def cache() -> Path:
    """What is kept between runs: the peers that are not Debian packages of this release."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "sandboxd-bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def debian_program(program: str, *packages: str) -> Path:
    """A program of this Debian release, installed if missing."""
    found = shutil.which(program)
    if found is None:
        _require_root(f"installing {', '.join(packages)}")
        with _services_stay_off():
            _quietly(["apt-get", *_APT, "install", "--yes", "--no-install-recommends", *packages])
        found = shutil.which(program)
    if found is None:
        raise NotAvailable(f"{', '.join(packages)} brought no {program}")
    return Path(found)


def python_program(program: str, package: str) -> Path:
    """A program of a Python package."""
    return _in_venv(package, f"bin/{program}")


def python_package_file(package: str, file: str) -> Path:
    """A file that a Python package brings, by its path below site-packages."""
    return _in_venv(package, f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/{file}")


def python_package_version(package: str) -> str:
    """Of a package that was installed here."""
    stem = package.replace("-", "_")
    found = next((cache() / package).glob(f"lib/python*/site-packages/{stem}-*.dist-info"), None)
    return found.name.removeprefix(f"{stem}-").removesuffix(".dist-info") if found else "unknown version"


def _in_venv(package: str, file: str) -> Path:
    """A file of a virtual environment that only this package has."""
    home = cache() / package
    if not (home / file).exists():
        shutil.rmtree(home, ignore_errors=True)
        _quietly([sys.executable, "-m", "venv", str(home)])
        _quietly([str(home / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", package])
    if not (home / file).exists():
        raise NotAvailable(f"{package} brought no {file}")
    return home / file


def backported_program(program: str, package: str) -> Path:
    """A program from the release's backports, unpacked into the cache: the system's own packages stay as they are."""
    found = cache() / package / "usr" / "bin" / program
    if not found.exists():
        with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as scratch:
            deb = _download_backport(package, Path(scratch))
            _quietly(["dpkg-deb", "--extract", str(deb), str(cache() / package)])
    if not found.exists():
        raise NotAvailable(f"{package} from backports brought no {program}")
    return found


def _download_backport(package: str, scratch: Path) -> Path:
    """Fetch one package with a set of package lists of our own, beside the system's."""
    _require_root("reading the backports' package lists")
    (scratch / "lists").mkdir()
    (scratch / "backports.sources").write_text(render_deb822(_backports(), passwords=True))
    own_lists = [
        f"-oDir::Etc::SourceList={scratch}/backports.sources",
        "-oDir::Etc::SourceParts=-",
        f"-oDir::State::Lists={scratch}/lists",
        # apt's download method drops its rights to a user who cannot enter our scratch directory.
        "-oAPT::Sandbox::User=root",
    ]
    _quietly(["apt-get", *_APT, *own_lists, "update"])
    _quietly(["apt-get", *_APT, *own_lists, "download", package], cwd=scratch)
    debs = list(scratch.glob(f"{package}_*.deb"))
    if not debs:
        raise NotAvailable(f"the backports have no {package}")
    return debs[0]


def _backports() -> list[AptSource]:
    """The machine's own mirror with the release's backports in the place of the release."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", "")
    sources = distribution_sources(read_sources(), distribution=release.get("ID", ""), codename=codename)
    return [replace(source, suite=f"{codename}-backports") for source in sources if source.suite == codename]


_APT = ("-oDPkg::Lock::Timeout=300", "-qq")


@contextlib.contextmanager
def _services_stay_off() -> Iterator[None]:
    """Keep package scripts from starting daemons, in Debian's own way (invoke-rc.d(8))."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def _require_root(what: str) -> None:
    if os.geteuid():
        raise NotAvailable(f"{what} takes root")


def _quietly(command: Sequence[str], *, cwd: Path | None = None) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=INSTALL_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAvailable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotAvailable(f"{' '.join(command[:1])} failed: {said[-1] if said else done.returncode}")
