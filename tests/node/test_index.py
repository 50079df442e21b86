"""A node's index: whatever comes when, it ends where the feed ends."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Sidecar, Version
from securifile.model.ids import BEGINNING, AttemptId, EntryId, Position
from securifile.model.roles import Role
from securifile.model.servers import ServerKind, Status
from securifile.node.index import AHEAD_MAX, Index
from securifile.sql.facts import Renewed, every_fact
from securifile.sql.sqlite import SqliteDatabase, run_now
from securifile.sql.tables import FACT_TABLE_NAMES
from tests.histories import History, histories, history

T = TypeVar("T")

EPOCH = 1


def now(awaitable: Awaitable[T]) -> T:
    """The result of something that does not wait."""
    return run_now(awaitable)


def new_index(database: SqliteDatabase | None = None) -> Index:
    """An open index, empty at the beginning of an epoch."""
    index = Index(database or SqliteDatabase(None), lambda: 100.0)
    now(index.open())
    if index.position == BEGINNING:
        now(index.replace(Position(EPOCH, 0), []))
    return index


def tables(index: Index) -> dict[str, list[Any]]:
    """Every row of every table of facts. Counters that are back at nothing say the same as none."""
    rows = {name: sorted(now(index.sql.query(f"SELECT * FROM {name}")), key=repr) for name in FACT_TABLE_NAMES}
    return rows | {"usage": [row for row in rows["usage"] if row[1:] != (0, 0)]}


def noted(index: Index) -> set[AttemptId]:
    """The attempts noted as superseded."""
    return set(now(index.superseded_before(100.0)))


def stamps(index: Index) -> list[Any]:
    return list(now(index.sql.query("SELECT * FROM stamps")))


def fed(changes: Iterable[f.Change]) -> Index:
    """An index that got the feed and nothing else."""
    index = new_index()
    for change in changes:
        now(index.apply_changes(EPOCH, [change]))
    return index


def announce(index: Index, change: f.Change) -> bool:
    return now(index.announced(Position(EPOCH, change.revision), change.facts))


@attrs.frozen
class Delivery:
    """A history, and the order in which its changes reach a node: `feed` so many next changes, or `announce` one."""

    history: History
    steps: tuple[tuple[str, int], ...]


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    """Announcements of any changes, in any order, doubled or not at all, among pieces of the ordered feed."""
    past = draw(histories())
    random: Random = draw(st.randoms(use_true_random=False))
    steps: list[tuple[str, int]] = []
    for change in past.changes:
        steps += [("announce", change.revision)] * random.choice([0, 1, 1, 1, 2])
    random.shuffle(steps)
    # Announcements come early rather than late: that is when they matter.
    left = len(past.changes)
    while left:
        some = random.randint(1, min(5, left))
        steps.insert(random.randint(len(steps) // 2, len(steps)), ("feed", some))
        left -= some
    return Delivery(past, tuple(steps))


def deliver(delivery: Delivery, index: Index) -> None:
    """Carry it out; the feed goes on where the index is, as it does after each reconnection."""
    changes = delivery.history.changes
    for kind, number in delivery.steps:
        before = index.position
        if kind == "announce":
            known = announce(index, changes[number - 1])
            assert known or index.position.revision < number
        else:
            now(index.apply_changes(EPOCH, changes[before.revision : before.revision + number]))
            assert index.position.revision >= min(before.revision + number, len(changes))
        assert index.position >= before
    now(index.apply_changes(EPOCH, changes[index.position.revision :]))


@settings(deadline=None)
@given(deliveries())
def test_announcements_change_nothing_in_the_end(delivery: Delivery) -> None:
    """Whatever is announced, in whatever order, the tables end up as the feed alone makes them."""
    index = new_index()
    deliver(delivery, index)
    alone = fed(delivery.history.changes)
    assert tables(index) == tables(alone)
    assert set(now(every_fact(index.sql))) == delivery.history.world.facts()
    assert index.position == alone.position
    assert stamps(index) == []


@settings(deadline=None)
@given(deliveries())
def test_superseded_blobs_are_noted_exactly(delivery: Delivery) -> None:
    """Each attempt that was current once and is not any more is noted, and no other."""
    index = new_index()
    deliver(delivery, index)
    assert noted(index) == delivery.history.world.superseded


@settings(deadline=None)
@given(deliveries())
def test_listeners_end_up_knowing_what_is_true(delivery: Delivery) -> None:
    """Who keeps the last fact about each server and the settings knows what the tables know."""
    index = new_index()
    told = new_index_listener(index)
    deliver(delivery, index)
    assert told.servers == delivery.history.world.servers
    assert told.settings == delivery.history.world.settings


@attrs.define
class Told:
    """What a listener makes of what it is told."""

    servers: dict[str, f.Server] = attrs.field(factory=dict)
    settings: f.Settings | None = None

    def learn(self, fact: f.Fact) -> None:
        match fact:
            case f.Server():
                self.servers[fact.name] = fact
            case f.ServerGone():
                self.servers.pop(fact.name, None)
            case f.Settings():
                self.settings = fact


def new_index_listener(index: Index) -> Told:
    told = Told()
    index.listen(told.learn)
    return told


@settings(deadline=None)
@given(histories(), st.data())
def test_a_snapshot_is_as_good_as_the_feed(past: History, data: st.DataObject) -> None:
    """A snapshot in the middle and the feed from there on give the same tables as the feed from the beginning."""
    middle = data.draw(st.integers(0, len(past.changes)))
    source = fed(past.changes[:middle])
    index = new_index()
    for change in data.draw(st.permutations(past.changes)):
        announce(index, change)
    if index.position.revision <= middle:
        now(index.replace(source.position, now(every_fact(source.sql))))
        assert tables(index) == tables(source)
    now(index.apply_changes(EPOCH, past.changes[middle:]))
    assert tables(index) == tables(fed(past.changes))


@settings(deadline=None)
@given(deliveries())
def test_versions_are_told_of_before_they_can_be_seen(delivery: Delivery) -> None:
    """Each, with the one whose place it takes, while the transaction is under way; dated not earlier than its commit."""
    index = new_index()
    every = [(change.revision, fact) for change in delivery.history.changes for fact in change.facts if isinstance(fact, f.File)]
    committed = {fact.version.attempt: Position(EPOCH, revision) for revision, fact in reversed(every)}
    told: set[AttemptId] = set()

    def renewed(new: Renewed, position: Position) -> None:
        assert index.is_writing
        before = new.before()
        version = new.file.version
        assert before is None or (before.attempt in told and before in [fact.version for _, fact in every if fact.id == new.file.id])
        assert new.is_next is (version.number == (1 if before is None else before.number + 1))
        assert position >= committed[version.attempt]
        told.add(version.attempt)

    index.watch_versions(renewed, lambda position: pytest.fail("there was no snapshot"))
    index.listen(lambda fact: None if not isinstance(fact, f.File) or fact.version.attempt in told else pytest.fail("not told"))
    deliver(delivery, index)
    assert {fact.version.attempt for fact in delivery.history.world.facts() if isinstance(fact, f.File)} <= told


def test_a_snapshot_makes_everything_new() -> None:
    """That is said before it can be seen, with its position."""
    index = new_index()
    told: list[tuple[Position, bool]] = []
    index.watch_versions(lambda new, position: None, lambda position: told.append((position, index.is_writing)))
    now(index.replace(Position(EPOCH, 7), []))
    assert told == [(Position(EPOCH, 7), True)]


def test_a_gap_is_refused() -> None:
    """A change that is not the next one, or of another epoch, is no part of the feed, and nothing of it is applied."""
    past = history(Random(1), 5)
    index = fed(past.changes[:2])
    before = tables(index)
    with pytest.raises(ValueError, match=r"goes on at 1\.4"):
        now(index.apply_changes(EPOCH, past.changes[3:]))
    with pytest.raises(ValueError, match=r"goes on at 2\.3"):
        now(index.apply_changes(EPOCH + 1, past.changes[2:]))
    assert index.position == Position(EPOCH, 2)
    assert tables(index) == before


def test_what_is_known_is_passed_over() -> None:
    """Changes at or below the watermark are harmless, together with new ones or alone."""
    past = history(Random(2), 6)
    index = fed(past.changes[:4])
    now(index.apply_changes(EPOCH, past.changes[:3]))
    assert index.position == Position(EPOCH, 4)
    now(index.apply_changes(EPOCH, past.changes))
    assert tables(index) == tables(fed(past.changes))


def test_the_watermark_never_goes_back() -> None:
    """A snapshot older than the index, late on its way, is not taken."""
    past = history(Random(3), 8)
    index = fed(past.changes)
    old = fed(past.changes[:5])
    now(index.replace(old.position, now(every_fact(old.sql))))
    assert index.position == Position(EPOCH, 8)
    assert tables(index) == tables(fed(past.changes))


def test_a_new_epoch_takes_the_index_back() -> None:
    """A snapshot of a later epoch is taken whatever its revision: the catalogue has gone back in time."""
    past = history(Random(4), 8)
    index = fed(past.changes)
    announce(index, f.Change(revision=20, facts=(f.Session(token_hash=b"t", username="ann", expires_at=1.0),)))
    old = fed(past.changes[:5])
    now(index.replace(Position(EPOCH + 1, 5), now(every_fact(old.sql))))
    assert index.position == Position(EPOCH + 1, 5)
    assert tables(index) == tables(old)
    assert stamps(index) == []


def test_a_snapshot_notes_nothing_as_superseded() -> None:
    """What became of blobs that a snapshot does not name is asked of the catalogue; they are not merely old."""
    index = fed(history(Random(5), 20).changes)
    before = noted(index)
    now(index.replace(Position(EPOCH, 50), []))
    assert noted(index) == before


def test_the_index_survives_a_restart(tmp_path: Path) -> None:
    """Position, tables, stamps and notes are in the file."""
    past = history(Random(6), 20)
    database = SqliteDatabase(tmp_path / "index.sqlite")
    index = new_index(database)
    now(index.apply_changes(EPOCH, past.changes[:10]))
    for change in past.changes[11:]:
        announce(index, change)
    found = tables(index), noted(index), stamps(index), index.position
    database.close()
    again = new_index(SqliteDatabase(tmp_path / "index.sqlite"))
    assert (tables(again), noted(again), stamps(again), again.position) == found
    now(again.apply_changes(EPOCH, past.changes[10:]))
    assert tables(again) == tables(fed(past.changes))


def test_an_index_of_another_schema_is_made_anew(tmp_path: Path) -> None:
    """An index that another release made is empty afterwards, and asks for a snapshot."""
    database = SqliteDatabase(tmp_path / "index.sqlite")
    index = new_index(database)
    now(index.apply_changes(EPOCH, history(Random(7), 9).changes))
    now(index.sql.execute("PRAGMA user_version = 99"))
    again = Index(database, lambda: 0.0)
    now(again.open())
    assert again.position == BEGINNING
    assert now(every_fact(again.sql)) == []


# --- announcements ahead of the feed, by example ---


def person(credentials: int = 1) -> f.Person:
    return f.Person(
        username="ann",
        email="ann@example.org",
        administrator=False,
        valid_from=0.0,
        valid_until=None,
        disabled=False,
        quota_bytes=None,
        credentials=credentials,
    )


def session(token: bytes) -> f.Session:
    return f.Session(token_hash=token, username="ann", expires_at=1.0)


ROOT = f.Folder(id=EntryId(b"r" * 16), owner="ann", parent=None, name="ann", created_at=0.0)


def file(number: int, name: str = "a", id_: bytes = b"f") -> f.File:
    version = Version(
        number=number,
        attempt=AttemptId(id_ * 15 + bytes([number])),
        size=number,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )
    return f.File(id=EntryId(id_ * 16), owner="ann", parent=ROOT.id, name=name, created_at=0.0, version=version)


def changes(*groups: Sequence[f.Fact]) -> list[f.Change]:
    return [f.Change(revision=revision, facts=tuple(group)) for revision, group in enumerate(groups, 1)]


def sessions(index: Index) -> set[bytes]:
    return {row[0] for row in now(index.sql.query("SELECT token_hash FROM sessions"))}


def test_a_new_password_ends_the_sessions_that_the_feed_has_yet_to_bring() -> None:
    """A change of password that is announced early ends older sessions that come late, and spares newer ones."""
    past = changes([person(), ROOT], [session(b"old")], [person(2)], [session(b"new")])
    index = fed(past[:1])
    announce(index, past[2])
    announce(index, past[3])
    now(index.apply_changes(EPOCH, past[1:]))
    assert sessions(index) == {b"new"}


def test_a_person_made_again_has_no_old_rights() -> None:
    """Who is removed and made again under the same name gets nothing of the other's, even if the news overtake one another."""
    grant = f.Grant(entry=ROOT.id, username="ann", role=Role.READER, granted_by="ben")
    past = changes([person(), ROOT], [grant], [session(b"old")], [f.PersonGone(username="ann")], [person(7)])
    index = fed(past[:3])
    announce(index, past[4])
    now(index.apply_changes(EPOCH, past[3:]))
    assert sessions(index) == set()
    assert now(index.sql.query("SELECT * FROM grants")) == []
    assert now(every_fact(index.sql)) == [person(7), ROOT]


def test_a_version_that_was_skipped_is_superseded() -> None:
    """When version 3 is announced before the feed brings version 2, the blob of 2 is superseded all the same."""
    past = changes([person(), ROOT], [file(1)], [file(2)], [file(3)], [file(3, "b")])
    index = fed(past[:2])
    assert announce(index, past[3])
    assert announce(index, past[4])
    assert noted(index) == {file(1).version.attempt}
    now(index.apply_changes(EPOCH, past[2:]))
    assert noted(index) == {file(1).version.attempt, file(2).version.attempt}


def test_an_announcement_that_can_stand_alone_is_known_at_once() -> None:
    """A new version announced out of turn is in the index before the feed has come so far, and the watermark stays."""
    past = changes([person(), ROOT], [file(1)], [session(b"s")], [file(2)])
    index = fed(past[:2])
    assert announce(index, past[3])
    assert now(index.names(file(2).version.attempt))
    assert not now(index.names(file(1).version.attempt))
    assert index.position == Position(EPOCH, 2)
    assert announce(index, past[3]), "the same again"


def test_a_deletion_waits_for_its_turn() -> None:
    """What depends on changes in between is not known until they have come; then it is, without being told again."""
    past = changes([person(), ROOT], [file(1)], [file(1, "b")], [f.EntryGone(id=file(1).id)], [session(b"s")])
    index = fed(past[:2])
    assert not announce(index, past[3])
    assert announce(index, past[4]), "this one can stand alone"
    known = index.reached(Position(EPOCH, 5))
    assert not known.called
    now(index.apply_changes(EPOCH, [past[2]]))
    assert known.called
    assert index.position == Position(EPOCH, 5)
    assert tables(index) == tables(fed(past))


def test_a_taken_place_is_not_taken_twice() -> None:
    """A file announced where another still is waits until the feed has taken that one away."""
    other = file(1, "a", b"g")
    past = changes([person(), ROOT], [file(1)], [f.EntryGone(id=file(1).id)], [other])
    index = fed(past[:2])
    assert not announce(index, past[3])
    assert len(now(index.sql.query("SELECT id FROM entries WHERE name = 'a'"))) == 1
    now(index.apply_changes(EPOCH, [past[2]]))
    assert index.position == Position(EPOCH, 4)


def test_announcements_of_another_epoch_are_left_to_the_feed() -> None:
    """Revisions of different lives of the catalogue are not compared."""
    index = fed(changes([person(), ROOT]))
    assert not now(index.announced(Position(EPOCH + 1, 2), (session(b"s"),)))
    assert sessions(index) == set()
    assert now(index.announced(Position(EPOCH - 1, 99), (session(b"s"),)))
    assert sessions(index) == set()


def test_a_flood_ahead_does_not_keep_the_next_one_out() -> None:
    """What is kept for its turn is bounded, and the change whose turn it is is taken even then."""
    index = fed(changes([person(), ROOT]))
    for revision in range(3, AHEAD_MAX + 10):
        assert not announce(index, f.Change(revision=revision, facts=(f.PersonGone(username="nobody"),)))
    assert announce(index, f.Change(revision=2, facts=(f.ServerGone(name="none"),)))
    assert index.position == Position(EPOCH, AHEAD_MAX + 2), "and then all that were kept"


def test_waiting_ends_when_the_position_is_reached_and_may_be_cancelled() -> None:
    """`reached` fires at once for the past, later for the future, and a cancelled wait leaves nothing behind."""
    past = changes([person(), ROOT], [session(b"s")])
    index = fed(past[:1])
    assert index.reached(Position(EPOCH, 1)).called
    patient, impatient = index.reached(Position(EPOCH, 2)), index.reached(Position(EPOCH, 2))
    impatient.cancel()
    impatient.addErrback(lambda failure: failure.trap(CancelledError))
    now(index.apply_changes(EPOCH, past[1:]))
    assert patient.called
    assert index.reached(Position(EPOCH, 2)).called


def test_who_waits_may_end_the_waiting_of_another() -> None:
    """Who is told first cancels the next; those behind are told all the same."""
    past = changes([person(), ROOT], [session(b"s")])
    index = fed(past[:1])
    first, second, third = (index.reached(Position(EPOCH, 2)) for _ in range(3))
    second.addErrback(lambda failure: failure.trap(CancelledError))
    first.addCallback(lambda _: second.cancel())
    now(index.apply_changes(EPOCH, past[1:]))
    assert third.called


def test_who_waits_may_announce_the_next() -> None:
    """A waiter that is woken by a change may itself bring the one after."""
    past = changes([person(), ROOT], [session(b"s")], [session(b"t")])
    index = fed(past[:1])

    async def relay() -> None:
        await index.reached(Position(EPOCH, 2))
        await index.announced(Position(EPOCH, 3), past[2].facts)

    relaying = Deferred.fromCoroutine(relay())
    announce(index, past[1])
    assert relaying.called
    assert index.position == Position(EPOCH, 3)


def test_a_peer_is_given_what_it_missed_or_nothing() -> None:
    """Changes at hand are given without a gap; what is too old, or of another epoch, is not answered with a part of it."""
    past = changes([person(), ROOT], [session(b"s")], [session(b"t")])
    index = fed(past)
    assert index.recent_after(Position(EPOCH, 1)) == tuple(past[1:])
    assert index.recent_after(Position(EPOCH, 3)) == ()
    assert index.recent_after(Position(EPOCH + 1, 1)) == ()
    now(index.replace(Position(EPOCH, 10), now(every_fact(index.sql))))
    assert index.recent_after(Position(EPOCH, 1)) == ()
    now(index.apply_changes(EPOCH, [f.Change(revision=11, facts=(session(b"u"),))]))
    assert index.recent_after(Position(EPOCH, 1)) == ()
    assert len(index.recent_after(Position(EPOCH, 10))) == 1


def test_superseded_blobs_are_forgotten_one_by_one() -> None:
    """What was dropped from the disk is noted no more; what was superseded just now is not yet old."""
    index = fed(changes([person(), ROOT], [file(1)], [file(2)]))
    assert now(index.superseded_before(99.0)) == []
    assert now(index.superseded_before(100.0)) == [file(1).version.attempt]
    now(index.forget_superseded(file(1).version.attempt))
    assert now(index.superseded_before(100.0)) == []


def test_who_is_no_member_in_a_snapshot_is_gone_for_listeners_too() -> None:
    """A server that was removed while this node was away opens nothing here any more: listeners hear that it is gone."""
    left, stayed = (
        f.Server(
            name=name,
            kind=ServerKind.NODE,
            url=f"https://{name}:9443",
            protocol_address=f"{name}:9444",
            public_key=b"key",
            status=Status.RUNNING,
        )
        for name in ("left", "stayed")
    )
    index = new_index()
    now(index.apply_changes(EPOCH, [f.Change(revision=1, facts=(left, stayed))]))
    heard: list[f.Fact] = []
    index.listen(heard.append)
    now(index.replace(Position(EPOCH, 50), [stayed]))
    assert heard == [f.ServerGone(name="left"), stayed]


def test_who_waited_to_write_looks_again() -> None:
    """Two deliveries of the same changes that wait for one another are applied once; an older snapshot that waited is not taken."""
    past = history(Random(5), 8)
    database = SqliteDatabase(None)
    index = new_index(database)
    late = fed(past.changes[:2])
    snapshot = now(every_fact(late.sql))
    held: Deferred[None] = Deferred()

    async def hold(sql: Any) -> None:
        await held

    holding = database.transact("hold", hold)
    outcomes: list[Any] = []
    for delivery in (
        index.apply_changes(EPOCH, past.changes[:5]),
        index.apply_changes(EPOCH, past.changes[:3]),
        index.announced(Position(EPOCH, 1), past.changes[0].facts),
        index.replace(late.position, snapshot),
    ):
        Deferred.fromCoroutine(delivery).addBoth(outcomes.append)
    assert outcomes == []
    held.callback(None)
    assert holding.called
    assert sorted(type(getattr(outcome, "value", outcome)).__name__ for outcome in outcomes) == [
        "NoneType",
        "NoneType",
        "ValueError",
        "bool",
    ]
    assert index.position == Position(EPOCH, 5)
    assert tables(index) == tables(fed(past.changes[:5]))


def told(index: Index) -> set[tuple[f.Fact, Position]]:
    """What it would hand in to a catalogue in which there is nothing."""
    return {(claim.fact, claim.at) for claim in now(index.claims([]))}


def test_the_end_of_a_right_that_was_announced_early_is_handed_in() -> None:
    """There is nothing in the tables to show for it, and another index, further on by the feed, may have the right still."""
    grant = f.Grant(entry=file(1).id, username="alice", role=Role.READER, granted_by="alice")
    gone = f.GrantGone(entry=file(1).id, username="alice")
    past = changes([person(), ROOT, file(1)], [session(b"s"), grant], [session(b"t")], [f.SessionGone(token_hash=b"s")], [gone])
    index = fed(past[:2])
    assert (grant, Position(EPOCH, 2)) in told(index)
    assert announce(index, past[3])
    assert announce(index, past[4])
    said = told(index)
    assert {(f.SessionGone(token_hash=b"s"), Position(EPOCH, 4)), (gone, Position(EPOCH, 5))} <= said
    assert grant not in {fact for fact, _ in said}


def test_a_commit_that_its_sidecar_does_not_note_yet_is_told() -> None:
    """Of current and of superseded versions; an upload that the index does not know stays as it is."""
    past = changes([person(), ROOT], [file(1)], [file(2)])
    index = fed(past)

    def staged(number: int) -> Sidecar:
        version = file(number).version
        return Sidecar(
            attempt=version.attempt,
            file=file(number).id.value,
            version=number,
            size=version.size,
            digest=version.digest,
            algorithm=version.algorithm,
            committed_at=None,
        )

    found = now(index.with_commits([staged(1), staged(2), staged(3)]))
    assert [sidecar.committed_at for sidecar in found] == [(EPOCH, 3), (EPOCH, 3), None]
