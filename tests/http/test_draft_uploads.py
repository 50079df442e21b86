"""Resumable uploads as the IETF drafts them, as values: what is read, what is refused, what is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http import draft_uploads as draft
from securifile.http.targets import parse_place
from securifile.model.errors import Code, Refusal

SIZES = st.integers(0, draft.LENGTH_MAX)
TARGET = parse_place("alice/folder/ä b")


def headers(**given: str) -> Callable[[str], str | None]:
    return {name.replace("_", "-"): value for name, value in given.items()}.get


def code_of(work: Callable[[], Any]) -> Code:
    with pytest.raises(Refusal) as caught:
        work()
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "meaning"), [("?1", True), (" ?0 ", False), (None, None), ("1", None), ("?2", None), ("true", None), ("", None)]
)
def test_only_booleans_say_whether_an_upload_is_complete(text: str | None, meaning: bool | None) -> None:
    """Anything else is as if the header were not there."""
    assert draft.completes({"upload-complete": text}.get) is meaning


@given(size=SIZES)
def test_the_last_bytes_tell_the_length(size: int) -> None:
    """A creation with all bytes has their number as its length, also when Upload-Length says the same; another number is refused."""
    for said in ({}, {"upload_length": str(size)}):
        asked = draft.parse_creation(headers(upload_complete="?1", **said), body=size, has_body=size > 0, target=TARGET)
        assert (asked.length, asked.target("bob")) == (size, TARGET)
    other = headers(upload_complete="?1", upload_length=str(size + 1 if size < draft.LENGTH_MAX else 0))
    assert code_of(lambda: draft.parse_creation(other, body=size, has_body=True, target=TARGET)) is Code.BAD_REQUEST


@given(offset=SIZES, size=SIZES)
def test_an_append_ends_where_its_last_byte_belongs(offset: int, size: int) -> None:
    """With ?1 the length is offset and body together, if that is not more than can be said; with ?0 it is not known from it."""

    def parse(complete: str) -> Any:
        said = headers(upload_complete=complete, upload_offset=str(offset), content_type="application/partial-upload")
        return draft.parse_append(said, body=size, has_body=size > 0)

    assert (parse("?0").offset, parse("?0").length) == (offset, None)
    if offset + size > draft.LENGTH_MAX:
        assert code_of(lambda: parse("?1")) is Code.TOO_LARGE
    else:
        assert parse("?1").length == offset + size


def test_what_is_not_said_is_asked_for() -> None:
    """The offset, whether it is the end, the media type, and the length of a last body that comes in chunks."""
    media = {"content_type": "application/partial-upload"}
    for given_, code in (
        ({"upload_complete": "?0", **media}, Code.BAD_REQUEST),
        ({"upload_complete": "?0", "upload_offset": "-1", **media}, Code.BAD_REQUEST),
        ({"upload_offset": "0", **media}, Code.BAD_REQUEST),
        ({"upload_complete": "?0", "upload_offset": "0", "content_type": "application/offset+octet-stream"}, Code.MEDIA_TYPE),
        ({"upload_complete": "?1", "upload_offset": "0", **media}, Code.LENGTH_REQUIRED),
    ):
        assert code_of(lambda given_=given_: draft.parse_append(headers(**given_), body=None, has_body=True)) is code, given_  # type: ignore[misc]


def test_how_far_an_upload_is_is_told_in_structured_fields() -> None:
    """Offset, completeness, limits with what is left of its time, and the length when it is known."""
    told = dict(draft.progress(5, 9, complete=False, seconds_left=12.7))
    assert told == {
        b"Upload-Offset": b"5",
        b"Upload-Complete": b"?0",
        b"Upload-Length": b"9",
        b"Upload-Limit": b"max-size=999999999999999, max-age=12",
        b"Cache-Control": b"no-store",
    }
    assert b"Upload-Length" not in dict(draft.progress(9, None, complete=True, seconds_left=None))
    assert b"max-age" not in dict(draft.progress(9, None, complete=True, seconds_left=None))[b"Upload-Limit"]
