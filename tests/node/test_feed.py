"""Following the catalogue: from one admin server or the next, with changes or a snapshot, again after every gap."""

from __future__ import annotations

from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Sidecar
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.ids import AttemptId, Position
from securifile.model.servers import ServerKind
from securifile.node.feed import CLAIMS_MAX, RETRY_S, Feed
from securifile.node.index import Index
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.rpc import Link, Peer
from securifile.sql.sqlite import SqliteDatabase, run_now
from tests.protocol.asking import server


@attrs.define(eq=False)
class FakePeer:
    """A connection to an admin server, seen from the node."""

    name: str
    connected: bool = True
    answer: Any = None
    """To `Follow`: an exception, or None: waits for the test."""
    follows: list[m.Follow] = attrs.field(factory=list)
    handed: list[m.HandIn] = attrs.field(factory=list)
    waiting: list[Deferred[Any]] = attrs.field(factory=list)
    watching: list[Deferred[None]] = attrs.field(factory=list)

    @property
    def identity(self) -> PeerIdentity:
        return PeerIdentity(cluster="c", kind=ServerKind.ADMIN, name=self.name)

    def ask(self, message: Any, timeout_s: float) -> Deferred[Any]:
        if isinstance(message, m.HandIn):
            self.handed.append(message)
            return succeed(m.Done())
        assert isinstance(message, m.Follow)
        self.follows.append(message)
        if isinstance(self.answer, Exception):
            return fail(self.answer)
        if self.answer is not None:
            return succeed(self.answer)
        waiting: Deferred[Any] = Deferred()
        self.waiting.append(waiting)
        return waiting

    def when_lost(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(self.watching.remove)
        self.watching.append(waiting)
        return waiting

    def lose(self) -> None:
        self.connected = False
        watching, self.watching = self.watching, []
        for waiting in watching:
            waiting.callback(None)


@attrs.define
class FakeLink:
    """Where a connection is, or not."""

    peer: FakePeer | None

    @property
    def connected(self) -> bool:
        return self.peer is not None and self.peer.connected


FOLLOWING = m.Following(position=Position(1, 0), snapshot=False)


class World:
    """A node between two admin servers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.index = Index(SqliteDatabase(None), lambda: 0.0)
        run_now(self.index.open())
        run_now(self.index.replace(Position(1, 0), []))
        self.peers = {"a1": FakePeer("a1", answer=FOLLOWING), "a2": FakePeer("a2", answer=FOLLOWING)}
        self.links = {name: FakeLink(peer) for name, peer in self.peers.items()}
        self.order = ["a1", "a2"]
        self.sidecars: list[Sidecar] = []
        self.feed = Feed(
            clock=self.clock,
            index=self.index,
            admins=lambda: self.order,
            link=lambda name: cast(Link, self.links.get(name)),
            url="https://n1:9443",
            protocol_address="n1:9444",
            boot="b",
            sidecars=lambda: succeed(self.sidecars),
        )

    def send(self, name: str, message: Any) -> list[Any]:
        """The admin server of that name sends this; what is answered."""
        outcome: list[Any] = []
        handler = self.feed.handlers[type(message)]
        Deferred.fromCoroutine(cast(Any, handler(cast(Peer, self.peers[name]), message))).addBoth(outcome.append)
        return outcome

    def changes(self, *revisions: int) -> m.Changes:
        return m.Changes(epoch=1, changes=tuple(f.Change(revision=number, facts=(server(f"s{number}"),)) for number in revisions))

    @property
    def revision(self) -> int:
        return self.index.position.revision

    def follows(self) -> dict[str, int]:
        return {name: len(peer.follows) for name, peer in self.peers.items()}


def test_changes_are_applied_as_they_come() -> None:
    """The node says where it is and where it is reached, and confirms what its index has."""
    world = World()
    world.feed.start()
    assert world.peers["a1"].follows == [m.Follow(position=Position(1, 0), url="https://n1:9443", protocol_address="n1:9444", boot="b")]
    assert world.send("a1", world.changes(1, 2)) == [m.Done(reached=Position(1, 2))]
    assert world.send("a1", world.changes(3)) == [m.Done(reached=Position(1, 3))]
    assert world.revision == 3
    assert world.follows() == {"a1": 1, "a2": 0}
    world.feed.stop()


def test_changes_that_come_before_the_answer_count() -> None:
    """The first changes may be on their way before `Following` is read."""
    world = World()
    world.peers["a1"].answer = None
    world.feed.start()
    assert world.send("a1", world.changes(1)) == [m.Done(reached=Position(1, 1))]
    assert world.revision == 1
    world.peers["a1"].waiting[0].callback(FOLLOWING)
    world.send("a1", world.changes(2))
    assert world.revision == 2
    world.feed.stop()


def test_the_next_admin_server_is_followed_from_where_the_index_is() -> None:
    """When one is lost the other is asked for what comes after the last change, and the first one's late words do not count."""
    world = World()
    world.feed.start()
    world.send("a1", world.changes(1, 2))
    world.peers["a1"].lose()
    assert [asked.position for asked in world.peers["a2"].follows] == [Position(1, 2)]
    assert world.send("a1", world.changes(3)) == [m.Done(reached=Position(1, 2))]
    assert world.revision == 2
    world.send("a2", world.changes(3))
    assert world.revision == 3
    world.feed.stop()


def test_a_gap_is_asked_for_again() -> None:
    """A change that does not follow is not applied, and not said to be; the feed is begun anew at the index's position."""
    world = World()
    world.feed.start()
    world.send("a1", world.changes(1))
    assert world.send("a1", world.changes(3)) == [m.Done(reached=Position(1, 1))]
    assert world.revision == 1
    assert [asked.position.revision for asked in world.peers["a1"].follows] == [0, 1]
    world.send("a1", world.changes(2, 3))
    assert world.revision == 3
    world.feed.stop()


def test_a_snapshot_is_taken_when_it_is_whole() -> None:
    """Its parts change nothing until the last one has come; then they are everything there is."""
    world = World()
    world.feed.start()
    world.send("a1", world.changes(1))
    at = Position(2, 40)
    world.send("a1", m.SnapshotPart(position=at, facts=(server("n8"),), last=False))
    assert world.index.position == Position(1, 1)
    world.send("a1", m.SnapshotPart(position=at, facts=(server("n9"),), last=True))
    assert world.index.position == at
    assert [row[0] for row in run_now(world.index.sql.query("SELECT name FROM servers ORDER BY name"))] == ["n8", "n9"]
    world.feed.stop()


def test_half_a_snapshot_is_forgotten() -> None:
    """Parts from an admin server that was lost are not mixed with those of the next."""
    world = World()
    world.feed.start()
    world.send("a1", m.SnapshotPart(position=Position(1, 5), facts=(server("old"),), last=False))
    world.peers["a1"].lose()
    world.send("a1", m.SnapshotPart(position=Position(1, 5), facts=(server("late"),), last=True))
    assert world.revision == 0
    world.send("a2", m.SnapshotPart(position=Position(1, 6), facts=(server("new"),), last=True))
    assert [row[0] for row in run_now(world.index.sql.query("SELECT name FROM servers"))] == ["new"]
    world.feed.stop()


def test_who_cannot_be_followed_is_asked_again_later() -> None:
    """A refusal, silence, or nobody there: the node tries again after a pause, not in a loop."""
    for problem in (
        Refusal(Code.CATALOGUE_UNAVAILABLE, "no database"),
        DeadlineExceeded("silent"),
        PeerUnreachable("gone"),
    ):
        world = World()
        world.order = ["a1"]
        world.peers["a1"].answer = problem
        world.feed.start()
        assert world.follows()["a1"] == 1
        world.clock.advance(RETRY_S)
        assert world.follows()["a1"] == 2
        world.peers["a1"].answer = FOLLOWING
        world.clock.advance(RETRY_S)
        world.send("a1", world.changes(1))
        assert world.revision == 1
        world.feed.stop()


def test_an_admin_server_that_refuses_does_not_hide_the_other() -> None:
    """When the first one that is connected cannot feed (its database is gone), the next one is asked."""
    world = World()
    world.peers["a1"].answer = Refusal(Code.CATALOGUE_UNAVAILABLE, "no database")
    world.feed.start()
    world.clock.advance(RETRY_S)
    assert world.follows()["a2"] == 1
    world.send("a2", world.changes(1))
    assert world.revision == 1
    world.feed.stop()


def test_nobody_there_is_waited_for() -> None:
    """Without a connection nothing is asked; as soon as there is one it is used."""
    world = World()
    world.links = {}
    world.feed.start()
    world.clock.pump([RETRY_S] * 10)
    world.links = {"a2": FakeLink(world.peers["a2"])}
    world.clock.advance(RETRY_S)
    assert world.follows() == {"a1": 0, "a2": 1}
    world.feed.stop()


def test_stop_leaves_nothing_behind() -> None:
    """No timer, nobody watched, and what comes afterwards is passed over."""
    world = World()
    world.feed.start()
    world.feed.stop()
    world.send("a1", world.changes(1))
    assert world.revision == 0
    assert world.peers["a1"].watching == []
    assert world.clock.getDelayedCalls() == []


def test_what_the_catalogue_lost_is_handed_in_in_parts() -> None:
    """A snapshot to compare changes nothing; what is on the disk is told only when that is asked for, and all of it."""
    for asked, parts in ((False, 1), (True, 3)):
        world = World()
        world.feed.start()
        world.send("a1", world.changes(1))
        one = Sidecar(
            attempt=AttemptId(bytes(16)),
            file=bytes(16),
            version=1,
            size=1,
            digest=b"d",
            algorithm=DigestAlgorithm.SHA256,
            committed_at=None,
        )
        world.sidecars = [attrs.evolve(one, attempt=AttemptId(number.to_bytes(16, "big"))) for number in range(2 * CLAIMS_MAX + 1)]
        world.send("a1", m.SnapshotPart(position=Position(2, 0), facts=(), last=True, compare=True, blobs=asked))
        assert world.revision == 1
        handed = world.peers["a1"].handed
        assert [(part.number, part.last) for part in handed] == [(number, number == parts - 1) for number in range(parts)]
        assert [claim.fact for part in handed for claim in part.claims] == [server("s1")]
        blobs = [sidecar for part in handed for sidecar in part.blobs or ()]
        assert blobs == (world.sidecars if asked else [])
        assert (handed[0].blobs is None) is not asked
        world.feed.stop()
