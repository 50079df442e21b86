"""Resumable uploads on the disk of one holder: every blocking step, run by a worker.

    uploads/abcd...          the bytes so far; when sealed they get their place among the blobs
    uploads/abcd....record   what it is to become (`StagedUpload`); written once, with fsync
    uploads/abcd....notes    how far it is

The notes are two slots, a sector each, written in turn, so that a torn one leaves the other; behind them the checksums of the
blocks that are whole:

    0      sequence, offset, length (-1: not known), expiry, checksum of the block that is not whole, of the checksums, of all that
    512    the same
    1024   16 bytes for each whole block

Order: bytes are fsynced, then the note. So what a note says is there, and what lies beyond it may be torn and is cut off when
the file is opened again. A slot without its checksums is as a torn one: one fsync covers both, and a crash may keep either. Opening
reads all there is, because digests have no state that could be kept, and compares it with the checksums: what rotted while it
rested is not taken for what was sent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress

import attrs

from securifile.model.digests import Hasher
from securifile.model.entries import Sidecar
from securifile.model.errors import CorruptBlock
from securifile.model.ids import AttemptId, EntryId
from securifile.model.staged import Note, StagedUpload
from securifile.node.blob_folder import BlobFolder, no_room_is_disk_full
from securifile.node.sidecars import BLOCK_BYTES, CHECKSUM_BYTES, BlockChecksums, checksum
from securifile.protocol.codec import CodecError, decode_value, encode_value

_RECORD = ".record"
_NOTES = ".notes"
_SLOT = struct.Struct(">QQqd16s16s")
_SLOTS = (0, 512)
_SUMS = 1024

READ_BYTES = 8 * 1024 * 1024
"""Read in one step when a file is opened again: others want the thread as well."""


@attrs.frozen(kw_only=True)
class Found:
    """What rests on the disk of one upload."""

    upload: StagedUpload
    note: Note
    sealed: bool
    """Its bytes are among the blobs, or were."""


@attrs.define(eq=False, kw_only=True)
class StagedFile:
    """An upload's file while it is open. Used by one step at a time."""

    upload: StagedUpload
    descriptor: int
    notes: int
    note: Note
    """The last one that is certain."""
    sequence: int
    hasher: Hasher
    checksums: BlockChecksums
    tail: bytes = b""
    """Checksum of what the note covers of the block that is not whole."""
    written: int = 0
    """Bytes that were taken, noted or not."""
    summed: int = 0
    """Whole blocks whose checksums are in the notes."""


class StagedFolder:
    """The steps."""

    def __init__(self, blobs: BlobFolder) -> None:
        self._blobs = blobs
        self._files = blobs.files
        self._directory = os.path.join(blobs.root, "uploads")

    def recover(self) -> list[Found]:
        """Make the folder; remove what a crash left of uploads that nobody was told of. The rest."""
        self._files.make_directory(self._directory)
        self._files.sync_directory(os.path.dirname(self._directory))
        found = []
        for attempt in self._attempts():
            one = self._look(attempt)
            if one is None:
                self.remove(attempt)
            else:
                found.append(one)
        return found

    def _attempts(self) -> Iterator[AttemptId]:
        seen = dict.fromkeys(name.partition(".")[0] for name in self._files.names(self._directory))
        for name in seen:
            with suppress(ValueError):
                yield AttemptId.parse(name)

    def _look(self, attempt: AttemptId) -> Found | None:
        try:
            upload = decode_value(StagedUpload, self._whole(self._path(attempt) + _RECORD))
            slots = self._slots(self._whole(self._path(attempt) + _NOTES))
        except (OSError, CodecError):
            return None
        if not slots or not isinstance(upload, StagedUpload) or upload.attempt != attempt:
            return None
        _, note, _ = max(slots, key=lambda slot: slot[0])
        if self._blobs.has(attempt):
            # A crash may have left the name here as well; who appended to it would change the blob.
            self._blobs.remove_all(self._path(attempt))
        return Found(upload=upload, note=note, sealed=self._files.length(self._path(attempt)) is None)

    def create(self, upload: StagedUpload, expires_at: float) -> StagedFile:
        """Begin one; it is certain when this returns. Raises `DiskFull`."""
        self._blobs.keep_reserve()
        path = self._path(upload.attempt)
        self._blobs.remove_all(path, path + _NOTES, path + _RECORD)
        try:
            with no_room_is_disk_full():
                notes = self._files.create(path + _NOTES)
                file = StagedFile(
                    upload=upload,
                    descriptor=self._files.create(path),
                    notes=notes,
                    note=Note(offset=0, length=upload.length, expires_at=expires_at),
                    sequence=0,
                    hasher=upload.algorithm.hasher(),
                    checksums=BlockChecksums(),
                )
                self.set_note(file, upload.length, expires_at)
                # The record comes last: when it is there and the bytes are not, they have become a blob.
                self._files.sync_directory(self._directory)
                self._blobs.write_whole(path + _RECORD, encode_value(StagedUpload, upload))
                self._files.sync_directory(self._directory)
        except Exception:
            self.remove(upload.attempt)
            raise
        return file

    def open(self, upload: StagedUpload) -> StagedFile:
        """Open one that rests; it has to `read_again` until it is where its note says. Raises `OSError`."""
        path = self._path(upload.attempt)
        notes = self._files.open(path + _NOTES, writing=True)
        try:
            slots = self._slots(self._files.read(notes, self._files.size(notes), 0))
            if not slots:
                raise CorruptBlock(f"the notes of upload {upload.attempt} are damaged", attempt=upload.attempt)
            sequence, note, tail = max(slots, key=lambda slot: slot[0])
            descriptor = self._files.open(path, writing=True)
        except BaseException:
            self._files.close(notes)
            raise
        self._files.truncate(descriptor, note.offset)
        return StagedFile(
            upload=upload,
            descriptor=descriptor,
            notes=notes,
            note=note,
            sequence=sequence,
            hasher=upload.algorithm.hasher(),
            checksums=BlockChecksums(),
            tail=tail,
        )

    def read_again(self, file: StagedFile) -> bool:
        """Take a piece of what is there; whether that was the last.

        Raises:
            CorruptBlock: it is not what was noted.
        """
        stop = min(file.note.offset, file.written + READ_BYTES)
        data = self._files.read(file.descriptor, stop - file.written, file.written)
        self._take(file, data)
        if file.written < stop:
            raise self._rotten(file)
        if stop < file.note.offset:
            return False
        whole = file.checksums.whole()
        kept = self._files.read(file.notes, len(whole), _SUMS)
        if kept != whole or file.tail != file.checksums.tail():
            raise self._rotten(file)
        file.summed = len(whole) // CHECKSUM_BYTES
        return True

    def append(self, file: StagedFile, data: bytes) -> None:
        """Write behind what is there. Nothing is certain before `set_note`. Raises `DiskFull`."""
        self._blobs.keep_reserve()
        with no_room_is_disk_full():
            self._files.write(file.descriptor, data, file.written)
        self._take(file, data)

    def set_note(self, file: StagedFile, length: int | None, expires_at: float) -> Note:
        """Make certain what was written so far."""
        with no_room_is_disk_full():
            self._files.sync(file.descriptor)
            if fresh := file.checksums.whole(file.summed):
                self._files.write(file.notes, fresh, _SUMS + file.summed * CHECKSUM_BYTES)
            sequence, tail = file.sequence + 1, file.checksums.tail()
            known = -1 if length is None else length
            slot = _SLOT.pack(sequence, file.written, known, expires_at, tail, file.checksums.of_whole())
            self._files.write(file.notes, slot + checksum(slot), _SLOTS[sequence % 2])
            self._files.sync(file.notes)
        file.sequence, file.summed, file.tail = sequence, file.summed + len(fresh) // CHECKSUM_BYTES, tail
        file.note = Note(offset=file.written, length=length, expires_at=expires_at)
        return file.note

    def read(self, file: StagedFile, start: int) -> bytes:
        """From `start` to the end of its block, or of what was noted. Raises `CorruptBlock`."""
        block = start // BLOCK_BYTES
        first = block * BLOCK_BYTES
        data = self._files.read(file.descriptor, min(BLOCK_BYTES, file.note.offset - first), first)
        wanted = file.checksums.whole(block, block + 1) if first + BLOCK_BYTES <= file.note.offset else file.tail
        if checksum(data) != wanted:
            raise self._rotten(file)
        return data[start - first :]

    def seal(self, file: StagedFile, id_: EntryId, version: int) -> Sidecar:
        """Make a staged blob of it. After an error it rests as before, unless its bytes could not be fsynced."""
        sidecar = Sidecar(
            attempt=file.upload.attempt,
            file=id_.value,
            version=version,
            size=file.written,
            digest=file.hasher.digest(),
            algorithm=file.upload.algorithm,
            committed_at=None,
        )
        self._blobs.adopt(file.descriptor, self._path(file.upload.attempt), sidecar, file.checksums.copy().digest())
        return sidecar

    def close(self, file: StagedFile) -> None:
        """Let go of it; what is beyond the note is lost."""
        self._files.close(file.descriptor)
        self._files.close(file.notes)

    def remove(self, attempt: AttemptId) -> None:
        """Forget it; the record goes first: bytes without one are nobody's."""
        path = self._path(attempt)
        self._blobs.remove_all(path + _RECORD, path + _NOTES, path)

    def _take(self, file: StagedFile, data: bytes) -> None:
        file.hasher.update(data)
        file.checksums.update(data)
        file.written += len(data)

    def _slots(self, data: bytes) -> list[tuple[int, Note, bytes]]:
        """What the slots say that are sound: sequence, note, checksum of the block that is not whole."""
        found = []
        for start in _SLOTS:
            packed = data[start : start + _SLOT.size]
            if len(packed) < _SLOT.size or data[start + _SLOT.size : start + _SLOT.size + CHECKSUM_BYTES] != checksum(packed):
                continue
            sequence, offset, length, expires_at, tail, sums = _SLOT.unpack(packed)
            if checksum(data[_SUMS : _SUMS + offset // BLOCK_BYTES * CHECKSUM_BYTES]) == sums:
                found.append((sequence, Note(offset=offset, length=None if length < 0 else length, expires_at=expires_at), tail))
        return found

    def _whole(self, path: str) -> bytes:
        descriptor = self._files.open(path)
        try:
            return self._files.read(descriptor, self._files.size(descriptor), 0)
        finally:
            self._files.close(descriptor)

    def _rotten(self, file: StagedFile) -> CorruptBlock:
        return CorruptBlock(f"what rests of upload {file.upload.attempt} is not what was sent", attempt=file.upload.attempt)

    def _path(self, attempt: AttemptId) -> str:
        return os.path.join(self._directory, str(attempt))
