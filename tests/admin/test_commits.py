"""Commits that wait at the same time are decided together, and each as if it came alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from securifile.admin.commits import GROUP_MAX
from securifile.model.errors import Code, DatabaseUnavailable, OutcomeUnknown, Refusal
from securifile.model.facts import Change
from securifile.model.ids import Position
from securifile.model.roles import Role
from securifile.model.servers import Status
from securifile.protocol import messages as m
from securifile.sql import directory
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import World
from tests.admin.test_catalogue_contract import all_of
from tests.admin.test_database import Proxy, proxied

T = TypeVar("T")

AT_ONCE = 9


class Held:
    """A database whose transactions begin when the test lets them, and which notes their names."""

    def __init__(self, database: Any) -> None:
        self.database = database
        self.dialect = database.dialect
        self.names: list[str] = []
        self.gate: Deferred[None] | None = None
        """While it is there, transactions wait for it."""

    def transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        return Deferred.fromCoroutine(self._transact(name, work))

    async def _transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> T:
        self.names.append(name)
        if self.gate is not None:
            await self.gate
        result: T = await self.database.transact(name, work)
        return result

    def read(self, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        found: Deferred[T] = self.database.read(work)
        return found


@pytest.fixture(params=["sqlite", "postgresql"])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    """A database of each engine."""
    engine = request.getfixturevalue("postgres_database") if request.param == "postgresql" else SqliteDatabase(None)
    yield Held(engine)
    if request.param == "sqlite":
        pytest_twisted.blockon(engine.close())


@pytest.fixture
def world(held: Held) -> World:
    """An open catalogue with three running nodes, alice and bob."""
    made = World(held)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    held.names.clear()
    return made


async def together(world: World, held: Held, asked: list[m.Commit]) -> list[Any]:
    """The outcomes of commits that all wait when the database gets ready."""
    held.names.clear()
    held.gate = Deferred()
    waiting = [world.catalogue.files.commit(one, "n1") for one in asked]
    gate, held.gate = held.gate, None
    gate.callback(None)
    return await all_of(waiting)


@pytest_twisted.ensureDeferred
async def test_what_gathers_meanwhile_is_one_transaction(world: World, held: Held) -> None:
    """Commits that come while the first of them waits for the ledger's row are decided with it."""
    asked = [await world.upload(f"alice/f{number}") for number in range(AT_ONCE)]
    committed = await together(world, held, asked)
    assert [one.attempt for one in committed] == [one.attempt for one in asked]
    assert held.names == ["commit"]


@pytest_twisted.ensureDeferred
async def test_who_comes_alone_is_decided_at_once(world: World, held: Held) -> None:
    """Nobody waits for company."""
    for number in range(3):
        await world.put(f"alice/f{number}")
    assert held.names == ["commit"] * 3


@pytest_twisted.ensureDeferred
async def test_each_of_a_group_has_its_own_revision(world: World, held: Held) -> None:
    """The feed has each commit of a group as a change of its own, in the order in which they were asked for, without a gap."""
    heard: list[tuple[Position, Change]] = []
    world.catalogue.ledger.listen(lambda position, change: heard.append((position, change)))
    start = world.catalogue.ledger.position
    committed = await together(world, held, [await world.upload(f"alice/f{number}") for number in range(AT_ONCE)])
    assert [one.position.revision for one in committed] == list(range(start.revision + 1, start.revision + 1 + AT_ONCE))
    assert [position for position, _ in heard] == [one.position for one in committed]
    assert [change.facts for _, change in heard] == [one.facts for one in committed]
    assert await world.catalogue.ledger.changes_after(start, 100) == [change for _, change in heard]
    assert len({change.mark for _, change in heard}) == AT_ONCE
    for one in committed:
        assert await world.entry(f"alice/{one.facts[0].name}") == one.facts[0]


@pytest_twisted.ensureDeferred
async def test_a_refusal_costs_the_others_of_its_group_nothing(world: World, held: Held) -> None:
    """Who may not, comes second to a path, or commits what was given up is refused; all others are committed, one after the other."""
    await world.put("alice/old")
    before = await world.entry("alice/old")
    given_up = await world.upload("alice/given-up")
    await world.catalogue.files.outcome(given_up.attempt, True)
    first, second = await world.upload("alice/new"), await world.upload("alice/new")
    asked = [
        await world.upload("alice/a"),
        await world.upload("alice/b", person="bob"),
        first,
        second,
        given_up,
        await world.upload("alice/old", size=7),
        await world.upload("alice/old", size=8),
        await world.upload("alice/c", person="nobody"),
        first,
        await world.upload("alice/d"),
    ]
    outcomes = await together(world, held, asked)
    assert held.names == ["commit"]
    told = [one.code if isinstance(one, Refusal) else "done" for one in outcomes]
    assert told == [
        "done",
        Code.NOT_FOUND,
        "done",
        Code.CONFLICT,
        Code.ATTEMPT_ABANDONED,
        "done",
        Code.CONFLICT,
        Code.ACCOUNT_CLOSED,
        "done",
        "done",
    ]
    assert outcomes[8] == outcomes[2]
    done = [outcomes[index].position.revision for index in (0, 2, 5, 9)]
    assert done == list(range(done[0], done[0] + 4))
    after = await world.entry("alice/old")
    assert (after.id, after.version.number, after.version.size) == (before.id, 2, 7)
    assert await world.catalogue.read(lambda sql: directory.usage(sql, "alice")) == directory.Usage(files=4, bytes=37)


@pytest_twisted.ensureDeferred
async def test_versions_of_one_file_follow_each_other_within_a_group(world: World, held: Held) -> None:
    """Who knows of the version before, though it is decided only now, makes the next one; the tables have the last, and each is noted."""
    await world.put("alice/f", size=1)
    second = await world.upload("alice/f", size=20)
    third = await world.upload("alice/f", size=300, number=3, copies=second.copies[:1])
    outcomes = await together(world, held, [second, third])
    assert [one.facts[0].version.number for one in outcomes] == [2, 3]
    file = await world.entry("alice/f")
    assert (file, file.version.size) == (outcomes[1].facts[0], 300)
    rows = await world.catalogue.read(lambda sql: sql.query("SELECT number, size FROM versions WHERE file = :id", {"id": file.id.value}))
    assert sorted(rows) == [(1, 1), (2, 20), (3, 300)]
    assert (await world.catalogue.read(lambda sql: directory.usage(sql, "alice"))).bytes == 300


@pytest_twisted.ensureDeferred
async def test_a_key_is_used_once_within_a_group(world: World, held: Held) -> None:
    """The same request under the same Idempotency-Key is done once and answered alike; another request under it is refused."""
    asked = [await world.upload("alice/f", key="k", request=b"r") for _ in range(3)]
    other = await world.upload("alice/g", key="k", request=b"other")
    outcomes = await together(world, held, [*asked, other])
    assert outcomes[0].attempt == asked[0].attempt
    assert outcomes[:3] == [outcomes[0]] * 3
    assert outcomes[3].code is Code.KEY_REUSED


@pytest_twisted.ensureDeferred
async def test_a_quota_is_kept_within_a_group(world: World, held: Held) -> None:
    """Each commit of a group counts for those after it."""
    await world.catalogue.people.change("alice", quota_bytes=50)
    outcomes = await together(world, held, [await world.upload(f"alice/f{number}", size=15) for number in range(4)])
    assert [getattr(one, "code", "done") for one in outcomes] == ["done", "done", "done", Code.QUOTA]
    assert (await world.catalogue.read(lambda sql: directory.usage(sql, "alice"))).bytes == 45


@pytest_twisted.ensureDeferred
async def test_who_is_cancelled_while_waiting_is_not_committed(world: World, held: Held) -> None:
    """Cancelled before its turn, a commit never happens; cancelled or not, the others of the group are answered."""
    asked = [await world.upload(f"alice/f{number}") for number in range(4)]
    held.gate = Deferred()
    waiting = [world.catalogue.files.commit(one, "n1") for one in asked]
    waiting[2].cancel()
    gate, held.gate = held.gate, None
    gate.callback(None)
    outcomes = await all_of(waiting)
    assert isinstance(outcomes[2], CancelledError)
    assert [outcomes[index].attempt for index in (0, 1, 3)] == [asked[index].attempt for index in (0, 1, 3)]
    assert await world.entry("alice/f2") is None
    assert (await world.catalogue.files.outcome(asked[2].attempt, False)).ended is None
    again = await world.catalogue.files.commit(asked[2], "n1")
    assert again.attempt == asked[2].attempt


@pytest_twisted.ensureDeferred
async def test_what_the_database_refuses_is_the_fault_of_one(world: World, held: Held) -> None:
    """A commit that cannot be written fails alone: the others of its group are decided again, one by one."""
    asked = [await world.upload(f"alice/f{number}") for number in range(4)]
    asked[1] = attrs.evolve(asked[1], name="half a character: \ud800")
    outcomes = await together(world, held, asked)
    assert not isinstance(outcomes[1], m.Committed | Refusal)
    assert isinstance(outcomes[1], Exception)
    assert [outcomes[index].attempt for index in (0, 2, 3)] == [asked[index].attempt for index in (0, 2, 3)]
    revisions = [outcomes[index].position.revision for index in (0, 2, 3)]
    assert revisions == list(range(revisions[0], revisions[0] + 3))


@pytest_twisted.ensureDeferred
async def test_a_group_has_a_bound(world: World, held: Held) -> None:
    """However many wait, not more than `GROUP_MAX` are decided at once."""
    asked = [await world.upload(f"alice/f{number}") for number in range(GROUP_MAX + 1)]
    outcomes = await together(world, held, asked)
    assert all(isinstance(one, m.Committed) for one in outcomes)
    assert held.names == ["commit"] * 2


@pytest_twisted.ensureDeferred
async def test_a_group_fails_as_a_whole_when_the_catalogue_went_back(world: World, held: Held) -> None:
    """In a database that is not as far as it was, nothing of a group is done, and each of its callers hears that nothing was."""
    await world.put("alice/f")
    asked = [await world.upload(f"alice/g{number}") for number in range(3)]
    held.gate = Deferred()
    waiting = [world.catalogue.files.commit(one, "n1") for one in asked]
    await held.database.transact("go back", lambda sql: sql.execute("UPDATE cluster SET revision = revision - 1"))
    gate, held.gate = held.gate, None
    gate.callback(None)
    for one in await all_of(waiting):
        # Another epoch may have begun already, which waits for the nodes.
        assert isinstance(one, DatabaseUnavailable) or one.code is Code.CATALOGUE_UNAVAILABLE
    for one in asked:
        rows = await world.catalogue.read(
            lambda sql, one=one: sql.query("SELECT 1 FROM attempts WHERE attempt = :attempt", {"attempt": one.attempt.value})
        )
        assert not rows


@pytest_twisted.ensureDeferred
async def test_a_group_without_a_database_is_not_done(world: World, held: Held) -> None:
    """When the database cannot be reached, each caller hears that nothing was committed; those who come later are committed."""
    asked = [await world.upload(f"alice/g{number}") for number in range(3)]
    held.gate = Deferred()
    waiting = [world.catalogue.files.commit(one, "n1") for one in asked]
    gate, held.gate = held.gate, None
    gate.errback(DatabaseUnavailable("gone"))
    assert all(isinstance(one, DatabaseUnavailable) for one in await all_of(waiting))
    again = await all_of([world.catalogue.files.commit(one, "n1") for one in asked])
    assert [one.attempt for one in again] == [one.attempt for one in asked]


# --- what is remembered from group to group ---


@pytest_twisted.ensureDeferred
async def test_what_was_heard_here_counts_at_once(world: World, held: Held) -> None:
    """A right that was taken, a folder that is gone, an account that was closed, a node that is down, a setting: the next commit knows."""
    await world.make_folder("alice/d")
    await world.grant("alice/d", "bob", Role.EDITOR)
    await world.put("alice/d/f", by="bob")
    asked = [await world.upload(f"alice/d/g{number}", person="bob") for number in range(4)]
    commit = world.catalogue.files.commit
    await world.grant("alice/d", "bob", Role.READER)
    assert (await all_of([commit(asked[0], "n1")]))[0].code is Code.FORBIDDEN
    await world.grant("alice/d", "bob", Role.EDITOR)
    assert isinstance((await all_of([commit(asked[0], "n1")]))[0], m.Committed)
    await world.catalogue.people.change("bob", disabled=True)
    assert (await all_of([commit(asked[1], "n1")]))[0].code is Code.ACCOUNT_CLOSED
    await world.catalogue.people.change("bob", disabled=False)
    await world.hold({"n1": Status.DOWN})
    assert (await all_of([commit(asked[1], "n1")]))[0].code is Code.NOT_RUNNING
    await world.hold({"n1": Status.RUNNING})
    await world.catalogue.members.set_settings(attrs.evolve(world.catalogue.roster.settings, replicas=2, write_copies=3))
    assert (await all_of([commit(asked[1], "n1")]))[0].code is Code.NO_ROOM
    await world.catalogue.members.set_settings(attrs.evolve(world.catalogue.roster.settings, replicas=1, write_copies=1))
    await world.delete("alice/d", recursive=True)
    assert (await all_of([commit(asked[2], "n1")]))[0].code is Code.NOT_FOUND


@pytest_twisted.ensureDeferred
async def test_what_another_admin_server_did_counts_before_it_is_heard_of(world: World, held: Held) -> None:
    """Nothing is remembered over a change that was not heard of: an account that was closed elsewhere commits nothing here."""
    await world.put("alice/f")
    other = world.another(held)
    await other.open(cluster="test", settings=world.catalogue.roster.settings, system_identifier="first life")
    await other.people.change("alice", disabled=True)
    (outcome,) = await all_of([world.catalogue.files.commit(await world.upload("alice/g"), "n1")])
    assert outcome.code is Code.ACCOUNT_CLOSED


# --- PostgreSQL only: trips, and lines that break ---


@asynccontextmanager
async def behind_a_proxy(dsn: str, directory: Path) -> AsyncIterator[tuple[World, Held, Proxy]]:
    async with proxied(dsn, directory) as (proxy, database):
        held = Held(database)
        world = World(held)
        await world.open()
        await world.put("alice/f")
        yield world, held, proxy


@pytest_twisted.ensureDeferred
async def test_a_group_makes_as_few_trips_as_one(postgres_dsn: str, tmp_path: Path) -> None:
    """A commit takes four trips to the database: a lock, two questions, and all that is written with the COMMIT. So does a group."""
    async with behind_a_proxy(postgres_dsn, tmp_path) as (world, held, proxy):
        asked = [await world.upload(f"alice/g{number}") for number in range(AT_ONCE)]
        proxy.messages.clear()
        await together(world, held, asked)
        # The reading before the commits may have ended only now.
        assert len([message for message in proxy.messages if b"ROLLBACK" not in message]) == 4


@pytest.mark.parametrize("delivered", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_group_whose_answer_was_lost(postgres_dsn: str, tmp_path: Path, delivered: bool) -> None:
    """Each caller hears that the outcome is unknown, asks, and gets the truth: all of the group is committed, or nothing."""
    async with behind_a_proxy(postgres_dsn, tmp_path) as (world, held, proxy):
        start = world.catalogue.ledger.position
        asked = [await world.upload(f"alice/g{number}") for number in range(3)]
        proxy.word, proxy.deliver = b"COMMIT\0", delivered
        assert [type(one) for one in await together(world, held, asked)] == [OutcomeUnknown] * 3
        await deferLater(reactor, 0.1)  # the server may still be at it
        for number, one in enumerate(asked):
            outcome = await world.catalogue.files.outcome(one.attempt, False)
            assert outcome.ended == ("committed" if delivered else None)
            again = await world.catalogue.files.commit(one, "n1")
            assert again.position == Position(start.epoch, start.revision + 1 + number)
            assert outcome.committed in (None, again)
        await world.catalogue.ledger.catch_up()
        assert world.catalogue.ledger.position.revision == start.revision + 3


@pytest_twisted.ensureDeferred
async def test_a_group_whose_connection_broke_before_commit_is_done_all_the_same(postgres_dsn: str, tmp_path: Path) -> None:
    """Nothing was committed, so it is tried again on another connection, and nobody hears of it."""
    async with behind_a_proxy(postgres_dsn, tmp_path) as (world, held, proxy):
        asked = [await world.upload(f"alice/g{number}") for number in range(3)]
        proxy.word, proxy.deliver = b"FROM attempts", False
        outcomes = await together(world, held, asked)
        assert [one.attempt for one in outcomes] == [one.attempt for one in asked]
