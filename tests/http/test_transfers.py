"""Transfers that are cut off when the right to them ends."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import ExitStack

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.http.transfers import Transfer, Transfers
from securifile.model import facts as f
from securifile.model.errors import Code, Refusal
from securifile.model.ids import EntryId
from securifile.model.settings import ClusterSettings
from tests.protocol.asking import server

GRANT_GONE = f.GrantGone(entry=EntryId(b"f" * 16), username="ben")


@attrs.define(eq=False)
class Download:
    """One person's download."""

    allowed: bool = True
    error: Exception | None = None
    slow: Deferred[None] | None = None
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

        return Transfer(check=check, cut=self.reasons.append)


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


def test_a_revoked_right_cuts_the_transfer() -> None:
    """Who lost the right is cut off at once, with the reason; the others go on."""
    ann, ben = Download(), Download()
    world = World(ann, ben)
    world.transfers.learn(GRANT_GONE)
    assert (ann.reasons, ben.reasons) == ([], [])
    ben.allowed = False
    world.transfers.learn(GRANT_GONE)
    assert (ann.reasons, ben.reasons) == ([], ["not yours any more"])


@pytest.mark.parametrize(
    "fact",
    [
        f.PersonGone(username="ben"),
        f.SessionGone(token_hash=b"t"),
        f.EntryGone(id=EntryId(b"f" * 16)),
        f.Folder(id=EntryId(b"f" * 16), owner="ann", parent=None, name="ann", created_at=0.0),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_whatever_may_end_a_right_is_a_reason_to_look(fact: f.Fact) -> None:
    """People, sessions, ends and moves."""
    ben = Download(allowed=False)
    World(ben).transfers.learn(fact)
    assert ben.reasons


@pytest.mark.parametrize("fact", [server("n1"), f.Settings(cluster="c", settings=ClusterSettings())], ids=lambda fact: type(fact).__name__)
def test_what_ends_no_right_is_none(fact: f.Fact) -> None:
    """Heartbeats change servers' facts all the time; that is not worth looking at every transfer."""
    ben = Download()
    World(ben).transfers.learn(fact)
    assert ben.checks == 0


def test_a_finished_transfer_is_not_cut() -> None:
    """After it has ended nothing of it is checked or called."""
    ben = Download(allowed=False)
    world = World(ben)
    world.stack.close()
    world.transfers.learn(GRANT_GONE)
    world.reason = "down"
    world.clock.advance(0.5)
    assert (ben.checks, ben.reasons) == (0, [])


def test_a_change_during_a_check_is_looked_at_after_it() -> None:
    """A right that ends while an earlier change is still being looked at is not overlooked."""
    ann = Download(slow=Deferred())
    ben = Download()
    world = World(ben, ann)
    world.transfers.learn(GRANT_GONE)
    slow, ann.slow = ann.slow, None
    ben.allowed = ann.allowed = False
    world.transfers.learn(GRANT_GONE)
    assert slow is not None
    slow.callback(None)
    assert ben.reasons
    assert ann.reasons


def test_what_cannot_be_judged_is_not_served() -> None:
    """When the check itself fails all transfers are cut, and the next change is looked at again."""
    ann, ben = Download(error=OSError("the index")), Download()
    world = World(ann, ben)
    world.transfers.learn(GRANT_GONE)
    assert ann.reasons
    assert ben.reasons
    ann.error = None
    before = ben.checks
    world.transfers.learn(GRANT_GONE)
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
    world.transfers.learn(GRANT_GONE)
    world.transfers.stop()
    assert ann.reasons
    assert world.clock.getDelayedCalls() == []
