"""A blob on its way to the disk.

A writer gathers small chunks, has one job at the worker at a time, and asks its caller to wait when a mebibyte is
queued. Digest and block checksums are computed by the job that writes, so the bytes are touched once while they are warm. Of a blob that
is vouched for by its sender the digest is not computed: the sender's checksum over the block checksums must be the one computed here.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredLock, DeferredSemaphore
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, Sidecar
from securifile.model.errors import StreamBroken
from securifile.model.ids import AttemptId, EntryId
from securifile.model.interfaces import IBlobWriter, IByteSource, IWorker
from securifile.node.blob_folder import BlobFolder
from securifile.node.blob_reading import CheckedSource, DiskBlobReader
from securifile.node.descriptors import Descriptor, detached
from securifile.node.sidecars import BLOCK_BYTES, BlockChecksums, checksum_of, vouched_digest
from securifile.workers import without_interrupting

GATHER_BYTES = 256 * 1024
"""Chunks are gathered to this before they go to the worker: a hop between threads costs as much as writing 64 KiB."""

QUEUE_BYTES_MAX = 1024 * 1024
"""What one writer may hold in memory before its caller has to wait."""

SYNC_STEP_BYTES = 8 * 1024 * 1024
"""After so many the disk begins to write: an fsync of a gigabyte that begins at the end takes half a second, and then everybody waits."""


@implementer(IBlobWriter)
class DiskBlobWriter:
    """One blob on its way to the disk."""

    def __init__(
        self,
        attempt: AttemptId,
        algorithm: DigestAlgorithm,
        vouched: bool,
        descriptor: Descriptor,
        folder: BlobFolder,
        worker: IWorker,
        ended: Callable[[AttemptId, int], None],
        pouring: DeferredSemaphore,
    ) -> None:
        self.received = 0
        self._attempt = attempt
        self._algorithm = algorithm
        self._descriptor = descriptor
        self._folder = folder
        self._worker = worker
        self._ended = ended
        self._pouring = pouring
        self._hasher = None if vouched else algorithm.hasher()
        self._checksums = BlockChecksums()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._written = 0
        self._sync_begun = 0
        self._busy = False
        self._taking = True
        self._finished = False
        self._discarded = False
        self._error: BaseException | None = None
        self._job_over: list[Deferred[None]] = []
        self._ending = DeferredLock()

    def write(self, data: bytes) -> Deferred[None]:
        """See `IBlobWriter`."""
        if self._error is not None:
            return defer.fail(self._error)
        if not self._taking:
            return defer.fail(StreamBroken(f"blob {self._attempt} takes no more"))
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        self.received += len(data)
        if self._gathered_bytes >= GATHER_BYTES:
            self._begin_job()
        if self.received - self._written <= QUEUE_BYTES_MAX:
            return defer.succeed(None)
        return detached(self._until_written(self.received - QUEUE_BYTES_MAX))

    def pour(self, receive: Callable[[], memoryview]) -> Deferred[None]:
        """Have a worker's thread append what `receive` gives, piece by piece, until that is nothing; the memory of a piece is not kept.
        Raises as `write` does.
        """
        if self._error is not None:
            return defer.fail(self._error)
        if not self._taking:
            return defer.fail(StreamBroken(f"blob {self._attempt} takes no more"))
        return detached(self._pour(receive))

    async def _pour(self, receive: Callable[[], memoryview]) -> None:
        while self._busy:
            await self._end_of_job()
        if self._error is not None:
            raise self._error
        if not self._taking:
            raise StreamBroken(f"blob {self._attempt} takes no more")
        gathered = self._take_gathered()
        self._busy = True
        result: int | Failure
        try:
            async with self._pouring:
                result = await self._worker.do(self._fill, gathered, receive, self._written)
            self.received += result - len(gathered)
        except Exception:
            result = Failure()
        self._end_job(result)
        if isinstance(result, Failure):
            result.raiseException()

    def others_wait(self) -> bool:
        """Whether another writer wants a thread to pour, and all that may are taken. Any thread may ask."""
        return bool(self._pouring.waiting)

    def _fill(self, gathered: bytes, receive: Callable[[], memoryview], offset: int) -> int:
        """In the worker."""
        with without_interrupting():
            filled = self._append(gathered, offset) if gathered else 0
            while piece := receive():
                filled += self._append(piece, offset + filled)
        return filled

    def finish(self, file: EntryId, version: int, sent: BlobSummary | None = None) -> Deferred[BlobSummary]:
        """See `IBlobWriter`. Whatever goes wrong, the blob is abandoned: no second try of an fsync."""
        self._taking = False
        return detached(self._finish(file, version, sent))

    async def _finish(self, file: EntryId, version: int, sent: BlobSummary | None) -> BlobSummary:
        async with self._ending:
            if self._finished or self._discarded:
                raise self._error or StreamBroken(f"blob {self._attempt} has ended already")
            try:
                await self._until_written(self.received)
                checksums = self._checksums.digest()
                checksum = checksum_of(checksums)
                sidecar = Sidecar(
                    attempt=self._attempt,
                    file=file.value,
                    version=version,
                    size=self.received,
                    digest=vouched_digest(sent, self.received, checksum) if self._hasher is None else self._hasher.digest(),
                    algorithm=self._algorithm,
                    committed_at=None,
                )
                await self._worker.do(self._folder.seal, self._descriptor.number, sidecar, checksums)
            except Exception as error:
                self._error = self._error or error
                await self._discard()
                raise
            self._finished = True
            self._descriptor.release()
            self._ended(self._attempt, sidecar.size)
            return BlobSummary(size=sidecar.size, digest=sidecar.digest, checksum=checksum)

    def abandon(self) -> Deferred[None]:
        """See `IBlobWriter`."""
        self._taking = False
        return detached(self._abandon())

    async def _abandon(self) -> None:
        async with self._ending:
            if not self._finished and not self._discarded:
                await self._discard()

    async def _discard(self) -> None:
        while self._busy:
            await self._end_of_job()
        self._gathered.clear()
        self._discarded = True
        await self._worker.do(self._folder.discard, self._attempt)
        self._descriptor.release()
        self._ended(self._attempt, 0)

    def replay(self) -> _Replay:
        """See `IBlobWriter`."""
        return _Replay(self)

    # --- what a replay needs ---

    def caught_up(self, offset: int) -> bool:
        """Whether nothing was received after `offset`."""
        return offset >= self.received and not self._discarded

    async def read_back(self, offset: int) -> bytes | DiskBlobReader:
        """A piece from `offset`; or, once it is finished, the blob itself for reading the rest."""
        try:
            await self._until_written(offset + 1)
        except Exception as error:
            raise StreamBroken(f"blob {self._attempt} was given up") from error
        if self._discarded:
            raise StreamBroken(f"blob {self._attempt} was abandoned")
        if self._finished:
            number, loaded = await self._worker.do(self._folder.open, self._attempt)
            return DiskBlobReader(Descriptor(number, self._folder, self._worker), loaded, self._folder)
        return await self._descriptor.use(self._folder.files.read, min(BLOCK_BYTES, self._written - offset), offset)

    # --- jobs ---

    def _begin_job(self) -> None:
        if self._busy or not self._gathered:
            return
        data = self._take_gathered()
        self._busy = True
        self._worker.do(self._append, data, self._written).addBoth(self._end_job)

    def _take_gathered(self) -> bytes:
        data = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        self._gathered = []
        self._gathered_bytes = 0
        return data

    def _append(self, data: bytes | memoryview, offset: int) -> int:
        """In the worker."""
        self._folder.append(self._descriptor.number, data, offset)
        if self._hasher is not None:
            self._hasher.update(data)
        self._checksums.update(data)
        end = offset + len(data)
        if end - self._sync_begun >= SYNC_STEP_BYTES:
            self._folder.files.begin_sync(self._descriptor.number, end - self._sync_begun, self._sync_begun)
            self._sync_begun = end
        return len(data)

    def _end_job(self, result: Failure | int) -> None:
        self._busy = False
        if isinstance(result, Failure):
            self._error = result.value
            self._gathered = []
            self.abandon()
        else:
            self._written += result
            if self._gathered_bytes >= GATHER_BYTES:
                self._begin_job()
        waiting, self._job_over = self._job_over, []
        for deferred in waiting:
            deferred.callback(None)

    def _end_of_job(self) -> Deferred[None]:
        deferred: Deferred[None] = Deferred()
        self._job_over.append(deferred)
        return deferred

    async def _until_written(self, count: int) -> None:
        """Wait until the file has the first `count` bytes. Raises what went wrong on the way."""
        while self._written < count:
            if self._error is not None:
                raise self._error
            if self._discarded:
                raise StreamBroken(f"blob {self._attempt} was abandoned")
            self._begin_job()
            if self._busy:
                await self._end_of_job()
        if self._error is not None:
            raise self._error


@implementer(IByteSource)
class _Replay:
    """What a writer has received so far: from its file while it writes, and from the finished blob after that."""

    def __init__(self, writer: DiskBlobWriter) -> None:
        self._writer = writer
        self._at = 0
        self._over = False
        self._blob: DiskBlobReader | None = None
        self._rest: CheckedSource | None = None

    def read(self) -> Deferred[bytes]:
        """See `IByteSource` and `IBlobWriter.replay`."""
        if self._over or self._writer.caught_up(self._at):
            self.close()
            return defer.succeed(b"")
        return detached(self._read())

    async def _read(self) -> bytes:
        if self._rest is None:
            back = await self._writer.read_back(self._at)
            if isinstance(back, bytes):
                self._at += len(back)
                return back
            self._blob = back
            self._rest = back.source(self._at, back.size)
            if self._over:  # closed meanwhile
                self.close()
        data = await self._rest.read()
        self._at += len(data)
        return data

    def close(self) -> None:
        """See `IByteSource`."""
        self._over = True
        if self._rest is not None:
            self._rest.close()
        if self._blob is not None:
            self._blob.close()
