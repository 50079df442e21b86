"""Transfers under way, and cutting them off when the right to them ends.

A right can be taken, an account closed or run out, a file deleted, this node lose its standing: whoever is in the middle of a
transfer is cut off then, not at its end. Changes come in groups, a snapshot's by the thousand: one look at all transfers does for
a group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model import facts as f
from securifile.model.errors import Refusal
from securifile.model.ids import EntryId

GATHER_S = 0.02
"""How long changes are gathered before the transfers are looked at: short against the second in which a revoked right must be refused."""

LOOKS = 5
"""How often in a heartbeat interval the standing is looked at: who has lost it goes on for a tenth of a second at most."""

AT_ONCE = 50
"""Transfers checked before others get their turn: some ten milliseconds."""


@attrs.define(eq=False, kw_only=True)
class Transfer:
    """One transfer under way."""

    entry: EntryId
    """What is transferred; of a new file the folder it will be in."""
    check: Callable[[], Awaitable[None]]
    """Raises `Refusal` when the person may not have it any more."""
    cut: Callable[[str], None]
    """Ends it at once; takes the reason."""
    has_ended: Callable[[], bool]
    """Whether it is time to check because a session or an account may have run out."""
    needs_standing: bool = True
    """Whether it is cut when this server may not serve any more."""


class Transfers:
    """All transfers under way on this server."""

    _log = Logger()

    def __init__(self, *, clock: IReactorTime, interval_s: Callable[[], float], serves: Callable[[], str | None]) -> None:
        """Args:
        interval_s: of heartbeats; the standing is looked at `LOOKS` times as often.
        serves: None while this node may serve; otherwise why not.
        """
        self._clock = clock
        self._interval_s = interval_s
        self._serves = serves
        # In order of their beginning: a set's order would differ from run to run.
        self._under_way: dict[Transfer, None] = {}
        self._checking: Deferred[None] = succeed(None)
        self._again = False
        self._runs = False
        self._timer: Any = None
        self.changed_at = float("-inf")
        """Monotonic seconds of the last change that may have ended a right. Who judged rights before that, and was not `watched`
        then, has to judge them again."""

    def start(self) -> None:
        """Look at the standing from now on, while anything is under way."""
        self._runs = True
        self._look_later()

    def stop(self) -> None:
        """Cut everything off."""
        self._runs = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._checking.cancel()
        self._cut_all("this node is stopping", also_writing=True)

    @contextmanager
    def watched(self, transfer: Transfer) -> Iterator[None]:
        """While inside, the transfer may be cut."""
        self._under_way[transfer] = None
        self._look_later()
        try:
            yield
        finally:
            self._under_way.pop(transfer, None)

    def learn(self, fact: f.Fact) -> None:
        """Something changed in the index; if it can end a right, look at all transfers again."""
        if not isinstance(fact, f.Grant | f.GrantGone | f.Person | f.PersonGone | f.SessionGone | f.EntryGone | f.Folder | f.File):
            return
        self.changed_at = self._clock.seconds()
        # A file's new version or place concerns nobody but who transfers it; everything else is rare, or may end any right.
        if any(not isinstance(fact, f.File) or transfer.entry == fact.id for transfer in self._under_way):
            self._check_soon()

    def _check_soon(self) -> None:
        self._again = True
        if self._checking.called:
            self._checking = Deferred.fromCoroutine(self._check())
            self._checking.addErrback(self._failed)

    async def _check(self) -> None:
        while self._again:
            await deferLater(self._clock, GATHER_S)
            self._again = False
            for number, transfer in enumerate(list(self._under_way), 1):
                try:
                    await transfer.check()
                except Refusal as refusal:
                    transfer.cut(refusal.detail)
                if number % AT_ONCE == 0:
                    await deferLater(self._clock, 0)

    def _look_later(self) -> None:
        # Only while there is anything to look at: an idle server is not woken ten times a second.
        if self._runs and self._timer is None and self._under_way:
            self._timer = self._clock.callLater(self._interval_s() / LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        self._look_later()
        reason = self._serves()
        if reason is not None:
            self._cut_all(reason, also_writing=False)
        if any(transfer.has_ended() for transfer in self._under_way):
            self._check_soon()

    def _cut_all(self, reason: str, *, also_writing: bool) -> None:
        for transfer in list(self._under_way):
            if also_writing or transfer.needs_standing:
                transfer.cut(reason)

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("looking at transfers again failed", failure)
            # What cannot be judged is not served.
            self._cut_all("the right to it cannot be checked", also_writing=True)
