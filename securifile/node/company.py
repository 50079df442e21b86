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
        self._coming = 0
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None

    def expect(self) -> Guest:
        """Somebody is on the way."""
        self._coming += 1
        return Guest(self)

    def _one_less(self) -> None:
        self._coming -= 1
        if not self._coming:
            self._go_on()

    def _wait(self) -> Deferred[None]:
        if self._coming == 1 and not self._waiting:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        if self._timer is None:
            self._timer = self._clock.callLater(self._patience_s, self._go_on)
        return waiting

    def _go_on(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)


class Guest:
    """One on the way; whoever has it says how that ends."""

    def __init__(self, company: Company) -> None:
        self._company: Company | None = company

    async def arrive(self) -> None:
        """Return when all others who are on their way have come, or will not come, or it takes too long."""
        company, self._company = self._company, None
        if company is not None:
            waiting = company._wait()
            company._one_less()
            await waiting

    def leave(self) -> None:
        """Nobody need wait for this one any more. Harmless after `arrive`, and twice."""
        company, self._company = self._company, None
        if company is not None:
            company._one_less()
