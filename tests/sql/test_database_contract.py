"""What `IDatabase` promises, on both engines: the verified fake is verified here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from securifile.admin.migrations import DatabaseTooNew, Migration, migrate
from securifile.model.errors import ConstraintViolated, StatementFailed
from securifile.sql.sqlite import SqliteDatabase


@pytest.fixture(params=["sqlite in memory", "sqlite in a file", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An empty database of each kind."""
    if request.param == "postgresql":
        yield request.getfixturevalue("postgres_database")
        return
    sqlite = SqliteDatabase(tmp_path / "a.sqlite" if request.param.endswith("file") else None)
    yield sqlite
    pytest_twisted.blockon(sqlite.close())


def run(statement: str, **parameters: Any) -> Callable[[Any], Any]:
    return lambda sql: sql.execute(statement, parameters)


def ask(statement: str, **parameters: Any) -> Callable[[Any], Any]:
    return lambda sql: sql.query(statement, parameters)


async def with_table(database: Any, *values: int) -> None:
    await database.transact("make", run("CREATE TABLE thing (x BIGINT PRIMARY KEY, y BIGINT DEFAULT 0 CHECK (y < 100))"))
    for value in values:
        await database.transact("fill", run("INSERT INTO thing (x) VALUES (:x)", x=value))


async def things(database: Any) -> Sequence[int]:
    return [x for (x,) in await database.read(ask("SELECT x FROM thing ORDER BY x"))]


@pytest_twisted.ensureDeferred
async def test_what_is_committed_is_seen(database: Any) -> None:
    """A transaction's result is what its work returned, and a later snapshot sees its changes."""
    await with_table(database)

    async def work(sql: Any) -> str:
        assert await sql.execute("INSERT INTO thing (x) VALUES (:a), (:b)", {"a": 1, "b": 2}) == 2
        assert await sql.query("SELECT count(*) FROM thing") == [(2,)]
        return "done"

    assert await database.transact("insert", work) == "done"
    assert await things(database) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_what_raises_is_rolled_back(database: Any) -> None:
    """When the work raises, its changes are gone and its exception reaches the caller."""
    await with_table(database, 1)

    async def work(sql: Any) -> None:
        await sql.execute("DELETE FROM thing")
        raise LookupError("no")

    with pytest.raises(LookupError):
        await database.transact("delete", work)
    assert await things(database) == [1]


@pytest_twisted.ensureDeferred
async def test_work_that_asks_nothing_is_fine(database: Any) -> None:
    """A transaction may turn out to have nothing to do."""

    async def work(sql: Any) -> int:
        return 7

    assert await database.transact("nothing", work) == 7
    assert await database.read(work) == 7


VALUES = [
    ("bytes", b""),
    ("bytes", bytes(range(256))),
    ("bytes", None),
    ("text", ""),
    ("text", 'it\'s "quoted" with 100% :colons, %(percent)s, back\\slash, é, 𐍈 and\nlines'),
    ("text", None),
    ("float", 0.1),
    ("float", -1e300),
    ("float", None),
    ("integer", 0),
    ("integer", 2**63 - 1),
    ("integer", -(2**63)),
]
COLUMNS = {
    "postgresql": {"bytes": "BYTEA", "text": "TEXT", "float": "DOUBLE PRECISION", "integer": "BIGINT", "boolean": "BOOLEAN"},
    "sqlite": {"bytes": "BLOB", "text": "TEXT", "float": "REAL", "integer": "BIGINT", "boolean": "BOOLEAN"},
}


@pytest_twisted.ensureDeferred
async def test_values_come_back_as_they_were(database: Any) -> None:
    """Bytes, texts with anything in them, numbers and nothing survive, with their types."""
    columns = COLUMNS[database.dialect]
    for kind, value in VALUES:

        async def work(sql: Any, kind: str = kind, value: object = value) -> Any:
            await sql.execute(f"CREATE TABLE kept (x {columns[kind]})")
            await sql.execute("INSERT INTO kept VALUES (:value)", {"value": value})
            ((found,),) = await sql.query("SELECT x FROM kept WHERE x = :value OR x IS NULL", {"value": value})
            await sql.execute("DROP TABLE kept")
            return found

        found = await database.transact("keep", work)
        assert found == value
        assert type(found) is type(value)


@pytest_twisted.ensureDeferred
async def test_booleans_keep_their_truth(database: Any) -> None:
    """A boolean column says what is true, as a bool or as 0 and 1."""
    await database.transact("make", run("CREATE TABLE flag (x BOOLEAN)"))
    for value in (True, False):
        await database.transact("set", run("INSERT INTO flag VALUES (:x)", x=value))
        assert await database.read(ask("SELECT x FROM flag WHERE x = :x", x=value)) == [(value,)]


@pytest_twisted.ensureDeferred
async def test_colons_and_percents_in_the_statement_mean_themselves(database: Any) -> None:
    """Within quotes and comments nothing is a parameter, and a percent sign never is."""
    statement = 'SELECT \':x %\', 7 % 4, "a:x" /* :x % */ FROM (SELECT :x AS "a:x") AS t -- :x %'
    assert await database.read(ask(statement, x=5)) == [(":x %", 3, 5)]
    assert await database.read(ask("SELECT '100%'")) == [("100%",)]


@pytest_twisted.ensureDeferred
async def test_a_list_can_be_asked_for(database: Any) -> None:
    """A tuple, list or set stands for a list in parentheses; nothing is in the empty one."""
    await with_table(database, 1, 2, 3)
    for wanted, found in (((1, 3, 9), [1, 3]), ([2], [2]), (frozenset({3, 1}), [1, 3]), ((), [])):
        rows = await database.read(ask("SELECT x FROM thing WHERE x IN :wanted AND x < :most ORDER BY x", wanted=wanted, most=10))
        assert [x for (x,) in rows] == found


@pytest_twisted.ensureDeferred
async def test_sums_are_integers(database: Any) -> None:
    """The sum of integers is an int."""
    await with_table(database, 1, 2, 2**40)
    ((total,),) = await database.read(ask("SELECT sum(x) FROM thing"))
    assert total == 2**40 + 3
    assert type(total) is int


@pytest_twisted.ensureDeferred
async def test_returning_is_a_question(database: Any) -> None:
    """INSERT … RETURNING answers with rows, and is committed."""
    await with_table(database)
    assert await database.transact("insert", ask("INSERT INTO thing (x) VALUES (5) RETURNING x, y")) == [(5, 0)]
    assert await things(database) == [5]


@pytest_twisted.ensureDeferred
async def test_a_row_lock_may_be_asked_for(database: Any) -> None:
    """FOR UPDATE is understood by both engines."""
    await with_table(database, 1)
    assert await database.transact("lock", ask("SELECT x FROM thing WHERE x = :x FOR UPDATE", x=1)) == [(1,)]


@pytest_twisted.ensureDeferred
async def test_constraints_and_mistakes_are_told_apart(database: Any) -> None:
    """Breaking a table's rule is `ConstraintViolated`; what the engine does not understand is `StatementFailed`. Nothing is kept."""
    await with_table(database, 1)
    for statement in ("INSERT INTO thing (x) VALUES (1)", "UPDATE thing SET y = 100"):
        with pytest.raises(ConstraintViolated):
            await database.transact("break", run(statement))
    for statement in ("SELEKT", "SELECT z FROM thing", "SELECT :missing"):
        with pytest.raises(StatementFailed) as caught:
            await database.transact("mistake", ask(statement))
        assert not isinstance(caught.value, ConstraintViolated)
    assert await database.read(ask("SELECT x, y FROM thing")) == [(1, 0)]


@pytest_twisted.ensureDeferred
async def test_a_snapshot_does_not_write(database: Any) -> None:
    """A read that writes is refused, and transactions go on as before."""
    await with_table(database, 1)
    with pytest.raises(StatementFailed):
        await database.read(run("DELETE FROM thing"))
    await database.transact("fill", run("INSERT INTO thing (x) VALUES (2)"))
    assert await things(database) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_snapshot_stands_still(database: Any) -> None:
    """What is committed while a snapshot is read does not show in it."""
    await with_table(database, 1)
    looked: Deferred[None] = Deferred()
    go_on: Deferred[None] = Deferred()

    async def work(sql: Any) -> tuple[Any, Any]:
        before = await sql.query("SELECT x FROM thing")
        looked.callback(None)
        await go_on
        return before, await sql.query("SELECT x FROM thing")

    reading = database.read(work)
    await looked
    writing = database.transact("fill", run("INSERT INTO thing (x) VALUES (2)"))
    if writing.called or database.dialect == "postgresql":
        await writing  # in memory it waits for its turn
    go_on.callback(None)
    assert await reading == ([(1,)], [(1,)])
    await writing
    assert await things(database) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_transactions_that_lock_the_same_row_take_turns(database: Any) -> None:
    """The second one goes on when the first has committed, and sees what it did: no update is lost."""
    await with_table(database, 1)
    locked: Deferred[None] = Deferred()
    go_on: Deferred[None] = Deferred()

    async def add(sql: Any, wait: bool) -> None:
        ((y,),) = await sql.query("SELECT y FROM thing WHERE x = 1 FOR UPDATE")
        if wait:
            locked.callback(None)
            await go_on
        await sql.execute("UPDATE thing SET y = :y", {"y": y + 1})

    first = database.transact("first", lambda sql: add(sql, True))
    await locked
    others = [database.transact("other", lambda sql: add(sql, False)) for _ in range(10)]
    assert not any(other.called for other in others)
    go_on.callback(None)
    await first
    for other in others:
        await other
    assert await database.read(ask("SELECT y FROM thing")) == [(11,)]


@pytest_twisted.ensureDeferred
async def test_a_transaction_within_a_transaction_is_refused(database: Any) -> None:
    """It would wait for what the outer one holds, so it is an error at once; a callback afterwards is no such thing."""
    await with_table(database)

    async def nested(sql: Any) -> None:
        await database.transact("inner", run("INSERT INTO thing (x) VALUES (1)"))

    async def looking(sql: Any) -> None:
        await database.read(ask("SELECT 1"))

    for work in (nested, looking):
        with pytest.raises(RuntimeError):
            await database.transact("outer", work)
        with pytest.raises(RuntimeError):
            await database.read(work)
    chained = database.transact("first", run("INSERT INTO thing (x) VALUES (1)"))
    chained.addCallback(lambda _: database.transact("second", run("INSERT INTO thing (x) VALUES (2)")))
    await chained
    assert await things(database) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_transaction_that_is_over_answers_nothing(database: Any) -> None:
    """Whoever kept `sql` cannot ask it afterwards."""
    kept: list[Any] = []

    async def work(sql: Any) -> None:
        await sql.query("SELECT 1")
        kept.append(sql)

    await database.transact("keep", work)
    await database.read(work)
    for sql in kept:
        with pytest.raises(RuntimeError):
            await sql.query("SELECT 1")


@pytest_twisted.ensureDeferred
async def test_cancelling_rolls_back(database: Any) -> None:
    """A transaction that is cancelled is undone, and holds nothing that others need."""
    await with_table(database, 1)
    deleted: Deferred[None] = Deferred()

    async def work(sql: Any) -> None:
        await sql.execute("DELETE FROM thing")
        deleted.callback(None)
        await Deferred()

    transaction = database.transact("delete", work)
    await deleted
    await deferLater(reactor, 0)  # until the work has come to wait
    transaction.cancel()
    with pytest.raises(CancelledError):
        await transaction
    await database.transact("fill", run("INSERT INTO thing (x) VALUES (2)"))
    assert await things(database) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_cancelling_who_waits_leaves_the_others_alone(database: Any) -> None:
    """One that waits for a row or its turn and is cancelled never happens; the one before it and the one behind it do."""
    await with_table(database, 1)
    locked: Deferred[None] = Deferred()
    go_on: Deferred[None] = Deferred()

    async def hold(sql: Any) -> None:
        await sql.execute("UPDATE thing SET y = 1")
        locked.callback(None)
        await go_on

    first = database.transact("hold", hold)
    await locked
    second = database.transact("cancelled", run("UPDATE thing SET y = 2"))
    third = database.transact("behind", run("UPDATE thing SET y = y + 10"))
    second.cancel()
    with pytest.raises(CancelledError):
        await second
    go_on.callback(None)
    await first
    await third
    # On PostgreSQL the cancelled one had its question under way; it is answered and then undone.
    assert await database.read(ask("SELECT y FROM thing")) == [(11,)]


STEPS = [
    Migration(1, "things", ["CREATE TABLE thing (x BIGINT)", "INSERT INTO thing VALUES (1)"]),
    Migration(2, "more things", ["INSERT INTO thing VALUES (2)"]),
]


@pytest_twisted.ensureDeferred
async def test_migrations_are_taken_once_and_in_order(database: Any) -> None:
    """Each step is taken once, however often and from however many servers it is asked for."""
    assert await migrate(database, STEPS[:1], 1.0) == 1
    both = [migrate(database, STEPS, 2.0) for _ in range(3)]
    for one in both:
        assert await one == 2
    assert await things(database) == [1, 2]
    rows = await database.read(ask("SELECT number, name, applied_at FROM migrations ORDER BY number"))
    assert rows == [(1, "things", 1.0), (2, "more things", 2.0)]


@pytest_twisted.ensureDeferred
async def test_a_step_that_fails_leaves_nothing(database: Any) -> None:
    """A step is done with all its statements or not at all, and the steps before it stay."""
    broken = Migration(2, "broken", ["INSERT INTO thing VALUES (9)", "NONSENSE"])
    with pytest.raises(StatementFailed):
        await migrate(database, [STEPS[0], broken], 1.0)
    assert await things(database) == [1]
    assert await migrate(database, STEPS, 2.0) == 2
    assert await things(database) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_database_of_a_newer_release_is_refused(database: Any) -> None:
    """A release that does not know the tables does not touch them."""
    await migrate(database, STEPS, 1.0)
    with pytest.raises(DatabaseTooNew, match="migration 2"):
        await migrate(database, STEPS[:1], 1.0)


def test_migrations_must_ascend() -> None:
    """A number given twice is a mistake of ours, found before anything is done."""
    with pytest.raises(ValueError, match="ascend"):
        migrate(None, [STEPS[0], STEPS[0]], 1.0)
