"""info and completion."""

import click

from sandboxd.cli.output import json_option, print_facts, print_json
from sandboxd.cli.runner import with_client
from sandboxd.cli.values import show_seconds
from sandboxd.client import AsyncClient, Capabilities, Health

COMPLETION_VARIABLE = "_SANDBOXCTL_COMPLETE"


@click.command()
@json_option
def info(as_json: bool) -> None:
    """Show how the daemon is and what it can do on its host."""

    async def ask(client: AsyncClient) -> tuple[str, Health, Capabilities]:
        return str(client.address), await client.health(), await client.capabilities()

    address, health, able = with_client(ask)
    if as_json:
        print_json({"address": address, "health": health.raw, "capabilities": able.raw})
        return
    print_facts(
        [
            ("address", address),
            ("status", health.status),
            ("version", able.version),
            ("uptime", show_seconds(health.uptime_s)),
            ("sandboxes", f"{health.sandboxes} of {able.max_sandboxes or 'any number'}"),
            ("backend", able.backend + (", without root" if able.rootless else "")),
            ("default image", able.default_image),
            ("longest lifetime", show_seconds((able.max_timeout_ms or 0) / 1000)),
            ("limits", ", ".join(name for name, possible in able.limits.items() if possible) or "none"),
            ("not possible", ", ".join(name for name, possible in able.limits.items() if not possible)),
            ("because", able.limits_reason),
            ("storage", able.volume),
            ("no disk limits", able.disk_reason),
        ]
    )


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script.

    \b
    bash:  sandboxctl completion bash > ~/.local/share/bash-completion/completions/sandboxctl
    zsh:   sandboxctl completion zsh > "${fpath[1]}/_sandboxctl"
    fish:  sandboxctl completion fish > ~/.config/fish/completions/sandboxctl.fish
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None  # the choice above
    click.echo(complete(ctx.find_root().command, {}, "sandboxctl", COMPLETION_VARIABLE).source())
