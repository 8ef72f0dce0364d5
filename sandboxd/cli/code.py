"""code: run code in a sandbox's kernel."""

import base64
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import click

from sandboxd.cli.options import environment_option, workdir_option
from sandboxd.cli.output import Failure
from sandboxd.cli.runner import SANDBOX, with_client
from sandboxd.cli.values import DURATION
from sandboxd.client import AsyncClient
from sandboxd.client.code import CodeError, CodeEvent, CodeOutput, CodeResult

FAILED = 1
# Representations worth a file: field → ending, and whether it comes as base64.
FILES = {"png": ("png", True), "jpeg": ("jpg", True), "pdf": ("pdf", True), "svg": ("svg", False)}


@click.command()
@click.argument("sandbox", type=SANDBOX)
@click.argument("file", type=click.File("rb"), required=False)
@click.option("-c", "code", metavar="CODE", help="The code itself, in place of FILE.")
@click.option("--context", metavar="ID", help="Where to run it; by default the sandbox's default context.")
@click.option("--timeout", type=DURATION, metavar="DURATION", help="Interrupt the code after this, e.g. 30s.")
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to save images that it shows; made if missing.",
)
@environment_option
@workdir_option
def code(
    sandbox: str,
    file: BinaryIO | None,
    code: str | None,
    context: str | None,
    timeout: int | None,
    output_dir: Path | None,
    env: dict[str, str],
    workdir: str | None,
) -> None:
    """Run Python code in a sandbox, in a kernel that remembers: FILE, or stdin, or -c CODE.

    \b
    sandboxctl code box -c 'x = 41'
    sandboxctl code box -c 'x + 1'                   prints 42
    sandboxctl code box plot.py --output-dir .       saves what it shows as result-1.png, …

    Exit status 1 if the code raised. Ctrl-C interrupts it; its variables stay.
    """
    if file is not None and code is not None:
        raise click.UsageError("Give FILE or -c CODE, not both.")
    text = code if code is not None else _read(file)
    printer = Printer(output_dir)

    async def run(client: AsyncClient) -> None:
        async with client.run_code_stream(
            sandbox, text, context=context, timeout_ms=timeout, env=env or None, cwd=workdir
        ) as events:
            async for event in events:
                printer.show(event)

    with_client(run)
    sys.exit(FAILED if printer.failed else 0)


def _read(file: BinaryIO | None) -> str:
    """Raises: Failure for what is no text."""
    with nullcontext(sys.stdin.buffer if file is None else file) as source:
        try:
            return source.read().decode()
        except UnicodeDecodeError as error:
            raise Failure(f"cannot run {getattr(source, 'name', 'stdin')}: it is not UTF-8 text ({error})") from error


class Printer:
    """What a run says, where a person expects it: output as itself, results as text, images as files."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._saved = 0
        self.failed = False

    def show(self, event: CodeEvent) -> None:
        match event:
            case CodeOutput():
                click.echo(event.text, nl=False, err=event.stream == "stderr")
            case CodeResult():
                self._result(event)
            case CodeError():
                self.failed = True
                click.echo(event.traceback or f"{event.name}: {event.value}", err=True)
            case _:
                pass

    def _result(self, result: CodeResult) -> None:
        files = [name for name in FILES if getattr(result, name) is not None]
        if files and self._directory is not None:
            self._saved += 1
            for name in files:
                self._save(self._directory, name, getattr(result, name))
        elif result.text is not None:
            click.echo(result.text)

    def _save(self, directory: Path, name: str, content: str) -> None:
        ending, is_base64 = FILES[name]
        decode: Callable[[str], bytes] = base64.b64decode if is_base64 else str.encode
        path = directory / f"result-{self._saved}.{ending}"
        directory.mkdir(parents=True, exist_ok=True)
        path.write_bytes(decode(content))
        click.echo(str(path))
