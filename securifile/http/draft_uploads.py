"""Resumable Uploads for HTTP, the protocol that the IETF drafts, as values: what a request asks for, and what the answer says.

The draft is draft-ietf-httpbis-resumable-upload, read at revision 15 (November 2026); sections are named in brackets. It says the
same as tus with other words, so what is asked becomes the values of `http/tus.py`, and whoever keeps the bytes knows one protocol only.
A client makes any `PUT` of a file resumable by the header `Upload-Complete`; and `POST` to the collection creates an upload as with tus.

One thing is otherwise than in the draft: an upload whose length is known is complete with its last byte, even when `Upload-Complete: ?0`
was sent with it. The client that says `?1` afterwards hears that it is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from securifile.http import tus
from securifile.http.digest_fields import parse_digests
from securifile.http.targets import Target
from securifile.http.tus import Header, Headers
from securifile.model.errors import Code, Refusal

MEDIA_TYPE = "application/partial-upload"
RESUMPTION_SUPPORTED = (104, b"Upload Resumption Supported")
LENGTH_MAX = 10**15 - 1
"""The largest integer of a structured field (RFC 9651)."""

_BOOLEAN: Mapping[str, bool] = {"?0": False, "?1": True}
_INTEGER = re.compile(r"[0-9]{1,15}")


def completes(header: Header) -> bool | None:
    """Whether the request has the last bytes of an upload [Completeness]; None when it speaks of no upload in this protocol."""
    return _BOOLEAN.get((header("upload-complete") or "").strip(" "))


def parse_creation(header: Header, *, body: int | None, has_body: bool, target: Target | None) -> tus.Creation:
    """Read a request that creates an upload [Upload Creation].

    Args:
        body: bytes that come along, if known.
        target: what it is to become; None: `Upload-Metadata` says so, as with tus.

    Raises:
        Refusal: BAD_REQUEST, LENGTH_REQUIRED, TOO_LARGE.
    """
    length = _length(header, offset=0, body=body, has_body=has_body)
    metadata = header("upload-metadata") or ""
    if target is not None:
        metadata = f"path {base64.b64encode(str(target).encode()).decode('ascii')}"
    digests = header("repr-digest")
    return tus.Creation(
        length=length,
        metadata=metadata,
        fields=tus.parse_metadata(metadata),
        concat=None,
        concat_text=None,
        checksum=None,
        if_match=header("if-match"),
        if_none_match=header("if-none-match"),
        digests={} if digests is None else parse_digests(digests),
    )


def parse_append(header: Header, *, body: int | None, has_body: bool) -> tus.Append:
    """Read a `PATCH` [Upload Append]. Raises `Refusal` BAD_REQUEST, LENGTH_REQUIRED, MEDIA_TYPE, TOO_LARGE."""
    if has_body and (header("content-type") or "").partition(";")[0].strip(" ").lower() != MEDIA_TYPE:
        raise Refusal(Code.MEDIA_TYPE, f"The bytes of an upload are sent with Content-Type: {MEDIA_TYPE}.")
    offset = _integer(header("upload-offset"))
    if offset is None or completes(header) is None:
        raise Refusal(
            Code.BAD_REQUEST, "Say where the bytes belong, and whether they are the last: Upload-Offset, and Upload-Complete: ?0 or ?1."
        )
    return tus.Append(offset=offset, length=_length(header, offset=offset, body=body, has_body=has_body), checksum=None)


def progress(offset: int, length: int | None, *, complete: bool, seconds_left: float | None) -> Headers:
    """How far the upload is [Offset, Completeness, Length, Limits].

    Args:
        seconds_left: for how long it is kept still; None: it does not end.
    """
    headers = [
        (b"Upload-Offset", b"%d" % offset),
        (b"Upload-Complete", b"?1" if complete else b"?0"),
        (b"Upload-Limit", limits(seconds_left)),
        (b"Cache-Control", b"no-store"),
    ]
    if length is not None:
        headers.append((b"Upload-Length", b"%d" % length))
    return tuple(headers)


def limits(seconds_left: float | None = None) -> bytes:
    """The value of `Upload-Limit` [Limits]."""
    age = b"" if seconds_left is None else b", max-age=%d" % max(0, seconds_left)
    return b"max-size=%d" % LENGTH_MAX + age


def _length(header: Header, *, offset: int, body: int | None, has_body: bool) -> int | None:
    """How long the whole is, as far as the request says [Length]."""
    said = _integer(header("upload-length"))
    if not completes(header):
        return said
    if has_body and body is None:
        if said is None:
            raise Refusal(Code.LENGTH_REQUIRED, "Say how long the upload is: Content-Length, or Upload-Length.")
        return said
    length = offset + (body or 0)
    if said not in (None, length):
        raise Refusal(Code.BAD_REQUEST, f"Upload-Length says {said}, and with these last bytes the upload has {length}.", length=length)
    if length > LENGTH_MAX:
        raise Refusal(Code.TOO_LARGE, f"An upload may have {LENGTH_MAX} bytes.")
    return length


def _integer(text: str | None) -> int | None:
    """A structured field that is a non-negative integer; anything else is as if it were not there, as the draft says."""
    return int(text) if text is not None and _INTEGER.fullmatch(text.strip(" ")) else None
