"""A whole cluster: every server a machine with a disk, a process on it that may die, pause and come back, and the network between.

    machine     what outlives a process: blobs, index, audit records, the key; loses at a power cut what was not certain
    life        one process: clocks, worker, the composed node or admin server, what it listens on

The logic is the real one, `node.composition.Node` and `admin.composition.Admin` with their HTTP routes; only the world is made up. How a
returning node is admitted is the cluster's business: here one only waits until it says "running".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.admin.admin_api import AdminApi
from securifile.admin.catalogue import Catalogue
from securifile.admin.composition import Admin
from securifile.admin.composition import Self as AdminSelf
from securifile.admin.people import NewPerson
from securifile.http.channel import http_factory
from securifile.http.limits import HttpLimits
from securifile.model.errors import Code, DatabaseUnavailable, DeadlineExceeded, OutcomeUnknown, PeerUnreachable, Refusal
from securifile.model.facts import Change, Server, ServerGone
from securifile.model.ids import Position
from securifile.model.records import AuditRecord
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.node.blobs import DiskBlobs
from securifile.node.composition import Node, Self, Stores
from securifile.node.index import Index
from securifile.node.node_api import node_app
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.messages import RepairSelf
from securifile.protocol.transport import ControlAndBulkFactory
from securifile.protocol.wire import claimed
from securifile.simulation.audit import SimulatedAudit
from securifile.simulation.chance import Chance
from securifile.simulation.clock import ProcessClock, VirtualTime
from securifile.simulation.database import DatabaseServer, SimulatedDatabase
from securifile.simulation.disk import SimulatedFiles, SimulatedWorker
from securifile.simulation.network import Weather
from securifile.simulation.sentinel import SimulatedSentinel
from securifile.sql import directory
from securifile.sql.sqlite import SqliteDatabase
from securifile.workers import InlineWorker
from securifile.world import World

CLUSTER = "simulated"
HTTP_PORT = 9443
PROTOCOL_PORT = 9444
DATA = "/data"

DISK_S = 0.002
"""A disk's longest pause for one piece of work, unless it is slow."""

IMAGE_S = 2.0
"""How often an index is certain to be on its disk: SQLite's WAL without fsync at each commit."""

DATABASE_AGAIN_S = 1.0

COMMAND_S = 40.0
"""How long an operator waits for an answer."""

REPAIR_S = 60.0
"""How long a node may take to read all that it has."""


class CheapHasher:
    """Passwords hashed at no cost: they are not what a run is about."""

    def hash(self, password: str) -> str:
        """A hash."""
        return hashlib.sha256(password.encode()).hexdigest()

    def verify(self, hashed: str, password: str) -> bool:
        """True, or `VerifyMismatchError`."""
        from argon2.exceptions import VerifyMismatchError

        if hashed != self.hash(password):
            raise VerifyMismatchError
        return True

    def check_needs_rehash(self, hashed: str) -> bool:
        """Never."""
        return False


@attrs.frozen(kw_only=True)
class Parts:
    """What the cluster is made of: for tests that take a guarantee's code out and look whether a run notices."""

    node: Callable[[World, Stores, Self], Node] = Node
    admin: Callable[..., Admin] = Admin
    catalogue: Callable[..., Catalogue] = Catalogue
    blobs: Callable[..., DiskBlobs] = DiskBlobs
    obeys_fsync: bool = True


@attrs.frozen(kw_only=True)
class _Authority:
    """Of the certificate authority only its name is asked: there is no TLS in memory."""

    cluster: str


class Machine:
    """What outlives a process."""

    def __init__(self, name: str, kind: ServerKind, chance: Chance, obeys_fsync: bool) -> None:
        self.name = name
        self.kind = kind
        self.chance = chance
        self.slowness = 1.0
        """How many times longer the disk takes."""
        self.audit: list[AuditRecord] = []
        self.life: Life | None = None
        self.lives = 0
        self.sentinels: list[SimulatedSentinel] = []
        """Of the lives that are over."""
        self.paused = False
        self.dark = False
        self._key = ec.derive_private_key(int.from_bytes(chance.stream("key").random(31), "big") + 1, ec.SECP256R1())
        self._obeys_fsync = obeys_fsync
        self._disk = chance.stream("disk")
        self.make_disk()

    def make_disk(self) -> None:
        """A new, empty disk."""
        self.files = SimulatedFiles(obeys_fsync=self._obeys_fsync)
        self.files.make_directory(DATA)
        self.files.sync_directory("/")
        self.index = SqliteDatabase(None)
        self._image: bytes | None = None

    @property
    def address(self) -> HostPort:
        """Of the protocol port."""
        return HostPort(self.name, PROTOCOL_PORT)

    @property
    def identity(self) -> PeerIdentity:
        """How other servers know it."""
        return PeerIdentity(cluster=CLUSTER, kind=self.kind, name=self.name)

    @property
    def url(self) -> str:
        """Where people reach it."""
        return f"http://{self.name}:{HTTP_PORT}"

    @property
    def public_key(self) -> bytes:
        """DER."""
        return self._key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(self, data: bytes) -> bytes:
        """As RFC 6979: without chance."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    def takes_s(self) -> float:
        """How long the disk takes for the next piece of work."""
        return DISK_S * self.slowness * self._disk.between(0.05, 1.0)

    def certain(self) -> None:
        """What the index holds now survives a power cut."""
        if self.life is not None and self.life.node is not None:
            self._image = self.index.image()

    def lose_power(self) -> None:
        """What was not certain is decided."""
        self.files.crash(self._disk.below)
        if self._disk.happens(0.5):
            self.index = SqliteDatabase(None, image=self._image)

    def server(self) -> Server:
        """As the catalogue knows it."""
        return Server(
            name=self.name,
            kind=self.kind,
            url=self.url,
            protocol_address=str(self.address),
            public_key=self.public_key,
            status=Status.RUNNING if self.kind is ServerKind.ADMIN else Status.DOWN,
        )


class Life:
    """One process on a machine, from its start to its death."""

    def __init__(self, machine: Machine, time: VirtualTime) -> None:
        machine.lives += 1
        self.machine = machine
        self.number = machine.lives
        self.chance = machine.chance.stream(f"life {self.number}")
        self.clock = ProcessClock(time, self.chance.stream("clock").between(0.0, 1e6))
        self.worker = SimulatedWorker(self.clock, machine.takes_s)
        self.node: Node | None = None
        self.admin: Admin | None = None
        self.stop_listening: list[Callable[[], None]] = []

    @property
    def boot(self) -> str:
        """Names this life."""
        return f"{self.machine.name}-{self.number}"

    def world(self, network: Weather) -> World:
        """What the process is given."""
        return World(
            clock=self.clock,
            wall=self.clock.wall,
            random=self.chance.stream("random").random,
            below=self.chance.stream("below").below,
            connector=network.connector_of(self.machine.name, self.clock),
            identify=claimed,
        )


class SimulatedCluster:
    """Machines named `n1`... and `a1`..., their network, and the database.

    Args:
        seed: of everything.
        nodes: how many storage nodes.
        settings: those the cluster begins with.
        parts: what it is made of.
    """

    _log = Logger()

    def __init__(
        self, seed: int, *, nodes: int = 3, admins: int = 1, settings: ClusterSettings | None = None, parts: Parts | None = None
    ) -> None:
        self.chance = Chance(seed)
        self.time = VirtualTime()
        self.network = Weather(self.time, self.chance.stream("network"))
        self.database = DatabaseServer(self.time, self.chance.stream("database"))
        self.settings = settings or ClusterSettings()
        self.parts = parts or Parts()
        self.failures: list[Failure] = []
        """What went wrong in starting a server."""
        self._graveyard: list[Life] = []
        self.machines: dict[str, Machine] = {}
        for number in range(1, admins + 1):
            self._add(f"a{number}", ServerKind.ADMIN)
        for number in range(1, nodes + 1):
            self._add(f"n{number}", ServerKind.NODE)
        self.time.callLater(IMAGE_S, self._make_certain)

    def _add(self, name: str, kind: ServerKind) -> None:
        self.machines[name] = Machine(name, kind, self.chance.stream(f"machine {name}"), self.parts.obeys_fsync)

    # --- who is there ---

    @property
    def nodes(self) -> list[str]:
        """The storage nodes, by name."""
        return [name for name, machine in self.machines.items() if machine.kind is ServerKind.NODE]

    @property
    def admins(self) -> list[str]:
        """The admin servers, by name."""
        return [name for name, machine in self.machines.items() if machine.kind is ServerKind.ADMIN]

    def node(self, name: str) -> Node | None:
        """The node's logic, while its process lives and has started."""
        life = self.machines[name].life
        return None if life is None else life.node

    @property
    def all_run(self) -> bool:
        """Whether every node serves people."""
        return all((node := self.node(name)) is not None and node.cluster.admission.standing().serves for name in self.nodes)

    # --- time ---

    def run(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Let so much time pass, or less when it is `enough`; whether it was."""
        return self.time.run_until(self.time.now + seconds, enough)

    def wait(self, waited: Any, seconds: float = 60.0) -> Any:
        """The result of a Deferred or coroutine, while time passes."""
        results: list[Any] = []
        deferred = waited if isinstance(waited, Deferred) else Deferred.fromCoroutine(waited)
        deferred.addBoth(results.append)
        self.run(seconds, lambda: bool(results))
        if not results:
            raise TimeoutError(f"nothing came of it in {seconds} virtual seconds")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    @property
    def roster(self) -> dict[str, Server]:
        """The nodes, as the catalogue has them."""
        found = self.database.ask_now(lambda sql: directory.servers(sql, ServerKind.NODE))
        return {server.name: server for server in found}

    # --- the cluster's life ---

    def begin(self, people: tuple[str, ...] = (), patience_s: float = 30.0) -> None:
        """Make the cluster: admin servers, nodes, accounts (see `password_of`); until all nodes run."""
        for name in self.admins:
            self.start(name)
        admin = self.admins[0]
        self.run(patience_s, lambda: self._admin(admin) is not None)
        self.wait(self._enrol(people))
        for name in self.nodes:
            self.start(name)
        if not self.run(patience_s, lambda: self.all_run):
            for failure in self.failures:
                failure.raiseException()
            raise TimeoutError("the nodes do not begin to serve")

    @property
    def takes_changes(self) -> bool:
        """Whether every admin server has started, and knows how far the nodes are."""
        admins = [self._admin(name) for name in self.admins]
        return all(admin is not None and admin.watch.waits_for_nodes() is None for admin in admins)

    def _admin(self, name: str) -> Admin | None:
        life = self.machines[name].life
        return None if life is None else life.admin

    def lose_disk(self, name: str) -> None:
        """All that was on the disk of a machine without power is gone; but for its key it comes back empty."""
        machine = self.machines[name]
        assert machine.life is None, f"{name} has a process"
        machine.make_disk()

    async def command(self, work: Callable[[Admin], Coroutine[Any, Any, Any]], patience_s: float = COMMAND_S) -> bool:
        """What an operator asks of any admin server, again and again until one of them says yes or no; whether it was yes."""
        while True:
            for name in self.admins:
                admin = self._admin(name)
                if admin is None or self.machines[name].paused:
                    continue
                life = self.machines[name].life
                # Of a process that dies nobody hears any more.
                asking: Deferred[Any] = Deferred.fromCoroutine(work(admin)).addTimeout(patience_s, self.time)
                try:
                    await asking
                    return True
                except Refusal as error:
                    if error.code is not Code.CATALOGUE_UNAVAILABLE and self.machines[name].life is life:
                        return False
                except (OutcomeUnknown, PeerUnreachable, DeadlineExceeded, DeferredTimeoutError):
                    pass
            await deferLater(self.time, DATABASE_AGAIN_S)

    async def change_settings(self, **changed: Any) -> bool:
        """Change the cluster's settings; False when they are refused."""

        async def change(admin: Admin) -> None:
            settings = attrs.evolve(admin.catalogue.roster.settings, **changed)
            await admin.backend.enter(admin.catalogue.members.set_settings(settings))

        return await self.command(change)

    async def drain(self, name: str, draining: bool) -> bool:
        """Have a node's copies made elsewhere, or no longer; False when it is refused."""
        return await self.command(lambda admin: admin.backend.enter(admin.catalogue.members.drain(name, draining)))

    async def set_offline(self, name: str, offline: bool) -> bool:
        """Take a node offline, or back; False when it is refused."""
        return await self.command(lambda admin: admin.backend.enter(admin.catalogue.members.set_offline(name, offline)))

    async def operate(self, name: str) -> None:
        """What an operator does about a node that failed: offline, repair, online. Whoever waits for this has a limit."""

        async def repair(admin: Admin) -> None:
            await admin.peers.ask(name, RepairSelf(), REPAIR_S)

        await self.set_offline(name, True)
        await self.command(repair, REPAIR_S)
        await self.set_offline(name, False)

    async def _enrol(self, people: tuple[str, ...]) -> None:
        admin = self._admin(self.admins[0])
        assert admin is not None, "the admin server has started"
        catalogue = admin.catalogue
        for name in self.nodes:
            secret, _ = await catalogue.members.invite(name)
            await catalogue.members.enrol(secret, self.machines[name].server())
        for name in people:
            await catalogue.people.add(NewPerson(username=name, email=f"{name}@example.org", password=password_of(name)))

    def start(self, name: str) -> None:
        """Start the server's process, on a machine with power."""
        machine = self.machines[name]
        assert machine.life is None, f"{name} has a process"
        if machine.dark:
            machine.dark = False
            self.network.light(name)
        machine.life = life = Life(machine, self.time)
        starting = Deferred.fromCoroutine(self._start_node(life) if machine.kind is ServerKind.NODE else self._start_admin(life))
        starting.addErrback(self._not_started, life)

    def _not_started(self, failure: Failure, life: Life) -> None:
        if not failure.check(CancelledError):
            self.failures.append(failure)

    def crash(self, name: str) -> None:
        """Kill the process; the machine goes on."""
        self._die(name)
        self.machines[name].files.restart()
        self.network.crash(name)

    def tell_end(self, name: str, after_s: float) -> None:
        """Have the other servers told that the present life of a node is over, so long from now: by its sentinel, after it has crashed."""
        machine = self.machines[name]
        assert machine.life is not None, f"{name} has no process"
        clock = ProcessClock(self.time)
        sentinel = SimulatedSentinel(clock, self.network.connector_of(name, clock), machine.identity, machine.life.boot)
        machine.sentinels.append(sentinel)
        sentinel.tell([(other.address, other.identity) for other in self.machines.values() if other is not machine], after_s)

    def cut_power(self, name: str) -> None:
        """The machine loses its power; what was not certain is lost."""
        self._die(name)
        machine = self.machines[name]
        machine.dark = True
        for sentinel in machine.sentinels:
            sentinel.clock.die()
        self.network.go_dark(name)
        machine.lose_power()

    def _die(self, name: str) -> None:
        machine = self.machines[name]
        life = machine.life
        assert life is not None, f"{name} has no process"
        life.clock.die()
        life.worker.die_working(machine.files, life.chance.stream("death").below)
        for stop in life.stop_listening:
            stop()
        if machine.paused:
            machine.paused = False
            self.network.wake(name)
        machine.life = None
        self._graveyard.append(life)

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        machine = self.machines[name]
        assert machine.life is not None and not machine.paused
        machine.paused = True
        machine.life.clock.pause()
        self.network.sleep(name)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        machine = self.machines[name]
        assert machine.life is not None and machine.paused
        machine.paused = False
        machine.life.clock.resume()
        self.network.wake(name)

    def bury(self) -> None:
        """The run is over: forget the dead.

        Until now all that they were waiting for was kept. Else Python would end their coroutines whenever it collects garbage, and
        what stands in their `finally` would run: in a process that does not exist any more, and at another moment in each run.
        """
        self._graveyard.clear()
        for machine in self.machines.values():
            machine.sentinels.clear()
        self.network.buried.clear()

    def set_wall(self, name: str, ahead_s: float) -> None:
        """Set the wall clock of a server's process."""
        life = self.machines[name].life
        if life is not None:
            life.clock.wall_ahead_s = ahead_s

    def _make_certain(self) -> None:
        for machine in self.machines.values():
            if not machine.dark:
                machine.certain()
        self.time.callLater(IMAGE_S, self._make_certain)

    # --- putting together: what the services do, with this world ---

    def _listen(self, life: Life, port: int, factory: Any) -> None:
        life.stop_listening.append(self.network.listen(HostPort(life.machine.name, port), factory))

    async def _start_node(self, life: Life) -> None:
        machine, clock = life.machine, life.clock
        blobs = self.parts.blobs(
            directory=DATA,
            worker=life.worker,
            clock=clock,
            files=machine.files,
            reserve_bytes=0,
            soon=lambda begin: clock.callLater(0, begin),
        )
        await blobs.recover()
        index = Index(machine.index, clock.wall)
        await index.open()
        stores = _of(
            Stores,
            blobs=blobs,
            index=index,
            audit=SimulatedAudit(clock, machine.takes_s, machine.audit),
            audit_kept=lambda boot, number: None,
        )
        me = _of(
            Self,
            cluster=CLUSTER,
            name=machine.name,
            boot=life.boot,
            url=machine.url,
            protocol_address=machine.address,
            sign=machine.sign,
            admins=tuple(self.machines[name].server() for name in self.admins),
        )
        node = self.parts.node(life.world(self.network), stores, me)
        factory = ControlAndBulkFactory(
            clock=clock,
            here=me.identity,
            is_member=node.cluster.is_member,
            handlers=node.handlers,
            notices=node.notices,
            bulk=node.bulk,
            identify=claimed,
        )
        index.listen(lambda fact: factory.drop(fact.name) if isinstance(fact, ServerGone) else None)
        self._listen(life, PROTOCOL_PORT, factory)
        await node.start()
        life.node = node
        app = node_app(node, clock=clock, index=index, tls=False)
        self._listen(life, HTTP_PORT, http_factory(app, clock, HttpLimits(), wall=clock.wall))

    async def _start_admin(self, life: Life) -> None:
        machine, clock = life.machine, life.clock
        catalogue = self.parts.catalogue(
            SimulatedDatabase(self.database, clock),
            wall=clock.wall,
            random=life.chance.stream("catalogue").random,
            worker=InlineWorker(),
            hasher=CheapHasher(),
        )
        while True:
            try:
                await catalogue.open(cluster=CLUSTER, settings=self.settings, system_identifier=self.database.identifier)
                await catalogue.members.put_admin(machine.server())
                break
            except (DatabaseUnavailable, OutcomeUnknown):
                await deferLater(clock, DATABASE_AGAIN_S)
        admin = self.parts.admin(
            life.world(self.network),
            AdminSelf(name=machine.name, sign=machine.sign, operator_token="", tls=False),
            catalogue,
            _Authority(cluster=CLUSTER),
            SimulatedAudit(clock, machine.takes_s, machine.audit),
        )
        factory = ControlAndBulkFactory(
            clock=clock,
            here=admin.identity,
            is_member=admin.is_member,
            handlers=admin.handlers,
            notices=admin.notices,
            identify=claimed,
            on_connected=admin.peers.connected,
            on_lost=admin.peers.lost,
        )

        def forget(position: Position, change: Change) -> None:
            for fact in change.facts:
                if isinstance(fact, ServerGone):
                    factory.drop(fact.name)

        catalogue.ledger.listen(forget)
        self._listen(life, PROTOCOL_PORT, factory)
        self._listen(life, HTTP_PORT, http_factory(AdminApi(admin).resource(), clock, HttpLimits(), wall=clock.wall))
        admin.start()
        life.admin = admin


def password_of(name: str) -> str:
    """The password of a simulated person."""
    return f"{name} is {name} is {name}"


def _of(kind: Any, **values: Any) -> Any:
    """A value of that class, from those of these that it has."""
    return kind(**{name: value for name, value in values.items() if name in attrs.fields_dict(kind)})
