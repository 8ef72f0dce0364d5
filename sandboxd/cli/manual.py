"""sandboxctl help: the manual in a terminal."""

import io
import re
import shutil
import sys

import click

from sandboxd import manual
from sandboxd.cli.output import Failure

# Lines longer than this are hard to read, however wide the terminal.
MAX_WIDTH = 100


class Topic(click.ParamType[str]):
    """A topic of the manual, or a command; the shell completes both."""

    name = "topic"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [
            click.shell_completion.CompletionItem(name, help=manual.page(name).title)
            for name in manual.TOPICS
            if name.startswith(incomplete)
        ]


@click.command(name="help")
@click.argument("topic", type=Topic(), required=False)
@click.pass_context
def help_command(ctx: click.Context, topic: str | None) -> None:
    """Show a topic of the manual; without TOPIC, list them.

    The name of a command that is no topic shows what `sandboxctl COMMAND --help` does. In a terminal the page is
    rendered and paged; otherwise it is printed as the Markdown that it is.
    """
    if topic is None:
        _list_topics()
    elif topic in manual.TOPICS:
        _show(manual.page(topic).text)
    elif (command := _find_command(ctx, topic)) is not None:
        with click.Context(command, info_name=topic, parent=ctx.parent) as of_command:
            click.echo(command.get_help(of_command))
    else:
        near = " or ".join(manual.near(topic))
        what = f"did you mean {near}?" if near else "`sandboxctl help` lists the topics"
        raise Failure(f"cannot find {topic!r} in the manual: {what}")


def _find_command(ctx: click.Context, name: str) -> click.Command | None:
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    return root.get_command(ctx, name)


def _list_topics() -> None:
    width = max(map(len, manual.TOPICS))
    for section, names in manual.SECTIONS.items():
        click.echo(f"{section}:")
        for name in names:
            click.echo(f"  {name:<{width}}  {manual.page(name).title}")
        click.echo()
    click.echo("sandboxctl help TOPIC shows one; sandboxctl COMMAND --help explains a command.")


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    rendered = io.StringIO()
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    Console(file=rendered, force_terminal=True, width=width).print(Markdown(_name_topics(text), hyperlinks=False))
    click.echo_via_pager(rendered.getvalue())


def _name_topics(text: str) -> str:
    """Say what to type where a page links to another."""
    return re.sub(r"\[([^\]]+)\]\(([\w-]+)\.md(?:#[\w-]*)?\)", r"\1 (`help \2`)", text)
