"""What the catalogue promises, on both engines: one suite for PostgreSQL and for the fake in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater

from securifile.admin.observations import Seen
from securifile.admin.people import FAILURES_MAX, FAILURES_WINDOW_S, VERIFYING_MAX, WAITING_PER_PEER_MAX, NewPerson
from securifile.audit.keeping import ReceivedRecord
from securifile.model.entries import Copy
from securifile.model.errors import Code, OutcomeUnknown, Refusal
from securifile.model.facts import Change, Fact, File, Server, Session
from securifile.model.ids import AttemptId, Position
from securifile.model.records import AuditRecord
from securifile.model.roles import Role
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages as m
from securifile.sql import directory
from securifile.sql.facts import apply_fact, every_fact
from securifile.sql.sqlite import SqliteDatabase
from securifile.sql.tables import FACT_TABLES, spelled
from tests.admin.catalogues import NODES, PASSWORD, World, node
from tests.admin.test_database import proxied

AT_ONCE = 12


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An open catalogue with three running nodes, alice and bob, on each engine."""
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres_database")
    else:
        database = SqliteDatabase(None)
    made = World(database)
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    if request.param == "sqlite":
        pytest_twisted.blockon(database.close())


async def refused(waited: Any) -> Code:
    """The code that something is refused with."""
    with pytest.raises(Refusal) as caught:
        await waited
    return caught.value.code


async def all_of(work: Sequence[Deferred[Any]]) -> list[Any]:
    """Results and exceptions of work done at once."""
    return [result if success else result.value for success, result in await DeferredList(list(work), consumeErrors=True)]


# --- commits ---


@pytest_twisted.ensureDeferred
async def test_a_commit_makes_the_file_and_the_next_makes_its_next_version(world: World) -> None:
    """The first upload to a path creates a file, the next its second version; both are there as they were committed."""
    first = await world.put("alice/a")
    assert first.created
    second = await world.put("alice/a", size=20)
    assert not second.created
    file = await world.entry("alice/a")
    assert (file.version.number, file.version.size, file.version.holders) == (2, 20, ("n1", "n2"))
    assert second.facts == (file,)
    assert second.position > first.position


@pytest_twisted.ensureDeferred
async def test_of_concurrent_commits_one_wins(world: World) -> None:
    """Of many uploads that want to make the same version, exactly one does; the others are told of the conflict."""
    await world.put("alice/a")
    asked = [await world.upload("alice/a", size=number) for number in range(AT_ONCE)]
    results = await all_of([world.catalogue.files.commit(one, "n1") for one in asked])
    won = [result for result in results if isinstance(result, m.Committed)]
    assert len(won) == 1
    assert {result.code for result in results if not isinstance(result, m.Committed)} == {Code.CONFLICT}
    file = await world.entry("alice/a")
    assert file.version.number == 2
    assert file.version.attempt == won[0].attempt


@pytest_twisted.ensureDeferred
async def test_of_concurrent_creations_of_a_path_one_wins(world: World) -> None:
    """Two people who create the same path at the same time do not both get it."""
    asked = [await world.upload("alice/new") for _ in range(AT_ONCE)]
    results = await all_of([world.catalogue.files.commit(one, "n1") for one in asked])
    assert sum(isinstance(result, m.Committed) for result in results) == 1


@pytest_twisted.ensureDeferred
async def test_committing_again_gives_the_first_answer(world: World) -> None:
    """A commit that is asked for twice, because the answer was lost, is done once and answered twice alike."""
    asked = await world.upload("alice/a")
    first = await world.catalogue.files.commit(asked, "n1")
    position = world.catalogue.ledger.position
    assert await world.catalogue.files.commit(asked, "n1") == first
    assert world.catalogue.ledger.position == position


@pytest_twisted.ensureDeferred
async def test_an_idempotency_key_gives_the_first_answer_to_another_attempt(world: World) -> None:
    """A second upload under the same key, of the same request, gets the first one's answer, and the file has one version."""
    first = await world.put("alice/a", key="k", request=b"r")
    again = await world.upload("alice/a", key="k", request=b"r")
    assert await world.catalogue.files.commit(again, "n2") == first
    assert (await world.entry("alice/a")).version.number == 1
    assert await world.catalogue.files.by_key(m.KeyAsk(person="alice", key="k", request=b"r")) == m.Outcome(
        ended="committed", committed=first
    )
    assert (await world.catalogue.files.by_key(m.KeyAsk(person="bob", key="k", request=b"r"))).ended is None


@pytest_twisted.ensureDeferred
async def test_concurrent_commits_under_one_key_are_one(world: World) -> None:
    """A client that sends the same request to several nodes at once makes one version."""
    asked = [await world.upload("alice/a", key="k", request=b"r") for _ in range(AT_ONCE)]
    results = await all_of([world.catalogue.files.commit(one, "n1") for one in asked])
    assert len({result.attempt for result in results}) == 1


@pytest_twisted.ensureDeferred
async def test_a_key_is_not_used_for_something_else(world: World) -> None:
    """The same key with another request is refused."""
    await world.put("alice/a", key="k", request=b"r")
    asked = await world.upload("alice/b", key="k", request=b"other")
    assert await refused(world.catalogue.files.commit(asked, "n1")) is Code.KEY_REUSED
    assert await refused(world.catalogue.files.by_key(m.KeyAsk(person="alice", key="k", request=b"other"))) is Code.KEY_REUSED


@pytest_twisted.ensureDeferred
async def test_an_abandoned_attempt_is_never_committed(world: World) -> None:
    """Once the outcome is `abandoned`, the commit is refused; once it is `committed`, it cannot be abandoned."""
    files = world.catalogue.files
    asked = await world.upload("alice/a")
    assert (await files.outcome(asked.attempt, False)).ended is None
    assert (await files.outcome(asked.attempt, True)).ended == "abandoned"
    assert await refused(files.commit(asked, "n1")) is Code.ATTEMPT_ABANDONED
    assert await world.entry("alice/a") is None
    other = await world.upload("alice/a")
    committed = await files.commit(other, "n1")
    assert await files.outcome(other.attempt, True) == m.Outcome(ended="committed", committed=committed)


@pytest_twisted.ensureDeferred
async def test_abandon_and_commit_at_once_agree(world: World) -> None:
    """When both are asked for at the same time, either the commit or the abandonment has happened, and both know which."""
    files = world.catalogue.files
    for round_ in range(AT_ONCE):
        asked = await world.upload(f"alice/f{round_}")
        if round_ % 2:
            outcome, committed = await all_of([files.outcome(asked.attempt, True), files.commit(asked, "n1")])
        else:
            committed, outcome = await all_of([files.commit(asked, "n1"), files.outcome(asked.attempt, True)])
        final = await files.outcome(asked.attempt, False)
        assert outcome.ended == final.ended
        assert isinstance(committed, m.Committed) is (final.ended == "committed")
        if final.ended == "abandoned":
            assert committed.code is Code.ATTEMPT_ABANDONED
        assert (await world.entry(f"alice/f{round_}") is not None) is (final.ended == "committed")


@pytest_twisted.ensureDeferred
async def test_only_copies_on_running_nodes_count(world: World) -> None:
    """A copy on a node that is not running is recorded as pending; with too few others, nothing is committed."""
    await world.catalogue.members.set_settings(ClusterSettings(replicas=1, write_copies=2))
    await world.hold({"n2": Status.DOWN})
    assert await refused(world.put("alice/a")) is Code.NO_ROOM
    await world.catalogue.members.set_settings(ClusterSettings(replicas=1, write_copies=1))
    await world.put("alice/a")
    assert (await world.entry("alice/a")).version.copies == (
        Copy(node="n1", priority=0, durable=True),
        Copy(node="n2", priority=1, durable=False),
    )


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_not_running_commits_nothing(world: World) -> None:
    """What a node that is down or failed wants to commit is refused."""
    for status in (Status.DOWN, Status.FAILED):
        await world.hold({"n1": status})
        assert await refused(world.put("alice/a")) is Code.NOT_RUNNING


@pytest_twisted.ensureDeferred
async def test_a_quota_is_kept(world: World) -> None:
    """An upload that would go beyond the owner's quota is refused, whoever uploads; replacing by something smaller is not."""
    await world.catalogue.people.change("alice", quota_bytes=100)
    await world.put("alice/a", size=60)
    assert await refused(world.put("alice/b", size=41)) is Code.QUOTA
    await world.grant("alice", "bob", Role.EDITOR)
    assert await refused(world.put("alice/b", by="bob", size=41)) is Code.QUOTA
    await world.put("alice/b", by="bob", size=40)
    await world.catalogue.people.change("alice", quota_bytes=50)
    await world.put("alice/a", size=59)
    used = await world.catalogue.read(lambda sql: directory.usage(sql, "alice"))
    assert used == directory.Usage(files=2, bytes=99)
    assert (await world.catalogue.read(lambda sql: directory.usage(sql, "bob"))).files == 0


@pytest_twisted.ensureDeferred
async def test_concurrent_uploads_do_not_exceed_a_quota(world: World) -> None:
    """Uploads to different paths at once are counted one after another."""
    await world.catalogue.people.change("alice", quota_bytes=50)
    asked = [await world.upload(f"alice/f{number}") for number in range(AT_ONCE)]
    results = await all_of([world.catalogue.files.commit(one, "n1") for one in asked])
    assert sum(isinstance(result, m.Committed) for result in results) == 5
    assert (await world.catalogue.read(lambda sql: directory.usage(sql, "alice"))).bytes == 50


@pytest_twisted.ensureDeferred
async def test_a_closed_account_commits_nothing(world: World) -> None:
    """Whoever is disabled, expired or removed during an upload does not get it committed."""
    asked = await world.upload("alice/a")
    await world.catalogue.people.change("alice", disabled=True)
    assert await refused(world.catalogue.files.commit(asked, "n1")) is Code.ACCOUNT_CLOSED
    await world.catalogue.people.change("alice", disabled=False, valid_until=world.now + 5)
    world.now += 5
    assert await refused(world.catalogue.files.commit(asked, "n1")) is Code.ACCOUNT_CLOSED
    await world.catalogue.people.remove("alice", with_files=True)
    assert await refused(world.catalogue.files.commit(asked, "n1")) is Code.ACCOUNT_CLOSED


# --- rights ---


RIGHTS: dict[str, tuple[bool, bool, bool, bool, bool, bool]] = {
    # modify, create, make a folder, share, delete, move
    "owner": (True, True, True, True, True, True),
    "master": (True, True, True, True, False, False),
    "editor": (True, True, True, False, False, False),
    "reader": (False, False, False, False, False, False),
}


@pytest.mark.parametrize("where", ["alice/d", "alice"])
@pytest.mark.parametrize("role", RIGHTS)
@pytest_twisted.ensureDeferred
async def test_the_table_of_rights(world: World, role: str, where: str) -> None:
    """Each role may do what the design's table says, on the folder it was granted on and beneath; the rest is `forbidden`."""
    await world.make_folder("alice/d")
    await world.put("alice/d/f")
    await world.put("alice/d/g")
    await world.add("carol")
    who = "alice"
    if role != "owner":
        who = "bob"
        await world.grant(where, "bob", Role(role))
    attempts: list[Callable[[], Any]] = [
        lambda: world.put("alice/d/f", by=who),
        lambda: world.put("alice/d/new", by=who),
        lambda: world.make_folder("alice/d/sub", by=who),
        lambda: world.grant("alice/d", "carol", Role.READER, by=who),
        lambda: world.delete("alice/d/f", by=who),
        lambda: world.move("alice/d/g", "alice/d/h", by=who),
    ]
    for attempt, allowed in zip(attempts, RIGHTS[role], strict=True):
        if allowed:
            await attempt()
        else:
            assert await refused(attempt()) is Code.FORBIDDEN


@pytest_twisted.ensureDeferred
async def test_what_may_not_be_read_is_not_there(world: World) -> None:
    """Without any right everything is `not-found`, as if it did not exist; after the right was taken away, too."""
    await world.make_folder("alice/d")
    await world.put("alice/d/f")
    await world.grant("alice/d", "bob", Role.EDITOR)
    await world.put("alice/d/f", by="bob")
    await world.grant("alice/d", "bob", None)
    for attempt in (
        world.put("alice/d/f", by="bob"),
        world.put("alice/d/new", by="bob"),
        world.make_folder("alice/d/sub", by="bob"),
        world.delete("alice/d/f", by="bob"),
        world.move("alice/d/f", "alice/d/g", by="bob"),
        world.grant("alice/d", "bob", Role.MASTER, by="bob"),
    ):
        assert await refused(attempt) is Code.NOT_FOUND


@pytest_twisted.ensureDeferred
async def test_who_may_give_what(world: World) -> None:
    """Nobody's ownership can be given or taken, not to strangers either; but everybody may give up their own right."""
    await world.put("alice/f")
    await world.grant("alice/f", "bob", Role.MASTER)
    assert await refused(world.grant("alice/f", "alice", Role.READER, by="bob")) is Code.FORBIDDEN
    assert await refused(world.grant("alice/f", "bob", Role.OWNER)) is Code.BAD_REQUEST
    assert await refused(world.grant("alice/f", "nobody", Role.READER)) is Code.NOT_FOUND
    await world.grant("alice/f", "bob", Role.READER)
    await world.grant("alice/f", "bob", None, by="bob")
    assert await refused(world.grant("alice/f", "bob", None)) is Code.NOT_FOUND


@pytest_twisted.ensureDeferred
async def test_the_strongest_right_along_the_path_counts(world: World) -> None:
    """A weaker right further down takes nothing away."""
    await world.make_folder("alice/d")
    await world.put("alice/d/f")
    await world.grant("alice/d", "bob", Role.EDITOR)
    await world.grant("alice/d/f", "bob", Role.READER)
    await world.put("alice/d/f", by="bob")


@pytest_twisted.ensureDeferred
async def test_what_is_created_in_anothers_folder_is_the_owners(world: World) -> None:
    """A file that an editor creates belongs to the folder's owner, in their quota."""
    await world.grant("alice", "bob", Role.EDITOR)
    await world.put("alice/from-bob", by="bob")
    file = await world.entry("alice/from-bob")
    assert (file.owner, file.version.committed_by) == ("alice", "bob")
    asked = await world.upload("alice/another", by="bob", owner="bob")
    assert await refused(world.catalogue.files.commit(asked, "n1")) is Code.CONFLICT


# --- folders, deletes, moves ---


@pytest_twisted.ensureDeferred
async def test_a_path_created_again_has_no_old_rights(world: World) -> None:
    """Deleting and creating the same path gives another file, with version 1 and without the grants of the first."""
    await world.put("alice/f")
    await world.grant("alice/f", "bob", Role.READER)
    before = await world.entry("alice/f")
    await world.delete("alice/f")
    await world.put("alice/f")
    after = await world.entry("alice/f")
    assert after.id != before.id
    assert after.version.number == 1
    assert await world.catalogue.read(lambda sql: directory.grants_on(sql, after.id)) == []


@pytest_twisted.ensureDeferred
async def test_a_folder_goes_with_all_beneath_it_or_not_at_all(world: World) -> None:
    """A folder that is not empty is deleted only when that is said; then files, grants and usage go with it."""
    await world.make_folder("alice/d")
    await world.make_folder("alice/d/e")
    await world.put("alice/d/e/f")
    await world.grant("alice/d/e/f", "bob", Role.READER)
    assert await refused(world.delete("alice/d")) is Code.FOLDER_NOT_EMPTY
    await world.delete("alice/d", recursive=True)
    assert await world.entry("alice/d") is None
    assert await world.catalogue.read(lambda sql: directory.usage(sql, "alice")) == directory.Usage(files=0, bytes=0)
    assert await world.catalogue.read(lambda sql: directory.shared_with(sql, "bob", b"", 10)) == []
    assert await refused(world.delete("alice", recursive=True)) is Code.FORBIDDEN


@pytest_twisted.ensureDeferred
async def test_a_delete_can_ask_for_a_version(world: World) -> None:
    """`If-Match`: a file that was modified since is not deleted."""
    await world.put("alice/f")
    await world.put("alice/f")
    assert await refused(world.delete("alice/f", version=1)) is Code.PRECONDITION_FAILED
    await world.delete("alice/f", version=2)


@pytest_twisted.ensureDeferred
async def test_a_move_is_one_change_whatever_is_beneath(world: World) -> None:
    """Moving a folder changes one entry; what is beneath keeps its ids, versions and rights."""
    await world.make_folder("alice/d")
    await world.put("alice/d/f")
    await world.grant("alice/d/f", "bob", Role.READER)
    before = await world.entry("alice/d/f")
    position = world.catalogue.ledger.position
    await world.move("alice/d", "alice/other")
    assert world.catalogue.ledger.position == Position(position.epoch, position.revision + 1)
    assert await world.entry("alice/other/f") == before
    assert await world.entry("alice/d") is None


@pytest_twisted.ensureDeferred
async def test_moves_that_cannot_be(world: World) -> None:
    """Into itself, over something, into a file, to another owner, or of the root folder."""
    await world.make_folder("alice/d")
    await world.make_folder("alice/d/e")
    await world.put("alice/f")
    assert await refused(world.move("alice/d", "alice/d/e/d")) is Code.CONFLICT
    assert await refused(world.move("alice/d", "alice/f")) is Code.EXISTS
    assert await refused(world.move("alice", "alice/d/root")) is Code.FORBIDDEN
    await world.grant("bob", "alice", Role.MASTER)
    assert await refused(world.move("alice/f", "bob/f")) is Code.FORBIDDEN
    file, folder = await world.entry("alice/f"), await world.entry("alice/d")
    into_file = m.Move(person="alice", entry=folder.id, parent=file.id, name="x")
    assert await refused(world.catalogue.files.act(into_file)) is Code.NOT_A_FOLDER


@pytest_twisted.ensureDeferred
async def test_concurrent_moves_make_no_circle(world: World) -> None:
    """Two folders that are moved into each other at once: one move is refused, and both stay reachable."""
    await world.make_folder("alice/a")
    await world.make_folder("alice/b")
    a, b = await world.entry("alice/a"), await world.entry("alice/b")
    files = world.catalogue.files
    moves = [files.act(m.Move(person="alice", entry=x.id, parent=y.id, name=x.name)) for x, y in ((a, b), (b, a))]
    results = await all_of(moves)
    assert sum(isinstance(result, m.Acted) for result in results) == 1
    for entry in (a, b):
        assert await world.catalogue.read(lambda sql, entry=entry: directory.ancestry(sql, entry.id))


@pytest_twisted.ensureDeferred
async def test_a_name_is_there_once(world: World) -> None:
    """Whatever is created in a folder at once under one name, a single one is there afterwards."""
    root = await world.entry("alice")
    files = world.catalogue.files
    work: list[Deferred[Any]] = [
        files.act(m.MakeFolder(person="alice", owner="alice", parent=root.id, name="x", id=world.id())) for _ in range(AT_ONCE)
    ]
    work.append(files.commit(await world.upload("alice/x"), "n1"))
    results = await all_of(work)
    assert sum(not isinstance(result, Exception) for result in results) == 1


# --- the feed ---


async def replayed(changes: Sequence[Change]) -> list[Fact]:
    """What an index would hold after these changes."""
    database = SqliteDatabase(None)

    async def apply(sql: Any) -> list[Fact]:
        for statement in spelled(FACT_TABLES, "sqlite"):
            await sql.execute(statement)
        for change in changes:
            for fact in change.facts:
                await apply_fact(sql, fact)
        return await every_fact(sql)

    try:
        facts: list[Fact] = await database.transact("replay", apply)
        return facts
    finally:
        await database.close()


async def much_ado(world: World) -> None:
    """Many changes of every kind, at once."""
    catalogue = world.catalogue
    await world.make_folder("alice/d")
    uploads = [await world.upload(f"alice/d/f{number}") for number in range(AT_ONCE)]
    work: list[Deferred[Any]] = [catalogue.files.commit(one, "n1") for one in uploads]
    work += [
        catalogue.people.add(NewPerson(username=f"p{number}", email=f"p{number}@example.org", password=PASSWORD)) for number in range(4)
    ]
    work += [catalogue.people.sign_in("alice", PASSWORD, "here") for _ in range(4)]
    work.append(catalogue.members.set_settings(ClusterSettings(replicas=1, lease_s=20)))
    await gatherResults(work)
    await world.grant("alice/d", "bob", Role.EDITOR)
    await world.put("alice/d/f1", by="bob", size=5)
    await world.move("alice/d/f2", "alice/moved")
    await world.delete("alice/d/f3")
    await catalogue.people.change("bob", password="another password")
    await catalogue.people.remove("p1", with_files=False)
    await world.make_folder("alice/e")
    await world.put("alice/e/f")
    await world.delete("alice/e", recursive=True)
    await catalogue.members.remove("n3")


@pytest_twisted.ensureDeferred
async def test_the_feed_has_every_change_once_and_in_order(world: World) -> None:
    """Listeners hear revision after revision without a gap, though commits run at once; the database says the same."""
    ledger = world.catalogue.ledger
    heard: list[Change] = []
    start = ledger.position
    ledger.listen(lambda position, change: heard.append(change))
    await much_ado(world)
    assert [change.revision for change in heard] == list(range(start.revision + 1, ledger.position.revision + 1))
    assert await ledger.changes_after(start, 1000) == heard


@pytest_twisted.ensureDeferred
async def test_a_snapshot_is_what_the_feed_amounts_to(world: World) -> None:
    """Replaying all changes from the first gives exactly the facts of a snapshot."""
    await much_ado(world)
    position, facts = await world.catalogue.ledger.snapshot()
    assert position == world.catalogue.ledger.position
    assert await replayed(await world.catalogue.ledger.changes_after(Position(position.epoch, 0), 10_000)) == facts


@pytest_twisted.ensureDeferred
async def test_a_refused_change_leaves_no_trace(world: World) -> None:
    """A refusal, or a decision that changes nothing, uses up no revision."""
    position = world.catalogue.ledger.position
    assert await refused(world.catalogue.people.remove("nobody", with_files=False)) is Code.NOT_FOUND
    await world.catalogue.people.sign_out(b"\0" * 32)
    await world.catalogue.people.change("alice", email="alice@example.org")
    assert world.catalogue.ledger.position == position
    await world.make_folder("alice/d")
    assert world.catalogue.ledger.position.revision == position.revision + 1


@pytest_twisted.ensureDeferred
async def test_another_admin_servers_changes_are_caught_up_with(world: World) -> None:
    """What was committed through another catalogue on the same database is told, in order, after `catch_up`."""
    other = world.another(world.database)
    await other.open(cluster="test", settings=ClusterSettings(), system_identifier="first life")
    heard: list[int] = []
    other.ledger.listen(lambda position, change: heard.append(change.revision))
    start = other.ledger.position.revision
    await world.make_folder("alice/a")
    await world.make_folder("alice/b")
    await other.people.change("bob", email="bob@example.com")
    assert heard == []
    await other.ledger.catch_up()
    assert heard == [start + 1, start + 2, start + 3]
    assert other.ledger.position == Position(1, start + 3)
    await world.catalogue.ledger.catch_up()
    assert world.catalogue.ledger.position == other.ledger.position


@pytest_twisted.ensureDeferred
async def test_where_the_feed_can_go_on(world: World) -> None:
    """From any position that is kept, and from no position that was trimmed, is ahead, or of another epoch."""
    for number in range(10):
        await world.make_folder(f"alice/d{number}")
    ledger = world.catalogue.ledger
    now = ledger.position
    assert await ledger.can_continue(now)
    assert await ledger.can_continue(Position(now.epoch, 0))
    await ledger.trim(3)
    assert [await ledger.can_continue(Position(now.epoch, now.revision - back)) for back in (0, 2, 3, 4)] == [True, True, True, False]
    assert not await ledger.can_continue(Position(now.epoch, now.revision + 1))
    assert not await ledger.can_continue(Position(now.epoch + 1, 0))
    assert not await ledger.can_continue(Position(0, 0))


@pytest_twisted.ensureDeferred
async def test_a_new_life_of_the_database_is_a_new_epoch(world: World) -> None:
    """The epoch stays over restarts and grows when the database's identity changed: positions of before cannot go on.

    People change nothing until the epoch is reconciled; a node may say where it is reached.
    """
    before = world.catalogue.ledger.position
    same = world.another(world.database)
    await same.open(cluster="test", settings=ClusterSettings(), system_identifier="first life")
    assert same.ledger.position == before
    restored = world.another(world.database)
    await restored.open(cluster="test", settings=ClusterSettings(), system_identifier="second life")
    assert restored.ledger.position == Position(before.epoch + 1, before.revision)
    assert not await restored.ledger.can_continue(before)
    assert await refused(restored.people.change("bob", email="bob@example.com")) is Code.CATALOGUE_UNAVAILABLE
    entered = await restored.members.readdress("n1", "https://elsewhere:1", "elsewhere:2")
    assert entered.position == Position(before.epoch + 1, before.revision + 1)
    assert await restored.ledger.can_continue(Position(before.epoch + 1, before.revision))


@pytest_twisted.ensureDeferred
async def test_a_node_that_knows_more_begins_an_epoch(world: World) -> None:
    """A position beyond the catalogue's means that it went back in time; one that it merely had not heard of does not."""
    ledger = world.catalogue.ledger
    before = ledger.position
    other = world.another(world.database)
    await other.open(cluster="test", settings=ClusterSettings(), system_identifier="first life")
    entered = await other.people.change("bob", email="bob@example.com")
    assert await ledger.begin_epoch(entered.position) == entered.position
    ahead = Position(before.epoch, before.revision + 100)
    assert await ledger.begin_epoch(ahead) == Position(before.epoch + 1, entered.position.revision)
    assert await ledger.begin_epoch(ahead) == ledger.position


# --- people ---


@pytest_twisted.ensureDeferred
async def test_names_and_addresses_are_unique(world: World) -> None:
    """Of many who are added at once with one name, or one address, one is."""
    people = world.catalogue.people
    same_name = [NewPerson(username="carol", email=f"c{number}@example.org", password=PASSWORD) for number in range(4)]
    same_address = [NewPerson(username=f"d{number}", email="d@example.org", password=PASSWORD) for number in range(4)]
    for group in (same_name, same_address):
        results = await all_of([people.add(one) for one in group])
        assert sum(not isinstance(result, Exception) for result in results) == 1
        assert {result.code for result in results if isinstance(result, Refusal)} == {Code.EXISTS}


@pytest.mark.parametrize(
    "wrong",
    [{"username": "Alice!"}, {"username": "a/b"}, {"email": "nobody"}, {"email": "a b@c"}, {"password": "short"}, {"password": "x" * 2000}],
    ids=str,
)
@pytest_twisted.ensureDeferred
async def test_accounts_that_cannot_be(world: World, wrong: dict[str, str]) -> None:
    """A bad name, address or password is refused before anything is written."""
    new = attrs.evolve(NewPerson(username="carol", email="carol@example.org", password=PASSWORD), **wrong)
    assert await refused(world.catalogue.people.add(new)) in (Code.BAD_REQUEST, Code.BAD_PATH)


async def session_of(world: World, token_hash: bytes) -> Session | None:
    found: Session | None = await world.catalogue.read(lambda sql: directory.session(sql, token_hash))
    return found


@pytest_twisted.ensureDeferred
async def test_a_sign_in_lives_until_it_ends(world: World) -> None:
    """By name or address one gets a session; signing out ends it, and a new password, disabling and removal end all of a person's."""
    people = world.catalogue.people
    signed = await people.sign_in("alice@example.org", PASSWORD, "here")
    assert signed.username == "alice"
    session = signed.facts[0]
    assert isinstance(session, Session)
    assert signed.token.encode() not in session.token_hash
    await people.sign_out(session.token_hash)
    assert await session_of(world, session.token_hash) is None
    ends: list[tuple[str, Callable[[], Any]]] = [
        ("alice", lambda: people.change("alice", password="a new password")),
        ("bob", lambda: people.change("bob", disabled=True)),
    ]
    for username, end in ends:
        fact = (await people.sign_in(username, PASSWORD, "here")).facts[0]
        assert isinstance(fact, Session)
        await end()
        assert await session_of(world, fact.token_hash) is None
    fact = (await people.sign_in("alice", "a new password", "here")).facts[0]
    assert isinstance(fact, Session)
    await people.remove("alice", with_files=True)
    assert await session_of(world, fact.token_hash) is None


@pytest_twisted.ensureDeferred
async def test_a_session_does_not_outlive_the_account(world: World) -> None:
    """A session ends with the account's validity, if that is earlier; expired ones are removed."""
    people = world.catalogue.people
    await people.change("alice", valid_until=world.now + 60)
    signed = await people.sign_in("alice", PASSWORD, "here")
    assert signed.expires_at == world.now + 60
    world.now += 61
    assert await refused(people.sign_in("alice", PASSWORD, "here")) is Code.ACCOUNT_CLOSED
    await people.forget_expired_sessions()
    fact = signed.facts[0]
    assert isinstance(fact, Session)
    assert await session_of(world, fact.token_hash) is None


@pytest_twisted.ensureDeferred
async def test_wrong_passwords_are_slowed_down(world: World) -> None:
    """After some wrong ones even the right one must wait a minute, for that name from that address only."""
    people = world.catalogue.people
    for _ in range(FAILURES_MAX):
        assert await refused(people.check_password("alice", "wrong password", "there")) is Code.BAD_CREDENTIALS
    assert await refused(people.check_password("alice", PASSWORD, "there")) is Code.TOO_MANY_REQUESTS
    assert (await people.check_password("alice", PASSWORD, "elsewhere")).username == "alice"
    assert (await people.check_password("bob", PASSWORD, "there")).username == "bob"
    assert await refused(people.check_password("nobody", PASSWORD, "there")) is Code.BAD_CREDENTIALS
    world.now += FAILURES_WINDOW_S
    assert (await people.check_password("alice", PASSWORD, "there")).username == "alice"


@pytest_twisted.ensureDeferred
async def test_an_owner_of_files_is_not_removed_by_accident(world: World) -> None:
    """A person with files is removed only with them; a name that is used again finds nothing of before."""
    await world.put("alice/f")
    await world.put("bob/f")
    await world.grant("bob/f", "alice", Role.READER)
    assert await refused(world.catalogue.people.remove("alice", with_files=False)) is Code.CONFLICT
    before = await world.catalogue.read(lambda sql: directory.person(sql, "alice"))
    await world.catalogue.people.remove("alice", with_files=True)
    assert await world.entry("alice") is None
    await world.add("alice")
    after = await world.catalogue.read(lambda sql: directory.person(sql, "alice"))
    assert before is not None
    assert after is not None
    assert after.credentials != before.credentials
    assert await world.entry("alice/f") is None
    assert await world.catalogue.read(lambda sql: directory.shared_with(sql, "alice", b"", 10)) == []


@pytest_twisted.ensureDeferred
async def test_there_is_always_an_administrator(world: World) -> None:
    """The last administrator can neither be removed nor lose that office, even when two try at once."""
    people = world.catalogue.people
    for username in ("alice", "bob"):
        await people.change(username, administrator=True)
    results = await all_of([people.change("alice", administrator=False), people.remove("bob", with_files=False)])
    assert sum(isinstance(result, Refusal) and result.code is Code.CONFLICT for result in results) == 1


@pytest_twisted.ensureDeferred
async def test_people_are_listed_by_name(world: World) -> None:
    """In pages, each beginning after the last name of the one before."""
    await world.add("carol")
    pages = []
    after = ""
    while page := await world.catalogue.read(lambda sql, after=after: directory.people(sql, after, 2)):
        pages.append([person.username for person in page])
        after = page[-1].username
    assert pages == [["alice", "bob"], ["carol"]]


# --- servers ---


@pytest_twisted.ensureDeferred
async def test_an_invitation_is_used_once(world: World) -> None:
    """Of many that use one secret at once, one joins; it is down at first, whatever it says."""
    members = world.catalogue.members
    secret, _ = await members.invite("n9")
    assert [name for name, _ in await members.invites()] == ["n9"]
    results = await all_of([members.enrol(secret, node("n9", number)) for number in range(1, 5)])
    assert sum(isinstance(result, Refusal) and result.code is Code.INVALID_TOKEN for result in results) == 3
    assert world.catalogue.roster.servers["n9"].status is Status.DOWN
    assert await members.invites() == []


@pytest_twisted.ensureDeferred
async def test_an_invitation_is_for_one_name_and_one_day(world: World) -> None:
    """A secret opens nothing under another name, after its time, or after a newer invitation; members are not invited."""
    members = world.catalogue.members
    old, expires_at = await members.invite("n8")
    new, _ = await members.invite("n8")
    assert await refused(members.enrol(old, node("n8"))) is Code.INVALID_TOKEN
    assert await refused(members.enrol(new, node("n9"))) is Code.INVALID_TOKEN
    world.now = expires_at
    assert await refused(members.enrol(new, node("n8"))) is Code.INVALID_TOKEN
    assert await refused(members.invite("n1")) is Code.EXISTS
    assert await refused(members.invite("Not A Name")) is Code.BAD_REQUEST


@pytest_twisted.ensureDeferred
async def test_a_node_with_the_only_copy_stays(world: World) -> None:
    """A node is not removed while a file's only durable copy is on it."""
    only = (Copy(node="n3", priority=0, durable=True), Copy(node="n2", priority=1, durable=False))
    asked = await world.upload("alice/f", copies=only)
    await world.catalogue.files.commit(asked, "n3")
    assert await refused(world.catalogue.members.remove("n3")) is Code.CONFLICT
    await world.put("alice/f")
    await world.catalogue.members.remove("n3")
    assert world.catalogue.roster.nodes == ["n1", "n2"]
    assert await refused(world.catalogue.members.remove("n3")) is Code.NOT_FOUND


@pytest_twisted.ensureDeferred
async def test_addresses_and_keys_are_kept_up_to_date(world: World) -> None:
    """A node that comes back elsewhere, or with another key, is known so; nothing changes when nothing changed."""
    members = world.catalogue.members
    await members.readdress("n1", "https://new:1", "new:2")
    await members.renew_key("n1", b"new key")
    server = world.catalogue.roster.servers["n1"]
    assert (server.url, server.protocol_address, server.public_key) == ("https://new:1", "new:2", b"new key")
    position = world.catalogue.ledger.position
    await members.readdress("n1", "https://new:1", "new:2")
    assert world.catalogue.ledger.position == position
    assert await refused(members.readdress("nobody", "x", "y")) is Code.NOT_A_MEMBER
    assert await refused(members.put_admin(attrs.evolve(node("n1"), kind=ServerKind.ADMIN))) is Code.EXISTS


@pytest_twisted.ensureDeferred
async def test_a_node_names_addresses_of_its_own(world: World) -> None:
    """Not those of an admin server or a running node, nor loopback ones when the admin server is elsewhere; a dead node has none."""
    members = world.catalogue.members
    admin = Server(
        name="admin1",
        kind=ServerKind.ADMIN,
        url="https://admin.example:8443",
        protocol_address="admin.example:8444",
        public_key=b"",
        status=Status.RUNNING,
        syslog_address="admin.example:6514",
    )
    await members.put_admin(admin)
    wrong = [
        ("https://admin.example:8443", "n9.example:9444"),
        ("https://n9.example:9443", "ADMIN.example:8444"),
        ("https://n9.example:9443", "admin.example:6514"),
        ("https://n2.example:9441", "n9.example:9444"),
        ("https://127.0.0.1:9443", "n9.example:9444"),
        ("https://n9.example:9443", "localhost:9444"),
        ("https://n9.example:9443", "[::1]:9444"),
    ]
    secret, _ = await members.invite("n9")
    for url, protocol_address in wrong:
        asked = attrs.evolve(node("n9"), url=url, protocol_address=protocol_address)
        assert await refused(members.enrol(secret, asked)) is Code.BAD_REQUEST
        assert await refused(members.readdress("n1", url, protocol_address)) is Code.BAD_REQUEST
    # On the admin server's machine, by ports of its own.
    await members.readdress("n1", "https://admin.example:9443", "admin.example:9444")
    await world.hold({"n2": Status.DOWN})
    await members.enrol(secret, attrs.evolve(node("n9"), url="https://n2.example:9441"))
    # Where everything is on one machine, the admin server says so, too.
    await members.put_admin(attrs.evolve(admin, url="https://127.0.0.1:8443", protocol_address="127.0.0.1:8444", syslog_address=""))
    await members.readdress("n3", "https://127.0.0.1:9443", "127.0.0.1:9444")


ALL_RUNNING = dict.fromkeys(NODES, Status.RUNNING)


@pytest_twisted.ensureDeferred
async def test_more_than_half_judge_one_for_down(world: World) -> None:
    """One observer is not enough of two, both are; the change is in the feed. That they see it again does not bring it back."""
    judge = world.catalogue.members.judge
    down = Status.DOWN
    assert (await judge({("n1", "n3"): down}, ALL_RUNNING, {})).answer == ()
    entered = await judge({("n1", "n3"): down, ("n2", "n3"): down}, ALL_RUNNING, {})
    assert [(change.server, change.before, change.after) for change in entered.answer] == [("n3", Status.RUNNING, Status.DOWN)]
    assert world.catalogue.roster.running == ["n1", "n2"]
    # With two other running nodes it is theirs to say; the admin servers' own heartbeats do not count.
    assert (await judge({}, ALL_RUNNING, {})).answer == ()
    back = {("n1", "n3"): Status.RUNNING, ("n2", "n3"): Status.RUNNING}
    assert (await judge(back, ALL_RUNNING, {})).answer == ()
    assert world.catalogue.roster.running == ["n1", "n2"]


@pytest_twisted.ensureDeferred
async def test_where_few_are_running_the_admin_servers_judge(world: World) -> None:
    """With fewer than two other running nodes the admin servers' own heartbeats decide."""
    await world.hold({"n2": Status.DOWN})
    await world.catalogue.members.judge({}, ALL_RUNNING | {"n3": Status.DOWN}, {})
    assert world.catalogue.roster.running == ["n1"]


@pytest_twisted.ensureDeferred
async def test_two_halves_cannot_put_each_other_down(world: World) -> None:
    """Of four nodes cut in two halves, those put down first lose their vote, so some stay running."""
    await world.join("n4")
    halves = [("n1", "n2"), ("n3", "n4")]
    opinions = {(a, b): Status.DOWN for one, other in (halves, halves[::-1]) for a in one for b in other}
    await world.catalogue.members.judge(opinions, ALL_RUNNING | {"n4": Status.RUNNING}, {})
    assert len(world.catalogue.roster.running) >= 2


@pytest_twisted.ensureDeferred
async def test_a_process_that_was_not_verified_is_down(world: World) -> None:
    """A node whose heartbeats come from another process than the admitted one is down, whatever anybody thinks of it."""
    judge = world.catalogue.members.judge
    assert (await judge({}, ALL_RUNNING, {"n3": ""})).answer == ()
    entered = await judge({}, ALL_RUNNING, {"n1": "", "n3": "second life"})
    assert [(change.server, change.after) for change in entered.answer] == [("n3", Status.DOWN)]


@pytest_twisted.ensureDeferred
async def test_a_verified_node_is_admitted_or_failed(world: World) -> None:
    """Good: it is running, with the process that was verified; bad: it is failed. Other processes of it stay or become down."""
    members = world.catalogue.members
    await world.hold({"n2": Status.DOWN, "n3": Status.DOWN})
    entered = await members.rejoined("n3", "second life", True)
    assert [(change.server, change.before, change.after) for change in entered.answer] == [("n3", Status.DOWN, Status.RUNNING)]
    assert (world.catalogue.roster.servers["n3"].boot, world.catalogue.roster.running) == ("second life", ["n1", "n3"])
    await members.rejoined("n2", "second life", False)
    assert world.catalogue.roster.servers["n2"].status is Status.FAILED
    lives = {"n2": "second life", "n3": "second life"}
    assert (await members.judge({}, ALL_RUNNING, lives)).answer == ()
    entered = await members.judge({}, ALL_RUNNING, lives | {"n2": "third life", "n3": "third life"})
    assert {(change.server, change.after) for change in entered.answer} == {("n2", Status.DOWN), ("n3", Status.DOWN)}


@pytest_twisted.ensureDeferred
async def test_only_who_is_down_is_admitted(world: World) -> None:
    """A verdict that comes late, about a node that is running, failed, offline or a member no more, changes nothing."""
    members = world.catalogue.members
    await world.hold({"n2": Status.FAILED})
    await members.set_offline("n3", True)
    await members.remove("n1")
    position = world.catalogue.ledger.position
    for good in (True, False):
        for name in (*NODES, "nobody"):
            assert (await members.rejoined(name, "another life", good)).answer == ()
    assert world.catalogue.ledger.position == position


@pytest_twisted.ensureDeferred
async def test_offline_and_online(world: World) -> None:
    """Offline puts a node down, and it stays so whatever others see; online lets it return, and is not a return by itself."""
    members = world.catalogue.members
    entered = await members.set_offline("n3", True)
    assert [(change.before, change.after) for change in entered.answer] == [(Status.RUNNING, Status.DOWN)]
    assert world.catalogue.roster.servers["n3"].offline
    assert (await members.set_offline("n3", True)).facts == ()
    assert (await members.judge({}, ALL_RUNNING, {})).answer == ()
    await members.set_offline("n3", False)
    assert (world.catalogue.roster.servers["n3"].status, world.catalogue.roster.servers["n3"].offline) == (Status.DOWN, False)
    assert (await members.set_offline("n3", False)).facts == ()


@pytest_twisted.ensureDeferred
async def test_failed_turns_to_down_by_offline_or_online(world: World) -> None:
    """Either way a failed node is verified anew; a running one is not disturbed by online; admin servers are no nodes."""
    members = world.catalogue.members
    for offline in (True, False):
        await world.hold({"n3": Status.FAILED})
        entered = await members.set_offline("n3", offline)
        assert [(change.before, change.after) for change in entered.answer] == [(Status.FAILED, Status.DOWN)]
    assert (await members.set_offline("n1", False)).facts == ()
    await members.put_admin(attrs.evolve(node("a1"), kind=ServerKind.ADMIN))
    for name in ("a1", "nobody"):
        assert await refused(members.set_offline(name, True)) is Code.NOT_FOUND


@pytest_twisted.ensureDeferred
async def test_a_copy_turns_bad_and_is_made_again(world: World) -> None:
    """The node that tells of it, and only that one, is no holder until it has the copy again; each change is in the feed once."""
    files = world.catalogue.files
    await world.put("alice/f")
    version = (await world.entry("alice/f")).version
    file = (await world.entry("alice/f")).id
    position = world.catalogue.ledger.position
    for _ in range(2):
        await files.copy_bad(m.CopyBad(file=file, attempt=version.attempt, reason="rot"), "n1")
        assert (await world.entry("alice/f")).version.holders == ("n2",)
        assert (await world.entry("alice/f")).version.origin == "n1"
    for _ in range(2):
        await files.copy_made(m.CopyMade(file=file, attempt=version.attempt), "n1")
        assert (await world.entry("alice/f")).version == version
    assert world.catalogue.ledger.position.revision == position.revision + 2


@pytest_twisted.ensureDeferred
async def test_a_copy_of_what_is_not_current_is_nobodys_news(world: World) -> None:
    """A copy of an older version, of a deleted file, or on a node that was not to have one, changes nothing."""
    files = world.catalogue.files
    await world.put("alice/f")
    old = await world.entry("alice/f")
    await world.put("alice/f")
    await world.put("alice/g")
    gone = await world.entry("alice/g")
    await world.delete("alice/g")
    now = await world.entry("alice/f")
    position = world.catalogue.ledger.position
    for node_name, file, attempt in (
        ("n1", old.id, old.version.attempt),
        ("n1", gone.id, gone.version.attempt),
        ("n3", now.id, now.version.attempt),
    ):
        await files.copy_bad(m.CopyBad(file=file, attempt=attempt, reason="rot"), node_name)
        await files.copy_made(m.CopyMade(file=file, attempt=attempt), node_name)
    assert await world.entry("alice/f") == now
    assert world.catalogue.ledger.position == position


@pytest_twisted.ensureDeferred
async def test_what_is_told_of_many_copies_at_the_same_time_is_noted_of_each(world: World) -> None:
    """Of both copies of one file, of another file, and of what is not current; all are answered, and nobody's news undoes another's."""
    files = world.catalogue.files
    both = tuple(Copy(node=name, priority=priority, durable=False) for priority, name in enumerate(("n1", "n2")))
    for name in ("f", "g"):
        await world.put(f"alice/{name}")
    wholes = [await world.entry(f"alice/{name}") for name in ("f", "g")]
    for file in wholes:
        for copy in both:
            await files.copy_bad(m.CopyBad(file=file.id, attempt=file.version.attempt, reason="rot"), copy.node)
        assert (await world.entry(f"alice/{file.name}")).version.copies == both
    old = AttemptId(b"o" * 16)
    told = [(file.id, attempt, copy.node) for file in wholes for copy in both for attempt in (old, file.version.attempt)]
    answers = [files.copy_made(m.CopyMade(file=id_, attempt=attempt), node_name) for id_, attempt, node_name in told]
    assert [await answer for answer in answers] == [m.Done()] * len(told)
    assert [await world.entry(f"alice/{name}") for name in ("f", "g")] == wholes


@pytest_twisted.ensureDeferred
async def test_who_observes_what_since_when(world: World) -> None:
    """The matrix keeps the time of the last change of each opinion."""
    observations = world.catalogue.observations
    began = world.now
    await observations.keep_matrix({("n1", "n2"): Status.RUNNING, ("n3", "n2"): Status.DOWN})
    world.now += 10
    await observations.keep_matrix({("n1", "n2"): Status.RUNNING, ("n3", "n2"): Status.RUNNING})
    assert await observations.observers_of("n2") == [("n1", Status.RUNNING, began), ("n3", Status.RUNNING, began + 10)]


@pytest_twisted.ensureDeferred
async def test_storage_over_time(world: World) -> None:
    """Samples are kept and given back thinned out to the number of points asked for."""
    observations = world.catalogue.observations
    start = world.now
    for minute in range(60):
        seen = Seen(at=start + 60 * minute, position=Position(1, minute), used_bytes=minute, available_bytes=1000 - minute)
        await observations.keep_heartbeats({"n1": seen}, sample=True)
    assert (await observations.last_heartbeats())["n1"].position == Position(1, 59)
    assert len(await observations.storage("n1", start, start + 3600, 60)) == 60
    few = await observations.storage("n1", start, start + 3600, 6)
    assert 6 <= len(few) <= 7
    assert [used for _, used, _ in few] == sorted(used for _, used, _ in few)
    assert few[-1] == (start + 59 * 60, 59, 941)
    assert await observations.storage("n1", start + 3600, start + 7200, 10) == []


@pytest_twisted.ensureDeferred
async def test_settings_that_the_nodes_cannot_meet_are_refused(world: World) -> None:
    """There can be no more replicas than other nodes."""
    members = world.catalogue.members
    await members.set_settings(ClusterSettings(replicas=2))
    assert world.catalogue.roster.settings.replicas == 2
    assert await refused(members.set_settings(ClusterSettings(replicas=3))) is Code.CONFLICT


# --- audit records ---


@pytest_twisted.ensureDeferred
async def test_audit_records_are_kept_once(world: World) -> None:
    """Storing the same records again adds nothing; the highest number is known by server and boot."""
    record = AuditRecord(at=world.now, server="n1", event="read", person="alice", path="alice/ü", status=200, bytes=1 << 40, duration_s=0.5)
    received = [ReceivedRecord(server="n1", boot="b", number=number, record=record, line=b"") for number in range(1, 251)]
    await world.catalogue.store_audit(received[:200])
    await world.catalogue.store_audit(received)
    assert await world.catalogue.last_audit("n1", "b") == 250
    assert await world.catalogue.last_audit("n1", "other") == 0
    rows = await world.catalogue.read(lambda sql: sql.query("SELECT count(*), min(path), max(bytes) FROM audit"))
    assert tuple(rows[0]) == (250, "alice/ü", 1 << 40)


# --- PostgreSQL only: the line breaks between COMMIT and its answer ---


@pytest.mark.parametrize("delivered", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_commit_whose_answer_was_lost(postgres_dsn: str, tmp_path: Path, delivered: bool) -> None:
    """The node hears that the outcome is unknown, asks, and gets the truth; the feed has no gap either way."""
    async with proxied(postgres_dsn, tmp_path) as (proxy, database):
        world = World(database)
        await world.open()
        ledger = world.catalogue.ledger
        heard: list[int] = []
        start = ledger.position.revision
        ledger.listen(lambda position, change: heard.append(change.revision))
        asked = await world.upload("alice/f")
        proxy.word, proxy.deliver = b"COMMIT\0", delivered
        with pytest.raises(OutcomeUnknown):
            await world.catalogue.files.commit(asked, "n1")
        await deferLater(reactor, 0.1)  # the server may still be at it
        outcome = await world.catalogue.files.outcome(asked.attempt, False)
        assert outcome.ended == ("committed" if delivered else None)
        again = await world.catalogue.files.commit(asked, "n1")
        assert again.attempt == asked.attempt
        if delivered:
            assert outcome.committed == again
        # The next commit is told only after the one whose answer was lost.
        await world.make_folder("alice/d")
        await ledger.catch_up()
        assert heard == [start + 1, start + 2]


@pytest_twisted.ensureDeferred
async def test_a_later_commit_waits_for_one_whose_answer_was_lost(postgres_dsn: str, tmp_path: Path) -> None:
    """Listeners are not told of revision 2 before they know 1, though its answer never came."""
    async with proxied(postgres_dsn, tmp_path) as (proxy, database):
        world = World(database)
        await world.open()
        heard: list[int] = []
        start = world.catalogue.ledger.position.revision
        world.catalogue.ledger.listen(lambda position, change: heard.append(change.revision))
        asked = await world.upload("alice/f")
        proxy.word, proxy.deliver = b"COMMIT\0", True
        with pytest.raises(OutcomeUnknown):
            await world.catalogue.files.commit(asked, "n1")
        await deferLater(reactor, 0.1)
        await world.make_folder("alice/d")
        assert heard == []
        await world.catalogue.ledger.catch_up()
        assert heard == [start + 1, start + 2]
        assert isinstance(await world.entry("alice/f"), File)


@pytest_twisted.ensureDeferred
async def test_the_name_of_a_removed_holder_is_not_given_again(world: World) -> None:
    """A new node under the old name would be taken for a holder of what only the removed one had."""
    copies = (Copy(node="n1", priority=0, durable=True), Copy(node="n3", priority=1, durable=True))
    await world.catalogue.files.commit(await world.upload("alice/f", copies=copies), "n1")
    await world.catalogue.members.remove("n3", force=True)
    assert await refused(world.catalogue.members.invite("n3")) is Code.EXISTS
    await world.put("alice/f")
    await world.catalogue.members.invite("n3")


class HeldWorker:
    """A worker whose work waits until it is let go."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] = []

    def do(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred()
        self.held.append(lambda: result.callback(work(*arguments)))
        return result

    async def let_all_go(self) -> None:
        while self.held:
            self.held.pop(0)()
            await deferLater(reactor, 0)


@pytest_twisted.ensureDeferred
async def test_guesses_at_once_are_counted_like_guesses_in_a_row() -> None:
    """A hundred wrong passwords sent together are throttled after ten, though none had failed when they came."""
    world, worker = World(SqliteDatabase(None)), HeldWorker()
    await world.open()
    world.catalogue.people._worker = worker
    guesses = [world.catalogue.people.check_password("alice", f"guess {number}", "peer") for number in range(50)]
    await worker.let_all_go()
    codes = [result.code for result in await all_of(guesses)]
    assert codes.count(Code.BAD_CREDENTIALS) <= FAILURES_MAX + VERIFYING_MAX
    assert set(codes) == {Code.BAD_CREDENTIALS, Code.TOO_MANY_REQUESTS}


@pytest_twisted.ensureDeferred
async def test_passwords_do_not_pile_up() -> None:
    """What is slow to verify and cheap to send is bounded: in all, and for each address; others get their turn."""
    world, worker = World(SqliteDatabase(None)), HeldWorker()
    await world.open()
    people = world.catalogue.people
    people._worker = worker
    flood = [people.check_password(f"nobody{number}", "guess", "flooder") for number in range(WAITING_PER_PEER_MAX + 5)]
    assert len(worker.held) == VERIFYING_MAX
    assert [one.called for one in flood[-5:]] == [True] * 5
    alice = people.check_password("alice", PASSWORD, "elsewhere")
    await worker.let_all_go()
    assert (await alice).username == "alice"
    assert not people._waiting
    assert set(map(type, await all_of(flood))) == {Refusal}


@pytest_twisted.ensureDeferred
async def test_addresses_that_nobody_can_connect_to_are_refused(world: World) -> None:
    """Neither a new node nor a returning one may have the whole cluster connect to what is no address; the invitation stays good."""
    members = world.catalogue.members
    admin = attrs.evolve(node("admin1"), kind=ServerKind.ADMIN)
    await members.put_admin(admin)
    secret, _ = await members.invite("n9")
    good = node("n9")
    every: tuple[dict[str, Any], ...] = (
        {"url": "https://n9.example"},
        {"url": "https://n9.example:9443/api"},
        {"url": "https://me@n9.example:9443"},
        {"url": "ftp://n9.example:9443"},
        {"url": "http://n9.example:9443"},
        {"url": "https://n 9:9443"},
        {"protocol_address": "n9.example"},
        {"protocol_address": "n9.example:0"},
        {"protocol_address": "n9.example:99999"},
        {"protocol_address": "n9.example:\u0661"},
        {"protocol_address": "-n9:9444"},
    )
    for changes in every:
        bad = attrs.evolve(good, **changes)
        assert await refused(members.enrol(secret, bad)) is Code.BAD_REQUEST, changes
        assert await refused(members.readdress("n1", bad.url, bad.protocol_address)) is Code.BAD_REQUEST, changes
    await members.enrol(secret, good)
    await members.readdress("n9", "https://[2001:db8::9]:9443", "192.0.2.9:9444")
    assert world.catalogue.roster.servers["n9"].url == "https://[2001:db8::9]:9443"


@pytest_twisted.ensureDeferred
async def test_a_certificate_names_no_other_server(world: World) -> None:
    """A node that could be taken for the admin server would be told passwords. What it is reached by itself may be another one's, too."""
    members = world.catalogue.members
    await members.put_admin(attrs.evolve(node("admin1"), kind=ServerKind.ADMIN))
    secret, _ = await members.invite("n9")
    for host in ("admin1.example", "ADMIN1.example", "admin1", "n1.example", "n1", "*.example", "a b"):
        assert await refused(members.enrol(secret, node("n9"), ["n9.example", host])) is Code.BAD_REQUEST, host
    together = attrs.evolve(node("n9"), url="https://n1.example:9543")
    await members.enrol(secret, together, ["n9", "n1.example", "127.0.0.1", "localhost"])
    assert "n9" in world.catalogue.roster.nodes


@pytest_twisted.ensureDeferred
async def test_a_running_node_is_drained_before_it_is_removed(world: World) -> None:
    """Else files would be left with a single copy; who insists may have it, and a node that is down is removed by what the others have."""
    members = world.catalogue.members
    await world.put("alice/f")
    assert await refused(members.remove("n2")) is Code.CONFLICT
    assert await refused(members.remove("n2", only_look=True)) is Code.CONFLICT
    await members.remove("n2", only_look=True, force=True)
    await members.drain("n2", True)
    await members.remove("n2", only_look=True)
    await members.drain("n2", False)
    await world.hold({"n2": Status.DOWN})
    await members.remove("n2")
    assert world.catalogue.roster.nodes == ["n1", "n3"]
    assert await refused(members.remove("n1", force=True)) is Code.CONFLICT
