"""Requests and answers over connections: the part of HTTP that needs a transport.

    request --> [a kept connection, or a new one] --> head --(Expect)--> 100? --> content, chunk by chunk
                                                                                  | an answer before its end: stop sending
    Answer  <-- status and fields; content is pulled, the transport paused while nobody reads

What is known when it fails is said by the exception's type: `NotSent` is certainly not done; `Broken` may be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IHandshakeListener, IPushProducer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.client.wire import AnswerReader, BadAnswer, Data, End, Event, Fields, Head, Interim, Origin, request_head, split_url
from securifile.model.interfaces import IByteSource

BUFFER_BYTES_MAX = 1 << 20
"""Content that waits for its reader before the transport is paused: a few round trips' worth."""
EXPECT_BYTES_MIN = 64 * 1024
"""From this size on, leave is asked before the content is sent: below, the question costs more than the content."""
CONTENT_BYTES_MAX = 64 << 20
"""The longest JSON answer that is taken; pages of lists are far shorter."""
IDLE_MAX = 4
"""Connections kept for each origin."""


@attrs.frozen(kw_only=True)
class Patience:
    """How long to wait, in seconds, before the other end is given up."""

    connect_s: float = 5.0
    """For a connection. A person waits for the next server to be tried."""
    leave_s: float = 1.0
    """For `100 Continue`, then the content is sent anyway (RFC 9110 section 10.1.1 forbids waiting for ever)."""
    answer_s: float = 120.0
    """For an answer's head once the request is written: a commit waits for disks and replicas."""
    stall_s: float = 30.0
    """Without one more byte going in or out."""


class NotSent(Exception):
    """No connection: the server certainly did not get the request."""


class Untrusted(NotSent):
    """There was a server, but its certificate is not signed by a trusted authority or is another server's."""


class Broken(Exception):
    """The connection failed after the request was begun: it may or may not have been carried out."""


@attrs.frozen(kw_only=True)
class Content:
    """What a request carries."""

    source: Any
    """An `IByteSource` of exactly `length` bytes."""
    length: int


@implementer(IPushProducer, IHandshakeListener)
class Connection(Protocol):
    """One connection to a server; carries one exchange at a time.

    Args:
        patience: how long to wait.
        clock: to wait by.
        tls: whether there is a handshake to come.
    """

    def __init__(self, patience: Patience, clock: IReactorTime, tls: bool) -> None:
        self._secured = not tls
        self._patience = patience
        self._clock = clock
        self._reader: AnswerReader | None = None
        self._events: deque[Event] = deque()
        self._buffered = 0
        self._reading_paused = False
        self._failure: Exception | None = None
        self._changed: Deferred[None] | None = None
        self._writing_paused = False
        self.closed: Deferred[None] = Deferred()
        self.lost = False
        self.head_came = False
        self.answered_anything = False
        self.reusable = False

    # What the transport calls.

    def connectionMade(self) -> None:
        """Ask to be told when the transport's own buffer is full."""
        assert self.transport is not None
        no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if no_delay is not None:
            no_delay(True)
        self.transport.registerProducer(self, True)  # type: ignore[attr-defined]

    def handshakeCompleted(self) -> None:
        """The server is who it should be, and what is sent now is encrypted."""
        self._secured = True
        self._wake()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of the answer."""
        if self._reader is None or self._failure is not None:
            # Between exchanges nothing may come; what does belongs to no request.
            self._fail(BadAnswer("the server spoke without being asked"))
            return
        self.answered_anything = True
        try:
            events = self._reader.feed(data)
        except BadAnswer as error:
            self._fail(error)
            return
        self._take(events)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell whoever waits."""
        self.lost = True
        if not self._secured:
            self._failure = _why_not_secured(reason)
        elif self._reader is not None and self._failure is None:
            try:
                self._take(self._reader.eof())
            except BadAnswer as error:
                self._failure = Broken(str(error))
        self._wake()
        self.closed.callback(None)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._writing_paused = True

    def resumeProducing(self) -> None:
        """The transport has room again."""
        self._writing_paused = False
        self._wake()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` says it."""

    # What an exchange calls.

    async def secured(self) -> None:
        """Wait for the TLS handshake, so that nothing is sent, not even into a buffer, before the server is known.

        Raises:
            NotSent: it did not come to its end.
            Untrusted: because of the server's certificate.
        """
        try:
            while not self._secured and self._failure is None:
                await self._change(self._patience.connect_s, "TLS is not answered")
        except Broken as error:
            self.close()
            raise NotSent(str(error)) from None
        except BaseException:
            self.close()
            raise
        if self._failure is not None:
            raise self._failure

    def begin(self, method: str) -> None:
        """A new exchange starts."""
        self._reader = AnswerReader(method)
        self._events.clear()
        self._buffered = 0
        self.head_came = self.answered_anything = self.reusable = False

    async def write(self, data: bytes) -> None:
        """Send bytes, and wait until more are welcome or an answer has come.

        Raises:
            Broken: the connection is gone.
        """
        if self.lost or self._failure is not None:
            if self.head_came:
                return
            raise self._broken()
        assert self.transport is not None
        self.transport.write(data)
        while self._writing_paused and not self.head_came and not self.lost and self._failure is None:
            await self._change(self._patience.stall_s, "the server takes no more")

    async def leave(self) -> bool:
        """Wait for leave to send the content; False when the answer came instead."""
        try:
            while not self.head_came and not self.lost and self._failure is None:
                if self._events and isinstance(self._events[0], Interim):
                    if self._events.popleft() == Interim(100):
                        break
                    continue
                await self._change(self._patience.leave_s, "")
        except Broken:
            return True
        return not self.head_came

    async def event(self, patience_s: float) -> Event:
        """The next event of the answer.

        Raises:
            Broken: there will be none.
            Untrusted: the server's certificate did not please.
        """
        while not self._events:
            if self._failure is not None:
                raise self._broken()
            if self.lost:
                raise Broken("the connection was closed")
            await self._change(patience_s, "the server does not answer")
        event = self._events.popleft()
        if isinstance(event, Data):
            # All that waits in one piece: fewer, larger writes to the disk.
            parts = [event.data]
            while self._events and isinstance(self._events[0], Data):
                following = self._events.popleft()
                assert isinstance(following, Data)
                parts.append(following.data)
            event = Data(b"".join(parts))
            self._buffered -= len(event.data)
            self._pause_or_resume()
        return event

    def close(self) -> None:
        """Break the connection off; whoever waits on it hears `Broken`."""
        if not self.lost:
            assert self.transport is not None
            self.transport.abortConnection()  # type: ignore[attr-defined]

    # Inside.

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self._events.append(event)
            if isinstance(event, Head):
                self.head_came = True
            elif isinstance(event, Data):
                self._buffered += len(event.data)
            elif isinstance(event, End):
                self.reusable = event.reusable
                self._reader = None
        self._pause_or_resume()
        if events:
            self._wake()

    def _pause_or_resume(self) -> None:
        full = self._buffered >= BUFFER_BYTES_MAX
        if full != self._reading_paused and not self.lost:
            self._reading_paused = full
            assert self.transport is not None
            if full:
                self.transport.pauseProducing()  # type: ignore[attr-defined]
            else:
                self.transport.resumeProducing()  # type: ignore[attr-defined]

    def _fail(self, error: BadAnswer) -> None:
        self._failure = Broken(str(error))
        self.close()
        self._wake()

    def _broken(self) -> Exception:
        return self._failure or Broken("the connection was closed")

    def _wake(self) -> None:
        waiting, self._changed = self._changed, None
        if waiting is not None:
            waiting.callback(None)

    async def _change(self, seconds: float, why: str) -> None:
        """Wait until something has happened on this connection. Raises `Broken` when nothing did in time."""
        self._changed = Deferred()
        try:
            await self._changed.addTimeout(seconds, self._clock)
        except TimeoutError:
            raise Broken(f"{why} (waited {seconds:g} s)") from None
        finally:
            self._changed = None


def _why_not_secured(reason: Failure) -> NotSent:
    """Why a handshake failed.

    Errors are told by name, so that nothing of TLS is imported here, where plain HTTP goes through as well.
    """
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(reason.value).__mro__}
    if kinds & {"service_identity.VerificationError", "service_identity.CertificateError"}:
        return Untrusted("its certificate is for another server than this address")
    try:
        words = str(reason.value.args[0][0][2])  # type: ignore[union-attr]
    except (AttributeError, IndexError, TypeError):
        words = "the connection was closed"
    if "OpenSSL.Error" in kinds and "certificate" in words:
        return Untrusted(f"its certificate is not trusted ({words})")
    return NotSent(f"it does not speak TLS as we do ({words})")


@implementer(IByteSource)
class Answer:
    """A server's answer; its content is read from it as from any `IByteSource`."""

    def __init__(self, head: Head, connection: Connection, url: str, patience: Patience, release: Callable[[Connection], None]) -> None:
        self.status: int = head.status
        self.fields: Fields = head.fields
        self.url: str = url
        """Which server answered, after redirects."""
        self._connection: Connection | None = connection
        self._patience = patience
        self._release = release

    def read(self) -> Deferred[bytes]:
        """The next bytes of the content; empty at its end. Raises `Broken`."""
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> bytes:
        if self._connection is None:
            return b""
        try:
            event = await self._connection.event(self._patience.stall_s)
        except BaseException:
            self.close()
            raise
        if isinstance(event, Data):
            return event.data
        connection, self._connection = self._connection, None
        self._release(connection)
        return b""

    def close(self) -> None:
        """No more is wanted; a connection in the middle of an answer is of no more use."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def content(self, bytes_max: int = CONTENT_BYTES_MAX) -> bytes:
        """All of it. Raises `Broken` when it breaks off or is longer than `bytes_max`."""
        parts, size = [], 0
        while data := await self.read():
            size += len(data)
            if size > bytes_max:
                self.close()
                raise Broken("the answer is too long")
            parts.append(data)
        return b"".join(parts)


class Http:
    """Makes requests, keeping connections for the next.

    Args:
        endpoint_for: where to connect for an origin, with TLS if its scheme says so (`trust.py`).
        clock: for every wait.
    """

    def __init__(
        self, endpoint_for: Callable[[Origin], IStreamClientEndpoint], clock: IReactorTime, patience: Patience | None = None
    ) -> None:
        self._endpoint_for = endpoint_for
        self._clock = clock
        self._patience = patience or Patience()
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()

    async def request(self, method: str, url: str, fields: Mapping[str, str], content: Content | None = None) -> Answer:
        """Send one request; the answer, once its head is there, whatever its status.

        Raises:
            NotSent: there is no connection to be had; certainly not done.
            Broken: the connection failed on the way.
            ValueError: the URL or a field cannot be sent.
        """
        origin, target = split_url(url)
        head = request_head(method, target, self._complete(origin, method, fields, content))
        # Only what may be repeated goes out on a kept connection: the server may close that at the same moment,
        # and then nobody knows whether it saw the request.
        kept = self._kept(origin) if method not in ("POST", "PATCH") else None
        if kept is not None:
            try:
                return await self._exchange(kept, origin, method, url, head, content)
            except Broken:
                if kept.answered_anything or content is not None:
                    raise
        return await self._exchange(await self._connect(origin), origin, method, url, head, content)

    async def close(self) -> None:
        """Break off every connection."""
        for connection in list(self._open):
            connection.close()
            await connection.closed

    def _complete(self, origin: Origin, method: str, fields: Mapping[str, str], content: Content | None) -> dict[str, str]:
        complete = {"Host": origin.authority, **fields}
        if content is not None:
            complete["Content-Length"] = str(content.length)
            if content.length >= EXPECT_BYTES_MIN:
                complete["Expect"] = "100-continue"
        elif method in ("POST", "PUT", "PATCH"):
            complete["Content-Length"] = "0"
        return complete

    def _kept(self, origin: Origin) -> Connection | None:
        kept = self._idle.get(origin, [])
        while kept:
            connection = kept.pop()
            if not connection.lost:
                return connection
        return None

    async def _connect(self, origin: Origin) -> Connection:
        factory = Factory.forProtocol(lambda: Connection(self._patience, self._clock, origin.scheme == "https"))
        factory.noisy = False
        try:
            connecting = self._endpoint_for(origin).connect(factory)
            connection: Any = await connecting.addTimeout(self._patience.connect_s, self._clock)
        except CancelledError:
            raise
        except TimeoutError:
            raise NotSent(f"no connection within {self._patience.connect_s:g} s") from None
        except Exception as error:
            raise NotSent(_reason_of(error)) from error
        self._open.add(connection)
        connection.closed.addCallback(lambda _: self._open.discard(connection))
        await connection.secured()
        return connection  # type: ignore[no-any-return]

    async def _exchange(
        self, connection: Connection, origin: Origin, method: str, url: str, head: bytes, content: Content | None
    ) -> Answer:
        connection.begin(method)
        sent_all = content is None
        try:
            await connection.write(head)
            if content is not None and (content.length < EXPECT_BYTES_MIN or await connection.leave()):
                sent_all = await _send(connection, content)
            while isinstance(event := await connection.event(self._patience.answer_s), Interim):
                pass
        except BaseException:
            connection.close()
            raise
        assert isinstance(event, Head)

        def release(done: Connection) -> None:
            idle = self._idle.setdefault(origin, [])
            # Where the content was not sent to its end, the server may take the next request for the rest of it.
            if sent_all and done.reusable and not done.lost and len(idle) < IDLE_MAX:
                idle.append(done)
            else:
                done.close()

        return Answer(event, connection, url, self._patience, release)


async def _send(connection: Connection, content: Content) -> bool:
    """Send the content; False when an answer came before its end."""
    left = content.length
    while left and not connection.head_came:
        data = await content.source.read()
        if not data or len(data) > left:
            raise Broken("the content is not as long as was announced")
        left -= len(data)
        await connection.write(data)
    return not left


def _reason_of(error: Exception) -> str:
    """Why there is no connection, in words."""
    return str(error) or type(error).__name__
