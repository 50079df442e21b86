"""HTTP/1.1 on a connection: requests go to their resource when their head is complete; bodies and answers are streams.

Twisted's own channel hands a request over only after its whole body was spooled to a file, answers `100 Continue` by
itself and re-arms its timeout with every byte. So channel and framing are ours: `wire.py` reads the bytes, `request.py` is
what a route is given, `outflow.py` sends what it answers.

    head complete -> route runs --+-- reads the body ----------> answer -> next request
                                  +-- answers without reading -> rest of the body dropped, if it is short,
                                                                 or answer, half-close, linger, close

One request at a time: what a client sends before the answer to the last is held, bounded, until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocolNegotiationFactory, IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers
from zope.interface import implementer

from securifile.http.body import LANE_BYTES_MIN, BodyLane
from securifile.http.connections import Connections
from securifile.http.limits import Access, HttpLimits
from securifile.http.outflow import Outflow
from securifile.http.problems import Problem, problem
from securifile.http.request import Request
from securifile.http.wire import BodyReader, HeadReader, LengthBody, body_reader
from securifile.model.errors import Code, Refusal, StreamBroken

DEFAULT_LIMITS = HttpLimits()
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpChannel(Protocol):
    """One connection: reads heads and bodies, lets one request at a time answer, and ends what takes too long.

    There is one timer, for what is being waited for (a head, more body, the end), and one for a client that takes nothing.
    """

    factory: HttpFactory

    def __init__(self, factory: HttpFactory) -> None:
        self.factory = factory
        self.site = factory
        self.clock = factory.clock
        self.limits = factory.limits
        self._request: Request | None = None
        self._head_reader: HeadReader | None = None
        self._body_reader: BodyReader | None = None
        """While a body is arriving, also when nobody wants it any more."""
        self._held = b""
        self._dispatching = False
        self._leaving = False
        self._lost = False
        self._last_request = False
        """The connection ends after the answer at hand."""
        self._continue_owed = False
        self._reading_paused = False
        self._timer: IDelayedCall | None = None
        self._window_bytes = 0
        self._window_excused = False
        self.out = Outflow(self.clock, self.limits, self._outflow_changed, lambda: self.abort("The client takes nothing of the answer."))

    # --- the connection ---

    def connectionMade(self) -> None:
        """A client has come."""
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self.out.begin(self.transport)
        self._arm(self.limits.header_timeout_s, self._head_late)
        self.factory.arrived(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone, or we closed."""
        self._lost = self._leaving = True
        self._disarm()
        self.factory.left(self)
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(reason)
        self.out.lost()

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come: of a body, or of the next head."""
        if self._leaving:
            return
        if self._body_reader is not None:
            self._take_body(data)
        else:
            self._held += data
        self._go_on()
        self._regulate()

    def _go_on(self) -> None:
        """Read heads from what is held, and dispatch, until there is a request that does not end at once."""
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while self._held and self._may_begin():
                self._take_head()
        finally:
            self._dispatching = False

    def _may_begin(self) -> bool:
        return not self._leaving and self._request is None and self._body_reader is None and not self.out.is_full

    def _take_head(self) -> None:
        data, self._held = self._held, b""
        if self._head_reader is None:
            self._head_reader = HeadReader(self.limits.head)
        reader = self._head_reader
        if not reader.begun and self.factory.begins(self):
            self._arm(self.limits.header_timeout_s, self._head_late)
        try:
            head = reader.feed(data)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        if head is None:
            return
        self._disarm()
        self._head_reader = None
        self._last_request = not head.keep_alive or self.factory.stopping
        request = self._request = Request(self, head)
        if head.has_body:
            self._continue_owed = head.expects_continue
            self._body_reader = body_reader(head)
            self._take_body(reader.rest)
            if self._body_reader is not None and not self._continue_owed and self._timer is None:
                self._begin_window()
        else:
            request.body.ended = True
            self._held = reader.rest
        if self._request is request:
            request.dispatch()

    # --- the body ---

    def _take_body(self, data: bytes) -> None:
        reader = self._body_reader
        assert reader is not None
        if not data:
            return
        try:
            pieces = reader.feed(data)
        except Refusal as refusal:
            self._cut_short(refusal)
            return
        if self._continue_owed:  # Who sends already does not wait for it.
            self._continue_owed = False
            self._begin_window()
        self._window_bytes += len(data)
        if reader.ended:
            self._body_reader = None
            self._disarm()
            self._held += reader.rest
        if self._request is not None:
            self._request.body.deliver(pieces, reader.ended)
        elif reader.ended:
            self._await_request()

    def body_changed(self) -> None:
        """The route has read, or wants no more."""
        request = self._request
        if request is None or self._lost:
            return
        if self._continue_owed and not request.started and not request.body.closed:
            self._continue_owed = False
            self.out.send([CONTINUE], 0)
            self._begin_window()
        self._regulate()

    def body_lane(self) -> BodyLane | None:
        """A way for a worker's thread to take the body; None when there is none now, or when it is not worth it."""
        reader = self._body_reader
        make = getattr(self.transport, "lane", None)
        if make is None or self._lost or self._leaving or self._continue_owed or not isinstance(reader, LengthBody):
            return None
        missing = reader.missing
        if missing < LANE_BYTES_MIN or (lane := make(receives=True)) is None:
            return None
        return BodyLane(lane, missing, lambda count: self._body_passed(reader, count))

    def _body_passed(self, reader: LengthBody, count: int) -> None:
        """So much of the body came by a lane."""
        reader.passed(count)
        self._window_bytes += count
        if self._body_reader is not reader:
            return
        if reader.ended:
            self._body_reader = None
            self._disarm()
        if self._request is not None:
            self._request.body.passed(count, reader.ended)

    def _regulate(self) -> None:
        """Let the client wait, or go on, by what is held."""
        if self._lost:
            return
        unread = self._request.body.unread if self._request is not None else 0
        full = not self._leaving and (unread > self.limits.unread_bytes_max or len(self._held) > self.limits.held_bytes_max)
        if full and not self._reading_paused:
            self._reading_paused = self._window_excused = True
            self._producing().pauseProducing()
        elif not full and self._reading_paused:
            self._reading_paused = False
            self._producing().resumeProducing()

    def _begin_window(self) -> None:
        self._window_bytes, self._window_excused = 0, self._reading_paused
        self._arm(self.limits.body_window_s, self._window_over)

    def _window_over(self) -> None:
        """A minute of body is over: was it enough? A client that we made wait in that minute is excused."""
        if self._window_excused or self._window_bytes >= self.factory.limits.upload_rate_min * self.limits.body_window_s:
            self._begin_window()
        else:
            self._cut_short(Refusal(Code.TIMEOUT, "The body came too slowly; nothing was done. Send it again over a better connection."))

    def _cut_short(self, refusal: Refusal) -> None:
        """The body cannot go on."""
        request, self._request = self._request, None
        started = request is not None and request.started
        self._body_reader = None
        self._disarm()
        if request is not None:
            self._last_request = True
            request.cut_short(refusal)
        if self._lost:
            return
        if started:
            self.abort("The body was cut off.")
        else:
            self._leave(linger=True)

    # --- the answer ---

    def decide_persistence(self) -> bool:
        """Whether the connection can be used again after the answer that begins now."""
        reader = self._body_reader
        # Of a body that is not here yet we must know that it is short, and that the client will send it.
        if reader is not None and (self._continue_owed or reader.missing is None or reader.missing > self.limits.drain_bytes_max):
            self._last_request = True
        return not self._last_request

    def send_head(self, status: int, headers: Headers, keep: bool) -> None:
        """Send the head of an answer; unless `keep`, it says that the connection ends."""
        if not keep:
            self._last_request = True
            headers.setRawHeaders(b"Connection", [b"close"])
        if self.factory.wall is not None and not headers.hasHeader(b"Date"):
            headers.setRawHeaders(b"Date", [self.factory.date(int(self.factory.wall()))])
        if not headers.hasHeader(b"X-Content-Type-Options"):
            headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, http.RESPONSES.get(status, b"Unknown"))]
        for name, values in headers.getAllRawHeaders():
            lines.extend(b"%b: %b\r\n" % (name, value) for value in values)
        lines.append(b"\r\n")
        self.out.send(lines, 0)

    def send_problem(self, answer: Problem, silent: bool = False) -> None:
        """Send an answer of our own; the connection ends with it."""
        headers = Headers()
        for name, value in answer.headers:
            headers.addRawHeader(name, value)
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])
        self.send_head(answer.status, headers, False)
        if not silent:
            self.out.send([answer.body], len(answer.body))

    def producer_changed(self) -> None:
        """Pass the transport's wish on to a Twisted producer, if one writes the answer; pull those that must be pulled."""
        request = self._request
        if request is None or request.producer is None:
            return
        if request.streamingProducer:
            if self.out.is_full:
                request.producer.pauseProducing()
            else:
                request.producer.resumeProducing()
            return
        while not self.out.is_full and self._request is request and request.producer is not None:
            request.producer.resumeProducing()

    def _outflow_changed(self) -> None:
        self.producer_changed()
        self._go_on()
        self._regulate()

    def request_done(self) -> None:
        """The answer is complete: on to the next, or to the end."""
        self._request = None
        if self._lost or self._leaving:
            return
        if self._last_request:
            self._leave(linger=self._body_reader is not None)
        elif self._body_reader is not None:
            self._arm(self.limits.drain_s, lambda: self._leave(linger=True))
        else:
            self._await_request()
        self._go_on()
        self._regulate()

    # --- between requests, and the end ---

    def _await_request(self) -> None:
        if self._leaving:
            return
        self._arm(self.limits.idle_timeout_s, self._idle_over)
        self.factory.rests(self)

    def _idle_over(self) -> None:
        self._leave(linger=False)

    def _head_late(self) -> None:
        if self._head_reader is not None and self._head_reader.begun:
            self.refuse(Refusal(Code.TIMEOUT, "The head of the request came too slowly."))
        else:
            self._leave(linger=False)

    def refuse(self, refusal: Refusal, silent: bool = False) -> None:
        """Answer a request whose head was not read to its end, or not at all, and end; `silent` without content, as for `HEAD`."""
        if self._leaving:
            return
        answer = problem(refusal)
        self._head_reader = None
        self.send_problem(answer, silent)
        if self.factory.log_access is not None:
            peer = self._producing().getPeer()
            self.factory.log_access(
                Access(
                    peer=str(getattr(peer, "host", peer)),
                    method="-",
                    target="-",
                    version="-",
                    status=answer.status,
                    sent=len(answer.body),
                    received=0,
                    duration_s=0.0,
                    user=None,
                    agent=None,
                    complete=True,
                )
            )
        self._leave(linger=True)

    def turn_away(self) -> None:
        """There are too many connections, and none of them is idle."""
        self.refuse(Refusal(Code.TOO_MANY_CONNECTIONS, "This server has too many connections; try another or later.", retry_after_s=5.0))

    def end_soon(self) -> None:
        """End after the answer at hand; at once when there is none."""
        self._last_request = True
        if self._request is None and not self._leaving:
            self._leave(linger=False)

    def _leave(self, linger: bool) -> None:
        """Say nothing more; close when the client has what was said, and, to `linger`, has had the time to read it."""
        if self._leaving:
            return
        self._leaving = True
        self._held = b""
        self.factory.leaves(self)
        self._regulate()
        patience_s = (self.limits.linger_s if linger else self.limits.send_stall_s) + self.out.end()
        self._arm(patience_s, lambda: self.abort("The client does not close."))
        transport = self._producing()
        half_close = None if self.isSecure() else getattr(transport, "loseWriteConnection", None)
        if linger and half_close is not None:
            half_close()
        else:
            # With TLS this sends close_notify, and goes on reading (and dropping) until the client's own.
            transport.loseConnection()

    def abort(self, why: str) -> None:
        """Close at once, unsent bytes are lost. The route finds the client gone."""
        if self._lost:
            return
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(Failure(StreamBroken(why)))
        if not self._leaving:
            self._leaving = True
            self.factory.leaves(self)
            self.out.end()
        self._disarm()
        self._producing().abortConnection()

    def _arm(self, seconds: float, call: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.clock.callLater(seconds, self._timer_over, call)

    def _timer_over(self, call: Callable[[], None]) -> None:
        self._timer = None
        call()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what Twisted's request asks of its channel ---

    def getPeer(self) -> IAddress:
        """The client's address."""
        address: IAddress = self._producing().getPeer()
        return address

    def getHost(self) -> IAddress:
        """Our address."""
        address: IAddress = self._producing().getHost()
        return address

    def isSecure(self) -> bool:
        """Whether the connection is TLS."""
        return ISSLTransport(self.transport, None) is not None

    def loseConnection(self) -> None:
        """Close after what was sent."""
        self._leave(linger=False)

    def _producing(self) -> Any:
        """The transport, which has a method more in each kind."""
        return self.transport


@implementer(IProtocolNegotiationFactory)
class HttpFactory(Connections[HttpChannel], ServerFactory):
    """Makes channels."""

    protocol = None
    noisy = False

    def logPrefix(self) -> str:
        """What `twistd` says listens on the port."""
        return "HTTP"

    def buildProtocol(self, addr: IAddress | None) -> HttpChannel:  # type: ignore[override]
        """A channel for a new connection."""
        return HttpChannel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What we speak, for clients that negotiate it in the TLS handshake (ALPN); curl and browsers do."""
        return [b"http/1.1"]


def http_factory(
    resource: Any,
    clock: IReactorTime,
    limits: HttpLimits = DEFAULT_LIMITS,
    log_access: Callable[[Access], None] | None = None,
    *,
    wall: Callable[[], float] | None = None,
) -> HttpFactory:
    """A factory that serves `resource` (Klein's, for instance).

    Args:
        resource: an `IResource`; its routes get `Request` objects.
        clock: of every timer.
        limits: what a connection may take.
        log_access: called at the end of each request; must not raise.
        wall: seconds since 1970, for the `Date` header. A server without a clock must not send one (RFC 9110, section 6.6.1).
    """
    return HttpFactory(resource, clock, limits, log_access, wall)
