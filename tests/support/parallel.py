"""How the tests are shared out between processes (pytest-xdist), one for each processor."""

from xdist.scheduler import LoadFileScheduling


class ByFile(LoadFileScheduling):
    """A file's tests stay together, for they share daemons; those of User-Mode Linux, which share a machine, too."""

    def _split_scope(self, nodeid: str) -> str:
        path = str(super()._split_scope(nodeid))
        return "tests/uml" if path.startswith("tests/uml/") else path
