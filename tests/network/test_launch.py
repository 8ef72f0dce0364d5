"""The network of real sandboxes: made by the fork server where a bwrap waits, and connected by the gateway."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxd.config import find_asset
from sandboxd.errors import Unprocessable
from sandboxd.isolation.bwrap import seccomp
from sandboxd.isolation.bwrap.backend import BwrapBackend
from sandboxd.isolation.init.client import InitClient, SpawnRequest
from sandboxd.isolation.init.messages import Exited
from sandboxd.isolation.init.wire import Output
from sandboxd.isolation.plan import IdRange, Slot
from sandboxd.kernel import sandbox_network
from sandboxd.kernel.cgroups import NO_CGROUP
from sandboxd.service.images.store import ImageStore
from sandboxd.service.storage.disk import Disk
from sandboxd.service.storage.volume import PlainVolume
from tests.network import internet as net
from tests.network.world import World
from tests.support import ordinary_user
from tests.support.plans import plan_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be in the namespaces of others")

# Of no daemon, and of no other test: see tests/isolation/test_contract.py.
RANGE = 0x6E000000
LIMIT = 60.0


@pytest.fixture
async def backend() -> AsyncIterator[BwrapBackend]:
    profile = seccomp.compile_profile(find_asset("seccomp/default.json"))
    made = BwrapBackend(bwrap=Path(shutil.which("bwrap") or "bwrap"), profile=profile, max_processes=1000)
    yield made
    made.close()


async def said_by(init: InitClient, command: str) -> str:
    collected = b""
    request = SpawnRequest(argv=["/bin/sh", "-c", f"{command} 2>&1"])
    async with init.spawn_attached(request, lossless=True) as attachment:
        while not isinstance(event := await attachment.receive(), Exited):
            if isinstance(event, Output):
                collected += event.data
    return collected.decode()


async def test_a_sandbox_reaches_what_its_policy_allows(
    backend: BwrapBackend, world: World, image_dir: Path, tmp_path: Path
) -> None:
    disk = Disk(volume=PlainVolume(tmp_path / "state", userxattr=False), runtime_dir=tmp_path / "run", root_id=0)
    name = "s" + secrets.token_hex(10)
    paths = disk.make(name)
    slot = Slot(
        sandbox=name,
        backend="bwrap",
        ids=IdRange(start=RANGE, idmapped=True),
        runtime=paths.runtime,
        cgroup=NO_CGROUP,
        boot_id="00000000-1111-2222-3333-444444444444",
        init=find_asset("rootfs/init/build/sandbox-init"),
    )
    with trio.fail_after(LIMIT):
        kind = await backend.find_network()
        assert kind in sandbox_network.KINDS
        await backend.prepare(slot)
        sockets = await backend.make_network(name, kind=kind, ipv6=True)
        policy = {"mode": "restricted", "allow": ["good.com"]}
        world.control.call("add", [each.fileno() for each in sockets], id=name, policy=policy)
        for each in sockets:
            each.close()
        plan = plan_of(slot, ImageStore(image_dir, id_base=0).get("base"), writable=paths.writable)
        machine = await backend.launch(plan)
        try:
            curl = "curl -sS --max-time 20 --connect-to ::93.184.216.34:"
            assert (
                await said_by(machine.init, f"{curl} http://good.com/") == f"hello from {net.GOOD} to good.com for /"
            )
            assert "no rule allows it" in await said_by(machine.init, f"{curl} http://evil.com/")
            assert await said_by(machine.init, "cat /sys/class/net/eth0/operstate /proc/net/if_inet6") != ""
        finally:
            await machine.destroy()
            world.control.call("remove", id=name)


async def test_what_is_missing_is_told_by_name(backend: BwrapBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork server without CAP_NET_ADMIN stands for a kernel that lacks a part: the part that failed is told."""
    python = Path(sys.executable)
    wrapper = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", str(python)]
    script = f'#!/bin/sh\nexec {" ".join(wrapper)} "$@"\n'
    program = Path(os.environ.get("TMPDIR", "/tmp")) / f"python-{secrets.token_hex(4)}"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    try:
        with (
            trio.fail_after(LIMIT),
            pytest.raises(Unprocessable, match=r"^cannot give sandboxes a network .*interface.*not permitted"),
        ):
            await backend.find_network()
    finally:
        program.unlink()


def test_an_ordinary_users_fork_server_makes_networks_too() -> None:
    script = Path(__file__).with_name("rootless_launch.py")
    command = [*ordinary_user.prefix(), sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ordinary_user.CHECKOUT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert (ended.stdout.split(), ended.stderr) == (["4", "True"], "")
