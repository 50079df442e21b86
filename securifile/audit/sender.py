"""A service that brings what is in a spool to a syslog server, and goes on from the first unconfirmed record after each break.

RFC 5425 has no acknowledgement: a write to a socket says nothing. So what was sent counts only when `confirmed` is called (by the
control connection, on `AuditKept`); at most a window of it is on its way, and if no word comes for `STALL_S`, the connection
is given up and the next address tried. What arrives twice is dropped there by its number.

A copy for a site's own syslog server (`confirming=False`) has nobody to confirm it: it goes along as best it can and never holds the spool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.audit.backoff import Backoff
from securifile.audit.framing import encode_frame
from securifile.audit.spool import Spool, SpoolReader

WINDOW_BYTES = 1 << 20
"""On its way and not confirmed: 3000 records, more than a disk keeps in the time of a round trip and an fsync."""
CHUNK_BYTES = 1 << 17
"""Read from the spool at once; with what the transport holds this is all the memory used."""
GATHER_S = 0.1
"""How long records are gathered once there is one: they are on the disk, and nobody waits for them to arrive. On its way each batch takes
a dozen steps on both servers, a file's fsync and a transaction."""
STALL_S = 30.0
"""Without a word about what is on its way: longer than a group of fsyncs and transactions on a bad day."""
CONNECT_S = 10.0
STEADY_S = 10.0
"""A copy's connection that lived this long counts as one that worked."""


@implementer(IPushProducer)
class Sending(Protocol):
    """One connection on which records go out. It stops when the transport is full, and wakes who waits for it."""

    def __init__(self) -> None:
        self.lost = False
        self.full = False
        self._waiting: Deferred[None] | None = None

    def connectionMade(self) -> None:
        """Let the transport say when it is full."""
        assert self.transport is not None
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]  # ITransport does not say so; every stream has it

    def dataReceived(self, data: bytes) -> None:
        """Nothing is ever said in this direction."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Wake who waits: it is over."""
        self.lost = True
        self.wake()

    def pauseProducing(self) -> None:
        """The transport is full."""
        self.full = True

    def resumeProducing(self) -> None:
        """It has room again."""
        self.full = False
        self.wake()

    def stopProducing(self) -> None:
        """It will take no more; `connectionLost` follows."""
        self.full = True

    def news(self) -> Deferred[None]:
        """Fires at the next `wake`."""
        self._waiting = Deferred()
        return self._waiting

    def wake(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def end(self, *, politely: bool) -> None:
        """Close, or drop at once."""
        if self.transport is None or self.lost:
            return
        self.transport.unregisterProducer()  # type: ignore[attr-defined]
        if politely:
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()  # type: ignore[attr-defined]


class AuditSender(Service):
    """Keeps one connection to one of several syslog servers, and sends it what is in the spool."""

    _log = Logger()

    def __init__(
        self,
        spool: Spool,
        endpoints: Callable[[], Sequence[IStreamClientEndpoint]],
        *,
        clock: IReactorTime,
        random: Callable[[int], bytes],
        confirming: bool = True,
        window_bytes: int = WINDOW_BYTES,
        stall_s: float = STALL_S,
    ) -> None:
        """The spool is open when this starts, and is closed after this has stopped.

        Args:
            endpoints: where to send to, now: asked before each attempt. One after the other is tried. TLS is their business.
            confirming: False for a copy to a server that confirms nothing.
        """
        self._spool = spool
        self._endpoints = endpoints
        self._clock = clock
        self._backoff = Backoff(random)
        self._confirming = confirming
        self._window_bytes = window_bytes
        self._stall_s = stall_s
        self._turn = 0
        self._connection: Sending | None = None
        self._in_flight: deque[tuple[str, int, int]] = deque()
        """Boot, number, bytes: sent on this connection and not confirmed."""
        self._in_flight_bytes = 0
        self._stall: IDelayedCall | None = None
        self._work: Deferred[None] | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._copy_reader: SpoolReader | None = None

    # --- what others tell ---

    def confirmed(self, boot: str, number: int) -> None:
        """An admin server keeps the records of this boot up to this number (`AuditKept`)."""
        self._spool.confirm(boot, number)
        before = len(self._in_flight)
        # In order of sending; boots come one after the other.
        left = deque((known, sent, size) for known, sent, size in self._in_flight if known != boot or sent > number)
        if len(left) == before:
            return
        self._in_flight = left
        self._in_flight_bytes = sum(size for _, _, size in left)
        self._backoff.succeeded()
        self._watch_for_stall(anew=True)
        if self._connection is not None:
            self._connection.wake()

    # --- life ---

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()  # type: ignore[no-untyped-call]
        self._unwatch = self._spool.watch(self._more)
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._ended)

    def stopService(self) -> None:
        """Stop at once: what is not confirmed is in the spool."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._unwatch()
        self._unwatch = lambda: None
        if self._work is not None:
            work, self._work = self._work, None
            work.cancel()

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("audit records are sent no more", failure=failure)

    def _more(self) -> None:
        if self._connection is not None:
            self._connection.wake()

    async def _run(self) -> None:
        while True:
            endpoints = self._endpoints()
            if endpoints:
                self._turn += 1
                endpoint = endpoints[(self._turn - 1) % len(endpoints)]
                try:
                    await self._connect_and_send(endpoint)
                except CancelledError:
                    raise
                except Exception as error:  # no connection, no certificate, no disk: each is a reason to try the next
                    if not self.running:
                        return  # an attempt that is cancelled may fail with a name of its own
                    self._log.info("audit records cannot be sent to {endpoint}: {error}", endpoint=endpoint, error=error)
            await deferLater(self._clock, self._backoff.failed())

    async def _connect_and_send(self, endpoint: IStreamClientEndpoint) -> None:
        connection = await endpoint.connect(Factory.forProtocol(Sending)).addTimeout(CONNECT_S, self._clock)
        assert isinstance(connection, Sending)
        since = self._clock.seconds()
        self._connection = connection
        politely = False
        try:
            await self._send(connection)
        except CancelledError:
            politely = True
            raise
        finally:
            self._connection = None
            self._in_flight.clear()
            self._in_flight_bytes = 0
            self._watch_for_stall()
            # Whoever waited for news is on its way out, and must not be woken by the end of the connection.
            connection.news()
            connection.end(politely=politely)
        if not self._confirming and self._clock.seconds() - since > STEADY_S:
            self._backoff.succeeded()

    async def _send(self, connection: Sending) -> None:
        """Send until the connection is lost."""
        reader = self._reader()
        while not connection.lost:
            if connection.full or self._in_flight_bytes >= self._window_bytes:
                await connection.news()
                continue
            # Taken before the spool is asked: what comes while it answers is not overlooked.
            news = connection.news()
            records = await reader.next(CHUNK_BYTES)
            if not records:
                await news
                # A copy must not be late: what is confirmed to the other sender leaves the spool.
                if self._confirming and not connection.lost:
                    await deferLater(self._clock, GATHER_S)
                continue
            assert connection.transport is not None
            frames = [encode_frame(spooled.payload) for spooled in records]
            if self._confirming:
                for spooled, frame in zip(records, frames, strict=True):
                    self._in_flight.append((spooled.boot, spooled.number, len(frame)))
                    self._in_flight_bytes += len(frame)
                self._watch_for_stall()
            connection.transport.write(b"".join(frames))

    def _reader(self) -> SpoolReader:
        """From the first unconfirmed record; a copy goes on where it was, for nothing tells it better."""
        if self._confirming:
            return self._spool.reader()
        if self._copy_reader is None:
            self._copy_reader = self._spool.reader()
        return self._copy_reader

    def _watch_for_stall(self, *, anew: bool = False) -> None:
        if self._stall is not None and (anew or not self._in_flight):
            self._stall.cancel()
            self._stall = None
        if self._stall is None and self._in_flight:
            self._stall = self._clock.callLater(self._stall_s, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        self._log.warn("no admin server confirmed audit records for {seconds} s", seconds=self._stall_s)
        if self._connection is not None:
            self._connection.end(politely=False)
