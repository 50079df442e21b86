"""Transfers that are cut off when the right to them ends."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import ExitStack

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.http.transfers import GATHER_S, Transfer, Transfers
from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Version
from securifile.model.errors import Code, Refusal
from securifile.model.ids import AttemptId, EntryId
from securifile.model.settings import ClusterSettings
from tests.protocol.asking import server

HERE, ELSEWHERE = EntryId(b"f" * 16), EntryId(b"e" * 16)
GRANT_GONE = f.GrantGone(entry=HERE, username="ben")


@attrs.define(eq=False)
class Download:
    """One person's download."""

    allowed: bool = True
    error: Exception | None = None
    slow: Deferred[None] | None = None
    over: bool = False
    entry: EntryId = HERE
    needs_standing: bool = True
    checks: int = 0
    reasons: list[str] = attrs.field(factory=list)

    async def check(self) -> None:
        self.checks += 1
        if self.slow is not None:
            await self.slow
        if self.error is not None:
            raise self.error
        if not self.allowed:
            raise Refusal(Code.NOT_FOUND, "not yours any more")

    def transfer(self) -> Transfer:
        def check() -> Awaitable[None]:
            return self.check()

        def has_ended() -> bool:
            return self.over

        return Transfer(entry=self.entry, check=check, cut=self.reasons.append, has_ended=has_ended, needs_standing=self.needs_standing)


def new_version(entry: EntryId) -> f.File:
    version = Version(
        number=2,
        attempt=AttemptId(b"a" * 16),
        size=0,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(),
    )
    return f.File(id=entry, owner="ann", parent=ELSEWHERE, name="x", created_at=0.0, version=version)


class World:
    """Some downloads under way."""

    def __init__(self, *downloads: Download) -> None:
        self.clock = Clock()
        self.reason: str | None = None
        self.transfers = Transfers(clock=self.clock, interval_s=lambda: 0.5, serves=lambda: self.reason)
        self.transfers.start()
        self.stack = ExitStack()
        for download in downloads:
            self.stack.enter_context(self.transfers.watched(download.transfer()))

    def learn(self, fact: f.Fact) -> None:
        """Learn of a change, and let the time pass for which changes are gathered."""
        self.transfers.learn(fact)
        self.clock.advance(GATHER_S)


def test_a_revoked_right_cuts_the_transfer() -> None:
    """Who lost the right is cut off at once, with the reason; the others go on."""
    ann, ben = Download(), Download()
    world = World(ann, ben)
    world.learn(GRANT_GONE)
    assert (ann.reasons, ben.reasons) == ([], [])
    ben.allowed = False
    world.learn(GRANT_GONE)
    assert (ann.reasons, ben.reasons) == ([], ["not yours any more"])


@pytest.mark.parametrize(
    "fact",
    [
        f.PersonGone(username="ben"),
        f.SessionGone(token_hash=b"t"),
        f.EntryGone(id=HERE),
        f.Folder(id=HERE, owner="ann", parent=None, name="ann", created_at=0.0),
        new_version(HERE),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_whatever_may_end_a_right_is_a_reason_to_look(fact: f.Fact) -> None:
    """People, sessions, ends and moves, and what becomes of the file itself."""
    ben = Download(allowed=False)
    World(ben).learn(fact)
    assert ben.reasons


@pytest.mark.parametrize(
    "fact",
    [
        server("n1"),
        f.Settings(cluster="c", settings=ClusterSettings()),
        f.Session(token_hash=b"", username="ben", expires_at=1.0),
        new_version(ELSEWHERE),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_what_ends_no_right_is_none(fact: f.Fact) -> None:
    """Status changes, sign-ins and others' uploads come all the time; they are not worth looking at every transfer."""
    ben = Download()
    World(ben).learn(fact)
    assert ben.checks == 0


def test_a_finished_transfer_is_not_cut() -> None:
    """After it has ended nothing of it is checked or called."""
    ben = Download(allowed=False)
    world = World(ben)
    world.stack.close()
    world.learn(GRANT_GONE)
    world.reason = "down"
    world.clock.advance(0.5)
    assert (ben.checks, ben.reasons) == (0, [])


def test_a_change_during_a_check_is_looked_at_after_it() -> None:
    """A right that ends while an earlier change is still being looked at is not overlooked."""
    ann = Download(slow=Deferred())
    ben = Download()
    world = World(ben, ann)
    world.learn(GRANT_GONE)
    slow, ann.slow = ann.slow, None
    ben.allowed = ann.allowed = False
    world.learn(GRANT_GONE)
    assert slow is not None
    slow.callback(None)
    world.clock.advance(GATHER_S)
    assert ben.reasons
    assert ann.reasons


def test_what_cannot_be_judged_is_not_served() -> None:
    """When the check itself fails all transfers are cut, and the next change is looked at again."""
    ann, ben = Download(error=OSError("the index")), Download()
    world = World(ann, ben)
    world.learn(GRANT_GONE)
    assert ann.reasons
    assert ben.reasons
    ann.error = None
    before = ben.checks
    world.learn(GRANT_GONE)
    assert ben.checks == before + 1


def test_a_node_that_may_not_serve_cuts_everything() -> None:
    """Within an interval after it has lost its standing, with the reason."""
    ann = Download()
    world = World(ann)
    world.clock.pump([0.5] * 5)
    assert ann.reasons == []
    world.reason = "cut off"
    world.clock.advance(0.5)
    assert ann.reasons == ["cut off"]


def test_stop_cuts_everything_and_leaves_nothing_behind() -> None:
    """No timer, and no check under way."""
    ann = Download(slow=Deferred())
    world = World(ann)
    world.learn(GRANT_GONE)
    world.transfers.stop()
    assert ann.reasons
    assert world.clock.getDelayedCalls() == []


def test_a_thousand_changes_at_once_are_one_look() -> None:
    """A snapshot tells of everything there is; the transfers are looked at once for it, not once for each thing."""
    ann = Download()
    world = World(ann)
    for _ in range(1000):
        world.transfers.learn(GRANT_GONE)
    world.clock.advance(1.0)
    assert ann.checks == 1


def test_a_change_before_anybody_watched_is_remembered() -> None:
    """Who judged rights and only then came to be watched can see that something has changed in between."""
    world = World()
    world.clock.advance(1.0)
    judged_at = world.clock.seconds()
    assert world.transfers.changed_at < judged_at
    world.learn(GRANT_GONE)
    assert world.transfers.changed_at >= judged_at


def test_a_session_that_runs_out_ends_its_transfers() -> None:
    """No change tells of the end of a session's or an account's time; the transfer is checked when it has come."""
    ann = Download()
    world = World(ann)
    world.clock.pump([0.1] * 10)
    assert ann.checks == 0
    ann.over, ann.allowed = True, False
    world.clock.pump([0.1, GATHER_S])
    assert ann.reasons == ["not yours any more"]


def test_writing_goes_on_without_standing() -> None:
    """Whether an upload may become a version the catalogue will say; only a node that stops cuts it."""
    ben = Download(needs_standing=False)
    world = World(ben)
    world.reason = "cut off"
    world.clock.advance(0.5)
    assert ben.reasons == []
    world.transfers.stop()
    assert ben.reasons == ["this node is stopping"]


def test_nothing_is_looked_at_where_nothing_is_under_way() -> None:
    """An idle server has no timer; it has one again with the next transfer, which is cut when the standing is lost."""
    world = World()
    assert not world.clock.getDelayedCalls()
    first, second = Download(), Download()
    with world.transfers.watched(first.transfer()):
        world.clock.advance(1.0)
        assert len(world.clock.getDelayedCalls()) == 1
    world.clock.advance(1.0)
    assert not world.clock.getDelayedCalls()
    with world.transfers.watched(second.transfer()):
        world.reason = "cut off"
        world.clock.advance(0.1)
    assert (first.reasons, second.reasons) == ([], ["cut off"])
    world.clock.advance(1.0)
    world.transfers.stop()
    with world.transfers.watched(first.transfer()):
        assert not world.clock.getDelayedCalls(), "a stopped server begins nothing"
