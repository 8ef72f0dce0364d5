"""Recipes: how an image is made, as a directory with recipe.toml and, for Debian, a script `setup`."""

import hashlib
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sandboxd.config import find_asset
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.service.images.store import ImageConfig


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RecipeConfig(_Strict):
    """Defaults that sandboxes get from the image."""

    user: str = ""
    workdir: str = ""
    env: dict[str, str] = Field(default_factory=dict)

    def to_image_config(self) -> ImageConfig:
        return ImageConfig(user=self.user, workdir=self.workdir, env=self.env)


class DebianRecipe(_Strict):
    """A root file system made of Debian or Ubuntu packages."""

    kind: Literal["debian"]
    suite: str
    """release name, or "host" for the one that this machine runs"""
    variant: Literal["extract", "essential", "apt", "minbase", "standard"] = "minbase"
    """what comes beside `packages` (mmdebstrap(1)); with "extract", nothing, and no package's scripts are run"""
    packages: list[str]
    exclude: list[str] = Field(default_factory=list)
    """patterns of paths that packages may not install (dpkg's path-exclude)"""
    include: list[str] = Field(default_factory=list)
    """exceptions from these"""
    config: RecipeConfig = RecipeConfig()


class ExtensionRecipe(_Strict):
    """Another Debian recipe and more: its packages and these, its script `setup` and then this one's."""

    kind: Literal["extension"]
    extends: str
    """name of the other recipe, or its path"""
    packages: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    include: list[str] = Field(default_factory=list)
    config: RecipeConfig = RecipeConfig()

    def onto(self, other: DebianRecipe) -> DebianRecipe:
        """Both in one. What this one says about users and environment comes before what the other says."""
        config = RecipeConfig(
            user=self.config.user or other.config.user,
            workdir=self.config.workdir or other.config.workdir,
            env={**other.config.env, **self.config.env},
        )
        return DebianRecipe(
            kind="debian",
            suite=other.suite,
            variant=other.variant,
            packages=[*other.packages, *self.packages],
            exclude=[*other.exclude, *self.exclude],
            include=[*other.include, *self.include],
            config=config,
        )


class HostRecipe(_Strict):
    """This machine's own system, shown read-only under a small root of its own."""

    kind: Literal["host"]
    binds: list[str]
    """directories shown as they are"""
    copy_: list[str] = Field(alias="copy", default_factory=list)
    """patterns of files copied, where everybody may read them"""
    hidden: list[str] = Field(default_factory=list)
    """directories below the binds that are covered with an empty one"""
    config: RecipeConfig = RecipeConfig()


AnyRecipe = DebianRecipe | ExtensionRecipe | HostRecipe
_ADAPTER: Final[TypeAdapter[AnyRecipe]] = TypeAdapter(Annotated[AnyRecipe, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class CompleteRecipe:
    """A recipe with all that it extends."""

    recipe: DebianRecipe | HostRecipe
    directories: tuple[Path, ...]
    """where its files are, the one that extends nothing first"""


def recipe_directories() -> tuple[Path, ...]:
    """Where recipes are looked for by name: the person's own, then those that come with sandboxd."""
    own = os.environ.get("SANDBOXD_RECIPES")
    return (*((Path(own),) if own else ()), find_asset("rootfs/recipes"))


def find_recipe(name: str) -> Path:
    """The directory of a recipe, given by name or by path. Raises NotFound."""
    candidates = [Path(name)] if "/" in name else [directory / name for directory in recipe_directories()]
    for candidate in candidates:
        if (candidate / "recipe.toml").is_file():
            return candidate
    known = {path.parent.name for directory in recipe_directories() for path in directory.glob("*/recipe.toml")}
    raise NotFound(
        f'cannot find a recipe "{name[:140]}": known are {", ".join(sorted(known)) or "none"}; '
        "or give the path of a directory with a recipe.toml",
        recipe=name[:140],
    )


def complete_recipe(directory: Path) -> CompleteRecipe:
    """The recipe, extended ones followed to their end. Raises: InvalidRequest, NotFound."""
    directories = [directory]
    extensions: list[ExtensionRecipe] = []
    while isinstance(recipe := load_recipe(directories[0]), ExtensionRecipe):
        extensions.append(recipe)
        extended = find_recipe(recipe.extends)
        if extended in directories:
            raise InvalidRequest(f"cannot use the recipe {directory}: it extends itself", kind="bad_recipe")
        directories.insert(0, extended)
    for extension in reversed(extensions):
        if not isinstance(recipe, DebianRecipe):
            raise InvalidRequest(
                f"cannot use the recipe {directory}: only recipes of Debian packages can be extended",
                kind="bad_recipe",
            )
        recipe = extension.onto(recipe)
    return CompleteRecipe(recipe, tuple(directories))


def load_recipe(directory: Path) -> AnyRecipe:
    """Raises InvalidRequest with the place in the file for anything that is wrong in it."""
    path = directory / "recipe.toml"
    try:
        return _ADAPTER.validate_python(tomllib.loads(path.read_text()))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        raise InvalidRequest(f"cannot use the recipe {path}: {problems}", kind="bad_recipe") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"cannot read the recipe {path}: {error}", kind="bad_recipe") from error


def recipe_key(directories: Sequence[Path], *facts: str) -> str:
    """A digest of the recipe's files and of whatever else decides what comes out of it."""
    digest = hashlib.sha256()
    for directory in directories:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            if path.parent.name == "__pycache__":  # an installation leaves it beside what it was compiled of
                continue
            contents = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(directory)}\0{contents}\n".encode())
    for fact in facts:
        digest.update(f"{fact}\0".encode())
    return digest.hexdigest()
