"""Every example in README and the manual does what the page says: see examples.py for how pages mark them."""

from pathlib import Path
from textwrap import indent

import pytest

from sandboxd.config import load_config
from tests.docs.conftest import Host
from tests.docs.documents import EXAMPLES
from tests.docs.examples import Example, Interpreter, agrees, examples

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_a_pages_examples_do_what_it_says(page: Path, host: Host, tmp_path: Path) -> None:
    environment = host.environment(tmp_path)
    shell = Interpreter.bash(tmp_path, environment)
    python = Interpreter.python(tmp_path, environment)
    try:
        for example in examples(page.read_text()):
            assert _failure(host, tmp_path, shell, python, example) == "", f"{page.name}, line {example.line}"
    finally:
        shell.close()
        python.close()
        host.daemon.delete_all()
        for key in host.daemon.call("GET", "/v1/keys").json["keys"]:
            host.daemon.call("DELETE", f"/v1/keys/{key['id']}")


def _failure(host: Host, directory: Path, shell: Interpreter, python: Interpreter, example: Example) -> str:
    """What is wrong with an example; empty when it does what it is to do."""
    source = host.here(example.source)
    if example.language == "toml":
        (directory / "example.toml").write_text(source)
        load_config(directory / "example.toml", {})
        return ""
    printed, well = (python if example.language == "python" else shell).run(source)
    if not well:
        return f"failed:\n{indent(source, '  ')}\nit printed:\n{indent(printed, '  ')}"
    if '"error":"' in printed and '"error":"' not in (example.output or ""):
        return f"was refused:\n{indent(printed, '  ')}"
    if example.output is not None and not agrees(host.here(example.output), printed):
        return f"printed:\n{indent(printed, '  ')}\nand not:\n{indent(example.output, '  ')}"
    return ""


SAMPLE = """
```console
$ x=1
$ echo $((x + 1))
2
$ printf 'a\\nb\\nc 5 d\\n'
a
...
c ... d
```

```python
y = 3
print(y)
```

```text
3
```
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2\n$", "3\n$"),
        ("c ... d", "c ... e"),
        ("a\n...\nc", "a\nc"),
        ("```text\n3", "```text\n4"),
        ("x=1", "x=1; false"),
        ("x=1", 'x=1; echo \'{"error":"cannot"}\''),
        ("y = 3", "y = 3 / 0"),
    ],
)
def test_an_example_that_does_something_else_is_noticed(old: str, new: str, host: Host, tmp_path: Path) -> None:
    assert old in SAMPLE
    assert _failures(SAMPLE, host, tmp_path) == []
    assert len(_failures(SAMPLE.replace(old, new), host, tmp_path)) == 1


def _failures(page: str, host: Host, directory: Path) -> list[str]:
    shell = Interpreter.bash(directory, host.environment(directory))
    python = Interpreter.python(directory, host.environment(directory))
    try:
        found = [_failure(host, directory, shell, python, example) for example in examples(page)]
        return [failure for failure in found if failure]
    finally:
        shell.close()
        python.close()


@pytest.mark.parametrize(
    "page",
    ["```console\nls\n```", "```perl\n1\n```", "```sh skip\nls\n```"],
    ids=["no prompt", "unknown language", "no reason"],
)
def test_a_block_that_would_silently_not_run_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="line"):
        list(examples(page))
