"""Packs under attack: names that come back, crashes, bad sectors, a full disk, and the same attempt once more."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from securifile.model.entries import BlobSummary, WholeBlob
from securifile.model.errors import CorruptBlock
from securifile.node.blob_folder import BlobFolder
from securifile.node.files import OsFiles
from securifile.node.pack_format import decode_places
from tests.node.simulated_files import SimulatedFiles
from tests.node.test_packs import ROOT, blobs, packed, path_of

DAMAGED: tuple[Callable[[bytes], int], ...] = (lambda pack: 30, lambda pack: decode_places(pack)[blobs()[0].attempt].start + 9)


def full_at(call: str) -> Callable[[int, str], None]:
    """A disk that has no room for this call."""

    def before(number: int, name: str) -> None:
        if name == call:
            raise OSError(errno.ENOSPC, "full")

    return before


@pytest.mark.parametrize("place", DAMAGED, ids=["head", "blob"])
def test_a_blob_that_was_set_aside_and_came_back_can_be_set_aside_again(tmp_path: Path, place: Callable[[bytes], int]) -> None:
    """On a real file system, where rename(2) does nothing with two names of one file: else nobody could ever mend it."""

    def started() -> BlobFolder:
        folder = BlobFolder(str(tmp_path), OsFiles(), 0)
        folder.recover()
        return folder

    folder = started()
    folder.keep_all(blobs())
    first = blobs()[0]
    (path,) = tmp_path.glob(f"blobs/*/{first.attempt}.pack")
    with path.open("r+b") as pack:
        pack.seek(place(path.read_bytes()))
        pack.write(b"\x00\x01\x02")
    folder.set_aside(first.attempt, "rotten")
    folder = started()
    if folder.has(first.attempt):
        folder.set_aside(first.attempt, "rotten")
    assert not folder.has(first.attempt)
    assert isinstance(folder.keep_all([first])[0], BlobSummary)


class BadSector(SimulatedFiles):
    """A file of which a part cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: tuple[str, int, int] | None = None

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        """See `Files`."""
        if self.bad is not None:
            path, start, stop = self.bad
            if self._open[descriptor] is self._file(path) and offset < stop and offset + count > start:
                raise OSError(errno.EIO, "bad sector")
        return super().read(descriptor, count, offset)


def test_a_bad_sector_is_that_of_those_whose_bytes_are_in_it() -> None:
    """The others of the pack can be read, although their places are found by reading more than is needed."""
    files = BadSector()
    some = blobs(12)
    folder = packed(files, some)
    places = decode_places(files.tree()[path_of(some[0].attempt)])
    assert max(place.sidecar + place.sidecar_bytes for place in places.values()) <= 4096
    files.bad = (path_of(some[0].attempt), 4096, 8192)
    hurt = {blob.attempt for blob in some if places[blob.attempt].start < 8192 and places[blob.attempt].start + len(blob.data) > 4096}
    unreadable = set()
    for blob in some:
        try:
            folder.open_small(blob.attempt, 65536)
        except CorruptBlock:
            unreadable.add(blob.attempt)
    assert unreadable == hurt
    assert len(hurt) < len(some)


def again(files: SimulatedFiles, some: list[WholeBlob], at_first: int) -> BlobFolder:
    """A store in which the first of them was stored with some, left, and was stored once more with others."""
    folder = packed(files, some[:at_first])
    folder.remove(some[0].attempt)
    assert all(isinstance(one, BlobSummary) for one in folder.keep_all([some[0], *some[at_first:]]))
    return folder


@pytest.mark.parametrize("at_first", [1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_an_attempt_that_is_stored_again_costs_no_other(seed: int, at_first: int) -> None:
    """Neither the name of its former pack, which the others need, nor files of its own from before stand in its way after a crash."""
    files = SimulatedFiles()
    again(files, blobs(), at_first)
    files.crash(random.Random(seed))
    folder = BlobFolder(ROOT, files, 0)
    folder.recover()
    assert all(folder.has(blob.attempt) for blob in blobs())


def test_an_attempt_that_is_stored_again_leaves_nothing_to_trip_over() -> None:
    """Both packs settle."""
    files = SimulatedFiles()
    again(files, blobs(), 4).packs.settle()
    assert [path for path in files.tree() if "/packs/" in path] == []


def test_what_cannot_be_stored_takes_no_name_from_others() -> None:
    """The pack that it would have been named as stays."""
    files = SimulatedFiles()
    folder = packed(files, blobs()[:4])
    folder.remove(blobs()[0].attempt)
    files.before = full_at("create")
    assert not any(isinstance(one, BlobSummary) for one in folder.keep_all([blobs()[0], *blobs()[4:]]))
    assert len([path for path in files.tree() if "/packs/" in path]) == 1


def test_what_left_after_settling_stays_away() -> None:
    """At the next start, however long the system took to keep the name's removal."""
    files = SimulatedFiles()
    folder = packed(files)
    folder.packs.settle()
    folder.remove(blobs()[0].attempt)
    folder = BlobFolder(ROOT, files, 0)
    folder.recover()
    assert [blob for blob in blobs() if not folder.has(blob.attempt)] == blobs()[:1]


def test_a_full_disk_keeps_no_node_from_starting() -> None:
    """Blobs that lost their names get them at a later start."""
    files = SimulatedFiles()
    packed(files)
    for blob in blobs():
        files.remove(path_of(blob.attempt))
    files.before = full_at("link")
    BlobFolder(ROOT, files, 0).recover()
    files.before = lambda number, name: None
    folder = BlobFolder(ROOT, files, 0)
    folder.recover()
    assert all(folder.has(blob.attempt) for blob in blobs())


def test_who_stores_does_not_wait_for_those_who_leave() -> None:
    """While survivors are taken out of a pack, with many fsyncs."""
    folder = packed(SimulatedFiles(), blobs()[:3])
    with folder.packs.steady:
        storing = Thread(target=folder.keep_all, args=(blobs()[3:],), daemon=True)
        storing.start()
        storing.join(10)
        assert not storing.is_alive()
