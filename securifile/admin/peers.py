"""The nodes that are connected to this admin server now: nodes connect, and both sides ask on that connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail

from securifile.model.errors import PeerUnreachable
from securifile.protocol.rpc import Peer


class Peers:
    """Control connections by the node's name; a later one takes the place of an earlier one, which may be dead without knowing."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._on_connected: list[Callable[[Peer], None]] = []
        self._on_lost: list[Callable[[str], None]] = []

    def watch(self, *, connected: Callable[[Peer], None] | None = None, lost: Callable[[str], None] | None = None) -> None:
        """Be told of each new connection, and of each node that has none any more."""
        if connected is not None:
            self._on_connected.append(connected)
        if lost is not None:
            self._on_lost.append(lost)

    def connected(self, peer: Peer) -> None:
        """A node has connected."""
        self._peers[peer.identity.name] = peer
        for watcher in self._on_connected:
            watcher(peer)

    def lost(self, peer: Peer) -> None:
        """A connection is gone."""
        name = peer.identity.name
        if self._peers.get(name) is peer:
            del self._peers[name]
            for watcher in self._on_lost:
                watcher(name)

    def ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        """Ask a node. Raises as `Peer.ask`; `PeerUnreachable` at once when it is not connected."""
        peer = self._peers.get(name)
        return fail(PeerUnreachable(f"{name} is not connected")) if peer is None else peer.ask(message, timeout_s)

    @property
    def names(self) -> list[str]:
        """Who is connected, by name."""
        return sorted(self._peers)
