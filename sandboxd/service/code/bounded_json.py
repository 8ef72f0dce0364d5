"""Reads JSON that a stranger wrote, in bounded memory and without keeping anybody waiting.

json.loads makes whatever it is told to make, nine million empty objects of a line of 27 MB, and holds Python's global
lock until it has: in a thread it would stop the event loop for as long as outside of one. Here values are counted as
they are made, long strings are decoded piece by piece, and the lock is let go of again and again, so this belongs in
a thread. It is some twenty times as slow, and meant for what is too long for json.loads.
"""

import codecs
import json
import math
import re
import time
from typing import Any, Final

MAX_DIGITS: Final = 4000
"""Of a whole number; a longer one is read as null. Python itself writes none of more than 4300."""
_WINDOW: Final = 64 * 1024
"""Bytes of a string that are decoded at once."""
_STEPS_AT_A_TIME: Final = 100
"""Tokens and pieces of strings that are read before others have a turn: a millisecond or so."""
_LITERALS: Final = {
    b"true": True,
    b"false": False,
    b"null": None,
    b"NaN": None,
    b"Infinity": None,
    b"-Infinity": None,
}
_TOKEN: Final = re.compile(
    rb"[ \t\r\n]*+(?:"
    rb'(?P<mark>[\[\]{},:"])'
    rb"|(?P<whole>-?\d{1,20000}+)(?P<rest>(?:\.\d{1,5000}+)?+(?:[eE][+-]?\d{1,20}+)?+)"
    rb"|(?P<literal>true|false|null|NaN|-?Infinity)"
    rb")"
)
_UNITS: Final = re.compile(rb'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+')
"""As much of a string as fits: an escape that the end of the window cuts is left for the next."""
_HIGH_SURROGATE: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_LOW_SURROGATE: Final = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class TooMuchJson(Exception):
    """It has more values than are taken, or is nested deeper."""


def read_json(data: bytes, *, values: int, depth: int) -> Any:
    """The value that `data` is, of at most `values` values in all, keys included, and `depth` levels of nesting.

    What cannot be written again is no part of it: numbers that are not finite become null, and halves of surrogate
    pairs question marks. Raises: ValueError for what is no JSON, TooMuchJson.
    """
    reader = _Reader(data, values)
    value = reader.value(depth)
    reader.end()
    return value


class _Reader:
    def __init__(self, data: bytes, values: int) -> None:
        self._data = data
        self._at = 0
        self._values = values
        self._steps = 0

    def end(self) -> None:
        if self._data[self._at :].strip(b" \t\r\n"):
            raise ValueError(f"something follows the value at byte {self._at}")

    def value(self, depth: int) -> Any:
        return self._value(self._token(), depth)

    def _value(self, token: re.Match[bytes], depth: int) -> Any:
        self._values -= 1
        if self._values < 0 or depth < 0:
            raise TooMuchJson(f"it is too much, or nested too deep, at byte {self._at}")
        match token["mark"]:
            case b'"':
                return self._string()
            case b"[":
                return self._array(depth - 1)
            case b"{":
                return self._object(depth - 1)
            case None:
                return _scalar(token)
        raise self._unexpected(token)

    def _array(self, depth: int) -> list[Any]:
        found: list[Any] = []
        token = self._token()
        if token["mark"] == b"]":
            return found
        while True:
            found.append(self._value(token, depth))
            token = self._token()
            if token["mark"] == b"]":
                return found
            if token["mark"] != b",":
                raise self._unexpected(token)
            token = self._token()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        token = self._token()
        if token["mark"] == b"}":
            return found
        while True:
            if token["mark"] != b'"':
                raise self._unexpected(token)
            self._values -= 1
            key = self._string()
            token = self._token()
            if token["mark"] != b":":
                raise self._unexpected(token)
            found[key] = self.value(depth)
            token = self._token()
            if token["mark"] == b"}":
                return found
            if token["mark"] != b",":
                raise self._unexpected(token)
            token = self._token()

    def _token(self) -> re.Match[bytes]:
        self._let_go()
        token = _TOKEN.match(self._data, self._at)
        if token is None:
            raise ValueError(f"there is no value at byte {self._at}")
        self._at = token.end()
        return token

    def _string(self) -> str:
        """What stands between the quote before here and the next one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = []
        while self._data[self._at : self._at + 1] != b'"':
            pieces.append(_unescaped(decoder.decode(self._units())))
        self._at += 1
        pieces.append(decoder.decode(b"", final=True))
        return "".join(pieces)

    def _units(self) -> bytes:
        """The next piece of a string: whole escapes, both halves of a pair of them."""
        plain = self._data[self._at : self._at + _WINDOW].partition(b'"')[0]
        if plain and b"\\" not in plain:
            self._at += len(plain)
            self._let_go()
            return plain
        found = _UNITS.match(self._data, self._at, self._at + _WINDOW)
        if found is None or not found.group():
            raise ValueError(f"a string does not end, or has a bad escape, at byte {self._at}")
        start, self._at = self._at, found.end()
        self._let_go()
        if _HIGH_SURROGATE.search(self._data, max(start, self._at - 6), self._at) and (
            low := _LOW_SURROGATE.match(self._data, self._at)
        ):
            self._at = low.end()
        return self._data[start : self._at]

    def _let_go(self) -> None:
        """Of Python's global lock, now and then, for whoever waits for it."""
        self._steps += 1
        if self._steps % _STEPS_AT_A_TIME == 0:
            time.sleep(0)

    def _unexpected(self, token: re.Match[bytes]) -> ValueError:
        return ValueError(f"{token.group().strip()[:20]!r} is out of place before byte {self._at}")


def _scalar(token: re.Match[bytes]) -> Any:
    whole, rest = token["whole"], token["rest"]
    if whole is None:
        return _LITERALS.get(token["literal"])
    if rest:
        number = float(whole + rest)
        return number if math.isfinite(number) else None
    return int(whole) if len(whole) <= MAX_DIGITS else None


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    unescaped = str(json.loads(f'"{text}"', strict=False))
    return unescaped.encode("utf-8", "replace").decode() if _SURROGATE.search(unescaped) else unescaped
