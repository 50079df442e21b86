"""Facts in tables and out again, on both engines, against the dumb model of `tests.histories`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from random import Random
from typing import Any, TypeVar

import attrs
import pytest
import pytest_twisted
from hypothesis import given, settings
from twisted.internet.defer import Deferred

from securifile.model import facts as f
from securifile.model.entries import Version
from securifile.model.ids import AttemptId, EntryId
from securifile.model.roles import Role
from securifile.model.settings import ClusterSettings
from securifile.sql import directory
from securifile.sql.facts import apply_fact, apply_facts, every_fact, settings_of
from securifile.sql.sqlite import SqliteDatabase
from securifile.sql.tables import FACT_TABLE_NAMES, FACT_TABLES, spelled
from tests.histories import PEOPLE, History, history
from tests.protocol.values import values

T = TypeVar("T")


@attrs.frozen
class Tables:
    """The tables of facts in a database."""

    database: Any

    async def do(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """The result of a transaction."""
        result: T = await self.database.transact("test", work)
        return result

    async def make(self) -> None:
        """Make the tables."""

        async def make(sql: Any) -> None:
            for statement in spelled(FACT_TABLES, self.database.dialect):
                await sql.execute(statement)

        await self.do(make)

    async def apply(self, facts: Iterable[f.Fact]) -> set[AttemptId]:
        """Apply facts; the attempts that are superseded by them."""

        async def work(sql: Any) -> set[AttemptId]:
            return {one.attempt for fact in facts for one in await apply_fact(sql, fact)}

        return await self.do(work)

    async def empty(self) -> None:
        """Forget everything."""

        async def work(sql: Any) -> None:
            for name in FACT_TABLE_NAMES:
                await sql.execute(f"DELETE FROM {name}")

        await self.do(work)

    async def rows(self) -> dict[str, list[Any]]:
        """Every row, with counters that are back at nothing left out."""

        async def work(sql: Any) -> dict[str, list[Any]]:
            return {name: sorted(map(plain, await sql.query(f"SELECT * FROM {name}")), key=repr) for name in FACT_TABLE_NAMES}

        rows = await self.do(work)
        return rows | {"usage": [row for row in rows["usage"] if row[1:] != (0, 0)]}

    async def every_fact(self) -> list[f.Fact]:
        """Everything in them."""
        return await self.do(every_fact)


def plain(row: Any) -> tuple[Any, ...]:
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)


PASTS = [pytest.param(history(Random(seed), 40 + seed), id=f"seed {seed}") for seed in range(6)]


@pytest.fixture(params=["sqlite", "postgresql"])
def tables(request: pytest.FixtureRequest) -> Iterator[Tables]:
    """Empty tables in each engine."""
    database = SqliteDatabase(None) if request.param == "sqlite" else request.getfixturevalue("postgres_database")
    made = Tables(database)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.make()))
    yield made
    if request.param == "sqlite":
        pytest_twisted.blockon(database.close())


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_the_tables_say_what_is_true(tables: Tables, past: History) -> None:
    """After any history the tables hold exactly what is true, and exactly the right blobs were called superseded."""
    await tables.empty()
    superseded = await tables.apply(past.facts)
    assert superseded == past.world.superseded
    found = await tables.every_fact()
    assert len(found) == len(set(found))
    assert set(found) == past.world.facts()


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_facts_applied_together_are_as_good_as_one_by_one(tables: Tables, past: History) -> None:
    """However a history is cut into pieces, the same rows come of it, and the same blobs are superseded."""
    await tables.empty()
    one_by_one = await tables.apply(past.facts)
    rows = await tables.rows()
    facts = list(past.facts)
    for size in (2, 7, len(facts)):
        await tables.empty()
        superseded: set[AttemptId] = set()
        for start in range(0, len(facts), size):
            piece = facts[start : start + size]
            superseded |= {one.attempt for one in await tables.do(lambda sql, piece=piece: apply_facts(sql, piece))}
        assert superseded == one_by_one
        assert await tables.rows() == rows


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_usage_is_the_sum_over_files(tables: Tables, past: History) -> None:
    """The counters of a person are the number and sizes of the files they own, after every change."""
    await tables.empty()
    await tables.apply(past.facts)

    async def ask(sql: Any) -> dict[str, tuple[int, int]]:
        found = {name: await directory.usage(sql, name) for name in PEOPLE}
        return {name: (one.files, one.bytes) for name, one in found.items() if one.files}

    assert await tables.do(ask) == past.world.usage()


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_a_snapshot_makes_equal_tables(tables: Tables, past: History) -> None:
    """All facts taken out, applied to empty tables, give the same rows."""
    await tables.empty()
    await tables.apply(past.facts)
    before, every = await tables.rows(), await tables.every_fact()
    await tables.empty()
    assert await tables.apply(every) == set()
    assert await tables.rows() == before
    assert await tables.every_fact() == every


@pytest.mark.parametrize("past", PASTS)
@pytest_twisted.ensureDeferred
async def test_a_fact_may_be_applied_twice(tables: Tables, past: History) -> None:
    """Every fact applied twice in a row leaves the same as applied once."""
    await tables.empty()
    await tables.apply(past.facts)
    once = await tables.rows()
    await tables.empty()
    await tables.apply([fact for fact in past.facts for _ in range(2)])
    assert await tables.rows() == once


@settings(deadline=None)
@given(fact=values(f.Person) | values(f.Session) | values(f.Server) | values(f.Settings) | values(f.Grant))
def test_every_value_comes_out_as_it_went_in(fact: f.Fact) -> None:
    """Names in any script, extreme numbers and empty bytes come back as they were."""
    tables = Tables(SqliteDatabase(None))

    async def through() -> list[f.Fact]:
        await tables.make()
        await tables.apply([fact])
        return await tables.every_fact()

    found: list[f.Fact] = []
    Deferred.fromCoroutine(through()).addCallback(found.extend)
    assert found == [fact]


@pytest_twisted.ensureDeferred
async def test_an_end_takes_everything_beneath(tables: Tables) -> None:
    """With a folder go its files at any depth, their copies and all rights on any of them; the rest stays."""
    root = f.Folder(id=EntryId(b"r" * 16), owner="ann", parent=None, name="ann", created_at=0.0)
    folders = [root]
    for depth in range(40):
        folders.append(f.Folder(id=EntryId(bytes([depth]) * 16), owner="ann", parent=folders[-1].id, name="x", created_at=0.0))
    deep = file_in(folders[-1], b"d")
    beside = file_in(root, b"b")
    rights = [f.Grant(entry=entry.id, username="ben", role=Role.READER, granted_by="ann") for entry in (folders[3], deep, beside)]
    await tables.apply([*folders, deep, beside, *rights])
    assert await tables.apply([f.EntryGone(id=folders[1].id)]) == {deep.version.attempt}
    assert set(await tables.every_fact()) == {root, beside, rights[2]}
    assert [row[0] for row in (await tables.rows())["copies"]] == [beside.id.value] * len(beside.version.copies)
    assert await tables.apply([f.EntryGone(id=folders[1].id)]) == set(), "once more does no harm"
    assert (await tables.rows())["usage"] == [("ann", 1, beside.version.size)]


def file_in(folder: f.Folder, letter: bytes) -> f.File:
    """A file with some version in it."""
    version: Version = next(fact.version for fact in history(Random(1), 60).facts if isinstance(fact, f.File) and fact.version.size)
    version = attrs.evolve(version, attempt=AttemptId(letter * 16))
    return f.File(id=EntryId(letter.upper() * 16), owner=folder.owner, parent=folder.id, name="f", created_at=0.0, version=version)


def test_settings_of_another_release_are_read() -> None:
    """A setting that this release does not know is passed over, and one that it has newly gets its default."""
    assert settings_of(("c", '{"replicas": 1, "something_new": [1, 2]}')) == f.Settings(cluster="c", settings=ClusterSettings(replicas=1))


@pytest_twisted.ensureDeferred
async def test_both_engines_list_names_in_the_same_order(tables: Tables) -> None:
    """Names are in order of their code points, whatever the language of the machine."""
    root = f.Folder(id=EntryId(b"r" * 16), owner="ann", parent=None, name="ann", created_at=0.0)
    names = ["B", "a", "Z", "é", "z", "😀", "\uffee", "a b", "_"]
    below = [
        f.Folder(id=EntryId(bytes([number]) * 16), owner="ann", parent=root.id, name=name, created_at=0.0)
        for number, name in enumerate(names)
    ]
    await tables.apply([root, *below])

    async def pages(sql: Any) -> list[str]:
        found: list[str] = []
        while page := await directory.children(sql, root.id, found[-1] if found else "", 2):
            found += [entry.name for entry in page]
        return found

    assert await tables.do(pages) == sorted(names)
