"""HTTP/1.1 on a connection: requests go to their resource when their head is complete; bodies and answers are streams.

Twisted's own channel hands a request over only after its whole body was spooled to a file, answers `100 Continue` by
itself and re-arms its timeout with every byte. So channel and framing are ours (`wire.py` reads the bytes); of
`twisted.web` there is the request object, which Klein and resources need, and nothing else. What that object does in its
own way (writing heads, chunks, logging) is replaced here. This is the one module that knows how it works inside;
`tests/http/test_twisted_parts.py` fails when those parts change (known good: Twisted 26.10).

    head complete -> route runs --+-- reads the body ----------> answer -> next request
                                  +-- answers without reading -> rest of the body dropped, if it is short,
                                                                 or answer, half-close, linger, close

One request at a time: what a client sends before the answer to the last is held, bounded, until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from email.utils import formatdate
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocolNegotiationFactory, IPushProducer, IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from zope.interface import implementer

from securifile.http.body import LANE_BYTES_MIN, BodyLane, RequestBody
from securifile.http.limits import Access, HttpLimits
from securifile.http.problems import Problem, internal_error, problem, refusal_of
from securifile.http.targets import percent_decode
from securifile.http.tickets import redact_uri
from securifile.http.wire import METHODS, BodyReader, Head, HeadReader, LengthBody, body_reader
from securifile.model.errors import Code, Refusal, StreamBroken
from securifile.model.interfaces import IByteSink

__all__ = ["Access", "HttpChannel", "HttpFactory", "HttpLimits", "Request", "ResponseSink", "http_factory"]

DEFAULT_LIMITS = HttpLimits()
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

HeaderList = Iterable[tuple[bytes | str, bytes | str]]


@implementer(IByteSink)
class ResponseSink:
    """The content of an answer on its way out; what `Request.start` gives."""

    def __init__(self, request: Request, length: int | None, chunked: bool, silent: bool) -> None:
        self._request = request
        self._length = length
        self._chunked = chunked
        self._silent = silent
        self._taken = 0

    def write(self, data: bytes) -> Deferred[None]:
        """Send `data`; fires when more is welcome. Of an answer to `HEAD` nothing is sent.

        Raises:
            StreamBroken: the client has gone.
            RuntimeError: more was written than `start` was told; the answer is cut off.
        """
        request = self._request
        if request.is_over:
            return fail(StreamBroken("The client has gone, or the answer is over."))
        self._taken += len(data)
        if self._length is not None and self._taken > self._length:
            self.abort()
            return fail(RuntimeError(f"{self._taken} bytes were written to an answer of {self._length}"))
        if self._silent or not data:
            return succeed(None)
        request.sentLength += len(data)
        if self._chunked:
            request.channel.send([b"%x\r\n" % len(data), data, b"\r\n"], len(data))
        else:
            request.channel.send([data], len(data))
        return request.channel.room()

    def lane(self) -> Any:
        """A `Lane`, through which a worker's thread can send what comes next; None when there is none now, or when it is not worth it."""
        left = 0 if self._length is None else self._length - self._taken
        if self._request.is_over or self._silent or left < LANE_BYTES_MIN:
            return None
        return self._request.channel.lane()

    def sent(self, count: int) -> None:
        """So many bytes went through a lane, which is closed."""
        self._taken += count
        self._request.sentLength += count
        self._request.channel.count(count)

    def room(self) -> Deferred[None]:
        """Fires when more is welcome; fails as `write` does."""
        if self._request.is_over:
            return fail(StreamBroken("The client has gone, or the answer is over."))
        return self._request.channel.room()

    def finish(self) -> None:
        """The answer is complete. When bytes are missing, it is cut off, so that the client notices. Harmless twice."""
        request = self._request
        if request.is_over:
            return
        if self._length is not None and self._taken < self._length and not self._silent:
            self.abort()
            return
        if self._chunked and not self._silent:
            request.channel.send([b"0\r\n\r\n"], 0)
        request.complete()

    def abort(self) -> None:
        """Close the connection so that the client cannot take what it got for the whole. Harmless twice."""
        if not self._request.is_over:
            self._request.channel.abort("The answer was cut off by this server.")


class Request(server.Request):
    """A request, from its complete head on. For routes:

    Attributes:
        body: an `IByteSource`; not a byte of it need have arrived.
        content_length: as the client said; None when it sends chunks, or nothing.
        has_body: whether there is a body at all.
        user: whose request it is, once known: for the access log.
        is_over: the answer is complete, or the client has gone; nothing can be written any more.
    """

    channel: HttpChannel  # type: ignore[assignment]  # Twisted's request asks no more of a channel than ours has.
    defaultContentType = None
    _log = Logger()

    def __init__(self, channel: HttpChannel, head: Head) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]
        self.head = head
        self.content_length = head.content_length
        self.has_body = head.has_body
        self.user: str | None = None  # type: ignore[assignment]  # there: the bytes of Basic credentials
        self.is_over = False
        self.begun_at = channel.clock.seconds()
        self.body = RequestBody(channel.body_changed, channel.body_lane)
        self.method = head.method
        self.path = head.path
        self.uri = head.path if head.query is None else head.path + b"?" + head.query
        self.clientproto = head.version
        self.args = {} if head.query is None else http.parse_qs(head.query, True)
        for name, value in head.fields:
            self.requestHeaders.addRawHeader(name, value)
        self._always: list[tuple[bytes | str, bytes | str]] = []
        self._sink: ResponseSink | None = None
        self._held: bytes | None = None
        self._flush: IDelayedCall | None = None

    # --- for routes ---

    def header(self, name: str) -> str | None:
        """The value of a request's header; several of one name are joined with commas (RFC 9110, section 5.3)."""
        values = self.requestHeaders.getRawHeaders(name.encode("ascii"))
        return None if values is None else ", ".join(_text(value) for value in values)

    def query(self, name: str) -> str | None:
        """The value of a parameter in the query.

        Raises:
            Refusal: BAD_REQUEST when it is there more than once, or is not UTF-8.
        """
        values = self.queries(name)
        if len(values) > 1:
            raise Refusal(Code.BAD_REQUEST, f"The parameter {name} may be given once.")
        return values[0] if values else None

    def queries(self, name: str) -> list[str]:
        """All values of a parameter in the query, in order.

        Raises:
            Refusal: BAD_REQUEST when one is not UTF-8.
        """
        try:
            return [value.decode() for value in self.args.get(name.encode(), [])]
        except UnicodeDecodeError:
            raise Refusal(Code.BAD_REQUEST, f"The parameter {name} must be percent-encoded UTF-8.") from None

    def add_always(self, headers: HeaderList) -> None:
        """Send these with the answer, even when it is a problem in place of what was prepared."""
        self._always.extend(headers)

    @property
    def peer(self) -> str:
        """The client's address, without port."""
        return str(getattr(self.client, "host", self.client))

    @property
    def started(self) -> bool:
        """Whether the answer has begun: its status cannot be changed any more."""
        return self._sink is not None

    def interim(self, status: int, phrase: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Say something before the answer (RFC 9110, section 15.2), to a client that can know of such a thing.

        Args:
            status: from 102 to 199.
        """
        if self.clientproto == b"HTTP/1.1" and not self.started and not self.is_over:
            lines = [b"HTTP/1.1 %d %s" % (status, phrase), *(b"%s: %s" % header for header in headers), b"", b""]
            self.channel.send([b"\r\n".join(lines)], 0)

    def start(self, status: int, headers: HeaderList = (), length: int | None = None) -> ResponseSink:
        """Send status and headers, and get the sink for the content. Then the sink must be finished or aborted.

        Args:
            status: final, from 200 on.
            headers: added to those set by `setHeader`.
            length: of the content; for `HEAD` of what `GET` would give. None: not known, and sent in chunks.
        """
        assert self._sink is None, "an answer begins once"
        out = self.responseHeaders
        for name, value in (*headers, *self._always):
            out.addRawHeader(name, value)
        for cookie in self.cookies:
            out.addRawHeader(b"Set-Cookie", cookie)
        self.code, self.startedWriting = status, 1
        contentless = status in (204, 304)
        silent = contentless or self.method == b"HEAD"
        out.removeHeader(b"Transfer-Encoding")
        # A 304 may only tell the length that a 200 would have had (RFC 9110, section 8.6), and nobody who says 0 means that.
        if length is not None and status != 204 and (status, length) != (304, 0):
            out.setRawHeaders(b"Content-Length", [b"%d" % length])
        else:
            out.removeHeader(b"Content-Length")
        chunked = length is None and not contentless and self.clientproto == b"HTTP/1.1"
        if chunked and not silent:
            out.setRawHeaders(b"Transfer-Encoding", [b"chunked"])
        self._sink = ResponseSink(self, None if contentless else length, chunked, silent)
        if not self.is_over:
            keep = self.channel.decide_persistence() and (silent or chunked or length is not None)
            self.channel.send_head(status, out, keep)
        return self._sink

    def answer(self, answer: Problem) -> None:
        """Answer with a problem, in place of whatever was prepared. The answer must not have begun."""
        self._drop_held()
        self.responseHeaders = Headers()
        self.cookies = []
        sink = self.start(answer.status, answer.headers, len(answer.body))
        sink.write(answer.body).addErrback(lambda _: None)
        sink.finish()

    # --- what Klein and resources call ---

    def setHeader(self, name: bytes | str, value: bytes | str) -> None:
        """Set a header of the answer, in place of any other of that name."""
        self.responseHeaders.setRawHeaders(name, [value])

    def getClientAddress(self) -> IAddress:
        """The client's address, with port."""
        address: IAddress = self.client
        return address

    def dispatch(self) -> None:
        """Find the resource and let it answer. Called once, when the head is complete."""
        self.site = self.channel.factory  # type: ignore[assignment]
        try:
            if self.path == b"*":
                self.start(204, [(b"Allow", b", ".join(sorted(METHODS)))]).finish()
                return
            self.prepath = []
            self.postpath = [percent_decode(part).encode() for part in self.path[1:].split(b"/")]
            self.render(resource.getChildForRequest(self.channel.factory.resource, self))
        except Exception:
            self.processingFailed(Failure())

    process = dispatch

    def render(self, resrc: Any) -> None:
        """Let a resource answer."""
        try:
            content = resrc.render(self)
        except UnsupportedMethod as unsupported:
            allowed: Sequence[bytes] = unsupported.allowedMethods
            allow = [method.decode("ascii") for method in allowed]
            self.processingFailed(Failure(Refusal(Code.METHOD_NOT_ALLOWED, "This cannot be done here.", allow=allow)))
            return
        if content != server.NOT_DONE_YET:
            self.write(content)
            self.finish()

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer for an exception that left a route; what is our bug goes to the log."""
        error = reason.value
        if isinstance(error, CancelledError | StreamBroken) and self.is_over:
            return reason
        refusal = None if error is None else refusal_of(error)
        if refusal is None and isinstance(error, CancelledError):
            refusal = Refusal(Code.SHUTTING_DOWN, "This server is being stopped; try another.", retry_after_s=1.0)
        if refusal is None:
            self._log.failure("a route failed: {method} {target}", reason, method=self.method, target=redact_uri(self.uri))
            refusal = internal_error()
        if self.is_over:
            return reason
        if self._sink is not None:
            self._sink.abort()
        else:
            self.answer(problem(refusal))
        return reason

    def write(self, data: bytes) -> None:
        """Send a part of the answer, as Twisted's requests do. The first part is held back for a moment: if it stays alone, its
        length is known.
        """
        if self.is_over or not isinstance(data, bytes):
            assert isinstance(data, bytes), "an answer is made of bytes"
            return
        if self._sink is None:
            length = self.responseHeaders.getRawHeaders(b"Content-Length")
            if length is None and self._held is None:
                self._held = data
                self._flush = self.channel.clock.callLater(0, self._flush_held)
                return
            self._start_held(int(length[-1]) if length else None)
        assert self._sink is not None
        self._sink.write(data).addErrback(lambda _: None)

    def finish(self) -> None:
        """The answer is complete. Harmless when the client has gone, and twice."""
        if self.is_over:
            return
        if self._sink is None:
            length = self.responseHeaders.getRawHeaders(b"Content-Length")
            self._start_held(int(length[-1]) if length else len(self._held or b""))
        assert self._sink is not None
        self._sink.finish()

    def _start_held(self, length: int | None) -> None:
        held = self._drop_held()
        sink = self.start(self.code, (), length)
        sink.write(held).addErrback(lambda _: None)

    def _flush_held(self) -> None:
        self._flush = None
        if self._held is not None and not self.is_over:
            self._start_held(None)

    def _drop_held(self) -> bytes:
        held, self._held = self._held or b"", None
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        return held

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write the answer, as Twisted's static files do."""
        if self.is_over:
            producer.stopProducing()
            return
        self.producer, self.streamingProducer = producer, streaming
        if not streaming or self.channel.is_full:
            self.channel.producer_changed()

    def unregisterProducer(self) -> None:
        """The producer has written all."""
        self.producer = None

    # --- how it ends ---

    def complete(self) -> None:
        """All of the answer is on its way. Called by the sink."""
        self.is_over, self.finished = True, 1
        self._ends(True)
        waiting, self.notifications = self.notifications, []
        for deferred in waiting:
            deferred.callback(None)
        self.channel.request_done()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone, or was cut off: the route's Deferred is cancelled (by Klein, through `notifyFinish`)."""
        if self.is_over:
            return
        self.is_over = True
        self._drop_held()
        self._ends(False)
        if self.producer is not None:
            producer, self.producer = self.producer, None
            producer.stopProducing()
        self.body.break_off("The connection was lost before the end of the body.")
        waiting, self.notifications = self.notifications, []
        for deferred in waiting:
            deferred.errback(reason)

    def cut_short(self, refusal: Refusal) -> None:
        """Give the answer ourselves, because of what the client sends; the route finds that the body broke."""
        if self.is_over:
            return
        if self._sink is None:
            answer = problem(refusal)
            self.channel.send_problem(answer, self.method == b"HEAD")
            self.code, self.sentLength = answer.status, len(answer.body)
        self.connectionLost(Failure(StreamBroken(refusal.detail)))

    def notifyFinish(self) -> Deferred[None]:
        """Fires with None when the answer is complete, with a failure when the client has gone (also when it went before)."""
        if self.is_over:
            return succeed(None) if self.finished else fail(StreamBroken("The client has gone."))
        return super().notifyFinish()

    def _ends(self, complete: bool) -> None:
        factory = self.channel.factory
        if factory.log_access is not None:
            factory.log_access(
                Access(
                    peer=self.peer,
                    method=self.method.decode("ascii"),
                    target=redact_uri(self.uri.decode("ascii")),
                    version=self.clientproto.decode("ascii"),
                    status=self.code if self.startedWriting or self.sentLength else 0,
                    sent=self.sentLength,
                    received=self.body.received,
                    duration_s=self.channel.clock.seconds() - self.begun_at,
                    user=self.user,
                    agent=self.header("user-agent"),
                    complete=complete,
                )
            )


@implementer(IPushProducer)
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
        self._writing_paused = False
        self._waiting_for_room: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._stall_timer: IDelayedCall | None = None
        self._window_bytes = 0
        self._window_excused = False
        self._given_bytes = 0
        """To the transport, since it last said that it is empty."""

    # --- the connection ---

    def connectionMade(self) -> None:
        """A client has come."""
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self._producing().registerProducer(self, True)
        self._arm(self.limits.header_timeout_s, self._head_late)
        self.factory.arrived(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone, or we closed."""
        self._lost = self._leaving = True
        self._disarm()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self.factory.left(self)
        waiting, self._waiting_for_room = self._waiting_for_room, []
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(reason)
        for deferred in waiting:
            if not deferred.called:
                deferred.errback(StreamBroken("The client has gone."))

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
        return not self._leaving and self._request is None and self._body_reader is None and not self._writing_paused

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
            self._refuse_head(refusal)
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
            self.send([CONTINUE], 0)
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
        self.send(lines, 0)

    def send_problem(self, answer: Problem, silent: bool = False) -> None:
        """Send an answer of our own; the connection ends with it."""
        headers = Headers()
        for name, value in answer.headers:
            headers.addRawHeader(name, value)
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])
        self.send_head(answer.status, headers, False)
        if not silent:
            self.send([answer.body], len(answer.body))

    def send(self, pieces: Sequence[bytes], length: int) -> None:
        """Give bytes to the transport."""
        if self._lost:
            return
        self._given_bytes += length
        transport = self._producing()
        if len(pieces) == 1:
            transport.write(pieces[0])
        else:
            transport.writeSequence(pieces)

    def lane(self) -> Any:
        """See `ResponseSink.lane`."""
        make = getattr(self.transport, "lane", None)
        return None if make is None or self._lost or self._leaving or self._writing_paused else make()

    def count(self, length: int) -> None:
        """So many bytes were given to the transport by another way than `send`."""
        self._given_bytes += length

    def room(self) -> Deferred[None]:
        """Fires when the transport wants more; fails with `StreamBroken` when the client goes."""
        if not self._writing_paused:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting_for_room.append(waiting)
        return waiting

    @property
    def is_full(self) -> bool:
        """Whether the transport wants no more for now."""
        return self._writing_paused

    def pauseProducing(self) -> None:
        """The transport is full."""
        if self._writing_paused:
            return
        self._writing_paused = True
        patience = self.limits.send_stall_s + self._given_bytes / self.limits.download_rate_min
        self._stall_timer = self.clock.callLater(patience, self._stalled)
        self.producer_changed()

    def resumeProducing(self) -> None:
        """The transport is empty."""
        self._writing_paused = False
        self._given_bytes = 0
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self.producer_changed()
        waiting, self._waiting_for_room = self._waiting_for_room, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(None)
        self._go_on()
        self._regulate()

    def stopProducing(self) -> None:
        """The transport is going; `connectionLost` follows."""

    def producer_changed(self) -> None:
        """Pass the transport's wish on to a Twisted producer, if one writes the answer; pull those that must be pulled."""
        request = self._request
        if request is None or request.producer is None:
            return
        if request.streamingProducer:
            if self._writing_paused:
                request.producer.pauseProducing()
            else:
                request.producer.resumeProducing()
            return
        while not self._writing_paused and self._request is request and request.producer is not None:
            request.producer.resumeProducing()

    def _stalled(self) -> None:
        self._stall_timer = None
        self.abort("The client takes nothing of the answer.")

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
            self._refuse_head(Refusal(Code.TIMEOUT, "The head of the request came too slowly."))
        else:
            self._leave(linger=False)

    def _refuse_head(self, refusal: Refusal) -> None:
        answer = problem(refusal)
        self._head_reader = None
        self.send_problem(answer)
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
        self._refuse_head(
            Refusal(Code.TOO_MANY_CONNECTIONS, "This server has too many connections; try another or later.", retry_after_s=5.0)
        )

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
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        patience = self.limits.linger_s if linger else self.limits.send_stall_s
        patience += self._given_bytes / self.limits.download_rate_min if self._writing_paused else 0
        self._arm(patience, lambda: self.abort("The client does not close."))
        transport = self._producing()
        transport.unregisterProducer()
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
            self._producing().unregisterProducer()
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
class HttpFactory(ServerFactory):
    """Serves a resource on many connections.

    Attributes:
        limits: new ones count for connections made from then on; `upload_rate_min` at once.
    """

    protocol = None
    noisy = False
    displayTracebacks = False

    def logPrefix(self) -> str:
        """What `twistd` says listens on the port."""
        return "HTTP"

    def __init__(
        self,
        resource: Any,
        clock: IReactorTime,
        limits: HttpLimits,
        log_access: Callable[[Access], None] | None,
        wall: Callable[[], float] | None,
    ) -> None:
        self.resource = resource
        self.clock = clock
        self.limits = limits
        self.log_access = log_access
        self.wall = wall
        self.stopping = False
        self._spelled = -1, b""
        self._channels: dict[HttpChannel, None] = {}
        self._idle: dict[HttpChannel, None] = {}
        """In the order in which they became so."""
        self._emptied: list[Deferred[None]] = []

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._channels)

    def date(self, second: int) -> bytes:
        """That second since 1970 as HTTP writes it; spelled once a second, not for each answer."""
        if second != self._spelled[0]:
            self._spelled = second, formatdate(second, usegmt=True).encode("ascii")
        return self._spelled[1]

    def buildProtocol(self, addr: IAddress | None) -> HttpChannel:  # type: ignore[override]
        """A channel for a new connection."""
        return HttpChannel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What we speak, for clients that negotiate it in the TLS handshake (ALPN); curl and browsers do."""
        return [b"http/1.1"]

    def shut_down(self, grace_s: float) -> Deferred[None]:
        """Close what is idle, let answers under way come to their end, and cut off after `grace_s`. Fires when all are closed."""
        self.stopping = True
        done: Deferred[None] = Deferred()
        if not self._channels:
            done.callback(None)
            return done
        self._emptied.append(done)
        end = self.clock.callLater(grace_s, self._cut_off)
        done.addCallback(lambda _: end.cancel() if end.active() else None)
        for channel in list(self._channels):
            channel.end_soon()
        return done

    def _cut_off(self) -> None:
        for channel in list(self._channels):
            channel.abort("This server is being stopped.")

    # --- what channels say ---

    def arrived(self, channel: HttpChannel) -> None:
        """A connection was made; the longest idle one gives way when there are too many."""
        self._channels[channel] = None
        if self.stopping:
            channel.end_soon()
        elif self.connections > self.limits.connections_max:
            self.make_room(channel)

    def make_room(self, channel: HttpChannel) -> None:
        """There is one connection too many, since `channel` came."""
        idle = next(iter(self._idle), None)
        if idle is not None:
            idle.end_soon()
        else:
            channel.turn_away()

    def rests(self, channel: HttpChannel) -> None:
        """It waits for its next request."""
        self._idle[channel] = None

    def is_idle(self, channel: HttpChannel) -> bool:
        """Whether it waits for its next request."""
        return channel in self._idle

    def begins(self, channel: HttpChannel) -> bool:
        """A request's first byte has come; whether the channel was waiting between requests."""
        return channel in self._idle and self._idle.pop(channel) is None

    def leaves(self, channel: HttpChannel) -> None:
        """It takes no request any more."""
        self._idle.pop(channel, None)

    def left(self, channel: HttpChannel) -> None:
        """The connection is closed."""
        self._idle.pop(channel, None)
        self._channels.pop(channel, None)
        if not self._channels:
            emptied, self._emptied = self._emptied, []
            for deferred in emptied:
                deferred.callback(None)


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


def _text(value: bytes) -> str:
    """A header's value as text: UTF-8 where it is, else Latin-1, which is never wrong about ASCII."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
