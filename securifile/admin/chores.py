"""What an admin server does again and again: each chore in its own loop, which goes on after a failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown, Refusal


@attrs.frozen(kw_only=True)
class Chore:
    """One thing to do, and how long to rest after it."""

    name: str
    pause_s: float
    work: Callable[[], Awaitable[Any]]


class Chores:
    """Runs chores from `start` to `stop`; the first time at once."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, chores: list[Chore]) -> None:
        self._clock = clock
        self._chores = chores
        self._running: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin."""
        for chore in self._chores:
            running = Deferred.fromCoroutine(self._run(chore))
            running.addErrback(lambda failure: failure.trap(CancelledError) and None)
            self._running.append(running)

    def stop(self) -> None:
        """Break off whatever is under way."""
        running, self._running = self._running, []
        for one in running:
            one.cancel()

    async def _run(self, chore: Chore) -> None:
        trouble = ""
        while True:
            try:
                await chore.work()
                trouble = ""
            except CancelledError:
                raise
            except (DatabaseUnavailable, OutcomeUnknown, Refusal) as error:
                # Said once: the database's absence, or a catalogue that may not be changed yet, lasts for many rounds.
                if str(error) != trouble:
                    self._log.warn("{chore} waits for the catalogue: {problem}", chore=chore.name, problem=str(error))
                trouble = str(error)
            except Exception:
                self._log.failure("{chore} failed", chore=chore.name)
            await deferLater(self._clock, chore.pause_s)
