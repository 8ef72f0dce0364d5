"""The keys that leave a terminal without ending it, found in what is typed. Pure."""

import re
from dataclasses import dataclass

DEFAULT_KEYS = "ctrl-p,ctrl-q"
_CONTROL = re.compile(r"ctrl-([a-z@\[\\\]^_])", re.IGNORECASE)


def parse_keys(text: str) -> bytes:
    """Keys as `docker attach` writes them: "ctrl-p,ctrl-q", "ctrl-]", "a,b"; "" is none. Raises: ValueError."""
    return b"".join(map(_parse_key, text.split(","))) if text else b""


def _parse_key(key: str) -> bytes:
    if (control := _CONTROL.fullmatch(key)) is not None:
        return bytes([ord(control[1].upper()) & 0x1F])
    if len(key) == 1 and key.isascii() and key.isprintable():
        return key.encode()
    raise ValueError(f"{key!r} is not a key: write a character, or ctrl- and a letter")


@dataclass(slots=True)
class DetachKeys:
    """Watches what is typed for the keys. What may be their beginning waits for the next key."""

    keys: bytes
    _matched: int = 0

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What goes on to the terminal, and whether the keys were typed; what was typed after them is dropped."""
        if not self.keys:
            return typed, False
        passed = bytearray()
        for byte in typed:
            if self._matched and byte != self.keys[self._matched]:
                passed += self.keys[: self._matched]
                self._matched = 0
            if byte != self.keys[self._matched]:
                passed.append(byte)
                continue
            self._matched += 1
            if self._matched == len(self.keys):
                self._matched = 0
                return bytes(passed), True
        return bytes(passed), False
