"""A blob store in memory: the fake that tests of other rooms use, held to the same contract as the one on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, Sidecar, Space, WholeBlob
from securifile.model.errors import BlobExists, CorruptBlock, DiskFull, NoSuchBlob, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.interfaces import IBlobReader, IBlobStore, IBlobWriter, IByteSource
from securifile.node.feeding import UNREADABLE, Fed, Wanted
from securifile.node.sidecars import BLOCK_BYTES, checksum_of, vouched_digest
from securifile.node.sidecars import checksum as checksum_of_block


@attrs.define
class _Blob:
    sidecar: Sidecar
    written: bytes
    """What was finished."""
    stored: bytearray
    """What is there now: differs where a test did damage."""


@implementer(IBlobStore)
class MemoryBlobs:
    """Blobs in a dictionary. Every answer comes at once."""

    def __init__(self, *, capacity_bytes: int = 2**40) -> None:
        self.capacity_bytes = capacity_bytes
        self.quarantined: dict[AttemptId, str] = {}
        """What was set aside, and why."""
        self.settled = 0
        """How often it was asked to settle."""
        self._blobs: dict[AttemptId, _Blob] = {}
        self._writing: dict[AttemptId, MemoryBlobWriter] = {}

    def damage(self, attempt: AttemptId, offset: int) -> None:
        """Let one byte rot."""
        self._blobs[attempt].stored[offset] ^= 0xFF

    def begin(self, attempt: AttemptId, algorithm: DigestAlgorithm, *, vouched: bool = False) -> Deferred[MemoryBlobWriter]:
        """See `IBlobStore`."""
        return defer.execute(self._begin, attempt, algorithm, vouched)

    def _begin(self, attempt: AttemptId, algorithm: DigestAlgorithm, vouched: bool = False) -> MemoryBlobWriter:
        if attempt in self._blobs or attempt in self._writing:
            raise BlobExists(f"blob {attempt} is already here")
        if self.available() <= 0:
            raise DiskFull("no room in memory")
        writer = self._writing[attempt] = MemoryBlobWriter(self, attempt, algorithm, vouched)
        return writer

    def keep(self, blob: WholeBlob) -> Deferred[BlobSummary]:
        """See `IBlobStore`."""
        return Deferred.fromCoroutine(self._keep(blob))

    async def _keep(self, blob: WholeBlob) -> BlobSummary:
        writer = self._begin(blob.attempt, blob.algorithm)
        await writer.write(blob.data)
        return await writer.finish(blob.file, blob.version)

    def open(self, attempt: AttemptId) -> Deferred[MemoryBlobReader]:
        """See `IBlobStore`."""
        return defer.execute(lambda: MemoryBlobReader(self._blob(attempt)))

    def small(self, attempt: AttemptId) -> Deferred[bytes]:
        """See `IBlobStore`."""
        return defer.execute(lambda: MemoryBlobReader(self._blob(attempt)).first())

    def feed(self, wanted: Sequence[Wanted]) -> Deferred[list[Fed]]:
        """See `IBlobStore`."""
        return defer.execute(lambda: [self._feed(one) for one in wanted])

    def _feed(self, wanted: Wanted) -> Fed:
        try:
            blob = self._blob(wanted.attempt)
            reader = MemoryBlobReader(blob)
            for start, stop in wanted.parts(reader.size):
                if wanted.checked:
                    for piece in reader.pieces(start, stop):
                        wanted.take(piece)
                else:
                    wanted.take(bytes(blob.stored[start:stop]))
        except UNREADABLE as error:
            return error
        return blob.sidecar

    def commit(self, attempt: AttemptId, version: int, position: Position) -> Deferred[None]:
        """See `IBlobStore`."""
        return defer.execute(self._commit, attempt, version, position)

    def _commit(self, attempt: AttemptId, version: int, position: Position) -> None:
        blob = self._blob(attempt)
        blob.sidecar = attrs.evolve(blob.sidecar, version=version, committed_at=(position.epoch, position.revision))

    def sidecar(self, attempt: AttemptId) -> Deferred[Sidecar]:
        """See `IBlobStore`."""
        return defer.execute(lambda: self._blob(attempt).sidecar)

    def sidecars(self) -> Deferred[list[Sidecar]]:
        """See `IBlobStore`."""
        return defer.succeed([blob.sidecar for blob in self._blobs.values()])

    def drop(self, attempt: AttemptId) -> Deferred[None]:
        """See `IBlobStore`."""
        self._blobs.pop(attempt, None)
        return defer.succeed(None)

    def quarantine(self, attempt: AttemptId, reason: str) -> Deferred[None]:
        """See `IBlobStore`."""
        if self._blobs.pop(attempt, None) is not None:
            self.quarantined[attempt] = reason
        return defer.succeed(None)

    def settle(self) -> Deferred[None]:
        """See `IBlobStore`: nothing is put off."""
        self.settled += 1
        return defer.succeed(None)

    def quarantined_count(self) -> Deferred[int]:
        """See `IBlobStore`."""
        return defer.succeed(len(self.quarantined))

    def space(self) -> Deferred[Space]:
        """See `IBlobStore`."""
        return defer.succeed(Space(used_bytes=self._used(), available_bytes=max(0, self.available())))

    def available(self) -> int:
        """Room for more, in bytes."""
        return self.capacity_bytes - self._used() - sum(writer.received for writer in self._writing.values())

    def ended(self, attempt: AttemptId, sidecar: Sidecar | None, data: bytes) -> None:
        """A writer is done; with a sidecar there is a blob now."""
        self._writing.pop(attempt, None)
        if sidecar is not None:
            self._blobs[attempt] = _Blob(sidecar, data, bytearray(data))

    def _blob(self, attempt: AttemptId) -> _Blob:
        try:
            return self._blobs[attempt]
        except KeyError:
            raise NoSuchBlob(f"blob {attempt} is not here") from None

    def _used(self) -> int:
        return sum(blob.sidecar.size for blob in self._blobs.values())


@implementer(IBlobWriter)
class MemoryBlobWriter:
    """One blob on its way in."""

    def __init__(self, store: MemoryBlobs, attempt: AttemptId, algorithm: DigestAlgorithm, vouched: bool) -> None:
        self.received = 0
        self.data = bytearray()
        """What was received."""
        self.error: Exception | None = None
        """Why it takes no more, or cannot be finished."""
        self.finished = False
        """Whether it became a blob."""
        self._store = store
        self._attempt = attempt
        self._algorithm = algorithm
        self._vouched = vouched

    def write(self, data: bytes) -> Deferred[None]:
        """See `IBlobWriter`."""
        if self.error is None and self.finished:
            return defer.fail(StreamBroken(f"blob {self._attempt} takes no more"))
        if self.error is None and len(data) > self._store.available():
            self._give_up(DiskFull("no room in memory"))
        if self.error is not None:
            return defer.fail(self.error)
        self.data += data
        self.received += len(data)
        return defer.succeed(None)

    def finish(self, file: EntryId, version: int, sent: BlobSummary | None = None) -> Deferred[BlobSummary]:
        """See `IBlobWriter`."""
        return defer.execute(self._finish, file, version, sent)

    def _finish(self, file: EntryId, version: int, sent: BlobSummary | None) -> BlobSummary:
        if self.error is not None or self.finished:
            raise self.error or StreamBroken(f"blob {self._attempt} has ended already")
        checksum = checksum_of(b"".join(map(checksum_of_block, self._blocks())))
        if self._vouched:
            try:
                digest = vouched_digest(sent, self.received, checksum)
            except StreamBroken as error:
                self._give_up(error)
                raise
        else:
            hasher = self._algorithm.hasher()
            hasher.update(bytes(self.data))
            digest = hasher.digest()
        sidecar = Sidecar(
            attempt=self._attempt,
            file=file.value,
            version=version,
            size=self.received,
            digest=digest,
            algorithm=self._algorithm,
            committed_at=None,
        )
        self.finished = True
        self._store.ended(self._attempt, sidecar, bytes(self.data))
        return BlobSummary(size=sidecar.size, digest=sidecar.digest, checksum=checksum)

    def _blocks(self) -> Iterator[bytes]:
        for start in range(0, self.received, BLOCK_BYTES):
            yield bytes(self.data[start : start + BLOCK_BYTES])

    def abandon(self) -> Deferred[None]:
        """See `IBlobWriter`."""
        if not self.finished and self.error is None:
            self._give_up(StreamBroken(f"blob {self._attempt} was abandoned"))
        return defer.succeed(None)

    def replay(self) -> _MemorySource:
        """See `IBlobWriter`."""
        return _MemorySource(self._piece)

    def _piece(self, at: int) -> bytes:
        if self.error is not None:
            raise StreamBroken(f"blob {self._attempt} was abandoned") from self.error
        return bytes(self.data[at : at + BLOCK_BYTES])

    def _give_up(self, error: Exception) -> None:
        self.error = error
        self._store.ended(self._attempt, None, b"")


@implementer(IBlobReader)
class MemoryBlobReader:
    """An open blob."""

    def __init__(self, blob: _Blob) -> None:
        self.size = blob.sidecar.size
        self._blob = blob
        self._closed = False

    def source(self, start: int, stop: int) -> _MemorySource:
        """See `IBlobReader`."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"[{start}, {stop}) is not within a blob of {self.size} bytes")
        return _MemorySource(lambda at: self._piece(at, stop), start)

    def close(self) -> None:
        """See `IBlobReader`."""
        self._closed = True

    def first(self) -> bytes:
        """What is in the first block."""
        return self._piece(0, self.size)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """What is in a range, block by block."""
        while piece := self._piece(start, stop):
            start += len(piece)
            yield piece

    def _piece(self, at: int, stop: int) -> bytes:
        if self._closed:
            raise StreamBroken("the blob was closed")
        block = at // BLOCK_BYTES
        end = (block + 1) * BLOCK_BYTES
        if at < stop and self._blob.stored[block * BLOCK_BYTES : end] != self._blob.written[block * BLOCK_BYTES : end]:
            attempt = self._blob.sidecar.attempt
            raise CorruptBlock(f"block {block} of blob {attempt} is not what was written", attempt=attempt, block=block)
        return bytes(self._blob.stored[at : min(stop, end)])


@implementer(IByteSource)
class _MemorySource:
    """Pieces that a function gives for an offset, until it gives an empty one."""

    def __init__(self, piece: Callable[[int], bytes], start: int = 0) -> None:
        self._piece = piece
        self._at = start
        self._over = False

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`."""
        return defer.execute(self._read)

    def _read(self) -> bytes:
        if self._over:
            return b""
        data = self._piece(self._at)
        self._at += len(data)
        self._over = not data
        return data

    def close(self) -> None:
        """See `IByteSource`."""
        self._over = True
