r"""The protocol port of a server, and how to reach another's.

    protocol port --> sniff --> TLS --> Wire --hello--> control: rpc.Peer
                                                    |-> bulk: bulk.BulkServer
                                                    \-> notice: rpc.Peer, of a process that speaks for one that has ended

Whoever connects must be a current member of the cluster (`is_member`): the certificate of a removed server opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from securifile.model.errors import Code
from securifile.model.servers import HostPort
from securifile.protocol.bulk import STALL_S, BulkHandlers, BulkServer
from securifile.protocol.connection import FEATURES, Connection, PeerIdentity, Purpose, Side
from securifile.protocol.rpc import Handlers, Peer
from securifile.protocol.sniff import address_words
from securifile.protocol.wire import Connector, Identify, NotAcceptable, NotAMember, Session, Traffic, Wire, claimed

CONNECTIONS_MAX = 4096
"""On one port, strangers included; beyond, new ones are closed at once."""


def _nothing(peer: Peer) -> None:
    pass


class ControlAndBulkFactory(Factory):
    """Accepts control and bulk connections of other servers.

    Args:
        clock: timers.
        here: who we are.
        is_member: whether this server may connect now.
        handlers: what we answer on control connections.
        notices: what we answer on notice connections.
        bulk: what stores and fetches blobs; None on a server without any (an admin server).
        identify: how a peer proves who it is; `claimed` when TLS is off.
        on_connected: called with each `Peer` that has connected, but for notice connections: nobody is there to be asked.
        on_lost: called with each of those that is gone.
        stall_s: see `bulk`.
        traffic: where the bytes of the connections are counted.
        features: optional abilities of this server.
    """

    noisy = False
    _log = Logger()

    def logPrefix(self) -> str:
        """What `twistd` says listens on the port."""
        return "the protocol between servers"

    def __init__(
        self,
        *,
        clock: IReactorTime,
        here: PeerIdentity,
        is_member: Callable[[PeerIdentity], bool],
        handlers: Handlers,
        notices: Handlers | None = None,
        bulk: BulkHandlers | None = None,
        identify: Identify = claimed,
        on_connected: Callable[[Peer], None] = _nothing,
        on_lost: Callable[[Peer], None] = _nothing,
        stall_s: float = STALL_S,
        traffic: Traffic | None = None,
        features: frozenset[str] = FEATURES,
    ) -> None:
        self._clock = clock
        self._here = here
        self._features = features
        self._is_member = is_member
        self._handlers = handlers
        self._notices = notices or {}
        self._bulk = bulk
        self._identify = identify
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._stall_s = stall_s
        self._traffic = traffic
        self._wires: dict[Wire, Deferred[None]] = {}
        self._closing = False

    def buildProtocol(self, addr: IAddress | None) -> Wire | None:
        """A connection comes in."""
        if self._closing or len(self._wires) >= CONNECTIONS_MAX:
            self._log.warn("a connection from {peer} is closed: {open} are open", peer=address_words(addr), open=len(self._wires))
            return None
        wire = Wire(
            clock=self._clock,
            connection=Connection(Side.SERVER, self._here, features=self._features),
            identify=self._identify,
            judge=self._judge,
            open_session=self._open,
            traffic=self._traffic,
        )
        self._wires[wire] = wire.when_gone().addCallback(lambda _: self._wires.pop(wire, None) and None)
        return wire

    def drop(self, name: str) -> None:
        """Close the connections of a server that is not a member any more."""
        for wire in self._open_wires():
            if wire.identity.name == name:
                wire.close(Code.NOT_A_MEMBER, f"{name} is not a member of the cluster any more")

    def close_all(self) -> Deferred[None]:
        """Close every connection and take no more; fires when all are gone."""
        self._closing = True
        gone = list(self._wires.values())
        for wire in list(self._wires):
            wire.close(Code.SHUTTING_DOWN, f"{self._here} is shutting down")
        return gatherResults(gone).addCallback(lambda _: None)

    def _open_wires(self) -> list[Wire]:
        return [wire for wire in self._wires if wire.session is not None]

    def _judge(self, identity: PeerIdentity) -> None:
        if identity == self._here:
            raise NotAcceptable(f"{identity} is this server itself")
        if not self._is_member(identity):
            raise NotAMember(f"{identity} is not a member of the cluster, as far as this server knows")

    def _open(self, wire: Wire) -> Session:
        if wire.connection.purpose is Purpose.BULK:
            return BulkServer(wire, self._bulk, self._stall_s)
        if wire.connection.purpose is Purpose.NOTICE:
            return Peer(wire, self._notices)
        peer = Peer(wire, self._handlers)
        # After the wire has its session, and not within it: the hook may ask at once.
        wire.when_open().addCallback(lambda _: self._connected(peer))
        return peer

    def _connected(self, peer: Peer) -> None:
        gone = peer.when_lost().addCallback(lambda _: self._on_lost(peer))
        gone.addErrback(lambda failure: self._log.failure("the hook for a lost peer failed", failure))
        try:
            self._on_connected(peer)
        except Exception:
            self._log.failure("the hook for a connected peer failed")


def tcp_connector(reactor: Any, bind_address: bytes | None = None) -> Connector:
    """Plain TCP, for `--no-tls`."""

    def connect(address: HostPort, expected: PeerIdentity) -> IStreamClientEndpoint:
        return HostnameEndpoint(reactor, address.host, address.port, bindAddress=bind_address)

    return connect
