"""A whole admin server in memory, asked over HTTP on memory transports; its nodes are answers that a test lays down."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.admin.admin_api import AdminApi
from securifile.admin.composition import Admin, Self
from securifile.audit.memory import MemoryAudit
from securifile.model.entries import Copy
from securifile.model.errors import PeerUnreachable
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.sql.sqlite import SqliteDatabase
from securifile.world import World as Surroundings
from tests.admin.catalogues import NODES, PASSWORD, World
from tests.http.connections import Answer, Connection, Server

OPERATOR = "operators-key"


class AnsweringNode:
    """A node's control connection: answers what it is told to."""

    def __init__(self, name: str, admin: Admin) -> None:
        self.identity = PeerIdentity(cluster="test", kind=ServerKind.NODE, name=name)
        self.features: frozenset[str] = frozenset()
        self.boot = ""
        self.lease = m.LeaseAnswer(granted=True)
        self.repaired: m.Repaired | Exception | Deferred[m.Repaired] = PeerUnreachable("it hung up")
        self.asked: list[Any] = []
        self._admin = admin

    def ask(self, message: Any, timeout_s: float) -> Deferred[Any]:
        """See `Peer`."""
        self.asked.append(message)
        if isinstance(message, m.LeaseLook):
            return succeed(self.lease)
        if isinstance(message, m.RepairSelf):
            if isinstance(self.repaired, Exception):
                return fail(self.repaired)
            return self.repaired if isinstance(self.repaired, Deferred) else succeed(self.repaired)
        if isinstance(message, m.Heartbeat):
            return succeed(m.HeartbeatAnswer(position=message.position, held_for=Status.RUNNING))
        return succeed(m.Done())

    async def beat(self, **judgements: Status) -> None:
        """Send the admin server a heartbeat."""
        peer: Any = self
        position = self._admin.catalogue.ledger.position
        await self._admin.watch.heartbeat(
            peer, m.Heartbeat(position=position, used_bytes=5, available_bytes=1000, boot=self.boot, judgements=judgements)
        )


class AskedByHttp:
    """Three running nodes, r = 1, alice with files and bob; the operator."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.world = World(SqliteDatabase(None))
        self.audit = MemoryAudit()
        self.nodes: dict[str, AnsweringNode] = {}
        self.admin: Admin
        self.server: Server

    async def open(self, beating: tuple[str, ...] = NODES) -> None:
        """Start it; these nodes have told how far they are."""
        await self.world.open(ClusterSettings(replicas=1, write_copies=1))
        unused: Any = None
        surroundings = Surroundings(
            clock=self.clock,
            wall=lambda: self.world.now,
            random=self.world.random.randbytes,
            below=Random(1).randrange,
            connector=unused,
            identify=unused,
        )
        authority: Any = PeerIdentity(cluster="test", kind=ServerKind.ADMIN, name="admin1")
        me = Self(name="admin1", sign=lambda data: b"signed", operator_token=OPERATOR, tls=True)
        self.admin = Admin(surroundings, me, self.world.catalogue, authority, self.audit)
        self.admin.watch.heartbeats.start()
        for name in self.world.catalogue.roster.nodes:
            node: Any = AnsweringNode(name, self.admin)
            self.nodes[name] = node
            self.admin.peers.connected(node)
        for name in beating:
            await self.nodes[name].beat()
        self.clock.advance(0.6)
        self.server = Server(resource=AdminApi(self.admin).resource())

    async def close(self) -> None:
        """Stop it."""
        await self.admin.stop()

    def vanish(self, name: str) -> None:
        """A node's connection is gone, and three heartbeats are not answered."""
        node: Any = self.nodes[name]
        self.admin.peers.lost(node)
        self.clock.pump([0.5] * 5)

    async def put(self, path: str, copies: str) -> None:
        """A file with copies on these nodes: `n1 n2?`, the second one pending."""
        listed = tuple(
            Copy(node=text.removesuffix("?"), priority=priority, durable=not text.endswith("?"))
            for priority, text in enumerate(copies.split())
        )
        await self.world.catalogue.files.commit(await self.world.upload(path, copies=listed), listed[0].node)

    def begin(self, line: str, by: str | None = None) -> Connection:
        """Begin to ask, as a person or as the operator."""
        basic = base64.b64encode(f"{by}:{PASSWORD}".encode()).decode()
        authorization = f"Basic {basic}" if by else f"Bearer {OPERATOR}"
        return self.server.connect().request(line, f"Authorization: {authorization}")

    def ask(self, line: str, by: str | None = None) -> Answer:
        """Ask and have the answer."""
        connection = self.begin(line, by)
        for _ in range(10):
            # Who was put out, and cannot be told, is waited for until it has fallen silent by itself.
            if not connection.raw:
                self.clock.advance(0.5)
        return connection.answer()

    def told(self, line: str, by: str | None = None) -> Any:
        """The JSON of an answer that must be good."""
        answer = self.ask(line, by)
        assert answer.status == 200, answer
        return json.loads(answer.content)
