"""What sandboxd is measured against: what runs on an ordinary Linux host without KVM or a cluster."""

from tests.bench.peers.bwrap import Bwrap
from tests.bench.peers.docker import Docker
from tests.bench.peers.kern import Kern
from tests.bench.peers.nsjail import Nsjail
from tests.bench.peers.oci import Crun, Runc, Runsc
from tests.bench.peers.podman import Podman
from tests.bench.systems import System

PEERS: tuple[type[System], ...] = (Bwrap, Crun, Runc, Kern, Nsjail, Podman, Docker, Runsc)
