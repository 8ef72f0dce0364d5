"""The structure that sandboxd/README.md describes, held against the imports as they are."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sandboxd"

# From the top down: a layer may import itself, what stands below it, and the values everybody uses.
LAYERS = (
    "__main__", "cli", "daemon", "hostcheck", "http", "service", "gateway", "isolation", "store", "trees", "kernel",
)  # fmt: skip
# The client speaks HTTP like anyone else's: it knows nothing of the daemon's inside, and only cli uses it.
CLIENT = "client"
VALUES = {
    "clock",
    "config",
    "constraints",
    "crashpoints",
    "errors",
    "logs",
    "manual",
    "model",
    "paths",
    "printable",
    "recent_log",
    "task_tree",
    "threads",
}
# What runs in small processes of its own must start fast and drag nothing along.
STANDARD_LIBRARY_ONLY = {
    "kernel": (),
    "trees": ("sandboxd.trees",),
    "isolation/bwrap/forkserver.py": ("sandboxd.isolation.bwrap.assembly",),
    "isolation/bwrap/assembly.py": (),
}
# The network gateway is a process of its own, without privileges: what hostile bytes reach knows nothing of ours.
GATEWAY = "gateway"
GATEWAY_LIBRARIES = {"trio", "h11", "dns", "idna", "publicsuffixlist"}


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def layer_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports(module: Path, *, at_start: bool = False) -> Iterator[str]:
    """Dotted names of what a module imports, `sandboxd.` taken off ours; everywhere in it, or when it is loaded."""
    tree = ast.parse((PACKAGE / module).read_text())
    nodes = tree.body if at_start else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "sandboxd":
                yield from (f"sandboxd.{name.name}" for name in node.names)
            elif node.module is not None:
                yield node.module


def ours(module: Path) -> set[str]:
    """The layers a module imports."""
    return {name.split(".")[1] for name in imports(module) if name.startswith("sandboxd.")} - {"__version__"}


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_point_downwards_only(module: Path) -> None:
    layer = layer_of(module)
    if layer == "__init__":
        assert ours(module) == set()
    elif layer in VALUES:
        assert ours(module) <= VALUES
    elif layer == CLIENT:
        assert ours(module) <= VALUES | {CLIENT}
    else:
        below = set(LAYERS[LAYERS.index(layer) :]) | ({CLIENT} if layer == "cli" else set())
        assert ours(module) <= below | VALUES


def test_every_module_has_its_place() -> None:
    assert {layer_of(module) for module in modules()} <= {*LAYERS, *VALUES, CLIENT, "__init__"}


@pytest.mark.parametrize("place", STANDARD_LIBRARY_ONLY)
def test_the_lowest_layer_needs_the_standard_library_only(place: str) -> None:
    found = [module for module in modules() if str(module).startswith(place)]
    assert found
    for module in found:
        names = set(imports(module))
        foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
        allowed = ("sandboxd.kernel", *STANDARD_LIBRARY_ONLY[place])
        assert all(name.startswith(allowed) for name in foreign), module


def test_the_gateway_stands_alone() -> None:
    for module in modules():
        if layer_of(module) == GATEWAY:
            assert ours(module) <= {GATEWAY}, module
            foreign = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"sandboxd"}
            assert foreign <= GATEWAY_LIBRARIES, module


def test_only_the_command_line_tools_use_the_client() -> None:
    assert {layer_of(module) for module in modules() if CLIENT in ours(module)} <= {"cli", CLIENT}


def test_sandboxctl_knows_nothing_of_the_daemons_inside() -> None:
    """But for reading tar archives: those of a sandbox are as hostile here as they are to the daemon."""
    for module in modules():
        if layer_of(module) == "cli" and not module.name.startswith("daemon"):
            assert ours(module) <= {"cli", CLIENT, "trees", *VALUES}, module
            trees = {name for name in imports(module) if name.startswith("sandboxd.trees")}
            assert trees <= {"sandboxd.trees.tarstream"}, module


# Packages of http that are no dialect, and which others of them each may import.
HTTP_SHARED = {"server": set[str](), "kit": {"server"}, "proxy": {"kit", "server"}}


def http_packages(module: Path) -> set[str]:
    """The packages of http that a module imports."""
    names = [name.split(".") for name in imports(module) if name.startswith("sandboxd.http.")]
    return {parts[2] for parts in names if len(parts) > 2}


def dialects() -> set[str]:
    found = {path.name for path in (PACKAGE / "http").iterdir() if path.is_dir()} - {"__pycache__"}
    return found - HTTP_SHARED.keys()


def test_a_dialect_imports_no_other_dialect() -> None:
    assert dialects() >= {"native", "akira"}
    for module in modules():
        if module.parts[0] == "http" and module.parts[1] in dialects():
            assert http_packages(module) <= {module.parts[1], "kit", "server"}, module


def test_what_dialects_share_imports_none_of_them() -> None:
    for module in modules():
        if module.parts[0] == "http" and module.parts[1] in HTTP_SHARED:
            assert http_packages(module) <= {module.parts[1], *HTTP_SHARED[module.parts[1]]}, module


def test_a_dialect_sees_no_backend_and_no_store() -> None:
    for module in modules():
        if module.parts[0] == "http" and module.parts[1] in dialects():
            assert not ours(module) & {"kernel", "store", "isolation"}, module


def test_handlers_get_requests_from_their_call() -> None:
    """Quart's globals stand for whatever request is being answered, and are the kit's and the server's business."""
    for module in modules():
        if module.parts[0] == "http" and module.parts[1] in dialects():
            assert "quart" not in set(imports(module)), module


@pytest.mark.parametrize("module", [module for module in modules() if layer_of(module) == "service"], ids=str)
def test_the_service_reads_the_one_clock_that_a_test_can_move(module: Path) -> None:
    """`time.monotonic` is for saying how long something took."""
    source = (PACKAGE / module).read_text()
    assert not [clock for clock in ("time.time()", "time.clock_gettime", "datetime.now") if clock in source]


# What these hold is said by the package they are in: for each dialect its routes, ….
SAID_BY_THE_PACKAGE = {
    "backend",  # the protocol; each way to keep it
    "exchange",  # of a server; of the proxy with a program
    "operations",
    "registry",
    "routes",
    "values",
}
# The same capability at each of these stages of a request's way has the same name there.
STAGES = ("cli", "client", "gateway", "http/akira", "http/native", "http", "service", "isolation", "kernel", "trees")


def stage_of(module: Path) -> str:
    return next((stage for stage in STAGES if module.is_relative_to(stage)), "")


def test_a_module_is_not_named_like_its_package() -> None:
    assert not [module for module in modules() if module.stem.rstrip("s") == module.parent.name.rstrip("s")]


def test_no_two_modules_of_one_stage_have_one_name_but_where_their_packages_make_it_plain() -> None:
    named: dict[tuple[str, str], list[str]] = {}
    for module in modules():
        if module.stem != "__init__":
            named.setdefault((stage_of(module), module.stem), []).append(str(module))
    twice = {name for (_, name), found in named.items() if len(found) > 1}
    assert twice == SAID_BY_THE_PACKAGE & twice, {key: found for key, found in named.items() if len(found) > 1}
    assert twice == SAID_BY_THE_PACKAGE
