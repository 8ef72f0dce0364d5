"""The daemon's configuration: one frozen model, a TOML file over built-in defaults, unknown keys refused.

    sandboxd serve --config /etc/sandboxd/sandboxd.toml

Command-line options override the file. Every key, its unit and its default is a field below; the
manual's page on the daemon lists them.
"""

import os
import re
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from sandboxd.errors import StartupError
from sandboxd.paths import default_id_registry as default_id_registry
from sandboxd.paths import default_image_dir as default_image_dir
from sandboxd.paths import default_runtime_dir as default_runtime_dir
from sandboxd.paths import default_state_dir as default_state_dir
from sandboxd.paths import in_own_userns as in_own_userns
from sandboxd.paths import is_root as is_root

MIB = 1024 * 1024
DAY = 86400.0

_CHECKOUT = Path(__file__).resolve().parent.parent
# Where the files that are not Python are: beside the package in a checkout, below the prefix when installed, which
# may be that of an environment or of `pip install --user`.
_ASSET_ROOTS = (
    _CHECKOUT,
    Path(sys.prefix) / "share/sandboxd",
    Path(sysconfig.get_path("data", "posix_user")) / "share/sandboxd",
    Path("/usr/share/sandboxd"),
)


def find_asset(name: str) -> Path:
    """A file shipped with sandboxd, e.g. "seccomp/default.json"."""
    for root in _ASSET_ROOTS:
        if (root / name).exists():
            return root / name
    places = ", ".join(str(root) for root in _ASSET_ROOTS)
    raise StartupError(f"cannot find {name} under {places}: run `make setup`, or install the sandboxd package")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


Seconds = Annotated[float, Field(gt=0, le=10 * DAY)]
Bytes = Annotated[int, Field(ge=1024)]


class TlsConfig(_Section):
    certificate: Path
    """PEM: the server's certificate, then those between it and its root"""
    key: Path
    """PEM, without a passphrase; may be the same file"""

    @field_validator("certificate", "key")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return Path(os.path.abspath(path.expanduser()))


class ListenConfig(_Section):
    """One listener. An address alone may be written as a string."""

    address: str
    """`unix:PATH` or `tcp:HOST:PORT`"""
    dialect: str | None = None
    """the one dialect that is spoken here, at the root; by default all of them, each at its own paths"""
    tls: TlsConfig | None = None
    """with it `tcp:` speaks TLS, and HTTP/2 to those who ask for it"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tls is not None and not self.address.startswith("tcp:"):
            raise ValueError(f"cannot speak TLS on {self.address}: `tls` goes with an address tcp:HOST:PORT")
        return self


def _as_table(entry: object) -> object:
    if isinstance(entry, str):
        return {"address": entry}
    if isinstance(entry, dict | ListenConfig):
        return entry
    raise ValueError(f'cannot listen on {entry!r}: write "tcp:HOST:PORT", "unix:PATH", or {{address = "…", …}}')


class HttpConfig(_Section):
    max_body_bytes: Bytes = 64 * MIB
    """largest JSON body; uploads of files are streamed and have no such limit"""
    max_header_bytes: Bytes = 64 * 1024
    max_connections: Annotated[int, Field(ge=1)] = 4096
    """of each listener. When they are short, the oldest on which no request is under way are closed; root and the
    daemon's own user on a Unix socket are always let in"""
    max_connections_per_peer: Annotated[int, Field(ge=1)] = 1024
    """of these, to one address, one IPv6 /64, or one user on a Unix socket; a proxy in front is one address"""
    cleartext_http2: bool = False
    """take HTTP/2 without TLS from clients that begin with it (prior knowledge)"""
    keep_alive: Seconds = 620.0
    """idle connections close after this; longer than the 300 s that common client pools keep theirs"""
    header_timeout: Seconds = 30.0
    """for the head of a request from its first byte on; for that of the first one on a connection from its start, and
    30 seconds at most"""
    body_idle_timeout: Seconds = 120.0


class SandboxConfig(_Section):
    max_sandboxes: Annotated[int, Field(ge=1, le=20000)] = 2000
    max_memory: Bytes | None = None
    """bytes of memory that all sandboxes' limits may come to; with it every sandbox needs a limit"""
    max_disk: Bytes | None = None
    """the same of the disk, where that can be limited"""
    default_image: str = "base"
    default_backend: str = "bwrap"
    """what isolates a sandbox whose client does not say"""
    max_timeout: Seconds = DAY
    """longest lifetime a client may ask for"""
    default_timeout: Seconds | None = None
    """lifetime of a sandbox whose client asked for none; by default it lives until deleted"""
    max_processes: Annotated[int, Field(ge=16)] = 4096
    """bound on all processes of one sandbox, in force even where the host has no pids controller"""
    default_output_bytes: Bytes = 1 * MIB
    """output of one stream that is kept for a request which waits for a command's end, and does not say how much"""
    max_output_bytes: Bytes = 64 * MIB
    """the most that it may ask for; of what is beyond the middle is left out, and reported"""
    output_memory: Annotated[int, Field(ge=16 * MIB)] = 128 * MIB
    """bytes of output that the daemon holds for all such requests together; half of it for one key's sandboxes"""
    command_log_bytes: Annotated[int, Field(ge=64 * 1024, le=2**40)] = 16 * MIB
    """newest output kept of each background command and terminal, on disk"""
    commands_kept: Annotated[int, Field(ge=1, le=10_000)] = 100
    """ended background commands and terminals kept per sandbox, with their logs; the oldest go first"""
    watch_idle_limit: Seconds = 3600.0
    """a watch that nobody polled or streamed for so long is stopped"""
    lenient_limits: bool = False
    """accept limits that this host cannot enforce (they are reported as not enforced) instead of refusing them"""


class CodeConfig(_Section):
    ready_kernels: Annotated[int, Field(ge=0, le=8)] = 1
    """kernels kept started ahead of need in each sandbox whose image has them"""
    max_output: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 16 * MIB
    """characters of stdout and stderr that one run may say; what is beyond is dropped and reported as truncated"""
    max_results: Annotated[int, Field(ge=1024, le=256 * MIB)] = 32 * MIB
    """characters of one run's results"""


class PortsConfig(_Section):
    base_url: Annotated[str, Field(pattern=r"^https?://[a-z0-9.-]+(:[0-9]{1,5})?$")] | None = None
    """where clients reach exposed ports, at `{port}-{id}` before its host name; by default http://localhost and the
    port of the first TCP listener"""
    response_timeout: Seconds = 300.0
    """for a program on a port to begin its answer"""
    idle_timeout: Seconds = 3600.0
    """longest silence in the middle of its answer"""


class Config(_Section):
    """The whole configuration."""

    state_dir: Path = Field(default_factory=default_state_dir)
    runtime_dir: Path = Field(default_factory=default_runtime_dir)
    image_dir: Path = Field(default_factory=default_image_dir)
    listen: tuple[Annotated[ListenConfig, BeforeValidator(_as_table)], ...] = ()
    """`unix:PATH`, `tcp:HOST:PORT`, or a table with `address`, `dialect` and `tls`"""
    default_socket: bool = True
    """listen on the socket sandboxd.sock in the runtime directory, too"""
    socket_group: str | None = None
    """group that may use the Unix socket beside the daemon's own user"""
    cgroup_root: Path | None = None
    """delegated cgroup v2 directory; found by itself when not given"""
    range_first: Annotated[int, Field(ge=65536)] = 1879048192
    """first host id for sandboxes (as root). The default, 0x70000000, is above what useradd and systemd hand out"""
    id_registry: Path = Field(default_factory=default_id_registry)
    """directory in which the daemons of one host (as root) claim their host ids; the same for all of them"""
    bwrap: Path | None = None
    init: Path | None = None
    seccomp_profile: Path | None = None
    shutdown_grace: Seconds = 10.0
    """how long requests under way may take to end after SIGTERM"""
    log_format: Annotated[str, Field(pattern="^(text|json)$")] = "text"
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"
    http: HttpConfig = HttpConfig()
    sandbox: SandboxConfig = SandboxConfig()
    code: CodeConfig = CodeConfig()
    ports: PortsConfig = PortsConfig()

    @field_validator(
        "state_dir", "runtime_dir", "image_dir", "cgroup_root", "id_registry", "bwrap", "init", "seccomp_profile"
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path if path is None else Path(os.path.abspath(path.expanduser()))

    @model_validator(mode="after")
    def _listens(self) -> Self:
        if not (self.listen or self.default_socket):
            raise ValueError("cannot listen nowhere: without the default socket, `listen` must name an address")
        return self

    def listeners(self) -> tuple[ListenConfig, ...]:
        """The default socket, unless it is not wanted or listed too, and what is listed."""
        default = f"unix:{self.runtime_dir / 'sandboxd.sock'}"
        if not self.default_socket or any(entry.address == default for entry in self.listen):
            return self.listen
        return (ListenConfig(address=default), *self.listen)


def load_config(path: Path | None, overrides: dict[str, Any]) -> Config:
    """The configuration from a file (if any) and the command line. Raises: StartupError naming the line."""
    text = ""
    if path is not None:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"cannot read {path}: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StartupError(f"cannot read {path}: {error}") from error
    try:
        return Config.model_validate({**values, **overrides})
    except ValidationError as error:
        raise StartupError(f"cannot use {path or 'the options'}: {_explain(error, text)}") from error


def _explain(error: ValidationError, text: str) -> str:
    return "; ".join(_explain_one(item["loc"], item["msg"], item["type"], text) for item in error.errors())


def _explain_one(location: tuple[int | str, ...], message: str, kind: str, text: str) -> str:
    name = ".".join(str(part) for part in location)
    line = _line_of([str(part) for part in location if isinstance(part, str)], text)
    what = "unknown key" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return ": ".join(part for part in (f"line {line}" if line else "", name, what) if part)


def _line_of(keys: list[str], text: str) -> int | None:
    """The line that sets a key. tomllib keeps no positions, so look for the key in its table's part of the text."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            table = header[1].lstrip("[ ")  # of an array of tables
            if table.split(".") == keys:
                return number
        elif (key := re.match(r"\s*([\w.\"'-]+)\s*=", line)) is not None:
            path = [*table.split("."), *key[1].split(".")] if table else key[1].split(".")
            if [part.strip("\"' ") for part in path] == keys[: len(path)]:
                return number
    return None
