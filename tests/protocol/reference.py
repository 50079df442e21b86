"""The generated parts of `docs/protocol.md`: the state diagram, the messages, the values in them.

`python -m tests.protocol.reference` writes them anew; a test fails while they are not what the code says.
"""

from __future__ import annotations

import ast
import re
from enum import Enum
from pathlib import Path
from types import ModuleType

from securifile.model import digests, entries, facts, proofs, roles, servers, staged
from securifile.model import settings as cluster_settings
from securifile.protocol import messages
from securifile.protocol.connection import diagram

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"

_VALUES: list[tuple[ModuleType, tuple[str, ...] | None]] = [
    (facts, None),
    (entries, ("Version", "Copy", "Sidecar", "WholeBlob")),
    (proofs, ("Proof", "BadCopy", "Report")),
    (staged, None),
    (cluster_settings, ("ClusterSettings",)),
]
_ENUMS: list[type[Enum]] = [servers.ServerKind, servers.Status, roles.Role, digests.DigestAlgorithm, proofs.Verdict]


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def _default(value: ast.expr | None) -> str:
    """What a field is when it is missing, as shown in the table; empty when it must be there."""
    if isinstance(value, ast.Call):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if "factory" in given:
            return " = {}"
        return f" = {ast.unparse(given['default'])}" if "default" in given else ""
    return f" = {ast.unparse(value)}" if value is not None else ""


def _fields(body: list[ast.stmt]) -> str:
    lines = []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        line = f"`{_cell(ast.unparse(statement.target))}: {_cell(ast.unparse(statement.annotation))}{_default(statement.value)}`"
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) and isinstance(following.value.value, str):
            line += f" {_cell(following.value.value)}"
        lines.append(line)
    return "<br>".join(lines)


def table(module: ModuleType, names: tuple[str, ...] | None = None) -> str:
    """The attrs classes of a module, with their fields, as the source has them."""
    assert module.__file__ is not None
    rows = ["| name | fields | meaning |", "|---|---|---|"]
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.decorator_list and (names is None or node.name in names):
            rows.append(f"| `{node.name}` | {_fields(node.body)} | {_cell(ast.get_docstring(node))} |")
    return "\n".join(rows) + "\n"


def _enums() -> str:
    rows = ["| name | values |", "|---|---|"]
    rows += [f"| `{cls.__name__}` | {', '.join(f'`{member.value}`' for member in cls)} |" for cls in _ENUMS]
    return "\n".join(rows) + "\n"


def parts() -> dict[str, str]:
    """Each generated part by its name in the document."""
    return {
        "states": f"```mermaid\n{diagram()}```\n",
        "messages": table(messages),
        "values": "\n".join(table(module, names) for module, names in _VALUES),
        "words": _enums(),
    }


def renewed(text: str) -> str:
    """The document with its generated parts written anew."""
    for name, part in parts().items():
        pattern = re.compile(rf"(<!-- {name}: generated -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        assert len(pattern.findall(text)) == 1, name
        text = pattern.sub(lambda match, part=part: f"{match[1]}\n{part}\n{match[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
