"""Bringing a database from the shape it has to the shape the code wants, forward only, one numbered step after another.

Each step is one transaction together with the row that records it, so a step is done and recorded, or neither. Several
admin servers may start at once: each transaction takes an advisory lock on PostgreSQL, and looks again which number has been
reached; on SQLite a writing transaction is alone anyhow.

A step must leave the database usable by the release before, because admin servers are upgraded one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.model.interfaces import ISql
from securifile.process import CannotStart
from securifile.sql.dialects import POSTGRESQL, SQLITE

# What tables.py calls a type, and what each engine calls it.
TYPES = {
    POSTGRESQL: {"bytes": "BYTEA", "text": "TEXT", "float": "DOUBLE PRECISION"},
    SQLITE: {"bytes": "BLOB", "text": "TEXT", "float": "REAL"},
}

# The key of the advisory lock: "securifi" read as a number. Anything will do that no other program on the database uses.
LOCK_KEY = int.from_bytes(b"securifi", "big")

_TABLE = "CREATE TABLE IF NOT EXISTS migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL, applied_at {float} NOT NULL)"

_log = Logger()


class DatabaseTooNew(CannotStart):
    """The database was made by a newer release, whose tables this one does not know. Start the newer release."""


def _kept(statements: Iterable[str]) -> tuple[str, ...]:
    return tuple(statements)


@attrs.frozen
class Migration:
    """One step. `statements` are run as they are, so whoever makes them writes them for the dialect."""

    number: int = attrs.field(validator=attrs.validators.ge(1))
    name: str
    statements: Sequence[str] = attrs.field(converter=_kept)


def migrate(database: Any, migrations: Sequence[Migration], now: float) -> Deferred[int]:
    """Take every step that the database has not taken yet; fires with the number reached.

    Args:
        database: An `IDatabase` with a `dialect`.
        migrations: All steps, with ascending numbers.
        now: Wall time, recorded with each step, in seconds since 1970.

    Raises:
        DatabaseTooNew: it has taken a step with a higher number than any of `migrations`.
        StatementFailed: a step was refused; those before it are kept.
    """
    numbers = [migration.number for migration in migrations]
    if any(later <= earlier for earlier, later in zip(numbers, numbers[1:], strict=False)):
        raise ValueError(f"the numbers of migrations must ascend: {numbers}")
    return Deferred.fromCoroutine(_migrate(database, migrations, now))


async def _migrate(database: Any, migrations: Sequence[Migration], now: float) -> int:
    known = max((migration.number for migration in migrations), default=0)
    reached = await database.transact("look at migrations", lambda sql: _reached(sql, database.dialect))
    if reached > known:
        raise DatabaseTooNew(f"the database is at migration {reached}, this release knows only up to {known}")
    for migration in migrations:
        if migration.number > reached:
            await database.transact(f"migration {migration.number}", _step(database.dialect, migration, now))
            _log.info("the database is at migration {number}, {name}", number=migration.number, name=migration.name)
    return known


async def _reached(sql: ISql, dialect: str) -> int:
    """The highest number taken, once nobody else is at it."""
    if dialect == POSTGRESQL:
        await sql.query("SELECT pg_advisory_xact_lock(:key)", {"key": LOCK_KEY})
    await sql.execute(_TABLE.format(**TYPES[dialect]))
    ((reached,),) = await sql.query("SELECT coalesce(max(number), 0) FROM migrations")
    return int(reached)


def _step(dialect: str, migration: Migration, now: float) -> Any:
    async def step(sql: ISql) -> None:
        if await _reached(sql, dialect) >= migration.number:
            return  # another admin server was faster
        for statement in migration.statements:
            await sql.execute(statement)
        row = {"number": migration.number, "name": migration.name, "now": now}
        await sql.execute("INSERT INTO migrations (number, name, applied_at) VALUES (:number, :name, :now)", row)

    return step
