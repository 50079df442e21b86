"""Which node serves a file: the origin, or else the first running replica by priority."""

from __future__ import annotations

from collections.abc import Callable

from securifile.model.entries import Version


def serving_order(version: Version, available: Callable[[str], bool]) -> list[str]:
    """Holders that could serve the version now, the one that should do it first.

    Args:
        version: whose durable copies are considered, in order of priority.
        available: whether a node is running, as far as the asker can tell.
    """
    return [holder for holder in version.holders if available(holder)]
