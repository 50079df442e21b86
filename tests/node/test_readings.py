"""What is read for a verification, and how it goes to the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from blake3 import blake3
from twisted.internet.defer import Deferred

from securifile.model.digests import DigestAlgorithm
from securifile.model.ids import AttemptId, EntryId
from securifile.model.proofs import Reading
from securifile.model.verification import PICKS
from securifile.node.feeding import Fed, Wanted
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.readings import JOB_BYTES, READINGS, Question, Readings
from securifile.node.sidecars import BLOCK_BYTES

NONCE = b"n" * 32
SHA256 = DigestAlgorithm.SHA256


class Slow(MemoryBlobs):
    """Blobs that are read when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[tuple[Sequence[Wanted], Deferred[None]]] = []

    def feed(self, wanted: Sequence[Wanted]) -> Deferred[list[Fed]]:
        """See `MemoryBlobs`."""
        go_on: Deferred[None] = Deferred()
        self.jobs.append((wanted, go_on))
        return go_on.addCallback(lambda _: MemoryBlobs.feed(self, wanted))

    def go_on(self) -> int:
        """Do the jobs that are under way; how many they were."""
        jobs, self.jobs = self.jobs, []
        for _, job in jobs:
            job.callback(None)
        return len(jobs)

    def have(self, number: int, content: bytes) -> AttemptId:
        """Store a blob."""
        attempt = AttemptId(number.to_bytes(16))
        writers = []
        self.begin(attempt, SHA256).addCallback(writers.append)
        writers[0].write(content)
        writers[0].finish(EntryId(b"f" * 16), 1)
        return attempt


def asked(blobs: Slow, questions: Sequence[Question]) -> tuple[list[list[int]], list[Reading]]:
    """What went together, by its numbers, and what was read."""
    outcome: list[list[Reading]] = []
    Deferred.fromCoroutine(Readings(blobs).read(NONCE, questions)).addCallback(outcome.append)
    together = []
    while not outcome:
        assert 0 < len(blobs.jobs) <= READINGS
        together += [[int.from_bytes(one.attempt.value) for one in wanted] for wanted, _ in blobs.jobs]
        blobs.go_on()
    return together, outcome[0]


def test_small_blobs_go_together() -> None:
    """Up to so many bytes for one job, one at least; a few jobs at a time; what comes back is in the order of the questions."""
    blobs = Slow()
    sizes = [10, 0, JOB_BYTES - 10, 1, JOB_BYTES + 1, 5, 5, JOB_BYTES - 5]
    questions = [Question(attempt=blobs.have(number, bytes([number])), size=size) for number, size in enumerate(sizes)]
    together, readings = asked(blobs, questions)
    assert together == [[0, 1, 2], [3], [4], [5, 6], [7]]
    assert [reading.keyed for reading in readings] == [blake3(bytes([number]), key=NONCE).digest() for number in range(len(sizes))]


def test_of_picked_blobs_more_go_together() -> None:
    """What counts is what is read of them."""
    blobs = Slow()
    questions = [Question(attempt=blobs.have(number, b"x"), size=10 * JOB_BYTES, picked=True) for number in range(9)]
    together, _ = asked(blobs, questions)
    assert [len(job) for job in together] == [JOB_BYTES // (PICKS * BLOCK_BYTES), 1]


@pytest.mark.parametrize("checked", [True, False])
def test_each_blob_is_answered_for_by_itself(checked: bool) -> None:
    """One that is not there, or is rotten, leaves the others in its job alone; both digests come from one reading."""
    blobs = Slow()
    attempts = [blobs.have(number, bytes([number])) for number in range(4)]
    blobs.drop(attempts[1])
    blobs.damage(attempts[2], 0)
    _, found = asked(blobs, [Question(attempt=attempt, size=1, algorithm=SHA256, checked=checked) for attempt in attempts])
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(4)]
    assert [reading.present for reading in found] == [True, False, True, True]
    assert (found[0].plain, found[3].plain) == (digests[0], digests[3])
    if checked:
        assert found[2].problem.startswith("block 0 of blob")
        assert not found[2].keyed
    else:
        assert found[2].plain == hashlib.sha256(bytes([2 ^ 0xFF])).digest()
        assert found[2].noted == digests[2]


def test_nothing_is_asked() -> None:
    """Then nothing is read."""
    assert asked(Slow(), []) == ([], [])
