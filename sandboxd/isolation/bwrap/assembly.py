"""A sandbox's root, put together by the fork server in the namespaces where a bwrap waits for it.

At that moment nothing hostile runs there: the bwrap has not yet become sandbox-init. The files are hostile all the
same, so every place in them at which something is mounted is found without following links (overlay.mount_point) and
then held by its descriptor.

bwrap's view while it waits: its tmpfs at /, the host at /oldroot, what will be the sandbox's root at /newroot with a
finished /proc in it. The overlay is mounted on top of that root, and /proc moves over.
"""

import contextlib
import os
import socket
from typing import Any

from sandboxd.kernel import overlay, syscalls
from sandboxd.kernel.namespaces import Home

# Names on the stage: the layer with the sandbox's own hostname, machine-id, …; its /dev; what hides a directory.
IDENTITY = "i"
DEV = "d"
COVER = "c"


def assemble(plan: dict[str, Any], *, machine: int, userns: int, home: Home) -> None:
    """`machine` is a pidfd of the waiting bwrap, `plan` an AssembleRequest. Raises: OSError."""
    with contextlib.ExitStack() as stack:
        mounts = [
            (_held(stack, overlay.clone_tree(source, userns=userns if idmapped else None)), name, target)
            for source, name, idmapped, target in plan["mounts"]
        ]
        stack.enter_context(home.visit(machine))
        socket.sethostname(plan["hostname"])
        os.chdir(plan["stage"])
        stack.enter_context(overlay.acting_as(plan["range_start"]))
        for tree, name, target in mounts:
            if not target:
                overlay.attach(tree, name)
        _make_root(stack, plan, [(tree, target) for tree, _, target in mounts if target])


def _make_root(stack: contextlib.ExitStack, plan: dict[str, Any], bound: list[tuple[int, str]]) -> None:
    new_root = plan["new_root"]
    proc = _held(stack, os.open(f"{new_root}/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    # bwrap leaves it as it is where it may not write itself; settings of a network belong to its root all the same.
    overlay.make_read_only(f"{new_root}/proc/sys")
    overlay.make_identity_layer(IDENTITY, plan["identity"])
    lowers = [IDENTITY, *plan["lowers"]]
    overlay.mount_overlay(lowers, plan["writable"], new_root, userxattr=plan["userxattr"])
    root = _held(stack, os.open(new_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    places = [_held(stack, overlay.mount_point(root, point)) for point in ("/proc", "/dev")]
    for tree, target in bound:
        syscalls.mount_setattr(tree, attr_set=overlay.READ_ONLY)
        _mount(tree, root, target)
    if plan["hidden"]:
        overlay.make_cover(COVER)
    for path in plan["hidden"]:
        _mount(_held(stack, syscalls.open_tree(COVER)), root, path)
    syscalls.move_mount(proc, places[0])
    # The last: without it there is no sandbox-init to exec, so half a root is never run.
    syscalls.move_mount(_held(stack, syscalls.open_tree(DEV, recursive=True)), places[1])


def _mount(tree: int, root: int, target: str) -> None:
    place = overlay.mount_point(root, target)
    try:
        syscalls.move_mount(tree, place)
    finally:
        os.close(place)


def _held(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor
