"""The `sandboxd` program: serve, check, and building images where no daemon runs yet."""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from sandboxd import __version__
from sandboxd.cli.daemon_storage import storage
from sandboxd.config import Config, in_own_userns, is_root, load_config
from sandboxd.errors import StartupError
from sandboxd.kernel.loop import enter_private_mounts
from sandboxd.service.storage.pool import Pool

_ABSOLUTE = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Throw-away Linux machines in milliseconds on one ordinary Linux host."""


@main.command()
@click.option("--config", type=_ABSOLUTE, help="TOML file; `sandboxctl help daemon` lists its keys.")
@click.option("--state-dir", type=_ABSOLUTE, help="Where sandboxes' files and the database live.")
@click.option("--runtime-dir", type=_ABSOLUTE, help="Where sockets live.")
@click.option("--image-dir", type=_ABSOLUTE, help="Where images live; several daemons may share it.")
@click.option("--listen", multiple=True, help="unix:PATH or tcp:HOST:PORT; may be given several times.")
@click.option("--no-default-socket", is_flag=True, help="Do not listen on the socket in the runtime directory too.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
def serve(config: Path | None, no_default_socket: bool, **options: Any) -> None:
    """Run the daemon until SIGTERM. Sandboxes outlive it and are found again by the next one."""
    overrides = {name: value for name, value in options.items() if value not in (None, ())}
    if no_default_socket:
        overrides["default_socket"] = False
    try:
        loaded = load_config(config, overrides)
        set_up_logging(loaded)
        if not is_root() and not in_own_userns():
            enter_rootless(loaded.state_dir)
        elif Pool(loaded.state_dir).expected():
            enter_private_mounts()
        run_daemon(loaded, config, overrides)
    except StartupError as error:
        click.echo(f"sandboxd: {error}", err=True)
        sys.exit(1)


def run_daemon(loaded: Config, path: Path | None, overrides: dict[str, Any]) -> None:
    # What is loaded stays: searches for garbage in it, 200 of them, would find none (see settle_memory).
    gc.disable()
    # Imported here: a rootless daemon changes its namespace before anything can have started a thread.
    import trio

    from sandboxd import daemon

    async def life() -> None:
        await daemon.run(loaded, reload=lambda: load_config(path, overrides))

    trio.run(life)


def enter_rootless(state_dir: Path) -> None:
    """Become root of the user's own namespace: of the one where the sandboxes of an earlier daemon run, if any do."""
    from sandboxd.isolation.bwrap.marks import find_namespace
    from sandboxd.kernel import rootless

    # Decided by the person's own ids and home, before they look like root's.
    os.environ.setdefault("HOME", str(Path.home()))
    try:
        earlier = find_namespace(state_dir / "sandboxes")
        if earlier is None:
            rootless.enter_rootless_namespace()
        else:
            rootless.rejoin_rootless_namespace(earlier)
            os.close(earlier)
    except OSError as error:
        raise StartupError(f"cannot run without root: {error}") from error


def set_up_logging(config: Config) -> None:
    from sandboxd import logs

    logs.set_up(config.log_format, config.log_level)
    logging.captureWarnings(True)


@main.command()
@click.option("--config", type=_ABSOLUTE)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(config: Path | None, as_json: bool) -> None:
    """Say what this host can do, and what to install for the rest. Exit status 1 if sandboxes cannot run here."""
    from sandboxd import hostcheck

    try:
        findings = hostcheck.examine(load_config(config, {}))
    except StartupError as error:
        click.echo(f"sandboxd: {error}", err=True)
        sys.exit(1)
    click.echo(hostcheck.as_json(findings) if as_json else hostcheck.as_text(findings))
    sys.exit(0 if all(finding.ok or not finding.required for finding in findings) else 1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def image(arguments: tuple[str, ...]) -> None:
    """Build an image without a daemon: `sandboxd image NAME [--recipe R] [--image-dir DIR] [--rebuild]`."""
    from sandboxd.service.images import build

    sys.argv = ["sandboxd image", *arguments]
    sys.exit(build.main())


main.add_command(storage)


if __name__ == "__main__":
    main()
