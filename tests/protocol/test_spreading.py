"""Announcing a commit until no node can serve an older state any more."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from securifile.model.errors import Code, Refusal
from securifile.model.facts import Fact, PersonGone, ServerGone, Settings
from securifile.model.ids import Position
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings
from securifile.model.standing import FRESH_INTERVALS
from securifile.protocol.messages import Announce, Done
from securifile.protocol.spreading import Spreading
from tests.protocol.asking import FakeAsk, roster_of, server

AT = Position(1, 5)
FACTS: tuple[Fact, ...] = (PersonGone(username="ann"),)


class World:
    """n1 spreads a commit; intervals are one second, so a standing period is 2.5."""

    def __init__(
        self,
        roster: Roster,
        name: str = "n1",
        here: Deferred[None] | None = None,
        started_at: float = 0.0,
        known_by: tuple[str, ...] = (),
        over: tuple[str, ...] = (),
        reached: Deferred[None] | None = None,
    ) -> None:
        self.over = set(over)
        self.clock = Clock()
        self.clock.advance(started_at)
        self.roster = roster
        self.ask = FakeAsk(self.clock)
        self.taken_here: list[tuple[Position, tuple[Fact, ...]]] = []

        def take(position: Position, facts: tuple[Fact, ...]) -> Deferred[None]:
            self.taken_here.append((position, facts))
            return here or succeed(None)

        def is_over(name: str, position: Position) -> bool:
            assert position == AT
            return name in self.over and (reached is None or reached.called)

        self.announcer = Spreading(
            clock=self.clock,
            roster=roster,
            name=name,
            ask=self.ask,
            here=take,
            is_over=is_over,
            reached=lambda position: reached or succeed(None),
        )
        self.spreading = self.announcer.spread(AT, FACTS, known_by)
        self.outcome: list[Any] = []
        self.spreading.addBoth(self.outcome.append)

    @property
    def done(self) -> bool:
        return self.outcome == [None]

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)


def announcer(clock: Clock, roster: Roster, ask: FakeAsk) -> Spreading:
    """Of n1, whose index takes everything at once; nobody has ended."""
    return Spreading(
        clock=clock,
        roster=roster,
        name="n1",
        ask=ask,
        here=lambda position, facts: succeed(None),
        is_over=lambda name, position: False,
        reached=lambda position: succeed(None),
    )


def nodes(count: int, *down: str) -> Roster:
    return roster_of(
        *(server(f"n{number}", Status.DOWN if f"n{number}" in down else Status.RUNNING) for number in range(1, count + 1)),
        server("a1", kind=ServerKind.ADMIN),
    )


def test_all_running_nodes_are_waited_for() -> None:
    """It is over with the last running node's answer, and not before; admin servers know already and are not told."""
    world = World(nodes(4))
    assert {question.name for question in world.ask.waiting} == {"n2", "n3", "n4"}
    assert all(question.message == Announce(position=AT, facts=FACTS) for question in world.ask.waiting)
    assert world.taken_here == [(AT, FACTS)]
    for name in ("n3", "n4"):
        world.ask.answer(name, Done())
        assert not world.done
    world.ask.answer("n2", Done())
    assert world.done
    assert world.clock.getDelayedCalls() == []


def test_who_knows_already_is_not_told() -> None:
    """When all know, nothing is left to do; else the others are told, and all together have to be enough."""
    world = World(nodes(3), known_by=("n1", "n2", "n3"))
    assert world.done
    assert world.taken_here == []
    assert not world.ask.waiting
    assert world.clock.getDelayedCalls() == []
    world = World(nodes(3), known_by=("n1", "n2"))
    assert not world.done
    assert [question.name for question in world.ask.waiting] == ["n3"]
    world.ask.answer("n3", Done())
    assert world.done


def test_that_the_others_know_is_not_enough() -> None:
    """This node's own index must have it too, before it serves anybody again."""
    here: Deferred[None] = Deferred()
    world = World(nodes(3), here=here, known_by=("n2", "n3"))
    assert not world.done
    assert not world.ask.waiting
    here.callback(None)
    assert world.done


def test_one_node_alone_is_done_at_once() -> None:
    """There is nobody to wait for but its own index."""
    assert World(nodes(1)).done
    here: Deferred[None] = Deferred()
    world = World(nodes(1), here=here)
    assert not world.done
    here.callback(None)
    assert world.done


def test_who_is_down_is_told_and_not_waited_for() -> None:
    """A node that is not running gets the announcement, too, but the answer does not wait for it."""
    world = World(nodes(3, "n3"))
    assert len(world.ask.to("n3")) == 1
    world.ask.answer("n2", Done())
    assert world.done
    assert world.ask.waiting == []


def test_a_silent_node_is_waited_for_until_it_has_lost_its_standing() -> None:
    """With more than half of all nodes it is over after a standing period, counted from the commit."""
    for started_at in (0.0, 0.1, 1234.567, 1e6 + 1 / 3):
        world = World(nodes(3), started_at=started_at)
        world.ask.answer("n2", Done())
        world.wait(FRESH_INTERVALS - 0.1)
        assert not world.done
        world.wait(0.2)
        assert world.done, started_at
        assert world.ask.waiting == []


def test_who_has_ended_is_not_waited_for() -> None:
    """Neither by a commit that comes afterwards, which is told to it all the same, nor by one that waits already."""
    world = World(nodes(3), over=("n3",))
    assert not world.done
    assert {question.name for question in world.ask.waiting} == {"n2", "n3"}
    world.ask.answer("n2", Done())
    assert world.done
    assert World(nodes(3), known_by=("n1", "n2"), over=("n3",)).done
    world = World(nodes(3))
    world.ask.answer("n2", Done())
    world.wait(1.0)
    assert not world.done
    world.over.add("n3")
    world.announcer.look()
    assert world.done
    assert world.clock.getDelayedCalls() == []


def test_who_has_ended_is_waited_for_until_it_is_known_who_was_admitted() -> None:
    """A change before the commit that this server has not heard of yet may have admitted another process of that node."""
    reached: Deferred[None] = Deferred()
    world = World(nodes(3), over=("n3",), reached=reached)
    world.ask.answer("n2", Done())
    world.wait(1.0)
    assert not world.done
    reached.callback(None)
    assert world.done


def test_who_has_ended_is_no_part_of_a_majority() -> None:
    """With three of five gone the two others go on waiting, and so do two of five when two are silent."""
    world = World(nodes(5), over=("n3", "n4", "n5"))
    world.ask.answer("n2", Done())
    world.wait(20.0)
    assert world.outcome == []
    world = World(nodes(5), over=("n5",))
    world.ask.answer("n2", Done())
    world.wait(20.0)
    assert world.outcome == []
    world.ask.answer("n3", Done())
    assert world.done


def test_one_of_two_goes_on_alone_when_the_other_has_ended() -> None:
    """It does not wait until the other is held for down."""
    assert World(nodes(2), over=("n2",)).done
    world = World(nodes(2))
    world.wait(20.0)
    assert world.outcome == []


def test_a_minority_waits_on() -> None:
    """When most nodes are silent it is not over after a standing period; but as soon as one more has answered."""
    world = World(nodes(5))
    world.ask.answer("n2", Done())
    world.wait(20.0)
    assert world.outcome == []
    world.ask.answer("n3", Done())
    assert world.done


def test_half_is_no_majority() -> None:
    """Two of four are not enough, for ever."""
    world = World(nodes(4))
    world.ask.answer("n2", Done())
    world.wait(20.0)
    assert world.outcome == []


def test_the_cluster_putting_a_node_down_ends_the_waiting_for_it() -> None:
    """A silent node that is put down meanwhile, or removed, is noticed soon, even without a majority."""
    for change in (server("n2", Status.DOWN), ServerGone(name="n2")):
        world = World(nodes(2))
        world.wait(1.0)
        world.roster.learn(change)
        world.wait(FRESH_INTERVALS)
        assert world.done


def test_a_lost_connection_is_tried_again() -> None:
    """An announcement that failed is sent again until the node has it; a refusal is no acknowledgement."""
    world = World(nodes(2))
    world.ask.to("n2")[0].lose()
    assert not world.done
    world.wait(0.3)
    world.ask.to("n2")[0].answer.errback(Refusal(Code.NOT_RUNNING, "not yet"))
    world.wait(0.3)
    assert not world.done
    world.ask.answer("n2", Done())
    assert world.done
    assert len(world.ask.asked) == 3


def test_an_admin_server_spreads_to_all_nodes() -> None:
    """It has no say among the nodes: one of two is no majority, even with the admin server's own knowledge."""
    world = World(nodes(2), name="a1")
    assert {question.name for question in world.ask.waiting} == {"n1", "n2"}
    world.ask.answer("n1", Done())
    world.wait(20.0)
    assert world.outcome == []
    world.ask.answer("n2", Done())
    assert world.done


def test_cancelling_stops_everything() -> None:
    """The caller's deadline leaves no question and no timer behind."""
    world = World(nodes(3))
    world.wait(1.0)
    world.spreading.cancel()
    [failure] = world.outcome
    assert failure.check(CancelledError)
    assert world.ask.waiting == []
    assert world.clock.getDelayedCalls() == []


def test_an_index_that_fails_here_is_no_acknowledgement() -> None:
    """When this node's own index does not take the commit, others' answers do not hide that."""
    here: Deferred[None] = Deferred()
    world = World(nodes(2), here=here)
    here.errback(Refusal(Code.CATALOGUE_UNAVAILABLE, "the disk"))
    world.ask.answer("n2", Done())
    world.wait(20.0)
    assert world.outcome == []
    world.spreading.cancel()


def test_who_was_just_put_down_is_waited_for_until_it_must_know() -> None:
    """A node that others put down while the admin server still answered it serves until it hears of it, or its standing has run out."""
    for change in (server("n3", Status.DOWN), ServerGone(name="n3")):
        world = World(nodes(3))
        spreading = announcer(world.clock, world.roster, world.ask)
        world.roster.learn(change)
        spreading.learn(change)
        world.wait(1.0)
        world.ask.rules["n2"] = lambda message: Done()
        outcome: list[Any] = []
        spreading.spread(AT, FACTS).addBoth(outcome.append)
        assert outcome == []
        world.wait(FRESH_INTERVALS - 1.1)
        assert outcome == []
        world.wait(0.5)
        assert outcome == [None]
        spreading.spread(AT, FACTS).addBoth(outcome.append)
        assert outcome == [None, None], "it is waited for once"


def test_who_was_just_put_down_and_knows_is_not_waited_for() -> None:
    """Its acknowledgement says that its index has the commit, and with it that it is down."""
    world = World(nodes(2))
    spreading = announcer(world.clock, world.roster, world.ask)
    change = server("n2", Status.DOWN)
    world.roster.learn(change)
    spreading.learn(change)
    world.ask.rules["n2"] = lambda message: Done()
    outcome: list[Any] = []
    spreading.spread(AT, FACTS).addBoth(outcome.append)
    assert outcome == [None]


@pytest.mark.parametrize("roster_first", [True, False])
def test_who_is_cut_off_goes_by_the_old_interval(roster_first: bool) -> None:
    """After the interval was shortened a silent node is waited for as long as before; some periods later, for a new one."""
    roster = nodes(3)
    clock = Clock()
    asking = FakeAsk(clock)
    spreading = announcer(clock, roster, asking)
    shorter = Settings(cluster="c", settings=ClusterSettings(heartbeat_interval_s=0.2))
    for learn in (roster.learn, spreading.learn) if roster_first else (spreading.learn, roster.learn):
        learn(shorter)

    def takes_s() -> float:
        """How long a commit takes to spread that n3 does not hear of."""
        outcome: list[None] = []
        began = clock.seconds()
        spreading.spread(AT, FACTS).addCallback(outcome.append)
        asking.answer("n2", Done())
        while not outcome:
            clock.advance(0.05)
        return clock.seconds() - began

    assert takes_s() >= FRESH_INTERVALS * 1.0 - 0.01
    clock.advance(2 * FRESH_INTERVALS)
    assert takes_s() <= FRESH_INTERVALS * 0.2 + 0.1
