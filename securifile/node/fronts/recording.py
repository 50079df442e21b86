"""Audit records of a front on their way to the node process's spool.

    note ── gathered for some milliseconds ──> node process: spool ── "taken" ──> forgotten

They are on the disk within 100 ms as all records of reads are, as long as the node process takes them. When it does not, because it hangs
or was stopped, the front answers nothing any more by itself: no more than a tenth of a second of records is ever here alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime

from securifile.model.records import AuditRecord
from securifile.node.fronts.control import pack_records
from securifile.node.fronts.scoreboard import Scoreboard

GATHER_S = 0.01
"""How long records are gathered: a message costs as much as ten of them."""
LATE_S = 0.1
"""How long the node process may take for those that were sent."""


class FrontAudit:
    """The audit log of a front, as far as reading needs one."""

    def __init__(self, clock: IReactorTime, board: Scoreboard, send: Callable[[bytes], Deferred[Any]]) -> None:
        """Args:
        send: gives packed records to the node process; fires when it has taken them.
        """
        self._clock = clock
        self._board = board
        self._send = send
        self._gathered: list[AuditRecord] = []
        self._timer: Any = None
        self._sent: dict[Deferred[Any], float] = {}
        """What was sent and not taken yet, and since when, the oldest first."""

    def has_room(self) -> bool:
        """See `IAuditLog`; also whether the node process takes what it is sent."""
        oldest = next(iter(self._sent.values()), None)
        return bool(self._board.has_room) and (oldest is None or self._clock.seconds() - oldest < LATE_S)

    def note(self, record: AuditRecord) -> None:
        """See `IAuditLog`. The spool keeps room for what was begun while it had some."""
        self._gathered.append(record)
        if self._timer is None:
            self._timer = self._clock.callLater(GATHER_S, self._gathered_enough)

    def _gathered_enough(self) -> None:
        self._timer = None
        gathered, self._gathered = self._gathered, []
        for value in pack_records(gathered):
            sending = self._send(value)
            self._sent[sending] = self._clock.seconds()
            # When the node process is gone, this process ends as well.
            sending.addBoth(self._taken, sending)

    def _taken(self, result: Any, sending: Deferred[Any]) -> None:
        self._sent.pop(sending, None)

    async def flush(self) -> None:
        """Return when everything noted was taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._gathered_enough()
        waiting: list[Deferred[None]] = []
        for sending in self._sent:
            taken: Deferred[None] = Deferred()
            sending.addCallback(partial(_fire, taken))
            waiting.append(taken)
        await DeferredList(waiting)


def _fire(taken: Deferred[None], result: Any) -> None:
    taken.callback(None)
