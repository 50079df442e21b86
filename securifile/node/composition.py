"""The parts of a node, joined: everything but sockets, folders and processes.

What the world gives (`World`) and where things are kept (`Stores`) come in; a service hands in the real ones, tests and the simulation
a virtual clock, a network in memory and stores that can crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from securifile.http.archives import Archives
from securifile.http.authentication import Authenticator
from securifile.http.delivery import Delivery
from securifile.http.downloads import Downloads
from securifile.http.identity import BasicCache
from securifile.http.lookup import Lookup
from securifile.http.redirects import Redirector
from securifile.http.sources import Sources
from securifile.http.transfers import Transfers
from securifile.model.facts import Server
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.node.acting import Acting
from securifile.node.checks import Checks
from securifile.node.cluster import Cluster
from securifile.node.cluster_time import ClusterTime
from securifile.node.feed import Feed
from securifile.node.index import Index
from securifile.node.peer_blobs import PeerBlobs
from securifile.node.peer_uploads import PeerUploads
from securifile.node.resumable import Resumable
from securifile.node.staged import StagedUploads
from securifile.node.upkeep import Upkeep
from securifile.node.uploads import Uploads
from securifile.node.verification import Verification
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.rpc import Handlers, Link
from securifile.world import World


@attrs.frozen(kw_only=True)
class Stores:
    """Where a node keeps things."""

    blobs: Any
    """An `IBlobStore`."""
    index: Index
    audit: Any
    """An `IAuditLog`."""
    audit_kept: Callable[[str, int], None]
    """Told up to which number of which boot an admin server has kept the records."""


@attrs.frozen(kw_only=True)
class Self:
    """Who the node is."""

    cluster: str
    name: str
    boot: str
    """Drawn anew at each start of the process."""
    url: str
    protocol_address: HostPort
    sign: Callable[[bytes], bytes]
    """Signs tickets with the key of the node's certificate."""
    admins: tuple[Server, ...]
    """The admin servers to ask first, before the index knows any."""

    @property
    def identity(self) -> PeerIdentity:
        """How peers know it."""
        return PeerIdentity(cluster=self.cluster, kind=ServerKind.NODE, name=self.name)


class Node:
    """One node. Peers reach it by `handlers` and `bulk`, people by `authenticator`, `lookup`, `downloads` and `uploads`."""

    def __init__(self, world: World, stores: Stores, me: Self) -> None:
        self._world = world
        self._stores = stores
        self._me = me
        clock, wall, name, index = world.clock, ClusterTime(world.wall, world.clock.seconds), me.name, stores.index
        checks = Checks(index=index, wall=wall, name=name)
        self._feed = Feed(
            clock=clock,
            index=index,
            admins=lambda: self.cluster.admins,
            link=lambda admin: self.cluster.links.to(admin),
            url=me.url,
            protocol_address=str(me.protocol_address),
            boot=me.boot,
            sidecars=stores.blobs.sidecars,
        )
        self._verification = Verification(
            clock=clock,
            name=name,
            index=index,
            blobs=stores.blobs,
            ask=lambda peer, message, timeout_s: self.cluster.links.ask(peer, message, timeout_s),
            settings=lambda: self.cluster.roster.settings,
            own_copy_bad=lambda attempt, reason: self.upkeep.quarantine.suspect(attempt, reason),
            checked=checks.checked,
        )
        self.cluster = Cluster(
            clock=clock,
            wall=wall,
            name=name,
            boot=me.boot,
            index=index,
            space=stores.blobs.space,
            make_link=self._make_link,
            audit=stores.audit,
            audit_kept=stores.audit_kept,
            more_handlers=lambda: {
                **self._feed.handlers,
                **self._verification.handlers,
                **self.upkeep.mending.handlers,
                **self._peers.handlers,
            },
        )
        self.cluster.introduce(me.cluster, list(me.admins))
        self.acting = Acting(clock=clock, wall=wall, name=name, cluster=self.cluster, index=index, audit=stores.audit, random=world.random)
        self._pool = BulkPool(
            clock=clock,
            connector=world.connector,
            here=me.identity,
            locate=self.cluster.identity_of,
            identify=world.identify,
            traffic=world.traffic,
        )
        self.passwords = BasicCache(clock, world.random)
        self.authenticator = Authenticator(self.acting, self.passwords)
        self.lookup = Lookup(self.acting)
        redirector = Redirector(name=name, roster=self.cluster.roster, wall=wall, position=lambda: index.position, sign=me.sign)
        self._transfers = Transfers(
            clock=clock, interval_s=lambda: self.cluster.roster.settings.heartbeat_interval_s, serves=self._why_silent
        )
        sources = Sources(
            clock=clock,
            name=name,
            blobs=stores.blobs,
            pool=self._pool,
            rotten=lambda version, reason: self.upkeep.quarantine.suspect(version.attempt, reason),
        )
        delivery = Delivery(backend=self.acting, authenticator=self.authenticator, transfers=self._transfers)
        self.downloads = Downloads(backend=self.acting, lookup=self.lookup, sources=sources, delivery=delivery, redirector=redirector)
        self.archives = Archives(backend=self.acting, lookup=self.lookup, sources=sources, delivery=delivery)
        self.uploads = Uploads(
            clock=clock,
            name=name,
            cluster=self.cluster,
            acting=self.acting,
            lookup=self.lookup,
            blobs=stores.blobs,
            pool=self._pool,
            redirector=redirector,
            authenticator=self.authenticator,
            transfers=self._transfers,
            random=world.random,
            below=world.below,
        )
        self.staged = StagedUploads(clock=clock, wall=wall, blobs=stores.blobs, settings=lambda: self.cluster.roster.settings)
        self._peers = PeerUploads(self.staged, self._pool)
        self.resumable = Resumable(
            clock=clock,
            wall=wall,
            name=name,
            cluster=self.cluster,
            acting=self.acting,
            uploads=self.uploads,
            staged=self.staged,
            peers=self._peers,
            pool=self._pool,
            transfers=self._transfers,
            random=world.random,
            below=world.below,
        )
        self.upkeep = Upkeep(
            clock=clock,
            wall=wall,
            name=name,
            roster=self.cluster.roster,
            index=index,
            blobs=stores.blobs,
            audit=stores.audit,
            acting=self.acting,
            sources=sources,
            checks=checks,
            is_running=self._is_running,
            is_under_way=lambda attempt: attempt in self.uploads.under_way or self.staged.has(attempt),
            may_delete=lambda: self._feed.is_whole,
        )
        self.bulk = PeerBlobs(stores.blobs, self.staged, self.upkeep.suspected_by_peer)
        index.node, index.wall = name, wall
        index.listen(self._transfers.learn)
        index.listen(self.staged.learn)

    @property
    def handlers(self) -> Handlers:
        """What it answers to peers on control connections."""
        return self.cluster.handlers

    @property
    def notices(self) -> Handlers:
        """What it answers on notice connections."""
        return self.cluster.notices

    async def start(self) -> None:
        """Connect to the other servers, follow the catalogue, and serve as soon as they agree."""
        await self.staged.recover()
        await self.cluster.start()
        self.staged.start()
        self._feed.start()
        self.upkeep.start()
        self._transfers.start()

    async def stop(self) -> None:
        """Serve nobody any more; transfers under way are cut."""
        self._transfers.stop()
        self.upkeep.stop()
        self._feed.stop()
        await self.cluster.stop()
        await self._pool.stop()
        await self.staged.stop()

    def _make_link(self, server: Server, handlers: Handlers) -> Link:
        return Link(
            clock=self._world.clock,
            jitter=lambda: self._world.below(1 << 20) / (1 << 20),
            connector=self._world.connector,
            identify=self._world.identify,
            address=HostPort.parse(server.protocol_address),
            expected=PeerIdentity(cluster=self._me.cluster, kind=server.kind, name=server.name),
            here=self._me.identity,
            handlers=handlers,
            traffic=self._world.traffic,
        )

    def _why_silent(self) -> str | None:
        """Why transfers must be cut; None while they may go on. To be behind for a moment is no reason."""
        standing = self.cluster.admission.standing()
        return None if standing.serves or standing.behind else standing.reason

    def _is_running(self) -> bool:
        """Whether the cluster holds this life of this node for running."""
        own = self.cluster.roster.servers.get(self._me.name)
        return own is not None and own.status is Status.RUNNING and own.boot == self._me.boot
