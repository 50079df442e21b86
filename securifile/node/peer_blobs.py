"""Blobs for peers: what a node takes from an upload's origin, and gives to whoever relays or repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import DeferredList
from twisted.python.failure import Failure

from securifile.model.entries import WHOLE_BYTES_MAX, BlobSummary, WholeBlob
from securifile.model.errors import BlobExists, Code, CorruptBlock, DiskFull, NoSuchBlob, Refusal, StreamBroken
from securifile.model.ids import AttemptId
from securifile.node.bursts import take_in_bursts
from securifile.node.staged import StagedUploads
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.messages import AppendBlob, BlobAppended, BlobFollows, BlobSent, BlobStored, FetchBlob, StoreBlob


class PeerBlobs:
    """The `BulkHandlers` of a node."""

    def __init__(self, blobs: Any, staged: StagedUploads, suspect: Callable[[AttemptId, str], None]) -> None:
        """Args:
        suspect: told of a blob in which a bad block was found, and what was found.
        """
        self._blobs = blobs
        self._staged = staged
        self._suspect = suspect

    async def store(self, peer: PeerIdentity, request: StoreBlob, source: Any) -> BlobStored:
        """Take a replica; answered when it is durable. Raises `Refusal` when there is no room, at once where the size is known."""
        space = await self._blobs.space()
        if request.size is not None and request.size > space.available_bytes:
            raise Refusal(Code.DISK_FULL, f"{request.size} bytes do not fit: {space.available_bytes} are available.")
        try:
            writer = await self._blobs.begin(request.attempt, request.algorithm, vouched=request.vouched)
        except (DiskFull, BlobExists) as error:
            raise _refusal(error) from error
        try:
            while data := await source.read():
                await writer.write(data)
                await take_in_bursts(source, writer)
            summary = await writer.finish(request.file, request.version, _sent(source) if request.vouched else None)
        except DiskFull as error:
            raise _refusal(error) from error
        except BaseException:
            await writer.abandon()
            raise
        return BlobStored(size=summary.size, digest=summary.digest, checksum=summary.checksum)

    async def store_all(self, peer: PeerIdentity, blobs: Sequence[WholeBlob]) -> Sequence[BlobStored | Exception]:
        """Take replicas that are small; answered when all of them are durable, or have failed."""
        space = await self._blobs.space()
        if sum(len(blob.data) for blob in blobs) > space.available_bytes:
            raise Refusal(Code.DISK_FULL, f"They do not fit: {space.available_bytes} bytes are available.")
        if max((len(blob.data) for blob in blobs), default=0) > WHOLE_BYTES_MAX:
            raise Refusal(Code.BAD_REQUEST, f"A blob of more than {WHOLE_BYTES_MAX} bytes comes as a stream.")
        keeping = [self._blobs.keep(blob) for blob in blobs]
        ended: Sequence[tuple[bool, Any]] = await DeferredList(keeping, consumeErrors=True)
        return [BlobStored(size=end.size, digest=end.digest) if kept else _refusal(end.value) for kept, end in ended]

    async def fetch(self, peer: PeerIdentity, request: FetchBlob) -> tuple[BlobFollows, Any]:
        """Give a blob, or a part of it. Every block is checked; a rotten one breaks the stream."""
        try:
            reader = await self._blobs.open(request.attempt)
        except NoSuchBlob:
            return await self._fetch_staged(request)
        except CorruptBlock as error:
            self._suspect(request.attempt, str(error))
            raise Refusal(Code.NOT_FOUND, f"the blob {request.attempt} is damaged here") from error
        stop = reader.size if request.stop is None else min(request.stop, reader.size)
        start = min(request.start, stop)
        given = _Given(reader, reader.source(start, stop), lambda why: self._suspect(request.attempt, why))
        return BlobFollows(size=reader.size), given

    async def _fetch_staged(self, request: FetchBlob) -> tuple[BlobFollows, Any]:
        """What is certain of an upload that has not become a blob yet."""
        try:
            size, source = await self._staged.read(request.attempt, request.start, request.stop)
        except NoSuchBlob as error:
            raise Refusal(Code.NOT_FOUND, f"there is no blob {request.attempt} here") from error
        return BlobFollows(size=size), source

    async def append(self, peer: PeerIdentity, request: AppendBlob, source: Any) -> BlobAppended:
        """Take a part of a resumable upload; answered when it is durable. What has come before the stream broke is kept."""
        append = await self._staged.begin(request.upload, request.offset, length=request.length, checked=request.checked)
        try:
            while data := await source.read():
                await append.write(data)
            return BlobAppended(offset=await append.finish())
        except BaseException:
            await append.abort()
            raise


def _sent(source: Any) -> BlobSummary | None:
    """What the sender of a stream that has ended says that it sent."""
    sent = source.sent
    return BlobSummary(size=sent.size, digest=sent.digest, checksum=sent.checksum) if isinstance(sent, BlobSent) else None


def _refusal(error: Exception) -> Exception:
    """How a blob that could not be stored is refused."""
    if isinstance(error, DiskFull | BlobExists):
        return Refusal(Code.DISK_FULL if isinstance(error, DiskFull) else Code.EXISTS, str(error))
    return error


class _Given:
    """A source that closes its reader with itself, and tells of a bad block; with it the stream is broken."""

    def __init__(self, reader: Any, source: Any, bad: Callable[[str], None]) -> None:
        self._reader = reader
        self._source = source
        self._bad = bad

    def read(self) -> Any:
        """See `IByteSource`."""
        return self._source.read().addErrback(self._failed)

    def pour(self, take: Callable[[bytes], bool], bytes_max: int) -> Any:
        """See `CheckedSource.pour`."""
        return self._source.pour(take, bytes_max).addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        if not failure.check(CorruptBlock):
            return failure
        self._bad(str(failure.value))
        # For the peer it is a stream that broke off, not a bug of this node.
        return Failure(StreamBroken(str(failure.value)))

    def close(self) -> None:
        """See `IByteSource`."""
        self._source.close()
        self._reader.close()
