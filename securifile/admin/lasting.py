"""Work that takes longer than a request may: it goes on when nobody waits any more, and who asks again waits for the same."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")

ANSWER_S = 30.0
"""How long one request waits for it: shorter than clients and proxies wait for an answer."""

REMEMBERED_S = 60.0
"""How long what came of it is kept for who asks again; later the same request begins anew."""


class Lasting(Generic[T]):
    """Work under way, and what came of it."""

    def __init__(self, clock: IReactorTime, work: Deferred[T]) -> None:
        self._clock = clock
        self._waiting: list[Deferred[None]] = []
        self._ended_at: float | None = None
        self.outcome: T | Failure | None = None
        """None while it is under way."""
        work.addBoth(self._ended)

    def _ended(self, outcome: T | Failure) -> None:
        self.outcome, self._ended_at = outcome, self._clock.seconds()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    @property
    def is_old(self) -> bool:
        """Whether it ended so long ago that nobody asks for it any more."""
        return self._ended_at is not None and self._clock.seconds() - self._ended_at > REMEMBERED_S

    async def wait(self, seconds: float = ANSWER_S) -> None:
        """Return when it has ended, or after so many seconds."""
        if self.outcome is not None:
            return
        ended: Deferred[None] = Deferred()
        self._waiting.append(ended)
        timer = self._clock.callLater(seconds, ended.callback, None)
        try:
            await ended
        finally:
            if timer.active():
                timer.cancel()
            if ended in self._waiting:
                self._waiting.remove(ended)
