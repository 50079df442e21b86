"""Whether a file's history can be true: examples, and the quick rule against a search through all orders."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import attrs
import pytest
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st

from securifile.simulation.linearizability import Event, Impossible, Read, Unanswered, Written, judge


def written(content: str, version: int, begun: float, ended: float) -> Written:
    return Written(content=content, version=version, begun=begun, ended=ended)


def read(content: str | None, version: int, begun: float, ended: float) -> Read:
    return Read(content=content, version=version, begun=begun, ended=ended)


def unanswered(content: str, begun: float) -> Unanswered:
    return Unanswered(content=content, begun=begun)


def reasons(*events: Event) -> list[str]:
    return [one.reason for one in judge(events)]


def test_reads_may_see_either_side_of_a_write_under_way() -> None:
    """The old one and the new one, while it is being written."""
    assert reasons(written("a", 1, 0, 1), written("b", 2, 2, 9), read("a", 1, 3, 5), read("b", 2, 4, 6)) == []


def test_nobody_sees_the_past() -> None:
    """Neither what was there before an answered write, nor before what somebody has read already."""
    late = "the second began when the first, which comes after it, had ended"
    assert reasons(written("a", 1, 0, 1), written("b", 2, 2, 3), read("a", 1, 4, 5)) == [late]
    assert reasons(written("a", 1, 0, 1), written("b", 2, 2, 9), read("b", 2, 3, 4), read("a", 1, 5, 6)) == [late]
    assert reasons(written("a", 1, 0, 1), read(None, 0, 2, 3)) == [late]


def test_nobody_sees_the_future() -> None:
    """What was read before its write began."""
    assert reasons(read("a", 1, 0, 1), written("a", 1, 2, 3)) == ["the second began when the first, which comes after it, had ended"]


def test_version_content_and_write_belong_together() -> None:
    """Each of the three ways in which they do not."""
    assert reasons(written("a", 1, 0, 9), written("b", 1, 0, 9)) == ["one version has two contents"]
    assert "one write made two versions" in reasons(unanswered("a", 0), read("a", 1, 0, 9), read("a", 2, 0, 9))
    assert reasons(read("a", 1, 0, 9)) == ["what was read was not written"]


def test_a_write_without_an_answer_may_be_done_late_or_never() -> None:
    """It may turn up at any time, once; when it has, it stays."""
    assert reasons(written("a", 1, 0, 1), unanswered("b", 2), read("a", 1, 3, 4)) == []
    assert reasons(written("a", 1, 0, 1), unanswered("b", 2), read("a", 1, 3, 4), read("b", 2, 5, 6)) == []
    assert len(reasons(written("a", 1, 0, 1), unanswered("b", 2), read("b", 2, 3, 4), read("a", 1, 5, 6))) == 1


def test_a_version_in_between_was_made_by_somebody() -> None:
    """An unanswered write can have made one that nobody saw, but only one, and not after what came after it."""
    nobody = "nobody can have made version 2 in time for what came after it"
    gap = [written("a", 1, 0, 1), written("c", 3, 4, 5)]
    assert reasons(*gap) == [nobody]
    assert reasons(*gap, unanswered("b", 2)) == []
    assert reasons(*gap, unanswered("b", 6)) == [nobody]
    assert reasons(*gap, written("e", 5, 7, 8), unanswered("b", 2)) == ["nobody can have made version 4 in time for what came after it"]


def test_two_writes_of_the_same_content_cannot_be_judged() -> None:
    """What is read would not say who wrote it."""
    with pytest.raises(ValueError, match="two writes have the content 'a'"):
        judge([written("a", 1, 0, 1), unanswered("a", 2)])


# --- against a search through all orders ---


def can_be(events: Sequence[Event]) -> bool:
    """Wing and Gong: try each operation that nobody has to precede as the next one; unanswered writes may be left out."""

    def follow(left: frozenset[int], number: int, content: object) -> bool:
        if all(isinstance(events[one], Unanswered) for one in left):
            return True
        first_end = min(ends(events[one]) for one in left)
        for one in left:
            event = events[one]
            if event.begun > first_end:
                continue
            match event:
                case Read():
                    fits, after = (event.version, event.content) == (number, content), (number, content)
                case Written():
                    fits, after = event.version == number + 1, (number + 1, event.content)
                case Unanswered():
                    fits, after = True, (number + 1, event.content)
            if fits and follow(left - {one}, *after):
                return True
        return False

    return follow(frozenset(range(len(events))), 0, None)


def ends(event: Event) -> float:
    return math.inf if isinstance(event, Unanswered) else event.ended


def true_history(chance: random.Random, length: int) -> Iterator[Event]:
    """Operations that happen one after the other at whole instants, known to take a while around them."""
    number, content = 0, None
    for instant in range(length):
        begun, ended = instant - chance.randrange(4), instant + chance.randrange(4)
        kind = chance.choice(["read", "write", "write", "lost", "in vain"])
        if kind == "in vain":
            yield unanswered(f"never {instant}", begun)
            continue
        if kind != "read":
            number, content = number + 1, f"at {instant}"
        if kind == "read":
            yield read(content, number, begun, ended)
        elif kind == "lost":
            assert content is not None
            yield unanswered(content, begun)
        else:
            assert content is not None
            yield written(content, number, begun, ended)


def disturbed(chance: random.Random, events: list[Event]) -> list[Event]:
    """The same with one thing changed."""
    at = chance.randrange(len(events))
    one = events[at]
    match chance.choice(["when", "which", "drop"]):
        case "drop":
            return events[:at] + events[at + 1 :]
        case "which" if not isinstance(one, Unanswered):
            others = [other for other in events if not isinstance(other, Unanswered) and (isinstance(one, Read) or other.version > 0)]
            other = chance.choice(others)
            changed: Event = attrs.evolve(one, version=other.version, content=other.content if isinstance(one, Read) else one.content)
        case _:
            shift = chance.randrange(-6, 7)
            end = {} if isinstance(one, Unanswered) else {"ended": one.ended + shift}
            changed = attrs.evolve(one, begun=one.begun + shift, **end)
    return [*events[:at], changed, *events[at + 1 :]]


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_what_has_happened_can_be(chance: random.Random, length: int) -> None:
    """No true history is called impossible."""
    assert judge(true_history(chance, length)) == []


@settings(max_examples=1500)
@given(st.randoms(use_true_random=False), st.integers(1, 8), st.integers(0, 3))
def test_the_rule_agrees_with_the_search(chance: random.Random, length: int, times: int) -> None:
    """On histories that are true, or not quite."""
    events = list(true_history(chance, length))
    for _ in range(times):
        if events:
            events = disturbed(chance, events)
    assert (judge(events) == []) == can_be(events)
    seen("possible" if can_be(events) else "impossible")


def test_the_rule_agrees_with_the_search_on_all_histories_of_three() -> None:
    """Every choice of three operations out of a small stock."""
    stock: list[Event] = [unanswered(content, begun) for content in "xy" for begun in (0, 3)]
    for begun, ended in ((0, 1), (2, 5), (3, 4)):
        stock.append(read(None, 0, begun, ended))
        stock += [kind(content, version, begun, ended) for kind in (read, written) for content in "xy" for version in (1, 2, 3)]
    compared = 0
    for events in itertools.combinations(stock, 3):
        contents = [one.content for one in events if not isinstance(one, Read)]
        if len(set(contents)) == len(contents):
            assert (judge(events) == []) == can_be(events), events
            compared += 1
    assert compared > 5000


def test_it_is_quick() -> None:
    """A hundred thousand operations with a fault in the last one are judged within the time of a test."""
    chance = random.Random(5)
    events = list(true_history(chance, 100_000))
    assert judge(events) == []
    late = read("at 1", 1, 100_010, 100_011) if any(one.content == "at 1" for one in events) else read(None, 0, 100_010, 100_011)
    assert [type(one) for one in judge([*events, late])] == [Impossible]
