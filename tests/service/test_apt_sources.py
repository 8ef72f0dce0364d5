"""The distribution's sources are found in both formats, and told from others'."""

from pathlib import Path

import pytest

from sandboxd.errors import Unprocessable
from sandboxd.service.images.apt_sources import (
    AptSource,
    acquire_options,
    distribution_sources,
    read_sources,
    render_deb822,
)

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib # and a comment
  deb [arch=amd64 signed-by=/usr/share/debian.gpg] http://user:secret@mirror.example/security bookworm-security main
deb cdrom:[Debian 12]/ bookworm main
"""

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://one.example/debian
      http://two.example/debian
Suites: bookworm bookworm-updates
Components: main
  non-free
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_one_line_format(etc: Path) -> None:
    (etc / "sources.list").write_text(ONE_LINE)
    first, second, third = read_sources(etc)
    assert first == AptSource(uri="http://mirror.example/debian/", suite="bookworm", components=("main", "contrib"))
    assert (second.suite, second.signed_by) == (
        "bookworm-security",
        "/usr/share/debian.gpg",
    )
    assert third.uri.startswith("cdrom:")


def test_deb822_format(etc: Path) -> None:
    (etc / "sources.list.d/a.sources").write_text(DEB822)
    (etc / "sources.list.d/b.sources.disabled").write_text(DEB822)
    sources = read_sources(etc)
    assert [(source.uri, source.suite) for source in sources] == [
        ("http://one.example/debian", "bookworm"),
        ("http://one.example/debian", "bookworm-updates"),
        ("http://two.example/debian", "bookworm"),
        ("http://two.example/debian", "bookworm-updates"),
    ]
    assert sources[0].components == ("main", "non-free")
    assert "-----BEGIN PGP" in sources[0].signed_by


def test_what_is_rendered_reads_the_same(etc: Path) -> None:
    (etc / "sources.list").write_text(ONE_LINE)
    (etc / "sources.list.d/a.sources").write_text(DEB822)
    sources = read_sources(etc)
    (etc / "sources.list").unlink()
    (etc / "sources.list.d/a.sources").write_text(render_deb822(sources, passwords=True))
    assert read_sources(etc) == sources


def test_passwords_stay_out_of_images(etc: Path) -> None:
    (etc / "sources.list").write_text(ONE_LINE)
    assert "secret" in render_deb822(read_sources(etc), passwords=True)
    published = render_deb822(read_sources(etc), passwords=False)
    assert "secret" not in published
    assert "http://mirror.example/security" in published


def test_others_sources_are_left_out() -> None:
    own = AptSource(uri="http://mirror.example/debian", suite="bookworm", components=("main",))
    keyring = ("signed-by", "/usr/share/keyrings/debian-archive-keyring.gpg")
    security = AptSource(uri="http://s.example", suite="bookworm-security", components=("main",), options=(keyring,))
    others = (
        AptSource(uri="http://third.example", suite="bookworm", components=("stable",)),
        AptSource(
            uri="http://fourth.example",
            suite="bookworm",
            components=("main",),
            options=(("signed-by", "/usr/share/keyrings/fourth.gpg"),),
        ),
        AptSource(uri="http://fifth.example", suite="bookworm-pgdg", components=("main",)),
        AptSource(uri="cdrom:[disc]/", suite="bookworm", components=("main",)),
    )
    assert distribution_sources((*others, own, security), distribution="debian", codename="bookworm") == (
        own,
        security,
    )


def test_a_mirror_with_its_own_key_is_taken_when_there_is_no_other() -> None:
    mirror = AptSource(
        uri="http://mirror.example", suite="bookworm", components=("main",), options=(("signed-by", "/etc/key.gpg"),)
    )
    assert distribution_sources((mirror,), distribution="debian", codename="bookworm") == (mirror,)


def test_no_source_is_said() -> None:
    updates = AptSource(uri="http://mirror.example", suite="bookworm-updates", components=("main",))
    with pytest.raises(Unprocessable, match='cannot find a source of packages for "bookworm"'):
        distribution_sources((updates,), distribution="debian", codename="bookworm")


def test_this_machines_own_sources_can_be_read() -> None:
    assert all(source.uri and source.suite for source in read_sources())
    assert all(line.endswith(";") for line in acquire_options())
