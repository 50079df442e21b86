"""SQLite by itself, and the spelling of statements for both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from securifile.model.errors import DatabaseUnavailable, StatementFailed
from securifile.sql.dialects import for_psycopg, for_sqlite
from securifile.sql.sqlite import DatabaseDamaged, SqliteDatabase, run_now

# Pieces of SQL in which a colon or a percent sign means itself.
QUIET = ["'a :x %'", "'it''s :x'", '"a:x %"', '"a"":x"', "-- :x %\n", "/* :x\n% */", "$$ :x % $$", "$b$ :x $$ % $b$", "a::x", "%", "1", " "]


@given(st.lists(st.sampled_from([*QUIET, ":x"]), max_size=8))
def test_only_parameters_are_parameters(pieces: list[str]) -> None:
    """However a statement is put together, what psycopg2 substitutes is exactly its parameters."""
    statement = " ".join(pieces)
    substituted = for_psycopg(statement) % {"x": "<value>"}
    assert substituted == " ".join("<value>" if piece == ":x" else piece for piece in pieces)


@given(st.lists(st.sampled_from([*QUIET, ":x", ":other"]), max_size=8), st.integers(0, 3))
def test_only_parameters_become_lists(pieces: list[str], length: int) -> None:
    """For SQLite a list parameter is written out, and everything else stays as it was."""
    values = list(range(length))
    spelled, parameters = for_sqlite(" ".join(pieces), {"x": values, "other": 9})
    names = [f"x__{index}" for index in range(length or 1)]
    written = "(" + ", ".join(f":{name}" for name in names) + ")"
    assert spelled == " ".join(written if piece == ":x" else piece for piece in pieces)
    listed: list[int | None] = [*values] if values else [None]
    assert dict(parameters) == {"other": 9, **dict(zip(names, listed, strict=True))}


@pytest.mark.parametrize("lock", ["FOR UPDATE", "for update skip locked", "FOR NO KEY UPDATE NOWAIT", "\n  FOR SHARE ;"])
def test_row_locks_are_left_out_for_sqlite(lock: str) -> None:
    """At the end of a statement, and nowhere else."""
    assert for_sqlite(f"SELECT 1 {lock}", {})[0] == "SELECT 1"
    assert for_sqlite(f"SELECT '{lock}' AS x", {})[0] == f"SELECT '{lock}' AS x"


def table(database: SqliteDatabase, *values: int) -> None:
    """Make a table; everything has happened when this returns."""

    async def work(sql: Any) -> None:
        await sql.execute("CREATE TABLE thing (x BIGINT)")
        for value in values:
            await sql.execute("INSERT INTO thing VALUES (:x)", {"x": value})

    assert database.transact("make", work).called


def test_nothing_waits_when_nobody_is_in_the_way(tmp_path: Path) -> None:
    """Transactions and looks have their result at once."""
    database = SqliteDatabase(tmp_path / "index.sqlite")
    table(database, 1)
    assert database.sql.query_now("SELECT x FROM thing") == [(1,)]
    assert run_now(database.sql.query("SELECT x FROM thing")) == [(1,)]
    assert database.read(lambda sql: sql.query("SELECT x FROM thing")).result == [(1,)]
    assert database.close().called


def test_run_now_says_when_something_waits() -> None:
    """A coroutine that waits for anything else is a mistake that is told."""
    with pytest.raises(RuntimeError):
        run_now(Deferred())


@pytest_twisted.ensureDeferred
async def test_a_look_sees_only_what_is_committed(tmp_path: Path) -> None:
    """While a transaction is open on a file, looks see what was before."""
    database = SqliteDatabase(tmp_path / "index.sqlite")
    table(database, 1)
    go_on: Deferred[None] = Deferred()

    async def work(sql: Any) -> None:
        await sql.execute("DELETE FROM thing")
        await go_on

    deleting = database.transact("delete", work)
    assert database.sql.query_now("SELECT x FROM thing") == [(1,)]
    go_on.callback(None)
    await deleting
    assert database.sql.query_now("SELECT x FROM thing") == []
    await database.close()


def test_what_was_committed_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    """A file keeps what was committed, and nothing else stays beside it when it is closed."""
    path = tmp_path / "index.sqlite"
    first = SqliteDatabase(path, synchronous="FULL")
    table(first, 1)
    first.close()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    again = SqliteDatabase(path)
    assert again.sql.query_now("SELECT x FROM thing") == [(1,)]
    again.close()


def test_foreign_keys_are_kept() -> None:
    """A row that refers to nothing is refused, which SQLite does only when asked to."""
    database = SqliteDatabase(None)
    database.sql.execute_now("CREATE TABLE one (x BIGINT PRIMARY KEY)")
    database.sql.execute_now("CREATE TABLE other (x BIGINT REFERENCES one)")
    with pytest.raises(StatementFailed):
        database.sql.execute_now("INSERT INTO other VALUES (1)")


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    """It is told apart from a file that cannot be had at the moment."""
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"this is a letter " * 100)
    with pytest.raises(DatabaseDamaged):
        SqliteDatabase(path)
    with pytest.raises(DatabaseUnavailable):
        SqliteDatabase(tmp_path / "missing" / "index.sqlite")


@pytest_twisted.ensureDeferred
async def test_a_file_that_another_holds_is_unavailable(tmp_path: Path) -> None:
    """Another writer on the same file makes a transaction fail after a short while, with nothing done; it can be tried again."""
    path = tmp_path / "index.sqlite"
    database, other = SqliteDatabase(path), SqliteDatabase(path)
    table(database)
    go_on: Deferred[None] = Deferred()

    async def hold(sql: Any) -> None:
        await go_on

    holding = other.transact("hold", hold)
    with pytest.raises(DatabaseUnavailable):
        await database.transact("insert", lambda sql: sql.execute("INSERT INTO thing VALUES (1)"))
    go_on.callback(None)
    await holding
    await database.transact("insert", lambda sql: sql.execute("INSERT INTO thing VALUES (2)"))
    assert other.sql.query_now("SELECT x FROM thing") == [(2,)]
    await database.close()
    await other.close()


@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_written_is_told_of_once(tmp_path: Path) -> None:
    """However many transactions fail, the log says so once, and once when it works again: a full disk must not be filled by a log."""
    path = tmp_path / "index.sqlite"
    database, other = SqliteDatabase(path), SqliteDatabase(path)
    table(database)
    said: list[Any] = []

    def keep(event: Any) -> None:
        if event["log_namespace"].startswith("securifile.sql."):
            said.append(event["log_level"].name)

    globalLogPublisher.addObserver(keep)
    try:
        for _ in range(2):
            go_on: Deferred[None] = Deferred()

            async def hold(sql: Any, go_on: Deferred[None] = go_on) -> None:
                await go_on

            holding = other.transact("hold", hold)
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await database.transact("insert", insert)
            go_on.callback(None)
            await holding
            await database.transact("insert", insert)
            await database.transact("insert", insert)
    finally:
        globalLogPublisher.removeObserver(keep)
    assert said == ["critical", "info"] * 2
    await database.close()
    await other.close()


async def insert(sql: Any) -> None:
    await sql.execute("INSERT INTO thing VALUES (7)")


@pytest_twisted.ensureDeferred
async def test_closing_waits_for_who_is_at_work(tmp_path: Path) -> None:
    """A transaction under way is committed before the file is closed; afterwards nothing is answered."""
    database = SqliteDatabase(tmp_path / "index.sqlite")
    table(database)
    go_on: Deferred[None] = Deferred()

    async def work(sql: Any) -> None:
        await go_on
        await sql.execute("INSERT INTO thing VALUES (1)")

    working = database.transact("insert", work)
    closing = database.close()
    assert not closing.called
    go_on.callback(None)
    await working
    await closing
    with pytest.raises(RuntimeError):
        database.sql.query_now("SELECT 1")
    with pytest.raises(DatabaseUnavailable):
        await database.transact("late", work)


def test_an_unknown_way_to_synchronise_is_refused() -> None:
    """The setting is checked before it becomes part of a statement."""
    with pytest.raises(ValueError, match="synchronise"):
        SqliteDatabase(None, synchronous="NORMAL; DROP TABLE thing")
