"""The nodes that follow the catalogue: each gets every change, in order and once, from where its index ends.

    Follow(position) --> can the feed go on from there?  yes: Following, Changes, Changes, ...
                                                         no:  Following(snapshot), SnapshotPart, ..., last one, Changes, ...

One message is under way to a follower at a time; `Done` says that its index has it. What is committed meanwhile waits here, bounded
and common to all followers; one that is slower than that reads from the database again.

The answers say how far the indexes are. So who commits for a node can tell it which nodes know of the commit already (`knowing`), and
in the usual case it need not announce it to anybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.admin.ledger import Ledger
from securifile.admin.reconciliation import Reconciling
from securifile.model.errors import DatabaseUnavailable, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Change, Fact
from securifile.model.ids import BEGINNING, Position
from securifile.model.roster import Roster
from securifile.protocol import messages as m
from securifile.protocol.rpc import Peer

T = TypeVar("T")

FACTS_MAX = 500
"""In one message. The largest fact is some kilobytes, the usual one a few hundred bytes: well below a frame of 1 MiB."""

RECENT_MAX = 2000
"""Changes kept in memory for followers: seconds of heavy writing, a megabyte."""

READ_MAX = 200
"""Changes read from the database at once."""

TAKE_S = 30.0
"""How long an index may take for one message: a snapshot's last part replaces everything."""

KNOWING_S = 0.1
"""How long the answer to a commit waits for the feed: a dozen times what an index takes for a group of changes. A node that is slower is
told by the one that asked for the commit."""

AGAIN_S = 0.5
"""Before the database, or a node that did not answer, is asked again."""


@attrs.define(eq=False)
class Follower:
    """One node that follows."""

    peer: Peer
    position: Position
    """Up to here it was sent everything, and has answered."""
    reached: Position = BEGINNING
    """Up to here its index has everything, by its own word on this connection."""
    running: Deferred[None] | None = None
    news: Deferred[None] | None = None
    """Waited for while there is nothing to send."""
    in_epoch: int = 0
    """That of the catalogue when it began to follow."""
    compares: bool = False
    """It was sent a snapshot to compare, and has not handed in everything yet."""

    def wake(self) -> None:
        """There is something to send."""
        news, self.news = self.news, None
        if news is not None and not news.called:
            news.callback(None)


class Followers:
    """Feeds all that follow this admin server."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        ledger: Ledger,
        roster: Roster,
        readdress: Callable[[str, str, str], Awaitable[Any]],
        reconciling: Reconciling,
        recent_max: int = RECENT_MAX,
    ) -> None:
        """Args:
        readdress: writes down that a node, by name, is reached at this URL and protocol address now.
        reconciling: takes what a node knows that the catalogue lost.
        recent_max: changes kept in memory.
        """
        self._reconciling = reconciling
        reconciling.watch(self._handed_in)
        ledger.on_renewal(self._anew)
        self._clock = clock
        self._ledger = ledger
        self._roster = roster
        self._readdress = readdress
        self._followers: dict[str, Follower] = {}
        self._recent: deque[tuple[Position, Change]] = deque(maxlen=recent_max)
        self._waking = False
        self._curious: list[tuple[Position, Deferred[None]]] = []
        """Who waits until everybody knows of a commit."""
        ledger.listen(self._told)

    @property
    def positions(self) -> dict[str, Position]:
        """How far each follower is."""
        return {name: follower.position for name, follower in self._followers.items()}

    async def follow(self, peer: Peer, asked: m.Follow) -> m.Following:
        """Answer a `Follow`, and feed the peer from now on. Raises `Refusal`, `DatabaseUnavailable`."""
        name = peer.identity.name
        known = self._roster.servers.get(name)
        if known is not None and (known.url, known.protocol_address) != (asked.url, asked.protocol_address):
            await self._readdress(name, asked.url, asked.protocol_address)
        if asked.position > self._ledger.position:
            await self._ledger.catch_up()
        shares = await self._ledger.shares(asked.position, asked.mark, asked.marked)
        if not shares and asked.position.epoch >= self._ledger.position.epoch:
            await self._ledger.diverged(asked.position)
        if shares and not self._ledger.reconciled:
            await self._reconciling.nothing_beyond(name, asked.position)
        goes_on = shares and self._ledger.reconciled and await self._ledger.can_continue(asked.position)
        self.lost(name)
        follower = Follower(peer, asked.position)
        self._followers[name] = follower
        follower.running = Deferred.fromCoroutine(self._feed(follower, not goes_on, not shares))
        follower.running.addErrback(self._ended, follower)
        peer.when_lost().addCallback(lambda _: self._forget(follower))
        self._log.info(
            "{node} follows from {position}{how}", node=name, position=str(asked.position), how="" if goes_on else ", with a snapshot"
        )
        return m.Following(position=asked.position if goes_on else self._ledger.position, snapshot=not goes_on)

    async def knowing(self, position: Position) -> tuple[str, ...]:
        """The running nodes whose indexes are at or after `position`: all that follow here, if that takes no longer than `KNOWING_S`."""
        if self._ignorant(position):
            everybody: Deferred[None] = Deferred()
            waiting = (position, everybody)
            self._curious.append(waiting)
            timer = self._clock.callLater(KNOWING_S, everybody.callback, None)
            try:
                await everybody
            finally:
                self._curious.remove(waiting)
                if timer.active():
                    timer.cancel()
        return tuple(name for name in self._roster.running if name in self._followers and self._knows(name, position))

    def _knows(self, name: str, position: Position) -> bool:
        return _covers(self._followers[name].reached, position)

    def _ignorant(self, position: Position) -> bool:
        """Whether a running node that follows here does not know of a commit."""
        return any(name in self._followers and not self._knows(name, position) for name in self._roster.running)

    def _satisfy(self) -> None:
        reached = [self._followers[name].reached for name in self._roster.running if name in self._followers]
        for position, everybody in list(self._curious):
            if not everybody.called and all(_covers(one, position) for one in reached):
                everybody.callback(None)

    def lost(self, name: str) -> None:
        """Feed that node no more."""
        follower = self._followers.get(name)
        if follower is not None:
            self._forget(follower)

    def stop(self) -> None:
        """Feed nobody any more."""
        for name in list(self._followers):
            self.lost(name)

    def _forget(self, follower: Follower) -> None:
        if self._followers.get(follower.peer.identity.name) is follower:
            del self._followers[follower.peer.identity.name]
            self._satisfy()
        running, follower.running = follower.running, None
        if running is not None:
            running.cancel()

    def _ended(self, failure: Any, follower: Follower) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(PeerUnreachable):
            self._log.failure("feeding {node} failed", failure, node=follower.peer.identity.name)
        # It will ask again, from where its index ends.
        follower.peer.close("the feed broke")

    def _told(self, position: Position, change: Change) -> None:
        if self._recent and self._recent[-1][0].epoch != position.epoch:
            self._recent.clear()
        self._recent.append((position, change))
        if not self._waking:
            # A transaction makes several changes, and they travel together.
            self._waking = True
            self._clock.callLater(0, self._wake)

    def _wake(self) -> None:
        self._waking = False
        for follower in list(self._followers.values()):
            follower.wake()

    async def _anew(self) -> None:
        """Another epoch has begun, or is reconciled: what a follower was told may not be so any more. It follows again."""
        self._recent.clear()
        for follower in list(self._followers.values()):
            if follower.in_epoch != self._ledger.position.epoch or self._ledger.reconciled:
                follower.wake()
            if follower.in_epoch != self._ledger.position.epoch:
                self._forget(follower)
                follower.peer.close("another epoch of the catalogue has begun")

    def _handed_in(self, name: str) -> None:
        follower = self._followers.get(name)
        if follower is not None:
            follower.compares = False
            follower.wake()

    async def _wait(self, follower: Follower) -> None:
        follower.news = Deferred()
        await follower.news

    async def _feed(self, follower: Follower, snapshot: bool, compare: bool) -> None:
        follower.in_epoch = self._ledger.position.epoch
        follower.compares = compare
        while True:
            try:
                if compare:
                    await self._send_snapshot(follower, compare=True)
                    compare = False
                while follower.compares or not self._ledger.reconciled:
                    # The index keeps what it knows until nothing of it is needed any more.
                    await self._wait(follower)
                if snapshot:
                    await self._send_snapshot(follower)
                    snapshot = False
                changes = await self._following(follower.position)
                if changes:
                    await self._send(follower, m.Changes(epoch=follower.position.epoch, changes=tuple(changes)))
                    follower.position = Position(follower.position.epoch, changes[-1].revision)
                elif follower.position >= self._ledger.position:
                    await self._wait(follower)
                else:
                    # What follows was trimmed, or is of another epoch.
                    snapshot = True
            except (DatabaseUnavailable, DeadlineExceeded) as error:
                self._log.warn("{node} waits for the feed: {problem}", node=follower.peer.identity.name, problem=str(error))
                await deferLater(self._clock, AGAIN_S)

    async def _send_snapshot(self, follower: Follower, *, compare: bool = False) -> None:
        blobs = compare and await self._ledger.was_rebuilt()
        position, mark, facts = await self._ledger.marked_snapshot()
        parts = list(_parts(facts)) or [()]
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            message = m.SnapshotPart(position=position, facts=part, last=last, mark=mark, compare=compare, blobs=blobs)
            await self._send(follower, message)
        if not compare:
            follower.position = position

    async def _send(self, follower: Follower, message: Any) -> None:
        try:
            done = await follower.peer.ask(message, TAKE_S)
        except Refusal as refusal:
            raise PeerUnreachable(f"the node does not take the feed: {refusal}") from refusal
        if isinstance(done, m.Done) and done.reached is not None:
            follower.reached = done.reached
            self._satisfy()

    async def _following(self, position: Position) -> Sequence[Change]:
        """The next changes after `position`, not more than one message takes."""
        if self._recent:
            oldest = self._recent[0][0]
            skipped = position.revision + 1 - oldest.revision
            if oldest.epoch == position.epoch and skipped >= 0:
                return _some(change for _, change in _from(self._recent, skipped))
        if position >= self._ledger.position:
            return ()
        found = await self._ledger.changes_after(position, READ_MAX)
        if found and found[0].revision != position.revision + 1:
            return ()
        return _some(found)


def _covers(reached: Position, position: Position) -> bool:
    """Whether what was reached is in the same life of the catalogue, and as far."""
    return reached.epoch == position.epoch and reached.revision >= position.revision


def _from(things: deque[T], skipped: int) -> Iterable[T]:
    """All but the first `skipped`, found from the nearer end: mostly the last few of thousands are wanted."""
    left = len(things) - skipped
    if left < skipped:
        return reversed(list(islice(reversed(things), max(0, left))))
    return islice(things, skipped, None)


def _some(changes: Iterable[Change]) -> list[Change]:
    """As many of the changes as one message may hold; always the first."""
    taken: list[Change] = []
    facts = 0
    for change in changes:
        facts += max(1, len(change.facts))
        if taken and facts > FACTS_MAX:
            break
        taken.append(change)
    return taken


def _parts(facts: Sequence[Fact]) -> Iterator[tuple[Fact, ...]]:
    for start in range(0, len(facts), FACTS_MAX):
        yield tuple(facts[start : start + FACTS_MAX])
