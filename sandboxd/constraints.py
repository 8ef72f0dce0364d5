"""What a sandbox may be described with: constrained types for everything that a stranger writes.

One place for the API's bodies and for the manifest of an imported snapshot, so that neither lets in what the other
refuses. Sizes are bytes unless a name says otherwise.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints

MAX_ENVIRONMENT: Final = 256
"""Variables in an environment, and entries of metadata."""
MAX_MAPPING_BYTES: Final = 256 * 1024
"""Of the names and values of an environment, or of metadata, together: the daemon keeps them all in its memory."""
DAY_MS: Final = 24 * 3600 * 1000


def without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL character")
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it contains a control character")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("it must be an absolute path, beginning with /")
    return without_nul(text)


def mapping_bytes(mapping: Mapping[str, str]) -> int:
    """The size of all names and values together, in UTF-8."""
    return sum(len(name.encode()) + len(value.encode()) for name, value in mapping.items())


def bounded_mapping(mapping: dict[str, str]) -> dict[str, str]:
    """The mapping, if it is no larger than is kept. Raises: ValueError."""
    size = mapping_bytes(mapping)
    if size > MAX_MAPPING_BYTES:
        raise ValueError(
            f"its names and values are {size} bytes together, the most is {MAX_MAPPING_BYTES}: put more into a file"
        )
    return mapping


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Hostname = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$")]
BackendName = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_printable)]
ImageName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
UserName = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9_.:$-]*$")]
Path = Annotated[str, StringConstraints(max_length=4095), AfterValidator(_absolute)]
OptionalPath = Annotated[
    str, StringConstraints(max_length=4095), AfterValidator(lambda text: text and _absolute(text))
]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
EnvValue = Annotated[str, StringConstraints(max_length=131_000), AfterValidator(without_nul)]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=MAX_ENVIRONMENT), AfterValidator(bounded_mapping)]
# Of a sandbox that exists: what its client gave, over what its image gives.
WholeEnv = Annotated[dict[EnvName, EnvValue], AfterValidator(bounded_mapping)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]
Metadata = Annotated[
    dict[MetadataKey, Annotated[str, StringConstraints(max_length=4096)]],
    Field(max_length=MAX_ENVIRONMENT),
    AfterValidator(bounded_mapping),
]
Description = Annotated[str, StringConstraints(max_length=4096)]
# One argument may have 128 KiB (MAX_ARG_STRLEN in the kernel, with its final NUL).
Argument = Annotated[str, StringConstraints(max_length=131_071), AfterValidator(without_nul)]

Lifetime = Annotated[float, Field(gt=0, le=100 * 366 * DAY_MS / 1000, allow_inf_nan=False)]
"""In seconds; what is beyond is no date any more."""

MemoryLimit = Annotated[int, Field(ge=4 * 1024 * 1024, le=2**50)]
SwapLimit = Annotated[int, Field(ge=0, le=2**50)]
ProcessLimit = Annotated[int, Field(ge=8, le=4_194_304)]
CpuLimit = Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)]
CpuWeight = Annotated[int, Field(ge=1, le=10_000)]
BandwidthLimit = Annotated[int, Field(ge=4096, le=2**50)]
DiskLimit = Annotated[int, Field(ge=1024 * 1024, le=2**50)]
