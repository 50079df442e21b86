"""The audit log that forgets: for tests of everything that writes down what it does."""

from __future__ import annotations

from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from securifile.model.errors import SpoolFull
from securifile.model.interfaces import IAuditLog
from securifile.model.records import AuditRecord


@implementer(IAuditLog)
class MemoryAudit:
    """Keeps records in a list."""

    def __init__(self, *, full: bool = False) -> None:
        self.records: list[AuditRecord] = []
        self.full = full
        """Set it to see requests refused."""

    def keep(self, record: AuditRecord) -> Deferred[None]:
        """Fires at once. Raises `SpoolFull` (by the Deferred)."""
        return defer.execute(self.note, record)

    def note(self, record: AuditRecord) -> None:
        """Take it. Raises `SpoolFull`."""
        if self.full:
            raise SpoolFull("the audit log of this test is full")
        self.records.append(record)

    def has_room(self) -> bool:
        """Unless it was made full."""
        return not self.full
