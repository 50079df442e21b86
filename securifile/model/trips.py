"""How long questions and answers are on their way: a histogram for each other server, as Prometheus takes it."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_S = (0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""From what a round trip takes on one machine to where a heartbeat counts as missed."""


class Trips:
    """Round trips to other servers, counted by their duration since the start."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def note(self, server: str, seconds: float) -> None:
        """One there and back."""
        counts = self._counts.setdefault(server, [0] * (len(BOUNDS_S) + 1))
        counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sums[server] = self._sums.get(server, 0.0) + seconds

    def metrics(self, name: str) -> dict[str, float]:
        """What `/metrics` tells, by name with labels: as the text format wants it, each bucket with all below it, in ascending order."""
        told = {}
        for server, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
                total += count
                told[f'{name}_bucket{{server="{server}",le="{bound}"}}'] = float(total)
            told[f'{name}_sum{{server="{server}"}}'] = self._sums[server]
            told[f'{name}_count{{server="{server}"}}'] = float(total)
        return told
