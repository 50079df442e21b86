"""Where the copies of a version should be: the rule by which lost copies are made anew and surplus ones go.

    good     on a running node
    leaving  on a running node that is being drained: readable, and no longer counted
    away     on a node that is down for less than the grace time, or has returned and is being verified: counted, because it will most
             likely return as it was
    lost     on a node that is down or failed for longer, or is no member any more

A lost or leaving copy is dropped from the list only when enough others are good, so that there is always one to read, and a node that
returns late still knows of a file whose other copies have gone meanwhile. A copy that is still pending counts while its node is good; on
any other node it is not waited for, because nothing is known to be there. Nor is it on a node that is stuck with it: one that is running,
has tried several times, and says that it cannot.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum

import attrs

from securifile.model.entries import Copy, Version
from securifile.model.facts import Server
from securifile.model.ids import EntryId
from securifile.model.placement import place
from securifile.model.servers import Status
from securifile.model.settings import ClusterSettings


class Holding(StrEnum):
    """What a copy on some node is worth."""

    GOOD = "good"
    LEAVING = "leaving"
    AWAY = "away"
    LOST = "lost"


def holding(server: Server | None, settings: ClusterSettings, now: float, verifying: Collection[str] = ()) -> Holding:
    """What copies on a node are worth.

    Args:
        server: the node; None when it is no member any more.
        now: wall clock, like the node's `since`.
        verifying: nodes that have returned and are being verified. To read what a large node holds takes longer than the grace time, and
            a mere restart must not make others copy it all. A verification ends by itself: one without progress is given up.
    """
    if server is None:
        return Holding.LOST
    if server.status is Status.RUNNING:
        return Holding.LEAVING if server.draining else Holding.GOOD
    if server.status is Status.DOWN and server.name in verifying:
        return Holding.AWAY
    grace_s = settings.repair_after_offline_s if server.offline else settings.repair_after_s
    return Holding.AWAY if now - server.since < grace_s else Holding.LOST


STUCK_FAILURES = 3
"""A node is stuck with a copy after so many failures, and so long:"""

STUCK_DISK_S = 15.0
"""if its own disk cannot take it. A full disk seldom has room a moment later. If the content cannot be had, for the grace time of a lost
copy, because what keeps one node from a holder most often passes, and may keep others from it, too."""


@attrs.frozen(kw_only=True)
class Failing:
    """A pending copy that its node tries to make in vain, as it told."""

    failures: int
    since: float
    """Wall clock of the first failure."""
    reason: str
    own_disk: bool
    """It is the node's own disk that cannot take it; else the content could not be had."""

    def stuck_at(self, settings: ClusterSettings) -> float:
        """From when on (wall clock) the node is stuck with it, if it fails often enough until then."""
        return self.since + (STUCK_DISK_S if self.own_disk else settings.repair_after_s)

    def is_stuck(self, settings: ClusterSettings, now: float) -> bool:
        """Whether another node should make the copy instead."""
        return self.failures >= STUCK_FAILURES and now >= self.stuck_at(settings)


@attrs.frozen(kw_only=True)
class Worth:
    """The copies of one version, by what they are worth."""

    good: tuple[Copy, ...]
    """Durable, on running nodes."""
    away: tuple[Copy, ...]
    leaving: tuple[Copy, ...]
    lost: tuple[Copy, ...]
    """Durable, as far as was known."""
    coming: tuple[Copy, ...]
    """Pending on running nodes: being made."""

    @property
    def readable(self) -> int:
        """How many copies could be read now; 0: the file cannot be had at the moment."""
        return len(self.good) + len(self.leaving)


def worth(version: Version, holding_of: Callable[[str], Holding]) -> Worth:
    """Sort a version's copies."""

    def durable(kind: Holding) -> tuple[Copy, ...]:
        return tuple(copy for copy in version.copies if copy.durable and holding_of(copy.node) is kind)

    return Worth(
        good=durable(Holding.GOOD),
        away=durable(Holding.AWAY),
        leaving=durable(Holding.LEAVING),
        lost=durable(Holding.LOST),
        coming=tuple(copy for copy in version.copies if not copy.durable and holding_of(copy.node) is Holding.GOOD),
    )


def plan(
    version: Version,
    wanted: int,
    *,
    holding_of: Callable[[str], Holding],
    room: Mapping[str, int],
    below: Callable[[int], int],
    stuck: Collection[str] = (),
) -> tuple[Copy, ...] | None:
    """The copies that the version should list from now on; None when nothing is to be changed, or can be.

    Args:
        wanted: r+1.
        holding_of: what copies on a node are worth.
        room: bytes available on each node that may take a copy.
        below: draws a random integer from 0 to its argument - 1.
        stuck: nodes that are to make a copy of it and cannot.
    """
    now = worth(version, holding_of)
    able = tuple(copy for copy in now.coming if copy.node not in stuck)
    # The first ones by priority stay; every one of them is on a node that has been verified since it returned.
    coming = able[: max(0, wanted - len(now.good))]
    stale = tuple(copy for copy in version.copies if not copy.durable and copy not in able)
    dropped = {*now.good[wanted:], *able[len(coming) :]}
    if len(now.good) >= wanted:
        dropped |= {*now.lost, *now.leaving, *stale}
    added: list[Copy] = []
    missing = wanted - len(now.good) - len(now.away) - len(coming)
    if missing > 0 and now.readable:
        taken = {*(copy.node for copy in version.copies), *stuck}
        free = {node: available for node, available in room.items() if node not in taken and holding_of(node) is Holding.GOOD}
        chosen = place(missing, room=free, size=version.size, preferred=(), below=below)
        added = [Copy(node=node, priority=len(version.copies) + number, durable=False) for number, node in enumerate(chosen)]
        # Nothing is known to be there, so whoever takes their place takes it at once, grace time or not.
        dropped |= set(stale[: len(added)])
    copies = _renumbered([*(copy for copy in version.copies if copy not in dropped), *added], holding_of)
    return None if copies == version.copies else copies


def _renumbered(copies: list[Copy], holding_of: Callable[[str], Holding]) -> tuple[Copy, ...]:
    """In order of priority: the origin stays the origin while it can be counted on; otherwise the next one takes its place."""

    def rank(numbered: tuple[int, Copy]) -> tuple[bool, int]:
        number, copy = numbered
        return (not copy.durable or holding_of(copy.node) in (Holding.LOST, Holding.LEAVING)), number

    ordered = [copy for _, copy in sorted(enumerate(copies), key=rank)]
    return tuple(attrs.evolve(copy, priority=number) for number, copy in enumerate(ordered))


class MostEndangered:
    """The files of which the fewest copies can be read, of those that were looked at: what is planned first."""

    def __init__(self, limit: int) -> None:
        """Args:
        limit: so many are remembered; of more, those with the most copies are forgotten.
        """
        self._limit = limit
        self._readable: dict[EntryId, int] = {}

    def add(self, file: EntryId, readable: int) -> None:
        """A file was looked at, and so many of its copies can be read."""
        self._readable[file] = readable
        if len(self._readable) > 2 * self._limit:
            self._readable = {file: self._readable[file] for file in self.first(self._limit)}

    def first(self, count: int) -> list[EntryId]:
        """The most endangered of them."""
        return heapq.nsmallest(count, self._readable, key=lambda file: (self._readable[file], file))

    def forget(self, files: Iterable[EntryId]) -> None:
        """These have been planned, or need nothing."""
        for file in files:
            self._readable.pop(file, None)

    def clear(self) -> None:
        """Forget all: what can be read has changed."""
        self._readable.clear()
