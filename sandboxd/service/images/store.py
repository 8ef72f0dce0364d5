"""The store of images: read-only root file systems, named by their contents.

    <directory>/<digest>/rootfs/        the tree; canonical ids, plus id_base (see kernel/treewriter)
    <directory>/<digest>/image.json     what is known about it
    <directory>/<digest>/pins/          one file per state directory whose sandboxes stand on it
    <directory>/names.json              name -> digest
    <directory>/.lock                   held while any of these change
    <directory>/.tmp-*                  work in progress, locked by whoever is at it; swept once nobody is
    <directory>/.building-*             a lock on the making of one image; goes the same way

Several daemons may share the directory. Nothing appears under its digest before it is complete and on disk. Only the
store's owner can enter the directory, because images hold setuid programs of whoever made them.

Everything here blocks: callers use a thread.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from sandboxd import clock
from sandboxd.errors import Conflict, InvalidRequest, NotFound, SandboxdError, TooLarge, Unprocessable
from sandboxd.model import Bind, Image
from sandboxd.service.images import directory as files
from sandboxd.service.images.directory import Staging
from sandboxd.trees.archive import unpack
from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge
from sandboxd.trees.treecopy import copy_tree
from sandboxd.trees.treedigest import digest_tree
from sandboxd.trees.treewriter import UnpackLimits, UnpackSummary

log = logging.getLogger(__name__)

_FORMAT: Final = 1
"""Of image.json and of what goes into a digest."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST_PREFIX: Final = re.compile(r"[0-9a-f]{8,64}")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/:-]{0,126}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What a sandbox gets from its image unless its client says otherwise. Part of the image's identity."""

    user: str = ""
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    hidden: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "user": self.user,
            "workdir": self.workdir,
            "env": dict(sorted(self.env.items())),
            "binds": [[str(bind.source), bind.target] for bind in self.binds],
            "hidden": list(self.hidden),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an image came from, for people; `recipe` finds it again instead of building it twice."""

    source: str
    recipe: str = ""


def check_name(name: str) -> None:
    """Raises InvalidRequest for what cannot name an image."""
    if not _NAME.fullmatch(name) or _DIGEST_PREFIX.fullmatch(name):
        raise InvalidRequest(
            f"cannot name an image {name[:140]!r}: use 1 to 128 of A-Z a-z 0-9 . _ / : - beginning and ending with "
            "a letter or digit, and nothing that could be mistaken for a digest",
            image=name[:140],
        )


class ImageStore:
    """Owns the image directory, shared with other daemons of the same user.

    Methods raise NotFound for an unknown image, InvalidRequest for bad names and archives, TooLarge for archives
    over the limits, Unprocessable when the disk is full.
    """

    def __init__(self, directory: Path, *, id_base: int = 0, limits: UnpackLimits | None = None) -> None:
        self.directory = directory
        self.id_base = id_base
        self._limits = limits or UnpackLimits()
        self._json = files.JsonFiles()
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        files.sweep(directory)

    # -- reading --------------------------------------------------------------------------------------------------

    def list(self) -> tuple[Image, ...]:
        """All images, the newest first."""
        names = self._names()
        images = (self._read(entry.name, names) for entry in self.directory.iterdir())
        return tuple(sorted(filter(None, images), key=lambda image: image.created_at, reverse=True))

    def get(self, name_or_digest: str) -> Image:
        """By name, by digest, or by eight or more of a digest's first characters."""
        names = self._names()
        image = self._read(names.get(name_or_digest, name_or_digest), names)
        if image is None and _DIGEST_PREFIX.fullmatch(name_or_digest):
            matches = [one for one in self.list() if one.digest.startswith(name_or_digest)]
            image = matches[0] if len(matches) == 1 else None
        if image is None:
            raise NotFound(
                f'cannot find the image "{name_or_digest[:140]}": "sandboxctl image ls" lists those there are, '
                'and "sandboxctl image build base" makes the usual one',
                image=name_or_digest[:140],
            )
        return image

    def find_built(self, recipe: str) -> Image | None:
        """The image that was made with exactly this recipe (its key), if it is still here."""
        return next((image for image in self.list() if self._facts(image.digest).get("recipe") == recipe), None)

    def _facts(self, digest: str) -> dict[str, Any]:
        try:
            facts = self._json.read(self.directory / digest / "image.json")
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) and facts.get("format") == _FORMAT else {}

    def _read(self, digest: str, names: Mapping[str, str]) -> Image | None:
        if not _DIGEST.fullmatch(digest) or not (facts := self._facts(digest)):
            return None
        config = facts["config"]
        return Image(
            digest=digest,
            names=tuple(sorted(name for name, target in names.items() if target == digest)),
            created_at=facts["created_at"],
            size=facts["size"],
            rootfs=self.directory / digest / "rootfs",
            user=config["user"],
            workdir=config["workdir"],
            env=config["env"],
            binds=tuple(Bind(source=Path(source), target=target) for source, target in config["binds"]),
            hidden=tuple(config["hidden"]),
            source=facts["source"],
        )

    # -- making ---------------------------------------------------------------------------------------------------

    def import_tar(
        self, archive: IO[bytes], name: str, *, config: ImageConfig | None = None, origin: Origin | None = None
    ) -> Image:
        """An image from a tar archive, compressed or not, of a whole root file system. Hostile ones are refused."""

        def fill(staging: Staging) -> UnpackSummary:
            return unpack(archive, staging.root, id_base=self.id_base, limits=self._limits)

        return self.create(fill, name, config=config, origin=origin or Origin(source="tar archive"))

    def import_directory(self, path: Path, name: str, *, config: ImageConfig | None = None) -> Image:
        """An image from a copy of a directory on this host, which stays on one file system."""

        def fill(staging: Staging) -> UnpackSummary:
            with files.open_directory(path) as source:
                return copy_tree(
                    source, staging.root, id_base=self.id_base, canonical_id=self._canonical_id, limits=self._limits
                )

        return self.create(fill, name, config=config, origin=Origin(source=f"directory {path}"))

    def create(
        self,
        fill: Callable[[Staging], UnpackSummary],
        name: str,
        *,
        config: ImageConfig | None = None,
        origin: Origin,
    ) -> Image:
        """An image of whatever `fill` writes below the empty directory staging.root.

        The name moves to it from whichever image had it. Nothing is left behind if `fill` or this process fails.
        """
        check_name(name)
        with files.staging(self.directory, id_base=self.id_base) as staging:
            try:
                summary = fill(staging)
            except (ArchiveError, OSError) as error:
                raise _explain(error, name) from error
            files.add_mount_points(staging.root, id_base=self.id_base)
            for what, count in summary.dropped.items():
                log.info("image %s: left out %d x %s", name, count, what)
            return self._publish(staging, name, config or ImageConfig(), origin)

    def _canonical_id(self, found: int) -> int:
        """The image's id for an owner on this disk.

        Without root, files of the person who imports become root's, and so do those of anybody whose id their
        namespace does not map (shown as 65534): who owned them cannot be known.
        """
        if self.id_base == 0:
            return found
        return 0 if found in (0, 65534) else found - self.id_base

    def _publish(self, staging: Staging, name: str, config: ImageConfig, origin: Origin) -> Image:
        tree = digest_tree(staging.root, id_base=self.id_base)
        identity = {"format": _FORMAT, "tree": tree.sha256.hex(), "config": config.to_json()}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        facts = identity | {
            "digest": digest,
            "created_at": clock.wall(),
            "size": tree.size,
            "entries": tree.entries,
            "arch": platform.machine(),
            "source": origin.source,
            "recipe": origin.recipe,
        }
        (staging.path / "image.json").write_text(json.dumps(facts, indent=1) + "\n")
        files.syncfs(staging.root)
        with files.locked(self.directory):
            if self._facts(digest):
                self._refresh(digest, origin)
            else:
                staging.path.rename(self.directory / digest)
            self._write_names({**self._names(), name: digest})
        return self.get(digest)

    def _refresh(self, digest: str, origin: Origin) -> None:
        """The same contents were made again: remember by which recipe, so that the next time nothing is made."""
        facts = self._facts(digest) | ({"recipe": origin.recipe} if origin.recipe else {})
        files.write_json(self.directory / digest / "image.json", facts)

    # -- names, pins, removal -------------------------------------------------------------------------------------

    def tag(self, name_or_digest: str, name: str) -> Image:
        """Give an image another name, taking it from whichever had it."""
        check_name(name)
        with files.locked(self.directory):
            digest = self.get(name_or_digest).digest
            self._write_names({**self._names(), name: digest})
        return self.get(digest)

    def pin(self, digest: str, owner: Path) -> None:
        """Keep the image while `owner`, the state directory of a daemon with sandboxes on it, exists."""
        with files.locked(self.directory):
            self.get(digest)
            pins = self.directory / digest / "pins"
            pins.mkdir(exist_ok=True)
            (pins / _pin_name(owner)).write_text(str(owner))

    def unpin(self, digest: str, owner: Path) -> None:
        (self.directory / digest / "pins" / _pin_name(owner)).unlink(missing_ok=True)

    def _pinned_by(self, digest: str) -> Path | None:
        with contextlib.suppress(FileNotFoundError):
            for pin in (self.directory / digest / "pins").iterdir():
                owner = Path(pin.read_text())
                if owner.is_dir():
                    return owner
        return None

    def remove(self, name_or_digest: str, *, in_use: Callable[[str], bool] = lambda _: False) -> None:
        """Remove a name, and with its last name the image. Raises Conflict while sandboxes stand on it."""
        with files.locked(self.directory):
            image = self.get(name_or_digest)
            names = self._names()
            removed = {name_or_digest} if name_or_digest in names else set(image.names)
            left = {name: digest for name, digest in names.items() if name not in removed}
            if image.digest in left.values():
                self._write_names(left)
                return
            owner = self._pinned_by(image.digest)
            if owner is not None or in_use(image.digest):
                raise Conflict(
                    f'cannot remove the image "{name_or_digest}": sandboxes '
                    f"{f'of {owner} ' if owner else ''}stand on it; delete them first",
                    image=image.digest,
                )
            self._write_names(left)
            doomed = files.move_away(image.rootfs.parent)
        files.remove_tree(doomed)

    # -- names.json -----------------------------------------------------------------------------------------------

    def _names(self) -> dict[str, str]:
        try:
            names = self._json.read(self.directory / "names.json")
        except FileNotFoundError:
            return {}
        except ValueError as error:
            # Images have their digests still, by which sandboxes know them.
            log.error("cannot read the names of images, %s: %s", self.directory / "names.json", error)
            return {}
        return {str(name): str(digest) for name, digest in names.items()}

    def _write_names(self, names: Mapping[str, str]) -> None:
        files.write_json(self.directory / "names.json", dict(sorted(names.items())))


def _pin_name(owner: Path) -> str:
    return hashlib.sha256(os.fsencode(owner)).hexdigest()[:32]


def _explain(error: ArchiveError | OSError, name: str) -> SandboxdError:
    match error:
        case ArchiveTooLarge():
            return TooLarge(str(error), kind="archive_too_large", image=name)
        case ArchiveError():
            return InvalidRequest(str(error), kind="bad_archive", image=name)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return Unprocessable(
                f'cannot make the image "{name}": no space is left on the disk of the image directory',
                kind="no_space",
                image=name,
            )
    return SandboxdError(f'cannot make the image "{name}": {error}', kind="image_failed", image=name)
