"""Ranges, entity tags and preconditions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http import ranges
from securifile.http.ranges import AnyTag, ByteRange, Preconditions, Tags, Verdict
from securifile.model.errors import Code, Refusal
from securifile.model.ids import EntryId

ID = EntryId(bytes(range(16)))
TAG = ranges.etag_of(ID, 3)
OTHER = ranges.etag_of(ID, 4)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=0-", ByteRange(0, 10)),
        ("Bytes = 2-5", ByteRange(2, 6)),
        ("bytes=2-500", ByteRange(2, 10)),
        ("bytes=-3", ByteRange(7, 10)),
        ("bytes=-30", ByteRange(0, 10)),
        ("bytes=0-1,4-5", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes", None),
        ("lines=0-1", None),
        ("bytes=+1-2", None),
        ("bytes=0x1-2", None),
        ("bytes=\u0661-2", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: ByteRange | None) -> None:
    """One range is read; several, another unit or nonsense mean the whole."""
    assert ranges.parse_range(header, 10) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-0", 0)])
def test_a_range_without_a_byte_is_refused(header: str, size: int) -> None:
    """Nothing in it: 416, and the size as evidence."""
    with pytest.raises(Refusal) as caught:
        ranges.parse_range(header, size)
    assert caught.value.code is Code.RANGE
    assert caught.value.evidence == {"size": size}


def test_the_last_bytes_of_nothing_are_the_whole() -> None:
    """A suffix of an empty file is the (empty) whole."""
    assert ranges.parse_range("bytes=-5", 0) is None


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50))
def test_a_range_is_the_slice_it_says(first: int, last: int, size: int) -> None:
    """The bytes of `first-last` are those whose index is in between."""
    wanted = [index for index in range(size) if first <= index <= last]
    try:
        got = ranges.parse_range(f"bytes={first}-{last}", size)
    except Refusal:
        assert not wanted
        return
    if first > last:
        assert got is None
    else:
        assert got is not None
        assert list(range(got.start, got.stop)) == wanted
        assert ranges.content_range(got, size) == f"bytes {wanted[0]}-{wanted[-1]}/{size}"


def test_a_tag_names_file_and_version() -> None:
    """The tag of a version is read back; weak and foreign tags name none."""
    assert f'"{ID}.3"' == TAG
    assert ranges.version_of(TAG) == (ID, 3)
    for other in ("W/" + TAG, '"x"', TAG.strip('"'), f'"{ID}.0"', f'"{ID}.03"', f'"{ID}"'):
        assert ranges.version_of(other) is None


def test_comparison_as_in_the_table_of_the_rfc() -> None:
    """The four lines of RFC 9110, section 8.8.3.2."""
    table = [('W/"1"', 'W/"1"', False, True), ('W/"1"', 'W/"2"', False, False), ('W/"1"', '"1"', False, True), ('"1"', '"1"', True, True)]
    for one, other, strong, weak in table:
        assert ranges.strongly_equal(one, other) is strong
        assert ranges.weakly_equal(one, other) is weak


def conditions(**headers: str) -> Preconditions:
    return ranges.parse_preconditions(lambda name: headers.get(name.replace("-", "_")))


def test_lists_of_tags_are_read() -> None:
    """Tags may hold commas, and lists empty members."""
    assert conditions(if_match=' "a,b" , W/"c",,"d" ').if_match == Tags(('"a,b"', 'W/"c"', '"d"'))
    assert conditions(if_none_match=" * ").if_none_match == AnyTag()
    assert conditions() == Preconditions()


@pytest.mark.parametrize("value", ["", "a", '"a', '"a" "b"', '*, "a"', 'w/"a"', '"a";', '"a\x00"'])
def test_a_condition_that_cannot_be_read_is_refused(value: str) -> None:
    """Who wrote a condition wants it heeded: 400, not silence."""
    with pytest.raises(Refusal) as caught:
        conditions(if_match=value)
    assert caught.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("current", [None, TAG])
@pytest.mark.parametrize("match", [None, "*", TAG, OTHER, "W/" + TAG])
@pytest.mark.parametrize("none_match", [None, "*", TAG, OTHER, "W/" + TAG])
def test_the_order_of_the_rfc(method: str, current: str | None, match: str | None, none_match: str | None) -> None:
    """If-Match first and strongly, then If-None-Match and weakly, against the rules written out by hand."""
    given_headers = {name: value for name, value in (("if_match", match), ("if_none_match", none_match)) if value is not None}
    if match is not None and not (current is not None and match in ("*", TAG)):
        expected: object = Code.PRECONDITION_FAILED
    elif none_match is not None and current is not None and none_match != OTHER:
        expected = Verdict.NOT_MODIFIED if method in ("GET", "HEAD") else Code.PRECONDITION_FAILED
    else:
        expected = Verdict.PROCEED
    try:
        got: object = ranges.evaluate(conditions(**given_headers), method, current)
    except Refusal as refusal:
        got = refusal.code
    assert got is expected


def test_if_range_compares_strongly() -> None:
    """Only the very same strong tag lets a range be heeded; a date never does."""
    assert ranges.range_applies(conditions(), TAG)
    assert ranges.range_applies(conditions(if_range=TAG), TAG)
    assert not ranges.range_applies(conditions(if_range="W/" + TAG), TAG)
    assert not ranges.range_applies(conditions(if_range=OTHER), TAG)
    assert not ranges.range_applies(conditions(if_range="Sat, 21 Nov 2026 00:00:00 GMT"), TAG)
    assert not ranges.range_applies(conditions(if_range=TAG), None)


@given(st.text(max_size=40))
def test_any_header_is_read_or_refused(text: str) -> None:
    """No text makes the readers fail otherwise."""
    readers = (lambda: ranges.parse_range("bytes=" + text, 100), lambda: ranges.parse_range(text, 100), lambda: conditions(if_match=text))
    for read in readers:
        try:
            read()
        except Refusal as refusal:
            assert refusal.code in (Code.RANGE, Code.BAD_REQUEST)
