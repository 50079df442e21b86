"""Following the catalogue: one admin server sends this node every change, in order.

When that server is gone, or a change is missing, the node asks again where its index ends, at the next admin server
that answers. An index that is too old, or of another history, gets a snapshot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.entries import Sidecar
from securifile.model.errors import DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Fact
from securifile.node.index import Index
from securifile.protocol import messages as m
from securifile.protocol.rpc import Handlers, Link, Peer

FOLLOW_S = 5.0
"""How long an admin server may take to begin."""

HAND_IN_S = 30.0
"""How long an admin server may take to keep one part."""

CLAIMS_MAX = 500
"""In one message: some hundred kilobytes."""

RETRY_S = 0.25
"""Half a heartbeat: how long to wait when no admin server can be followed."""


class Feed:
    """Keeps the index fed."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        index: Index,
        admins: Callable[[], list[str]],
        link: Callable[[str], Link | None],
        url: str,
        protocol_address: str,
        boot: str,
        sidecars: Callable[[], Awaitable[Sequence[Sidecar]]],
    ) -> None:
        """Args:
        sidecars: of the blobs on this node's disk.
        """
        self._sidecars = sidecars
        self._clock = clock
        self._index = index
        self._admins = admins
        self._link = link
        self._url = url
        self._protocol_address = protocol_address
        self._boot = boot
        self.is_whole = False
        """Whether an admin server feeds this index now, and has all that the index knows: only then blobs may be deleted."""
        self._following: Peer | None = None
        self._parts: list[Fact] = []
        self._again: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> None:
        """Follow from now on."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._stopped)

    def stop(self) -> None:
        """Follow no more."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    @property
    def handlers(self) -> Handlers:
        """What admin servers send."""
        return {m.Changes: self._changes, m.SnapshotPart: self._snapshot}

    async def _run(self) -> None:
        while True:
            followed = False
            for name in self._admins():
                link = self._link(name)
                if link is not None and link.peer is not None and link.connected:
                    followed = await self._follow(link.peer)
                    if followed:
                        break
            if not followed:
                await deferLater(self._clock, RETRY_S)

    async def _follow(self, peer: Peer) -> bool:
        """Follow one admin server until it is lost or the feed breaks; whether it had begun."""
        self._following, self._parts = peer, []
        again: Deferred[None] = Deferred()
        self._again = again
        lost = peer.when_lost()
        lost.addCallback(lambda _: self._ask_again())
        lost.addErrback(lambda failure: failure.trap(CancelledError))
        try:
            here = self._index.position
            asked = m.Follow(
                position=here,
                url=self._url,
                protocol_address=self._protocol_address,
                boot=self._boot,
                mark=self._index.mark,
                marked=self._index.marked,
            )
            following: m.Following = await peer.ask(asked, FOLLOW_S)
            self._log.info(
                "following {peer} from {position}{how}",
                peer=peer.identity.name,
                position=following.position,
                how=" with a snapshot" if following.snapshot else "",
            )
            self.is_whole = self.is_whole or not following.snapshot
            await again
        except (DeadlineExceeded, PeerUnreachable, Refusal) as error:
            self._log.warn("cannot follow {peer}: {problem}", peer=peer.identity.name, problem=str(error))
            return False
        finally:
            self._following = self._again = None
            self.is_whole = False
            lost.cancel()
        return True

    async def _changes(self, peer: Peer, message: m.Changes) -> m.Done:
        if peer is self._following:
            try:
                await self._index.apply_changes(message.epoch, message.changes)
            except ValueError as gap:
                self._log.warn("the feed is asked for again: {gap}", gap=str(gap))
                self._ask_again()
        return m.Done(reached=self._index.position)

    async def _snapshot(self, peer: Peer, message: m.SnapshotPart) -> m.Done:
        if peer is self._following:
            # Until the catalogue knows what this index knows, nothing that it does not name may be deleted.
            self.is_whole = False
            self._parts.extend(message.facts)
            if message.last:
                parts, self._parts = self._parts, []
                if message.compare:
                    self._hand_in_later(peer, parts, message.blobs)
                else:
                    await self._index.replace(message.position, parts, message.mark)
                    self.is_whole = True
        return m.Done(reached=self._index.position)

    def _hand_in_later(self, peer: Peer, snapshot: list[Fact], blobs: bool) -> None:
        handing = Deferred.fromCoroutine(self._hand_in(peer, snapshot, blobs))
        handing.addErrback(self._not_handed_in)

    async def _hand_in(self, peer: Peer, snapshot: list[Fact], blobs: bool) -> None:
        """Tell the admin server what this index knows and the catalogue lost, and what is on the disk if that is asked for."""
        position = self._index.position
        claims = await self._index.claims(snapshot)
        sidecars = await self._index.with_commits(await self._sidecars()) if blobs else []
        self._log.warn("the catalogue went back in time; handing in {count} things as of {position}", count=len(claims), position=position)
        starts = range(0, max(len(claims), len(sidecars), 1), CLAIMS_MAX)
        for number, start in enumerate(starts):
            handed = m.HandIn(
                position=position,
                number=number,
                claims=tuple(claims[start : start + CLAIMS_MAX]),
                last=number == len(starts) - 1,
                blobs=tuple(sidecars[start : start + CLAIMS_MAX]) if blobs else None,
            )
            await peer.ask(handed, HAND_IN_S)

    def _not_handed_in(self, failure: Any) -> None:
        if failure.check(DeadlineExceeded, PeerUnreachable, Refusal):
            self._log.warn("handing in begins anew: {problem}", problem=failure.getErrorMessage())
        elif not failure.check(CancelledError):
            self._log.failure("handing in failed", failure)
        self._clock.callLater(RETRY_S, self._ask_again)

    def _ask_again(self) -> None:
        if self._again is not None and not self._again.called:
            self._again.callback(None)

    def _stopped(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("the feed has stopped", failure)
