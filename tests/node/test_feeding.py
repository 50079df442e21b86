"""How a blob on the disk is given to a function, step by step."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.ids import AttemptId, EntryId
from securifile.node.blobs import DiskBlobs
from securifile.node.feeding import STEP_BYTES
from securifile.node.files import OS_FILES
from tests.node.test_blobs import Bench, HeldWorker

A = AttemptId(b"a" * 16)
SIZE = STEP_BYTES + 1000


@attrs.define(eq=False)
class Counter:
    """Counts what it is given."""

    count: int = 0

    def __call__(self, piece: bytes) -> None:
        self.count += len(piece)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A real disk with a blob of a little more than a step, and a worker that the test holds."""
    worker = HeldWorker()
    store = DiskBlobs(directory=str(tmp_path), worker=worker, clock=Clock(), files=OS_FILES, reserve_bytes=0)
    bench = Bench(worker=worker, store=store)
    bench.get(store.recover())
    writer = bench.get(store.begin(A, DigestAlgorithm.SHA256))
    bench.get(writer.write(bytes(SIZE)))
    bench.get(writer.finish(EntryId(b"f" * 16), 1))
    return bench


def test_a_large_blob_gives_others_a_turn(bench: Bench) -> None:
    """One job gives so much, and the next goes on; after the last the file is closed."""
    before, counter = open_files(), Counter()
    feeding = bench.store.feed(A, counter)
    bench.worker.step()
    assert (counter.count, open_files(), len(bench.worker.jobs)) == (STEP_BYTES, before + 1, 1)
    assert bench.get(feeding).size == SIZE
    assert (counter.count, open_files()) == (SIZE, before)


def test_whoever_gives_up_leaves_nothing_open(bench: Bench) -> None:
    """The step that was under way, or had yet to begin, closes the file; and nothing is given any more."""
    before, counter = open_files(), Counter()
    for steps in (0, 1):
        feeding = bench.store.feed(A, counter)
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
        bench.get(bench.store.feed(A, take))
    assert open_files() == before
