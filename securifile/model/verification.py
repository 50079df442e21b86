"""Judging the proofs of a returning node: the rules, without a disk.

A challenger asks for each file it shares with the returning node; the node answers, from one reading of its disk, the plain
digest and a digest keyed with a nonce. The digest that the catalogue recorded is the referee: a prover whose plain digest
differs is wrong, whatever the challenger's own disk says.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from blake3 import blake3

from securifile.model.ids import AttemptId
from securifile.model.proofs import BadCopy, Proof, Reading, Report, Verdict

NONCE_BYTES = 32
"""A BLAKE3 key."""

TRIES = 3
"""How often a challenger that hears nothing is asked in all: two times may fall into one outage."""

AGAIN_FIRST_S = 1.0
AGAIN_MOST_S = 60.0
"""When a verification came to no verdict at all, the next one begins later each time, and soon again when something has changed."""

PICKS = 4
"""Blocks read of each file when there is no time for whole files: one rotten half is missed once in sixteen."""


PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE})
"""Errors by which a process or its system is short of something for a moment. They say nothing of the disk."""


def unreadable(error: BaseException) -> Reading:
    """What it means for a copy that reading it failed: the medium's error, or a lack of permission, is as bad as wrong bytes."""
    return Reading(problem=str(error), passing=isinstance(error, OSError) and error.errno in PASSING)


def vouches(proof: Proof, digest: bytes) -> bool:
    """Whether it says that the prover has the recorded version: whose copy has the same keyed digest has it as well."""
    return proof.present and bool(proof.keyed) and proof.plain == digest


def judge(
    proof: Proof, *, number: int, digest: bytes, whole: bool, own: Reading | None, still_current: bool
) -> tuple[Verdict | None, bool]:
    """Judge one proof that says something: one that is `passing` is to be asked for again.

    Args:
        number: the version that was asked for.
        digest: the one recorded for it.
        whole: whether the whole blob was asked for.
        own: the challenger's own reading; None when it verifies itself. Of a whole blob without its plain digest: when the proof `vouches`
            for whoever is keyed alike; or its sidecar has the recorded digest, and each block is what was written then.
        still_current: whether the version is still current, and recorded as durable on the prover, at the time of judging.

    Returns:
        The verdict, and whether the challenger's own copy is bad (which is then nobody else's fault). The verdict is None when what was
        keyed differs and the plain digest of the whole is not known of both: each block of both is what was once written there, and
        which of the two is of the recorded version only the recorded digest can tell. So both are to be read whole, with that digest,
        and judged again.
    """
    if not still_current:
        return Verdict.GONE, False
    if own is None or own.passing:
        own = None
        own_bad = False
    else:
        own_bad = own.plain != digest if whole and own.plain else not own.keyed
    if not proof.present:
        return _absent(proof.knows, number), own_bad
    if not proof.keyed or (whole and proof.plain != digest):
        return Verdict.CORRUPT, own_bad
    if own is None or own_bad or proof.keyed == own.keyed:
        return Verdict.OK, own_bad
    # It has the recorded digest, and ours is the recorded one, too; but it is not keyed with the nonce: it has not read its disk.
    return (Verdict.CORRUPT if whole and own.plain else None), own_bad


def _absent(knows: int | None, number: int) -> Verdict:
    """The verdict on a blob that is not there, by the version that the prover's index has."""
    if knows is None or knows == number:
        return Verdict.MISSING
    return Verdict.STALE if knows < number else Verdict.GONE


def picked_blocks(nonce: bytes, attempt: AttemptId, blocks: int) -> list[int]:
    """Which blocks of a blob to read when there is no time for all: few, spread by the nonce, in order."""
    if blocks <= PICKS:
        return list(range(blocks))
    stream = blake3(attempt.value, key=nonce).digest(length=8 * PICKS)
    return sorted({int.from_bytes(stream[8 * i : 8 * i + 8]) % blocks for i in range(PICKS)})


def again_s(fruitless: int) -> float:
    """How long to wait after so many verifications in a row, at least one, that came to no verdict."""
    return min(AGAIN_MOST_S, AGAIN_FIRST_S * 2.0 ** min(fruitless - 1, 30))


def unheard(reports: Iterable[Report]) -> tuple[str, ...]:
    """Challengers to be asked again, a few times: they heard nothing more from the prover, and nobody found anything bad yet."""
    told = list(reports)
    return () if any(report.bad_count for report in told) else tuple(report.challenger for report in told if _is_unheard(report))


def settled(reports: Iterable[Report]) -> list[Report]:
    """The reports that count when nobody is asked again.

    Interrupted means that the *prover* made no progress. If another challenger came to the end of its list, it did; who heard nothing
    was cut off from it, and withdraws: it blames nobody, and what it would have asked for is left for others. If nobody came to
    the end, the verification was interrupted.
    """
    told = list(reports)
    finished = any(report.interrupted is None for report in told)
    return [report for report in told if not (finished and _is_unheard(report))]


def _is_unheard(report: Report) -> bool:
    return report.interrupted is not None and report.unheard and not report.bad_count


def failure_of(reports: Iterable[Report]) -> str | None:
    """Why a returning node has failed, in words; None when every verdict is good."""
    reasons = []
    for report in reports:
        if report.interrupted is not None:
            reasons.append(f"{report.challenger}: interrupted, {report.interrupted}")
        elif report.bad_count:
            first = report.bad[0]
            reasons.append(f"{report.challenger}: {report.bad_count} bad of {report.files}, first {_named(first)}")
    return "; ".join(reasons) or None


def _named(bad: BadCopy) -> str:
    return f"{bad.file} {bad.verdict}" + (f" ({bad.reason})" if bad.reason else "")
