"""Watching the nodes: who answers, who holds whom for what, and what the cluster therefore holds each for.

Nodes connect to the admin server, so its heartbeats go out on connections that they made. Their own heartbeats bring their
opinions of each other; the rule of `model/matrix.py` makes a summary of them, and the catalogue commits it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.admin.catalogue import Catalogue
from securifile.admin.duties import Duty
from securifile.admin.failing import FailingCopies
from securifile.admin.ledger import Entered
from securifile.admin.members import StatusChange, absent
from securifile.admin.observations import Seen
from securifile.admin.peers import Peers
from securifile.admin.rejoin import Rejoins
from securifile.model.errors import Code, DatabaseUnavailable, OutcomeUnknown, Refusal, SpoolFull
from securifile.model.facts import Change, Server
from securifile.model.ids import BEGINNING, Position
from securifile.model.matrix import in_doubt, judge
from securifile.model.records import AuditRecord
from securifile.model.servers import ServerKind, Status
from securifile.protocol import messages as m
from securifile.protocol.endings import Endings
from securifile.protocol.heartbeats import Heartbeats
from securifile.protocol.rpc import Handlers, Peer

KEEP_S = 5.0
"""How often the last heartbeats are written down: for people who look at them, and for other admin servers."""

ADMIN_SILENT_S = 3 * KEEP_S
"""An admin server that has written down nothing of itself for so long is down, or has no database, which is the same to everybody."""

SAMPLE_S = 60.0
"""A point of the storage series: 1440 a day and node, a hundred kilobytes."""

LIVES_KEPT = 8
"""Lives of one node's process that are remembered, to know one that speaks again after another has taken its place."""

DOUBLE_S = 60.0
"""For how long a warning stands after two processes were heard under one name."""

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
        random: Callable[[int], bytes],
        duty: Duty,
    ) -> None:
        """Args:
        duty: whether it is this admin server that judges and verifies.
        """
        self._clock = clock
        self._duty = duty
        self._wall = wall
        self._name = name
        self._catalogue = catalogue
        self._peers = peers
        self._audit = audit
        self._heard: dict[str, float] = {}
        """Monotonic seconds of each node's last heartbeat."""
        self._opinions: dict[str, dict[str, Status]] = {}
        self._seen: dict[str, Seen] = {}
        self._compared: set[str] = set()
        """Nodes that have told this process that they are not beyond the catalogue."""
        self._knows_nodes = False
        self._boots: dict[str, str] = {}
        """The life of each node's process: the one that was first heard last."""
        self._lives: dict[str, deque[str]] = {}
        """The lives that were heard of each node."""
        self.endings = Endings(roster=catalogue.roster, position=lambda: catalogue.ledger.position, ended=self._ended)
        self.on_end: Callable[[], None] = lambda: None
        """Told when a life is over."""
        self._doubled: dict[str, float] = {}
        """Nodes under whose name a life spoke that another one had taken the place of, and when (monotonic seconds)."""
        self._changed: dict[str, Position] = {}
        """Where in the feed each node's status changed last."""
        self._position_before = catalogue.ledger.position
        """Where the catalogue was a heartbeat interval ago."""
        self._sampled_at: float | None = None
        self._admins: dict[str, tuple[float, float]] = {}
        """What each other admin server last wrote down of itself (its wall clock), and when that was new here (monotonic seconds)."""
        self._matrix_kept: dict[tuple[str, str], Status] = {}
        self._judging: Deferred[None] | None = None
        self._again = False
        self._stopped = True
        self._timer: Any = None
        self.failing = FailingCopies(wall=wall, settings=lambda: catalogue.roster.settings)
        """What nodes tell of copies that they cannot make."""
        self.heartbeats = Heartbeats(
            clock=clock,
            roster=catalogue.roster,
            subjects=lambda: catalogue.roster.nodes,
            ask=peers.ask,
            compose=lambda: m.Heartbeat(position=self.position),
            judged=self._judged,
        )
        self.rejoins = Rejoins(
            clock=clock,
            wall=wall,
            name=name,
            catalogue=catalogue,
            ask=peers.ask,
            heartbeats=self.heartbeats,
            boot_of=self.boot_of,
            has_caught_up=self.has_caught_up,
            random=random,
            audit=audit,
            may=duty.still_ours,
        )
        peers.watch(lost=self._lost)
        catalogue.ledger.listen(self._learn)

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
        self.rejoins.stop()
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

    @property
    def position(self) -> Position:
        """Where nodes have to be, to serve: nowhere, while the catalogue knows less than they do."""
        ledger = self._catalogue.ledger
        return ledger.position if ledger.reconciled else BEGINNING

    def waits_for_nodes(self) -> str | None:
        """Why people may change nothing yet: less than half of the nodes have told this process how far they are.

        A commit is answered only when more than half of the nodes know it. So of any such half one knows the last commit, and if the
        catalogue went back in time, that is found out before anything new takes the place of what was lost.
        """
        nodes = self._catalogue.roster.nodes
        if not nodes or len(self._compared & set(nodes)) * 2 > len(nodes):
            self._knows_nodes = True
        if self._knows_nodes:
            return None
        told = ", ".join(sorted(self._compared)) or "none"
        return f"after its start this server waits until more than half of the nodes have told how far they are ({told} so far)"

    def _compare(self, name: str, position: Position) -> None:
        if position <= self._catalogue.ledger.position:
            self._compared.add(name)
        elif self._catalogue.ledger.reconciled:
            # Another admin server has committed it, or it is lost; the node's index will tell when it follows.
            self._catalogue.ledger.hear_news()

    @property
    def hears(self) -> bool:
        """Whether any node has lately been heard, or there is none to hear."""
        oldest = self._clock.seconds() - LAPSE_INTERVALS * self._catalogue.roster.settings.heartbeat_interval_s
        return not self._catalogue.roster.nodes or any(heard >= oldest for heard in self._heard.values())

    @property
    def _acts(self) -> bool:
        """Whether this server judges and verifies now: nobody does while it is not known what the nodes know."""
        return self._duty.is_ours and self._catalogue.ledger.reconciled

    def is_available(self, name: str) -> bool:
        """Whether people can be sent to a node: it is running, and no heartbeat to it is overdue."""
        return self._catalogue.roster.is_running(name) and not self.heartbeats.is_doubtful(name)

    def boot_of(self, name: str) -> str | None:
        """The life of a node's process, by its last heartbeat; None when there was none lately."""
        return self._boots.get(name)

    def holds(self, subject: str) -> dict[str, Status]:
        """What each observer, this server too, thinks of a node just now."""
        told = {observer: row[subject] for observer, row in self._opinions.items() if subject in row}
        return {**told, self._name: self.heartbeats.status_of(subject)}

    def is_superseded(self, name: str, boot: str) -> bool:
        """Whether that life of a node's process was heard before another one which is heard still."""
        now = self._boots.get(name)
        if now is None or boot == now or boot not in self._lives.get(name, ()):
            return False
        age_s = self.age_of(name)
        return age_s is not None and age_s <= LAPSE_INTERVALS * self._catalogue.roster.settings.heartbeat_interval_s

    def check_life(self, peer: Peer, boot: str | None = None) -> None:
        """Refuse a node's process which another one has taken the place of; `boot` is its life, if its message says so.

        Raises:
            Refusal: NOT_RUNNING.
        """
        name = peer.identity.name
        life = boot or self.endings.life_of(peer)
        if life is not None and self.is_superseded(name, life):
            self._double(name)
            raise Refusal(Code.NOT_RUNNING, f"Another process runs as {name}, and was started later than this one.")

    @property
    def doubled(self) -> list[str]:
        """Nodes under whose name two processes were heard lately."""
        oldest = self._clock.seconds() - DOUBLE_S
        return sorted(name for name, at in self._doubled.items() if at >= oldest)

    def _double(self, name: str) -> None:
        if name not in self.doubled:
            self._log.warn("two processes run as {node}: was its data folder copied? Stop one of them", node=name)
            self._note("double", name, "two processes run under this name")
        self._doubled[name] = self._clock.seconds()

    # --- nodes say ---

    async def heartbeat(self, peer: Peer, message: m.Heartbeat) -> m.HeartbeatAnswer:
        """Answer a node's heartbeat.

        Of two processes with one identity (a copied data folder) the later one is the node, as long as it is heard; the earlier one is
        told that it is down, and nothing that it says counts.
        """
        name = peer.identity.name
        self.endings.speaks(peer, message.boot)
        if self.is_superseded(name, message.boot):
            self._peers.set_aside(peer)
            self._double(name)
            return m.HeartbeatAnswer(position=self.position, held_for=Status.DOWN, wall=self._wall())
        lives = self._lives.setdefault(name, deque(maxlen=LIVES_KEPT))
        if message.boot not in lives:
            lives.append(message.boot)
        self._heard[name] = self._clock.seconds()
        self._compare(name, message.position)
        self._seen[name] = Seen(
            at=self._wall(), position=message.position, used_bytes=message.used_bytes, available_bytes=message.available_bytes
        )
        before = self._opinions.get(name, {})
        if name not in self._opinions or before != message.judgements or self._boots.get(name) != message.boot:
            self._opinions[name] = dict(message.judgements)
            self._boots[name] = message.boot
            told = {*before, *message.judgements}
            self.reconsider({subject for subject in told if before.get(subject) is not message.judgements.get(subject)})
        server = self._catalogue.roster.servers.get(name)
        is_known = server is not None and server.boot == message.boot
        return m.HeartbeatAnswer(
            position=self.position,
            held_for=server.status if server is not None and is_known else Status.DOWN,
            wall=self._wall(),
        )

    @property
    def notices(self) -> Handlers:
        """What is answered on notice connections."""
        return self.endings.handlers

    def _ended(self, name: str, boot: str) -> None:
        self._note("ended", name, "its process has ended, as its sentinel says")
        self.on_end()

    def has_caught_up(self, name: str) -> bool:
        """Whether a node's index is where the catalogue was a round ago.

        To be where it is now would be asked too much: under constant writing an index is always some milliseconds behind. Nothing
        is lost by it: a node serves only after its own index says that it is running, which is a later change.
        """
        seen = self._seen.get(name)
        return seen is not None and seen.position >= self._position_before

    def _lost(self, name: str) -> None:
        if self._opinions.pop(name, None) is not None:
            self.reconsider()

    def _learn(self, position: Position, change: Change) -> None:
        for fact in change.facts:
            if isinstance(fact, Server):
                self._changed[fact.name] = position
                self.heartbeats.cluster_holds(fact.name, fact.status)

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
                self._boots.pop(name, None)
                self._lives.pop(name, None)
                self._doubled.pop(name, None)
                self.endings.forget(name)
        self.reconsider()
        if self._acts:
            self.rejoins.look()
        elif self._duty.doer not in (None, self._name):
            self.rejoins.stop()
        self._position_before = self._catalogue.ledger.position

    def _judged(self, name: str, before: Status, after: Status) -> None:
        self._note("judgement", name, f"{before} -> {after}")
        self.reconsider()

    @property
    def opinions(self) -> dict[tuple[str, str], Status]:
        """(observer, subject) -> status, of the nodes that have told lately."""
        return {
            (observer, subject): status
            for observer, row in self._opinions.items()
            for subject, status in row.items()
            if self._counts(observer, subject)
        }

    def _counts(self, observer: str, subject: str) -> bool:
        """What an observer thought before it knew of the subject's last change of status does not count.

        Otherwise the old doubts would put down again who was just admitted.
        """
        return observer in self._seen and self._seen[observer].position >= self._changed.get(subject, BEGINNING)

    def _dissent(self, held: Mapping[str, Status], about: Collection[str]) -> dict[tuple[str, str], Status]:
        """The opinions that are not the cluster's. To leave the others out changes no judgement, and they are nearly all of n squared."""
        return {
            (observer, subject): row[subject]
            for observer, row in self._opinions.items()
            for subject in about
            if subject in row and row[subject] is not held[subject] and self._counts(observer, subject)
        }

    def reconsider(self, about: Collection[str] | None = None) -> None:
        """Judge, if it would change anything and it is for this server to do.

        Args:
            about: those of whom somebody thinks otherwise than before; None: look at everybody, as each round does.
        """
        if self._stopped or not self._acts:
            return
        if self._judging is not None:
            self._again = True
            return
        nodes = self._catalogue.roster.servers
        held = {name: nodes[name].status for name in self._catalogue.roster.nodes}
        gone = absent((nodes[name] for name in held), self._boots)
        own = self._own(held)
        dissent = self._dissent(held, held if about is None else held.keys() & set(about))
        if all(judge(name, held, dissent, own, gone) is held[name] for name in in_doubt(held, dissent, own, gone)):
            return
        self._judging = Deferred.fromCoroutine(self._judge())
        self._judging.addErrback(self._not_judged)
        self._judging.addCallback(lambda _: self._done())

    def _own(self, held: dict[str, Status]) -> dict[str, Status]:
        return {name: self.heartbeats.status_of(name) for name in held}

    async def _judge(self) -> None:
        names = self._catalogue.roster.nodes
        entered: Entered[tuple[StatusChange, ...]] = await self._catalogue.members.judge(
            self.opinions, {name: self.heartbeats.status_of(name) for name in names}, dict(self._boots), self._duty.still_ours
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
            await self._catalogue.observations.keep_matrix(changed)
            self._matrix_kept.update(changed)
        now = self._clock.seconds()
        await self._catalogue.observations.keep_own_heartbeat(self._name, self._wall(), self._catalogue.ledger.position)
        for name, one in (await self._catalogue.observations.last_heartbeats()).items():
            server = self._catalogue.roster.servers.get(name)
            if server is not None and server.kind is ServerKind.ADMIN and self._admins.get(name, (None, 0.0))[0] != one.at:
                self._admins[name] = one.at, now
        if self._seen:
            sample = self._duty.is_ours and (self._sampled_at is None or now - self._sampled_at >= SAMPLE_S)
            await self._catalogue.observations.keep_heartbeats(self._seen, sample=sample)
            if sample:
                self._sampled_at = now

    def admin_age_of(self, name: str) -> float | None:
        """For how many seconds another admin server has written down nothing new of itself; None: it never did, as far as is known.

        No two clocks are compared.
        """
        known = self._admins.get(name)
        return None if known is None else self._clock.seconds() - known[1]

    def position_of(self, name: str) -> Position | None:
        """How far a node's index was at its last heartbeat."""
        seen = self._seen.get(name)
        return None if seen is None else seen.position
