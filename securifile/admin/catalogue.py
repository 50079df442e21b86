"""The catalogue: people, files, servers and their history over one database.

`open` brings the database up to date, finds the epoch, and keeps a roster of servers and settings at hand. On SQLite
(`memory_catalogue`) it is the verified fake: the same suite runs on both engines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import argon2
import attrs
from twisted.internet.defer import Deferred

from securifile.admin.checks import Checks
from securifile.admin.files import Files
from securifile.admin.ledger import CatalogueGone, Entered, Ledger, WhenEmpty
from securifile.admin.members import Members
from securifile.admin.migrations import Migration, migrate
from securifile.admin.observations import Observations
from securifile.admin.people import People
from securifile.admin.schema import FIRST, SECOND
from securifile.audit.keeping import ReceivedRecord
from securifile.model.facts import Change, Server, Settings
from securifile.model.ids import Position
from securifile.model.records import AuditRecord
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind
from securifile.model.settings import ClusterSettings
from securifile.sql import directory
from securifile.sql.dialects import POSTGRESQL, insert_rows
from securifile.sql.sqlite import SqliteDatabase
from securifile.sql.tables import spelled
from securifile.workers import InlineWorker

T = TypeVar("T")

AUDIT_GROUP = 100
"""Audit records written with one statement: fewer round trips, and a statement of moderate length."""

AUDIT_ABOUT = 50
"""Records that explain a server's status: a verification by a dozen nodes, some bad copies."""

AUDIT_LATE_S = 60.0
"""An access is written down when it is answered: after the change that it made, and by another clock."""

_SQLITE_TABLES = "SELECT name FROM sqlite_master WHERE name = 'cluster'"

_AUDIT_COLUMNS = ("boot", "number", *(one.name for one in attrs.fields(AuditRecord)))


def migrations(dialect: str) -> tuple[Migration, ...]:
    """All steps from an empty database to what this release wants."""
    return (Migration(1, "release 0.1", spelled(FIRST, dialect)), Migration(2, "catalogue loss", spelled(SECOND, dialect)))


class Catalogue:
    """Everything the admin servers know.

    Attributes:
        ledger: the order of all changes.
        files, people, members: what can be changed.
        checks: how sound the copies are.
        worker: for what would keep others waiting.
        roster: servers and settings as of the last change.
    """

    def __init__(
        self,
        database: Any,
        *,
        wall: Callable[[], float],
        random: Callable[[int], bytes],
        worker: Any,
        hasher: argon2.PasswordHasher,
    ) -> None:
        """Args:
        database: an `IDatabase` with a `dialect`.
        wall: seconds since 1970.
        random: so many random bytes.
        worker: an `IWorker`, for hashing passwords.
        """
        self._wall = wall
        self.worker = worker
        self.database = database
        self.ledger = Ledger(database, random)
        self.ledger.has_company = lambda: len(self.roster.of_kind(ServerKind.ADMIN)) > 1
        self.ledger.on_renewal(self._renew)
        self.files = Files(self.ledger, wall)
        self.people = People(self.ledger, wall=wall, random=random, worker=worker, hasher=hasher)
        self.checks = Checks(database, wall)
        self.members = Members(self.ledger, wall=wall, random=random)
        self.observations = Observations(database, wall=wall)
        self.roster = Roster()
        self.ledger.listen(self._learn)

    def open(
        self, *, cluster: str, settings: ClusterSettings, system_identifier: str, when_empty: WhenEmpty = WhenEmpty.BEGIN
    ) -> Deferred[Position]:
        """Migrate, find the epoch, and begin a cluster where there is none; to be called first.

        Args:
            cluster: the id of the cluster, if it is to be begun.
            settings: those it begins with.
            system_identifier: see `Ledger.open`.

        Raises:
            CatalogueGone: there is none, and none is to be made; the database was not touched.
            DatabaseTooNew, DatabaseUnavailable.
        """
        return Deferred.fromCoroutine(self._open(cluster, settings, system_identifier, when_empty))

    async def _open(self, cluster: str, settings: ClusterSettings, system_identifier: str, when_empty: WhenEmpty) -> Position:
        if when_empty is WhenEmpty.REFUSE and not await self.database.read(self._is_there):
            raise CatalogueGone("there is no catalogue in the database")
        await migrate(self.database, migrations(self.database.dialect), self._wall())
        await self.ledger.open(system_identifier, when_empty)
        begun: Entered[Settings] = await self.members.begin(cluster, settings)
        self.roster.replace(await self.database.read(directory.servers), begun.answer)
        return self.ledger.position

    async def _is_there(self, sql: Any) -> bool:
        """Whether a catalogue was begun in the database."""
        tables = "SELECT to_regclass('cluster')" if self.database.dialect == POSTGRESQL else _SQLITE_TABLES
        rows = await sql.query(tables)
        return bool(rows and rows[0][0] and await sql.query("SELECT 1 FROM cluster"))

    async def _renew(self) -> None:
        async def ask(sql: Any) -> tuple[list[Server], Settings | None]:
            return await directory.servers(sql), await directory.settings(sql)

        servers, settings = await self.database.read(ask)
        self.roster.replace(servers, settings)

    def _learn(self, position: Position, change: Change) -> None:
        for fact in change.facts:
            self.roster.learn(fact)

    def read(self, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """Ask questions on one consistent snapshot."""
        found: Deferred[T] = self.database.read(work)
        return found

    # --- audit records ---

    async def store_audit(self, received: Sequence[ReceivedRecord]) -> None:
        """Keep audit records; those that are kept already are passed over."""

        async def write(sql: Any) -> None:
            for start in range(0, len(received), AUDIT_GROUP):
                rows = [(one.boot, one.number, *attrs.astuple(one.record, recurse=False)) for one in received[start : start + AUDIT_GROUP]]
                sql.later(*insert_rows("audit", _AUDIT_COLUMNS, rows, " ON CONFLICT (server, boot, number) DO NOTHING"))

        await self.database.transact("store audit records", write)

    async def last_audit(self, server: str, boot: str) -> int:
        """The highest number kept of a server's boot; 0 when there is none."""

        async def ask(sql: Any) -> int:
            named = {"server": server, "boot": boot}
            rows = await sql.query("SELECT max(number) FROM audit WHERE server = :server AND boot = :boot", named)
            return int(rows[0][0] or 0)

        found: int = await self.database.read(ask)
        return found

    async def audit_about(self, server: str, changed_at: float) -> list[AuditRecord]:
        """The last records about a server's status and verification, and what people did to it when its status changed, by time."""

        async def ask(sql: Any) -> list[AuditRecord]:
            names = [one.name for one in attrs.fields(AuditRecord)]
            columns = ", ".join(names)
            rows = await sql.query(
                f"SELECT {columns} FROM audit WHERE peer = :name AND event IN ('status', 'verification', 'verdict', 'bad-copy')"
                " ORDER BY at DESC, number DESC LIMIT :limit",
                {"name": server, "limit": AUDIT_ABOUT},
            )
            done = await sql.query(
                f"SELECT {columns} FROM audit WHERE at > :since AND at < :until AND event IN ('offline', 'online')"
                " AND (detail = :name OR detail LIKE :more)",
                {"since": changed_at - AUDIT_LATE_S, "until": changed_at + AUDIT_LATE_S, "name": server, "more": f"{server}:%"},
            )
            return [AuditRecord(**dict(zip(names, row, strict=True))) for row in (*reversed(rows), *done)]

        found: list[AuditRecord] = await self.database.read(ask)
        return sorted(found, key=lambda record: record.at)


async def memory_catalogue(
    *,
    wall: Callable[[], float],
    random: Callable[[int], bytes],
    cluster: str = "test",
    settings: ClusterSettings | None = None,
) -> Catalogue:
    """A catalogue in memory, open: the fake for tests and the simulation. Its passwords are hashed as cheaply as can be."""
    hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    catalogue = Catalogue(SqliteDatabase(None), wall=wall, random=random, worker=InlineWorker(), hasher=hasher)
    await catalogue.open(cluster=cluster, settings=settings or ClusterSettings(), system_identifier="memory")
    return catalogue
