"""What the catalogue knows of the soundness of copies, on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from securifile.admin.checks import TOGETHER
from securifile.model.ids import AttemptId
from securifile.protocol import messages as m
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import World

NOBODYS = AttemptId(b"?" * 16)


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An open catalogue with three running nodes, alice and bob, on each engine."""
    database = request.getfixturevalue("postgres_database") if request.param == "postgresql" else SqliteDatabase(None)
    made = World(database)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    if request.param == "sqlite":
        pytest_twisted.blockon(database.close())


def told(*attempts: AttemptId, at: float, oldest_at: float | None = None, quarantined: int = 0) -> m.CopiesChecked:
    copies = tuple(m.CheckedCopy(attempt=attempt, at=at) for attempt in attempts)
    return m.CopiesChecked(copies=copies, oldest_at=oldest_at, quarantined=quarantined)


@pytest_twisted.ensureDeferred
async def test_each_copy_has_its_last_check(world: World) -> None:
    """The latest check of each durable copy is kept by node; what is said of other copies, or of none at all, is not."""
    checks = world.catalogue.checks
    committed = await world.put("alice/a")
    file = committed.facts[0].id  # type: ignore[union-attr]
    assert await checks.of_file(file) == {}
    await checks.note(told(committed.attempt, NOBODYS, at=world.now - 50), "n1")
    await checks.note(told(committed.attempt, at=world.now - 40), "n2")
    await checks.note(told(committed.attempt, at=world.now - 30), "n3")
    assert await checks.of_file(file) == {"n1": world.now - 50, "n2": world.now - 40}
    await checks.note(told(committed.attempt, at=world.now - 10), "n1")
    assert await checks.of_file(file) == {"n1": world.now - 10, "n2": world.now - 40}


@pytest_twisted.ensureDeferred
async def test_many_checks_are_noted_together(world: World) -> None:
    """However many there are, and if one of them is told twice it is the later one that counts."""
    committed = await world.put("alice/a")
    file = committed.facts[0].id  # type: ignore[union-attr]
    others = [AttemptId(number.to_bytes(16)) for number in range(TOGETHER)]
    for number in (1, TOGETHER - 1, TOGETHER):
        at = world.now - 100 + number / TOGETHER
        copies = told(committed.attempt, *others[:number], at=at - 1).copies + told(committed.attempt, at=at).copies
        await world.catalogue.checks.note(m.CopiesChecked(copies=copies, oldest_at=None, quarantined=0), "n1")
        assert await world.catalogue.checks.of_file(file) == {"n1": at}


@pytest_twisted.ensureDeferred
async def test_a_new_version_was_never_checked(world: World) -> None:
    """A check is of one content: it says nothing about the next, and a late one of the version before is passed over."""
    checks = world.catalogue.checks
    first = await world.put("alice/a")
    file = first.facts[0].id  # type: ignore[union-attr]
    await checks.note(told(first.attempt, at=world.now), "n1")
    second = await world.put("alice/a")
    assert await checks.of_file(file) == {}
    await checks.note(told(first.attempt, at=world.now), "n2")
    assert await checks.of_file(file) == {}
    await checks.note(told(second.attempt, at=world.now), "n1")
    assert await checks.of_file(file) == {"n1": world.now}


@pytest_twisted.ensureDeferred
async def test_a_bad_copy_is_not_a_checked_one(world: World) -> None:
    """While a copy is pending its earlier check does not count."""
    checks = world.catalogue.checks
    committed = await world.put("alice/a")
    file = committed.facts[0].id  # type: ignore[union-attr]
    await checks.note(told(committed.attempt, at=world.now), "n1")
    await world.catalogue.files.copy_bad(m.CopyBad(file=file, attempt=committed.attempt, reason="rot"), "n1")
    assert await checks.of_file(file) == {}


@pytest_twisted.ensureDeferred
async def test_a_clock_that_is_ahead_makes_nothing_younger(world: World) -> None:
    """A check from the future counts as one made now."""
    committed = await world.put("alice/a")
    await world.catalogue.checks.note(told(committed.attempt, at=world.now + 1e6, oldest_at=world.now + 1e6), "n1")
    assert await world.catalogue.checks.of_file(committed.facts[0].id) == {"n1": world.now}  # type: ignore[union-attr]
    assert (await world.catalogue.checks.of_nodes())["n1"].oldest_at == world.now


@pytest_twisted.ensureDeferred
async def test_each_node_has_its_figures_while_it_is_a_member(world: World) -> None:
    """What a node told last of its copies on the whole is there, until it is removed."""
    checks = world.catalogue.checks
    await checks.note(told(at=0.0, oldest_at=world.now - 9), "n1")
    await checks.note(told(at=0.0, oldest_at=None, quarantined=1), "n3")
    await checks.note(told(at=0.0, oldest_at=world.now - 5, quarantined=2), "n3")
    found = await checks.of_nodes()
    assert {name: (one.oldest_at, one.quarantined) for name, one in found.items()} == {"n1": (world.now - 9, 0), "n3": (world.now - 5, 2)}
    await world.catalogue.members.remove("n3")
    assert set(await checks.of_nodes()) == {"n1"}


@pytest_twisted.ensureDeferred
async def test_checks_go_with_their_copies(world: World) -> None:
    """The rows of deleted files are removed in the background, others stay."""
    checks = world.catalogue.checks
    kept, gone = await world.put("alice/a"), await world.put("alice/b")
    await checks.note(told(kept.attempt, gone.attempt, at=world.now), "n1")
    await world.delete("alice/b")
    await checks.forget_some()
    rows = await world.catalogue.read(lambda sql: sql.query("SELECT attempt FROM checks"))
    assert [bytes(row[0]) for row in rows] == [kept.attempt.value]
