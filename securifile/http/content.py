"""The headers that describe a version, the same from whichever server they come."""

from __future__ import annotations

import mimetypes
from urllib.parse import quote

from securifile.http.digest_fields import format_digest
from securifile.model.facts import File

HeaderList = list[tuple[bytes, bytes]]


def content_headers(file: File, etag: str) -> HeaderList:
    """The headers of an answer with a file's content, or about it (RFC 9110, RFC 9530)."""
    version = file.version
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = download_headers(file.name, kind, etag)
    digest = format_digest(version.algorithm, version.digest)
    if digest is not None:
        headers.append((b"Repr-Digest", digest.encode("ascii")))
    return headers


def download_headers(name: str, kind: str, etag: str) -> HeaderList:
    """The headers of anything that people download, and keep as `name` (RFC 9110, RFC 6266).

    No `Last-Modified`: dates in whole seconds cannot tell two versions apart, and so conditions about dates are not heeded (`ranges.py`).
    """
    return [
        (b"ETag", etag.encode("ascii")),
        (b"Accept-Ranges", b"bytes"),
        (b"Cache-Control", b"private, no-cache"),
        (b"Content-Type", kind.encode("ascii")),
        (b"Content-Disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}".encode("ascii")),
        # What people upload must never run in this server's name.
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Content-Security-Policy", b"sandbox; default-src 'none'"),
    ]
