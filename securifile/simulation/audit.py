"""A server's audit log in a run: what its disk holds survives the process, what is on the way to it does not."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from securifile.model.interfaces import IAuditLog
from securifile.model.records import AuditRecord

NOTED_S = 0.1
"""Within which what is noted is on the disk."""


@implementer(IAuditLog)
class SimulatedAudit:
    """Writes records to `disk`, a list that outlives the process."""

    def __init__(self, clock: IReactorTime, takes_s: Callable[[], float], disk: list[AuditRecord]) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self._disk = disk

    def keep(self, record: AuditRecord) -> Deferred[None]:
        """See `IAuditLog`."""
        return deferLater(self._clock, self._takes_s(), self._disk.append, record)

    def note(self, record: AuditRecord) -> None:
        """See `IAuditLog`."""
        self._clock.callLater(NOTED_S, self._disk.append, record)

    def has_room(self) -> bool:
        """See `IAuditLog`."""
        return True
