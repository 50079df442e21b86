"""Downloads under way, and cutting them off when the right to them ends.

A right can be taken, an account closed, a file deleted, this node lose its standing: whoever is in the middle of a transfer is
cut off then, not at its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.model import facts as f
from securifile.model.errors import Refusal


@attrs.define(eq=False, kw_only=True)
class Transfer:
    """One download under way."""

    check: Callable[[], Awaitable[None]]
    """Raises `Refusal` when the person may not have it any more."""
    cut: Callable[[str], None]
    """Ends it at once; takes the reason."""


class Transfers:
    """All downloads under way on this server."""

    _log = Logger()

    def __init__(self, *, clock: IReactorTime, interval_s: Callable[[], float], serves: Callable[[], str | None]) -> None:
        """Args:
        interval_s: how often to look at the standing.
        serves: None while this node may serve; otherwise why not.
        """
        self._clock = clock
        self._interval_s = interval_s
        self._serves = serves
        self._under_way: set[Transfer] = set()
        self._checking: Deferred[None] = succeed(None)
        self._again = False
        self._timer: Any = None

    def start(self) -> None:
        """Look at the standing from now on."""
        self._timer = self._clock.callLater(self._interval_s(), self._look)

    def stop(self) -> None:
        """Cut everything off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._checking.cancel()
        self._cut_all("this node is stopping")

    @contextmanager
    def watched(self, transfer: Transfer) -> Iterator[None]:
        """While inside, the transfer may be cut."""
        self._under_way.add(transfer)
        try:
            yield
        finally:
            self._under_way.discard(transfer)

    def learn(self, fact: f.Fact) -> None:
        """Something changed in the index; if it can end a right, look at all transfers again."""
        if self._under_way and isinstance(
            fact, f.Grant | f.GrantGone | f.Person | f.PersonGone | f.Session | f.SessionGone | f.EntryGone | f.Folder | f.File
        ):
            self._again = True
            if self._checking.called:
                self._checking = Deferred.fromCoroutine(self._check())
                self._checking.addErrback(self._failed)

    async def _check(self) -> None:
        while self._again:
            self._again = False
            for transfer in list(self._under_way):
                try:
                    await transfer.check()
                except Refusal as refusal:
                    transfer.cut(refusal.detail)

    def _look(self) -> None:
        self._timer = self._clock.callLater(self._interval_s(), self._look)
        reason = self._serves()
        if reason is not None:
            self._cut_all(reason)

    def _cut_all(self, reason: str) -> None:
        for transfer in list(self._under_way):
            transfer.cut(reason)

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("looking at transfers again failed", failure)
            # What cannot be judged is not served.
            self._cut_all("the right to it cannot be checked")
