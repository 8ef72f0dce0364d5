"""What the daemon and the gateway say to each other, over a SOCK_SEQPACKET socket: one JSON object a message.

    {"seq": 1, "op": "site", "site": {…}}                            what the operator has settled, before all else
    {"seq": 2, "op": "add", "id": "…", "policy": {…}}   + sockets    from now on this sandbox's traffic is ours
    {"seq": 3, "op": "policy", "id": "…", "policy": {…}}             → {"cut": connections that it no longer allows}
    {"seq": 4, "op": "remove", "id": "…"}
    {"seq": 5, "op": "list"}                                         → {"sandboxes": [ids]}
    {"seq": 6, "op": "stats"}                                        → {"sandboxes": {id: figures}}
    {"seq": 7, "op": "recent", "id": "…"}                            → {"events": [the latest, oldest first]}
    {"seq": 8, "op": "policies", "id": "…"}                          → {"policy": {…}}

Answers are {"seq": N, "result": {…}} or {"seq": N, "error": "what is wrong"}. Unasked come {"event": {…}}, and
{"lost": N} for events that were not taken in time.

The sockets of `add` travel beside it (SCM_RIGHTS) in the order of SOCKETS; raw6 is missing where there is no IPv6.
"""

import array
import json
import os
import socket
from typing import Any

MAX_MESSAGE = 160 * 1024
SOCKETS = ("tcp", "udp", "raw4", "raw6")
MAX_SOCKETS = len(SOCKETS)


class ControlError(Exception):
    """A command that cannot be done. Its text says why."""


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, Any]:
    """Raises: ControlError."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"it is no JSON: {error}") from error
    if not isinstance(message, dict):
        raise ControlError("it is no JSON object")
    return message


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message; they are the receiver's now."""
    received = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
    return list(received)


def descriptors_beside(descriptors: list[int]) -> list[tuple[int, int, "array.array[int]"]]:
    """Ancillary data for sendmsg() that carries these."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
