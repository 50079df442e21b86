"""A `Connection` on a Twisted transport: hello, identity, writing, back-pressure, loss.

What comes after the hello is a *session*'s business: `rpc.Peer` on control connections, the transfers of `bulk` on bulk ones.
The wire owns the socket; the session owns the meaning.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.errors import Code, PeerUnreachable, TurnedAway
from securifile.model.servers import HostPort
from securifile.protocol.connection import (
    Connection,
    Event,
    GoodbyeReceived,
    HelloReceived,
    PeerIdentity,
    ProtocolFailed,
    Purpose,
    Side,
)
from securifile.protocol.messages import Refused
from securifile.protocol.sniff import address_of
from securifile.protocol.tls_layer import Lane

HELLO_S = 5.0
"""From connecting to both hellos exchanged: a handshake takes milliseconds; strangers must not hold sockets."""
LINGER_S = 2.0
"""How long a closing connection may take to deliver its last words before it is cut."""

Connector = Callable[[HostPort, PeerIdentity], IStreamClientEndpoint]
"""How to reach the server at this address that is expected to be this one."""


@attrs.frozen
class Traffic:
    """How many bytes went between this server and others since it was started, by the purpose of the connection; before encryption."""

    received: Counter[Purpose] = attrs.Factory(Counter)
    sent: Counter[Purpose] = attrs.Factory(Counter)

    @property
    def metrics(self) -> dict[str, float]:
        """What `/metrics` tells, by name."""
        ways = {"received": self.received, "sent": self.sent}
        return {f"{purpose.value}_{way}_bytes_total": float(count[purpose]) for way, count in ways.items() for purpose in Purpose}


class Session(Protocol):
    """What a wire talks to after the hello."""

    def handle(self, event: Event) -> None:
        """Something arrived."""

    def writable(self, ready: bool) -> None:
        """The transport's buffer is full (False) or has drained (True)."""

    def lost(self, reason: Exception) -> None:
        """The connection is gone; called once, and last."""


class NotAcceptable(Exception):
    """This connection is refused. Its text goes to the other end.

    Attributes:
        code: for the goodbye.
    """

    def __init__(self, detail: str, code: Code = Code.NOT_A_MEMBER) -> None:
        super().__init__(detail)
        self.code = code


class NotAMember(NotAcceptable):
    """This server knows of no such member. While servers join, some hear of a new one before others do: no reason for a warning."""


Identify = Callable[[ITransport], PeerIdentity | None]
"""Whom the certificate of a connection belongs to (raises `NotAcceptable`); None on a plain connection, where the hello is believed."""


def claimed(transport: ITransport) -> None:
    """The `Identify` for plain connections: whoever they say they are."""


@implementer(IHandshakeListener, IPushProducer)
class Wire(TwistedProtocol):
    """One connection.

    Args:
        clock: timers.
        connection: the sans-IO connection; its side says who speaks first.
        identify: reads the other end's certificate.
        judge: raises `NotAcceptable` when this peer is not welcome (not a member, not who was expected).
        open_session: makes the session when both hellos are exchanged.
        traffic: where its bytes are counted.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        connection: Connection,
        identify: Identify,
        judge: Callable[[PeerIdentity], None],
        open_session: Callable[[Wire], Session],
        traffic: Traffic | None = None,
    ) -> None:
        self.clock = clock
        self.connection = connection
        self.gone = False
        self._identify = identify
        self._judge = judge
        self._open_session = open_session
        self._traffic = Traffic() if traffic is None else traffic
        self._session: Session | None = None
        self._opened: list[Deferred[None]] = []
        self._gone_waiting: list[Deferred[None]] = []
        self._problem: Exception | None = None
        self._certified: PeerIdentity | None = None
        self._timer: Any = None
        self._closing = False
        self._held = False
        self._lane: Lane | None = None
        self._behind = 0
        """Events that have arrived and wait for the one at hand to be handled."""

    # --- for sessions ---

    @property
    def identity(self) -> PeerIdentity:
        """Who is at the other end. Known when the session is opened."""
        assert self.connection.peer is not None
        return self.connection.peer.identity

    @property
    def usable(self) -> bool:
        """Whether something can be sent: neither lost nor closing."""
        return not (self.gone or self._closing or self.connection.closed)

    @property
    def session(self) -> Session | None:
        """What was opened, once it is."""
        return self._session

    def when_open(self) -> Deferred[None]:
        """Fires when the session is open; fails with `PeerUnreachable` when that did not come about."""
        if self.gone:
            return fail(self._problem or PeerUnreachable("the connection was lost"))
        if self._session is not None:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._opened.remove)
        self._opened.append(waiting)
        return waiting

    def when_gone(self) -> Deferred[None]:
        """Fires when the connection is gone; for one that was never made, never."""
        if self.gone:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._gone_waiting.remove)
        self._gone_waiting.append(waiting)
        return waiting

    def send(self, data: bytes) -> None:
        """Hand bytes made by `connection` to the transport."""
        if data and not self.gone:
            self._end_lane()
            self._transport.write(data)
            self._count(self._traffic.sent, data)

    def hold(self) -> None:
        """Take nothing more from the other end until `unhold`."""
        self._held = True
        if not self.gone:
            cast(Any, self._transport).pauseProducing()

    def unhold(self) -> None:
        """Take bytes again."""
        self._held = False
        if not self.gone:
            cast(Any, self._transport).resumeProducing()

    def close(self, code: Code, detail: str) -> None:
        """Say goodbye and close; cut when the other end does not take its leave in time."""
        if self.gone or self._closing:
            return
        self._closing = True
        self._end_lane()
        self._problem = self._problem or PeerUnreachable(f"closed: {detail}")
        self.send(self.connection.goodbye(Refused(code=code.value, detail=detail)))
        self._restart_timer(LINGER_S, self.cut)
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def cut(self) -> None:
        """Close at once; what was not delivered is lost."""
        if not self.gone:
            self._closing = True
            self._end_lane()
            self._transport.abortConnection()

    def lane(self, *, receives: bool) -> Lane | None:
        """A way for a worker's thread to send next on this connection, or to receive; None when there is none now. It is taken back as
        soon as something else is said here.
        """
        make = getattr(self.transport, "lane", None)
        # What has arrived comes first: who is told of one event must not receive by a lane what comes behind the next.
        if make is None or not self.usable or (receives and (self._held or self._behind)):
            return None
        self._lane = make(receives=receives)
        return self._lane

    def watch(self, told: Callable[[], None]) -> bool:
        """Receive nothing more, and call `told` once when something has come, before it is received: see `LargePieces.watch`."""
        watch = getattr(self.transport, "watch", None)
        return watch is not None and self.usable and not self._held and not self._behind and bool(watch(told))

    def lane_closed(self, lane: Lane, events: Sequence[Event]) -> None:
        """A lane is over; `events` came behind what it gave."""
        if self._lane is lane:
            self._lane = None
        if self.connection.purpose is not None:
            self._traffic.sent[self.connection.purpose] += lane.taken
            self._traffic.received[self.connection.purpose] += lane.received
        self._handle_all(events)

    def _end_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()

    # --- Twisted calls us ---

    @property
    def _transport(self) -> Any:
        assert self.transport is not None
        return self.transport

    def connectionMade(self) -> None:
        """The transport is there; with TLS, its handshake is still to come."""
        if ITCPTransport.providedBy(self.transport):
            # Control messages are small and must not wait for more; a dead peer must not stay connected for ever.
            self._transport.setTcpNoDelay(True)
            self._transport.setTcpKeepAlive(True)
        self._restart_timer(HELLO_S, self._hello_is_late)
        self._transport.registerProducer(self, True)
        if not ISSLTransport.providedBy(self.transport):
            self._begin()

    def handshakeCompleted(self) -> None:
        """TLS is up and the other end's certificate chains to the servers' authority."""
        self._begin()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the other end."""
        self._handle_all(self.connection.receive(data))
        self._count(self._traffic.received, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.gone = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        problem = self._problem or PeerUnreachable(f"the connection was lost: {_words(reason)}")
        if self._session is None and self._problem is None and self.connection.side is Side.SERVER:
            # For us: whoever looks whether a port is open does this, and a server that means it logs the reason itself.
            self._log.debug("{peer} has left before its hello: {problem}", peer=self._address(), problem=_words(reason))
        self._problem = problem
        waiting, self._opened = self._opened, []
        for deferred in waiting:
            deferred.errback(problem)
        if self._session is not None:
            self._session.lost(problem)
        leaving, self._gone_waiting = self._gone_waiting, []
        for deferred in leaving:
            deferred.callback(None)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        if self._session is not None:
            self._session.writable(False)

    def resumeProducing(self) -> None:
        """The transport's buffer has drained."""
        if self._session is not None:
            self._session.writable(True)

    def stopProducing(self) -> None:
        """The connection is going away; `connectionLost` will say so."""

    # --- hello ---

    def _begin(self) -> None:
        try:
            self._certified = self._identify(self._transport)
            if self._certified is not None and self.connection.side is Side.CLIENT:
                # Say nothing to a server that is not the one we wanted.
                self._judge(self._certified)
        except NotAcceptable as problem:
            self._refuse(problem)
            return
        if self.connection.side is Side.CLIENT:
            self.send(self.connection.hello())

    def _handle_all(self, events: Sequence[Event]) -> None:
        self._behind += len(events)
        for event in events:
            self._behind -= 1
            if not self.gone:
                self._handle(event)

    def _handle(self, event: Event) -> None:
        if self._closing:
            return
        if isinstance(event, ProtocolFailed):
            self._log.warn(
                "{peer} broke the protocol: {problem}", peer=self._address(), problem=event.refused.detail, server=self._known_name()
            )
            self._problem = PeerUnreachable(f"{self._known_name()} broke the protocol: {event.refused.detail}")
            self.close(Code(event.refused.code), event.refused.detail)
        elif isinstance(event, GoodbyeReceived):
            if self._session is not None and event.refused.code != Code.SHUTTING_DOWN.value:
                # Without a session it is the reason why there is none, and whoever wants to connect says so.
                self._log.info(
                    "{server} says goodbye: {problem}", server=self._known_name(), problem=event.refused.detail, peer=self._address()
                )
            is_stranger = event.refused.code == Code.NOT_A_MEMBER.value
            words = f"{self._known_name()} closed the connection: {event.refused.detail}"
            self._problem = TurnedAway(words) if is_stranger else PeerUnreachable(words)
            self._closing = True
            self._restart_timer(LINGER_S, self.cut)
            self._transport.unregisterProducer()
            self._transport.loseConnection()
        elif isinstance(event, HelloReceived):
            self._hello_received(event)
        elif self._session is not None:
            self._session.handle(event)

    def _hello_received(self, event: HelloReceived) -> None:
        identity = event.hello.identity
        try:
            if self._certified is not None and self._certified != identity:
                raise NotAcceptable(f"the certificate is that of {self._certified}, the hello that of {identity}")
            self._judge(identity)
        except NotAcceptable as problem:
            self._refuse(problem)
            return
        if self.connection.side is Side.SERVER:
            self.send(self.connection.accept())
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._session = self._open_session(self)
        waiting, self._opened = self._opened, []
        for deferred in waiting:
            deferred.callback(None)

    def _refuse(self, problem: NotAcceptable) -> None:
        level = LogLevel.info if isinstance(problem, NotAMember) else LogLevel.warn
        self._log.emit(level, "{peer} is refused: {problem}", peer=self._address(), problem=str(problem), server=self._known_name())
        self._problem = PeerUnreachable(str(problem))
        self.close(problem.code, str(problem))

    def _hello_is_late(self) -> None:
        self._problem = PeerUnreachable(f"no hello within {HELLO_S:g} s")
        self._log.warn("{peer} did not say hello within {allowed_s} s", peer=self._address(), allowed_s=HELLO_S)
        self.cut()

    # --- small parts ---

    def _restart_timer(self, delay_s: float, action: Callable[[], None]) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self.clock.callLater(delay_s, action)

    def _count(self, counter: Counter[Purpose], data: bytes) -> None:
        # Before its hello has come nobody knows what a connection is for.
        if self.connection.purpose is not None:
            counter[self.connection.purpose] += len(data)

    def _address(self) -> str:
        return address_of(self._transport)

    def _known_name(self) -> str:
        if self.connection.peer is not None:
            return str(self.connection.peer.identity)
        return str(self._certified or "the other end")


def _why(error: Exception) -> str:
    """Why a connection did not come about: for what the system says, its words alone."""
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error)


def _words(reason: Failure) -> str:
    """What a person can read of why a connection was lost; OpenSSL hides it in a list of tuples."""
    arguments = reason.value.args if reason.value is not None else ()
    problems = arguments[0] if arguments else None
    if isinstance(problems, list) and all(isinstance(problem, tuple) for problem in problems):
        words = "; ".join(str(problem[-1]) for problem in problems)
        if words in _NO_TLS:
            return "the other end does not speak TLS: was it started with --no-tls?"
        return f"TLS: {words}"
    return reason.getErrorMessage()


_NO_TLS = ("wrong version number", "packet length too long", "record layer failure")
"""OpenSSL's words for bytes that are no TLS record."""


class _OneWire(Factory):
    """A factory for the one protocol that an endpoint's `connect` asks for."""

    noisy = False

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def buildProtocol(self, addr: IAddress | None) -> Wire:
        return self._wire


async def open_wire(endpoint: IStreamClientEndpoint, wire: Wire, timeout_s: float) -> None:
    """Connect `wire` and exchange hellos.

    Raises:
        PeerUnreachable: it did not come about, for the reason given.
    """
    connecting = endpoint.connect(_OneWire(wire))
    late = wire.clock.callLater(timeout_s, connecting.cancel)
    try:
        await connecting
    except (CancelledError, ConnectingCancelledError):
        if late.active():
            raise CancelledError() from None
        raise PeerUnreachable(f"no connection within {timeout_s:g} s") from None
    except Exception as error:
        raise PeerUnreachable(f"no connection: {_why(error)}") from None
    finally:
        if late.active():
            late.cancel()
    try:
        await wire.when_open()
    except CancelledError:
        wire.cut()
        raise
