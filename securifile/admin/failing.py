"""Copies that running nodes try to make in vain, as they tell each admin server again and again while it goes on.

Nothing of it is written down: what a node does not repeat is over, and an admin server that was just started hears of it within seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from securifile.model.ids import AttemptId, EntryId
from securifile.model.repair import Failing
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages as m
from securifile.protocol.rpc import Peer

KEPT_S = 30.0
"""A node repeats what fails after each pass, every five seconds; what it has not repeated for so long, it does not try any more."""


Stuck = Mapping[EntryId, Mapping[str, AttemptId]]
"""Of files whose copies should be made elsewhere: the nodes that are stuck with them, each with the version's attempt."""


@attrs.frozen(kw_only=True)
class _Told:
    attempt: AttemptId
    failing: Failing
    told_at: float


class FailingCopies:
    """What one admin server has heard."""

    def __init__(self, *, wall: Callable[[], float], settings: Callable[[], ClusterSettings]) -> None:
        self._wall = wall
        self._settings = settings
        self._told: dict[tuple[EntryId, str], _Told] = {}

    async def take(self, peer: Peer, told: m.CopiesFailing) -> m.Done:
        """A node tells. A handler."""
        self.note(peer.identity.name, told)
        return m.Done()

    def note(self, node: str, told: m.CopiesFailing) -> None:
        """Remember what a node says of its own copies."""
        now = self._wall()
        self._forget(now)
        for copy in told.copies:
            failing = Failing(failures=copy.failures, since=now - copy.since_s, reason=copy.reason, own_disk=copy.own_disk)
            self._told[copy.file, node] = _Told(attempt=copy.attempt, failing=failing, told_at=now)

    def _forget(self, now: float) -> None:
        self._told = {key: one for key, one in self._told.items() if now - one.told_at < KEPT_S}

    def of(self, file: EntryId, attempt: AttemptId) -> Mapping[str, Failing]:
        """The nodes that try to make a copy of this version in vain."""
        self._forget(self._wall())
        return {node: one.failing for (id_, node), one in self._told.items() if id_ == file and one.attempt == attempt}

    def stuck(self) -> Stuck:
        """See `Stuck`; just now."""
        now = self._wall()
        self._forget(now)
        found: dict[EntryId, dict[str, AttemptId]] = {}
        for (file, node), one in self._told.items():
            if one.failing.is_stuck(self._settings(), now):
                found.setdefault(file, {})[node] = one.attempt
        return found


def nobody_is_stuck() -> Stuck:
    """For a planner without anybody who tells it."""
    return {}
