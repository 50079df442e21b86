"""A node, put together: this is where clocks, randomness, sockets and folders get into the rooms.

https :9443 ─ HttpFactory ─ SharedApi ─┬─ Downloads ─ Sources ─┬─ DiskBlobs
└─ Uploads ── Fanout ───┤
protocol :9444 ─ ControlAndBulkFactory ─ Cluster, PeerBlobs ───┘
links to every server ─ Cluster ─ heartbeats, leases, announcements; Feed ─ Index (SQLite)
syslog to an admin server ─ AuditSender ─ Spool
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from securifile import __version__
from securifile.audit.sender import AuditSender
from securifile.audit.spool import Spool
from securifile.certificates.identity import Identity, TrustAnchors, make_csr
from securifile.certificates.join import JoinToken
from securifile.http.authentication import Authenticator
from securifile.http.channel import http_factory
from securifile.http.https import HttpsCertificate, https_factory
from securifile.http.identity import BasicCache
from securifile.http.limits import HttpLimits
from securifile.http.lookup import Lookup
from securifile.http.redirects import Redirector
from securifile.http.shared_api import SharedApi
from securifile.model.entries import Version
from securifile.model.errors import OutcomeUnknown, Refusal
from securifile.model.facts import Server
from securifile.model.records import AuditRecord
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.node.acting import Acting
from securifile.node.blobs import DiskBlobs
from securifile.node.cluster import Cluster
from securifile.node.downloads import Downloads
from securifile.node.enrolment import Enrolment, Membership
from securifile.node.feed import Feed
from securifile.node.housekeeping import Housekeeping
from securifile.node.index import Index
from securifile.node.node_api import NodeContents, node_app, node_metrics
from securifile.node.peer_blobs import PeerBlobs
from securifile.node.sources import Sources
from securifile.node.transfers import Transfers
from securifile.node.uploads import Uploads
from securifile.node.worker import ThreadWorker
from securifile.process import say_gone, say_ready, take_folder
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.messages import RenewCertificate, RenewedCertificate
from securifile.protocol.rpc import Handlers, Link
from securifile.protocol.sniff import http_answer, plain_only, tls_only
from securifile.protocol.tls import Credentials, CurrentCredentials, identify, tls_connector, tls_factory
from securifile.protocol.transport import ControlAndBulkFactory, tcp_connector
from securifile.protocol.wire import claimed
from securifile.sql.sqlite import DatabaseDamaged, SqliteDatabase

WORKERS = 8
"""Threads for the disk: a few transfers may each wait for an fsync without holding the others up."""

RENEWAL_LOOK_S = 3600.0
"""How often to look whether the certificate is due; failures are tried again as often."""

SHUT_DOWN_S = 5.0
"""How long transfers under way may go on when the node stops."""

HTTPS_ONLY = http_answer("This port speaks HTTPS only. Write https:// instead of http://.")


@attrs.frozen(kw_only=True)
class NodeOptions:
    """What is said on the command line."""

    data: Path
    join: JoinToken | None
    listen: str
    public: str
    https_port: int
    protocol_port: int
    tls: bool
    reserve_bytes: int


class NodeService(Service):
    """One storage node."""

    _log = Logger()

    def __init__(self, reactor: Any, options: NodeOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._starting: Deferred[None] | None = None
        self._undo: list[Any] = []
        """What to do at the end, last first: functions that may return Deferreds."""

    def startService(self) -> None:
        """Begin; the node is ready when `ready.json` is in its data folder. A failure stops the process."""
        super().startService()  # type: ignore[no-untyped-call]
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._cannot_start)

    def stopService(self) -> Deferred[None]:
        """Stop in order: no new requests, transfers cut, records on disk, files closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    def _cannot_start(self, failure: Any) -> None:
        if self.running:
            self._log.failure("the node cannot start", failure)
            self._reactor.stop()

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        while self._undo:
            undo = self._undo.pop()
            try:
                await _maybe(undo())
            except Exception:
                self._log.failure("stopping goes on after a failure")

    # --- putting together ---

    async def _start(self) -> None:
        options = self._options
        folder = options.data
        descriptor = take_folder(folder)
        self._undo.append(lambda: os.close(descriptor))
        self._undo.append(lambda: say_gone(folder))
        scheme = "https" if options.tls else "http"
        if not options.tls:
            self._log.warn("ENCRYPTION IS OFF (--no-tls): whoever is on the network reads and changes everything. For debugging only.")
        url = f"{scheme}://{HostPort(options.public, options.https_port)}"
        address = HostPort(options.public, options.protocol_port)
        identity, membership = await self._identity(url, address)
        current = CurrentCredentials(_credentials(identity, TrustAnchors.load(str(folder))))
        certificate = HttpsCertificate.of(identity)

        pool = ThreadPool(0, WORKERS, "node")
        pool.start()
        self._undo.append(pool.stop)
        worker = ThreadWorker(self._reactor, pool)
        blobs = DiskBlobs(directory=str(folder), worker=worker, clock=self._reactor, reserve_bytes=options.reserve_bytes)
        await blobs.recover()
        index = await self._index(folder / "index.sqlite")
        boot = os.urandom(16).hex()
        spool = Spool(folder / "audit", boot=boot, version=__version__, worker=worker, clock=self._reactor)
        await spool.open()
        self._undo.append(spool.close)

        await self._compose(identity, membership, current, certificate, blobs, index, spool, url, address)
        say_ready(folder, name=membership.name, url=url, protocol_address=str(address))
        self._log.info("node {name} is ready at {url}", name=membership.name, url=url)

    async def _compose(
        self,
        identity: Identity,
        membership: Membership,
        current: CurrentCredentials,
        certificate: HttpsCertificate,
        blobs: DiskBlobs,
        index: Index,
        spool: Spool,
        url: str,
        address: HostPort,
    ) -> None:
        clock, name, tls = self._reactor, membership.name, self._options.tls
        here = PeerIdentity(cluster=membership.cluster, kind=ServerKind.NODE, name=name)
        connector = tls_connector(clock, current) if tls else tcp_connector(clock)
        judge = identify if tls else claimed

        def make_link(server: Server, handlers: Handlers) -> Link:
            return Link(
                clock=clock,
                jitter=lambda: secrets.randbelow(1 << 20) / (1 << 20),
                connector=connector,
                identify=judge,
                address=HostPort.parse(server.protocol_address),
                expected=PeerIdentity(cluster=membership.cluster, kind=server.kind, name=server.name),
                here=here,
                handlers=handlers,
            )

        feed = Feed(
            clock=clock,
            index=index,
            admins=lambda: cluster.admins,
            link=lambda admin: cluster.link(admin),
            url=url,
            protocol_address=str(address),
        )
        sender = AuditSender(
            spool,
            lambda: [
                connector(HostPort.parse(admin.syslog_address), PeerIdentity(cluster=membership.cluster, kind=admin.kind, name=admin.name))
                for admin in map(cluster.roster.servers.__getitem__, cluster.admins)
                if admin.syslog_address
            ],
            clock=clock,
            random=os.urandom,
        )
        cluster = Cluster(
            clock=clock,
            wall=time.time,
            name=name,
            index=index,
            space=blobs.space,
            make_link=make_link,
            audit=spool,
            audit_kept=sender.confirmed,
            more_handlers=feed.handlers,
        )
        cluster.introduce(membership.cluster, _introduced(membership))
        acting = Acting(clock=clock, wall=time.time, name=name, cluster=cluster, index=index, audit=spool, random=os.urandom)
        bulk = BulkPool(clock=clock, connector=connector, here=here, locate=cluster.identity_of, identify=judge)
        self._undo.append(bulk.stop)

        def rotten(version: Version, reason: str) -> None:
            quarantining = blobs.quarantine(version.attempt, reason)
            quarantining.addErrback(lambda failure: self._log.failure("a bad blob could not be put aside", failure))
            spool.note(AuditRecord(at=time.time(), server=name, event="rotten", detail=f"{version.attempt}: {reason}"))

        transfers = Transfers(
            clock=clock,
            interval_s=lambda: cluster.roster.settings.heartbeat_interval_s,
            serves=lambda: None if (standing := cluster.standing()).serves or standing.behind else standing.reason,
        )
        index.listen(transfers.learn)
        authenticator = Authenticator(acting, BasicCache(clock, os.urandom))
        lookup = Lookup(acting)
        redirector = Redirector(name=name, roster=cluster.roster, wall=time.time, position=lambda: index.position, sign=identity.sign)
        downloads = Downloads(
            name=name,
            cluster=cluster,
            acting=acting,
            lookup=lookup,
            authenticator=authenticator,
            sources=Sources(clock=clock, name=name, blobs=blobs, pool=bulk, rotten=rotten),
            transfers=transfers,
            redirector=redirector,
        )
        uploads = Uploads(
            clock=clock,
            name=name,
            cluster=cluster,
            acting=acting,
            lookup=lookup,
            blobs=blobs,
            pool=bulk,
            redirector=redirector,
            random=os.urandom,
            below=secrets.randbelow,
        )
        housekeeping = Housekeeping(
            clock=clock,
            wall=time.time,
            name=name,
            index=index,
            blobs=blobs,
            acting=acting,
            is_under_way=uploads.under_way.__contains__,
        )
        index.listen(housekeeping.learn)
        contents = NodeContents(downloads, uploads)
        api = SharedApi(clock=clock, backend=acting, authenticator=authenticator, lookup=lookup, contents=contents)
        app = node_app(name=name, tls=tls, api=api, cluster=cluster, index=index, metrics=lambda: node_metrics(cluster, index))

        await self._listen_to_peers(cluster, blobs, here, current if tls else None)
        await cluster.start()
        self._undo.append(cluster.stop)
        feed.start()
        self._undo.append(feed.stop)
        sender.startService()
        self._undo.append(sender.stopService)
        housekeeping.start()
        self._undo.append(housekeeping.stop)
        transfers.start()
        self._undo.append(transfers.stop)
        await self._listen_to_people(app, certificate if tls else None)
        self._renew_later(acting, identity, current, certificate)

    async def _identity(self, url: str, address: HostPort) -> tuple[Identity, Membership]:
        folder = self._options.data
        try:
            return Identity.load(str(folder)), Membership.load(folder)
        except FileNotFoundError:
            if self._options.join is None:
                raise SystemExit(
                    f"{folder} belongs to no node yet. Make a token (securifile node invite NAME) and start once with --join TOKEN."
                ) from None
        hosts = list(dict.fromkeys((self._options.public, *(("127.0.0.1", "localhost") if self._options.listen == "127.0.0.1" else ()))))
        return await Enrolment(self._reactor, folder).join(self._options.join, url, address, hosts)

    async def _index(self, path: Path) -> Index:
        try:
            database = SqliteDatabase(path)
            index = Index(database, time.time)
            await index.open()
        except DatabaseDamaged:
            self._log.error("the index is damaged; it is put aside and made anew from the catalogue")
            for suffix in ("", "-wal", "-shm"):
                if path.with_name(path.name + suffix).exists():
                    os.replace(path.with_name(path.name + suffix), path.with_name(path.name + ".damaged" + suffix))
            database = SqliteDatabase(path)
            index = Index(database, time.time)
            await index.open()
        self._undo.append(database.close)
        return index

    async def _listen_to_peers(self, cluster: Cluster, blobs: DiskBlobs, here: PeerIdentity, current: CurrentCredentials | None) -> None:
        factory = ControlAndBulkFactory(
            clock=self._reactor,
            here=here,
            is_member=cluster.is_member,
            handlers=cluster.handlers,
            bulk=PeerBlobs(blobs),
            identify=claimed if current is None else identify,
        )
        listening = plain_only(factory) if current is None else tls_only(tls_factory(self._reactor, current, factory))
        port = await self._endpoint(self._options.protocol_port).listen(listening)
        self._undo.append(factory.close_all)
        self._undo.append(port.stopListening)

    async def _listen_to_people(self, app: Any, certificate: HttpsCertificate | None) -> None:
        factory = http_factory(app, self._reactor, HttpLimits(), wall=time.time)
        listening = plain_only(factory) if certificate is None else tls_only(https_factory(self._reactor, certificate, factory), HTTPS_ONLY)
        port = await self._endpoint(self._options.https_port).listen(listening)
        self._undo.append(lambda: factory.shut_down(SHUT_DOWN_S))
        self._undo.append(port.stopListening)

    def _endpoint(self, port: int) -> Any:
        kind = TCP6ServerEndpoint if ":" in self._options.listen else TCP4ServerEndpoint
        return kind(self._reactor, port, interface=self._options.listen, backlog=511)

    # --- the certificate ---

    def _renew_later(self, acting: Acting, identity: Identity, current: CurrentCredentials, certificate: HttpsCertificate) -> None:
        timer: Any = None

        def look() -> None:
            nonlocal timer
            timer = self._reactor.callLater(RENEWAL_LOOK_S, look)
            if identity.renewal_due(time.time()):
                renewing = Deferred.fromCoroutine(renew())
                renewing.addErrback(lambda failure: failure.trap(Refusal, OutcomeUnknown))
                renewing.addErrback(lambda failure: self._log.failure("the certificate could not be renewed", failure))

        async def renew() -> None:
            # With the same key: tickets that were signed with it stay valid.
            nonlocal identity
            renewed: RenewedCertificate = await acting.ask_admin(RenewCertificate(csr=make_csr(identity.key)))
            identity = Identity.of(identity.key, renewed.chain)
            identity.save(str(self._options.data))
            current.replace(_credentials(identity, TrustAnchors.load(str(self._options.data))))
            certificate.replace(identity)
            self._log.info("the certificate was renewed")

        timer = self._reactor.callLater(0, look)
        self._undo.append(lambda: timer.cancel())


def _credentials(identity: Identity, anchors: TrustAnchors) -> Credentials:
    return Credentials(key=identity.key_pem, chain=identity.chain_pem, trust=anchors.servers)


def _introduced(membership: Membership) -> list[Server]:
    return [
        Server(
            name=admin.name,
            kind=ServerKind.ADMIN,
            url=admin.url,
            protocol_address=admin.protocol_address,
            public_key=bytes.fromhex(admin.public_key),
            status=Status.RUNNING,
            syslog_address=admin.syslog_address,
        )
        for admin in membership.admins
    ]


async def _maybe(result: Any) -> None:
    if hasattr(result, "__await__"):
        await result
