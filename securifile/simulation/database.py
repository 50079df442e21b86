"""The catalogue's database as a server of its own: SQLite for the engine, and what PostgreSQL and the way to it do to a client.

It outlives admin servers. It may be away; a question takes time; and the answer to a COMMIT may be lost, after it was done or
before. It notes when each revision was committed: against that the run is judged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown
from securifile.model.facts import Change
from securifile.model.ids import Position
from securifile.model.interfaces import IDatabase
from securifile.protocol.codec import decode_value
from securifile.simulation.chance import Chance
from securifile.sql.sqlite import SqliteDatabase, run_now

T = TypeVar("T")

TRIP_S = 0.001
"""To the database and back, without a commit."""


class _Undone(Exception):
    """Rolls a transaction back whose client will not hear of it."""


class DatabaseServer:
    """The one database of a run."""

    def __init__(self, time: IReactorTime, chance: Chance) -> None:
        self.engine = SqliteDatabase(None)
        self.available = True
        self.identifier = "simulated"
        """Names this life of the database: see `Ledger.open`."""
        self.lost_answers = 0.0
        """Probability that the answer to a COMMIT is lost."""
        self.committed: list[tuple[float, Position]] = []
        """When each revision was committed, in order."""
        self.watcher: Callable[[Change], None] = lambda change: None
        """Called with each change at the instant of its commit."""
        self._time = time
        self._chance = chance

    @property
    def reconciled(self) -> bool:
        """Whether the catalogue has taken back from the nodes what it had lost."""
        return bool(self.engine.sql.query_now("SELECT reconciled FROM cluster")[0][0])

    def image(self) -> bytes:
        """A backup: all that is committed."""
        return self.engine.image()

    def restore(self, image: bytes, identifier: str) -> None:
        """Go back to a backup, while no admin server is connected.

        Args:
            identifier: a promoted standby has another one than before; a restored backup need not.
        """
        self.engine = SqliteDatabase(None, image=image)
        self.identifier = identifier
        ((epoch, revision),) = self.engine.sql.query_now("SELECT epoch, revision FROM cluster")
        self.committed = [(self._time.seconds(), Position(epoch, revision))]

    def trip_s(self) -> float:
        """How long half a question takes."""
        return TRIP_S * self._chance.between(0.25, 1.0)

    def loses_answer(self) -> bool:
        """Whether the next COMMIT goes unanswered."""
        return self._chance.happens(self.lost_answers)

    def is_done_anyway(self) -> bool:
        """Whether it was done nevertheless."""
        return self._chance.happens(0.5)

    def note(self) -> None:
        """Look whether there is a new revision."""
        rows = self.engine.sql.query_now("SELECT epoch, revision FROM cluster") if self._has_tables() else []
        if rows:
            position = Position(*rows[0])
            before = self.committed[-1][1] if self.committed else Position(0, 0)
            if position != before:
                # One transaction may make several changes.
                for at, change in self._changes_after(before):
                    self.committed.append((self._time.seconds(), at))
                    self.watcher(change)
                if not self.committed or self.committed[-1][1] != position:
                    self.committed.append((self._time.seconds(), position))

    def changes(self) -> list[tuple[Position, Change]]:
        """Every change there is, in order."""
        return self._changes_after(Position(0, -1))

    def _changes_after(self, position: Position) -> list[tuple[Position, Change]]:
        rows = self.engine.sql.query_now(
            "SELECT epoch, revision, body FROM changes WHERE epoch > :epoch OR (epoch = :epoch AND revision > :revision)"
            " ORDER BY epoch, revision",
            {"epoch": position.epoch, "revision": position.revision},
        )
        return [(Position(row[0], row[1]), decode_value(Change, bytes(row[2]))) for row in rows]

    def ask_now(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """The answer, without time passing: for the judges of a run."""
        return run_now(question(self.engine.sql))

    def _has_tables(self) -> bool:
        return bool(self.engine.sql.query_now("SELECT 1 FROM sqlite_master WHERE name = 'cluster'"))


@implementer(IDatabase)
class SimulatedDatabase:
    """One admin server's connections to it."""

    def __init__(self, server: DatabaseServer, clock: IReactorTime) -> None:
        self.dialect = server.engine.dialect
        self._server = server
        self._clock = clock

    def transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """See `IDatabase`."""
        return Deferred.fromCoroutine(self._transact(name, work))

    def read(self, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """See `IDatabase`."""
        return Deferred.fromCoroutine(self._read(work))

    async def _transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> T:
        server = self._server
        await self._trip()
        if not server.loses_answer():
            result = await server.engine.transact(name, work)
        elif server.is_done_anyway():
            await server.engine.transact(name, work)
            server.note()
            await self._lose(name)
        else:

            async def undo(sql: Any) -> None:
                await work(sql)
                raise _Undone

            try:
                await server.engine.transact(name, undo)
            except _Undone:
                await self._lose(name)
        server.note()
        # The answer is on its way; the client may die before it comes.
        await deferLater(self._clock, server.trip_s())
        return result

    async def _lose(self, name: str) -> None:
        await deferLater(self._clock, self._server.trip_s())
        raise OutcomeUnknown(f"the connection was lost during COMMIT of {name}")

    async def _read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        await self._trip()
        result = await self._server.engine.read(work)
        await deferLater(self._clock, self._server.trip_s())
        return result

    async def _trip(self) -> None:
        await deferLater(self._clock, self._server.trip_s())
        if not self._server.available:
            raise DatabaseUnavailable("the database does not answer")
