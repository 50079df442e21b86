"""What every blob store promises, on the one on disk and on the one in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import pytest_twisted
from blake3 import blake3
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import WHOLE_BYTES_MAX, BlobSummary, Sidecar, WholeBlob
from securifile.model.errors import BlobExists, CorruptBlock, DiskFull, NoSuchBlob, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.node.blobs import DiskBlobs
from securifile.node.feeding import Wanted
from securifile.node.files import OsFiles
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.worker import InlineWorker, ThreadWorker

A = AttemptId(b"a" * 16)
B = AttemptId(b"b" * 16)
C = AttemptId(b"c" * 16)
FILE = EntryId(b"f" * 16)
SHA256 = DigestAlgorithm.SHA256
BLOCK = 256 * 1024


class SmallDisk(OsFiles):
    """The real files, on a disk whose room a test can set."""

    def __init__(self) -> None:
        self.room = 2**40

    def available_bytes(self, directory: str) -> int:
        """What the test said."""
        return self.room


@attrs.frozen
class Subject:
    """A store, and the ways to harm it."""

    store: Any
    damage: Callable[[AttemptId, int], None]
    fill: Callable[[], None]


@pytest.fixture(params=["memory", "disk", "disk with threads"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """The stores, one after the other."""
    if request.param == "memory":
        memory = MemoryBlobs()

        def fill_memory() -> None:
            memory.capacity_bytes = 0

        yield Subject(memory, memory.damage, fill_memory)
        return
    threads = ThreadWorker(cast(IReactorFromThreads, reactor), 4, "test")
    worker = InlineWorker() if request.param == "disk" else threads
    files = SmallDisk()
    store = DiskBlobs(directory=str(tmp_path / "store"), worker=worker, clock=Clock(), files=files, reserve_bytes=1000)

    def damage(attempt: AttemptId, offset: int) -> None:
        path = tmp_path / "store" / "blobs" / str(attempt)[:2] / str(attempt)
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)

    def fill() -> None:
        files.room = 0

    pytest_twisted.blockon(store.recover())
    yield Subject(store, damage, fill)
    threads.stop()


async def put(store: Any, attempt: AttemptId, data: bytes, chunk: int = 100_000) -> BlobSummary:
    """A finished blob."""
    writer = await store.begin(attempt, SHA256)
    for start in range(0, len(data), chunk):
        await writer.write(data[start : start + chunk])
    summary: BlobSummary = await writer.finish(FILE, 3)
    return summary


def summary_of(data: bytes) -> BlobSummary:
    """What a blob with this content is."""
    blocks = b"".join(blake3(data[start : start + BLOCK]).digest(length=16) for start in range(0, len(data), BLOCK))
    return BlobSummary(size=len(data), digest=hashlib.sha256(data).digest(), checksum=blake3(blocks).digest())


def whole(attempt: AttemptId, data: bytes) -> WholeBlob:
    """All of a blob, as `put` makes it."""
    return WholeBlob(attempt=attempt, file=FILE, version=3, algorithm=SHA256, data=data)


async def drain(source: Any) -> bytes:
    """All that a source gives."""
    data = b""
    while piece := await source.read():
        data += piece
    assert await source.read() == b""
    return data


async def read(store: Any, attempt: AttemptId, start: int = 0, stop: int | None = None) -> bytes:
    """A range of a blob."""
    reader = await store.open(attempt)
    try:
        return await drain(reader.source(start, reader.size if stop is None else stop))
    finally:
        reader.close()


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * 1024 * 1024 + 17])
@pytest_twisted.ensureDeferred
async def test_what_went_in_comes_out(subject: Subject, size: int) -> None:
    """A blob of any size comes out as it went in, and the summary tells its size and digest."""
    data = os.urandom(size)
    summary = await put(subject.store, A, data)
    assert summary == summary_of(data)
    assert await read(subject.store, A) == data


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 17])
@pytest_twisted.ensureDeferred
async def test_a_blob_that_is_vouched_for(subject: Subject, size: int) -> None:
    """Its digest is what its sender says, whatever that is, once the checksum is the one of what arrived."""
    data = os.urandom(size)
    writer = await subject.store.begin(A, SHA256, vouched=True)
    await writer.write(data)
    sent = attrs.evolve(summary_of(data), digest=b"as its sender says")
    assert await writer.finish(FILE, 3, sent) == sent
    assert (await subject.store.sidecar(A)).digest == b"as its sender says"
    assert await read(subject.store, A) == data


@pytest.mark.parametrize(
    "sent",
    [
        lambda data: None,
        lambda data: attrs.evolve(summary_of(data), checksum=None),
        lambda data: attrs.evolve(summary_of(data), checksum=b"\0" * 32),
        lambda data: attrs.evolve(summary_of(data), size=len(data) + 1),
        lambda data: summary_of(data[:-1] + bytes([data[-1] ^ 1])),
        lambda data: summary_of(data[BLOCK:] + data[:BLOCK]),
        lambda data: summary_of(data[:-BLOCK]),
    ],
    ids=["nothing said", "no checksum", "another checksum", "another size", "a byte", "blocks in another order", "more than was sent"],
)
@pytest_twisted.ensureDeferred
async def test_a_blob_that_is_not_what_was_sent(subject: Subject, sent: Callable[[bytes], BlobSummary | None]) -> None:
    """It is given up, and nothing of it stays."""
    data = os.urandom(3 * BLOCK)
    writer = await subject.store.begin(A, SHA256, vouched=True)
    await writer.write(data)
    with pytest.raises(StreamBroken):
        await writer.finish(FILE, 3, sent(data))
    await writer.abandon()
    assert await subject.store.sidecars() == []
    await put(subject.store, A, data)
    assert await read(subject.store, A) == data


@pytest.mark.parametrize("size", [0, 1, 4096, WHOLE_BYTES_MAX])
@pytest_twisted.ensureDeferred
async def test_a_whole_blob_is_as_one_that_was_streamed(subject: Subject, size: int) -> None:
    """What is kept in one go has the same summary and sidecar, and comes out as it went in."""
    data = os.urandom(size)
    summary = await subject.store.keep(whole(A, data))
    assert summary == await put(subject.store, B, data)
    assert await subject.store.small(A) == await read(subject.store, A) == data
    assert attrs.evolve(await subject.store.sidecar(A), attempt=B) == await subject.store.sidecar(B)
    assert (await subject.store.space()).used_bytes == 2 * size


@pytest_twisted.ensureDeferred
async def test_many_whole_blobs_at_once(subject: Subject) -> None:
    """They are all there, each with its own content; what comes twice is refused, and does no harm to the first or to others."""
    blobs = [whole(AttemptId(bytes([number]) * 16), bytes([number]) * number) for number in range(100)]
    kept = [subject.store.keep(blob) for blob in blobs]
    again = subject.store.keep(blobs[7])
    with pytest.raises(BlobExists):
        await again
    for one, blob in zip(kept, blobs, strict=True):
        assert (await one).size == len(blob.data)
        assert await read(subject.store, blob.attempt) == blob.data
    with pytest.raises(BlobExists):
        await subject.store.keep(blobs[8])
    assert await read(subject.store, blobs[8].attempt) == blobs[8].data


@pytest_twisted.ensureDeferred
async def test_a_whole_blob_for_which_there_is_no_room(subject: Subject) -> None:
    """It is refused, and nothing of it stays: there is room for it later."""
    subject.fill()
    with pytest.raises(DiskFull):
        await subject.store.keep(whole(A, b"abc"))
    with pytest.raises(NoSuchBlob):
        await subject.store.open(A)
    assert await subject.store.sidecars() == []


@pytest_twisted.ensureDeferred
async def test_a_whole_blob_can_be_dropped_at_once(subject: Subject) -> None:
    """Who has it dropped while it is on its way to the disk does not find it there afterwards, though nobody waited for it."""
    keeping = subject.store.keep(whole(A, b"abc"))
    keeping.addErrback(lambda failure: failure.trap(CancelledError))
    dropping = subject.store.drop(A)
    keeping.cancel()
    await dropping
    with pytest.raises(NoSuchBlob):
        await subject.store.open(A)
    assert (await subject.store.space()).used_bytes == 0


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (5, 5), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK), (7, 1_500_000), (1_400_000, 1_500_000)]
)
@pytest_twisted.ensureDeferred
async def test_any_range_can_be_read(subject: Subject, start: int, stop: int) -> None:
    """A source gives exactly its range, wherever that lies in the blocks."""
    data = os.urandom(1_500_000)
    await put(subject.store, A, data)
    assert await read(subject.store, A, start, stop) == data[start:stop]


@pytest_twisted.ensureDeferred
async def test_a_range_outside_the_blob_is_the_callers_mistake(subject: Subject) -> None:
    """A range that the blob has not is refused at once."""
    await put(subject.store, A, b"abc")
    reader = await subject.store.open(A)
    for start, stop in [(0, 4), (-1, 2), (2, 1)]:
        with pytest.raises(ValueError, match="not within"):
            reader.source(start, stop)
    reader.close()


@pytest_twisted.ensureDeferred
async def test_a_blob_is_staged_until_committed(subject: Subject) -> None:
    """The sidecar says what the blob is; a commit adds the position, and the version it became; a later one replaces that."""
    await put(subject.store, A, b"abc")
    staged = Sidecar(
        attempt=A, file=FILE.value, version=3, size=3, digest=hashlib.sha256(b"abc").digest(), algorithm=SHA256, committed_at=None
    )
    assert await subject.store.sidecar(A) == staged
    await subject.store.commit(A, 4, Position(2, 17))
    assert await subject.store.sidecar(A) == attrs.evolve(staged, version=4, committed_at=(2, 17))
    await subject.store.commit(A, 5, Position(3, 1))
    assert await subject.store.sidecars() == [attrs.evolve(staged, version=5, committed_at=(3, 1))]
    assert await read(subject.store, A) == b"abc"


@pytest_twisted.ensureDeferred
async def test_many_commits_at_once(subject: Subject) -> None:
    """Each is noted, with its own version and position; one of a blob that is not here says so, and does no harm to the others."""
    attempts = [AttemptId(bytes([number]) * 16) for number in range(1, 150)]
    for attempt in attempts[:10]:
        await put(subject.store, attempt, b"abc")
    noting = [subject.store.commit(attempt, number, Position(2, number)) for number, attempt in enumerate(attempts)]
    for waited in noting[10:]:
        with pytest.raises(NoSuchBlob):
            await waited
    for number, attempt in enumerate(attempts[:10]):
        await noting[number]
        sidecar = await subject.store.sidecar(attempt)
        assert (sidecar.version, sidecar.committed_at) == (number, (2, number))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("size", [0, 1, 4096, 65536])
async def test_a_small_blob_is_read_whole(subject: Subject, size: int) -> None:
    """In one piece, as often as one likes; and not at all when it is bad, or gone."""
    await put(subject.store, A, b"s" * size)
    for _ in range(3):
        assert await subject.store.small(A) == b"s" * size
    if size:
        subject.damage(A, size - 1)
        with pytest.raises(CorruptBlock):
            await subject.store.small(A)
    await subject.store.drop(A)
    with pytest.raises(NoSuchBlob):
        await subject.store.small(A)


@pytest_twisted.ensureDeferred
async def test_what_is_not_there(subject: Subject) -> None:
    """Opening, committing and asking for a blob that is not there say so; dropping it and setting it aside are no mistakes."""
    for ask in (subject.store.open(A), subject.store.sidecar(A), subject.store.commit(A, 1, Position(1, 1))):
        with pytest.raises(NoSuchBlob):
            await ask
    await subject.store.drop(A)
    await subject.store.quarantine(A, "why not")
    assert await subject.store.sidecars() == []


@pytest_twisted.ensureDeferred
async def test_an_attempt_has_one_blob(subject: Subject) -> None:
    """Nobody begins an attempt that is being written or finished; an abandoned one may be begun again."""
    writer = await subject.store.begin(A, SHA256)
    with pytest.raises(BlobExists):
        await subject.store.begin(A, SHA256)
    await writer.abandon()
    await put(subject.store, A, b"abc")
    with pytest.raises(BlobExists):
        await subject.store.begin(A, SHA256)
    assert await read(subject.store, A) == b"abc"


@pytest_twisted.ensureDeferred
async def test_abandoning_leaves_nothing(subject: Subject) -> None:
    """An abandoned blob is not there, takes no more and cannot be finished; abandoning again, or after finish, is harmless."""
    writer = await subject.store.begin(A, SHA256)
    await writer.write(b"x" * 500_000)
    await writer.abandon()
    await writer.abandon()
    with pytest.raises(StreamBroken):
        await writer.write(b"y")
    with pytest.raises(StreamBroken):
        await writer.finish(FILE, 1)
    with pytest.raises(StreamBroken):
        await writer.replay().read()
    with pytest.raises(NoSuchBlob):
        await subject.store.open(A)
    finished = await subject.store.begin(B, SHA256)
    await finished.finish(FILE, 1)
    await finished.abandon()
    with pytest.raises(StreamBroken):
        await finished.finish(FILE, 1)
    with pytest.raises(StreamBroken):
        await finished.write(b"y")
    assert await read(subject.store, B) == b""
    assert (await subject.store.space()).used_bytes == 0


@pytest_twisted.ensureDeferred
async def test_a_reader_outlives_the_drop(subject: Subject) -> None:
    """Who has the blob open reads it to its end; nobody else opens it, and its room is no longer counted."""
    data = os.urandom(3_000_000)
    await put(subject.store, A, data)
    reader = await subject.store.open(A)
    source = reader.source(0, len(data))
    first = await source.read()
    assert (await subject.store.space()).used_bytes == len(data)
    await subject.store.drop(A)
    assert (await subject.store.space()).used_bytes == 0
    with pytest.raises(NoSuchBlob):
        await subject.store.open(A)
    assert first + await drain(source) == data
    reader.close()
    reader.close()


@pytest_twisted.ensureDeferred
async def test_nothing_is_read_through_a_closed_reader(subject: Subject) -> None:
    """A source ends with its reader."""
    await put(subject.store, A, b"abc")
    reader = await subject.store.open(A)
    source = reader.source(0, 3)
    reader.close()
    with pytest.raises(StreamBroken):
        await source.read()


@pytest_twisted.ensureDeferred
async def test_no_wrong_byte_comes_out(subject: Subject) -> None:
    """A damaged block is never handed out, not in part either; the blocks before it are; the error names the place."""
    data = os.urandom(5 * BLOCK + 100)
    await put(subject.store, A, data)
    subject.damage(A, 3 * BLOCK + 77)
    reader = await subject.store.open(A)
    source = reader.source(10, len(data))
    got = b""
    with pytest.raises(CorruptBlock) as caught:
        while True:
            got += await source.read()
    assert got == data[10 : 3 * BLOCK]
    assert (caught.value.attempt, caught.value.block) == (A, 3)
    with pytest.raises(CorruptBlock):
        await source.read()
    assert await drain(reader.source(4 * BLOCK, len(data))) == data[4 * BLOCK :]
    with pytest.raises(CorruptBlock):
        await drain(reader.source(3 * BLOCK, 3 * BLOCK + 1))
    reader.close()


@pytest_twisted.ensureDeferred
async def test_quarantine_takes_a_blob_out(subject: Subject) -> None:
    """A blob set aside is not there any more, and a healthy one of the same attempt may come in its place."""
    await put(subject.store, A, b"bad")
    await subject.store.quarantine(A, "block 0 is damaged")
    with pytest.raises(NoSuchBlob):
        await subject.store.open(A)
    assert (await subject.store.space()).used_bytes == 0
    await put(subject.store, A, b"good")
    assert await read(subject.store, A) == b"good"
    assert await subject.store.quarantined_count() == 1


@pytest_twisted.ensureDeferred
async def test_a_replay_catches_up_and_says_so_at_once(subject: Subject) -> None:
    """A replay gives all that was received, queued bytes included; caught up, it ends without waiting, for ever."""
    data = os.urandom(2_000_000)
    writer = await subject.store.begin(A, SHA256)
    await writer.write(data[:1_200_001])
    source = writer.replay()
    got = await source.read()
    await writer.write(data[1_200_001:])
    while len(got) < writer.received:
        got += await source.read()
    end = source.read()
    assert end.called
    assert await end == b""
    assert got == data
    await writer.write(b"more")
    assert await source.read() == b""
    assert await drain(writer.replay()) == data + b"more"
    await writer.abandon()


@pytest_twisted.ensureDeferred
async def test_a_replay_goes_on_over_the_finish(subject: Subject) -> None:
    """A replay begun before the blob was finished goes on after it, and a new one can be had."""
    data = os.urandom(2_000_000)
    writer = await subject.store.begin(A, SHA256)
    await writer.write(data)
    source = writer.replay()
    got = await source.read()
    await writer.finish(FILE, 1)
    assert got + await drain(source) == data
    assert await drain(writer.replay()) == data
    closed = writer.replay()
    await closed.read()
    closed.close()
    assert await closed.read() == b""


@pytest_twisted.ensureDeferred
async def test_a_full_disk_refuses_and_leaves_nothing(subject: Subject) -> None:
    """On a full disk nothing is begun, and what was begun ends with `DiskFull` and is gone."""
    writer = await subject.store.begin(A, SHA256)
    await writer.write(b"x" * 300_000)
    subject.fill()
    assert (await subject.store.space()).available_bytes == 0
    with pytest.raises(DiskFull):
        await subject.store.begin(B, SHA256)
    with pytest.raises(DiskFull):  # any of them may be the one that learns it
        for _ in range(8):
            await writer.write(b"x" * 300_000)
        await writer.finish(FILE, 1)
    with pytest.raises(DiskFull):
        await writer.finish(FILE, 1)
    with pytest.raises(NoSuchBlob):
        await subject.store.open(A)
    with pytest.raises(StreamBroken):
        await writer.replay().read()


def copied(pieces: list[bytes]) -> Callable[[bytes | memoryview], object]:
    """Keeps what a piece had in it: its memory is used again."""
    return lambda piece: pieces.append(bytes(piece))


@pytest_twisted.ensureDeferred
async def test_a_blob_is_fed_to_a_function(subject: Subject) -> None:
    """All of it, in order and in pieces of a block at most, and the sidecar at the end; of an empty one there is nothing to give."""
    content = os.urandom(3 * BLOCK + 1000)
    await put(subject.store, A, content)
    pieces: list[bytes] = []
    (sidecar,) = await subject.store.feed([Wanted(attempt=A, take=pieces.append)])
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= BLOCK
    assert sidecar.digest == hashlib.sha256(content).digest()
    await put(subject.store, B, b"")
    (sidecar,) = await subject.store.feed([Wanted(attempt=B, take=lambda piece: pytest.fail("nothing is there"))])
    assert sidecar.size == 0
    assert await subject.store.feed([]) == []


@pytest_twisted.ensureDeferred
async def test_parts_of_a_blob_are_fed(subject: Subject) -> None:
    """Those that are asked for once its size is known, within blocks or across them."""
    content = os.urandom(2 * BLOCK + 10)
    await put(subject.store, A, content)
    pieces: list[bytes] = []
    for checked in (True, False):
        parts = [(1, 5), (BLOCK - 3, BLOCK + 3), (2 * BLOCK + 8, 2 * BLOCK + 10)]
        pieces.clear()
        await subject.store.feed([Wanted(attempt=A, take=copied(pieces), parts=lambda size, parts=parts: parts, checked=checked)])
        assert b"".join(pieces) == content[1:5] + content[BLOCK - 3 : BLOCK + 3] + content[-2:]


@pytest_twisted.ensureDeferred
async def test_feeding_ends_before_a_bad_block(subject: Subject) -> None:
    """What came before it was given; a blob that is not there gives nothing; and those after it are not concerned."""
    content = os.urandom(2 * BLOCK)
    for attempt in (A, C):
        await put(subject.store, attempt, content)
    subject.damage(A, BLOCK + 7)
    pieces: dict[AttemptId, list[bytes]] = {attempt: [] for attempt in (A, B, C)}
    wanted = [Wanted(attempt=attempt, take=pieces[attempt].append) for attempt in (A, B, C)]
    bad, absent, good = await subject.store.feed(wanted)
    assert (type(bad), bad.block, type(absent), good.size) == (CorruptBlock, 1, NoSuchBlob, 2 * BLOCK)
    assert [b"".join(pieces[attempt]) for attempt in (A, B, C)] == [content[:BLOCK], b"", content]


@pytest_twisted.ensureDeferred
async def test_what_is_not_checked_is_fed_as_it_is(subject: Subject) -> None:
    """For those who compare a digest of the whole: rotten bytes are among the others."""
    content = os.urandom(5 * BLOCK + 3)
    await put(subject.store, A, content)
    subject.damage(A, BLOCK + 7)
    pieces: list[bytes] = []
    (sidecar,) = await subject.store.feed([Wanted(attempt=A, take=copied(pieces), checked=False)])
    fed = b"".join(pieces)
    assert sidecar.size == len(fed) == len(content)
    assert [at for at in range(len(fed)) if fed[at] != content[at]] == [BLOCK + 7]
