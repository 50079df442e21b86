"""A node, put together: this is where clocks, randomness, sockets and folders get into the rooms.

https :9443 ─ fronts ─ HttpFactory ─ SharedApi ─┬─ Downloads ─ Sources ─┬─ DiskBlobs
└─ Uploads ── Fanout ───┤
protocol :9444 ─ ControlAndBulkFactory ─ Cluster, PeerBlobs ───┘
links to every server ─ Cluster ─ heartbeats, leases, announcements; Feed ─ Index (SQLite)
syslog to an admin server ─ AuditSender ─ Spool
"""

from __future__ import annotations

import os
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.logger import Logger

from securifile import __version__
from securifile.audit.sender import AuditSender
from securifile.audit.site import Site, copying
from securifile.audit.spool import Spool
from securifile.certificates.identity import Identity, TrustAnchors, make_csr
from securifile.certificates.join import JoinToken
from securifile.http.channel import HttpFactory, http_factory
from securifile.http.https import HttpsCertificate, https_factory
from securifile.http.limits import HttpLimits
from securifile.memory import give_back_at_rest
from securifile.model.errors import OutcomeUnknown, Refusal
from securifile.model.facts import Server, ServerGone
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.node.acting import Acting
from securifile.node.blobs import DiskBlobs
from securifile.node.composition import Node, Self, Stores
from securifile.node.enrolment import Enrolment, Membership
from securifile.node.fronts.acceptor import Acceptor
from securifile.node.fronts.supervisor import Fronts
from securifile.node.fronts.tunnel import NodeEnds, TunnelHttpFactory
from securifile.node.index import Index
from securifile.node.node_api import node_app
from securifile.node.sentinel.supervisor import Supervisor
from securifile.node.worker import ThreadWorker
from securifile.process import CannotStart, say_gone, say_ready, settle, stop_unstarted, take_folder
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.messages import RenewCertificate, RenewedCertificate
from securifile.protocol.sniff import http_answer, plain_only, tls_only
from securifile.protocol.tls import Credentials, CurrentCredentials, identify, tls_connector, tls_factory
from securifile.protocol.transport import ControlAndBulkFactory, tcp_connector
from securifile.protocol.wire import Traffic, claimed
from securifile.sql import directory
from securifile.sql.sqlite import DatabaseDamaged, SqliteDatabase, run_now
from securifile.world import World

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
    https_processes: int = 0
    """Processes beside this one that take people's connections; see `fronts`."""
    site: Site | None = None
    """Who is sent a copy of the audit records."""


class NodeService(Service):
    """One storage node."""

    _log = Logger()

    def __init__(self, reactor: Any, options: NodeOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._starting: Deferred[None] | None = None
        self._undo: list[Any] = []
        """What to do at the end, last first: functions that may return Deferreds."""
        self._fronts: Fronts | None = None

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
            stop_unstarted(self._reactor, self._log, "the node", failure)

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
        me = Self(
            cluster=membership.cluster,
            name=membership.name,
            boot=os.urandom(16).hex(),
            url=url,
            protocol_address=address,
            sign=identity.sign,
            admins=tuple(_introduced(membership)),
        )
        worker = ThreadWorker(self._reactor, WORKERS, "node")
        self._undo.append(worker.stop)
        blobs = DiskBlobs(
            directory=str(folder),
            worker=worker,
            clock=self._reactor,
            reserve_bytes=options.reserve_bytes,
            soon=lambda begin: self._reactor.callLater(0, begin),
        )
        await blobs.recover()
        index = await self._index(folder / "index.sqlite")
        spool = Spool(folder / "audit", boot=me.boot, version=__version__, worker=worker, clock=self._reactor)
        await spool.open()
        self._undo.append(spool.close)

        await self._run(me, identity, blobs, index, spool)
        settle()
        self._undo.append(give_back_at_rest(self._reactor, time.process_time, worker.rest).stop)
        say_ready(folder, name=membership.name, url=url, protocol_address=str(address))
        self._log.info("node {name} is ready at {url}", name=membership.name, url=url)

    async def _run(self, me: Self, identity: Identity, blobs: DiskBlobs, index: Index, spool: Spool) -> None:
        clock, tls = self._reactor, self._options.tls
        current = CurrentCredentials(Credentials.of(identity, TrustAnchors.load(str(self._options.data))))
        certificate = HttpsCertificate.of(identity)
        connector = tls_connector(clock, current) if tls else tcp_connector(clock)
        sender = AuditSender(
            spool,
            lambda: [
                connector(HostPort.parse(admin.syslog_address), PeerIdentity(cluster=me.cluster, kind=admin.kind, name=admin.name))
                for admin in map(node.cluster.roster.servers.__getitem__, node.cluster.admins)
                if admin.syslog_address
            ],
            clock=clock,
            random=os.urandom,
        )
        world = World(
            clock=clock,
            wall=time.time,
            random=os.urandom,
            below=secrets.randbelow,
            connector=connector,
            identify=identify if tls else claimed,
        )
        node = Node(
            world,
            Stores(blobs=blobs, index=index, audit=spool, audit_kept=sender.confirmed),
            me,
        )
        await self._listen_to_peers(node, index, me.identity, current, world.traffic)
        await node.start()
        self._undo.append(node.stop)
        sentinel = self._watched(me, node, index)
        sender.startService()
        self._undo.append(sender.stopService)
        if self._options.site is not None:
            copy = copying(self._options.site, spool, reactor=self._reactor, random=os.urandom, tls=tls)
            copy.startService()
            self._undo.append(copy.stopService)
        await self._listen_to_people(node, index, certificate, world.traffic, blobs, sentinel.lifeline)
        self._renew_later(node.acting, identity, current, certificate)

    async def _identity(self, url: str, address: HostPort) -> tuple[Identity, Membership]:
        folder = self._options.data
        try:
            return Identity.load(str(folder)), Membership.load(folder)
        except FileNotFoundError:
            if self._options.join is None:
                raise CannotStart(
                    f"{folder} belongs to no node yet. An administrator makes a join token for it (securifile node invite NAME);"
                    " start it once with --join TOKEN or --join-file FILE."
                ) from None
        hosts = list(dict.fromkeys((self._options.public, *(("127.0.0.1", "localhost") if self._options.listen == "127.0.0.1" else ()))))
        return await Enrolment(self._reactor, folder).join(self._options.join, url, address, hosts)

    async def _index(self, path: Path) -> Index:
        # Names of people and files are nobody's business on this machine; SQLite gives its other files the mode of this one.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
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

    async def _listen_to_peers(self, node: Node, index: Index, here: PeerIdentity, current: CurrentCredentials, traffic: Traffic) -> None:
        tls = self._options.tls
        factory = ControlAndBulkFactory(
            clock=self._reactor,
            here=here,
            is_member=node.cluster.is_member,
            handlers=node.handlers,
            notices=node.notices,
            bulk=node.bulk,
            identify=identify if tls else claimed,
            traffic=traffic,
        )
        index.listen(lambda fact: factory.drop(fact.name) if isinstance(fact, ServerGone) else None)
        listening = tls_only(tls_factory(self._reactor, current, factory)) if tls else plain_only(factory)
        port = await self._endpoint(self._options.protocol_port).listen(listening)
        self._undo.append(factory.close_all)
        self._undo.append(port.stopListening)

    def _watched(self, me: Self, node: Node, index: Index) -> Supervisor:
        """Have the others told when this process has ended."""
        sentinel = Supervisor(
            self._reactor,
            here=me.identity,
            boot=me.boot,
            data=self._options.data,
            tls=self._options.tls,
            servers=node.cluster.roster.servers.values,
            random=os.urandom,
        )
        index.listen(sentinel.learn)
        sentinel.start()
        self._undo.append(sentinel.stop)
        return sentinel

    async def _listen_to_people(
        self, node: Node, index: Index, certificate: HttpsCertificate, traffic: Traffic, blobs: DiskBlobs, lifeline: int
    ) -> None:
        tls = self._options.tls
        app = node_app(
            node,
            clock=self._reactor,
            index=index,
            tls=tls,
            more_metrics=lambda: {**traffic.metrics, **(self._fronts.metrics if self._fronts is not None else {})},
            https_processes=lambda: self._fronts.ready if self._fronts is not None else 0,
        )
        factory = http_factory(app, self._reactor, HttpLimits(), wall=time.time)
        listening = tls_only(https_factory(self._reactor, certificate, factory), HTTPS_ONLY) if tls else plain_only(factory)
        if self._options.https_processes:
            self._listen_with_fronts(node, index, blobs, app, factory, listening, lifeline)
            return
        port = await self._endpoint(self._options.https_port).listen(listening)
        self._undo.append(lambda: factory.shut_down(SHUT_DOWN_S))
        self._undo.append(port.stopListening)

    def _listen_with_fronts(
        self, node: Node, index: Index, blobs: DiskBlobs, app: Any, factory: HttpFactory, listening: Any, lifeline: int
    ) -> None:
        options = self._options
        limits = HttpLimits()
        tunnelled = TunnelHttpFactory(app, self._reactor, limits, None, time.time)
        fronts = self._fronts = Fronts(
            self._reactor,
            count=options.https_processes,
            data=options.data,
            tls=options.tls,
            connections_max=limits.connections_max,
            random=os.urandom,
            cluster=node.cluster,
            index=index,
            audit=node.acting.audit,
            passwords=node.passwords,
            credentials_of=partial(_credentials_of, index),
            suspect=node.upkeep.quarantine.suspect,
            wall=node.acting.wall,
            tunnels=NodeEnds(tunnelled),
            lifeline=lifeline,
        )
        blobs.on_leaving = fronts.left
        acceptor = Acceptor(self._reactor, options.listen, options.https_port, fronts.give, listening)
        fronts.start()
        self._undo.append(fronts.stop)

        def shut_down() -> Any:
            tunnelled.shut_down(SHUT_DOWN_S)
            return DeferredList([factory.shut_down(SHUT_DOWN_S), Deferred.fromCoroutine(fronts.drain(SHUT_DOWN_S))])

        self._undo.append(shut_down)
        self._undo.append(acceptor.stopListening)

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
            current.replace(Credentials.of(identity, TrustAnchors.load(str(self._options.data))))
            certificate.replace(identity)
            if self._fronts is not None:
                self._fronts.renewed()
            self._log.info("the certificate was renewed")

        timer = self._reactor.callLater(0, look)
        self._undo.append(lambda: timer.cancel())


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


def _credentials_of(index: Index, username: str) -> int | None:
    person = run_now(directory.person(index.sql, username))
    return None if person is None else person.credentials


async def _maybe(result: Any) -> None:
    if hasattr(result, "__await__"):
        await result
