"""A front, put together: one of the processes that take people's connections for a node.

It is started by the node process, from which it has three descriptors, and it lives no longer than that. What the operator, systemd or a
terminal has to say to a node is said to the node process; a front listens to nobody else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger, globalLogBeginner
from twisted.protocols import amp
from twisted.python.failure import Failure

from securifile.audit.console import readable_observer
from securifile.certificates.identity import Identity, TrustAnchors
from securifile.http.authentication import Authenticator
from securifile.http.delivery import Delivery
from securifile.http.downloads import Downloads
from securifile.http.https import HttpsCertificate, https_factory
from securifile.http.identity import BasicCache
from securifile.http.limits import HttpLimits
from securifile.http.lookup import Lookup
from securifile.http.sources import Sources
from securifile.memory import forget_start, give_back_at_rest, keep_large_apart
from securifile.model.errors import PeerUnreachable
from securifile.model.servers import HostPort, ServerKind
from securifile.node.blobs import DiskBlobs
from securifile.node.enrolment import Membership
from securifile.node.fronts import control as c
from securifile.node.fronts.answering import Answering, FrontBackend, FrontTransfers, PassingRedirector
from securifile.node.fronts.gate import GateHttpFactory, Gates
from securifile.node.fronts.handover import Taking, hand, pair
from securifile.node.fronts.hanging import HANGS_S, Hanging
from securifile.node.fronts.options import CONTROL, HANDOVER, SCOREBOARD, FrontOptions
from securifile.node.fronts.recording import FrontAudit
from securifile.node.fronts.scoreboard import Scoreboard
from securifile.node.fronts.tunnel import FrontEnd, OneFrontEnd, address_note
from securifile.node.worker import ThreadWorker
from securifile.process import run_on_monotonic_time, settle
from securifile.protocol import messages as m
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.sniff import http_answer, plain_only, tls_only
from securifile.protocol.tls import Credentials, CurrentCredentials, identify, tls_connector
from securifile.protocol.transport import tcp_connector
from securifile.protocol.wire import claimed
from securifile.sql.sqlite import SqliteReader

WORKERS = 4
"""Threads for the disk."""

HTTPS_ONLY = http_answer("This port speaks HTTPS only. Write https:// instead of http://.")

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the system end this process with its parent, however that ends; end it now if the parent has gone already."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class Front:
    """The front of this process."""

    _log = Logger()

    def __init__(self, reactor: Any, options: FrontOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._identity = Identity.load(str(options.data))
        self._certificate = HttpsCertificate.of(self._identity)
        self._credentials = CurrentCredentials(self._loaded())
        self._board = Scoreboard(SCOREBOARD, options.fronts)
        os.close(SCOREBOARD)
        self._score = self._board.fronts[options.number]
        self._control: Any = _Control(self)
        self._audit = FrontAudit(reactor, self._board, lambda records: self._control.callRemote(c.Records, records=records))
        worker = self._worker = ThreadWorker(reactor, WORKERS, "front")
        reactor.addSystemEventTrigger("during", "shutdown", worker.stop)
        membership = Membership.load(options.data)
        self._blobs = DiskBlobs(directory=str(options.data), worker=worker, clock=reactor)
        self._backend = FrontBackend(
            clock=reactor,
            name=membership.name,
            cluster=membership.cluster,
            board=self._board,
            index=SqliteReader(options.data / "index.sqlite"),
            audit=self._audit,
            look_password=self._look_password,
            forget_open_files=self._blobs.close_small,
        )
        self._gates = self._make_gates(PeerIdentity(cluster=membership.cluster, kind=ServerKind.NODE, name=membership.name))
        self._handover = socket.socket(fileno=HANDOVER)

    def start(self) -> None:
        """Take connections."""
        options = self._options
        gates: Any = self._gates
        tls = https_factory(self._reactor, self._certificate, gates)
        listening = tls_only(tls, HTTPS_ONLY) if options.tls else plain_only(gates)

        def take(descriptor: int, note: str) -> None:
            with socket.socket(fileno=os.dup(descriptor)) as taken:
                family = taken.family
            self._reactor.adoptStreamConnection(descriptor, family, listening)

        self._transfers.start()
        self._hanging.start()
        Taking(self._reactor, self._handover, take, missed=self._score.count_missed)
        control = socket.socket(fileno=CONTROL)
        control.setblocking(False)
        self._reactor.adoptStreamConnection(control.fileno(), socket.AF_UNIX, _One(self._control))
        control.close()
        settle()
        give_back_at_rest(self._reactor, time.process_time, self._worker.rest)
        self._control.callRemote(c.Ready)

    def renewed(self) -> None:
        """Show the new certificate from now on."""
        self._identity = Identity.load(str(self._options.data))
        self._certificate.replace(self._identity)
        self._credentials.replace(self._loaded())

    def available(self, names: list[str]) -> None:
        """These nodes can be asked for files."""
        self._backend.available = frozenset(names)

    async def drain(self, grace_s: float) -> None:
        """Let answers come to their end, and see that their records are taken."""
        await self._gates.shut_down(grace_s)
        await self._audit.flush()

    def stop(self) -> None:
        """The node process has gone, or wants no more of this."""
        self._reactor.stop()

    # --- parts ---

    def _loaded(self) -> Credentials:
        return Credentials.of(self._identity, TrustAnchors.load(str(self._options.data)))

    def _make_gates(self, here: PeerIdentity) -> Gates:
        clock, backend, tls = self._reactor, self._backend, self._options.tls
        authenticator = Authenticator(backend, BasicCache(clock, os.urandom))
        self._transfers = FrontTransfers(
            clock=clock,
            interval_s=lambda: backend.roster.settings.heartbeat_interval_s,
            serves=lambda: None if clock.seconds() < self._board.goes_on_until else "this node may not serve now",
            changes=lambda: self._board.changes,
        )
        pool = BulkPool(
            clock=clock,
            connector=tls_connector(clock, self._credentials) if tls else tcp_connector(clock),
            here=here,
            locate=self._locate,
            identify=identify if tls else claimed,
        )
        downloads = Downloads(
            backend=backend,
            lookup=Lookup(backend),
            sources=Sources(clock=clock, name=here.name, blobs=self._blobs, pool=pool, rotten=self._rotten),
            delivery=Delivery(backend=backend, authenticator=authenticator, transfers=self._transfers),
            redirector=PassingRedirector(here.name, backend),
        )
        resource = Answering(clock=clock, backend=backend, authenticator=authenticator, downloads=downloads, score=self._score)
        limits = HttpLimits(connections_max=self._options.connections_max)
        self._hanging = Hanging(clock, self._board, name=here.name, others=self._others, give_up=lambda: self._gates.give_up())
        return Gates(
            clock=clock,
            http=GateHttpFactory.of(resource, clock, limits, time.time),
            open_tunnel=self._open_tunnel,
            passed_on=self._score.count_passed_on,
            ended=self._score.count_ended,
            refusal=self._hanging.refusal,
        )

    def _others(self) -> list[str]:
        backend = self._backend
        return [backend.roster.servers[name].url for name in sorted(backend.available - {backend.name}) if name in backend.roster.servers]

    def _open_tunnel(self, end: FrontEnd, client: IAddress) -> bool:
        try:
            ours, theirs = pair()
        except OSError as error:
            self._log.error("a request cannot be passed on: {error}", error=str(error))
            return False
        try:
            if not hand(self._handover, theirs.fileno(), address_note(client)):
                return False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, OneFrontEnd(end))
            return True
        finally:
            ours.close()
            theirs.close()

    def _locate(self, name: str) -> tuple[HostPort, PeerIdentity]:
        roster = self._backend.roster
        server = roster.servers.get(name)
        if server is None or roster.cluster is None:
            raise PeerUnreachable(f"{name} is not a member of this cluster")
        return HostPort.parse(server.protocol_address), PeerIdentity(cluster=roster.cluster, kind=server.kind, name=server.name)

    def _rotten(self, version: Any, reason: str) -> None:
        self._control.callRemote(c.Suspect, attempt=version.attempt.value, reason=reason)

    async def _look_password(self, asked: m.CheckPassword) -> m.PasswordChecked | None:
        asking: Deferred[Any] = self._control.callRemote(c.KnownPassword, username=asked.username, password=asked.password)
        try:
            known = await asking.addTimeout(HANGS_S, self._reactor)
        except TimeoutError:
            return None
        return m.PasswordChecked(username=known["username"], credentials=known["credentials"]) if known["known"] else None


class _Control(amp.AMP):
    """The front's end of the control connection."""

    def __init__(self, front: Front) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._front = front

    @c.Ping.responder
    def ping(self) -> dict[str, Any]:
        return {}

    @c.Renewed.responder
    def renewed(self) -> dict[str, Any]:
        self._front.renewed()
        return {}

    @c.Available.responder
    def available(self, names: list[str]) -> dict[str, Any]:
        self._front.available(names)
        return {}

    @c.Drain.responder
    def drain(self, grace_s: float) -> Any:
        return Deferred.fromCoroutine(self._front.drain(grace_s)).addCallback(lambda _: {})

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self._front.stop()


class _One(Factory):
    """A factory for one protocol."""

    noisy = False

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._protocol


def run(arguments: list[str]) -> None:
    """Be a front until the node process ends."""
    options = FrontOptions.of(arguments)
    # Ctrl-C in a terminal and systemd's stop reach every process: it is the node process that ends this one, in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with(options.parent)
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    globalLogBeginner.beginLoggingTo([readable_observer(sys.stdout)])
    keep_large_apart()
    forget_start()
    run_on_monotonic_time(reactor)
    front = Front(reactor, options)
    front.start()
    reactor.run(installSignalHandlers=False)
