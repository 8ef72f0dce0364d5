"""What people write on a command line, and how values are shown to them: sizes, durations, ages, assignments."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click

from sandboxd.printable import escaped

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_EXPONENTS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NUMBER = re.compile(r"\d+(\.\d+)?", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_size(text: str) -> int:
    """Bytes from "512M", "1.5GiB", "4096"; the units are powers of 1024. Raises: ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 512M, 1.5G, or a number of bytes")
    factor: int = 1024 ** _EXPONENTS[match[2].lower()]
    return round(Decimal(match[1]) * factor)


def parse_duration(text: str) -> int:
    """Milliseconds from "30s", "1h30m", "250ms", "2d"; a number alone is seconds. Raises: ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return _positive(float(text) * 1000, text)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration: write 30s, 5m, 1h30m, 250ms, or a number of seconds")
    return _positive(sum(float(number) * _MILLISECONDS[unit] for number, unit in parts), text)


def _positive(milliseconds: float, text: str) -> int:
    if milliseconds < 1:
        raise ValueError(f"{text!r} is too short: the shortest is 1ms")
    return round(milliseconds)


def parse_lifetime(text: str) -> int | None:
    """A duration, or None for "none": no end."""
    return None if text in ("none", "never") else parse_duration(text)


def parse_assignments(items: Iterable[str], *, inherit: Mapping[str, str] | None = None) -> dict[str, str]:
    """From KEY=VALUE; KEY alone takes its value from `inherit`, if given. Raises: ValueError."""
    values = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not key or (not separator and inherit is None):
            raise ValueError(f"{item!r} is not KEY=VALUE")
        if separator:
            values[key] = value
        elif inherit is not None and key in inherit:
            values[key] = inherit[key]
    return values


class Parsed(click.ParamType[Any]):
    """A click type made of a function that raises ValueError for what it cannot read."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


SIZE = Parsed("size", parse_size)
DURATION = Parsed("duration", parse_duration)


def environment_from(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, str]:
    """Callback of `--env`: NAME=VALUE, or NAME to pass on our own."""
    try:
        return parse_assignments(items, inherit=os.environ)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from error


def assignments_from(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, str]:
    """Callback of options that take KEY=VALUE."""
    try:
        return parse_assignments(items)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", ctx, param) from error


def show_size(size: float | None) -> str:
    if size is None:
        return "-"
    exponent = min(4, int(math.log(size, 1024))) if size >= 1024 else 0
    return f"{size / 1024**exponent:.1f} {'KMGT'[exponent - 1]}iB" if exponent else f"{size:.0f} B"


def show_seconds(seconds: float) -> str:
    """The two largest units that matter: "3d 4h", "5m 2s", "4.2s"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    rest = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def show_age(moment: datetime | None) -> str:
    """How long ago, or how long until."""
    return "-" if moment is None else show_seconds(abs((datetime.now(UTC) - moment).total_seconds()))


def show_time(moment: datetime | None) -> str:
    """In the reader's own time zone."""
    return "-" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def printable(text: object) -> str:
    """Text that came over the wire, safe for a terminal: control characters, escapes above all, made visible."""
    return escaped(str(text))
