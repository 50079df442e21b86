"""Blocks given by the worker's own thread, and how that fits with reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.errors import CorruptBlock, StreamBroken
from securifile.model.ids import AttemptId, EntryId
from securifile.node.blob_reading import READ_AHEAD_BYTES
from securifile.node.blobs import DiskBlobs
from securifile.node.files import OS_FILES
from securifile.node.sidecars import BLOCK_BYTES
from tests.node.test_blobs import HeldWorker
from tests.node.test_blobs_crash import run

A = AttemptId(b"a" * 16)
WHOLE = b"".join(number.to_bytes(4, "big") for number in range(600_000))
MUCH = 1 << 30


@attrs.define(eq=False)
class Taker:
    """Takes pieces until it has had enough; then says so with the last, or refuses the next."""

    enough: int = MUCH
    refuses: bool = False
    pieces: list[bytes] = attrs.field(factory=list)

    def __call__(self, piece: bytes) -> bool:
        if self.refuses and len(self.pieces) == self.enough:
            raise StreamBroken("taken back")
        self.pieces.append(piece)
        return self.refuses or len(self.pieces) < self.enough

    @property
    def got(self) -> bytes:
        return b"".join(self.pieces)


class Blob:
    """A blob on a real disk, and a worker that the test holds."""

    def __init__(self, folder: Path, content: bytes = WHOLE) -> None:
        self.worker = HeldWorker()
        self.store = DiskBlobs(directory=str(folder / "store"), worker=self.worker, clock=Clock(), files=OS_FILES, reserve_bytes=0)
        self.get(self.store.recover())
        writer = self.get(self.store.begin(A, DigestAlgorithm.SHA256))
        self.get(writer.write(content))
        self.get(writer.finish(EntryId(b"f" * 16), 1))
        self.reader = self.get(self.store.open(A))

    def get(self, answer: Deferred[Any]) -> Any:
        self.worker.finish()
        return run(answer)

    def rest(self, source: Any) -> bytes:
        data = bytearray()
        while piece := self.get(source.read()):
            data += piece
        return bytes(data)


def test_a_whole_blob_in_one_go(tmp_path: Path) -> None:
    """Checked blocks, in order, in one job."""
    blob = Blob(tmp_path)
    taker = Taker()
    source = blob.reader.source(0, len(WHOLE))
    poured = source.pour(taker, MUCH)
    assert len(blob.worker.jobs) == 1
    blob.get(poured)
    assert taker.got == WHOLE
    assert max(map(len, taker.pieces)) == BLOCK_BYTES
    assert blob.rest(source) == b""


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_reading_and_pouring_in_any_order_give_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whoever takes what when, in pieces or refused: every byte of the range once, in order."""
    blob = Blob(tmp_path_factory.mktemp("blob"))
    start = data.draw(st.integers(0, len(WHOLE)))
    stop = data.draw(st.integers(start, len(WHOLE)))
    source = blob.reader.source(start, stop)
    came = b""
    for _ in range(data.draw(st.integers(0, 6))):
        if data.draw(st.booleans()):
            came += blob.get(source.read())
        else:
            taker = Taker(enough=data.draw(st.integers(0, 5)) or 1, refuses=data.draw(st.booleans()))
            blob.get(source.pour(taker, data.draw(st.sampled_from([1, BLOCK_BYTES, MUCH]))))
            came += taker.got
    assert came + blob.rest(source) == WHOLE[start:stop]


def test_about_so_many_bytes_are_given(tmp_path: Path) -> None:
    """The job ends with the piece that reaches the limit, so that others get their turn."""
    blob = Blob(tmp_path)
    taker = Taker()
    source = blob.reader.source(0, len(WHOLE))
    blob.get(source.pour(taker, BLOCK_BYTES + 1))
    assert len(taker.pieces) == 2


def test_what_was_read_ahead_goes_first(tmp_path: Path) -> None:
    """Pieces that wait are given before the disk is read; a job under way is waited for."""
    blob = Blob(tmp_path)
    source = blob.reader.source(0, len(WHOLE))
    came = blob.get(source.read())
    while len(blob.worker.jobs) == 0:
        came += run(source.read())
    assert len(came) == READ_AHEAD_BYTES
    taker = Taker()
    poured = source.pour(taker, MUCH)
    assert taker.pieces == []
    blob.get(poured)
    assert came + taker.got == WHOLE


def test_a_bad_block_is_not_given(tmp_path: Path) -> None:
    """The good ones before it are; then the pouring fails, and so does the next read."""
    blob = Blob(tmp_path)
    path = tmp_path / "store" / "blobs" / str(A)[:2] / str(A)
    damaged = bytearray(path.read_bytes())
    damaged[3 * BLOCK_BYTES + 5] ^= 1
    path.write_bytes(damaged)
    source = blob.reader.source(100, len(WHOLE))
    taker = Taker()
    with pytest.raises(CorruptBlock, match="block 3"):
        blob.get(source.pour(taker, MUCH))
    assert taker.got == WHOLE[100 : 3 * BLOCK_BYTES]
    with pytest.raises(CorruptBlock):
        blob.get(source.read())


@pytest.mark.parametrize("when", ["before the job", "within it"])
def test_closed_meanwhile(tmp_path: Path, when: str) -> None:
    """The file stays open until the job has ended, and nothing is kept for a reader who has left."""
    blob = Blob(tmp_path)
    source = blob.reader.source(0, len(WHOLE))

    def take(piece: bytes) -> bool:
        if when == "within it":
            close()
        return False

    def close() -> None:
        source.close()
        blob.reader.close()

    poured = source.pour(take, MUCH)
    if when == "before the job":
        close()
    blob.get(poured)
    assert blob.get(source.read()) == b""
