"""The house stands: imports go down or sideways, never up, never in a circle, and the lower floors are pure."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from securifile.floors import DECISIONS, FLOORS, WORDS, floor_of
from tests.sources import Import, Module, calls, imports, modules, read

HOUSE = {module.name: module for module in modules("securifile")}
PACKAGES = [name for name, module in HOUSE.items() if module.is_package]
PURE = [module for name, module in HOUSE.items() if floor_of(name, PACKAGES) in {WORDS, DECISIONS}]

# What reads a clock, a random source, the disk, the network or another thread.
IMPURE = frozenset(
    "asyncio concurrent fcntl glob io multiprocessing os pathlib random secrets select selectors shutil signal socket "
    "socketserver sqlite3 ssl subprocess tempfile threading time".split()
)
IMPURE_CALLS = frozenset(
    "open input print datetime.now datetime.utcnow datetime.today datetime.datetime.now datetime.datetime.utcnow "
    "date.today datetime.date.today uuid.uuid1 uuid.uuid4 uuid1 uuid4".split()
)
# Beside the standard library. `idna` is a table and functions on strings.
OUTSIDE_FOR_WORDS = frozenset({"attr", "attrs", "idna", "zope"})
# An interface may promise a Deferred; that is a word, not a reactor.
PROMISES = {"securifile.model.interfaces": "twisted.internet.defer.Deferred"}


def target(imported: Import) -> str | None:
    """The module of this house that an import reaches; None when it goes outside."""
    return next((name for name in (f"{imported.module}.{imported.name}", imported.module) if name in HOUSE), None)


def reached(module: Module) -> dict[str, int]:
    """The modules of this house that one imports, with the line where it does."""
    return {name: imported.line for imported in imports(module) if (name := target(imported)) is not None}


def impurities(module: Module) -> list[str]:
    """What a module on floor 0 or 1 does that it must not."""
    found = []
    for imported in imports(module):
        root = imported.module.split(".")[0]
        if root in IMPURE:
            found.append(f"{module.place}:{imported.line} imports {root}: take the value as an argument")
        if root == "twisted" and str(imported) != PROMISES.get(module.name):
            found.append(f"{module.place}:{imported.line} imports {imported}: effects go out as values; floor 2 carries them out")
    found += [
        f"{module.place}:{line} calls {name}(): take what it gives as an argument" for name, line in calls(module) if name in IMPURE_CALLS
    ]
    found += [
        f"{module.place}:{node.lineno} is asynchronous: a decision takes what it needs and answers at once"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    return found


def test_every_module_has_a_floor() -> None:
    """Every module is on a floor that the table names."""
    assert [name for name in HOUSE if floor_of(name, PACKAGES) is None] == []


def test_the_table_is_read_from_the_top() -> None:
    """A line for one module, or for a kind of module, wins over the line for the room."""
    assert floor_of("securifile.protocol.messages") == 0
    assert floor_of("securifile.protocol.codec") == 1
    assert floor_of("securifile.protocol.rpc") == 2
    assert floor_of("securifile.node.service") == floor_of("securifile.node.files_api") == floor_of("securifile.local.demo") == 3
    assert floor_of("securifile.nowhere.thing") is None


def test_no_line_of_the_table_is_dead() -> None:
    """A pattern below one that takes all its modules would say a floor that nobody is on."""
    assert [pattern for pattern, floor in FLOORS.items() if "*" not in pattern and floor_of(pattern) != floor] == []


@pytest.mark.parametrize("name", HOUSE)
def test_imports_never_go_up(name: str) -> None:
    """A module imports only from its own floor and those below."""
    own = floor_of(name, PACKAGES)
    assert own is not None
    too_high = [
        f"{HOUSE[name].place}:{line}: {name} (floor {own}) imports {other} (floor {floor_of(other, PACKAGES)})"
        for other, line in reached(HOUSE[name]).items()
        if (floor_of(other, PACKAGES) or 0) > own
    ]
    assert too_high == []


def test_imports_make_no_circle() -> None:
    """No module reaches itself through what it imports."""
    graph = {name: set(reached(module)) for name, module in HOUSE.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(f"imports in a circle: {' -> '.join(circle.args[1])}")


def test_node_and_admin_never_import_each_other() -> None:
    """A node and an admin server meet on the wire, and nowhere else."""
    for one, other in [("node", "admin"), ("admin", "node")]:
        for name, module in HOUSE.items():
            if name.startswith(f"securifile.{one}"):
                assert [met for met in reached(module) if met.startswith(f"securifile.{other}")] == [], name


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_imports_nothing(name: str) -> None:
    """An `__init__.py` is a docstring: whoever wants one module of a room does not load the others."""
    assert [str(imported) for imported in imports(HOUSE[name]) if imported.module != "__future__"] == []


@pytest.mark.parametrize("module", PURE, ids=lambda module: module.name)
def test_words_and_decisions_are_pure(module: Module) -> None:
    """Floors 0 and 1 read no clock, no random source, no disk and no network, and never wait."""
    assert impurities(module) == []


@pytest.mark.parametrize("name", [name for name in HOUSE if floor_of(name, PACKAGES) == WORDS])
def test_words_are_made_of_little(name: str) -> None:
    """Floor 0 needs the standard library, attrs and zope.interface, and nothing else."""
    allowed = sys.stdlib_module_names | OUTSIDE_FOR_WORDS | {"securifile"}
    strangers = [
        str(imported)
        for imported in imports(HOUSE[name])
        if imported.module.split(".")[0] not in allowed and str(imported) != PROMISES.get(name)
    ]
    assert strangers == []


def test_impurity_is_found() -> None:
    """The search for impurity finds each kind of it in code made to have them."""
    here = read(HOUSE["securifile"].path)
    bad = "import time\nfrom twisted.internet import reactor\nasync def f():\n    await g()\n    open('x')\n    datetime.now()\n"
    found = impurities(Module(name="securifile.model.bad", path=here.path, text=bad, tree=ast.parse(bad), is_package=False))
    assert len(found) == 6
