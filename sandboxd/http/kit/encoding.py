"""Bytes as JSON can carry them: base64, and text of which nothing is cut in the middle of a character."""

import binascii
import codecs
from typing import Final

from sandboxd.errors import InvalidRequest
from sandboxd.model import StreamName

_STANDARD_ALPHABET: Final = str.maketrans("-_", "+/")


def to_base64(data: bytes) -> str:
    """The standard alphabet, padded, on one line."""
    return binascii.b2a_base64(data, newline=False).decode()


def from_base64(text: str) -> bytes:
    """Of either alphabet, padded, with nothing else in it. Raises: ValueError."""
    return binascii.a2b_base64(text.translate(_STANDARD_ALPHABET), strict_mode=True)


def base64_field(text: str, name: str) -> bytes:
    """What a field of that name contains. Raises: InvalidRequest."""
    try:
        return from_base64(text)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise InvalidRequest(f"cannot decode {name}: {error}") from error


def text_decoders() -> dict[StreamName, codecs.IncrementalDecoder]:
    """One for each stream of a command: a character that is split between two reads waits for its rest.

    What is not UTF-8 becomes U+FFFD.
    """
    return {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in StreamName}
