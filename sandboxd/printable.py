"""Text of clients and of sandboxes, made fit for a log and for a terminal."""

import json

# More of a path, a header or a reason tells nobody more, and a log has room for other lines.
LINE_LIMIT = 1024


def printable(text: str, *, limit: int = LINE_LIMIT) -> str:
    """`text` on one line of at most about `limit` characters, in which nothing acts.

    Line ends, other control characters (C0 and C1), those that turn the direction of text around, and bytes that were
    not UTF-8 are shown as escapes such as `\\n` and `\\x1b`. What is longer is cut, which an ellipsis shows.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = escaped(shown)
        if len(shown) > limit:
            return f"{shown[:limit]}…"
    return shown if len(text) <= limit else f"{shown}…"


def printable_lines(text: str, *, indent: str = "", most: int = 200) -> str:
    """Each line of `text` made printable; the last `most` of them, since an exception says at its end what it is."""
    lines = text.split("\n")
    return "\n".join(indent + printable(line) for line in lines[-most:])


def escaped(text: str) -> str:
    """`text` in which nothing acts, however long it is; escapes as for `printable`."""
    return "".join(map(_escape, text))


def escaped_json(document: str) -> str:
    """A JSON document whose strings act on no terminal, and which means the same: `\\uXXXX` for what would act.

    Its line ends are its layout: those inside of strings are escapes already.
    """
    if document.isprintable():
        return document
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in document
    )


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
