"""The network in memory behaves as the services expect of a real one."""

from __future__ import annotations

import pytest
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from securifile.model.servers import HostPort
from securifile.protocol.memory import MemoryNetwork
from tests.protocol.cluster import AT_N1, N1


class Ear(Protocol):
    """Notes what it hears."""

    heard: bytes
    ended: Failure | None = None

    def connectionMade(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason


class Ears(Factory):
    """Keeps its protocols."""

    def __init__(self) -> None:
        self.made: list[Ear] = []

    def buildProtocol(self, addr: object) -> Ear:
        self.made.append(Ear())
        return self.made[-1]


def pair(network: MemoryNetwork, clock: Clock) -> tuple[Ear, Ear]:
    """A client on n2 and its server on n1."""
    servers, clients = Ears(), Ears()
    network.listen(AT_N1, servers)
    network.connector("n2")(AT_N1, N1).connect(clients)
    clock.advance(network.latency_s)
    return clients.made[0], servers.made[0]


def run(clock: Clock, seconds: float = 0.0) -> None:
    clock.advance(seconds)
    clock.pump([0] * 20)


def test_delivery_takes_time() -> None:
    """Bytes arrive in order, after the latency, in pieces."""
    clock = Clock()
    network = MemoryNetwork(clock, latency_s=1, piece_bytes=4)
    client, server = pair(network, clock)
    assert client.transport is not None
    client.transport.write(b"abcdefgh")
    clock.advance(0.5)
    assert server.heard == b""
    clock.advance(0.5)
    assert server.heard == b"abcd"
    clock.advance(1)
    assert server.heard == b"abcdefgh"


def test_close_after_delivery() -> None:
    """What was written before a close arrives before it."""
    clock = Clock()
    client, server = pair(MemoryNetwork(clock), clock)
    assert client.transport is not None
    client.transport.write(b"last words")
    client.transport.loseConnection()
    run(clock)
    assert server.heard == b"last words"
    assert server.ended is not None
    assert client.ended is not None


def test_cut_and_heal() -> None:
    """While cut nothing passes, not even an end; after healing all does."""
    clock = Clock()
    network = MemoryNetwork(clock)
    client, server = pair(network, clock)
    network.cut("n1", "n2")
    assert client.transport is not None
    client.transport.write(b"hello?")
    run(clock, 60)
    assert server.heard == b""
    network.heal("n1", "n2")
    run(clock)
    assert server.heard == b"hello?"
    network.cut("n1", "n2")
    network.crash("n2")
    run(clock, 60)
    assert client.ended is not None
    assert server.ended is None
    network.heal("n1", "n2")
    run(clock)
    assert server.ended is not None


def test_connecting_while_cut() -> None:
    """Connecting waits while cut, can be given up, and comes about after healing."""
    clock = Clock()
    network = MemoryNetwork(clock)
    ears = Ears()
    network.listen(AT_N1, ears)
    network.cut("n1", "n2")
    endpoint = network.connector("n2")(AT_N1, N1)
    given_up, waiting = endpoint.connect(Ears()), endpoint.connect(Ears())
    given_up.addErrback(lambda failure: None)
    run(clock, 1)
    given_up.cancel()
    network.heal("n1", "n2")
    for _ in range(3):
        run(clock, 0.1)
    assert waiting.called
    assert len(ears.made) == 1


def test_refused() -> None:
    """Nobody listens: refused; an address is listened on once."""
    clock = Clock()
    network = MemoryNetwork(clock)
    failures: list[object] = []
    network.connector("n2")(AT_N1, N1).connect(Ears()).addErrback(lambda failure: failures.append(failure))
    clock.advance(0)
    assert len(failures) == 1
    stop = network.listen(AT_N1, Ears())
    with pytest.raises(ValueError, match="taken"):
        network.listen(HostPort("n1", AT_N1.port), Ears())
    stop()
    network.listen(AT_N1, Ears())
