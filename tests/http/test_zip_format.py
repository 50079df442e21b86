"""Zip archives as plans: what other programs read in them, whatever part is asked for."""

from __future__ import annotations

import io
import zipfile
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http.zip_format import Archive, Member, Part

GIB = 1 << 30
SMALL = 8
AT = datetime(2026, 11, 21, 12, 30, 42, tzinfo=UTC).timestamp()

names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
times = st.one_of(st.floats(0, 5e9), st.just(AT))


@st.composite
def contents(draw: st.DrawFn) -> dict[str, bytes]:
    """Files and folders by name; folders end with a slash."""
    files = draw(st.dictionaries(names, st.binary(max_size=40), max_size=6))
    folders = draw(st.lists(names, max_size=2))
    return {**files, **{f"{folder}/": b"" for folder in folders}}


def planned(content: dict[str, bytes], at: float = AT) -> Archive:
    return Archive([Member(name=name, size=len(data), modified_at=at) for name, data in content.items()])


def rendered(archive: Archive, content: dict[str, bytes], start: int, stop: int) -> bytes:
    """The bytes [start, stop) of an archive, as who has the contents makes them."""
    data = list(content.values())
    pieces = []
    for stretch in archive.stretches(start, stop):
        checksum = zlib.crc32(data[stretch.member]) if data else 0
        whole = {
            Part.LOCAL: lambda number=stretch.member: archive.local(number),
            Part.CONTENT: lambda number=stretch.member: data[number],
            Part.DESCRIPTOR: lambda number=stretch.member, checksum=checksum: archive.descriptor(number, checksum),
            Part.CENTRAL: lambda number=stretch.member, checksum=checksum: archive.central(number, checksum),
            Part.END: archive.end,
        }[stretch.part]()
        assert stretch.start < stretch.stop <= len(whole)
        pieces.append(whole[stretch.start : stretch.stop])
    return b"".join(pieces)


@given(contents(), times)
def test_what_is_put_in_is_found(content: dict[str, bytes], at: float) -> None:
    """An independent reader finds all names and contents, the checksums hold, and the length is what was said beforehand."""
    archive = planned(content, at)
    whole = rendered(archive, content, 0, archive.size)
    assert len(whole) == archive.size
    with zipfile.ZipFile(io.BytesIO(whole)) as read:
        assert read.testzip() is None
        assert {info.filename: read.read(info) for info in read.infolist()} == content
        assert all(info.is_dir() == info.filename.endswith("/") for info in read.infolist())


@given(contents(), st.data())
def test_any_part_is_a_part_of_the_whole(content: dict[str, bytes], data: st.DataObject) -> None:
    """A range of the archive is the same bytes as in the whole."""
    archive = planned(content)
    whole = rendered(archive, content, 0, archive.size)
    start = data.draw(st.integers(0, archive.size - 1))
    stop = data.draw(st.integers(start + 1, archive.size))
    assert rendered(archive, content, start, stop) == whole[start:stop]


@pytest.mark.parametrize(
    ("at", "read"), [(AT, (2026, 11, 21, 12, 30, 42)), (0.0, (1980, 1, 1, 0, 0, 0)), (1e12, (2107, 12, 31, 23, 59, 58))]
)
def test_times(at: float, read: tuple[int, ...]) -> None:
    """The time of the last change is told; what the old field cannot hold becomes its first or last moment."""
    archive = planned({"a": b""}, at)
    with zipfile.ZipFile(io.BytesIO(rendered(archive, {"a": b""}, 0, archive.size))) as opened:
        assert opened.infolist()[0].date_time == read


class Virtual(io.RawIOBase):
    """An archive of contents that are all zeros, and never in memory."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.at = 0

    def checksum(self, number: int) -> int:
        """Of what is small; the test reads nothing else to its end."""
        size = self.archive.members[number].size
        return zlib.crc32(bytes(size)) if size <= SMALL else 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.archive.size)[whence]
        return self.at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        stop = min(self.at + len(buffer), self.archive.size)
        data = b"".join(
            bytes(stretch.stop - stretch.start)
            if stretch.part is Part.CONTENT
            else {
                Part.LOCAL: lambda number: self.archive.local(number),
                Part.DESCRIPTOR: lambda number: self.archive.descriptor(number, self.checksum(number)),
                Part.CENTRAL: lambda number: self.archive.central(number, self.checksum(number)),
                Part.END: lambda _: self.archive.end(),
            }[stretch.part](stretch.member)[stretch.start : stretch.stop]
            for stretch in self.archive.stretches(self.at, stop)
        )
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


@pytest.mark.parametrize(
    "sizes",
    [
        [5 * GIB, 3],
        [3 * GIB, 3 * GIB, 7],
        [0xFFFF_FFFE],
        [0xFFFF_FFFF],
        [5 * GIB, 5 * GIB],
        [0] * 65_534,
        [0] * 65_535,
    ],
    ids=lambda sizes: f"{len(sizes)} of {max(sizes)}",
)
def test_what_is_large(sizes: list[int]) -> None:
    """Beyond 4 GiB and 65,535 members an independent reader finds sizes and places too."""
    archive = Archive([Member(name=f"{number}.bin", size=size, modified_at=AT) for number, size in enumerate(sizes)])
    with zipfile.ZipFile(Virtual(archive)) as read:  # type: ignore[arg-type]
        found = read.infolist()
        assert [info.file_size for info in found] == sizes
        last = found[-1]
        with read.open(last) as opened:
            assert opened.read(SMALL) == bytes(min(sizes[-1], SMALL))


def test_small_archives_need_no_new_program() -> None:
    """Nothing of zip64 is in an archive that does without: no record of its end, and readers of version 2.0 are enough."""
    content = {"a": b"12", "b/": b""}
    archive = planned(content)
    whole = rendered(archive, content, 0, archive.size)
    assert b"PK\x06\x06" not in whole
    with zipfile.ZipFile(io.BytesIO(whole)) as read:
        assert {info.extract_version for info in read.infolist()} == {20}
