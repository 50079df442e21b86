"""The blob store of a node: bytes that were promised are there, and bytes that come out are the ones that went in.

Here is the part that lives in the reactor's thread: it keeps order, bounds memory and passes every blocking step
(`blob_folder.py` has them, and says what a crash leaves) to a worker.
Writers and readers: `blob_writing.py`, `blob_reading.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from securifile.batches import Batches
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, Sidecar, Space, WholeBlob
from securifile.model.errors import BlobExists
from securifile.model.ids import AttemptId, Position
from securifile.model.interfaces import IBlobStore, IWorker
from securifile.node.at_hand import SMALL_BYTES_MAX, AtHand
from securifile.node.blob_folder import BlobFolder, Recovery
from securifile.node.blob_reading import DiskBlobReader
from securifile.node.blob_writing import DiskBlobWriter
from securifile.node.descriptors import Descriptor, detached, log_bug
from securifile.node.feeding import Fed, Feeding, Wanted
from securifile.node.files import OS_FILES, Files
from securifile.node.staged_folder import StagedFolder

POURING_MAX = 2
"""Threads of a node that take uploads in at the same time. More are not faster on two cores, and each of them is another that the reactor's
thread waits for before it has the interpreter's lock: heartbeats would be answered late.
"""

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
        shared = Descriptor(descriptor, self._folder, self.worker)
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
            self.settle().addErrback(log_bug).addBoth(self._settled)
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
        return DiskBlobReader(Descriptor(descriptor, self._folder, self.worker), loaded, self._folder)

    def small(self, attempt: AttemptId) -> Deferred[bytes]:
        """See `IBlobStore`. At once when it is at hand, else in one job."""
        data = self._at_hand.read(attempt)
        return detached(self._small(attempt)) if data is None else defer.succeed(data)

    async def _small(self, attempt: AttemptId) -> bytes:
        changes = self._at_hand.changes
        number, loaded, data = await self.worker.do(self._folder.open_small, attempt, SMALL_BYTES_MAX)
        descriptor = Descriptor(number, self._folder, self.worker)
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


def _length(blob: WholeBlob) -> int:
    return len(blob.data)
