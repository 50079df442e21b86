"""An admin server's own audit records: kept like everybody's, without a network between.

They go to a spool first, so that an event is on the disk while SQL is away, and from there to the keeper.
"""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.audit.keeping import Keeper, ReceivedRecord
from securifile.audit.records import parse_message, record_of
from securifile.audit.spool import Spool, Spooled
from securifile.model.interfaces import IAuditLog
from securifile.model.records import AuditRecord

RETRY_S = 1.0
CHUNK_BYTES = 1 << 17


@implementer(IAuditLog)
class LocalAudit(Service):
    """The audit log of a server that has the keeper in the same process."""

    _log = Logger()

    def __init__(self, spool: Spool, keeper: Keeper, *, server: str, clock: IReactorTime) -> None:
        """The spool is open, and the keeper runs, when this starts.

        Args:
            server: this server's name, as its records say it.
        """
        self._spool = spool
        self._keeper = keeper
        self._server = server
        self._clock = clock
        self._begun: set[str] = set()
        self._news: Deferred[None] | None = None
        self._work: Deferred[None] | None = None
        keeper.watch(self._kept)
        spool.watch(self._more)

    def keep(self, record: AuditRecord) -> Deferred[None]:
        """See `Spool.keep`."""
        return self._spool.keep(record)

    def note(self, record: AuditRecord) -> None:
        """See `Spool.note`."""
        self._spool.note(record)

    def has_room(self) -> bool:
        """See `Spool.has_room`."""
        return self._spool.has_room()

    def startService(self) -> None:
        """Begin to hand over what is in the spool."""
        super().startService()  # type: ignore[no-untyped-call]
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._ended)

    def stopService(self) -> None:
        """Stop; what is not kept is in the spool."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._work is not None:
            work, self._work = self._work, None
            work.cancel()

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("the server's own audit records are handed over no more", failure=failure)

    def _kept(self, server: str, boot: str, number: int) -> None:
        if server == self._server:
            self._spool.confirm(boot, number)

    def _more(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.called:
            news.callback(None)

    async def _run(self) -> None:
        while True:
            try:
                await self._hand_over()
            except CancelledError:
                raise
            except Exception as error:  # SQL or the disk: what was not kept is read again from the spool
                self._log.error("the server's own audit records wait: {error}", error=error)
                await deferLater(self._clock, RETRY_S)

    async def _hand_over(self) -> None:
        reader = self._spool.reader()
        while True:
            await self._keeper.room()
            news = self._news = Deferred()
            spooled = await reader.next(CHUNK_BYTES)
            if not spooled:
                await news
            for one in spooled:
                if one.boot not in self._begun:
                    await self._keeper.begin(self._server, one.boot)
                    self._begun.add(one.boot)
                self._keeper.offer(self._received(one))

    def _received(self, spooled: Spooled) -> ReceivedRecord:
        numbered = record_of(parse_message(spooled.payload))
        assert numbered is not None, "our own spool holds only records of ours"
        record = numbered.record
        return ReceivedRecord(server=self._server, boot=spooled.boot, number=spooled.number, record=record, line=spooled.payload)
