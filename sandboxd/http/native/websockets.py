"""What the native API's websockets have in common: how they begin."""

from typing import TypeVar

from pydantic import BaseModel

from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.validation import validate_message
from sandboxd.http.kit.websockets import WebsocketSession

M = TypeVar("M", bound=BaseModel)


async def first_message(call: Call, session: WebsocketSession, kind: type[M]) -> M:
    """What the client begins with. It may have taken its time, so what the path names is looked at again.

    Raises: InvalidRequest, Unprocessable, NotFound.
    """
    async for message in session:
        first = validate_message(kind, message)
        call.check_again()
        return first
    raise InvalidRequest("cannot begin: the client left before it said what it wants")
