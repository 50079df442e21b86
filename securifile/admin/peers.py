"""The nodes that are connected to this admin server now: nodes connect, and both sides ask on that connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail

from securifile.model.errors import PeerUnreachable
from securifile.protocol.rpc import Peer


class Peers:
    """Control connections by the node's name; of several the latest is asked, because an earlier one may be dead without knowing."""

    def __init__(self) -> None:
        self._peers: dict[str, list[Peer]] = {}
        """Of each name at least one; who is asked is the last."""
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
        self._peers.setdefault(peer.identity.name, []).append(peer)
        for watcher in self._on_connected:
            watcher(peer)

    def lost(self, peer: Peer) -> None:
        """A connection is gone."""
        name = peer.identity.name
        known = self._peers.get(name, [])
        if peer not in known:
            return
        known.remove(peer)
        if not known:
            del self._peers[name]
            for watcher in self._on_lost:
                watcher(name)

    def set_aside(self, peer: Peer) -> None:
        """Ask another connection of the same name, if there is one: this one is not the node that is meant."""
        known = self._peers.get(peer.identity.name, [])
        if peer in known:
            known.remove(peer)
            known.insert(0, peer)

    def ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        """Ask a node. Raises as `Peer.ask`; `PeerUnreachable` at once when it is not connected."""
        known = self._peers.get(name)
        return known[-1].ask(message, timeout_s) if known else fail(PeerUnreachable(f"{name} is not connected"))

    def has_feature(self, name: str, feature: str) -> bool:
        """Whether a node has an optional ability; True when it is not connected: that will be heard."""
        known = self._peers.get(name)
        return not known or feature in known[-1].features

    @property
    def names(self) -> list[str]:
        """Who is connected, by name."""
        return sorted(self._peers)
