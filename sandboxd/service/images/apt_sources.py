"""Where this machine gets its own Debian or Ubuntu packages from: apt's sources, in both formats apt reads.

A build uses the machine's own mirror, signatures and proxy, so nothing here knows the name of a host.
sources.list(5) describes the formats. Reading them here rather than asking `apt-get indextargets` is for machines
on which `apt-get update` was never run: it lists nothing there.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.errors import Unprocessable

_DISTRIBUTION_COMPONENTS: Final = frozenset(
    {"main", "contrib", "non-free", "non-free-firmware", "restricted", "universe", "multiverse"}
)
_ACQUIRE: Final = re.compile(r"Acquire::(?:https?::|ftp::|Retries|ForceIPv[46])", re.IGNORECASE)
_OPTIONS: Final = ("signed-by", "trusted", "check-valid-until")
"""What a source's options mean for a build; others (architectures, languages, indexes) are the building machine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    uri: str
    suite: str
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    """lower-case name and value; signed-by may be a whole key, of many lines"""

    @property
    def signed_by(self) -> str:
        return dict(self.options).get("signed-by", "")


def read_sources(etc_apt: Path = Path("/etc/apt")) -> tuple[AptSource, ...]:
    """Every binary source that is switched on, in apt's order."""
    found: list[AptSource] = []
    parts = etc_apt / "sources.list.d"
    files = [etc_apt / "sources.list", *(sorted(parts.iterdir()) if parts.is_dir() else ())]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".list":
            found += _one_line(text)
        elif file.suffix == ".sources":
            found += _deb822(text)
    return tuple(found)


def distribution_sources(sources: Iterable[AptSource], *, distribution: str, codename: str) -> tuple[AptSource, ...]:
    """The distribution's own among them: the release, its updates and its security fixes.

    Other repositories may call their suite after the release too; they are told apart by their components and by
    being signed with a key of their own. Raises Unprocessable if nothing is left.
    """
    suite = re.compile(re.escape(codename) + r"(?:-updates|[-/]security|/updates)?\Z")
    named = [
        source
        for source in sources
        if suite.match(source.suite)
        and set(source.components) <= _DISTRIBUTION_COMPONENTS
        and source.uri.partition(":")[0] != "cdrom"
    ]
    own = [s for s in named if not s.signed_by or f"{distribution}-archive-" in Path(s.signed_by[:4096]).name]
    chosen = own or named
    if not any(source.suite == codename for source in chosen):
        raise Unprocessable(
            f'cannot find a source of packages for "{codename}" in /etc/apt: add the distribution\'s own, '
            "or import a root file system instead",
            kind="no_package_source",
        )
    return tuple(chosen)


def render_deb822(sources: Iterable[AptSource], *, passwords: bool) -> str:
    """The sources as the text of a .sources file, with or without the passwords that their addresses hold."""
    return "\n".join(_render(source, passwords=passwords) for source in sources)


def acquire_options() -> tuple[str, ...]:
    """How this machine's apt reaches its sources (proxies, retries), as lines of apt.conf(5)."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    return tuple(line for line in dump.splitlines() if _ACQUIRE.match(line) and not line.endswith(' "";'))


# -- formats ------------------------------------------------------------------------------------------------------


def _one_line(text: str) -> Iterator[AptSource]:
    """`deb [option=value …] URI SUITE COMPONENT…`, one to a line."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?([^#]+)", line)
        words = match.group(2).split() if match else []
        if match is None or len(words) < 3:
            continue
        options = (option.partition("=") for option in (match.group(1) or "").split())
        yield AptSource(
            uri=words[0],
            suite=words[1],
            components=tuple(words[2:]),
            options=_wanted((name.lower(), value) for name, _, value in options),
        )


def _deb822(text: str) -> Iterator[AptSource]:
    """Stanzas of `Field: value`, where a line that begins with a space goes on with the field before it."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n[ \t]*\n", "\n".join(lines)):
        fields = {
            name.lower(): value.strip()
            for name, value in re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptSource(
                    uri=uri,
                    suite=suite,
                    components=tuple(fields.get("components", "").split()),
                    options=_wanted(fields.items()),
                )


def _wanted(options: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in options if name in _OPTIONS)


def _render(source: AptSource, *, passwords: bool) -> str:
    uri = source.uri if passwords else re.sub(r"(?<=://)[^/@]*@", "", source.uri)
    lines = ["Types: deb", f"URIs: {uri}", f"Suites: {source.suite}"]
    lines.append(f"Components: {' '.join(source.components)}")
    lines += [f"{name.title()}: {value}" for name, value in source.options]
    return "\n".join(lines) + "\n"
