"""python -m tests.soak: many clients for a long time, a daemon killed again and again, and the census at the end.

Fails, and says why, as soon as an answer contradicts a client's model, when the witnesses (processes, mounts,
cgroups, files) disagree with the API at one of the audits, or when something is left at the end.
"""

import argparse
import random
import sys
import time

import psutil

from sandboxd.config import default_image_dir
from tests.conftest import daemon_as_root, daemon_as_user
from tests.soak.worker import Crew, Worker
from tests.support import census, ordinary_user, witnesses
from tests.support.daemon import Daemon, running

AUDIT_EVERY = 60.0
DISTURB_EVERY = (5.0, 40.0)


def main() -> int:
    options = _options()
    print(f"{options.minutes:g} minutes, {options.workers} workers, --seed {options.seed}", flush=True)
    before = census.take()
    with running(_daemon(as_user=options.as_user)) as daemon:
        crew = Crew([Worker(number, daemon, options.seed) for number in range(options.workers)])
        crew.start()
        try:
            found = _disturb(daemon, crew, options.minutes * 60, random.Random(options.seed))
        finally:
            crew.finish()
        found += crew.failures or _left(daemon)
    found += [f"left behind: {kind}: {what}" for kind, what in census.settled_growth(before).items()]
    _report(crew, found)
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what the clients choose to do")
    parser.add_argument("--as-user", action="store_true", help="the daemon of an ordinary user")
    return parser.parse_args()


def _daemon(*, as_user: bool) -> Daemon:
    if as_user:
        ordinary_user.images(default_image_dir())
        return daemon_as_user(ordinary_user.home() / "images")
    return daemon_as_root(default_image_dir())


def _disturb(daemon: Daemon, crew: Crew, seconds: float, chance: random.Random) -> list[str]:
    """Kill, restart and audit in turn until the time is over or something is found."""
    end, audit = time.monotonic() + seconds, time.monotonic() + AUDIT_EVERY
    while time.monotonic() < end and not crew.failures:
        time.sleep(min(chance.uniform(*DISTURB_EVERY), max(0.0, end - time.monotonic())))
        if chance.random() < 0.8:
            daemon.kill()
        else:
            daemon.stop()
        daemon.start()
        if time.monotonic() > audit:
            audit = time.monotonic() + AUDIT_EVERY
            if found := _audit(daemon, crew):
                return found
    return []


def _audit(daemon: Daemon, crew: Crew) -> list[str]:
    crew.close_gate()
    found = [f"audit: {name}: {what}" for name, what in witnesses.disagreement(daemon).items()]
    process = psutil.Process(daemon.pid)
    facts = f"{len(daemon.views())} sandboxes, {process.memory_info().rss >> 20} MiB, {process.num_fds()} descriptors"
    print(f"{time.strftime('%H:%M:%S')} {facts}, {sum(_done(crew).values())} operations", flush=True)
    crew.open_gate()
    return found


def _left(daemon: Daemon) -> list[str]:
    daemon.delete_all()
    for snapshot in daemon.call("GET", "/v1/snapshots?limit=1000").json["snapshots"]:
        assert daemon.call("DELETE", f"/v1/snapshots/{snapshot['id']}").status == 200
    return [f"at the end: {name}: {what}" for name, what in witnesses.disagreement(daemon).items()]


def _done(crew: Crew) -> dict[str, int]:
    total: dict[str, int] = {}
    for worker in crew.workers:
        for name, count in worker.done.items():
            total[name] = total.get(name, 0) + count
    return total


def _report(crew: Crew, found: list[str]) -> None:
    for name, count in sorted(_done(crew).items()):
        print(f"{count:8} {name}")
    print("\n".join(found) if found else "everything was as it must be, and nothing is left")


if __name__ == "__main__":
    sys.exit(main())
