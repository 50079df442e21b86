"""Locking a file on every running server, and giving it back."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId, EntryId
from securifile.model.leases import new_path_key
from securifile.model.roster import Roster
from securifile.model.servers import Status
from securifile.node.locks import SILENCE_S, Granter, Lock, Locks
from securifile.protocol.messages import Done, LeaseAnswer, LeaseAsk, LeaseRelease
from tests.protocol.asking import FakeAsk, roster_of, server

KEY = b"k" * 16
FILE, FOLDER = EntryId(b"f" * 16), EntryId(b"d" * 16)
A, B = AttemptId(b"a" * 16), AttemptId(b"b" * 16)
LEASE_S = 9.0


class World:
    """n1 takes locks; the others have tables of their own, or are silent, or not."""

    def __init__(self, count: int = 4, roster: Roster | None = None) -> None:
        self.clock = Clock()
        self.roster = roster or roster_of(*(server(f"n{number}") for number in range(1, count + 1)), lease_s=LEASE_S)
        self.ask = FakeAsk(self.clock)
        self.doubtful: set[str] = set()
        self.unlocking: set[str] = set()
        self.over: set[str] = set()
        self.lost: set[str] = set()
        self.granters = {name: Granter(self.clock) for name in self.roster.nodes}
        self.locks = self.locks_of("n1")
        for name in self.roster.nodes:
            self.ask.rules[name] = self.table(name)

    def locks_of(self, name: str) -> Locks:
        return Locks(
            clock=self.clock,
            roster=self.roster,
            name=name,
            granter=self.granters[name],
            ask=self.ask,
            is_doubtful=self.doubtful.__contains__,
            is_unlocking=self.unlocking.__contains__,
            is_over=self.over.__contains__,
            is_available=lambda name: name not in self.lost,
        )

    def table(self, name: str) -> Any:
        def answer(message: Any) -> Any:
            if isinstance(message, LeaseAsk):
                return self.granters[name].ask(message, "n1")
            self.granters[name].release(message.key, message.attempt)
            return Done()

        return answer

    def silence(self, *names: str) -> None:
        for name in names:
            del self.ask.rules[name]

    def asleep(self, seconds: float) -> None:
        """Time passes for the others, and nothing happens here: as when the process is stopped."""
        self.clock.rightNow += seconds

    def take(self, attempt: AttemptId = A, person: str = "ann", first: str = "n1", locks: Locks | None = None) -> list[Any]:
        """What comes of taking the lock, once it is known."""
        outcome: list[Any] = []
        (locks or self.locks).take(KEY, attempt, person, first).addBoth(outcome.append)
        return outcome

    def holders(self) -> dict[str, AttemptId]:
        found = {name: granter.holder(KEY) for name, granter in self.granters.items()}
        return {name: held[0].attempt for name, held in found.items() if held is not None}

    def asked(self, kind: type) -> list[str]:
        return [question.name for question in self.ask.asked if isinstance(question.message, kind)]


def file_of(attempt: AttemptId) -> File:
    """A file that this attempt has made a version of."""
    version = Version(
        number=1,
        attempt=attempt,
        size=1,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="bob",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )
    return File(id=FILE, owner="bob", parent=FOLDER, name="report.pdf", created_at=0.0, version=version)


def refusal(outcome: list[Any]) -> Refusal:
    [failure] = outcome
    assert isinstance(failure, Failure)
    error = failure.value
    assert isinstance(error, Refusal)
    return error


def test_who_has_ended_is_not_asked() -> None:
    """Two of four that run are enough when nobody runs as the two others, who are not waited for."""
    world = World()
    world.silence("n3", "n4")
    outcome = world.take()
    world.clock.advance(SILENCE_S)
    assert refusal(outcome).code is Code.NOT_RUNNING
    world.over.update({"n3", "n4"})
    [lock] = world.take()
    assert isinstance(lock, Lock)
    assert world.holders() == {"n1": A, "n2": A}
    lock.release()
    assert world.holders() == {}


@pytest.mark.parametrize("has_ended", [True, False])
def test_who_is_lost_may_have_ended_and_is_given_a_moment(has_ended: bool) -> None:
    """Who uploaded through a node that was killed tries again at once; when its end is told a moment later, the file is free."""
    world = World()
    asked = LeaseAsk(key=KEY, attempt=B, person="ann", duration_s=LEASE_S)
    for granter in world.granters.values():
        granter.ask(asked, "n4")
    assert refusal(world.take()).code is Code.LOCKED
    world.lost.add("n4")
    outcome = world.take()
    assert outcome == []
    world.clock.advance(SILENCE_S / 3)
    if has_ended:
        for granter in world.granters.values():
            granter.release_all("n4")
    world.clock.advance(SILENCE_S)
    if has_ended:
        [lock] = outcome
        assert isinstance(lock, Lock)
        lock.release()
    else:
        assert refusal(outcome).code is Code.LOCKED


def test_a_lock_is_held_everywhere_until_it_is_released() -> None:
    """Every running server has it, and none afterwards."""
    world = World()
    [lock] = world.take()
    assert isinstance(lock, Lock)
    assert world.holders() == dict.fromkeys(["n1", "n2", "n3", "n4"], A)
    lock.release()
    lock.release()
    assert world.holders() == {}
    assert world.clock.getDelayedCalls() == []


def test_the_first_is_asked_before_all_others() -> None:
    """Only who has the first server's lease asks the others, so two starters never hold half each."""
    world = World()
    world.silence("n3")
    outcome = world.take(first="n3")
    assert world.asked(LeaseAsk) == ["n3"]
    assert world.holders() == {}
    world.ask.answer("n3", LeaseAnswer(granted=True))
    assert outcome
    assert world.asked(LeaseAsk) == ["n3", "n2", "n4"]


def test_two_starters_have_one_winner() -> None:
    """Whoever has the first has all; the other is told who it is, through which node and for how long, and holds nothing."""
    for first in ("n1", "n2", "n3"):
        world = World()
        [lock] = world.take(A, "ann", first)
        world.clock.advance(1.0)
        error = refusal(world.take(B, "ben", first, world.locks_of("n2")))
        assert error.code is Code.LOCKED
        assert (error.evidence["holder"], error.evidence["node"]) == ("ann", "n1")
        assert error.evidence["expires_in_s"] == LEASE_S - 1.0
        assert error.retry_after_s == LEASE_S - 1.0
        assert set(world.holders().values()) == {A}
        lock.release()
        assert world.take(B, "ben", first, world.locks_of("n2"))
        assert set(world.holders().values()) == {B}


def test_a_refusal_anywhere_frees_what_was_taken() -> None:
    """One server that granted to somebody else is enough, and nothing stays locked by the loser."""
    world = World()
    world.granters["n4"].ask(LeaseAsk(key=KEY, attempt=B, person="ben", duration_s=5.0), "n2")
    error = refusal(world.take())
    assert (error.code, error.evidence["holder"]) == (Code.LOCKED, "ben")
    assert world.holders() == {"n4": B}


def test_a_silent_server_is_left_out() -> None:
    """It holds the writer up for 300 ms once, and not at all for the first if it is doubted already."""
    world = World()
    world.silence("n4")
    outcome = world.take()
    world.clock.advance(SILENCE_S - 0.01)
    assert not outcome
    world.clock.advance(0.02)
    assert isinstance(outcome[0], Lock)
    outcome[0].release()
    world.clock.advance(SILENCE_S)

    world.doubtful.add("n4")
    outcome = world.take(B, first="n4")
    world.clock.advance(SILENCE_S)
    assert isinstance(outcome[0], Lock)


def test_a_silent_first_is_left_out_too() -> None:
    """The others decide when the first does not answer."""
    world = World()
    world.silence("n3")
    outcome = world.take(first="n3")
    world.clock.advance(SILENCE_S)
    assert isinstance(outcome[0], Lock)
    assert set(world.holders()) == {"n1", "n2", "n4"}


@pytest.mark.parametrize(("count", "silent", "enough"), [(2, 1, False), (3, 1, True), (3, 2, False), (4, 2, False), (5, 2, True)])
def test_more_than_half_must_answer(count: int, silent: int, enough: bool) -> None:
    """With half of the running servers silent nobody gets the lock, and what was taken is freed."""
    world = World(count)
    world.silence(*(f"n{number}" for number in range(2, 2 + silent)))
    outcome = world.take()
    world.clock.advance(SILENCE_S)
    if enough:
        assert isinstance(outcome[0], Lock)
    else:
        assert refusal(outcome).code is Code.NOT_RUNNING
        assert world.holders() == {}


def test_one_node_alone_locks_by_itself() -> None:
    """There is nobody else to ask."""
    world = World(1)
    assert isinstance(world.take()[0], Lock)
    assert world.ask.asked == []


def test_who_is_not_running_is_not_asked() -> None:
    """A node that is down has no say."""
    world = World(roster=roster_of(server("n1"), server("n2", Status.DOWN), server("n3"), lease_s=LEASE_S))
    [lock] = world.take()
    assert isinstance(lock, Lock)
    assert world.asked(LeaseAsk) == ["n3"]


def test_a_lease_is_renewed_while_it_is_held() -> None:
    """Long after its duration it is still held; after the holder's end it expires by itself."""
    world = World()
    [lock] = world.take()
    for _ in range(40):
        world.clock.advance(1.0)
        assert set(world.holders().values()) == {A}
        assert len(world.holders()) == 4
    # The holder crashes: nobody renews.
    lock._timer.cancel()
    world.clock.advance(LEASE_S)
    for granter in world.granters.values():
        granter.expire()
    assert world.holders() == {}


def settled(work: Any) -> list[Any]:
    """What came of it, if something did."""
    outcome: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(outcome.append)
    return outcome


def test_who_slept_past_the_lease_confirms_it_anew() -> None:
    """Where nobody else took the lock meanwhile it is had again, everywhere; while it runs nobody is asked."""
    world = World()
    [lock] = world.take()
    asked = len(world.ask.asked)
    assert settled(lock.confirm()) == [None]
    assert len(world.ask.asked) == asked
    world.asleep(LEASE_S)
    assert world.holders() == {}
    assert settled(lock.confirm()) == [None]
    assert world.holders() == dict.fromkeys(["n1", "n2", "n3", "n4"], A)


def test_who_slept_past_the_lease_does_not_overtake_the_next() -> None:
    """Where somebody else has it by now the confirmation is refused, naming them, and theirs stays."""
    world = World()
    [lock] = world.take()
    world.asleep(LEASE_S)
    # The sleeper is held for down by then, and grants nothing.
    world.roster.learn(attrs.evolve(world.roster.servers["n1"], status=Status.DOWN))
    world.take(B, "ben", "n2", world.locks_of("n2"))
    error = refusal(settled(lock.confirm()))
    assert (error.code, error.evidence["holder"]) == (Code.LOCKED, "ben")
    lock.release()
    assert {name: attempt for name, attempt in world.holders().items() if name != "n1"} == dict.fromkeys(["n2", "n3", "n4"], B)


def test_a_lease_that_ran_out_among_too_few_is_not_confirmed() -> None:
    """Who is cut off from half of the running servers cannot know who has the lock."""
    world = World()
    [lock] = world.take()
    world.silence("n2", "n3")
    world.asleep(LEASE_S)
    outcome = settled(lock.confirm())
    world.clock.advance(SILENCE_S)
    assert refusal(outcome).code is Code.NOT_RUNNING


def test_a_server_silent_at_a_renewal_is_asked_again() -> None:
    """Two lost renewals do not lose the lease."""
    world = World()
    [lock] = world.take()
    world.silence("n2")
    world.clock.pump([0.5] * 14)
    assert "n2" in world.holders()
    world.ask.rules["n2"] = world.table("n2")
    world.clock.pump([0.5] * 4)
    world.clock.pump([0.5] * 12)
    assert "n2" in world.holders()
    lock.release()


def test_a_grant_that_came_too_late_is_given_back() -> None:
    """A server that was left out has granted all the same; it is told of the release as well."""
    world = World()
    world.silence("n4")
    outcome = world.take()
    late = world.ask.to("n4")[0]
    world.granters["n4"].ask(late.message, "n1")
    world.clock.advance(SILENCE_S)
    world.ask.rules["n4"] = world.table("n4")
    assert "n4" in world.holders()
    outcome[0].release()
    assert world.holders() == {}


def test_giving_up_while_waiting_gives_everything_back() -> None:
    """A client that goes away while the lock is being taken leaves nothing locked."""
    world = World()
    world.silence("n4")
    taking: Deferred[Lock] = world.locks.take(KEY, A, "ann", "n1")
    outcome: list[Any] = []
    taking.addBoth(outcome.append)
    world.granters["n4"].ask(world.ask.to("n4")[0].message, "n1")
    taking.cancel()
    assert outcome[0].check(CancelledError)
    assert set(world.holders()) <= {"n4"}
    assert [question.message for question in world.ask.to("n4")] == [LeaseRelease(key=KEY, attempt=A)]
    world.ask.to("n4")[0].lose()
    assert world.clock.getDelayedCalls() == []


def test_a_bug_in_an_answer_is_not_taken_for_silence() -> None:
    """An error that is not the network's comes out, and what was taken is given back."""
    world = World()
    world.ask.rules["n3"] = lambda message: KeyError("a bug") if isinstance(message, LeaseAsk) else Done()
    [failure] = world.take()
    assert failure.check(KeyError)
    assert world.holders() == {}


def test_who_has_heard_of_the_commit_need_not_be_told_that_the_file_is_unlocked() -> None:
    """It has forgotten the lease by itself. Who has not heard of it, or does not do that, is told."""
    world = World()
    world.unlocking.update(["n2", "n3"])
    [lock] = world.take()
    lock.release(["n1", "n2", "n4"])
    assert world.asked(LeaseRelease) == ["n3", "n4"]


def test_who_did_not_answer_is_told_that_the_file_is_unlocked() -> None:
    """Its grant may come after it has heard of the commit: when it was silent at first, at the last renewal, or when that is under way."""
    world = World()
    world.unlocking.update(world.roster.nodes)
    world.silence("n2")
    outcome = world.take()
    world.clock.advance(SILENCE_S)
    world.ask.rules["n2"] = world.table("n2")
    [lock] = outcome
    lock.release(["n1", "n2", "n3", "n4"])
    assert world.asked(LeaseRelease) == ["n2"]

    for waited_s in (SILENCE_S, SILENCE_S / 2):
        world = World()
        world.unlocking.update(world.roster.nodes)
        [lock] = world.take()
        world.silence("n2")
        world.clock.advance(LEASE_S / 3)
        world.clock.advance(waited_s)
        lock.release(["n1", "n2", "n3", "n4"])
        told = world.asked(LeaseRelease)
        assert "n2" in told
        assert (told == ["n2"]) == (waited_s == SILENCE_S)


@pytest.mark.parametrize("key", [FILE.value, new_path_key(FOLDER, "report.pdf")])
def test_a_commit_ends_the_lease_of_its_attempt(key: bytes) -> None:
    """Of the file, or of the place where it was to be; not that of the next attempt, nor one of another file."""
    granter = Granter(Clock())
    committed = file_of(A)
    for attempt, left in ((A, None), (B, "bob")):
        granter.ask(LeaseAsk(key=key, attempt=attempt, person="bob", duration_s=10.0), "n1")
        granter.ask(LeaseAsk(key=KEY, attempt=A, person="ann", duration_s=10.0), "n1")
        granter.learn(committed)
        assert granter.look(key).holder == left
        assert granter.look(KEY).holder == "ann"


def test_the_granter_tells_who_holds() -> None:
    """For the details of a file: who, through which node, and for how long still."""
    clock = Clock()
    granter = Granter(clock)
    assert granter.holder(KEY) is None
    assert granter.ask(LeaseAsk(key=KEY, attempt=A, person="ann", duration_s=4.0), "n2").granted
    clock.advance(1.0)
    held = granter.holder(KEY)
    assert held is not None
    assert (held[0].person, held[0].node, held[1]) == ("ann", "n2", 3.0)
    assert granter.look(KEY) == LeaseAnswer(granted=False, holder="ann", node="n2", expires_in_s=3.0)
    granter.release(KEY, B)
    assert granter.holder(KEY) is not None
    clock.advance(3.0)
    granter.expire()
    assert granter.holder(KEY) is None
    assert granter.look(KEY) == LeaseAnswer(granted=True)
