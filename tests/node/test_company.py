"""Waiting for those who are just behind."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.node.company import Company, Guest


def arrive(guest: Guest) -> Deferred[None]:
    return Deferred.fromCoroutine(guest.arrive())


def test_who_is_alone_does_not_wait() -> None:
    """Not even for a turn of the reactor; and nothing is left to happen later."""
    clock = Clock()
    company = Company(clock, 0.02)
    for _ in range(2):
        assert arrive(company.expect()).called
    assert clock.getDelayedCalls() == []


def test_those_on_their_way_are_waited_for() -> None:
    """Who comes first goes on with the last of them, also with those who set out meanwhile."""
    clock = Clock()
    company = Company(clock, 0.02)
    guests = [company.expect() for _ in range(3)]
    waiting = [arrive(guest) for guest in guests[:2]]
    late = company.expect()
    waiting.append(arrive(guests[2]))
    assert not any(one.called for one in waiting)
    waiting.append(arrive(late))
    assert all(one.called for one in waiting)
    assert clock.getDelayedCalls() == []


def test_who_will_not_come_is_not_waited_for() -> None:
    """A refusal, or a client that is slow, holds up nobody."""
    company = Company(Clock(), 0.02)
    first, second, third = (company.expect() for _ in range(3))
    waiting = arrive(first)
    second.leave()
    second.leave()
    assert not waiting.called
    third.leave()
    assert waiting.called
    assert arrive(second).called, "it was counted out"


def test_nobody_waits_for_long() -> None:
    """The first has so much patience; those who are with it then go on as well, and who comes later begins anew."""
    clock = Clock()
    company = Company(clock, 0.02)
    first, second, third, fourth = (company.expect() for _ in range(4))
    one = arrive(first)
    clock.advance(0.015)
    two = arrive(second)
    assert not one.called
    clock.advance(0.005)
    assert one.called and two.called
    assert arrive(third).called, "who is held up is not waited for again"
    later = company.expect()
    four = arrive(fourth)
    assert not four.called
    assert arrive(later).called and four.called


def test_who_gives_up_waiting_is_forgotten() -> None:
    """The others go on when all have come."""
    company = Company(Clock(), 0.02)
    first, second, third = (company.expect() for _ in range(3))
    given_up = arrive(first)
    given_up.addErrback(lambda failure: None)
    other = arrive(second)
    given_up.cancel()
    assert not other.called
    assert arrive(third).called and other.called
