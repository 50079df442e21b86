"""The core of a node: its connections to every other server, its standing, and what it answers to its peers.

One control connection goes out to each other server and one comes in from each other node. Heartbeats, leases,
announcements and the feed run on them; blobs never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.model.errors import PeerUnreachable, SpoolFull
from securifile.model.facts import Fact, Server, ServerGone
from securifile.model.ids import BEGINNING, Position
from securifile.model.records import AuditRecord
from securifile.model.roster import Roster
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.model.trips import Trips
from securifile.node.admission import Admission
from securifile.node.cluster_time import ClusterTime
from securifile.node.index import Index
from securifile.node.links import Links
from securifile.node.locks import Granter, Locks
from securifile.node.passing_on import PassingOn
from securifile.node.removal import Removal
from securifile.node.space import Spaces
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.endings import Endings
from securifile.protocol.heartbeats import Heartbeats
from securifile.protocol.rpc import Handlers, Link, Peer
from securifile.protocol.settling import Settling
from securifile.protocol.spreading import Spreading
from securifile.sql import directory

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
        self._wall = wall
        self._name = name
        self._boot = boot
        self._index = index
        self._make_link = make_link
        self._audit = audit
        self._audit_kept = audit_kept
        self._more_handlers = more_handlers
        self._introduced: list[Server] = []
        self._boots: dict[str, str] = {}
        """The life of each peer's process, as far as it has told."""
        self.trips = Trips()
        """How long heartbeats and their answers took."""
        self.roster = Roster()
        self.links = Links(name, self._linked)
        self.removal = Removal(name, self._is_alone)
        self.spaces = Spaces(space)
        self.granter = Granter(clock)
        self.endings = Endings(roster=self.roster, position=lambda: index.position, ended=self._ended)
        self.heartbeats = Heartbeats(
            clock=clock, roster=self.roster, subjects=lambda: self.links, ask=self.links.ask, compose=self.compose, judged=self._judged
        )
        self.heartbeats.on_answer = self._answered
        self.passing_on = PassingOn(index=index, ask=self.links.ask, peers=self._connected_nodes, heard=lambda: self.heartbeats.heard)
        self.admission = Admission(
            clock=clock,
            name=name,
            boot=boot,
            roster=self.roster,
            index=index,
            heartbeats=self.heartbeats,
            removal=self.removal,
            is_available=self.is_available,
        )
        self.locks = Locks(
            clock=clock,
            roster=self.roster,
            name=name,
            granter=self.granter,
            ask=self.links.ask,
            is_doubtful=self.heartbeats.is_doubtful,
            is_unlocking=self.links.is_unlocking,
            is_over=lambda name: self.endings.is_over(name, index.position),
            is_available=self.is_available,
        )
        self.spreading = Spreading(
            clock=clock,
            roster=self.roster,
            name=name,
            ask=self.links.ask,
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
            ask=self.links.ask,
            tells=self.links.tells_settled,
            here=lambda: index.position,
        )
        # The order in which they hear of a change.
        index.listen(self.granter.learn)
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
            self.links.connect(server)
            self.admission.weigh(server, BEGINNING)
        # What was committed just before the last end of this process may be known to nobody else.
        self.settling.learn_everything(self._index.position)
        self.admission.open()
        self.heartbeats.start()

    async def stop(self) -> None:
        """Serve nobody any more, and close the connections."""
        self.admission.close()
        self.heartbeats.stop()
        self.settling.stop()
        self.spaces.stop()
        self.passing_on.stop()
        await self.links.stop()

    def introduce(self, cluster: str, admins: list[Server]) -> None:
        """Know, before the first feed has come, the cluster and the admin servers that enrolment named."""
        self._introduced = admins
        self.roster.cluster = cluster

    # --- what this node thinks of the others ---

    @property
    def admins(self) -> list[str]:
        """The admin servers, those that answer first."""
        names = [server.name for server in self.roster.of_kind(ServerKind.ADMIN)]
        return sorted(names, key=lambda name: (self.heartbeats.is_doubtful(name) or not self.links.is_connected(name), name))

    def is_available(self, name: str) -> bool:
        """Whether people can be sent to a node: running, connected, and without an overdue heartbeat.

        A process that is killed loses its connections at once, well before a heartbeat is missed.
        """
        if name == self._name:
            return True
        server = self.roster.servers.get(name)
        if server is None or server.status is not Status.RUNNING or self._boots.get(name, server.boot) != server.boot:
            return False
        return self.links.is_connected(name) and not self.heartbeats.is_doubtful(name)

    @property
    def room(self) -> dict[str, int]:
        """Available bytes of each other node that could take a replica now."""
        return {name: self.spaces.available(name) for name in self.roster.running if name != self._name and self.is_available(name)}

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
            m.MissedAsk: self.passing_on.answer,
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
        name = peer.identity.name
        self.spaces.hear(name, message.available_bytes)
        self._boots[name] = message.boot
        self.links.hurry(name)
        server = self.roster.servers.get(name)
        # Another life than the one that was admitted: not verified yet, or one of two processes with one identity.
        is_another = server is not None and bool(server.boot and message.boot) and server.boot != message.boot
        held_for = Status.DOWN if is_another else self.heartbeats.status_of(name)
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
                self.links.connect(fact)
                if fact.name == self._name:
                    self.removal.enrolled()
                changed = before is None or (before.status, before.boot) != (fact.status, fact.boot)
                if changed:
                    self.admission.weigh(fact, self._index.position)
                if changed and fact.name == self._name:
                    self.admission.changed(self._index.position)
                    self._log.info(
                        "the cluster holds this node for {after} now, was {before}",
                        after=fact.status,
                        before="no member" if before is None else before.status,
                    )
                elif changed:
                    self.heartbeats.cluster_holds(fact.name, fact.status)
            case ServerGone():
                if fact.name == self._name:
                    self.removal.told()
                self.admission.forget(fact.name)
                self.endings.forget(fact.name)
                self.links.drop(fact.name)

    def compose(self) -> m.Heartbeat:
        """The heartbeat to send now. Every round is also a reason to measure the disk, and to ask peers when behind."""
        self.spaces.look()
        self.passing_on.look()
        self.granter.expire()
        return m.Heartbeat(
            position=self._index.position,
            used_bytes=self.spaces.own.used_bytes,
            available_bytes=self.spaces.own.available_bytes,
            boot=self._boot,
            judgements=self.heartbeats.judgements,
        )

    def _answered(self, server: Server, answer: m.HeartbeatAnswer, trip_s: float) -> None:
        self.trips.note(server.name, trip_s)
        if server.kind is ServerKind.ADMIN:
            self.removal.answered()
            if answer.wall:
                self._wall.heard(server.name, answer.wall, trip_s)

    def _judged(self, name: str, before: Status, after: Status) -> None:
        try:
            self._audit.note(AuditRecord(at=self._wall(), server=self._name, event="judgement", peer=name, detail=f"{before} -> {after}"))
        except SpoolFull:
            # The heartbeats to all others must go on.
            self._log.warn("no room to record that {server} is held for {after}", server=name, after=after)

    # --- connections ---

    def _linked(self, server: Server) -> Link:
        link = self._make_link(server, self.handlers)
        link.on_turned_away = lambda: self._is_turned_away(server)
        return link

    def _is_turned_away(self, server: Server) -> bool:
        """A server does not know this node for a member; whether that is for people to change. Other nodes may know less than this one."""
        if server.kind is ServerKind.ADMIN:
            self.removal.turned_away(server.name)
        return self.removal.is_removed

    def _is_alone(self) -> bool:
        return self._name in self.roster.servers and not any(map(self.links.is_connected, self.admins))

    def _connected_nodes(self) -> Iterator[str]:
        return (name for name in self.roster.nodes if name != self._name and self.links.is_connected(name))

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
