"""Heartbeats: sent every interval whatever happens, and judged by their answers."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from securifile.model.errors import Code, Refusal
from securifile.model.facts import ServerGone
from securifile.model.ids import Position
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind, Status
from securifile.protocol.heartbeats import Heartbeats
from securifile.protocol.messages import Heartbeat, HeartbeatAnswer
from tests.protocol.asking import FakeAsk, roster_of, server

HERE = Position(1, 5)


class World:
    """One server's heartbeats to n2, n3 and a1."""

    def __init__(self, roster: Roster | None = None) -> None:
        self.clock = Clock()
        self.roster = roster or roster_of(server("n1"), server("n2"), server("n3"), server("a1", kind=ServerKind.ADMIN))
        self.ask = FakeAsk(self.clock)
        self.judged: list[tuple[str, Status, Status]] = []
        self.position = HERE
        self.heartbeats = Heartbeats(
            clock=self.clock,
            roster=self.roster,
            subjects=lambda: [name for name in self.roster.servers if name != "n1"],
            ask=self.ask,
            compose=lambda: Heartbeat(position=self.position, judgements=self.heartbeats.judgements),
            judged=lambda *change: self.judged.append(change),
        )
        self.heartbeats.start()

    def answer(self, *names: str, position: Position = HERE, held_for: Status = Status.RUNNING) -> None:
        for name in names:
            while self.ask.to(name):
                self.ask.answer(name, HeartbeatAnswer(position=position, held_for=held_for))


def test_one_to_each_every_interval() -> None:
    """Each subject gets one at once and then one an interval, whether or not it answers."""
    world = World()
    for _ in range(10):
        world.answer("n2")
        world.clock.advance(1.0)
    for name in ("n2", "n3", "a1"):
        times = [question.asked_at for question in world.ask.asked if question.name == name]
        assert times == [float(number) for number in range(11)]


def test_a_silent_server_is_down_after_three() -> None:
    """It is doubted when the first is overdue, and down when three in a row are; it is told once; heartbeats go on."""
    world = World()
    seen = []
    for _ in range(6):
        world.answer("n2", "a1")
        seen.append((world.heartbeats.status_of("n3"), world.heartbeats.is_doubtful("n3")))
        world.clock.advance(1.0)
    running, down = Status.RUNNING, Status.DOWN
    assert seen == [(running, False), (running, True), (running, True), (down, True), (down, True), (down, True)]
    assert world.judged == [("n3", running, down)]
    assert world.heartbeats.judgements == {"n2": running, "n3": down, "a1": running}
    assert len(world.ask.to("n3")) <= 3, "nobody waits for an answer longer than it takes to be down"
    assert world.ask.asked[-1].asked_at == 6.0


def test_judgements_are_told_to_admin_servers_only() -> None:
    """They keep the matrix; nodes would only pass it by."""
    world = World()
    world.answer("n2", "n3", "a1")
    world.clock.advance(1.0)
    told = {question.name: question.message.judgements for question in world.ask.asked[-3:]}
    assert told == {"a1": dict.fromkeys(("n2", "n3", "a1"), Status.RUNNING), "n2": {}, "n3": {}}


def test_a_lost_connection_counts_like_silence() -> None:
    """Unreachable, refused and late are all the same: no answer."""
    world = World()
    for failure in range(4):
        for question in world.ask.to("n3"):
            if failure % 2:
                question.lose()
            else:
                question.answer.errback(Refusal(Code.NOT_A_MEMBER, "who are you?"))
        assert (world.heartbeats.status_of("n3") is Status.DOWN) == (failure == 3)
        world.clock.advance(1.0)


def test_a_slow_answer_is_an_answer() -> None:
    """A server whose answers take longer than an interval is doubted in between and never down."""
    world = World()
    for _ in range(10):
        world.clock.advance(0.7)
        if world.clock.seconds() > 1.5:
            for question in world.ask.to("n3"):
                if question.asked_at <= world.clock.seconds() - 1.4:
                    question.answer.callback(HeartbeatAnswer(position=HERE, held_for=Status.RUNNING))
    assert world.heartbeats.status_of("n3") is Status.RUNNING


def test_what_is_down_begins_as_down() -> None:
    """A server that the catalogue holds for down is not believed to run because this one has just been started."""
    world = World(roster_of(server("n1"), server("n2", Status.DOWN), server("n3", Status.FAILED)))
    assert world.heartbeats.judgements == {"n2": Status.DOWN, "n3": Status.FAILED}
    assert world.heartbeats.status_of("nobody") is Status.DOWN
    assert not world.heartbeats.is_doubtful("nobody")


def test_an_answer_does_not_bring_back_what_the_cluster_holds_for_down() -> None:
    """A returning server is verified first; when the cluster never put it down, its answer is enough."""
    world = World()
    world.clock.advance(1)
    world.clock.pump([1.0] * 3)
    assert world.heartbeats.status_of("n3") is Status.DOWN
    world.answer("n3")
    assert world.heartbeats.status_of("n3") is Status.RUNNING, "this server was alone with its doubts"
    world.clock.pump([1.0] * 4)
    world.roster.learn(server("n3", Status.DOWN))
    world.answer("n3")
    assert world.heartbeats.status_of("n3") is Status.DOWN
    world.heartbeats.cluster_holds("n3", Status.DOWN)
    assert world.heartbeats.status_of("n3") is Status.DOWN
    world.heartbeats.cluster_holds("n3", Status.RUNNING)
    assert world.heartbeats.status_of("n3") is Status.RUNNING
    world.heartbeats.cluster_holds("n3", Status.FAILED)
    world.heartbeats.cluster_holds("n3", Status.DOWN)
    assert world.heartbeats.status_of("n3") is Status.FAILED, "others' silence is not this server's observation"
    world.heartbeats.cluster_holds("nobody", Status.RUNNING)
    assert "nobody" not in world.heartbeats.judgements


@pytest.mark.parametrize("verdict", [Status.FAILED, Status.RUNNING])
def test_a_verdict_outlives_the_round_after_it(verdict: Status) -> None:
    """A node that returns is often verified before this server's own heartbeats reach it again: it stays what the verdict says."""
    world = World()
    world.clock.pump([1.0] * 5)
    assert world.heartbeats.status_of("n3") is Status.DOWN
    world.heartbeats.cluster_holds("n3", verdict)
    world.clock.advance(1.0)
    assert world.heartbeats.status_of("n3") is verdict


def test_acknowledgements_count_from_sending() -> None:
    """A slow answer does not lengthen the standing, and an older one that arrives later does not shorten it."""
    world = World()
    world.clock.advance(1.0)
    first, second = world.ask.to("n2")
    second.answer.callback(HeartbeatAnswer(position=HERE, held_for=Status.DOWN))
    assert world.heartbeats.acknowledgements["n2"].sent_at == 1.0
    assert world.heartbeats.acknowledgements["n2"].held_for is Status.DOWN
    world.clock.advance(0.5)
    first.answer.callback(HeartbeatAnswer(position=HERE, held_for=Status.RUNNING))
    assert world.heartbeats.acknowledgements["n2"].sent_at == 1.0
    assert world.heartbeats.acknowledgements["n2"].held_for is Status.DOWN
    assert world.heartbeats.acknowledgements["n2"].kind is ServerKind.NODE


def test_answers_tell_of_later_positions() -> None:
    """The highest position heard of stays, whoever told of it in whatever order."""
    world = World()
    world.answer("n2", position=Position(1, 9))
    world.answer("n3", position=Position(1, 7))
    assert world.heartbeats.heard == Position(1, 9)
    world.heartbeats.hear(Position(2, 0))
    world.heartbeats.hear(Position(1, 99))
    assert world.heartbeats.heard == Position(2, 0)


def test_who_answers_is_known_whatever_it_is_held_for() -> None:
    """Whether a server answers is a matter of its last heartbeats, not of its status."""
    world = World(roster_of(server("n1"), server("n2", Status.DOWN)))
    assert not world.heartbeats.is_answering("n2"), "it has not yet"
    world.answer("n2")
    assert world.heartbeats.is_answering("n2")
    assert world.heartbeats.status_of("n2") is Status.DOWN
    world.clock.pump([1.0, 1.0, 1.0])
    assert not world.heartbeats.is_answering("n2")


def test_who_leaves_is_forgotten() -> None:
    """A removed server gets no more heartbeats, and its late answer is nobody's standing."""
    world = World()
    world.answer("n3")
    world.clock.advance(1.0)
    world.roster.learn(ServerGone(name="n3"))
    world.answer("n3")
    world.clock.advance(1.0)
    before = len([question for question in world.ask.asked if question.name == "n3"])
    world.clock.pump([1.0] * 3)
    assert len([question for question in world.ask.asked if question.name == "n3"]) == before
    assert "n3" not in world.heartbeats.acknowledgements
    assert "n3" not in world.heartbeats.judgements


def test_the_interval_may_be_changed_on_the_way() -> None:
    """A new setting holds from the next round on."""
    world = World()
    settings = roster_of(heartbeat_interval_s=0.25)
    world.roster.settings = settings.settings
    world.clock.advance(1.0)
    world.clock.pump([0.25] * 4)
    assert sorted({question.asked_at for question in world.ask.asked}) == [0.0, 1.0, 1.25, 1.5, 1.75, 2.0]


def test_stop_leaves_nothing_behind() -> None:
    """No timer and no question, and what is answered afterwards changes nothing."""
    world = World()
    world.clock.advance(1.0)
    world.heartbeats.stop()
    assert world.ask.waiting == []
    assert world.clock.getDelayedCalls() == []
    world.heartbeats.stop()


@pytest.mark.parametrize("nonsense", [None, "what?", ValueError("a bug")])
def test_an_answer_of_the_wrong_kind_is_reported_and_no_more(nonsense: Any, caplog: Any) -> None:
    """One server's nonsense does not stop the heartbeats to the others."""
    world = World()
    question = world.ask.to("n2")[0]
    if isinstance(nonsense, Exception):
        question.answer.errback(nonsense)
    else:
        question.answer.callback(nonsense)
    world.clock.advance(1.0)
    assert len(world.ask.to("n3")) == 2
    assert world.heartbeats.status_of("n2") is Status.RUNNING
