"""The core of a node: its connections to every other server, its standing, and what it answers to its peers.

One control connection goes out to each other server and one comes in from each other node. Heartbeats, leases,
announcements and the feed run on them; blobs never do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.model.errors import Code, DatabaseUnavailable, DeadlineExceeded, PeerUnreachable, Refusal, SpoolFull
from securifile.model.facts import Fact, Server, ServerGone
from securifile.model.ids import BEGINNING, Position
from securifile.model.records import AuditRecord
from securifile.model.roster import Roster
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.model.standing import FRESH_INTERVALS, Standing, lasts_until, standing
from securifile.model.trips import Trips
from securifile.node.cluster_time import ClusterTime
from securifile.node.index import Index
from securifile.node.locks import Granter, Locks
from securifile.protocol import messages as m
from securifile.protocol.connection import SETTLING, UNLOCKING, PeerIdentity
from securifile.protocol.endings import Endings
from securifile.protocol.heartbeats import Heartbeats
from securifile.protocol.rpc import Handlers, Link, Peer
from securifile.protocol.settling import Settling
from securifile.protocol.spreading import Spreading
from securifile.sql import directory

BEHIND_S = 2.0
"""How long a request waits for the index to catch up before it is refused: the feed is milliseconds behind, or broken."""

MISSED_MAX = 100
"""Changes passed on to a peer at once: a message of moderate size; it asks again."""

TURNED_AWAY_MAX = 2
"""Times in a row that an admin server does not know this node for a member, before it is believed."""

MakeLink = Callable[[Server, Handlers], Link]


class Cluster:
    """A node's view of the cluster, and the cluster's view of the node."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: ClusterTime,
        name: str,
        boot: str,
        index: Index,
        space: Callable[[], Deferred[Any]],
        make_link: MakeLink,
        audit: Any,
        audit_kept: Callable[[str, int], None],
        more_handlers: Callable[[], Handlers],
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._name = name
        self._boot = boot
        self._index = index
        self._space = space
        self._make_link = make_link
        self._audit = audit
        self._audit_kept = audit_kept
        self._more_handlers = more_handlers
        self._links: dict[str, Link] = {}
        self._used_bytes = 0
        self._available_bytes = 0
        self._room: dict[str, int] = {}
        self._admitted = BEGINNING
        self._objectors: dict[str, Position] = {}
        """Whose word counts against this node, and where in the catalogue it became so; see `standing`."""
        self._boots: dict[str, str] = {}
        """The life of each peer's process, as far as it has told."""
        self._measuring: Deferred[None] = succeed(None)
        self._asking: Deferred[None] = succeed(None)
        self._refusing: str | None = "starting"
        self._removed = False
        """Whether the cluster has removed this node."""
        self._turned_away: Counter[str] = Counter()
        """How often in a row each admin server did not know this node for a member."""
        self._introduced: list[Server] = []
        self.trips = Trips()
        """How long heartbeats and their answers took."""
        self.roster = Roster()
        self.endings = Endings(roster=self.roster, position=lambda: index.position, ended=self._ended)
        self.granter = Granter(clock)
        self.heartbeats = Heartbeats(
            clock=clock,
            roster=self.roster,
            subjects=lambda: self._links,
            ask=self.ask,
            compose=self.compose,
            judged=self._judged,
        )
        self.heartbeats.on_answer = self._answered
        self.locks = Locks(
            clock=clock,
            roster=self.roster,
            name=name,
            granter=self.granter,
            ask=self.ask,
            is_doubtful=self.heartbeats.is_doubtful,
            is_unlocking=self._is_unlocking,
            is_over=lambda name: self.endings.is_over(name, index.position),
            is_available=self.is_available,
        )
        index.listen(self.granter.learn)
        self.spreading = Spreading(
            clock=clock,
            roster=self.roster,
            name=name,
            ask=self.ask,
            here=self._here,
            is_over=self.endings.is_over,
            reached=index.reached,
        )
        self.settling = Settling(
            clock=clock,
            name=name,
            roster=self.roster,
            heartbeats=self.heartbeats,
            spreading=self.spreading,
            ask=self.ask,
            tells=self._tells_settled,
            here=lambda: index.position,
        )
        index.watch_versions(
            lambda new, position: self.settling.learn(new.file.version, new.before if new.is_next else None, position),
            self.settling.learn_everything,
        )
        index.listen(self._learn)

    # --- life ---

    async def start(self) -> None:
        """Connect to every server that the index knows, and begin with heartbeats."""
        self.roster.replace(await directory.servers(self._index.sql), await directory.settings(self._index.sql))
        if not self.roster.of_kind(ServerKind.ADMIN):
            for admin in self._introduced:
                self.roster.learn(admin)
        for server in self.roster.servers.values():
            self._connect(server)
            self._weigh(server, BEGINNING)
        # What was committed just before the last end of this process may be known to nobody else.
        self.settling.learn_everything(self._index.position)
        self._refusing = None
        self.heartbeats.start()

    async def stop(self) -> None:
        """Serve nobody any more, and close the connections."""
        self._refusing = "stopping"
        self.heartbeats.stop()
        self.settling.stop()
        links, self._links = self._links, {}
        self._measuring.cancel()
        self._asking.cancel()
        for link in links.values():
            await link.stop()

    def introduce(self, cluster: str, admins: list[Server]) -> None:
        """Know, before the first feed has come, the cluster and the admin servers that enrolment named."""
        self._introduced = admins
        self.roster.cluster = cluster

    # --- asking others ---

    def ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        """Ask another server on its control connection. Raises `PeerUnreachable` when there is none."""
        link = self._links.get(name)
        if link is None:
            gone: Deferred[Any] = Deferred()
            gone.errback(PeerUnreachable(f"{name} is not a member of this cluster"))
            return gone
        return link.ask(message, timeout_s)

    def link(self, name: str) -> Link | None:
        """The link to another server."""
        return self._links.get(name)

    def _is_unlocking(self, name: str) -> bool:
        link = self._links.get(name)
        return link is not None and link.peer is not None and UNLOCKING in link.peer.features

    def _tells_settled(self, name: str) -> bool:
        link = self._links.get(name)
        return link is None or link.peer is None or not link.connected or SETTLING in link.peer.features

    @property
    def admins(self) -> list[str]:
        """The admin servers, those that answer first."""
        names = [server.name for server in self.roster.of_kind(ServerKind.ADMIN)]
        return sorted(names, key=lambda name: (self.heartbeats.is_doubtful(name) or not self._connected(name), name))

    def _connected(self, name: str) -> bool:
        link = self._links.get(name)
        return link is not None and link.connected

    def _answered(self, server: Server, answer: m.HeartbeatAnswer, trip_s: float) -> None:
        self.trips.note(server.name, trip_s)
        if server.kind is ServerKind.ADMIN:
            self._turned_away.clear()
            if answer.wall:
                self._wall.heard(server.name, answer.wall, trip_s)

    def _is_turned_away(self, server: Server) -> bool:
        """A server does not know this node for a member; whether that is for people to change.

        Other nodes may know less than this one, and so may an admin server that was just started, or that a new node asks just after
        another one has enrolled it. Admin servers say it twice, then, while none of them answers.
        """
        if server.kind is ServerKind.ADMIN and not self._removed:
            self._turned_away[server.name] += 1
            is_known = self._name in self.roster.servers
            if is_known and self._turned_away[server.name] == TURNED_AWAY_MAX and not any(map(self._connected, self.admins)):
                self._say_removed(server.name)
        return self.is_removed

    @property
    def is_removed(self) -> bool:
        """Whether this node was removed from the cluster, as far as it can know."""
        return self._removed or max(self._turned_away.values(), default=0) >= TURNED_AWAY_MAX

    def _say_removed(self, by: str) -> None:
        self._log.critical(
            "this node, {node}, was removed from the cluster, as {by} says: it serves nobody any more. Stop it; to use the machine again,"
            " join under a new invitation with an empty data folder",
            node=self._name,
            by=by,
        )

    # --- what this node thinks of the others ---

    def is_available(self, name: str) -> bool:
        """Whether people can be sent to a node: running, connected, and without an overdue heartbeat.

        A process that is killed loses its connections at once, well before a heartbeat is missed.
        """
        if name == self._name:
            return True
        server = self.roster.servers.get(name)
        if server is None or server.status is not Status.RUNNING or self._boots.get(name, server.boot) != server.boot:
            return False
        return self._connected(name) and not self.heartbeats.is_doubtful(name)

    @property
    def room(self) -> dict[str, int]:
        """Available bytes of each other node that could take a replica now."""
        return {name: self._room.get(name, 0) for name in self.roster.running if name != self._name and self.is_available(name)}

    # --- what the others think of this node ---

    def standing(self) -> Standing:
        """This node's right to serve people now."""
        if self._refusing is not None:
            return Standing(serves=False, reason=f"this node is {self._refusing}")
        own = self.roster.servers.get(self._name)
        if self.is_removed:
            return Standing(serves=False, reason="this node was removed from the cluster")
        if own is None:
            return Standing(serves=False, reason="this node is not a member of the cluster (yet)")
        if own.status is not Status.RUNNING:
            return Standing(serves=False, reason=f"the cluster holds this node for {own.status}")
        if own.boot != self._boot:
            return Standing(serves=False, reason="this node was started anew and has to be verified first")
        settings = self.roster.settings
        return standing(
            self._clock.seconds(),
            self.heartbeats.acknowledgements,
            nodes=len(self.roster.nodes),
            interval_s=settings.heartbeat_interval_s,
            serve_alone=settings.serve_alone,
            known=self._index.position,
            heard=self.heartbeats.heard,
            objectors=self._objectors,
            admitted=self._admitted,
        )

    def serves_until(self) -> tuple[float, float]:
        """Until when people may be served, and until when transfers under way may go on, if nothing more is heard: monotonic seconds.

        Long ago where they may not now; and at most as far ahead as an acknowledgement counts, for who needs none.
        """
        judged = self.standing()
        if not judged.serves and not judged.behind:
            return float("-inf"), float("-inf")
        settings = self.roster.settings
        lasts = lasts_until(
            self.heartbeats.acknowledgements,
            nodes=len(self.roster.nodes),
            interval_s=settings.heartbeat_interval_s,
            serve_alone=settings.serve_alone,
        )
        until = min(lasts, self._clock.seconds() + FRESH_INTERVALS * settings.heartbeat_interval_s)
        return (until if judged.serves else float("-inf")), until

    async def admit(self) -> None:
        """Return when this node may serve a person; wait a moment if it only has to catch up.

        Raises:
            Refusal: NOT_RUNNING, with the reason.
        """
        judged = self.standing()
        if judged.serves:
            return
        if judged.behind:
            heard = self.heartbeats.heard
            waiting = self._index.reached(heard)
            timer = self._clock.callLater(BEHIND_S, waiting.cancel)
            try:
                await waiting
                judged = self.standing()
                if judged.behind and self._index.position >= heard:
                    # All that was answered before this request came is known here. What was heard of since does not count: under
                    # constant writing there is always something.
                    return
            except CancelledError:
                pass
            finally:
                if timer.active():
                    timer.cancel()
        if not judged.serves:
            raise Refusal(
                Code.NOT_RUNNING,
                f"Node {self._name} serves nobody now: {judged.reason}. Use another server.",
                retry_after_s=1.0,
                servers=[server.url for server in self.roster.of_kind(ServerKind.NODE) if self.is_available(server.name)],
            )

    # --- answering peers ---

    @property
    def handlers(self) -> Handlers:
        """What this node answers on control connections, whoever made them."""
        return {
            m.Heartbeat: self._heartbeat,
            m.LeaseAsk: self._lease,
            m.LeaseLook: self._look,
            m.LeaseRelease: self._release,
            m.Announce: self._announce,
            m.AuditKept: self._kept,
            m.MissedAsk: self._missed,
            **self.settling.handlers,
            **self._more_handlers(),
        }

    @property
    def notices(self) -> Handlers:
        """What this node answers on notice connections."""
        return self.endings.handlers

    def _ended(self, name: str, boot: str) -> None:
        server = self.roster.servers.get(name)
        if server is not None and server.boot == boot:
            self.granter.release_all(name)
        self.spreading.look()

    def _heartbeat(self, peer: Peer, message: m.Heartbeat) -> m.HeartbeatAnswer:
        self.endings.speaks(peer, message.boot)
        self.heartbeats.hear(message.position)
        self._room[peer.identity.name] = message.available_bytes
        self._boots[peer.identity.name] = message.boot
        link = self._links.get(peer.identity.name)
        if link is not None and not link.connected:
            link.hurry()
        server = self.roster.servers.get(peer.identity.name)
        # Another life than the one that was admitted: not verified yet, or one of two processes with one identity.
        is_another = server is not None and bool(server.boot and message.boot) and server.boot != message.boot
        held_for = Status.DOWN if is_another else self.heartbeats.status_of(peer.identity.name)
        return m.HeartbeatAnswer(position=self._index.position, held_for=held_for)

    def _lease(self, peer: Peer, message: m.LeaseAsk) -> m.LeaseAnswer:
        return self.granter.ask(message, peer.identity.name)

    def _look(self, peer: Peer, message: m.LeaseLook) -> m.LeaseAnswer:
        return self.granter.look(message.key)

    def _release(self, peer: Peer, message: m.LeaseRelease) -> m.Done:
        self.granter.release(message.key, message.attempt)
        return m.Done()

    async def _announce(self, peer: Peer, message: m.Announce) -> m.Done:
        await self._take_in(message.position, message.facts)
        return m.Done()

    def _kept(self, peer: Peer, message: m.AuditKept) -> m.Done:
        self._audit_kept(message.boot, message.number)
        return m.Done()

    def _missed(self, peer: Peer, message: m.MissedAsk) -> m.Changes:
        return m.Changes(epoch=self._index.position.epoch, changes=self._index.recent_after(message.position)[:MISSED_MAX])

    async def _take_in(self, position: Position, facts: tuple[Fact, ...]) -> None:
        self.heartbeats.hear(position)
        if not await self._index.announced(position, facts):
            await self._index.reached(position)

    def _here(self, position: Position, facts: tuple[Fact, ...]) -> Deferred[None]:
        return Deferred.fromCoroutine(self._take_in(position, facts))

    # --- learning ---

    def _learn(self, fact: Fact) -> None:
        before = self.roster.servers.get(fact.name) if isinstance(fact, Server) else None
        self.roster.learn(fact)
        self.spreading.learn(fact)
        match fact:
            case Server():
                self._connect(fact)
                if fact.name == self._name:
                    self._removed = False
                changed = before is None or (before.status, before.boot) != (fact.status, fact.boot)
                if changed:
                    self._weigh(fact, self._index.position)
                if changed and fact.name == self._name:
                    self._admitted = self._index.position
                    self._log.info(
                        "the cluster holds this node for {after} now, was {before}",
                        after=fact.status,
                        before="no member" if before is None else before.status,
                    )
                elif changed:
                    self.heartbeats.cluster_holds(fact.name, fact.status)
            case ServerGone():
                if fact.name == self._name and not self._removed:
                    self._removed = True
                    self._say_removed("the catalogue")
                self._objectors.pop(fact.name, None)
                self.endings.forget(fact.name)
                link = self._links.pop(fact.name, None)
                if link is not None:
                    link.stop()

    def _weigh(self, server: Server, since: Position) -> None:
        """From that position on, its word counts against this node or not."""
        if server.kind is ServerKind.ADMIN or server.status is Status.RUNNING:
            self._objectors[server.name] = BEGINNING if server.kind is ServerKind.ADMIN else since
        else:
            self._objectors.pop(server.name, None)

    def _connect(self, server: Server) -> None:
        if server.name == self._name:
            return
        try:
            address = HostPort.parse(server.protocol_address)
        except ValueError as error:
            # The admin server refuses such an address. Should one get by, it must not stop what else is to be learnt.
            self._log.warn("{server} cannot be reached: {problem}", server=server.name, problem=str(error))
            return
        link = self._links.get(server.name)
        if link is None:
            self._links[server.name] = link = self._make_link(server, self.handlers)
            link.on_turned_away = lambda: self._is_turned_away(server)
            link.start()
        else:
            link.move(address)

    def compose(self) -> m.Heartbeat:
        """The heartbeat to send now. Every round is also a reason to measure the disk, and to ask peers when behind."""
        if self._measuring.called:
            self._measuring = Deferred.fromCoroutine(self._measure())
            self._measuring.addErrback(self._not_measured)
        if self._asking.called and self._index.position < self.heartbeats.heard:
            self._asking = Deferred.fromCoroutine(self._ask_peers())
            self._asking.addErrback(self._not_caught_up)
        self.granter.expire()
        return m.Heartbeat(
            position=self._index.position,
            used_bytes=self._used_bytes,
            available_bytes=self._available_bytes,
            boot=self._boot,
            judgements=self.heartbeats.judgements,
        )

    async def _ask_peers(self) -> None:
        """Behind for a whole heartbeat: the feed is slow or cut, and a peer may pass it on."""
        for name in self.roster.nodes:
            if name == self._name or not self._connected(name):
                continue
            try:
                missed: m.Changes = await self.ask(name, m.MissedAsk(position=self._index.position), BEHIND_S)
                if missed.changes:
                    await self._index.apply_changes(missed.epoch, missed.changes)
            except (DeadlineExceeded, PeerUnreachable, Refusal, ValueError):
                continue
            if self._index.position >= self.heartbeats.heard:
                return

    def _not_caught_up(self, failure: Any) -> None:
        if not failure.check(CancelledError, DatabaseUnavailable):
            self._log.failure("catching up from peers failed", failure)

    async def _measure(self) -> None:
        space = await self._space()
        self._used_bytes, self._available_bytes = space.used_bytes, space.available_bytes

    def _not_measured(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("the disk's space could not be measured", failure)

    def _judged(self, name: str, before: Status, after: Status) -> None:
        try:
            self._audit.note(AuditRecord(at=self._wall(), server=self._name, event="judgement", peer=name, detail=f"{before} -> {after}"))
        except SpoolFull:
            # The heartbeats to all others must go on.
            self._log.warn("no room to record that {server} is held for {after}", server=name, after=after)

    def identity_of(self, name: str) -> tuple[HostPort, PeerIdentity]:
        """Where a server is and who must be there, for bulk connections. Raises `PeerUnreachable`."""
        server = self.roster.servers.get(name)
        if server is None or self.roster.cluster is None:
            raise PeerUnreachable(f"{name} is not a member of this cluster")
        return HostPort.parse(server.protocol_address), PeerIdentity(cluster=self.roster.cluster, kind=server.kind, name=server.name)

    def is_member(self, identity: PeerIdentity) -> bool:
        """Whether a peer that connects is a member of this cluster now."""
        server = self.roster.servers.get(identity.name)
        return server is not None and server.kind is identity.kind and identity.cluster == self.roster.cluster
