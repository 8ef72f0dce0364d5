"""What a bound on all sandboxes' memory or disk, and a key's share of it, has to hold: 429, 503, and room again."""

import contextlib
import http.client
import json
from typing import Any

from tests.support.daemon import Answer, Daemon

MIB = 1 << 20
SANDBOXES = "/v1/sandboxes"


def listen_with_bound(daemon: Daemon, resource: str, bound: int) -> int:
    """Have a daemon that is not started yet listen on TCP too and bound all sandboxes together; the port."""
    port = daemon.reserve_port()
    config = daemon.root / "sandboxd.toml"
    config.write_text(f"[sandbox]\nmax_{resource} = {bound}\n")
    listeners = ("--listen", f"tcp:127.0.0.1:{port}", "--listen", f"unix:{daemon.socket}")
    daemon.options = ("--config", str(config), *listeners)
    return port


def a_bound_is_kept(daemon: Daemon, port: int, resource: str, size: int) -> None:
    """For a daemon that bounds all to 3 × `size`: one key may have two of them, and the rest is everybody's."""
    field = f"{resource}_bytes"
    terms = {"name": "holder", f"max_{field}": 2 * size, "max_sandboxes": 2}
    key = daemon.call("POST", "/v1/keys", terms).json["key"]

    def create(**body: Any) -> Answer:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("POST", SANDBOXES, json.dumps(body), {"authorization": f"Bearer {key}"})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    first = create()
    assert (first.status, first.json["limits"][field]) == (201, size)  # its equal share
    beyond = create(limits={field: 2 * size})
    assert (beyond.status, beyond.json["kind"]) == (429, "quota_exceeded")
    assert int(beyond.headers["retry-after"]) > 0
    assert daemon.call("POST", SANDBOXES, {}).json["kind"] == "limit_needed"
    other = daemon.create(limits={field: 2 * size})
    full = create()
    assert (full.status, full.json["kind"]) == (503, "at_capacity")
    daemon.delete(other)
    assert create().status == 201
