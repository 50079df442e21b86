"""The feed from node to node: who is behind for a whole heartbeat asks the others for what it missed.

The feed of the admin server is slow or cut then, and any peer may pass it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from securifile.model.errors import DatabaseUnavailable, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.ids import Position
from securifile.node.index import Index
from securifile.protocol import messages as m
from securifile.protocol.heartbeats import Ask
from securifile.protocol.rpc import Peer

ASK_S = 2.0
"""How long a peer has to answer: the feed is milliseconds behind, or broken."""

MISSED_MAX = 100
"""Changes passed on to a peer at once: a message of moderate size; it asks again."""


class PassingOn:
    """Asks for what was missed, and answers who asks."""

    _log = Logger()

    def __init__(self, *, index: Index, ask: Ask, peers: Callable[[], Iterable[str]], heard: Callable[[], Position]) -> None:
        """Args:
        peers: the nodes that can be asked now.
        heard: the highest position that this node has heard of.
        """
        self._index = index
        self._ask = ask
        self._peers = peers
        self._heard = heard
        self._asking: Deferred[None] = succeed(None)

    def look(self) -> None:
        """Ask for what was missed, if anything was, unless that is under way."""
        if self._asking.called and self._index.position < self._heard():
            self._asking = Deferred.fromCoroutine(self._ask_peers())
            self._asking.addErrback(self._failed)

    def stop(self) -> None:
        """Ask no more."""
        self._asking.cancel()

    def answer(self, peer: Peer, message: m.MissedAsk) -> m.Changes:
        """What a peer missed."""
        return m.Changes(epoch=self._index.position.epoch, changes=self._index.recent_after(message.position)[:MISSED_MAX])

    async def _ask_peers(self) -> None:
        for name in self._peers():
            try:
                missed: m.Changes = await self._ask(name, m.MissedAsk(position=self._index.position), ASK_S)
                if missed.changes:
                    await self._index.apply_changes(missed.epoch, missed.changes)
            except (DeadlineExceeded, PeerUnreachable, Refusal, ValueError):
                continue
            if self._index.position >= self._heard():
                return

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError, DatabaseUnavailable):
            self._log.failure("catching up from peers failed", failure)
