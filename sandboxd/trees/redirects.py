"""Directories that were renamed while a layer below had part of them: overlayfs notes where that part lies.

The note is an extended attribute of the directory in the upper layer: the path of the lower part from the root of the
layers below, or, after a rename within one directory, its old name alone. It holds for what lies below the directory
too, unless that has a note of its own. An opaque directory has no lower part. (Linux, fs/overlayfs: namei.c, dir.c.)

Layers are written by strangers: every path here is followed name by name, and never through a link.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

REDIRECT: Final = "trusted.overlay.redirect"
OPAQUE: Final = "trusted.overlay.opaque"
"""Without root there are no redirects: the overlay is mounted with userxattr there, which does not take them."""

MAX_PATH: Final = 4096

Path = tuple[str, ...]

_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Redirect:
    """One renamed directory of a layer."""

    place: Path
    """where it is in its layer"""
    lower: Path | None
    """where its lower part is in the layers below; None: it has none"""


def redirects_of(tree: int, *, max_depth: int) -> list[Redirect]:
    """All redirected directories of the layer open as `tree`, each before those that lie in it. Raises: OSError."""
    found: list[Redirect] = []
    stack: list[tuple[int, Path, Path | None, Iterator[str]]] = []
    try:
        top = os.dup(tree)
        stack.append((top, (), (), iter(_directories(top))))
        while stack:
            directory, place, lower, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            try:
                below = os.open(name, _DIRECTORY, dir_fd=directory)
            except OSError as error:
                if error.errno in _MISSING:
                    continue
                raise
            stack.append((below, (*place, name), None, iter(())))
            lower_below, redirected = _lower_of(below, name, lower)
            if redirected:
                found.append(Redirect((*place, name), lower_below))
            if len(stack) <= max_depth:
                stack[-1] = (below, (*place, name), lower_below, iter(_directories(below)))
    finally:
        for directory, *_ in stack:
            os.close(directory)
    return found


def locate(tree: int, path: Path) -> tuple[bool, Path | None]:
    """Where the directory that the layers from this one down show at `path` is.

    Whether the layer open as `tree` has (part of) it, at the same path; and the path of its part in the layers below
    that, or None if it has none there. Raises: OSError.
    """
    lower: Path | None = ()
    directory: int | None = os.dup(tree)
    try:
        for name in path:
            if directory is None:
                lower = None if lower is None else (*lower, name)
                continue
            try:
                below = os.open(name, _DIRECTORY, dir_fd=directory)
            except FileNotFoundError:
                lower = None if lower is None else (*lower, name)
                below = None
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                lower, below = None, None  # a file, or a whiteout, hides what is below
            os.close(directory)
            directory = below
            if directory is not None:
                lower, _ = _lower_of(directory, name, lower)
        return directory is not None, lower
    finally:
        if directory is not None:
            os.close(directory)


@contextlib.contextmanager
def opened_below(tree: int, path: Path) -> Iterator[int]:
    """The directory at `path` of the tree open as `tree`, no link followed. Raises: OSError when it is not there."""
    directory = os.dup(tree)
    try:
        for name in path:
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
        yield directory
    finally:
        os.close(directory)


def set_lower(directory: int, lower: Path | None) -> None:
    """Note where the lower part of the directory is; None: that it has none, whatever lies at its place."""
    if lower is None:
        _remove(directory, REDIRECT)
        os.setxattr(directory, OPAQUE, b"y")
    else:
        _remove(directory, OPAQUE)
        os.setxattr(directory, REDIRECT, os.fsencode("/" + "/".join(lower)))


def _lower_of(directory: int, name: str, lower: Path | None) -> tuple[Path | None, bool]:
    """For a directory of that name in one whose lower part is `lower`: (its own lower part, whether it is noted)."""
    attributes = os.listxattr(directory)
    if OPAQUE in attributes:
        return None, REDIRECT in attributes
    if REDIRECT not in attributes:
        return (None if lower is None else (*lower, name)), False
    return _noted(os.getxattr(directory, REDIRECT), lower), True


def _noted(value: bytes, lower: Path | None) -> Path | None:
    """The path that a note means. One that overlayfs would refuse means none."""
    text = os.fsdecode(value)
    names = tuple(text.removeprefix("/").split("/"))
    if len(value) > MAX_PATH or any(name in {"", ".", ".."} for name in names):
        return None
    if text.startswith("/"):
        return names
    return (*lower, text) if lower is not None and len(names) == 1 else None


def _directories(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _remove(directory: int, attribute: str) -> None:
    try:
        os.removexattr(directory, attribute)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
