"""The blob store of a node: bytes that were promised are there, and bytes that come out are the ones that went in.

Here is the part that lives in the reactor's thread: it keeps order, bounds memory and passes every blocking step
(`blob_folder.py` has them, and says what a crash leaves) to a worker.

A **writer** gathers small chunks, has one job at the worker at a time, and asks its caller to wait when a mebibyte is
queued. Digest and block checksums are computed by the job that writes, so the bytes are touched once while they are warm. Of a blob that
is vouched for by its sender the digest is not computed: the sender's checksum over the block checksums must be the one computed here.

A **reader** reads whole blocks, a mebibyte ahead, and hands out only what its checksum vouches for. It holds the file open, so
a blob may be dropped under it.

Work that was begun is not cancelled with the Deferred that was waiting for it: a descriptor must not be closed under a
thread that reads from it, and a blob half sealed is nobody's. Who cancels only stops listening.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredLock, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.batches import Batches
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, Sidecar, Space, WholeBlob
from securifile.model.errors import BlobExists, CorruptBlock, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.interfaces import IBlobReader, IBlobStore, IBlobWriter, IByteSource, IWorker
from securifile.node.at_hand import SMALL_BYTES_MAX, AtHand
from securifile.node.blob_folder import BlobFolder, Recovery
from securifile.node.feeding import Fed, Feeding, Wanted
from securifile.node.files import OS_FILES, Files
from securifile.node.sidecars import BLOCK_BYTES, BlockChecksums, SidecarFile, checksum_of, vouched_digest
from securifile.node.staged_folder import StagedFolder

T = TypeVar("T")

GATHER_BYTES = 256 * 1024
"""Chunks are gathered to this before they go to the worker: a hop between threads costs as much as writing 64 KiB."""

QUEUE_BYTES_MAX = 1024 * 1024
"""What one writer may hold in memory before its caller has to wait."""

SYNC_STEP_BYTES = 8 * 1024 * 1024
"""After so many the disk begins to write: an fsync of a gigabyte that begins at the end takes half a second, and then everybody waits."""

POURING_MAX = 2
"""Threads of a node that take uploads in at the same time. More are not faster on two cores, and each of them is another that the reactor's
thread waits for before it has the interpreter's lock: heartbeats would be answered late.
"""

READ_AHEAD_BYTES = 1024 * 1024
"""What one job reads: enough for the disk to be sequential, little enough for a thousand slow readers."""

KEEP_MAX = 64
"""Whole blobs that go to the disk in one job, in one file."""
KEEP_BYTES_MAX = 1024 * 1024

NOTE_MAX = 100
"""Commits that are noted in one job: some milliseconds."""

SPACE_FRESH_S = 1.0
"""How old the answer of the file system may be: it goes out with heartbeats, two a second to every server."""

RESERVE_BYTES = 1024 * 1024 * 1024
"""Left free for the index and the audit spool, which are on the same disk."""


@implementer(IBlobStore)
class DiskBlobs:
    """The blobs in one directory. `recover` comes first; no two processes may have the same directory."""

    def __init__(
        self,
        *,
        directory: str,
        worker: IWorker,
        clock: IReactorTime,
        files: Files = OS_FILES,
        reserve_bytes: int = RESERVE_BYTES,
        soon: Callable[[Callable[[], None]], object] = lambda begin: begin(),
    ) -> None:
        """Args:
        soon: calls a function in the reactor's next turn, so that what comes in one turn goes to the disk together; at once if not given.
        """
        self._folder = BlobFolder(directory, files, reserve_bytes)
        self.worker = worker
        self.staged_folder = StagedFolder(self._folder)
        """Where resumable uploads rest until they become blobs."""
        self._at_hand = AtHand(files)
        self._pouring = DeferredSemaphore(POURING_MAX)
        self._clock = clock
        self._writing: set[AttemptId] = set()
        self._keeping: Batches[WholeBlob, BlobSummary] = Batches(
            self._keep_all, size=_length, items_max=KEEP_MAX, bytes_max=KEEP_BYTES_MAX, soon=soon
        )
        self._noting: Batches[tuple[AttemptId, int, Position], None] = Batches(
            lambda notes: worker.do(self._folder.note_commits, notes), size=lambda _: 0, items_max=NOTE_MAX, bytes_max=0, soon=soon
        )
        self._on_their_way: dict[AttemptId, list[Deferred[None]]] = {}
        """Whole blobs that are being kept, and who waits until they are."""
        self._settling = False
        self._used_bytes = 0
        self._available: tuple[float, int] | None = None
        self.on_leaving: Callable[[], None] = lambda: None
        """Told that a blob is dropped or set aside."""

    def recover(self) -> Deferred[Recovery]:
        """Make the directories, clear up what a crash left, count. Everything else waits for this."""
        return detached(self._recover())

    async def _recover(self) -> Recovery:
        recovery: Recovery = await self.worker.do(self._folder.recover)
        self._used_bytes = recovery.used_bytes
        return recovery

    def begin(self, attempt: AttemptId, algorithm: DigestAlgorithm, *, vouched: bool = False) -> Deferred[DiskBlobWriter]:
        """See `IBlobStore`. Refused already when the reserve is touched."""
        return detached(self._begin(attempt, algorithm, vouched), unwanted=lambda writer: writer.abandon())

    async def _begin(self, attempt: AttemptId, algorithm: DigestAlgorithm, vouched: bool) -> DiskBlobWriter:
        if attempt in self._writing:
            raise BlobExists(f"blob {attempt} is already being written")
        self._writing.add(attempt)
        try:
            descriptor = await self.worker.do(self._folder.create, attempt)
        except BaseException:
            self._writing.discard(attempt)
            raise
        shared = _Descriptor(descriptor, self._folder, self.worker)
        return DiskBlobWriter(attempt, algorithm, vouched, shared, self._folder, self.worker, self._ended, self._pouring)

    def _ended(self, attempt: AttemptId, size: int) -> None:
        self._writing.discard(attempt)
        self._used_bytes += size

    def keep(self, blob: WholeBlob) -> Deferred[BlobSummary]:
        """See `IBlobStore`. Those that come while others are on their way to the disk go there together."""
        return detached(self._keep(blob))

    async def _keep(self, blob: WholeBlob) -> BlobSummary:
        if blob.attempt in self._writing:
            raise BlobExists(f"blob {blob.attempt} is already being written")
        self._writing.add(blob.attempt)
        waiting = self._on_their_way[blob.attempt] = []
        size = 0
        try:
            summary = await self._keeping.do(blob)
            size = summary.size
            return summary
        finally:
            self._ended(blob.attempt, size)
            del self._on_their_way[blob.attempt]
            for one in waiting:
                one.callback(None)

    def _keep_all(self, blobs: Sequence[WholeBlob]) -> Deferred[Sequence[BlobSummary | Exception]]:
        if self._folder.packs.wants_settling and not self._settling:
            self._settling = True
            # What fails stays as it is until the next start.
            self.settle().addErrback(_log_bug).addBoth(self._settled)
        return self.worker.do(self._folder.keep_all, blobs)

    def _settled(self, _: object) -> None:
        self._settling = False

    def settle(self) -> Deferred[None]:
        """See `IBlobStore`."""
        return self.worker.do(self._folder.packs.settle)

    async def _until_arrived(self, attempt: AttemptId) -> None:
        """Wait until it is not on its way to the disk any more: who has it leave means all of it."""
        if attempt in self._on_their_way:
            arrived: Deferred[None] = Deferred()
            self._on_their_way[attempt].append(arrived)
            await arrived

    def adopted(self, size: int) -> None:
        """A resumable upload of that size has become a blob."""
        self._used_bytes += size

    def open(self, attempt: AttemptId) -> Deferred[DiskBlobReader]:
        """See `IBlobStore`. Raises `CorruptBlock` too, when the sidecar is damaged."""
        return detached(self._open(attempt), unwanted=lambda reader: reader.close())

    async def _open(self, attempt: AttemptId) -> DiskBlobReader:
        descriptor, loaded = await self.worker.do(self._folder.open, attempt)
        return DiskBlobReader(_Descriptor(descriptor, self._folder, self.worker), loaded, self._folder)

    def small(self, attempt: AttemptId) -> Deferred[bytes]:
        """See `IBlobStore`. At once when it is at hand, else in one job."""
        data = self._at_hand.read(attempt)
        return detached(self._small(attempt)) if data is None else defer.succeed(data)

    async def _small(self, attempt: AttemptId) -> bytes:
        changes = self._at_hand.changes
        number, loaded, data = await self.worker.do(self._folder.open_small, attempt, SMALL_BYTES_MAX)
        descriptor = _Descriptor(number, self._folder, self.worker)
        if changes == self._at_hand.changes and loaded.sidecar.size <= SMALL_BYTES_MAX:
            self._at_hand.keep(attempt, number, loaded, descriptor.release)
        else:
            descriptor.release()
        return data

    def close_small(self) -> None:
        """Close the files that are kept open for `small`: their blobs may have left, by another process."""
        self._at_hand.close_all()

    def feed(self, wanted: Sequence[Wanted]) -> Deferred[list[Fed]]:
        """See `IBlobStore`."""
        return Deferred.fromCoroutine(self._feed(Feeding(self._folder, wanted)))

    async def _feed(self, feeding: Feeding) -> list[Fed]:
        try:
            while not await self.worker.do(feeding.step):
                pass
            return feeding.fed
        finally:
            feeding.give_up()

    def commit(self, attempt: AttemptId, version: int, position: Position) -> Deferred[None]:
        """See `IBlobStore`. Not fsynced: the catalogue knows."""
        return self._noting.do((attempt, version, position))

    def sidecar(self, attempt: AttemptId) -> Deferred[Sidecar]:
        """See `IBlobStore`. Raises `CorruptBlock` too."""
        return self.worker.do(self._folder.sidecar, attempt).addCallback(lambda loaded: loaded.sidecar)

    def sidecars(self) -> Deferred[list[Sidecar]]:
        """See `IBlobStore`."""
        return self.worker.do(self._folder.sidecars)

    def drop(self, attempt: AttemptId) -> Deferred[None]:
        """See `IBlobStore`."""
        return detached(self._leave(attempt, self._folder.remove))

    def quarantine(self, attempt: AttemptId, reason: str) -> Deferred[None]:
        """See `IBlobStore`."""
        return detached(self._leave(attempt, self._folder.set_aside, reason))

    def quarantined_count(self) -> Deferred[int]:
        """See `IBlobStore`."""
        return self.worker.do(self._folder.quarantined_count)

    async def _leave(self, attempt: AttemptId, step: Callable[..., int], *arguments: Any) -> None:
        await self._until_arrived(attempt)
        self._at_hand.leaving(attempt)
        try:
            self._used_bytes -= await self.worker.do(step, attempt, *arguments)
        finally:
            # Who opened it in the meantime must not keep it either.
            self._at_hand.leaving(attempt)
            self.on_leaving()
        self._available = None

    def space(self) -> Deferred[Space]:
        """See `IBlobStore`. At most a second old."""
        return detached(self._space())

    async def _space(self) -> Space:
        if self._available is None or self._clock.seconds() - self._available[0] >= SPACE_FRESH_S:
            self._available = (self._clock.seconds(), await self.worker.do(self._folder.available_bytes))
        return Space(used_bytes=self._used_bytes, available_bytes=self._available[1])


@implementer(IBlobWriter)
class DiskBlobWriter:
    """One blob on its way to the disk."""

    def __init__(
        self,
        attempt: AttemptId,
        algorithm: DigestAlgorithm,
        vouched: bool,
        descriptor: _Descriptor,
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
            return DiskBlobReader(_Descriptor(number, self._folder, self._worker), loaded, self._folder)
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


@implementer(IBlobReader)
class DiskBlobReader:
    """An open blob."""

    def __init__(self, descriptor: _Descriptor, loaded: SidecarFile, folder: BlobFolder) -> None:
        self.size = loaded.sidecar.size
        self._descriptor = descriptor
        self._loaded = loaded
        self._folder = folder
        self._closed = False

    def source(self, start: int, stop: int) -> CheckedSource:
        """See `IBlobReader`. Ends when the reader is closed."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"[{start}, {stop}) is not within a blob of {self.size} bytes")
        return CheckedSource(self, start, stop)

    def close(self) -> None:
        """See `IBlobReader`."""
        if not self._closed:
            self._closed = True
            self._descriptor.release()

    async def _blocks(self, start: int, stop: int) -> tuple[list[bytes], CorruptBlock | None]:
        if self._closed:
            raise StreamBroken(f"blob {self._loaded.sidecar.attempt} was closed")
        return await self._descriptor.use(self._folder.blocks, self._loaded, start, stop)

    async def _pour(
        self, pieces: deque[bytes], start: int, stop: int, take: Callable[[bytes], bool], bytes_max: int
    ) -> tuple[int, CorruptBlock | None]:
        if self._closed:
            raise StreamBroken(f"blob {self._loaded.sidecar.attempt} was closed")
        return await self._descriptor.use(self._folder.pour, self._loaded, pieces, start, stop, take, bytes_max)


@implementer(IByteSource)
class CheckedSource:
    """A range of a blob in pieces of at most a block; the next job runs while the last piece of the one before is on its way."""

    def __init__(self, reader: DiskBlobReader, start: int, stop: int) -> None:
        self._reader = reader
        self._ahead = start
        """Up to here jobs have been begun."""
        self._stop = stop
        self._busy = False
        self._pieces: deque[bytes] = deque()
        self._error: BaseException | None = None
        self._caller: Deferred[bytes] | None = None
        self._ahead_is_read: Deferred[None] | None = None
        self._closed = False

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`. Raises `CorruptBlock` in the place of the first bad block; the good ones before it came out."""
        assert self._caller is None, "one read at a time"
        caller: Deferred[bytes] = Deferred(self._forget)
        self._caller = caller
        self._answer()
        return caller

    def pour(self, take: Callable[[bytes], bool], bytes_max: int) -> Deferred[None]:
        """Have the worker's thread give what comes next to `take`, piece by piece, until that wants no more or raises `StreamBroken`
        (the piece was not taken then), or about `bytes_max` were given. What was not given comes out of the next `read`.

        Raises:
            CorruptBlock: in its place; the good ones before it were given.
        """
        assert self._caller is None, "one read at a time"
        return detached(self._pour(take, bytes_max))

    async def _pour(self, take: Callable[[bytes], bool], bytes_max: int) -> None:
        while self._busy:
            ahead = self._ahead_is_read = Deferred()
            await ahead
        if self._error is not None and not self._pieces:
            raise self._error
        if self._closed:
            return
        self._busy = True
        pieces, self._pieces = self._pieces, deque()
        error: Exception | None
        try:
            self._ahead, error = await self._reader._pour(pieces, self._ahead, self._stop, take, bytes_max)
        except Exception as problem:  # whatever the disk says is for the reader to hear
            error = problem
        finally:
            self._busy = False
            if not self._closed:
                self._pieces = pieces
        self._error = self._error or error
        if self._caller is not None:  # who gave up waiting for this, and reads again
            self._answer()
        elif self._error is not None and not pieces:
            raise self._error

    def close(self) -> None:
        """See `IByteSource`."""
        self._closed = True
        self._pieces.clear()
        self._answer()

    def _forget(self, caller: Deferred[bytes]) -> None:
        self._caller = None

    def _answer(self) -> None:
        if not self._pieces and not self._over():
            self._look_ahead()
        if self._caller is None or not (self._pieces or self._over()):
            return
        caller, self._caller = self._caller, None
        if self._pieces:
            piece = self._pieces.popleft()
            if not self._pieces:
                self._look_ahead()
            caller.callback(piece)
        elif self._error is not None:
            caller.errback(self._error)
        else:
            caller.callback(b"")

    def _over(self) -> bool:
        return self._closed or self._error is not None or (self._ahead >= self._stop and not self._busy)

    def _look_ahead(self) -> None:
        if self._busy or self._closed or self._error is not None or self._ahead >= self._stop:
            return
        start = self._ahead
        # To the end of a block, so that no block is read and checked twice.
        stop = self._ahead = min(self._stop, (start // BLOCK_BYTES) * BLOCK_BYTES + READ_AHEAD_BYTES)
        self._busy = True
        Deferred.fromCoroutine(self._reader._blocks(start, stop)).addCallbacks(self._arrived, self._failed).addErrback(_log_bug)

    def _arrived(self, result: tuple[list[bytes], CorruptBlock | None]) -> None:
        self._busy = False
        pieces, self._error = result
        if not self._closed:
            self._pieces.extend(pieces)
        self._ended_job()

    def _failed(self, failure: Failure) -> None:
        self._busy = False
        self._error = failure.value
        self._ended_job()

    def _ended_job(self) -> None:
        if self._ahead_is_read is not None:
            waiting, self._ahead_is_read = self._ahead_is_read, None
            waiting.callback(None)
        else:
            self._answer()


class _Descriptor:
    """An open file that several jobs may use; closed after its owner has released it and the last job is over."""

    def __init__(self, number: int, folder: BlobFolder, worker: IWorker) -> None:
        self.number = number
        self._folder = folder
        self._worker = worker
        self._users = 1

    async def use(self, step: Callable[..., T], *arguments: Any) -> T:
        """Run `step(number, *arguments)` at the worker."""
        assert self._users > 0, "it was closed"
        self._users += 1
        try:
            return await self._worker.do(step, self.number, *arguments)
        finally:
            self.release()

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if not self._users:
            # At the worker, because closing a file that was removed frees its room, and that takes time.
            self._worker.do(self._folder.files.close, self.number).addErrback(_log_bug)


_log = Logger()


def _length(blob: WholeBlob) -> int:
    return len(blob.data)


def _log_bug(failure: Failure) -> None:
    _log.failure("the blob store failed where nobody was waiting", failure)


def detached(work: Coroutine[Any, Any, T], unwanted: Callable[[T], object] = lambda result: None) -> Deferred[T]:
    """A Deferred for the result of `work`, which goes on when the Deferred is cancelled; its result is then `unwanted`."""
    caller: Deferred[T] = Deferred()

    def done(result: T) -> None:
        if caller.called:
            unwanted(result)
        else:
            caller.callback(result)

    def failed(failure: Failure) -> None:
        if not caller.called:
            caller.errback(failure)

    Deferred.fromCoroutine(work).addCallbacks(done, failed).addErrback(_log_bug)
    return caller
