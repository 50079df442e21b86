"""Asking and answering on control connections.

`Peer` is one established connection, on which either side may ask. `Link` is this server's standing wish to be connected to another
server: it connects, and connects again, until it is stopped.

A handler is an ordinary coroutine function: it returns the answer, or raises a `Refusal`, which arrives at the asker as a `Refusal`.
One that waits for nothing may be a plain function: what is answered hundreds of times a second in a large cluster costs less that way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.model.errors import Code, DatabaseUnavailable, DeadlineExceeded, PeerUnreachable, Refusal, TurnedAway
from securifile.model.servers import HostPort
from securifile.protocol.codec import CodecError
from securifile.protocol.connection import (
    AnswerReceived,
    AnswerUnusable,
    CancelReceived,
    Connection,
    Event,
    PeerIdentity,
    Purpose,
    RequestReceived,
    RequestUnusable,
    Side,
    TooManyRequests,
)
from securifile.protocol.messages import Message, Refused
from securifile.protocol.wire import Connector, Identify, NotAcceptable, Traffic, Wire, claimed, open_wire

Handlers = Mapping[type, Callable[["Peer", Any], Awaitable[Any] | Message]]
"""What to do with each class of request: a function, or a coroutine function, of the peer and the message, giving the answer."""

BACKLOG_BYTES_MAX = 16 * 1024 * 1024
"""What may wait for a peer that does not read, before it is cut off: four of the largest messages."""
SILENCE_S = 5.0
"""An unanswered question on a connection that has been silent for so long means that it is dead, whatever TCP hopes."""
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 5.0

TURNED_AWAY_S = 60.0
"""The longest pause of one who is no member any more: that is for people to change, and a log need not have it twice a second."""
CONNECT_S = 3.0
"""Like a SYN sent thrice; servers of a cluster are near."""


def refused_from(refusal: Refusal) -> Refused:
    """A `Refusal` as a message."""
    return Refused(code=refusal.code.value, detail=refusal.detail, retry_after_s=refusal.retry_after_s, evidence=dict(refusal.evidence))


def refusal_from(refused: Refused) -> Refusal:
    """A `Refused` as an exception. A code that a later release has and we have not becomes `BUG`, and is named in the evidence."""
    # Not by keyword: evidence of another release may use any names.
    try:
        refusal = Refusal(Code(refused.code), refused.detail, retry_after_s=refused.retry_after_s)
        refusal.evidence = dict(refused.evidence)
    except ValueError:
        refusal = Refusal(Code.BUG, refused.detail, retry_after_s=refused.retry_after_s)
        refusal.evidence = {**refused.evidence, "code": refused.code}
    return refusal


@attrs.define
class _Question:
    answer: Deferred[Any]
    deadline: IDelayedCall


class Peer:
    """An established control connection to another server.

    Attributes:
        identity: who is at the other end.
    """

    _log = Logger()

    def __init__(self, wire: Wire, handlers: Handlers) -> None:
        self.identity: PeerIdentity = wire.identity
        self._wire = wire
        self._handlers = handlers
        self._questions: dict[int, _Question] = {}
        self._answering: dict[int, Deferred[Any]] = {}
        self._lost: list[Deferred[None]] = []
        self._unheard_since: float | None = None
        """When the first question after the last sign of life was asked."""
        self._full = False
        self._backlog = 0

    def __repr__(self) -> str:
        return f"<Peer {self.identity}{'' if self.connected else ', gone'}>"

    @property
    def connected(self) -> bool:
        """Whether the connection is up, as far as is known."""
        return self._wire.usable

    @property
    def features(self) -> frozenset[str]:
        """The optional abilities that both ends have."""
        return self._wire.connection.features

    def ask(self, message: Message, timeout_s: float) -> Deferred[Any]:
        """Ask and wait for the answer. Cancelling the Deferred tells the other end that the answer is not wanted.

        Args:
            message: an instance of a class in `messages`.
            timeout_s: how long the answer may take.

        Raises:
            Refusal: certainly not done.
            DeadlineExceeded: no answer in time; it may have been done.
            PeerUnreachable: not connected, or lost before the answer; in the second case it may have been done.
        """
        if not self.connected:
            return fail(PeerUnreachable(f"{self.identity} is not connected"))
        try:
            number, data = self._wire.connection.request(message)
        except TooManyRequests as error:
            return fail(Refusal(Code.TOO_MANY_REQUESTS, f"{self.identity}: {error}", retry_after_s=1))
        except CodecError as error:
            return fail(error)
        answer: Deferred[Any] = Deferred(lambda _: self._forget(number, CancelledError()))
        clock = self._wire.clock
        self._questions[number] = _Question(answer, clock.callLater(timeout_s, self._late, number, timeout_s))
        if self._unheard_since is None:
            self._unheard_since = clock.seconds()
        self._send(data)
        return answer

    def when_lost(self) -> Deferred[None]:
        """A new Deferred that fires when the connection is gone; at once if it is."""
        if self._wire.gone:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._lost.remove)
        self._lost.append(waiting)
        return waiting

    def close(self, reason: str = "this side closes the connection", code: Code = Code.SHUTTING_DOWN) -> None:
        """Say goodbye and close."""
        self._wire.close(code, reason)

    def cut(self) -> None:
        """Close at once: nothing that is still on its way is heard."""
        self._wire.cut()

    # --- the wire calls us ---

    def handle(self, event: Event) -> None:
        """Something arrived."""
        self._unheard_since = None
        if isinstance(event, RequestReceived):
            self._request(event.id, event.message)
        elif isinstance(event, RequestUnusable):
            self._log.warn("a request of {peer} is refused: {problem}", peer=self.identity, problem=event.refused.detail)
            self._answer(event.id, event.refused)
        elif isinstance(event, AnswerReceived):
            question = self._take(event.id)
            if question is None:
                return
            if isinstance(event.message, Refused):
                question.answer.errback(refusal_from(event.message))
            else:
                question.answer.callback(event.message)
        elif isinstance(event, AnswerUnusable):
            question = self._take(event.id)
            if question is not None:
                question.answer.errback(PeerUnreachable(f"{self.identity} gave an answer that cannot be read: {event.problem}"))
        elif isinstance(event, CancelReceived):
            handling = self._answering.get(event.id)
            if handling is not None:
                handling.cancel()

    def writable(self, ready: bool) -> None:
        """The transport is full, or has drained."""
        self._full = not ready
        self._backlog = 0

    def lost(self, reason: Exception) -> None:
        """The connection is gone."""
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.deadline.cancel()
            question.answer.errback(reason)
        for handling in list(self._answering.values()):
            handling.cancel()
        waiting, self._lost = self._lost, []
        for deferred in waiting:
            deferred.callback(None)

    # --- asking ---

    def _take(self, number: int) -> _Question | None:
        question = self._questions.pop(number, None)
        if question is not None and question.deadline.active():
            question.deadline.cancel()
        return question

    def _forget(self, number: int, reason: Exception) -> None:
        question = self._take(number)
        if question is not None:
            self._send(self._wire.connection.cancel(number))
            question.answer.errback(reason)

    def _late(self, number: int, timeout_s: float) -> None:
        self._forget(number, DeadlineExceeded(f"{self.identity} did not answer within {timeout_s:g} s"))
        quiet_s = self._wire.clock.seconds() - self._unheard_since if self._unheard_since is not None else 0.0
        if quiet_s >= SILENCE_S:
            self._log.warn("nothing was heard of {peer} for {quiet_s:.1f} s; the connection is cut", peer=self.identity, quiet_s=quiet_s)
            self._wire.cut()

    # --- answering ---

    def _request(self, number: int, message: Message) -> None:
        handler = self._handlers.get(type(message))
        if handler is None:
            name = type(message).__name__
            detail = f"{self._wire.connection.here} does not take {name}"
            self._answer(number, Refused(code=Code.UNKNOWN_MESSAGE.value, detail=detail))
            return
        try:
            answer = handler(self, message)
        except Exception:
            answer = self._refused(Failure(), type(message).__name__)
        if isinstance(answer, Awaitable):
            handling = Deferred.fromCoroutine(self._run(answer))
            self._answering[number] = handling
            handling.addErrback(self._refused, type(message).__name__)
            handling.addCallback(self._handled, number)
            handling.addErrback(lambda failure: self._log.failure("answering failed", failure))
        else:
            self._handled(answer, number)

    async def _run(self, answer: Awaitable[Message]) -> Message:
        return await answer

    def _refused(self, failure: Failure, name: str) -> Refused:
        error = failure.value
        if isinstance(error, Refusal):
            return refused_from(error)
        if isinstance(error, CancelledError):
            return Refused(code=Code.TIMEOUT.value, detail="the request was cancelled")
        if isinstance(error, DatabaseUnavailable):
            # A full disk is no bug. The database has said so, once; the other end asks again and again.
            return Refused(code=Code.CATALOGUE_UNAVAILABLE.value, detail=f"{name} could not be taken in: {error}")
        self._log.failure("handling {message} from {peer} failed", failure, message=name, peer=self.identity)
        return Refused(code=Code.BUG.value, detail=f"handling {name} failed: {type(error).__name__}; see this server's log")

    def _handled(self, answer: Message, number: int) -> None:
        self._answering.pop(number, None)
        if not self.connected:
            return
        try:
            self._answer(number, answer)
        except CodecError as error:
            self._log.error("an answer to {peer} cannot be sent: {problem}", peer=self.identity, problem=str(error))
            self._answer(number, Refused(code=Code.BUG.value, detail=f"the answer cannot be sent: {error}"))

    def _answer(self, number: int, answer: Message) -> None:
        self._send(self._wire.connection.answer(number, answer))

    def _send(self, data: bytes) -> None:
        self._wire.send(data)
        if self._full:
            # Not reading either until it reads would let two full servers wait for each other for ever.
            self._backlog += len(data)
            if self._backlog > BACKLOG_BYTES_MAX:
                self._log.warn("{peer} does not read; the connection is cut", peer=self.identity)
                self._wire.cut()


def _nothing(peer: Peer) -> None:
    pass


class Link:
    """A standing control connection to one server, made again whenever it is lost.

    Args:
        clock: timers.
        jitter: a random number in [0, 1), so that many servers do not come back in step.
        connector: how to connect.
        identify: how the other end proves who it is; `claimed` when TLS is off.
        address: where the server is.
        expected: who must be there.
        here: who we are.
        handlers: what we answer on this connection.
        on_connected: called with each new `Peer`.
        on_lost: called with a `Peer` that was lost.
        traffic: where the bytes of the connection are counted.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        jitter: Callable[[], float],
        connector: Connector,
        identify: Identify = claimed,
        address: HostPort,
        expected: PeerIdentity,
        here: PeerIdentity,
        handlers: Handlers,
        on_connected: Callable[[Peer], None] = _nothing,
        on_lost: Callable[[Peer], None] = _nothing,
        traffic: Traffic | None = None,
    ) -> None:
        self.expected = expected
        self.peer: Peer | None = None
        """The connection, while there is one."""
        self._clock = clock
        self._jitter = jitter
        self._connector = connector
        self._identify = identify
        self._address = address
        self._here = here
        self._handlers = handlers
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._traffic = traffic
        self.on_turned_away: Callable[[], bool] = lambda: False
        """Asked when the server knows of no such member as this one: whether there is no hurry to ask it again."""
        self._running: Deferred[None] | None = None
        self._waiting: list[Deferred[Peer]] = []
        self._problem = "not connected yet"
        self._pause: Deferred[None] | None = None
        self._attempt: Deferred[float] | None = None

    @property
    def connected(self) -> bool:
        """Whether questions can be asked now."""
        return self.peer is not None and self.peer.connected

    def start(self) -> None:
        """Begin to connect. Does nothing when already started."""
        if self._running is None:
            self._running = Deferred.fromCoroutine(self._keep_connected())
            self._running.addErrback(self._stopped)

    def stop(self) -> Deferred[None]:
        """Close, and connect no more; fires when all is at rest."""
        running, self._running = self._running, None
        peer = self.peer
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.errback(PeerUnreachable(f"the link to {self.expected} was stopped"))
        if running is not None:
            running.cancel()
        if peer is not None:
            peer.close()
            return peer.when_lost()
        return succeed(None)

    def ask(self, message: Message, timeout_s: float) -> Deferred[Any]:
        """Like `Peer.ask`; fails at once with `PeerUnreachable` while there is no connection."""
        if self.peer is not None and self.peer.connected:
            return self.peer.ask(message, timeout_s)
        return fail(PeerUnreachable(f"{self.expected} is not connected: {self._problem}"))

    def when_connected(self) -> Deferred[Peer]:
        """Fires with the connection as soon as there is one. Raises `PeerUnreachable` when the link is stopped first."""
        if self.peer is not None and self.peer.connected:
            return succeed(self.peer)
        waiting: Deferred[Peer] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def move(self, address: HostPort) -> None:
        """The server's address is this one now: connects there, unless it is the same."""
        if address == self._address:
            return
        self._address = address
        if self.peer is not None:
            self.peer.close("this server is expected at another address")
        elif self._attempt is not None:
            self._attempt.cancel()
        self.hurry()

    def hurry(self) -> None:
        """Try again now, if a pause between attempts is on: there is a sign of life."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.callback(None)

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            longest_s = BACKOFF_MAX_S
            self._attempt = Deferred.fromCoroutine(self._connect_once())
            try:
                lasted_s = await self._attempt
                # One that is taken away again and again is not worth hurrying for.
                failures = 0 if lasted_s >= BACKOFF_MAX_S else failures + 1
            except PeerUnreachable as error:
                # Once for each change of reason, not for each attempt.
                if str(error) != self._problem:
                    self._log.info("cannot connect to {peer}: {problem}", peer=self.expected, problem=str(error))
                self._problem = str(error)
                failures += 1
                if isinstance(error, TurnedAway) and self.on_turned_away():
                    longest_s = TURNED_AWAY_S
            except CancelledError:
                if self._running is None:
                    raise
            except Exception:
                self._log.failure("connecting to {peer} failed", peer=self.expected)
                failures += 1
            finally:
                self._attempt = None
            await self._wait(min(longest_s, BACKOFF_MIN_S * 2 ** min(failures, 11)) * (0.5 + self._jitter() / 2))

    async def _connect_once(self) -> float:
        """Connect, and stay until the connection is lost; how long it lasted."""
        wire = Wire(
            clock=self._clock,
            connection=Connection(Side.CLIENT, self._here, Purpose.CONTROL),
            identify=self._identify,
            judge=self._judge,
            open_session=lambda opened: Peer(opened, self._handlers),
            traffic=self._traffic,
        )
        try:
            endpoint = self._connector(self._address, self.expected)
        except Exception as error:
            raise PeerUnreachable(f"cannot try to connect: {error}") from error
        await open_wire(endpoint, wire, CONNECT_S)
        connected_at = self._clock.seconds()
        peer = cast(Peer, wire.session)
        self.peer, self._problem = peer, ""
        self._log.info("connected to {peer}", peer=self.expected)
        gone = peer.when_lost()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(peer)
        try:
            self._tell(self._on_connected, peer)
            await gone
            return self._clock.seconds() - connected_at
        finally:
            self.peer = None
            self._problem = "the connection was lost"
            self._log.info("the connection to {peer} is gone", peer=self.expected)
            self._tell(self._on_lost, peer)
            peer.close()

    def _tell(self, hook: Callable[[Peer], None], peer: Peer) -> None:
        try:
            hook(peer)
        except Exception:
            self._log.failure("a hook of the link to {peer} failed", peer=self.expected)

    def _judge(self, identity: PeerIdentity) -> None:
        if identity != self.expected:
            raise NotAcceptable(f"expected {self.expected}, found {identity}")

    def _wait(self, delay_s: float) -> Deferred[None]:
        pause: Deferred[None] = Deferred()
        timer = self._clock.callLater(delay_s, self.hurry)

        def awake(result: Failure | None) -> Failure | None:
            if timer.active():
                timer.cancel()
            return result

        pause.addBoth(awake)
        self._pause = pause
        return pause

    def _stopped(self, failure: Failure) -> None:
        self._pause = None
        if not failure.check(CancelledError):
            self._log.failure("the link to {peer} failed", failure, peer=self.expected)
