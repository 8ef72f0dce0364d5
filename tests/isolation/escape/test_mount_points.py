"""Images and restored disks with symbolic links where something is to be mounted (CVE-2026-87766).

bwrap makes missing mount points in the new root while the host's is still there, under /oldroot. Before 0.12 it
follows links when it does so. Here the links are in the image, in the sandbox's own disk, and below both.
"""

import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.config import find_asset
from sandboxd.errors import Unprocessable
from sandboxd.isolation.bwrap.backend import BwrapBackend
from sandboxd.isolation.bwrap.machine import ProcessMachine
from sandboxd.isolation.bwrap.seccomp import compile_profile
from sandboxd.isolation.plan import IdRange, LaunchPlan, Slot
from sandboxd.kernel.cgroups import NO_CGROUP
from sandboxd.model import Bind
from tests.support.daemon import Daemon
from tests.support.plans import bare_image, plan_of

pytestmark = pytest.mark.needs_root

BWRAP = Path("/usr/bin/bwrap")
# Far from the ranges that daemons take from config.range_first on.
RANGE = 0x60000000


@pytest.fixture
def victim() -> Iterator[Path]:
    """A directory of the host that anybody may write to, and so also bwrap without privileges."""
    path = Path(f"/var/tmp/sandboxd-escape-victim-{os.getpid()}")
    path.mkdir()
    path.chmod(0o777)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def base(image_dir: Path) -> Path:
    names = json.loads((image_dir / "names.json").read_text())
    return image_dir / names["base"] / "rootfs"


@pytest.fixture
async def backend() -> AsyncIterator[BwrapBackend]:
    profile = compile_profile(find_asset("seccomp/default.json"))
    backend = BwrapBackend(bwrap=BWRAP, profile=profile, max_processes=100)
    yield backend
    backend.close()


@pytest.fixture
def plan(tmp_path: Path, base: Path) -> LaunchPlan:
    """An innocent launch: the base image below an empty layer, with a directory of the host shown at /mnt/shown."""
    for name in ("layer", "disk/upper", "disk/work", "runtime", "shown"):
        (tmp_path / name).mkdir(parents=True)
    slot = Slot(
        sandbox="s" + uuid.uuid4().hex[:20],
        backend="bwrap",
        ids=IdRange(start=RANGE, idmapped=True),
        runtime=tmp_path / "runtime",
        cgroup=NO_CGROUP,
        boot_id=str(uuid.uuid4()),
        init=find_asset("rootfs/init/build/sandbox-init"),
    )
    shown = Bind(source=tmp_path / "shown", target="/mnt/shown")
    image = replace(bare_image(base), binds=(shown,), hidden=("/srv/hidden",))
    return plan_of(slot, image, writable=tmp_path / "disk", layers=(tmp_path / "layer",))


@asynccontextmanager
async def launched(backend: BwrapBackend, plan: LaunchPlan) -> AsyncIterator[ProcessMachine]:
    machine = await backend.launch(plan)
    try:
        yield machine
    finally:
        await machine.destroy()


def plant(plan: LaunchPlan, where: str, link: str, target: str) -> None:
    """In place of whatever the lower layers have there."""
    top = plan.layers[0] if where == "image" else plan.writable / "upper"
    path = top / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


async def test_an_innocent_root_starts(backend: BwrapBackend, plan: LaunchPlan):
    """The control of the refusals below: nothing but the link is in the way."""
    async with launched(backend, plan) as machine:
        hello = await machine.init.hello()
        assert hello is not None


@pytest.mark.parametrize("where", ["image", "disk"])
@pytest.mark.parametrize("link", ["proc", "dev", "mnt", "mnt/shown", "srv", "srv/hidden"])
@pytest.mark.parametrize("above", ["/oldroot", "/newroot/../oldroot", ""], ids=["oldroot", "around", "absolute"])
async def test_a_link_in_place_of_a_mount_point_is_refused(
    backend: BwrapBackend, plan: LaunchPlan, victim: Path, where: str, link: str, above: str
):
    plant(plan, where, link, f"{above}{victim}")
    with pytest.raises(Unprocessable, match="is not a plain directory, and is a mount point") as caught:
        async with launched(backend, plan):
            pass
    assert "/" + link.partition("/")[0] in caught.value.message
    assert os.listdir(victim) == []


@pytest.mark.parametrize("where", ["image", "disk"])
@pytest.mark.parametrize(
    "link", ["etc", "tmp", "home", "usr/bin/sudo", "etc/hostname", "etc/machine-id", "etc/passwd"]
)
async def test_other_links_lead_nowhere(backend: BwrapBackend, plan: LaunchPlan, victim: Path, where: str, link: str):
    """Where nothing is mounted a link may be, and whatever is read or written through it stays inside."""
    plant(plan, where, link, f"/oldroot{victim}/reached")
    (victim / "before").write_text("before")
    async with launched(backend, plan) as machine:
        await machine.init.hello()
    assert os.listdir(victim) == ["before"]


@pytest.mark.parametrize("prefix", [[], ["unshare", "--user", "--map-root-user"]], ids=["root", "user namespace"])
def test_bwrap_alone_follows_such_a_link(tmp_path: Path, victim: Path, prefix: list[str]):
    """The control: Debian 12's bwrap, given the same tree, makes the directory on the host."""
    version = subprocess.run([BWRAP, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "mnt").symlink_to(f"/oldroot{victim}")
    subprocess.run(
        [*prefix, BWRAP, "--bind", tree, "/", "--dir", "/mnt/shown", "/none"], capture_output=True, check=False
    )
    if tuple(map(int, version.split("."))) < (0, 12):
        assert os.listdir(victim) == ["shown"]
    else:
        pytest.skip(f"bwrap {version} does not follow it any more")


@pytest.mark.parametrize("link", ["dev", "proc"])
def test_such_files_are_the_clients_fault(root_daemon: Daemon, victim: Path, link: str):
    """Whoever has put them there, by a snapshot say, learns which place it is; without the link it starts."""
    sandbox = root_daemon.create()
    try:
        assert root_daemon.call("POST", f"/v1/sandboxes/{sandbox}/stop").status == 200
        upper = root_daemon.state / "sandboxes" / sandbox / "upper"
        if (upper / link).is_dir():
            (upper / link).rmdir()
        (upper / link).symlink_to(victim)
        answer = root_daemon.call("POST", f"/v1/sandboxes/{sandbox}/start")
        assert (answer.status, answer.json["kind"]) == (422, "bad_mount_point")
        assert f"the image's /{link} is not a plain directory" in answer.json["error"]
        assert os.listdir(victim) == []
        (upper / link).unlink()
        assert root_daemon.call("POST", f"/v1/sandboxes/{sandbox}/start").status == 200
    finally:
        root_daemon.delete_all()
