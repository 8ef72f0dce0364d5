"""The build backend (PEP 517): setuptools', for a wheel that carries everything a daemon needs.

Beside the Python package that is sandbox-init, a static program built here from rootfs/init, the system call
profiles and the recipes: `[tool.setuptools.data-files]` in pyproject.toml says where they go. With that program in
it a wheel is for one processor and for Linux, but for any Python and any C library.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = (
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
)

# What a source archive needs beside the package, so that a wheel can be built of it.
SOURCES = ("graft rootfs", "graft seccomp", "graft packaging", "prune rootfs/init/build", "global-exclude *.pyc")


def build_wheel(
    wheel_directory: str, config_settings: Mapping[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build sandbox-init, then the wheel, named after the processor. Raises: RuntimeError without a C compiler."""
    built = subprocess.run(["make", "-C", "rootfs/init"], capture_output=True, text=True, check=False)
    if built.returncode:
        raise RuntimeError(
            "cannot build sandbox-init, which needs make and musl-gcc (Debian: make musl-tools) or the package "
            f"ziglang:\n{built.stdout[-2000:]}{built.stderr[-2000:]}"
        )
    shutil.rmtree("build", ignore_errors=True)  # setuptools would ship what an earlier build left there
    settings = {**(config_settings or {}), "--build-option": ["--plat-name", f"linux_{os.uname().machine}"]}
    return str(build_meta.build_wheel(wheel_directory, settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Mapping[str, Any] | None = None) -> str:
    """Build a source archive from which a wheel can be built."""
    with _manifest():
        return str(build_meta.build_sdist(sdist_directory, dict(config_settings or {})))


@contextlib.contextmanager
def _manifest() -> Iterator[None]:
    """The list that setuptools reads at this name only, there for as long as it is needed."""
    path = Path("MANIFEST.in")
    path.write_text("\n".join(SOURCES) + "\n")
    try:
        yield
    finally:
        path.unlink()
