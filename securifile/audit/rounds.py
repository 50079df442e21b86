"""Work done in rounds: one at a time, and once more whenever somebody asked meanwhile.

What gathers while a round is under way is taken by the next one: so one fsync, or one transaction, serves all who wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger


class Rounds:
    """Runs `work` when asked to. A round that fails is logged, and ends like any other."""

    _log = Logger()

    def __init__(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._work = work
        self._asked = False
        self._running: Deferred[None] | None = None
        self._under_way = False
        self._ended: list[Deferred[None]] = []

    def ask(self) -> None:
        """Begin a round, or have one follow the round under way; that one sees all that is there now."""
        self._asked = True
        if not self._under_way:
            self._under_way = True
            running = Deferred.fromCoroutine(self._run())
            # Work that answers at once has ended by now, and another round may have begun in the meantime.
            if not running.called:
                self._running = running

    def idle(self) -> Deferred[None]:
        """Fires when no round is under way and none is asked for."""
        ended: Deferred[None] = Deferred()
        if self._under_way:
            self._ended.append(ended)
        else:
            ended.callback(None)
        return ended

    def cancel(self) -> None:
        """Interrupt the round under way, at whatever it waits for; fit only for work that may stop anywhere."""
        self._asked = False
        if self._under_way and self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        try:
            while self._asked:
                self._asked = False
                try:
                    await self._work()
                except CancelledError:
                    return
                except Exception:
                    self._log.failure("{name} failed", name=self._name)
        finally:
            self._under_way = False
            ended, self._ended = self._ended, []
            for waiter in ended:
                waiter.callback(None)
