"""An admin server as a process: what is made of what, in which order it starts, and in which it stops.

    data folder, authority, identity
      -> PostgreSQL -> catalogue -> audit trail -> listeners -> heartbeats and chores -> operator.json, ready.json

`startService` starts the first and goes on by itself; `stopService` stops what has been started, the last first.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argon2
import attrs
from cryptography import x509
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile import __version__
from securifile.admin.admin_api import AdminApi
from securifile.admin.catalogue import Catalogue
from securifile.admin.chores import Chore, Chores
from securifile.admin.composition import Admin, Self
from securifile.admin.database import PostgresDatabase
from securifile.admin.ledger import CHANNEL, CatalogueGone, WhenEmpty
from securifile.admin.peers import Peers
from securifile.admin.postgres import EmbeddedPostgres
from securifile.admin.servers_api import NO_TLS
from securifile.audit.keeping import AuditFile, Keeper
from securifile.audit.local import LocalAudit
from securifile.audit.receiver import AuditReceiver
from securifile.audit.site import Site, copying
from securifile.audit.spool import Spool
from securifile.certificates.authority import Authority
from securifile.certificates.identity import Identity, make_csr, new_key
from securifile.certificates.names import ServerUri
from securifile.http.channel import http_factory
from securifile.http.https import HttpsCertificate, https_factory
from securifile.http.identity import new_token
from securifile.model.errors import DatabaseUnavailable, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Change, Server, ServerGone
from securifile.model.ids import Position
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.process import (
    REBUILD,
    CannotStart,
    run_on_monotonic_time,
    say_gone,
    say_ready,
    settle,
    stop_unstarted,
    take_folder,
    write_json,
)
from securifile.protocol import messages as m
from securifile.protocol import tls
from securifile.protocol.rpc import Peer
from securifile.protocol.sniff import http_answer, plain_only, tls_only
from securifile.protocol.transport import ControlAndBulkFactory, tcp_connector
from securifile.protocol.wire import NotAcceptable, claimed
from securifile.workers import ThreadWorker
from securifile.world import World

THREADS = 4
"""For fsync and for argon2, of which each run takes 64 MiB."""

DATABASE_RETRY_S = 1.0
RENEW_S = 3600.0
"""How often the certificate's age is looked at."""
GRACE_S = 5.0
"""For answers under way when the server is stopped."""
KEPT_S = 5.0
"""How long a node may take to hear that its audit records are kept; it is told again with the next."""
BACKLOG = 1024
"""Connections that wait to be accepted: clients of a node that went down come all at once."""

OPERATOR = "operator.json"
CA = "ca.pem"
BEGINNING = "beginning"
"""There from before the authority is made until the catalogue has begun: an empty database is right then, and only then."""


@attrs.frozen(kw_only=True)
class AdminOptions:
    """What the command line says."""

    data: Path
    name: str
    listen: str
    """Address to listen on."""
    public: str
    """Host name or address under which others reach this server."""
    https_port: int
    protocol_port: int
    syslog_port: int
    dsn: str | None = None
    """PostgreSQL of the site; None: the embedded one."""
    tls: bool = True
    site: Site | None = None
    """Who is sent a copy of this server's own audit records."""


class AdminService(Service):
    """An admin server."""

    _log = Logger()

    def __init__(self, reactor: Any, options: AdminOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._starting: Deferred[None] | None = None
        self._stops: list[tuple[str, Callable[[], Any]]] = []
        """What stops what was started, in order of starting."""

    # --- life ---

    def startService(self) -> None:
        """Begin to start; `ready.json` appears when people and nodes are served."""
        super().startService()  # type: ignore[no-untyped-call]
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError):
            return
        stop_unstarted(self._reactor, self._log, "the admin server", failure)

    def stopService(self) -> Deferred[None]:
        """Stop; fires when everything has ended."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        while self._stops:
            what, stop = self._stops.pop()
            try:
                await maybeDeferred(stop)
            except Exception:
                self._log.failure("{what} did not stop as it should", what=what)

    def _later(self, what: str, stop: Callable[[], Any]) -> None:
        self._stops.append((what, stop))

    # --- start, step by step ---

    async def _start(self) -> None:
        options, reactor = self._options, self._reactor
        if not options.tls:
            self._log.critical("{warning}", warning=NO_TLS)
        lock = take_folder(options.data)
        self._later("the data folder", lambda: os.close(lock))
        say_gone(options.data)
        worker = ThreadWorker(reactor, THREADS, "work")
        self._later("threads", worker.stop)
        catalogue, authority = await self._open_catalogue(worker)

        identity = self._identity(authority)
        https = HttpsCertificate.of(identity)
        current = tls.CurrentCredentials(_credentials(identity, authority))
        await self._put_self(catalogue, identity)

        keeper = Keeper(
            AuditFile(options.data / "audit"),
            store=catalogue.store_audit,
            last_kept=catalogue.last_audit,
            worker=worker,
            clock=reactor,
            wall=time.time,
            random=secrets.token_bytes,
        )
        keeper.startService()
        self._later("the audit trail", keeper.stopService)
        spool = Spool(options.data / "spool", boot=secrets.token_hex(16), version=__version__, worker=worker, clock=reactor)
        await spool.open()
        self._later("the audit spool", spool.close)
        audit = LocalAudit(spool, keeper, server=options.name, clock=reactor)
        audit.startService()
        self._later("the server's own audit records", audit.stopService)
        if options.site is not None:
            copy = copying(options.site, spool, reactor=reactor, random=secrets.token_bytes, tls=options.tls)
            copy.startService()
            self._later("the copy of them", copy.stopService)

        token = new_token(secrets.token_bytes)
        admin = Admin(
            World(
                clock=reactor,
                wall=time.time,
                random=secrets.token_bytes,
                below=secrets.randbelow,
                connector=tls.tls_connector(reactor, current) if options.tls else tcp_connector(reactor),
                identify=tls.identify if options.tls else claimed,
            ),
            Self(name=options.name, sign=identity.sign, operator_token=token, tls=options.tls),
            catalogue,
            authority,
            audit,
        )
        self._serve_nodes(admin, current)
        self._tell_kept(keeper, admin.peers)
        self._receive_audit(keeper, current)
        self._later("the server's parts", admin.stop)
        self._serve_people(AdminApi(admin).resource(), https)
        # Whoever missed notifications while it was not connected catches up when it is again.
        catalogue.database.listen(CHANNEL, catalogue.ledger.hear_news, catalogue.ledger.hear_news)
        admin.start()
        renewing = Chore(name="renewing the certificate", pause_s=RENEW_S, work=lambda: self._renew(catalogue, authority, https, current))
        chores = Chores(reactor, [renewing])
        chores.start()
        self._later("chores", chores.stop)
        settle()
        self._say_ready(authority, token)

    async def _open_catalogue(self, worker: ThreadWorker) -> tuple[Catalogue, Authority]:
        """The catalogue, open, and the authority that belongs to it."""
        options = self._options
        if options.dsn is None:
            postgres = EmbeddedPostgres(reactor=self._reactor, directory=options.data / "postgres", worker=worker)
            postgres.startService()
            self._later("PostgreSQL", postgres.stopService)
            dsn = await postgres.ready()
        else:
            dsn = options.dsn
        try:
            database = PostgresDatabase(reactor=self._reactor, dsn=dsn, random=lambda: secrets.randbelow(1 << 20) / (1 << 20))
        except ValueError as error:
            raise CannotStart(f"--dsn: {str(error).strip()}") from error
        self._later("the database", database.stop)
        hasher = argon2.PasswordHasher()
        catalogue = Catalogue(database, wall=time.time, random=secrets.token_bytes, worker=worker, hasher=hasher)
        authority = self._authority()
        while True:
            try:
                life = await database.system_identity()
                await catalogue.open(
                    cluster=authority.cluster, settings=ClusterSettings(), system_identifier=str(life), when_empty=self._when_empty()
                )
                break
            except CatalogueGone as error:
                raise CannotStart(
                    f"the database is empty, and this server belongs to cluster {authority.cluster}. If it is the wrong database, start"
                    " with the right --dsn; if there is a backup, put that in its place. If the database is lost for good, this makes the"
                    f" catalogue anew from the nodes: securifile --operator {options.data} admin rebuild-catalogue"
                ) from error
            except DatabaseUnavailable as error:
                self._log.warn("waiting for the database: {problem}", problem=str(error))
                await deferLater(self._reactor, DATABASE_RETRY_S)
        if catalogue.roster.cluster != authority.cluster:
            raise CannotStart(
                f"the database belongs to cluster {catalogue.roster.cluster}, and {options.data / 'ca'} to {authority.cluster}."
                " Copy the folder ca of an admin server of that cluster here, or use another database."
            )
        self._note_begun(catalogue)
        database.on_another_history = catalogue.ledger.doubt
        return catalogue, authority

    def _when_empty(self) -> WhenEmpty:
        data = self._options.data
        if (data / REBUILD).exists():
            return WhenEmpty.REBUILD
        return WhenEmpty.BEGIN if (data / BEGINNING).exists() else WhenEmpty.REFUSE

    def _note_begun(self, catalogue: Catalogue) -> None:
        """There is a catalogue: should its database be empty another time, that is a loss again."""
        data = self._options.data
        if (data / REBUILD).exists() and not catalogue.ledger.rebuilding:
            self._log.warn("the catalogue is not made anew from the nodes: the database has one")
        for name in (REBUILD, BEGINNING):
            (data / name).unlink(missing_ok=True)

    def _authority(self) -> Authority:
        folder = self._options.data / "ca"
        if folder.is_dir():
            try:
                return Authority.load(str(folder))
            except (OSError, ValueError) as error:
                raise CannotStart(
                    f"the certificate authority in {folder} cannot be read: {error}. Put the folder back from a backup;"
                    " without it no server of this cluster can get a certificate."
                ) from error
        (self._options.data / BEGINNING).touch(0o600)
        return Authority.create(str(folder), f"c{secrets.token_hex(6)}", time.time())

    # --- identity ---

    def _hosts(self) -> list[str]:
        options = self._options
        wildcard = options.listen in ("", "0.0.0.0", "::")
        return list(dict.fromkeys([options.public, *([] if wildcard else [options.listen]), "localhost", "127.0.0.1"]))

    def _identity(self, authority: Authority, lifetime_s: float = ClusterSettings().certificate_s) -> Identity:
        """Our certificate: the one we have, or a new one when there is none, it is due, or our names have changed."""
        folder = str(self._options.data)
        authority.anchors.save(folder)
        uri = ServerUri(authority.cluster, ServerKind.ADMIN, self._options.name)
        try:
            kept: Identity | None = Identity.load(folder)
        except FileNotFoundError:
            kept = None
        if kept is not None and kept.uri == uri and not kept.renewal_due(time.time()) and set(self._hosts()) <= _hosts_of(kept):
            return kept
        # The key stays when only the certificate is new: tickets signed with it stay valid.
        key = kept.key if kept is not None and kept.uri == uri else new_key()
        chain = authority.sign_server(make_csr(key), uri, self._hosts(), lifetime_s, time.time())
        identity = Identity.of(key, chain)
        identity.save(folder)
        return identity

    async def _renew(self, catalogue: Catalogue, authority: Authority, https: HttpsCertificate, current: tls.CurrentCredentials) -> None:
        kept = Identity.load(str(self._options.data))
        renewed = self._identity(authority, catalogue.roster.settings.certificate_s)
        if renewed.chain != kept.chain:
            https.replace(renewed)
            current.replace(_credentials(renewed, authority))
            self._log.info("this server has a new certificate")

    @property
    def _url(self) -> str:
        options = self._options
        return f"{'https' if options.tls else 'http'}://{HostPort(options.public, options.https_port)}"

    @property
    def _protocol_address(self) -> str:
        return str(HostPort(self._options.public, self._options.protocol_port))

    @property
    def _syslog_address(self) -> str:
        return str(HostPort(self._options.public, self._options.syslog_port))

    async def _put_self(self, catalogue: Catalogue, identity: Identity) -> None:
        await catalogue.members.put_admin(
            Server(
                name=self._options.name,
                kind=ServerKind.ADMIN,
                url=self._url,
                protocol_address=self._protocol_address,
                public_key=identity.public_key_der,
                status=Status.RUNNING,
                syslog_address=self._syslog_address,
            )
        )

    # --- listeners ---

    def _listen(self, what: str, port: int, factory: Any) -> None:
        listening = self._reactor.listenTCP(port, factory, backlog=BACKLOG, interface=self._options.listen)
        self._later(what, listening.stopListening)

    def _serve_nodes(self, admin: Admin, current: tls.CurrentCredentials) -> None:
        options = self._options
        factory = ControlAndBulkFactory(
            clock=self._reactor,
            here=admin.identity,
            is_member=admin.is_member,
            handlers=admin.handlers,
            notices=admin.notices,
            identify=tls.identify if options.tls else claimed,
            on_connected=admin.peers.connected,
            on_lost=admin.peers.lost,
        )

        def forget(position: Position, change: Change) -> None:
            for fact in change.facts:
                if isinstance(fact, ServerGone):
                    factory.drop(fact.name)

        admin.catalogue.ledger.listen(forget)
        self._later("connections to nodes", factory.close_all)
        wrapped = tls_only(tls.tls_factory(self._reactor, current, factory)) if options.tls else plain_only(factory)
        self._listen("the protocol port", options.protocol_port, wrapped)

    def _receive_audit(self, keeper: Keeper, current: tls.CurrentCredentials) -> None:
        options = self._options

        def peer_name(transport: Any) -> str | None:
            if not options.tls:
                return None
            try:
                return tls.identify(transport).name
            except NotAcceptable:
                # Nobody's name: its records are a stranger's.
                return ""

        receiver = AuditReceiver(keeper, clock=self._reactor, wall=time.time, random=secrets.token_bytes, peer_name=peer_name)
        wrapped = tls.tls_factory(self._reactor, current, receiver) if options.tls else plain_only(receiver)
        self._listen("the syslog port", options.syslog_port, wrapped)

    def _tell_kept(self, keeper: Keeper, peers: Peers) -> None:
        """Confirm to each node what is kept of its audit records: as it is kept, and all of it when it connects."""

        def tell(server: str, boot: str, number: int) -> None:
            if server == self._options.name:
                return
            asking = peers.ask(server, m.AuditKept(boot=boot, number=number), KEPT_S)
            asking.addErrback(lambda failure: failure.trap(PeerUnreachable, DeadlineExceeded, Refusal, CancelledError) and None)

        def connected(peer: Peer) -> None:
            for boot, number in keeper.kept(peer.identity.name).items():
                tell(peer.identity.name, boot, number)

        keeper.watch(tell)
        peers.watch(connected=connected)

    def _serve_people(self, resource: Any, https: HttpsCertificate) -> None:
        factory = http_factory(resource, self._reactor, wall=time.time)
        answer = http_answer("This port speaks HTTPS: write https:// in the address.")
        wrapped = tls_only(https_factory(self._reactor, https, factory), answer) if self._options.tls else plain_only(factory)
        self._later("answers to people", lambda: factory.shut_down(GRACE_S))
        self._listen("the HTTPS port", self._options.https_port, wrapped)

    # --- saying so ---

    def _say_ready(self, authority: Authority, token: str) -> None:
        data = self._options.data
        ca_file: str | None = None
        if self._options.tls:
            ca_file = str(data / CA)
            (data / CA).write_bytes(authority.anchors.root)
        write_json(data / OPERATOR, {"url": self._url, "token": token, "ca_file": ca_file})
        say_ready(
            data,
            name=self._options.name,
            url=self._url,
            protocol_address=self._protocol_address,
            syslog_address=self._syslog_address,
        )

        def gone() -> None:
            say_gone(data)
            (data / OPERATOR).unlink(missing_ok=True)

        self._later("the sign that it is ready", gone)
        self._log.info("admin server {name} serves at {url}", name=self._options.name, url=self._url)


def _credentials(identity: Identity, authority: Authority) -> tls.Credentials:
    return tls.Credentials(key=identity.key_pem, chain=identity.chain_pem, trust=authority.anchors.servers)


def _hosts_of(identity: Identity) -> set[str]:
    names = identity.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *(str(address) for address in names.get_values_for_type(x509.IPAddress))}


def make_service(options: AdminOptions) -> AdminService:
    """The service, on the global reactor; nothing is started."""
    from twisted.internet import reactor

    run_on_monotonic_time(reactor)
    return AdminService(reactor, options)
