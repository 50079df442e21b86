"""Watching the nodes: who answers, who holds whom for what, and what the cluster therefore holds each for.

Nodes connect to the admin server, so its heartbeats go out on connections that they made. Their own heartbeats bring their
opinions of each other; the rule of `model/matrix.py` makes a summary of them, and the catalogue commits it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.admin.catalogue import Catalogue
from securifile.admin.ledger import Entered
from securifile.admin.members import Seen, StatusChange
from securifile.admin.peers import Peers
from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown, SpoolFull
from securifile.model.ids import Position
from securifile.model.matrix import summarise
from securifile.model.records import AuditRecord
from securifile.model.servers import Status
from securifile.protocol import messages as m
from securifile.protocol.heartbeats import Heartbeats
from securifile.protocol.rpc import Peer

KEEP_S = 5.0
"""How often the last heartbeats are written down: for people who look at them, and for other admin servers."""

SAMPLE_S = 60.0
"""A point of the storage series: 1440 a day and node, a hundred kilobytes."""

LAPSE_INTERVALS = 3.0
"""Heartbeat intervals after which the opinions of a silent observer do not count: it is about to be held for down itself."""


class Watch:
    """One admin server's watch over all nodes."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        catalogue: Catalogue,
        peers: Peers,
        audit: Any,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._name = name
        self._catalogue = catalogue
        self._audit = audit
        self._heard: dict[str, float] = {}
        """Monotonic seconds of each node's last heartbeat."""
        self._opinions: dict[str, dict[str, Status]] = {}
        self._seen: dict[str, Seen] = {}
        self._sampled_at: float | None = None
        self._matrix_kept: dict[tuple[str, str], Status] = {}
        self._judging: Deferred[None] | None = None
        self._again = False
        self._stopped = True
        self._timer: Any = None
        self.heartbeats = Heartbeats(
            clock=clock,
            roster=catalogue.roster,
            subjects=lambda: catalogue.roster.nodes,
            ask=peers.ask,
            compose=lambda: m.Heartbeat(position=catalogue.ledger.position, judgements=self.heartbeats.judgements),
            judged=self._judged,
        )
        peers.watch(lost=self._lost)

    # --- life ---

    def start(self) -> None:
        """Begin to send heartbeats and to judge."""
        self._stopped = False
        self.heartbeats.start()
        self._round()

    def stop(self) -> None:
        """Send and judge no more."""
        self._stopped = True
        self.heartbeats.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._judging is not None:
            self._judging.cancel()

    # --- what is known ---

    @property
    def seen(self) -> dict[str, Seen]:
        """The last heartbeat of each node, as far as this server got one."""
        return dict(self._seen)

    def age_of(self, name: str) -> float | None:
        """Seconds since a node's last heartbeat; None when there was none."""
        heard = self._heard.get(name)
        return None if heard is None else self._clock.seconds() - heard

    def is_available(self, name: str) -> bool:
        """Whether people can be sent to a node: it is running, and no heartbeat to it is overdue."""
        return self._catalogue.roster.is_running(name) and not self.heartbeats.is_doubtful(name)

    # --- nodes say ---

    async def heartbeat(self, peer: Peer, message: m.Heartbeat) -> m.HeartbeatAnswer:
        """Answer a node's heartbeat."""
        name = peer.identity.name
        self._heard[name] = self._clock.seconds()
        self._seen[name] = Seen(
            at=self._wall(), position=message.position, used_bytes=message.used_bytes, available_bytes=message.available_bytes
        )
        if self._opinions.get(name) != message.judgements:
            self._opinions[name] = dict(message.judgements)
            self.reconsider()
        server = self._catalogue.roster.servers.get(name)
        return m.HeartbeatAnswer(position=self._catalogue.ledger.position, held_for=Status.DOWN if server is None else server.status)

    def _lost(self, name: str) -> None:
        if self._opinions.pop(name, None) is not None:
            self.reconsider()

    # --- judging ---

    def _round(self) -> None:
        interval_s = self._catalogue.roster.settings.heartbeat_interval_s
        self._timer = self._clock.callLater(interval_s, self._round)
        oldest = self._clock.seconds() - LAPSE_INTERVALS * interval_s
        nodes = set(self._catalogue.roster.nodes)
        for name in [name for name in self._heard if self._heard[name] < oldest or name not in nodes]:
            self._opinions.pop(name, None)
            if name not in nodes:
                del self._heard[name]
                self._seen.pop(name, None)
        self.reconsider()

    def _judged(self, name: str, before: Status, after: Status) -> None:
        self._note("judgement", name, f"{before} -> {after}")
        self.reconsider()

    @property
    def opinions(self) -> dict[tuple[str, str], Status]:
        """(observer, subject) -> status, of the nodes that have told lately."""
        return {(observer, subject): status for observer, row in self._opinions.items() for subject, status in row.items()}

    def reconsider(self) -> None:
        """Judge, if it would change anything."""
        if self._stopped:
            return
        if self._judging is not None:
            self._again = True
            return
        nodes = self._catalogue.roster.servers
        held = {name: nodes[name].status for name in self._catalogue.roster.nodes}
        if summarise(held, self.opinions, self._own(held)) == held:
            return
        self._judging = Deferred.fromCoroutine(self._judge())
        self._judging.addErrback(self._not_judged)
        self._judging.addCallback(lambda _: self._done())

    def _own(self, held: dict[str, Status]) -> dict[str, Status]:
        return {name: self.heartbeats.status_of(name) for name in held}

    async def _judge(self) -> None:
        names = self._catalogue.roster.nodes
        entered: Entered[tuple[StatusChange, ...]] = await self._catalogue.members.judge(
            self.opinions, {name: self.heartbeats.status_of(name) for name in names}
        )
        for change in entered.answer:
            self._log.info(
                "the cluster holds {server} for {after} now, was {before}", server=change.server, before=change.before, after=change.after
            )
            self._note("status", change.server, f"{change.before} -> {change.after}")

    def _not_judged(self, failure: Any) -> None:
        # The next round tries again.
        if failure.check(DatabaseUnavailable, OutcomeUnknown):
            self._log.warn("no status can be changed: {problem}", problem=failure.getErrorMessage())
        elif not failure.check(CancelledError):
            self._log.failure("judging failed", failure)

    def _done(self) -> None:
        self._judging = None
        again, self._again = self._again, False
        if again:
            self.reconsider()

    def _note(self, event: str, name: str, detail: str) -> None:
        try:
            self._audit.note(AuditRecord(at=self._wall(), server=self._name, event=event, peer=name, detail=detail))
        except SpoolFull:
            self._log.warn("no room to record {event} of {server}: {detail}", event=event, server=name, detail=detail)

    # --- writing down ---

    async def keep(self) -> None:
        """Write down the matrix, the last heartbeats and, in their turn, samples of the storage; a chore."""
        matrix = {**self.opinions, **{(self._name, subject): status for subject, status in self.heartbeats.judgements.items()}}
        changed = {pair: status for pair, status in matrix.items() if self._matrix_kept.get(pair) is not status}
        if changed:
            await self._catalogue.members.keep_matrix(changed)
            self._matrix_kept.update(changed)
        if self._seen:
            now = self._clock.seconds()
            sample = self._sampled_at is None or now - self._sampled_at >= SAMPLE_S
            await self._catalogue.members.keep_heartbeats(self._seen, sample=sample)
            if sample:
                self._sampled_at = now

    def position_of(self, name: str) -> Position | None:
        """How far a node's index was at its last heartbeat."""
        seen = self._seen.get(name)
        return None if seen is None else seen.position
