"""How long to wait before the next attempt: twice as long each time, and never all at the same moment."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.25
MOST_S = 15.0
"""An operator who has mended something looks again within half a minute."""


class Backoff:
    """Waiting times for one thing that is tried again and again."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._failures = 0

    def failed(self) -> float:
        """Seconds to wait now: between half and all of a time that doubles."""
        whole = min(FIRST_S * 2.0 ** min(self._failures, 30), MOST_S)
        self._failures += 1
        return whole * (0.5 + int.from_bytes(self._random(4), "big") / 2**33)

    def succeeded(self) -> None:
        """The next wait is a short one."""
        self._failures = 0
