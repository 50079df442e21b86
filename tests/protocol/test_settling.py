"""Which version people are shown while a new one is being made, and what is asked for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.servers import ServerKind, Status
from securifile.model.standing import Acknowledgement
from securifile.protocol.messages import SettledAnswer, SettledAsk
from securifile.protocol.settling import AGAIN_S, ASK_S, WAIT_PERIODS, Settling
from securifile.protocol.spreading import Spreading
from tests.protocol.asking import FakeAsk, roster_of, server
from tests.protocol.cluster import N1

AT = Position(1, 5)


def version(number: int, origin: str = "n1") -> Version:
    return Version(
        number=number,
        attempt=AttemptId(number.to_bytes(16, "big")),
        size=1,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(Copy(node=origin, priority=0, durable=True), Copy(node="n3", priority=1, durable=True)),
    )


def file(number: int, origin: str = "n1") -> File:
    return File(id=EntryId(bytes(16)), owner="ann", parent=EntryId(bytes(16)), name="x", created_at=0.0, version=version(number, origin))


class Board:
    """Where other processes see what is young."""

    def __init__(self) -> None:
        self.young: list[AttemptId] = []
        self.everything = False

    def mark(self, attempt: AttemptId) -> None:
        self.young.append(attempt)

    def unmark(self, attempt: AttemptId) -> None:
        self.young.remove(attempt)

    def mark_everything(self, everything: bool) -> None:
        self.everything = everything
        if everything:
            self.young.clear()


class World:
    """n2 gives files, which n1 commits; there are n3 and an admin server, too. A standing period is 2.5 s."""

    def __init__(self, name: str = "n2", nodes: int = 3) -> None:
        self.clock = Clock()
        self.clock.advance(100.0)
        self.ask = FakeAsk(self.clock)
        self.roster = roster_of(*(server(f"n{number}") for number in range(1, nodes + 1)), server("a1", kind=ServerKind.ADMIN))
        self.over: set[str] = set()
        self.untold: set[str] = set()
        self.acknowledgements: dict[str, Acknowledgement] = {}
        self.here = AT
        spreading = Spreading(
            clock=self.clock,
            roster=self.roster,
            name=name,
            ask=self.ask,
            here=lambda position, facts: succeed(None),
            is_over=lambda node, position: node in self.over,
            reached=lambda position: succeed(None),
        )
        heartbeats: Any = SimpleNamespace(acknowledgements=self.acknowledgements)
        self.settling = Settling(
            clock=self.clock,
            name=name,
            roster=self.roster,
            heartbeats=heartbeats,
            spreading=spreading,
            ask=self.ask,
            tells=lambda node: node not in self.untold,
            here=lambda: self.here,
        )

    def knows(self, *names: str, position: Position = AT) -> None:
        """Their last heartbeats were answered with that position."""
        for name in names:
            self.acknowledgements[name] = Acknowledgement(
                kind=ServerKind.NODE, sent_at=self.clock.seconds(), held_for=Status.RUNNING, position=position
            )

    def says(self, word: str, *names: str) -> None:
        """What these answer from now on."""
        for name in names or ("n1",):
            self.ask.rules[name] = lambda message: SettledAnswer(word=word)

    def read(self, shown: File) -> list[Any]:
        """What a reader of it is given, when it comes."""
        given: list[Any] = []
        Deferred.fromCoroutine(self.settling.shown(shown)).addBoth(given.append)
        return given

    def learn(self, number: int, before: int | None = None, origin: str = "n1", position: Position = AT) -> None:
        """A version becomes visible here."""
        self.settling.learn(version(number, origin), lambda: None if before is None else version(before, origin), position)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)


def test_what_is_not_young_is_shown_at_once() -> None:
    """Nobody is asked, and nothing is waited for."""
    world = World()
    shown = file(4)
    assert world.read(shown) == [shown]
    assert not world.ask.asked and not world.clock.getDelayedCalls()


def test_the_origin_is_asked_once() -> None:
    """It says that the version is settled: it is shown, and from then on at once."""
    world = World()
    world.learn(4, before=3)
    given = world.read(file(4))
    assert not given
    assert [(one.name, one.message) for one in world.ask.waiting] == [("n1", SettledAsk(attempt=version(4).attempt))]
    world.ask.answer("n1", SettledAnswer(word="settled"))
    assert given == [file(4)]
    assert world.read(file(4)) == [file(4)]
    assert len(world.ask.asked) == 1


def test_while_it_is_under_way_the_version_before_is_shown() -> None:
    """With the name and place that the file has now; each reader has to be told anew. Of a new file there is nothing."""
    world = World()
    world.says("under-way")
    world.learn(4, before=3)
    moved = attrs.evolve(file(4), name="y")
    assert world.read(moved) == [attrs.evolve(moved, version=version(3))]
    world.says("settled")
    assert world.read(moved) == [moved]
    world.says("under-way")
    world.learn(1)
    assert world.read(file(1)) == [None]


def test_several_versions_may_be_under_way() -> None:
    """Then the one before all of them is shown; if one of them is settled, that one."""
    world = World()
    world.learn(4, before=3)
    world.learn(5, before=4)
    world.says("under-way")
    assert world.read(file(5)) == [file(3)]
    words = {version(4).attempt: "settled", version(5).attempt: "under-way"}
    world.ask.rules["n1"] = lambda message: SettledAnswer(word=words[message.attempt])
    assert world.read(file(5)) == [file(4)]
    assert world.read(file(4)) == [file(4)]
    assert world.read(file(5)) == [file(4)]


def test_what_is_not_known_is_not_shown() -> None:
    """If the version before is not known, a reader waits until the new one is settled."""
    world = World()
    world.settling.learn(version(4), None, AT)
    world.says("under-way")
    given = world.read(file(4))
    world.wait(0.5)
    assert not given
    world.says("settled")
    world.wait(AGAIN_S)
    assert given == [file(4)]


@pytest.mark.parametrize("word", ["unknown", "something new", None])
def test_without_an_answer_the_reader_concludes_by_itself(word: str | None) -> None:
    """Never the version before; the new one a standing period after this server has learned of it, if it has spread."""
    world = World()
    world.learn(4, before=3)
    world.knows("n3")
    if word is not None:
        world.says(word)
    given = world.read(file(4))
    world.wait(2.4)
    assert not given
    world.wait(0.1 + ASK_S + AGAIN_S)
    assert given == [file(4)]


def test_it_has_not_spread_while_a_running_node_may_serve_the_version_before() -> None:
    """More than half must have known it for a standing period, if others are silent; less than half is not enough at all."""
    world = World(nodes=5)
    world.learn(4, before=3)
    world.knows("n3", "n4", position=Position(1, 4))
    given = world.read(file(4))
    world.wait(2.5)
    world.knows("n3", "n4")
    world.wait(2.3)
    assert not given
    world.wait(0.5)
    assert given == [file(4)]
    world = World(nodes=5)
    world.learn(4, before=3)
    world.knows("n3")
    world.wait(10.0)
    given = world.read(file(4))
    world.wait(2.5 * WAIT_PERIODS + ASK_S + AGAIN_S)
    (refused,) = given
    assert isinstance(refused.value, Refusal) and refused.value.code is Code.NOT_RUNNING
    assert refused.value.retry_after_s is not None


def test_who_must_know_is_known_with_the_commit_only() -> None:
    """A server that was told of the commit before what lies between concludes nothing: another node may have been admitted there."""
    world = World()
    world.here = Position(1, 4)
    world.learn(4, before=3)
    world.knows("n1", "n3")
    given = world.read(file(4))
    world.wait(3.0)
    assert not given
    world.here = AT
    world.wait(ASK_S + AGAIN_S)
    assert given == [file(4)]


def test_an_origin_whose_process_has_ended_denies_nothing() -> None:
    """Nobody waits for it: it is enough that all others know."""
    world = World()
    world.learn(4, before=3)
    world.knows("n3")
    world.over.add("n1")
    given = world.read(file(4))
    world.ask.to("n1")[0].lose()
    assert given == [file(4)]


def test_a_node_alone_needs_nobody() -> None:
    """What it knows is known everywhere."""
    world = World(name="n1", nodes=1)
    world.learn(4, before=3)
    assert world.read(file(4)) == [file(4)]


def test_a_server_of_the_release_before_is_not_asked() -> None:
    """It shows versions as soon as it knows them, and so do we those that it makes."""
    world = World()
    world.untold.add("n1")
    world.learn(4, before=3)
    assert world.read(file(4)) == [file(4)]
    assert not world.ask.asked


# --- the acting origin ---


def answer(world: World, attempt: AttemptId, *, settled: bool = False) -> str:
    """What it says of an attempt."""
    peer: Any = SimpleNamespace(identity=N1)
    found: SettledAnswer = world.settling.handlers[SettledAsk](peer, SettledAsk(attempt=attempt, settled=settled))
    return found.word


def test_what_the_origin_says() -> None:
    """Under way from its beginning, for less than a standing period; settled once that was noted; nothing of what it does not know."""
    world = World(name="n1")
    attempt = version(4).attempt
    assert answer(world, attempt) == "unknown"
    world.settling.begin(attempt)
    assert answer(world, attempt) == "under-way"
    world.wait(2.35)
    assert answer(world, attempt) == "under-way"
    world.wait(0.1)
    assert answer(world, attempt) == "unknown"
    world.settling.settled(version(4))
    assert answer(world, attempt) == "settled"
    other = version(5).attempt
    world.settling.begin(other)
    world.settling.give_up(other)
    assert answer(world, other) == "unknown"


def test_the_origin_asks_itself() -> None:
    """Its own readers are given the version before while it waits, and the new one from the moment at which it has spread."""
    world = World(name="n1")
    world.settling.begin(version(4).attempt)
    world.learn(4, before=3)
    assert world.read(file(4)) == [file(3)]
    world.settling.settled(version(4))
    assert world.read(file(4)) == [file(4)]
    assert not world.ask.asked


def test_who_coordinates_for_another_tells_it() -> None:
    """The origin answers then that it is settled; a node does not tell itself."""
    world = World(name="n2")
    world.settling.tell(version(4))
    (question,) = world.ask.waiting
    assert question.message == SettledAsk(attempt=version(4).attempt, settled=True)
    question.lose()
    world.settling.tell(version(4, origin="n2"))
    assert not world.ask.waiting
    origin = World(name="n1")
    assert answer(origin, version(4).attempt, settled=True) == "settled"
    assert answer(origin, version(4).attempt) == "settled"


def test_an_answer_that_is_given_again_waits_for_the_last_word() -> None:
    """Who answers for a commit of another node does so when that says that it is settled, or can deny it no more."""
    world = World()
    world.says("under-way")
    done: list[Any] = []
    Deferred.fromCoroutine(world.settling.concluded(version(4), world.clock.seconds())).addBoth(done.append)
    world.wait(2.4)
    assert not done
    world.wait(0.2)
    assert done == [None]
    world = World()
    world.says("settled")
    Deferred.fromCoroutine(world.settling.concluded(version(4), world.clock.seconds())).addBoth(done.append)
    assert done == [None, None]


# --- what is remembered, and for how long ---


def test_what_nobody_asks_for_is_forgotten() -> None:
    """After a standing period, when it has spread; then nothing is looked at any more."""
    world, board = World(), Board()
    world.settling.show_on(board)
    world.learn(4, before=3)
    world.knows("n1", "n3")
    assert board.young == [version(4).attempt]
    world.wait(2.4)
    assert board.young == [version(4).attempt]
    world.wait(0.3)
    assert not board.young and not world.clock.getDelayedCalls()
    assert world.read(file(4)) == [file(4)]
    assert not world.ask.asked


def test_after_a_start_or_a_snapshot_everything_is_young() -> None:
    """A file is shown when its origin says so, and all of them when a standing period has passed."""
    world, board = World(), Board()
    world.learn(4, before=3)
    world.settling.show_on(board)
    world.settling.learn_everything(AT)
    assert board.everything and not board.young
    world.says("settled")
    assert world.read(file(2)) == [file(2)]
    world.says("under-way")
    given = world.read(file(3))
    world.knows("n1", "n3")
    world.wait(2.4)
    assert not given and board.everything
    world.wait(0.3)
    assert given == [file(3)]
    assert not board.everything and not world.clock.getDelayedCalls()


def test_a_server_that_stops_looks_no_more() -> None:
    """Whatever it had not found out."""
    world = World()
    world.learn(4, before=3)
    world.settling.stop()
    world.learn(5, before=4)
    assert not world.clock.getDelayedCalls()
