"""sandbox-init's refusals of file operations in the service's words: a kind for each reason a client may act on."""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from sandboxd.errors import Conflict, Forbidden, NotFound, RequestError, Unavailable, Unprocessable
from sandboxd.isolation.init.client import InitError
from sandboxd.service.commands.attached import init_errors
from sandboxd.service.sandboxes.entry import Entry

_BY_ERRNO: Final[Mapping[int, tuple[type[RequestError], str]]] = MappingProxyType(
    {
        errno.ENOENT: (NotFound, "not_found"),
        errno.EACCES: (Forbidden, "permission_denied"),
        errno.EPERM: (Forbidden, "permission_denied"),
        errno.EROFS: (Forbidden, "read_only"),
        errno.EEXIST: (Conflict, "exists"),
        errno.ENOTEMPTY: (Conflict, "not_empty"),
        errno.EBUSY: (Conflict, "busy"),
        errno.ETXTBSY: (Conflict, "busy"),
        errno.ENOTDIR: (Unprocessable, "not_a_directory"),
        errno.EISDIR: (Unprocessable, "is_a_directory"),
        errno.ELOOP: (Unprocessable, "too_many_links"),
        errno.ENAMETOOLONG: (Unprocessable, "name_too_long"),
        errno.ENOSPC: (Unprocessable, "no_space"),
        errno.EDQUOT: (Unprocessable, "no_space"),
        errno.EXDEV: (Unprocessable, "other_file_system"),
        errno.EFBIG: (Unprocessable, "too_large"),
    }
)

_BY_KIND: Final[Mapping[str, tuple[type[RequestError], str]]] = MappingProxyType(
    {
        "not_regular": (Unprocessable, "not_regular"),
        "busy": (Conflict, "busy"),
        "resource": (Unavailable, "busy"),
    }
)


@contextlib.contextmanager
def file_errors(entry: Entry) -> Iterator[None]:
    """Raises: RequestErrors by what was the matter, SandboxLost."""
    with init_errors(entry):
        try:
            yield
        except InitError as error:
            raise _refusal(error) from error


def _refusal(error: InitError) -> Exception:
    if error.offset is not None:
        return Conflict(error.message, kind="offset_mismatch", offset=error.offset)
    found = _BY_KIND.get(error.kind)
    if error.kind in {"file", "owner"}:
        found = _BY_ERRNO.get(error.errno)
    if found is None:
        return error
    kind, word = found
    return kind(error.message, kind=word, errno=error.errno)
