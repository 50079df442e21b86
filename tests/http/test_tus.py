"""tus 1.0 as values: what is read, what is refused, what is answered."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http import tus
from securifile.http.problems import status_of
from securifile.model.errors import Code, Refusal
from securifile.model.ids import AttemptId

IDS = st.binary(min_size=16, max_size=16).map(AttemptId)
KEYS = st.text(st.sampled_from("abcdefgh-_.XYZ019"), min_size=1, max_size=10)


def headers(**given: str) -> Callable[[str], str | None]:
    return {name.replace("_", "-"): value for name, value in given.items()}.get


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def code_of(work: Callable[[], Any]) -> Code:
    with pytest.raises(Refusal) as caught:
        work()
    return caught.value.code


@given(fields=st.dictionaries(KEYS, st.binary(max_size=40), max_size=6), spaces=st.sampled_from(["", " "]))
def test_metadata_is_read_as_it_was_written(fields: dict[str, bytes], spaces: str) -> None:
    """Keys and values come out as they went in, empty values too; another order or spaces after commas make no difference."""
    text = f",{spaces}".join(f"{key} {encoded(value)}" if value else key for key, value in fields.items())
    assert tus.parse_metadata(text) == fields


@given(text=st.text(max_size=60))
def test_any_metadata_is_read_or_refused(text: str) -> None:
    """No text makes it fail otherwise."""
    try:
        tus.parse_metadata(text)
    except Refusal as refusal:
        assert refusal.code in (Code.BAD_REQUEST, Code.TOO_LARGE)


@given(attempt=IDS, base=st.sampled_from(["", "https://n1:9443", "http://127.0.0.1:1"]))
def test_an_url_names_its_upload(attempt: AttemptId, base: str) -> None:
    """The path that is given out is read back, alone and as a part of a final upload, absolute or not."""
    url = tus.url_of(attempt)
    assert tus.parse_upload(url) == attempt
    asked = tus.parse_creation(headers(upload_concat=f"final;{base}{url} {url}"), False)
    assert asked.concat == tus.Final((attempt, attempt))


@pytest.mark.parametrize(
    "path", ["/api/v1/uploads", "/api/v1/uploads/", "/api/v1/uploads/xyz", "/api/v1/files/" + "0" * 32, "/" + "0" * 32]
)
def test_other_urls_name_none(path: str) -> None:
    """What is not an upload's URL is not there."""
    assert code_of(lambda: tus.parse_upload(path)) is Code.NOT_FOUND


@given(
    offset=st.integers(0, 50),
    length=st.none() | st.integers(0, 50),
    at=st.integers(0, 50),
    body=st.integers(0, 60),
    told=st.none() | st.integers(0, 50),
)
def test_an_append_is_judged_by_where_the_upload_is(offset: int, length: int | None, at: int, body: int, told: int | None) -> None:
    """Taken are bytes that begin where the upload is and do not go beyond its length, which is told once; and the last ones once more."""
    if length is not None and offset > length:
        return
    asked = tus.Append(offset=at, length=told, checksum=None)
    known = length if told is None else told
    again = known is not None and offset == known and at + body == known
    good = (
        (told is None or length in (None, told)) and (at == offset or again) and (known is None or (at + body <= known and offset <= known))
    )
    judge = lambda: tus.judge_append(asked, offset=offset, length=length, body=body, has_body=body > 0)  # noqa: E731
    if good:
        assert judge() == known
    else:
        assert code_of(judge) in (Code.CONFLICT, Code.BAD_REQUEST, Code.TOO_LARGE)


def test_the_conflict_says_where_to_go_on() -> None:
    """Whoever is wrong about the offset learns it from the refusal, which is a 409."""
    with pytest.raises(Refusal) as caught:
        tus.judge_append(tus.Append(offset=3, length=None, checksum=None), offset=7, length=10, body=1, has_body=True)
    assert status_of(caught.value.code) == 409 and caught.value.evidence["offset"] == 7


@pytest.mark.parametrize(
    ("said", "has_body", "code"),
    [
        ({}, False, Code.BAD_REQUEST),
        ({"upload_length": "5", "upload_defer_length": "1"}, False, Code.BAD_REQUEST),
        ({"upload_defer_length": "2"}, False, Code.BAD_REQUEST),
        ({"upload_length": "-5"}, False, Code.BAD_REQUEST),
        ({"upload_length": "٣"}, False, Code.BAD_REQUEST),
        ({"upload_length": "5", "upload_metadata": "path !"}, False, Code.BAD_REQUEST),
        ({"upload_length": "5", "upload_metadata": "a YQ==,a YQ=="}, False, Code.BAD_REQUEST),
        ({"upload_length": "5"}, True, Code.MEDIA_TYPE),
        ({"upload_length": "5", "upload_concat": "whole"}, False, Code.BAD_REQUEST),
        ({"upload_concat": "final;"}, False, Code.BAD_REQUEST),
        ({"upload_concat": "final;/elsewhere"}, False, Code.NOT_FOUND),
        ({"upload_length": "5", "upload_concat": f"final;/api/v1/uploads/{'0' * 32}"}, False, Code.BAD_REQUEST),
        ({"upload_length": "5", "upload_checksum": "sha3 YQ=="}, False, Code.BAD_REQUEST),
        ({"upload_length": "5", "upload_checksum": "sha1 YQ=="}, False, Code.BAD_REQUEST),
    ],
)
def test_creations_that_mean_nothing_are_refused(said: dict[str, str], has_body: bool, code: Code) -> None:
    """What cannot be understood, or contradicts itself, creates nothing."""
    assert code_of(lambda: tus.parse_creation(headers(**said), has_body)) is code


def test_where_the_upload_goes() -> None:
    """The metadata's path; else its filename, in one's own root folder; a folder or nothing is refused."""

    def target(**fields: bytes) -> str:
        metadata = ",".join(f"{key} {encoded(value)}" for key, value in fields.items())
        return str(tus.parse_creation(headers(upload_length="1", upload_metadata=metadata), False).target("alice"))

    assert target(path="bob/ordner/ä".encode(), filename=b"x") == "bob/ordner/ä"
    assert target(filename=b"x") == "alice/x"
    assert code_of(lambda: target(path=b"bob/")) is Code.IS_A_FOLDER
    assert code_of(lambda: target(other=b"x")) is Code.BAD_REQUEST
    assert code_of(lambda: target(path=b"bob/\xff")) is Code.BAD_PATH
    assert code_of(lambda: target(path=b"bob/../x")) is Code.BAD_PATH


@given(data=st.binary(max_size=100), cut=st.integers(0, 100))
def test_checksums_are_those_of_the_field(data: bytes, cut: int) -> None:
    """Each algorithm that is offered gives the known value, in pieces too."""
    known = {
        "sha1": hashlib.sha1(data).digest(),
        "sha256": hashlib.sha256(data).digest(),
        "sha512": hashlib.sha512(data).digest(),
        "md5": hashlib.md5(data).digest(),
        "crc32": zlib.crc32(data).to_bytes(4, "big"),
    }
    offered = dict(tus.options())[b"Tus-Checksum-Algorithm"].decode().split(",")
    assert set(offered) == set(known)
    for name, digest in known.items():
        said = headers(content_type=tus.MEDIA_TYPE, upload_offset="0", upload_checksum=f"{name} {encoded(digest)}")
        checksum = tus.parse_append(said).checksum
        assert checksum is not None
        hasher = checksum.hasher()
        hasher.update(data[:cut])
        hasher.update(data[cut:])
        assert hasher.digest() == checksum.digest == digest


def test_another_version_is_not_spoken() -> None:
    """A client of another version of the protocol is refused with 412, as the protocol says."""
    tus.check_version(headers(tus_resumable="1.0.0"))
    for said in ({}, {"tus_resumable": "0.2.2"}):
        assert status_of(code_of(lambda said=said: tus.check_version(headers(**said)))) == 412  # type: ignore[misc]


def test_what_is_told_of_an_upload() -> None:
    """Offset, expiry as a date of HTTP, length or that it is not known, metadata and concatenation as they came."""
    assert dict(tus.progress(5, 0.0))[b"Upload-Expires"] == b"Thu, 01 Jan 1970 00:00:00 GMT"
    assert dict(tus.progress(5, None)) == {b"Upload-Offset": b"5", b"Cache-Control": b"no-store"}
    assert dict(tus.description(None, "", None)) == {b"Upload-Defer-Length": b"1"}
    assert dict(tus.description(7, "a YQ==", "partial")) == {
        b"Upload-Length": b"7",
        b"Upload-Metadata": b"a YQ==",
        b"Upload-Concat": b"partial",
    }
