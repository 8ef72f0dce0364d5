"""A directory of many small files, as an archive: what a project's sources are to the API."""

import io
import os
import tarfile
import time

from tests.bench.measure import TrialFailed
from tests.bench.sandboxd import SandboxdInstance

COUNT = 5000
SIZE = 2000
PLACE = "/home/user/tree"


def archive_of_many() -> bytes:
    """COUNT files of SIZE bytes in fifty directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(COUNT):
            member = tarfile.TarInfo(f"{number % 50}/{number}")
            member.size = SIZE
            archive.addfile(member, io.BytesIO(os.urandom(SIZE)))
    return buffer.getvalue()


def send(instance: SandboxdInstance, archive: bytes) -> float:
    """Milliseconds until all of it is unpacked."""
    begun = time.perf_counter()
    instance.upload_archive(PLACE, archive)
    return (time.perf_counter() - begun) * 1000


def fetch(instance: SandboxdInstance) -> float:
    """Milliseconds until all of it has come."""
    begun = time.perf_counter()
    received = instance.download_archive(PLACE)
    if received < COUNT * SIZE:
        raise TrialFailed(f"{received} bytes came")
    return (time.perf_counter() - begun) * 1000
