"""Lives of servers' processes that are over: who has ended for certain, and is not merely silent.

A life is one run of a process, from its start to its end; it draws a random name (the *boot*) when it begins. That a life is over is
told by a sentinel beside it (`node/sentinel`). It is a fact that stays true, unlike anything that a network shows: a refused connection
may come from a firewall. What follows from it for people is in `model/spreading.py`; see `docs/decisions/0024-sentinels.md`.
"""

from __future__ import annotations

LIVES_KEPT = 8
"""Ended lives of each server that are remembered; what matters is the one that the catalogue admitted, and that is one of the last."""


class Lives:
    """What one server was told of the ends of other servers' lives."""

    def __init__(self) -> None:
        self._over: dict[str, dict[str, int]] = {}
        """By server the lives that have ended, each with the epoch of the catalogue in which that was told."""
        self._refuted: set[tuple[str, str]] = set()
        """Lives that were said to be over and spoke afterwards."""

    def end(self, name: str, boot: str, epoch: int) -> bool:
        """It is said that a life of that server is over; whether that is believed: not when it has spoken since it was said before."""
        if not boot or (name, boot) in self._refuted:
            return False
        over = self._over.setdefault(name, {})
        over[boot] = epoch
        while len(over) > LIVES_KEPT:
            del over[next(iter(over))]
        return True

    def speaks(self, name: str, boot: str) -> bool:
        """That life of the server speaks; False if it was said to be over. That was a lie, then, and counts no more."""
        over = self._over.get(name)
        if over is None or boot not in over:
            return True
        del over[boot]
        self._refuted.add((name, boot))
        return False

    def is_over(self, name: str, admitted: str, epoch: int) -> bool:
        """Whether the life that the catalogue has admitted as that server is over, and so nobody can serve people as it who has not been
        admitted later.

        Args:
            admitted: the `boot` of the server in the catalogue.
            epoch: that of the catalogue. In a new one an earlier life may be the admitted one again, while a later one still serves:
                what was told in another epoch says nothing.
        """
        return bool(admitted) and self._over.get(name, {}).get(admitted) == epoch

    def forget(self, name: str) -> None:
        """The server is no member any more."""
        self._over.pop(name, None)
