"""The page about the API names every route that there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/api.md").read_text()
ROUTE = re.compile(r'route\(app, (?:f?"([^"]+)"|one), "[A-Z]+", "[a-z-]+"')


def test_every_route_is_on_the_page() -> None:
    """By its last fixed part, which is how the page abbreviates what belongs together."""
    found = [path for file in sorted((ROOT / "securifile").rglob("*_api.py")) for path in ROUTE.findall(file.read_text()) if path]
    assert len(found) > 25
    missing = []
    for path in found:
        last = [part for part in path.split("/") if part and not part.startswith(("{", "<"))][-1]
        if not re.search(rf"/{re.escape(last)}\b", PAGE):
            missing.append(path)
    assert missing == []
