"""Tunnels: a front passes on what it does not answer by itself.

    client == TLS == front --- what the client says, as it is ---> HTTP of the node process
                           <-- frames: bytes; the end; "at rest" --

From the first byte of a request on, the client speaks with the node process itself, whose rules are the only ones: a front does not read
bodies, and knows nothing of answers. What comes back is in frames, so that an end in good order is not mistaken for one that cut an
answer off, and so that the node process can say that it waits for the next request, having read so many bytes. If the front has
sent no more than that, it is its turn again to look at the next request.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from securifile.http.channel import HttpChannel, HttpFactory

BUFFER_BYTES = 256 * 1024
"""Read from a tunnel at once, and given to it before whoever writes has to wait."""

_FRAME = struct.Struct(">BI")
_DATA, _END, _REST = range(3)
_COUNTED = 1 << 32
"""Counts of bytes go round at this: what is compared differs by less."""


class Frames:
    """Reads frames, fed in any pieces; tells what they say as it comes."""

    def __init__(self, data: Callable[[bytes], None], end: Callable[[], None], rest: Callable[[int], None]) -> None:
        self._data = data
        self._end = end
        self._rest = rest
        self._head = b""
        self._missing = 0
        """Bytes of a data frame still to come."""

    def feed(self, received: bytes) -> None:
        """Take bytes."""
        at = 0
        while at < len(received):
            if self._missing:
                piece = received[at : at + self._missing] if at or self._missing < len(received) else received
                self._missing -= len(piece)
                at += len(piece)
                self._data(piece)
                continue
            wanted = _FRAME.size - len(self._head)
            self._head += received[at : at + wanted]
            at += wanted
            if len(self._head) < _FRAME.size:
                return
            kind, value = _FRAME.unpack(self._head)
            self._head = b""
            if kind == _DATA:
                self._missing = value
            elif kind == _END:
                self._end()
            else:
                self._rest(value)


class NodeEnd(ProtocolWrapper):
    """The end of a tunnel in the node process: what the HTTP channel has for a transport."""

    factory: NodeEnds
    wrappedProtocol: HttpChannel

    def __init__(self, factory: NodeEnds, channel: HttpChannel, peer: IAddress) -> None:
        super().__init__(factory, channel)
        self._peer = peer
        self._received = 0

    def makeConnection(self, transport: Any) -> None:
        """The tunnel is there."""
        transport.bufferSize = BUFFER_BYTES
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def getPeer(self) -> IAddress:
        """The client's address, as the front has it from the system."""
        return self._peer

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the client."""
        self._received += len(data)
        super().dataReceived(data)  # type: ignore[no-untyped-call]

    def write(self, data: bytes) -> None:
        """Send as a frame."""
        self._below.writeSequence((_FRAME.pack(_DATA, len(data)), data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send as one frame."""
        pieces = list(data)
        self._below.writeSequence([_FRAME.pack(_DATA, sum(map(len, pieces))), *pieces])

    def loseWriteConnection(self) -> None:
        """Say that this is the end; what the client still says is read."""
        self._below.write(_FRAME.pack(_END, 0))

    def loseConnection(self) -> None:
        """Say that this is the end, and close."""
        if not self.disconnecting:
            self._below.write(_FRAME.pack(_END, 0))
        super().loseConnection()  # type: ignore[no-untyped-call]

    def offer(self) -> None:
        """Nothing of what was received so far is unread: let the front look at what comes next."""
        self._below.write(_FRAME.pack(_REST, self._received % _COUNTED))

    @property
    def received(self) -> int:
        """Bytes that have come."""
        return self._received

    @property
    def _below(self) -> Any:
        """The transport, which has a method more in each kind."""
        return self.transport


class NodeEnds(WrappingFactory[NodeEnd]):
    """Makes the ends of tunnels in the node process."""

    noisy = False

    def __init__(self, factory: TunnelHttpFactory) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self._factory = factory

    def of(self, peer: IAddress) -> Factory:
        """A factory for the one tunnel of a client at this address."""
        return _OneEnd(self, self._factory, peer)


class _OneEnd(Factory):
    noisy = False

    def __init__(self, ends: NodeEnds, factory: HttpFactory, peer: IAddress) -> None:
        self._ends = ends
        self._factory = factory
        self._peer = peer

    def buildProtocol(self, addr: IAddress | None) -> NodeEnd:
        return NodeEnd(self._ends, self._factory.buildProtocol(addr), self._peer)


class TunnelHttpFactory(HttpFactory):
    """HTTP over tunnels: as over any connection, and the front hears when a channel waits for its next request."""

    def rests(self, channel: HttpChannel) -> None:
        """It waits for its next request; unless that has come already, the front may look at it first."""
        super().rests(channel)
        end: Any = channel.transport
        received = end.received

        def offer() -> None:
            if self.is_idle(channel) and end.received == received:
                end.offer()

        self.clock.callLater(0, offer)


class FrontEnd(Protocol):
    """The end of a tunnel in a front."""

    transport: Any

    def __init__(self, gate: Any) -> None:
        """Args:
        gate: the client's connection: hears `tunnel_says`, `tunnel_ends`, `tunnel_rests` and `tunnel_lost`.
        """
        self._gate = gate
        self._sent = 0
        self._ended = False
        self._frames = Frames(gate.tunnel_says, self._end, self._rest)

    def connectionMade(self) -> None:
        """The tunnel is there."""
        self.transport.bufferSize = BUFFER_BYTES

    def write(self, data: bytes) -> None:
        """Pass on what the client says."""
        self._sent += len(data)
        self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        """Frames, or parts of them."""
        self._frames.feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The node process has closed, or is gone."""
        if not self._ended:
            self._gate.tunnel_lost(self)

    def _end(self) -> None:
        self._ended = True
        self._gate.tunnel_ends(self)

    def _rest(self, received: int) -> None:
        if received == self._sent % _COUNTED:
            self._gate.tunnel_rests(self)


class OneFrontEnd(Factory):
    """A factory for the one tunnel of a client's connection."""

    noisy = False

    def __init__(self, end: FrontEnd) -> None:
        self._end = end

    def buildProtocol(self, addr: IAddress | None) -> FrontEnd:
        """See `IProtocolFactory`."""
        return self._end


class Patience:
    """The producer that a tunnel is to its client: made to wait with the client, and for no longer than that may take."""

    def __init__(self, clock: IReactorTime, seconds: Callable[[], float], below: Any, over: Callable[[], None]) -> None:
        """Args:
        seconds: how long a client may take nothing now.
        below: the tunnel's transport.
        over: called when it has.
        """
        self._clock = clock
        self._seconds = seconds
        self._below = below
        self._over = over
        self._timer: Any = None

    @property
    def waits(self) -> bool:
        """Whether the client takes nothing now."""
        return self._timer is not None

    def pauseProducing(self) -> None:
        """The client's connection is full."""
        if self._timer is None:
            self._below.pauseProducing()
            self._timer = self._clock.callLater(self._seconds(), self._over)

    def resumeProducing(self) -> None:
        """It is empty."""
        if self.stop():
            self._below.resumeProducing()

    def stopProducing(self) -> None:
        """It is going; its owner hears of that by itself."""

    def stop(self) -> bool:
        """Wait for nothing any more; whether it did."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        return timer is not None


def address_note(address: IAddress) -> str:
    """A client's address as the note that goes with its tunnel."""
    return f"{address.host} {address.port}" if isinstance(address, IPv4Address | IPv6Address) else ""


def noted_address(note: str) -> IAddress:
    """What `address_note` was made of."""
    host, _, port = note.rpartition(" ")
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("TCP", host, int(port or 0))
