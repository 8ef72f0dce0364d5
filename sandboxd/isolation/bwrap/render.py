"""Slots and plans as requests to the fork server, in plain values that a test can compare and a log can print."""

import os
from pathlib import Path

from sandboxd.isolation.bwrap.assembly import DEV
from sandboxd.isolation.bwrap.marks import MARK
from sandboxd.isolation.bwrap.requests import AssembleRequest, StageMount, StartRequest
from sandboxd.isolation.plan import LaunchPlan, Slot

# /tmp exists everywhere, and covered by the stage it is one world-writable directory less that bwrap could reach.
STAGE = "/tmp"
# Where bwrap has the host's root, and the sandbox's, while it makes the latter.
OLD_ROOT = "/oldroot"
NEW_ROOT = "/newroot"
INIT_NAME = "sandbox-init"
INIT_INSIDE = f"/dev/{INIT_NAME}"

HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"

# Docker's default set less MKNOD, NET_RAW and AUDIT_WRITE, which nothing here needs.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

# What Docker masks, and the host's pressure, as far as this kernel has them: they tell of, or act on, the whole host.
MASKED_FILES = (
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
)
MASKED_DIRECTORIES = ("/proc/acpi", "/proc/asound", "/proc/pressure", "/proc/scsi")
# /proc/sys is made read-only when the root is assembled; sysrq-trigger, irq and bus are the host root's.


def start_request(slot: Slot, *, bwrap: Path, max_processes: int) -> StartRequest:
    return StartRequest(
        range_start=slot.ids.start,
        max_processes=max_processes,
        stage=STAGE,
        init=str(slot.init),
        init_name=INIT_NAME,
        argv=_argv(slot, bwrap),
    )


def _argv(slot: Slot, bwrap: Path) -> tuple[str, ...]:
    # fmt: off
    argv = [
        str(bwrap),
        "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
        "--as-pid-1", "--clearenv",
        "--proc", "/proc",
        "--perms", "0444", "--ro-bind-data", "{boot_id}", "/proc/sys/kernel/random/boot_id",
    ]
    # fmt: on
    for path in _existing(MASKED_FILES):
        argv += ["--ro-bind", f"{STAGE}/{DEV}/null", path]
    for path in _existing(MASKED_DIRECTORIES):
        argv += ["--tmpfs", path, "--remount-ro", path]
    # The last operation: bwrap copies from the gate until that opens. The file stays behind with bwrap's own root.
    argv += ["--file", "{gate}", "/gate"]
    argv += ["--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        argv += ["--cap-add", capability]
    argv += ["--chdir", "/", "--info-fd", "{info}", "--seccomp", "{seccomp}"]
    return (*argv, "--", INIT_INSIDE, "--listen-fd", "{listener}", MARK, slot.sandbox)


def assemble_request(plan: LaunchPlan, *, max_processes: int) -> AssembleRequest:
    ids, hostname = plan.slot.ids, plan.sandbox.spec.hostname
    layers = [StageMount(source=str(path), name=f"l{n}", idmapped=ids.idmapped) for n, path in enumerate(plan.layers)]
    writable = StageMount(source=str(plan.writable), name="w", idmapped=ids.idmapped)
    binds = [StageMount(source=str(bind.source), name="", target=bind.target) for bind in plan.image.binds]
    return AssembleRequest(
        range_start=ids.start,
        max_processes=max_processes,
        userxattr=not ids.idmapped,
        stage=OLD_ROOT + STAGE,
        new_root=NEW_ROOT,
        mounts=(*layers, writable, *binds),
        lowers=tuple(layer.name for layer in layers),
        writable=writable.name,
        hidden=plan.image.hidden,
        hostname=hostname,
        identity=(
            ("etc/hostname", f"{hostname}\n"),
            ("etc/hosts", HOSTS.format(hostname=hostname)),
            ("etc/machine-id", f"{plan.sandbox.machine_id}\n"),
        ),
    )


def _existing(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for path in paths if os.path.lexists(path))
