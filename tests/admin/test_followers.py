"""Following the catalogue: every follower gets every change once and in order, whatever it missed and however slow it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from securifile.admin import followers as module
from securifile.admin.duties import Duty
from securifile.admin.followers import FACTS_MAX, Followers
from securifile.admin.ledger import Decisions
from securifile.admin.reconciliation import Reconciling
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Change, Claim, Fact, Folder, Person, PersonGone
from securifile.model.ids import Position
from securifile.model.servers import ServerKind, Status
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.sql.sqlite import SqliteDatabase
from securifile.workers import InlineWorker
from tests.admin.catalogues import World


class FakePeer:
    """A node's connection: takes what it is sent when the test lets it, and remembers it."""

    def __init__(self, name: str, *, at_once: bool = True) -> None:
        self.identity = PeerIdentity(cluster="test", kind=ServerKind.NODE, name=name)
        self.at_once = at_once
        self.taken: list[Any] = []
        self.waiting: list[tuple[Any, Deferred[Any]]] = []
        self.closed = False
        self._lost: list[Deferred[None]] = []

    def ask(self, message: Any, timeout_s: float) -> Deferred[Any]:
        """See `Peer`."""
        if self.at_once:
            self.taken.append(message)
            return succeed(m.Done())
        answer: Deferred[Any] = Deferred()
        self.waiting.append((message, answer))
        return answer

    def take(self, reached: Position | None = None) -> Any:
        """Take the oldest message that waits, and say how far that came."""
        message, answer = self.waiting.pop(0)
        self.taken.append(message)
        answer.callback(m.Done(reached=reached))
        return message

    def when_lost(self) -> Deferred[None]:
        """See `Peer`."""
        lost: Deferred[None] = Deferred()
        self._lost.append(lost)
        return lost

    def lose(self) -> None:
        """The connection is gone."""
        lost, self._lost = self._lost, []
        for one in lost:
            one.callback(None)

    def close(self, reason: str = "", code: Any = None) -> None:
        """See `Peer`."""
        self.closed = True

    @property
    def revisions(self) -> list[int]:
        """Of the changes taken, in order."""
        return [change.revision for message in self.taken if isinstance(message, m.Changes) for change in message.changes]

    @property
    def snapshot(self) -> list[Fact]:
        """The facts of all snapshot parts taken."""
        return [fact for message in self.taken if isinstance(message, m.SnapshotPart) for fact in message.facts]


class Feeding:
    """Followers of a catalogue in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.world = World(SqliteDatabase(None))
        self.readdressed: list[tuple[str, str, str]] = []
        self.followers: Followers

    async def open(self) -> None:
        await self.world.open()
        ledger = self.world.catalogue.ledger
        self.duty = Duty(clock=self.clock, database=self.world.database, holder="admin1")
        await self.duty.look()
        self.reconciling = Reconciling(ledger=ledger, duty=self.duty, worker=InlineWorker())
        self.followers = Followers(
            clock=self.clock,
            ledger=self.world.catalogue.ledger,
            roster=self.world.catalogue.roster,
            readdress=self.readdress,
            reconciling=self.reconciling,
            recent_max=5,
        )

    async def readdress(self, *where: str) -> None:
        self.readdressed.append((where[0], where[1], where[2]))

    @property
    def position(self) -> Position:
        return self.world.catalogue.ledger.position

    async def follow(self, peer: FakePeer, position: Position, url: str = "https://n1.example:9441") -> m.Following:
        asked = m.Follow(position=position, url=url, protocol_address="n1.example:9451")
        given: Any = peer
        return await self.followers.follow(given, asked)

    async def change(self, count: int = 1) -> None:
        for _ in range(count):
            await self.world.put("alice/f")
            self.clock.advance(0)


@pytest.fixture
def feeding() -> Iterator[Feeding]:
    made = Feeding()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    made.followers.stop()


@pytest_twisted.ensureDeferred
async def test_a_follower_gets_what_it_missed_and_what_comes(feeding: Feeding) -> None:
    """From its position on, without a gap and without a double."""
    start = feeding.position
    await feeding.change(5)
    peer = FakePeer("n1")
    following = await feeding.follow(peer, start)
    assert following == m.Following(position=start, snapshot=False)
    await feeding.change(3)
    assert peer.revisions == list(range(start.revision + 1, start.revision + 9))
    assert feeding.followers.positions == {"n1": feeding.position}


@pytest_twisted.ensureDeferred
async def test_one_message_is_under_way_and_the_rest_is_joined(feeding: Feeding) -> None:
    """While a follower has not confirmed, nothing more is sent; then all that waited comes at once."""
    peer = FakePeer("n1", at_once=False)
    start = feeding.position
    await feeding.follow(peer, start)
    await feeding.change(4)
    assert len(peer.waiting) == 1
    assert [change.revision for change in peer.take().changes] == [start.revision + 1]
    assert len(peer.waiting) == 1
    assert [change.revision for change in peer.take().changes] == [start.revision + number for number in (2, 3, 4)]
    assert peer.waiting == []


@pytest_twisted.ensureDeferred
async def test_one_that_is_too_old_gets_a_snapshot_and_then_the_feed(feeding: Feeding) -> None:
    """An empty index and one from before what is kept get everything, and go on from there without a gap."""
    await feeding.change(3)
    await feeding.world.catalogue.ledger.trim(2)
    here = feeding.position
    for number, old in enumerate((Position(0, 0), Position(here.epoch, here.revision - 3))):
        peer = FakePeer(f"n{number}")
        assert (await feeding.follow(peer, old)).snapshot
        position, facts = await feeding.world.catalogue.ledger.snapshot()
        assert peer.snapshot == facts
        assert [message.last for message in peer.taken] == [False] * (len(peer.taken) - 1) + [True]
        assert {message.position for message in peer.taken} == {position}
        await feeding.change(2)
        assert peer.revisions == [position.revision + 1, position.revision + 2]


@pytest_twisted.ensureDeferred
async def test_changes_during_a_snapshot_follow_it(feeding: Feeding) -> None:
    """What is committed while the parts are under way comes afterwards, all of it."""
    for number in range(FACTS_MAX + 10):
        await feeding.world.make_folder(f"alice/d{number}")
    peer = FakePeer("n1", at_once=False)
    await feeding.follow(peer, Position(0, 0))
    position, facts = await feeding.world.catalogue.ledger.snapshot()
    await feeding.change(1)
    first = peer.take()
    await feeding.change(1)
    assert len(first.facts) == FACTS_MAX
    assert not first.last
    assert peer.take().last
    assert peer.snapshot == facts
    peer.take()
    assert peer.revisions == [position.revision + 1, position.revision + 2]


@pytest_twisted.ensureDeferred
async def test_a_slow_follower_costs_no_memory(feeding: Feeding) -> None:
    """What is no longer at hand is read from the database; the follower notices nothing."""
    peer = FakePeer("n1", at_once=False)
    start = feeding.position
    await feeding.follow(peer, start)
    await feeding.change(20)
    while peer.waiting:
        peer.take()
    assert peer.revisions == list(range(start.revision + 1, start.revision + 21))


@pytest_twisted.ensureDeferred
async def test_a_follower_that_does_not_answer_is_asked_again(feeding: Feeding) -> None:
    """After a deadline the same changes come once more: the index passes over those it has."""
    peer = FakePeer("n1", at_once=False)
    await feeding.follow(peer, feeding.position)
    await feeding.change(1)
    first, answer = peer.waiting.pop()
    answer.errback(DeadlineExceeded("too slow"))
    assert peer.waiting == []
    feeding.clock.advance(module.AGAIN_S)
    assert [message for message, _ in peer.waiting] == [first]


@pytest_twisted.ensureDeferred
async def test_a_lost_follower_is_forgotten(feeding: Feeding) -> None:
    """Nothing is sent to it any more; the same node on a new connection takes its place, and only there it is fed."""
    old, new = FakePeer("n1"), FakePeer("n1")
    await feeding.follow(old, feeding.position)
    await feeding.follow(new, feeding.position)
    await feeding.change(1)
    assert (len(old.taken), len(new.taken)) == (0, 1)
    old.lose()
    assert list(feeding.followers.positions) == ["n1"]
    new.lose()
    assert feeding.followers.positions == {}
    await feeding.change(1)
    assert len(new.taken) == 1


@pytest_twisted.ensureDeferred
async def test_a_broken_feed_closes_the_connection(feeding: Feeding) -> None:
    """Then the node connects anew and says itself where its index ends."""
    peer = FakePeer("n1", at_once=False)
    await feeding.follow(peer, feeding.position)
    await feeding.change(1)
    peer.waiting.pop()[1].errback(PeerUnreachable("gone"))
    assert peer.closed


@pytest_twisted.ensureDeferred
async def test_a_node_that_knows_more_than_the_catalogue_begins_an_epoch(feeding: Feeding) -> None:
    """It is sent a snapshot to compare, the others have to follow anew, nothing is fed and nothing changed until it has handed in."""
    other = FakePeer("n2")
    await feeding.follow(other, feeding.position)
    before = feeding.position
    peer = FakePeer("n1")
    beyond = Position(before.epoch, before.revision + 7)
    assert (await feeding.follow(peer, beyond)).snapshot
    assert feeding.position == Position(before.epoch + 1, before.revision)
    assert other.closed
    assert all(message.compare for message in peer.taken)
    with pytest.raises(Refusal) as refused:
        await feeding.change(1)
    assert refused.value.code is Code.CATALOGUE_UNAVAILABLE
    assert (await feeding.follow(FakePeer("n2"), before)).snapshot
    assert (await feeding.reconciling.state()).missing == ("n1", "n3")
    await feeding.follow(FakePeer("n3"), before)
    snapshot = peer.snapshot
    file = next(fact for fact in snapshot if isinstance(fact, Folder))
    gone = Claim(fact=PersonGone(username="bob"), at=beyond)
    new = Claim(fact=attrs.evolve(file, id=feeding.world.id(), parent=file.id, name="made"), at=beyond)
    await feeding.reconciling.take("n1", m.HandIn(position=beyond, number=0, claims=(gone, new), last=True))
    await feeding.reconciling.round()
    assert feeding.world.catalogue.ledger.reconciled
    assert not peer.taken[-1].compare
    assert PersonGone(username="bob") not in peer.snapshot
    found = peer.snapshot[len(snapshot) :]
    assert new.fact in found
    assert not [fact for fact in found if isinstance(fact, Person) and fact.username == "bob"]
    await feeding.change(1)
    assert peer.taken[-1].epoch == before.epoch + 1


@pytest_twisted.ensureDeferred
async def test_a_node_with_another_change_at_the_same_revision_begins_an_epoch(feeding: Feeding) -> None:
    """As far as the catalogue is, the index may be of another history: its mark tells."""
    start = feeding.position
    await feeding.change(3)
    at = feeding.position
    changes = await feeding.world.catalogue.ledger.changes_after(start, 3)
    asked = m.Follow(position=at, url="https://n1.example:9441", protocol_address="n1.example:9451")
    given: Any = FakePeer("n1")
    same = attrs.evolve(asked, mark=changes[-1].mark, marked=at.revision)
    assert not (await feeding.followers.follow(given, same)).snapshot
    assert (await feeding.followers.follow(given, attrs.evolve(same, mark=b"another!"))).snapshot
    assert feeding.position == Position(at.epoch + 1, at.revision)
    assert not feeding.world.catalogue.ledger.reconciled


@pytest_twisted.ensureDeferred
async def test_new_addresses_are_written_down(feeding: Feeding) -> None:
    """A node that says that it is reached elsewhere than the catalogue knows is known so afterwards."""
    await feeding.follow(FakePeer("n1"), feeding.position)
    assert feeding.readdressed == []
    await feeding.follow(FakePeer("n1"), feeding.position, url="https://elsewhere:1")
    assert feeding.readdressed == [("n1", "https://elsewhere:1", "n1.example:9451")]


@pytest_twisted.ensureDeferred
async def test_the_changes_of_one_transaction_travel_together(feeding: Feeding) -> None:
    """Listeners hear of them one after the other; a follower gets them in one message."""
    peer = FakePeer("n1")
    start = feeding.position
    await feeding.follow(peer, start)

    async def decide(sql: Any, before: Position) -> Decisions[None]:
        return Decisions(changes=tuple((PersonGone(username=name),) for name in ("x", "y", "z")), answer=None)

    await feeding.world.catalogue.ledger.enter_all("three", decide)
    feeding.clock.advance(0)
    assert [[change.revision for change in message.changes] for message in peer.taken] == [[start.revision + n for n in (1, 2, 3)]]


# --- who knows of a commit ---


class Knowing:
    """Three nodes that follow and answer when told to, a commit, and who knows of it."""

    def __init__(self, feeding: Feeding, *names: str) -> None:
        self.feeding = feeding
        self.peers = {name: FakePeer(name, at_once=False) for name in names}
        self.outcome: list[Any] = []

    async def begin(self) -> None:
        for peer in self.peers.values():
            await self.feeding.follow(peer, self.feeding.position)
        await self.feeding.change(1)
        Deferred.fromCoroutine(self.feeding.followers.knowing(self.feeding.position)).addBoth(self.outcome.append)


@pytest_twisted.ensureDeferred
async def test_all_that_follow_are_waited_for(feeding: Feeding) -> None:
    """With the last word that an index has the commit the waiting is over, and who asks again hears it at once."""
    knowing = Knowing(feeding, "n1", "n2", "n3")
    await knowing.begin()
    for name in ("n3", "n1"):
        knowing.peers[name].take(feeding.position)
        assert knowing.outcome == []
    knowing.peers["n2"].take(feeding.position)
    assert knowing.outcome == [("n1", "n2", "n3")]
    assert feeding.clock.getDelayedCalls() == []
    assert await feeding.followers.knowing(feeding.position) == ("n1", "n2", "n3")


@pytest_twisted.ensureDeferred
async def test_who_is_slow_is_waited_for_a_moment(feeding: Feeding) -> None:
    """After `KNOWING_S` it is over with those that know; who does not follow here, or is not running, is not waited for at all."""
    await feeding.world.hold({"n3": Status.DOWN})
    knowing = Knowing(feeding, "n1", "n2", "n3")
    await knowing.begin()
    knowing.peers["n1"].take(feeding.position)
    feeding.clock.advance(module.KNOWING_S / 2)
    assert knowing.outcome == []
    feeding.clock.advance(module.KNOWING_S / 2)
    assert knowing.outcome == [("n1",)]
    alone = Knowing(feeding, "n1")
    feeding.followers.stop()
    await alone.begin()
    alone.peers["n1"].take(feeding.position)
    assert alone.outcome == [("n1",)]


@pytest_twisted.ensureDeferred
async def test_only_its_own_word_counts(feeding: Feeding) -> None:
    """An answer that does not say how far the index is, or names another epoch or an earlier position, proves nothing."""
    knowing = Knowing(feeding, "n1", "n2", "n3")
    await knowing.begin()
    here = feeding.position
    knowing.peers["n1"].take(None)
    knowing.peers["n2"].take(Position(here.epoch, here.revision - 1))
    knowing.peers["n3"].take(Position(here.epoch + 1, here.revision))
    assert knowing.outcome == []
    feeding.clock.advance(module.KNOWING_S)
    assert knowing.outcome == [()]


@pytest_twisted.ensureDeferred
async def test_who_is_lost_is_not_waited_for(feeding: Feeding) -> None:
    """A node whose connection is gone does not hold up a commit; what it knew does not count for its next connection."""
    knowing = Knowing(feeding, "n1", "n2")
    await knowing.begin()
    knowing.peers["n2"].take(feeding.position)
    knowing.peers["n1"].lose()
    assert knowing.outcome == [("n2",)]
    knowing.peers["n2"].lose()
    await feeding.follow(FakePeer("n2"), feeding.position)
    assert feeding.followers.positions == {"n2": feeding.position}
    again = Deferred.fromCoroutine(feeding.followers.knowing(feeding.position))
    feeding.clock.advance(module.KNOWING_S)
    assert await again == ()


def test_a_message_is_of_moderate_size() -> None:
    """Changes are joined up to a number of facts; a larger change goes alone."""
    fact: Any = object()
    many = [Change(revision=number, facts=(fact,) * (FACTS_MAX // 2)) for number in range(5)]
    assert len(module._some(iter(many))) == 2
    assert len(module._some([Change(revision=1, facts=(fact,) * (FACTS_MAX * 3)), *many])) == 1


@pytest.mark.parametrize("count", range(6))
def test_the_rest_of_a_queue_is_found_from_either_end(count: int) -> None:
    """What follows is the same, and in order, wherever it begins; beyond the end there is nothing."""
    things = deque(range(count))
    for skipped in range(8):
        assert list(module._from(things, skipped)) == list(range(count))[skipped:]
