"""Conducting the return of nodes: challengers are asked, and what they find is committed; on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.admin.rejoin import REPORT_S, Rejoins
from securifile.audit.memory import MemoryAudit
from securifile.model.errors import Code, DatabaseUnavailable, Refusal
from securifile.model.ids import AttemptId, EntryId
from securifile.model.proofs import BadCopy, Report, Verdict
from securifile.model.servers import Status
from securifile.model.verification import AGAIN_FIRST_S, AGAIN_MOST_S, NONCE_BYTES, TRIES
from securifile.protocol import messages as m
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import NODES, World
from tests.protocol.asking import FakeAsk, Question

BAD = BadCopy(file=EntryId(b"f" * 16), attempt=AttemptId(b"a" * 16), verdict=Verdict.CORRUPT)


@attrs.define
class FakeHeartbeats:
    """Who answers is what the test says."""

    answering: set[str] = attrs.field(factory=lambda: set(NODES))

    def is_answering(self, name: str) -> bool:
        """See `Heartbeats`."""
        return name in self.answering


class Returning:
    """A catalogue of three nodes, of which n3 is down and returns."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.world = World(SqliteDatabase(None))
        self.ask = FakeAsk(self.clock)
        self.heartbeats = FakeHeartbeats()
        self.boots: dict[str, str] = {"n1": "", "n2": "", "n3": "second life"}
        self.behind: set[str] = set()
        self.all_shared = True
        """Whether a returning node has nothing that no challenger holds."""
        self.audit = MemoryAudit()
        heartbeats: Any = self.heartbeats
        self.rejoins = Rejoins(
            clock=self.clock,
            wall=lambda: self.world.now + self.clock.seconds(),
            name="admin1",
            catalogue=self.world.catalogue,
            ask=self._ask,
            heartbeats=heartbeats,
            boot_of=self.boots.get,
            has_caught_up=lambda name: name not in self.behind,
            random=self.world.random.randbytes,
            audit=self.audit,
        )

    def _ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        if name == message.subject and message.challengers and self.all_shared:
            return succeed(m.Verified(report=Report(challenger=name, files=0, bytes=0, whole=True)))
        return self.ask(name, message, timeout_s)

    async def open(self) -> None:
        await self.world.open()
        await self.world.hold({"n3": Status.DOWN})

    def status(self, name: str = "n3") -> Status:
        """What the cluster holds a node for."""
        return self.world.catalogue.roster.servers[name].status

    @property
    def asked(self) -> list[tuple[str, str]]:
        """(challenger, subject) of what waits for an answer."""
        return [(question.name, question.message.subject) for question in self.ask.waiting]

    def question(self, challenger: str, subject: str = "n3") -> Question:
        """What waits for the answer of that challenger."""
        (found,) = [question for question in self.ask.to(challenger) if question.message.subject == subject]
        return found

    def report(self, challenger: str, subject: str = "n3", **more: Any) -> None:
        """A challenger tells what it found; all good unless said otherwise."""
        report = attrs.evolve(Report(challenger=challenger, files=10, bytes=100, whole=True), **more)
        self.question(challenger, subject).answer.callback(m.Verified(report=report))

    def events(self, event: str) -> list[tuple[str | None, str | None]]:
        """(about whom, detail) of the records of that kind."""
        return [(record.peer, record.detail) for record in self.audit.records if record.event == event]


@pytest.fixture
def returning() -> Iterator[Returning]:
    made = Returning()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    made.rejoins.stop()
    assert made.rejoins.under_way == []


def test_it_is_running_when_all_verdicts_are_good(returning: Returning) -> None:
    """Every other node that answers is asked, with one nonce and where the catalogue is; the last good verdict admits that process."""
    returning.rejoins.look()
    assert returning.asked == [("n1", "n3"), ("n2", "n3")]
    verify = returning.question("n1").message
    assert verify == returning.question("n2").message
    assert (len(verify.nonce), verify.position) == (NONCE_BYTES, returning.world.catalogue.ledger.position)
    returning.report("n1")
    assert (returning.status(), returning.rejoins.under_way) == (Status.DOWN, ["n3"])
    returning.report("n2")
    assert (returning.status(), returning.rejoins.under_way) == (Status.RUNNING, [])
    assert returning.world.catalogue.roster.servers["n3"].boot == "second life"
    assert returning.events("verification") == [("n3", "by n1, n2")]
    assert returning.events("verdict") == [("n3", "by n1: 10 files, 100 bytes, all good"), ("n3", "by n2: 10 files, 100 bytes, all good")]
    assert returning.events("status") == [("n3", "down -> running")]
    returning.rejoins.look()
    assert returning.asked == []


@pytest.mark.parametrize("more", [{"bad": (BAD,), "bad_count": 3}, {"interrupted": "silence"}], ids=["bad", "interrupted"])
def test_one_bad_verdict_makes_it_failed(returning: Returning, more: dict[str, Any]) -> None:
    """However good the others are; the file, the challenger and the reason are recorded."""
    returning.rejoins.look()
    returning.report("n1", **more)
    assert returning.status() is Status.DOWN
    returning.report("n2")
    assert returning.status() is Status.FAILED
    ((_, detail),) = returning.events("status")
    assert detail is not None and detail.startswith("down -> failed: n1")
    bad = [(record.entry, record.detail) for record in returning.audit.records if record.event == "bad-copy"]
    assert bad == ([(str(BAD.file), f"corrupt: attempt {BAD.attempt}, by n1")] if "bad" in more else [])


def test_what_a_challenger_finds_of_its_own_fails_nobody(returning: Returning) -> None:
    """It has told of it by itself."""
    returning.rejoins.look()
    returning.report("n1", own_bad=4)
    returning.report("n2")
    assert returning.status() is Status.RUNNING


CUT = {"interrupted": "n3 is not connected", "unheard": True}


def test_a_challenger_that_was_cut_off_is_asked_again(returning: Returning) -> None:
    """The way between the two comes back: the second time it has a verdict, under the same nonce, and the others are not asked again."""
    returning.rejoins.look()
    nonce = returning.question("n1").message.nonce
    returning.report("n1", **CUT)
    returning.report("n2")
    assert returning.asked == [("n1", "n3")]
    assert returning.question("n1").message.nonce == nonce
    returning.report("n1")
    assert returning.status() is Status.RUNNING


def test_a_challenger_that_stays_cut_off_fails_nobody(returning: Returning) -> None:
    """Another one came to its end: so the prover made progress. What it would have asked for, the node verifies itself."""
    returning.all_shared = False
    returning.rejoins.look()
    returning.report("n2")
    for _ in range(TRIES):
        returning.report("n1", **CUT)
    assert returning.question("n3").message.challengers == ("n2",)
    returning.report("n3")
    assert returning.status() is Status.RUNNING
    assert ("n3", "by n1: none, it was cut off from n3 (n3 is not connected), and others were not") in returning.events("verdict")


def test_when_nobody_comes_to_an_end_it_has_failed(returning: Returning) -> None:
    """However often they are asked: nothing shows that the prover made any progress, and the number of tries is bounded."""
    returning.rejoins.look()
    for _ in range(TRIES):
        assert returning.status() is Status.DOWN
        returning.report("n1", **CUT)
        returning.report("n2", **CUT)
    assert (returning.asked, returning.status()) == ([], Status.FAILED)


def test_who_cannot_get_there_any_more_has_been_cut_off(returning: Returning) -> None:
    """A challenger that refuses the second time does not take back that its first verification was interrupted."""
    returning.rejoins.look()
    returning.report("n1", **CUT)
    returning.question("n2").lose()
    for _ in range(TRIES - 1):
        returning.question("n1").answer.errback(Refusal(Code.NOT_RUNNING, "n3 cannot be reached from n1"))
    assert returning.status() is Status.FAILED


def test_a_bad_verdict_is_not_outdone_by_asking_again(returning: Returning) -> None:
    """Nobody is asked again when one has found a bad copy."""
    returning.rejoins.look()
    returning.report("n1", **CUT)
    returning.report("n2", bad=(BAD,), bad_count=1)
    assert (returning.asked, returning.status()) == ([], Status.FAILED)


def test_a_failed_node_stays_so(returning: Returning) -> None:
    """It is not verified again by itself, though it answers."""
    returning.rejoins.look()
    returning.report("n1", interrupted="silence")
    returning.report("n2")
    for _ in range(3):
        returning.rejoins.look()
    assert (returning.asked, returning.status()) == ([], Status.FAILED)


@pytest_twisted.ensureDeferred
async def test_a_failed_node_is_verified_again_when_it_is_brought_online(returning: Returning) -> None:
    """And not while it is offline."""
    members = returning.world.catalogue.members
    await returning.world.hold({"n3": Status.FAILED})
    await members.set_offline("n3", True)
    returning.rejoins.look()
    assert (returning.asked, returning.status()) == ([], Status.DOWN)
    await members.set_offline("n3", False)
    returning.rejoins.look()
    assert returning.asked == [("n1", "n3"), ("n2", "n3")]


@pytest_twisted.ensureDeferred
async def test_a_failed_node_that_was_started_anew_is_verified_again(returning: Returning) -> None:
    """Its new process is down, like any that nobody has verified."""
    returning.rejoins.look()
    returning.report("n1", interrupted="silence")
    returning.report("n2")
    returning.boots["n3"] = "third life"
    await returning.world.catalogue.members.judge({}, dict.fromkeys(NODES, Status.RUNNING), returning.boots)
    assert returning.status() is Status.DOWN
    returning.rejoins.look()
    returning.report("n1")
    returning.report("n2")
    assert returning.status() is Status.RUNNING
    assert returning.world.catalogue.roster.servers["n3"].boot == "third life"


@pytest.mark.parametrize("why", ["silent", "behind", "unknown process"])
def test_who_cannot_be_verified_yet_is_left_alone(returning: Returning, why: str) -> None:
    """It must answer, have caught up, and have told which process it is; then its verification begins."""
    if why == "silent":
        returning.heartbeats.answering.remove("n3")
    elif why == "behind":
        returning.behind.add("n3")
    else:
        del returning.boots["n3"]
    returning.rejoins.look()
    assert returning.asked == []
    returning.heartbeats.answering.add("n3")
    returning.behind.clear()
    returning.boots["n3"] = "second life"
    returning.rejoins.look()
    assert len(returning.asked) == 2


def test_one_verification_at_a_time(returning: Returning) -> None:
    """While one is under way no second one begins."""
    for _ in range(3):
        returning.rejoins.look()
    assert len(returning.asked) == 2


def test_a_challenger_that_is_lost_is_left_out(returning: Returning) -> None:
    """The verdicts of the others decide."""
    returning.rejoins.look()
    returning.question("n1").lose()
    assert returning.status() is Status.DOWN
    returning.report("n2")
    assert returning.status() is Status.RUNNING


def test_a_challenger_that_cannot_challenge_is_left_out(returning: Returning) -> None:
    """Like one that refuses, or takes longer than anything may take."""
    returning.rejoins.look()
    returning.question("n1").answer.errback(Refusal(Code.NOT_RUNNING, "n3 cannot be reached from n1"))
    returning.clock.advance(REPORT_S)
    assert returning.status() is Status.DOWN
    returning.clock.advance(AGAIN_FIRST_S)
    returning.rejoins.look()
    returning.question("n2").lose()
    returning.report("n1", bad=(BAD,), bad_count=1)
    assert returning.status() is Status.FAILED


def test_without_any_verdict_it_is_tried_again(returning: Returning) -> None:
    """When all challengers are lost, nothing is known of the node: neither admitted nor failed."""
    returning.rejoins.look()
    for challenger in ("n1", "n2"):
        returning.question(challenger).lose()
    assert (returning.status(), returning.rejoins.under_way) == (Status.DOWN, [])
    returning.clock.advance(AGAIN_FIRST_S)
    returning.rejoins.look()
    assert returning.asked == [("n1", "n3"), ("n2", "n3")]


def test_in_vain_it_is_tried_ever_more_seldom(returning: Returning) -> None:
    """Twice as late each time; recorded is that it began, and each reason once."""
    began: list[float] = []
    while returning.clock.seconds() < 5 * AGAIN_MOST_S:
        returning.rejoins.look()
        if returning.asked:
            began.append(returning.clock.seconds())
            for challenger in ("n1", "n2"):
                returning.question(challenger).answer.errback(Refusal(Code.NOT_RUNNING, "n3 cannot be reached"))
        returning.clock.advance(0.5)
    assert [later - earlier for earlier, later in zip(began, began[1:], strict=False)][:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert returning.events("verification") == [
        ("n3", "by n1, n2"),
        ("n3", "no verdict: n1: not-running: n3 cannot be reached; n2: not-running: n3 cannot be reached"),
    ]
    reason, left_s = returning.rejoins.fruitless("n3") or ("", 0.0)
    assert "n3 cannot be reached" in reason and 0 < left_s <= AGAIN_MOST_S


@pytest.mark.parametrize("change", ["another process", "a challenger less", "offline meanwhile"])
@pytest_twisted.ensureDeferred
async def test_when_something_changes_it_is_tried_at_once(returning: Returning, change: str) -> None:
    """There is a reason now why it may go better; and a reason to record it."""
    for _ in range(4):
        returning.rejoins.look()
        for question in list(returning.ask.waiting):
            question.lose()
        returning.clock.advance(AGAIN_MOST_S)
    returning.rejoins.look()
    for question in list(returning.ask.waiting):
        question.lose()
    returning.rejoins.look()
    assert returning.asked == []
    if change == "another process":
        returning.boots["n3"] = "third life"
    elif change == "a challenger less":
        returning.heartbeats.answering.remove("n1")
    else:
        members = returning.world.catalogue.members
        await members.set_offline("n3", True)
        returning.rejoins.look()
        await members.set_offline("n3", False)
    returning.rejoins.look()
    assert ("n2", "n3") in returning.asked
    assert len([detail for _, detail in returning.events("verification") if detail and detail.startswith("by ")]) == 2


@pytest.mark.parametrize("why", ["another process", "silent"])
def test_who_does_not_stay_to_the_end_is_not_admitted(returning: Returning, why: str) -> None:
    """Good verdicts about a process that is gone or silent by now are an interrupted verification."""
    returning.rejoins.look()
    returning.report("n1")
    if why == "silent":
        returning.heartbeats.answering.remove("n3")
    else:
        returning.boots["n3"] = "third life"
    returning.report("n2")
    assert returning.status() is Status.FAILED
    assert returning.world.catalogue.roster.servers["n3"].boot == "second life"


def test_with_nobody_else_it_verifies_itself(returning: Returning) -> None:
    """No other node answers: its own verdict on its copies counts, good or bad."""
    returning.heartbeats.answering = {"n3"}
    returning.rejoins.look()
    assert returning.asked == [("n3", "n3")]
    returning.question("n3").lose()
    assert returning.status() is Status.DOWN
    returning.clock.advance(AGAIN_FIRST_S)
    returning.rejoins.look()
    returning.report("n3")
    assert returning.status() is Status.RUNNING
    assert returning.events("verification")[0] == ("n3", "by itself")


def test_what_no_challenger_holds_it_verifies_itself(returning: Returning) -> None:
    """After the others: it is told whose lists are done, and its own verdict on the rest counts as much as theirs."""
    returning.all_shared = False
    returning.rejoins.look()
    returning.report("n1")
    assert returning.asked == [("n2", "n3")]
    returning.report("n2")
    assert (returning.asked, returning.status()) == ([("n3", "n3")], Status.DOWN)
    asked = returning.question("n3").message
    assert asked.challengers == ("n1", "n2")
    returning.report("n3", bad=(BAD,), bad_count=1)
    assert returning.status() is Status.FAILED
    assert returning.events("verdict")[-1] == ("n3", "by n3: 10 files, 100 bytes, 1 bad")


def test_what_a_lost_challenger_would_have_asked_for_is_verified_all_the_same(returning: Returning) -> None:
    """Only those that gave a verdict are named to the returning node."""
    returning.all_shared = False
    returning.rejoins.look()
    returning.question("n1").lose()
    returning.report("n2")
    assert returning.question("n3").message.challengers == ("n2",)
    returning.report("n3")
    assert returning.status() is Status.RUNNING


def test_a_node_that_has_failed_need_not_verify_itself(returning: Returning) -> None:
    """One bad verdict is enough."""
    returning.all_shared = False
    returning.rejoins.look()
    returning.report("n1", bad=(BAD,), bad_count=1)
    returning.report("n2")
    assert (returning.asked, returning.status()) == ([], Status.FAILED)


@pytest.mark.parametrize("why", ["connection", "another process", "silent"])
def test_without_its_own_verdict_nobody_is_admitted(returning: Returning, why: str) -> None:
    """A connection that was lost is no verdict: it begins anew. A process that is gone or silent was interrupted."""
    returning.all_shared = False
    returning.rejoins.look()
    returning.report("n1")
    returning.report("n2")
    if why == "another process":
        returning.boots["n3"] = "third life"
    elif why == "silent":
        returning.heartbeats.answering.remove("n3")
    returning.question("n3").lose()
    assert returning.status() is (Status.DOWN if why == "connection" else Status.FAILED)


@pytest_twisted.ensureDeferred
async def test_two_that_return_at_once_verify_each_other(returning: Returning) -> None:
    """Who returns is a challenger, too; each has a nonce of its own, and one's failure is not the other's."""
    await returning.world.hold({"n2": Status.DOWN})
    returning.rejoins.look()
    assert returning.asked == [("n1", "n2"), ("n3", "n2"), ("n1", "n3"), ("n2", "n3")]
    assert len({question.message.nonce for question in returning.ask.waiting}) == 2
    returning.report("n1", "n2")
    returning.report("n3", "n2")
    assert (returning.status("n2"), returning.status("n3")) == (Status.RUNNING, Status.DOWN)
    returning.report("n1", "n3", bad=(BAD,), bad_count=1)
    returning.report("n2", "n3")
    assert (returning.status("n2"), returning.status("n3")) == (Status.RUNNING, Status.FAILED)


def test_without_the_database_nobody_is_admitted(returning: Returning) -> None:
    """The verdict could not be written: later the node is verified again, because much may have happened since."""
    members: Any = returning.world.catalogue.members
    rejoined = members.rejoined
    members.rejoined = lambda *_: fail(DatabaseUnavailable("away"))
    returning.rejoins.look()
    returning.report("n1")
    returning.report("n2")
    assert (returning.status(), returning.rejoins.under_way) == (Status.DOWN, [])
    members.rejoined = rejoined
    assert (returning.rejoins.fruitless("n3") or ("",))[0] == "away"
    returning.clock.advance(AGAIN_FIRST_S)
    returning.rejoins.look()
    returning.report("n1")
    returning.report("n2")
    assert returning.status() is Status.RUNNING


@pytest_twisted.ensureDeferred
async def test_offline_meanwhile_stays_offline(returning: Returning) -> None:
    """A node that the administrator takes offline while it is verified is not admitted."""
    returning.rejoins.look()
    await returning.world.catalogue.members.set_offline("n3", True)
    returning.report("n1")
    returning.report("n2")
    assert returning.status() is Status.DOWN
    assert returning.events("status") == []


@pytest_twisted.ensureDeferred
async def test_a_new_member_begins_like_a_returning_node(returning: Returning) -> None:
    """It holds nothing yet, and is running when the others have found nothing wrong."""
    await returning.world.join("n4", Status.DOWN)
    returning.heartbeats.answering = {"n1", "n4"}
    returning.boots["n4"] = "first life"
    returning.rejoins.look()
    assert returning.asked == [("n1", "n4")]
    returning.report("n1", "n4", files=0, bytes=0)
    assert returning.status("n4") is Status.RUNNING


def test_stop_commits_nothing_more(returning: Returning) -> None:
    """An admin server that stops in the middle gives up, whatever verdicts it has; the challengers are told so."""
    returning.rejoins.look()
    returning.report("n1")
    returning.rejoins.stop()
    assert (returning.status(), returning.rejoins.under_way, returning.ask.waiting) == (Status.DOWN, [], [])
    assert returning.events("status") == []


def test_a_full_audit_spool_keeps_nobody_out(returning: Returning) -> None:
    """What cannot be recorded is logged, and the node is admitted."""
    returning.audit.full = True
    returning.rejoins.look()
    returning.report("n1")
    returning.report("n2")
    assert returning.status() is Status.RUNNING
