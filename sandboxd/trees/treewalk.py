"""Walks a tree that strangers have filled: nothing is followed, and no shape of it costs more than a bound.

One descriptor for each level, none for a name's neighbours: a directory with a hundred thousand others in it is as
cheap as one below another.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

MAX_DEPTH: Final = 2048
"""PATH_MAX / 2: nothing deeper has a path that a program could use; it is not entered."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    parent: int
    """descriptor of the directory that it lies in, open until the next one is asked for"""
    name: str
    path: str
    """below the top"""
    status: os.stat_result


def walk(top: int) -> Generator[Found, None, None]:
    """Everything below the directory open as `top`, each directory before what is in it.

    What vanishes meanwhile, or becomes something else, is passed over. Close the iterator if it is left early.
    """
    stack: list[tuple[int, str, Iterator[str]]] = []
    try:
        stack.append((os.dup(top), "", iter(os.listdir(top))))
        while stack:
            directory, path, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            with contextlib.suppress(FileNotFoundError):
                found = Found(directory, name, path + name, os.stat(name, dir_fd=directory, follow_symlinks=False))
                yield found
                if stat.S_ISDIR(found.status.st_mode) and len(stack) < MAX_DEPTH:
                    stack.append(_entered(found))
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _entered(found: Found) -> tuple[int, str, Iterator[str]]:
    try:
        below = os.open(found.name, _DIRECTORY, dir_fd=found.parent)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:  # it has become something else
            raise FileNotFoundError from error
        raise
    try:
        return below, f"{found.path}/", iter(os.listdir(below))
    except BaseException:
        os.close(below)
        raise
