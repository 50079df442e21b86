"""HTTP/1.1 requests as bytes: a head, then a body, read by objects that own no socket.

Feed a `HeadReader` until it gives a `Head`; feed a `body_reader(head)` until it has `ended`; what came after is in `rest` and
belongs to the next request. Any split of the same bytes gives the same results.

What is refused here is refused because two servers might read it in two ways (RFC 9112, section 11: request smuggling), or
because it costs more than it can be worth. The reader is as strict as nginx, and stricter with bare line feeds.
After a refusal the connection cannot be used any more: nobody knows where the next request begins.
"""

from __future__ import annotations

import re

import attrs

from securifile.model.errors import Code, Refusal

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([/?][^#]*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
"""Up to an exabyte; more digits than a 64-bit number has are nobody's file."""
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")

METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})
"""What a route may have; the rest of the registry (CONNECT, TRACE, WebDAV) is answered 501."""

CHUNK_LINE_BYTES_MAX = 1024
"""A chunk's size takes 15 digits; the rest is for extensions, which nobody uses."""
TRAILER_BYTES_MAX = 16 * 1024
"""Trailers are read and dropped."""


@attrs.frozen(kw_only=True)
class HeadLimits:
    """How much a head may hold."""

    request_line_bytes_max: int = 16 * 1024
    """A path of 4096 bytes, each percent-encoded, fits with its query."""
    header_bytes_max: int = 64 * 1024
    """All fields together; browsers with many cookies send 16 KiB."""
    header_fields_max: int = 100
    """A browser sends about 20."""


@attrs.frozen(kw_only=True)
class Head:
    """All that comes before the body of a request, understood."""

    method: bytes
    path: bytes
    """Still percent-encoded; begins with a slash, or is `*`."""
    query: bytes | None
    version: bytes
    """`HTTP/1.1` or `HTTP/1.0`."""
    fields: tuple[tuple[bytes, bytes], ...]
    """Names as they were written, values without white space around them."""
    host: bytes | None
    content_length: int | None
    """None when chunked, and when there is no body."""
    chunked: bool
    expects_continue: bool
    """The client waits for `100 Continue` before it sends the body."""
    keep_alive: bool
    """The connection may be used again, as far as the client is concerned."""

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow."""
        return self.chunked or bool(self.content_length)


class HeadReader:
    """Reads one head.

    Attributes:
        begun: whether a byte of the request has come.
        rest: after the head was given, the bytes beyond it.
    """

    def __init__(self, limits: HeadLimits) -> None:
        self.begun = False
        self.rest = b""
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0
        self._blank_lines = 0
        self._request_line: bytes | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._fields_bytes = 0

    def feed(self, data: bytes) -> Head | None:
        """Take bytes; the head, once it is complete. Not to be called again then, nor after it raised.

        Raises:
            Refusal: what the head will be answered with; the connection must be closed after that.
        """
        self.begun = self.begun or bool(data)
        self._buffer += data
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._searched))) >= 0:
            line = bytes(self._buffer[start : end + 1])
            start = end + 1
            if self._take(line):
                self.rest = bytes(self._buffer[start:])
                self._buffer.clear()
                assert self._request_line is not None
                return understand(self._request_line, self._fields)
        del self._buffer[:start]
        self._searched = len(self._buffer)
        # An unfinished line that is too long already; the end may still bring CR and LF, which do not count.
        self._check_size(len(self._buffer) - self._buffer.endswith(b"\r"))
        return None

    def _take(self, line: bytes) -> bool:
        """Take a line with its end; whether it was the empty one after the fields."""
        bare = not line.endswith(b"\r\n")
        content = line[:-1] if bare else line[:-2]
        self._check_size(len(content), more=bool(content))
        if bare:
            raise Refusal(Code.BAD_REQUEST, "Lines of a request must end in CR LF, not in LF alone.")
        if self._request_line is None:
            if content:
                self._request_line = content
            else:
                self._blank_lines += 1
                if self._blank_lines > 1:  # One is to be passed over (RFC 9112, section 2.2).
                    raise Refusal(Code.BAD_REQUEST, "A request must begin with its method.")
            return False
        if not content:
            return True
        self._fields_bytes += len(content) + 2
        self._fields.append(_field(content))
        return False

    def _check_size(self, length: int, more: bool = False) -> None:
        limits = self._limits
        if self._request_line is None:
            if length > limits.request_line_bytes_max:
                raise Refusal(Code.URI_TOO_LONG, "The request line is too long.", bytes_max=limits.request_line_bytes_max)
        elif self._fields_bytes + length > limits.header_bytes_max:
            raise Refusal(Code.HEADERS_TOO_LARGE, "The header fields are too long together.", bytes_max=limits.header_bytes_max)
        elif more and len(self._fields) >= limits.header_fields_max:
            raise Refusal(Code.HEADERS_TOO_LARGE, "There are too many header fields.", fields_max=limits.header_fields_max)


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        if line[:1] in (b" ", b"\t"):
            raise Refusal(Code.BAD_REQUEST, "Header fields must not be folded over several lines.")
        raise Refusal(Code.BAD_REQUEST, "A header field must be a name, a colon right behind it, and a value without control characters.")
    return match[1], match[2].rstrip(b" \t")


def understand(request_line: bytes, fields: list[tuple[bytes, bytes]]) -> Head:
    """What a request line and its fields mean.

    Raises:
        Refusal: when they mean nothing, or more than one thing.
    """
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise Refusal(Code.BAD_REQUEST, "The request line must be a method, a target and HTTP/1.1, with one space between them.")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Refusal(Code.VERSION_NOT_SUPPORTED, "This server speaks HTTP/1.1.")
    if method not in METHODS:
        raise Refusal(Code.NOT_IMPLEMENTED, f"This server does not know the method {method.decode('ascii')}.")
    version = b"HTTP/1.0" if minor == b"0" else b"HTTP/1.1"
    modern = version == b"HTTP/1.1"

    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)

    host = _host(values.get(b"host", []), modern)
    authority, path, query = _target(method, target)
    content_length, chunked = _framing(values, modern)
    connection = {token.strip(b" \t").lower() for value in values.get(b"connection", []) for token in value.split(b",")}
    return Head(
        method=method,
        path=path,
        query=query,
        version=version,
        fields=tuple(fields),
        host=authority or host,
        content_length=content_length,
        chunked=chunked,
        expects_continue=_expectation(values.get(b"expect", [])) and modern and (chunked or bool(content_length)),
        # HTTP/1.0 clients get one answer a connection: that an answer of unknown length ends with it is all they understand.
        keep_alive=modern and b"close" not in connection,
    )


def _host(values: list[bytes], modern: bool) -> bytes | None:
    if not values and not modern:
        return None
    if len(values) != 1:
        raise Refusal(Code.BAD_REQUEST, "A request must have exactly one Host.")
    return _authority(values[0])


def _authority(value: bytes) -> bytes:
    match = _HOST.fullmatch(value)
    if match is None or (match[1] is not None and int(match[1]) > 65535):
        raise Refusal(Code.BAD_REQUEST, "The host must be a name or address, with a port if need be.")
    return value


def _target(method: bytes, target: bytes) -> tuple[bytes | None, bytes, bytes | None]:
    """Authority (of an absolute target, which counts more than `Host`), path and query (RFC 9112, section 3.2)."""
    authority = None
    if b"#" in target:
        raise Refusal(Code.BAD_REQUEST, "A request's target has no fragment; write %23 for a number sign in a name.")
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            authority, target = _authority(absolute[1]), absolute[2] or b"/"
            if target.startswith(b"?"):
                target = b"/" + target
        elif target != b"*" or method != b"OPTIONS":
            raise Refusal(Code.BAD_REQUEST, "A request's target must be a path that begins with a slash, or an http(s) URL.")
    path, mark, query = target.partition(b"?")
    return authority, path, query if mark else None


def _framing(values: dict[bytes, list[bytes]], modern: bool) -> tuple[int | None, bool]:
    """How long the body is (RFC 9112, section 6.3): (content length, chunked)."""
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if lengths and codings:
        raise Refusal(Code.BAD_REQUEST, "A request has either a Content-Length or a Transfer-Encoding, not both.")
    if codings:
        if not modern:
            raise Refusal(Code.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding.")
        if len(codings) > 1:
            raise Refusal(Code.BAD_REQUEST, "A request has one Transfer-Encoding.")
        if codings[0].lower() != b"chunked":
            raise Refusal(Code.NOT_IMPLEMENTED, "The only Transfer-Encoding here is chunked.")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise Refusal(Code.BAD_REQUEST, "Content-Length must be there once, and be a number of at most 18 digits.")
    return int(lengths[0]), False


def _expectation(values: list[bytes]) -> bool:
    if any(value.lower() != b"100-continue" for value in values):
        raise Refusal(Code.EXPECTATION, "The only expectation that can be met here is 100-continue.")
    return bool(values)


class LengthBody:
    """Reads a body of known length."""

    def __init__(self, length: int) -> None:
        self._missing = length
        self.rest = b""

    @property
    def ended(self) -> bool:
        """Whether the body is complete."""
        return self._missing == 0

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""
        return self._missing

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; those of the body. Once it has ended, all go to `rest`."""
        if len(data) > self._missing:
            data, beyond = data[: self._missing], data[self._missing :]
            self.rest += beyond
        self._missing -= len(data)
        return [data] if data else []

    def passed(self, count: int) -> None:
        """So many bytes of the body were taken by another way than `feed`."""
        assert count <= self._missing, "more than the body has"
        self._missing -= count


class ChunkedBody:
    """Reads a chunked body (RFC 9112, section 7.1); extensions and trailers are checked and dropped."""

    missing = None
    """How many bytes are still to come: nobody knows."""

    def __init__(self) -> None:
        self.rest = b""
        self.ended = False
        self._buffer = bytearray()
        self._missing = 0
        """Bytes of the present chunk still to come."""
        self._after_chunk = False
        """The line end behind a chunk's bytes comes next."""
        self._trailers = False
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; those of the body. Once it has ended, all go to `rest`.

        Raises:
            Refusal: BAD_REQUEST when the framing is broken. Bytes of the body in the same piece of data are lost then.
        """
        if self.ended:
            self.rest += data
            return []
        pieces: list[bytes] = []
        if self._missing > len(data) and not self._buffer:  # The usual case in a large chunk, without a copy.
            self._missing -= len(data)
            return [data] if data else []
        self._buffer += data
        at = 0
        over = False
        while not over:
            if self._missing:
                piece = bytes(self._buffer[at : at + self._missing])
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                self._missing -= len(piece)
                self._after_chunk = self._missing == 0
                continue
            end = self._buffer.find(b"\n", at)
            if end < 0:
                self._check_line(len(self._buffer) - at)
                break
            line = bytes(self._buffer[at : end + 1])
            at = end + 1
            self._check_line(len(line) - 1)
            over = self._take(line)
        if over:
            self.ended = True
            self.rest = bytes(self._buffer[at:])
            self._buffer.clear()
        else:
            del self._buffer[:at]
        return pieces

    def _check_line(self, length: int) -> None:
        if length > (1 if self._after_chunk else TRAILER_BYTES_MAX - self._trailer_bytes if self._trailers else CHUNK_LINE_BYTES_MAX):
            raise Refusal(Code.BAD_REQUEST, "A line between the chunks of the body is too long.")

    def _take(self, line: bytes) -> bool:
        """Take a line with its end; whether it was the last of the body."""
        if not line.endswith(b"\r\n"):
            raise Refusal(Code.BAD_REQUEST, "Lines between the chunks of the body must end in CR LF.")
        content = line[:-2]
        if self._after_chunk:
            if content:
                raise Refusal(Code.BAD_REQUEST, "A chunk of the body is longer than it says.")
            self._after_chunk = False
        elif self._trailers:
            if content:
                _field(content)
                self._trailer_bytes += len(line)
            else:
                return True
        else:
            match = _CHUNK_SIZE.fullmatch(content)
            if match is None:
                raise Refusal(Code.BAD_REQUEST, "A chunk of the body must begin with its size in hexadecimal digits.")
            self._missing = int(match[1], 16)
            self._trailers = self._missing == 0
        return False


BodyReader = LengthBody | ChunkedBody


def body_reader(head: Head) -> BodyReader:
    """A reader for the body that follows this head; of a request without body it has ended at once."""
    return ChunkedBody() if head.chunked else LengthBody(head.content_length or 0)
