"""A request and its answer, for routes: Twisted's request object on a connection of ours.

Of `twisted.web` there is the request object, which Klein and resources need, and nothing else. What that object does in its own way
(writing heads, chunks, logging) is replaced here. This is the one module that knows how it works inside;
`tests/http/test_twisted_parts.py` fails when those parts change (known good: Twisted 26.10).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, resource, server
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from zope.interface import implementer

from securifile.http.body import LANE_BYTES_MIN, BodyLane, RequestBody
from securifile.http.connections import Connections
from securifile.http.limits import Access
from securifile.http.outflow import Outflow
from securifile.http.problems import Problem, internal_error, problem, refusal_of
from securifile.http.targets import percent_decode
from securifile.http.tickets import redact_uri
from securifile.http.wire import METHODS, Head
from securifile.model.errors import Code, Refusal, StreamBroken
from securifile.model.interfaces import IByteSink

HeaderList = Iterable[tuple[bytes | str, bytes | str]]


class Channel(Protocol):
    """What a request asks of the connection on which it came; see `HttpChannel`."""

    @property
    def factory(self) -> Connections[Any]:
        """What it shares with other connections."""

    @property
    def clock(self) -> IReactorTime:
        """Of every timer."""

    @property
    def out(self) -> Outflow:
        """Where answers go."""

    def body_changed(self) -> None:
        """The route has read, or wants no more."""

    def body_lane(self) -> BodyLane | None:
        """A way for a worker's thread to take the body; None when there is none now, or when it is not worth it."""

    def decide_persistence(self) -> bool:
        """Whether the connection can be used again after the answer that begins now."""

    def send_head(self, status: int, headers: Headers, keep: bool) -> None:
        """Send the head of an answer; unless `keep`, it says that the connection ends."""

    def send_problem(self, answer: Problem, silent: bool = False) -> None:
        """Send an answer of our own; the connection ends with it."""

    def producer_changed(self) -> None:
        """Another producer writes the answer."""

    def request_done(self) -> None:
        """The answer is complete."""

    def abort(self, why: str) -> None:
        """Close at once, unsent bytes are lost."""


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
            request.channel.out.send([b"%x\r\n" % len(data), data, b"\r\n"], len(data))
        else:
            request.channel.out.send([data], len(data))
        return request.channel.out.room()

    def lane(self) -> Any:
        """A `Lane`, through which a worker's thread can send what comes next; None when there is none now, or when it is not worth it."""
        left = 0 if self._length is None else self._length - self._taken
        if self._request.is_over or self._silent or left < LANE_BYTES_MIN:
            return None
        return self._request.channel.out.lane()

    def sent(self, count: int) -> None:
        """So many bytes went through a lane, which is closed."""
        self._taken += count
        self._request.sentLength += count
        self._request.channel.out.count(count)

    def room(self) -> Deferred[None]:
        """Fires when more is welcome; fails as `write` does."""
        if self._request.is_over:
            return fail(StreamBroken("The client has gone, or the answer is over."))
        return self._request.channel.out.room()

    def finish(self) -> None:
        """The answer is complete. When bytes are missing, it is cut off, so that the client notices. Harmless twice."""
        request = self._request
        if request.is_over:
            return
        if self._length is not None and self._taken < self._length and not self._silent:
            self.abort()
            return
        if self._chunked and not self._silent:
            request.channel.out.send([b"0\r\n\r\n"], 0)
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

    channel: Channel  # type: ignore[assignment]  # Twisted's request asks no more of a channel than ours has.
    defaultContentType = None
    _log = Logger()

    def __init__(self, channel: Channel, head: Head) -> None:
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
            self.channel.out.send([b"\r\n".join(lines)], 0)

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
        if not streaming or self.channel.out.is_full:
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


def _text(value: bytes) -> str:
    """A header's value as text: UTF-8 where it is, else Latin-1, which is never wrong about ASCII."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
