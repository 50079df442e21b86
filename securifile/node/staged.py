"""Resumable uploads on one holder: taking their bytes, telling how far they are, sealing them.

One thing at a time happens to an upload, and **the newest wins**: whoever looks at it or wants to append ends the append that is
under way. A client that comes again has given up the connection it had before, whether its server has noticed or not.
What an ended append had written is kept and noted, so nothing is sent again that has arrived.

The blocking steps are in `staged_folder.py`; `docs/decisions/0015-resumable-uploads.md` says why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from securifile.model.entries import BlobSummary, Sidecar, Space
from securifile.model.errors import Code, CorruptBlock, DiskFull, NoSuchBlob, Refusal, StreamBroken
from securifile.model.facts import Fact, File
from securifile.model.ids import AttemptId, EntryId
from securifile.model.interfaces import IByteSource, IWorker
from securifile.model.settings import ClusterSettings
from securifile.model.staged import Note, StagedUpload
from securifile.node.descriptors import detached
from securifile.node.staged_folder import Found, StagedFile, StagedFolder

T = TypeVar("T")

NOTE_BYTES = 64 * 1024 * 1024
"""How much may come before it is fsynced and noted, in the middle of a stream: what a killed process loses at most."""

GATHER_BYTES = 256 * 1024
"""Chunks are gathered to this before they go to the worker, as for any blob."""

REST_S = 60.0
"""How long a file stays open after an append: the next chunk comes soon, or in hours; opening reads all there is."""

COMMITTED_KEPT_S = 3600.0
"""How long an upload is known after it became a version: for who lost the answer; and many small ones must not pile up."""

EXPIRE_S = 60.0
"""How often is looked for what has expired."""


def unknown(attempt: AttemptId) -> Refusal:
    """The refusal when this holder has no such upload."""
    return Refusal(Code.NOT_FOUND, f"there is no upload {attempt} here")


@attrs.define(eq=False)
class _Upload:
    """What rests here of one upload."""

    upload: StagedUpload
    note: Note
    sealed: bool
    file: StagedFile | None = None
    """While it is open."""
    append: Append | None = None
    """The one under way."""
    turn: DeferredLock = attrs.Factory(DeferredLock)
    closing: IDelayedCall | None = None
    committed_at: float | None = None
    """Wall clock at which this node heard that it became a version."""

    def expires_at(self) -> float:
        """When it may be forgotten: wall clock."""
        return self.note.expires_at if self.committed_at is None else self.committed_at + COMMITTED_KEPT_S


class StagedUploads:
    """All of one holder. `recover` comes first."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        blobs: Any,
        settings: Callable[[], ClusterSettings],
    ) -> None:
        """Args:
        blobs: the `DiskBlobs` that sealed uploads become blobs of.
        """
        self._clock = clock
        self._wall = wall
        self._blobs = blobs
        self._settings = settings
        self._folder: StagedFolder = blobs.staged_folder
        self._worker: IWorker = blobs.worker
        self._uploads: dict[AttemptId, _Upload] = {}
        self._running: Deferred[None] = succeed(None)

    async def recover(self) -> None:
        """Find what rests here."""
        found: list[Found] = await self._worker.do(self._folder.recover)
        self._uploads = {one.upload.attempt: _Upload(one.upload, one.note, one.sealed) for one in found}

    def start(self) -> None:
        """Drop what has expired, from now on."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._stopped)

    async def stop(self) -> None:
        """Note what has come, and close the files."""
        self._running.cancel()
        for one in list(self._uploads.values()):
            async with self._alone(one):
                await self._close(one)

    def learn(self, fact: Fact) -> None:
        """Note which uploads became versions."""
        if isinstance(fact, File) and (one := self._uploads.get(fact.version.attempt)) is not None and one.committed_at is None:
            one.committed_at = self._wall()

    # --- looking ---

    def has(self, attempt: AttemptId) -> bool:
        """Whether it rests here, sealed or not."""
        return attempt in self._uploads

    def open_ones(self, person: str) -> int:
        """How many unfinished uploads of a person rest here."""
        return sum(one.upload.person == person and not one.sealed for one in self._uploads.values())

    def look(self, attempt: AttemptId, person: str) -> Deferred[Found | None]:
        """How far it is; ends an append that is under way. None: that person has no such upload here."""
        return detached(self._look(attempt, person))

    async def _look(self, attempt: AttemptId, person: str) -> Found | None:
        one = self._uploads.get(attempt)
        if one is None or one.upload.person != person:
            return None
        async with self._alone(one):
            if attempt not in self._uploads:
                return None
            return Found(upload=one.upload, note=one.note, sealed=one.sealed)

    # --- taking bytes ---

    def begin(self, upload: StagedUpload, offset: int, *, length: int | None, checked: bool) -> Deferred[Append]:
        """Take bytes from `offset` on; what is here already of them is passed over.

        Args:
            upload: as it was created; makes one if it is not here yet and `offset` is 0.
            length: of the whole, if it is known by now.
            checked: there is a checksum for what comes: nothing of it counts before `finish`.

        Raises:
            Refusal: NOT_FOUND; CONFLICT when there is less here than `offset`, or it is sealed; DISK_FULL; TOO_MANY_REQUESTS.
        """
        return detached(self._begin(upload, offset, length, checked), unwanted=lambda append: append.abort())

    async def _begin(self, upload: StagedUpload, offset: int, length: int | None, checked: bool) -> Append:
        one = self._uploads.get(upload.attempt)
        if one is None:
            if offset:
                raise unknown(upload.attempt)
            one = await self._create(upload)
        async with self._alone(one):
            if self._uploads.get(upload.attempt) is not one:
                raise unknown(upload.attempt)
            if one.sealed or one.note.offset < offset:
                state = "sealed" if one.sealed else f"at {one.note.offset}"
                raise Refusal(Code.CONFLICT, f"the upload {upload.attempt} is {state} here, not at {offset}", offset=one.note.offset)
            file = await self._opened(one)
            known = one.note.length if length is None else length
            append = one.append = Append(self, one, file, skip=file.written - offset, length=known, checked=checked)
            return append

    async def _create(self, upload: StagedUpload) -> _Upload:
        most = self._settings().uploads_open_max
        if self.open_ones(upload.person) >= most:
            raise Refusal(
                Code.TOO_MANY_REQUESTS,
                f"You have {most} unfinished uploads here, and may not have more. Finish some, or end them with DELETE.",
                open=most,
            )
        one = _Upload(upload, Note(offset=0, length=upload.length, expires_at=self.expiry()), False)
        self._uploads[upload.attempt] = one
        async with self._alone(one):
            try:
                one.file = await self._worker.do(self._folder.create, upload, one.note.expires_at)
            except (DiskFull, OSError) as error:
                del self._uploads[upload.attempt]
                raise Refusal(Code.DISK_FULL, str(error)) from error
            self._rest(one)
        return one

    def space(self) -> Deferred[Space]:
        """Storage of this node; see `IBlobStore`."""
        found: Deferred[Space] = self._blobs.space()
        return found

    def expiry(self) -> float:
        """When what is touched now expires."""
        return self._wall() + self._settings().uploads_kept_s

    async def _opened(self, one: _Upload) -> StagedFile:
        if one.closing is not None:
            one.closing.cancel()
            one.closing = None
        if one.file is None:
            try:
                file = await self._worker.do(self._folder.open, one.upload)
                one.file = file
                while not await self._worker.do(self._folder.read_again, file):
                    pass
            except (CorruptBlock, OSError) as error:
                self._log.error("the upload {attempt} cannot go on here: {problem}", attempt=str(one.upload.attempt), problem=str(error))
                await self._forget(one)
                raise unknown(one.upload.attempt) from error
            except BaseException:
                await self._close(one)
                raise
        return one.file

    def _rest(self, one: _Upload) -> None:
        """Nothing happens to it for now."""
        if one.closing is None:
            one.closing = self._clock.callLater(REST_S, self._rested, one)

    def _rested(self, one: _Upload) -> None:
        one.closing = None
        closing = Deferred.fromCoroutine(self._close_idle(one))
        closing.addErrback(lambda failure: self._log.failure("a resting upload could not be closed", failure))

    async def _close_idle(self, one: _Upload) -> None:
        await one.turn.acquire()
        try:
            if one.append is None:
                await self._close(one)
        finally:
            one.turn.release()

    async def _close(self, one: _Upload) -> None:
        if one.closing is not None:
            one.closing.cancel()
            one.closing = None
        file, one.file = one.file, None
        if file is not None:
            await self._worker.do(self._folder.close, file)

    async def _forget(self, one: _Upload) -> None:
        self._uploads.pop(one.upload.attempt, None)
        await self._close(one)
        await self._worker.do(self._folder.remove, one.upload.attempt)

    @asynccontextmanager
    async def _alone(self, one: _Upload) -> AsyncIterator[None]:
        """The upload for oneself, after ending the append that is under way."""
        await one.turn.acquire()
        try:
            if one.append is not None:
                await one.append.end("another request took the upload over")
            yield
        finally:
            one.turn.release()

    # --- what an append does ---

    async def write(self, file: StagedFile, data: bytes) -> None:
        """Put bytes behind what is there."""
        await self._worker.do(self._folder.append, file, data)

    async def note(self, one: _Upload, file: StagedFile, length: int | None) -> None:
        """Make certain what was written."""
        one.note = await self._worker.do(self._folder.set_note, file, length, self.expiry())

    async def ended(self, one: _Upload, *, sound: bool) -> None:
        """An append has ended; unless `sound`, what lies behind the note is cut off when the file is opened again."""
        one.append = None
        if not sound:
            await self._close(one)
        elif one.file is not None:
            self._rest(one)

    async def lost(self, one: _Upload) -> None:
        """An fsync failed: nobody knows what is on the disk."""
        one.append = None
        await self._forget(one)

    # --- the end ---

    def seal(self, attempt: AttemptId, id_: EntryId, version: int, size: int) -> Deferred[BlobSummary]:
        """Make it a staged blob, which a commit may count on; again, if it is one already.

        Raises:
            Refusal: NOT_FOUND; CONFLICT when it has not `size` bytes; DISK_FULL.
        """
        return detached(self._summary(attempt, id_, version, size))

    async def _summary(self, attempt: AttemptId, id_: EntryId, version: int, size: int) -> BlobSummary:
        one = self._uploads.get(attempt)
        if one is None:
            raise unknown(attempt)
        async with self._alone(one):
            if not one.sealed:
                await self._seal(one, id_, version, size)
            try:
                sidecar: Sidecar = await self._blobs.sidecar(attempt)
            except (NoSuchBlob, CorruptBlock) as error:
                raise unknown(attempt) from error
            return BlobSummary(size=sidecar.size, digest=sidecar.digest)

    async def _seal(self, one: _Upload, id_: EntryId, version: int, size: int) -> None:
        file = await self._opened(one)
        if file.written != size or one.note.offset != size:
            self._rest(one)
            raise Refusal(Code.CONFLICT, f"the upload {one.upload.attempt} has {one.note.offset} bytes here, not {size}")
        try:
            await self._worker.do(self._folder.seal, file, id_, version)
        except DiskFull as error:
            self._rest(one)
            raise Refusal(Code.DISK_FULL, str(error)) from error
        except OSError as error:
            await self._forget(one)
            raise unknown(one.upload.attempt) from error
        one.sealed = True
        self._blobs.adopted(size)
        await self._close(one)

    def drop(self, attempt: AttemptId) -> Deferred[None]:
        """Forget it. A blob that it became stays, for the housekeeping to ask about."""
        return detached(self._drop(attempt))

    async def _drop(self, attempt: AttemptId) -> None:
        one = self._uploads.get(attempt)
        if one is not None:
            async with self._alone(one):
                await self._forget(one)

    def read(self, attempt: AttemptId, start: int, stop: int | None) -> Deferred[tuple[int, StagedSource]]:
        """How much of it is certain here, and a source of a part of that. Raises `NoSuchBlob`."""
        return detached(self._source(attempt, start, stop))

    async def _source(self, attempt: AttemptId, start: int, stop: int | None) -> tuple[int, StagedSource]:
        one = self._uploads.get(attempt)
        if one is None or one.sealed:
            raise NoSuchBlob(f"no upload {attempt} rests here")
        await one.turn.acquire()
        try:
            await self._opened(one)
            self._rest(one)
        except Refusal as error:
            raise NoSuchBlob(str(error)) from error
        finally:
            one.turn.release()
        size = one.note.offset
        end = size if stop is None else min(stop, size)
        return size, StagedSource(self, attempt, min(start, end), end)

    async def piece(self, attempt: AttemptId, start: int) -> bytes:
        """Certain bytes from `start`, up to the end of a block. Raises `StreamBroken`, `CorruptBlock`."""
        one = self._uploads.get(attempt)
        if one is None or one.sealed:
            raise StreamBroken(f"the upload {attempt} does not rest here any more")
        await one.turn.acquire()
        try:
            file = await self._opened(one)
            if one.append is None:
                self._rest(one)
            return await self._worker.do(self._folder.read, file, start)
        except Refusal as error:
            raise StreamBroken(str(error)) from error
        finally:
            one.turn.release()

    # --- what expires ---

    async def _run(self) -> None:
        while True:
            await deferLater(self._clock, EXPIRE_S)
            for one in list(self._uploads.values()):
                if one.append is None and one.expires_at() < self._wall():
                    upload = one.upload
                    self._log.info("the upload {attempt} of {person} has expired", attempt=str(upload.attempt), person=upload.person)
                    await self.drop(one.upload.attempt)

    def _stopped(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("expired uploads are not dropped any more", failure)


class Append:
    """Bytes on their way to one upload on this holder. Like a writer of a blob, it has one job at the worker at a time."""

    def __init__(self, staged: StagedUploads, one: _Upload, file: StagedFile, *, skip: int, length: int | None, checked: bool) -> None:
        self._staged = staged
        self._one = one
        self._file = file
        self._skip = skip
        self._length = length
        self._checked = checked
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._job: Deferred[None] = succeed(None)
        self._error: BaseException | None = None
        self._over: str | None = None
        self._ending = DeferredLock()

    def write(self, data: bytes) -> Deferred[None]:
        """Take bytes; fires when more is welcome.

        Raises:
            Refusal: DISK_FULL; CONFLICT when another request took the upload over.
        """
        return detached(self._take(data))

    async def _take(self, data: bytes) -> None:
        self._usable()
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        if data:
            self._gathered.append(data)
            self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHER_BYTES:
            await self._job
            self._usable()
            self._begin_job()

    def finish(self) -> Deferred[int]:
        """All has come (and was checked): make it certain. The offset that it is at now."""
        return detached(self._finish())

    async def _finish(self) -> int:
        async with self._ending:
            self._usable()
            await self._settle(keep=True)
            if self._error is not None:
                raise self._failed()
            return self._one.note.offset

    def abort(self) -> Deferred[None]:
        """No more comes. What has come is kept, unless it was to be checked. Harmless when it is over."""
        return detached(self.end("it was broken off"))

    async def end(self, why: str) -> None:
        """As `abort`, because of somebody else."""
        async with self._ending:
            if self._over is None:
                await self._settle(keep=not self._checked, why=why)

    async def _settle(self, *, keep: bool, why: str = "it is finished") -> None:
        self._over = why
        if not keep:
            self._gathered.clear()
        await self._job
        self._begin_job()
        await self._job
        sound = keep and self._error is None
        if sound:
            try:
                await self._staged.note(self._one, self._file, self._length)
            except DiskFull as error:
                self._error, sound = error, False
            except OSError as error:
                self._error = error
                await self._staged.lost(self._one)
                return
        await self._staged.ended(self._one, sound=sound)

    def _begin_job(self) -> None:
        if not self._gathered or self._error is not None:
            return
        data = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        self._job = Deferred.fromCoroutine(self._write(data))
        self._job.addErrback(self._broke)

    async def _write(self, data: bytes) -> None:
        await self._staged.write(self._file, data)
        if not self._checked and self._file.written - self._one.note.offset >= NOTE_BYTES:
            await self._staged.note(self._one, self._file, self._length)

    def _broke(self, failure: Any) -> None:
        self._error = failure.value

    def _usable(self) -> None:
        if self._error is not None:
            raise self._failed()
        if self._over is not None:
            raise Refusal(Code.CONFLICT, f"The upload takes no more here: {self._over}.", retry_after_s=1.0)

    def _failed(self) -> Refusal:
        return Refusal(Code.DISK_FULL, f"The bytes cannot be kept here: {self._error}")


@implementer(IByteSource)
class StagedSource:
    """A part of what is certain of an upload, in pieces of at most a block, each checked."""

    def __init__(self, staged: StagedUploads, attempt: AttemptId, start: int, stop: int) -> None:
        self._staged = staged
        self._attempt = attempt
        self._at = start
        self._stop = stop

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`."""
        return detached(self._read())

    async def _read(self) -> bytes:
        if self._at >= self._stop:
            return b""
        data = await self._staged.piece(self._attempt, self._at)
        data = data[: self._stop - self._at]
        self._at += len(data)
        return data

    def close(self) -> None:
        """See `IByteSource`."""
        self._stop = self._at
