"""Names that nobody may give: in some API they are words of a path where a name could stand."""

from sandboxd.errors import Unprocessable

RESERVED = frozenset({"create", "delete-all", "list", "router"})


def check_not_reserved(name: str | None) -> None:
    """Raises: Unprocessable."""
    if name in RESERVED:
        raise Unprocessable(f"cannot use the name {name!r}: it is a word of an API's paths", kind="reserved_name")
