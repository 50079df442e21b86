"""What verification reads of this node's disk: keyed digests, and plain ones, of many blobs at a time.

Blobs go to the worker several in a job: with 1,000 files of a mebibyte, trips to threads cost more than BLAKE3. They are read into memory
that is used again, and their blocks are not compared with their checksums where the caller compares a digest of the whole.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import attrs
from blake3 import blake3
from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, gatherResults
from twisted.python.failure import Failure

from securifile.model.digests import DigestAlgorithm
from securifile.model.errors import NoSuchBlob
from securifile.model.ids import AttemptId
from securifile.model.proofs import Reading
from securifile.model.verification import PICKS, picked_blocks, unreadable
from securifile.node.feeding import Parts, Wanted, whole
from securifile.node.sidecars import BLOCK_BYTES, block_count

READINGS = 2
"""Jobs at a time, whoever asks: a core for each on a small machine, and still nearly in order for a disk that turns."""

JOB_BYTES = 8 * 1024 * 1024
"""Blobs are put together to about so much for one job: some milliseconds of hashing."""

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Question:
    """What is to be read of one blob."""

    attempt: AttemptId
    size: int
    """As far as it is known; it only decides what goes together."""
    algorithm: DigestAlgorithm | None = None
    """For the plain digest as well, from the same reading."""
    picked: bool = False
    """Only the blocks that the nonce picks."""
    checked: bool = True
    """Whether each block is compared with its checksum: not if the caller has a digest of the whole to compare with."""


class Readings:
    """Reads one node's blobs for it and for others."""

    def __init__(self, blobs: Any) -> None:
        self._blobs = blobs
        self._at_the_disk = DeferredSemaphore(READINGS)

    async def read(self, nonce: bytes, questions: Sequence[Question]) -> list[Reading]:
        """What is there, in the order of the questions."""
        jobs = await together([self._job(nonce, job) for job in _jobs(questions)])
        return [reading for job in jobs for reading in job]

    async def _job(self, nonce: bytes, questions: Sequence[Question]) -> list[Reading]:
        hashing = [_Hashing(nonce, question) for question in questions]
        async with self._at_the_disk:
            fed = await self._blobs.feed([one.wanted for one in hashing])
        return [one.reading(outcome) for one, outcome in zip(hashing, fed, strict=True)]


class _Hashing:
    """The digests of one blob while its bytes come by."""

    def __init__(self, nonce: bytes, question: Question) -> None:
        self._plain = None if question.algorithm is None else question.algorithm.hasher()
        self._keyed = blake3(key=nonce)
        parts = _picked(nonce, question.attempt) if question.picked else whole
        self.wanted = Wanted(attempt=question.attempt, take=self._take, parts=parts, checked=question.checked)

    def _take(self, data: bytes | memoryview) -> None:
        """In the worker's thread."""
        if self._plain is not None:
            self._plain.update(data)
        self._keyed.update(data)

    def reading(self, outcome: Any) -> Reading:
        """What came of it."""
        if isinstance(outcome, NoSuchBlob):
            return Reading(present=False)
        if isinstance(outcome, Exception):
            return unreadable(outcome)
        return Reading(plain=b"" if self._plain is None else self._plain.digest(), keyed=self._keyed.digest(), noted=outcome.digest)


def _picked(nonce: bytes, attempt: AttemptId) -> Parts:
    def parts(size: int) -> Sequence[tuple[int, int]]:
        blocks = picked_blocks(nonce, attempt, block_count(size))
        return [(block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, size)) for block in blocks]

    return parts


def _jobs(questions: Sequence[Question]) -> list[list[Question]]:
    jobs: list[list[Question]] = []
    size = 0
    for question in questions:
        reads = min(question.size, PICKS * BLOCK_BYTES) if question.picked else question.size
        if not jobs or size + reads > JOB_BYTES:
            jobs.append([])
            size = 0
        jobs[-1].append(question)
        size += reads
    return jobs


def together(work: Sequence[Coroutine[Any, Any, T]]) -> Deferred[list[T]]:
    """The results of all, or the first error. May be cancelled, with all that is still under way."""
    doing: Deferred[list[T]] = gatherResults([Deferred.fromCoroutine(one) for one in work], consumeErrors=True)

    def failed(failure: Failure) -> Failure:
        error = failure.value
        return error.subFailure if isinstance(error, FirstError) else failure

    return doing.addErrback(failed)
