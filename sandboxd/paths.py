"""Where the daemon keeps its things by default, for the daemon and for its clients.

Apart from `config`, so that a command line can find the daemon's socket without loading a validation library.
"""

import os
from pathlib import Path


def is_root() -> bool:
    """Whether this process is root on the host (not in a user namespace of its own)."""
    return os.geteuid() == 0 and not in_own_userns()


def in_own_userns() -> bool:
    """Whether ids are mapped here, as they are after a rootless daemon re-executed itself."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


def default_state_dir() -> Path:
    return Path("/var/lib/sandboxd") if is_root() else _user_directory("XDG_STATE_HOME", ".local/state")


def default_runtime_dir() -> Path:
    if is_root():
        return Path("/run/sandboxd")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "sandboxd" if runtime else default_state_dir() / "run"


def default_image_dir() -> Path:
    if is_root():
        return Path("/var/lib/sandboxd/images")
    return _user_directory("XDG_DATA_HOME", ".local/share") / "images"


def default_id_registry() -> Path:
    """Where the daemons of one host say which ids are theirs."""
    return Path(os.environ.get("SANDBOXD_ID_REGISTRY") or "/run/sandboxd-ids")


def _user_directory(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "sandboxd"
