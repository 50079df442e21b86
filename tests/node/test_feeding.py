"""How a blob on the disk is given to a function, step by step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import attrs
import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Sidecar
from securifile.model.errors import CorruptBlock
from securifile.model.ids import AttemptId, EntryId
from securifile.node.blobs import DiskBlobs
from securifile.node.feeding import PIECE_BYTES, STEP_BYTES, Wanted
from securifile.node.files import OS_FILES, Files, OsFiles
from securifile.node.sidecars import BLOCK_BYTES
from tests.node.test_blobs import Bench, HeldWorker

A = AttemptId(b"a" * 16)
B = AttemptId(b"b" * 16)
C = AttemptId(b"c" * 16)
SIZE = STEP_BYTES + 1000
CONTENT = os.urandom(SIZE)


@attrs.define(eq=False)
class Counter:
    """Counts what it is given."""

    count: int = 0

    def __call__(self, piece: bytes | memoryview) -> None:
        self.count += len(piece)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A real disk with a blob of a little more than a step, and a worker that the test holds."""
    return filled(tmp_path, OS_FILES)


def filled(directory: Path, files: Files) -> Bench:
    worker = HeldWorker()
    store = DiskBlobs(directory=str(directory), worker=worker, clock=Clock(), files=files, reserve_bytes=0)
    bench = Bench(worker=worker, store=store)
    bench.get(store.recover())
    writer = bench.get(store.begin(A, DigestAlgorithm.SHA256))
    bench.get(writer.write(CONTENT))
    bench.get(writer.finish(EntryId(b"f" * 16), 1))
    return bench


def test_a_large_blob_gives_others_a_turn(bench: Bench) -> None:
    """One job gives so much, and the next goes on; after the last the file is closed."""
    before, counter = open_files(), Counter()
    feeding = bench.store.feed([Wanted(attempt=A, take=counter)])
    bench.worker.step()
    assert (counter.count, open_files(), len(bench.worker.jobs)) == (STEP_BYTES, before + 1, 1)
    (sidecar,) = bench.get(feeding)
    assert sidecar.size == SIZE
    assert (counter.count, open_files()) == (SIZE, before)


def test_several_blobs_are_one_job(bench: Bench) -> None:
    """One after the other, none of them left open; a job ends where it has given enough, also in the middle of one."""
    for attempt in (B, C):
        writer = bench.get(bench.store.begin(attempt, DigestAlgorithm.SHA256))
        bench.get(writer.write(attempt.value * 1000))
        bench.get(writer.finish(EntryId(b"f" * 16), 1))
    before, counters = open_files(), {attempt: Counter() for attempt in (B, A, C)}
    for checked in (True, False):
        feeding = bench.store.feed([Wanted(attempt=attempt, take=counters[attempt], checked=checked) for attempt in (B, A, C)])
        bench.worker.step()
        assert (counters[B].count, counters[C].count, open_files(), len(bench.worker.jobs)) == (16_000, 0, before + 1, 1)
        bench.worker.step()
        assert [fed.size for fed in bench.get(feeding) if isinstance(fed, Sidecar)] == [16_000, SIZE, 16_000]
        assert ([counters[attempt].count for attempt in (B, A, C)], open_files()) == ([16_000, SIZE, 16_000], before)
        for counter in counters.values():
            counter.count = 0


def test_what_is_not_checked_comes_in_large_pieces(bench: Bench) -> None:
    """All of it, in order."""
    pieces: list[bytes] = []
    bench.get(bench.store.feed([Wanted(attempt=A, take=lambda piece: pieces.append(bytes(piece)), checked=False)]))
    assert b"".join(pieces) == CONTENT
    assert {len(piece) for piece in pieces[:-1]} == {PIECE_BYTES}


def test_a_blob_that_was_cut_off_is_corrupt(bench: Bench, tmp_path: Path) -> None:
    """Also for those who check nothing: what is not there cannot be given. Those after it are not concerned."""
    writer = bench.get(bench.store.begin(B, DigestAlgorithm.SHA256))
    bench.get(writer.write(b"whole"))
    bench.get(writer.finish(EntryId(b"f" * 16), 1))
    os.truncate(tmp_path / "blobs" / str(A)[:2] / str(A), 3 * PIECE_BYTES + 10)
    before, counter = open_files(), Counter()
    bad, good = bench.get(bench.store.feed([Wanted(attempt=attempt, take=counter, checked=False) for attempt in (A, B)]))
    assert isinstance(bad, CorruptBlock)
    assert bad.block == 3 * PIECE_BYTES // BLOCK_BYTES
    assert isinstance(good, Sidecar)
    assert (counter.count, open_files()) == (3 * PIECE_BYTES + 5, before)


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, CorruptBlock), (errno.ENOMEM, OSError)])
def test_what_the_medium_cannot_give_is_corrupt(tmp_path: Path, number: int, expected: type[Exception]) -> None:
    """What the process is short of is not."""

    class Failing(OsFiles):
        def read_into(self, descriptor: int, memory: memoryview, offset: int) -> int:
            raise OSError(number, "no")

    bench = filled(tmp_path, Failing())
    (fed,) = bench.get(bench.store.feed([Wanted(attempt=A, take=Counter(), checked=False)]))
    assert type(fed) is expected


def test_whoever_gives_up_leaves_nothing_open(bench: Bench) -> None:
    """The step that was under way, or had yet to begin, closes the file; and nothing is given any more."""
    before, counter = open_files(), Counter()
    for steps in (0, 1):
        feeding = bench.store.feed([Wanted(attempt=A, take=counter)])
        for _ in range(steps):
            bench.worker.step()
        given = counter.count
        feeding.cancel()
        with pytest.raises(CancelledError):
            bench.get(feeding)
        assert (counter.count, open_files()) == (given, before)


def test_a_function_that_fails_ends_it(bench: Bench) -> None:
    """Its error comes out, and the file is closed."""

    def take(piece: bytes) -> None:
        raise ValueError("no more")

    before = open_files()
    with pytest.raises(ValueError, match="no more"):
        bench.get(bench.store.feed([Wanted(attempt=A, take=take)]))
    assert open_files() == before
