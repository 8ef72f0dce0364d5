"""sandboxd storage init, grow, status, destroy: the pool, while no daemon uses it."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sandboxd.config import is_root, load_config
from sandboxd.errors import StartupError
from sandboxd.service.storage import pool

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size: write 20G, 500M, …", param, ctx)
        return int(found[1]) << _UNITS[found[2].upper()]


def _places(command: Callable[..., None]) -> Callable[..., None]:
    path = click.Path(path_type=Path)
    command = click.option("--state-dir", type=path, help="Where sandboxes' files and the database live.")(command)
    return click.option("--config", type=path, help="TOML file; `sandboxctl help daemon` lists its keys.")(command)


@click.group()
def storage() -> None:
    """A pool for sandboxes' files: constant-time snapshots and real disk limits, in one file. Takes root.

    For while no daemon runs; `sandboxctl storage` shows what a running one holds.
    """


@storage.command()
@_places
@click.option("--size", type=Size(), required=True, help="As large as it may become, e.g. 20G; the file is sparse.")
@click.option("--fs", "file_system", type=click.Choice(["btrfs", "xfs"]), default="btrfs", show_default=True)
def init(config: Path | None, state_dir: Path | None, size: int, file_system: pool.FileSystem) -> None:
    """Make the pool; the next daemon uses it."""
    with _offline(config, state_dir) as state:
        _show(pool.init(state, size=size, file_system=file_system))


@storage.command()
@_places
@click.option("--size", type=Size(), required=True)
def grow(config: Path | None, state_dir: Path | None, size: int) -> None:
    """Make the pool larger."""
    with _offline(config, state_dir) as state:
        from sandboxd.kernel.loop import enter_private_mounts

        enter_private_mounts()
        _show(pool.grow(state, size=size))


@storage.command()
@_places
def status(config: Path | None, state_dir: Path | None) -> None:
    """Show the pool's size, and what it takes on the host's disk."""
    with _explained():
        _show(pool.status(_state_dir(config, state_dir)))


@storage.command()
@_places
@click.option("--force", is_flag=True, help="With the files of the sandboxes and snapshots in it.")
def destroy(config: Path | None, state_dir: Path | None, force: bool) -> None:
    """Remove the pool."""
    with _offline(config, state_dir) as state:
        pool.destroy(state, force=force)


def _show(found: pool.PoolStatus) -> None:
    used = ", in use" if found.in_use else ""
    click.echo(f"{found.file_system}, {found.size >> 20} MiB, of which {found.taken >> 20} MiB are taken{used}")


def _state_dir(config: Path | None, state_dir: Path | None) -> Path:
    return load_config(config, {} if state_dir is None else {"state_dir": state_dir}).state_dir


@contextmanager
def _offline(config: Path | None, state_dir: Path | None) -> Iterator[Path]:
    """The state directory, kept from every daemon for the block."""
    from sandboxd.daemon import lock_state

    with _explained():
        if not is_root():
            raise StartupError("cannot manage a pool: mounting takes root")
        state = _state_dir(config, state_dir)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_state(state):
            yield state


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except StartupError as error:
        click.echo(f"sandboxd: {error}", err=True)
        sys.exit(1)
