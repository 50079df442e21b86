"""A blob on its way from the disk: whole blocks, a mebibyte ahead, and out comes only what its checksum vouches for.

A reader holds the file open, so a blob may be dropped under it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.errors import CorruptBlock, StreamBroken
from securifile.model.interfaces import IBlobReader, IByteSource
from securifile.node.blob_folder import BlobFolder
from securifile.node.descriptors import Descriptor, detached, log_bug
from securifile.node.sidecars import BLOCK_BYTES, SidecarFile

READ_AHEAD_BYTES = 1024 * 1024
"""What one job reads: enough for the disk to be sequential, little enough for a thousand slow readers."""


@implementer(IBlobReader)
class DiskBlobReader:
    """An open blob."""

    def __init__(self, descriptor: Descriptor, loaded: SidecarFile, folder: BlobFolder) -> None:
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
        Deferred.fromCoroutine(self._reader._blocks(start, stop)).addCallbacks(self._arrived, self._failed).addErrback(log_bug)

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
