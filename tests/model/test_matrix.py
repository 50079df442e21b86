"""The summary over all observers: exhaustively over every way in which up to six nodes can be cut apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securifile.model.matrix import in_doubt, judge, summarise
from securifile.model.servers import Status

R, D, F = Status.RUNNING, Status.DOWN, Status.FAILED

Blocks = Sequence[Sequence[str]]


def partitions(names: Sequence[str]) -> Iterator[list[list[str]]]:
    """Every way to cut a set of nodes into parts."""
    if not names:
        yield []
        return
    first, *rest = names
    for blocks in partitions(rest):
        yield [[first], *blocks]
        for number in range(len(blocks)):
            yield [*blocks[:number], [first, *blocks[number]], *blocks[number + 1 :]]


ALL = [blocks for count in range(2, 7) for blocks in partitions([f"n{number}" for number in range(count)])]
HALVES = [blocks for blocks in ALL if len(blocks) == 2]


def opinions_of(blocks: Blocks) -> dict[tuple[str, str], Status]:
    """Everybody holds those of its own part for running and all others for down."""
    names = [name for block in blocks for name in block]
    part = {name: number for number, block in enumerate(blocks) for name in block}
    return {(a, b): R if part[a] == part[b] else D for a, b in permutations(names, 2)}


def seen(blocks: Blocks, parts: Sequence[int]) -> dict[str, Status]:
    """What an admin server says that is connected to these parts."""
    return {name: R if number in parts else D for number, block in enumerate(blocks) for name in block}


def running(summary: Mapping[str, Status]) -> set[str]:
    return {name for name, status in summary.items() if status is R}


def everyone(blocks: Blocks) -> dict[str, Status]:
    """All running, as before the cut."""
    return {name: R for block in blocks for name in block}


def some_parts(blocks: Blocks) -> Iterator[tuple[int, ...]]:
    for count in range(1, len(blocks) + 1):
        yield from combinations(range(len(blocks)), count)


def test_there_are_as_many_cuts_as_there_should_be() -> None:
    """The partitions are counted by Bell's numbers."""
    assert len(ALL) == 2 + 5 + 15 + 52 + 203
    assert len(HALVES) == 1 + 3 + 7 + 15 + 31


def test_two_halves_cannot_put_each_other_down() -> None:
    """Cut into two in any way, the nodes' votes leave somebody, and with more than two nodes not parts of both sides."""
    for blocks in HALVES:
        after = summarise(everyone(blocks), opinions_of(blocks), {})
        assert running(after), blocks
        if len(after) > 2:
            assert not all(running(after) & set(block) for block in blocks), (blocks, after)


def test_the_larger_side_stays() -> None:
    """Cut into two, the larger side goes on when an admin server is connected to it, whatever the nodes are called."""
    for blocks in HALVES:
        sizes = [len(block) for block in blocks]
        for parts in some_parts(blocks):
            after = summarise(everyone(blocks), opinions_of(blocks), seen(blocks, parts))
            for side in parts:
                if sizes[side] * 2 > sum(sizes):
                    assert running(after) == set(blocks[side]), (blocks, parts)


def test_a_majority_stays() -> None:
    """When more than half of at least five nodes can see each other, exactly they are running, whatever an admin server sees."""
    for blocks in ALL:
        count = sum(map(len, blocks))
        largest = max(blocks, key=len)
        if count < 5 or len(largest) * 2 <= count:
            continue
        for parts in some_parts(blocks):
            assert running(summarise(everyone(blocks), opinions_of(blocks), seen(blocks, parts))) == set(largest), (blocks, parts)


def test_among_equals_the_admin_servers_side_stays() -> None:
    """Two halves of the same size: the one that an admin server is connected to goes on, whatever the nodes are called."""
    for blocks in HALVES:
        if len(blocks[0]) != len(blocks[1]):
            continue
        for side in (0, 1):
            assert running(summarise(everyone(blocks), opinions_of(blocks), seen(blocks, [side]))) == set(blocks[side]), (blocks, side)


def test_the_summary_only_falls() -> None:
    """Votes and admin servers put nodes down or call them failed; only verification brings one back."""
    for blocks in ALL:
        for held in ({name: R if number % 2 else D for number, name in enumerate(everyone(blocks))}, dict.fromkeys(everyone(blocks), F)):
            after = summarise(held, opinions_of([list(held)]), dict.fromkeys(held, R))
            assert after == held


@pytest.mark.parametrize("opinion", Status)
@pytest.mark.parametrize("said", Status)
def test_down_is_down_for_votes(opinion: Status, said: Status) -> None:
    """Neither running nor failed is voted: who failed, and was brought online, is not failed again for what was thought before."""
    held = {"n0": R, "n1": R, "n2": D}
    assert judge("n2", held, {("n0", "n2"): opinion, ("n1", "n2"): opinion}, {"n2": said}) is D


def test_one_dead_node_is_put_down_alone() -> None:
    """A node that nobody reaches, and that reaches nobody, is down, and only that; with two nodes the admin servers say which."""
    for count in range(2, 7):
        names = [f"n{number}" for number in range(count)]
        for dead in names:
            blocks = [[dead], [name for name in names if name != dead]]
            after = summarise(dict.fromkeys(names, R), opinions_of(blocks), seen(blocks, [1]))
            assert running(after) == set(names) - {dead}


def test_one_bad_verdict_is_enough() -> None:
    """A running observer that says failed decides against all others; one that is not running says nothing."""
    held = dict.fromkeys("abcd", R)
    opinions = opinions_of([list("abcd")]) | {("b", "a"): F}
    assert judge("a", held, opinions, {}) is F
    assert judge("a", held | {"b": D}, opinions, {}) is R
    assert judge("a", held, opinions_of([list("abcd")]) | {("a", "a"): F}, {}) is R, "nobody judges itself"


def test_half_is_not_more_than_half() -> None:
    """Two of four observers do not put a node down; three do."""
    held = dict.fromkeys("abcde", R)
    two = opinions_of([list("abcde")]) | {("b", "a"): D, ("c", "a"): D}
    assert judge("a", held, two, {"a": D}) is R
    assert judge("a", held, two | {("d", "a"): D}, {"a": R}) is D


@pytest.mark.parametrize("observers", [0, 1])
@pytest.mark.parametrize("said", list(Status))
@pytest.mark.parametrize("opinion", [R, D])
def test_the_admin_servers_decide_where_fewer_than_two_nodes_can(observers: int, said: Status, opinion: Status) -> None:
    """With fewer than two other running nodes their silence is not asked for; without an admin server's, all stays as it is."""
    held = {"a": R, "b": R if observers else D, "c": D}
    opinions = {("b", "a"): opinion, ("c", "a"): D}
    assert judge("a", held, opinions, {"a": said}) is (D if said is D else R)
    assert judge("a", held, opinions, {}) is R


def test_who_has_no_opinion_leaves_it_as_it_is() -> None:
    """An observer that has told nothing yet votes for what the subject is held for."""
    for status in Status:
        held = dict.fromkeys("abcd", R) | {"a": status}
        assert judge("a", held, {}, {}) is status
    assert judge("a", dict.fromkeys("abcd", R), {("b", "a"): D}, {}) is R


def test_who_is_absent_is_down() -> None:
    """A node that is taken offline, or that lives another life than the one admitted, is down whatever the others think."""
    held = dict.fromkeys("abc", R)
    assert judge("a", held, opinions_of([list("abc")]), {"a": R}, {"a"}) is D
    assert running(summarise(held, opinions_of([list("abc")]), dict.fromkeys("abc", R), ["b"])) == {"a", "c"}
    assert summarise(dict.fromkeys("abc", F), {}, {}, "abc") == dict.fromkeys("abc", D)


def test_a_failed_node_that_falls_silent_is_down() -> None:
    """More than half hear nothing from it; one that still holds it for failed does not keep it so."""
    held = dict.fromkeys("abcd", R) | {"a": F}
    assert judge("a", held, {("b", "a"): D, ("c", "a"): D, ("d", "a"): F}, {}) is D
    assert judge("a", held, {("b", "a"): D}, {}) is F


statuses = st.sampled_from(Status)
names = [f"n{number}" for number in range(6)]


@settings(deadline=None)
@given(
    held=st.dictionaries(st.sampled_from(names), statuses),
    opinions=st.dictionaries(st.tuples(st.sampled_from(names), st.sampled_from(names)), statuses, max_size=36),
    admins=st.dictionaries(st.sampled_from(names), statuses),
    data=st.data(),
)
def test_the_order_of_arrival_does_not_matter(
    held: dict[str, Status], opinions: dict[tuple[str, str], Status], admins: dict[str, Status], data: st.DataObject
) -> None:
    """Any opinions give a summary of the same servers, and the same one in whatever order the tables were filled."""
    after = summarise(held, opinions, admins)
    assert after.keys() == held.keys()
    shuffled = summarise(
        dict(data.draw(st.permutations(list(held.items())))),
        dict(data.draw(st.permutations(list(opinions.items())))),
        dict(data.draw(st.permutations(list(admins.items())))),
    )
    assert shuffled == after


@settings(deadline=None)
@given(
    held=st.dictionaries(st.sampled_from(names), statuses),
    opinions=st.dictionaries(st.tuples(st.sampled_from(names), st.sampled_from(names)), statuses, max_size=36),
    admins=st.dictionaries(st.sampled_from(names), statuses),
    absent=st.sets(st.sampled_from(names)),
)
def test_only_who_is_in_doubt_is_judged_otherwise(
    held: dict[str, Status], opinions: dict[tuple[str, str], Status], admins: dict[str, Status], absent: set[str]
) -> None:
    """Of all others the judgement is what they are held for; and opinions that agree with the cluster may be left out."""
    doubted = in_doubt(held, opinions, admins, absent)
    for name in held.keys() - doubted:
        assert judge(name, held, opinions, admins, absent) is held[name]
    dissent = {(observer, subject): status for (observer, subject), status in opinions.items() if status is not held.get(subject)}
    assert summarise(held, dissent, admins, absent) == summarise(held, opinions, admins, absent)
    assert (summarise(held, opinions, admins, absent) == held) == all(
        judge(name, held, opinions, admins, absent) is held[name] for name in doubted
    )
