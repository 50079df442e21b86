"""Work on a budget: how long to rest after a piece, so that a rate is kept on average and the pieces may be of any size.

What was used is a debt that shrinks with time. A debt of a few milliseconds is carried on to the next piece: a timer for
each would cost more than it regulates. Time that passed without work earns nothing, so that no burst follows a rest.
"""

from __future__ import annotations

import attrs

TICK_S = 0.01
"""Shorter rests are saved up."""


@attrs.define
class Pace:
    """One worker's budget."""

    _free_at: float = float("-inf")

    def take(self, now: float, count: int, rate: float) -> float:
        """How long to rest, in seconds, after having used `count` at `now`, for `rate` a second."""
        self._free_at = max(self._free_at, now) + count / rate
        rest_s = self._free_at - now
        return rest_s if rest_s >= TICK_S else 0.0
