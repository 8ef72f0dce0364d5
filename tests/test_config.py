"""The configuration: defaults, the file, the command line; and what is refused, with its line."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandboxd.config import Config, ListenConfig, TlsConfig, find_asset, load_config
from sandboxd.errors import StartupError


def written(directory: Path, text: str) -> Path:
    path = directory / "sandboxd.toml"
    path.write_text(text)
    return path


def test_without_a_file_there_are_defaults_that_fit_together() -> None:
    config = load_config(None, {})
    assert config.listeners() == (ListenConfig(address=f"unix:{config.runtime_dir}/sandboxd.sock"),)
    assert config.state_dir.is_absolute()
    assert config.sandbox.default_timeout is None


def test_the_file_changes_defaults_and_the_command_line_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "log_level = 'error'\nlog_format = 'json'\n[sandbox]\nmax_sandboxes = 7\n")
    config = load_config(path, {"log_level": "debug"})
    assert (config.log_level, config.log_format, config.sandbox.max_sandboxes) == ("debug", "json", 7)


def test_a_configuration_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValidationError):
        Config().log_level = "debug"  # type: ignore[misc]


def test_paths_are_absolute_and_know_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_config(written(tmp_path, "state_dir = 'here/../there'\nruntime_dir = '~/run'\n"), {})
    assert (config.state_dir, config.runtime_dir) == (tmp_path / "there", Path("/home/somebody/run"))


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("color = 1", 1, "color"),
        ("\n# comment\n\nsandbox.color = 1", 4, "sandbox.color"),
        ("[sandbox]\n\ncolor = 1", 3, "sandbox.color"),
        ("[http]\nkeep_alive = 1\n[sandbox]\nmax_sandboxes = 0", 4, "sandbox.max_sandboxes"),
        ('[ sandbox ]\n"color" = 1', 2, "sandbox.color"),
        ("[colors]\nred = 1", 1, "colors"),
        ("http = 5", 1, "http"),
        ("listen = ['a', 5]", 1, "listen.1"),
        ("listen = [{address = 'tcp:x:1', color = 1}]", 1, "listen.0.color"),
        ("listen = [{dialect = 'x'}]", 1, "listen.0.address"),
        ("listen = [{address = 'tcp:x:1', tls = {key = '/x'}}]", 1, "listen.0.tls.certificate"),
        ("listen = [{address = 'unix:/x', tls = {certificate = '/x', key = '/x'}}]", 1, "listen.0"),
        ("\n[[listen]]\naddress = 'tcp:x:1'\ncolor = 1", 4, "listen.0.color"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    path = written(tmp_path, text + "\n")
    with pytest.raises(StartupError) as caught:
        load_config(path, {})
    assert str(caught.value).startswith(f"cannot use {path}: line {line}: {key}: ")


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "one = 1\nlog_level = 'loud'\n[http]\ntwo = 2\n")
    with pytest.raises(StartupError) as caught:
        load_config(path, {})
    for part in ("line 1: one", "line 2: log_level", "line 4: http.two"):
        assert part in str(caught.value)


def test_a_wrong_option_is_named_without_a_line() -> None:
    with pytest.raises(StartupError, match=r"^cannot use the options: log_level: "):
        load_config(None, {"log_level": "loud"})


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[a]\n[a]\n"])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sandboxd.toml"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=f"^cannot read {path}: "):
        load_config(path, {})


@given(text=st.text(max_size=200))
def test_no_text_makes_it_fail_in_another_way(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, newline="", encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(StartupError):
        load_config(path, {})


def test_a_missing_asset_says_how_to_get_it() -> None:
    assert find_asset("seccomp/default.json").is_file()
    with pytest.raises(StartupError, match=r"^cannot find no/such/file under .*: run `make setup`"):
        find_asset("no/such/file")


# -- listeners


def addresses(text: str, tmp_path: Path) -> list[str]:
    return [entry.address for entry in load_config(written(tmp_path, text), {}).listeners()]


def test_the_default_socket_stands_beside_what_is_listed(tmp_path: Path) -> None:
    default = addresses("", tmp_path)
    assert addresses("listen = ['tcp:127.0.0.1:1']", tmp_path) == [*default, "tcp:127.0.0.1:1"]
    assert addresses(f"listen = ['tcp:127.0.0.1:1', '{default[0]}']", tmp_path) == ["tcp:127.0.0.1:1", *default]
    assert addresses("listen = ['tcp:127.0.0.1:1']\ndefault_socket = false", tmp_path) == ["tcp:127.0.0.1:1"]


def test_a_daemon_that_listens_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot listen nowhere"):
        load_config(written(tmp_path, "default_socket = false"), {})


def test_a_listener_may_be_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = "{address = 'tcp:x:1', dialect = 'akira', tls = {certificate = 'c.pem', key = '/k.pem'}}"
    _, listener = load_config(written(tmp_path, f"listen = [{entry}]"), {}).listeners()
    assert listener == ListenConfig(
        address="tcp:x:1", dialect="akira", tls=TlsConfig(certificate=tmp_path / "c.pem", key=Path("/k.pem"))
    )


def test_listeners_of_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "listen = ['tcp:x:1']"), {"listen": ("tcp:x:2",), "default_socket": False})
    assert [entry.address for entry in config.listeners()] == ["tcp:x:2"]
