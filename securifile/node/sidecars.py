"""What stands beside a blob: the format of `<attempt>.meta`.

    +-------+--------+--------+------------------------+----------+ +------------------------------+
    | magic | format | length | msgpack of the facts   | BLAKE3   | | commit note: version, epoch, |
    |  4    |  1     |  4     | and the block checksums| 16       | | revision, BLAKE3 (40 bytes)  |
    +-------+--------+--------+------------------------+----------+ +------------------------------+
     written once, with fsync, before the blob is there               written later, in place

The first part is never written again: without the block checksums a good blob could not be served, so nothing that
happens later may put them at risk. The note says that the attempt was committed. It is a part of fixed length at
the end, with a checksum of its own: if a crash tears or loses it, the blob is `staged` again, and the node asks the
catalogue, which is the authority on commits.

A blob is checked by blocks: BLAKE3, 16 bytes of it, for each 256 KiB. They guard against rot and against our own
bugs, and half of a digest is plenty for that (the chance to miss one is 2^-128); against people there is the whole digest.
"""

from __future__ import annotations

import struct
from typing import Any

import attrs
import msgpack
from blake3 import blake3

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, Sidecar
from securifile.model.errors import StreamBroken
from securifile.model.ids import AttemptId, Position

BLOCK_BYTES = 256 * 1024
"""What one checksum covers: large enough that checksums are 0.006 % of a blob, small enough to check for a short range."""

CHECKSUM_BYTES = 16

_MAGIC = b"SFbm"
_FORMAT = 1
_HEAD = struct.Struct(">4sBI")
_NOTE = struct.Struct(">QQQ")
NOTE_BYTES = _NOTE.size + CHECKSUM_BYTES


class DamagedSidecar(Exception):
    """The file is no sidecar, or not all of it: the blob beside it cannot be checked and must not be served."""


def checksum(data: bytes | memoryview) -> bytes:
    """The checksum of one block, or of a part of a sidecar."""
    return blake3(data).digest(length=CHECKSUM_BYTES)


def checksum_of(checksums: bytes) -> bytes:
    """What stands for all the checksums of a blob's blocks: 32 bytes of BLAKE3 over them, one after the other."""
    return blake3(checksums).digest()


def vouched_digest(sent: BlobSummary | None, size: int, checksum: bytes) -> bytes:
    """The digest that the sender of a blob told, if the blob that arrived is what it sent. Raises `StreamBroken`.

    Args:
        size: of what arrived.
        checksum: as `checksum_of`.
    """
    if sent is None:
        raise StreamBroken("its sender did not say what it is")
    if (sent.size, sent.checksum) != (size, checksum):
        raise StreamBroken(f"{size} bytes arrived which are not the {sent.size} that were sent")
    return sent.digest


def block_count(size: int) -> int:
    """How many blocks a blob of `size` bytes has; the last may be short."""
    return -(-size // BLOCK_BYTES)


class BlockChecksums:
    """Takes a blob's bytes in pieces of any size and yields the checksum of each block."""

    def __init__(self) -> None:
        self._done = bytearray()
        self._all = blake3()
        self._hasher = blake3()
        self._room = BLOCK_BYTES

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            piece = view[: self._room]
            self._hasher.update(piece)
            self._room -= len(piece)
            view = view[len(piece) :]
            if not self._room:
                self._close_block()

    def whole(self, start: int = 0, stop: int | None = None) -> bytes:
        """The checksums of the blocks from `start` to `stop` that are whole so far, one after the other."""
        return bytes(self._done[start * CHECKSUM_BYTES : None if stop is None else stop * CHECKSUM_BYTES])

    def of_whole(self) -> bytes:
        """A checksum of the checksums of all whole blocks."""
        return self._all.digest(length=CHECKSUM_BYTES)

    def tail(self) -> bytes:
        """The checksum of what there is of the block that is not whole yet; also when that is nothing."""
        return self._hasher.digest(length=CHECKSUM_BYTES)

    def copy(self) -> BlockChecksums:
        """Another one that has taken the same bytes."""
        other = BlockChecksums()
        other._done = bytearray(self._done)
        other._all = self._all.copy()
        other._hasher = self._hasher.copy()
        other._room = self._room
        return other

    def digest(self) -> bytes:
        """The checksums of all blocks, one after the other; the last block ends here, so nothing may follow."""
        if self._room < BLOCK_BYTES:
            self._close_block()
        return bytes(self._done)

    def _close_block(self) -> None:
        sum_ = self._hasher.digest(length=CHECKSUM_BYTES)
        self._done += sum_
        self._all.update(sum_)
        self._hasher = blake3()
        self._room = BLOCK_BYTES


@attrs.frozen(kw_only=True)
class SidecarFile:
    """A sidecar as read from the disk."""

    sidecar: Sidecar
    checksums: bytes = attrs.field(repr=False)
    """One after the other, `CHECKSUM_BYTES` each."""
    note_offset: int
    """Where in its file the commit note is, or would be."""
    start: int = 0
    """Where the blob's bytes begin in the file that they are read from: not at 0 in a pack (`pack_format.py`)."""

    def good(self, block: int, data: bytes | memoryview) -> bool:
        """Whether `data` is what was written as block number `block`."""
        start = block * CHECKSUM_BYTES
        return checksum(data) == self.checksums[start : start + CHECKSUM_BYTES]


def encode_sidecar(sidecar: Sidecar, checksums: bytes) -> bytes:
    """The file of a staged blob: the first part, and room for the note.

    The room is there from the start so that noting a commit needs none on a full disk. What `sidecar` says of a commit
    is left out: that is the note's.
    """
    body = msgpack.packb(
        {
            "attempt": sidecar.attempt.value,
            "file": sidecar.file,
            "version": sidecar.version,
            "size": sidecar.size,
            "digest": sidecar.digest,
            "algorithm": sidecar.algorithm.value,
            "block_bytes": BLOCK_BYTES,
            "checksums": checksums,
        }
    )
    written: bytes = _HEAD.pack(_MAGIC, _FORMAT, len(body)) + body
    return written + checksum(written) + bytes(NOTE_BYTES)


def encode_note(version: int, position: Position) -> bytes:
    """The commit note: the version it became, and at which position."""
    note: bytes = _NOTE.pack(version, position.epoch, position.revision)
    return note + checksum(note)


def decode_sidecar(data: bytes, offset: int = 0, start: int = 0) -> SidecarFile:
    """Read a whole file; a torn or missing note leaves the blob staged.

    Args:
        offset: where the sidecar begins in its file, if it is one of several.
        start: where the blob's bytes begin in theirs.

    Raises:
        DamagedSidecar: anything is wrong with the first part.
    """
    if len(data) < _HEAD.size:
        raise DamagedSidecar("shorter than its head")
    magic, format_number, length = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise DamagedSidecar("not a sidecar")
    if format_number != _FORMAT:
        raise DamagedSidecar(f"format {format_number}, and this release reads {_FORMAT}")
    end = _HEAD.size + length
    note_offset = end + CHECKSUM_BYTES
    if len(data) < note_offset or checksum(data[:end]) != data[end:note_offset]:
        raise DamagedSidecar("torn or changed")
    try:
        sidecar, checksums = _facts(msgpack.unpackb(data[_HEAD.size : end]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedSidecar(f"whole, and yet not understood: {error!r}") from error
    note = data[note_offset : note_offset + NOTE_BYTES]
    if len(note) == NOTE_BYTES and checksum(note[: _NOTE.size]) == note[_NOTE.size :]:
        version, epoch, revision = _NOTE.unpack_from(note)
        sidecar = attrs.evolve(sidecar, version=version, committed_at=(epoch, revision))
    return SidecarFile(sidecar=sidecar, checksums=checksums, note_offset=offset + note_offset, start=start)


def _facts(body: dict[str, Any]) -> tuple[Sidecar, bytes]:
    sidecar = Sidecar(
        attempt=AttemptId(body["attempt"]),
        file=body["file"],
        version=body["version"],
        size=body["size"],
        digest=body["digest"],
        algorithm=DigestAlgorithm(body["algorithm"]),
        committed_at=None,
    )
    checksums: bytes = body["checksums"]
    if body["block_bytes"] != BLOCK_BYTES or len(checksums) != block_count(sidecar.size) * CHECKSUM_BYTES:
        raise ValueError(f"{len(checksums)} bytes of checksums for {sidecar.size} bytes in blocks of {body['block_bytes']}")
    return sidecar, checksums
