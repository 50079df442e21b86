"""Judging proofs: the recorded digest is the referee, and a rotten challenger blames nobody but itself."""

from __future__ import annotations

import errno
import itertools
import os

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.errors import CorruptBlock
from securifile.model.ids import AttemptId, EntryId
from securifile.model.proofs import BadCopy, Proof, Reading, Report, Verdict
from securifile.model.verification import (
    AGAIN_FIRST_S,
    AGAIN_MOST_S,
    NONCE_BYTES,
    PICKS,
    again_s,
    failure_of,
    judge,
    picked_blocks,
    settled,
    unheard,
    unreadable,
)

ATTEMPT = AttemptId(b"a" * 16)
NUMBER = 7
RECORDED = b"the recorded digest"
KEYED = b"keyed with the nonce"
GOOD = Proof(attempt=ATTEMPT, present=True, plain=RECORDED, keyed=KEYED)
OWN = Reading(plain=RECORDED, keyed=KEYED)
SAMPLED = Proof(attempt=ATTEMPT, present=True, keyed=KEYED)
OWN_SAMPLED = Reading(keyed=KEYED)


def whole(proof: Proof, own: Reading | None = OWN, *, still_current: bool = True) -> tuple[Verdict, bool]:
    """The verdict on a whole blob."""
    return judge(proof, number=NUMBER, digest=RECORDED, whole=True, own=own, still_current=still_current)


def sampled(proof: Proof, own: Reading | None = OWN_SAMPLED, *, still_current: bool = True) -> tuple[Verdict, bool]:
    """The verdict on picked blocks."""
    return judge(proof, number=NUMBER, digest=RECORDED, whole=False, own=own, still_current=still_current)


def test_equal_copies_are_good() -> None:
    """Both read the same, and it is what was recorded."""
    assert whole(GOOD) == (Verdict.OK, False)
    assert sampled(SAMPLED) == (Verdict.OK, False)


def test_the_recorded_digest_is_the_referee() -> None:
    """A prover whose plain digest is another one is wrong, even if the challenger's copy is just as wrong."""
    wrong = attrs.evolve(GOOD, plain=b"another", keyed=b"other bytes")
    assert whole(wrong)[0] is Verdict.CORRUPT
    assert whole(wrong, Reading(plain=b"another", keyed=b"other bytes"))[0] is Verdict.CORRUPT
    assert whole(wrong, None)[0] is Verdict.CORRUPT


@pytest.mark.parametrize("own", [Reading(plain=b"rotten", keyed=b"rotten, too"), Reading()], ids=["rotten", "missing or unreadable"])
def test_a_rotten_challenger_fails_nobody_but_itself(own: Reading) -> None:
    """If the prover's digest is the recorded one and the challenger's is not, the challenger's copy is the bad one."""
    assert whole(GOOD, own) == (Verdict.OK, True)


@pytest.mark.parametrize("own", [Reading(plain=b"rotten", keyed=b"rotten, too"), Reading()], ids=["rotten", "missing or unreadable"])
def test_two_bad_copies_are_two_findings(own: Reading) -> None:
    """That the prover's copy is bad, too, hides nothing of the challenger's own."""
    assert whole(attrs.evolve(GOOD, plain=b"another", keyed=b"other bytes"), own) == (Verdict.CORRUPT, True)
    assert whole(Proof(attempt=ATTEMPT, present=True), own) == (Verdict.CORRUPT, True)


def test_the_digest_alone_is_not_enough() -> None:
    """A prover that knows the recorded digest but cannot key it with the nonce has not read its disk."""
    assert whole(attrs.evolve(GOOD, keyed=b"kept from an earlier life")) == (Verdict.CORRUPT, False)
    assert whole(attrs.evolve(GOOD, keyed=b"")) == (Verdict.CORRUPT, False)


def test_an_own_copy_that_its_checksums_vouch_for_is_compared_without_its_digest() -> None:
    """It says that the prover has read its disk; where the two differ there is no verdict before the digest of both is known."""
    vouched = Reading(keyed=KEYED, noted=RECORDED)
    assert whole(GOOD, vouched) == (Verdict.OK, False)
    assert whole(attrs.evolve(GOOD, plain=b"another", keyed=b"other bytes"), vouched) == (Verdict.CORRUPT, False)
    assert whole(attrs.evolve(GOOD, keyed=b"kept from an earlier life"), vouched) == (None, False)


def test_of_picked_blocks_that_differ_nobody_is_blamed_yet() -> None:
    """The recorded digest is the referee, and it is one of whole files: there is no verdict before both were read whole."""
    assert sampled(attrs.evolve(SAMPLED, keyed=b"other blocks")) == (None, False)


def test_of_picked_blocks_the_readable_copy_is_right() -> None:
    """Each reading checks each block: one that cannot be read is the bad one."""
    assert sampled(attrs.evolve(SAMPLED, keyed=b"")) == (Verdict.CORRUPT, False)
    assert sampled(SAMPLED, Reading()) == (Verdict.OK, True)
    assert sampled(attrs.evolve(SAMPLED, keyed=b""), Reading()) == (Verdict.CORRUPT, True)


def test_a_node_that_verifies_itself_has_only_the_record() -> None:
    """Without anybody to compare with, the recorded digest decides for whole files, and the blocks' checksums for picked ones."""
    assert whole(GOOD, None) == (Verdict.OK, False)
    assert whole(attrs.evolve(GOOD, plain=b"another"), None) == (Verdict.CORRUPT, False)
    assert sampled(SAMPLED, None) == (Verdict.OK, False)
    assert sampled(attrs.evolve(SAMPLED, keyed=b""), None) == (Verdict.CORRUPT, False)


def test_a_challenger_that_cannot_read_just_now_has_only_the_record() -> None:
    """Too many open files are no rot, and no reason to blame anybody."""
    own = Reading(problem="Too many open files", passing=True)
    assert whole(GOOD, own) == (Verdict.OK, False)
    assert whole(attrs.evolve(GOOD, plain=b"another"), own) == (Verdict.CORRUPT, False)
    assert sampled(SAMPLED, own) == (Verdict.OK, False)


@pytest.mark.parametrize(
    ("number", "passing"),
    [
        (errno.EIO, False),
        (errno.EACCES, False),
        (errno.EROFS, False),
        (errno.EUCLEAN, False),
        (errno.EMFILE, True),
        (errno.ENFILE, True),
        (errno.ENOMEM, True),
        (errno.EINTR, True),
    ],
)
def test_what_an_error_of_the_disk_means(number: int, passing: bool) -> None:
    """The medium's errors are as bad as wrong bytes; what the system is short of for a moment is nothing to be judged."""
    reading = unreadable(OSError(number, os.strerror(number)))
    assert (reading.keyed, reading.passing) == (b"", passing)
    assert os.strerror(number) in reading.problem


def test_a_damaged_block_does_not_pass() -> None:
    """It is what it is."""
    assert unreadable(CorruptBlock("block 3 is not what was written")) == Reading(problem="block 3 is not what was written")


@pytest.mark.parametrize(
    ("knows", "verdict"),
    [
        (None, Verdict.MISSING),
        (NUMBER - 1, Verdict.STALE),
        (NUMBER, Verdict.MISSING),
        # Its index is ahead of the challenger's, and the blob it was asked for may have been dropped.
        (NUMBER + 1, Verdict.GONE),
    ],
)
def test_what_is_not_there(knows: int | None, verdict: Verdict) -> None:
    """It is missing, unless the prover's index is at another version: then there is nothing to prove."""
    absent = Proof(attempt=ATTEMPT, present=False, knows=knows)
    assert whole(absent, None) == (verdict, False)
    assert sampled(absent, None) == (verdict, False)


def test_only_missing_and_corrupt_are_bad() -> None:
    """Catching up is not failing."""
    assert [verdict for verdict in Verdict if verdict.is_bad] == [Verdict.MISSING, Verdict.CORRUPT]


PROOFS = [
    Proof(attempt=ATTEMPT, present=present, plain=plain, keyed=keyed, knows=knows)
    for present, plain, keyed, knows in itertools.product(
        (True, False), (RECORDED, b"another", b""), (KEYED, b"other", b""), (None, 6, 7, 8)
    )
]
READINGS = itertools.product((RECORDED, b"rotten", b""), (KEYED, b"other", b""))
OWNS = [None, *(Reading(plain=plain, keyed=keyed) for plain, keyed in READINGS)]


@pytest.mark.parametrize("proof", PROOFS, ids=str)
def test_every_combination(proof: Proof) -> None:
    """Gone blames nobody; OK needs the record (or, of picked blocks, the own ones) to agree; own copies are blamed for themselves."""
    for own, is_whole in itertools.product(OWNS, (True, False)):
        judged = whole if is_whole else sampled
        assert judged(proof, own, still_current=False) == (Verdict.GONE, False)
        verdict, own_bad = judged(proof, own)
        if verdict is None:
            assert not own_bad and own is not None and not (is_whole and own.plain)
            assert proof.present and proof.keyed and own.keyed and proof.keyed != own.keyed
        if not proof.present or not proof.keyed:
            assert verdict is not Verdict.OK
        if own is None:
            assert not own_bad
        if is_whole and verdict is Verdict.OK:
            assert proof.plain == RECORDED
            assert own is None or own_bad or proof.keyed == own.keyed
        if is_whole and own_bad:
            assert own is not None and own.plain != RECORDED
        if not is_whole and verdict is Verdict.OK:
            assert own is None or proof.keyed == own.keyed or not own.keyed
        if not is_whole and own_bad:
            assert own is not None and not own.keyed


nonces = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
attempts = st.binary(min_size=16, max_size=16).map(AttemptId)


@given(nonces, attempts, st.integers(0, 10**6))
def test_picked_blocks_are_few_and_there(nonce: bytes, attempt: AttemptId, blocks: int) -> None:
    """They are in order, without doubles, within the blob, the same for everyone who asks; a small blob is read whole."""
    picked = picked_blocks(nonce, attempt, blocks)
    assert picked == sorted(set(picked)) == picked_blocks(nonce, attempt, blocks)
    assert all(0 <= block < blocks for block in picked)
    assert len(picked) <= PICKS
    assert picked or not blocks
    if blocks <= PICKS:
        assert picked == list(range(blocks))


def test_picks_cannot_be_foreseen() -> None:
    """Another nonce or another file picks other blocks, and in the long run every block."""
    blocks = 50
    by_nonce = {tuple(picked_blocks(bytes([number]) * NONCE_BYTES, ATTEMPT, blocks)) for number in range(250)}
    by_attempt = {tuple(picked_blocks(b"n" * NONCE_BYTES, AttemptId(bytes([number]) * 16), blocks)) for number in range(250)}
    for found in (by_nonce, by_attempt):
        assert len(found) > 240
        assert {block for picked in found for block in picked} == set(range(blocks))


GOOD_REPORT = Report(challenger="n1", files=5, bytes=50, whole=True)
BAD_REPORT = attrs.evolve(
    GOOD_REPORT,
    challenger="n2",
    bad=(BadCopy(file=EntryId(b"f" * 16), attempt=ATTEMPT, verdict=Verdict.CORRUPT),),
    bad_count=3,
)


def test_one_bad_report_is_a_failure() -> None:
    """All good: no failure. One bad, or interrupted: the reason names who found what; what a challenger found of its own does not count."""
    assert failure_of([]) is None
    assert failure_of([GOOD_REPORT, attrs.evolve(GOOD_REPORT, own_bad=2)]) is None
    reason = failure_of([GOOD_REPORT, BAD_REPORT, attrs.evolve(GOOD_REPORT, challenger="n3", interrupted="silence")])
    assert reason is not None
    assert "n1" not in reason
    for part in ("n2", "3 bad of 5", str(EntryId(b"f" * 16)), "corrupt", "n3: interrupted, silence"):
        assert part in reason
    assert failure_of([attrs.evolve(BAD_REPORT, interrupted="silence")]) is not None


@given(st.integers(1, 10**6))
def test_in_vain_it_begins_later_each_time(fruitless: int) -> None:
    """Twice as late, up to a bound."""
    assert again_s(1) == AGAIN_FIRST_S
    assert again_s(fruitless) <= again_s(fruitless + 1) == min(AGAIN_MOST_S, 2 * again_s(fruitless))


CUT_OFF = attrs.evolve(GOOD_REPORT, challenger="n3", interrupted="n4 is not connected", unheard=True)


def test_who_is_cut_off_is_asked_again_and_then_withdraws() -> None:
    """Another one that came to its end shows that the prover made progress."""
    assert unheard([GOOD_REPORT, CUT_OFF]) == ("n3",)
    assert settled([GOOD_REPORT, CUT_OFF]) == [GOOD_REPORT]


def test_when_nobody_came_to_the_end_it_was_interrupted() -> None:
    """Nothing says that the prover made progress: the requirement's interrupted verification."""
    other = attrs.evolve(CUT_OFF, challenger="n2")
    assert unheard([other, CUT_OFF]) == ("n2", "n3")
    assert failure_of(settled([other, CUT_OFF])) is not None


reports = st.lists(
    st.builds(
        Report,
        challenger=st.sampled_from(["n1", "n2", "n3", "n4"]),
        files=st.just(5),
        bytes=st.just(50),
        whole=st.booleans(),
        bad=st.just(BAD_REPORT.bad),
        bad_count=st.integers(0, 2),
        interrupted=st.sampled_from([None, "why"]),
        unheard=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda report: report.challenger,
)


@given(reports)
def test_nobody_withdraws_but_who_was_cut_off(told: list[Report]) -> None:
    """A bad verdict always counts, and so does a prover that refuses; some report always is left, and asking again is not for ever."""
    left = settled(told)
    assert [report for report in told if report in left] == left
    assert bool(left) == bool(told)
    for report in told:
        if report.bad_count or report.interrupted is None or not report.unheard:
            assert report in left
    if any(report.bad_count for report in told):
        assert unheard(told) == ()
        assert failure_of(left) is not None
    for name in unheard(told):
        (report,) = [report for report in told if report.challenger == name]
        assert report.interrupted is not None and report.unheard
    # A report left that was interrupted always fails.
    assert (failure_of(left) is None) == all(report.interrupted is None and not report.bad_count for report in left)
