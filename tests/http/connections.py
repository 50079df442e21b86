"""A server on a memory transport, and what the tests send to it and read from it."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from securifile.http.channel import HttpChannel, HttpFactory, http_factory
from securifile.http.json_body import answer_json, read_json
from securifile.http.limits import Access, HttpLimits
from securifile.http.request import Request
from securifile.http.routing import klein_problems
from securifile.model.errors import Code, Refusal, StreamBroken

HOST = b"Host: a\r\n"


class Transport(StringTransport):
    """A memory transport that can be full, half-closed and aborted."""

    half_closed = False
    producer: Any
    aborted = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    @property
    def is_paused(self) -> bool:
        return self.producerState == "paused"


@attrs.frozen
class Answer:
    """A parsed answer."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.content)["code"])


def parse_answers(data: bytes, heads: tuple[bool, ...] = ()) -> list[Answer]:
    """Every answer in `data`; `heads`: which of them answer HEAD. What is cut off raises."""
    answers: list[Answer] = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", first)[1])  # type: ignore[index]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        content = b""
        index = sum(answer.status != 100 for answer in answers)
        silent = status in (100, 204, 304) or (index < len(heads) and heads[index])
        if silent:
            pass
        elif "transfer-encoding" in headers:
            while True:
                size, data = data.split(b"\r\n", 1)
                length = int(size, 16)
                assert data[length : length + 2] == b"\r\n", "a chunk was cut off"
                content, data = content + data[:length], data[length + 2 :]
                if not length:
                    break
        elif "content-length" in headers:
            length = int(headers["content-length"])
            assert len(data) >= length, "the content was cut off"
            content, data = data[:length], data[length:]
        else:
            content, data = data, b""
        answers.append(Answer(status, headers, content))
    return answers


class App:
    """Routes of every kind that the facades have."""

    app = klein_problems(Klein())

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.sinks: list[Any] = []
        self.pending: list[Deferred[Any]] = []

    @app.route("/bytes")
    def bytes(self, request: Request) -> bytes:
        return b"hello"

    @app.route("/nothing")
    async def nothing(self, request: Request) -> None:
        request.setResponseCode(204)

    @app.route("/json", methods=["POST"])
    async def json(self, request: Request) -> Any:
        return answer_json(request, 201, await read_json(request), [("X-Odd", "a\r\nInjected: b")])

    @app.route("/echo", methods=["PUT"])
    async def echo(self, request: Request) -> Any:
        pieces = []
        try:
            while piece := await request.body.read():
                self.events.append(len(piece))
                pieces.append(piece)
        except StreamBroken:
            self.events.append("broken")
            raise
        return b"".join(pieces)

    @app.route("/count", methods=["PUT"])
    async def count(self, request: Request) -> Any:
        length = 0
        while piece := await request.body.read():
            length += len(piece)
        return b"%d" % length

    @app.route("/first", methods=["PUT"])
    async def first(self, request: Request) -> Any:
        return await request.body.read()

    @app.route("/refuse", methods=["PUT", "GET"])
    async def refuse(self, request: Request) -> None:
        raise Refusal(Code.FORBIDDEN, "Not yours.", why="test")

    @app.route("/redirect", methods=["PUT"])
    def redirect(self, request: Request) -> None:
        request.start(307, [("Location", "https://b/bytes?ticket=abc")], 0).finish()

    @app.route("/bug")
    async def bug(self, request: Request) -> None:
        raise ValueError("a secret")

    @app.route("/late-bug")
    async def late_bug(self, request: Request) -> None:
        await request.start(200, [], None).write(b"begun")
        raise ValueError("a secret")

    @app.route("/stream")
    def stream(self, request: Request) -> Deferred[None]:
        length = request.query("length")
        self.sinks.append(request.start(200, [("Content-Type", "text/plain")], int(length) if length else None))
        return self._pend()

    @app.route("/wait", methods=["GET", "PUT"])
    def wait(self, request: Request) -> Deferred[Any]:
        return self._pend()

    @app.route("/two")
    def two(self, request: Request) -> None:
        request.write(b"one ")
        request.write(b"two")
        request.finish()

    @app.route("/files/<owner>/<path:path>")
    def files(self, request: Request, owner: str, path: str) -> str:
        return f"{owner}|{path}|{request.header('x-odd')}"

    def _pend(self) -> Deferred[Any]:
        pending: Deferred[Any] = Deferred()
        pending.addErrback(self._note)
        self.pending.append(pending)
        return pending

    def _note(self, failure: Failure) -> Failure:
        self.events.append(type(failure.value).__name__)
        return failure


class Server:
    """A factory with its clock, and connections to it."""

    def __init__(self, limits: HttpLimits | None = None, resource: Any = None) -> None:
        self.clock = Clock()
        self.app = App()
        self.log: list[Access] = []
        self.factory: HttpFactory = http_factory(
            self.app.app.resource() if resource is None else resource, self.clock, limits or HttpLimits(), self.log.append, wall=lambda: 0.0
        )

    def connect(self) -> Connection:
        return Connection(self)


class Connection:
    """One client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.channel: HttpChannel = server.factory.buildProtocol(None)
        self.transport: Any = Transport()  # type: ignore[no-untyped-call]
        self.transport.protocol = self.channel  # type: ignore[attr-defined]
        self.channel.makeConnection(self.transport)  # type: ignore[no-untyped-call]

    def send(self, data: bytes, step: int | None = None) -> Connection:
        """Send; in pieces of `step` bytes."""
        if step is None:
            self.channel.dataReceived(data)
        else:
            for at in range(0, len(data), step):
                self.channel.dataReceived(data[at : at + step])
        return self

    def request(self, line: str, *headers: str, body: bytes = b"", step: int | None = None) -> Connection:
        """Send a request with a Content-Length when there is a body."""
        lines = [f"{line} HTTP/1.1", "Host: a", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body, step)

    @property
    def raw(self) -> bytes:
        """All that was answered."""
        return bytes(self.transport.value())

    def answers(self, *heads: bool) -> list[Answer]:
        """The answers so far."""
        return parse_answers(self.raw, heads)

    def answer(self, *heads: bool) -> Answer:
        """The only answer."""
        (answer,) = self.answers(*heads)
        return answer

    def go(self) -> None:
        """The client closes."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    def reset(self) -> None:
        """The client resets the connection."""
        self.channel.connectionLost(Failure(ConnectionLost()))

    @property
    def is_open(self) -> bool:
        """Whether the server keeps the connection for another request."""
        return not (self.transport.disconnecting or self.transport.half_closed or self.transport.aborted)
