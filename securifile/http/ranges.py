"""Ranges, entity tags and preconditions: RFC 9110, sections 8.8, 13 and 14, as pure functions.

An entity tag names the file's id and the version: `"<id>.<version>"`. It is always strong, because a version's bytes
never change, and final as soon as the `PUT` that made it answers. There are no `Last-Modified` dates, and so, as
section 13.1 demands, the two conditions about dates are ignored.

One range is answered with 206. Several in one request are answered with the whole (section 14.2 lets a server ignore
`Range`): nobody asks a file store for several but to make it work hard.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

import attrs

from securifile.model.errors import Code, Refusal
from securifile.model.ids import EntryId

_RANGE = re.compile(r"[ \t]*([0-9]{0,40})-([0-9]{0,40})[ \t]*")
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_OURS = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,17})")
_COMMA = re.compile(r"[ \t]*,[ \t,]*")


# --- ranges ---


@attrs.frozen
class ByteRange:
    """Bytes [start, stop) of a content; never empty."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The one range that a `Range` header asks for, of a content of `size` bytes; None: answer the whole.

    A header that is malformed, of another unit, or asks for several ranges is as if it were not there.

    Raises:
        Refusal: RANGE (416), with `size` as evidence, when no byte of the content is in the range.
    """
    if header is None:
        return None
    unit, equals, text = header.partition("=")
    match = _RANGE.fullmatch(text)
    if not equals or unit.strip(" \t").lower() != "bytes" or match is None:
        return None
    first, last = match.groups()
    if first:
        start = int(first)
        if last and int(last) < start:
            return None
        stop = min(int(last) + 1, size) if last else size
    elif last:
        if size == 0 and int(last) > 0:
            return None  # "the last n bytes" of nothing are nothing, which has no Content-Range
        start, stop = max(size - int(last), 0), size
    else:
        return None
    if start >= stop:
        raise Refusal(Code.RANGE, f"The range holds no byte of this content, which is {size} bytes long.", size=size)
    return ByteRange(start, stop)


def content_range(range: ByteRange, size: int) -> str:
    """The `Content-Range` of a 206."""
    return f"bytes {range.start}-{range.stop - 1}/{size}"


def unsatisfied_range(size: int) -> str:
    """The `Content-Range` of a 416."""
    return f"bytes */{size}"


# --- entity tags ---


def etag_of(file: EntryId, version: int) -> str:
    """The strong entity tag of a version, with its quotes."""
    return f'"{file}.{version}"'


def version_of(etag: str) -> tuple[EntryId, int] | None:
    """The file and version that one of our strong entity tags names; None for any other tag."""
    match = _ETAG.fullmatch(etag)
    ours = _OURS.fullmatch(match[2]) if match and not match[1] else None
    return (EntryId.parse(ours[1]), int(ours[2])) if ours else None


def strongly_equal(one: str, other: str) -> bool:
    """Strong comparison (8.8.3.2): equal, and neither weak."""
    return one == other and not one.startswith("W/")


def weakly_equal(one: str, other: str) -> bool:
    """Weak comparison (8.8.3.2): the same opaque tag."""
    return one.removeprefix("W/") == other.removeprefix("W/")


# --- preconditions ---


@attrs.frozen
class AnyTag:
    """`*`: any content at all."""


@attrs.frozen
class Tags:
    """A list of entity tags as they were written."""

    tags: tuple[str, ...]


Condition = AnyTag | Tags | None
"""What an `If-Match` or `If-None-Match` holds; None: it is not there."""


@attrs.frozen(kw_only=True)
class Preconditions:
    """The conditions of a request."""

    if_match: Condition = None
    if_none_match: Condition = None
    if_range: str | None = None


class Verdict(Enum):
    """What to do with a request whose preconditions were evaluated and did not fail."""

    PROCEED = "proceed"
    NOT_MODIFIED = "not-modified"
    """Answer 304 with the `ETag` and without content."""


def parse_preconditions(header: Callable[[str], str | None]) -> Preconditions:
    """Read the conditions of a request.

    Args:
        header: gives the value of a header by name, joined with commas when it came several times.

    Raises:
        Refusal: BAD_REQUEST for a list of tags that cannot be read: who wrote a condition wants it heeded.
    """
    return Preconditions(
        if_match=_parse_condition("If-Match", header("if-match")),
        if_none_match=_parse_condition("If-None-Match", header("if-none-match")),
        if_range=header("if-range"),
    )


def _parse_condition(name: str, value: str | None) -> Condition:
    if value is None:
        return None
    if value.strip(" \t") == "*":
        return AnyTag()
    tags: list[str] = []
    at = 0
    text = value.strip(" \t,")
    while True:  # Tag by tag, because a comma may stand within the quotes.
        tag = _ETAG.match(text, at)
        if tag is None:
            raise Refusal(Code.BAD_REQUEST, f'{name} must be * or a list of entity tags in double quotes, as the "ETag" header gives them.')
        tags.append(tag[0])
        at = tag.end()
        if at == len(text):
            return Tags(tuple(tags))
        comma = _COMMA.match(text, at)
        if comma is None:
            raise Refusal(Code.BAD_REQUEST, f"{name} holds something between its entity tags that is no comma.")
        at = comma.end()


def evaluate(preconditions: Preconditions, method: str, etag: str | None) -> Verdict:
    """Judge the conditions in the order of RFC 9110, section 13.2.2.

    Args:
        preconditions: of the request.
        method: in capitals.
        etag: of the current version; None when there is no content at that path.

    Raises:
        Refusal: PRECONDITION_FAILED (412), with the current tag as evidence.
    """
    if preconditions.if_match is not None and not _matches(preconditions.if_match, etag, strongly_equal):
        raise Refusal(
            Code.PRECONDITION_FAILED,
            "The file is not the version that If-Match names; get it again before you change it.",
            etag=etag,
        )
    if preconditions.if_none_match is not None and _matches(preconditions.if_none_match, etag, weakly_equal):
        if method in ("GET", "HEAD"):
            return Verdict.NOT_MODIFIED
        raise Refusal(
            Code.PRECONDITION_FAILED, "There is already what If-None-Match excludes at this path; nothing was changed.", etag=etag
        )
    return Verdict.PROCEED


def range_applies(preconditions: Preconditions, etag: str | None) -> bool:
    """Whether a `Range` is to be heeded: there is no `If-Range`, or it strongly matches the current version.

    A date in `If-Range` never matches: we give none.
    """
    return preconditions.if_range is None or (etag is not None and strongly_equal(preconditions.if_range.strip(" \t"), etag))


def _matches(condition: AnyTag | Tags, etag: str | None, equal: Callable[[str, str], bool]) -> bool:
    if etag is None:
        return False
    return isinstance(condition, AnyTag) or any(equal(tag, etag) for tag in condition.tags)
