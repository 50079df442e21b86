"""HTTP/1.1 as a client speaks it, without a socket: bytes of an answer in, events out.

Twisted's own client holds an answer back until the whole request is written, so a refusal or a redirect that comes before a
gigabyte has been sent is seen only after the gigabyte, or never. And it drops `100 Continue`. An upload here needs both: it asks
(`Expect: 100-continue`), waits for leave, and stops sending when the answer is there. Hence this reader, and `exchange.py`
which gives it a connection.

As strict as RFC 9112 asks of a recipient: what could be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import attrs

HEAD_BYTES_MAX = 65536
"""Status line and fields together; servers of ours send well below 4 KiB."""
_LINE_BYTES_MAX = 4096
"""A chunk's size with its extensions, or one trailer."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TARGET = re.compile(r"[\x21-\x7e]+")
_LENGTH = re.compile(r"[0-9]{1,18}")

DEFAULT_PORTS = {"http": 80, "https": 443}


class BadAnswer(Exception):
    """The server's answer is not HTTP, or stops in the middle."""


@attrs.frozen(order=True)
class Origin:
    """What a connection leads to: scheme, host and port (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As the `Host` field has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def split_url(url: str) -> tuple[Origin, str]:
    """A URL as (where to connect, what to ask for).

    Raises:
        ValueError: it is not an http or https URL with a host, or holds what cannot stand in a request.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL like https://host:port")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold a name or a password")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _TARGET.fullmatch(target) or not parts.hostname.isascii():
        raise ValueError(f"{url!r} holds characters that must be percent-encoded")
    return Origin(scheme, parts.hostname, parts.port or DEFAULT_PORTS[scheme]), target


class Fields:
    """The header fields of an answer; names in any case."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def get(self, name: str) -> str | None:
        """The value; of several, joined by commas as RFC 9110 section 5.3 says; None when there is none."""
        found = [value for key, value in self._pairs if key == name.lower()]
        return ", ".join(found) if found else None

    def tokens(self, name: str) -> set[str]:
        """The members of a list of tokens, in lower case."""
        return {token for part in (self.get(name) or "").split(",") if (token := part.strip().lower())}


@attrs.frozen
class Interim:
    """A 1xx answer: the real one is still to come."""

    status: int


@attrs.frozen
class Head:
    """Status and fields of the answer."""

    status: int
    fields: Fields


@attrs.frozen
class Data:
    """Bytes of the answer's content, in order."""

    data: bytes


@attrs.frozen
class End:
    """The answer is complete."""

    reusable: bool
    """Whether another request may follow on this connection."""


Event = Interim | Head | Data | End


def request_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Request line and fields.

    Raises:
        ValueError: a name or value would break out of its line.
    """
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a request's fields must be printable text on one line")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class AnswerReader:
    """Reads the answer to one request; feed it until `End`."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._kept = b""
        self._step = self._read_head
        self._left = 0
        self._persistent = True
        self._head_seen = False
        self.ended = False

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes off the connection; what they complete.

        Raises:
            BadAnswer: they are not what HTTP has at this place; the connection is of no more use.
        """
        self._kept = self._kept + data if self._kept else data
        events: list[Event] = []
        while not self.ended and self._step(events):
            pass
        if self.ended and self._kept:
            raise BadAnswer("the server sent more than the answer")
        return events

    def eof(self) -> list[Event]:
        """The server closed the connection; ends an answer whose length only that can tell.

        Raises:
            BadAnswer: the answer was not complete.
        """
        if self.ended:
            return []
        if self._step == self._read_to_close:
            self.ended = True
            return [End(False)]
        raise BadAnswer("the connection was closed " + ("in the middle of the answer" if self._head_seen else "without an answer"))

    def _line(self, limit: int) -> bytes | None:
        line, found, rest = self._kept.partition(b"\r\n")
        if not found:
            if len(self._kept) > limit:
                raise BadAnswer("a line of the answer is too long")
            return None
        self._kept = rest
        return line

    def _finish(self, events: list[Event]) -> bool:
        self.ended = True
        events.append(End(self._persistent))
        return False

    def _read_head(self, events: list[Event]) -> bool:
        head, found, rest = self._kept.partition(b"\r\n\r\n")
        if len(head) > HEAD_BYTES_MAX:
            raise BadAnswer("the answer's head is too long")
        if not found:
            return False
        self._kept = rest
        first, *lines = head.split(b"\r\n")
        matched = _STATUS_LINE.fullmatch(first)
        if matched is None:
            raise BadAnswer("this does not speak HTTP/1.1 here")
        status = int(matched[2])
        pairs = []
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise BadAnswer("the answer's head has a malformed line")
            pairs.append((field[1].decode("ascii"), field[2].decode("latin-1").rstrip("\t ")))
        if status < 200:
            if status == 101:
                raise BadAnswer("the server changed the protocol unasked")
            events.append(Interim(status))
            return True
        fields = Fields(pairs)
        self._head_seen = True
        self._persistent = matched[1] == b"1" and "close" not in fields.tokens("Connection")
        events.append(Head(status, fields))
        return self._begin_content(status, fields, events)

    def _begin_content(self, status: int, fields: Fields, events: list[Event]) -> bool:
        """Decide where the content ends (RFC 9112 section 6.3)."""
        coding, length = fields.get("Transfer-Encoding"), fields.get("Content-Length")
        if self._method == "HEAD" or status in (204, 304):
            return self._finish(events)
        if coding is not None:
            if coding.strip().lower() != "chunked" or length is not None:
                raise BadAnswer("the answer's length cannot be told for certain")
            self._step = self._read_chunk_size
        elif length is not None:
            members = {member.strip() for member in length.split(",")}
            stated = members.pop()
            if members or not _LENGTH.fullmatch(stated):
                raise BadAnswer("the answer's length is malformed")
            self._left = int(stated)
            if self._left == 0:
                return self._finish(events)
            self._step = self._read_counted
        else:
            self._persistent = False
            self._step = self._read_to_close
        return True

    def _take(self, events: list[Event]) -> None:
        taken = self._kept[: self._left] if len(self._kept) > self._left else self._kept
        self._kept = self._kept[len(taken) :]
        self._left -= len(taken)
        if taken:
            events.append(Data(taken))

    def _read_counted(self, events: list[Event]) -> bool:
        self._take(events)
        return self._finish(events) if self._left == 0 else False

    def _read_to_close(self, events: list[Event]) -> bool:
        if self._kept:
            events.append(Data(self._kept))
            self._kept = b""
        return False

    def _read_chunk_size(self, events: list[Event]) -> bool:
        line = self._line(_LINE_BYTES_MAX)
        if line is None:
            return False
        matched = _CHUNK.fullmatch(line)
        if matched is None:
            raise BadAnswer("a chunk of the answer is malformed")
        self._left = int(matched[1], 16)
        self._step = self._read_chunk if self._left else self._read_trailer
        return True

    def _read_chunk(self, events: list[Event]) -> bool:
        self._take(events)
        if self._left == 0 and len(self._kept) >= 2:
            if self._kept[:2] != b"\r\n":
                raise BadAnswer("a chunk of the answer is longer than it says")
            self._kept = self._kept[2:]
            self._step = self._read_chunk_size
            return True
        return False

    def _read_trailer(self, events: list[Event]) -> bool:
        line = self._line(_LINE_BYTES_MAX)
        if line is None:
            return False
        return self._finish(events) if not line else True
