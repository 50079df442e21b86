"""What a node does when it is told that the process of another node has ended."""

from __future__ import annotations

from typing import Any

import attrs

from securifile.model import facts as f
from securifile.model.ids import AttemptId, Position
from securifile.model.servers import ServerKind, Status
from securifile.node.index import Index
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.sql.sqlite import run_now
from tests.node.test_admission import TurnedAwayLink, World, capturing, server

KEY = b"k" * 16


@attrs.define(eq=False)
class Asking:
    """A control connection of n2."""

    was_cut: bool = False

    @property
    def identity(self) -> PeerIdentity:
        """See `Peer`."""
        return PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n2")

    def cut(self) -> None:
        """See `Peer`."""
        self.was_cut = True


class Pair:
    """n1, and n2 of which `first` was admitted at 1.1."""

    def __init__(self) -> None:
        self.world = World(lambda server, handlers: TurnedAwayLink())
        self.cluster = self.world.cluster
        self.admit("first", 1)

    def admit(self, boot: str, revision: int, status: Status = Status.RUNNING) -> None:
        """The catalogue holds that life of n2 for this."""
        fact = attrs.evolve(server(status), name="n2", boot=boot)
        run_now(self.index.apply_changes(1, [f.Change(revision=revision, facts=(fact,))]))

    @property
    def index(self) -> Index:
        """Of n1."""
        return self.world.index

    def end(self, boot: str) -> None:
        """A sentinel says so."""
        peer: Any = Asking()
        assert self.cluster.notices[m.Ended](peer, m.Ended(boot=boot)) == m.Done()

    def beat(self, peer: Any, boot: str) -> None:
        """A heartbeat of n2."""
        run_now(self.world.answer(peer, m.Heartbeat(position=Position(1, 1), boot=boot)))

    def is_over(self, revision: int = 1, epoch: int = 1) -> bool:
        """Whether nobody can serve as n2 who does not know a commit."""
        return self.cluster.endings.is_over("n2", Position(epoch, revision))

    def lock(self, node: str) -> bool:
        """Whether that node gets a lease."""
        asked = m.LeaseAsk(key=KEY, attempt=AttemptId(node.encode() * 8), person="ann", duration_s=10.0)
        return self.cluster.granter.ask(asked, node).granted


def test_a_node_whose_admitted_process_has_ended_is_waited_for_by_no_write() -> None:
    """As far as this node knows the changes up to that write: one that it has not heard of may have admitted another process."""
    pair = Pair()
    assert not pair.is_over()
    pair.end("first")
    assert pair.is_over()
    assert not pair.is_over(revision=2)
    assert not pair.is_over(epoch=2)
    pair.admit("second", 2)
    assert not pair.is_over()
    assert not pair.is_over(revision=2)
    pair.end("second")
    assert pair.is_over(revision=2)


def test_a_process_that_was_not_admitted_says_nothing_of_the_one_that_was() -> None:
    """One that was started anew and ends before it is verified; or the first of two, while the second is the node."""
    pair = Pair()
    pair.end("second")
    assert not pair.is_over()
    pair.admit("second", 2)
    assert pair.is_over(revision=2)
    pair.admit("third", 3)
    pair.end("first")
    assert not pair.is_over(revision=3)


def test_a_node_that_is_put_down_is_over_still() -> None:
    """It is another thing that the cluster holds it for down; who was put down is waited for as well, for a standing period."""
    pair = Pair()
    pair.end("first")
    pair.admit("first", 2, Status.DOWN)
    assert pair.is_over(revision=2)
    run_now(pair.index.apply_changes(1, [f.Change(revision=3, facts=(f.ServerGone(name="n2"),))]))
    assert not pair.is_over(revision=3)


def test_what_the_dead_said_is_not_heard_any_more() -> None:
    """The connections of the life that has ended are cut, with what is on its way; not those of the life after it."""
    pair = Pair()
    old, new = Asking(), Asking()
    pair.beat(old, "first")
    pair.beat(new, "second")
    pair.end("first")
    assert (old.was_cut, new.was_cut) == (True, False)
    assert pair.is_over()


def test_who_speaks_after_its_end_has_not_ended() -> None:
    """Whoever said so is not believed again, and the log says that something is wrong."""
    pair = Pair()
    pair.end("first")
    seen: list[Any] = []
    with capturing(seen):
        pair.beat(Asking(), "first")
        pair.end("first")
    assert not pair.is_over()
    assert [event["log_level"].name for event in seen] == ["error"]


def test_the_locks_of_who_has_ended_are_free() -> None:
    """At once, and not only when the leases run out; those of others stay, and those of a life that was admitted since."""
    pair = Pair()
    assert pair.lock("n2")
    assert not pair.lock("n3")
    pair.end("first")
    assert pair.lock("n3")
    pair.end("first")
    assert not pair.lock("n2")
    pair.cluster.granter.release_all("n3")
    pair.admit("second", 2)
    assert pair.lock("n2")
    pair.end("first")
    assert not pair.lock("n3")


def test_a_write_that_waits_already_goes_on() -> None:
    """It is answered when the end of the node that it waits for is told."""
    pair = Pair()
    spread: list[Any] = []
    pair.cluster.spreading.spread(Position(1, 1), (f.SessionGone(token_hash=b"t"),), ("n1",)).addBoth(spread.append)
    assert spread == []
    pair.end("first")
    assert spread == [None]
