"""Batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import Deferred, succeed

from securifile.batches import Batches


@attrs.define
class Work:
    """What was asked for, batch by batch, answered when the test says so."""

    asked: list[Sequence[str]] = attrs.field(factory=list)
    answers: list[Deferred[Sequence[str | Exception]]] = attrs.field(factory=list)
    cancelled: int = 0

    def __call__(self, things: Sequence[str]) -> Deferred[Sequence[str | Exception]]:
        self.asked.append(list(things))
        self.answers.append(Deferred(self._cancel))
        return self.answers[-1]

    def _cancel(self, answer: object) -> None:
        self.cancelled += 1

    def done(self) -> None:
        """The batch under way is done."""
        self.answers[-1].callback([thing.upper() for thing in self.asked[-1]])


def batches(work: Work) -> Batches[str, str]:
    return Batches(work, size=len, items_max=4, bytes_max=10)


def results(*waiting: Deferred[str]) -> list[str]:
    """What has come of these by now."""
    found: list[str] = []
    for one in waiting:
        one.addCallbacks(found.append, lambda failure: found.append(failure.type.__name__))
    return found


def test_what_comes_meanwhile_is_the_next_batch() -> None:
    """The first goes at once; what comes while it is under way is done together afterwards, in order."""
    work = Work()
    some = batches(work)
    waiting = [some.do(thing) for thing in "abc"]
    assert work.asked == [["a"]]
    work.done()
    assert work.asked == [["a"], ["b", "c"]]
    work.done()
    assert results(*waiting) == ["A", "B", "C"]
    later = some.do("d")
    work.done()
    assert results(later) == ["D"]


def test_a_batch_has_its_bounds() -> None:
    """Not too many, not too much; what is too large for any batch has one for itself."""
    work = Work()
    some = batches(work)
    for thing in ["x", "a", "b", "c", "d", "eeeeee", "ffffff", "g" * 50, "h"]:
        some.do(thing)
    while len(work.asked[-1]) and work.asked[-1] != ["h"]:
        work.done()
    assert work.asked == [["x"], ["a", "b", "c", "d"], ["eeeeee"], ["ffffff"], ["g" * 50], ["h"]]


def test_each_hears_its_own_end() -> None:
    """One thing may fail and the others not; when the work itself fails, all of that batch do; the next batch is not concerned."""
    work = Work()
    some = batches(work)
    waiting = [some.do(thing) for thing in "abcd"]
    work.done()
    work.answers[-1].callback(["B", KeyError("c"), "D"])
    assert results(*waiting) == ["A", "B", "KeyError", "D"]
    waiting = [some.do(thing) for thing in "efg"]
    work.answers[-1].errback(OSError("all"))
    work.answers[-1].errback(ValueError("both"))
    assert results(*waiting) == ["OSError", "ValueError", "ValueError"]
    assert results(some.do("h")) == []
    work.done()


def test_who_waits_may_go() -> None:
    """Who cancels while waiting is not done; of a batch under way the work goes on until nobody waits for any of it."""
    work = Work()
    some = batches(work)
    first, *waiting = [some.do(thing) for thing in "abcd"]
    waiting[1].cancel()
    assert results(waiting[1]) == ["CancelledError"]
    work.done()
    assert work.asked[-1] == ["b", "d"]
    waiting[0].cancel()
    assert work.cancelled == 0
    after = some.do("e")
    waiting[2].cancel()
    assert work.cancelled == 1
    assert work.asked[-1] == ["e"]
    work.done()
    assert results(first, waiting[0], waiting[2], after) == ["A", "CancelledError", "CancelledError", "E"]


def test_work_that_answers_at_once() -> None:
    """Then so does every batch, and what a callback asks for is done as well."""
    some: Batches[str, str] = Batches(lambda things: succeed([thing.upper() for thing in things]), size=len, items_max=4, bytes_max=10)
    heard: list[str] = []
    some.do("a").addCallback(heard.append).addCallback(lambda _: some.do("b")).addCallback(heard.append)
    assert heard == ["A", "B"]


def test_what_comes_in_one_turn_of_the_reactor_is_one_batch() -> None:
    """Where the next turn is waited for, the first does not go ahead alone; what comes while a batch is under way waits for no turn."""
    work, turns = Work(), list[Callable[[], None]]()
    some: Batches[str, str] = Batches(work, size=len, items_max=4, bytes_max=10, soon=turns.append)
    waiting = [some.do(thing) for thing in "abc"]
    assert (work.asked, len(turns)) == ([], 1)
    turns.pop()()
    assert work.asked == [["a", "b", "c"]]
    waiting.append(some.do("d"))
    assert turns == []
    work.done()
    work.done()
    assert work.asked == [["a", "b", "c"], ["d"]]
    assert results(*waiting) == ["A", "B", "C", "D"]


def test_what_is_taken_back_before_its_turn_is_not_done() -> None:
    """And with it gone there is nothing to do."""
    work, turns = Work(), list[Callable[[], None]]()
    some: Batches[str, str] = Batches(work, size=len, items_max=4, bytes_max=10, soon=turns.append)
    given_up = some.do("a")
    assert results(given_up) == []
    given_up.cancel()
    turns.pop()()
    assert work.asked == []
