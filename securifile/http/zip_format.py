"""A zip archive as a plan: every byte's place is known before the first is sent (APPNOTE.TXT 6.3.10, PKWARE).

    local header | content | descriptor   ... once for each member, folders have only the header
    central header                        ... once for each member
    end of central directory              preceded by its zip64 form where numbers are too large

Contents are stored, not compressed: then the archive's length follows from names and sizes alone, and a download can be
continued anywhere. Checksums are not known beforehand, so they stand behind each content, in a descriptor (section
4.3.9), and in the central directory; sizes are in the local header where APPNOTE wants zeros. What is larger than
32 bits is written in zip64 form (section 4.5.3), and nothing else is: old programs read everything that they can.

The plan says which parts make a range of the archive; who has the contents fills them in.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import Enum
from itertools import accumulate

import attrs

_LOCAL = struct.Struct("<4sHHHHHLLLHH")
_CENTRAL = struct.Struct("<4sBBHHHHHLLLHHHHHLL")
_DESCRIPTOR = struct.Struct("<4sLLL")
_DESCRIPTOR_64 = struct.Struct("<4sLQQ")
_END = struct.Struct("<4sHHHHLLH")
_END_64 = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR_64 = struct.Struct("<4sLQL")
_EXTRA_64 = struct.Struct("<HHQQ")
_EXTRA_TIME = struct.Struct("<HHBl")

_LARGE = 0xFFFF_FFFF
"""In a field of 32 bits: see the zip64 field. Sizes and offsets from here on need one."""
_MANY = 0xFFFF
"""The same for the number of members."""

_STORED = 0
_MADE_BY_UNIX = 3
_VERSION, _VERSION_64 = 20, 45
_UTF_8 = 1 << 11
_DESCRIBED = 1 << 3
"""The checksum follows the content."""

_FILE_MODE, _FOLDER_MODE = 0o100644 << 16, (0o040755 << 16) | 0x10
_DOS_EPOCH, _DOS_END = 315_532_800.0, 4_354_819_198.0
"""1980-01-01 and 2107-12-31: what the old field for the time can hold."""
_TIME_MAX = 0x7FFF_FFFF
"""What the extended time stamp can hold."""


@attrs.frozen(kw_only=True)
class Member:
    """A file or folder of an archive."""

    name: str
    """Its path in the archive, with slashes; a folder's ends with one."""
    size: int
    """Bytes of content; 0 for folders."""
    modified_at: float
    """Wall clock, seconds since 1970."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.name.endswith("/")


class Part(Enum):
    """What a stretch of an archive is."""

    LOCAL = "local header"
    CONTENT = "content"
    DESCRIPTOR = "descriptor"
    CENTRAL = "central header"
    END = "end of the central directory"


@attrs.frozen
class Stretch:
    """Bytes [start, stop) of one part of an archive; `member` is meaningless for the END."""

    part: Part
    member: int
    start: int
    stop: int


class Archive:
    """The plan of an archive."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._names = [member.name.encode() for member in self.members]
        before = list(accumulate((self._room(number) for number in range(len(self.members))), initial=0))
        self._offsets, self._directory_at = before[:-1], before[-1]
        directory = list(accumulate((self._central_bytes(number) for number in range(len(self.members))), initial=self._directory_at))
        self._central, self._end_at = directory[:-1], directory[-1]
        self.size = self._end_at + len(self.end())
        """Bytes of the whole."""

    def _room(self, number: int) -> int:
        member = self.members[number]
        if member.is_folder:
            return self._local_bytes(number)
        return self._local_bytes(number) + member.size + self._descriptor_bytes(number)

    def _local_bytes(self, number: int) -> int:
        extra = _EXTRA_TIME.size + (_EXTRA_64.size if self._is_large(number) else 0)
        return _LOCAL.size + len(self._names[number]) + extra

    def _descriptor_bytes(self, number: int) -> int:
        return (_DESCRIPTOR_64 if self._is_large(number) else _DESCRIPTOR).size

    def _central_bytes(self, number: int) -> int:
        large = len(self._large_in_central(number))
        return _CENTRAL.size + len(self._names[number]) + _EXTRA_TIME.size + (4 + 8 * large if large else 0)

    def _large_in_central(self, number: int) -> list[int]:
        """The numbers that do not fit the fields of a central header: the sizes, which are equal, then the offset (4.5.3)."""
        size, offset = self.members[number].size, self._offsets[number]
        return ([size, size] if size >= _LARGE else []) + ([offset] if offset >= _LARGE else [])

    def _is_large(self, number: int) -> bool:
        return self.members[number].size >= _LARGE

    # --- which parts make a range ---

    def stretches(self, start: int, stop: int) -> Iterator[Stretch]:
        """The parts that bytes [start, stop) of the archive consist of, in order; none is empty."""
        if start < self._directory_at:
            for number in range(max(bisect_right(self._offsets, start) - 1, 0), len(self.members)):
                if self._offsets[number] >= stop:
                    return
                yield from self._of_member(number, start, stop)
        if start < self._end_at:
            for number in range(max(bisect_right(self._central, start) - 1, 0), len(self.members)):
                at = self._central[number]
                if at >= stop:
                    return
                following = self._central[number + 1] if number + 1 < len(self.members) else self._end_at
                yield from _within(Part.CENTRAL, number, at, following, start, stop)
        yield from _within(Part.END, 0, self._end_at, self.size, start, stop)

    def _of_member(self, number: int, start: int, stop: int) -> Iterator[Stretch]:
        at = self._offsets[number]
        content = at + self._local_bytes(number)
        yield from _within(Part.LOCAL, number, at, content, start, stop)
        if not self.members[number].is_folder:
            descriptor = content + self.members[number].size
            yield from _within(Part.CONTENT, number, content, descriptor, start, stop)
            yield from _within(Part.DESCRIPTOR, number, descriptor, descriptor + self._descriptor_bytes(number), start, stop)

    # --- the parts, whole ---

    def local(self, number: int) -> bytes:
        """The local header of a member (4.3.7)."""
        member, name, large = self.members[number], self._names[number], self._is_large(number)
        extra = _extended_time(member.modified_at) + (_EXTRA_64.pack(1, 16, 0, 0) if large else b"")
        size = _LARGE if large else 0
        head = _LOCAL.pack(
            b"PK\x03\x04",
            _VERSION_64 if large else _VERSION,
            _flags(member),
            _STORED,
            *_dos_time(member.modified_at),
            0,
            size,
            size,
            len(name),
            len(extra),
        )
        return head + name + extra

    def descriptor(self, number: int, checksum: int) -> bytes:
        """What follows the content of a file whose CRC-32 is `checksum` (4.3.9)."""
        size = self.members[number].size
        return (_DESCRIPTOR_64 if self._is_large(number) else _DESCRIPTOR).pack(b"PK\x07\x08", checksum, size, size)

    def central(self, number: int, checksum: int) -> bytes:
        """The header of a member in the central directory (4.3.12)."""
        member, name = self.members[number], self._names[number]
        size, offset = member.size, self._offsets[number]
        large = self._large_in_central(number)
        extra = _extended_time(member.modified_at)
        if large:
            extra += struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large)
        version = _VERSION_64 if large else _VERSION
        head = _CENTRAL.pack(
            b"PK\x01\x02",
            version,
            _MADE_BY_UNIX,
            version,
            _flags(member),
            _STORED,
            *_dos_time(member.modified_at),
            checksum,
            min(size, _LARGE),
            min(size, _LARGE),
            len(name),
            len(extra),
            0,
            0,
            0,
            _FOLDER_MODE if member.is_folder else _FILE_MODE,
            min(offset, _LARGE),
        )
        return head + name + extra

    def end(self) -> bytes:
        """What follows the central directory (4.3.14 to 4.3.16)."""
        count, at, size = len(self.members), self._directory_at, self._end_at - self._directory_at
        large = b""
        if count >= _MANY or at >= _LARGE or size >= _LARGE:
            rest = _END_64.size - 12  # the record's length does not count its first two fields
            large = _END_64.pack(b"PK\x06\x06", rest, _VERSION_64, _VERSION_64, 0, 0, count, count, size, at)
            large += _LOCATOR_64.pack(b"PK\x06\x07", 0, self._end_at, 1)
        shown = min(count, _MANY)
        return large + _END.pack(b"PK\x05\x06", 0, 0, shown, shown, min(size, _LARGE), min(at, _LARGE), 0)


def _within(part: Part, number: int, at: int, end: int, start: int, stop: int) -> Iterator[Stretch]:
    """What [start, stop) of the archive takes of the part that lies at [at, end)."""
    first, last = max(start, at), min(stop, end)
    if first < last:
        yield Stretch(part, number, first - at, last - at)


def _flags(member: Member) -> int:
    return _UTF_8 if member.is_folder else _UTF_8 | _DESCRIBED


def _dos_time(at: float) -> tuple[int, int]:
    """Time and date as MS-DOS wrote them (4.4.6), in UTC: the field knows no zone, and the extended time stamp says it exactly."""
    moment = datetime.fromtimestamp(min(max(at, _DOS_EPOCH), _DOS_END), UTC)
    return (
        moment.hour << 11 | moment.minute << 5 | moment.second // 2,
        (moment.year - 1980) << 9 | moment.month << 5 | moment.day,
    )


def _extended_time(at: float) -> bytes:
    """The extra field with the time of the last change (0x5455, of Info-ZIP)."""
    return _EXTRA_TIME.pack(0x5455, 5, 1, min(max(int(at), 0), _TIME_MAX))
