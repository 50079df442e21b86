"""The source of SecuriFile as the tests about the source see it: modules by name, each with its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent


@attrs.frozen(kw_only=True)
class Module:
    """One Python file."""

    name: str
    path: Path
    text: str
    tree: ast.Module
    is_package: bool

    @property
    def place(self) -> str:
        """The path from the root of the checkout, for messages."""
        return str(self.path.relative_to(ROOT))


@attrs.frozen(kw_only=True)
class Import:
    """One name taken from elsewhere: `from module import name`, or `import module` with an empty name."""

    module: str
    name: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


def read(path: Path) -> Module:
    """Parse one file under the root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    text = path.read_text(encoding="utf-8")
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(name=name, path=path, text=text, tree=ast.parse(text, str(path)), is_package=is_package)


def modules(*folders: str) -> list[Module]:
    """Every Python file under the folders, in order of path."""
    return [read(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(module: Module) -> Iterator[Import]:
    """Everything a module imports, wherever in it: at the top, in a function, or for the type checker alone."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module=alias.name, name="", line=node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.name.split(".")
                above = parts[: len(parts) - node.level + module.is_package]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield Import(module=base, name=alias.name, line=node.lineno)


def calls(module: Module) -> Iterator[tuple[str, int]]:
    """Every call by the dotted name that is called, as it is written, and its line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno
