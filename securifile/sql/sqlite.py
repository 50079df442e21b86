"""SQLite behind `IDatabase`: a node's index in a file, and the catalogue's verified fake in memory.

This is the only module that imports sqlite3. Its calls are synchronous and short: a question costs tens of
microseconds, less than a trip to a thread. Transactions take turns, because a transaction's work may wait for something
in between and SQLite has one writer. A file is kept in WAL mode and has three connections:

    the writer      transactions, one at a time
    the snapshot    `read`: sees what was committed when it began, while the writer goes on
    the look        `sql`, outside of transactions: sees what is committed now; the hot path of a request

A database in memory has one connection for all three, so there a snapshot waits for the writer's turn, and a look in the middle of
another's transaction sees that transaction's changes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from zope.interface import implementer

from securifile.model.errors import ConstraintViolated, DatabaseUnavailable, OutcomeUnknown, StatementFailed
from securifile.model.interfaces import IDatabase, ISql, Row
from securifile.sql.dialects import SQLITE, for_sqlite, refuse_nesting, within

T = TypeVar("T")

# Another process looking into the file (a backup, an operator's shell) may hold it for a moment. The reactor stands
# still meanwhile, hence far less than a heartbeat.
BUSY_S = 0.25

# Prepared statements that sqlite3 keeps for a connection; the code has a few hundred.
PREPARED_STATEMENTS = 512

_WORLD = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_NOMEM")
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

_ERRORS = (sqlite3.Error, OverflowError, UnicodeEncodeError)
"""What a statement may raise."""


class DatabaseDamaged(Exception):
    """The file is not a sound SQLite database; an index is then made anew and fed again."""


@implementer(ISql)
class SqliteSql:
    """One connection, or a transaction on it, as a place to ask SQL questions.

    The asynchronous methods answer at once, so that questions written for both engines may also be asked without a
    Deferred (`run_now`).
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: sqlite3.Connection | None = connection

    async def query(self, statement: str, parameters: Mapping[str, Any] = {}) -> Sequence[Row]:
        """See `ISql`."""
        return self.query_now(statement, parameters)

    async def execute(self, statement: str, parameters: Mapping[str, Any] = {}) -> int:
        """See `ISql`."""
        return self.execute_now(statement, parameters)

    def later(self, statement: str, parameters: Mapping[str, Any] = {}) -> None:
        """See `ISql`: at once, since there is no trip to save."""
        self.execute_now(statement, parameters)

    def query_now(self, statement: str, parameters: Mapping[str, Any] = {}) -> Sequence[Row]:
        """All rows of the answer.

        Raises:
            ConstraintViolated: a rule of the table.
            StatementFailed: SQLite refused it for another reason: syntax, a missing parameter, writing in a snapshot.
            DatabaseUnavailable: the file is held by another, or the disk does not play along.
            DatabaseDamaged: the file is not sound.
        """
        connection = self._open()
        # Not `with _translated()`, which takes as long as a short question.
        try:
            return connection.execute(*for_sqlite(statement, parameters)).fetchall()
        except _ERRORS as error:
            raise _translation(error) from error

    def execute_now(self, statement: str, parameters: Mapping[str, Any] = {}) -> int:
        """Run a statement for its effect; the number of rows it touched. Raises as `query_now`."""
        connection = self._open()
        try:
            # SQLite says -1 where nothing is counted.
            return max(0, connection.execute(*for_sqlite(statement, parameters)).rowcount)
        except _ERRORS as error:
            raise _translation(error) from error

    def end(self) -> None:
        """Refuse every further question: the transaction is over."""
        self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the transaction is over")
        return self._connection


@implementer(IDatabase)
class SqliteDatabase:
    """An SQLite database, opened by the constructor.

    Args:
        path: The file, made when it is missing; None for a database in memory.
        synchronous: `NORMAL` survives a crash of the process; after a power cut the last commits may be missing, which is
            right for what is fed again from elsewhere. `FULL` waits for the disk at each commit.
        image: What a database in memory begins with; see `image`.

    Raises:
        DatabaseDamaged: the file is there and is not a database.
        DatabaseUnavailable: it cannot be opened.
    """

    dialect = SQLITE
    _log = Logger()

    def __init__(self, path: Path | None, *, synchronous: str = "NORMAL", image: bytes | None = None) -> None:
        if synchronous not in ("OFF", "NORMAL", "FULL", "EXTRA"):
            raise ValueError(f"no such way to synchronise: {synchronous}")
        self._path = path
        self._synchronous = synchronous
        self._closed = False
        self._failing = False
        """Whether the last transaction failed by what holds the file or the disk: said once, not for each that comes."""
        self.around_commit: Callable[[], None] = lambda: None
        """Called just before and just after each COMMIT, for processes that share the file; must not raise."""
        self._writer_turn = DeferredLock()
        self._writer = self._connect()
        if image is not None:
            with _translated():
                self._writer.deserialize(image)
        if path is None:
            self._snapshot, self._snapshot_turn, self._look = self._writer, self._writer_turn, self._writer
        else:
            self._snapshot, self._snapshot_turn, self._look = self._connect(), DeferredLock(), self._connect()
        self.sql = SqliteSql(self._look)

    @property
    def is_writing(self) -> bool:
        """Whether a transaction is under way: in memory, others see what it has written already."""
        return bool(self._writer_turn.locked)

    def transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """See `IDatabase`. When nobody else is in a transaction and `work` does not wait, it has fired when this returns.

        Cancelling rolls back.

        Raises:
            OutcomeUnknown: the disk failed during COMMIT.
        """
        return Deferred.fromCoroutine(self._transact(name, work))

    def read(self, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """See `IDatabase`."""
        return Deferred.fromCoroutine(self._read(work))

    async def _transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> T:
        refuse_nesting(self)
        await self._writer_turn.acquire()
        try:
            self._refuse_when_closed()
            result = await self._write(name, work)
            self._works()
            return result
        except DatabaseUnavailable as error:
            self._fails(error)
            raise
        finally:
            self._writer_turn.release()

    async def _write(self, name: str, work: Callable[[Any], Awaitable[T]]) -> T:
        with _translated():
            self._writer.execute("BEGIN IMMEDIATE")
        sql = SqliteSql(self._writer)
        try:
            result = await within(self, work, sql)
            sql.end()
            self._commit(name)
        finally:
            sql.end()
            _roll_back(self._writer)
        return result

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            self._log.info("{path} can be written to again", path=str(self._path))

    def _fails(self, error: DatabaseUnavailable) -> None:
        if not self._failing and not self._closed:
            self._failing = True
            self._log.critical("{path} cannot be written to: {error}", path=str(self._path), error=str(error))

    async def _read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        refuse_nesting(self)
        await self._snapshot_turn.acquire()
        connection = self._snapshot
        try:
            self._refuse_when_closed()
            sql = SqliteSql(connection)
            try:
                with _translated():
                    connection.execute("PRAGMA query_only = ON")
                    connection.execute("BEGIN")
                    # SQLite takes its snapshot at the first look, not at BEGIN.
                    connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
                return await within(self, work, sql)
            finally:
                sql.end()
                _roll_back(connection)
                connection.execute("PRAGMA query_only = OFF")
        finally:
            self._snapshot_turn.release()

    def image(self) -> bytes:
        """What is committed, as the bytes that a file would hold."""
        self._refuse_when_closed()
        with _translated():
            return self._writer.serialize()

    def close(self) -> Deferred[None]:
        """Wait for the transactions under way and close the file; nothing may be asked any more."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        turns = [self._writer_turn] if self._snapshot_turn is self._writer_turn else [self._writer_turn, self._snapshot_turn]
        for turn in turns:
            await turn.acquire()
        try:
            self._closed = True
            self.sql.end()
            # The writer last: whoever closes last folds the log into the file.
            for connection in (self._look, self._snapshot, self._writer):
                connection.close()
        finally:
            for turn in turns:
                turn.release()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise DatabaseUnavailable("the database is closed")

    def _commit(self, name: str) -> None:
        self.around_commit()
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            if _name_of(error).startswith("SQLITE_IOERR"):
                # The log may or may not have reached the disk, and an fsync that failed cannot be asked again.
                self._log.error("the disk failed in COMMIT of {transaction}: {error}", transaction=name, error=str(error))
                raise OutcomeUnknown(f"the disk failed while {name} was committed: {error}") from error
            raise _translation(error) from error
        finally:
            self.around_commit()

    def _connect(self) -> sqlite3.Connection:
        with _translated():
            connection = sqlite3.connect(
                ":memory:" if self._path is None else self._path,
                timeout=BUSY_S,
                isolation_level=None,  # BEGIN and COMMIT are ours
                cached_statements=PREPARED_STATEMENTS,
            )
            connection.execute("PRAGMA foreign_keys = ON")
            if self._path is not None:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            return connection


class SqliteReader:
    """A database file that another process writes, opened by the constructor: each question is answered from one state of it.

    Raises:
        DatabaseUnavailable: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        with _translated():
            self._connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None, cached_statements=PREPARED_STATEMENTS
            )

    def ask(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Run `work(sql)` on what is committed now, at once; it waits for nothing but `sql`.

        Raises:
            DatabaseUnavailable: the file is held by another, or the disk does not play along.
        """
        sql = SqliteSql(self._connection)
        try:
            with _translated():
                self._connection.execute("BEGIN")
            return run_now(work(sql))
        finally:
            sql.end()
            _roll_back(self._connection)

    def close(self) -> None:
        """Ask nothing any more."""
        self._connection.close()


def run_now(question: Awaitable[T]) -> T:
    """The result of a coroutine that asks nothing but a `SqliteSql`.

    Raises:
        RuntimeError: it waited for something else.
    """
    steps = question.__await__()
    try:
        next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("the coroutine waits for something that is not a SqliteSql")


def _roll_back(connection: sqlite3.Connection) -> None:
    # After some errors (a full disk) SQLite has rolled back by itself; after COMMIT there is nothing to do.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise _translation(error) from error


def _translation(error: Exception) -> Exception:
    name = _name_of(error)
    if name.startswith("SQLITE_CONSTRAINT"):
        return ConstraintViolated(str(error))
    if name in ("SQLITE_READONLY", ""):
        # A snapshot was written to; or Python's side refused the statement.
        return StatementFailed(str(error))
    if name.startswith(_WORLD):
        return DatabaseUnavailable(f"{name}: {error}")
    if name.startswith(_DAMAGE):
        return DatabaseDamaged(f"{name}: {error}")
    return StatementFailed(f"{name}: {error}")


def _name_of(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", "") or ""
