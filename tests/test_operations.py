"""docs/operations.md says what is so: settings and ports are those of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from securifile.admin.plugin import Options as AdminOptions
from securifile.model.settings import ClusterSettings
from securifile.node.plugin import Options as NodeOptions

PAGE = (Path(__file__).parent.parent / "docs" / "operations.md").read_text("utf-8")


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith(("| setting |", "| server |")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_settings() -> None:
    """Every setting is there, in the order of the code, with the value that a new cluster has."""
    said = [(name.strip("`"), value) for name, value, _ in rows("Settings")]
    assert said == [(field.name, _shown(field.default)) for field in attrs.fields(ClusterSettings)]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_ports() -> None:
    """Every port is there, with its option and its default."""
    said = [(server, option.strip("`"), int(port)) for server, port, _, option in rows("Ports and firewall")]
    options: list[tuple[str, Any]] = [("admin", AdminOptions), ("node", NodeOptions)]
    assert said == [
        (server, f"--{parameter[0]}", parameter[2])
        for server, kind in options
        for parameter in kind.optParameters
        if parameter[0].endswith("-port")
    ]


def test_examples() -> None:
    """No option is used that the servers do not have."""
    kinds: tuple[Any, ...] = (AdminOptions, NodeOptions)
    known = {f"--{parameter[0]}" for kind in kinds for parameter in (*kind.optParameters, *kind.optFlags)}
    for line in re.findall(r"twistd .*securifile-(?:admin|node) .*", PAGE):
        after = line.split("securifile-", 1)[1]
        assert set(re.findall(r"--[a-z-]+", after)) <= known | {"--help"}, line
