"""Sending heartbeats, and judging by their answers: the hands of `model/detector.py`.

Each server sends one to each other server every interval, in every status, whether or not the last was answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.model.detector import Pulse, answered, sending, verified
from securifile.model.errors import DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Server
from securifile.model.ids import BEGINNING, Position
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind, Status
from securifile.model.standing import FRESH_INTERVALS, Acknowledgement
from securifile.protocol.messages import Heartbeat, HeartbeatAnswer

Ask = Callable[[str, Any, float], Deferred[Any]]
"""(server, message, timeout_s) -> answer"""


class Heartbeats:
    """One server's heartbeats to all others."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        roster: Roster,
        subjects: Callable[[], Iterable[str]],
        ask: Ask,
        compose: Callable[[], Heartbeat],
        judged: Callable[[str, Status, Status], None],
    ) -> None:
        """Args:
        subjects: names of the servers to send to, asked at each round.
        compose: makes the heartbeat to send.
        judged: called as `judged(server, before, after)` when this server changes its opinion of another.
        """
        self._clock = clock
        self._roster = roster
        self._subjects = subjects
        self._ask = ask
        self._compose = compose
        self._judged = judged
        self._pulses: dict[str, Pulse] = {}
        self._under_way: dict[Deferred[Any], None] = {}
        self._number = 0
        self._timer: Any = None
        self.acknowledgements: dict[str, Acknowledgement] = {}
        self.heard = BEGINNING
        self.on_answer: Callable[[Server, HeartbeatAnswer, float], None] = lambda server, answer, trip_s: None
        """Told of each answer: whose, what it says, and how many seconds it took."""
        self.on_doubt: Callable[[], None] = lambda: None
        """Told when something was heard that may end this server's standing: a later position, or that it is not held for running."""

    def start(self) -> None:
        """Send the first round now, and then one every interval until `stop`."""
        self._round()

    def stop(self) -> None:
        """Send no more; answers still to come are given up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for asking in list(self._under_way):
            asking.cancel()

    def hear(self, position: Position) -> None:
        """Somebody knows the catalogue up to `position`."""
        if position > self.heard:
            self.heard = position
            self.on_doubt()

    def status_of(self, name: str) -> Status:
        """What this server holds another for."""
        pulse = self._pulses.get(name)
        if pulse is not None:
            return pulse.status
        server = self._roster.servers.get(name)
        return Status.DOWN if server is None else server.status

    def is_doubtful(self, name: str) -> bool:
        """Whether a heartbeat to that server is overdue, or it is not held for running."""
        pulse = self._pulses.get(name)
        return pulse is not None and pulse.doubtful

    def is_answering(self, name: str) -> bool:
        """Whether the last heartbeats to that server were answered, whatever it is held for."""
        pulse, known = self._pulses.get(name), self.acknowledgements.get(name)
        fresh_s = FRESH_INTERVALS * self._roster.settings.heartbeat_interval_s
        return pulse is not None and pulse.unanswered == 0 and known is not None and known.sent_at >= self._clock.seconds() - fresh_s

    def cluster_holds(self, name: str, status: Status) -> None:
        """The cluster now holds that server for this: a verification has ended, well (`running`) or badly (`failed`)."""
        before = self._pulses.get(name)
        if before is not None and status is not Status.DOWN:
            self._think(name, before, verified(before, status))

    @property
    def judgements(self) -> dict[str, Status]:
        """What this server holds each other one for: its row of the matrix."""
        return {name: pulse.status for name, pulse in self._pulses.items()}

    def _round(self) -> None:
        interval_s = self._roster.settings.heartbeat_interval_s
        self._timer = self._clock.callLater(interval_s, self._round)
        subjects = set(self._subjects())
        for gone in set(self._pulses) - subjects:
            del self._pulses[gone]
            self.acknowledgements.pop(gone, None)
        self._number += 1
        told = self._compose()
        # Admin servers keep the matrix. Nodes do nothing with each other's judgements, and n of n words each would make n cubed.
        brief = attrs.evolve(told, judgements={})
        for name in sorted(subjects):
            before = self._pulses.get(name) or Pulse(status=self.status_of(name))
            self._think(name, before, sending(before, self._number, self._roster.settings.heartbeats_missed_max))
            # An answer after the next round is due still shows that the peer lives; after the time to be held for down
            # nobody waits for it any more.
            timeout_s = interval_s * self._roster.settings.heartbeats_missed_max
            server = self._roster.servers.get(name)
            heartbeat = told if server is not None and server.kind is ServerKind.ADMIN else brief
            # Without a coroutine: of everything an idle server does, this is done most often.
            sent_at = self._clock.seconds()
            asking = maybeDeferred(self._ask, name, heartbeat, timeout_s)
            self._under_way[asking] = None
            asking.addCallbacks(self._answered, self._missed, (name, sent_at))
            asking.addBoth(self._ended, asking)

    def _ended(self, result: Any, asking: Deferred[Any]) -> None:
        self._under_way.pop(asking, None)
        if isinstance(result, Failure):
            self._log.failure("a heartbeat failed", result)

    def _missed(self, failure: Failure) -> None:
        failure.trap(DeadlineExceeded, PeerUnreachable, Refusal, CancelledError)

    def _answered(self, answer: HeartbeatAnswer, name: str, sent_at: float) -> None:
        pulse = self._pulses.get(name)
        server = self._roster.servers.get(name)
        if pulse is None or server is None:
            return
        self.hear(answer.position)
        self.on_answer(server, answer, self._clock.seconds() - sent_at)
        known = self.acknowledgements.get(name)
        if known is None or known.sent_at <= sent_at:
            self.acknowledgements[name] = Acknowledgement(
                kind=server.kind, sent_at=sent_at, held_for=answer.held_for, position=answer.position
            )
        if answer.held_for is not Status.RUNNING:
            self.on_doubt()
        self._think(name, pulse, answered(pulse, server.status))

    def _think(self, name: str, before: Pulse, after: Pulse) -> None:
        self._pulses[name] = after
        if after.status is not before.status:
            self._log.info("{server} looks {after} from here, was {before}", server=name, before=before.status, after=after.status)
            self._judged(name, before.status, after.status)
