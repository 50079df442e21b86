"""Where copies should be: what is lost is made anew, what is too much goes, and nothing is ever put at risk by it."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.facts import Server
from securifile.model.ids import AttemptId, EntryId
from securifile.model.repair import STUCK_DISK_S, STUCK_FAILURES, Failing, Holding, MostEndangered, holding, plan, worth
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings

NODES = tuple(f"n{number}" for number in range(8))
SIZE = 10


def version(*copies: str) -> Version:
    """A version with copies as `n1` (durable) or `n1?` (pending), in order of priority."""
    listed = tuple(
        Copy(node=text.removesuffix("?"), priority=priority, durable=not text.endswith("?")) for priority, text in enumerate(copies)
    )
    return Version(
        number=1,
        attempt=AttemptId(bytes(16)),
        size=SIZE,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="alice",
        copies=listed,
    )


def shown(copies: tuple[Copy, ...] | None) -> str | None:
    """Copies as `version` takes them."""
    return None if copies is None else " ".join(f"{copy.node}{'' if copy.durable else '?'}" for copy in copies)


@attrs.frozen(kw_only=True)
class Case:
    """A version, what copies on each node are worth, and where there is room."""

    version: Version
    holdings: Mapping[str, Holding]
    wanted: int
    room: Mapping[str, int]
    stuck: frozenset[str] = frozenset()
    """Nodes that cannot make their copy."""
    seed: int = 1

    def plan(self) -> tuple[Copy, ...] | None:
        return plan(
            self.version,
            self.wanted,
            holding_of=self.holdings.__getitem__,
            room=self.room,
            below=Random(self.seed).randrange,
            stuck=self.stuck,
        )

    def then(self, copies: tuple[Copy, ...]) -> Case:
        return attrs.evolve(self, version=attrs.evolve(self.version, copies=copies))

    def good(self, copies: tuple[Copy, ...]) -> list[str]:
        return [copy.node for copy in copies if copy.durable and self.holdings[copy.node] is Holding.GOOD]


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[Holding, ...] = tuple(Holding), room: int | None = None) -> Case:
    """Any version on eight nodes."""
    held = draw(st.lists(st.sampled_from(NODES), unique=True, min_size=1, max_size=6))
    return Case(
        version=version(*(node + draw(st.sampled_from(["", "", "?"])) for node in held)),
        holdings={node: draw(st.sampled_from(kinds)) for node in NODES},
        wanted=draw(st.integers(1, 4)),
        room={node: draw(st.sampled_from([0, SIZE])) if room is None else room for node in NODES},
        stuck=frozenset(draw(st.sets(st.sampled_from(held)))),
        seed=draw(st.integers(0, 99)),
    )


@given(cases())
def test_a_readable_copy_goes_only_when_there_are_enough_good_ones(case: Case) -> None:
    """What can be read now stays listed, unless as many good durable copies as are wanted stay."""
    after = case.plan()
    if after is None:
        return
    readable = {copy for copy in case.version.copies if copy.durable and case.holdings[copy.node] in (Holding.GOOD, Holding.LEAVING)}
    if {copy.node for copy in readable} - {copy.node for copy in after if copy.durable}:
        assert len(case.good(after)) >= case.wanted


@given(cases())
def test_a_lost_copy_is_known_until_it_is_made_up_for(case: Case) -> None:
    """Durable copies that cannot be read now stay listed too while fewer than wanted are good: their nodes may return, late."""
    after = case.plan()
    if after is not None and len(case.good(after)) < case.wanted:
        assert {copy.node for copy in case.version.copies if copy.durable} <= {copy.node for copy in after if copy.durable}


@given(cases())
def test_a_plan_is_well_formed(case: Case) -> None:
    """No node twice, priorities counted from 0, never without a copy; new ones are pending, on good nodes that have room."""
    after = case.plan()
    if after is None:
        return
    assert after
    assert [copy.priority for copy in after] == list(range(len(after)))
    assert len({copy.node for copy in after}) == len(after)
    before = {copy.node: copy.durable for copy in case.version.copies}
    for copy in after:
        if copy.node in before:
            assert copy.durable is before[copy.node]
        else:
            assert not copy.durable and case.holdings[copy.node] is Holding.GOOD and case.room[copy.node] >= SIZE
    coming = [copy for copy in after if not copy.durable and case.holdings[copy.node] is Holding.GOOD and copy.node not in case.stuck]
    assert len(case.good(after)) + len(coming) <= max(case.wanted, len(case.good(after)))


@given(cases())
def test_a_plan_asks_for_nothing_more(case: Case) -> None:
    """Planning again, with nothing else changed, changes nothing."""
    after = case.plan()
    if after is not None:
        assert shown(case.then(after).plan()) is None


@given(cases())
def test_the_origin_stays_while_it_can_be_counted_on(case: Case) -> None:
    """Whoever is the origin remains it, unless its copy is lost, leaving, or not there."""
    after, origin = case.plan(), case.version.copies[0]
    if after is not None and origin.durable and case.holdings[origin.node] in (Holding.GOOD, Holding.AWAY):
        assert after[0].node == origin.node


@given(cases(kinds=(Holding.GOOD, Holding.LEAVING, Holding.LOST), room=SIZE))
def test_it_comes_to_exactly_what_is_wanted(case: Case) -> None:
    """By planning and making what is pending, in turn: with something to read and nodes enough, `wanted` good copies and no other."""
    case = attrs.evolve(case, stuck=frozenset())
    is_readable = worth(case.version, case.holdings.__getitem__).readable > 0
    nodes = sum(kind is Holding.GOOD for kind in case.holdings.values())
    for _ in range(5):
        after = case.plan()
        if after is not None:
            case = case.then(after)
        made = [attrs.evolve(copy, durable=copy.durable or case.holdings[copy.node] is Holding.GOOD) for copy in case.version.copies]
        if is_readable:
            case = case.then(tuple(made))
    assert case.plan() is None
    if is_readable and nodes >= case.wanted:
        assert len(case.good(case.version.copies)) == len(case.version.copies) == case.wanted


@given(cases(room=SIZE))
def test_what_a_node_is_stuck_with_another_one_takes_over(case: Case) -> None:
    """As long as there is something to read and another node with room; without, it stays with the node, which goes on trying."""
    pending = {copy.node for copy in case.version.copies if not copy.durable and case.holdings[copy.node] is Holding.GOOD}
    free = {node for node, kind in case.holdings.items() if kind is Holding.GOOD} - {copy.node for copy in case.version.copies}
    here = worth(case.version, case.holdings.__getitem__)
    after = case.plan() or case.version.copies
    left = {copy.node for copy in after if not copy.durable} & pending & case.stuck
    counted = len(here.good) + len(here.away) + len(pending - case.stuck)
    if here.readable and counted < case.wanted and len(free) >= case.wanted - counted:
        assert len(left) == max(0, len(pending & case.stuck) - (case.wanted - counted))
    no_room = attrs.evolve(case, room=dict.fromkeys(NODES, 0))
    if len(here.good) < case.wanted:
        kept = {copy.node for copy in no_room.plan() or case.version.copies}
        assert pending & case.stuck <= kept


FAILING = Failing(failures=STUCK_FAILURES, since=1000.0, reason="no room", own_disk=True)


def test_when_a_node_is_stuck() -> None:
    """After several failures, soon if its own disk cannot take the copy, and after the grace time if the content cannot be had."""
    settings = ClusterSettings(repair_after_s=600.0)
    assert [FAILING.is_stuck(settings, 1000.0 + after) for after in (0, STUCK_DISK_S - 1, STUCK_DISK_S)] == [False, False, True]
    assert not attrs.evolve(FAILING, failures=STUCK_FAILURES - 1).is_stuck(settings, 1e9)
    content = attrs.evolve(FAILING, own_disk=False)
    assert [content.is_stuck(settings, 1000.0 + after) for after in (STUCK_DISK_S, 599, 600)] == [False, False, True]


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 4))), st.integers(1, 20), st.integers(0, 40))
def test_the_most_endangered_are_remembered(seen: list[tuple[int, int]], limit: int, count: int) -> None:
    """Those with the fewest copies, by what was seen last; up to the limit exactly as if all were remembered, if none was seen twice."""
    remembered = MostEndangered(limit)
    for number, readable in seen:
        remembered.add(EntryId(number.to_bytes(16)), readable)
    found = [int.from_bytes(file.value) for file in remembered.first(count)]
    assert len(found) == len(set(found)) <= count
    last = dict(seen)
    if len(last) == len(seen):
        everything = sorted(last, key=lambda number: (last[number], number))
        assert found[:limit] == everything[: min(limit, count)]
    remembered.forget(remembered.first(1))
    assert [int.from_bytes(file.value) for file in remembered.first(count)][: max(0, len(found) - 1)] == found[1:]
    remembered.clear()
    assert remembered.first(count) == []


@given(st.permutations(NODES), st.integers(1, 6), st.sets(st.sampled_from(NODES)))
def test_flapping_copies_nothing(nodes: list[str], wanted: int, flapping: set[str]) -> None:
    """Whichever nodes are away for less than the grace time, a version that had all its copies is left as it is."""
    held = version(*nodes[:wanted])
    holdings = {node: Holding.AWAY if node in flapping else Holding.GOOD for node in NODES}
    case = Case(version=held, holdings=holdings, wanted=wanted, room=dict.fromkeys(NODES, SIZE))
    assert case.plan() is None


@pytest.mark.parametrize(
    ("copies", "holdings", "wanted", "after"),
    [
        pytest.param("n1 n2", {"n2": Holding.LOST}, 2, "n1 n2 n3?", id="lost: one is made"),
        pytest.param("n1 n2", {"n1": Holding.LOST}, 2, "n2 n1 n3?", id="the origin is lost: priority 1 takes its place"),
        pytest.param("n1 n2 n3?", {"n2": Holding.LOST}, 2, None, id="being made: that is all"),
        pytest.param("n1 n3 n2", {"n2": Holding.LOST}, 2, "n1 n3", id="made: the lost one is forgotten"),
        pytest.param("n1 n2 n3?", {}, 2, "n1 n2", id="back before the new one was made: no more of it"),
        pytest.param("n1 n2 n3", {}, 2, "n1 n2", id="one too many"),
        pytest.param("n1 n2", {"n1": Holding.AWAY, "n2": Holding.LEAVING}, 1, None, id="drained, and nothing else to read"),
        pytest.param("n1 n2", {"n1": Holding.LEAVING}, 2, "n2 n1 n3?", id="drained: readable until the new one is made"),
        pytest.param("n1 n2?", {"n2": Holding.AWAY}, 2, "n1 n3?", id="nothing was there yet: not waited for"),
        pytest.param("n1 n2", {"n1": Holding.LOST, "n2": Holding.LOST}, 2, None, id="all lost: known, in case one returns"),
        pytest.param("n1? n2", {}, 2, "n2 n1?", id="the origin's copy went bad"),
    ],
)
def test_examples(copies: str, holdings: dict[str, Holding], wanted: int, after: str | None) -> None:
    """Each kind of loss, and what is done about it when n3 alone has room."""
    case = Case(
        version=version(*copies.split()), holdings={**dict.fromkeys(NODES, Holding.GOOD), **holdings}, wanted=wanted, room={"n3": SIZE}
    )
    assert shown(case.plan()) == after


def server(status: Status, **more: object) -> Server:
    """A node that has been so since 1000."""
    members: dict[str, object] = {"offline": False, "draining": False, **more}
    return Server(
        name="n1",
        kind=ServerKind.NODE,
        url="https://n1",
        protocol_address="n1:1",
        public_key=b"",
        status=status,
        since=1000.0,
        offline=bool(members["offline"]),
        draining=bool(members["draining"]),
    )


def test_what_a_copy_is_worth() -> None:
    """Good while its node runs; away for the grace time, which is longer after a planned stop; then lost. Gone nodes: lost."""
    settings = ClusterSettings(repair_after_s=600.0, repair_after_offline_s=3600.0)

    def of(server: Server | None, after_s: float) -> Holding:
        return holding(server, settings, 1000.0 + after_s)

    assert of(None, 0) is Holding.LOST
    assert of(server(Status.RUNNING), 1e9) is Holding.GOOD
    assert of(server(Status.RUNNING, draining=True), 0) is Holding.LEAVING
    for status in (Status.DOWN, Status.FAILED):
        assert [of(server(status), after) for after in (0, 599, 600)] == [Holding.AWAY, Holding.AWAY, Holding.LOST]
    assert [of(server(Status.DOWN, offline=True), after) for after in (3599, 3600)] == [Holding.AWAY, Holding.LOST]
    assert of(server(Status.DOWN, draining=True), 600) is Holding.LOST


def test_who_is_being_verified_is_waited_for() -> None:
    """A large node is read for longer than the grace time: what it holds is not made anew meanwhile. A failed one is not waited for."""
    settings = ClusterSettings(repair_after_s=600.0)

    def of(status: Status) -> Holding:
        return holding(server(status), settings, 1e6, verifying=["n1"])

    assert [of(status) for status in (Status.RUNNING, Status.DOWN, Status.FAILED)] == [Holding.GOOD, Holding.AWAY, Holding.LOST]
    assert holding(None, settings, 1e6, verifying=["n1"]) is Holding.LOST
