"""How long a change in a directory takes to reach a client: the names of what is made are the times at which it was.

All of this machine shares one clock, so the time inside and the time here compare.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import watchfiles

from tests.bench.measure import TrialFailed
from tests.bench.sandboxd import Sandboxd

PLACE = "/home/user/watched"
# Makes a file every 20 ms, named after the moment just before.
MAKER = """import os, time
for _ in range({count}):
    os.close(os.open(str(time.time_ns()), os.O_CREAT))
    time.sleep(0.02)
"""
WARM_UPS = 5


def of_sandboxd(system: Sandboxd, *, source: str, count: int) -> list[float]:
    """Milliseconds from a new file in a sandbox to the event in the client's hands, over a stream."""
    sandbox = system.create()
    path = f"/v1/sandboxes/{sandbox}"
    system.client.request("POST", f"{path}/shell", {"cmd": f"mkdir {PLACE}"})
    watch = system.client.request("POST", f"{path}/fs/watch", {"path": PLACE, "source": source})
    maker = {"argv": ["python3", "-c", MAKER.format(count=count + WARM_UPS)], "cwd": PLACE}
    with _events(system, f"{path}/fs/watch/{watch['watch_id']}/stream") as names:
        system.client.request("POST", f"{path}/commands", maker)
        delays = [_since(name) for name in islice(names, count + WARM_UPS)]
    system.client.request("DELETE", path)
    return delays[WARM_UPS:]


def of_watchfiles(*, count: int) -> list[float]:
    """The same of watchfiles by itself, in a directory of the host, looking as often as it can be asked to."""
    with tempfile.TemporaryDirectory() as place:
        changes = watchfiles.watch(place, step=1, debounce=1, rust_timeout=100, yield_on_timeout=True)
        next(changes)  # it watches from here on
        command = [sys.executable, "-c", MAKER.format(count=count + WARM_UPS)]
        delays: list[float] = []
        with subprocess.Popen(command, cwd=place) as process:
            while len(delays) < count + WARM_UPS and (process.poll() is None or delays):
                delays += [_since(Path(name).name) for _, name in next(changes)]
        changes.close()
    return delays[WARM_UPS:]


def _since(name: str) -> float:
    return (time.time_ns() - int(name)) / 1e6


@contextlib.contextmanager
def _events(system: Sandboxd, target: str) -> Iterator[Iterator[str]]:
    """The paths that a stream tells of."""
    with contextlib.closing(system.daemon.connect()) as connection:
        connection.request("GET", target)
        response = connection.getresponse()
        if response.status != 200:
            raise TrialFailed(f"GET {target}: {response.status} {response.read(300)!r}")
        yield (json.loads(line[5:])["path"] for line in response if line.startswith(b"data:"))
