"""Small blobs that are read in one go, and again without a trip to the worker."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from securifile.model.errors import CorruptBlock, NoSuchBlob
from securifile.model.ids import AttemptId
from securifile.node.at_hand import KEPT_MAX, SMALL_BYTES_MAX, AtHand
from securifile.node.blob_folder import BlobFolder
from securifile.node.blobs import DiskBlobs
from securifile.node.files import OS_FILES, OsFiles
from tests.node.test_blobs import FILE, SHA256, A, Bench, HeldWorker, bench
from tests.node.test_blobs_crash import run
from tests.node.test_pouring import Blob

__all__ = ["bench"]


def test_the_first_reading_is_one_job_and_the_next_none(bench: Bench) -> None:
    """Opening, checking and reading are one trip; then the file is at hand, and stays the only one that is open."""
    writer = bench.get(bench.store.begin(A, SHA256))
    writer.write(b"abc")
    bench.get(writer.finish(FILE, 1))
    first = bench.store.small(A)
    assert len(bench.worker.jobs) == 1
    assert bench.get(first) == b"abc"
    assert run(bench.store.small(A)) == b"abc"
    assert bench.worker.jobs == []
    assert bench.files.descriptors == 1


@pytest.mark.parametrize("how", ["dropped", "set aside"])
def test_what_leaves_is_not_at_hand_any_more(bench: Bench, how: str) -> None:
    """Its file is closed, also when somebody reads it just then."""
    writer = bench.get(bench.store.begin(A, SHA256))
    writer.write(b"abc")
    bench.get(writer.finish(FILE, 1))
    bench.get(bench.store.small(A))
    leaving = bench.store.drop(A) if how == "dropped" else bench.store.quarantine(A, "why not")
    between = bench.store.small(A)
    bench.worker.jobs.reverse()  # the reading first, whoever asked first
    bench.worker.finish()
    run(leaving)
    with pytest.raises(NoSuchBlob):
        bench.get(bench.store.small(A))
    bench.worker.finish()
    assert bench.files.descriptors == 0
    assert between.called
    between.addErrback(lambda _: None)


def test_rot_is_seen_though_it_is_at_hand(tmp_path: Path) -> None:
    """Nothing of the content is remembered: each reading looks at the file."""
    blob = Blob(tmp_path, b"x" * 5000)
    assert blob.get(blob.store.small(A)) == b"x" * 5000
    path = tmp_path / "store" / "blobs" / str(A)[:2] / str(A)
    path.write_bytes(b"x" * 4999 + b"y")
    with pytest.raises(CorruptBlock):
        blob.get(blob.store.small(A))


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES_MAX])
def test_every_size_that_is_small(tmp_path: Path, size: int) -> None:
    """On a real disk, first and again."""
    blob = Blob(tmp_path, b"z" * size)
    assert blob.get(blob.store.small(A)) == b"z" * size
    assert blob.get(blob.store.small(A)) == b"z" * size


def test_a_larger_one_is_not_kept(tmp_path: Path) -> None:
    """Only its beginning is read, and every time in the worker."""
    blob = Blob(tmp_path, b"z" * (SMALL_BYTES_MAX + 1))
    assert len(blob.get(blob.store.small(A))) == SMALL_BYTES_MAX
    blob.store.small(A)
    assert len(blob.worker.jobs) == 1


def test_a_disk_that_would_have_to_be_waited_for(tmp_path: Path) -> None:
    """What the system has not in memory goes to the worker."""

    class Cold(OsFiles):
        def read_at_once(self, descriptor: int, count: int, offset: int) -> bytes | None:
            return None

    Blob(tmp_path, b"cold")
    worker = HeldWorker()
    store = DiskBlobs(directory=str(tmp_path / "store"), worker=worker, clock=Clock(), files=Cold(), reserve_bytes=0)
    for _ in range(2):
        reading = store.small(A)
        assert worker.jobs
        worker.finish()
        assert run(reading) == b"cold"


def test_the_system_says_when_it_need_not_wait(tmp_path: Path) -> None:
    """A file that was just written is in memory; where the system cannot say, nobody pretends."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    descriptor = OS_FILES.open(str(path))
    try:
        assert OS_FILES.read_at_once(descriptor, 7, 0) in (b"content", None)
        assert OS_FILES.read_at_once(descriptor, 8, 0) is None
    finally:
        OS_FILES.close(descriptor)


def test_the_one_not_used_for_longest_is_closed(tmp_path: Path) -> None:
    """An ordinary process may have a thousand files open, and half of them are enough for this."""
    Blob(tmp_path, b"abc")
    loaded = BlobFolder(str(tmp_path / "store"), OS_FILES, 0).sidecar(A)
    released: list[int] = []
    at_hand = AtHand(OS_FILES)
    for number in range(KEPT_MAX + 3):
        at_hand.keep(AttemptId(number.to_bytes(16, "big")), 0, loaded, partial(released.append, number))
    assert released == [0, 1, 2]
