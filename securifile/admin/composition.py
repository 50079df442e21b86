"""The parts of an admin server, joined: everything but sockets, folders and processes.

What the world gives, the open catalogue, the authority and the audit trail come in; a service hands in the real ones, tests and
the simulation a virtual clock, a network and a catalogue in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.logger import Logger

from securifile.admin.backend import AdminBackend, NodeHandlers
from securifile.admin.catalogue import Catalogue
from securifile.admin.chores import Chore, Chores
from securifile.admin.contents import RedirectedContents
from securifile.admin.duties import TURN_S, Duty
from securifile.admin.followers import Followers
from securifile.admin.operator import OperatorAuthenticator
from securifile.admin.peers import Peers
from securifile.admin.reconciliation import ROUND_S as RECONCILING_S
from securifile.admin.reconciliation import Reconciling
from securifile.admin.repair import ROUND_S as REPAIR_ROUND_S
from securifile.admin.repair import Repair
from securifile.admin.watch import KEEP_S, Watch
from securifile.certificates.authority import Authority
from securifile.http.archives import Archives
from securifile.http.delivery import Delivery
from securifile.http.downloads import Downloads
from securifile.http.identity import BasicCache
from securifile.http.lookup import Lookup
from securifile.http.redirects import Redirector
from securifile.http.sources import Sources
from securifile.http.transfers import Transfers
from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown, PeerUnreachable
from securifile.model.facts import Change
from securifile.model.ids import Position
from securifile.model.servers import HostPort, ServerKind
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.rpc import Handlers
from securifile.world import World

FEED_S = 1.0
"""How often the database is asked for changes that nobody told us of."""
TIDY_S = 60.0
"""How often what has expired is removed; expiry itself does not wait for it."""


@attrs.frozen(kw_only=True)
class Self:
    """Who the admin server is."""

    name: str
    sign: Callable[[bytes], bytes]
    """Signs tickets with the key of the server's certificate."""
    operator_token: str = attrs.field(repr=False)
    """The local operator's key."""
    tls: bool
    """Whether the cluster runs with TLS."""


class Admin:
    """One admin server. Nodes reach it by `handlers` and `peers`, people by `authenticator`, `lookup`, `contents` and `backend`."""

    _log = Logger()

    def __init__(self, world: World, me: Self, catalogue: Catalogue, authority: Authority, audit: Any) -> None:
        """Args:
        catalogue: open.
        audit: an `IAuditLog`.
        """
        self.world, self.me, self.catalogue, self.authority = world, me, catalogue, authority
        clock, wall, roster, ledger = world.clock, world.wall, catalogue.roster, catalogue.ledger
        self.peers = Peers()
        self.duty = Duty(clock=clock, database=catalogue.database, holder=me.name)
        self.watch = Watch(
            clock=clock,
            wall=wall,
            name=me.name,
            catalogue=catalogue,
            peers=self.peers,
            audit=audit,
            random=world.random,
            duty=self.duty,
        )
        self.backend = AdminBackend(
            clock=clock,
            wall=wall,
            name=me.name,
            catalogue=catalogue,
            peers=self.peers,
            watch=self.watch,
            audit=audit,
            random=world.random,
        )
        ledger.waits_for_nodes = self.watch.waits_for_nodes
        self.reconciling = Reconciling(ledger=ledger, duty=self.duty, worker=catalogue.worker)
        self.followers = Followers(
            clock=clock, ledger=ledger, roster=roster, readdress=catalogue.members.readdress, reconciling=self.reconciling
        )
        self.nodes = NodeHandlers(
            wall=wall,
            catalogue=catalogue,
            backend=self.backend,
            followers=self.followers,
            watch=self.watch,
            authority=authority,
            reconciling=self.reconciling,
        )
        self.authenticator = OperatorAuthenticator(
            self.backend, BasicCache(clock, world.random), me.operator_token, self.backend.require_reconciled
        )
        self.lookup = Lookup(self.backend)
        self._pool = BulkPool(clock=clock, connector=world.connector, here=self.identity, locate=self._locate, identify=world.identify)
        self._transfers = Transfers(clock=clock, interval_s=lambda: roster.settings.heartbeat_interval_s, serves=self._why_silent)
        ledger.listen(self._learn)
        redirector = Redirector(name=me.name, roster=roster, wall=wall, position=lambda: ledger.position, sign=me.sign)
        sources = Sources(clock=clock, name=me.name, blobs=None, pool=self._pool, rotten=lambda version, why: None)
        delivery = Delivery(backend=self.backend, authenticator=self.authenticator, transfers=self._transfers)
        downloads = Downloads(backend=self.backend, lookup=self.lookup, sources=sources, delivery=delivery, redirector=redirector)
        self.archives = Archives(backend=self.backend, lookup=self.lookup, sources=sources, delivery=delivery)
        self.contents = RedirectedContents(
            backend=self.backend, lookup=self.lookup, downloads=downloads, redirector=redirector, below=world.below
        )
        self.repair = Repair(
            ledger=ledger,
            roster=roster,
            wall=wall,
            room=lambda: {name: seen.available_bytes for name, seen in self.watch.seen.items() if roster.is_running(name)},
            below=world.below,
            stuck=self.watch.failing.stuck,
            verifying=lambda: self.watch.rejoins.under_way,
            may=self.duty.still_ours,
        )
        self._chores = Chores(
            clock,
            [
                Chore(name="taking turns", pause_s=TURN_S, work=lambda: self.duty.look(self.watch.hears)),
                Chore(name="looking after the feed", pause_s=FEED_S, work=self.backend.look_after_feed),
                Chore(name="keeping heartbeats", pause_s=KEEP_S, work=self.watch.keep),
                Chore(name="forgetting expired sessions", pause_s=TIDY_S, work=catalogue.people.forget_expired_sessions),
                Chore(name="trimming the feed", pause_s=TIDY_S, work=self._if_ours(self._trim)),
                Chore(name="forgetting checks", pause_s=TIDY_S, work=catalogue.checks.forget_some),
                Chore(name="reconciling", pause_s=RECONCILING_S, work=self.reconciling.round),
                Chore(name="planning repairs", pause_s=REPAIR_ROUND_S, work=self._if_ours(self.repair.round)),
            ],
        )

    @property
    def identity(self) -> PeerIdentity:
        """How nodes know it."""
        return PeerIdentity(cluster=self.authority.cluster, kind=ServerKind.ADMIN, name=self.me.name)

    @property
    def handlers(self) -> Handlers:
        """What it answers to nodes on control connections; `peers` is to be told of those."""
        return self.nodes.handlers

    @property
    def notices(self) -> Handlers:
        """What it answers on notice connections."""
        return self.watch.notices

    def is_member(self, identity: PeerIdentity) -> bool:
        """Whether that server may connect now. Only nodes do: admin servers meet in the database."""
        roster = self.catalogue.roster
        if self.catalogue.ledger.rebuilding and identity.kind is ServerKind.NODE:
            # Who is a member only the nodes know; the administrator looks at who has come before it counts.
            return identity.cluster == roster.cluster
        server = roster.servers.get(identity.name)
        return server is not None and identity.kind is ServerKind.NODE is server.kind and identity.cluster == roster.cluster

    def start(self) -> None:
        """Send heartbeats, judge, and keep order."""
        self.backend.settling.learn_everything(self.catalogue.ledger.position)
        self.watch.start()
        self._transfers.start()
        self._chores.start()

    async def stop(self) -> None:
        """Do nothing any more; transfers under way are cut."""
        self._chores.stop()
        try:
            await self.duty.leave()
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            self._log.info("another admin server takes the duties over when they have lapsed: {problem}", problem=str(error))
        self._transfers.stop()
        self.backend.settling.stop()
        self.watch.stop()
        self.followers.stop()
        await self._pool.stop()

    def _if_ours(self, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """What only the admin server does that has the duty, and none while the epoch is not reconciled."""

        async def do() -> None:
            if self.duty.is_ours and self.catalogue.ledger.reconciled:
                await work()

        return do

    def _trim(self) -> Awaitable[None]:
        return self.catalogue.ledger.trim(self.catalogue.roster.settings.feed_kept)

    def _learn(self, position: Position, change: Change) -> None:
        for fact in change.facts:
            self._transfers.learn(fact)

    def _why_silent(self) -> str | None:
        return None if self.backend.has_database else "the catalogue's database does not answer"

    def _locate(self, name: str) -> tuple[HostPort, PeerIdentity]:
        server = self.catalogue.roster.servers.get(name)
        if server is None:
            raise PeerUnreachable(f"{name} is not a member of this cluster")
        return HostPort.parse(server.protocol_address), PeerIdentity(cluster=self.authority.cluster, kind=server.kind, name=name)
