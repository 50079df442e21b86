"""The wall clock, as the admin servers have it.

Sessions, accounts and tickets end at wall-clock times that another server wrote down. A node whose own clock was set an hour forward or
back would refuse everybody, or nobody; so it goes by the admin servers' clock, which comes with the answers to heartbeats, and only warns.

    shown    = the monotonic clock + base
    base     = own clock - monotonic clock          as long as that is near what the admin servers say
             = theirs, the median of all clocks     else

Between two answers the monotonic clock alone moves it: who sets the own clock changes nothing, not for half a second either. Of several
admin servers one may be wrong. The median follows the majority; where half stand against half, the own clock decides.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.logger import Logger

TOLERANCE_S = 2.0
"""Clocks that are kept by NTP differ by milliseconds; below this the own clock is used as it is."""

VOICE_S = 60.0
"""How long what an admin server's clock showed is counted: heartbeats are answered twice a second."""


@attrs.frozen
class _Heard:
    base: float
    """An admin server's wall clock less this machine's monotonic one."""
    at: float
    """Monotonic."""


class ClusterTime:
    """Callable like `time.time`: seconds since 1970."""

    _log = Logger()

    def __init__(self, own: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._own = own
        self._monotonic = monotonic
        self._heard: dict[str, _Heard] = {}
        """By admin server."""
        self._base = own() - monotonic()
        self._ahead_s = 0.0
        """How far the cluster's time is ahead of the own clock, as it was said in the log; 0: the own clock is right."""

    def __call__(self) -> float:
        """Seconds since 1970, by the admin servers' clock."""
        return self._monotonic() + self._base

    def heard(self, server: str, theirs: float, trip_s: float) -> None:
        """An admin server's clock showed `theirs`, in an answer to what was asked `trip_s` ago."""
        now = self._monotonic()
        self._heard[server] = _Heard(theirs + trip_s / 2 - now, now)
        self._heard = {name: heard for name, heard in self._heard.items() if now - heard.at <= VOICE_S}
        own = self._own() - now
        bases = [heard.base for heard in self._heard.values()]
        if len(bases) > 1 and len(bases) % 2 == 0:
            bases.append(own)
        base = sorted(bases)[len(bases) // 2]
        if abs(base - own) <= TOLERANCE_S:
            self._base = own
            if self._ahead_s:
                self._log.info("this machine's clock is right again")
                self._ahead_s = 0.0
            return
        if abs(base - self._base) > TOLERANCE_S:
            self._base = base
        if abs(base - own - self._ahead_s) > TOLERANCE_S:
            self._log.warn(
                "this machine's clock is {seconds:.0f} s off the admin server's, whose time is used instead; set it right",
                seconds=own - base,
            )
            self._ahead_s = base - own
