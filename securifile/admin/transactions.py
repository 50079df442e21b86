"""One connection to PostgreSQL, and one transaction on it: the only module that imports txpostgres.

Trips to the server are what a transaction costs. BEGIN travels in front of the first question, what is written `later` in front of the
next question or of COMMIT, a transaction that asked nothing makes no trip, the settings of a session travel with its start, and whoever
read or failed does not wait for the end of its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import psycopg2
from psycopg2.extensions import new_type, register_type
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure
from txpostgres import txpostgres
from zope.interface import implementer

from securifile.admin.connection_strings import Limits
from securifile.model.errors import ConstraintViolated, DatabaseUnavailable, OutcomeUnknown, StatementFailed
from securifile.model.interfaces import ISql, Row
from securifile.sql.dialects import for_psycopg, parameters_for_psycopg

T = TypeVar("T")

# Said each time, because an operator may have changed the default. The catalogue's writers take turns by a row lock, after
# which READ COMMITTED shows what the one before has done.
BEGIN_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

SERIALISATION_FAILURE, DEADLOCK = "40001", "40P01"

INTERVENTION = "57P"
READ_ONLY_TRANSACTION = "25006"
UNDEFINED_TABLE = "42P01"
# The control file's timeline is that of the last checkpoint, which lags behind a promotion; the name of the log file
# that is written to begins with the present one.
IDENTITY = "SELECT system_identifier, pg_walfile_name(pg_current_wal_insert_lsn()) FROM pg_control_system()"
# The server declines for now: too long a wait for a lock, too long a statement; resources (53), intervention (57), its disk (58).
DECLINED = ("55P03", "53", "57", "58")


@attrs.frozen
class SystemIdentity:
    """Which history a database tells: the identifier is made by initdb, the timeline grows with each promotion or recovery to a point."""

    identifier: int
    timeline: int

    def __str__(self) -> str:
        return f"{self.identifier}/{self.timeline}"


class Lost(DatabaseUnavailable):
    """The connection broke before COMMIT was sent."""


class Conflicted(StatementFailed):
    """The transaction lost against another one; the same work may succeed now."""


def _integral(text: Any, cursor: Any) -> int | float | None:
    """NUMERIC, which is what PostgreSQL makes of the sum of BIGINTs, as the number SQLite would say."""
    if text is None:
        return None
    return float(text) if "." in text or "N" in text else int(text)


def _octets(text: Any, cursor: Any) -> bytes | None:
    return None if text is None else bytes.fromhex(text[2:])


_CASTERS = (new_type((1700,), "SECURIFILE_NUMERIC", _integral), new_type((17,), "SECURIFILE_BYTEA", _octets))


class Connection(txpostgres.Connection):  # type: ignore[misc]
    """A connection that knows when it is dead, and hands out notifications itself instead of through the global cooperator."""

    def __init__(self, reactor: Any, heard: Callable[[str], None] | None = None) -> None:
        super().__init__(reactor, cooperator=self)
        self._heard = heard
        self._dead = False
        self.lost: Deferred[None] = Deferred()
        self.identity: SystemIdentity | None = None
        """Which history the database tells at the other end: no server becomes another one without breaking connections that write."""

    @property
    def is_dead(self) -> bool:
        """Whether nothing can be asked of it any more."""
        return self._dead or self._connection is None or bool(self._connection.closed)

    async def open(self, dsn: str, limit_s: float) -> None:
        """Connect; raises `DatabaseUnavailable`."""
        timer = self.reactor.callLater(limit_s, self.abandon)
        try:
            await shielded(self.connect(dsn))
            for caster in _CASTERS:
                register_type(caster, self._connection)
            ((identifier, segment),) = await shielded(self.runQuery(IDENTITY))
            self.identity = SystemIdentity(identifier, int(segment[:8], 16))
        except psycopg2.Error as error:
            self.abandon()
            raise DatabaseUnavailable(str(error).strip()) from error
        except Exception as error:
            self.abandon()
            if isinstance(error, CancelledError):
                raise
            raise DatabaseUnavailable(f"no connection within {limit_s} s") from error
        finally:
            if timer.active():
                timer.cancel()

    def abandon(self) -> None:
        """Close it, whatever is under way; who waits for an answer gets an error."""
        self._dead = True
        if self._connection is not None:
            self.close()

    def checkForNotifies(self) -> None:
        """Hand out what was notified."""
        notices, self._connection.notifies[:] = self._connection.notifies[:], []
        if self._heard is not None:
            for notice in notices:
                self._heard(notice.payload)

    def doRead(self) -> None:
        """The server speaks."""
        try:
            super().doRead()
        except psycopg2.Error:
            # It was idle, so there is nobody to tell: the server has closed it.
            self.abandon()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        super().connectionLost(reason)
        self._dead = True
        if not self.lost.called:
            self.lost.callback(None)


@implementer(ISql)
class Transaction:
    """One transaction on one connection, begun by its first question."""

    def __init__(self, connection: Connection, begin: str, limits: Limits) -> None:
        self.connection = connection
        self._begin = begin
        self._limits = limits
        self._begun = False
        self._over = False
        self._failure: Exception | None = None
        self._pending: Deferred[Any] = succeed(None)
        self._held: list[tuple[str, Mapping[str, Any]]] = []
        """Statements that go along with the next question, or with COMMIT."""

    async def query(self, statement: str, parameters: Mapping[str, Any] = {}) -> Sequence[Row]:
        """See `ISql`."""
        cursor = await self._ask(statement, parameters)
        return cursor.fetchall() if cursor.description is not None else []

    async def execute(self, statement: str, parameters: Mapping[str, Any] = {}) -> int:
        """See `ISql`."""
        cursor = await self._ask(statement, parameters)
        return max(0, int(cursor.rowcount))

    def later(self, statement: str, parameters: Mapping[str, Any] = {}) -> None:
        """See `ISql`."""
        if self._over:
            raise RuntimeError("the transaction is over")
        self._held.append((statement, parameters))

    def end(self) -> None:
        """Refuse further questions; raise what a question of this transaction has failed with, in case `work` did not."""
        self._over = True
        if self._failure is not None:
            raise self._failure

    def end_quietly(self) -> None:
        """Refuse further questions."""
        self._over = True

    async def commit(self) -> None:
        """COMMIT, if anything was asked.

        Raises:
            OutcomeUnknown: the connection broke after it was sent.
        """
        if not self._begun and not self._held:
            return
        if self.connection.is_dead:
            raise Lost("the connection broke before COMMIT")
        cursor = self.connection.cursor()
        try:
            # The server goes through a message statement by statement, and stops at the first that fails.
            await self._send(cursor, self._joined(cursor, "COMMIT", {}))
        except (CancelledError, GeneratorExit):
            raise
        except Exception as error:
            translated = self._translated(error)
            # A server that is being shut down may say so after it has committed.
            shut_down = isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith(INTERVENTION)
            if isinstance(translated, Lost) or shut_down:
                raise OutcomeUnknown("the connection to the database broke after COMMIT was sent") from error
            raise translated from error
        if cursor.statusmessage != "COMMIT":
            raise StatementFailed(f"the server answered {cursor.statusmessage} to COMMIT")
        self._begun = False

    async def roll_back(self) -> None:
        """Bring the connection back to where it can be used again, or abandon it. Never raises."""
        self._over = True
        try:
            await self._pending
            if self._begun and not self.connection.is_dead:
                await self._send(self.connection.cursor(), b"ROLLBACK")
        except Exception:
            self.connection.abandon()

    @property
    def history(self) -> str:
        """Names the history that the database tells at this connection's other end."""
        return str(self.connection.identity)

    @property
    def is_clean(self) -> bool:
        """Whether the connection can be used by another at once."""
        return not self._begun and bool(self._pending.called)

    async def _ask(self, statement: str, parameters: Mapping[str, Any]) -> Any:
        if self._over:
            raise RuntimeError("the transaction is over")
        if not self._pending.called:
            raise RuntimeError("a question was asked before the one before was answered")
        if self._failure is not None:
            raise self._failure
        try:
            if self.connection.is_dead:
                raise Lost("the connection to the database broke")
            cursor = self.connection.cursor()
            await self._send(cursor, self._joined(cursor, statement, parameters))
        except (CancelledError, GeneratorExit):
            raise
        except Exception as error:
            self._failure = self._translated(error)
            if self._failure is error:
                raise
            raise self._failure from error
        return cursor

    def _joined(self, cursor: Any, statement: str, parameters: Mapping[str, Any]) -> bytes:
        """One message: BEGIN if it was not said yet, what was to be done by now, and then this."""
        held, self._held = self._held, []
        spelled = [_spelled(cursor, *one) for one in (*held, (statement, parameters))]
        if not self._begun:
            spelled.insert(0, self._begin.encode())
            self._begun = True
        return b";\n".join(spelled)

    async def _send(self, cursor: Any, message: bytes) -> None:
        timer = self.connection.reactor.callLater(self._limits.answer_s, self.connection.abandon)
        answered: Deferred[Any] = cursor.execute(message)
        self._pending = Deferred()

        def note(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            self._pending.callback(None)
            return result

        await shielded(answered.addBoth(note))

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, DatabaseUnavailable):
            return error
        if self.connection.is_dead:
            return Lost(f"the connection to the database broke: {error}".strip())
        if not isinstance(error, psycopg2.Error):
            # Psycopg2 could not spell the statement: a parameter is missing or of no known type, a text has a zero byte.
            return StatementFailed(f"{type(error).__name__}: {error}")
        code = error.pgcode or ""
        text = (error.diag.message_primary or str(error)).strip()
        if code in (SERIALISATION_FAILURE, DEADLOCK):
            return Conflicted(text)
        if code.startswith("23"):
            return ConstraintViolated(text)
        if code.startswith(DECLINED):
            return DatabaseUnavailable(text)
        if code == UNDEFINED_TABLE:
            # Another database is there than at the start, an empty one: to be put right by people, and not to be written to meanwhile.
            return DatabaseUnavailable(f"the catalogue's tables are not in the database: {text}")
        if code == READ_ONLY_TRANSACTION and self._begin == BEGIN_WRITING:
            # The server has become a standby; the connection is of no use to a writer.
            self.connection.abandon()
            return Lost(text)
        return StatementFailed(f"{code}: {text}")


def _spelled(cursor: Any, statement: str, parameters: Mapping[str, Any]) -> bytes:
    """The statement with its parameters in it."""
    spelled: bytes = cursor.mogrify(for_psycopg(statement), parameters_for_psycopg(parameters))
    return spelled


def shielded(work: Deferred[T]) -> Deferred[T]:
    """A Deferred that fires as `work` does, and whose cancellation leaves `work` alone.

    Psycopg2's conversation with the server has to be brought to its end before the connection can be used again.
    """
    outer: Deferred[T] = Deferred()

    def forward(result: Any) -> None:
        if not outer.called:
            outer.callback(result)

    work.addBoth(forward)
    return outer
