"""A network in memory: the endpoints, byte for byte, without sockets; deterministic under a `Clock`.

For tests of whole servers together. Bytes take `latency_s` and arrive in pieces of `piece_bytes`; a sender is told to pause when
more than `buffer_bytes` are under way, as TCP would. Servers can be cut off from each other (`cut`): what is sent then
waits, as on a real network, and connecting does not come about until `heal`.

    network = MemoryNetwork(clock)
    network.listen(HostPort("n1", 1), factory)
    Link(connector=network.connector("n2"), address=HostPort("n1", 1), ...)

A listener is known by its address; servers are named by the host of their address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.servers import HostPort
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.wire import Connector


@implementer(IAddress)
@attrs.frozen
class MemoryAddress:
    """Where one end of a connection in memory is."""

    host: str
    port: int = 0


@implementer(ITransport, IConsumer, IPushProducer)
class MemoryTransport:
    """One end of a connection in memory."""

    disconnecting = False

    def __init__(self, network: MemoryNetwork, here: MemoryAddress, there: MemoryAddress) -> None:
        self.protocol: Any = None
        self.other: MemoryTransport
        self.connected = True
        self.disconnecting = False
        self.sent_bytes = 0
        """Everything ever handed to this end."""
        self._network = network
        self._here = here
        self._there = there
        self._queue = bytearray()
        self._reading = True
        self._producer: Any = None
        self._producer_paused = False
        self._delivering: Any = None

    # --- ITransport ---

    def write(self, data: bytes) -> None:
        """Send."""
        if not self.connected or self.disconnecting or not data:
            return
        self.sent_bytes += len(data)
        self._network.writes += 1
        self._network.written_bytes += len(data)
        self._queue += data
        if self._producer is not None and not self._producer_paused and len(self._queue) > self._network.buffer_bytes:
            self._producer_paused = True
            self._producer.pauseProducing()
        self.deliver_soon()

    def writeSequence(self, data: Any) -> None:
        """Send all of these."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close when everything is delivered."""
        if self.connected:
            self.disconnecting = True
            self.deliver_soon()

    def abortConnection(self) -> None:
        """Close at once."""
        if self.connected:
            self.end(ConnectionLost("aborted"))
            self.other.deliver_soon()

    def getPeer(self) -> MemoryAddress:
        """The other end."""
        return self._there

    def getHost(self) -> MemoryAddress:
        """This end."""
        return self._here

    # --- IConsumer ---

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Have `producer` paused while too much is under way."""
        self._producer = producer
        self._producer_paused = False

    def unregisterProducer(self) -> None:
        """Forget it."""
        self._producer = None

    # --- IPushProducer ---

    def pauseProducing(self) -> None:
        """Receive nothing for now."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Receive again."""
        self._reading = True
        self.other.deliver_soon()

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    # --- the network ---

    def deliver_soon(self) -> None:
        """See to it that what is queued arrives, if nothing stands in the way."""
        if self._delivering is None and self.connected:
            self._delivering = self._network.clock.callLater(self._network.delay_s(self._here.host, self._there.host), self._deliver)

    def _deliver(self) -> None:
        self._delivering = None
        network, here, there = self._network, self._here.host, self._there.host
        if not self.connected or network.is_cut(here, there) or not network.is_awake(there):
            return
        # What this end has sent arrives even while its process sleeps; what it is told waits until it wakes.
        awake = network.is_awake(here)
        if not self.other.connected:
            # Like TCP: who sends to a connection that is gone, or is told about it, gets a reset.
            if awake:
                self.end(ConnectionLost("reset"))
            return
        if self._queue and self.other._reading:
            # As with TCP, where a write began and ended is not seen.
            piece = bytes(self._queue[: self._network.piece_bytes])
            del self._queue[: self._network.piece_bytes]
            self.other.protocol.dataReceived(piece)
        if self._queue:
            if self.other._reading:
                self.deliver_soon()
        elif self.disconnecting:
            if awake:
                self.end(ConnectionDone("closed here"))
                self.other.end(ConnectionDone("closed there"))
            return
        if self._producer is not None and self._producer_paused and not self._queue and awake:
            self._producer_paused = False
            self._producer.resumeProducing()

    def end(self, reason: Exception) -> None:
        """The connection is gone at this end."""
        if not self.connected:
            return
        self.connected = False
        self._queue.clear()
        self._network.forget(self)
        if self.protocol is not None:
            self.protocol.connectionLost(Failure(reason))


class MemoryNetwork:
    """Listeners by address, and connections between them.

    Args:
        clock: a `Clock`; advancing it delivers.
        latency_s: how long each piece takes.
        piece_bytes: the largest piece that arrives at once.
        buffer_bytes: what may be under way before a sender is paused.
    """

    def __init__(self, clock: IReactorTime, *, latency_s: float = 0.0, piece_bytes: int = 65536, buffer_bytes: int = 65536) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.piece_bytes = piece_bytes
        self.buffer_bytes = buffer_bytes
        self._listeners: dict[HostPort, IProtocolFactory] = {}
        self._cut: set[frozenset[str]] = set()
        self._transports: dict[MemoryTransport, None] = {}
        """In the order in which they were made; no list, because a cluster of two hundred nodes has tens of thousands."""
        self._connects = 0
        self.writes = 0
        """How often anybody has sent anything: every message is one."""
        self.written_bytes = 0

    def listen(self, address: HostPort, factory: IProtocolFactory) -> Callable[[], None]:
        """Listen; returns what stops it."""
        if address in self._listeners:
            raise ValueError(f"{address} is taken")
        self._listeners[address] = factory
        factory.doStart()

        def stop() -> None:
            if self._listeners.pop(address, None) is not None:
                factory.doStop()

        return stop

    def connector(self, host: str) -> Connector:
        """How the server on `host` connects."""
        return lambda address, expected: _MemoryEndpoint(self, host, address, expected)

    def cut(self, one: str, other: str) -> None:
        """From now on nothing passes between these hosts."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """Let everything pass again; what was waiting arrives."""
        self._cut.discard(frozenset((one, other)))
        for transport in list(self._transports):
            transport.deliver_soon()

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing passes."""
        return frozenset((one, other)) in self._cut

    def delay_s(self, here: str, there: str) -> float:
        """How long the next piece takes from one host to another; a network with weather has its own answer."""
        return self.latency_s

    def is_awake(self, host: str) -> bool:
        """Whether the process on that host runs. While it does not, it is told nothing, and what is sent to it waits."""
        return True

    def crash(self, host: str) -> None:
        """Reset all connections of a host, as if its process had died. Its listeners stay until they are stopped."""
        for transport in list(self._transports):
            if transport.getHost().host == host:
                transport.abortConnection()

    def transports(self, host: str) -> list[MemoryTransport]:
        """The host's ends of its connections."""
        return [transport for transport in self._transports if transport.getHost().host == host]

    def connect(self, host: str, address: HostPort, factory: Any, done: Deferred[IProtocol]) -> None:
        """Connect, after the latency; refused when nobody listens; never while cut."""
        if done.called:
            return
        if self.is_cut(host, address.host):
            self.clock.callLater(0.1, self.connect, host, address, factory, done)
            return
        listener = self._listeners.get(address)
        self._connects += 1
        here, there = MemoryAddress(host, 40000 + self._connects), MemoryAddress(address.host, address.port)
        server = listener.buildProtocol(here) if listener is not None else None
        client = factory.buildProtocol(there)
        if server is None or client is None:
            done.errback(ConnectionRefusedError(f"nobody listens at {address}"))
            return
        client_end, server_end = MemoryTransport(self, here, there), MemoryTransport(self, there, here)
        client_end.other, server_end.other = server_end, client_end
        client_end.protocol, server_end.protocol = client, server
        self._transports |= {client_end: None, server_end: None}
        server.makeConnection(server_end)
        client.makeConnection(client_end)
        done.callback(client)

    def forget(self, transport: MemoryTransport) -> None:
        """The connection has ended."""
        self._transports.pop(transport, None)


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _MemoryEndpoint:
    _network: MemoryNetwork
    _host: str
    _address: HostPort
    _expected: PeerIdentity

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        done: Deferred[IProtocol] = Deferred()
        self._network.clock.callLater(self._network.latency_s, self._network.connect, self._host, self._address, protocolFactory, done)
        return done
