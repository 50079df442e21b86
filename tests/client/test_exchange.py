"""Requests over connections in memory: what is sent when, and what is known when it fails."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.client.exchange import Answer, Broken, Connection, Content, Http, NotSent, Patience
from securifile.client.wire import Origin
from securifile.model.interfaces import IByteSource

URL = "http://node:1/a"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@implementer(IByteSource)
class Pieces:
    """Content in pieces; counts how many were taken."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.taken = 0

    def read(self) -> Deferred[bytes]:
        self.taken += 1
        return succeed(self.pieces.pop(0) if self.pieces else b"")

    def close(self) -> None:
        pass


class Wire(StringTransport):
    """A connection in memory that can be full, and be lost."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.connection = connection
        self.full = False
        connection.makeConnection(self)  # type: ignore[no-untyped-call]

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]
        if self.full:
            self.connection.pauseProducing()

    @property
    def sent(self) -> bytes:
        return self.io.getvalue()

    def abortConnection(self) -> None:
        self.lose()

    def lose(self, reason: BaseException | None = None) -> None:
        if not self.connection.lost:
            self.connection.connectionLost(Failure(reason or ConnectionDone()))

    def answer(self, data: bytes) -> None:
        self.connection.dataReceived(data)


@implementer(IStreamClientEndpoint)
class Network:
    """Connects in memory, and keeps every connection."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.wires: list[Wire] = []
        self.refuse = False
        self.http = Http(lambda origin: self, self.clock, Patience())

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.refuse:
            return fail(ConnectionRefusedError())
        connection = factory.buildProtocol(None)
        self.wires.append(Wire(connection))
        return succeed(connection)

    def put(self, *pieces: bytes) -> tuple[Deferred[Answer], Pieces]:
        source = Pieces(*pieces)
        return begin(self.http.request("PUT", URL, {}, Content(source=source, length=sum(map(len, pieces))))), source

    def get(self) -> Deferred[Answer]:
        return begin(self.http.request("GET", URL, {}))


def begin(work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


def result(deferred: Deferred[Any]) -> Any:
    """What has come of it by now; raises what it failed with, and AssertionError if it is still going on."""
    got: list[Any] = []
    deferred.addBoth(got.append)
    assert got, "still going on"
    if isinstance(got[0], Failure):
        got[0].raiseException()
    return got[0]


def going_on(deferred: Deferred[Any]) -> bool:
    return not deferred.called


LARGE = [b"x" * 65536] * 4


def test_large_content_waits_for_leave() -> None:
    """The head asks for leave, and the content goes only when `100 Continue` has come."""
    network = Network()
    answer, source = network.put(*LARGE)
    [wire] = network.wires
    assert b"Expect: 100-continue\r\n" in wire.sent and wire.sent.endswith(b"\r\n\r\n")
    assert source.taken == 0
    wire.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert source.taken == 4 and wire.sent.endswith(b"".join(LARGE))
    wire.answer(OK)
    assert result(answer).status == 200


def test_without_leave_the_content_goes_after_a_while() -> None:
    """A server that does not know the question is not waited for longer than a second."""
    network = Network()
    _, source = network.put(*LARGE)
    network.clock.advance(0.9)
    assert source.taken == 0
    network.clock.advance(0.2)
    assert source.taken == 4


def test_an_early_answer_saves_the_content() -> None:
    """A redirect or refusal in place of leave: no byte of the content is sent, and the connection is not used again."""
    network = Network()
    answer, source = network.put(*LARGE)
    network.wires[0].answer(b"HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 4\r\n\r\nthat")
    got = result(answer)
    assert (got.status, source.taken) == (307, 0)
    assert result(begin(got.content())) == b"that"
    network.get()
    assert len(network.wires) == 2


def test_an_answer_in_the_middle_stops_the_content() -> None:
    """When the answer comes while the content is going, the rest of it stays unsent, even if the server has stopped reading."""
    network = Network()
    answer, source = network.put(*LARGE)
    wire = network.wires[0]
    wire.full = True
    wire.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert source.taken == 1 and going_on(answer)
    wire.answer(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    assert (result(answer).status, source.taken) == (413, 1)


def test_a_full_transport_holds_the_content_back() -> None:
    """While the transport takes no more, no more is read; so memory does not grow with the file."""
    network = Network()
    _, source = network.put(*LARGE)
    wire = network.wires[0]
    wire.full = True
    wire.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert source.taken == 1
    wire.connection.resumeProducing()
    assert source.taken == 2


def test_an_answer_before_the_loss_counts() -> None:
    """A server that refuses and closes at once is heard, though the content could not be sent."""
    network = Network()
    answer, _ = network.put(*LARGE)
    wire = network.wires[0]
    wire.full = True
    wire.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    wire.answer(b"HTTP/1.1 423 Locked\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
    wire.lose()
    got = result(answer)
    assert (got.status, result(begin(got.content()))) == (423, b"no")


def test_connections_are_kept() -> None:
    """A second request goes over the first one's connection when its answer was read to the end; a POST takes a new one."""
    network = Network()
    for _ in range(2):
        answer = network.get()
        network.wires[0].answer(OK)
        assert result(begin(result(answer).content())) == b"ok"
    begin(network.http.request("POST", URL, {}))
    assert len(network.wires) == 2
    assert b"Content-Length: 0\r\n" in network.wires[1].sent


def test_a_kept_connection_that_closes_is_replaced() -> None:
    """When a kept connection turns out to be closed, the request goes out on a new one and nobody hears of it."""
    network = Network()
    answer = network.get()
    network.wires[0].answer(OK)
    result(begin(result(answer).content()))
    again = network.get()
    network.wires[0].lose()
    network.wires[1].answer(OK)
    assert result(again).status == 200


def test_a_refused_connection_is_certain() -> None:
    """Without a connection nothing was sent."""
    network = Network()
    network.refuse = True
    with pytest.raises(NotSent):
        result(network.get())


def test_a_lost_connection_is_not() -> None:
    """Once the request is out, a loss means that nobody knows."""
    network = Network()
    answer = network.get()
    network.wires[0].lose()
    with pytest.raises(Broken, match="without an answer"):
        result(answer)


@pytest.mark.parametrize("data", [b"garbage\r\n\r\n", OK + b"more"])
def test_nonsense_breaks_the_connection(data: bytes) -> None:
    """What is not HTTP ends the exchange, and the connection with it."""
    network = Network()
    answer = network.get()
    network.wires[0].answer(data)
    with pytest.raises(Broken):
        result(begin(result(answer).content()))
    assert network.wires[0].connection.lost


def test_silence_ends() -> None:
    """A server that says nothing is given up, before its answer and in the middle of it."""
    network = Network()
    answer = network.get()
    network.clock.advance(121)
    with pytest.raises(Broken, match="does not answer"):
        result(answer)
    answer = network.get()
    network.wires[1].answer(OK[:-1])
    reading = begin(result(answer).content())
    network.clock.advance(31)
    with pytest.raises(Broken):
        result(reading)


def test_nobody_reading_pauses_the_server() -> None:
    """Content that nobody reads is not taken without end; reading it lets it flow again."""
    network = Network()
    answer = network.get()
    wire = network.wires[0]
    wire.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")
    got = result(answer)
    wire.answer(b"x" * 1_000_000)
    assert wire.producerState == "producing"
    wire.answer(b"x" * 100_000)
    assert wire.producerState == "paused"
    assert len(result(got.read())) == 1_100_000
    assert wire.producerState == "producing"


def test_cancelling_closes() -> None:
    """Who cancels a request or a read closes its connection."""
    network = Network()
    answer = network.get()
    answer.cancel()
    with pytest.raises(CancelledError):
        result(answer)
    assert network.wires[0].connection.lost
    assert network.clock.getDelayedCalls() == []


def test_nothing_is_sent_before_the_handshake() -> None:
    """Over TLS the request goes out when the server is known; a connection lost before that has certainly not carried it."""
    network = Network()
    answer = begin(network.http.request("GET", "https://node:1/a", {}))
    assert network.wires[0].sent == b""
    network.wires[0].connection.handshakeCompleted()
    assert network.wires[0].sent.startswith(b"GET /a HTTP/1.1\r\nHost: node:1\r\n")
    network.wires[0].answer(OK)
    assert result(answer).status == 200
    answer = begin(network.http.request("GET", "https://node:1/a", {}))
    network.wires[1].lose()
    with pytest.raises(NotSent):
        result(answer)
    answer = begin(network.http.request("GET", "https://node:1/a", {}))
    network.clock.advance(6)
    with pytest.raises(NotSent, match="TLS is not answered"):
        result(answer)
    assert network.wires[2].connection.lost


def test_origins_do_not_mix() -> None:
    """A connection is kept for its scheme, host and port alone."""
    network = Network()
    answer = network.get()
    network.wires[0].answer(OK)
    result(begin(result(answer).content()))
    begin(network.http.request("GET", "http://node:2/a", {}))
    assert len(network.wires) == 2
    assert Origin("http", "node", 1) != Origin("http", "node", 2)
