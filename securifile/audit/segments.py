r"""The files of a spool: how records lie on the disk, and what can be read again after any crash.

    spool/0000000000000007-5f0c….spool          ordinal and boot; segments are read in order of their ordinals
        securifile-spool 1 5f0c… 1001\n         version of the format, boot, number of the first record
        length crc32 payload                     4 + 4 bytes, big-endian; the crc covers length and payload
        length crc32 payload                     numbers follow one another: 1002, …
    spool/confirmed                              up to which number each boot was confirmed

A segment is only ever appended to, by the process that made it; the next process begins the next one. What does not check is
the end of it: a torn tail, if the machine stopped while writing. When a write fails, its segment is given up at what was
certainly durable, and the next one begins with the number after that: where two segments have the same number, the later one counts.

Everything here blocks and is meant for a worker.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import attrs

_PREFIX = struct.Struct(">II")
PREFIX_BYTES = _PREFIX.size
_HEADER_BYTES_MAX = 256
_PAYLOAD_BYTES_MAX = 1 << 20
"""More than any record: a length above it is damage, not a reason to read a gigabyte."""
_NAME = re.compile(r"([0-9]{16})-([0-9A-Za-z._-]{1,64})\.spool")
_HEADER = re.compile(rb"securifile-spool 1 ([0-9A-Za-z._-]{1,64}) ([1-9][0-9]{0,18})\n")
_MARKS = "confirmed"
_MARKS_FIRST, _MARKS_LAST = "securifile-confirmed 1", "end"


class DamagedSegment(Exception):
    """What was written and fsynced cannot be read again: the disk has lost it."""


@attrs.define(kw_only=True)
class Segment:
    """One file, and how much of it counts."""

    path: Path
    ordinal: int
    boot: str
    first: int
    """The number of its first record."""
    count: int = 0
    """How many records are durable."""
    start: int
    """Where the first record begins, in bytes."""
    end: int
    """Where the last durable one ends."""
    damaged: bool = False
    """Something was lost in it that had been fsynced: when it has been sent, it is set aside, not deleted."""

    @property
    def last(self) -> int:
        """The number of its last record; `first - 1` when it has none."""
        return self.first + self.count - 1


@attrs.frozen(kw_only=True)
class Recovered:
    """What a process finds that opens a spool."""

    segments: list[Segment]
    confirmed: dict[str, int]
    next_ordinal: int
    damaged: list[str]
    """Names of files that lost something, or whose beginning makes no sense."""


def pack(payload: bytes) -> bytes:
    """A record as it lies in a segment."""
    length = len(payload).to_bytes(4, "big")
    return _PREFIX.pack(len(payload), zlib.crc32(payload, zlib.crc32(length))) + payload


def create(directory: Path, ordinal: int, boot: str, first: int) -> tuple[int, Segment]:
    """A new segment, durable as a name, and its descriptor for appending. Raises `OSError`."""
    path = directory / f"{ordinal:016d}-{boot}.spool"
    header = b"securifile-spool 1 %s %d\n" % (boot.encode("ascii"), first)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, header)
        os.fsync(descriptor)
        sync_directory(directory)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, Segment(path=path, ordinal=ordinal, boot=boot, first=first, start=len(header), end=len(header))


def append(descriptor: int, data: bytes) -> None:
    """Write and fsync. Raises `OSError`; then nobody knows what of it is on the disk, and the segment must be given up."""
    _write_all(descriptor, data)
    os.fdatasync(descriptor)


def give_up(descriptor: int, segment: Segment) -> None:
    """Close a segment that could not be written, and try to cut what is not certain. Never raises."""
    with suppress(OSError):
        os.ftruncate(descriptor, segment.end)
    close(descriptor)


def close(descriptor: int) -> None:
    """Let go of a file; all that matters in it was fsynced. Never raises."""
    with suppress(OSError):
        os.close(descriptor)


def read(path: Path, offset: int, end: int, skip: int, limit_bytes: int) -> tuple[list[bytes], int]:
    """Pass over `skip` records from `offset`, then read some: at least one if there is one, and about `limit_bytes`.

    Returns:
        The payloads, and where the next one begins.

    Raises:
        DamagedSegment: a record that was durable does not check.
        OSError: among them `FileNotFoundError`, when the segment has been confirmed meanwhile.
    """
    payloads: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        file.seek(offset)
        while offset < end and size < limit_bytes:
            prefix = file.read(PREFIX_BYTES)
            length, crc = _PREFIX.unpack(prefix) if len(prefix) == PREFIX_BYTES else (0, 0)
            if not 0 < length <= end - offset - PREFIX_BYTES:
                raise DamagedSegment(f"{path.name}, byte {offset}: the length of a record is lost")
            if skip:
                file.seek(length, os.SEEK_CUR)
                skip -= 1
            else:
                payload = file.read(length)
                if zlib.crc32(payload, zlib.crc32(prefix[:4])) != crc:
                    raise DamagedSegment(f"{path.name}, byte {offset}: a record does not check")
                payloads.append(payload)
                size += length
            offset += PREFIX_BYTES + length
    return payloads, offset


def recover(directory: Path) -> Recovered:
    """Find out what an earlier process left, after whatever end it had. Makes the directory if there is none. Raises `OSError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    segments: list[Segment] = []
    damaged: list[str] = []
    next_ordinal = 1
    for path in sorted(directory.iterdir()):
        named = _NAME.fullmatch(path.name)
        if named is None:
            continue
        next_ordinal = max(next_ordinal, int(named[1]) + 1)
        segment = _scan(path, int(named[1]), named[2])
        if segment is not None:
            segments.append(segment)
        elif path.stat().st_size < _HEADER_BYTES_MAX and b"\n" not in path.read_bytes():
            path.unlink()  # The machine stopped while it was being made: nothing can have been in it.
        else:
            damaged.append(path.name)
            set_aside(path)
    # A segment that was followed by another of its boot was whole when the other began, so a tail that is missing in it was lost later.
    for segment, following in pairwise(segments):
        if segment.boot == following.boot:
            if segment.last < following.first - 1:
                segment.damaged = True
                damaged.append(segment.path.name)
            segment.count = min(segment.count, following.first - segment.first)
    for segment in segments:
        if segment.count <= 0:
            discard(segment)
    return Recovered(
        segments=[segment for segment in segments if segment.count > 0],
        confirmed=_read_marks(directory),
        next_ordinal=next_ordinal,
        damaged=damaged,
    )


def _scan(path: Path, ordinal: int, boot: str) -> Segment | None:
    """Count the records that check; None when the header does not."""
    with path.open("rb") as file:
        header = file.readline(_HEADER_BYTES_MAX)
        said = _HEADER.fullmatch(header)
        if said is None or said[1].decode("ascii") != boot:
            return None
        segment = Segment(path=path, ordinal=ordinal, boot=boot, first=int(said[2]), start=len(header), end=len(header))
        while len(prefix := file.read(PREFIX_BYTES)) == PREFIX_BYTES:
            length, crc = _PREFIX.unpack(prefix)
            if not 0 < length <= _PAYLOAD_BYTES_MAX:
                break
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload, zlib.crc32(prefix[:4])) != crc:
                break
            segment.count += 1
            segment.end += PREFIX_BYTES + length
    return segment


def discard(segment: Segment) -> None:
    """Delete a segment that nobody needs any more; one that lost something stays, under another name, for the operator."""
    if segment.damaged:
        set_aside(segment.path)
    else:
        segment.path.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Keep a file out of the spool's way. Raises `OSError`."""
    path.rename(path.with_name(path.name + ".damaged"))


def write_marks(directory: Path, confirmed: Mapping[str, int]) -> None:
    """Remember what was confirmed. Raises `OSError`.

    Not fsynced: if it is lost, records are sent again, and the receiver drops them by their numbers.
    """
    lines = [_MARKS_FIRST, *(f"{boot} {number}" for boot, number in sorted(confirmed.items())), _MARKS_LAST, ""]
    new = directory / (_MARKS + ".new")
    new.write_text("\n".join(lines), encoding="ascii")
    new.replace(directory / _MARKS)


def _read_marks(directory: Path) -> dict[str, int]:
    try:
        lines: Sequence[str] = (directory / _MARKS).read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    # Half a file, or zeros, after a power cut: as if there were none.
    if len(lines) < 2 or lines[0] != _MARKS_FIRST or lines[-1] != _MARKS_LAST:
        return {}
    said = (re.fullmatch(r"(\S+) ([0-9]{1,19})", line) for line in lines[1:-1])
    return {found[1]: int(found[2]) for found in said if found is not None}


def sync_directory(directory: Path) -> None:
    """Make names durable. Raises `OSError`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
