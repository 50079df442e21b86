"""An admin server's syslog port: RFC 5425, kept by a `Keeper`.

TLS is the caller's: this factory is wrapped in it, and asks it who the peer is. A peer speaks only for itself: a record that names
another server is written down as what it is, a stranger's message, and is never confirmed.

Syslog knows no answer, so the only brake is TCP's: while the keeper has no room, the connections are not read, and what is not read
stays in the senders' spools.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IAddress, IReactorTime, ITransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.audit.backoff import Backoff
from securifile.audit.framing import FrameDecoder, FramingError
from securifile.audit.keeping import ForeignMessage, Keeper, ReceivedRecord
from securifile.audit.records import ELEMENT, FACILITY_AUDIT, WARNING, MalformedMessage, SyslogMessage, parse_message, record_of
from securifile.audit.rounds import Rounds

CONNECTIONS_MAX = 1024
"""Each may hold one unfinished message of 64 KiB and what one read brings."""


class AuditReceiver(Factory):
    """Makes a `Receiving` for each connection."""

    noisy = False

    def logPrefix(self) -> str:
        """What `twistd` says listens on the port."""
        return "syslog for audit records"

    def __init__(
        self,
        keeper: Keeper,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        random: Callable[[int], bytes],
        peer_name: Callable[[ITransport], str | None],
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """Several connections of one server are fine: an old one may take its time to die.

        Args:
            wall: seconds since 1970, for what is written about strangers' messages.
            peer_name: the server's name by its certificate; None without TLS: then its records are believed. Asked when the first
                message is there, so after the handshake.
        """
        self.keeper = keeper
        self.clock = clock
        self.wall = wall
        self.random = random
        self.peer_name = peer_name
        self.connections = 0
        self._connections_max = connections_max

    def buildProtocol(self, addr: IAddress | None) -> Receiving | None:
        """None, which closes the connection, when there are too many."""
        if self.connections >= self._connections_max:
            return None
        receiving = Receiving(self)
        receiving.factory = self
        return receiving


class Receiving(Protocol):
    """One connection on which messages arrive."""

    _log = Logger()

    def __init__(self, receiver: AuditReceiver) -> None:
        self._receiver = receiver
        self._keeper = receiver.keeper
        self._decoder = FrameDecoder()
        self._backoff = Backoff(receiver.random)
        self._inbox: deque[ReceivedRecord | ForeignMessage] = deque()
        self._offering = Rounds("taking messages", self._offer)
        self._begun: set[tuple[str, str]] = set()
        self._peer = "?"
        self._name: str | None = None
        self._named = False
        self._gone = False
        """Not to be touched any more."""
        self._lost = False
        self._ended = False

    def connectionMade(self) -> None:
        """Count it."""
        self._receiver.connections += 1
        assert self.transport is not None
        address = self.transport.getPeer()
        self._peer = address.host if isinstance(address, IPv4Address | IPv6Address) else str(address)

    def dataReceived(self, data: bytes) -> None:
        """Take in what is complete, and read on when it has found its place."""
        for event in self._decoder.receive(data):
            if isinstance(event, FramingError):
                self._log.warn("{peer} does not speak RFC 5425: {reason}", peer=self._peer, reason=event.reason)
                assert self.transport is not None
                # Not politely: a peer that breaks one protocol may break TLS' good-bye too, and never go.
                self._gone = True
                self.transport.abortConnection()  # type: ignore[attr-defined]  # ITransport does not say so; every stream has it
            else:
                self._inbox.append(self._read(event))
        self._offering.ask()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the records not yet offered: they were not confirmed and will come again. Strangers' messages will not, so they stay."""
        self._gone = self._lost = True
        if not self._decoder.clean:
            self._log.info("the connection of {peer} ended within a message", peer=self._peer)
        self._offering.cancel()
        self._inbox = deque(message for message in self._inbox if isinstance(message, ForeignMessage))
        self._offering.ask()

    async def _offer(self) -> None:
        paused = False
        while self._inbox:
            message = self._inbox[0]
            if not paused and not (self._keeper.has_room and self._known(message)):
                paused = True
                self._pause(True)
            # Strangers' messages stand in the same queue: one bound for all is easier to trust than two.
            await self._keeper.room()
            if isinstance(message, ReceivedRecord) and not self._known(message):
                await self._begin(message.server, message.boot)
            self._inbox.popleft()
            self._keeper.offer(message)
        if paused:
            self._pause(False)
        if self._lost and not self._ended:
            # Only now: what a connection leaves behind is memory too.
            self._ended = True
            self._receiver.connections -= 1

    def _known(self, message: ReceivedRecord | ForeignMessage) -> bool:
        return isinstance(message, ForeignMessage) or (message.server, message.boot) in self._begun

    def _pause(self, paused: bool) -> None:
        producer = self.transport
        if self._gone or producer is None:
            return
        if paused:
            producer.pauseProducing()  # type: ignore[attr-defined]  # ITransport does not say so; every stream has it
        else:
            producer.resumeProducing()  # type: ignore[attr-defined]

    async def _begin(self, server: str, boot: str) -> None:
        """Ask how far a boot is kept, once a connection, as long as it takes."""
        while True:
            try:
                await self._keeper.begin(server, boot)
            except CancelledError:
                raise
            except Exception as error:  # whatever a database may say: the sender waits
                self._log.error("audit records of {server} wait: {error}", server=server, error=error)
                await deferLater(self._receiver.clock, self._backoff.failed())
            else:
                self._backoff.succeeded()
                self._begun.add((server, boot))
                return

    def _read(self, data: bytes) -> ReceivedRecord | ForeignMessage:
        if not self._named:
            assert self.transport is not None
            self._named, self._name = True, self._receiver.peer_name(self.transport)
        try:
            message = parse_message(data)
        except MalformedMessage as error:
            return self._wrapped(data, str(error))
        numbered = record_of(message)
        if numbered is not None and self._name in (None, numbered.record.server):
            server = numbered.record.server
            return ReceivedRecord(server=server, boot=numbered.boot, number=numbered.number, record=numbered.record, line=data)
        if _claims(message):
            return self._wrapped(data, "it claims to be a record of ours")
        return ForeignMessage(line=data)

    def _wrapped(self, data: bytes, why: str) -> ForeignMessage:
        """A message that cannot stand in the file as it is, for it would make the file lie: told, not shown."""
        self._log.warn("a message of {peer} is not what it should be: {why}", peer=self._name or self._peer, why=why)
        now = datetime.fromtimestamp(self._receiver.wall(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = f"<{FACILITY_AUDIT * 8 + WARNING}>1 {now} - securifile - foreign - from {self._name or self._peer}, {why}: "
        return ForeignMessage(line=head.encode("utf-8") + data)


def _claims(message: SyslogMessage) -> bool:
    return any(element.name == ELEMENT for element in message.elements)
