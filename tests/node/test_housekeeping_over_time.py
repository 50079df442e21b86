"""What becomes of a node's blobs over time: through feeds, restarts and snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, CorruptBlock, NoSuchBlob, OutcomeUnknown, Refusal
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.roster import Roster
from securifile.model.settings import ClusterSettings
from securifile.node.acting import Acting
from securifile.node.housekeeping import ROUND_S, STAGED_ROUNDS, Housekeeping
from securifile.node.index import Index
from securifile.node.memory_blobs import MemoryBlobs
from securifile.protocol import messages as m
from securifile.sql.facts import every_fact
from securifile.sql.sqlite import SqliteDatabase, run_now

FILE = EntryId(b"f" * 16)
ROOT = EntryId(b"r" * 16)
KEPT_S = 600.0
ASKED_S = (STAGED_ROUNDS + 1) * ROUND_S


def attempt(number: int) -> AttemptId:
    return AttemptId(bytes([number]) * 16)


def version(number: int) -> Version:
    return Version(
        number=number,
        attempt=attempt(number),
        size=3,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )


def file(number: int) -> f.File:
    return f.File(id=FILE, owner="ann", parent=ROOT, name="a", created_at=0.0, version=version(number))


def committed(number: int, position: Position) -> m.Outcome:
    answer = m.Committed(position=position, facts=(file(number),), attempt=attempt(number), created=False)
    return m.Outcome(ended="committed", committed=answer)


ABANDONED = m.Outcome(ended="abandoned")


@attrs.define
class FakeActing:
    """An admin server that knows how attempts ended, or is not there."""

    roster: Roster
    outcomes: dict[AttemptId, Any] = attrs.field(factory=dict)
    asked: list[AttemptId] = attrs.field(factory=list)

    def ask_admin(self, message: m.OutcomeAsk) -> Deferred[Any]:
        self.asked.append(message.attempt)
        outcome = self.outcomes.get(message.attempt, Refusal(Code.CATALOGUE_UNAVAILABLE, "nobody there"))
        answer: Deferred[Any] = Deferred()
        (answer.errback if isinstance(outcome, Exception) else answer.callback)(outcome)
        return answer


class World:
    """A node with some blobs."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.blobs = MemoryBlobs()
        self.index = Index(SqliteDatabase(None), self.clock.seconds)
        run_now(self.index.open())
        run_now(self.index.replace(Position(1, 0), []))
        self.acting = FakeActing(Roster())
        self.acting.roster.settings = ClusterSettings(keep_superseded_s=KEPT_S)
        self.under_way: set[AttemptId] = set()
        self.housekeeping = self.restart()

    def restart(self) -> Housekeeping:
        """Another life of the process on the same disk."""
        housekeeping = Housekeeping(
            clock=self.clock,
            wall=self.clock.seconds,
            name="n1",
            index=self.index,
            blobs=self.blobs,
            acting=cast(Acting, self.acting),
            is_under_way=self.under_way.__contains__,
        )
        self.index._listeners[:] = [housekeeping.learn]
        self.housekeeping = housekeeping
        housekeeping.start()
        return housekeeping

    def store(self, number: int) -> None:
        """A sealed blob, staged."""
        writers: list[Any] = []
        self.blobs.begin(attempt(number), DigestAlgorithm.SHA256).addCallback(writers.append)
        writers[0].write(b"abc")
        writers[0].finish(FILE, number)

    def feed(self, *facts: f.Fact) -> None:
        revision = self.index.position.revision + 1
        run_now(self.index.apply_changes(1, [f.Change(revision=revision, facts=facts)]))

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / ROUND_S)):
            self.clock.advance(ROUND_S)

    def there(self) -> dict[int, bool]:
        """number of each blob on the disk -> whether its sidecar says committed."""
        found: list[Any] = []
        self.blobs.sidecars().addCallback(found.extend)
        return {sidecar.attempt.value[0]: sidecar.committed_at is not None for sidecar in found}


@pytest.fixture
def world() -> Iterator[World]:
    """A node that begins."""
    made = World()
    yield made
    made.housekeeping.stop()
    assert made.clock.getDelayedCalls() == []


def test_commits_are_noted_in_sidecars(world: World) -> None:
    """When the index learns of a version that this node holds, its sidecar says so soon."""
    world.store(1)
    world.feed(file(1))
    assert world.there() == {1: False}
    world.wait(ROUND_S)
    assert world.there() == {1: True}
    assert world.acting.asked == []


def test_versions_of_others_are_none_of_ours(world: World) -> None:
    """A version that this node does not hold leaves the disk alone."""
    world.feed(attrs.evolve(file(1), version=attrs.evolve(version(1), copies=(Copy(node="n2", priority=0, durable=True),))))
    world.wait(ASKED_S * 2)
    assert world.there() == {}


def test_an_older_version_stays_for_its_readers(world: World) -> None:
    """A superseded blob is dropped after `keep_superseded_s` and not before; the current one stays for ever."""
    for number in (1, 2):
        world.store(number)
        world.feed(file(number))
    world.wait(KEPT_S - ROUND_S)
    assert set(world.there()) == {1, 2}
    world.wait(2 * ROUND_S)
    assert world.there() == {2: True}
    world.feed(f.EntryGone(id=FILE))
    world.wait(KEPT_S + ROUND_S)
    assert world.there() == {}
    assert world.acting.asked == []


def test_an_older_version_stays_for_its_readers_over_a_restart(world: World) -> None:
    """A restart is no reason to drop a superseded blob early, nor to ask about it."""
    for number in (1, 2):
        world.store(number)
        world.feed(file(number))
    world.wait(ROUND_S)
    world.housekeeping.stop()
    world.restart()
    world.acting.outcomes[attempt(1)] = committed(1, Position(1, 1))
    world.wait(KEPT_S - 2 * ROUND_S)
    assert set(world.there()) == {1, 2}
    world.wait(3 * ROUND_S)
    assert set(world.there()) == {2}


def test_without_any_time_for_readers_only_what_is_superseded_goes(world: World) -> None:
    """`keep_superseded_s = 0`: at once, under whoever has it open; the current version, a staged one, and one on its way stay."""
    world.acting.roster.settings = ClusterSettings(keep_superseded_s=0.0)
    world.store(1)
    world.feed(file(1))
    world.wait(5 * ROUND_S)
    assert world.there() == {1: True}
    opened: list[Any] = []
    world.blobs.open(attempt(1)).addCallback(opened.append)
    world.store(2)
    world.wait(5 * ROUND_S)
    assert set(world.there()) == {1, 2}
    world.feed(file(2))
    world.store(3)
    world.wait(ROUND_S)
    assert world.there() == {2: True, 3: False}
    read: list[bytes] = []
    opened[0].source(0, 3).read().addCallback(read.append)
    assert read == [b"abc"]
    # The copy is given to another node and back again before anything is tidied: it is wanted, and stays.
    world.feed(attrs.evolve(file(2), version=attrs.evolve(version(2), copies=(Copy(node="n2", priority=0, durable=True),))))
    world.feed(file(2))
    world.wait(5 * ROUND_S)
    assert world.there() == {2: True, 3: False}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_staged_blob_is_dropped_only_when_abandoned(world: World, restarted: bool) -> None:
    """While nobody can say how the attempt ended the blob stays; when the catalogue says `abandoned`, it goes."""
    world.store(1)
    if restarted:
        world.housekeeping.stop()
        world.restart()
    world.wait(3 * ASKED_S)
    assert world.there() == {1: False}
    assert world.acting.asked
    world.acting.outcomes[attempt(1)] = OutcomeUnknown("lost")
    world.wait(10 * ROUND_S)
    assert world.there() == {1: False}
    world.acting.outcomes[attempt(1)] = ABANDONED
    world.wait(ROUND_S)
    assert world.there() == {}


def test_an_upload_under_way_is_left_alone(world: World) -> None:
    """As long as this node's own upload may still commit, nobody asks for its end."""
    world.store(1)
    world.under_way.add(attempt(1))
    world.acting.outcomes[attempt(1)] = ABANDONED
    world.wait(5 * ASKED_S)
    assert world.acting.asked == []
    assert set(world.there()) == {1}


def test_a_young_staged_blob_is_left_alone(world: World) -> None:
    """Another node's upload to this one has minutes to commit before anybody asks."""
    world.store(1)
    world.acting.outcomes[attempt(1)] = ABANDONED
    world.wait(STAGED_ROUNDS * ROUND_S - ROUND_S)
    assert world.acting.asked == []


def test_a_committed_blob_waits_for_the_feed(world: World) -> None:
    """When the catalogue says `committed`, beyond what the index knows, the blob stays; the feed decides what becomes of it."""
    world.store(2)
    world.acting.outcomes[attempt(2)] = committed(2, Position(1, 2))
    world.wait(3 * ASKED_S)
    assert world.there() == {2: False}
    world.feed(file(1))
    world.feed(file(2))
    world.wait(ROUND_S)
    assert world.there() == {2: True}


def test_what_was_superseded_while_away_is_dropped(world: World) -> None:
    """A blob whose attempt was committed, and is not current any more, goes although no feed ever named it."""
    world.store(1)
    world.feed()
    world.feed(file(2))
    world.acting.outcomes[attempt(1)] = committed(1, Position(1, 1))
    world.wait(3 * ASKED_S)
    assert world.there() == {}


def test_a_commit_that_was_not_noted_is_noted_after_a_restart(world: World) -> None:
    """The process ended between the feed and the sidecar; the next one finds it, without asking anybody."""
    world.store(1)
    world.feed(file(1))
    world.housekeeping.stop()
    world.restart()
    world.wait(2 * ROUND_S)
    assert world.there() == {1: True}
    assert world.acting.asked == []


def test_what_a_snapshot_does_not_name_is_asked_about(world: World) -> None:
    """Committed blobs that a snapshot leaves out go through the question, too, and not straight to deletion."""
    world.store(1)
    world.feed(file(1))
    world.wait(ROUND_S)
    run_now(world.index.replace(Position(1, 50), [file(2)]))
    world.wait(ASKED_S + ROUND_S)
    assert world.there() == {1: True}
    assert world.acting.asked
    world.acting.outcomes[attempt(1)] = committed(1, Position(1, 1))
    world.wait(ROUND_S)
    assert world.there() == {}


def test_a_snapshot_with_everything_drops_nothing(world: World) -> None:
    """Blobs that a snapshot names are as before."""
    world.store(1)
    world.feed(file(1))
    run_now(world.index.replace(Position(1, 50), run_now(every_fact(world.index.sql))))
    world.wait(3 * ASKED_S)
    assert world.there() == {1: True}
    assert world.acting.asked == []


def test_one_bad_blob_does_not_stop_the_rest(world: World) -> None:
    """A blob that is missing or damaged, or a disk that fails for a while, is left for what it is."""
    world.store(2)
    real = world.blobs.commit

    def commit(one: AttemptId, number: int, position: Position) -> Deferred[None]:
        problems = {attempt(3): NoSuchBlob("missing"), attempt(4): CorruptBlock("damaged")}
        return fail(problems[one]) if one in problems else real(one, number, position)

    blobs: Any = world.blobs
    blobs.commit = commit
    world.feed(attrs.evolve(file(3), id=EntryId(b"3" * 16)), attrs.evolve(file(4), id=EntryId(b"4" * 16)), file(2))
    world.wait(ROUND_S)
    assert world.there() == {2: True}

    sidecars = world.blobs.sidecars
    blobs.sidecars = lambda: fail(OSError("the disk"))
    world.housekeeping.stop()
    world.restart()
    world.wait(ROUND_S)
    blobs.sidecars = sidecars
    world.store(5)
    world.acting.outcomes[attempt(5)] = ABANDONED
    world.wait(3 * ASKED_S)
    assert world.there() == {2: True}
