"""Waiting, for a moment, for those who are just behind.

What is done once for many costs each of them little: one file with all their bytes, one message, one transaction. Whoever goes ahead alone
makes all of that happen once more for itself, and the others are no sooner done. So who comes to the place from which they could go
on together waits while others are known to be on their way there, and no longer than `patience_s`. Nobody waits who is alone.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Company:
    """Those on their way to one place."""

    def __init__(self, clock: IReactorTime, patience_s: float) -> None:
        """Args:
        patience_s: how long the first waits at most.
        """
        self._clock = clock
        self._patience_s = patience_s
        self._coming: set[Guest] = set()
        """Those that somebody may wait for: not who did not come while others waited as long as they do."""
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None

    def expect(self) -> Guest:
        """Somebody is on the way."""
        guest = Guest(self)
        self._coming.add(guest)
        return guest

    def _one_less(self, guest: Guest) -> None:
        self._coming.discard(guest)
        if not self._coming:
            self._go_on()

    def _wait(self, guest: Guest) -> Deferred[None]:
        if not self._coming - {guest} and not self._waiting:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append(waiting)
        if self._timer is None:
            self._timer = self._clock.callLater(self._patience_s, self._too_long)
        return waiting

    def _forget(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:  # else its turn comes in this very moment
            self._waiting.remove(waiting)

    def _too_long(self) -> None:
        # Who has not come by now is held up, and would hold up each of the next for as long again.
        self._coming.clear()
        self._go_on()

    def _go_on(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:  # by one before it, in this very moment
                one.callback(None)


class Guest:
    """One on the way; whoever has it says how that ends."""

    def __init__(self, company: Company) -> None:
        self._company: Company | None = company

    async def arrive(self) -> None:
        """Return when all others who are on their way have come, or will not come, or it takes too long."""
        company, self._company = self._company, None
        if company is not None:
            waiting = company._wait(self)
            company._one_less(self)
            await waiting

    def leave(self) -> None:
        """Nobody need wait for this one any more. Harmless after `arrive`, and twice."""
        company, self._company = self._company, None
        if company is not None:
            company._one_less(self)
