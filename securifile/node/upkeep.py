"""What keeps the blobs of a node whole: the parts that look after them while nobody asks.

suspected   by a reader, a peer or the scrub: read again, and quarantined when it is bad
missing     fetched from another holder
due         read again by the scrub
superseded  deleted, or abandoned
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from securifile.http.sources import Sources
from securifile.model.ids import AttemptId
from securifile.model.roster import Roster
from securifile.node.acting import Acting
from securifile.node.checks import Checks
from securifile.node.cluster_time import ClusterTime
from securifile.node.housekeeping import Housekeeping
from securifile.node.index import Index
from securifile.node.mending import Mending
from securifile.node.quarantine import Quarantine
from securifile.node.scrub import Scrub


class Upkeep:
    """Quarantine, mending, scrub and housekeeping of one node."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: ClusterTime,
        name: str,
        roster: Roster,
        index: Index,
        blobs: Any,
        audit: Any,
        acting: Acting,
        sources: Sources,
        checks: Checks,
        is_running: Callable[[], bool],
        is_under_way: Callable[[AttemptId], bool],
        may_delete: Callable[[], bool],
    ) -> None:
        """Args:
        blobs: an `IBlobStore`.
        is_running: whether the cluster holds this life of this node for running.
        is_under_way: whether an attempt is being made here.
        may_delete: whether the index is whole enough to say what is superseded.
        """
        self._is_running = is_running
        self.quarantine = Quarantine(
            clock=clock, name=name, wall=wall, index=index, blobs=blobs, audit=audit, checks=checks, ask_admin=acting.ask_admin
        )
        self.housekeeping = Housekeeping(
            clock=clock, wall=wall, name=name, index=index, blobs=blobs, acting=acting, is_under_way=is_under_way, may_delete=may_delete
        )
        self.mending = Mending(
            clock=clock,
            name=name,
            index=index,
            blobs=blobs,
            sources=sources,
            acting=acting,
            rate=lambda: roster.settings.repair_bytes_s,
            checked=checks.checked,
        )
        self.scrub = Scrub(
            clock=clock,
            wall=wall,
            name=name,
            index=index,
            blobs=blobs,
            checks=checks,
            quarantine=self.quarantine,
            settings=lambda: roster.settings,
            is_running=is_running,
            ask_admin=acting.ask_admin,
        )
        index.listen(self.mending.learn)
        index.listen(self.housekeeping.learn)

    def start(self) -> None:
        """Begin to look after them."""
        self.housekeeping.start()
        self.mending.start()
        self.scrub.start()

    def stop(self) -> None:
        """Leave them alone."""
        self.housekeeping.stop()
        self.scrub.stop()
        self.quarantine.stop()
        self.mending.stop()

    def suspected_by_peer(self, attempt: AttemptId, reason: str) -> None:
        """A peer says that a blob here could not be read, or was not what was written.

        What a node holds that is not running is for its challengers to judge.
        """
        if self._is_running():
            self.quarantine.suspect(attempt, reason)
