"""When a version may be shown: the last word, what is remembered, and what others are known to know."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.ids import BEGINNING, AttemptId, Position
from securifile.model.settling import (
    CERTAIN_INTERVALS,
    DENIED_INTERVALS,
    Evidence,
    Learned,
    Remembered,
    Young,
    YoungVersions,
    denied_until,
    knowing,
)

SECONDS = st.floats(0, 10, allow_nan=False)


def version(number: int) -> Version:
    return Version(
        number=number,
        attempt=AttemptId(number.to_bytes(16, "big")),
        size=1,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )


def young(number: int, at: float = 0.0, before: Callable[[], Version | None] | None = None) -> Young:
    return Young(version=version(number), learned=Learned(position=Position(1, number), at=at), before=before)


# --- the last word ---


@given(begun=SECONDS, commit_s=SECONDS, travel_s=SECONDS, interval_s=st.floats(0.01, 10))
def test_nobody_concludes_while_it_may_be_denied(begun: float, commit_s: float, travel_s: float, interval_s: float) -> None:
    """Whoever learns of a commit after it was made concludes after the last moment at which its origin may say that it is under way."""
    learned = Learned(position=BEGINNING, at=begun + commit_s + travel_s)
    assert not learned.may_conclude(denied_until(begun, interval_s), interval_s)
    assert learned.may_conclude(learned.at + CERTAIN_INTERVALS * interval_s, interval_s)
    assert DENIED_INTERVALS < CERTAIN_INTERVALS


@given(
    begun=SECONDS,
    commit_s=st.floats(0, 2),
    spread_s=st.floats(0, 6),
    reads=st.lists(st.tuples(st.floats(0, 12), st.floats(0, 2), st.booleans()), max_size=12),
)
def test_reads_are_in_an_order(begun: float, commit_s: float, spread_s: float, reads: list[tuple[float, float, bool]]) -> None:
    """Whatever readers are told, and whenever they learned of the commit: once one is shown the version, none is shown the one before."""
    interval_s = 0.5
    committed = begun + commit_s
    # Who concludes does so when no node can give the version before: not before it has spread.
    spread = committed + spread_s
    shown: list[float] = []
    denied: list[float] = []
    for after_s, travel_s, hears_origin in reads:
        at = committed + after_s
        learned = Learned(position=BEGINNING, at=min(at, committed + travel_s))
        if hears_origin and at >= spread:
            shown.append(at)
        elif hears_origin and at < denied_until(begun, interval_s):
            denied.append(at)
        elif at >= spread and learned.may_conclude(at, interval_s):
            shown.append(at)
    assert max(denied, default=begun - 1) < min(shown, default=begun + 100)


# --- what is remembered ---


def test_a_version_is_young_until_it_is_settled() -> None:
    """And then it is not taken for young again, though it may be learned of once more."""
    versions = YoungVersions()
    assert not versions
    assert versions.add(young(1, before=lambda: None))
    assert not versions.add(young(1, at=5.0))
    found = versions.find(version(1))
    assert found is not None and found.learned.at == 0.0 and found.before is not None
    assert versions.find(version(2)) is None
    assert versions.settle(version(1).attempt)
    assert not versions and versions.find(version(1)) is None
    assert not versions.add(young(1))
    assert not versions.settle(version(1).attempt)
    assert versions.is_settled(version(1).attempt)


def test_when_there_are_too_many_everything_is_young() -> None:
    """What is said to be settled is not; of nothing else it is known what was before."""
    versions = YoungVersions(most=2)
    versions.settle(version(9).attempt)
    for number in (1, 2):
        assert versions.add(young(number, before=lambda: None))
    assert [one.version.number for one in versions] == [1, 2]
    assert versions.everything is None
    assert versions.add(young(3, at=7.0))
    assert versions and not len(versions)
    assert versions.everything == Learned(position=Position(1, 3), at=7.0)
    for number in (1, 3, 8):
        found = versions.find(version(number))
        assert found is not None and found.before is None and found.learned == versions.everything
    assert versions.find(version(9)) is None
    versions.settle(version(8).attempt)
    assert versions.find(version(8)) is None
    versions.everything = None
    assert not versions and versions.find(version(1)) is None


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5))
def test_the_last_attempts_are_remembered(numbers: list[int], most: int) -> None:
    """Those that were added last, each once."""
    remembered = Remembered(most)
    for number in numbers:
        remembered.add(version(number + 1).attempt)
    last = list(dict.fromkeys(reversed(numbers)))[:most]
    assert {number for number in range(10) if version(number + 1).attempt in remembered} == set(last)


# --- what others know ---


@given(
    st.lists(st.tuples(st.floats(0, 1), st.lists(st.integers(0, 9), min_size=4, max_size=4)), max_size=30),
    st.sampled_from([1, 2, 3, 4]),
)
def test_what_more_than_half_have_known_for_long(looks: list[tuple[float, list[int]]], count: int) -> None:
    """As if every look had been kept: the latest position that more than half were at, at a look a period ago or before that."""
    evidence, period_s, now = Evidence(), 1.25, 0.0
    nodes = [f"n{number}" for number in range(count)]
    every: list[tuple[float, int]] = []
    for after_s, revisions in looks:
        now += after_s
        known = {name: Position(1, revision) for name, revision in zip(nodes, revisions, strict=False) if revision}
        evidence.note(now, known, nodes, period_s)
        at = [revision for revision in range(10) if sum(one >= revision for one in revisions[:count]) * 2 > count]
        every.append((now, max(at)))
        lasted = max((revision for seen_at, revision in every if seen_at <= now - period_s), default=0)
        assert evidence.lasting(now, period_s) == (Position(1, lasted) if lasted else BEGINNING)


def test_who_knows() -> None:
    """Who is at a position or beyond it, in a later epoch too."""
    known = {"n1": Position(1, 5), "n2": Position(1, 4), "n3": Position(2, 1)}
    assert knowing(known, Position(1, 5)) == {"n1", "n3"}
