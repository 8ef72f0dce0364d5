"""Snapshots, clones and restores by size and by volume, beside `cp -a` of the same files on the same disk."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.measure import Figure, TrialFailed
from tests.bench.rawhttp import RawClient
from tests.support.daemon import Daemon

VOLUMES = ("ext4", "btrfs pool", "xfs pool")
"""ext4: whatever the state directory lies on"""
TIMES = 3
MIB = 1 << 20
SIZES = {
    "10 MB": "head -c 10000000 /dev/urandom > ~/data",
    "100 MB": "head -c 100000000 /dev/urandom > ~/data",
    "50k files": "python3 -c 'import os\nfor d in range(500):\n os.mkdir(str(d))\n"
    ' for n in range(100): open(f"{d}/{n}","w").write("x"*100)\'',
    "1 GiB": "head -c 1073741824 /dev/urandom > ~/data",
}


def figures(scratch: Path, image_dir: Path, *, largest: bool) -> list[Figure]:
    """For each volume a daemon of its own. `largest`: with the last of SIZES, too."""
    sizes = list(SIZES) if largest else list(SIZES)[:-1]
    found = []
    for volume in VOLUMES:
        try:
            with _daemon(scratch, image_dir, volume) as daemon:
                for size in sizes:
                    found += _of_size(daemon, volume, size)
        except AssertionError as failure:
            figure = Figure(row="snapshot", system=volume, unit="ms")
            figure.failures.append(str(failure)[:200])
            found.append(figure)
    return found


@contextmanager
def _daemon(scratch: Path, image_dir: Path, volume: str) -> Iterator[Daemon]:
    daemon = Daemon(scratch / "copies", image_dir, options=("--log-level", "warning"))
    daemon.root.mkdir()
    try:
        if volume != VOLUMES[0]:
            arguments = ("storage", "init", "--size", "8G", "--fs", volume.split()[0])
            command, environment = daemon.command(*arguments, "--state-dir", str(daemon.state))
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        yield daemon.start()
    finally:
        daemon.sweep()


def _of_size(daemon: Daemon, volume: str, size: str) -> list[Figure]:
    client = RawClient(daemon.socket)
    sandbox = client.request("POST", "/v1/sandboxes", {})["id"]
    path = f"/v1/sandboxes/{sandbox}"
    # Written out beforehand: what is measured is the copy, not the disk catching up.
    _shell(client, path, f"cd && {SIZES[size]}; sync")
    rows = {what: Figure(row=f"{what} {size}", system=volume, unit="ms") for what in ("snapshot", "clone", "restore")}
    ready = Figure(row=f"clone to command {size}", system=volume, unit="ms", note="from the clone's answer on")
    try:
        for _ in range(TIMES):
            snapshot = _timed(rows["snapshot"], client, f"{path}/snapshot", {})
            clones = _timed(rows["clone"], client, f"{path}/clone", {"count": 1})["sandboxes"]
            begun = time.perf_counter()
            _shell(client, f"/v1/sandboxes/{clones[0]['id']}", "true")
            ready.values.append((time.perf_counter() - begun) * 1000)
            _timed(rows["restore"], client, f"{path}/restore", {"snapshot": snapshot["id"]})
            client.request("DELETE", f"/v1/sandboxes/{clones[0]['id']}")
            client.request("DELETE", f"/v1/snapshots/{snapshot['id']}")
        copied = _copied(daemon, sandbox, snapshot, volume, size)
    finally:
        daemon.delete_all()
        client.close()
    return [*rows.values(), ready, copied]


def _timed(figure: Figure, client: RawClient, path: str, body: Any) -> Any:
    begun = time.perf_counter()
    answer = client.request("POST", path, body)
    figure.values.append((time.perf_counter() - begun) * 1000)
    return answer


def _copied(daemon: Daemon, sandbox: str, snapshot: Any, volume: str, size: str) -> Figure:
    """`cp -a` of what the sandbox stands on, beside it, in the daemon's own view of the disk."""
    figure = Figure(
        row=f"cp -a {size}",
        system=volume,
        unit="ms",
        note="the same files on the same disk, blocks shared where it can",
    )
    trees = [path / "upper/home" for path in (daemon.volume / "layers").iterdir() if (path / "upper/home").exists()]
    if not trees:
        raise TrialFailed(f"nothing to copy of {sandbox} and {snapshot['id']}")
    target = daemon.volume / "copied"
    for _ in range(2):
        begun = time.perf_counter()
        subprocess.run(["cp", "-a", trees[0], target], check=True)
        figure.values.append((time.perf_counter() - begun) * 1000)
        shutil.rmtree(target)
    return figure


def _shell(client: RawClient, path: str, cmd: str) -> None:
    done = client.request("POST", f"{path}/shell", {"cmd": cmd, "timeout_ms": 120_000})
    if done["exit_code"]:
        raise TrialFailed(done["stderr"][-200:])
