"""TLS in large pieces: the same bytes as Twisted's layer delivers, over real sockets and over transports in memory."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import attrs
import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import abstract, reactor, tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.protocols import tls
from twisted.python.failure import Failure
from twisted.test import iosim
from zope.interface import implementer

from securifile.model.errors import StreamBroken
from securifile.protocol.openssl import READ_BYTES_MAX
from securifile.protocol.sniff import tls_only
from securifile.protocol.tls import client_context, server_context
from securifile.protocol.tls_layer import PATIENCE_WAITS, WAITS_MAX, LargePieces, TlsInLargePieces, tls_in_large_pieces
from securifile.workers import ThreadWorker
from tests.protocol.certs import credentials

SIZES = (0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 256 * 1024, 256 * 1024 + 1, 3_000_000, 7, 100_000)


@implementer(IPushProducer)
class End(Protocol):
    """One end of a connection: keeps what comes, and how it was told to wait."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.lost: Failure | None = None
        self.paused = False
        self.pauses = 0
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    @property
    def got(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def to(self) -> Any:
        return self.transport

    def until(self, question: Callable[[], bool]) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append((question, waiting))
        self._look()
        return waiting

    def _look(self) -> None:
        for one in list(self._waiting):
            if one[0]():
                self._waiting.remove(one)
                one[1].callback(None)

    def connectionMade(self) -> None:
        self.to.registerProducer(self, True)
        self._look()

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self._look()

    def pauseProducing(self) -> None:
        self.paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        self.paused = False
        self._look()

    def stopProducing(self) -> None:
        pass


@implementer(IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
@attrs.frozen
class Creator:
    context: SSL.Context

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(self.context, None)

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(self.context, None)


def creators() -> tuple[Creator, Creator]:
    return (
        Creator(server_context(credentials("securifile://c/node/server"))),
        Creator(client_context(credentials("securifile://c/node/client"))),
    )


def factory_of(end: End) -> Factory:
    return Factory.forProtocol(lambda: end)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[End, End]]:
    """A server and a client on loopback, the handshake perhaps still to come; behind the look at the first byte, as in production."""
    server, client = End(), End()
    for_server, for_client = creators()
    listening = tls_only(tls_in_large_pieces(for_server, False, factory_of(server), reactor))
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(listening)
    below = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    await TlsInLargePieces(for_client, below, reactor).connect(factory_of(client))
    try:
        yield server, client
    finally:
        for end in (client, server):
            if end.lost is None and end.transport is not None:
                end.to.abortConnection()
        await server.until(lambda: server.lost is not None or server.transport is None)
        await client.until(lambda: client.lost is not None)
        await port.stopListening()


def in_memory() -> tuple[End, End, iosim.IOPump]:
    """The same without sockets: every short way is closed, and all goes through Twisted's buffers."""
    server, client = End(), End()
    for_server, for_client = creators()
    clock = Clock()
    outer_server: Any = tls_in_large_pieces(for_server, False, factory_of(server), clock).buildProtocol(None)
    outer_client: Any = tls_in_large_pieces(for_client, True, factory_of(client), clock).buildProtocol(None)
    pump = iosim.connect(
        outer_server, iosim.makeFakeServer(outer_server), outer_client, iosim.makeFakeClient(outer_client), greet=True, clock=clock
    )
    return server, client, pump


def bytes_of(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


def test_what_it_relies_on() -> None:
    """The parts of Twisted and pyOpenSSL that are not promised. A new major release is a reason to read them, then to change this."""
    assert version("twisted").split(".")[0] == "26"
    assert version("pyopenssl").split(".")[0] == "26"
    # What is replaced, and what calls it: everything written and received goes through these three.
    source = {name: inspect.getsource(method) for name, method in vars(tls.TLSMemoryBIOProtocol).items() if inspect.isfunction(method)}
    assert {name for name, text in source.items() if "self._tlsConnection.send(" in text} == {"_write"}
    assert {name for name, text in source.items() if "self._tlsConnection.recv(" in text} == {"_flushReceiveBIO"}
    assert {name for name, text in source.items() if "bio_read(" in text} == {"_flushSendBIO"}
    assert {name for name, text in source.items() if "self._write(" in text} == {"write", "_unbufferPendingWrites"}
    for name in ("_bufferedWrite", "_tlsShutdownFinished", "_shutdownTLS"):
        assert name in source
    for name in ("_lostTLSConnection", "_aborted"):
        assert hasattr(tls.TLSMemoryBIOProtocol, name)
    # The short way to the socket is taken when Twisted's buffers are empty; these are all of them.
    buffers = inspect.getsource(tcp.Connection._isSendBufferFull)
    assert "len(self.dataBuffer) + self._tempDataLen > self.bufferSize" in buffers
    assert "self._tempDataBuffer" in inspect.getsource(abstract.FileDescriptor.write)
    assert "self.producerPaused" in inspect.getsource(tcp.Connection.doWrite)
    assert "self.socket.recv(self.bufferSize)" in inspect.getsource(tcp.Connection.doRead)
    assert "self.SEND_LIMIT" in inspect.getsource(tcp.Connection.writeSomeData)
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    for name in ("_ssl", "_from_ssl", "_into_ssl", "_raise_ssl_error"):
        assert hasattr(connection, name)


@pytest_twisted.ensureDeferred
async def test_every_byte_arrives_in_order() -> None:
    """Pieces of all sizes, both ways at once, the first of them before the handshake."""
    async with connected() as (server, client):
        expected = b""
        for size in SIZES:
            client.to.write(bytes_of(size))
            expected += bytes_of(size)
        await server.until(lambda: server.transport is not None)
        for size in SIZES:
            server.to.write(bytes_of(size))
        await server.until(lambda: len(server.got) >= len(expected))
        await client.until(lambda: len(client.got) >= len(expected))
        assert server.got == expected
        assert client.got == expected


def test_every_byte_arrives_in_order_without_sockets() -> None:
    """The same over a transport in memory."""
    server, client, pump = in_memory()
    expected = b"".join(map(bytes_of, SIZES))
    for size in SIZES:
        client.to.write(bytes_of(size))
        server.to.write(bytes_of(size))
    pump.flush()
    assert server.got == expected
    assert client.got == expected


@pytest_twisted.ensureDeferred
async def test_what_came_together_is_delivered_together() -> None:
    """A megabyte is a few pieces, not the 64 records that it travels in; and none is larger than what is read at once."""
    async with connected() as (server, client):
        await server.until(lambda: server.transport is not None)
        server.to.write(bytes_of(4 * 1024 * 1024))
        await client.until(lambda: len(client.got) == 4 * 1024 * 1024)
        assert len(client.pieces) < 128
        assert max(map(len, client.pieces)) <= READ_BYTES_MAX


@pytest_twisted.ensureDeferred
async def test_a_slow_reader_makes_the_producer_wait() -> None:
    """Who does not read holds what the socket takes and little more; when they read again, the producer goes on."""
    async with connected() as (server, client):
        await server.until(lambda: server.transport is not None)
        client.to.write(b"x")
        await server.until(lambda: server.got == b"x")
        client.to.pauseProducing()
        written = 0
        while not server.paused:
            server.to.write(bytes_of(256 * 1024))
            written += 256 * 1024
            assert written < 64 * 1024 * 1024
        below = server.to.transport.transport
        assert isinstance(below, tcp.Connection)
        assert len(below.dataBuffer) + below._tempDataLen < 320 * 1024
        client.to.resumeProducing()
        await server.until(lambda: not server.paused)
        await client.until(lambda: len(client.got) == written)
        assert client.got == bytes_of(256 * 1024) * (written // (256 * 1024))


@pytest_twisted.ensureDeferred
async def test_closing_comes_after_what_was_written() -> None:
    """`loseConnection` right after megabytes: they arrive, and then a clean end."""
    async with connected() as (server, client):
        await server.until(lambda: server.transport is not None)
        server.to.write(bytes_of(5_000_000))
        server.to.unregisterProducer()
        server.to.loseConnection()
        client.to.unregisterProducer()
        await client.until(lambda: client.lost is not None)
        assert client.got == bytes_of(5_000_000)


@pytest_twisted.ensureDeferred
async def test_after_the_end_nothing_is_sent() -> None:
    """Writing to a connection that the other end has cut off does nothing, and both ends learn of it."""
    async with connected() as (server, client):
        await server.until(lambda: server.transport is not None)
        client.to.write(b"hello")
        await server.until(lambda: server.got == b"hello")
        client.to.abortConnection()
        await server.until(lambda: server.lost is not None)
        server.to.write(b"too late")
        assert client.got == b""


@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_gone_keeps_nothing_of_openssl(how: str) -> None:
    """What OpenSSL had for it, with its buffers, is freed at once, though who used it may be referred to for longer."""
    async with connected() as (server, client):
        await server.until(lambda: server.transport is not None)
        client.to.write(b"hello")
        await server.until(lambda: server.got == b"hello")
        lane = server.to.lane()
        lane.close()
        gone = weakref.ref(server.to._tlsConnection)
        gc.disable()
        try:
            client.to.unregisterProducer()
            getattr(client.to, how)()
            await server.until(lambda: server.lost is not None)
            await deferLater(reactor, 0)  # type: ignore[arg-type]
            assert gone() is None
        finally:
            gc.enable()


def test_an_end_within_a_delivery_is_the_end() -> None:
    """A protocol may close, or cut off, while it is given bytes; nothing is delivered after that."""

    class Cutting(End):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.to.abortConnection()

    clock = Clock()
    for_server, for_client = creators()
    server, client = Cutting(), End()
    outer_server: Any = tls_in_large_pieces(for_server, False, factory_of(server), clock).buildProtocol(None)
    outer_client: Any = tls_in_large_pieces(for_client, True, factory_of(client), clock).buildProtocol(None)
    pump = iosim.connect(
        outer_server, iosim.makeFakeServer(outer_server), outer_client, iosim.makeFakeClient(outer_client), greet=True, clock=clock
    )
    client.to.write(bytes_of(3_000_000))
    pump.flush()
    assert len(server.pieces) == 1
    assert server.lost is not None


@pytest.mark.parametrize("cut", [1, 20, 4000])
def test_a_record_that_was_changed_ends_the_connection(cut: int) -> None:
    """What does not decrypt is never delivered; what came whole before it is."""
    server, client, pump = in_memory()
    client.to.write(b"whole")
    pump.flush()
    layer: Any = client.transport
    assert isinstance(layer, LargePieces)
    client.to.write(bytes_of(5000))
    pump.flush()
    good = server.got
    sealed: Any = server.transport
    sealed.dataReceived(b"\x17\x03\x03\x10\x00" + bytes(4096 - cut) + b"x" * cut)
    pump.flush()
    assert server.got == good
    assert server.lost is not None
    assert server.lost.check(SSL.Error)


class Thread:
    """A thread that does one thing at a time, and the reactor's worker on it."""

    def __init__(self) -> None:
        self.worker = ThreadWorker(reactor, 1, "test")  # type: ignore[arg-type]

    async def burst(self, end: End, pieces: int) -> int:
        """Send up to so many pieces of 256 KiB by a lane; how many bytes it took. Waits first until there is one."""
        await end.until(lambda: not end.paused)
        lane = end.to.lane()
        assert lane is not None

        def work() -> None:
            for _ in range(pieces):
                if not lane.take(bytes_of(256 * 1024)):
                    return

        try:
            await self.worker.do(work)
        finally:
            taken: int = lane.close()
        return taken

    def stop(self) -> None:
        self.worker.stop()


@pytest.fixture
def thread() -> Iterator[Thread]:
    made = Thread()
    yield made
    made.stop()


async def spoken(server: End, client: End) -> None:
    """The handshake is over."""
    await server.until(lambda: server.transport is not None)
    client.to.write(b"hello")
    await server.until(lambda: server.got == b"hello")


@pytest_twisted.ensureDeferred
async def test_a_thread_and_the_reactor_take_turns(thread: Thread) -> None:
    """What a thread sends comes behind what was written before, and before what is written after, while the client talks too."""
    async with connected() as (server, client):
        await spoken(server, client)
        expected = b""
        for turn in range(6):
            server.to.write(b"head %d" % turn)
            expected += b"head %d" % turn
            client.to.write(b"and I say something")
            expected += (bytes_of(256 * 1024) * 16)[: await thread.burst(server, 16)]
        await server.until(lambda: not server.paused)
        server.to.write(b"end")
        await client.until(lambda: client.got.endswith(b"end"))
        assert client.got == expected + b"end"
        assert server.got == b"hello" + b"and I say something" * 6


@pytest_twisted.ensureDeferred
async def test_a_thread_does_not_wait_for_a_slow_client(thread: Thread) -> None:
    """When the socket is full the burst ends, a piece is left for later, and there is no lane until it has gone out."""
    async with connected() as (server, client):
        await spoken(server, client)
        client.to.pauseProducing()
        taken = await thread.burst(server, 1000)
        assert 0 < taken < 1000 * 256 * 1024
        assert server.paused
        assert server.to.lane() is None
        below = server.to.transport.transport
        assert len(below.dataBuffer) + below._tempDataLen < 320 * 1024
        client.to.resumeProducing()
        taken += await thread.burst(server, 1)
        await client.until(lambda: len(client.got) == taken)


@pytest.mark.parametrize("how", ["it is closed", "the connection is cut", "the client goes"])
@pytest_twisted.ensureDeferred
async def test_a_lane_that_is_over_takes_nothing(thread: Thread, how: str) -> None:
    """The reactor takes the connection back at any time, and from then on the thread gives not a byte."""
    async with connected() as (server, client):
        await spoken(server, client)
        lane = server.to.lane()
        assert lane is not None
        await thread.worker.do(lane.take, bytes_of(100))
        await client.until(lambda: client.got == bytes_of(100))
        if how == "it is closed":
            lane.close()
        elif how == "the connection is cut":
            server.to.abortConnection()
        else:
            client.to.abortConnection()
            await server.until(lambda: server.lost is not None)
        with pytest.raises(StreamBroken):
            await thread.worker.do(lane.take, bytes_of(100))
        assert lane.close() == 100
        assert client.got == bytes_of(100)


@pytest_twisted.ensureDeferred
async def test_there_is_one_lane_at_a_time() -> None:
    """And none before the handshake is over."""
    async with connected() as (server, client):
        await server.until(lambda: server.transport is not None)
        assert client.to.lane() is None
        await spoken(server, client)
        lane = server.to.lane()
        assert server.to.lane() is None
        lane.close()
        again = server.to.lane()
        assert again is not None
        again.close()


def test_without_a_socket_there_is_no_lane() -> None:
    """Then all goes through the reactor's thread."""
    server, client, pump = in_memory()
    client.to.write(b"x")
    pump.flush()
    assert server.to.lane() is None


class Receiving:
    """A thread that receives by lanes, and what it got."""

    def __init__(self, thread: Thread) -> None:
        self.worker = thread.worker
        self.got = b""

    async def burst(self, end: End, enough: int) -> int:
        """Receive up to so many bytes; how many came."""
        lane = end.to.lane(receives=True)
        assert lane is not None
        return await self.by(lane, enough)

    async def by(self, lane: Any, enough: int) -> int:
        came = bytearray()

        def work() -> None:
            while len(came) < enough and (piece := lane.receive(min(enough - len(came), READ_BYTES_MAX))):
                came.extend(piece)

        try:
            await self.worker.do(work)
        finally:
            self.got += came
            lane.close()
        assert lane.received == len(came)
        return len(came)


@pytest_twisted.ensureDeferred
async def test_a_thread_receives_what_comes_next(thread: Thread) -> None:
    """Between what was delivered before and after it, byte for byte, and not one more than it wants."""
    async with connected() as (server, client):
        await spoken(server, client)
        receiving = Receiving(thread)
        sent = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))
        client.to.write(sent)
        wanted = 3_000_001
        while len(receiving.got) < wanted:
            await receiving.burst(server, wanted - len(receiving.got))
        assert server.got == b"hello"
        client.to.write(b"end")
        await server.until(lambda: server.got.endswith(b"end"))
        assert receiving.got + server.got[len(b"hello") :] == sent + b"end"


@pytest_twisted.ensureDeferred
async def test_a_thread_does_not_wait_for_a_slow_sender(thread: Thread) -> None:
    """When nothing comes the burst is over, and the reactor's thread waits for the rest."""
    async with connected() as (server, client):
        await spoken(server, client)
        receiving = Receiving(thread)
        assert await receiving.burst(server, 100) == 0
        lane = server.to.lane(receives=True)
        for _ in range(2 * WAITS_MAX // PATIENCE_WAITS):
            assert await thread.worker.do(partial(lane.receive, 100, patient=True)) == b"", "patience is bounded, too"
        lane.close()
        client.to.write(b"later")
        await server.until(lambda: server.got == b"hellolater")


@pytest_twisted.ensureDeferred
async def test_who_wants_nothing_gets_nothing_after_a_lane(thread: Thread) -> None:
    """A receiver that was told to pause stays paused, and a lane is not made then."""
    async with connected() as (server, client):
        await spoken(server, client)
        lane = server.to.lane(receives=True)
        server.to.pauseProducing()
        lane.close()
        client.to.write(b"more")
        await Receiving(thread).worker.do(lambda: None)
        assert server.to.lane(receives=True) is None
        assert server.got == b"hello"
        server.to.resumeProducing()
        await server.until(lambda: server.got == b"hellomore")


@pytest_twisted.ensureDeferred
async def test_who_watches_is_told_before_anything_is_read(thread: Thread) -> None:
    """Once for each time it asks, and a lane that is made then gets all that has come."""
    async with connected() as (server, client):
        await spoken(server, client)
        receiving = Receiving(thread)
        for number in range(3):
            told: Deferred[None] = Deferred()
            assert server.to.watch(partial(told.callback, None))
            client.to.write(b"%d" % number * 100_000)
            await told
            while len(receiving.got) < (number + 1) * 100_000:
                await receiving.burst(server, (number + 1) * 100_000 - len(receiving.got))
        assert receiving.got == b"0" * 100_000 + b"1" * 100_000 + b"2" * 100_000
        assert server.got == b"hello"


@pytest_twisted.ensureDeferred
async def test_what_was_watched_for_is_delivered_if_nobody_takes_it() -> None:
    """Who watches and then makes no lane loses nothing; and one that is told to pause is told nothing until it goes on."""
    async with connected() as (server, client):
        await spoken(server, client)
        told: list[bytes] = []
        assert server.to.watch(lambda: told.append(server.got))
        server.to.pauseProducing()
        client.to.write(b"one")
        await client.until(lambda: not client.paused)
        assert not told
        server.to.resumeProducing()
        await server.until(lambda: server.got == b"helloone")
        assert told == [b"hello"]
        client.to.write(b"two")
        await server.until(lambda: server.got == b"helloonetwo")
        assert len(told) == 1


@pytest_twisted.ensureDeferred
async def test_when_there_is_nothing_to_watch_for(thread: Thread) -> None:
    """Before the handshake, beside a lane, for one that is paused, behind the end, and when something has come and was not taken."""
    async with connected() as (server, client):
        early = client.to.watch(lambda: None)
        await spoken(server, client)
        lane = server.to.lane(receives=True)
        beside = server.to.watch(lambda: None)
        client.to.write(b"a lot" * 1000)
        await Receiving(thread).by(lane, 1)
        more = server.to.watch(lambda: None)
        await server.until(lambda: len(server.got) == len(b"hello") + 4999)
        server.to.pauseProducing()
        assert (early, beside, more, server.to.watch(lambda: None)) == (False, False, False, False)
        server.to.resumeProducing()
        client.to.abortConnection()
        await server.until(lambda: server.lost is not None)
        assert not server.to.watch(lambda: None)


@pytest_twisted.ensureDeferred
async def test_an_end_that_is_watched_for() -> None:
    """It is told, and the reactor's thread hears of it."""
    async with connected() as (server, client):
        await spoken(server, client)
        told: list[bool] = []
        assert server.to.watch(lambda: told.append(True))
        client.to.unregisterProducer()
        client.to.loseConnection()
        await server.until(lambda: server.lost is not None)
        assert told == [True]


@pytest.mark.parametrize("how", ["the connection is cut", "the client says goodbye", "the client goes"])
@pytest_twisted.ensureDeferred
async def test_an_end_that_a_lane_meets(thread: Thread, how: str) -> None:
    """The thread gets nothing more, and the reactor's thread hears of the end."""
    async with connected() as (server, client):
        await spoken(server, client)
        lane = server.to.lane(receives=True)
        if how == "the connection is cut":
            server.to.abortConnection()
            with pytest.raises(StreamBroken):
                await thread.worker.do(lane.receive, 100)
            assert lane.close() == 0
        else:
            client.to.write(b"last words")
            client.to.unregisterProducer()
            if how == "the client says goodbye":
                client.to.loseConnection()
            else:
                client.to.transport.loseConnection()
            receiving = Receiving(thread)
            await receiving.by(lane, 100)
            await server.until(lambda: server.lost is not None)
            assert b"hello" + receiving.got + server.got[len(b"hello") :] == b"hellolast words"
            assert server.to.lane(receives=True) is None
        await server.until(lambda: server.lost is not None)
