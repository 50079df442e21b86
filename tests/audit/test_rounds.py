"""Rounds never overlap, and nothing that was asked for is forgotten."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from securifile.audit.rounds import Rounds


class Work:
    """Rounds that wait to be let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.gates: list[Deferred[None]] = []

    async def __call__(self) -> None:
        self.begun += 1
        gate: Deferred[None] = Deferred()
        self.gates.append(gate)
        await gate


def test_one_at_a_time() -> None:
    """However often it is asked meanwhile, one round follows the one under way."""
    work = Work()
    rounds = Rounds("work", work)
    for _ in range(5):
        rounds.ask()
    assert work.begun == 1
    work.gates.pop().callback(None)
    assert work.begun == 2
    idle = rounds.idle()
    assert not idle.called
    work.gates.pop().callback(None)
    assert work.begun == 2
    assert idle.called
    rounds.ask()
    assert work.begun == 3


def test_failure_ends_only_its_round() -> None:
    """After a round that failed the next one comes."""
    work = Work()
    rounds = Rounds("work", work)
    rounds.ask()
    rounds.ask()
    work.gates.pop().errback(OSError("no"))
    assert work.begun == 2


def test_cancel() -> None:
    """A cancelled round ends where it waits, and none follows unless asked for."""
    work = Work()
    rounds = Rounds("work", work)
    rounds.ask()
    rounds.ask()
    rounds.cancel()
    assert rounds.idle().called
    assert work.begun == 1
    rounds.ask()
    assert work.begun == 2


def test_cancel_of_a_round_asked_for_by_the_end_of_another() -> None:
    """What begins while an earlier run is still on the stack can be cancelled like any other."""
    work = Work()

    async def at_once_then_wait() -> None:
        if work.begun:
            await work()
        work.begun += 1

    rounds = Rounds("work", at_once_then_wait)
    rounds.ask()
    rounds.ask()
    rounds.cancel()
    assert rounds.idle().called
