"""The wall clock, as the admin servers have it.

Sessions, accounts and tickets end at wall-clock times that another server wrote down. A node whose own clock was set an hour forward or
back would refuse everybody, or nobody; so it goes by the admin servers' clock, which comes with the answers to heartbeats, and only warns.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

TOLERANCE_S = 2.0
"""Clocks that are kept by NTP differ by milliseconds; below this the own clock is used as it is."""


class ClusterTime:
    """Callable like `time.time`: seconds since 1970."""

    _log = Logger()

    def __init__(self, own: Callable[[], float]) -> None:
        self._own = own
        self._ahead_s = 0.0
        """What is added to the own clock."""

    def __call__(self) -> float:
        """Seconds since 1970, by the admin servers' clock."""
        return self._own() + self._ahead_s

    def heard(self, theirs: float, trip_s: float) -> None:
        """An admin server's clock showed `theirs`, in an answer to what was asked `trip_s` ago."""
        difference = theirs + trip_s / 2 - self._own()
        if abs(difference - self._ahead_s) <= TOLERANCE_S:
            return
        if abs(difference) > TOLERANCE_S:
            self._log.warn(
                "this machine's clock is {seconds:.0f} s off the admin server's, whose time is used instead; set it right",
                seconds=-difference,
            )
            self._ahead_s = difference
        else:
            self._log.info("this machine's clock is right again")
            self._ahead_s = 0.0
