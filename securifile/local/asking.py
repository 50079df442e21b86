"""A small HTTP client that waits for its answers: for tests, the demo and benchmarks, not for people.

It shows what is on the wire: no redirect is followed unless that is asked for, no request is tried again, an answer
given before the body was taken is seen. One connection a request, so that no pool hides what a server does with
connections. It follows redirects as `curl -L` does: without `Authorization` when host or port change.
"""

from __future__ import annotations

import http.client
import json as jsons
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import urljoin, urlsplit

import attrs

CHUNK = 256 * 1024
EXPECT_FROM_BYTES = 64 * 1024
"""From this size on a body waits for `100 Continue`, so that a refusal or redirect costs no upload."""
_CONTINUE_WAIT_S = 5.0
_HOPS_MAX = 5

Body = bytes | BinaryIO | Iterable[bytes]


class BodyCutShort(Exception):
    """The server ended its answer before it was whole."""


@attrs.frozen
class Response:
    """An answer with its whole body (unless that went elsewhere)."""

    status: int
    headers: Message
    body: bytes
    url: str
    """Where it came from in the end, after redirects."""
    seconds: float
    """From connecting until the end of the body."""

    def json(self) -> Any:
        """The body as JSON."""
        return jsons.loads(self.body)

    @property
    def code(self) -> str | None:
        """The stable code, if it is a problem."""
        if self.headers.get_content_type() != "application/problem+json":
            return None
        code = self.json().get("code")
        return None if code is None else str(code)

    def must(self, *statuses: int) -> Self:
        """Itself, if the status is one of these. Raises `AssertionError` that shows the answer."""
        assert self.status in statuses, f"{self.status} instead of {statuses} from {self.url}: {self.body[:1000].decode(errors='replace')}"
        return self


class Exchange:
    """One request under way on a connection of its own; `Http.open` makes them. A context manager: it closes the connection."""

    def __init__(self, connection: socket.socket, url: str, method: str, begun: float) -> None:
        self.url = url
        self.begun = begun
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._method = method
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection, whatever is still under way."""
        self._reader.close()
        self._connection.close()

    def send(self, data: bytes) -> None:
        """Send raw bytes: of the head, or of the body."""
        self._connection.sendall(data)

    def receive(self) -> bytes:
        """The next raw bytes, interim answers too. Raises `OSError`."""
        data: bytes = self._reader.read1(CHUNK)
        return data

    def answer_begins(self, timeout_s: float) -> bool:
        """Whether the server says anything within that time; what it says is not consumed."""
        if isinstance(self._connection, ssl.SSLSocket) and self._connection.pending():
            return True
        poll = select.poll()  # select(2) knows no descriptor above 1023
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def may_continue(self) -> bool:
        """After `Expect: 100-continue`: whether to send the body; False when the final answer has come instead."""
        more = 0
        while more or self.answer_begins(_CONTINUE_WAIT_S):
            here = self._reader.peek(12)
            if not here.startswith(b"HTTP/1.1 1"):
                return False
            more = len(here) - self._pass_over_head()
            if here.startswith(b"HTTP/1.1 100"):
                break
        return True

    def response(self) -> http.client.HTTPResponse:
        """The head of the answer, waited for; its body is read from it. Raises `OSError`, `http.client.HTTPException`."""
        if self._response is None:
            while self._reader.peek(10)[:10] == b"HTTP/1.1 1":  # interim answers, of which http.client passes over 100 only
                self._pass_over_head()
            response = http.client.HTTPResponse(_Reads(self._reader), method=self._method)  # type: ignore[arg-type]
            response.begin()
            self._response = response
        return self._response

    def _pass_over_head(self) -> int:
        """Read the head of an interim answer; how many bytes it had."""
        count = 0
        for line in iter(self._reader.readline, b""):
            count += len(line)
            if line in {b"\r\n", b"\n"}:
                break
        return count

    def chunks(self) -> Iterator[bytes]:
        """The body of the answer. Raises `BodyCutShort` when it ends early."""
        response = self.response()
        left = response.length
        while True:
            try:
                data = response.read(CHUNK)
            except (http.client.IncompleteRead, ConnectionError, ssl.SSLError) as error:
                raise BodyCutShort(f"{self.url}: {error!r}") from error
            if not data:
                break
            left = None if left is None else left - len(data)
            yield data
        if left and self._method != "HEAD":
            raise BodyCutShort(f"{self.url}: {left} bytes are missing")

    def whole(self, into: Callable[[bytes], object] | None = None) -> Response:
        """The whole answer; its body goes to `into` if that is given and the status is 2xx. Raises as `chunks`."""
        head = self.response()
        if into is not None and 200 <= head.status < 300:
            for data in self.chunks():
                into(data)
            body = b""
        else:
            body = b"".join(self.chunks())
        return Response(head.status, head.headers, body, self.url, time.monotonic() - self.begun)


@attrs.frozen
class _Reads:
    """What `HTTPResponse` wants of a socket: a file to read from; here one that has been read from before."""

    reader: Any

    def makefile(self, mode: str) -> Any:
        return self.reader


@attrs.frozen
class Http:
    """One server, as one person (or nobody) speaks to it.

    Attributes:
        url: `https://host:port`.
        ca_file: the only CA that is trusted; None for plain HTTP.
        authorization: the value of that header; None to send none.
        timeout_s: for every single wait: connecting, sending, the next bytes.
    """

    url: str
    ca_file: Path | None = None
    authorization: str | None = attrs.field(default=None, repr=False)
    timeout_s: float = 30.0

    def request(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        json: object = None,
        follow: bool = False,
        into: Callable[[bytes], object] | None = None,
        length: int | None = None,
    ) -> Response:
        """Ask, and wait for the whole answer.

        Args:
            path: percent-encoded, with its query; sent as it is.
            body: an iterable without `length` goes chunked; one that can be read only once cannot follow a redirect that took it.
            json: sent as the body instead, with its content type.
            follow: follow 307 and 308 as `curl -L` would.
            into: takes the body of a 2xx piece by piece, so that it is nowhere in memory.
            length: of the body, when it cannot be seen.

        Raises:
            OSError, http.client.HTTPException, BodyCutShort: the connection failed before, in or after the head of the answer.
        """
        given = dict(headers or {})
        if json is not None:
            body = jsons.dumps(json).encode()
            given.setdefault("Content-Type", "application/json")
        server, target = self, path
        for _ in range(_HOPS_MAX):
            with server.open(method, target, body, given, length=length) as exchange:
                response = exchange.whole(into)
            place = response.headers.get("Location")
            if not follow or response.status not in {307, 308} or place is None:
                return response
            server, target = server._redirected(urljoin(server.url + target, place))
            if not isinstance(body, bytes | None) and hasattr(body, "seek"):
                body.seek(0)
        raise AssertionError(f"{_HOPS_MAX} redirects and no end: {self.url}{path} led to {server.url}{target}")

    def open(
        self, method: str, path: str, body: Body | None = None, headers: Mapping[str, str] | None = None, *, length: int | None = None
    ) -> Exchange:
        """Send a request; the exchange has its answer. Raises `OSError` when there is no connection."""
        given = {name.title(): value for name, value in (headers or {}).items()}
        if body is not None:
            length = _length(body) if length is None else length
            if length is None:
                given.setdefault("Transfer-Encoding", "chunked")
            else:
                given.setdefault("Content-Length", str(length))
            if length is None or length >= EXPECT_FROM_BYTES:
                given.setdefault("Expect", "100-continue")
        exchange = self.begin(method, path, given)
        try:
            if body is not None and (given.get("Expect") != "100-continue" or exchange.may_continue()):
                _send_body(exchange, body, chunked=given.get("Transfer-Encoding") == "chunked")
        except BaseException:
            exchange.close()
            raise
        return exchange

    def begin(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Exchange:
        """Send the head of a request alone; the body, if there is one, is the caller's to send."""
        given = {"Host": urlsplit(self.url).netloc, "Connection": "close", "User-Agent": "securifile-local"}
        if self.authorization is not None:
            given["Authorization"] = self.authorization
        given.update(headers or {})
        head = "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in given.items()), "\r\n"])
        return self.raw(head.encode("latin-1"), method, path)

    def raw(self, data: bytes, method: str = "GET", path: str = "") -> Exchange:
        """Send bytes that need not be a request at all."""
        begun = time.monotonic()
        where = urlsplit(self.url)
        connection: socket.socket = socket.create_connection((where.hostname or "", where.port or 443), self.timeout_s)
        try:
            if where.scheme == "https":
                connection = ssl.create_default_context(cafile=self.ca_file).wrap_socket(connection, server_hostname=where.hostname)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(data)
        except BaseException:
            connection.close()
            raise
        return Exchange(connection, self.url + path, method, begun)

    def _redirected(self, url: str) -> tuple[Http, str]:
        """The server and target that an absolute URL names."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        return attrs.evolve(self, url=origin, authorization=self.authorization if origin == self.url else None), target


def _length(body: Body) -> int | None:
    if isinstance(body, bytes):
        return len(body)
    if hasattr(body, "seek") and hasattr(body, "tell"):
        here = body.tell()
        end = body.seek(0, 2)
        body.seek(here)
        return int(end - here)
    return None


def _pieces(body: Body) -> Iterator[bytes]:
    if isinstance(body, bytes):
        return (body[start : start + CHUNK] for start in range(0, len(body), CHUNK))
    if hasattr(body, "read"):
        return iter(lambda: body.read(CHUNK), b"")
    return iter(body)


def _send_body(exchange: Exchange, body: Body, *, chunked: bool) -> None:
    """Send the body, until the server has had enough of it: then its answer says why."""
    try:
        for data in _pieces(body):
            if chunked and not data:
                continue
            exchange.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        if chunked:
            exchange.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        # Refused in mid-body: the answer may have come before the connection was closed. If not, reading it raises.
        return
