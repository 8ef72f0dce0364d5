"""Lists in pages, bounded in entries as the client likes and in bytes: no answer is as large as all that there is."""

import bisect
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

PAGE_BYTES: Final = 4 * 1024 * 1024
"""After so many bytes a page ends, however few entries it has; it has one at least."""


def page_of(
    items: Sequence[T], *, key: Callable[[T], str], size: Callable[[T], int], cursor: str, limit: int
) -> tuple[list[T], str | None]:
    """At most `limit` of the items behind `cursor`, and the cursor to read on with; None at the end.

    `items` are sorted by `key`, which stays valid as a cursor when its item is gone; `size` is about what one takes
    as JSON, in bytes.
    """
    first = bisect.bisect_right(items, cursor, key=key)
    page: list[T] = []
    room = PAGE_BYTES
    for item in items[first : first + limit]:
        room -= size(item)
        if page and room < 0:
            break
        page.append(item)
    more = first + len(page) < len(items)
    return page, key(page[-1]) if page and more else None
