"""tus 1.0, the protocol for resumable uploads, as values: what a request asks for, whether that can be, what the answer says.

The protocol is at https://tus.io/protocols/resumable-upload; sections are named in brackets. Nothing here knows where bytes are
kept. A client creates an upload with `POST`, asks with `HEAD` how far it is, and sends the next bytes with `PATCH`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from email.utils import formatdate
from urllib.parse import urlsplit

import attrs

from securifile.http.digest_fields import parse_digests
from securifile.http.targets import Target, parse_place
from securifile.model.digests import DigestAlgorithm, Hasher
from securifile.model.errors import Code, Refusal
from securifile.model.ids import AttemptId

VERSION = "1.0.0"
EXTENSIONS = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "termination",
    "concatenation",
)
MEDIA_TYPE = "application/offset+octet-stream"
COLLECTION = "/api/v1/uploads"
"""Where uploads are created; each is beneath it, by its id, on every node."""

LENGTH_MAX = 10**18 - 1
"""As a Content-Length may be: an exabyte."""
METADATA_BYTES_MAX = 16 * 1024
"""A path of 4096 bytes in base64, and as much again twice; it is kept, and sent with every answer to HEAD."""
PARTS_MAX = 1000
"""Of a final upload: each is looked for on every node."""

Header = Callable[[str], str | None]
"""Gives a header of a request by its name in small letters."""

_NUMBER = re.compile(r"[0-9]{1,18}")
_METADATA_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")


class _Crc32:
    """CRC-32 in the form of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes."""
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        """Big-endian, as everywhere in tus servers."""
        return self._value.to_bytes(4, "big")


_HASHERS: Mapping[str, Callable[[], Hasher]] = {
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _Crc32,
}


# --- what is asked ---


@attrs.frozen
class Checksum:
    """Of the bytes of one request [checksum]."""

    algorithm: str
    digest: bytes

    def hasher(self) -> Hasher:
        """A fresh one of the algorithm."""
        return _HASHERS[self.algorithm]()


@attrs.frozen
class Partial:
    """The upload is to become a part of another [concatenation]."""


@attrs.frozen
class Final:
    """The upload is made of these, in this order [concatenation]."""

    parts: tuple[AttemptId, ...]


@attrs.frozen(kw_only=True)
class Creation:
    """A `POST` to the collection."""

    length: int | None
    """None: it is told later; of a final upload it is that of its parts."""
    metadata: str
    """As it came."""
    fields: Mapping[str, bytes]
    """The metadata, decoded."""
    concat: Partial | Final | None
    concat_text: str | None
    """As it came."""
    checksum: Checksum | None
    if_match: str | None
    if_none_match: str | None
    digests: Mapping[DigestAlgorithm, bytes]
    """What the whole must have, from `Repr-Digest`."""

    def target(self, username: str) -> Target:
        """The file that is to be made: metadata `path`, as `owner/folder/name`; else `filename` in one's own root folder.

        Raises:
            Refusal: BAD_PATH, BAD_REQUEST, IS_A_FOLDER.
        """
        text = self._text("path")
        if text is None:
            name = self._text("filename")
            if name is None:
                raise Refusal(
                    Code.BAD_REQUEST,
                    "Say what the upload is to become: Upload-Metadata with path (owner/folder/name) or filename, its value in base64.",
                )
            text = f"{username}/{name}"
        target = parse_place(text)
        if target.folder:
            raise Refusal(Code.IS_A_FOLDER, "This is a folder. Name a file in it.")
        return target

    def _text(self, key: str) -> str | None:
        value = self.fields.get(key)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            raise Refusal(Code.BAD_PATH, f"The {key} in Upload-Metadata must be UTF-8, in base64.") from None


@attrs.frozen(kw_only=True)
class Append:
    """A `PATCH`."""

    offset: int
    length: int | None
    """Of the whole, told now [creation-defer-length]."""
    checksum: Checksum | None


def check_version(header: Header) -> None:
    """Refuse another version of the protocol, as it asks. Raises `Refusal` PRECONDITION_FAILED."""
    said = header("tus-resumable")
    if said != VERSION:
        raise Refusal(Code.PRECONDITION_FAILED, f"Resumable uploads here are tus {VERSION}: send Tus-Resumable: {VERSION}.")


def parse_creation(header: Header, has_body: bool) -> Creation:
    """Read a `POST`.

    Raises:
        Refusal: BAD_REQUEST, MEDIA_TYPE, TOO_LARGE.
    """
    metadata = header("upload-metadata") or ""
    concat_text = header("upload-concat")
    concat = None if concat_text is None else _parse_concat(concat_text)
    length = _number("Upload-Length", header("upload-length"))
    deferred = header("upload-defer-length")
    if deferred not in (None, "1"):
        raise Refusal(Code.BAD_REQUEST, "Upload-Defer-Length can only be 1.")
    if isinstance(concat, Final):
        if length is not None or deferred is not None or has_body:
            raise Refusal(Code.BAD_REQUEST, "A final upload has neither a length nor bytes of its own, only those of its parts.")
    elif (length is None) == (deferred is None):
        raise Refusal(Code.BAD_REQUEST, "Say how long the upload is: Upload-Length, or Upload-Defer-Length: 1 when it is not known yet.")
    if has_body:
        _check_media_type(header)
    digests = header("repr-digest")
    return Creation(
        length=length,
        metadata=metadata,
        fields=parse_metadata(metadata),
        concat=concat,
        concat_text=concat_text,
        checksum=_parse_checksum(header("upload-checksum")),
        if_match=header("if-match"),
        if_none_match=header("if-none-match"),
        digests={} if digests is None else parse_digests(digests),
    )


def parse_append(header: Header) -> Append:
    """Read a `PATCH`. Raises `Refusal` BAD_REQUEST, MEDIA_TYPE."""
    _check_media_type(header)
    offset = _number("Upload-Offset", header("upload-offset"))
    if offset is None:
        raise Refusal(Code.BAD_REQUEST, "Say where the bytes belong: Upload-Offset.")
    return Append(
        offset=offset,
        length=_number("Upload-Length", header("upload-length")),
        checksum=_parse_checksum(header("upload-checksum")),
    )


def parse_metadata(text: str) -> dict[str, bytes]:
    """Keys and values of an `Upload-Metadata` [creation]. Raises `Refusal` BAD_REQUEST, TOO_LARGE."""
    if len(text) > METADATA_BYTES_MAX:
        raise Refusal(Code.TOO_LARGE, f"Upload-Metadata may have {METADATA_BYTES_MAX} bytes.")
    fields: dict[str, bytes] = {}
    for pair in text.split(",") if text.strip(" ") else []:
        key, _, value = pair.strip(" ").partition(" ")
        if not _METADATA_KEY.fullmatch(key) or key in fields:
            raise Refusal(Code.BAD_REQUEST, "Upload-Metadata is a list of keys, each once, with a space and a value in base64.")
        fields[key] = _base64(f"The {key} in Upload-Metadata", value.strip(" "))
    return fields


def parse_upload(path: str) -> AttemptId:
    """The id of the upload at the path of a URL. Raises `Refusal` NOT_FOUND."""
    collection, _, name = path.rpartition("/")
    try:
        attempt = AttemptId.parse(name)
    except ValueError:
        attempt = None
    if collection != COLLECTION or attempt is None or str(attempt) != name:
        raise Refusal(Code.NOT_FOUND, f"There is no such upload. Create one with POST {COLLECTION}.")
    return attempt


def url_of(attempt: AttemptId) -> str:
    """The path of an upload's URL, the same on every node."""
    return f"{COLLECTION}/{attempt}"


def _parse_concat(text: str) -> Partial | Final:
    if text == "partial":
        return Partial()
    word, semicolon, urls = text.partition(";")
    parts = urls.split(" ") if semicolon else []
    if word != "final" or not any(parts):
        raise Refusal(Code.BAD_REQUEST, "Upload-Concat is partial, or final; with the URLs of its parts, spaces between them.")
    if len(parts) > PARTS_MAX:
        raise Refusal(Code.TOO_LARGE, f"A final upload may have {PARTS_MAX} parts.")
    try:
        return Final(tuple(parse_upload(urlsplit(url).path) for url in parts if url))
    except ValueError:
        raise Refusal(Code.BAD_REQUEST, "The parts in Upload-Concat must be URLs of uploads here.") from None


def _parse_checksum(text: str | None) -> Checksum | None:
    if text is None:
        return None
    algorithm, _, value = text.partition(" ")
    if algorithm not in _HASHERS:
        raise Refusal(Code.BAD_REQUEST, f"Upload-Checksum knows {', '.join(_HASHERS)}.", algorithms=list(_HASHERS))
    digest = _base64("Upload-Checksum", value.strip(" "))
    if len(digest) != len(_HASHERS[algorithm]().digest()):
        raise Refusal(Code.BAD_REQUEST, f"Upload-Checksum is no {algorithm} in base64.")
    return Checksum(algorithm, digest)


def _check_media_type(header: Header) -> None:
    said = (header("content-type") or "").partition(";")[0].strip(" ").lower()
    if said != MEDIA_TYPE:
        raise Refusal(Code.MEDIA_TYPE, f"The bytes of an upload are sent with Content-Type: {MEDIA_TYPE}.")


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise Refusal(Code.BAD_REQUEST, f"{name} is a number of bytes, of at most 18 digits.")
    return int(text)


def _base64(what: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(Code.BAD_REQUEST, f"{what} is not base64.") from None


# --- judging ---


def judge_append(asked: Append, *, offset: int, length: int | None, body: int | None, has_body: bool) -> int | None:
    """Whether bytes can be taken, and how long the whole is, as far as is known then.

    The last `PATCH`, sent again because its answer was lost, is all right: the client learns that it is done.

    Args:
        asked: what came.
        offset: where the upload is.
        length: of the whole, if known.
        body: bytes that come, if known.
        has_body: whether any come.

    Raises:
        Refusal: CONFLICT with the offset as evidence; BAD_REQUEST, TOO_LARGE.
    """
    if asked.length is not None:
        if length not in (None, asked.length):
            raise Refusal(Code.BAD_REQUEST, f"The upload is {length} bytes long; that cannot be changed.", length=length)
        length = asked.length
    if asked.offset != offset and not (offset == length and body is not None and asked.offset + body == length):
        raise Refusal(Code.CONFLICT, f"The upload is at {offset}, not at {asked.offset}. Go on from there.", offset=offset)
    size = (body or 0) if has_body else 0
    if length is not None and max(offset, asked.offset + size) > length:
        raise Refusal(Code.TOO_LARGE, f"The upload is {length} bytes long, and more than that came.", length=length)
    return length


def mismatch(checksum: Checksum) -> Refusal:
    """The refusal of bytes whose checksum is another one."""
    return Refusal(Code.BAD_CHECKSUM, f"What arrived has another {checksum.algorithm}. Nothing of it was kept; send it again.")


# --- answers ---

ALWAYS = ((b"Tus-Resumable", VERSION.encode()), (b"Tus-Version", VERSION.encode()))
"""In every answer."""

Headers = tuple[tuple[bytes, bytes], ...]


def options() -> Headers:
    """What this server can do."""
    return (
        (b"Tus-Extension", ",".join(EXTENSIONS).encode()),
        (b"Tus-Checksum-Algorithm", ",".join(_HASHERS).encode()),
    )


def progress(offset: int, expires_at: float | None) -> Headers:
    """How far the upload is, and until when it is kept; None: it is complete, and stays."""
    headers: list[tuple[bytes, bytes]] = [(b"Upload-Offset", b"%d" % offset), (b"Cache-Control", b"no-store")]
    if expires_at is not None:
        headers.append((b"Upload-Expires", formatdate(expires_at, usegmt=True).encode("ascii")))
    return tuple(headers)


def description(length: int | None, metadata: str, concat: str | None) -> Headers:
    """What the upload was created as."""
    headers = [(b"Upload-Defer-Length", b"1") if length is None else (b"Upload-Length", b"%d" % length)]
    if metadata:
        headers.append((b"Upload-Metadata", metadata.encode("latin-1", "replace")))
    if concat is not None:
        headers.append((b"Upload-Concat", concat.encode("latin-1", "replace")))
    return tuple(headers)
